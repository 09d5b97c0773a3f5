"""LeNet's Space in a browser, and its arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hf_papers.registry import find_paper
from tests.spaces.common import SpaceTests, Visit, load_app, save_random_model


class TestLeNet(SpaceTests):
    key = "lenet"
    tabs = {"Layer by layer": "codes", "Disturb it": "moved"}
    endpoints = {"/classify", "/disturb"}

    @classmethod
    def save_checkpoint(cls, folder: Path) -> None:
        save_random_model(folder, cls.key, "paper")
        find_paper(cls.key).image_processor_class().save_pretrained(folder)

    # In the browser

    def test_lights_up_for_a_drawn_digit(self, visit: Callable[..., Visit]) -> None:
        page = visit()
        before = {name: page.picture(name) for name in ("seen", "c1", "s2", "c3", "s4", "c5", "f6")}
        assert page.page.locator("#answer .meter").count() == 5 and page.picture("codes")
        assert page.page.locator("#distances .value").count() == 3
        page.page.get_by_role("button", name="Wipe").click()
        page.draw_seven()
        page.page.get_by_role("button", name="Read it").click()
        for name, picture in before.items():
            page.wait_for_change(name, picture)
        page.screenshot("lenet-layers")
        assert page.foreign_requests() == [] and page.problems == []

    def test_sees_a_turned_digit(self, visit: Callable[..., Visit]) -> None:
        page = visit()
        page.picture("codes")
        page.open_tab("Disturb it")
        straight = page.picture("moved")
        page.set_slider("angle", 90)
        page.wait_for_change("moved", straight)
        assert page.page.locator("#moved-answer .meter").count() == 5
        page.screenshot("lenet-disturbed")

    def test_says_what_is_wrong_with_a_picture(self, visit: Callable[..., Visit], tmp_path: Path) -> None:
        page = visit()
        page.picture("codes")
        page.page.get_by_role("button", name="Wipe").click()
        page.page.get_by_role("button", name="Read it").click()
        assert "There is no digit in the picture" in page.complaint()
        wrong = tmp_path / "notes.png"
        wrong.write_text("This is text, whatever it is called.")
        page.page.locator("input[type=file]").last.set_input_files(wrong)
        page.page.get_by_text("not a picture that can be read").wait_for()

    # Without a server

    def test_colours_say_the_sign_and_the_size(self) -> None:
        app = load_app("lenet")
        white, orange, indigo = app.coloured(torch.tensor([[[0.0, 2.0, -2.0]]]))[0].unbind(-1)
        assert white.flatten().tolist() == [1.0, 1.0, 1.0]
        assert orange.flatten().tolist() == pytest.approx(app.POSITIVE)
        assert indigo.flatten().tolist() == pytest.approx(app.NEGATIVE)
        assert app.as_block(torch.arange(84.0)).shape == (1, 12, 7)
        assert app.as_block(torch.arange(20.0)).shape == (1, 2, 12)

    def test_a_disturbed_digit_goes_where_the_sliders_say(self) -> None:
        app = load_app("lenet")
        pixels = torch.zeros(1, 1, 33, 33)
        pixels[0, 0, 16, 24] = 1.0  # right of the middle
        still = (0.0, 1.0, 0.0, 0.0, 0.0, 0.0)
        torch.testing.assert_close(app.disturb(pixels, *still), pixels, atol=1e-5, rtol=0)

        def brightest(*settings: float) -> tuple[int, int]:
            return divmod(app.disturb(pixels, *settings).argmax().item(), 33)

        assert brightest(90.0, 1.0, 0.0, 0.0, 0.0, 0.0) == (24, 16)  # a quarter clockwise: below the middle
        assert brightest(0.0, 1.5, 0.0, 0.0, 0.0, 0.0) == (16, 28)
        assert brightest(0.0, 1.0, 0.0, 3.0, -2.0, 0.0) == (14, 27)
        assert app.disturb(pixels, 0.0, 1.0, 0.0, 0.0, 0.0, 0.5).std() > 0.1

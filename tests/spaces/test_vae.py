"""VAE's Space in a browser, and its arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hf_papers.hub.checkpoints import load_strict
from hf_papers.registry import find_paper
from tests.spaces.common import SpaceTests, Visit, load_app, save_random_image_model


class TestVAE(SpaceTests):
    key = "vae"
    tabs = {"Knobs": "decoded", "Your digit": None, "Between two": "latent-way", "Map": "map"}
    endpoints = {"/decode", "/sample", "/reconstruct", "/interpolate", "/latent_map"}

    @classmethod
    def save_checkpoint(cls, folder: Path) -> None:
        save_random_image_model(folder, cls.key, "tiny")

    # In the browser

    def test_knobs_change_the_image(self, visit: Callable[..., Visit]) -> None:
        page = visit()
        first = page.picture("decoded")
        page.set_slider("knob0", 2.5)
        turned = page.wait_for_change("decoded", first)
        page.page.get_by_role("button", name="Draw a new sample").click()
        page.wait_for_change("decoded", turned)
        assert page.page.locator("#seed input").input_value() == "1"
        page.screenshot("vae-knobs")
        assert page.foreign_requests() == [] and page.problems == []

    def test_describes_a_drawn_digit(self, visit: Callable[..., Visit]) -> None:
        page = visit()
        page.open_tab("Your digit")
        page.draw_seven()
        page.page.get_by_role("button", name="Redraw").click()
        page.picture("posterior")
        terms = page.page.locator("#terms .value")
        elbo, reconstruction, kl = (float(term) for term in terms.all_inner_texts())
        assert elbo == pytest.approx(reconstruction - kl, abs=0.11)
        page.screenshot("vae-your-digit")
        page.open_tab("Between two")
        before = page.picture("latent-way")
        page.page.locator("#second input").click()
        page.page.get_by_role("option", name="my digit").click()
        page.wait_for_change("latent-way", before)
        page.screenshot("vae-between-two")
        assert page.foreign_requests() == [] and page.problems == []

    def test_asks_for_a_digit_when_there_is_none(self, visit: Callable[..., Visit]) -> None:
        page = visit()
        page.open_tab("Your digit")
        page.draw_seven()
        page.page.get_by_role("button", name="Wipe").click()
        page.page.get_by_role("button", name="Redraw").click()
        assert "There is no digit in the picture" in page.complaint()
        page.screenshot("vae-wrong-input")

    def test_takes_an_example_and_refuses_a_file_that_is_no_picture(
        self, visit: Callable[..., Visit], tmp_path: Path
    ) -> None:
        page = visit()
        page.open_tab("Your digit")
        page.page.get_by_role("button", name="Example").click()
        page.picture("posterior")
        pixels = "document.querySelector('#pad canvas').getContext('2d').getImageData(0, 0, 280, 280).data"
        page.page.wait_for_function(f"() => {pixels}.some(value => value < 64)")
        page.screenshot("vae-example")
        wrong = tmp_path / "notes.png"
        wrong.write_text("This is text, whatever it is called.")
        page.page.locator("input[type=file]").last.set_input_files(wrong)
        assert "not a picture that can be read" in page.complaint()

    # Without a server

    def test_bound_adds_up_and_active_dimensions_are_a_permutation(self, checkpoint: Path) -> None:
        app, model = load_app("vae"), load_strict(find_paper("vae"), checkpoint)
        image = model.dummy_inputs["pixel_values"][:1]
        terms = app.bound(model, image, samples=16)
        assert terms["kl"] > 0 > terms["reconstruction"]
        assert sorted(app.active_dimensions(model, 4)) == [0, 1, 2, 3]

    def test_latent_map_runs_left_to_right_and_bottom_to_top(self, checkpoint: Path) -> None:
        app, model = load_app("vae"), load_strict(find_paper("vae"), checkpoint)
        cells = app.latent_map(model, across=1, down=2, cells=3)
        corner = torch.zeros(1, 4)
        corner[0, 1], corner[0, 2] = -0.9674, 0.9674  # the normal's quantiles of 1/6 and 5/6: top left
        with torch.no_grad():
            assert torch.allclose(cells[0], model.decode(corner)[0], atol=1e-4)

"""The Spatial Transformer's Space in a browser, and its arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from hf_papers.errors import UserError
from hf_papers.papers.stn.modeling_stn import regular_grid
from tests.spaces.common import SpaceTests, Visit, load_app, save_random_image_model, save_random_model


class TestSpatialTransformer(SpaceTests):
    key = "stn"
    tabs = {"Look": "boxed", "Follow it": "caught"}
    endpoints = {"/look", "/follow"}

    @classmethod
    def save_checkpoint(cls, folder: Path) -> None:
        save_random_image_model(folder, cls.key, "tiny")
        save_random_model(folder / "cnn", cls.key, "tiny-cnn")

    @classmethod
    def variables(cls, folder: Path) -> dict[str, str]:
        return {"MODEL_ID": str(folder), "CNN_ID": str(folder / "cnn")}

    # In the browser

    def test_looks_at_a_drawn_digit(self, visit: Callable[..., Visit]) -> None:
        page = visit()
        page.page.locator("#plain-answer .meter").nth(3).wait_for()
        before = {name: page.picture(name) for name in ("boxed", "seen")}
        page.page.get_by_role("button", name="Wipe").click()
        page.draw_seven()
        page.page.get_by_role("button", name="Look", exact=True).click()
        for name, picture in before.items():
            page.wait_for_change(name, picture)
        assert page.page.locator("#answer .meter").count() == 4
        assert page.page.locator("#numbers .value").count() == 3
        moved = page.picture("boxed")
        page.set_slider("right", -5)
        page.wait_for_change("boxed", moved)
        page.screenshot("stn-look")
        page.open_tab("Follow it")
        assert page.picture("chased") != page.picture("caught")
        assert page.page.locator("#votes .value").count() == 2
        page.screenshot("stn-follow-it")
        assert page.foreign_requests() == [] and page.problems == []

    def test_other_clutter_is_other_clutter(self, visit: Callable[..., Visit]) -> None:
        page = visit()
        first = page.picture("boxed")
        page.page.get_by_role("button", name="Other clutter").click()
        page.wait_for_change("boxed", first)

    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK", "I;16"])
    def test_takes_a_picture_of_any_kind(self, client: object, tmp_path: Path, mode: str) -> None:
        from hf_papers.space_kit import encode_drawing, example_digit, open_picture

        drawn = example_digit(3).convert("L")
        picture = Image.fromarray(
            (torch.tensor(drawn.getdata()).view(drawn.height, drawn.width) * 257).to(torch.uint16).numpy()
        ) if mode == "I;16" else drawn.convert(mode)  # fmt: skip
        path = tmp_path / ("digit.tiff" if mode in ("CMYK", "I;16") else "digit.png")
        picture.save(path)
        drawing = encode_drawing(open_picture(path))
        _, _, _, answer, plain = client.predict(drawing, 0, 1, 3, -2, 4, api_name="/look")
        assert answer.count('class="meter"') == plain.count('class="meter"') == 4

    def test_says_what_is_wrong_with_a_picture(self, visit: Callable[..., Visit], tmp_path: Path) -> None:
        page = visit()
        page.picture("boxed")
        page.page.get_by_role("button", name="Wipe").click()
        page.page.get_by_role("button", name="Look", exact=True).click()
        assert "There is no digit in the picture" in page.complaint()
        wrong = tmp_path / "notes.png"
        wrong.write_text("This is text, whatever it is called.")
        page.page.locator("input[type=file]").last.set_input_files(wrong)
        page.page.get_by_text("not a picture that can be read").wait_for()

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ((200, 1, 0, 0, 6), "200 is greater than maximum"),
            ((0, 1, 99, 0, 6), "99 is greater than maximum"),
            ((0, 1, 0, 0, 2.5), "The number of pieces must be a whole number from 0 to 16"),
        ],
    )
    def test_refuses_impossible_settings_in_words(self, client: object, settings: tuple, words: str) -> None:
        from gradio_client.exceptions import AppError

        from hf_papers.space_kit import encode_drawing, example_digit

        with pytest.raises(AppError, match=words):
            client.predict(encode_drawing(example_digit(3)), *settings, api_name="/look")

    def test_counts_the_places_for_a_call(self, client: object) -> None:
        from hf_papers.space_kit import encode_drawing, example_digit

        boxes, seen, votes = client.predict(encode_drawing(example_digit(3)), 0, 1, 6, api_name="/follow")
        assert votes.count("of 100 places read as") == 2
        with Image.open(boxes) as left, Image.open(seen) as right:
            assert left.size != right.size and min(*left.size, *right.size) > 100

    # Without a server

    def test_a_digit_goes_where_the_sliders_say(self) -> None:
        app = load_app("stn")
        digit = torch.zeros(1, 1, 17, 17)
        digit[0, 0, 8, 12] = 1.0  # four pixels right of the middle

        def brightest(angle: float, scale: float, right: float, down: float) -> tuple[int, int]:
            image = app.compose(digit, 41, angle, scale, torch.tensor([[right, down]]))
            assert image.shape == (1, 1, 41, 41)
            return divmod(image.argmax().item(), 41)

        assert brightest(0, 1, 0, 0) == (20, 24)
        assert brightest(90, 1, 0, 0) == (24, 20)  # a quarter clockwise: below the middle
        assert brightest(0, 1.5, 0, 0) == (20, 26)
        assert brightest(0, 1, 5, -3) == (17, 29)
        several = app.compose(digit, 41, 0, 1, torch.tensor([[0.0, 0.0], [5.0, -3.0]]))
        assert several[1].argmax() == 17 * 41 + 29

    def test_clutter_has_its_number_and_changes_with_its_seed(self) -> None:
        app = load_app("stn")
        blank, donors = torch.zeros(3, 1, 60, 60), torch.ones(2, 28, 28)
        assert app.add_clutter(blank, donors, 8, 0, 0) is blank
        one = app.add_clutter(blank, donors, 8, 1, 0)
        assert one.sum((1, 2, 3)).tolist() == [64.0, 64.0, 64.0] and blank.sum() == 0
        assert not torch.equal(one, app.add_clutter(blank, donors, 8, 1, 1))
        assert torch.equal(one, app.add_clutter(blank, donors, 8, 1, 0))
        assert app.other_digits(28).shape == (50, 28, 28) and app.other_digits(28).amax((1, 2)).min() > 0.5

    def test_the_box_is_drawn_where_the_transformer_looks(self) -> None:
        app = load_app("stn")
        grid = regular_grid(20, False).float().view(2, 20, 20)
        orange, ground = (234, 88, 12), (148, 163, 184)
        drawn = app.with_box(torch.zeros(1, 20, 20), grid[None] * 0.5, False)  # the middle half
        scale = drawn.width // 32  # 20 pixels and six around them on each side
        assert drawn.width == drawn.height == 32 * scale and drawn.getpixel((1, 1)) == ground
        row = [drawn.getpixel((column, drawn.height // 2)) for column in range(drawn.width)]
        found = [column / scale - 6 for column, colour in enumerate(row) if colour == orange]
        left, right = (found[: len(found) // 2], found[len(found) // 2 :])
        # The outermost places read are a quarter pixel of the image inside the half's edges at 5 and 15.
        assert sum(left) / len(left) == pytest.approx(5.25, abs=0.2)
        assert sum(right) / len(right) == pytest.approx(14.75, abs=0.2)

    def test_what_a_transformation_does_is_said_in_words(self, checkpoint: Path) -> None:
        from hf_papers.hub.checkpoints import load_strict
        from hf_papers.registry import find_paper

        app, model = load_app("stn"), load_strict(find_paper("stn"), checkpoint)
        words = app.in_words(model, torch.tensor([0.0, -0.5, 0.5, 0.5, 0.0, -0.25]))
        assert list(words.values()) == ["× 2.00", "+90°", "+7.0, -3.5"]

    def test_what_cannot_be_shown_or_compared_is_refused_in_words(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        app = load_app("stn")
        monkeypatch.setenv("MODEL_ID", str(checkpoint / "cnn"))
        with pytest.raises(UserError, match="networks with a transformer"):
            app.load_networks()
        monkeypatch.setenv("MODEL_ID", str(checkpoint))
        save_random_model(tmp_path / "larger", "stn", "tiny-cnn", image_size=40)
        monkeypatch.setenv("CNN_ID", str(tmp_path / "larger"))
        with pytest.raises(UserError, match="image_size is 28 in the one with a transformer and 40"):
            app.load_networks()
        monkeypatch.delenv("CNN_ID")
        monkeypatch.setattr(app, "PLAIN", tmp_path / "nothing")
        assert app.load_networks()[1] is None

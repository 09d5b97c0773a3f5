"""The shared pieces of the Spaces."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from hf_papers import space_kit
from hf_papers.errors import UserError
from tests.spaces.common import ROOT, START_SECONDS, offline_environment, save_random_image_model


# --------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("error", [UserError("Draw a digit."), ValueError("Draw a digit.")])
def test_a_visitors_mistake_is_shown_as_its_sentence(error: Exception) -> None:
    @space_kit.errors_as_sentences
    def endpoint() -> None:
        raise error

    with pytest.raises(gr.Error, match="Draw a digit."):
        endpoint()


def test_our_mistake_is_logged_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    @space_kit.errors_as_sentences
    def endpoint() -> None:
        raise KeyError("secret path")

    with pytest.raises(gr.Error) as caught:
        endpoint()
    assert "secret" not in str(caught.value) and "not your fault" in str(caught.value)
    assert "secret path" in caplog.text


def test_generators_and_signatures_survive_the_guard() -> None:
    @space_kit.errors_as_sentences
    def endpoint(count: int) -> Iterator[int]:
        yield count
        raise UserError("That is all.")

    steps = endpoint(3)
    assert next(steps) == 3
    with pytest.raises(gr.Error, match="That is all."):
        next(steps)
    assert endpoint.__name__ == "endpoint" and list(endpoint.__wrapped__.__annotations__) == ["count", "return"]


@pytest.mark.parametrize("value", [None, "5", 2.5, -1, 101, math.nan, math.inf, True])
def test_whole_numbers_are_checked(value: object) -> None:
    with pytest.raises(UserError, match="The seed must be a whole number from 0 to 100"):
        space_kit.whole_number(value, "The seed", 0, 100)
    assert space_kit.whole_number(7.0, "The seed", 0, 100) == 7


@pytest.mark.parametrize("value", [None, "0.5", -0.1, 1.1, math.nan, True])
def test_bounds_are_checked(value: object) -> None:
    with pytest.raises(UserError, match="ε must be a number from 0 to 1"):
        space_kit.bounded(value, "ε", 0.0, 1.0)
    assert space_kit.bounded(1, "ε", 0.0, 1.0) == 1.0


# --------------------------------------------------------------------------------------------- checkpoint


def saved_vae(folder: Path) -> Path:
    save_random_image_model(folder / "vae", "vae", "tiny")
    return folder / "vae"


def test_model_id_names_another_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODEL_ID", raising=False)
    with pytest.raises(UserError, match="There is no checkpoint for this Space"):
        space_kit.load_model("vae", tmp_path)
    monkeypatch.setenv("MODEL_ID", str(saved_vae(tmp_path)))
    model = space_kit.load_model("vae", tmp_path)
    assert not model.training and model.dtype == torch.float32


def test_an_app_without_a_checkpoint_ends_with_a_sentence(tmp_path: Path) -> None:
    app = shutil.copyfile(ROOT / "spaces" / "vae" / "app.py", tmp_path / "app.py")
    ended = subprocess.run(
        [sys.executable, str(app)], env=offline_environment(), capture_output=True, text=True, timeout=START_SECONDS
    )
    assert ended.returncode == 2
    assert "Error: There is no checkpoint for this Space" in ended.stderr and "Traceback" not in ended.stderr


def test_a_checkpoint_of_another_paper_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_random_image_model(tmp_path / "gan", "gan", "tiny")
    monkeypatch.setenv("MODEL_ID", str(tmp_path / "gan"))
    with pytest.raises(UserError, match="paper-gan"):
        space_kit.load_model("vae", tmp_path)


def test_footer_says_what_results_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_ID", str(saved_vae(tmp_path)))
    model = space_kit.load_model("vae", tmp_path)
    assert "test results: not run yet" in space_kit.footer("vae", model, tmp_path).value
    monkeypatch.delenv("MODEL_ID")
    (tmp_path / "results.json").write_text('{"metrics": {"test": {"neg_elbo": {"mean": 95.43, "std": 0.1}}}}')
    assert "test set: neg elbo 95.43." in space_kit.footer("vae", model, tmp_path).value


# --------------------------------------------------------------------------------------------- pictures


def test_picture_grid_places_images_in_reading_order() -> None:
    images = torch.stack([torch.full((1, 2, 2), value) for value in (0.0, 0.5, 1.0)])
    grid = space_kit.picture_grid(images, columns=2, width=50, gap=2)
    assert grid.size == (50, 50)  # two tiles of 24 with a gap of 2
    centres = [grid.getpixel(point)[0] for point in ((12, 12), (38, 12), (12, 38))]
    assert centres == [0, 128, 255]
    with pytest.raises(ValueError, match="no images"):
        space_kit.picture_grid([], columns=2)


def test_facts_escape_what_they_show() -> None:
    assert "&lt;script&gt;" in space_kit.facts({"name": "<script>"})


# --------------------------------------------------------------------------------------------- drawing


def test_drawings_survive_the_way_to_the_page_and_back() -> None:
    picture = draw("white", "black")
    back = space_kit.decode_drawing(space_kit.encode_drawing(picture))
    assert np.array_equal(np.asarray(back.convert("RGB")), np.asarray(picture))
    assert space_kit.decode_drawing("") is None and space_kit.decode_drawing(None) is None


@pytest.mark.parametrize("value", ["hello", 5, "data:image/png;base64,%%%", "data:image/png;base64,aGVsbG8="])
def test_what_is_no_drawing_is_refused(value: object) -> None:
    with pytest.raises(UserError, match="picture"):
        space_kit.decode_drawing(value)


def test_uploads_are_turned_upright_and_made_small(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.new("RGB", (3000, 1500)).save(tmp_path / "photo.jpg", exif=exif)
    assert space_kit.open_picture(tmp_path / "photo.jpg").size == (512, 1024)


ODD_PICTURES = {
    "sixteen bits.png": Image.fromarray(np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)),
    "numbers.tif": Image.fromarray(np.linspace(-3, 3, 4096, dtype=np.float32).reshape(64, 64)),
    "print.jpg": Image.new("CMYK", (64, 64), (0, 255, 255, 0)),
    "alpha.png": Image.new("LA", (64, 64), (128, 200)),
    "palette.png": Image.new("P", (64, 64)),
    "one pixel.png": Image.new("1", (1, 1)),
}


@pytest.mark.parametrize("name", ODD_PICTURES)
def test_odd_pictures_are_read(name: str, tmp_path: Path) -> None:
    ODD_PICTURES[name].save(tmp_path / name)
    opened = space_kit.open_picture(tmp_path / name)
    assert opened.mode == "RGBA" and opened.size == ODD_PICTURES[name].size
    if name in ("sixteen bits.png", "numbers.tif"):  # the whole range, where Pillow would cut off at 255
        assert opened.convert("L").getextrema() == (0, 255)


def test_pictures_that_are_cut_off_or_far_too_large_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.effect_noise((400, 400), 50).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="not a picture that can be read"):
        space_kit.open_picture(path)
    Image.new("1", (9000, 6000)).save(tmp_path / "huge.png")
    with pytest.raises(UserError, match=r"9,000 x 6,000 pixels"):
        space_kit.open_picture(tmp_path / "huge.png")


# --------------------------------------------------------------------------------------------- digits


def draw(background: str | tuple[int, ...], ink: str, mode: str = "RGB", shift: int = 0) -> Image.Image:
    picture = Image.new(mode, (280, 280), background)
    ImageDraw.Draw(picture).line([(100 + shift, 60), (180 + shift, 60), (130 + shift, 220)], fill=ink, width=22)
    return picture


def test_digits_are_brought_into_mnists_frame_whatever_their_colours_and_place() -> None:
    digits = [
        space_kit.to_digit(draw("white", "black"), 28),
        space_kit.to_digit(draw("black", "white"), 28),
        space_kit.to_digit(draw((0, 0, 0, 0), "black", "RGBA"), 28),
        space_kit.to_digit(draw("white", "black", shift=60), 28),
    ]
    arrays = [np.asarray(digit, dtype=np.float64) for digit in digits]
    for array in arrays:
        assert array.shape == (28, 28)
        assert np.abs(array - arrays[0]).mean() < 2.0
    rows, columns = np.nonzero(arrays[0] > 64)
    assert 18 <= np.ptp(rows) + 1 <= 21  # MNIST: the ink fits 20 of 28 pixels
    centre = np.average(np.arange(28), weights=arrays[0].sum(0)), np.average(np.arange(28), weights=arrays[0].sum(1))
    assert np.allclose(centre, 13.5, atol=0.8)


@pytest.mark.parametrize("colour", ["white", "black", "grey"])
def test_a_picture_without_a_digit_is_refused(colour: str) -> None:
    with pytest.raises(UserError, match="no digit"):
        space_kit.to_digit(Image.new("RGB", (64, 64), colour), 28)

"""The shared pieces of the Spaces, and the arithmetic of the apps, without a server."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from hf_papers import space_kit
from hf_papers.errors import UserError
from hf_papers.hub.checkpoints import load_strict
from hf_papers.registry import find_paper
from tests.spaces.conftest import ROOT


def load_app(key: str) -> ModuleType:
    """`spaces/<key>/app.py` as a module, without serving it."""
    name = f"space_app_{key}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "spaces" / key / "app.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


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


def test_model_id_names_another_checkpoint(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MODEL_ID", raising=False)
    with pytest.raises(UserError, match="There is no checkpoint for this Space"):
        space_kit.load_model("vae", tmp_path)
    monkeypatch.setenv("MODEL_ID", str(models["vae"]))
    model = space_kit.load_model("vae", tmp_path)
    assert not model.training and model.dtype == torch.float32


def test_a_checkpoint_of_another_paper_is_refused(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_ID", str(models["gan"]))
    with pytest.raises(UserError, match="paper-gan"):
        space_kit.load_model("vae", tmp_path)


def test_footer_says_what_results_say(
    tmp_path: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_ID", str(models["vae"]))
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


# --------------------------------------------------------------------------------------------- lenet


def test_colours_say_the_sign_and_the_size() -> None:
    app = load_app("lenet")
    white, orange, indigo = app.coloured(torch.tensor([[[0.0, 2.0, -2.0]]]))[0].unbind(-1)
    assert white.flatten().tolist() == [1.0, 1.0, 1.0]
    assert orange.flatten().tolist() == pytest.approx(app.POSITIVE)
    assert indigo.flatten().tolist() == pytest.approx(app.NEGATIVE)
    assert app.as_block(torch.arange(84.0)).shape == (1, 12, 7) and app.as_block(torch.arange(20.0)).shape == (
        1,
        2,
        12,
    )


def test_a_disturbed_digit_goes_where_the_sliders_say() -> None:
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


# --------------------------------------------------------------------------------------------- vae


def test_bound_adds_up_and_active_dimensions_are_a_permutation(models: dict[str, Path]) -> None:
    app, model = load_app("vae"), load_strict(find_paper("vae"), models["vae"])
    image = model.dummy_inputs["pixel_values"][:1]
    terms = app.bound(model, image, samples=16)
    assert terms["kl"] > 0 > terms["reconstruction"]
    assert sorted(app.active_dimensions(model, 4)) == [0, 1, 2, 3]


def test_latent_map_runs_left_to_right_and_bottom_to_top(models: dict[str, Path]) -> None:
    app, model = load_app("vae"), load_strict(find_paper("vae"), models["vae"])
    cells = app.latent_map(model, across=1, down=2, cells=3)
    corner = torch.zeros(1, 4)
    corner[0, 1], corner[0, 2] = -0.9674, 0.9674  # the normal's quantiles of 1/6 and 5/6: top left
    with torch.no_grad():
        assert torch.allclose(cells[0], model.decode(corner)[0], atol=1e-4)


# --------------------------------------------------------------------------------------------- dqn


class Leaning(torch.nn.Module):
    """A player that pushes towards where the pole falls, which holds it for a while; `q_values` as the model has it."""

    def q_values(self, observations: torch.Tensor) -> torch.Tensor:
        lean = observations[..., 2] + 0.3 * observations[..., 3]
        return torch.stack([-lean, lean], dim=-1)


def test_episode_starts_where_it_is_told_and_the_shove_comes_after_two_seconds() -> None:
    app = load_app("dqn")
    calm = app.play(Leaning(), angle=3.0, shove=0.0, epsilon=0.0, seed=0)
    shoved = app.play(Leaning(), angle=3.0, shove=2.0, epsilon=0.0, seed=0)
    assert math.degrees(calm.states[0, 2]) == pytest.approx(3.0, abs=1e-5)
    assert calm.steps > 101 and not calm.shoved and shoved.shoved
    assert np.array_equal(calm.states[:101], shoved.states[:101])
    assert shoved.states[102, 3] - calm.states[102, 3] > 1.0
    assert len(calm.states) == len(calm.q_values) == calm.steps + 1


def test_random_actions_follow_epsilon_and_the_seed() -> None:
    app = load_app("dqn")
    reckless = app.play(Leaning(), angle=0.0, shove=0.0, epsilon=1.0, seed=1)
    assert reckless.random.all()
    again = app.play(Leaning(), angle=0.0, shove=0.0, epsilon=1.0, seed=1)
    assert np.array_equal(reckless.actions, again.actions)
    assert not app.play(Leaning(), 0.0, 0.0, 0.0, 1).random.any()


def test_survival_map_agrees_with_single_episodes() -> None:
    app = load_app("dqn")
    angles, velocities = np.array([-4.0, 0.0, 8.0]), np.array([0.0])
    *_, (_, lasted) = app.survival(Leaning(), angles, velocities)
    assert lasted.shape == (1, 3)
    for column, angle in enumerate(angles):
        environment = app.gymnasium.make(app.ENVIRONMENT)
        environment.reset(seed=0)
        environment.unwrapped.state = np.array([0.0, 0.0, math.radians(angle), 0.0])
        observation, steps, done = environment.unwrapped.state.astype(np.float32), 0, False
        while not done:
            action = int(Leaning().q_values(torch.from_numpy(observation)).argmax())
            observation, _, terminated, truncated, _ = environment.step(action)
            steps, done = steps + 1, terminated or truncated
        assert abs(lasted[0, column] - steps) <= 2  # the two simulators round differently


def test_ticks_are_round_and_inside() -> None:
    app = load_app("dqn")
    assert app._round_ticks(7.2, 25.1) == [10, 15, 20, 25]
    assert list(app._second_ticks(10.0)) == [0, 2, 4, 6, 8, 10]


# --------------------------------------------------------------------------------------------- gan


def test_gan_finds_real_images_of_its_size(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    app, model = load_app("gan"), load_strict(find_paper("gan"), models["gan"])
    monkeypatch.setenv("MODEL_ID", str(models["gan"]))
    real = app.find_real_images(model)
    assert real.images.shape[1:] == (1, 8, 8) and len(real.images) == len(real.labels) > 1000
    assert 0.0 <= real.images.min() < 0.01 < 0.99 < real.images.max() <= 1.0
    monkeypatch.setenv("MODEL_ID", str(tmp_path))
    save_file(
        {"images": torch.zeros(3, 5, 5, dtype=torch.uint8), "labels": torch.arange(3)},
        tmp_path / "reference.safetensors",
    )
    with pytest.raises(UserError, match="images of 5 pixels"):
        app.find_real_images(model)


def test_reference_takes_as_many_of_each_class(models: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file

    spec = importlib.util.spec_from_file_location("space_gan_reference", ROOT / "spaces" / "gan" / "reference.py")
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    shutil.copyfile(models["gan"] / "preprocessor_config.json", tmp_path / "preprocessor_config.json")
    arguments = ["--checkpoint", str(tmp_path), "--dataset", "embedded:digits", "--per_class", "3"]
    assert reference.main(arguments) == 0
    tensors = load_file(tmp_path / "reference.safetensors")
    assert tensors["images"].shape == (30, 8, 8) and tensors["images"].dtype == torch.uint8
    assert tensors["labels"].bincount().tolist() == [3] * 10


# --------------------------------------------------------------------------------------------- bert


def bert_reader(models: dict[str, Path]) -> Any:
    from hf_papers.papers.bert.reading_bert import load_reader

    return load_reader(models["bert"])


def test_sentences_keep_their_distances_on_a_plane_that_holds_them() -> None:
    """Points that lie in a plane of many dimensions: PCA must not change any distance between them."""
    plane, _ = torch.linalg.qr(torch.randn(30, 2, generator=torch.Generator().manual_seed(0)))
    vectors = torch.randn(12, 2, generator=torch.Generator().manual_seed(1)) @ plane.T + 5.0
    places = load_app("bert").principal_components(vectors)
    torch.testing.assert_close(torch.cdist(places, places), torch.cdist(vectors, vectors), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "count, method, used", [(2, "t-SNE", "PCA"), (6, "t-SNE", "t-SNE"), (25, "Automatic", "t-SNE")]
)
def test_any_number_of_sentences_gets_a_map(models: dict[str, Path], count: int, method: str, used: str) -> None:
    app, reader = load_app("bert"), bert_reader(models)
    found = app.map_sentences(reader, "\n".join(f"{'the door ' * (n % 7 + 1)} film" for n in range(count)), method)
    assert found.method == used and found.places.shape == (count, 2) and bool(torch.isfinite(found.places).all())
    assert all(number != other for number, other in enumerate(found.nearest))
    assert app.draw_map(found).count("<circle") == count


def test_sentences_that_are_all_the_same_have_a_map_too(models: dict[str, Path]) -> None:
    app = load_app("bert")
    found = app.map_sentences(bert_reader(models), "the door\nthe door\n\n  the door\n", "PCA")
    assert "nan" not in app.draw_map(found) and found.similarity == pytest.approx([1, 1, 1], abs=1e-4)


def test_more_than_two_hundred_sentences_are_cut_with_a_note(models: dict[str, Path]) -> None:
    found = load_app("bert").map_sentences(bert_reader(models), "the door\n" * 201 + "🙂", "PCA")
    assert len(found.sentences) == 200 and found.notes == ["The first 200 of 202 lines are shown."]


@pytest.mark.parametrize("text", ["", "one line", "\n\n", None])
def test_a_map_of_one_sentence_is_refused(models: dict[str, Path], text: str | None) -> None:
    with pytest.raises(UserError, match="at least two sentences"):
        load_app("bert").map_sentences(bert_reader(models), text, "PCA")


def test_attention_is_drawn_row_by_row_and_names_are_escaped() -> None:
    from hf_papers.papers.bert.reading_bert import Attention

    weights = torch.zeros(1, 2, 4, 4)
    weights[0, 1, 1, 2] = 1.0  # "<b>" looks at "cat", in the second head
    weights[0, 1, 0, 0] = weights[0, 1, 2, 2] = weights[0, 1, 3, 3] = 0.5
    drawn = load_app("bert").draw_attention(Attention(["[CLS]", "<b>", "cat", "[SEP]"], weights, ["A note."]), 0, 1)
    assert '<td style="--a:1.00" title="&lt;b&gt; → cat: 100%">' in drawn and drawn.count("<td style") == 16
    assert "From word to word most: &lt;b&gt; → cat 100%" in drawn and "<b>" not in drawn and "A note." in drawn
    mean = load_app("bert").draw_attention(Attention(["[CLS]", "a", "cat", "[SEP]"], weights, []), 0, None)
    assert "Darkest: 50%" in mean

"""See where a spatial transformer looks, and what it makes of what it sees there: `python spaces/stn/app.py`."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import gradio as gr
import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import PreTrainedModel

from hf_papers.data.augmentation import pixel_positions, sample
from hf_papers.errors import UserError
from hf_papers.hub.checkpoints import load_strict
from hf_papers.papers.stn.distortions_stn import Dice
from hf_papers.papers.stn.pictures_stn import as_picture, outline
from hf_papers.registry import find_paper
from hf_papers.space_kit import (
    QUIET,
    UNLISTED,
    DigitPad,
    bounded,
    caption,
    checkpoint_source,
    count_parameters,
    decode_drawing,
    errors_as_sentences,
    example_digit,
    facts,
    footer,
    header,
    hint,
    load_model,
    meters,
    picture,
    picture_grid,
    run,
    to_digit,
    valid_seed,
    whole_number,
)


CHECKPOINT = Path(__file__).parent / "checkpoint"
PLAIN = Path(__file__).parent / "checkpoint-cnn"
PLAIN_VARIABLE = "CNN_ID"
DIGIT, PATCH, IMAGE = 28, 8, 60  # pixels of a digit, of a piece of clutter and of the image, as the paper has them
MOST_CLUTTER = 16
MARGIN = 0.3  # of the image's side, shown around it: the box may reach outside
BOX = "#ea580c"
PLACES, SHOWN = 100, 8
FIRST_EXAMPLE = 7


# ------------------------------------------------------------------------------------------------- images


def compose(digit: torch.Tensor, size: int, angle: float, scale: float, shifts: torch.Tensor) -> torch.Tensor:
    """A digit (1, 1, d, d) turned clockwise by degrees and enlarged, in black images, shifted by pixels (n, 2) from their
    middle -> (n, 1, S, S)."""
    turn = math.radians(angle)
    # From places in the new image to places in the digit: undo each change, the last one first.
    matrix = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]) / scale
    places = (pixel_positions(size, size) - shifts[:, None, None]) @ matrix.T  # (n, S, S, 2)
    return sample(digit.expand(len(shifts), -1, -1, -1), places, "bilinear", "zeros")


def add_clutter(images: torch.Tensor, donors: torch.Tensor, patch: int, count: int, seed: int) -> torch.Tensor:
    """`count` squares of `patch` pixels out of other digits (m, d, d) anywhere in images (n, 1, S, S), as in section 4.1."""
    if count == 0:
        return images
    generator = torch.Generator().manual_seed(seed)
    dice, size = Dice(len(images), images.device, generator), images.shape[-1]
    chosen = torch.randint(0, len(donors), (len(images), count), generator=generator)
    pieces = donors.flatten(1)[chosen].gather(2, dice.squares(count, donors.shape[-1], patch))  # (n, count, patch^2)
    canvas = images.flatten(1).clone()
    canvas.scatter_reduce_(1, dice.squares(count, size, patch).flatten(1), pieces.flatten(1), "amax")
    return canvas.view_as(images)


@cache
def other_digits(side: int) -> torch.Tensor:
    """Fifty digits that clutter is cut out of, (50, side, side)."""
    digits = [
        np.asarray(to_digit(example_digit(label, 20 + number), side)) for label in range(10) for number in range(5)
    ]
    return torch.from_numpy(np.stack(digits)).float() / 255


def with_box(image: torch.Tensor, grids: torch.Tensor, align_corners: bool, width: int = 480) -> Image.Image:
    """An image (1, S, S) in its surroundings, with the outline of where each transformer looks, (T, 2, h, w)."""
    size = image.shape[-1]
    scale, margin = max(1, width // round(size * (1 + 2 * MARGIN))), round(MARGIN * size)
    pixels = (as_picture(image) * 255).round().byte().numpy()
    frame = Image.new("RGB", ((size + 2 * margin) * scale,) * 2, "#94a3b8")
    enlarged = Image.fromarray(pixels).resize((size * scale,) * 2, Image.Resampling.NEAREST)
    frame.paste(enlarged.convert("RGB"), (margin * scale,) * 2)
    pen = ImageDraw.Draw(frame)
    for grid in grids:
        border = (outline(grid, size, align_corners) + 0.5 + margin) * scale
        pen.line(
            [tuple(point) for point in border.clamp(-4 * width, 4 * width).T.tolist()],
            fill=BOX,
            width=4,
            joint="curve",
        )
    return frame


def side_by_side(pictures: list[Image.Image], columns: int, gap: int = 6) -> Image.Image:
    """Pictures of one size as rows of `columns`."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for number, one in enumerate(pictures):
        row, column = divmod(number, columns)
        sheet.paste(one, (column * (width + gap), row * (height + gap)))
    return sheet


def in_words(model: PreTrainedModel, theta: torch.Tensor) -> dict[str, str]:
    """What an affine transformation does, theta (6,): how much it enlarges, turns and where it looks."""
    if model.config.transformer != "affine":
        return {}
    a, b, x, c, d, y = theta.tolist()
    size = model.config.image_size / 2
    return {
        "enlarges": f"× {1 / max(math.sqrt(abs(a * d - b * c)), 1e-3):.2f}",
        "box turned by": f"{math.degrees(math.atan2(c, a)):+.0f}°",
        "looks at, from the middle": f"{size * x:+.1f}, {size * y:+.1f}",
    }


# ------------------------------------------------------------------------------------------------- page


def load_networks() -> tuple[PreTrainedModel, PreTrainedModel | None]:
    """The network with a transformer, and one without, where there is one."""
    model = load_model("stn", CHECKPOINT)
    if model.config.transformer == "none" or model.config.num_channels != 1:
        raise UserError(
            "This page shows networks with a transformer that look at one grey image, and the checkpoint is of another "
            f"kind: transformer '{model.config.transformer}', num_channels {model.config.num_channels}."
        )
    source = checkpoint_source(PLAIN, PLAIN_VARIABLE)
    if source == str(PLAIN) and not (PLAIN / "config.json").is_file():
        return model, None
    plain = load_strict(find_paper("stn"), source).float().eval()
    for name in ("image_size", "num_channels", "num_labels"):
        if getattr(plain.config, name) != getattr(model.config, name):
            raise UserError(
                f"The two networks cannot be compared: {name} is {getattr(model.config, name)} in the one with a "
                f"transformer and {getattr(plain.config, name)} in the other ({source}): name another by {PLAIN_VARIABLE}."
            )
    return model, plain


def build() -> gr.Blocks:
    """The page around one checkpoint, or two. Raises `UserError` when there is none."""
    model, plain = load_networks()
    names, size = model.config.id2label, model.config.image_size
    side, patch = round(size * DIGIT / IMAGE), round(size * PATCH / IMAGE)
    reach = size // 2

    def read(drawing: str) -> torch.Tensor:
        """The digit on the pad, (1, 1, d, d)."""
        image = decode_drawing(drawing)
        if image is None:
            raise UserError(
                "There is no digit in the picture: draw one with the brush, or upload a clear picture of one."
            )
        return torch.from_numpy(np.asarray(to_digit(image, side), dtype=np.float32))[None, None] / 255

    def answer(logits: torch.Tensor) -> str:
        best = logits.softmax(-1).topk(min(4, len(names)))
        return meters([(names[place], share) for share, place in zip(*map(torch.Tensor.tolist, best), strict=True)])

    @errors_as_sentences
    def look(
        drawing: str, angle: float, scale: float, right: float, down: float, clutter: float, seed: float
    ) -> tuple[Image.Image, Image.Image, str, str, str]:
        """The image with the box that the transformer looks at, what it sees there, that in numbers, and both answers."""
        angle, scale = bounded(angle, "The angle", -180, 180), bounded(scale, "The size", 0.5, 1.5)
        shift = [
            bounded(right, "The shift to the right", -reach, reach),
            bounded(down, "The shift down", -reach, reach),
        ]
        clutter = whole_number(clutter, "The number of pieces", 0, MOST_CLUTTER)
        seed = valid_seed(seed)
        images = compose(read(drawing), size, angle, scale, torch.tensor([shift]))
        images = add_clutter(images, other_digits(side), patch, clutter, seed)
        with torch.no_grad():
            output = model(images)
            beside = answer(plain(images).logits[0]) if plain is not None else ""
        return (
            with_box(images[0], output.grids[0], model.config.align_corners),
            picture_grid(output.transformed[0][:, None].clamp(0, 1), columns=1, width=480),
            facts(in_words(model, output.theta[0, 0])),
            answer(output.logits[0]),
            beside,
        )

    @errors_as_sentences
    def chase(
        drawing: str, angle: float, scale: float, clutter: float, seed: float
    ) -> tuple[Image.Image, Image.Image, str]:
        """The same digit at many places: boxes, what is seen there, and how often each network gives which answer."""
        angle, scale = bounded(angle, "The angle", -180, 180), bounded(scale, "The size", 0.5, 1.5)
        clutter = whole_number(clutter, "The number of pieces", 0, MOST_CLUTTER)
        seed = valid_seed(seed)
        room = max(0.0, (size - side * scale) / 2)
        drawn = torch.rand(PLACES, 2, generator=torch.Generator().manual_seed(seed))
        images = compose(read(drawing), size, angle, scale, room * (2 * drawn - 1))
        images = add_clutter(images, other_digits(side), patch, clutter, seed + 1)
        with torch.no_grad():
            output = model(images)
            answers = {"with a transformer": output.logits}
            if plain is not None:
                answers["without one"] = plain(images).logits
        boxes = [
            with_box(image, grids, model.config.align_corners, width=180)
            for image, grids in zip(images[:SHOWN], output.grids[:SHOWN], strict=True)
        ]
        seen = output.transformed[:SHOWN, :1].clamp(0, 1)
        counts = {}
        for name, logits in answers.items():
            votes = torch.bincount(logits.argmax(-1), minlength=len(names))
            counts[f"of {PLACES} places read as {names[int(votes.argmax())]}, {name}"] = str(int(votes.max()))
        return side_by_side(boxes, 4), picture_grid(seen, columns=4, width=720, gap=6), facts(counts)

    with gr.Blocks(title="Spatial Transformer: watch where it looks") as demo:
        header(
            "stn",
            "Watch where a network looks",
            "Before it reads the digit, this network chooses a box in the picture, and straightens and enlarges what lies "
            "in it. Nobody told it where to look: it found out because what it sees there is easier to read.",
        )
        caption("Draw a digit here, or upload a picture of one")
        with gr.Row():
            with gr.Column(scale=4, min_width=280):
                pad = DigitPad("Look", FIRST_EXAMPLE)
            with gr.Column(scale=5, min_width=280):
                angle = gr.Slider(-90, 90, 0, step=1, label="Turn, degrees clockwise", elem_id="angle")
                scale = gr.Slider(0.5, 1.5, 1, step=0.01, label="Size", elem_id="scale")
                right = gr.Slider(
                    -reach, reach, round(size / 6), step=0.5, label="Shift right, pixels", elem_id="right"
                )
                down = gr.Slider(-reach, reach, -round(size / 6), step=0.5, label="Shift down, pixels", elem_id="down")
                clutter = gr.Slider(
                    0, MOST_CLUTTER, 6, step=1, label="Clutter, pieces of other digits", elem_id="clutter"
                )
                seed = gr.State(0)
                other = gr.Button("Other clutter", size="lg", min_width=140)
        with gr.Tabs():
            with gr.Tab("Look"):
                with gr.Row():
                    with gr.Column(min_width=280):
                        boxed = picture("What it gets, and the box it looks at", "boxed", "single")
                    with gr.Column(min_width=280):
                        seen = picture("What it sees there", "seen", "single")
                numbers = gr.HTML(elem_id="numbers")
                with gr.Row():
                    with gr.Column(min_width=280):
                        caption(f"Its answer ({count_parameters(model):,} weights)")
                        bars = gr.HTML(elem_id="answer")
                    with gr.Column(min_width=280, visible=plain is not None):
                        weights = f" ({count_parameters(plain):,} weights)" if plain is not None else ""
                        caption(f"A network without a transformer{weights}")
                        plain_bars = gr.HTML(elem_id="plain-answer")
            with gr.Tab("Follow it") as following:
                hint(
                    f"The same digit at {PLACES} places, {SHOWN} of them shown, each with other clutter: the box goes after "
                    "the digit, and what is seen in it looks the same wherever the digit was."
                )
                votes = gr.HTML(elem_id="votes")
                chased = picture("What it gets, and where it looks", "chased", "grid")
                caught = picture("What it sees there", "caught", "grid")
        settings = [pad.drawing, angle, scale, right, down, clutter, seed]
        looking = {"fn": look, "inputs": settings, "outputs": [boxed, seen, numbers, bars, plain_bars]}
        several = [pad.drawing, angle, scale, clutter, seed]
        chasing = {"fn": chase, "inputs": several, "outputs": [chased, caught, votes]}
        pad.go.click(**looking, api_name="look", **QUIET).success(**chasing, **UNLISTED)
        for changed in (*pad.filled(opening=demo), other.click(lambda seed: seed + 1, seed, seed, **UNLISTED)):
            changed.success(**looking, **UNLISTED).success(**chasing, **UNLISTED)
        sliders = [angle, scale, right, down, clutter]
        gr.on([slider.input for slider in sliders], **looking, trigger_mode="always_last", **UNLISTED)
        gr.on([slider.release for slider in (angle, scale, clutter)], **chasing, **UNLISTED)
        following.select(**chasing, api_name="follow", **QUIET)
        footer("stn", model, CHECKPOINT)
    return demo


if __name__ == "__main__":
    run(build)

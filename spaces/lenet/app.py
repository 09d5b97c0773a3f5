"""Draw a digit and see every layer of LeNet-5 light up: `python spaces/lenet/app.py`."""

from __future__ import annotations

import math
from pathlib import Path

import gradio as gr
import torch
from PIL import Image
from transformers import PreTrainedModel

from hf_papers.data.augmentation import pixel_positions, sample
from hf_papers.errors import UserError
from hf_papers.space_kit import (
    QUIET,
    UNLISTED,
    DigitPad,
    bounded,
    caption,
    decode_drawing,
    errors_as_sentences,
    facts,
    footer,
    header,
    hint,
    load_model,
    load_processor,
    meters,
    picture,
    picture_grid,
    run,
    to_digit,
)


CHECKPOINT = Path(__file__).parent / "checkpoint"
POSITIVE, NEGATIVE = (0.92, 0.35, 0.05), (0.31, 0.27, 0.90)  # orange and indigo, told apart without colour vision too
CODE_SHAPE = (12, 7)
FIRST_EXAMPLE = 5


# ------------------------------------------------------------------------------------------------- arithmetic


def coloured(maps: torch.Tensor, reach: float | None = None) -> torch.Tensor:
    """Values (n, H, W) as colours (n, 3, H, W): white is 0, orange positive, indigo negative; `reach` has full colour."""
    scaled = (maps / (reach or maps.abs().max().clamp_min(1e-6))).clamp(-1, 1)[:, None]  # (n, 1, H, W)
    ink = torch.where(scaled > 0, torch.tensor(POSITIVE).view(1, 3, 1, 1), torch.tensor(NEGATIVE).view(1, 3, 1, 1))
    return 1 - scaled.abs() * (1 - ink)


def as_block(units: torch.Tensor) -> torch.Tensor:
    """Units (n,) as one map: 12 x 7 where there are 84, as the codes are, else rows of 12."""
    if len(units) == CODE_SHAPE[0] * CODE_SHAPE[1]:
        return units.view(1, *CODE_SHAPE)
    return torch.nn.functional.pad(units, (0, -len(units) % 12)).view(1, -1, 12)


def disturb(
    pixels: torch.Tensor, angle: float, scale: float, slant: float, right: float, down: float, noise: float
) -> torch.Tensor:
    """Pixels (1, C, H, W) in [0, 1], turned clockwise by degrees, enlarged, slanted by degrees, shifted by pixels, noisy."""
    turn, lean = math.radians(angle), math.tan(math.radians(slant))
    # From places in the new image to places in the old one: undo each change, the last one first.
    rotation = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]) / scale
    matrix = torch.tensor([[1.0, lean], [0.0, 1.0]]) @ rotation
    places = pixel_positions(*pixels.shape[-2:]) - torch.tensor([right, down])
    moved = sample(pixels, (places @ matrix.T)[None], "bilinear", "zeros")
    drawn = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    return (moved + noise * drawn).clamp(0, 1)


def has_codes(model: PreTrainedModel) -> bool:
    """Whether the last layer compares F6 with pictures of the digits."""
    return model.config.output == "rbf" and model.config.codes == "bitmap"


# ------------------------------------------------------------------------------------------------- page


def build() -> gr.Blocks:
    """The page around one checkpoint. Raises `UserError` when there is none."""
    model = load_model("lenet", CHECKPOINT)
    processor = load_processor("lenet", CHECKPOINT)
    names = [model.config.id2label[number] for number in range(model.config.num_labels)]
    mean, std = processor.image_mean, processor.image_std

    def pixels(drawing: str) -> torch.Tensor:
        """What is on the pad, as the network sees it."""
        image = decode_drawing(drawing)
        if image is None:
            raise UserError(
                "There is no digit in the picture: draw one with the brush, or upload a clear picture of one."
            )
        return processor(to_digit(image, processor.size["height"]), return_tensors="pt")["pixel_values"].float()

    def answer(pixel_values: torch.Tensor) -> tuple[torch.Tensor, str]:
        """The probabilities of the classes, and the five largest as bars."""
        with torch.no_grad():
            logits = model(pixel_values).logits[0]
        shares = logits.softmax(0)
        best = shares.topk(min(5, len(names)))
        bars = meters([(names[place], share) for share, place in zip(*map(torch.Tensor.tolist, best), strict=True)])
        return logits, bars

    @errors_as_sentences
    def classify(drawing: str) -> list:
        """The answer for a drawn digit, a PNG as a data URL, and every layer as a picture."""
        pixel_values = pixels(drawing)
        logits, bars = answer(pixel_values)
        layers = {name: values[0] for name, values in model.feature_maps(pixel_values).items()}
        shown = [
            picture_grid((pixel_values * std + mean).clamp(0, 1), columns=1, width=480),
            *(picture_grid(coloured(layers[name]), columns=6, gap=6) for name in ("C1", "S2")),
            *(picture_grid(coloured(layers[name]), columns=8, gap=6) for name in ("C3", "S4")),
            picture_grid(coloured(as_block(layers["C5"])), columns=1, width=480),
            picture_grid(coloured(as_block(layers["F6"])), columns=1, width=240),
        ]
        if has_codes(model):
            nearest = logits.argsort(descending=True)[:3].tolist()
            values = {
                f"squared distance to the picture of {names[place]}": f"{-logits[place]:.1f}" for place in nearest
            }
            return [
                bars,
                facts(values),
                *shown,
                picture_grid(coloured(model.output.codes.view(-1, *CODE_SHAPE)), 10, gap=8),
            ]
        return [bars, "", *shown, None]

    @errors_as_sentences
    def change(
        drawing: str, angle: float, scale: float, slant: float, right: float, down: float, noise: float
    ) -> tuple[Image.Image, str]:
        """The disturbed digit, and what the network takes it for."""
        settings = (
            bounded(angle, "The angle", -180, 180),
            bounded(scale, "The size", 0.3, 2),
            bounded(slant, "The slant", -60, 60),
            bounded(right, "The shift to the right", -16, 16),
            bounded(down, "The shift down", -16, 16),
            bounded(noise, "The noise", 0, 1),
        )
        clean = (pixels(drawing) * std + mean).clamp(0, 1)
        moved = disturb(clean, *settings)
        return picture_grid(moved, columns=1, width=480), answer((moved - mean) / std)[1]

    with gr.Blocks(title="LeNet-5: watch a network read a digit") as demo:
        header(
            "lenet",
            "Watch a network read a digit",
            "Small filters look for strokes everywhere at once, every other layer halves the picture, and the last one "
            "draws what it has understood. Nobody told it what a stroke is: it learned all of this from examples.",
        )
        caption("Draw a digit here, or upload a picture of one")
        with gr.Row():
            with gr.Column(scale=4, min_width=280):
                pad = DigitPad("Read it", FIRST_EXAMPLE)
            with gr.Column(scale=5, min_width=280):
                caption("Its answer")
                bars = gr.HTML(elem_id="answer")
                distances = gr.HTML(elem_id="distances")
        with gr.Tabs():
            with gr.Tab("Layer by layer"):
                hint("Orange is positive, indigo negative, white zero; each layer has its own scale.")
                with gr.Row():
                    with gr.Column(scale=2, min_width=150):
                        seen = picture("What the network sees", "seen", "single")
                    with gr.Column(scale=7, min_width=280):
                        c1 = picture("C1: six filters, each looking for one kind of stroke", "c1")
                        s2 = picture("S2: the same at half the resolution", "s2")
                c3 = picture("C3: combinations of strokes", "c3")
                s4 = picture("S4: halved again", "s4")
                with gr.Row():
                    with gr.Column(scale=4, min_width=160):
                        c5 = picture("C5: 120 units that see all of it", "c5", "single")
                    with gr.Column(scale=2, min_width=130):
                        f6 = picture("F6: what it draws", "f6", "single")
                    with gr.Column(scale=7, min_width=280):
                        codes = picture("The pictures that F6 is compared with", "codes")
            with gr.Tab("Disturb it") as disturbing:
                with gr.Row():
                    with gr.Column(scale=4, min_width=280):
                        moved = picture("What the network sees now", "moved", "single")
                    with gr.Column(scale=5, min_width=280):
                        caption("Its answer now")
                        moved_bars = gr.HTML(elem_id="moved-answer")
                        sliders = [
                            gr.Slider(-180, 180, 0, step=1, label="Turn, degrees clockwise", elem_id="angle"),
                            gr.Slider(0.3, 2, 1, step=0.01, label="Size", elem_id="scale"),
                            gr.Slider(-60, 60, 0, step=1, label="Slant, degrees", elem_id="slant"),
                            gr.Slider(-16, 16, 0, step=0.5, label="Shift right, pixels", elem_id="right"),
                            gr.Slider(-16, 16, 0, step=0.5, label="Shift down, pixels", elem_id="down"),
                            gr.Slider(0, 1, 0, step=0.01, label="Noise", elem_id="noise"),
                        ]
        outputs = [bars, distances, seen, c1, s2, c3, s4, c5, f6, codes]
        again = {"fn": change, "inputs": [pad.drawing, *sliders], "outputs": [moved, moved_bars]}
        pad.go.click(classify, pad.drawing, outputs, api_name="classify", **QUIET)
        for filled in pad.filled(opening=demo):
            filled.success(classify, pad.drawing, outputs, **UNLISTED).success(**again, **UNLISTED)
        sliding = [slider.input for slider in sliders]
        gr.on(sliding, **again, api_name="disturb", trigger_mode="always_last", **QUIET)
        disturbing.select(**again, **UNLISTED)
        footer("lenet", model, CHECKPOINT)
    return demo


if __name__ == "__main__":
    run(build)

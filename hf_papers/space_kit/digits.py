"""Digits of visitors: drawn on a pad, uploaded, or examples, and brought into the frame of the data sets."""

from __future__ import annotations

import functools

import gradio as gr
import numpy as np
from gradio.events import Dependency
from PIL import Image, ImageOps

from hf_papers.errors import UserError
from hf_papers.space_kit.drawing import drawing_pad, encode_drawing, open_picture
from hf_papers.space_kit.page import UNLISTED
from hf_papers.space_kit.visitors import errors_as_sentences


class DigitPad:
    """A drawing pad with three buttons below: go on with what is drawn, an example, a picture of one's own.

    action: what the first button says. first: number of the first example, from 0; the last of its figures is the digit.
    `drawing` and `go` are the components that the page connects.
    """

    def __init__(self, action: str, first: int = 0) -> None:
        self.drawing = drawing_pad("pad")
        with gr.Row():
            self.go = gr.Button(action, variant="primary", size="lg", min_width=90)
            self._example = gr.Button("Example", size="lg", min_width=100)
            self._upload = gr.UploadButton("Upload", file_types=["image"], size="lg", min_width=100)
        self._number = gr.State(first)

    def filled(self, opening: gr.Blocks | None = None) -> list[Dependency]:
        """An example came onto the pad, or an upload: what follows each is the caller's `.success`.

        opening: a page that shows an example as soon as it opens.
        """
        events = [self._example.click, *([opening.load] if opening is not None else [])]
        return [
            gr.on(events, _next_example, self._number, [self.drawing, self._number], **UNLISTED),
            self._upload.upload(_uploaded, self._upload, self.drawing, **UNLISTED),
        ]


@errors_as_sentences
def _uploaded(path: str) -> str:
    """The picture in an uploaded file, on the pad."""
    return encode_drawing(open_picture(path))


def _next_example(number: int) -> tuple[str, int]:
    """Another handwritten digit on the pad."""
    return encode_drawing(example_digit(number % 10, number // 10)), number + 1


def to_digit(drawing: Image.Image, size: int) -> Image.Image:
    """A drawing or photograph of a digit as the data sets hold them: white ink on black, centred, (size, size), mode L.

    As MNIST was made: the ink is scaled into 20/28 of the frame with its proportions kept, and its centre of mass moved to
    the middle. (The 8 x 8 digits of scikit-learn have no margin: theirs fills the frame.) Dark ink on a light ground is
    turned round. Raises `UserError` when there is no ink, or nothing else.
    """
    canvas = Image.new("RGBA", drawing.size, "white")
    grey = Image.alpha_composite(canvas, drawing.convert("RGBA")).convert("L")
    pixels = np.asarray(grey, dtype=np.float32) / 255
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    if np.median(border) > 0.5:
        pixels = 1 - pixels
    pixels = np.clip(pixels - np.median(border if np.median(border) <= 0.5 else 1 - border), 0, None)
    if pixels.max() < 0.2:
        raise UserError("There is no digit in the picture: draw one with the brush, or upload a clear picture of one.")
    pixels /= pixels.max()
    rows, columns = (np.flatnonzero(pixels.max(axis) > 0.3) for axis in (1, 0))
    ink = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if ink.mean() > 0.9 and ink.size > 0.5 * pixels.size:
        raise UserError("The picture is nearly all ink: leave some ground around the digit.")
    scale = (size if size <= 8 else round(size * 20 / 28)) / max(ink.shape)
    shape = (max(1, round(ink.shape[1] * scale)), max(1, round(ink.shape[0] * scale)))
    small = np.asarray(
        Image.fromarray((ink * 255).astype(np.uint8)).resize(shape, Image.Resampling.LANCZOS), np.float32
    )
    y, x = (
        np.average(np.arange(n), weights=small.sum(axis) + 1e-6) for n, axis in zip(small.shape, (1, 0), strict=True)
    )
    frame = Image.new("L", (size, size))
    corner = tuple(
        int(np.clip(round(size / 2 - 0.5 - middle), 0, size - length))
        for middle, length in zip((x, y), shape, strict=True)
    )
    frame.paste(Image.fromarray(small.astype(np.uint8)), corner)
    return frame


@functools.cache
def example_digit(label: int, number: int = 0) -> Image.Image:
    """One of scikit-learn's handwritten digits (8 x 8), enlarged, dark on light like a drawing."""
    from hf_papers.data.embedded import find_embedded

    rows = find_embedded("digits").load()["test"]
    chosen = [image for image, found in zip(rows["image"], rows["label"], strict=True) if found == label]
    framed = ImageOps.expand(chosen[number % len(chosen)], 1)
    return ImageOps.invert(framed.resize((280, 280), Image.Resampling.BICUBIC))

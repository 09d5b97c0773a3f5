"""Tabs of a page around a generator: images from a seed, and the way from one seed's noise to another's."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr
import torch
from gradio.events import Dependency
from PIL import Image

from hf_papers.space_kit.page import QUIET, UNLISTED, hint, picture
from hf_papers.space_kit.pictures import picture_grid
from hf_papers.space_kit.visitors import MAX_SEED, bounded, errors_as_sentences, valid_seed


STEPS = 101  # images between two seeds that the slider can show
SHOWN = 9  # of them in the strip below


def draw_seed(button: gr.Button, seed: gr.Number) -> Dependency:
    """A click fills in a random seed; what follows is the caller's `.success`."""
    return button.click(
        None, None, seed, js=f"() => Math.floor(Math.random() * {MAX_SEED + 1})", api_visibility="private"
    )


def sample_tab(page: gr.Blocks, sample: Callable[[float], tuple[Image.Image, str]]) -> None:
    """The tab "Sample": `sample` makes a picture and some HTML of a seed, for the first time when the page opens."""
    with gr.Tab("Sample"):
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                with gr.Row(elem_classes="inline"):
                    seed = gr.Number(0, label="Seed", elem_id="seed", min_width=120)
                    button = gr.Button("Sample", variant="primary", size="lg", min_width=120)
                    surprise = gr.Button("Surprise me", size="lg", min_width=120)
                grid = picture("Made from this seed", "samples", "grid")
            with gr.Column(scale=4, min_width=280):
                beside = gr.HTML(elem_id="sample-facts")
        drawing = {"fn": sample, "inputs": seed, "outputs": [grid, beside]}
        gr.on([button.click, seed.submit, page.load], **drawing, api_name="sample", **QUIET)
        draw_seed(surprise, seed).success(**drawing, **UNLISTED)


def walk_tab(idea: str, way: Callable[[int, int, int], torch.Tensor]) -> None:
    """The tab "Walk": `way(first, second, steps)` gives images (steps, c, h, w) from one seed's noise to the other's.

    idea: what to look for, in a sentence or two.
    """

    @errors_as_sentences
    def walk(start: float, end: float, position: float) -> tuple[Image.Image, Image.Image]:
        """One image on the way between two seeds (position 0 to 1), and the whole way in nine steps."""
        ends = valid_seed(start, "The first seed"), valid_seed(end, "The second seed")
        position = bounded(position, "The position", 0.0, 1.0)
        images = way(*ends, STEPS)
        here = images[round(position * (STEPS - 1))][None]
        along = images[torch.linspace(0, STEPS - 1, SHOWN).round().long()]
        return picture_grid(here, columns=1, width=560), picture_grid(along, columns=SHOWN)

    with gr.Tab("Walk") as tab:
        hint(idea)
        with gr.Row():
            with gr.Column(scale=5, min_width=280):
                here = picture("Here", "here", "single")
            with gr.Column(scale=4, min_width=260):
                with gr.Row():
                    start = gr.Number(1, label="From seed", elem_id="start", min_width=120)
                    end = gr.Number(2, label="To seed", elem_id="end", min_width=120)
                position = gr.Slider(0, 1, 0.5, step=0.01, label="Position on the way", elem_id="position")
        strip = picture("The whole way", "strip")
        gr.on(
            [position.change, start.submit, end.submit, start.blur, end.blur, tab.select],
            walk, [start, end, position], [here, strip], api_name="walk", trigger_mode="always_last", **QUIET,
        )  # fmt: skip

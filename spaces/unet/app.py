"""Find every cell in a picture, with and without skip connections: `python spaces/unet/app.py`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from transformers import PreTrainedModel

from hf_papers.data.cells import draw_cells
from hf_papers.errors import UserError
from hf_papers.hub.checkpoints import load_strict
from hf_papers.metrics.segmentation import cells_of, rand_error
from hf_papers.papers.unet.configuration_geometry_unet import tiles
from hf_papers.papers.unet.image_processing_unet import PaperUnetImageProcessor, mirror_around
from hf_papers.papers.unet.pictures_unet import cells_in_colour, grey, telling_maps
from hf_papers.papers.unet.weight_map_unet import cells_apart
from hf_papers.registry import find_paper
from hf_papers.space_kit import (
    bounded,
    checkpoint_source,
    errors_as_sentences,
    facts,
    footer,
    header,
    hint,
    load_model,
    load_processor,
    picture,
    picture_grid,
    run,
    upright_picture,
)


CHECKPOINT = Path(__file__).parent / "checkpoint"
PLAIN = Path(__file__).parent / "checkpoint-no-skips"
PLAIN_VARIABLE = "NO_SKIPS_ID"
TILE = 256  # small, so that a picture of ordinary size is already cut into tiles
LARGEST = 2048  # pixels along the longer side; larger pictures are made smaller
FIRST_EXAMPLE = 1000  # the training saw none of these
LARGE_EXAMPLE = 640  # pixels along each side
WITH, WITHOUT = "with skip connections", "without skip connections"


@dataclass(frozen=True)
class Scene:
    """A picture and what the networks make of it.

    image: (C, H, W) as a network sees it; probabilities: name of the network -> of the foreground, (H, W); cells: the true
    ones (H, W) where they are known; borders: where tiles end, down and across.
    """

    image: torch.Tensor
    probabilities: dict[str, np.ndarray]
    cells: np.ndarray | None
    borders: tuple[list[int], list[int]]
    seconds: float


# ------------------------------------------------------------------------------------------------- pictures


def read_picture(path: str | Path, processor: PaperUnetImageProcessor) -> torch.Tensor:
    """The picture in a visitor's file as (C, H, W) before normalising, 0 to 255, at most `LARGEST` pixels along a side."""
    upright = upright_picture(path, LARGEST, advice="cut out a part", kinds="PNG, JPEG, TIFF or WebP")
    array = processor(upright, do_pad=False, do_rescale=False, do_normalize=False)["pixel_values"][0]
    return resized(torch.from_numpy(np.array(array)).float(), min(1.0, LARGEST / max(array.shape[-2:])))


def resized(image: torch.Tensor, factor: float) -> torch.Tensor:
    """(C, H, W) with both sides multiplied by `factor`, averaged where it shrinks."""
    size = [max(1, round(side * factor)) for side in image.shape[-2:]]
    if size == list(image.shape[-2:]):
        return image
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


@cache
def example(number: int) -> tuple[torch.Tensor, np.ndarray]:
    """A made-up micrograph (1, H, W), 0 to 255, and its cells (H, W); number 0 is a large one."""
    image, cells = draw_cells(FIRST_EXAMPLE + number, LARGE_EXAMPLE if number == 0 else 256)
    return torch.from_numpy(image.astype(np.float32))[None], cells_apart(cells.astype(np.int32))


def overlay(scene: Scene, network: str, threshold: float, show_tiles: bool) -> Image.Image:
    """The picture with every cell that the network finds in a colour of its own."""
    cells = cells_of(scene.probabilities[network] >= threshold)
    colours = cells_in_colour(grey(scene.image), cells)
    drawn = Image.fromarray((colours * 255).round().astype(np.uint8))
    scale = max(1, 640 // max(drawn.size))
    drawn = drawn.resize((drawn.width * scale, drawn.height * scale), Image.Resampling.NEAREST)
    if show_tiles:
        pen = ImageDraw.Draw(drawn)
        for row in scene.borders[0]:
            pen.line([(0, row * scale), (drawn.width, row * scale)], fill="white", width=2)
        for column in scene.borders[1]:
            pen.line([(column * scale, 0), (column * scale, drawn.height)], fill="white", width=2)
    return drawn


def summary(scene: Scene, threshold: float) -> str:
    """Tiles that say how many cells each network finds and, where they are known, how right that is."""
    values = {}
    for network, probabilities in scene.probabilities.items():
        cells = cells_of(probabilities >= threshold)
        values[f"cells found {network}"] = f"{cells.max():,}"
        if scene.cells is not None:
            values[f"Rand error {network}"] = f"{rand_error(cells, scene.cells):.3f}"
    if scene.cells is not None:
        values["cells there are"] = f"{cells_of(scene.cells).max():,}"
    count = (len(scene.borders[0]) + 1) * (len(scene.borders[1]) + 1)
    height, width = scene.image.shape[-2:]
    values[f"tile{'s' * (count > 1)} for {width} × {height} pixels"] = str(count)
    values["seconds"] = f"{scene.seconds:.1f}"
    return facts(values)


# ------------------------------------------------------------------------------------------------- page


def load_networks() -> dict[str, PreTrainedModel]:
    """The network, and its twin without skip connections where there is one."""
    networks = {WITH: load_model("unet", CHECKPOINT)}
    source = checkpoint_source(PLAIN, PLAIN_VARIABLE)
    if source != str(PLAIN) or (PLAIN / "config.json").is_file():
        networks[WITHOUT] = load_strict(find_paper("unet"), source).float().eval()
    return networks


def build() -> gr.Blocks:
    """The page around one checkpoint. Raises `UserError` when there is none."""
    networks = load_networks()
    processor = load_processor("unet", CHECKPOINT)
    model = networks[WITH]
    if model.config.num_labels != 2:
        raise UserError(f"This page shows networks of two classes, and the checkpoint has {model.config.num_labels}.")
    geometry = model.config.geometry
    tile_size = max(geometry.nearest(TILE)[0] or 0, geometry.smallest_tile)

    def borders(size: int) -> list[int]:
        return [part.write_start for part in tiles(size, tile_size, geometry)][1:]

    def look(pixels: torch.Tensor, cells: np.ndarray | None, zoom: float, progress: gr.Progress) -> Scene:
        factor = bounded(zoom, "The zoom", 25, 300) / 100
        pixels = resized(pixels, min(factor, LARGEST / max(pixels.shape[-2:])))
        image = (pixels / 255 - processor.image_mean) / processor.image_std
        started = time.perf_counter()
        found = {}
        for name, network in networks.items():
            found[name] = network.segment(
                image[None],
                tile_size,
                progress=lambda done, of, name=name: progress((done, of), desc=f"{name}: tile {done} of {of}"),
            )[0, 1].numpy()
        places = borders(image.shape[-2]), borders(image.shape[-1])
        known = cells if factor == 1 else None
        return Scene(image, found, known, places, time.perf_counter() - started)

    def show(scene: Scene, threshold: float, show_tiles: bool) -> list[Any]:
        threshold = bounded(threshold, "The threshold", 0.01, 0.99)
        drawn = [overlay(scene, name, threshold, show_tiles) for name in networks]
        return [Image.fromarray((grey(scene.image) * 255).astype(np.uint8)), *drawn, summary(scene, threshold)]

    @errors_as_sentences
    def segment(
        path: str,
        zoom: float,
        threshold: float,
        show_tiles: bool,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        """Find the cells in a picture: the picture, what each network finds, and the numbers."""
        scene = look(read_picture(path, processor), None, zoom, progress)
        return [scene, path, *show(scene, threshold, show_tiles)]

    @errors_as_sentences
    def segment_example(
        source: str | int,
        zoom: float,
        threshold: float,
        show_tiles: bool,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        """The same for a made-up micrograph, whose cells are known; number 0 is a large one."""
        chosen = source if isinstance(source, int) else 1
        pixels, cells = example(chosen)
        scene = look(pixels.expand(model.config.num_channels, -1, -1), cells, zoom, progress)
        return [scene, chosen, *show(scene, threshold, show_tiles)]

    @errors_as_sentences
    def segment_again(
        source: str | int,
        zoom: float,
        threshold: float,
        show_tiles: bool,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        """The picture that is shown, enlarged or reduced."""
        function = segment if isinstance(source, str) else segment_example
        return function(source, zoom, threshold, show_tiles, progress)

    @errors_as_sentences
    def redraw(scene: Scene | None, threshold: float, show_tiles: bool) -> list[Any]:
        """Another threshold for the picture that is shown: no network has to work for that."""
        if scene is None:
            raise UserError("There is no picture yet: choose an example, or upload one of your own.")
        return show(scene, threshold, show_tiles)

    stages = [f"down {number}" for number in range(geometry.depth)]
    stages += [f"bottom {geometry.depth}", *[f"up {number}" for number in reversed(range(geometry.depth))]]

    @errors_as_sentences
    def feature_maps(scene: Scene | None, stage: str, network: str) -> tuple[Image.Image, str]:
        """The sixteen feature maps of a stage that vary most over the middle of the picture that is shown."""
        if scene is None:
            raise UserError("There is no picture yet: choose an example, or upload one of your own.")
        for value, choices in ((stage, stages), (network, list(networks))):
            if value not in choices:
                raise UserError(f"'{value}' is not in the list: choose from {', '.join(choices)}.")
        height, width = scene.image.shape[-2:]
        top, left = max(0, (height - TILE) // 2), max(0, (width - TILE) // 2)
        part = scene.image[:, top : top + TILE, left : left + TILE]
        whole = torch.from_numpy(mirror_around(part.numpy(), *part.shape[-2:], geometry))[None]
        with torch.no_grad():
            states = networks[network].unet(whole, output_hidden_states=True).hidden_states
        maps = states[stages.index(stage)][0]
        shown = telling_maps(maps, 16)
        low, high = shown.amin((1, 2), keepdim=True), shown.amax((1, 2), keepdim=True)
        tiles_of_maps = ((shown - low) / (high - low).clamp_min(1e-6))[:, None]
        sizes = facts({
            "maps in this stage": f"{maps.shape[0]:,}",
            "pixels each": f"{maps.shape[2]} × {maps.shape[1]}",
            "pixels of the picture for one of these": f"{max(1, whole.shape[-1] // maps.shape[2])}",
        })  # fmt: skip
        return picture_grid(tiles_of_maps, columns=4, width=720), sizes

    with gr.Blocks(title="U-Net: every cell in the picture") as demo:
        header(
            "unet",
            "Every cell in the picture",
            "A network narrows to see the whole picture and widens again to say of every pixel what it is. On the way up it "
            "is handed the fine detail that the way down still had: those are the skip connections.",
        )
        scene = gr.State(None)
        source = gr.State(1)  # the number of an example, or the path of a visitor's file
        with gr.Tabs():
            with gr.Tab("Segment"):
                with gr.Row():
                    upload = gr.UploadButton("Upload a picture", file_types=["image"], size="lg", min_width=150)
                    another = gr.Button("Another example", variant="primary", size="lg", min_width=150)
                    large = gr.Button("A large example", size="lg", min_width=150)
                with gr.Row():
                    threshold = gr.Slider(
                        0.01,
                        0.99,
                        round(processor.threshold, 2),
                        step=0.01,
                        label="Threshold",
                        info="from which probability on a pixel is part of a cell",
                        elem_id="threshold",
                        min_width=240,
                    )
                    zoom = gr.Slider(
                        25,
                        300,
                        100,
                        step=5,
                        label="Zoom, per cent",
                        info="cells of 15 to 35 pixels are what it has learnt",
                        elem_id="zoom",
                        min_width=240,
                    )
                show_tiles = gr.Checkbox(False, label="Show where the tiles meet", elem_id="show-tiles")
                numbers = gr.HTML(elem_id="numbers")
                with gr.Row():
                    pictures = []
                    for name in networks:
                        with gr.Column(min_width=280):
                            title = f"Cells found {name}" if len(networks) > 1 else "Cells found"
                            pictures.append(picture(title, f"found-{name.split()[0]}", "grid"))
                hint("Each colour is one cell: two cells in one colour were taken for one.")
                with gr.Row(), gr.Column(min_width=280):
                    original = picture("The picture", "original", "single")
            with gr.Tab("Feature maps") as maps_tab:
                hint(
                    "On the way down the maps grow smaller and say what is there; on the way up they grow again and say "
                    "where. Shown are the 16 that vary most, of the middle of the picture."
                )
                with gr.Row():
                    stage = gr.Dropdown(stages, value=stages[0], label="Stage", elem_id="stage", min_width=160)
                    which = gr.Dropdown(
                        list(networks), value=WITH, label="Network", elem_id="network", min_width=160, interactive=True
                    )
                sizes = gr.HTML(elem_id="sizes")
                maps = picture("Feature maps", "maps", "grid")
        settings = [zoom, threshold, show_tiles]
        shown = [original, *pictures, numbers]
        private = {"api_visibility": "private"}
        upload.upload(segment, [upload, *settings], [scene, source, *shown], api_name="segment")
        another.click(_next_example, source, source, show_progress="hidden", **private).success(
            segment_example, [source, *settings], [scene, source, *shown], api_name="example"
        )
        large.click(lambda: 0, None, source, show_progress="hidden", **private).success(
            segment_example, [source, *settings], [scene, source, *shown], **private
        )
        demo.load(segment_example, [source, *settings], [scene, source, *shown], **private)
        zoom.release(segment_again, [source, *settings], [scene, source, *shown], **private)
        gr.on(
            [threshold.input, show_tiles.input], redraw, [scene, threshold, show_tiles], shown,
            api_name="threshold", show_progress="hidden", trigger_mode="always_last",
        )  # fmt: skip
        gr.on(
            [stage.input, which.input, maps_tab.select], feature_maps, [scene, stage, which], [maps, sizes],
            api_name="feature_maps", show_progress="hidden",
        )  # fmt: skip
        footer("unet", model, CHECKPOINT)
    return demo


def _next_example(source: str | int) -> int:
    """The number of the next one; the large one, number 0, is left to its own button."""
    return source % 99 + 1 if isinstance(source, int) else 1


if __name__ == "__main__":
    run(build)

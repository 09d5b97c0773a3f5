"""Pictures of a trained U-Net: its masks, what it counted most, how images were bent, and its feature maps by depth."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure

from hf_papers.papers.unet.image_processing_unet import mirror_around
from hf_papers.papers.unet.modeling_unet import PaperUnetForSemanticSegmentation
from hf_papers.papers.unet.pictures_unet import errors_in_colour, grey, telling_maps
from hf_papers.training.task import Context


if TYPE_CHECKING:
    from hf_papers.papers.unet.training_unet import Example, UnetTask

SHOWN = 3  # images
LARGEST = 384  # pixels of an image that are shown, from its middle
MAPS = 8  # feature maps of each stage


def draw_figures(
    task: UnetTask, model: PaperUnetForSemanticSegmentation, folder: Path, context: Context
) -> dict[str, Path]:
    """Writes PNG files into `folder`: caption -> file."""
    folder.mkdir(parents=True, exist_ok=True)
    role = "test" if task.split_of("test") is not None else "validation"
    files = {}
    if task.split_of(role) is not None:
        examples = [middle(example) for example in task.examples(role)[:SHOWN]]
        foreground = task.options.class_names[1]
        files[
            f"Images, their true masks, the probability of '{foreground}', and the mask: what it misses is orange, what it "
            "adds is blue"
        ] = _predictions(task, model, examples, folder / "predictions.png", context)
        files["Feature maps of one image on the way down, at the bottom and on the way up again"] = _feature_maps(
            model, examples[0], folder / "feature_maps.png", context
        )
    if task.source is not None:
        files |= _training_pictures(task, folder)
    return files


def middle(example: Example) -> Example:
    """The middle of a large image, with its masks."""
    height, width = example.classes.shape
    top, left = max(0, (height - LARGEST) // 2), max(0, (width - LARGEST) // 2)
    part = slice(top, top + LARGEST), slice(left, left + LARGEST)
    return type(example)(example.pixels[:, *part], example.classes[part], example.cells[part])


def _predictions(
    task: UnetTask,
    model: PaperUnetForSemanticSegmentation,
    examples: Sequence[Example],
    path: Path,
    context: Context,
) -> Path:
    figure = Figure(figsize=(10, 2.6 * len(examples)), layout="constrained")
    grid = figure.subplots(len(examples), 4, squeeze=False)
    titles = ("image", "true mask", "probability", "mask and its errors")
    for row, example in zip(grid, examples, strict=True):
        probabilities = model.segment(example.pixels[None].to(context.device))[0].cpu().numpy()
        row[0].imshow(grey(example.pixels), cmap="gray")
        if task.num_labels == 2:
            row[1].imshow(example.classes, cmap="gray")
            row[2].imshow(probabilities[1], cmap="magma", vmin=0, vmax=1)
            row[3].imshow(errors_in_colour(probabilities[1] >= task.processor.threshold, example.classes == 1))
        else:
            shown = {"cmap": "tab10", "vmin": 0, "vmax": 9, "interpolation": "nearest"}
            row[1].imshow(example.classes, **shown)
            row[2].imshow(probabilities.max(0), cmap="magma", vmin=0, vmax=1)
            row[3].imshow(probabilities.argmax(0), **shown)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=10)
    return _save(figure, grid, path)


def _feature_maps(model: PaperUnetForSemanticSegmentation, example: Example, path: Path, context: Context) -> Path:
    geometry = model.config.geometry
    height, width = example.classes.shape
    image = torch.from_numpy(mirror_around(example.pixels.numpy(), height, width, geometry))
    states = model.unet(image[None].to(context.device), output_hidden_states=True).hidden_states
    figure = Figure(figsize=(1.35 * MAPS, 1.4 * len(states)), layout="constrained")
    grid = figure.subplots(len(states), MAPS, squeeze=False)
    for number, (row, maps) in enumerate(zip(grid, states, strict=True)):
        for axes, each in zip(row, telling_maps(maps[0], MAPS), strict=False):
            axes.imshow(each.cpu().numpy(), cmap="magma")
        stage = number if number <= geometry.depth else 2 * geometry.depth - number
        way = "down" if number < geometry.depth else "bottom" if number == geometry.depth else "up"
        row[0].set_ylabel(f"{way} {stage}\n{maps.shape[1]} maps\n{maps.shape[2]}×{maps.shape[3]}", fontsize=8)
    return _save(figure, grid, path)


def _training_pictures(task: UnetTask, folder: Path) -> dict[str, Path]:
    """The weight map of a training mask, and a training image before and after the random changes."""
    row = next(itertools.islice(task.source.rows(task.data.train_split), 1))
    prepared = task.preprocess([row])
    pixels, targets = prepared["pixels"][0].float(), prepared["targets"][0].float()
    side = slice(0, LARGEST), slice(0, LARGEST)
    pixels, targets = pixels[:, *side], targets[:, *side]
    files = {}
    if task.options.weight_map:
        weights = task.balance_of_classes()[targets[0].long()] + targets[1]
        path = _weight_map(pixels, targets[0], weights, folder / "weight_map.png")
        files["A training image, its mask, and how much each pixel counts in the loss (eq. 2)"] = path
    if task.augmentation.is_geometric:
        path = _changes(task, pixels, targets, folder / "augmentation.png")
        files["A training image with a grid drawn on it and its mask, as they are and after three random changes"] = (
            path
        )
    return files


def _weight_map(pixels: torch.Tensor, classes: torch.Tensor, weights: torch.Tensor, path: Path) -> Path:
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    grid = figure.subplots(1, 3, squeeze=False)
    grid[0, 0].imshow(grey(pixels), cmap="gray")
    grid[0, 1].imshow(classes, cmap="gray")
    drawn = grid[0, 2].imshow(weights, cmap="magma")
    figure.colorbar(drawn, ax=grid[0, 2], label="weight of a pixel")
    return _save(figure, grid, path)


def _changes(task: UnetTask, pixels: torch.Tensor, targets: torch.Tensor, path: Path) -> Path:
    lined = pixels / 255
    step = max(8, lined.shape[-1] // 12)
    lined[:, ::step] = lined[:, :, ::step] = 1.0
    count = 3
    generator = torch.Generator().manual_seed(1505)
    changed, masks = task.augmentation(lined.repeat(count, 1, 1, 1), targets.repeat(count, 1, 1, 1), generator)
    figure = Figure(figsize=(2.5 * (count + 1), 5), layout="constrained")
    grid = figure.subplots(2, count + 1, squeeze=False)
    for column, (image, mask) in enumerate(zip([lined, *changed], [targets, *masks], strict=True)):
        grid[0, column].imshow(grey(image.clamp(0, 1)), cmap="gray")
        grid[1, column].imshow(mask[0], cmap="gray" if task.num_labels == 2 else "tab10", interpolation="nearest")
        grid[0, column].set_title("as it is" if column == 0 else f"change {column}", fontsize=10)
    return _save(figure, grid, path)


def _save(figure: Figure, grid: np.ndarray, path: Path) -> Path:
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        if not axes.has_data():
            axes.set_visible(False)
    figure.savefig(path, dpi=110)
    return path


__all__ = ["draw_figures"]

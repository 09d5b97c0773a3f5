"""Pictures of a trained U-Net: its masks, what it counted most, how images were bent, and its feature maps by depth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from hf_papers.data.augmentation import Augmentation
from hf_papers.papers.unet.image_processing_unet import mirror_around
from hf_papers.papers.unet.modeling_unet import PaperUnetForSemanticSegmentation
from hf_papers.papers.unet.pictures_unet import errors_in_colour, grey, telling_maps
from hf_papers.papers.unet.scoring_unet import Example


SHOWN = 3  # images
LARGEST = 384  # pixels of an image that are shown, from its middle
MAPS = 8  # feature maps of each stage
CHANGES = 3  # of a training image


def draw_answers(
    model: PaperUnetForSemanticSegmentation, examples: Sequence[Example], threshold: float, folder: Path
) -> dict[str, Path]:
    """What the network makes of the first examples, and how: caption -> PNG file in `folder`.

    threshold: the probability from which on a pixel is foreground, where there are two classes.
    """
    examples = [middle(example) for example in examples[:SHOWN]]
    foreground = model.config.id2label[1]
    caption = (
        f"Images, their true masks, the probability of '{foreground}', and the mask: what it misses is orange, what it "
        "adds is blue"
    )
    maps = "Feature maps of one image on the way down, at the bottom and on the way up again"
    return {
        caption: _predictions(model, examples, threshold, folder / "predictions.png"),
        maps: _feature_maps(model, examples[0], folder / "feature_maps.png"),
    }


def draw_weight_map(
    pixels: torch.Tensor, classes: torch.Tensor, weights: torch.Tensor, folder: Path
) -> dict[str, Path]:
    """Pixels (C, H, W), classes and weights (H, W) of a training image side by side."""
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    grid = figure.subplots(1, 3, squeeze=False)
    corner = slice(0, LARGEST), slice(0, LARGEST)
    grid[0, 0].imshow(grey(pixels[:, *corner]), cmap="gray")
    grid[0, 1].imshow(classes[corner], cmap="gray")
    drawn = grid[0, 2].imshow(weights[corner], cmap="magma")
    figure.colorbar(drawn, ax=grid[0, 2], label="weight of a pixel")
    caption = "A training image, its mask, and how much each pixel counts in the loss (eq. 2)"
    return {caption: _save(figure, grid, folder / "weight_map.png")}


def draw_changes(
    augmentation: Augmentation, pixels: torch.Tensor, targets: torch.Tensor, num_labels: int, folder: Path
) -> dict[str, Path]:
    """A training image, pixels (C, H, W) up to 255 and targets (2, H, W), before and after the random changes."""
    corner = slice(0, LARGEST), slice(0, LARGEST)
    lined, targets = pixels[:, *corner] / 255, targets[:, *corner]
    step = max(8, lined.shape[-1] // 12)
    lined[:, ::step] = lined[:, :, ::step] = 1.0
    generator = torch.Generator().manual_seed(1505)
    changed, masks = augmentation(lined.repeat(CHANGES, 1, 1, 1), targets.repeat(CHANGES, 1, 1, 1), generator)
    figure = Figure(figsize=(2.5 * (CHANGES + 1), 5), layout="constrained")
    grid = figure.subplots(2, CHANGES + 1, squeeze=False)
    for column, (image, mask) in enumerate(zip([lined, *changed], [targets, *masks], strict=True)):
        grid[0, column].imshow(grey(image.clamp(0, 1)), cmap="gray")
        grid[1, column].imshow(mask[0], cmap="gray" if num_labels == 2 else "tab10", interpolation="nearest")
        grid[0, column].set_title("as it is" if column == 0 else f"change {column}", fontsize=10)
    caption = "A training image with a grid drawn on it and its mask, as they are and after three random changes"
    return {caption: _save(figure, grid, folder / "augmentation.png")}


def middle(example: Example) -> Example:
    """The middle of a large image, with its masks."""
    height, width = example.classes.shape
    top, left = max(0, (height - LARGEST) // 2), max(0, (width - LARGEST) // 2)
    part = slice(top, top + LARGEST), slice(left, left + LARGEST)
    return type(example)(example.pixels[:, *part], example.classes[part], example.cells[part])


def _predictions(
    model: PaperUnetForSemanticSegmentation, examples: Sequence[Example], threshold: float, path: Path
) -> Path:
    figure = Figure(figsize=(10, 2.6 * len(examples)), layout="constrained")
    grid = figure.subplots(len(examples), 4, squeeze=False)
    titles = ("image", "true mask", "probability", "mask and its errors")
    for row, example in zip(grid, examples, strict=True):
        probabilities = model.segment(example.pixels[None].to(model.device))[0].cpu().numpy()
        row[0].imshow(grey(example.pixels), cmap="gray")
        if model.config.num_labels == 2:
            row[1].imshow(example.classes, cmap="gray")
            row[2].imshow(probabilities[1], cmap="magma", vmin=0, vmax=1)
            row[3].imshow(errors_in_colour(probabilities[1] >= threshold, example.classes == 1))
        else:
            shown = {"cmap": "tab10", "vmin": 0, "vmax": 9, "interpolation": "nearest"}
            row[1].imshow(example.classes, **shown)
            row[2].imshow(probabilities.max(0), cmap="magma", vmin=0, vmax=1)
            row[3].imshow(probabilities.argmax(0), **shown)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=10)
    return _save(figure, grid, path)


def _feature_maps(model: PaperUnetForSemanticSegmentation, example: Example, path: Path) -> Path:
    geometry = model.config.geometry
    height, width = example.classes.shape
    image = torch.from_numpy(mirror_around(example.pixels.numpy(), height, width, geometry))
    states = model.unet(image[None].to(model.device), output_hidden_states=True).hidden_states
    figure = Figure(figsize=(1.35 * MAPS, 1.4 * len(states)), layout="constrained")
    grid = figure.subplots(len(states), MAPS, squeeze=False)
    for number, (row, maps) in enumerate(zip(grid, states, strict=True)):
        for axes, each in zip(row, telling_maps(maps[0], MAPS), strict=False):
            axes.imshow(each.cpu().numpy(), cmap="magma")
        stage = number if number <= geometry.depth else 2 * geometry.depth - number
        way = "down" if number < geometry.depth else "bottom" if number == geometry.depth else "up"
        row[0].set_ylabel(f"{way} {stage}\n{maps.shape[1]} maps\n{maps.shape[2]}×{maps.shape[3]}", fontsize=8)
    return _save(figure, grid, path)


def _save(figure: Figure, grid: np.ndarray, path: Path) -> Path:
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        if not axes.has_data():
            axes.set_visible(False)
    figure.savefig(path, dpi=110)
    return path


__all__ = ["draw_answers", "draw_changes", "draw_weight_map"]

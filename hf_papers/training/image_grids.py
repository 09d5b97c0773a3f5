"""Rows and squares of images as one picture. Images are (n, c, h, w), in [0, 1] or uint8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def side_by_side(left: torch.Tensor, right: torch.Tensor, path: Path) -> Path:
    """Two square grids of (n, c, h, w) images, entry for entry."""
    count = int(len(left) ** 0.5)
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    for axes, images, title in zip(
        figure.subplots(1, 2), (left, right), ("generated", "nearest in the training data"), strict=True
    ):
        show(axes, grid([images[row * count : (row + 1) * count] for row in range(count)]))
        axes.set_title(title, fontsize=11)
    return save(figure, path)


def rows(images: Sequence[torch.Tensor], path: Path) -> Path:
    """One row of pictures per (n, c, h, w) tensor."""
    figure = Figure(figsize=(8, 8 * len(images) / len(images[0])), layout="constrained")
    show(figure.subplots(), grid(images))
    return save(figure, path)


def progression(snapshots: Sequence[tuple[int | None, torch.Tensor]], path: Path) -> Path:
    """One row of pictures per (steps taken, images); None stands for the finished model."""
    images = [pictures for _, pictures in snapshots]
    figure = Figure(figsize=(8, 0.6 + 7.2 * len(images) / len(images[0])), layout="constrained")
    axes = figure.subplots()
    show(axes, grid(images))
    height = images[0].shape[-2] + 1
    axes.set_axis_on()
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    axes.set_yticks(
        [row * height + height / 2 for row in range(len(images))],
        ["published" if step is None else f"{step:,}" for step, _ in snapshots],
    )
    axes.tick_params(length=0)
    return save(figure, path)


def grid(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows of (n, c, h, w) tensors as one (height, width, c) picture with a pixel between neighbours."""
    lines = []
    for row in images:
        pixels = row.float() / 255 if row.dtype == torch.uint8 else row.float()
        padded = torch.nn.functional.pad(pixels, (0, 1, 0, 1), value=0.5)
        lines.append(torch.cat(list(padded), dim=2))
    return torch.cat(lines, dim=1).movedim(0, -1)


def show(axes: Axes, picture: torch.Tensor) -> None:
    """A picture (height, width, c) without ticks, grey where it has one channel."""
    grey = picture.shape[-1] == 1
    axes.imshow(picture[..., 0] if grey else picture, cmap="gray" if grey else None, vmin=0, vmax=1, aspect="equal")
    axes.set_axis_off()


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG; returns its path."""
    figure.savefig(path, dpi=110)
    return path

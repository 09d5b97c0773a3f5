"""Masks, cells and feature maps as arrays of colours, for figures and for the Space."""

from __future__ import annotations

import colorsys

import numpy as np
import torch
from scipy import ndimage


MISSED, ADDED = (0.92, 0.35, 0.05), (0.31, 0.27, 0.90)  # orange, indigo: told apart also without colour vision


def grey(image: torch.Tensor) -> np.ndarray:
    """(C, H, W) of any range as a picture: (H, W), or (H, W, 3) where it has three colours, in [0, 1]."""
    low, high = image.min(), image.max()
    values = ((image - low) / (high - low).clamp_min(1e-6)).cpu().numpy()
    return values[0] if len(values) != 3 else np.moveaxis(values, 0, -1)


def errors_in_colour(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """A binary mask (H, W) as a picture (H, W, 3): white inside, black outside, what it misses and adds in colour."""
    picture = np.repeat(found[..., None].astype(float), 3, axis=2)
    picture[true & ~found] = MISSED
    picture[found & ~true] = ADDED
    return picture


def cells_in_colour(picture: np.ndarray, cells: np.ndarray, strength: float = 0.45) -> np.ndarray:
    """Every numbered cell (H, W) laid over the picture (H, W) or (H, W, 3) in a colour of its own -> (H, W, 3) in [0, 1].

    Two cells in one colour have been taken for one.
    """
    base = np.repeat(picture[..., None], 3, axis=2) if picture.ndim == 2 else picture
    # Hues a golden angle apart, so that neighbours, which have neighbouring numbers, differ.
    hues = [colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.75, 1.0) for number in range(int(cells.max()) + 1)]
    inside = (cells > 0)[..., None]
    mixed = np.where(inside, (1 - strength) * base + strength * np.array(hues)[cells], base)
    edge = (cells > 0) & ~ndimage.binary_erosion(cells > 0, border_value=1)
    mixed[edge] = np.array(hues)[cells[edge]]
    return mixed


def telling_maps(maps: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` feature maps (of C, H, W) that vary most over the image, in the order of their numbers."""
    spread = maps.float().flatten(1).std(1)
    return maps[spread.topk(min(count, len(maps))).indices.sort().values].float()


__all__ = ["cells_in_colour", "errors_in_colour", "grey", "telling_maps"]

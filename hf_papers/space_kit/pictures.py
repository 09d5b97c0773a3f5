"""Tensors as pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image


def to_picture(image: torch.Tensor) -> Image.Image:
    """One image (channels, height, width) with values in [0, 1], 1 or 3 channels, as a PIL picture."""
    pixels = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return (
        Image.fromarray(pixels[0], "L") if pixels.shape[0] == 1 else Image.fromarray(np.moveaxis(pixels, 0, -1), "RGB")
    )


def picture_grid(
    images: torch.Tensor | Sequence[torch.Tensor], columns: int, width: int = 1000, gap: int = 3
) -> Image.Image:
    """Images (n, channels, height, width) in [0, 1] as one picture about `width` pixels wide, pixels kept square.

    Every image is enlarged by a whole factor, so that an 8 × 8 digit shows its pixels and is not blurred.
    """
    tiles = [to_picture(image) for image in images]
    if not tiles:
        raise ValueError("there are no images to show")
    rows = math.ceil(len(tiles) / columns)
    scale = max(1, (width - gap * (columns - 1)) // (columns * tiles[0].width))
    tile_width, tile_height = tiles[0].width * scale, tiles[0].height * scale
    size = (columns * tile_width + gap * (columns - 1), rows * tile_height + gap * (rows - 1))
    grid = Image.new("RGB", size, "#c7d2fe")
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        enlarged = tile.resize((tile_width, tile_height), Image.Resampling.NEAREST).convert("RGB")
        grid.paste(enlarged, (column * (tile_width + gap), row * (tile_height + gap)))
    return grid

"""Images and the outlines of where a transformer looks, as pictures: for the figures of a run and for the Space."""

from __future__ import annotations

import torch


INKS = ((1.0, 0.55, 0.1), (0.25, 0.6, 1.0))  # orange and blue, for two channels


def outline(grid: torch.Tensor, size: int, align_corners: bool) -> torch.Tensor:
    """The border of where a transformer reads, in pixels of the image: (2, h, w) -> (2, points), closed."""
    top, right, bottom, left = grid[:, 0], grid[:, :, -1], grid[:, -1].flip(-1), grid[:, :, 0].flip(-1)
    border = torch.cat([top, right, bottom, left, top[:, :1]], -1)
    return (border + 1) / 2 * (size - 1) if align_corners else ((border + 1) * size - 1) / 2


def as_picture(image: torch.Tensor) -> torch.Tensor:
    """(C, h, w) in [0, 1] as (h, w) or (h, w, 3): two channels are shown in orange and blue on black."""
    if len(image) == 1:
        return image[0].clamp(0, 1)
    if len(image) == 2:
        return torch.einsum("chw,cr->hwr", image, torch.tensor(INKS)).clamp(0, 1)
    return image[:3].permute(1, 2, 0).clamp(0, 1)


__all__ = ["as_picture", "outline"]

"""Random changes of images, a batch at a time, on the device the images lie on.

All geometric changes are put together into one field of source positions, and the images are resampled once: three
resamplings in a row would blur three times. Chance comes from the device's global generator, whose state is part of a
checkpoint, so a resumed run draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
import torch.nn.functional as F

from hf_papers.data.arguments import option
from hf_papers.errors import UserError


@dataclass(frozen=True)
class AugmentationOptions:
    """Options of a task that changes its images at random; a task's own options inherit from it. All are off at first."""

    rotation: float = option(0.0, "turn by up to so many degrees, either way")
    scaling: float = option(0.0, "enlarge or reduce by up to this share: 0.1 is a factor from 1/1.1 to 1.1")
    shear: float = option(0.0, "slant by up to so many degrees, either way")
    translation: float = option(0.0, "shift by up to so many pixels along each side, either way")
    horizontal_flip: bool = option(False, "mirror left and right in half of the cases")
    vertical_flip: bool = option(False, "mirror top and bottom in half of the cases")
    elastic_std: float = option(0.0, "bend: standard deviation in pixels of the shifts on a coarse grid of points")
    elastic_points: int = option(3, "points along each side of that grid; between them the shift is a smooth surface")
    brightness: float = option(0.0, "add up to this to all pixels of an image, either way")
    contrast: float = option(0.0, "spread pixels about their mean by up to this share, as scaling does")
    gamma: float = option(0.0, "bend the curve of grey values by an exponent of up to this share away from 1")
    noise: float = option(0.0, "standard deviation of Gaussian noise on every pixel")
    border: Literal["reflection", "border", "zeros"] = option(
        "reflection", "what lies outside an image: its mirror image, its outermost pixels drawn out, or zeros"
    )

    def __post_init__(self) -> None:
        for entry in fields(AugmentationOptions):
            value = getattr(self, entry.name)
            if isinstance(value, (int, float)) and not 0 <= value < math.inf:
                raise UserError(f"{entry.name} must be a finite number of at least 0, not {value}.")
        if self.elastic_points < 2:
            raise UserError(f"elastic_points must be at least 2, not {self.elastic_points}: one point only shifts.")
        if self.shear >= 90:
            raise UserError(f"shear must be less than 90 degrees, not {self.shear}.")


class Augmentation:
    """Changes every image of a batch in its own random way.

    `images` (B, C, H, W) floating-point; `masks` (B, H, W), or several layers (B, L, H, W), of any type get the same
    geometric change by nearest neighbour, so that no class appears that was not there. Both keep their shapes and types.
    `generator`, on the images' device, makes a change that is the same every time, e.g. for a fixed test set.
    """

    def __init__(self, options: AugmentationOptions) -> None:
        self.options = options

    def __call__(
        self, images: torch.Tensor, masks: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if images.ndim != 4 or not images.is_floating_point():
            raise ValueError(
                f"Images are floating-point (batch, channels, height, width), not {images.dtype} of {tuple(images.shape)}."
            )
        if masks is not None and (len(masks) != len(images) or masks.shape[-2:] != images.shape[-2:]):
            raise ValueError(
                f"Masks of shape {tuple(masks.shape)} do not belong to images of shape {tuple(images.shape)}."
            )
        if self.is_geometric:
            positions = self.positions(images, generator)
            images = sample(images, positions, "bilinear", self.options.border)
            if masks is not None:
                masks = self._warp_masks(masks, positions)
        return self.change_values(images, generator), masks

    @property
    def is_geometric(self) -> bool:
        """Whether pixels move at all."""
        moves = ("rotation", "scaling", "shear", "translation", "horizontal_flip", "vertical_flip", "elastic_std")
        return any(getattr(self.options, name) for name in moves)

    def positions(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Where each pixel of the changed images comes from: (B, H, W, 2), x and y in pixels from the image's middle."""
        matrices, shifts = self._random_affine(images, generator)
        start = pixel_positions(*images.shape[-2:], images.device)  # (H, W, 2)
        positions = torch.einsum("bij,hwj->bhwi", matrices, start) + shifts[:, None, None]
        if self.options.elastic_std:
            positions = positions + self._random_bends(images, generator)
        return positions

    def _random_affine(
        self, images: torch.Tensor, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Matrices (B, 2, 2) and shifts (B, 2) from positions in the changed image to positions in the old one."""
        options, batch = self.options, len(images)

        def uniform(reach: float) -> torch.Tensor:
            return _uniform(batch, reach, images.device, generator)

        angle = uniform(math.radians(options.rotation))
        factor = torch.exp(uniform(math.log1p(options.scaling)))
        slant = torch.tan(uniform(math.radians(options.shear)))
        shifts = torch.stack([uniform(options.translation), uniform(options.translation)], -1)
        flips = torch.stack(
            [_sign(uniform(float(options.horizontal_flip))), _sign(uniform(float(options.vertical_flip)))]
        )
        cos, sin = torch.cos(angle) / factor, torch.sin(angle) / factor
        rotation = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)  # (B, 2, 2)
        shearing = torch.eye(2, device=images.device).repeat(batch, 1, 1)
        shearing[:, 0, 1] = slant
        return torch.diag_embed(flips.T) @ rotation @ shearing, shifts

    def _random_bends(self, images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Smooth shifts (B, H, W, 2) in pixels: random on the coarse grid, bicubic in between (1505.04597, section 3.1)."""
        points = self.options.elastic_points
        coarse = torch.randn(len(images), 2, points, points, generator=generator, device=images.device)
        fine = F.interpolate(coarse, size=images.shape[-2:], mode="bicubic", align_corners=True)
        return self.options.elastic_std * fine.movedim(1, -1)

    def _warp_masks(self, masks: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        stacked = masks if masks.ndim == 4 else masks[:, None]
        # float64 holds every class number and instance number exactly.
        warped = sample(stacked.double(), positions.double(), "nearest", self.options.border)
        return warped.to(masks.dtype).reshape(masks.shape)

    def change_values(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Change grey values, every image in its own way, all of its channels alike; pixels stay where they are."""
        options, batch = self.options, len(images)

        def uniform(reach: float) -> torch.Tensor:
            return _uniform(batch, reach, images.device, generator)[:, None, None, None]

        if options.gamma:
            low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
            spread = (high - low).clamp_min(torch.finfo(images.dtype).tiny)
            exponent = torch.exp(uniform(math.log1p(options.gamma)))
            images = low + spread * ((images - low) / spread).clamp(0, 1) ** exponent
        if options.contrast:
            mean = images.mean((1, 2, 3), keepdim=True)
            images = mean + (images - mean) * torch.exp(uniform(math.log1p(options.contrast)))
        if options.brightness:
            images = images + uniform(options.brightness)
        if options.noise:
            drawn = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
            images = images + options.noise * drawn
        return images


def _uniform(count: int, reach: float, device: torch.device, generator: torch.Generator | None = None) -> torch.Tensor:
    """(count,) numbers between -reach and reach. Nothing is drawn for a reach of 0, a change that is off."""
    if not reach:
        return torch.zeros(count, device=device)
    return (2 * torch.rand(count, generator=generator, device=device) - 1) * reach


def _sign(values: torch.Tensor) -> torch.Tensor:
    """-1 where a value is negative, else 1: what was drawn about 0 becomes a coin, what was not drawn stays 1."""
    return torch.where(values < 0, -1.0, 1.0)


def pixel_positions(height: int, width: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """x and y of every pixel's centre, in pixels from the image's middle, (height, width, 2)."""
    y = torch.arange(height, device=device) - (height - 1) / 2
    x = torch.arange(width, device=device) - (width - 1) / 2
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def sample(images: torch.Tensor, positions: torch.Tensor, mode: str, border: str) -> torch.Tensor:
    """Images (B, C, H, W) read at `positions` (B, H', W', 2) in pixels from their middle -> (B, C, H', W')."""
    height, width = images.shape[-2:]
    half = torch.tensor([max(width - 1, 1) / 2, max(height - 1, 1) / 2], device=images.device, dtype=positions.dtype)
    grid = (positions / half).to(images.dtype)
    return F.grid_sample(images, grid, mode=mode, padding_mode=border, align_corners=True)


__all__ = ["Augmentation", "AugmentationOptions", "pixel_positions", "sample"]

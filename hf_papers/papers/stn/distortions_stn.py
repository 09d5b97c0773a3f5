"""The distorted digits of section 4.1 and appendix A, made from plain ones a batch at a time, on the digits' device.

Every image of a batch is distorted in its own way, by numbers from the device's global generator (whose state is part of a
checkpoint, so a resumed run goes on with the same images) or from a generator that is given.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

from hf_papers.data.augmentation import pixel_positions, sample
from hf_papers.papers.stn.modeling_stn import control_grid, spline_matrix


Kind = Literal["none", "rotated", "rts", "projective", "elastic", "cluttered", "addition"]
KINDS = get_args(Kind)
PUBLISHED_DIGIT = 28  # the pixels in which the paper's shifts are given
FAR = 1e4  # a source far outside of any digit


class Distortion:
    """Digits (B, 1, d, d) in [0, 1] and their labels (B,) -> images (B, C, size, size) and labels (B,).

    "rotated" (R): by up to 90 degrees either way. "rts": by up to 45 degrees, scaled by 0.7 to 1.2, anywhere in the
    image. "projective" (P): scaled by 0.75 to 1, each corner pulled by N(0, 5) pixels. "elastic" (E): scaled by 0.75 to
    1, 16 points of a thin-plate spline pulled by N(0, 1.5) pixels. "cluttered" (TC): anywhere in the image, among
    `patches` squares of `patch_size` pixels out of other digits. "addition": two digits in two channels, each distorted
    as in "rts"; the label is their sum.
    """

    def __init__(self, kind: Kind, size: int, patches: int = 6, patch_size: int = 8) -> None:
        self.kind, self.size, self.patches, self.patch_size = kind, size, patches, patch_size
        self._bends: torch.Tensor | None = None

    @property
    def num_channels(self) -> int:
        return 2 if self.kind == "addition" else 1

    def __call__(
        self, digits: torch.Tensor, labels: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        draw = Dice(len(digits), digits.device, generator)
        if self.kind == "addition":
            others = draw.permutation()
            images = torch.cat([self.rts(digits, draw), self.rts(digits[others], draw)], 1)
            return images, labels + labels[others]
        return getattr(self, self.kind)(digits, draw), labels

    def none(self, digits: torch.Tensor, draw: Dice) -> torch.Tensor:
        return digits

    def rotated(self, digits: torch.Tensor, draw: Dice) -> torch.Tensor:
        return self._read(digits, self._pixels(digits) @ rotation(draw.uniform(-90, 90)))

    def rts(self, digits: torch.Tensor, draw: Dice) -> torch.Tensor:
        """The square of the scaled digit stays inside the image, whatever the angle."""
        matrices, scale = rotation(draw.uniform(-45, 45)), draw.uniform(0.7, 1.2)
        room = (self.size - digits.shape[-1] * scale).clamp_min(0) / 2
        shifts = torch.stack([room * draw.uniform(-1, 1), room * draw.uniform(-1, 1)], -1)
        positions = self._pixels(digits) - shifts[:, None]
        return self._read(digits, positions @ matrices / scale[:, None, None])

    def projective(self, digits: torch.Tensor, draw: Dice) -> torch.Tensor:
        """The plane that carries the digit's corners to where they are pulled, read backwards."""
        half, unit = digits.shape[-1] / 2, digits.shape[-1] / PUBLISHED_DIGIT
        corners = half * torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]], device=digits.device)
        pulled = corners * draw.uniform(0.75, 1)[:, None, None] + 5 * unit * draw.normal(4, 2)
        matrices = homography(pulled, corners)  # (B, 3, 3), from places in the image to places in the digit
        pixels = self._pixels(digits)
        places = torch.cat([pixels, torch.ones_like(pixels[:, :1])], -1) @ matrices.mT  # (B, P, 3)
        depth = places[..., 2:]
        # Behind the horizon there is nothing to see.
        return self._read(digits, torch.where(depth > 1e-3, places[..., :2] / depth.clamp_min(1e-3), FAR))

    def elastic(self, digits: torch.Tensor, draw: Dice) -> torch.Tensor:
        pixels, unit = self._pixels(digits), digits.shape[-1] / PUBLISHED_DIGIT
        if self._bends is None:
            targets = pixels.cpu().double() * (2 / self.size)
            self._bends = spline_matrix(targets, control_grid(4)).float()  # (P, 16)
        pulls = 1.5 * unit * draw.normal(16, 2)
        bent = pixels + self._bends.to(digits.device) @ pulls  # (P, 16) @ (B, 16, 2) -> (B, P, 2)
        return self._read(digits, bent / draw.uniform(0.75, 1)[:, None, None])

    def cluttered(self, digits: torch.Tensor, draw: Dice) -> torch.Tensor:
        batch, side, patch = len(digits), digits.shape[-1], self.patch_size
        flat = digits.flatten(1)  # (B, d^2)
        canvas = digits.new_zeros(batch, self.size**2)
        canvas.scatter_(1, draw.squares(1, self.size, side).flatten(1), flat)
        donors = draw.others(self.patches)  # (B, patches)
        pieces = flat[donors].gather(2, draw.squares(self.patches, side, patch))  # (B, patches, patch^2)
        places = draw.squares(self.patches, self.size, patch)
        canvas.scatter_reduce_(1, places.flatten(1), pieces.flatten(1), "amax")
        return canvas.view(batch, 1, self.size, self.size)

    def _pixels(self, digits: torch.Tensor) -> torch.Tensor:
        """x and y of the image's pixels from its middle, (P, 2)."""
        return pixel_positions(self.size, self.size, digits.device).flatten(0, 1)

    def _read(self, digits: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Digits read at positions (B, P, 2) in pixels from their middle -> (B, 1, size, size)."""
        return sample(digits, positions.unflatten(1, (self.size, self.size)), "bilinear", "zeros")


class Dice:
    """Random numbers for the images of one batch."""

    def __init__(self, batch: int, device: torch.device, generator: torch.Generator | None) -> None:
        self.batch, self.options = batch, {"device": device, "generator": generator}

    def uniform(self, low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(self.batch, **self.options)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(self.batch, *shape, **self.options)

    def permutation(self) -> torch.Tensor:
        return torch.randperm(self.batch, **self.options)

    def others(self, count: int) -> torch.Tensor:
        """(B, count) numbers of other images than one's own, where there are any."""
        steps = torch.randint(1, max(2, self.batch), (self.batch, count), **self.options)
        return (torch.arange(self.batch, device=self.options["device"])[:, None] + steps) % self.batch

    def squares(self, count: int, room: int, side: int) -> torch.Tensor:
        """Pixel numbers of squares anywhere in an image of room x room, (B, count, side^2)."""
        top, left = torch.randint(0, room - side + 1, (2, self.batch, count, 1), **self.options)
        steps = torch.arange(side, device=self.options["device"])
        inside = (steps[:, None] * room + steps).flatten()
        return top * room + left + inside


def rotation(degrees: torch.Tensor) -> torch.Tensor:
    """Matrices (B, 2, 2) that turn rows (x, y) on their left counter-clockwise, which turns what is read clockwise."""
    cos, sin = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)


def homography(sources: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The projective maps that carry four points to four others: (B, 4, 2), (4, 2) -> (B, 3, 3) with a last entry of 1.

    Each pair gives two linear equations in the eight numbers h: (x, y, 1, 0, 0, 0, -u x, -u y) h = u, and the same for v.
    """
    x, y = sources.unbind(-1)  # (B, 4)
    u, v = targets.expand_as(sources).unbind(-1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    first = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], -1)
    second = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], -1)
    numbers = torch.linalg.solve(torch.cat([first, second], 1).double(), torch.cat([u, v], 1).double())
    return torch.nn.functional.pad(numbers, (0, 1), value=1.0).unflatten(1, (3, 3)).to(sources.dtype)


__all__ = ["KINDS", "Distortion", "Kind", "homography", "rotation"]

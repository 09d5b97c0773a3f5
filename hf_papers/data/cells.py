"""Made-up micrographs: cells of all shapes that touch, under uneven light, each pixel's cell known."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage


SIZE = 128
TRIES = 400  # places that are tried for a cell on so many pixels; about 35 are taken
FAR = 2.0  # radii from a cell's middle, beyond which it has no influence
SPLITS = {"train": 40, "validation": 8, "test": 16}


def draw_cells(number: int, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Picture `number`: (image, instances), both (size, size). Image: bytes; instances: 0 for the ground, else 1, 2, …

    The same number gives the same picture always. Neighbours press against each other and flatten where they meet, so that
    only a faint dark line tells two cells apart.
    """
    random = np.random.default_rng([1505, 4597, number])
    # How far each pixel is from the nearest and from the second nearest cell: below 1 inside one.
    first, second = np.full((2, size, size), FAR)
    nearest = np.zeros((size, size), dtype=np.int64)
    places = _places(random, size)
    for cell, (place, radius) in enumerate(places):
        box, distance = _cell(random, place, radius, size)
        nearest[box] = np.where(distance < first[box], cell, nearest[box])
        second[box] = np.minimum(second[box], np.maximum(first[box], distance))
        first[box] = np.minimum(first[box], distance)
    instances = np.where(first < 1, nearest + 1, 0).astype(np.uint8 if len(places) < 256 else np.uint16)

    inside = first < 1
    light = 0.18 * _clouds(random, size, size / 3) + 0.5
    bodies = random.uniform(-0.07, 0.13, len(places))[nearest] + 0.05 * _clouds(random, size, 2.5)
    rim = np.exp(-(((first - 0.97) / 0.07) ** 2))  # a dark line along the edge …
    seam = np.exp(-(((second - first) / 0.06) ** 2)) * inside  # … and a fainter one where two cells meet
    grains = (_clouds(random, size, 1.6) > 1.6) * (first < 0.75)
    ground = 0.03 * _clouds(random, size, 1.2)
    picture = light + np.where(inside, bodies, ground) - 0.22 * rim - 0.15 * seam - 0.2 * grains
    picture = ndimage.gaussian_filter(picture, 0.7) + random.normal(0, 0.035, (size, size))
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8), instances


def load_cells() -> dict[str, dict[str, list[Any]]]:
    """All splits: `image`, PIL, mode L; `mask`, PIL, mode L, 0 for the ground and another number for each cell."""
    splits: dict[str, dict[str, list[Any]]] = {}
    first = 0
    for split, count in SPLITS.items():
        drawn = [draw_cells(number) for number in range(first, first + count)]
        splits[split] = {
            "image": [Image.fromarray(image) for image, _ in drawn],
            "mask": [Image.fromarray(instances) for _, instances in drawn],
        }
        first += count
    return splits


def _places(random: np.random.Generator, size: int) -> list[tuple[np.ndarray, float]]:
    """Middles (x, y) and radii of cells that overlap a little with their neighbours; some pictures are crowded, some not."""
    tries = round(TRIES * (size / SIZE) ** 2)
    middles, radii, count = np.empty((tries, 2)), np.empty(tries), 0
    loneliness = random.uniform(0.02, 0.3)
    for _ in range(tries):
        place, radius = random.uniform(-4, size + 4, 2), random.uniform(8, 16)
        gaps = np.hypot(*(place - middles[:count]).T) / (radius + radii[:count])
        nearest = gaps.min(initial=1.0 if count == 0 else np.inf)
        if nearest < 0.82 or (nearest > 1.05 and random.random() > loneliness):
            continue
        middles[count], radii[count], count = place, radius, count + 1
    return list(zip(middles[:count], radii[:count].tolist(), strict=True))


def _cell(
    random: np.random.Generator, place: np.ndarray, radius: float, size: int
) -> tuple[tuple[slice, slice], np.ndarray]:
    """The pixels around a cell, and how far each of them is from its middle in units of its radius that way: an ellipse
    with dents."""
    left, top = np.clip(place - FAR * radius, 0, size).astype(int)
    right, bottom = np.clip(place + FAR * radius, 0, size).astype(int)
    box = slice(top, bottom), slice(left, right)
    y, x = np.mgrid[box]
    turn, stretch = random.uniform(0, np.pi), random.uniform(0.8, 1.25)
    across = (x - place[0]) * np.cos(turn) + (y - place[1]) * np.sin(turn)
    along = (y - place[1]) * np.cos(turn) - (x - place[0]) * np.sin(turn)
    angle = np.arctan2(along, across)
    wave = sum(random.normal(0, 0.07) * np.cos(k * angle + random.uniform(0, 2 * np.pi)) for k in (2, 3, 4))
    distance = np.hypot(across * stretch, along / stretch) / (radius * (1 + wave))
    return box, np.minimum(distance, FAR)


def _clouds(random: np.random.Generator, size: int, width: float) -> np.ndarray:
    """Smooth noise with features about `width` pixels wide and a standard deviation of 1, (size, size)."""
    noise = ndimage.gaussian_filter(random.normal(size=(size, size)), width, mode="wrap")
    return (noise - noise.mean()) / noise.std()


__all__ = ["draw_cells", "load_cells"]

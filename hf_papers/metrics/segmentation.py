"""How well a mask agrees with the true one: by area (Dice, IoU), by pixels, and by the cells that come out (Rand, warping).

Masks are arrays (H, W). Every measure is of one image: over a data set take the mean of the images' values, not the value of
all pixels together, in which large objects drown the small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
from scipy import ndimage

from hf_papers.errors import UserError


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) of two binary masks: 1 is perfect. NaN where both are empty: there is nothing to overlap."""
    prediction, reference = _binary(prediction, reference)
    total = int(prediction.sum()) + int(reference.sum())
    return 2 * int((prediction & reference).sum()) / total if total else float("nan")


def intersection_over_union(prediction: np.ndarray, reference: np.ndarray) -> float:
    """|A and B| / |A or B| of two binary masks: 1 is perfect. NaN where both are empty."""
    prediction, reference = _binary(prediction, reference)
    union = int((prediction | reference).sum())
    return int((prediction & reference).sum()) / union if union else float("nan")


def pixel_error(prediction: np.ndarray, reference: np.ndarray) -> float:
    """The share of pixels whose class is wrong; of two binary masks also their mean squared difference."""
    _same_shape(prediction, reference)
    return float((np.asarray(prediction) != np.asarray(reference)).mean())


def mean_over_classes(
    measure: Callable[[np.ndarray, np.ndarray], float],
    prediction: np.ndarray,
    reference: np.ndarray,
    classes: Iterable[int],
) -> float:
    """`dice` or `intersection_over_union` of each of `classes` alone, averaged over those that occur in either mask."""
    values = [measure(prediction == number, reference == number) for number in classes]
    present = [value for value in values if not np.isnan(value)]
    return float(np.mean(present)) if present else float("nan")


def cells_of(mask: np.ndarray) -> np.ndarray:
    """The connected parts of a binary mask numbered from 1, 0 elsewhere. Pixels that touch at a corner only are apart."""
    return ndimage.label(np.asarray(mask) > 0)[0]


def rand_error(prediction: np.ndarray, reference: np.ndarray) -> float:
    """1 - F score of pairs of pixels, restricted to the foreground of the reference: 0 is perfect.

    Two pixels inside true cells are a pair when they lie in the same cell. Precision is the share of predicted pairs that
    are true, recall the share of true pairs that are predicted, and F their harmonic mean. Pixels of the reference's
    background do not count; a pixel that is background in the prediction alone is a cell of its own, so that thick borders
    cost recall. This is the foreground-restricted score of the ISBI 2012 challenge, without the thinning of borders that its
    organisers came to recommend (Arganda-Carreras et al., 2015).

    prediction, reference: (H, W) whole numbers, 0 for the background and another for each cell.
    """
    _same_shape(prediction, reference)
    inside = np.asarray(reference) > 0
    true = np.unique(np.asarray(reference)[inside], return_inverse=True)[1].reshape(-1)
    found = np.asarray(prediction)[inside].reshape(-1)
    in_cell = found > 0
    width = int(found.max()) + 1 if len(found) else 1
    both = np.unique(true[in_cell].astype(np.int64) * width + found[in_cell], return_counts=True)[1]
    true_pairs, found_pairs = _pairs(np.bincount(true)), _pairs(np.bincount(found[in_cell]))
    if true_pairs + found_pairs == 0:
        return 0.0
    return 1.0 - 2 * _pairs(both) / (true_pairs + found_pairs)


def warping_error(prediction: np.ndarray, reference: np.ndarray, allowed: np.ndarray | None = None) -> float:
    """The share of pixels that still disagree after the reference was bent towards the prediction without changing what is
    connected (Jain et al., 2010): 0 when both hold the same cells with borders somewhere else.

    Pixels of the reference are flipped where they disagree and are *simple*: where that neither joins, splits, makes nor
    removes a cell or a hole. Cells are connected through sides, background also through corners; outside the image is
    background. Whether any pixel is simple depends on its eight neighbours alone, so that every other pixel of every other
    row can be flipped at once as if one after the other. Pixels that agree stay, so a border follows another only as far as
    the two touch; and which local optimum is reached may depend on the order.

    prediction, reference: (H, W) binary masks, true inside cells. allowed: where the reference may bend; all by default.
    """
    prediction, reference = _binary(prediction, reference)
    target = np.pad(prediction, 1)
    bent = np.pad(reference, 1)
    may = np.pad(np.ones_like(reference) if allowed is None else np.asarray(allowed, dtype=bool), 1)
    quarters = [np.zeros_like(may) for _ in range(4)]
    for number, quarter in enumerate(quarters):
        quarter[number // 2 :: 2, number % 2 :: 2] = True
    changed = True
    while changed:
        changed = False
        for quarter in quarters:
            flip = (bent != target) & may & quarter
            if flip.any():
                flip &= _simple_points()[_neighbourhoods(bent)]
                bent[flip] = target[flip]
                changed |= bool(flip.any())
    return float((bent != target)[1:-1, 1:-1].mean())


# Bit number -> where that neighbour lies, as (row, column) of the 3x3 neighbourhood.
_NEIGHBOURS = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)]


def _neighbourhoods(mask: np.ndarray) -> np.ndarray:
    """For every pixel of a binary mask, its eight neighbours as the bits of a number. Beyond the edge lies background."""
    padded = np.pad(mask, 1).astype(np.uint8)
    height, width = mask.shape
    code = np.zeros(mask.shape, dtype=np.uint8)
    for bit, (row, column) in enumerate(_NEIGHBOURS):
        code |= padded[row : row + height, column : column + width] << bit
    return code


@cache
def _simple_points() -> np.ndarray:
    """(256,) for each neighbourhood whether flipping its middle changes no connection.

    That is so when the middle touches exactly one cell among its neighbours, through a side, and exactly one piece of
    background, through a side or corner (Kong and Rosenfeld, 1989).
    """
    sides = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=bool)
    table = np.zeros(256, dtype=bool)
    for code in range(256):
        patch = np.zeros((3, 3), dtype=bool)
        for bit, place in enumerate(_NEIGHBOURS):
            patch[place] = code >> bit & 1
        cells, _ = ndimage.label(patch)
        ground = ~patch
        ground[1, 1] = False
        _, pieces = ndimage.label(ground, structure=np.ones((3, 3)))
        touched = len(set(cells[sides & patch].tolist()))
        table[code] = touched == 1 and pieces == 1
    return table


def _pairs(counts: np.ndarray) -> int:
    """Pairs within groups of so many pixels."""
    counts = counts.astype(np.int64)
    return int((counts * (counts - 1) // 2).sum())


def _binary(prediction: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    _same_shape(prediction, reference)
    return np.asarray(prediction) > 0, np.asarray(reference) > 0


def _same_shape(prediction: np.ndarray, reference: np.ndarray) -> None:
    if np.shape(prediction) != np.shape(reference) or np.ndim(reference) != 2:
        raise UserError(
            f"Two masks of one size (height, width) are compared, not {np.shape(prediction)} and {np.shape(reference)}."
        )


__all__ = [
    "cells_of",
    "dice",
    "intersection_over_union",
    "mean_over_classes",
    "pixel_error",
    "rand_error",
    "warping_error",
]

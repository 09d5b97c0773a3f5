"""How much each pixel counts in the loss (section 3, eq. 2): the gaps between touching cells most of all."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage


# Beyond so many sigmas the second term of eq. 2 is less than 2e-8 of w_0.
REACH = 6.0


def border_weights(
    cells: np.ndarray, weight: float = 10.0, sigma: float = 5.0, inside_cells: bool = False
) -> np.ndarray:
    """The second term of eq. 2, (H, W) float32: high on the background between two cells that are close.

        w_0 exp(-(d_1(x) + d_2(x))^2 / (2 sigma^2))

    with d_1 and d_2 the distances, in pixels, to the borders of the nearest and the second nearest cell. It is 0 where there
    are fewer than two. Figure 3 shows it on the background that keeps cells apart, so it is 0 inside cells; `inside_cells`
    gives it there too, as the formula alone would have it: both sides of an edge then count.

    `cells` (H, W): 0 for the background and another number for each cell.
    """
    nearest = np.full(cells.shape, np.inf, dtype=np.float32)
    second = np.full(cells.shape, np.inf, dtype=np.float32)
    reach = math.ceil(REACH * sigma)
    for number, box in enumerate(ndimage.find_objects(cells), start=1):
        if box is None:
            continue
        around = tuple(slice(max(part.start - reach, 0), part.stop + reach) for part in box)
        is_cell = cells[around] == number
        distance = ndimage.distance_transform_edt(~is_cell).astype(np.float32)
        if inside_cells:  # a cell's own pixels lie some way from its border, too
            distance += ndimage.distance_transform_edt(is_cell).astype(np.float32)
        first = nearest[around]
        second[around] = np.minimum(second[around], np.maximum(first, distance))
        nearest[around] = np.minimum(first, distance)
    with np.errstate(over="ignore"):
        weights = weight * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return (weights if inside_cells else np.where(cells == 0, weights, 0)).astype(np.float32)


def class_weights(counts: np.ndarray) -> np.ndarray:
    """The first term of eq. 2, w_c: what balances the frequencies of the classes. counts (K,) of pixels -> (K,) float32.

    Proportional to 1 / frequency, so that every class has the same share in the loss, and 1 on average over the pixels: the
    paper gives no formula. A class that never occurs gets 1.
    """
    present = counts > 0
    weights = np.ones(len(counts), dtype=np.float32)
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights


def cells_apart(instances: np.ndarray) -> np.ndarray:
    """Cells with background between those that touch, as section 3 introduces it: (H, W) -> (H, W), numbers kept.

    A pixel whose 3x3 neighbourhood holds another cell than its own becomes background: two pixels between touching cells.
    """
    largest = ndimage.maximum_filter(instances, size=3, mode="nearest")
    far = np.iinfo(instances.dtype).max
    smallest = ndimage.minimum_filter(np.where(instances == 0, far, instances), size=3, mode="nearest")
    touching = (instances > 0) & ((largest != instances) | (smallest != instances))
    return np.where(touching, 0, instances)


__all__ = ["border_weights", "cells_apart", "class_weights"]

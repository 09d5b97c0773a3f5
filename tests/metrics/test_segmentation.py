"""Measures of masks, against scikit-learn, against definitions written out, and on cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import f1_score, jaccard_score
from sklearn.metrics.cluster import pair_confusion_matrix

from hf_papers.errors import UserError
from hf_papers.metrics.segmentation import (
    cells_of,
    dice,
    intersection_over_union,
    mean_over_classes,
    pixel_error,
    rand_error,
    warping_error,
)


def mask(text: str) -> np.ndarray:
    """Rows of "#" (cell) and "." (background)."""
    return np.array([[sign == "#" for sign in line] for line in text.split()])


def random_mask(seed: int, shape: tuple[int, int] = (20, 24)) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5) > 0


# -------------------------------------------------------------------------------------------------------------- areas


@pytest.mark.parametrize("seed", range(3))
def test_overlaps_agree_with_scikit_learn(seed: int):
    found, true = random_mask(seed), random_mask(seed + 100)
    assert dice(found, true) == pytest.approx(f1_score(true.ravel(), found.ravel()))
    assert intersection_over_union(found, true) == pytest.approx(jaccard_score(true.ravel(), found.ravel()))
    assert pixel_error(found, true) == pytest.approx(np.mean((found.astype(float) - true) ** 2))


def test_of_two_empty_masks_no_overlap_is_made_up():
    empty, full = np.zeros((3, 3), bool), np.ones((3, 3), bool)
    assert math.isnan(dice(empty, empty)) and math.isnan(intersection_over_union(empty, empty))
    assert dice(empty, full) == intersection_over_union(full, empty) == 0.0
    assert dice(full, full) == intersection_over_union(full, full) == 1.0


def test_classes_that_occur_nowhere_are_left_out_of_the_mean():
    true, found = np.array([[0, 1], [1, 2]]), np.array([[0, 1], [2, 2]])
    assert mean_over_classes(dice, found, true, range(1, 5)) == pytest.approx(np.mean([2 / 3, 2 / 3]))
    assert math.isnan(mean_over_classes(dice, found * 0, true * 0, [1, 2]))


def test_masks_of_two_sizes_are_refused():
    for measure in (dice, pixel_error, rand_error, warping_error):
        with pytest.raises(UserError, match="one size"):
            measure(np.zeros((3, 4)), np.zeros((4, 3)))


# --------------------------------------------------------------------------------------------------------- Rand error


def rand_error_of_pairs(found: np.ndarray, true: np.ndarray) -> float:
    """The definition by scikit-learn's table of pairs: true background left out, found background one cell a pixel."""
    inside = true > 0
    found, true = found[inside], true[inside]
    alone = found == 0
    found = found.copy()
    found[alone] = found.max() + 1 + np.arange(alone.sum())
    (_, merged), (split, both) = pair_confusion_matrix(true, found)
    return 1 - 2 * both / (2 * both + merged + split)


@pytest.mark.parametrize("seed", range(4))
def test_the_rand_error_agrees_with_scikit_learns_pairs(seed: int):
    found, true = cells_of(random_mask(seed)), cells_of(random_mask(seed + 100))
    assert rand_error(found, true) == pytest.approx(rand_error_of_pairs(found, true), abs=1e-12)
    assert 0.1 < rand_error(found, true) < 1


def test_the_rand_error_of_cases_that_can_be_counted():
    true = np.array([[1, 1, 0, 2, 2]])
    assert rand_error(true, true) == 0.0
    assert rand_error(np.array([[7, 7, 9, 3, 3]]), true) == 0.0  # other numbers, and what happens on the border
    merged = np.array([[1, 1, 1, 1, 1]])  # 2 true pairs among 6 found ones
    assert rand_error(merged, true) == pytest.approx(1 - 2 * 2 / (2 + 6))
    split = np.array([[1, 0, 0, 2, 2]])  # one of 2 true pairs is found
    assert rand_error(split, true) == pytest.approx(1 - 2 * 1 / (2 + 1))
    assert rand_error(np.zeros_like(true), true) == 1.0
    assert rand_error(true, np.zeros_like(true)) == 0.0  # nothing is inside true cells, so nothing can be wrong


def test_a_merger_costs_more_than_a_border_somewhere_else():
    true = np.ones((40, 40), int)
    true[:, 20] = 0
    true = cells_of(true)
    moved = np.ones((40, 40), int)
    moved[:, 21] = 0
    gap = (true > 0).astype(int)
    gap[17, 20] = 1
    assert pixel_error(moved > 0, true > 0) > 50 * pixel_error(gap > 0, true > 0)
    assert rand_error(cells_of(gap), true) > 3 * rand_error(cells_of(moved), true)


# ------------------------------------------------------------------------------------------------------ warping error


TWO_CELLS = """
    ..........
    .###.####.
    .###.####.
    .###.####.
    .###.####.
    ..........
"""


def test_a_border_that_has_moved_is_no_warping_error():
    moved = TWO_CELLS.replace(".###.####.", ".####.###.")
    assert pixel_error(mask(moved), mask(TWO_CELLS)) > 0.1
    assert warping_error(mask(moved), mask(TWO_CELLS)) == 0.0
    thick = TWO_CELLS.replace(".###.####.", ".#....###.")
    assert warping_error(mask(thick), mask(TWO_CELLS)) == 0.0


@pytest.mark.parametrize(
    ("change", "pixels", "what"),
    [
        (((2, 4), True), 1, "a gap in the border joins two cells"),
        (((2, 7), False), 1, "a hole in a cell"),
        (((0, 0), True), 1, "a cell that is not there"),
        (((0, 1), True), 0, "a cell that is a little larger"),
        (((1, 8), False), 0, "a cell that is a little smaller"),
    ],
)
def test_what_changes_connections_stays_wrong(change: tuple, pixels: int, what: str):
    true = mask(TWO_CELLS)
    found = true.copy()
    found[change[0]] = change[1]
    assert warping_error(found, true) == pytest.approx(pixels / true.size), what


def test_a_cell_that_was_missed_counts_one_pixel():
    found = mask(TWO_CELLS)
    found[:, :4] = False
    assert warping_error(found, mask(TWO_CELLS)) == pytest.approx(1 / 60)  # it shrinks to the last pixel that keeps it


def test_a_diagonal_border_one_pixel_thick_keeps_cells_apart():
    true = ~np.eye(6, dtype=bool)
    assert cells_of(true).max() == 2
    gap = true.copy()
    gap[3, 3] = True
    assert warping_error(gap, true) == pytest.approx(1 / 36)


def test_bending_can_be_forbidden():
    moved = mask(TWO_CELLS.replace(".###.####.", ".####.###."))
    allowed = np.zeros((6, 10), bool)
    assert warping_error(moved, mask(TWO_CELLS), allowed) == pixel_error(moved, mask(TWO_CELLS))


@pytest.mark.parametrize("seed", range(5))
def test_bending_never_changes_how_many_cells_and_holes_there_are(seed: int):
    """The error is what is left between the prediction and a mask with the reference's own topology."""
    true, found = random_mask(seed, (30, 30)), random_mask(seed + 50, (30, 30))
    error = warping_error(found, true)
    assert 0 < error < pixel_error(found, true)
    assert warping_error(true, true) == 0.0
    # One pixel at a time, tested by counting cells and holes of the whole image, reaches the same kind of optimum.
    bent = np.pad(true, 1)
    target = np.pad(found, 1)
    progress = True
    while progress:
        progress = False
        for place in zip(*np.nonzero(bent != target), strict=True):
            before = topology(bent)
            bent[place] = target[place]
            if topology(bent) == before and inside_frame(place, bent.shape):
                progress = True
            else:
                bent[place] = ~target[place]
    slow = (bent != target)[1:-1, 1:-1].mean()
    assert error == pytest.approx(slow, abs=0.03)


def topology(image: np.ndarray) -> tuple[int, int]:
    """Cells (through sides) and pieces of background (also through corners)."""
    return ndimage.label(image)[1], ndimage.label(~image, structure=np.ones((3, 3)))[1]


def inside_frame(place: tuple, shape: tuple[int, ...]) -> bool:
    return all(0 < at < size - 1 for at, size in zip(place, shape, strict=True))


# ----------------------------------------------------------------------------------------------------------- evaluate


def test_the_classes_of_evaluate_give_the_functions_numbers():
    from hf_papers.metrics import CellErrorMetric, MaskOverlapMetric

    found = [random_mask(seed).astype(int) for seed in (0, 1)]
    true = [random_mask(seed + 9).astype(int) for seed in (0, 1)]
    overlap, cells = MaskOverlapMetric(), CellErrorMetric()
    for metric in (overlap, cells):
        metric.add_batch(predictions=[each.tolist() for each in found], references=[each.tolist() for each in true])
    pairs = list(zip(found, true, strict=True))
    assert overlap.compute() == {
        "dice": pytest.approx(np.mean([dice(*pair) for pair in pairs])),
        "iou": pytest.approx(np.mean([intersection_over_union(*pair) for pair in pairs])),
        "pixel_error": pytest.approx(np.mean([pixel_error(*pair) for pair in pairs])),
    }
    assert cells.compute() == {
        "rand_error": pytest.approx(np.mean([rand_error(cells_of(mine), cells_of(theirs)) for mine, theirs in pairs])),
        "warping_error": pytest.approx(np.mean([warping_error(*pair) for pair in pairs])),
    }

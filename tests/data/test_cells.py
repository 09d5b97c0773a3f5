"""The embedded micrographs: the same ones every time, with cells that touch and cannot be told by their brightness."""

from __future__ import annotations

import numpy as np

from hf_papers.data.cells import SPLITS, draw_cells, load_cells
from hf_papers.data.embedded import find_embedded
from hf_papers.metrics.segmentation import cells_of


def test_a_picture_is_the_same_every_time_and_each_is_another():
    first, again, other = draw_cells(3), draw_cells(3), draw_cells(4)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first[0], other[0])


def test_cells_touch_and_each_has_a_number():
    image, cells = draw_cells(0)
    assert image.shape == cells.shape == (128, 128) and image.dtype == cells.dtype == np.uint8
    count = len(np.unique(cells)) - 1
    assert 15 < count < 60
    assert cells_of(cells > 0).max() < count / 2, "most cells touch another one"
    assert 0.4 < (cells > 0).mean() < 0.85


def test_no_brightness_tells_cells_from_the_ground():
    for number in range(3):
        image, cells = draw_cells(number)
        share = (cells > 0).mean()
        best = max(((image > level) == (cells > 0)).mean() for level in range(0, 256, 8))
        assert best < max(share, 1 - share) + 0.12


def test_another_size_can_be_drawn():
    image, cells = draw_cells(1, 300)
    assert image.shape == cells.shape == (300, 300)
    assert len(np.unique(cells)) > 60


def test_the_splits_are_pictures_of_their_own():
    splits = find_embedded("cells").load()
    assert {split: len(columns["image"]) for split, columns in splits.items()} == SPLITS
    pictures = [picture.tobytes() for columns in splits.values() for picture in columns["image"]]
    assert len(set(pictures)) == sum(SPLITS.values())
    assert load_cells()["test"]["mask"][0].mode == "L"

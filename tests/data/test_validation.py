"""What the validator says of data that would make a training fail or learn nonsense."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from hf_papers.data import DataArguments, check_batch, check_rows, open_source
from hf_papers.errors import UserError


def picture(mode: str = "L", size: tuple[int, int] = (28, 28)) -> Image.Image:
    return Image.new(mode, size)


GOOD = [{"image": picture(), "label": label} for label in (0, 3, 9)]


def test_good_rows_pass() -> None:
    check_rows(GOOD, "here", image="image", size=(28, 28), modes=["L"], label="label", num_labels=10, at_least=3)
    check_batch({"pixel_values": torch.rand(3, 4), "labels": torch.tensor([0, 1, 2])}, "here", num_labels=3)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "no rows in here"),
        (GOOD, {"at_least": 4}, "3 rows in here, fewer than one batch of 4"),
        (GOOD, {"image": "img"}, "no column 'img' in here.*image, label"),
        (
            GOOD,
            {"image": "label"},
            "Row 0 of here should have a picture in column 'label' but holds a value of type int",
        ),
        ([{"image": None}], {"image": "image"}, "has no picture"),
        (
            [GOOD[0], {"image": picture(size=(32, 28)), "label": 0}],
            {"image": "image", "size": (28, 28)},
            "Row 1.*28x32 pixels",
        ),
        ([{"image": picture("RGB")}], {"image": "image", "modes": ["L"]}, "mode 'RGB', but the model takes L"),
        (GOOD, {"label": "label", "num_labels": 9}, "label 9, but the model has 9 classes.*at least 10"),
        ([{"label": -1}], {"label": "label", "num_labels": 2}, "holds -1.*hidden or missing"),
        ([{"label": "cat"}], {"label": "label"}, "whole numbers but holds 'cat'"),
    ],
)
def test_rows_that_do_not_fit(rows: list, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_rows(rows, "here", **options)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            {"pixel_values": torch.tensor([[1.0, float("nan")], [float("inf"), 0.0]])},
            "'pixel_values' holds 2 numbers that are NaN",
        ),
        ({"labels": torch.tensor([0, 10])}, "label 10, but the model has 10 classes"),
        ({"labels": torch.tensor([-1, 3])}, "hidden or missing"),
    ],
)
def test_batches_that_do_not_fit(batch: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_batch(batch, "here", num_labels=10)


def test_a_stream_looks_at_its_first_batch() -> None:
    def transform(rows: list[dict]) -> dict:
        return {"pixel_values": torch.full((len(rows), 2), float("nan"))}

    stream = open_source(DataArguments(dataset="embedded:digits")).stream("train", transform, 8, seed=0)
    with pytest.raises(UserError, match="NaN or infinite in the first batch of split 'train' of 'embedded:digits'"):
        next(stream)

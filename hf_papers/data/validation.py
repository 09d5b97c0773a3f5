"""Looks at the first rows and batches of a data set and says in words what would make a training fail or learn nonsense."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from hf_papers.data.rows import missing_column
from hf_papers.errors import UserError


def check_batch(batch: dict[str, Any], where: str, *, num_labels: int | None = None, label: str = "labels") -> None:
    """Raise `UserError` when a batch holds NaN or infinite numbers, or labels that are not 0 to `num_labels` - 1.

    `where` names the data in the message, e.g. "split 'train' of 'ylecun/mnist'". -1 and -100 are no classes either: they
    mark hidden or ignored labels, which must not reach a loss by accident.
    """
    for name, values in batch.items():
        if isinstance(values, torch.Tensor) and values.is_floating_point() and not bool(torch.isfinite(values).all()):
            bad = int((~torch.isfinite(values)).sum())
            raise UserError(
                f"'{name}' holds {bad:,} numbers that are NaN or infinite in the first batch of {where}: mend or filter the "
                f"data, or the preprocessing that divides by zero."
            )
    labels = batch.get(label)
    if num_labels is not None and isinstance(labels, torch.Tensor) and labels.numel():
        check_labels([int(labels.min()), int(labels.max())], num_labels, label, where)


def check_labels(labels: Sequence[int], num_labels: int, column: str, where: str) -> None:
    """Raise `UserError` unless all labels are whole numbers from 0 to `num_labels` - 1."""
    for value in labels:
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"'{column}' of {where} should hold whole numbers but holds {value!r}.")
    low, high = min(labels), max(labels)
    if low < 0:
        raise UserError(
            f"'{column}' of {where} holds {low}: the labels of this split are hidden or missing, it cannot be learnt from "
            f"or scored on. Choose another split."
        )
    if high >= num_labels:
        raise UserError(
            f"'{column}' of {where} holds the label {high}, but the model has {num_labels} classes (0 to {num_labels - 1}): "
            f"set --num_labels to at least {high + 1}, or choose another column with --columns {column}=THEIRS."
        )


def check_rows(
    rows: Sequence[dict[str, Any]],
    where: str,
    *,
    image: str | None = None,
    size: tuple[int, int] | None = None,
    modes: Collection[str] | None = None,
    label: str | None = None,
    num_labels: int | None = None,
    at_least: int = 1,
) -> None:
    """Raise `UserError` when rows are not what a model needs.

    `image`: the column that must hold PIL images, of `size` (height, width) in pixels and one of the PIL `modes`;
    `label`: the column of integer labels below `num_labels`; `at_least`: how many rows are needed, e.g. a batch.
    """
    if not rows:
        raise UserError(f"There are no rows in {where}.")
    if len(rows) < at_least:
        raise UserError(f"There are {len(rows)} rows in {where}, fewer than one batch of {at_least}.")
    for column in (image, label):
        if column is not None and column not in rows[0]:
            raise UserError(missing_column(column, list(rows[0]), where))
    if image is not None:
        for number, row in enumerate(rows):
            _check_image(row[image], f"Row {number} of {where}", image, size, modes)
    if label is not None:
        labels = [row[label] for row in rows]
        check_labels(
            labels, num_labels if num_labels is not None else max(_integers(labels), default=0) + 1, label, where
        )


def _integers(values: Sequence[Any]) -> list[int]:
    return [value for value in values if isinstance(value, int)]


def _check_image(
    picture: Any, whose: str, column: str, size: tuple[int, int] | None, modes: Collection[str] | None
) -> None:
    if picture is None:
        raise UserError(f"{whose} has no picture in column '{column}': choose another split, or filter such rows.")
    if not hasattr(picture, "getbands"):  # what only PIL images have
        raise UserError(
            f"{whose} should have a picture in column '{column}' but holds a value of type {type(picture).__name__}: name "
            f"the column of pictures with --columns {column}=THEIRS."
        )
    if size is not None and (picture.height, picture.width) != tuple(size):
        raise UserError(
            f"{whose} has a picture of {picture.height}x{picture.width} pixels (height x width), but the model takes "
            f"{size[0]}x{size[1]}: set the model's image size, or resize in the preprocessing."
        )
    if modes is not None and picture.mode not in modes:
        raise UserError(
            f"{whose} has a picture of mode '{picture.mode}', but the model takes {' or '.join(sorted(modes))}: set the "
            f"model's number of channels, or convert the pictures."
        )

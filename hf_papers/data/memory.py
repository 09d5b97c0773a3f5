"""Preprocessed rows kept in memory: contiguous tensors that a batch is gathered from by row numbers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch

from hf_papers.errors import UserError


# Name -> a tensor whose first axis is the row, or a list with one entry a row where rows differ in shape.
Batch = dict[str, Any]


def batch_rows(batch: Batch) -> int:
    """How many rows a batch has. Raises `UserError` when its columns disagree."""
    lengths = {name: len(values) for name, values in batch.items()}
    if not lengths:
        raise UserError("The preprocessing returned no columns at all.")
    if len(set(lengths.values())) > 1:
        described = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UserError(f"The preprocessing must return as many entries as rows in every column, not {described}.")
    return next(iter(lengths.values()))


def select(batch: Batch, numbers: torch.Tensor) -> Batch:
    """The rows `numbers` (m,) of a batch, as a batch that shares no memory with it."""
    return {
        name: values.index_select(0, numbers)
        if isinstance(values, torch.Tensor)
        else [values[i] for i in numbers.tolist()]
        for name, values in batch.items()
    }


def cut(batch: Batch, start: int, stop: int) -> Batch:
    """The rows from `start` up to `stop` of a batch, as a batch that shares no memory with it."""
    return {
        name: values[start:stop].clone() if isinstance(values, torch.Tensor) else list(values[start:stop])
        for name, values in batch.items()
    }


def join(batches: Sequence[Batch]) -> Batch:
    """Batches one after another as one. Raises `UserError` when rows of one column differ in shape or type."""
    for batch in batches[1:]:
        check_alike(batches[0], batch)
    return {
        name: torch.cat([batch[name] for batch in batches])
        if isinstance(values, torch.Tensor)
        else [item for batch in batches for item in batch[name]]
        for name, values in batches[0].items()
    }


def check_alike(first: Batch, other: Batch) -> None:
    """Raise `UserError` unless rows of both fit into one tensor (or list) per column."""
    if first.keys() != other.keys():
        raise UserError(
            f"The preprocessing returned columns {sorted(first)} for some rows and {sorted(other)} for others."
        )
    for name, values in first.items():
        mine, theirs = _row_kind(values), _row_kind(other[name])
        if mine != theirs:
            raise UserError(
                f"The preprocessing returned '{name}' as {mine} for some rows and as {theirs} for others: bring all rows "
                f"to one shape and type, or return a list with one entry a row."
            )


def _row_kind(values: Any) -> str:
    if isinstance(values, torch.Tensor):
        return f"{str(values.dtype).removeprefix('torch.')} rows of shape {tuple(values.shape[1:])}"
    return "a list"


def bytes_of(batch: Batch) -> int:
    """What a batch takes in memory. Lists are counted by their entries, one level deep."""
    return sum(
        values.nbytes if isinstance(values, torch.Tensor) else sum(_item_bytes(item) for item in values)
        for values in batch.values()
    )


def _item_bytes(item: Any) -> int:
    return sys.getsizeof(item) + (item.nbytes if isinstance(item, torch.Tensor) else 0)


class RowStore:
    """Rows side by side in one tensor per column, in the order they came or at the numbers they were given."""

    def __init__(self, capacity: int | None = None) -> None:
        """`capacity`: how many rows to expect. More are taken too, at the price of a copy."""
        self._capacity = capacity or 0
        self._columns: Batch = {}
        self._length = 0
        self.nbytes = 0  # of the rows that are there

    def __len__(self) -> int:
        return self._length

    def append(self, batch: Batch) -> None:
        """Copy the rows of `batch` behind those that are there."""
        count = batch_rows(batch)
        self._make_room(batch, self._length + count)
        for name, values in batch.items():
            if isinstance(values, torch.Tensor):
                self._columns[name][self._length : self._length + count] = values
            else:
                self._columns[name].extend(values)
        self._length += count
        self.nbytes += bytes_of(batch)

    def all(self) -> Batch:
        """Every row, without a copy."""
        return {
            name: values[: self._length] if isinstance(values, torch.Tensor) else values
            for name, values in self._columns.items()
        }

    def _make_room(self, batch: Batch, needed: int) -> None:
        if not self._columns:
            self._capacity = max(self._capacity, needed)
            self._columns = {name: _room_for(values, self._capacity) for name, values in batch.items()}
            return
        check_alike(self._columns, batch)
        if needed > self._capacity:
            self._capacity = max(needed, self._capacity + self._capacity // 2)
            for name, values in self._columns.items():
                if isinstance(values, torch.Tensor):
                    grown = _room_for(values, self._capacity)
                    grown[: self._length] = values[: self._length]
                    self._columns[name] = grown


class RowCache:
    """Rows at numbers of their own, filled in any order."""

    def __init__(self, num_rows: int) -> None:
        self._columns: Batch = {}
        self._present = torch.zeros(num_rows, dtype=torch.bool)
        self._missing = num_rows

    @property
    def is_full(self) -> bool:
        return self._missing == 0

    def missing(self) -> torch.Tensor:
        """The numbers (m,) of the rows that are not there."""
        return torch.nonzero(~self._present).flatten()

    def has(self, numbers: torch.Tensor) -> bool:
        """Whether all the rows `numbers` (m,) are there."""
        return self._missing == 0 or bool(self._present[numbers].all())

    def put(self, numbers: torch.Tensor, batch: Batch) -> None:
        """Copy the rows of `batch` to their `numbers` (m,)."""
        if not self._columns:
            self._columns = {
                name: _room_for(values, len(self._present))
                if isinstance(values, torch.Tensor)
                else [None] * len(self._present)
                for name, values in batch.items()
            }
        check_alike(self._columns, batch)
        for name, values in batch.items():
            if isinstance(values, torch.Tensor):
                self._columns[name].index_copy_(0, numbers, values)
            else:
                for number, value in zip(numbers.tolist(), values, strict=True):
                    self._columns[name][number] = value
        self._missing -= len(numbers) - int(self._present[numbers].sum())
        self._present[numbers] = True

    def get(self, numbers: torch.Tensor) -> Batch:
        """The rows `numbers` (m,), which must be there."""
        return select(self._columns, numbers)


def _room_for(values: Any, rows: int) -> Any:
    """Room for `rows` rows like those in `values`. The system hands out the memory only as it is filled."""
    return values.new_empty((rows, *values.shape[1:])) if isinstance(values, torch.Tensor) else []

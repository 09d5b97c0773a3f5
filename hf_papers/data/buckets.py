"""Batches of rows of about the same length, so that little of a batch is padding.

A stream hands out ragged rows in lists. `BucketedStream` takes a pool of its batches, sorts the rows of the pool by
length, cuts them into batches again and hands these out in a random order, each padded to its own longest row.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_papers.data.memory import Batch, batch_rows, join, select
from hf_papers.data.stream import Stream, derived_generator
from hf_papers.errors import UserError


@dataclass(frozen=True)
class Padding:
    """How ragged columns become tensors.

    values: ragged column -> what its rows are filled up with; a row is a sequence of whole numbers. Other columns pass.
    length: every batch is filled up to this many positions; none: to its longest row.
    multiple: lengths are rounded up to a multiple of this; 8 suits tensor cores.
    mask: a column of this name is added, (rows, length) of int64: 1 where the first of the columns has an entry.
    """

    values: dict[str, int]
    length: int | None = None
    multiple: int = 1
    mask: str | None = None

    def __post_init__(self) -> None:
        if not self.values:
            raise UserError("Which columns are ragged? Padding needs at least one, with the value to fill it up with.")
        if self.multiple < 1 or (self.length is not None and self.length < 1):
            raise UserError("Rows are padded to a length, and to a multiple, of at least 1.")

    def lengths(self, batch: Batch) -> torch.Tensor:
        """Entries of every row (rows,): of its longest ragged column."""
        columns = [torch.tensor([len(row) for row in batch[name]], dtype=torch.long) for name in self.values]
        return torch.stack(columns).amax(0)

    def __call__(self, batch: Batch) -> Batch:
        """The batch with its ragged columns as tensors (rows, length) of int64."""
        length = self._length(int(self.lengths(batch).max()))
        padded = {
            name: pad_rows(values, self.values[name], length) if name in self.values else values
            for name, values in batch.items()
        }
        if self.mask is not None:
            first = next(iter(self.values))
            entries = torch.tensor([len(row) for row in batch[first]])
            padded[self.mask] = (torch.arange(length) < entries[:, None]).long()
        return padded

    def _length(self, longest: int) -> int:
        if self.length is not None:
            if longest > self.length:
                raise UserError(f"A row of {longest} entries does not fit into the {self.length} it is padded to.")
            return self.length
        return -(-longest // self.multiple) * self.multiple


def pad_rows(rows: list[Any], value: int, length: int) -> torch.Tensor:
    """Sequences of whole numbers as one tensor (rows, length) of int64, filled up with `value`."""
    padded = np.full((len(rows), length), value, dtype=np.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return torch.from_numpy(padded)


class BucketedStream(Iterator[Batch]):
    """Endless padded batches out of an inner stream of ragged ones; it continues exactly where it was left.

    A pool holds exactly the rows of `pool` batches of the inner stream, and never of two epochs, so that nothing is seen
    more often than the inner stream says. With a pool of one batch the inner stream's batches are padded as they are.
    """

    def __init__(self, inner: Stream, padding: Padding, pool: int = 50) -> None:
        if pool < 1:
            raise UserError(f"A pool has at least 1 batch, not {pool}.")
        self.inner, self.padding, self.pool = inner, padding, pool
        self.epoch = inner.epoch
        self._pools = 0  # that were begun before the present one
        self._done = 0  # batches of the present pool that were handed out
        self._start = inner.state_dict()  # where the inner stream stood before the present pool
        self._batches: list[torch.Tensor] = []  # row numbers of the present pool, batch by batch
        self._rows: Batch = {}
        self._ahead: tuple[dict[str, Any], Batch, int] | None = None  # read, but of the next epoch

    def __next__(self) -> Batch:
        if self._done == len(self._batches):
            if self._batches:
                self._pools += 1
            self._fill()
        batch = self._hand_out()
        self._done += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position behind the last batch, in plain JSON values."""
        return {
            "inner": copy.deepcopy(self._start),
            "pool": self.pool,
            "pools": self._pools,
            "done": self._done,
            "epoch": self.epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue behind the batch that was the last one when `state` was taken."""
        if state["pool"] != self.pool:
            raise UserError(
                f"The stream of {self.inner.where} cannot continue: its pools had {state['pool']} batches when the "
                f"checkpoint was written and have {self.pool} now. Resume with the settings of the run, or start a new one."
            )
        self.inner.load_state_dict(state["inner"])
        self._pools, self._start, self.epoch = state["pools"], copy.deepcopy(state["inner"]), state["epoch"]
        self._batches, self._rows, self._ahead, self._done = [], {}, None, 0
        if state["done"]:
            self._fill()
            self._done = state["done"]

    def close(self) -> None:
        """Let the inner stream's workers and files go. The stream can still be continued by its state."""
        self.inner.close()

    def _fill(self) -> None:
        """Read the next pool and decide its batches."""
        self._start, first, epoch = self._ahead or self._read()
        self._ahead = None
        pool = [first]
        while len(pool) < self.pool:
            before, batch, of_epoch = self._read()
            if of_epoch != epoch:
                self._ahead = before, batch, of_epoch
                break
            pool.append(batch)
        self.epoch, self._done = epoch, 0
        self._rows = join(pool)
        self._batches = self._cut([batch_rows(batch) for batch in pool])

    def _read(self) -> tuple[dict[str, Any], Batch, int]:
        """The inner stream's state before its next batch, that batch, and its epoch."""
        before = self.inner.state_dict()
        batch = next(self.inner)
        return before, batch, self.inner.epoch

    def _cut(self, sizes: list[int]) -> list[torch.Tensor]:
        """The pool's row numbers in batches of the inner stream's sizes, shortest rows together, batches in any order."""
        order = torch.arange(sum(sizes))
        if len(sizes) == 1:
            return [order]
        settings = self.inner.settings
        generator = derived_generator(settings.seed, settings.rank, self.epoch, self._pools)
        lengths = self.padding.lengths(self._rows)
        # Rows of one length are in the inner stream's random order, because the sort is stable.
        by_length = lengths.sort(stable=True).indices
        batches = by_length.split(sizes)
        return [batches[number] for number in torch.randperm(len(batches), generator=generator).tolist()]

    def _hand_out(self) -> Batch:
        return self.padding(select(self._rows, self._batches[self._done]))


__all__ = ["BucketedStream", "Padding", "pad_rows"]

"""Batches of rows of about the same length, so that little of a batch is padding.

A stream hands out ragged rows in lists. `BucketedStream` takes a pool of its batches, sorts the rows of the pool by
length, cuts them into batches again, of as many rows as before or of so many tokens, and hands these out in a random
order, each padded to its own longest row.
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
    apart: a ragged column is filled up to its own longest row, and not to that of all of them.
    mask: a column of this name is added, (rows, length) of int64: 1 where the first of the columns has an entry.
    """

    values: dict[str, int]
    length: int | None = None
    multiple: int = 1
    apart: bool = False
    mask: str | None = None

    def __post_init__(self) -> None:
        if not self.values:
            raise UserError("Which columns are ragged? Padding needs at least one, with the value to fill it up with.")
        if self.multiple < 1 or (self.length is not None and self.length < 1):
            raise UserError("Rows are padded to a length, and to a multiple, of at least 1.")

    def lengths(self, batch: Batch) -> torch.Tensor:
        """Entries of every row (rows,): of its longest ragged column."""
        return torch.stack([entries(batch[name]) for name in self.values]).amax(0)

    def __call__(self, batch: Batch) -> Batch:
        """The batch with its ragged columns as tensors (rows, length) of int64."""
        longest = {name: int(entries(batch[name]).max()) for name in self.values}
        lengths = {name: self._length(own if self.apart else max(longest.values())) for name, own in longest.items()}
        padded = {
            name: pad_rows(values, self.values[name], lengths[name]) if name in self.values else values
            for name, values in batch.items()
        }
        if self.mask is not None:
            first = next(iter(self.values))
            padded[self.mask] = (torch.arange(lengths[first]) < entries(batch[first])[:, None]).long()
        return padded

    def _length(self, longest: int) -> int:
        if self.length is not None:
            if longest > self.length:
                raise UserError(f"A row of {longest} entries does not fit into the {self.length} it is padded to.")
            return self.length
        return -(-longest // self.multiple) * self.multiple


def entries(rows: list[Any]) -> torch.Tensor:
    """How long each of some sequences is (rows,)."""
    return torch.tensor([len(row) for row in rows], dtype=torch.long)


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

    max_tokens: a batch has as many rows as fit when each is as long as its longest, and at least one; none: as many as the
    inner stream's. How many batches a pool makes then depends on its rows, so processes do not end an epoch together.
    Rows without any entry are left out: that is how a preprocessing says that a row is not to be learnt from.
    """

    def __init__(self, inner: Stream, padding: Padding, pool: int = 50, max_tokens: int | None = None) -> None:
        if pool < 1:
            raise UserError(f"A pool has at least 1 batch, not {pool}.")
        if max_tokens is not None and max_tokens < 1:
            raise UserError(f"A batch has at least 1 token, not {max_tokens}.")
        self.inner, self.padding, self.pool, self.max_tokens = inner, padding, pool, max_tokens
        self.epoch = inner.epoch
        self._pools = 0  # that were begun before the present one
        self._done = 0  # batches of the present pool that were handed out
        self._start = inner.state_dict()  # where the inner stream stood before the present pool
        self._is_filled = False
        self._batches: list[torch.Tensor] = []  # row numbers of the present pool, batch by batch
        self._rows: Batch = {}
        self._ahead: tuple[dict[str, Any], Batch, int] | None = None  # read, but of the next epoch

    def __next__(self) -> Batch:
        began = self.epoch
        while self._done == len(self._batches):
            self._pools += self._is_filled
            self._fill()
            if not self._batches and self.epoch > began + 1:
                raise UserError(f"There is nothing to learn from in {self.inner.where}: every row of it is left out.")
        batch = self._hand_out()
        self._done += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position behind the last batch, in plain JSON values."""
        return {
            "inner": copy.deepcopy(self._start),
            "pool": self.pool,
            "max_tokens": self.max_tokens,
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
        if state.get("max_tokens") != self.max_tokens:
            raise UserError(
                f"The stream of {self.inner.where} cannot continue: its batches had {state.get('max_tokens')} tokens when "
                f"the checkpoint was written and have {self.max_tokens} now. Resume with the settings of the run, or "
                "start a new one."
            )
        self.inner.load_state_dict(state["inner"])
        self._pools, self._start, self.epoch = state["pools"], copy.deepcopy(state["inner"]), state["epoch"]
        self._batches, self._rows, self._ahead, self._done, self._is_filled = [], {}, None, 0, False
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
        self.epoch, self._done, self._is_filled = epoch, 0, True
        self._rows = join(pool)
        self._batches = self._cut(batch_rows(first), len(pool))

    def _read(self) -> tuple[dict[str, Any], Batch, int]:
        """The inner stream's state before its next batch, that batch, and its epoch."""
        before = self.inner.state_dict()
        batch = next(self.inner)
        return before, batch, self.inner.epoch

    def _cut(self, size: int, pool: int) -> list[torch.Tensor]:
        """The row numbers of a pool of `pool` batches of `size` rows, in batches anew: like lengths together, any order."""
        lengths = self.padding.lengths(self._rows)
        if pool == 1 and self.max_tokens is None:
            rows = lengths.nonzero().flatten()
            return [rows] if len(rows) else []
        settings = self.inner.settings
        generator = derived_generator(settings.seed, settings.rank, self.epoch, self._pools)
        # Rows of one length are in the inner stream's random order, because the sort is stable.
        by_length = lengths.sort(stable=True).indices[int((lengths == 0).sum()) :]
        sizes = size if self.max_tokens is None else rows_that_fit(lengths[by_length].tolist(), self.max_tokens)
        batches = by_length.split(sizes)
        return [
            batches[number] for number in torch.randperm(len(batches), generator=generator).tolist() if len(by_length)
        ]

    def _hand_out(self) -> Batch:
        return self.padding(select(self._rows, self._batches[self._done]))


def rows_that_fit(lengths: list[int], max_tokens: int) -> list[int]:
    """Rows of each batch, for rows in ascending order of length: the longest times their number is at most `max_tokens`."""
    sizes, size = [], 0
    for length in lengths:
        if size and (size + 1) * length > max_tokens:
            sizes.append(size)
            size = 0
        size += 1
    return [*sizes, size] if size else []


__all__ = ["BucketedStream", "Padding", "pad_rows"]

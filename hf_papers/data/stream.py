"""Endless streams of batches that continue exactly where they were left.

Two kinds, one for each way rows can be had:

`IndexedStream` - rows by number (embedded data, downloaded data sets). Every epoch is a full permutation of all rows;
process r of n takes every n-th of it. A position is (epoch, batch), nothing else.

`BlockStream` - rows in order (streamed data sets). A datasets-style shuffle buffer would have to be saved with the
checkpoint, or be lost; so rows are shuffled in *blocks* instead: read `shuffle_buffer_size` rows as they are stored,
permute them by a generator that only (seed, epoch, block, process, worker) decide, then decode and preprocess batch by
batch. A position is where the block started and how many of its batches are done; to continue, the block is read again.
What fits the memory budget is kept, and from the second epoch on drawn as one full permutation. What does not fit is
let go, and is streamed again every epoch with its shards in another order.
"""

from __future__ import annotations

import abc
import copy
import itertools
import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from hf_papers.data.memory import Batch, RowCache, RowStore, batch_rows, bytes_of, cut, join, select
from hf_papers.data.rows import START, IndexedRows, Part, Piece, Place, ShardedRows
from hf_papers.data.validation import check_batch
from hf_papers.errors import UserError


Transform = Callable[[list[dict[str, Any]]], Batch]
Position = dict[str, Any]

PREPROCESS_ROWS = 128  # batches smaller than this are preprocessed several at a time


@dataclass(frozen=True)
class StreamSettings:
    """What decides which rows come in which order, and how much of them may be kept. `memory_budget` in bytes."""

    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    shuffle: bool = True
    drop_last: bool = True
    shuffle_buffer_size: int = 10_000
    memory_budget: int = 2_000_000_000
    num_workers: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"The batch size must be at least 1, not {self.batch_size}.")
        if not 0 <= self.rank < self.world_size:
            raise UserError(f"There is no process {self.rank} among {self.world_size}.")
        if self.seed < 0:
            raise UserError(f"The seed must be 0 or more, not {self.seed}.")

    def batches_in(self, rows: int) -> int:
        """Batches of an epoch of `rows` rows."""
        return rows // self.batch_size if self.drop_last else -(-rows // self.batch_size)


def derived_generator(*numbers: int) -> torch.Generator:
    """A generator that these numbers (all >= 0) decide, and nothing that was drawn elsewhere."""
    seed = np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed >> np.uint64(1)))


def preprocess(transform: Transform, rows: list[dict[str, Any]], where: str) -> Batch:
    """`transform(rows)`, its errors as sentences that say which data it failed on."""
    try:
        batch = transform(rows)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"Rows of {where} cannot be preprocessed: {reason}") from error
    if batch_rows(batch) != len(rows):
        raise UserError(f"The preprocessing made {batch_rows(batch)} rows out of {len(rows)} rows of {where}.")
    return batch


class Stream(Iterator[Batch]):
    """Endless batches {name: tensor (batch_size, ...)}, or lists where rows differ in shape.

    `epoch`: passes over the data that were complete before the last batch. `rows_per_epoch`: rows that this process
    reads in one of them, `None` until that is known; processes that differ in it run out of step.
    """

    # Settings that a resumed stream must share, because they decide the order of rows.
    decisive: tuple[str, ...] = ("batch_size", "seed", "rank", "world_size", "shuffle", "drop_last")

    def __init__(self, where: str, fingerprint: str, transform: Transform, settings: StreamSettings) -> None:
        self.where, self.fingerprint, self.transform, self.settings = where, fingerprint, transform, settings
        self.epoch = 0
        self.rows_per_epoch: int | None = None
        self._position = self._start()
        self._batches: Generator[Batch, None, None] | None = None
        self._checked = False

    @property
    def batches_per_epoch(self) -> int | None:
        """Batches of one pass over the data; `None` until that is known."""
        return None if self.rows_per_epoch is None else self.settings.batches_in(self.rows_per_epoch)

    @property
    @abc.abstractmethod
    def in_memory(self) -> bool:
        """Whether batches now come out of memory alone."""

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = self._run(self._position)
        try:
            batch = next(self._batches)
        except BaseException:
            self.close()  # whoever tries again continues from the last batch that was handed out
            raise
        if not self._checked:
            check_batch(batch, self.where)
            self._checked = True
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position behind the last batch, in plain JSON values."""
        return {
            "settings": self._decisive_settings(),
            "fingerprint": self.fingerprint,
            "position": copy.deepcopy(self._position),
            "rows_per_epoch": self.rows_per_epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue behind the batch that was the last one when `state` was taken.

        Raises `UserError` when the data or a setting that decides the order of rows is not the one of that time.
        """
        for name, now in self._decisive_settings().items():
            then = state["settings"].get(name)
            if then != now:
                raise UserError(
                    f"The stream of {self.where} cannot continue: {name} was {then} when the checkpoint was written and "
                    f"is {now} now. Resume with the settings of the run, or start a new one."
                )
        if state["fingerprint"] != self.fingerprint:
            raise UserError(
                f"The stream of {self.where} cannot continue: the files of the data set have changed since the checkpoint "
                f"was written. Give the --revision that the run began with, or start a new run."
            )
        self.close()
        self._position = copy.deepcopy(state["position"])
        self.epoch = self._position["epoch"]
        self.rows_per_epoch = state["rows_per_epoch"]

    def close(self) -> None:
        """Let workers and open files go. The stream can still be continued."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _decisive_settings(self) -> dict[str, Any]:
        return {name: getattr(self.settings, name) for name in self.decisive}

    @abc.abstractmethod
    def _start(self) -> Position:
        """The position before the first batch."""

    @abc.abstractmethod
    def _run(self, position: Position) -> Generator[Batch, None, None]:
        """The batches behind `position`. Sets `epoch` and `_position` before it hands out each one."""

    def _too_few(self, rows: int, whose: str) -> UserError:
        if rows == 0 and self.settings.world_size == 1:
            return UserError(f"There are no rows in {self.where}.")
        return UserError(
            f"{whose} has {rows} rows of {self.where}, fewer than one batch of {self.settings.batch_size}: take a smaller "
            f"batch size, or fewer processes than {self.settings.world_size}."
        )


# --------------------------------------------------------------------------------------------------------- workers


def _as_is(message: Any) -> Any:
    return message


class _Messages(IterableDataset):
    """What a worker sends: ("batch", ...) and the like, or ("error", sentence), which `messages` raises here again."""

    @abc.abstractmethod
    def messages(self) -> Iterator[tuple[Any, ...]]:
        """What happens in the worker."""

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self.messages()
        except UserError as error:  # DataLoader would bury the sentence in a traceback
            yield ("error", str(error))


class _Worker(Iterator[tuple[Any, ...]]):
    """`messages.messages()`, run ahead in a process of its own, which ends with this object."""

    def __init__(self, messages: _Messages) -> None:
        # With a generator of its own the loader draws nothing from the global one, whose state belongs to the training.
        loader = DataLoader(messages, batch_size=None, num_workers=1, collate_fn=_as_is, generator=torch.Generator())
        self._loader = [iter(loader)]
        # A stream and the generator that fills it refer to each other, so that only the collector of cycles finds a
        # forgotten one. Were the loader part of that cycle, its queues could be gone before it tells its process to end,
        # and it would wait five seconds for a process that hears nothing. The callback keeps it out.
        weakref.finalize(self, self._loader.clear)

    def __next__(self) -> tuple[Any, ...]:
        message = next(self._loader[0])
        if message[0] == "error":
            raise UserError(message[1])
        return message


# -------------------------------------------------------------------------------------------------- rows by number


@dataclass(frozen=True)
class _Plan:
    """Which rows are in which batch, for a process."""

    num_rows: int
    settings: StreamSettings

    @property
    def rows_per_epoch(self) -> int:
        return self.num_rows // self.settings.world_size

    @property
    def batches_per_epoch(self) -> int:
        return self.settings.batches_in(self.rows_per_epoch)

    def order(self, epoch: int) -> torch.Tensor:
        """This process's row numbers (rows_per_epoch,) of an epoch."""
        settings = self.settings
        if settings.shuffle:
            order = torch.randperm(self.num_rows, generator=derived_generator(settings.seed, epoch))
        else:
            order = torch.arange(self.num_rows)
        shared = self.rows_per_epoch * settings.world_size  # the same number for every process
        return order[:shared][settings.rank :: settings.world_size].contiguous()

    def numbers(self, order: torch.Tensor, batch: int) -> torch.Tensor:
        return order[batch * self.settings.batch_size : (batch + 1) * self.settings.batch_size]


class _IndexedMessages(_Messages):
    """("batch", rows) for every `step`-th batch from number `start` on, counted through all epochs."""

    def __init__(self, rows: IndexedRows, transform: Transform, plan: _Plan, start: int, step: int) -> None:
        self.rows, self.transform, self.plan, self.start, self.step = rows, transform, plan, start, step

    def messages(self) -> Iterator[tuple[Any, ...]]:
        epoch, order = -1, torch.empty(0)
        for count in itertools.count(self.start, self.step):
            if count // self.plan.batches_per_epoch != epoch:
                epoch = count // self.plan.batches_per_epoch
                order = self.plan.order(epoch)
            numbers = self.plan.numbers(order, count % self.plan.batches_per_epoch)
            yield "batch", preprocess(self.transform, self.rows.take(numbers.numpy()), self.rows.mapping.where)


class IndexedStream(Stream):
    """Batches of rows that can be had by number. What was preprocessed once is kept where it fits the budget.

    The order depends neither on the number of workers nor on what is kept.
    """

    def __init__(self, rows: IndexedRows, transform: Transform, settings: StreamSettings) -> None:
        super().__init__(rows.mapping.where, rows.fingerprint, transform, settings)
        self.rows = rows
        self.plan = _Plan(len(rows), settings)
        self.rows_per_epoch = self.plan.rows_per_epoch
        if self.plan.batches_per_epoch == 0:
            raise self._too_few(self.rows_per_epoch, "Every process")
        self._cache = RowCache(len(rows)) if settings.memory_budget else None

    @property
    def in_memory(self) -> bool:
        return self._cache is not None and self._cache.is_full

    def _start(self) -> Position:
        return {"epoch": 0, "batches": 0}

    def _run(self, position: Position) -> Generator[Batch, None, None]:
        done = position["batches"]
        workers = self._workers(position["epoch"], done) if not self.in_memory else None
        for epoch in itertools.count(position["epoch"]):
            order = self.plan.order(epoch)
            position = {"epoch": epoch, "batches": done}
            for numbers in order.split(self.settings.batch_size)[done : self.plan.batches_per_epoch]:
                batch = next(workers) if workers is not None else self._batch(numbers)
                if workers is not None:
                    self._keep(numbers, batch)
                position["batches"] += 1
                self.epoch, self._position = epoch, position
                yield batch
            done = 0
            if self._complete():
                workers = None

    def _batch(self, numbers: torch.Tensor) -> Batch:
        if self._cache is not None and self._cache.has(numbers):
            return self._cache.get(numbers)
        batch = preprocess(self.transform, self.rows.take(numbers.numpy()), self.where)
        self._keep(numbers, batch)
        return batch

    def _keep(self, numbers: torch.Tensor, batch: Batch) -> None:
        if self._cache is None:
            return
        if bytes_of(batch) / len(numbers) * len(self.rows) > self.settings.memory_budget:
            self._cache = None
        else:
            self._cache.put(numbers, batch)

    def _complete(self) -> bool:
        """At the end of an epoch, fetch the few rows that were in no batch yet; whether everything is in memory then."""
        if self._cache is None:
            return False
        missing = self._cache.missing()
        if len(missing) * 10 <= len(self.rows):
            for numbers in missing.split(PREPROCESS_ROWS):
                self._batch(numbers)
        return self.in_memory

    def _workers(self, epoch: int, done: int) -> Iterator[Batch] | None:
        """Batches in order, made by the workers in turn; `None` without workers."""
        count = self.settings.num_workers
        if count == 0:
            return None
        start = epoch * self.plan.batches_per_epoch + done
        return _in_turn(
            [
                _Worker(_IndexedMessages(self.rows, self.transform, self.plan, start + worker, count))
                for worker in range(count)
            ]
        )


def _in_turn(workers: list[Iterator[tuple[Any, ...]]]) -> Iterator[Batch]:
    for worker in itertools.cycle(workers):
        yield next(worker)[1]


# --------------------------------------------------------------------------------------------------- rows in order


def _part_start() -> dict[str, Any]:
    """Where a worker begins an epoch: number of the block, place and rows before it, batches of it that are done."""
    return {"block": 0, "place": list(START), "rows": 0, "done": 0}


class _BlockMessages(_Messages):
    """One worker's share of the rows, as ("batch", rows, position behind it), and ("rest", rows or None, how many rows
    the epoch had) at the end of an epoch: what is left over of it once no batch can be filled."""

    def __init__(
        self,
        rows: ShardedRows,
        transform: Transform,
        settings: StreamSettings,
        part: Part,
        epoch: int,
        start: dict[str, Any],
        one_epoch: bool,
    ) -> None:
        self.rows, self.transform, self.settings, self.part = rows, transform, settings, part
        self.epoch, self.start, self.one_epoch = epoch, start, one_epoch

    def messages(self) -> Iterator[tuple[Any, ...]]:
        start = self.start
        for epoch in itertools.count(self.epoch):
            yield from self._epoch(epoch, start)
            if self.one_epoch:
                return
            start = _part_start()

    @property
    def block_rows(self) -> int:
        """Rows of a block: whole batches, so that only the last block of an epoch leaves rows over."""
        wanted = self.settings.shuffle_buffer_size if self.settings.shuffle else PREPROCESS_ROWS
        return max(1, wanted // self.settings.batch_size) * self.settings.batch_size

    def _epoch(self, epoch: int, start: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
        size, done, rows = self.settings.batch_size, start["done"], start["rows"]
        rest: Batch | None = None
        place: Place = tuple(start["place"])
        for number, (block, end) in enumerate(self._blocks(epoch, place), start["block"]):
            order = self._order(epoch, number, len(block))
            full = len(block) // size
            at_once = max(1, PREPROCESS_ROWS // size)
            for first in range(done, full, at_once):
                last = min(first + at_once, full)
                made = self._preprocess(block, order[first * size : last * size], place)
                for count in range(first, last):
                    batch = (
                        made if last - first == 1 else cut(made, (count - first) * size, (count - first + 1) * size)
                    )
                    yield "batch", batch, {"block": number, "place": list(place), "rows": rows, "done": count + 1}
            if len(block) > full * size:
                rest = self._preprocess(block, order[full * size :], place)
            rows, place, done = rows + len(block), end, 0
        yield "rest", rest, rows

    def _blocks(self, epoch: int, place: Place) -> Iterator[tuple[Any, Place]]:
        """Tables of `block_rows` rows (the last one may be shorter), each with the place behind it."""
        seed = (self.settings.seed, epoch) if self.settings.shuffle else None
        waiting: list[Piece] = []
        room = self.block_rows
        for piece in self.rows.read(self.part, shuffle_seed=seed, place=place):
            while len(piece) >= room:
                block, piece = [*waiting, piece.take(slice(0, room))], piece.take(slice(room, None))
                yield _table_of(block), block[-1].place_after(len(block[-1]))
                waiting, room = [], self.block_rows
            if len(piece):
                waiting.append(piece)
                room -= len(piece)
        if waiting:
            yield _table_of(waiting), waiting[-1].place_after(len(waiting[-1]))

    def _order(self, epoch: int, block: int, rows: int) -> np.ndarray:
        if not self.settings.shuffle:
            return np.arange(rows)
        generator = derived_generator(self.settings.seed, epoch, block, self.part.rank, self.part.worker)
        return torch.randperm(rows, generator=generator).numpy()

    def _preprocess(self, block: Any, numbers: np.ndarray, place: Place) -> Batch:
        return preprocess(self.transform, self.rows.decode(block.take(numbers), place[2]), self.rows.mapping.where)


def _table_of(pieces: list[Piece]) -> Any:
    import pyarrow as pa

    return pa.concat_tables([piece.table for piece in pieces]).combine_chunks()


class BlockStream(Stream):
    """Batches of rows that are read in order: shuffled in blocks, then from memory if all of them fit there.

    With workers, each shuffles and preprocesses its own share, and batches are taken from them in turn; what each has
    left over at the end of an epoch is put together to the last batches. The order depends on the number of workers.
    """

    decisive = (*Stream.decisive, "shuffle_buffer_size", "num_workers", "memory_budget")

    def __init__(self, rows: ShardedRows, transform: Transform, settings: StreamSettings) -> None:
        self.rows = rows
        self._store: RowStore | None = None
        self._producers: list[Iterator[tuple[Any, ...]]] = []
        super().__init__(rows.mapping.where, rows.fingerprint, transform, settings)

    @property
    def in_memory(self) -> bool:
        return self._position["keeping"] and self._position["epoch"] > 0

    def close(self) -> None:
        super().close()
        self._store = None
        self._producers = []

    def _start(self, epoch: int = 0, keeping: bool | None = None) -> Position:
        """The start of an epoch. While rows are kept, a position is a number of batches from the start of the first
        epoch: the rows before it are needed anyhow. Otherwise `parts` says where each worker stands, `turn` whose batch
        is next, and `tail` how many batches of their leftovers are done."""
        keeping = self.settings.memory_budget > 0 if keeping is None else keeping
        parts = [_part_start() for _ in range(max(1, self.settings.num_workers))]
        return {"epoch": epoch, "batches": 0, "keeping": keeping, "turn": 0, "tail": 0, "parts": parts}

    def _run(self, position: Position) -> Generator[Batch, None, None]:
        if position["epoch"] == 0 and position["batches"] == 0:
            self._check_other_ranks()
        goal = position
        if position["keeping"]:
            known = self.rows.num_rows
            self._store = RowStore(None if known is None else known // self.settings.world_size)
            position = self._start()
        while position["epoch"] == 0 or self._store is None:
            reached = position
            for batch, reached in self._streamed_epoch(position):
                if goal["keeping"] and (goal["epoch"] > 0 or reached["batches"] <= goal["batches"]):
                    continue  # handed out before; read again for the sake of keeping it
                self.epoch, self._position = reached["epoch"], reached
                yield batch
            if reached["batches"] == 0:
                raise self._too_few(self.rows_per_epoch or 0, f"Process {self.settings.rank}")
            position = self._start(reached["epoch"] + 1, keeping=self._store is not None)
        if goal["epoch"] > 0:
            position = goal
        yield from self._kept_epochs(self._store.all(), position["epoch"], position["batches"])

    def _streamed_epoch(self, position: Position) -> Iterator[tuple[Batch, Position]]:
        """The rest of an epoch behind `position`: (batch, position behind it)."""
        one_epoch = self._store is not None
        if not self._producers:
            self._producers = self._start_producers(position, one_epoch)
        position = {**position, "parts": list(position["parts"])}
        rests: dict[int, Batch | None] = {}
        rows = 0
        while len(rests) < len(self._producers):
            turn = position["turn"]
            position["turn"] = (turn + 1) % len(self._producers)
            if turn in rests:
                continue
            kind, batch, note = next(self._producers[turn])
            if kind == "rest":
                rests[turn] = batch
                rows += note
                continue
            position["parts"][turn] = note
            yield self._hand_out(batch, position)
        if one_epoch:
            self._producers = []
        leftover = [rests[turn] for turn in sorted(rests) if rests[turn] is not None]
        if leftover:
            yield from self._tail(join(leftover), position)
        self.rows_per_epoch = rows

    def _tail(self, leftover: Batch, position: Position) -> Iterator[tuple[Batch, Position]]:
        """Batches of what the workers had left over, behind those that are done already."""
        size, count = self.settings.batch_size, batch_rows(leftover)
        for tail in range(position["tail"], self.settings.batches_in(count)):
            position["tail"] = tail + 1
            yield self._hand_out(cut(leftover, tail * size, (tail + 1) * size), position)
        if self.settings.drop_last and self._store is not None:
            self._keep(cut(leftover, count // size * size, count))

    def _hand_out(self, batch: Batch, position: Position) -> tuple[Batch, Position]:
        self._keep(batch)
        position["batches"] += 1
        position["keeping"] = self._store is not None
        return batch, {**position, "parts": list(position["parts"])}

    def _keep(self, batch: Batch) -> None:
        """Store the rows, as long as they (and those that are expected) fit the budget."""
        if self._store is None or batch_rows(batch) == 0:
            return
        expected = batch_rows(batch) + len(self._store)
        if self.rows.num_rows is not None:
            expected = max(expected, self.rows.num_rows // self.settings.world_size)
        if bytes_of(batch) / batch_rows(batch) * expected > self.settings.memory_budget:
            self._store = None
        else:
            self._store.append(batch)

    def _kept_epochs(self, kept: Batch, start_epoch: int, done: int) -> Iterator[Batch]:
        """Batches out of memory, from the batch number `done` of an epoch on. Little else is done per batch than to
        gather it: a small model's step takes no longer than that."""
        size, count = self.settings.batch_size, batch_rows(kept)
        per_epoch = self.settings.batches_in(count)
        for epoch in itertools.count(start_epoch):
            generator = derived_generator(self.settings.seed, epoch, self.settings.rank)
            order = torch.randperm(count, generator=generator) if self.settings.shuffle else torch.arange(count)
            position = {"epoch": epoch, "batches": done, "keeping": True}
            for numbers in order.split(size)[done:per_epoch]:
                batch = select(kept, numbers)
                position["batches"] += 1
                self.epoch, self._position = epoch, position
                yield batch
            done = 0

    def _start_producers(self, position: Position, one_epoch: bool) -> list[Iterator[tuple[Any, ...]]]:
        workers = self.settings.num_workers
        producers = []
        for worker, start in enumerate(position["parts"]):
            part = Part(self.settings.rank, self.settings.world_size, worker, max(1, workers))
            messages = _BlockMessages(
                self.rows, self.transform, self.settings, part, position["epoch"], start, one_epoch
            )
            producers.append(_Worker(messages) if workers else messages.messages())
        return producers

    def _check_other_ranks(self) -> None:
        """Where processes read shards of their own, see that each has a batch, so that all of them stop if one must.

        Where they share rows, they all have the same number and find out by themselves.
        """
        settings, known = self.settings, self.rows.num_rows
        if settings.world_size == 1 or not self.rows.split_by_shards(settings.world_size):
            return
        if known is not None and known >= 100 * settings.batch_size * settings.world_size:
            return  # however uneven the shards may be
        needed = settings.batch_size if settings.drop_last else 1
        for rank in range(settings.world_size):
            count = 0
            for piece in self.rows.read(Part(rank, settings.world_size)):
                count += len(piece)
                if count >= needed:
                    break
            if count < needed:
                raise self._too_few(count, f"Process {rank}")

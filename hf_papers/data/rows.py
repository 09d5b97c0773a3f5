"""Rows of one split: either by number (embedded, downloaded) or in order, shard by shard, from wherever they lie.

A streamed split is read with nothing but "shard k from row r on", so that a position in it is three integers. That is
all a checkpoint needs, and what a dropped connection is continued from.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_papers.errors import UserError, nearest


if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features, IterableDataset

logger = logging.getLogger(__name__)

TABLE_ROWS = 256  # rows that are fetched from a shard at once

# Shard in reading order, rows of it that are done, rows of the whole split that are done.
Place = tuple[int, int, int]
START: Place = (0, 0, 0)


class Row(dict[str, Any]):
    """One example: column -> value. Asking for a column that is not there is answered with those that are."""

    __slots__ = ("where",)

    def __init__(self, values: Any, where: str) -> None:
        super().__init__(values)
        self.where = where

    def __missing__(self, column: str) -> Any:
        raise UserError(missing_column(column, list(self), self.where))


def missing_column(column: str, available: list[str], where: str) -> str:
    """The sentence for a column that `where` lacks."""
    return (
        f"There is no column '{column}' in {where}.{nearest(column, available)} Its columns are: "
        f"{', '.join(available)}. Say which one to use with --columns {column}=THEIRS."
    )


@dataclass(frozen=True)
class ColumnMap:
    """Our column names for theirs. Columns that nobody renamed keep their name, unless ours takes it.

    `translation.de` is the entry `de` of a column `translation` that holds such entries.
    """

    ours_to_theirs: dict[str, str]
    where: str

    def names(self, available: Sequence[str]) -> dict[str, str]:
        """Our name -> theirs for all columns. Raises `UserError` when one that is to be renamed does not exist."""
        for ours, theirs in self.ours_to_theirs.items():
            if theirs not in available and theirs.split(".")[0] not in available:
                raise UserError(
                    f"The column map asks for '{ours}={theirs}', but there is no column '{theirs}' in {self.where}."
                    f"{nearest(theirs, available)} Its columns are: {', '.join(available)}."
                )
        taken = {*self.ours_to_theirs, *self.ours_to_theirs.values()}
        return {**self.ours_to_theirs, **{name: name for name in available if name not in taken}}

    def rows(self, columns: dict[str, Sequence[Any]]) -> list[Row]:
        """Columns of equal length, under their names, as rows under ours."""
        names = self.names(list(columns))
        values = zip(*(self._values(columns, theirs) for theirs in names.values()), strict=True)
        return [Row(zip(names, row, strict=True), self.where) for row in values]

    def type_of(self, features: Any, theirs: str) -> Any:
        """The type of one of their columns, or of an entry of one, among their `Features`."""
        if theirs in features:
            return features[theirs]
        column, entry = theirs.split(".", 1)
        entries = features[column]
        if not isinstance(entries, dict):
            from datasets import Value

            # Texts in several languages are a type of their own.
            entries = dict.fromkeys(getattr(entries, "languages", None) or (), Value("string"))
        if entry not in entries:
            raise self._no_entry(column, entry, list(entries))
        return entries[entry]

    def _values(self, columns: dict[str, Sequence[Any]], theirs: str) -> Sequence[Any]:
        if theirs in columns:
            return columns[theirs]
        column, entry = theirs.split(".", 1)
        for value in columns[column]:
            if not isinstance(value, dict) or entry not in value:
                raise self._no_entry(column, entry, list(value) if isinstance(value, dict) else [])
        return [value[entry] for value in columns[column]]

    def _no_entry(self, column: str, entry: str, available: list[str]) -> UserError:
        has = f"Its entries are: {', '.join(available)}." if available else "It holds no entries by name."
        return UserError(f"Column '{column}' of {self.where} has no entry '{entry}'.{nearest(entry, available)} {has}")


# --------------------------------------------------------------------------------------------- networks that fail


@dataclass
class Retries:
    """How long to wait for a server that fails. The clients below us have short back-offs of their own on top.

    After `seconds` without a single row the attempt that is under way is the last one. Tests lower both.
    """

    seconds: float = 60.0
    first_wait: float = 1.0


RETRIES = Retries()


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help: cut connections, time-outs, and servers that are overloaded or being restarted."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return False
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", None)
        return status is None or status in (408, 429) or status >= 500
    # httpx under whichever name the installed huggingface_hub uses it, and aiohttp, which fsspec uses for plain URLs
    library = type(error).__module__.split(".")[0]
    return isinstance(error, ConnectionError | TimeoutError) or library in ("httpx", "httpx2", "httpcore", "aiohttp")


class Patience:
    """Waits longer and longer between attempts, and turns the last failure into a sentence."""

    def __init__(self) -> None:
        self.progressed()

    def progressed(self) -> None:
        """It works again: start counting anew."""
        self.deadline = time.monotonic() + RETRIES.seconds
        self.wait = RETRIES.first_wait

    def failed(self, error: Exception, sentence: str) -> None:
        """Return after a pause when another attempt is worth it, else raise `UserError(sentence + ...)`."""
        cause = error.__cause__ or error  # `datasets` says "Server Disconnected" whatever it was
        reason = f"{type(cause).__name__}: {(str(cause).strip() or 'no message').splitlines()[0]}"
        if not is_transient(error):
            raise UserError(f"{sentence} ({reason}).") from error
        if time.monotonic() + self.wait >= self.deadline:
            raise UserError(
                f"{sentence} ({reason}). It was tried again for a while in vain. Nothing that was saved is lost: when the "
                f"server answers again, `--resume auto` continues from the last checkpoint."
            ) from error
        logger.warning("%s (%s). Trying again in %.0f s.", sentence, reason, self.wait)
        time.sleep(self.wait)
        self.wait *= 2


def reading_errors() -> tuple[type[Exception], ...]:
    """What reading a file raises when the file or the way to it is at fault."""
    import pyarrow as pa

    # The HTTP clients share one base class name; one that was never imported cannot have raised anything.
    clients = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    return (OSError, pa.ArrowInvalid, *(client.HTTPError for client in clients))


# ------------------------------------------------------------------------------------------------- rows by number


class IndexedRows:
    """Rows that can be asked for by number: column lists in memory, or a downloaded data set on disk.

    `columns` is anything whose `[list of numbers]` gives columns of these rows, and that has a length.
    """

    def __init__(self, columns: Dataset | MemoryTable, mapping: ColumnMap, fingerprint: str) -> None:
        self.columns, self.mapping, self.fingerprint = columns, mapping, fingerprint

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def num_rows(self) -> int:
        return len(self.columns)

    def take(self, numbers: np.ndarray) -> list[Row]:
        """The rows with these numbers, in this order."""
        return self.mapping.rows(self.columns[[int(number) for number in numbers]])

    def in_order(self, rows_at_once: int) -> Iterator[list[Row]]:
        """All rows, once, a list of at most `rows_at_once` at a time."""
        for start in range(0, len(self), rows_at_once):
            yield self.take(np.arange(start, min(start + rows_at_once, len(self))))


class MemoryTable:
    """Column lists with the part of `datasets.Dataset` that `IndexedRows` needs, so that embedded data need no import."""

    def __init__(self, columns: dict[str, Sequence[Any]], numbers: range) -> None:
        self.columns, self.numbers = columns, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, numbers: list[int]) -> dict[str, list[Any]]:
        return {name: [values[self.numbers[i]] for i in numbers] for name, values in self.columns.items()}


# --------------------------------------------------------------------------------------------------- rows in order


@dataclass(frozen=True)
class Part:
    """Whose rows: worker `worker` of `workers` in process `rank` of `world_size`."""

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    workers: int = 1


@dataclass
class Piece:
    """Some rows of one shard as they are stored (encoded images and all), with the place after each of them.

    `rows_done` (n,): rows of the shard that are done after each row; `split_rows_done` (n,): of the whole split.
    """

    table: pa.Table
    shard: int
    rows_done: np.ndarray
    split_rows_done: np.ndarray

    def __len__(self) -> int:
        return len(self.rows_done)

    def place_after(self, count: int) -> Place:
        """Where reading goes on once the first `count` >= 1 of these rows are done."""
        return self.shard, int(self.rows_done[count - 1]), int(self.split_rows_done[count - 1])

    def take(self, where: slice | np.ndarray) -> Piece:
        if isinstance(where, slice):
            start, stop, _ = where.indices(len(self))
            table = self.table.slice(start, stop - start)
        else:
            table = self.table.take(where)
        return Piece(table, self.shard, self.rows_done[where], self.split_rows_done[where])


class ShardedRows:
    """Rows that are read in order from the shards (files) of a streamed `datasets.IterableDataset`.

    Processes share the work by shards when these divide evenly among them, else every process reads all of them and
    keeps each `world_size`-th row, of complete rounds only, so that all have the same number. The workers of a process
    share its rows in the same way. A slice of a split is always shared by rows: which rows it has must not depend on
    how many processes read it.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        mapping: ColumnMap,
        fingerprint: str,
        first: int = 0,
        stop: int | None = None,
        num_rows: int | None = None,
    ) -> None:
        """Rows `first` to `stop` (all that follow when `None`) of `dataset`; `num_rows` of these, where that is known."""
        self.dataset, self.mapping, self.fingerprint = dataset, mapping, fingerprint
        self.first, self.stop, self.num_rows = first, stop, num_rows
        self._features: Features | None = dataset.features

    @property
    def is_slice(self) -> bool:
        return self.first > 0 or self.stop is not None

    def split_by_shards(self, world_size: int) -> bool:
        """Whether each of `world_size` processes reads shards of its own."""
        return not self.is_slice and self.dataset.num_shards % world_size == 0

    def read(self, part: Part, *, shuffle_seed: Sequence[int] | None = None, place: Place = START) -> Iterator[Piece]:
        """The rows of `part` from `place` on, to the end. `shuffle_seed` puts the shards in the order it stands for.

        Raises `UserError` when a file cannot be read, or when the network fails for longer than `RETRIES` allows.
        """
        shards, rows_of = self._assign(part)
        if shuffle_seed is not None and not self.is_slice:
            shards = [shards[i] for i in np.random.default_rng(list(shuffle_seed)).permutation(len(shards))]
        patience = Patience()
        while True:
            try:
                for piece in self._read(shards, rows_of, place):
                    place = piece.place_after(len(piece))
                    yield piece
                    patience.progressed()  # the time until the next piece is asked for is not the server's
                return
            except reading_errors() as error:
                patience.failed(error, f"Reading {self.mapping.where} stopped at row {place[2]:,}")

    def _assign(self, part: Part) -> tuple[list[int], Part]:
        """The shards that `part` reads, and how it shares the rows of these with others."""
        shards = list(range(self.dataset.num_shards))
        rank, world_size, worker, workers = part.rank, part.world_size, part.worker, part.workers
        if self.split_by_shards(world_size):
            shards, rank, world_size = shards[rank::world_size], 0, 1
            if len(shards) % workers == 0:
                shards, worker, workers = shards[worker::workers], 0, 1
        return shards, Part(rank, world_size, worker, workers)

    def _read(self, shards: list[int], part: Part, place: Place) -> Iterator[Piece]:
        start_shard, start_row, split_row = place
        held: Piece | None = None  # our row of a round that is not complete yet
        for number in range(start_shard, len(shards)):
            row = 0
            for table in self._tables(shards[number]):
                skip = min(max(start_row - row, 0), len(table)) if number == start_shard else 0
                row, table = row + skip, table.slice(skip)
                if len(table) == 0:
                    continue
                rows_done = np.arange(row, row + len(table)) + 1
                split_rows_done = np.arange(split_row, split_row + len(table)) + 1
                piece = Piece(table, number, rows_done, split_rows_done)
                row, split_row = row + len(table), split_row + len(table)

                end = split_row if self.stop is None else min(split_row, self.stop)
                complete = self.first + (end - self.first) // part.world_size * part.world_size
                if held is not None and held.split_rows_done[0] <= complete:
                    yield held
                    held = None
                own = self._own(split_rows_done - 1, part)
                final = own & (split_rows_done <= complete)
                if final.any():
                    yield piece if final.all() else piece.take(np.flatnonzero(final))
                waiting = own & (split_rows_done > complete)
                if waiting.any():
                    held = piece.take(np.flatnonzero(waiting))
                if self.stop is not None and split_row >= self.stop:
                    return

    def _own(self, split_rows: np.ndarray, part: Part) -> np.ndarray:
        """Which of these row numbers of the split are in the slice and belong to `part`."""
        index = split_rows - self.first
        own = index >= 0
        if self.stop is not None:
            own &= split_rows < self.stop
        if part.world_size > 1:
            own &= index % part.world_size == part.rank
        if part.workers > 1:
            own &= index // part.world_size % part.workers == part.worker
        return own

    def _tables(self, shard: int) -> Iterator[pa.Table]:
        dataset = self.dataset
        if dataset.num_shards > 1:
            dataset = dataset.shard(num_shards=dataset.num_shards, index=shard)
        return dataset.with_format("arrow").iter(batch_size=TABLE_ROWS)

    def features(self) -> Features:
        """Column types under their names. Formats that do not say are asked through their first rows."""
        if self._features is None:
            from datasets import Features

            piece = next(self.read(Part()), None)
            if piece is None:
                raise UserError(f"{_capital(self.mapping.where)} has no rows.")
            self._features = Features.from_arrow_schema(piece.table.schema)
        return self._features

    def decode(self, table: pa.Table, row: int) -> list[Row]:
        """Stored rows as Python values and PIL images. `row` is only for the message should that fail."""
        from datasets import Features

        features = self._features or Features.from_arrow_schema(table.schema)
        columns = table.to_pydict()
        patience = Patience()
        while True:
            try:
                return self.mapping.rows(features.decode_batch(columns))
            except reading_errors() as error:  # an image may be a file of its own on the server, or be damaged
                patience.failed(error, f"Decoding {self.mapping.where} failed near row {row:,}")

    def in_order(self, rows_at_once: int) -> Iterator[list[Row]]:
        """All rows, once, in order, a list of at most `rows_at_once` at a time."""
        for piece in self.read(Part()):
            for start in range(0, len(piece), rows_at_once):
                part = piece.take(slice(start, start + rows_at_once))
                yield self.decode(part.table, int(part.split_rows_done[0]))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

"""Sources of examples: the Hub, a local folder, or what is embedded. One way to open them, one way to read them."""

from __future__ import annotations

import abc
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_papers.data.arguments import DataArguments
from hf_papers.data.embedded import find_embedded
from hf_papers.data.memory import Batch, RowStore
from hf_papers.data.rows import (
    RETRIES,
    ColumnMap,
    IndexedRows,
    MemoryTable,
    Patience,
    Row,
    ShardedRows,
    is_transient,
    reading_errors,
)
from hf_papers.data.stream import BlockStream, IndexedStream, Stream, StreamSettings, preprocess
from hf_papers.errors import UserError, nearest


if TYPE_CHECKING:
    from datasets import DatasetBuilder, Features

Transform = Callable[[list[dict[str, Any]]], Batch]
ROWS_AT_ONCE = 256  # rows that are preprocessed together when a whole split is read


def open_source(arguments: DataArguments) -> Source:
    """The source that `arguments.dataset` names. Raises `UserError` when there is no such thing.

    `embedded:<name>` ships with the package; what exists as a folder, or is written like a path, is a local folder;
    everything else is an id on the Hub.
    """
    name = arguments.dataset
    if not name:
        raise UserError(
            "No data set is named: add --dataset, e.g. --dataset ylecun/mnist or --dataset embedded:digits."
        )
    if name.startswith("embedded:"):
        return EmbeddedSource(arguments)
    if Path(name).expanduser().exists() or name.startswith((".", "/", "~")) or "\\" in name:
        return FolderSource(arguments)
    return HubSource(arguments)


# ----------------------------------------------------------------------------------------------------------- splits


@dataclass(frozen=True)
class SplitSlice:
    """A split, or some rows of it: `first`, `stop` are row numbers, percentages ("10%"), or `None` for the end."""

    name: str
    first: str | None = None
    stop: str | None = None

    def rows(self, num_rows: int | None, where: str) -> tuple[int, int | None]:
        """Row numbers from `first` up to, not including, `stop` (`None` = to the end) of a split of `num_rows`."""
        first = self._row(self.first, num_rows, where)
        stop = self._row(self.stop, num_rows, where)
        if num_rows is not None and stop is not None:
            stop = min(stop, num_rows)
        end = num_rows if stop is None else stop
        if end is not None and end <= (first or 0) and (self.first or self.stop):
            total = "" if num_rows is None else f": the whole split has {num_rows:,}"
            raise UserError(f"There are no rows in {where}{total}.")
        return first or 0, stop

    @staticmethod
    def _row(text: str | None, num_rows: int | None, where: str) -> int | None:
        if text is None:
            return None
        if not text.startswith("-") and not text.endswith("%"):
            return int(text)
        if num_rows is None:
            raise UserError(
                f"How many rows {where} has is not known before it is read, so '{text}' cannot be resolved: "
                f"give plain row numbers, or add --no_streaming."
            )
        row = round(num_rows * int(text[:-1]) / 100) if text.endswith("%") else int(text)
        return max(row + num_rows, 0) if row < 0 else row


def parse_split(text: str) -> SplitSlice:
    """ "train", "train[5000:]", "train[:5000]", "train[100:200]", "train[:10%]", "train[-500:]"."""
    match = re.fullmatch(r"([\w.\-]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", text.strip())
    if match is None:
        raise UserError(
            f"'{text}' is not a split: write its name, or a slice of it such as train[5000:] or train[:10%]."
        )
    return SplitSlice(*match.groups())


# ---------------------------------------------------------------------------------------------------------- sources


class Source(abc.ABC):
    """Rows by split. Everything that is read comes through `_open`, which subclasses give."""

    def __init__(self, arguments: DataArguments) -> None:
        self.arguments = arguments
        self.name = str(arguments.dataset)
        self._opened: dict[str, IndexedRows | ShardedRows] = {}

    @abc.abstractmethod
    def splits(self) -> list[str]:
        """The names of the splits there are."""

    def num_rows(self, split: str) -> int | None:
        """Rows of `split`; `None` when only reading it would tell."""
        return self._rows(split).num_rows

    def features(self, split: str) -> Features:
        """Column name -> its type, as `datasets.Features`, under our names."""
        from datasets import Features

        rows = self._rows(split)
        theirs = rows.features() if isinstance(rows, ShardedRows) else self._indexed_features(rows)
        names = rows.mapping.names(list(theirs))
        return Features({ours: rows.mapping.type_of(theirs, name) for ours, name in names.items()})

    def label_names(self, split: str, column: str = "label") -> list[str] | None:
        """The names of the classes that the integers in `column` stand for; `None` when the data set does not say."""
        return getattr(self.features(split).get(column), "names", None)

    def rows(self, split: str) -> Iterator[Row]:
        """Every row of `split` once, in order: {our column name: value}, images as PIL."""
        for rows in self._rows(split).in_order(ROWS_AT_ONCE):
            yield from rows

    def tensors(self, split: str, transform: Transform, limit: int | None = None) -> Batch:
        """The first `limit` rows of `split` (all when `None`), preprocessed and stacked: {name: tensor (rows, ...)}."""
        source_rows = self._rows(split)
        known = source_rows.num_rows
        store = RowStore(known if limit is None else min(limit, known or limit))
        for rows in source_rows.in_order(ROWS_AT_ONCE):
            rows = rows if limit is None else rows[: limit - len(store)]
            store.append(preprocess(transform, rows, source_rows.mapping.where))
            if len(store) == limit:
                break
        if len(store) == 0:
            raise UserError(f"There are no rows in {source_rows.mapping.where}.")
        return store.all()

    def stream(
        self,
        split: str,
        transform: Transform,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        drop_last: bool = True,
    ) -> Stream:
        """Endless batches of `split` for process `rank` of `world_size`: {name: tensor (batch_size, ...)}.

        `transform` turns rows into tensors whose first axis is the row, or into lists where rows differ in shape. It
        must be deterministic and treat each row on its own: its results are kept and rearranged. Without `drop_last`
        the last batch of an epoch may be shorter.
        """
        settings = StreamSettings(
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            shuffle=shuffle,
            drop_last=drop_last,
            shuffle_buffer_size=self.arguments.shuffle_buffer_size,
            memory_budget=int(self.arguments.memory_budget_gb * 1e9),
            num_workers=self.arguments.num_workers,
        )
        rows = self._rows(split)
        if isinstance(rows, IndexedRows):
            return IndexedStream(rows, transform, settings)
        return BlockStream(rows, transform, settings)

    def _rows(self, split: str) -> IndexedRows | ShardedRows:
        if split not in self._opened:
            parsed = parse_split(split)
            available = self.splits()
            if parsed.name not in available:
                raise UserError(
                    f"The data set '{self.name}' has no split '{parsed.name}'.{nearest(parsed.name, available)} "
                    f"Its splits are: {', '.join(available)}. Where one is missing, take a slice of another, e.g. "
                    f"train[:10%]."
                )
            mapping = ColumnMap(self.arguments.columns, f"split '{split}' of '{self.name}'")
            self._opened[split] = self._open(parsed, mapping)
        return self._opened[split]

    @abc.abstractmethod
    def _open(self, split: SplitSlice, mapping: ColumnMap) -> IndexedRows | ShardedRows:
        """The rows of an existing split."""

    def _indexed_features(self, rows: IndexedRows) -> Features:
        return rows.columns.features


class EmbeddedSource(Source):
    """`embedded:<name>`: part of the installation, in memory."""

    def __init__(self, arguments: DataArguments) -> None:
        super().__init__(arguments)
        self.embedded = find_embedded(self.name.removeprefix("embedded:"))
        for option in ("dataset_config", "revision"):
            if getattr(arguments, option) is not None:
                raise UserError(f"'{self.name}' is embedded in the package and has no --{option}: leave it out.")
        self._splits = self.embedded.load()

    def splits(self) -> list[str]:
        return list(self._splits)

    def _open(self, split: SplitSlice, mapping: ColumnMap) -> IndexedRows:
        columns = self._splits[split.name]
        mapping.names(list(columns))
        num_rows = len(next(iter(columns.values())))
        first, stop = split.rows(num_rows, mapping.where)
        table = MemoryTable(columns, range(first, num_rows if stop is None else stop))
        return _not_empty(IndexedRows(table, mapping, fingerprint=f"{self.name}:{num_rows}"))

    def _indexed_features(self, rows: IndexedRows) -> Features:
        from datasets import ClassLabel, Dataset, Features

        sample = {name: list(values[:1]) for name, values in rows.columns.columns.items()}
        labels = {name: ClassLabel(names=list(names)) for name, names in self.embedded.label_names.items()}
        return Features({**Dataset.from_dict(sample).features, **labels})


class _DatasetsSource(Source):
    """What the `datasets` client reads: it knows the formats, we know which rows and in which order."""

    def __init__(self, arguments: DataArguments) -> None:
        super().__init__(arguments)
        _quiet_datasets()
        self._builder = self._patiently(self._make_builder)
        self._downloaded = False

    def splits(self) -> list[str]:
        files = getattr(self._builder.config, "data_files", None)
        return [str(split) for split in files or self._builder.info.splits or []]

    def fingerprint(self, split: str) -> str:
        """Stands for the files of `split`, with the commit they come from, so that a resumed run notices a change."""
        files = (getattr(self._builder.config, "data_files", None) or {}).get(split, [])
        described = [_describe_file(str(file)) for file in files]
        return hashlib.sha256("\n".join([str(self._builder.config.name), *described]).encode()).hexdigest()[:16]

    def _open(self, split: SplitSlice, mapping: ColumnMap) -> IndexedRows | ShardedRows:
        if self.arguments.streaming:
            return self._open_stream(split, mapping)
        return self._open_downloaded(split, mapping)

    def _open_stream(self, split: SplitSlice, mapping: ColumnMap) -> ShardedRows:
        dataset = self._patiently(lambda: self._builder.as_streaming_dataset(split=split.name))
        if dataset.features is not None:
            mapping.names(list(dataset.features))
        total = self._count_rows(split.name)
        first, stop = split.rows(total, mapping.where)
        num_rows = (total if stop is None else stop) - first if total is not None else None
        return ShardedRows(dataset, mapping, self.fingerprint(split.name), first, stop, num_rows)

    def _count_rows(self, split: str) -> int | None:
        """Rows of a whole split as its card or its local parquet files say."""
        info = (self._builder.info.splits or {}).get(split)
        if info is not None and info.num_examples:
            return info.num_examples
        files = [str(file) for file in (getattr(self._builder.config, "data_files", None) or {}).get(split, [])]
        if files and all(file.endswith(".parquet") and os.path.isfile(file) for file in files):
            import pyarrow.parquet

            return sum(pyarrow.parquet.read_metadata(file).num_rows for file in files)
        return None

    def _open_downloaded(self, split: SplitSlice, mapping: ColumnMap) -> IndexedRows:
        if not self._downloaded:
            self._patiently(self._builder.download_and_prepare)
            self._downloaded = True
        dataset = self._builder.as_dataset(split=split.name)
        mapping.names(dataset.column_names)
        first, stop = split.rows(len(dataset), mapping.where)
        if split.first is not None or split.stop is not None:
            dataset = dataset.select(range(first, len(dataset) if stop is None else stop))
        return _not_empty(IndexedRows(dataset, mapping, self.fingerprint(split.name)))

    @abc.abstractmethod
    def _make_builder(self) -> DatasetBuilder:
        """What `datasets` knows about the data set: its files, splits and column types."""

    def _patiently(self, action: Callable[[], Any]) -> Any:
        """`action()`, again after a pause when the network fails, and its errors as sentences."""
        from datasets.exceptions import DatasetsError

        patience = Patience()
        while True:
            try:
                return action()
            except UserError:
                raise
            except (*reading_errors(), ValueError, RuntimeError, DatasetsError) as error:
                cause = _network_cause(error)
                if cause is None:
                    raise self._explain(error) from error
                patience.failed(cause, f"The data set '{self.name}' could not be opened")

    def _explain(self, error: Exception) -> UserError:
        """The sentence for what `datasets` found wrong."""
        message = str(error).strip()
        first = message.splitlines()[0] if message else type(error).__name__
        if "BuilderConfig" in message or "Config name is missing" in message:
            return self._explain_config()
        if "data files" in message.lower() or "datafiles" in type(error).__name__.lower():
            return UserError(
                f"'{self.name}' holds no data files that can be read (parquet, JSON lines, CSV, text or images): {first}"
            )
        return UserError(f"The data set '{self.name}' cannot be read: {first}")

    def _explain_config(self) -> UserError:
        from datasets import get_dataset_config_names

        names = get_dataset_config_names(self._path, revision=self._revision)
        wanted = self.arguments.dataset_config
        if wanted is None:
            return UserError(
                f"The data set '{self.name}' has several configurations: choose one with --dataset_config. "
                f"There are: {', '.join(names)}."
            )
        return UserError(
            f"The data set '{self.name}' has no configuration '{wanted}'.{nearest(wanted, names)} "
            f"There are: {', '.join(names)}."
        )

    @property
    def _path(self) -> str:
        return self.name

    @property
    def _revision(self) -> str | None:
        return None


class FolderSource(_DatasetsSource):
    """A local folder: parquet, JSON lines or CSV files whose names say their split, or images in folders of classes."""

    def __init__(self, arguments: DataArguments) -> None:
        folder = Path(str(arguments.dataset)).expanduser()
        if not folder.exists():
            raise UserError(f"There is no folder '{arguments.dataset}' to read a data set from.")
        if not folder.is_dir():
            raise UserError(f"'{arguments.dataset}' is a file: give the folder that it lies in.")
        if arguments.revision is not None:
            raise UserError(f"'{arguments.dataset}' is a local folder and has no --revision: leave it out.")
        super().__init__(arguments)

    @property
    def _path(self) -> str:
        return str(Path(self.name).expanduser())

    def _make_builder(self) -> DatasetBuilder:
        from datasets import load_dataset_builder

        return load_dataset_builder(self._path, self.arguments.dataset_config)


class FilesSource(_DatasetsSource):
    """Single files of the user's own, one a split: CSV, TSV, JSON lines or parquet. They are read once, then mapped."""

    KINDS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}

    def __init__(self, arguments: DataArguments, files: dict[str, str]) -> None:
        self.files = {split: Path(name).expanduser() for split, name in files.items()}
        for split, file in self.files.items():
            if not file.is_file():
                raise UserError(f"There is no file {file} to read the split '{split}' from.")
            if file.suffix not in self.KINDS:
                raise UserError(f"{file} is none of the files that can be read: {', '.join(self.KINDS)}.")
        if len({file.suffix for file in self.files.values()}) > 1:
            raise UserError(f"The files {', '.join(map(str, self.files.values()))} should all be of one kind.")
        super().__init__(replace(arguments, dataset=", ".join(map(str, self.files.values())), streaming=False))

    def _make_builder(self) -> DatasetBuilder:
        from datasets import load_dataset_builder

        suffix = next(iter(self.files.values())).suffix
        options = {}
        if self.KINDS[suffix] == "csv":
            # What is written is what is meant: the word "null" in a sentence is a word.
            options = {"keep_default_na": False, "sep": "\t" if suffix == ".tsv" else ","}
        files = {split: str(file.resolve()) for split, file in self.files.items()}
        return load_dataset_builder(self.KINDS[suffix], data_files=files, **options)


class HubSource(_DatasetsSource):
    """A data set on the Hub (wherever `HF_ENDPOINT` points), read with the real `datasets` client."""

    @property
    def _revision(self) -> str | None:
        return self.arguments.revision

    def _make_builder(self) -> DatasetBuilder:
        from datasets import load_dataset_builder
        from datasets.exceptions import DatasetNotFoundError
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(self.name)
            return load_dataset_builder(self.name, self.arguments.dataset_config, revision=self._revision)
        except HFValidationError as error:
            raise UserError(
                f"'{self.name}' is neither a folder nor the id of a data set, which looks like user/name."
            ) from error
        except DatasetNotFoundError as error:
            raise self._explain_missing() from error

    def _explain_missing(self) -> UserError:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import HfHubHTTPError

        try:
            refs = HfApi().list_repo_refs(self.name, repo_type="dataset")
        except HfHubHTTPError:
            return UserError(
                f"There is no data set '{self.name}' on {constants.ENDPOINT}, or it is private or gated and you are not "
                f"logged in with an account that may read it (`hf auth login`). Local folders are written ./folder."
            )
        names = [ref.name for ref in [*refs.branches, *refs.tags]]
        wanted = str(self._revision)
        return UserError(
            f"The data set '{self.name}' has no revision '{wanted}'.{nearest(wanted, names)} It has the branches and "
            f"tags {', '.join(names)}; a full commit hash works too."
        )


def _not_empty(rows: IndexedRows) -> IndexedRows:
    if len(rows) == 0:
        raise UserError(f"There are no rows in {rows.mapping.where}.")
    return rows


def _describe_file(path: str) -> str:
    """A remote path holds its commit; a local file is known by name and size."""
    return path if "://" in path else f"{os.path.basename(path)}:{os.path.getsize(path)}"


def _network_cause(error: BaseException | None) -> Exception | None:
    """The network fault behind `error`, looking through what `datasets` wrapped around it."""
    while error is not None:
        if isinstance(error, Exception) and is_transient(error):
            return error
        error = error.__cause__ or error.__context__
    return None


def _quiet_datasets() -> None:
    """Leave the long waits to `RETRIES`: by itself `datasets` would stall for up to half an hour without a word."""
    import datasets

    datasets.config.STREAMING_READ_MAX_RETRIES = 1
    datasets.config.STREAMING_OPEN_MAX_RETRIES = 1
    for name in ("READ_RETRY", "READ_SERVER_UNAVAILABLE_RETRY", "READ_RATE_LIMIT_RETRY", "OPEN_RETRY"):
        setattr(datasets.config, f"STREAMING_{name}_INTERVAL", min(RETRIES.first_wait, 1.0))

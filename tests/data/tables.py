"""Small data sets on disk whose rows say who they are, and what the tests of streams do with them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hf_papers.data import DataArguments, Source, Stream, open_source


def write_parquet(folder: Path, shards: Iterable[int], row_group_size: int = 7, split: str = "train") -> Path:
    """One parquet file per entry of `shards`, with that many rows: `id` counts through all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    shards, first = list(shards), 0
    for number, rows in enumerate(shards):
        ids = list(range(first, first + rows))
        table = pa.table({"id": pa.array(ids, pa.int64()), "text": pa.array([f"row {i}" for i in ids], pa.string())})
        name = f"{split}-{number:05d}-of-{len(shards):05d}.parquet"
        pq.write_table(table, folder / name, row_group_size=row_group_size)
        first += rows
    return folder


def to_tensors(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """`id` (n,) and `x` (n, 2), which is computed from it."""
    ids = torch.tensor([row["id"] for row in rows])
    return {"id": ids, "x": torch.stack([ids * 0.5, ids - 1.0], dim=1)}


def to_ragged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """`id` (n,) and `tokens`, a list of tensors of different lengths."""
    return {
        "id": torch.tensor([row["id"] for row in rows]),
        "tokens": [torch.arange(row["id"] % 5 + 1) for row in rows],
    }


def open_stream(folder: Path | str, split: str = "train", transform: Any = to_tensors, **options: Any) -> Stream:
    """A stream of `folder`; options of the stream and of `DataArguments` alike. Keeps nothing unless told."""
    of_stream = {"batch_size": 4, "seed": 0}
    of_stream |= {k: options.pop(k) for k in list(options) if k in ("batch_size", "seed", "rank", "world_size")}
    of_stream |= {k: options.pop(k) for k in list(options) if k in ("shuffle", "drop_last")}
    source = _source(DataArguments(dataset=str(folder), **{"memory_budget_gb": 0.0, **options}))
    return source.stream(split, transform, **of_stream)


_sources: dict[str, Source] = {}


def _source(arguments: DataArguments) -> Source:
    """The source of these arguments and files: most of a test's time would go into finding out about them again."""
    if not Path(str(arguments.dataset)).is_dir():
        return open_source(arguments)
    files = sorted((str(path), path.stat().st_mtime_ns) for path in Path(str(arguments.dataset)).rglob("*"))
    key = f"{arguments} {files}"
    if key not in _sources:
        _sources[key] = open_source(arguments)
    return _sources[key]


def take(stream: Stream, count: int) -> list[dict[str, Any]]:
    return [next(stream) for _ in range(count)]


def ids_of(batches: Iterable[dict[str, Any]]) -> list[list[int]]:
    return [batch["id"].tolist() for batch in batches]


def take_epoch(stream: Stream) -> list[list[int]]:
    """The batches of the first epoch (of a stream that nothing was taken from), by their ids."""
    batches = []
    while True:
        batch = next(stream)
        if stream.epoch > 0:
            return ids_of(batches)
        batches.append(batch)

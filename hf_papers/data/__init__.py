"""Data: sources of rows, and endless, shuffled, sharded streams of batches over them that resume exactly.

    source = open_source(DataArguments(dataset="ylecun/mnist", train_split="train[5000:]"))
    stream = source.stream("train[5000:]", preprocess, batch_size=64, seed=0)
    batch = next(stream)              # {name: tensor (64, ...)}
    state = stream.state_dict()       # small, plain JSON; `load_state_dict` continues with exactly the next batch

Nothing heavy is imported before a name is used.
"""

from __future__ import annotations

import importlib
from typing import Any


_HOMES = {
    "Augmentation": "augmentation",
    "AugmentationOptions": "augmentation",
    "DataArguments": "arguments",
    "EmbeddedDataset": "embedded",
    "EmbeddedSource": "sources",
    "BucketedStream": "buckets",
    "FilesSource": "sources",
    "FolderSource": "sources",
    "Padding": "buckets",
    "HubSource": "sources",
    "Source": "sources",
    "Stream": "stream",
    "check_batch": "validation",
    "check_rows": "validation",
    "open_source": "sources",
    "register_embedded": "embedded",
}

__all__ = [
    "Augmentation",
    "AugmentationOptions",
    "BucketedStream",
    "DataArguments",
    "EmbeddedDataset",
    "EmbeddedSource",
    "FilesSource",
    "FolderSource",
    "HubSource",
    "Padding",
    "Source",
    "Stream",
    "check_batch",
    "check_rows",
    "open_source",
    "register_embedded",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_papers.data' has no attribute '{name}'")
    return getattr(importlib.import_module(f"hf_papers.data.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__

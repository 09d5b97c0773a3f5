"""Texts and labels for a sentence classifier: GLUE's tasks, other data sets of that shape, or the user's own files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hf_papers.data import DataArguments, FilesSource, Source, open_source
from hf_papers.data.labels import LABEL
from hf_papers.data.memory import Batch
from hf_papers.data.rows import ColumnMap, IndexedRows, MemoryTable, missing_column
from hf_papers.errors import UserError
from hf_papers.papers.bert.glue_bert import DATASET, GlueSet


PAIRS = (("sentence1", "sentence2"), ("sentence1",), ("sentence",))


def glue_data_arguments(data: DataArguments, spec: GlueSet | None, files: dict[str, str]) -> DataArguments:
    """The recipe's data section with what the task decides of it filled in."""
    if files:
        return replace(data, dataset=None, dataset_config=None, revision=None)
    if spec is not None:
        return replace(data, dataset=data.dataset or DATASET, dataset_config=data.dataset_config or spec.name)
    if data.dataset is None:
        raise UserError(
            "What is to be learnt? Name one of GLUE's tasks by --task_name, e.g. --task_name mrpc, files of your own by "
            "--train_file and --validation_file, or a data set by --dataset."
        )
    return data


def open_glue_source(data: DataArguments, files: dict[str, str]) -> Source:
    return FilesSource(data, files) if files else open_source(data)


def text_columns(source: Source, split: str, spec: GlueSet | None) -> tuple[str, ...]:
    """Which one or two columns hold the texts. Raises `UserError` naming what there is when they are missing."""
    available = list(source.features(split))
    where = f"split '{split}' of '{source.name}'"
    if spec is not None:
        for column in spec.columns:
            if column not in available:
                raise UserError(missing_column(column, available, where))
        return spec.columns
    for columns in PAIRS:
        if all(column in available for column in columns):
            return columns
    raise UserError(missing_column("sentence1", available, where))


class TextEncoder:
    """Texts, or pairs of them, as word pieces: [CLS] A [SEP] or [CLS] A [SEP] B [SEP], with segment 1 for B."""

    def __init__(self, tokenizer: Any, columns: tuple[str, ...], max_length: int, too_long: str) -> None:
        self.tokenizer, self.columns, self.max_length, self.too_long = tokenizer, columns, max_length, too_long
        self.seen = 0
        self.truncated = 0

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """Ragged `input_ids` (int32) and `token_type_ids` (uint8), one array of word pieces a row."""
        encoded = self.tokenizer(
            *([self._text(row, column) for row in rows] for column in self.columns),
            truncation=True,
            max_length=self.max_length,
            return_token_type_ids=True,
            return_attention_mask=False,
            verbose=False,
        )
        cut = self._count_cut(encoded)
        if cut and self.too_long == "refuse":
            raise UserError(
                f"{cut} of {len(rows)} texts have more than {self.max_length} word pieces: raise --max_length, or cut "
                "them by --too_long truncate."
            )
        self.seen += len(rows)
        self.truncated += cut
        return {
            "input_ids": [np.array(row, dtype=np.int32) for row in encoded["input_ids"]],
            "token_type_ids": [np.array(row, dtype=np.uint8) for row in encoded["token_type_ids"]],
        }

    def _text(self, row: dict[str, Any], column: str) -> str:
        text = row[column]
        if not isinstance(text, str):
            raise UserError(f"Column '{column}' should hold texts, and a row holds {text!r}.")
        return text

    def _count_cut(self, encoded: Any) -> int:
        if encoded.encodings is None:  # a tokenizer in Python does not tell what it cut
            return sum(len(row) >= self.max_length for row in encoded["input_ids"])
        return sum(bool(encoding.overflowing) for encoding in encoded.encodings)

    def note(self) -> str | None:
        """One sentence about what was cut; None when nothing was."""
        if not self.truncated:
            return None
        return (
            f"Note: {self.truncated:,} of {self.seen:,} texts had more than {self.max_length} word pieces and were cut "
            "(--max_length, --too_long)."
        )


def balanced_rows(labels: Sequence[Any], count: int, generator: np.random.Generator, balance: bool) -> list[int]:
    """Numbers of `count` rows drawn at random, as many of each class as of the others where `balance` is on."""
    if count > len(labels):
        raise UserError(f"--train_examples {count}: the training split has only {len(labels):,} rows.")
    order = generator.permutation(len(labels)).tolist()
    if not balance:
        return order[:count]
    classes: dict[Any, list[int]] = defaultdict(list)
    for number in order:
        classes[labels[number]].append(number)
    queues = [classes[name] for name in sorted(classes, key=str)]
    chosen: list[int] = []
    while len(chosen) < count:
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return chosen


def few_rows(source: Source, split: str, count: int, generator: np.random.Generator, balance: bool) -> IndexedRows:
    """`count` rows of a split, in memory: few-shot learning."""
    rows = list(source.rows(split))
    numbers = balanced_rows([row[LABEL] for row in rows], count, generator, balance)
    table = MemoryTable({name: [rows[number][name] for number in numbers] for name in rows[0]}, range(count))
    return IndexedRows(
        table, ColumnMap({}, f"{count} rows of split '{split}' of '{source.name}'"), f"{source.name}:{numbers}"
    )

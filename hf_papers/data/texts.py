"""The texts of a split, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hf_papers.data.arguments import DataArguments
from hf_papers.data.sources import open_source
from hf_papers.errors import UserError


class Texts:
    """Columns of the training split, as often as one goes through it. What is empty is left out.

    Of a row with several columns (a source and its translation) each is a text of its own.
    """

    def __init__(self, arguments: DataArguments, columns: Sequence[str] = ("text",)) -> None:
        self.source = open_source(arguments)
        self.columns = columns
        self.split = arguments.train_split
        self.where = f"split '{self.split}' of '{self.source.name}'"

    def __iter__(self) -> Iterator[str]:
        for row in self.source.rows(self.split):
            for column in self.columns:
                if text := text_of(row, self.where, column):
                    yield text


def text_of(row: dict[str, Any], where: str, column: str = "text") -> str:
    """The text of a row, empty where there is none. Raises `UserError` where its column holds something else."""
    text = row[column]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise UserError(
            f"The column '{column}' of {where} should hold text, but holds values of type {type(text).__name__}: name the "
            "column of texts with --columns text=THEIRS (--column THEIRS where a tokenizer is trained)."
        )
    return text


__all__ = ["Texts", "text_of"]

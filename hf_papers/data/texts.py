"""The texts of a split, one after another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hf_papers.data.arguments import DataArguments
from hf_papers.data.sources import open_source
from hf_papers.errors import UserError


class Texts:
    """The column `text` of the training split, as often as one goes through it. Rows without text are left out."""

    def __init__(self, arguments: DataArguments) -> None:
        self.source = open_source(arguments)
        self.split = arguments.train_split
        self.where = f"split '{self.split}' of '{self.source.name}'"

    def __iter__(self) -> Iterator[str]:
        for row in self.source.rows(self.split):
            if text := text_of(row, self.where):
                yield text


def text_of(row: dict[str, Any], where: str) -> str:
    """The text of a row, empty where there is none. Raises `UserError` where its column holds something else."""
    text = row["text"]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise UserError(
            f"The column 'text' of {where} should hold text, but holds values of type {type(text).__name__}: name the "
            "column of texts with --columns text=THEIRS (--column THEIRS where a tokenizer is trained)."
        )
    return text


__all__ = ["Texts", "text_of"]

"""Pairs of a source and a target text: read from any data set, checked, and cut into tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hf_papers.data import Source
from hf_papers.data.memory import Batch
from hf_papers.errors import UserError


COLUMNS = ("source", "target")


def pair_of(row: dict[str, Any], where: str) -> tuple[str, str]:
    """The source and target text of a row. Raises `UserError` where one is missing or is not a text; either may be empty."""
    texts = []
    for column, other in (COLUMNS, COLUMNS[::-1]):
        text = row[column]
        if text is None:
            raise UserError(
                f"A row of {where} has no {column}; its {other} is {shorten(row[other])}. Fill it in, or leave the row out."
            )
        if not isinstance(text, str):
            raise UserError(
                f"The column '{column}' of {where} should hold texts, but a row holds {shorten(text)}: say which columns to "
                "use with --columns source=THEIRS,target=THEIRS (an entry of a column is written column.entry)."
            )
        texts.append(text)
    return texts[0], texts[1]


def shorten(value: Any, limit: int = 60) -> str:
    """A value as it may stand in a sentence."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def read_pairs(source: Source, split: str, limit: int | None = None) -> tuple[list[str], list[str]]:
    """The source and target texts of the first `limit` rows of a split, all of them without a limit."""
    where = f"split '{split}' of '{source.name}'"
    sources, targets = [], []
    for row in source.rows(split):
        first, second = pair_of(row, where)
        sources.append(first)
        targets.append(second)
        if len(sources) == limit:
            break
    if not sources:
        raise UserError(f"There are no rows in {where}.")
    return sources, targets


class PairTexts:
    """All texts of a split, of both sides: what a shared vocabulary is trained on. May be gone through again."""

    def __init__(self, source: Source, split: str) -> None:
        self.source, self.split = source, split
        self.where = f"split '{split}' of '{source.name}'"

    def __iter__(self) -> Iterator[str]:
        for row in self.source.rows(self.split):
            yield from pair_of(row, self.where)


class PairEncoder:
    """Rows as ragged `input_ids` and `labels` (int32), one array of tokens a row, each ending with </s>.

    A pair that cannot be learnt from is left out, which an empty array on both sides says: one of its texts is empty, or
    longer than `max_tokens` (a cut target would teach to stop in mid-sentence).
    """

    def __init__(self, tokenizer: Any, max_tokens: int, where: str) -> None:
        self.tokenizer, self.max_tokens, self.where = tokenizer, max_tokens, where
        self.seen = self.empty = self.too_long = 0

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        pairs = [pair_of(row, self.where) for row in rows]
        sides = [encode(self.tokenizer, texts) for texts in zip(*pairs, strict=True)]
        for number, (source, target) in enumerate(zip(*sides, strict=True)):
            self.seen += 1
            shortest, longest = sorted((len(source), len(target)))
            if shortest > 1 and longest <= self.max_tokens:
                continue
            self.empty += shortest == 1
            self.too_long += shortest > 1
            sides[0][number] = sides[1][number] = source[:0]
        return {"input_ids": sides[0], "labels": sides[1]}

    def note(self) -> str | None:
        """One sentence about what was left out; None when nothing was."""
        if not self.empty + self.too_long:
            return None
        return (
            f"Note: of {self.seen:,} pairs, {self.empty:,} were left out because a text of theirs is empty, and "
            f"{self.too_long:,} because one has more than {self.max_tokens} tokens (--max_tokens)."
        )


def encode(tokenizer: Any, texts: Sequence[str]) -> list[np.ndarray]:
    """Each text as an array of tokens (int32) that ends with </s>; an empty text is </s> alone."""
    encoded = tokenizer(list(texts), return_attention_mask=False, verbose=False)["input_ids"]
    return [np.array(tokens, dtype=np.int32) for tokens in encoded]


__all__ = ["COLUMNS", "PairEncoder", "PairTexts", "encode", "pair_of", "read_pairs", "shorten"]

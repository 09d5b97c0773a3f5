"""The column `label` of texts: which classes there are, and what the loss makes of a row's label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from hf_papers.data.rows import missing_column
from hf_papers.data.sources import Source
from hf_papers.errors import UserError, nearest


LABEL = "label"


def find_labels(source: Source, split: str) -> tuple[str, ...]:
    """The names of the classes in column `label`, in the order of their numbers; none of them for numbers (regression)."""
    features = source.features(split)
    if LABEL not in features:
        raise UserError(missing_column(LABEL, list(features), f"split '{split}' of '{source.name}'"))
    if names := source.label_names(split, LABEL):
        return tuple(names)
    kind = str(getattr(features[LABEL], "dtype", ""))
    if kind.startswith("float"):
        return ()
    found = {row[LABEL] for row in source.rows(split)}
    if None in found:
        raise UserError(
            f"Column '{LABEL}' of split '{split}' of '{source.name}' is empty in some rows: label or drop them."
        )
    if len(found) < 2:
        raise UserError(
            f"Column '{LABEL}' of split '{split}' of '{source.name}' holds only {', '.join(map(repr, found))}: there is "
            "nothing to tell apart."
        )
    if len(found) > 1000:
        raise UserError(
            f"Column '{LABEL}' of split '{split}' of '{source.name}' holds {len(found):,} different values: classes are "
            "meant to be few. Write numbers with a point (regression), or choose another column by --columns label=THEIRS."
        )
    return tuple(str(value) for value in sorted(found))


class LabelReader:
    """Labels of rows as what the loss takes: class numbers (rows,) of int64, or numbers (rows,) of float32."""

    def __init__(self, names: Sequence[str], are_numbers: bool, where: str) -> None:
        """`names`: the model's classes in order; `are_numbers`: the column already holds their numbers."""
        self.names, self.are_numbers, self.where = list(names), are_numbers, where
        self.ids = {name: number for number, name in enumerate(self.names)}

    def __call__(self, values: Iterable[Any]) -> torch.Tensor:
        if not self.names:
            return torch.tensor([self._number(value) for value in values], dtype=torch.float32)
        return torch.tensor([self._class(value) for value in values], dtype=torch.long)

    def _number(self, value: Any) -> float:
        if value is None or isinstance(value, str) or not np.isfinite(value):
            raise UserError(f"The labels of {self.where} should be numbers, and one is {value!r}.")
        if self.are_numbers and value < 0:
            raise self._hidden(value)
        return float(value)

    def _class(self, value: Any) -> int:
        if self.are_numbers:
            if value is None or value == -1:
                raise self._hidden(value)
            if not isinstance(value, (int, np.integer)) or not 0 <= value < len(self.names):
                raise self._unknown(value)
            return int(value)
        if str(value) not in self.ids:
            raise self._unknown(value)
        return self.ids[str(value)]

    def _hidden(self, value: Any) -> UserError:
        return UserError(
            f"The labels of {self.where} are hidden ({value}), so it cannot be learnt from or scored on: benchmarks such as "
            "GLUE keep the answers of their test splits. Name a split with answers, e.g. the validation split."
        )

    def _unknown(self, value: Any) -> UserError:
        shown = ", ".join(self.names[:10])
        return UserError(
            f"The label {value!r} of {self.where} is none of the classes that the model knows: {shown}."
            f"{nearest(str(value), self.names)}"
        )

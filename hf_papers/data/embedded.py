"""Embedded data sets: small, real or generated, part of the installation, never downloaded. `embedded:<name>` in a recipe.

To add one, write a function that returns its splits and put `@register_embedded(name, summary)` above it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_papers.errors import UserError, nearest


Splits = dict[str, dict[str, Sequence[Any]]]  # split -> column -> values, one a row


@dataclass(frozen=True)
class EmbeddedDataset:
    """`load` makes all splits, the same ones every time. `label_names`: column -> the names of its integer classes."""

    name: str
    summary: str
    load: Callable[[], Splits]
    label_names: dict[str, tuple[str, ...]]


EMBEDDED: dict[str, EmbeddedDataset] = {}


def register_embedded(
    name: str, summary: str, label_names: dict[str, tuple[str, ...]] | None = None
) -> Callable[[Callable[[], Splits]], Callable[[], Splits]]:
    """Make the decorated function's splits available as `embedded:<name>`."""

    def register(load: Callable[[], Splits]) -> Callable[[], Splits]:
        EMBEDDED[name] = EmbeddedDataset(name, summary, load, label_names or {})
        return load

    return register


def find_embedded(name: str) -> EmbeddedDataset:
    """The embedded data set `name`. Raises `UserError` with the nearest right one."""
    if name not in EMBEDDED:
        raise UserError(
            f"There is no embedded data set '{name}'.{nearest(name, EMBEDDED)} There are: {', '.join(sorted(EMBEDDED))}."
        )
    return EMBEDDED[name]


def split_in_order(labels: np.ndarray, fractions: dict[str, float]) -> dict[str, np.ndarray]:
    """Row numbers of each split: of every class the first rows go to the first split, the next to the second, and so on.

    `labels` (n,) integers; `fractions` split -> share, in order, the last one takes what rounding leaves. Each split
    lists its rows in the original order. Nothing is drawn: data sets made writer by writer or day by day keep writers
    and days apart, which a random split would mix.
    """
    chosen: dict[str, list[np.ndarray]] = {split: [] for split in fractions}
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        borders = np.rint(np.cumsum(list(fractions.values()))[:-1] * len(rows)).astype(int)
        for split, part in zip(fractions, np.split(rows, borders), strict=True):
            chosen[split].append(part)
    return {split: np.sort(np.concatenate(parts)) for split, parts in chosen.items()}


@register_embedded(
    "digits",
    "1,797 handwritten digits, 8x8 pixels, of scikit-learn (UCI optical recognition of handwritten digits)",
    {"label": tuple("0123456789")},
)
def digits() -> Splits:
    """`image`: PIL, mode L, 8x8, 0 to 255; `label`: 0 to 9. 80 % train, 10 % validation, 10 % test of every class.

    The file lists its writers one after another, so the test split holds writers that the training split mostly lacks.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # published as counts 0..16 of 4x4 cells
    rows = split_in_order(bunch.target, {"train": 0.8, "validation": 0.1, "test": 0.1})
    return {
        split: {
            "image": [Image.fromarray(pixels[i]) for i in chosen],
            "label": [int(bunch.target[i]) for i in chosen],
        }
        for split, chosen in rows.items()
    }


@register_embedded(
    "dates", "dates as people write them and in ISO 8601, made as they are read; every day is in one split"
)
def dates() -> Splits:
    """`source`: "Thursday, May 3rd, 1979" and fifteen other forms; `target`: "1979-05-03"."""
    from hf_papers.data.dates import date_splits

    return date_splits()


@register_embedded(
    "pydoc-topics",
    "the language reference that Python carries for help(): 79 topics or so, 0.5 million characters of technical English",
)
def pydoc_topics() -> Splits:
    """`text`: a topic, wrapped at 70 columns; `topic`: its name. Of ten topics in alphabetical order eight are for
    training, one for validation, one for the test. What is in it depends a little on the version of Python."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    rows = {
        "train": [name for number, name in enumerate(names) if number % 10 < 8],
        "validation": names[8::10],
        "test": names[9::10],
    }
    return {split: {"text": [topics[name] for name in chosen], "topic": chosen} for split, chosen in rows.items()}


@register_embedded(
    "cells", "64 made-up micrographs of touching cells under uneven light, 128x128 pixels, every cell drawn round"
)
def cells() -> Splits:
    """`image`: PIL, mode L, 128x128; `mask`: PIL, mode L, 0 for the ground and another number for each cell. 40 for
    training, 8 for validation, 16 for the test."""
    from hf_papers.data.cells import load_cells

    return load_cells()

"""Predicted masks beside the true ones: the measures of the paper over images and thresholds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from hf_papers.metrics.segmentation import (
    cells_of,
    dice,
    intersection_over_union,
    mean_over_classes,
    pixel_error,
    rand_error,
    warping_error,
)


# Probabilities from which a pixel may count as foreground, even steps of their logarithmic odds.
THRESHOLDS = tuple(float(torch.sigmoid(torch.tensor(odds / 2))) for odds in range(-8, 9))


class Example(NamedTuple):
    """An image that is scored: pixels (C, H, W) as the network sees them, classes (H, W), cells (H, W) numbered from 1."""

    pixels: torch.Tensor
    classes: np.ndarray
    cells: np.ndarray


def score_curves(
    predictions: Iterator[tuple[np.ndarray, Example]], thresholds: Sequence[float], cell_errors: bool
) -> dict[str, dict[float, float]]:
    """Metric -> threshold -> its mean over images of two classes."""
    scores: dict[float, list[dict[str, float]]] = {threshold: [] for threshold in thresholds}
    for probabilities, example in predictions:
        for threshold in thresholds:
            found = probabilities[1] >= threshold
            values = {
                "dice": dice(found, example.classes),
                "iou": intersection_over_union(found, example.classes),
                "pixel_error": pixel_error(found, example.classes),
            }
            if cell_errors:
                values["rand_error"] = rand_error(cells_of(found), example.cells)
                values["warping_error"] = warping_error(found, example.classes)
            scores[threshold].append(values)
    means = {threshold: mean_of(values) for threshold, values in scores.items()}
    return {name: {threshold: means[threshold][name] for threshold in thresholds} for name in means[thresholds[0]]}


def score_classes(probabilities: np.ndarray, example: Example) -> dict[str, float]:
    """The measures of one image with more than two classes."""
    found, others = probabilities.argmax(0), range(1, len(probabilities))
    return {
        "dice": mean_over_classes(dice, found, example.classes, others),
        "iou": mean_over_classes(intersection_over_union, found, example.classes, others),
        "pixel_error": pixel_error(found, example.classes),
    }


def mean_of(scores: Any) -> dict[str, float]:
    """Means over images, of those in which a measure is defined; 1 where an overlap is defined in none: all is empty,
    and rightly so."""
    scores = list(scores)
    values = {name: np.array([score[name] for score in scores]) for name in scores[0]}
    return {name: float(np.nanmean(each)) if np.isfinite(each).any() else 1.0 for name, each in values.items()}


def best_of(curves: dict[str, dict[float, float]]) -> dict[str, float]:
    """Metric -> the threshold at which it is best: errors smallest, overlaps largest."""
    return {
        name: (min if name.endswith("error") else max)(curve, key=curve.__getitem__) for name, curve in curves.items()
    }

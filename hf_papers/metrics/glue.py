"""The measures of GLUE (1804.07461, section 3): which ones a task reports, and the one number that table 1 of BERT shows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_papers.errors import UserError, nearest


# Task -> its official measures, the one that 1810.04805 prints in table 1 first ("F1 scores are reported for QQP and MRPC,
# Spearman correlations are reported for STS-B, and accuracy scores are reported for the other tasks"; CoLA's measure is
# Matthews correlation by GLUE's definition).
GLUE_METRICS: dict[str, tuple[str, ...]] = {
    "cola": ("matthews_correlation",),
    "sst2": ("accuracy",),
    "mrpc": ("f1", "accuracy"),
    "stsb": ("spearmanr", "pearson"),
    "qqp": ("f1", "accuracy"),
    "mnli": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
}


def glue_metrics(task: str, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    """The official measures of a GLUE task, between -1 or 0 and 1, and the first of them again as `score`.

    `predictions` and `references` are class numbers (n,), or numbers from 0 to 5 for stsb.
    """
    if task not in GLUE_METRICS:
        raise UserError(
            f"GLUE has no task '{task}'.{nearest(task, GLUE_METRICS)} Its tasks: {', '.join(GLUE_METRICS)}."
        )
    return measure(GLUE_METRICS[task], predictions, references)


def measure(names: Sequence[str], predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    """The named measures, and the first of them again as `score`."""
    ours, right = np.asarray(predictions).ravel(), np.asarray(references).ravel()
    if len(ours) != len(right) or len(ours) == 0:
        raise UserError(f"{len(ours)} predictions cannot be compared with {len(right)} references.")
    values = {name: float(_MEASURES[name](ours, right)) for name in names}
    return {**values, "score": values[names[0]]}


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """Share of predictions that are right."""
    return float((predictions == references).mean())


def f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """Harmonic mean of precision and recall of class 1; 0 where nothing was found."""
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, pos_label=1, average="binary", zero_division=0.0))


def macro_f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """Mean over the classes of each one's F1."""
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, average="macro", zero_division=0.0))


def matthews_correlation(predictions: np.ndarray, references: np.ndarray) -> float:
    """Correlation of predicted and true classes; 0 where all predictions are the same."""
    from sklearn.metrics import matthews_corrcoef

    with warnings.catch_warnings():  # of a confusion matrix with a single entry, whose 0 is what we want
        warnings.simplefilter("ignore")
        return float(matthews_corrcoef(references, predictions))


def pearson(predictions: np.ndarray, references: np.ndarray) -> float:
    """Linear correlation; 0 where one side is constant and it is not defined, as GLUE counts it."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predictions, references)


def spearmanr(predictions: np.ndarray, references: np.ndarray) -> float:
    """Correlation of the ranks; 0 where one side is constant and it is not defined."""
    from scipy.stats import spearmanr as correlation

    return _correlation(correlation, predictions, references)


def mean_squared_error(predictions: np.ndarray, references: np.ndarray) -> float:
    """Mean squared difference."""
    return float(((predictions - references) ** 2).mean())


def _correlation(function: Any, predictions: np.ndarray, references: np.ndarray) -> float:
    if len(predictions) < 2:
        return 0.0
    with warnings.catch_warnings():  # of constant input
        warnings.simplefilter("ignore")
        value = float(function(predictions.astype(np.float64), references.astype(np.float64)).statistic)
    return 0.0 if math.isnan(value) else value


_MEASURES = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews_correlation": matthews_correlation,
    "pearson": pearson,
    "spearmanr": spearmanr,
    "mean_squared_error": mean_squared_error,
}

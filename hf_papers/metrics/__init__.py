"""Measures that more than one paper needs, as plain functions and as `evaluate.Metric` classes over them.

The functions cost nothing to import. The classes import `evaluate`, which takes seconds, so they are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

from hf_papers.errors import nearest


_HOMES = {
    "parzen": (
        "ParzenResult",
        "log_spaced_sigmas",
        "parzen_curve",
        "parzen_log_likelihood",
        "parzen_window_evaluation",
    ),
    "modes": ("ModeCoverage", "fit_mode_classifier", "mode_coverage"),
    "generative": (
        "frechet_distance",
        "frechet_pixels",
        "frechet_pixels_of_mean",
        "generative_metrics",
        "inception_score",
        "kernel_distance",
        "ruler_modes",
    ),
    "linear_svm": ("LinearSvm", "SvmResult", "svm_evaluation"),
    "rulers": ("Reading", "Ruler", "open_ruler"),
    "neighbours": ("diversity_ratio", "mean_pairwise_distance", "nearest_neighbours"),
    "glue": ("GLUE_METRICS", "glue_metrics"),
    "bleu": ("BleuResult", "corpus_bleu"),
    "segmentation": (
        "cells_of",
        "dice",
        "intersection_over_union",
        "mean_over_classes",
        "pixel_error",
        "rand_error",
        "warping_error",
    ),
    "evaluate_metrics": (
        "BleuMetric",
        "CellErrorMetric",
        "GlueMetric",
        "MaskOverlapMetric",
        "ModeCoverageMetric",
        "ParzenLogLikelihoodMetric",
    ),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'hf_papers.metrics' has no attribute '{name}'.{nearest(name, _MODULE_OF)}")
    return getattr(importlib.import_module(f"hf_papers.metrics.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__

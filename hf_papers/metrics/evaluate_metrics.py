"""The measures as classes of the `evaluate` library, for its `compute`, `add_batch` and `combine`.

Importing `evaluate` takes seconds; nothing in the package imports this module before one of its names is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import torch

from hf_papers.metrics.bleu import corpus_bleu
from hf_papers.metrics.glue import glue_metrics
from hf_papers.metrics.modes import coverage_of_labels
from hf_papers.metrics.parzen import log_spaced_sigmas, parzen_log_likelihood, parzen_window_evaluation
from hf_papers.metrics.segmentation import (
    cells_of,
    dice,
    intersection_over_union,
    mean_over_classes,
    pixel_error,
    rand_error,
    warping_error,
)


_GLUE_CITATION = """@inproceedings{wang2019glue, title={{GLUE}: A Multi-Task Benchmark and Analysis Platform for Natural
Language Understanding}, author={Wang, Alex and Singh, Amanpreet and Michael, Julian and Hill, Felix and Levy, Omer and
Bowman, Samuel R.}, booktitle={ICLR}, year={2019}}"""
_BLEU_CITATION = """@inproceedings{post2018call, title={A Call for Clarity in Reporting {BLEU} Scores}, author={Post, Matt},
booktitle={Proceedings of the Third Conference on Machine Translation}, year={2018}}"""
_GAN_CITATION = """@article{goodfellow2014generative, title={Generative Adversarial Networks}, author={Goodfellow, Ian J. and
Pouget-Abadie, Jean and Mirza, Mehdi and Xu, Bing and Warde-Farley, David and Ozair, Sherjil and Courville, Aaron and
Bengio, Yoshua}, journal={arXiv:1406.2661}, year={2014}}"""
_UNET_CITATION = """@inproceedings{ronneberger2015unet, title={U-Net: Convolutional Networks for Biomedical Image
Segmentation}, author={Ronneberger, Olaf and Fischer, Philipp and Brox, Thomas}, booktitle={MICCAI}, year={2015}}"""
_CELLS_CITATION = """@article{arganda2015crowdsourcing, title={Crowdsourcing the creation of image segmentation
algorithms for connectomics}, author={Arganda-Carreras, Ignacio and others}, journal={Frontiers in Neuroanatomy},
year={2015}}"""
# Images may differ in size, so a mask is a list of rows.
_MASKS = datasets.Features(
    {name: datasets.Sequence(datasets.Sequence(datasets.Value("int64"))) for name in ("predictions", "references")}
)


class BleuMetric(evaluate.Metric):
    """`BleuMetric().compute(predictions=translations, references=texts)` -> sacreBLEU's score, and its signature.

    It works offline, where `evaluate.load("sacrebleu")` asks the Hub for code.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="BLEU of a test set by sacreBLEU, 0 to 100, with the signature that says how it was computed.",
            citation=_BLEU_CITATION,
            inputs_description="predictions, references: detokenised texts, one reference each; lowercase, tokenize.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str], lowercase: bool = False, tokenize: str = "13a"
    ) -> dict[str, Any]:
        result = corpus_bleu(predictions, references, lowercase=lowercase, tokenize=tokenize)
        return {
            "bleu": result.score,
            "signature": result.signature,
            "precisions": list(result.precisions),
            "brevity_penalty": result.brevity_penalty,
        }


class GlueMetric(evaluate.Metric):
    """`GlueMetric("mrpc").compute(predictions=classes, references=labels)` -> that task's official measures, and `score`.

    It works offline, where `evaluate.load("glue", "mrpc")` asks the Hub for code.
    """

    def _info(self) -> evaluate.MetricInfo:
        kind = "float32" if self.config_name == "stsb" else "int64"
        return evaluate.MetricInfo(
            description="The official measures of a task of GLUE; `score` is the one in table 1 of 1810.04805.",
            citation=_GLUE_CITATION,
            inputs_description="predictions, references: class numbers; for stsb numbers from 0 to 5.",
            features=datasets.Features({"predictions": datasets.Value(kind), "references": datasets.Value(kind)}),
        )

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        return glue_metrics(self.config_name, predictions, references)


class ParzenLogLikelihoodMetric(evaluate.Metric):
    """`compute(references=test_images, samples=generated, validation=validation_images)` -> the paper's number.

    Images as flat vectors. Give `sigma` instead of `validation` to reuse one that was chosen before.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean log-likelihood (nats) of images under a Gaussian kernel density of generated images.",
            citation=_GAN_CITATION,
            inputs_description=(
                "references: test images, one flat vector each. samples: generated images (n, d). validation: images to "
                "choose sigma on (or sigma: the kernel's standard deviation). sigmas: the grid to choose from."
            ),
            features=datasets.Features({"references": datasets.Sequence(datasets.Value("float32"))}),
        )

    def _compute(
        self,
        references: Sequence[Sequence[float]],
        samples: Any,
        validation: Any | None = None,
        sigma: float | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> dict[str, float]:
        if (validation is None) == (sigma is None):
            raise ValueError("Give validation images to choose sigma on, or a sigma: exactly one of the two.")
        images, windows = torch.as_tensor(np.asarray(references)), torch.as_tensor(np.asarray(samples))
        if sigma is not None:
            scores = parzen_log_likelihood(windows, images, sigma)
            error = scores.std().item() / len(scores) ** 0.5 if len(scores) > 1 else float("nan")
            return {"parzen_log_likelihood": scores.mean().item(), "standard_error": error, "sigma": sigma}
        chosen = torch.as_tensor(np.asarray(validation))
        result = parzen_window_evaluation(windows, chosen, images, sigmas or log_spaced_sigmas())
        return {
            "parzen_log_likelihood": result.log_likelihood,
            "standard_error": result.standard_error,
            "sigma": result.sigma,
        }


class ModeCoverageMetric(evaluate.Metric):
    """`compute(predictions=classes_of_generated, real_labels=classes_of_real)` -> modes covered, entropy and KL."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="How many classes of the data a generator produces, and how far its proportions are off.",
            citation="",
            inputs_description=(
                "predictions: class of each generated image, named by an independent classifier. "
                "real_labels: classes of real images."
            ),
            features=datasets.Features({"predictions": datasets.Value("int64")}),
        )

    def _compute(self, predictions: Sequence[int], real_labels: Sequence[int]) -> dict[str, float]:
        real = np.asarray(real_labels)
        result = coverage_of_labels(np.asarray(predictions), real, np.unique(real))
        return {"modes_covered": result.modes_covered, "entropy": result.entropy, "kl": result.kl}


class MaskOverlapMetric(evaluate.Metric):
    """`compute(predictions=masks, references=masks)` -> Dice, IoU and pixel error, means of the images' own values."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Overlap of predicted and true masks: Dice and IoU over the classes but 0, and the pixel error.",
            citation=_UNET_CITATION,
            inputs_description="predictions, references: one (height, width) mask of class numbers for each image.",
            features=_MASKS,
        )

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        pairs = [(np.asarray(mine), np.asarray(true)) for mine, true in zip(predictions, references, strict=True)]
        classes = range(1, 1 + max((int(max(mine.max(), true.max())) for mine, true in pairs), default=0))
        scores = {"dice": dice, "iou": intersection_over_union}
        values = {
            name: [mean_over_classes(measure, *pair, classes) for pair in pairs] for name, measure in scores.items()
        }
        values["pixel_error"] = [pixel_error(*pair) for pair in pairs]
        return {name: _mean_of_numbers(numbers) for name, numbers in values.items()}


class CellErrorMetric(evaluate.Metric):
    """`compute(predictions=masks, references=masks)` -> Rand and warping error of masks of cells, means over images."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Whether the right cells come out: foreground-restricted Rand error and warping error of ISBI 2012.",
            citation=_CELLS_CITATION,
            inputs_description="predictions, references: one (height, width) mask for each image, 0 between cells, else 1.",
            features=_MASKS,
        )

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        pairs = [(np.asarray(mine), np.asarray(true)) for mine, true in zip(predictions, references, strict=True)]
        return {
            "rand_error": _mean_of_numbers([rand_error(cells_of(mine), cells_of(true)) for mine, true in pairs]),
            "warping_error": _mean_of_numbers([warping_error(mine, true) for mine, true in pairs]),
        }


def _mean_of_numbers(values: Sequence[float]) -> float:
    """The mean of those that are defined; NaN when none is."""
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")

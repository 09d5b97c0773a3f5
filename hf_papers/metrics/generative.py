"""How far generated images are from real ones: FID, KID and the Inception Score, by torchmetrics, through a ruler of choice.

    FID = |mu_r - mu_g|^2 + tr(S_r + S_g - 2 (S_r S_g)^(1/2))      two Gaussians fitted to the features       (1706.08500)
    KID = E k(r, r') + E k(g, g') - 2 E k(r, g)                    k(a, b) = (a.b / d + 1)^3, unbiased         (1801.01401)
    IS  = exp E_x KL(p(y|x) || p(y))                               p(y|x) by the ruler's own classes          (1606.03498)

FID falls with the number of images, so only numbers from equally many compare. KID does not: its expectation is the same for
any number. All are computed in float64. Names carry the ruler: `fid_lenet` and `fid_inception` are different quantities.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hf_papers.errors import UserError
from hf_papers.metrics.modes import coverage_of_labels
from hf_papers.metrics.rulers import Reading, Ruler


KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
SCORE_SPLITS = 10
# The process that measures does so alone; torchmetrics would otherwise wait for the others to join in.
LOCAL = {"sync_on_compute": False}
PIXEL_SIDE = 8  # of the shrunken images that `frechet_pixels` compares


def generative_metrics(ruler: Ruler, samples: Reading, real: Reading, seed: int = 0) -> dict[str, float]:
    """FID, KID (with its spread over subsets) and Inception Score (with its spread over splits), named after the ruler.

    samples, real: what `ruler` reads from generated and from real images; two of each or more. `seed`: of the subsets.
    """
    name = ruler.name
    kid, kid_std = kernel_distance(samples.features, real.features, seed=seed)
    score, score_std = inception_score(samples.logits, seed=seed)
    return {
        f"fid_{name}": frechet_distance(samples.features, real.features),
        f"kid_{name}": kid,
        f"kid_{name}_std": kid_std,
        f"is_{name}": score,
        f"is_{name}_std": score_std,
    }


def describe_measurement(ruler: Ruler, num_samples: int, num_real: int) -> dict[str, Any]:
    """What results.json must say beside such numbers for them to mean anything."""
    return {
        **ruler.describe(),
        "generated_images": num_samples,
        "real_images": num_real,
        "kid_subsets": KID_SUBSETS,
        "kid_subset_size": min(KID_SUBSET_SIZE, num_samples, num_real),
        "score_splits": SCORE_SPLITS,
    }


def ruler_modes(ruler: Ruler, samples: Reading, labels: torch.Tensor) -> dict[str, float]:
    """Mode coverage by the ruler's own verdicts, named after it; nothing where its classes are not those of `labels`."""
    classes = np.unique(np.asarray(labels))
    if samples.logits.shape[1] != len(classes) or classes[0] != 0 or classes[-1] != len(classes) - 1:
        return {}
    coverage = coverage_of_labels(samples.logits.argmax(1).numpy(), np.asarray(labels), classes)
    return {
        f"modes_covered_{ruler.name}": float(coverage.modes_covered),
        f"mode_entropy_{ruler.name}": coverage.entropy,
        f"mode_kl_{ruler.name}": coverage.kl,
    }


def frechet_distance(samples: torch.Tensor, real: torch.Tensor) -> float:
    """FID's formula on features (n, d) and (m, d), in float64."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    samples, real = _as_features(samples), _as_features(real)
    metric = FrechetInceptionDistance(feature=_Given(samples, real), **LOCAL).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(samples, real=False)
    return float(metric.compute())


def kernel_distance(samples: torch.Tensor, real: torch.Tensor, seed: int = 0) -> tuple[float, float]:
    """KID's formula on features (n, d) and (m, d): mean and standard deviation over random subsets of both."""
    from torchmetrics.image.kid import KernelInceptionDistance

    samples, real = _as_features(samples), _as_features(real)
    size = min(KID_SUBSET_SIZE, len(samples), len(real))
    with _quiet_and_seeded(seed):
        metric = KernelInceptionDistance(_Given(samples, real), subsets=KID_SUBSETS, subset_size=size, **LOCAL)
        metric.set_dtype(torch.float64)
        metric.update(real, real=True)
        metric.update(samples, real=False)
        mean, std = metric.compute()
    return float(mean), float(std)


def inception_score(logits: torch.Tensor, seed: int = 0) -> tuple[float, float]:
    """The Inception Score's formula on logits (n, classes): mean and standard deviation over splits; 1 to the classes."""
    from torchmetrics.image.inception import InceptionScore

    logits = _as_features(logits)
    with _quiet_and_seeded(seed):
        metric = InceptionScore(_Given(logits, logits), splits=min(SCORE_SPLITS, max(2, len(logits) // 2)), **LOCAL)
        metric.set_dtype(torch.float64)
        metric.update(logits)
        mean, std = metric.compute()
    return float(mean), float(std)


def frechet_pixels(samples: torch.Tensor, real: torch.Tensor) -> float:
    """The Fréchet distance of images (n, c, h, w) and (m, c, h, w) in [0, 1] shrunk to 8 x 8 pixels, without any network.

    No FID: it knows nothing of what is in a picture. It is there to compare moments of one training where no ruler is named.
    """
    return frechet_distance(_shrink(samples), _shrink(real))


def frechet_pixels_of_mean(real: torch.Tensor) -> float:
    """What `frechet_pixels` would be for a generator that always draws the mean image: the variance of the real ones."""
    return float(_shrink(real).double().var(0).sum())


def _shrink(images: torch.Tensor) -> torch.Tensor:
    return F.adaptive_avg_pool2d(images.float(), min(PIXEL_SIDE, images.shape[-1])).flatten(1)


def _as_features(values: torch.Tensor) -> torch.Tensor:
    values = torch.as_tensor(values).double()
    if values.ndim != 2 or len(values) < 2:
        raise UserError(f"Two images or more are needed to compare distributions, not {tuple(values.shape)} features.")
    return values


class _Given(nn.Module):
    """A feature network for torchmetrics that gives back what it gets: the ruler has read the images already."""

    def __init__(self, samples: torch.Tensor, real: torch.Tensor) -> None:
        super().__init__()
        if samples.shape[1] != real.shape[1]:
            raise UserError(
                f"Readings of two rulers cannot be compared: one has {samples.shape[1]} features, the other "
                f"{real.shape[1]}."
            )
        self.num_features = samples.shape[1]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


@contextmanager
def _quiet_and_seeded(seed: int) -> Iterator[None]:
    """torchmetrics draws its subsets from the global generator, and warns that it keeps the features it is given."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.manual_seed(seed)
        yield

"""Parzen-window log-likelihood: how the GAN paper (1406.2661, section 5, after Breuleux et al.) scored its samples.

Put a Gaussian of standard deviation sigma on each of n generated images s_i and average them into a density,

    p(x)     = 1/n sum_i N(x; s_i, sigma^2 I)
    log p(x) = logsumexp_i(-|x - s_i|^2 / 2 sigma^2) - log n - d/2 log(2 pi sigma^2),

with sigma chosen to make *validation* images likely, and report the mean of log p over *test* images, in nats.

In 784 dimensions the estimate is far below the true log-likelihood and has a high variance; it can rank models wrongly
(1511.01844, section 3.2). It is here because it is the number the paper published.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hf_papers.errors import UserError


# Rows of test images at a time: 256 x 10,000 distances in float64 are 20 MB.
CHUNK = 256


@dataclass(frozen=True)
class ParzenResult:
    """A score by the whole protocol.

    log_likelihood: mean over the test images, in nats. standard_error: of that mean over the test images (it does not
    contain the spread over training runs). sigma: chosen on the validation images. curve: sigma -> mean validation
    log-likelihood. at_edge: the best sigma was the smallest or largest tried, so a wider grid might find a better one.
    """

    log_likelihood: float
    standard_error: float
    sigma: float
    curve: dict[float, float]
    at_edge: bool


def log_spaced_sigmas(lowest: float = 0.1, highest: float = 1.0, count: int = 19) -> list[float]:
    """Candidates for sigma, evenly spaced in the logarithm. The authors' script tries 10 from 0.1 to 1; these are finer."""
    if not 0 < lowest < highest or count < 2:
        raise UserError(
            f"A grid of sigmas needs 0 < lowest < highest and two or more values, not {lowest}, {highest}, {count}."
        )
    return [float(sigma) for sigma in np.geomspace(lowest, highest, count)]


def parzen_log_likelihood(samples: torch.Tensor, images: torch.Tensor, sigma: float) -> torch.Tensor:
    """log p(x) of each image under the Parzen window of `samples`, in nats.

    samples (n, ...) and images (m, ...) with equally many numbers each, on any scale (the paper's is [0, 1])
    -> (m,) float64. Raises `UserError` for empty, mismatched or non-finite input.
    """
    return _log_likelihoods(samples, images, [sigma])[0]


def parzen_curve(samples: torch.Tensor, images: torch.Tensor, sigmas: Sequence[float]) -> dict[float, float]:
    """sigma -> mean log-likelihood of `images`, in nats. Distances are computed once for all sigmas."""
    values = _log_likelihoods(samples, images, sigmas).mean(dim=1)
    return dict(zip(map(float, sigmas), values.tolist(), strict=True))


def parzen_window_evaluation(
    samples: torch.Tensor,
    validation_images: torch.Tensor,
    test_images: torch.Tensor,
    sigmas: Sequence[float] | None = None,
) -> ParzenResult:
    """The paper's protocol: choose sigma on the validation images, score the test images with it, once."""
    curve = parzen_curve(samples, validation_images, sigmas or log_spaced_sigmas())
    sigma = max(curve, key=curve.__getitem__)
    scores = parzen_log_likelihood(samples, test_images, sigma)
    deviation = scores.std().item() if len(scores) > 1 else float("nan")
    return ParzenResult(
        log_likelihood=scores.mean().item(),
        standard_error=deviation / math.sqrt(len(scores)),
        sigma=sigma,
        curve=curve,
        at_edge=sigma in (min(curve), max(curve)),
    )


@torch.no_grad()
def _log_likelihoods(samples: torch.Tensor, images: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """(len(sigmas), m) float64. |x - s|^2 is |x|^2 + |s|^2 - 2 x.s, so the work is one matrix product.

    In float64: the three terms nearly cancel, and the result is divided by a small sigma^2.
    """
    if not sigmas or min(sigmas) <= 0:
        raise UserError(f"A Parzen window needs positive sigmas, not {list(sigmas)}.")
    samples, images = _as_points(samples, "samples"), _as_points(images, "images")
    if samples.shape[1] != images.shape[1]:
        raise UserError(f"Samples have {samples.shape[1]} numbers each and images {images.shape[1]}; they must agree.")
    count, dimensions = samples.shape
    centre = samples.mean(dim=0)
    samples, images = samples - centre, images - centre
    sample_norms = samples.square().sum(dim=1)
    columns = []
    for chunk in images.split(CHUNK):
        distances = torch.addmm(sample_norms, chunk, samples.T, alpha=-2.0)
        distances = distances.add_(chunk.square().sum(dim=1, keepdim=True)).clamp_(min=0.0)  # (chunk, n)
        columns.append(
            torch.stack(
                [
                    torch.logsumexp(distances * (-0.5 / sigma**2), dim=1)
                    - math.log(count)
                    - 0.5 * dimensions * math.log(2 * math.pi * sigma**2)
                    for sigma in sigmas
                ]
            )
        )
    return torch.cat(columns, dim=1)


def _as_points(values: torch.Tensor, name: str) -> torch.Tensor:
    points = torch.as_tensor(values)
    if points.ndim < 2 or points.numel() == 0:
        raise UserError(
            f"A Parzen window needs {name} of shape (count, numbers) with a count above 0, not {tuple(points.shape)}."
        )
    points = points.flatten(1).double()
    if not torch.isfinite(points).all():
        raise UserError(f"The {name} hold values that are not finite, so no likelihood can be computed from them.")
    return points

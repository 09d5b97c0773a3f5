"""FID, KID, Inception Score and pixel distance against closed formulas and cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from hf_papers.errors import UserError
from hf_papers.metrics import (
    frechet_distance,
    frechet_pixels,
    frechet_pixels_of_mean,
    inception_score,
    kernel_distance,
)
from hf_papers.metrics.generative import KID_SUBSET_SIZE


def cloud(count: int, seed: int, size: int = 12, shift: float = 0.0) -> torch.Tensor:
    dice = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=torch.Generator().manual_seed(99))
    return torch.randn(count, size, generator=dice) @ mixing * (1 + shift) + shift


def closed_formula(a: torch.Tensor, b: torch.Tensor) -> float:
    """|mu - nu|^2 + tr(S + T - 2 (S T)^(1/2)) by numpy and scipy's matrix square root."""
    a, b = a.double().numpy(), b.double().numpy()
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(s @ t).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * root))


def test_frechet_distance_is_the_closed_formula() -> None:
    a, b = cloud(500, 0), cloud(700, 1, shift=0.4)
    assert frechet_distance(a, b) == pytest.approx(closed_formula(a, b), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)


def test_frechet_distance_is_computed_in_float64() -> None:
    """Features far from 0 with a small spread: in float32 the covariance would be rounding alone."""
    a, b = cloud(400, 0) * 1e-2 + 1000.0, cloud(400, 1) * 1e-2 + 1000.0
    a, b = a.double(), b.double()
    assert frechet_distance(a, b) == pytest.approx(closed_formula(a, b), rel=1e-4)


def test_frechet_distance_of_known_gaussians() -> None:
    """Equal covariances leave the means' distance; a flat cloud against a round one leaves the trace."""
    a = cloud(2000, 0)
    assert frechet_distance(a, a + 0.5) == pytest.approx(12 * 0.25, rel=1e-6)
    still = torch.zeros(10, 12)
    expected = float(a.double().var(0).sum() + a.double().mean(0).square().sum())
    assert frechet_distance(still, a) == pytest.approx(expected, rel=1e-6)


def mmd(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased estimate of KID's squared distance, from its definition (1801.01401, section 3): no pair i = i."""

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    n = len(a)
    within = [(k.sum() - np.trace(k)) / (n * (n - 1)) for k in (kernel(a, a), kernel(b, b))]
    return float(sum(within) - 2 * kernel(a, b).mean())


def test_kernel_distance_is_the_unbiased_estimate() -> None:
    a, b = cloud(300, 0), cloud(300, 1, shift=0.2)  # fewer than a subset: each subset is all of them
    mean, std = kernel_distance(a, b)
    assert mean == pytest.approx(mmd(a.double().numpy(), b.double().numpy()), rel=1e-9)
    assert std == pytest.approx(0, abs=1e-9)


def test_kernel_distance_does_not_grow_with_fewer_images() -> None:
    """FID between samples of one distribution is above 0 and falls with their number; KID is 0 on average."""
    few = [kernel_distance(cloud(60, seed), cloud(60, seed + 50))[0] for seed in range(12)]
    spread = np.std(few) / math.sqrt(len(few))
    assert abs(np.mean(few)) < 4 * spread
    assert frechet_distance(cloud(60, 0), cloud(60, 50)) > 3 * frechet_distance(cloud(3000, 0), cloud(3000, 50))


def test_subsets_follow_the_seed_and_leave_the_random_numbers_alone() -> None:
    a, b = cloud(KID_SUBSET_SIZE + 300, 0), cloud(KID_SUBSET_SIZE + 300, 1)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = kernel_distance(a, b, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert kernel_distance(a, b, seed=3) == first and kernel_distance(a, b, seed=4) != first


def test_inception_score_at_its_bounds() -> None:
    sure = torch.eye(5).repeat(400, 1) * 60
    assert inception_score(sure)[0] == pytest.approx(5, abs=0.1)  # every class, each image of one: as many as classes
    assert inception_score(torch.zeros(2000, 5))[0] == pytest.approx(1)  # nothing is said of any image
    assert inception_score(sure[:1].repeat(2000, 1))[0] == pytest.approx(1)  # one class only


def test_inception_score_by_hand() -> None:
    logits = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.manual_seed(0)
    p = torch.softmax(logits, 1)[torch.randperm(1000)]
    parts = [(q * (q / q.mean(0)).log()).sum(1).mean().exp() for q in p.chunk(10)]
    assert inception_score(logits)[0] == pytest.approx(torch.stack(parts).mean().item(), rel=1e-9)


def test_pixel_distance_tells_noise_from_images() -> None:
    dice = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(400, 1, 4, 4, generator=dice), size=16, mode="bilinear")
    near, noise = smooth[200:], torch.rand(200, 1, 16, 16, generator=dice)
    assert frechet_pixels(near, smooth[:200]) < 0.3 * frechet_pixels(noise, smooth[:200])
    always_the_mean = smooth[:200].mean(0, keepdim=True).repeat(50, 1, 1, 1)
    bound = frechet_pixels_of_mean(smooth[:200])
    assert frechet_pixels(always_the_mean, smooth[:200]) == pytest.approx(bound, rel=1e-4)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match="Two images or more"):
        frechet_distance(cloud(1, 0), cloud(5, 0))
    with pytest.raises(UserError, match="two rulers"):
        frechet_distance(cloud(9, 0, size=3), cloud(9, 0, size=4))

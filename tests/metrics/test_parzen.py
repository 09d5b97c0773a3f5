"""Parzen-window likelihood against closed forms, scikit-learn's kernel density, and bad input."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.neighbors import KernelDensity

from hf_papers.errors import UserError
from hf_papers.metrics import log_spaced_sigmas, parzen_curve, parzen_log_likelihood, parzen_window_evaluation


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sigma", [0.05, 0.2, 1.0])
def test_agrees_with_scikit_learn(sigma: float) -> None:
    samples = torch.rand(300, 1, 7, 7, generator=dice(0))
    images = torch.rand(600, 1, 7, 7, generator=dice(1))  # more than one chunk
    # One leaf that holds everything: with more, scikit-learn's tree loses narrow kernels to underflow.
    density = KernelDensity(bandwidth=sigma, kernel="gaussian", leaf_size=1000)
    expected = density.fit(samples.flatten(1).double().numpy()).score_samples(images.flatten(1).double().numpy())
    ours = parzen_log_likelihood(samples, images, sigma)
    assert ours.dtype == torch.float64 and ours.shape == (600,)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-6)


def test_one_sample_is_one_gaussian() -> None:
    centre, sigma = torch.full((1, 5), 0.3), 0.4
    images = torch.rand(50, 5, generator=dice())
    normal = torch.distributions.Normal(centre.double(), torch.tensor(sigma, dtype=torch.float64))
    expected = normal.log_prob(images.double()).sum(1)
    torch.testing.assert_close(parzen_log_likelihood(centre, images, sigma), expected, rtol=1e-10, atol=1e-10)


def test_many_gaussian_samples_approach_the_convolved_gaussian() -> None:
    """The window of N(0, 1) samples with a kernel of width s estimates the density N(0, 1 + s^2)."""
    samples = torch.randn(50_000, 1, generator=dice(2))
    images = torch.randn(400, 1, generator=dice(3)).clamp(-2, 2)
    sigma = 0.3
    expected = torch.distributions.Normal(0.0, math.sqrt(1 + sigma**2)).log_prob(images).squeeze(1).double()
    assert (parzen_log_likelihood(samples, images, sigma) - expected).abs().max() < 0.04


def test_small_distances_survive_large_offsets() -> None:
    """|x|^2 + |s|^2 - 2 x.s cancels badly for points far from the origin: centring and float64 keep the digits."""
    samples = torch.rand(40, 784, generator=dice(4)) + 50
    images = samples[:10] + 0.01 * torch.randn(10, 784, generator=dice(5))
    shifted = parzen_log_likelihood(samples - 50, images - 50, 0.1)
    torch.testing.assert_close(parzen_log_likelihood(samples, images, 0.1), shifted, rtol=1e-4, atol=0)


def test_curve_holds_the_mean_of_each_sigma() -> None:
    samples, images = torch.rand(60, 9, generator=dice(0)), torch.rand(30, 9, generator=dice(1))
    curve = parzen_curve(samples, images, [0.1, 0.3])
    for sigma, value in curve.items():
        assert value == pytest.approx(parzen_log_likelihood(samples, images, sigma).mean().item(), rel=1e-12)


def test_sigma_is_chosen_on_validation_and_never_on_test() -> None:
    samples = torch.randn(500, 2, generator=dice(0))
    near, far = 0.01 * samples[:100] + samples[:100], 3.0 * torch.randn(100, 2, generator=dice(1))
    grid = log_spaced_sigmas(0.02, 2.0, 15)
    result = parzen_window_evaluation(samples, near, far, grid)
    assert result.sigma == max(result.curve, key=result.curve.__getitem__)
    assert result.curve == parzen_curve(samples, near, grid)
    other = parzen_window_evaluation(samples, near, 10 * far, grid)
    assert other.sigma == result.sigma and other.log_likelihood < result.log_likelihood
    scores = parzen_log_likelihood(samples, far, result.sigma)
    assert result.log_likelihood == pytest.approx(scores.mean().item())
    assert result.standard_error == pytest.approx(scores.std().item() / 10)


def test_a_grid_that_is_too_small_is_reported() -> None:
    samples = torch.randn(200, 2, generator=dice(0))
    images = torch.randn(100, 2, generator=dice(1))
    assert parzen_window_evaluation(samples, images, images, [1e-3, 2e-3]).at_edge
    assert not parzen_window_evaluation(samples, images, images, log_spaced_sigmas(0.01, 10, 20)).at_edge


@pytest.mark.parametrize(
    ("samples", "images", "sigma", "words"),
    [
        (torch.rand(3, 4), torch.rand(3, 5), 0.1, "must agree"),
        (torch.rand(0, 4), torch.rand(3, 4), 0.1, "count above 0"),
        (torch.rand(3, 4), torch.rand(3, 4), 0.0, "positive sigmas"),
        (torch.full((3, 4), float("nan")), torch.rand(3, 4), 0.1, "not finite"),
    ],
)
def test_bad_input_is_refused_in_words(samples, images, sigma, words) -> None:
    with pytest.raises(UserError, match=words):
        parzen_log_likelihood(samples, images, sigma)


def test_the_grid_is_even_in_the_logarithm() -> None:
    grid = np.array(log_spaced_sigmas(0.1, 1.0, 10))
    np.testing.assert_allclose(np.diff(np.log(grid)), np.log(10) / 9)
    with pytest.raises(UserError, match="0 < lowest < highest"):
        log_spaced_sigmas(1.0, 0.1)


def test_the_evaluate_metric_is_the_function() -> None:
    from hf_papers.metrics import ParzenLogLikelihoodMetric

    samples, validation = torch.rand(80, 6, generator=dice(0)), torch.rand(40, 6, generator=dice(1))
    test = torch.rand(30, 6, generator=dice(2))
    expected = parzen_window_evaluation(samples, validation, test)
    metric = ParzenLogLikelihoodMetric()
    result = metric.compute(references=test.numpy(), samples=samples.numpy(), validation=validation.numpy())
    assert result["parzen_log_likelihood"] == pytest.approx(expected.log_likelihood, rel=1e-9)
    assert result["sigma"] == expected.sigma
    metric.add_batch(references=test[:10].numpy())
    metric.add_batch(references=test[10:].numpy())
    again = metric.compute(samples=samples.numpy(), sigma=expected.sigma)
    assert again["parzen_log_likelihood"] == pytest.approx(expected.log_likelihood, rel=1e-9)
    assert again["standard_error"] == pytest.approx(expected.standard_error, rel=1e-9)
    with pytest.raises(ValueError, match="exactly one"):
        metric.compute(references=test.numpy(), samples=samples.numpy())


def test_evaluate_is_not_imported_before_it_is_needed() -> None:
    code = (
        "import sys; sys.argv[0] = 'hf-papers'; import hf_papers.metrics as m; "
        "m.parzen_log_likelihood; m.mode_coverage; m.nearest_neighbours; "
        "sys.exit('evaluate' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

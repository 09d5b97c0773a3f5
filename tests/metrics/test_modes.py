"""Mode coverage, diversity and nearest neighbours on data whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from hf_papers.errors import UserError
from hf_papers.metrics import (
    diversity_ratio,
    fit_mode_classifier,
    mean_pairwise_distance,
    mode_coverage,
    nearest_neighbours,
)
from hf_papers.metrics.modes import coverage_of_labels


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()
    return torch.from_numpy(data.images / 16).float().unsqueeze(1), torch.from_numpy(data.target)


@pytest.fixture(scope="module")
def classifier(digits):
    images, labels = digits
    return fit_mode_classifier(images[:1200], labels[:1200])


def test_the_classifier_knows_digits(digits, classifier) -> None:
    images, labels = digits
    assert classifier.score(images[1200:].flatten(1).numpy(), labels[1200:].numpy()) > 0.9


def test_real_images_cover_every_mode(digits, classifier) -> None:
    images, labels = digits
    result = mode_coverage(images[1200:], classifier, labels)
    assert result.modes_covered == result.num_modes == 10
    assert result.kl < 0.02
    assert result.entropy == pytest.approx(np.log(10), abs=0.05)
    assert sum(result.shares) == pytest.approx(1)


def test_a_collapsed_generator_is_caught(digits, classifier) -> None:
    images, labels = digits
    ones = images[labels == 1]
    result = mode_coverage(ones, classifier, labels)
    assert result.modes_covered <= 2
    assert result.kl > 1.5 and result.entropy < 0.7
    assert diversity_ratio(ones[:1].repeat(50, 1, 1, 1), images) == 0
    assert diversity_ratio(images[:500], images[500:1000]) == pytest.approx(1, abs=0.05)


def test_coverage_by_hand() -> None:
    real = np.array([0] * 50 + [1] * 25 + [2] * 25)
    generated = np.array([0] * 50 + [1] * 48 + [2] * 2)  # class 2 at 0.02, below a tenth of its share 0.25
    result = coverage_of_labels(generated, real, np.arange(3))
    assert (result.modes_covered, result.num_modes) == (2, 3)
    shares = np.array([0.5, 0.48, 0.02])
    assert result.kl == pytest.approx((shares * np.log(shares / np.array([0.5, 0.25, 0.25]))).sum())
    assert result.entropy == pytest.approx(-(shares * np.log(shares)).sum())
    with pytest.raises(UserError, match="one image or more"):
        coverage_of_labels(np.array([]), real, np.arange(3))


def test_the_classifier_refuses_what_it_cannot_learn_from(digits) -> None:
    images, labels = digits
    with pytest.raises(UserError, match="one label per image"):
        fit_mode_classifier(images[:10], labels[:9])
    with pytest.raises(UserError, match="two or more classes"):
        fit_mode_classifier(images[labels == 3], labels[labels == 3])


def test_nearest_neighbours_agree_with_brute_force() -> None:
    dice = torch.Generator().manual_seed(0)
    queries, images = torch.rand(700, 1, 4, 4, generator=dice), torch.rand(300, 1, 4, 4, generator=dice)
    distances, indices = nearest_neighbours(queries, images)
    full = (queries.flatten(1)[:, None] - images.flatten(1)[None]).norm(dim=2)
    torch.testing.assert_close(distances, full.min(1).values)
    assert torch.equal(indices, full.argmin(1))
    zero, where = nearest_neighbours(images[7:9], images)
    assert zero.tolist() == [0, 0] and where.tolist() == [7, 8]


def test_mean_pairwise_distance_by_hand() -> None:
    corners = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 4.0]])
    assert mean_pairwise_distance(corners) == pytest.approx((5 + 4 + 3) / 3)
    with pytest.raises(UserError, match="two or more"):
        mean_pairwise_distance(corners[:1])


def test_the_evaluate_metric_is_the_function() -> None:
    from hf_papers.metrics import ModeCoverageMetric

    real, generated = [0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1]
    expected = coverage_of_labels(np.array(generated), np.array(real), np.arange(3))
    result = ModeCoverageMetric().compute(predictions=generated, real_labels=real)
    assert result == {"modes_covered": 2, "entropy": pytest.approx(expected.entropy), "kl": pytest.approx(expected.kl)}

"""The linear SVM against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC

from hf_papers.errors import UserError
from hf_papers.metrics import LinearSvm, svm_evaluation


def classes(count: int, seed: int, noise: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Four classes of 12 numbers that overlap."""
    dice = torch.Generator().manual_seed(seed)
    rule = torch.randn(12, 4, generator=torch.Generator().manual_seed(7))
    features = torch.randn(count, 12, generator=dice)
    return features, (features @ rule + noise * torch.randn(count, 4, generator=dice)).argmax(1)


@pytest.mark.parametrize("cost", [1e-3, 1e-1, 3.0])
def test_it_finds_the_minimum_that_scikit_learn_finds(cost: float) -> None:
    features, labels = classes(500, 0)
    ours = LinearSvm(cost, max_iterations=1000).fit(features, labels)
    theirs = LinearSVC(C=cost, dual=False, tol=1e-9, max_iter=10_000).fit(features.numpy(), labels.numpy())
    np.testing.assert_allclose(ours.weight.numpy(), theirs.coef_, atol=2e-3)
    np.testing.assert_allclose(ours.bias.numpy(), theirs.intercept_, atol=2e-3)
    assert (ours.predict(features).numpy() == theirs.predict(features.numpy())).mean() > 0.998


def test_a_start_elsewhere_ends_at_the_same_place() -> None:
    features, labels = classes(300, 0)
    small = LinearSvm(1e-3).fit(features, labels)
    fresh, warm = (LinearSvm(0.1, 1000).fit(features, labels, start=start) for start in (None, small))
    torch.testing.assert_close(warm.weight, fresh.weight, rtol=0, atol=2e-3)


def test_the_cost_is_chosen_on_validation_rows_and_the_test_rows_are_scored_once() -> None:
    train, validation, test = classes(300, 0), classes(200, 1), classes(4000, 2)
    mean, std = train[0].mean(0), train[0].std(0)
    scaled = [((features - mean) / std, labels) for features, labels in (train, validation, test)]
    copies = [(features.clone() * 5 + 3, labels) for features, labels in (train, validation, test)]
    result = svm_evaluation(*copies, costs=(1e-4, 1e-2, 1.0))
    machines = {cost: LinearSvm(cost, 1000).fit(*scaled[0]) for cost in (1e-4, 1e-2, 1.0)}
    assert result.curve.keys() == machines.keys()
    for cost, machine in machines.items():
        assert result.curve[cost] == pytest.approx(machine.accuracy(*scaled[1]), abs=0.02)
    assert result.cost == max(result.curve, key=result.curve.__getitem__)
    assert result.accuracy == pytest.approx(machines[result.cost].accuracy(*scaled[2]), abs=0.01)
    assert result.at_edge == (result.cost in (1e-4, 1.0))


def test_larger_costs_are_not_tried_once_they_only_hurt() -> None:
    train, validation = classes(60, 0, noise=6.0), classes(400, 1, noise=6.0)
    costs = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    result = svm_evaluation(train, validation, (validation[0].clone(), validation[1]), costs)
    tried = sorted(result.curve)
    assert len(tried) < len(costs) and tried == sorted(costs)[: len(tried)]
    assert tried.index(result.cost) == len(tried) - 3


def test_what_it_cannot_learn_from_is_refused() -> None:
    features, labels = classes(20, 0)
    with pytest.raises(UserError, match="a label per row"):
        LinearSvm(1.0).fit(features, labels[:-1])
    with pytest.raises(UserError, match="two classes"):
        LinearSvm(1.0).fit(features, torch.zeros(20, dtype=torch.long))
    with pytest.raises(UserError, match="must be positive"):
        LinearSvm(0.0)

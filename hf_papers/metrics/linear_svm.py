"""A linear support vector machine on features, the judge of section 5 of DCGAN (1511.06434): L2-regularised, squared hinge.

    min_w  1/2 |w_k|^2 + C sum_i max(0, 1 - y_ik (w_k . x_i + b_k))^2        for every class k, y_ik = 1 for it and -1 else

That is what scikit-learn's `LinearSVC` minimises, bias included in the penalty. It keeps 16 bytes for every number of x, so
that 50,000 images with 14,336 features would take 11 GB; here all classes are solved at once by L-BFGS on the plain matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hf_papers.errors import UserError


COSTS = (3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
MAX_ITERATIONS = 60
PATIENCE = 2  # worse values of C in a row, after which larger ones are not tried


@dataclass(frozen=True)
class SvmResult:
    """accuracy: of the test rows. cost: the C that was best for validation rows. curve: C -> accuracy of validation rows,
    for those that were tried. at_edge: the best C was the smallest or the largest of the grid."""

    accuracy: float
    cost: float
    curve: dict[float, float]
    at_edge: bool


class LinearSvm:
    """One weight vector per class: `fit`, then `predict`. Rows are expected to be standardised."""

    def __init__(self, cost: float, max_iterations: int = MAX_ITERATIONS) -> None:
        if not cost > 0:
            raise UserError(f"The cost C of a support vector machine must be positive, not {cost}.")
        self.cost, self.max_iterations = cost, max_iterations
        self.weight: torch.Tensor | None = None  # (classes, d)
        self.bias: torch.Tensor | None = None  # (classes,)

    def fit(self, features: torch.Tensor, labels: torch.Tensor, start: LinearSvm | None = None) -> LinearSvm:
        """features (n, d) floating point, labels (n,) whole numbers from 0. `start`: a solution for another C."""
        num_classes = int(labels.max()) + 1
        if len(features) != len(labels) or num_classes < 2:
            raise UserError(
                f"A classifier needs a label per row and two classes or more: {len(features)} rows, {len(labels)} labels, "
                f"{num_classes} classes."
            )
        signs = torch.full((len(labels), num_classes), -1.0, dtype=features.dtype, device=features.device)
        signs[torch.arange(len(labels)), labels] = 1.0
        if start is not None and start.weight is not None:
            weight, bias = start.weight.clone(), start.bias.clone()
        else:
            weight, bias = features.new_zeros(num_classes, features.shape[1]), features.new_zeros(num_classes)
        # Divided by C n, which moves no minimum: gradients then have the size that the optimiser's tolerances assume.
        scale = 1.0 / (self.cost * len(features))
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=self.max_iterations,
            tolerance_grad=1e-6,
            tolerance_change=1e-9,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        def objective() -> torch.Tensor:
            # Gradients by hand: autograd would keep a second (n, classes) for each step.
            slack = torch.relu_(1.0 - signs * torch.addmm(bias, features, weight.T))
            loss = 0.5 * scale * (weight.square().sum() + bias.square().sum()) + slack.square().sum() / len(features)
            pull = slack.mul_(signs).mul_(-2.0 / len(features))
            weight.grad, bias.grad = pull.T @ features + scale * weight, pull.sum(0) + scale * bias
            return loss

        optimizer.step(objective)
        self.weight, self.bias = weight, bias
        return self

    def predict(self, features: torch.Tensor) -> torch.Tensor:
        """The likeliest class of each row, (n, d) -> (n,)."""
        return torch.addmm(self.bias, features, self.weight.T).argmax(1)

    def accuracy(self, features: torch.Tensor, labels: torch.Tensor) -> float:
        return (self.predict(features) == labels).float().mean().item()


@torch.no_grad()
def svm_evaluation(
    train: tuple[torch.Tensor, torch.Tensor],
    validation: tuple[torch.Tensor, torch.Tensor],
    test: tuple[torch.Tensor, torch.Tensor],
    costs: Sequence[float] = COSTS,
) -> SvmResult:
    """Choose C on the validation rows, score the test rows with it, once. The small values come first: they are solved fast,
    and each solution is where the next one begins.

    Each of the three is features (n, d) and labels (n,). Features are standardised *in place* by mean and standard deviation
    of the training rows: a copy of them would be gigabytes.
    """
    mean, std = train[0].mean(0), train[0].std(0).clamp_(min=1e-6)
    for features, _ in (train, validation, test):
        features.sub_(mean).div_(std)
    curve: dict[float, float] = {}
    best, machine = None, None
    worse = 0
    for cost in sorted(costs):
        machine = LinearSvm(cost).fit(*train, start=machine)
        curve[cost] = machine.accuracy(*validation)
        if best is None or curve[cost] > curve[best.cost]:
            best, worse = machine, 0
        else:
            worse += 1
        if worse == PATIENCE:
            break
    return SvmResult(best.accuracy(*test), best.cost, curve, at_edge=best.cost in (min(costs), max(costs)))

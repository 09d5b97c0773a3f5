"""The stochastic diagonal Levenberg-Marquardt method of appendix C: every weight has a learning rate of its own.

A weight along which the error bends sharply must move slowly, and one along which it is flat may move fast:

    w_k  <-  w_k - eta / (mu + h_kk)  dE/dw_k,        h_kk = mean over some images of  sum over uses of w_k  d2E / du2

`mu` keeps flat weights from running away. Second derivatives are propagated back as first ones are, with every weight and
input squared and the second derivative of the squashing function left out (Gauss-Newton), so that none is negative.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from hf_papers.papers.lenet.modeling_lenet import PaperLenetForImageClassification


class LevenbergMarquardt(Optimizer):
    """One step divides each gradient by mu + h_kk; `set_curvature` says what h_kk is, and comes before the first step."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, mu: float) -> None:
        super().__init__(parameters, {"lr": lr, "peak_lr": lr, "mu": mu})

    def set_curvature(self, curvature: dict[nn.Parameter, torch.Tensor]) -> None:
        """Second derivatives by parameter, each of its shape. They belong to the state that a checkpoint holds."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["curvature"] = curvature[parameter].to(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    damped = self.state[parameter]["curvature"] + group["mu"]
                    parameter.addcdiv_(parameter.grad, damped, value=-group["lr"])


@torch.enable_grad()
def diagonal_curvature(
    model: PaperLenetForImageClassification, pixel_values: torch.Tensor
) -> dict[nn.Parameter, torch.Tensor]:
    """h_kk of every parameter, the mean over the images (B, C, H, W), each in its parameter's shape.

    With a = sum_j u_j x_j + bias and x' = f(a), appendix C propagates, from the last layer back,

        d2E/da2 = f'(a)^2 d2E/dx'2,     d2E/du_j2 = x_j^2 d2E/da2,     d2E/dx_j2 = sum u_j^2 d2E/da2.

    The last two are what an ordinary backward pass computes in a twin of the network that holds the squares of the weights
    and is shown the squares of the inputs. It starts from E = y_D (eq. 8), whose second derivative in a unit of F6 is 2.
    """
    twin = copy.deepcopy(model).requires_grad_(True)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.square_()
    states = pixel_values
    squares = states.square()
    for name in ("c1", "s2", "c3", "s4", "c5", "f6"):
        layer, other = getattr(model, name), getattr(twin, name)
        if name == "c5":
            states, squares = states.flatten(1), squares.flatten(1)
        with torch.no_grad():
            sums = layer.weighted_sum(states)
        sums.requires_grad_(True)
        states = layer.activation(sums)
        (slope,) = torch.autograd.grad(states.sum(), sums)
        states = states.detach()
        # The value is x'^2, as the next layer needs it; the gradient passes to the sums with the factor f'^2.
        propagated = other.weighted_sum(squares)
        squares = states.square() + slope.square() * (propagated - propagated.detach())
    (2 * squares.sum() / len(pixel_values)).backward()
    return {
        parameter: second.grad.detach()
        for parameter, second in zip(model.parameters(), twin.parameters(), strict=True)
    }


__all__ = ["LevenbergMarquardt", "diagonal_curvature"]

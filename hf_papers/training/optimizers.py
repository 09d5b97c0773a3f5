"""Optimisers from the arguments, with weight decay where it belongs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hf_papers.training.arguments import TrainingArguments


def build_optimizer(network: nn.Module, arguments: TrainingArguments, **overrides: Any) -> Optimizer:
    """The optimiser that `arguments` ask for over the trainable parameters of `network`.

    `overrides` replace single arguments, for a second player with a learning rate of its own. Every group remembers its
    peak rate as `peak_lr`, which schedules scale. Vectors (biases, norms) are not decayed.
    """
    arguments = replace(arguments, **overrides)
    groups = _parameter_groups(network.parameters(), arguments.weight_decay)
    lr, epsilon = arguments.learning_rate, arguments.adam_epsilon
    betas = (arguments.adam_beta1, arguments.adam_beta2)
    # One kernel for all parameters instead of some ten per parameter; the plain loop is slower on the CPU.
    if arguments.optimizer == "adam":
        optimizer = torch.optim.Adam(groups, lr, betas, epsilon, fused=True)
    elif arguments.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr, betas, epsilon, fused=True)
    elif arguments.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr, arguments.momentum, fused=True)
    elif arguments.optimizer == "adagrad":
        optimizer = torch.optim.Adagrad(groups, lr, eps=epsilon)
    else:
        optimizer = torch.optim.RMSprop(groups, lr, eps=epsilon, momentum=arguments.momentum)
    for group in optimizer.param_groups:
        group["peak_lr"] = lr
    return optimizer


def _parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if weight_decay == 0:
        return [{"params": trainable, "weight_decay": 0.0}]
    matrices = [parameter for parameter in trainable if parameter.ndim > 1]
    vectors = [parameter for parameter in trainable if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]

"""A shadow: a copy of a network that follows it slowly. DDPM's averaged weights and DQN's target network are both one."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Shadow:
    """How a copy follows: every `every` steps, shadow = decay * shadow + (1 - decay) * network.

    `Shadow(decay=0.9999)` is an exponential moving average, `Shadow(decay=0.0, every=10_000)` the target network of DQN.
    With `warm` the decay begins near 0 and grows to its value, as 1 - 9 / (10 + step): otherwise an average still holds the
    random weights of the start when it is first looked at.
    """

    decay: float
    every: int = 1
    warm: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0 or self.every < 1:
            raise ValueError(f"A shadow needs 0 <= decay < 1 and every >= 1, not {self}.")

    def copy_of(self, network: nn.Module) -> nn.Module:
        """A copy that takes no gradient and is in eval mode."""
        return copy.deepcopy(network).requires_grad_(False).eval()

    @torch.no_grad()
    def follow(self, shadow: nn.Module, network: nn.Module, step: int) -> None:
        """Move `shadow` towards `network` if it is due after `step` updates. Buffers (counts, statistics) are copied."""
        if step % self.every:
            return
        targets, sources = list(shadow.parameters()), list(network.parameters())
        decay = min(self.decay, 1.0 - 9.0 / (10.0 + step)) if self.warm else self.decay
        if decay == 0.0:
            torch._foreach_copy_(targets, sources)
        else:
            torch._foreach_lerp_(targets, sources, 1.0 - decay)
        for target, source in zip(shadow.buffers(), network.buffers(), strict=True):
            target.copy_(source)

"""Dropout whose random numbers are cheap on a CPU."""

import torch
import torch.nn.functional as F


LEVELS = 65_536  # what 16 random bits can tell apart


def dropout(hidden_states: torch.Tensor, probability: float, training: bool) -> torch.Tensor:
    """Set a share of the numbers to 0 and scale up the rest, as `F.dropout` does; any shape.

    `F.dropout` draws every number of a CPU's mask on its own, which takes longer than the layer before it. 64 random bits
    are enough for four of them: the probability is rounded to a 65,536th. Chance comes from the global generator.
    """
    if not training or probability == 0:
        return hidden_states
    if hidden_states.device.type != "cpu":
        return F.dropout(hidden_states, probability)
    dropped = round(probability * LEVELS)
    count = hidden_states.numel()
    draws = torch.randint(-(2**63), 2**63 - 1, ((count + 3) // 4,))  # 64 bits each
    kept = draws.view(torch.int16)[:count] >= dropped - LEVELS // 2
    scale = kept.view(hidden_states.shape).to(hidden_states.dtype) * (LEVELS / (LEVELS - dropped))
    return hidden_states * scale


__all__ = ["dropout"]

"""Learning-rate schedules as plain functions of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from hf_papers.errors import UserError
from hf_papers.training.arguments import TrainingArguments


def learning_rate_factor(step: int, total_steps: int | None, arguments: TrainingArguments) -> float:
    """What the peak learning rate is multiplied by at `step` (counted from 0): linear warm-up, then the shape asked for.

    linear, cosine and exponential end at `lr_final_factor` of the peak on the last step, so they need `total_steps`.
    inverse_sqrt is the Transformer's (1706.03762, section 5.3), scaled to peak at the end of the warm-up.
    """
    warmup = arguments.warmup_steps
    if warmup == 0 and arguments.warmup_ratio > 0:
        if total_steps is None:
            raise UserError("A warm-up that is a share of the training has to know its end: set --max_steps.")
        warmup = math.ceil(arguments.warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    shape = arguments.lr_scheduler_type
    if shape == "constant":
        return 1.0
    if shape == "inverse_sqrt":
        return math.sqrt(max(warmup, 1) / (step + 1))
    if total_steps is None:
        raise UserError(f"The {shape} schedule has to know its end: set --max_steps.")
    progress = min(1.0, (step - warmup) / max(1, total_steps - 1 - warmup))
    final = arguments.lr_final_factor
    if shape == "linear":
        return 1.0 + (final - 1.0) * progress
    if shape == "cosine":
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
    if final <= 0:
        raise UserError("The exponential schedule never reaches 0: set --lr_final_factor to its end, e.g. 0.01.")
    return final**progress

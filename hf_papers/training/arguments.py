"""The trainer's own options, under the names of transformers' examples. No heavy import: `--help` reads this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hf_papers.data.arguments import option
from hf_papers.errors import UserError


@dataclass(frozen=True)
class TrainingArguments:
    """Everything the trainer needs to know. A step is one update of the optimisers, on every process together."""

    output_dir: str | None = option(
        None, "folder of the run; runs/<paper>-<recipe>-seed<seed> when not given", affects_result=False
    )
    overwrite_output_dir: bool = option(
        False, "delete what the output folder holds and start anew", affects_result=False
    )
    resume: str | None = option(
        None,
        "'auto' for the newest complete checkpoint of the output folder, or a checkpoint's path",
        affects_result=False,
    )

    max_steps: int | None = option(None, "optimiser steps; wins over --num_train_epochs")
    num_train_epochs: float | None = option(None, "passes over the training split, where it has an end")
    per_device_train_batch_size: int = option(64, "examples per process and micro-batch")
    gradient_accumulation_steps: int = option(1, "micro-batches per step")
    seed: int = option(0, "of weights, data order and noise")
    deterministic: bool = option(False, "only algorithms that repeat bit for bit, where the device has them")
    mixed_precision: Literal["no", "fp16", "bf16"] = option("no", "precision of the forward and backward pass")
    use_cpu: bool = option(False, "stay on the CPU though there is an accelerator")
    num_processes: int | None = option(
        # Launchers do not give it; a checkpoint knows how many wrote it and refuses another number.
        None,
        "start this many processes on this machine (one per GPU, or on the CPU)",
        affects_result=False,
    )
    activation_checkpointing: bool = option(False, "recompute activations in the backward pass to save memory")
    torch_compile: bool = option(False, "compile the networks with torch.compile")

    optimizer: Literal["adam", "adamw", "sgd", "adagrad", "rmsprop"] = option("adamw", "which optimiser")
    learning_rate: float = option(1e-3, "peak learning rate")
    weight_decay: float = option(0.0, "decay of weights; biases and norms are left alone")
    adam_beta1: float = option(0.9, "Adam's decay of the first moment")
    adam_beta2: float = option(0.999, "Adam's decay of the second moment")
    adam_epsilon: float = option(1e-8, "Adam's, Adagrad's and RMSProp's denominator guard")
    momentum: float = option(0.0, "of SGD and RMSProp")
    max_grad_norm: float | None = option(None, "clip each network's gradient to this norm")
    lr_scheduler_type: Literal["constant", "linear", "cosine", "inverse_sqrt", "exponential"] = option(
        "constant", "shape of the learning rate after warm-up"
    )
    lr_final_factor: float = option(0.0, "linear, cosine, exponential: learning rate at the last step / peak")
    warmup_steps: int = option(0, "steps of linear warm-up from zero")
    warmup_ratio: float = option(0.0, "share of all steps that are warm-up, where --warmup_steps is 0")

    logging_steps: int = option(50, "steps between two lines of metrics", affects_result=False)
    eval_steps: int | None = option(None, "steps between two evaluations on the validation split; none: at the end")
    save_steps: int | None = option(None, "steps between two checkpoints; none: at the end", affects_result=False)
    save_total_limit: int = option(2, "checkpoints kept, the newest", affects_result=False)
    load_best_model_at_end: bool = option(True, "publish the best by validation instead of the last")
    report_to: str = option(
        "tensorboard", "tensorboard, trackio, wandb (several by comma) or none", affects_result=False
    )
    progress: bool = option(True, "show a progress bar", affects_result=False)
    push_to_hub: bool = option(False, "publish the finished run", affects_result=False)
    hub_model_id: str | None = option(None, "repository to publish to, as user/name", affects_result=False)

    def __post_init__(self) -> None:
        positive = ("max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps")
        positive += ("num_processes", "logging_steps", "eval_steps", "save_steps", "save_total_limit", "max_grad_norm")
        for name in positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} must be positive, not {value}.")
        for name in ("learning_rate", "weight_decay", "warmup_steps", "momentum", "lr_final_factor", "adam_epsilon"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise UserError(f"{name} must be a finite number of at least 0, not {value}.")
        for name in ("adam_beta1", "adam_beta2", "warmup_ratio"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} must lie in [0, 1), not {getattr(self, name)}.")
        if self.push_to_hub and not self.hub_model_id:
            raise UserError("--push_to_hub needs to know where: add --hub_model_id user/name.")

    @property
    def trackers(self) -> list[str]:
        return [] if self.report_to == "none" else [name.strip() for name in self.report_to.split(",")]

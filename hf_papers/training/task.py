"""The training side of a paper. The trainer owns *when* things happen; a task owns *what* happens."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from hf_papers.data import Source, open_source
from hf_papers.errors import UserError
from hf_papers.training.optimizers import build_optimizer
from hf_papers.training.recipe import Recipe
from hf_papers.training.schedules import learning_rate_factor
from hf_papers.training.shadow import Shadow


Batch = dict[str, torch.Tensor]
# A task yields: whose turn it is, what that network minimises, and what is worth watching.
Turn = tuple[str, torch.Tensor, dict[str, torch.Tensor | float]]


@dataclass(frozen=True)
class NoOptions:
    """For a task that has no options of its own."""


@dataclass(frozen=True)
class Context:
    """Where a task finds itself: the device, and which of how many processes this is."""

    device: torch.device
    rank: int
    world_size: int
    seed: int

    def unwrap(self, network: nn.Module) -> nn.Module:
        """The bare network behind DistributedDataParallel or torch.compile, to read from outside a training step."""
        while hasattr(network, "_orig_mod") or isinstance(network, nn.parallel.DistributedDataParallel):
            network = network._orig_mod if hasattr(network, "_orig_mod") else network.module
        return network

    def numpy_generator(self, *purpose: int) -> np.random.Generator:
        """A random source of its own, the same for the same (seed, rank, purpose) whatever else was drawn."""
        return np.random.default_rng([self.seed, self.rank, *purpose])

    def torch_generator(self, *purpose: int) -> torch.Generator:
        """The same for torch, on the CPU."""
        seed = np.random.SeedSequence([self.seed, self.rank, *purpose]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(seed))


class Task:
    """One paper's training: subclass it, give `losses` and `evaluate`, and override what else differs."""

    Options: ClassVar[type] = NoOptions
    best_metric: ClassVar[str] = "loss"  # of `evaluate(..., "validation")`; decides which weights are the best
    greater_is_better: ClassVar[bool] = False
    pipeline_tag: ClassVar[str | None] = None  # what the Hub's widget does with the model, where it is not the paper's

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.options = recipe.task
        self.arguments = recipe.training
        self.data = recipe.data
        self.source = self.open_source()
        self._stream: Any = None
        self._stream_state: dict[str, Any] | None = None

    @classmethod
    def model_options(cls, options: Any, given: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
        """The fields of the model's config, called while a recipe is resolved: what the recipe and the command line give.

        A task that starts from a checkpoint adds what that one decides, so that the recipe of a run says what was
        trained. `given` are the fields that are set, `known` the names of all; a run's own recipe gives all of them.
        """
        return given

    def describe(self) -> dict[str, Any]:
        """What results.json says of this training beside its numbers, in plain values.

        `note`, where there is one, is a few words without which no number may be quoted: tables and cards repeat them.
        """
        return {}

    # What is trained

    def build_model(self) -> nn.Module:
        """A freshly initialised model."""
        return self.recipe.paper.model_class(self.recipe.config)

    def build_processor(self) -> Any | None:
        """What turns a user's input into the model's; it is saved beside the weights."""
        return None

    def networks(self, model: nn.Module) -> dict[str, nn.Module]:
        """The players, by name: each has an optimiser of its own and takes its own gradient steps."""
        return {"model": model}

    def shadows(self) -> dict[str, Shadow]:
        """Network name -> how a slow copy of it follows."""
        return {}

    def optimizers(self, networks: dict[str, nn.Module]) -> dict[str, Optimizer]:
        return {name: build_optimizer(network, self.arguments) for name, network in networks.items()}

    def schedule(self, optimizers: dict[str, Optimizer], step: int, total_steps: int) -> None:
        """Set the learning rates for `step`. A pure function of the step, so that nothing of it needs saving."""
        factor = learning_rate_factor(step, total_steps, self.arguments)
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor

    # What it is trained on

    def open_source(self) -> Source | None:
        """Where rows come from; None for a task that has no data set."""
        return open_source(self.data) if self.data.dataset else None

    def train_rows(self) -> int | None:
        """Rows of the training split; None when only reading it would tell."""
        return self.source.num_rows(self.data.train_split) if self.source else None

    def preprocess(self, rows: list[dict[str, Any]]) -> Batch:
        """Rows of the data set (columns already renamed) as stacked tensors. Deterministic: the stream keeps the result."""
        raise TypeError(f"{type(self).__name__} reads a data set but does not say how to preprocess its rows.")

    def total_steps(self, context: Context) -> int:
        """Optimiser steps of the whole training: `max_steps`, else from the epochs and the size of the data."""
        if self.arguments.max_steps is not None:
            return self.arguments.max_steps
        epochs = self.arguments.num_train_epochs
        rows = self.train_rows()
        if epochs is None or rows is None:
            raise UserError("How long to train is not known here: set --max_steps.")
        per_process = rows // context.world_size
        per_epoch = per_process // self.arguments.per_device_train_batch_size
        if per_epoch == 0:
            raise UserError(
                f"The split '{self.data.train_split}' has {rows} rows for {context.world_size} process(es), fewer than "
                f"one batch of {self.arguments.per_device_train_batch_size} each: lower --per_device_train_batch_size."
            )
        return max(1, math.floor(epochs * per_epoch / self.arguments.gradient_accumulation_steps))

    def batches(self, networks: dict[str, nn.Module], context: Context) -> Iterator[Batch]:
        """Endless batches: here the training split as a stream. A task that lives in an environment plays it instead."""
        if self.source is None:
            raise UserError("This recipe names no data set: add --dataset, e.g. --dataset ylecun/mnist.")
        self._stream = self.source.stream(
            self.data.train_split,
            self.preprocess,
            self.arguments.per_device_train_batch_size,
            seed=context.seed,
            rank=context.rank,
            world_size=context.world_size,
        )
        if self._stream_state is not None:
            self._stream.load_state_dict(self._stream_state)
        return iter(self._stream)

    @property
    def epoch(self) -> int:
        """Passes over the data that this process has finished."""
        return self._stream.epoch if self._stream is not None else 0

    # What a step is, and what is looked at

    def losses(
        self, networks: dict[str, nn.Module], shadows: dict[str, nn.Module], batch: Batch, step: int
    ) -> Iterator[Turn]:
        """One step, in the order of the paper's algorithm. After each yield that network has taken its gradient step."""
        outputs = networks["model"](**batch)
        yield "model", outputs.loss, {}

    def published(self, model: nn.Module, shadows: dict[str, nn.Module]) -> nn.Module:
        """The model as others get it, and as it is evaluated: the trained one, or a copy that holds averaged weights."""
        return model

    def evaluate(self, model: nn.Module, split: str, context: Context) -> dict[str, float]:
        """Metrics on the `"validation"` or the `"test"` split; both are names of a role, the recipe says which rows."""
        return {}

    def figures(self, model: nn.Module, folder: Path, context: Context) -> dict[str, Path]:
        """Pictures of the finished model: caption -> file."""
        return {}

    # What a checkpoint must remember of it

    def state_dict(self) -> dict[str, Any]:
        return {"stream": self._stream.state_dict()} if self._stream is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._stream_state = state.get("stream")

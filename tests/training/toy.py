"""A paper small enough to train in milliseconds: a line through points, or two players pulling at it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_papers.registry import Paper
from hf_papers.training.recipe import Recipe, recipe_from_dict
from hf_papers.training.run import Run
from hf_papers.training.shadow import Shadow
from hf_papers.training.task import Batch, Context, Task, Turn
from hf_papers.training.trainer import Trainer


@strict
class ToyConfig(PreTrainedConfig):
    model_type = "paper-toy"
    width: int = 8
    dropout: float | int = 0.1

    def validate_architecture(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be positive, not {self.width}")


class ToyModel(PreTrainedModel):
    config: ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.line = nn.Sequential(nn.Linear(4, config.width), nn.Tanh(), nn.Linear(config.width, 1))
        self.rival = nn.Linear(1, 1)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return self.line(self.dropout(points))


@dataclass(frozen=True)
class ToyOptions:
    players: int = field(default=1, metadata={"help": "one, or two with opposite aims"})
    poison_step: int = field(default=-1, metadata={"help": "the step whose batch holds a NaN"})
    shadow_decay: float = field(default=0.9, metadata={"help": "of the averaged weights"})


class ToyTask(Task):
    Options = ToyOptions

    def build_model(self) -> ToyModel:
        return ToyModel(self.recipe.config)

    def networks(self, model: nn.Module) -> dict[str, nn.Module]:
        return {"model": model} if self.options.players == 1 else {"line": model.line, "rival": model.rival}

    def shadows(self) -> dict[str, Shadow]:
        return {"model" if self.options.players == 1 else "line": Shadow(self.options.shadow_decay)}

    def batches(self, networks: dict[str, nn.Module], context: Context) -> Iterator[Batch]:
        self.generator = context.torch_generator(7)
        if self._stream_state is not None:
            self.generator.set_state(self._stream_state["generator"])
        while True:
            yield {"points": torch.randn(self.arguments.per_device_train_batch_size, 4, generator=self.generator)}

    def losses(
        self, networks: dict[str, nn.Module], shadows: dict[str, nn.Module], batch: Batch, step: int
    ) -> Iterator[Turn]:
        points = batch["points"]
        if step == self.options.poison_step:
            points = points * float("nan")
        truth = points.sum(1, keepdim=True)
        if self.options.players == 1:
            yield "model", (networks["model"](points) - truth).square().mean(), {"size": points.abs().mean()}
            return
        yield "line", (networks["line"](points) - truth + networks["rival"](truth)).square().mean(), {}
        yield "rival", -(networks["line"](points) - networks["rival"](truth)).abs().mean(), {}

    def evaluate(self, model: nn.Module, split: str, context: Context) -> dict[str, float]:
        points = torch.randn(64, 4)
        return {"loss": float((model.line(points) - points.sum(1, keepdim=True)).square().mean())}

    def state_dict(self) -> dict[str, Any]:
        return {"stream": {"generator": self.generator.get_state()}}


class ToyPaper(Paper):
    def resolve(self, reference: str) -> Any:
        return getattr(sys.modules[__name__], reference.split(":")[1])

    @property
    def folder(self) -> Path:
        return Path(__file__).parent / "toy_paper"


TOY = ToyPaper(
    key="toy",
    title="A line",
    authors="Nobody",
    year=2000,
    arxiv="0000.00000",
    summary="A line through points.",
    config="toy:ToyConfig",
    models={"AutoModel": "toy:ToyModel"},
    task="toy:ToyTask",
)


def toy_recipe(output_dir: Path, **overrides: Any) -> Recipe:
    """60 steps with a checkpoint and an evaluation every 20."""
    content = {
        "training": {"max_steps": 60, "save_steps": 20, "eval_steps": 20, "logging_steps": 10, "report_to": "none"},
        "data": {},
    }
    text = {"output_dir": str(output_dir), "progress": "false", "use_cpu": "true"}
    text |= {name: str(value) for name, value in overrides.items()}
    return recipe_from_dict(TOY, "toy", content, text, "toy.yaml")


def toy_trainer(output_dir: Path, **overrides: Any) -> Trainer:
    recipe = toy_recipe(output_dir, **overrides)
    trainer = Trainer(ToyTask(recipe), Run(recipe.output_dir, recipe.training.save_total_limit))
    trainer.prepare()
    return trainer


def train_toy(output_dir: Path, **overrides: Any) -> Trainer:
    trainer = toy_trainer(output_dir, **overrides)
    trainer.train()
    return trainer

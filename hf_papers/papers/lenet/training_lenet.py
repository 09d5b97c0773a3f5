"""How LeNet-5 is trained, judged and pictured (section III)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hf_papers.errors import UserError
from hf_papers.papers.lenet.image_processing_lenet import PaperLenetImageProcessor
from hf_papers.papers.lenet.levenberg_marquardt_lenet import LevenbergMarquardt, diagonal_curvature
from hf_papers.papers.lenet.modeling_lenet import PaperLenetForImageClassification
from hf_papers.training.arguments import option
from hf_papers.training.classification import ImageClassificationOptions, ImageClassificationTask
from hf_papers.training.task import Batch, Context, Turn


@dataclass(frozen=True)
class LenetOptions(ImageClassificationOptions):
    """The options of every classifier, and the paper's own optimiser."""

    levenberg_marquardt: bool = option(
        False, "a learning rate for every weight by its second derivative (appendix C), in place of --optimizer"
    )
    mu: float = option(0.02, "appendix C: added to every second derivative, so that flat weights do not run away")
    curvature_images: int = option(500, "appendix C: training images that second derivatives are averaged over")
    curvature_steps: int | None = option(
        None, "appendix C: steps between two estimates of second derivatives; once in a pass when not given"
    )
    rates_by_pass: tuple[float, ...] = option(
        (), "appendix C: learning rate of each pass over the data, the last one staying; none: --learning_rate"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mu < float("inf"):
            raise UserError(f"mu must be positive, not {self.mu}: it is what weights on flat ground are divided by.")
        for name in ("curvature_images", "curvature_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if any(not 0 < rate < float("inf") for rate in self.rates_by_pass):
            raise UserError(f"rates_by_pass must be positive numbers, not {self.rates_by_pass}.")


class LenetTask(ImageClassificationTask):
    """Digits to classes, by the model's criterion and any optimiser, or by that of appendix C."""

    Options = LenetOptions
    options: LenetOptions

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        config = recipe.config
        if self.options.levenberg_marquardt and (config.output, config.subsampling) != ("rbf", "trainable"):
            raise UserError(
                "The second derivatives of appendix C are those of the paper's own layers: leave out --levenberg_marquardt, "
                "or set --output rbf and --subsampling trainable."
            )
        if self.options.rates_by_pass and not self.options.levenberg_marquardt:
            raise UserError("--rates_by_pass belongs to --levenberg_marquardt: use --lr_scheduler_type without it.")

    def build_processor(self) -> PaperLenetImageProcessor:
        """Digits fill 28 of the paper's 32 pixels; other sizes keep that share."""
        config = self.recipe.config
        margin = round(config.image_size / 16)
        side = config.image_size - 2 * margin
        return PaperLenetImageProcessor(
            size={"height": side, "width": side}, margin=margin, num_channels=config.num_channels
        )

    # Appendix C

    def optimizers(self, networks: dict[str, nn.Module]) -> dict[str, Optimizer]:
        if not self.options.levenberg_marquardt:
            return super().optimizers(networks)
        self._model = networks["model"]
        self._optimizer = LevenbergMarquardt(self._model.parameters(), self.arguments.learning_rate, self.options.mu)
        return {"model": self._optimizer}

    def schedule(self, optimizers: dict[str, Optimizer], step: int, total_steps: int) -> None:
        if not self.options.rates_by_pass:
            super().schedule(optimizers, step, total_steps)
            return
        number = min(step // self.steps_per_pass, len(self.options.rates_by_pass) - 1)
        for group in optimizers["model"].param_groups:
            group["lr"] = self.options.rates_by_pass[number]

    @property
    def steps_per_pass(self) -> int:
        """Optimiser steps of one process for one look at every training image."""
        rows = self.train_rows()
        if rows is None:
            raise UserError("The number of training rows is not known here, so passes cannot be told apart.")
        return max(
            1, rows // (self.arguments.per_device_train_batch_size * self.arguments.gradient_accumulation_steps)
        )

    def losses(
        self, networks: dict[str, nn.Module], shadows: dict[str, nn.Module], batch: Batch, step: int
    ) -> Iterator[Turn]:
        if self.options.levenberg_marquardt and step % (self.options.curvature_steps or self.steps_per_pass) == 0:
            self._optimizer.set_curvature(diagonal_curvature(self._model, self.curvature_pixels(batch)))
        yield from super().losses(networks, shadows, batch, step)

    def curvature_pixels(self, batch: Batch) -> torch.Tensor:
        """The first training images, as the model sees them, on the device of `batch`."""
        rows = self.source.tensors(self.data.train_split, self.preprocess, limit=self.options.curvature_images)
        return self.normalise(rows["images"].to(batch["images"].device).float() / 255)

    # Pictures

    def figures(self, model: PaperLenetForImageClassification, folder: Path, context: Context) -> dict[str, Path]:
        """The mistakes of any classifier, and what the layers make of a digit."""
        from hf_papers.papers.lenet.figures_lenet import draw_figures

        files = super().figures(model, folder, context)
        if files:
            role = "test" if self.data.test_split else "validation"
            batch = next(self.examples(role, context.device))
            files |= draw_figures(model, batch["pixel_values"], batch["labels"], folder)
        return files


__all__ = ["LenetOptions", "LenetTask"]

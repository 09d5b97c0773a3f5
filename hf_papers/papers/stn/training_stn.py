"""How spatial transformer networks are trained, judged and pictured (section 4.1, appendix A)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from hf_papers.data.validation import check_labels
from hf_papers.errors import UserError
from hf_papers.papers.stn.distortions_stn import Distortion, Kind
from hf_papers.papers.stn.image_processing_stn import PaperStnImageProcessor
from hf_papers.papers.stn.modeling_stn import PaperStnForImageClassification
from hf_papers.training.arguments import option
from hf_papers.training.classification import ImageClassificationOptions, ImageClassificationTask
from hf_papers.training.optimizers import build_optimizer
from hf_papers.training.task import Batch, Context


# Every run is judged on the same distorted digits, whatever its own seed.
EVALUATION_SEEDS = {"validation": 1506, "test": 2025}
MADE_AT_ONCE = 500  # evaluation images; patches of clutter come out of the same batch


@dataclass(frozen=True)
class StnOptions(ImageClassificationOptions):
    """Which distorted digits are learnt, and at which rate the localisation network follows."""

    distortion: Kind = option("cluttered", "how digits are distorted, anew at every look; none: images as they are")
    digit_size: int = option(28, "height and width to which digits are brought before they are distorted")
    clutter_patches: int = option(6, "cluttered digits: pieces of other digits in an image")
    clutter_size: int = option(8, "cluttered digits: height and width of a piece, in pixels")
    localization_rate: float = option(1.0, "learning rate of the localisation networks / that of the classifier")
    rate_drop_steps: int | None = option(None, "divide learning rates by ten whenever so many steps have passed")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("digit_size", "clutter_patches", "clutter_size", "rate_drop_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.clutter_size > self.digit_size:
            raise UserError(f"clutter_size {self.clutter_size} is more than a digit has pixels ({self.digit_size}).")
        if not 0 <= self.localization_rate < float("inf"):
            raise UserError(f"localization_rate must be a number of at least 0, not {self.localization_rate}.")


class StnTask(ImageClassificationTask):
    """Classify distorted digits. Every look at a digit distorts it anew; validation and test images are always the same."""

    Options = StnOptions
    options: StnOptions

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        config, options = recipe.config, self.options
        self.distortion = Distortion(
            options.distortion, config.image_size, options.clutter_patches, options.clutter_size
        )
        if not self.makes_images:
            return
        if config.num_channels != self.distortion.num_channels:
            raise UserError(
                f"The distortion '{options.distortion}' makes images of {self.distortion.num_channels} channel(s): set "
                f"--num_channels {self.distortion.num_channels}."
            )
        if config.image_size < options.digit_size:
            raise UserError(
                f"Digits of {options.digit_size} pixels do not fit images of {config.image_size}: raise --image_size or "
                "lower --digit_size."
            )

    @property
    def makes_images(self) -> bool:
        """Whether images are made from digits, instead of taken as they are."""
        return self.options.distortion != "none"

    def build_processor(self) -> PaperStnImageProcessor:
        config = self.recipe.config
        size = {"height": config.image_size, "width": config.image_size}
        return PaperStnImageProcessor(size=size, num_channels=config.num_channels)

    def build_model(self) -> nn.Module:
        """Channels last in memory: convolutions and poolings then take a quarter less time on the CPU."""
        return super().build_model().to(memory_format=torch.channels_last)

    def optimizers(self, networks: dict[str, nn.Module]) -> dict[str, Optimizer]:
        model, factor = networks["model"], self.options.localization_rate
        if factor == 1.0 or not model.transformers:
            return super().optimizers(networks)
        optimizer = build_optimizer(model.classifier, self.arguments)
        rate = factor * self.arguments.learning_rate
        for group in build_optimizer(model.transformers, self.arguments, learning_rate=rate).param_groups:
            optimizer.add_param_group(group)
        return {"model": optimizer}

    def schedule(self, optimizers: dict[str, Optimizer], step: int, total_steps: int) -> None:
        super().schedule(optimizers, step, total_steps)
        if self.options.rate_drop_steps:
            for group in optimizers["model"].param_groups:
                group["lr"] *= 0.1 ** (step // self.options.rate_drop_steps)

    # The images

    @cached_property
    def label_names(self) -> list[str]:
        """Sums of two digits run from 0 to twice the last class."""
        names = super().label_names
        return (
            [str(number) for number in range(2 * len(names) - 1)] if self.options.distortion == "addition" else names
        )

    def preprocess(self, rows: list[dict[str, Any]]) -> Batch:
        """Rows with `image` and `label` -> `images` (rows, 1, d, d), plain digits as bytes, and `labels` (rows,)."""
        if not self.makes_images:
            return super().preprocess(rows)
        size = {"height": self.options.digit_size, "width": self.options.digit_size}
        options = {"size": size, "num_channels": 1, "do_rescale": False, "return_tensors": "np"}
        images = self.processor([row["image"] for row in rows], **options)["pixel_values"]
        labels = [row["label"] for row in rows]
        check_labels(labels, len(super().label_names), "label", f"'{self.data.dataset}'")
        return {"images": torch.from_numpy(np.ascontiguousarray(images)).byte(), "labels": torch.tensor(labels)}

    def training_inputs(self, batch: Batch) -> Batch:
        if not self.makes_images:
            return super().training_inputs(batch)
        digits, _ = self.augmentation(batch["images"].float() / 255)
        images, labels = self.distortion(digits, batch["labels"])
        return {"pixel_values": images, "labels": labels}

    def examples(self, role: str, device: torch.device) -> Iterator[Batch]:
        """The same distorted images at every call and on every device: they are drawn on the CPU."""
        if not self.makes_images:
            yield from super().examples(role, device)
            return
        rows = self.scored_rows(role)
        generator = torch.Generator().manual_seed(EVALUATION_SEEDS[role])
        for digits, labels in zip(rows["images"].split(MADE_AT_ONCE), rows["labels"].split(MADE_AT_ONCE), strict=True):
            images, answers = self.distortion(digits.float() / 255, labels, generator)
            for part, answer in zip(
                images.split(self.options.eval_batch_size), answers.split(self.options.eval_batch_size), strict=True
            ):
                yield {"pixel_values": part.to(device), "labels": answer.to(device)}

    def figures(self, model: PaperStnForImageClassification, folder: Path, context: Context) -> dict[str, Path]:
        """The mistakes of any classifier, where the transformers look, and what they make of each class."""
        from hf_papers.papers.stn.figures_stn import draw_figures

        files = super().figures(model, folder, context)
        if files:
            role = "test" if self.data.test_split else "validation"
            files |= draw_figures(model, self.examples(role, context.device), self.label_names, folder)
        return files


__all__ = ["StnOptions", "StnTask"]

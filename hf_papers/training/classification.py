"""Image classification, written once: rows with an `image` and a `label`, random changes, the loss, errors in per cent.

A paper's task derives from `ImageClassificationTask` and says how pictures become numbers (`build_processor`); a paper that
makes its images up as it goes overrides `training_inputs` and `examples`. Nothing here knows a paper.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from hf_papers.data.augmentation import Augmentation, AugmentationOptions
from hf_papers.data.validation import check_labels
from hf_papers.errors import UserError
from hf_papers.training.answers import Answers
from hf_papers.training.arguments import option
from hf_papers.training.task import Batch, Context, Task, Turn


@dataclass(frozen=True)
class ImageClassificationOptions(AugmentationOptions):
    """How training images are changed at random, and what is not known of the data set."""

    num_labels: int | None = option(None, "number of classes, for a data set that does not name them")
    eval_batch_size: int = option(500, "images per batch of an evaluation")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_labels is not None and self.num_labels < 2:
            raise UserError(
                f"num_labels must be at least 2, not {self.num_labels}: with one class there is no choice."
            )
        if self.eval_batch_size < 1:
            raise UserError(f"eval_batch_size must be at least 1, not {self.eval_batch_size}.")


class ImageClassificationTask(Task):
    """Minimise the model's own loss; be judged by the share of images that are put into a wrong class.

    Rows are kept as the processor sizes them, as bytes: a quarter of the memory of numbers. Random changes are made with
    pixels in [0, 1], and only then are they normalised, on the device: what a change uncovers at the border of an image
    is then ground as elsewhere, not the grey that 0 means after a normalisation.
    """

    Options = ImageClassificationOptions
    best_metric = "error_percent"
    greater_is_better = False
    pipeline_tag = "image-classification"
    options: ImageClassificationOptions

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        self.processor = self.build_processor()
        self.augmentation = Augmentation(self.options)
        self._rows: dict[str, Batch] = {}  # split that is scored -> its rows

    # What is trained

    @cached_property
    def label_names(self) -> list[str]:
        """The classes in the order of their numbers, as the data set names them."""
        names = self.source.label_names(self.data.train_split) if self.source else None
        if names is None and self.options.num_labels is None:
            raise UserError(
                f"The data set '{self.data.dataset}' does not say how many classes its column 'label' has: add "
                "--num_labels, or name the column of classes with --columns label=THEIRS."
            )
        return names or [str(number) for number in range(self.options.num_labels)]

    @cached_property
    def config(self) -> Any:
        """The recipe's config with the classes of the data set."""
        config = copy.deepcopy(self.recipe.config)
        config.id2label = dict(enumerate(self.label_names))
        config.label2id = {name: number for number, name in enumerate(self.label_names)}
        try:
            config.validate()
        except (ValueError, StrictDataclassError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise UserError(f"The model does not fit the classes of '{self.data.dataset}': {reason}") from error
        return config

    def build_model(self) -> nn.Module:
        return self.recipe.paper.model_class(self.config)

    # What it is trained on

    def preprocess(self, rows: list[dict[str, Any]]) -> Batch:
        """Rows with `image` and `label` -> `images` (rows, C, H, W), bytes, and `labels` (rows,)."""
        pictures = [row["image"] for row in rows]
        images = self.processor(pictures, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]
        labels = [row["label"] for row in rows]
        check_labels(labels, len(self.label_names), "label", f"'{self.data.dataset}'")
        return {"images": torch.from_numpy(np.ascontiguousarray(images)).byte(), "labels": torch.tensor(labels)}

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Pixels in [0, 1] as the processor hands them to the model: (B, C, H, W) -> (B, C, H, W)."""
        if not self.processor.do_normalize:
            return images
        mean, std = (
            torch.as_tensor(value, dtype=images.dtype, device=images.device).reshape(-1, 1, 1)
            for value in (self.processor.image_mean, self.processor.image_std)
        )
        return (images - mean) / std

    def to_pictures(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The reverse: what a model was shown, as pixels in [0, 1]."""
        if not self.processor.do_normalize:
            return pixel_values.clamp(0, 1)
        mean, std = (
            torch.as_tensor(value, dtype=pixel_values.dtype, device=pixel_values.device).reshape(-1, 1, 1)
            for value in (self.processor.image_mean, self.processor.image_std)
        )
        return (pixel_values * std + mean).clamp(0, 1)

    def training_inputs(self, batch: Batch) -> Batch:
        """A batch of the stream as `pixel_values` (B, C, H, W) and `labels` (B,), every image changed in its own way."""
        images, _ = self.augmentation(batch["images"].float() / 255)
        return {"pixel_values": self.normalise(images), "labels": batch["labels"]}

    def losses(
        self, networks: dict[str, nn.Module], shadows: dict[str, nn.Module], batch: Batch, step: int
    ) -> Iterator[Turn]:
        inputs = self.training_inputs(batch)
        outputs = networks["model"](**inputs)
        right = outputs.logits.detach().argmax(-1) == inputs["labels"]
        yield "model", outputs.loss, {"accuracy": right.float().mean()}

    # How it is judged

    def split_name(self, role: str) -> str | None:
        """The rows that stand for "validation" or "test"."""
        return self.data.validation_split if role == "validation" else self.data.test_split

    def scored_rows(self, role: str) -> Batch:
        """All rows of a role, preprocessed, read once."""
        if role not in self._rows:
            self._rows[role] = self.source.tensors(self.split_name(role), self.preprocess)
        return self._rows[role]

    def examples(self, role: str, device: torch.device) -> Iterator[Batch]:
        """The images a model is judged on, batch by batch: `pixel_values` and `labels`, the same at every call."""
        rows = self.scored_rows(role)
        size = self.options.eval_batch_size
        for images, labels in zip(rows["images"].split(size), rows["labels"].split(size), strict=True):
            pixel_values = self.normalise(images.to(device).float() / 255)
            yield {"pixel_values": pixel_values, "labels": labels.to(device)}

    def answers(self, model: nn.Module, role: str, device: torch.device) -> Answers:
        logits, labels, total = [], [], 0.0
        for batch in self.examples(role, device):
            outputs = model(**batch)
            logits.append(outputs.logits.float().cpu())
            labels.append(batch["labels"].cpu())
            total += outputs.loss.item() * len(labels[-1])
        rows = torch.cat(labels)
        return Answers(torch.cat(logits), rows, total / len(rows))

    def evaluate(self, model: nn.Module, split: str, context: Context) -> dict[str, float]:
        """`error_percent`, the share of wrong answers in per cent, `accuracy` in [0, 1], and the mean `loss`."""
        if self.split_name(split) is None:
            return {}
        answers = self.answers(model, split, context.device)
        return {
            "error_percent": answers.error_percent,
            "accuracy": answers.accuracy,
            "loss": answers.loss,
        }

    def figures(self, model: nn.Module, folder: Path, context: Context) -> dict[str, Path]:
        """Which classes are taken for which, and the mistakes that the model is surest of."""
        from hf_papers.training.classification_figures import draw_confusion, draw_mistakes

        role = "test" if self.data.test_split else "validation"
        if self.split_name(role) is None:
            return {}
        folder.mkdir(parents=True, exist_ok=True)
        answers = self.answers(model, role, context.device)
        files = {f"Which class was taken for which ({role} images)": draw_confusion(answers, self.label_names, folder)}
        pictures = (self.to_pictures(batch["pixel_values"]).cpu() for batch in self.examples(role, context.device))
        if (mistakes := draw_mistakes(answers, pictures, self.label_names, folder)) is not None:
            files["The mistakes it was surest of: right class, its answer, how sure"] = mistakes
        return files


__all__ = ["ImageClassificationOptions", "ImageClassificationTask"]

"""How U-Net is trained (section 3 of 1505.04597), judged and pictured."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from hf_papers.data import Augmentation, AugmentationOptions, Source, open_source
from hf_papers.errors import UserError
from hf_papers.papers.unet.configuration_geometry_unet import mirrored
from hf_papers.papers.unet.image_processing_unet import PaperUnetImageProcessor
from hf_papers.papers.unet.masks_unet import MaskReader
from hf_papers.papers.unet.modeling_unet import PaperUnetForSemanticSegmentation, centre_crop
from hf_papers.papers.unet.pairs_unet import PairsFolder, is_pairs_folder
from hf_papers.papers.unet.scoring_unet import THRESHOLDS, Example, best_of, mean_of, score_classes, score_curves
from hf_papers.papers.unet.weight_map_unet import border_weights, class_weights
from hf_papers.training.arguments import option
from hf_papers.training.start import Start
from hf_papers.training.task import Batch, Context, Task, Turn


COUNTED_MASKS = 500  # the class frequencies of eq. 2 are those of the first so many masks
# What a start's weights decide of the config, whatever the recipe says; the rest is for the recipe.
FROM_START = ("stage_channels", "padding", "batch_norm", "skip_connections")
# What may be drawn anew where a start does not fit: the first layer for other colours, the last one for other classes.
MAY_DIFFER = r"^classifier\.|^unet\.contracting_path\.stages\.0\.convolutions\.0\."


@dataclass(frozen=True)
class UnetOptions(AugmentationOptions):
    """The task's own options, and those of the random changes of images."""

    model_name_or_path: str | None = option(
        None,
        "where to start: a run of this paper, folder or Hub id; its sizes win over the recipe's; none: random weights",
    )
    class_names: list[str] | tuple[str, ...] = option(
        ("background", "foreground"), "what the classes are called, in the order of their numbers"
    )
    mask_kind: Literal["classes", "instances"] = option(
        "classes", "what a mask's values are: classes, or 0 and a number for each cell"
    )
    mask_values: list[int] | tuple[int, ...] | None = option(
        None, "values in the masks in the order of class_names, where these are not 0, 1, 2, … or 0 and 255"
    )
    tile_size: int = option(572, "height and width of what the network is shown in training, cut out at random")
    weight_map: bool = option(True, "weigh pixels by eq. 2; without it all pixels count alike")
    border_weight: float = option(10.0, "w_0 of eq. 2: how much the background between two touching cells counts more")
    border_sigma: float = option(5.0, "sigma of eq. 2, in pixels: how fast that fades as the cells move apart")
    border_inside_cells: bool = option(
        False, "the cells' side of a border counts more as well, as eq. 2 reads; without it the background's alone"
    )
    test_views: int = option(
        1, "predict for 1, 4 (rotations) or 8 (and mirrored) versions of a test image and average"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("border_weight", "border_sigma"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name} must be a finite number of at least 0, not {getattr(self, name)}.")
        if self.weight_map and self.border_sigma == 0:
            raise UserError("border_sigma must be positive; leave out the weight map by --no_weight_map.")
        if self.test_views not in (1, 4, 8):
            raise UserError(f"test_views must be 1, 4 or 8, not {self.test_views}.")
        if len(self.class_names) < 2 or len(set(self.class_names)) < len(self.class_names):
            raise UserError(f"class_names needs at least two different names, not {', '.join(self.class_names)}.")
        if self.mask_kind == "instances" and (len(self.class_names) != 2 or self.mask_values is not None):
            raise UserError("With --mask_kind instances there are two class_names, and no mask_values.")
        if self.mask_values is not None and (
            len(self.mask_values) != len(self.class_names) or len(set(self.mask_values)) < len(self.mask_values)
        ):
            raise UserError(
                f"mask_values must list one value for each of the {len(self.class_names)} class_names, not "
                f"{', '.join(map(str, self.mask_values))}."
            )


def _start(options: UnetOptions) -> Start | None:
    name = options.model_name_or_path
    return Start(PaperUnetForSemanticSegmentation, name) if name is not None else None


class UnetTask(Task):
    """Minimise eq. 1 on random tiles of randomly changed images, pixels weighed by eq. 2."""

    Options = UnetOptions
    best_metric = "dice"
    greater_is_better = True
    options: UnetOptions

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        options = self.options
        self.geometry = recipe.config.geometry
        self._check_tile(options.tile_size)
        self.start = _start(options)
        self.config = copy.deepcopy(recipe.config)
        self.config.id2label = dict(enumerate(options.class_names))
        self.config.label2id = {name: number for number, name in enumerate(options.class_names)}
        self.num_labels = len(options.class_names)
        values = tuple(options.mask_values) if options.mask_values is not None else None
        self.read_mask = MaskReader(options.mask_kind, self.num_labels, values)
        self.processor = PaperUnetImageProcessor(
            num_channels=self.config.num_channels, depth=self.config.depth, padding=self.config.padding
        )
        self.augmentation = Augmentation(options)
        self.class_weights: torch.Tensor | None = None
        self._examples: dict[str, list[Example]] = {}

    def _check_tile(self, size: int) -> None:
        if not self.geometry.fits(size):
            below, above = self.geometry.nearest(size)
            nearest = f"{above} fits" if below is None else f"{below} and {above} fit"
            raise UserError(f"--tile_size {size} does not fit this network: {nearest}.")

    # What is trained

    @classmethod
    def model_options(cls, options: UnetOptions, given: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
        """What is given, except for the sizes of a start. A run's recipe gives everything, so its start may be gone."""
        if options.model_name_or_path is None or set(known) <= set(given):
            return given
        return {**given, **_start(options).options(FROM_START)}

    def build_model(self) -> PaperUnetForSemanticSegmentation:
        if self.start is not None:
            return self.start.load(self.config, MAY_DIFFER)
        return PaperUnetForSemanticSegmentation(self.config)

    def build_processor(self) -> PaperUnetImageProcessor:
        return self.processor

    def describe(self) -> dict[str, Any]:
        return {
            "start": self.start.describe() if self.start is not None else "random weights",
            "scored_on": self.data.test_split,
            "threshold": self.processor.threshold,
        }

    # What it is trained on

    def open_source(self) -> Source | None:
        if is_pairs_folder(self.data.dataset):
            return PairsFolder(self.data)
        return open_source(self.data) if self.data.dataset else None

    def pixels(self, images: Sequence[Any]) -> list[torch.Tensor]:
        """Pictures as (C, H, W), from 0 to 255, each of its own size."""
        arrays = self.processor(list(images), do_pad=False, do_rescale=False, do_normalize=False)["pixel_values"]
        return [torch.from_numpy(np.array(array, order="C")) for array in arrays]

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """From 0 .. 1 to what the network sees: what the image processor does after dividing by 255."""
        return (pixels - self.processor.image_mean) / self.processor.image_std

    def preprocess(self, rows: list[dict[str, Any]]) -> dict[str, list[torch.Tensor]]:
        """Rows with an `image` and a `mask` -> pixels (C, H, W), and targets (1 or 2, H, W): each pixel's class and, with
        the weight map, the second term of eq. 2.

        That term is computed here, once, and travels with the mask through every random change, pixel by pixel (nearest
        neighbour for both). So a pixel never has the class of one cell and the weight of another place. Computing it
        anew for each deformed mask would differ little, as the changes are smooth over the few sigmas that matter, and
        would stall a GPU with distance transforms on the CPU in every step.
        """
        pixels = self.pixels([row["image"] for row in rows])
        targets = []
        for image, row in zip(pixels, rows, strict=True):
            classes, cells = self.read_mask(row["mask"], tuple(image.shape[-2:]))
            layers = [torch.from_numpy(classes)]
            if self.options.weight_map:
                options = self.options
                weights = border_weights(
                    cells, options.border_weight, options.border_sigma, options.border_inside_cells
                )
                layers.append(torch.from_numpy(weights))
            targets.append(torch.stack([layer.half() for layer in layers]))
        return {"pixels": pixels, "targets": targets}

    def batches(self, networks: dict[str, nn.Module], context: Context) -> Iterator[Batch]:
        """Endless batches of tiles cut out at random places."""
        if self.source is not None and self.options.weight_map:
            self.class_weights = self.balance_of_classes().to(context.device)
        for rows in super().batches(networks, context):
            yield self.cut(rows)

    def balance_of_classes(self) -> torch.Tensor:
        """w_c of eq. 2, (K,), from the first training masks."""
        counts = np.zeros(self.num_labels, dtype=np.int64)
        for row in itertools.islice(self.source.rows(self.data.train_split), COUNTED_MASKS):
            try:
                classes, _ = self.read_mask(row["mask"])
            except ValueError as error:
                raise UserError(f"The split '{self.data.train_split}' of '{self.source.name}': {error}") from error
            counts += np.bincount(classes.ravel(), minlength=self.num_labels)
        if np.count_nonzero(counts) < 2:
            only = self.options.class_names[int(counts.argmax())]
            raise UserError(
                f"The masks of '{self.source.name}' hold nothing but class {int(counts.argmax())} ({only}): there is "
                "nothing to learn from them. Check the column of masks, and --mask_values."
            )
        return torch.from_numpy(class_weights(counts))

    def cut(self, rows: dict[str, list[torch.Tensor]]) -> Batch:
        """A tile from a random place of each image: {"pixels": (B, C, S, S), "targets": (B, 1 or 2, S, S)}.

        The tile's output, which lacks the network's border, falls anywhere in the image, edges included; what the network
        sees beyond the edges is the image mirrored.
        """
        tiles: dict[str, list[torch.Tensor]] = {"pixels": [], "targets": []}
        for pixels, targets in zip(rows["pixels"], rows["targets"], strict=True):
            places = [self._place(length) for length in pixels.shape[-2:]]
            for name, image in (("pixels", pixels), ("targets", targets)):
                for axis, place in zip((-2, -1), places, strict=True):
                    image = image.index_select(axis, place)
                tiles[name].append(image.float())
        return {name: torch.stack(images) for name, images in tiles.items()}

    def _place(self, length: int) -> torch.Tensor:
        """Which pixels of a side of `length` a tile is made of, (S,). Chance comes from the global state."""
        size, border = self.options.tile_size, self.geometry.border
        free = length - self.geometry.output_size(size)
        first = int(torch.randint(free + 1, ())) if free > 0 else free // 2
        return torch.tensor(mirrored(first - border, first - border + size, length))

    def losses(
        self, networks: dict[str, nn.Module], shadows: dict[str, nn.Module], batch: Batch, step: int
    ) -> Iterator[Turn]:
        pixels, targets = self.augmentation(batch["pixels"] / 255, batch["targets"])
        size = self.geometry.output_size(self.options.tile_size)
        targets = centre_crop(targets, size, size)
        labels = targets[:, 0].long()
        weights = self.class_weights[labels] + targets[:, 1] if self.options.weight_map else None
        outputs = networks["model"](pixel_values=self.normalise(pixels), labels=labels, pixel_weights=weights)
        wrong = outputs.logits.detach().argmax(1) != labels
        yield "model", outputs.loss, {"pixel_error": wrong.float().mean()}

    # How it is judged

    def evaluate(self, model: PaperUnetForSemanticSegmentation, split: str, context: Context) -> dict[str, float]:
        """Dice and IoU (over the classes but the first) and pixel error, each the mean of the images' own values.

        With two classes a pixel is foreground from some probability on. Which one is chosen on the validation split, by Dice
        for everyday use (it is saved with the image processor), and on the test split each measure has the one that was
        best for it on the validation split: the ISBI challenge too scored each measure at a threshold of its own, though
        chosen on the test images themselves. There `rand_error` and `warping_error` come in as well.
        """
        if self.split_of(split) is None:
            return {}
        views = self.options.test_views if split == "test" else 1
        if self.num_labels > 2:
            scores = (score_classes(*pair) for pair in self.predictions(model, split, context, views))
            return mean_of(scores)
        if split == "validation":
            curves = score_curves(self.predictions(model, split, context, views), THRESHOLDS, cell_errors=False)
            chosen = best_of(curves)
            self.processor.threshold = chosen["dice"]
            return {**{name: curves[name][chosen[name]] for name in curves}, "threshold": chosen["dice"]}
        chosen = dict.fromkeys(("dice", "iou", "pixel_error", "rand_error", "warping_error"), 0.5)
        if self.split_of("validation") is not None:
            predictions = self.predictions(model, "validation", context, views)
            chosen = best_of(score_curves(predictions, THRESHOLDS, cell_errors=True))
        predictions = self.predictions(model, split, context, views)
        curves = score_curves(predictions, sorted(set(chosen.values())), cell_errors=True)
        return {name: curves[name][chosen[name]] for name in curves}

    def split_of(self, role: str) -> str | None:
        return self.data.validation_split if role == "validation" else self.data.test_split

    def examples(self, role: str) -> list[Example]:
        """The images of a split that is scored, whole."""
        if role not in self._examples:

            def transform(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
                pixels = self.pixels([row["image"] for row in rows])
                sizes = [tuple(image.shape[-2:]) for image in pixels]
                masks = [self.read_mask(row["mask"], size) for row, size in zip(rows, sizes, strict=True)]
                return {"pixels": pixels, "classes": [mask[0] for mask in masks], "cells": [mask[1] for mask in masks]}

            read = self.source.tensors(self.split_of(role), transform)
            self._examples[role] = [
                Example(self.normalise(pixels / 255), classes, cells)
                for pixels, classes, cells in zip(read["pixels"], read["classes"], read["cells"], strict=True)
            ]
        return self._examples[role]

    def predictions(
        self, model: PaperUnetForSemanticSegmentation, role: str, context: Context, views: int
    ) -> Iterator[tuple[np.ndarray, Example]]:
        """Class probabilities (K, H, W) of each image of a split, the mean over so many views of it, and the image."""
        for example in self.examples(role):
            probabilities = model.segment(example.pixels[None].to(context.device), views=views)
            yield probabilities[0].cpu().numpy(), example

    def figures(self, model: PaperUnetForSemanticSegmentation, folder: Path, context: Context) -> dict[str, Path]:
        """What the network makes of images and how, as pictures: caption -> file."""
        from hf_papers.papers.unet.figures_unet import draw_answers, draw_changes, draw_weight_map

        folder.mkdir(parents=True, exist_ok=True)
        role = "test" if self.split_of("test") is not None else "validation"
        files = {}
        if self.split_of(role) is not None:
            files |= draw_answers(model, self.examples(role), self.processor.threshold, folder)
        if self.source is None:
            return files
        prepared = self.preprocess([next(iter(self.source.rows(self.data.train_split)))])
        pixels, targets = prepared["pixels"][0].float(), prepared["targets"][0].float()
        if self.options.weight_map:
            weights = self.balance_of_classes()[targets[0].long()] + targets[1]
            files |= draw_weight_map(pixels, targets[0], weights, folder)
        if self.augmentation.is_geometric:
            files |= draw_changes(self.augmentation, pixels, targets, self.num_labels, folder)
        return files


__all__ = ["UnetOptions", "UnetTask"]

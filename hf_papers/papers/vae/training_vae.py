"""How the variational auto-encoder is trained (algorithm 1 of 1312.6114), judged and pictured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from hf_papers.errors import UserError
from hf_papers.papers.vae.image_processing_vae import PaperVaeImageProcessor
from hf_papers.papers.vae.modeling_vae import PaperVaeModel
from hf_papers.training.arguments import option
from hf_papers.training.task import Batch, Context, Task, Turn


# Every run is judged on the same binary images and the same noise, whatever its own seed.
EVALUATION_SEEDS = {"validation": 1312, "test": 6114}
EVALUATION_BATCH = 1000
# A small split is looked at several times: one z per image leaves the bound uncertain by about 4 / sqrt(samples) nats.
EVALUATION_SAMPLES = 2_000


@dataclass(frozen=True)
class VaeOptions:
    """The task's own options."""

    binarize: Literal["dynamic", "threshold", "none"] = option(
        "dynamic",
        "pixels to 0 and 1: drawn anew at every look with the grey level as probability, by a threshold of one half, or not",
    )
    kl_weight: float = option(1.0, "final factor of the divergence in the loss (beta of a beta-VAE)")
    kl_warmup_steps: int = option(0, "steps over which that factor grows from 0, against posterior collapse")
    free_bits: float = option(0.0, "nats per latent entry that cost nothing, against posterior collapse (1606.04934)")
    importance_samples: int = option(1000, "samples per image of the log-likelihood on the test split; 0 for none")
    likelihood_images: int | None = option(None, "test images whose log-likelihood is taken; all when not given")

    def __post_init__(self) -> None:
        for name in ("kl_weight", "kl_warmup_steps", "free_bits", "importance_samples"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name} must be a finite number of at least 0, not {getattr(self, name)}.")
        if self.likelihood_images is not None and self.likelihood_images < 1:
            raise UserError(f"likelihood_images must be at least 1, not {self.likelihood_images}.")


class VaeTask(Task):
    """Minimise the negative bound on minibatches, one sample of z per image."""

    Options = VaeOptions
    best_metric = "negative_elbo"
    greater_is_better = False
    options: VaeOptions

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        self.config = recipe.config
        if self.config.decoder_distribution == "gaussian" and self.options.binarize != "none":
            raise UserError("A Gaussian decoder models grey pixels, not binary ones: add --binarize none.")
        if not self.config.variational:
            self.best_metric = "reconstruction"  # a plain auto-encoder has no bound to be judged by
        self.processor = self.build_processor()
        self._images: dict[str, torch.Tensor] = {}

    def build_processor(self) -> PaperVaeImageProcessor:
        side = self.config.image_size
        return PaperVaeImageProcessor(size={"height": side, "width": side}, num_channels=self.config.num_channels)

    def preprocess(self, rows: list[dict[str, Any]]) -> Batch:
        """Rows with an `image` -> pixel_values (rows, C, H, W) in [0, 1]; never binary yet, that is drawn at each look."""
        pixel_values = self.processor([row["image"] for row in rows], return_tensors="np")["pixel_values"]
        return {"pixel_values": torch.from_numpy(np.asarray(pixel_values, dtype=np.float32))}

    def losses(
        self, networks: dict[str, nn.Module], shadows: dict[str, nn.Module], batch: Batch, step: int
    ) -> Iterator[Turn]:
        pixel_values = self.binarize(batch["pixel_values"])
        # A tensor, not a number: torch.compile would make a new program for every number of the warm-up.
        kl_weight = torch.tensor(self.kl_weight(step), device=pixel_values.device)
        output = networks["model"](pixel_values=pixel_values, kl_weight=kl_weight, free_bits=self.options.free_bits)
        metrics = {"reconstruction": output.reconstruction_loss.detach(), "kl": output.kl.detach()}
        if self.options.kl_warmup_steps:
            metrics["kl_weight"] = kl_weight
        yield "model", output.loss, metrics

    def kl_weight(self, step: int) -> float:
        """Factor of the divergence at `step`: a straight line from 0 to its final value (1511.06349, section 3.1)."""
        warmup = self.options.kl_warmup_steps
        return self.options.kl_weight * (min(1.0, step / warmup) if warmup else 1.0)

    def binarize(self, pixel_values: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Grey levels in [0, 1] as the option `binarize` says; chance comes from the global state or `generator`."""
        if self.options.binarize == "none":
            return pixel_values
        if self.options.binarize == "threshold":
            return (pixel_values >= 0.5).to(pixel_values.dtype)
        noise = torch.rand(pixel_values.shape, generator=generator, device=pixel_values.device)
        return (noise < pixel_values).to(pixel_values.dtype)

    def evaluate(self, model: PaperVaeModel, split: str, context: Context) -> dict[str, float]:
        """The bound and its two terms, nats per image; on the test split the log-likelihood too, which takes longer.

        Returns `negative_elbo`, `reconstruction`, `kl` and `active_units`, and on the test split `nll`, the negative
        log-likelihood by importance sampling, where there is one: for binary images or a Gaussian decoder. A plain
        auto-encoder has `reconstruction` and `active_units` only.
        """
        images = self.evaluation_images(split)
        if images is None:
            return {}
        generator = torch.Generator().manual_seed(EVALUATION_SEEDS[split])
        sums = {"reconstruction": 0.0, "kl": 0.0}
        # A small split is repeated within a batch, which costs far less than many small batches.
        repeats = math.ceil(EVALUATION_SAMPLES / len(images))
        for part in images.split(math.ceil(EVALUATION_BATCH / repeats)):
            part = part.repeat(repeats, 1, 1, 1)
            noise = torch.randn(len(part), self.config.latent_size, generator=generator)
            output = model(part.to(context.device), noise=noise.to(context.device))
            sums["reconstruction"] += output.reconstruction_loss.item() * len(part)
            sums["kl"] += output.kl.item() * len(part)
        metrics = {name: total / (repeats * len(images)) for name, total in sums.items()}
        if len(images) > 1:
            metrics["active_units"] = float(model.active_units(images.to(context.device)))
        if not self.config.variational:
            del metrics["kl"]
            return metrics
        metrics["negative_elbo"] = metrics["reconstruction"] + metrics["kl"]
        if split == "test" and self.has_likelihood:
            metrics["nll"] = self.negative_log_likelihood(model, images, context)
        return metrics

    @property
    def has_likelihood(self) -> bool:
        """Whether log p(x) means anything here, and is asked for."""
        defined = self.config.decoder_distribution == "gaussian" or self.options.binarize != "none"
        return defined and self.config.variational and self.options.importance_samples > 0

    def negative_log_likelihood(self, model: PaperVaeModel, images: torch.Tensor, context: Context) -> float:
        """-log p(x) by importance sampling, nats per image, mean over the first `likelihood_images`."""
        images = images[: self.options.likelihood_images]
        generator = torch.Generator(context.device).manual_seed(EVALUATION_SEEDS["test"])
        # What fits a core's cache is fastest there; a GPU wants more at once.
        chunk_size = 2000 if context.device.type == "cpu" else 100_000
        total = 0.0
        visible = self.arguments.progress and len(images) * self.options.importance_samples > 1_000_000
        for part in tqdm(images.split(100), desc="log-likelihood", leave=False, disable=not visible):
            part = part.to(context.device)
            total -= model.log_likelihood(part, self.options.importance_samples, generator, chunk_size).sum().item()
        return total / len(images)

    def evaluation_images(self, split: str) -> torch.Tensor | None:
        """All images of a split, made binary once and for all, (rows, C, H, W) on the CPU; None where there is no split."""
        name = self.data.validation_split if split == "validation" else self.data.test_split
        if name is None:
            return None
        if split not in self._images:
            generator = torch.Generator().manual_seed(EVALUATION_SEEDS[split])
            pixel_values = self.source.tensors(name, self.preprocess)["pixel_values"]
            self._images[split] = self.binarize(pixel_values, generator)
        return self._images[split]

    def figures(self, model: PaperVaeModel, folder: Path, context: Context) -> dict[str, Path]:
        """What the model has learnt, as pictures of test images and of samples: caption -> file."""
        from hf_papers.papers.vae.figures_vae import draw_figures

        images, labels = self._labelled_images(limit=2000)
        return draw_figures(model, images, labels, folder, context)

    def _labelled_images(self, limit: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The first test images as the model is shown them, and their labels where the data set has whole-number ones."""

        def transform(rows: list[dict[str, Any]]) -> Batch:
            batch = self.preprocess(rows)
            if all(isinstance(row.get("label"), (int, np.integer)) for row in rows):
                batch["labels"] = torch.tensor([int(row["label"]) for row in rows])
            return batch

        split = self.data.test_split or self.data.validation_split or self.data.train_split
        tensors = self.source.tensors(split, transform, limit=limit)
        generator = torch.Generator().manual_seed(EVALUATION_SEEDS["test"])
        return self.binarize(tensors["pixel_values"], generator), tensors.get("labels")


__all__ = ["VaeOptions", "VaeTask"]

"""Training the adversarial pair: Algorithm 1 of 1406.2661 on the shared trainer, and the paper's evaluation."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer

from hf_papers.errors import UserError
from hf_papers.metrics import (
    diversity_ratio,
    fit_mode_classifier,
    log_spaced_sigmas,
    mode_coverage,
    nearest_neighbours,
    parzen_curve,
    parzen_window_evaluation,
)
from hf_papers.papers.gan import figures_gan as draw
from hf_papers.papers.gan.image_processing_gan import PaperGanImageProcessor
from hf_papers.papers.gan.modeling_gan import (
    PaperGanModel,
    discriminator_loss,
    generator_loss,
    sample_latents,
)
from hf_papers.training import image_grids as grids
from hf_papers.training.arguments import option
from hf_papers.training.optimizers import build_optimizer
from hf_papers.training.shadow import Shadow
from hf_papers.training.task import Batch, Context, Task, Turn


logger = logging.getLogger(__name__)

# Steps after which the task keeps a picture of the same latents: three a decade of training are enough to see it grow.
SNAPSHOT_STEPS = frozenset(mantissa * 10**power for power in range(7) for mantissa in (1, 3))
SNAPSHOT_IMAGES = 12


@dataclass(frozen=True)
class GanOptions:
    """What only this task knows."""

    discriminator_steps: int = option(1, "k of Algorithm 1: discriminator steps, each on a batch of its own, per step")
    discriminator_learning_rate: float | None = option(
        None, "of the discriminator; that of the generator if not given"
    )
    generator_average: float = option(
        0.0,
        "decay of the running average of the generator's weights that is judged and published; 0: its last weights",
    )
    fresh_noise: bool = option(
        False, "draw new noise for the generator's turn, as Algorithm 1 does; the authors' code reuses the noise"
    )
    bias_from_data: bool = option(
        True, "start the generator's output at the mean training image, as the authors' code does"
    )
    lr_decay_per_step: float = option(1.0, "divide the learning rates by this after every step; the authors: 1.000004")
    minimum_learning_rate: float = option(1e-6, "where that decay ends")
    final_momentum: float | None = option(None, "of SGD, reached linearly from --momentum; the authors: 0.7")
    momentum_epochs: int = option(250, "epoch in which SGD's momentum arrives at --final_momentum")
    parzen_samples: int = option(10_000, "generated images of the Parzen window")
    validation_images: int = option(1_000, "images that an evaluation while training scores; the last one scores all")
    smallest_sigma: float = option(0.1, "of the Parzen window's grid")
    largest_sigma: float = option(1.0, "of the Parzen window's grid")
    num_sigmas: int = option(28, "values in that grid, even in the logarithm")
    classifier_images: int = option(20_000, "labelled training images that the judge of mode coverage learns from")

    def __post_init__(self) -> None:
        at_least = {"discriminator_steps": 1, "momentum_epochs": 2, "parzen_samples": 2, "validation_images": 2}
        for name, least in {**at_least, "num_sigmas": 2, "classifier_images": 20, "lr_decay_per_step": 1}.items():
            if not getattr(self, name) >= least:
                raise UserError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        if not 0 <= self.generator_average < 1:
            raise UserError(f"generator_average must be in [0, 1), not {self.generator_average}.")
        if self.discriminator_learning_rate is not None and not self.discriminator_learning_rate > 0:
            raise UserError(f"discriminator_learning_rate must be positive, not {self.discriminator_learning_rate}.")
        if self.final_momentum is not None and not 0 <= self.final_momentum < 1:
            raise UserError(f"final_momentum must be in [0, 1), not {self.final_momentum}.")
        if not 0 < self.smallest_sigma < self.largest_sigma:
            raise UserError(
                f"The sigmas must grow from above 0: {self.smallest_sigma} to {self.largest_sigma} do not."
            )


class GanTask(Task):
    """Two players, two optimisers, one batch of real images at a time."""

    Options: ClassVar[type] = GanOptions
    best_metric: ClassVar[str] = "parzen_log_likelihood"
    greater_is_better: ClassVar[bool] = True

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        self.config = recipe.config
        self.processor = self.build_processor()
        self.snapshots: list[tuple[int, torch.Tensor]] = []  # (steps taken, (SNAPSHOT_IMAGES, c, h, w) uint8)
        self._kept: dict[tuple[str, int | None], Batch] = {}
        self._judge: Any = None
        self._raised: set[str] = set()  # flags that were up at the last validation
        if self.options.final_momentum is not None and self.arguments.optimizer != "sgd":
            raise UserError(
                f"--final_momentum is for --optimizer sgd; {self.arguments.optimizer} has no such momentum."
            )

    # What is trained

    def build_model(self) -> PaperGanModel:
        model = super().build_model()
        if self.options.bias_from_data and self.source is not None:
            # pylearn2's init_sigmoid_bias_from_marginals: G starts at the mean image instead of at grey.
            mean = self._images(self.data.train_split, 5_000).double().mean(0).flatten().clamp(1e-3, 1 - 1e-3)
            with torch.no_grad():
                model.generator.output.bias.copy_(torch.logit(mean))
        return model

    def build_processor(self) -> PaperGanImageProcessor:
        size = self.recipe.config.image_size
        return PaperGanImageProcessor(
            size={"height": size, "width": size}, num_channels=self.recipe.config.num_channels
        )

    def networks(self, model: nn.Module) -> dict[str, nn.Module]:
        return {"generator": model.generator, "discriminator": model.discriminator}

    def shadows(self) -> dict[str, Shadow]:
        """The averaged generator: the game circles its equilibrium, and the mean of a circle lies nearer to it."""
        return {"generator": Shadow(self.options.generator_average)} if self.options.generator_average else {}

    def published(self, model: nn.Module, shadows: dict[str, nn.Module]) -> nn.Module:
        """The pair with the averaged generator, where there is one."""
        if not shadows:
            return model
        averaged = copy.deepcopy(model)
        averaged.generator.load_state_dict(shadows["generator"].state_dict())
        return averaged

    def optimizers(self, networks: dict[str, nn.Module]) -> dict[str, Optimizer]:
        rate = self.options.discriminator_learning_rate or self.arguments.learning_rate
        return {
            "generator": build_optimizer(networks["generator"], self.arguments),
            "discriminator": build_optimizer(networks["discriminator"], self.arguments, learning_rate=rate),
        }

    def schedule(self, optimizers: dict[str, Optimizer], step: int, total_steps: int) -> None:
        """The arguments' schedule, and on top of it the authors' (mnist.yaml): a decay per step, a growing momentum."""
        super().schedule(optimizers, step, total_steps)
        options, momentum = self.options, self.arguments.momentum
        if options.final_momentum is not None:
            # pylearn2's MomentumAdjustor(start=1, saturate=250) moves once an epoch.
            progress = (self.epoch - 1) / (options.momentum_epochs - 1)
            momentum += (options.final_momentum - momentum) * min(1.0, max(0.0, progress))
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                if options.lr_decay_per_step != 1.0:
                    group["lr"] = max(group["lr"] * options.lr_decay_per_step**-step, options.minimum_learning_rate)
                if "momentum" in group:
                    group["momentum"] = momentum

    # What it is trained on

    def preprocess(self, rows: list[dict[str, Any]]) -> Batch:
        """`image` -> pixel_values (n, channels, height, width) in [0, 1]; `label`, where there is one, is kept."""
        images = [row["image"] for row in rows]
        batch = {"pixel_values": self.processor(images, return_tensors="pt")["pixel_values"]}
        if "label" in rows[0]:
            batch["label"] = torch.tensor([row["label"] for row in rows])
        return batch

    def total_steps(self, context: Context) -> int:
        steps = super().total_steps(context)
        return steps if self.arguments.max_steps is not None else max(1, steps // self.options.discriminator_steps)

    def batches(self, networks: dict[str, nn.Module], context: Context) -> Iterator[Batch]:
        """Batches of the training split; k of them joined for k discriminator steps."""
        stream, count = super().batches(networks, context), self.options.discriminator_steps
        return stream if count == 1 else _joined(stream, count)

    # What a step is

    def losses(
        self, networks: dict[str, nn.Module], shadows: dict[str, nn.Module], batch: Batch, step: int
    ) -> Iterator[Turn]:
        """Algorithm 1: k steps of D on real and generated images, then one step of G against the D that came of them."""
        generator, discriminator = networks["generator"], networks["discriminator"]
        images = generator(self._noise(batch))
        for turn, real in enumerate(batch["pixel_values"].chunk(self.options.discriminator_steps)):
            if turn > 0:
                images = generator(self._noise(batch))
            # One pass over both halves. G's images are constants here: D's step must not move G.
            judged = discriminator(torch.cat([real, images.detach()]))
            real_logits, fake_logits = judged.tensor_split([len(real)])
            loss = discriminator_loss(real_logits, fake_logits, self.config.label_smoothing)
            yield (
                "discriminator",
                loss,
                {
                    "real_probability": torch.sigmoid(real_logits.detach()).mean(),  # D(x)
                    "fake_probability": torch.sigmoid(fake_logits.detach()).mean(),  # D(G(z)) before D's step
                },
            )
        if self.options.fresh_noise:
            images = generator(self._noise(batch))
        fake_logits = discriminator(images)
        yield "generator", generator_loss(fake_logits, self.config.generator_loss), {}
        if step + 1 in SNAPSHOT_STEPS:
            self._keep_snapshot(generator, step + 1, batch["pixel_values"].device)

    def _noise(self, batch: Batch) -> torch.Tensor:
        real = batch["pixel_values"]
        return sample_latents(self.config, len(real) // self.options.discriminator_steps, device=real.device)

    @torch.no_grad()
    def _keep_snapshot(self, generator: nn.Module, step: int, device: torch.device) -> None:
        """A picture of the same latents as always. Every process draws it, because a wrapped network has to be called by
        all of them or by none."""
        generator.eval()
        images = generator(self._fixed_latents(SNAPSHOT_IMAGES).to(device))
        generator.train()
        self.snapshots.append((step, _to_uint8(images)))

    def _fixed_latents(self, count: int) -> torch.Tensor:
        dice = torch.Generator().manual_seed(self.arguments.seed)
        return sample_latents(self.config, count, dice)

    # What is looked at

    def evaluate(self, model: nn.Module, split: str, context: Context) -> dict[str, float]:
        """Parzen log-likelihood, mode coverage, diversity and the state of the game.

        "validation" scores some validation images with the sigma that suits them best: enough to compare two moments of
        one run. "test" is the paper's protocol: sigma from all validation images, then the test images, once.
        """
        name = self.data.validation_split if split == "validation" else self.data.test_split
        if name is None:
            return {}
        options, device = self.options, context.device
        samples = model.sample(options.parzen_samples).float()
        sigmas = log_spaced_sigmas(options.smallest_sigma, options.largest_sigma, options.num_sigmas)
        if split == "validation":
            images = self._images(name, options.validation_images).to(device)
            curve = parzen_curve(samples, images, sigmas)
            sigma = max(curve, key=curve.__getitem__)
            metrics = {"parzen_log_likelihood": curve[sigma], "parzen_sigma": sigma}
        else:
            images = self._images(name).to(device)
            result = parzen_window_evaluation(samples, self._sigma_images().to(device), images, sigmas)
            metrics = {
                "parzen_log_likelihood": result.log_likelihood,
                "parzen_standard_error": result.standard_error,
                "parzen_sigma": result.sigma,
                "parzen_sigma_at_edge": float(result.at_edge),
            }
        metrics |= self._modes(samples)
        metrics["diversity_ratio"] = diversity_ratio(samples, images)
        metrics["discriminator_accuracy"] = _accuracy(model, images[:1000], samples[:1000])
        metrics |= self._verdict(metrics, images, sigmas, split)
        return metrics

    def _modes(self, samples: torch.Tensor) -> dict[str, float]:
        """Coverage of the classes, where the data set names any."""
        train = self._tensors(self.data.train_split, self.options.classifier_images)
        if "label" not in train:
            return {}
        if self._judge is None:
            self._judge = fit_mode_classifier(train["pixel_values"], train["label"])
        coverage = mode_coverage(samples.cpu(), self._judge, train["label"])
        return {
            "modes_covered": float(coverage.modes_covered),
            "modes_total": float(coverage.num_modes),
            "mode_entropy": coverage.entropy,
            "mode_kl": coverage.kl,
        }

    def _verdict(
        self, metrics: dict[str, float], images: torch.Tensor, sigmas: list[float], split: str
    ) -> dict[str, float]:
        """Flags, 1.0 or 0.0, for the two ways in which a GAN fails. A flag that goes up is also said in a sentence."""
        covered = metrics.get("modes_covered", 1.0) / metrics.get("modes_total", 1.0)
        collapsed = metrics["diversity_ratio"] < 0.5 or covered < 0.75
        if collapsed and self._is_news("collapsed", split):
            modes = f", {metrics['modes_covered']:.0f} of {metrics['modes_total']:.0f} modes" if covered < 1 else ""
            logger.warning(
                "The generator has collapsed (%s): its images differ %.0f %% as much as real ones%s. Try the stabilised "
                "variant, a smaller learning rate or another seed.",
                split,
                100 * metrics["diversity_ratio"],
                modes,
            )
        # One Gaussian around the mean image: what a density must beat to know anything about digits.
        mean_image = self._images(self.data.train_split, 5_000).mean(0, keepdim=True).to(images.device)
        blur = max(parzen_curve(mean_image, images, sigmas).values())
        diverged = metrics["parzen_log_likelihood"] < blur
        if diverged and self._is_news("diverged", split):
            logger.warning(
                "The generator explains the %s images worse (%.1f nats) than a single Gaussian around their mean does "
                "(%.1f): it has not learnt yet, or the game has diverged.",
                split,
                metrics["parzen_log_likelihood"],
                blur,
            )
        if split == "validation":
            self._raised = {name for name, up in (("collapsed", collapsed), ("diverged", diverged)) if up}
        return {"collapsed": float(collapsed), "diverged": float(diverged)}

    def _is_news(self, flag: str, split: str) -> bool:
        """Whether the last validation had not said so already; the final word on the test split is always said."""
        return split == "test" or flag not in self._raised

    def figures(self, model: nn.Module, folder: Path, context: Context) -> dict[str, Path]:
        """Samples beside their nearest training images, interpolations, growth over training, sigma."""
        latents = self._fixed_latents(64).to(context.device)
        samples = model.decode(latents).float().cpu()
        train = self._images(self.data.train_split, 50_000)
        nearest = train[nearest_neighbours(samples, train)[1]]
        rows = [model.interpolate(latents[2 * row], latents[2 * row + 1], 12).float().cpu() for row in range(6)]
        pictures = {
            "Samples (left) and the training image nearest to each (right)": grids.side_by_side(
                samples, nearest, folder / "samples.png"
            ),
            "From one latent to another": grids.rows(rows, folder / "interpolation.png"),
        }
        if self.snapshots:
            grown = [*self.snapshots, (None, _to_uint8(samples[:SNAPSHOT_IMAGES]))]
            pictures["The same latents while training (steps on the left)"] = grids.progression(
                grown, folder / "progression.png"
            )
        if self.data.validation_split is not None:
            options = self.options
            sigmas = log_spaced_sigmas(options.smallest_sigma, options.largest_sigma, options.num_sigmas)
            window = model.sample(options.parzen_samples).float()
            images = self._sigma_images(options.validation_images).to(context.device)
            pictures["Parzen log-likelihood of validation images by the width of the window"] = draw.curve(
                parzen_curve(window, images, sigmas), folder / "parzen_sigma.png"
            )
        return pictures

    def _sigma_images(self, limit: int | None = None) -> torch.Tensor:
        """What sigma is chosen on: validation images, or training images where there are none. Never test images."""
        if self.data.validation_split is not None:
            return self._images(self.data.validation_split, limit)
        return self._images(self.data.train_split, limit or 5_000)

    def _images(self, split: str, limit: int | None = None) -> torch.Tensor:
        return self._tensors(split, limit)["pixel_values"]

    def _tensors(self, split: str, limit: int | None = None) -> Batch:
        """The first `limit` rows of a split, preprocessed; read once per process."""
        if self.source is None:
            raise UserError("This recipe names no data set: add --dataset, e.g. --dataset ylecun/mnist.")
        if (split, limit) not in self._kept:
            self._kept[split, limit] = self.source.tensors(split, self.preprocess, limit)
        return self._kept[split, limit]

    # What a checkpoint must remember of it

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"snapshots": [list(snapshot) for snapshot in self.snapshots]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.snapshots = [(step, images) for step, images in state["snapshots"]]


def _joined(stream: Iterator[Batch], count: int) -> Iterator[Batch]:
    while True:
        batches = [next(stream) for _ in range(count)]
        yield {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def _to_uint8(images: torch.Tensor) -> torch.Tensor:
    return (images.detach().float() * 255).round().to(torch.uint8).cpu()


def _accuracy(model: nn.Module, real: torch.Tensor, fake: torch.Tensor) -> float:
    """Share of real and generated images that D, without dropout, tells apart; 0.5 at the game's equilibrium."""
    right = [(model.discriminator(real.to(model.dtype)) > 0), (model.discriminator(fake.to(model.dtype)) <= 0)]
    return 0.5 * sum(part.float().mean().item() for part in right)

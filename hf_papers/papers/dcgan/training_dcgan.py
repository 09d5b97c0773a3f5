"""Training the convolutional pair: the game of 1406.2661 with the players and settings of 1511.06434, and its evaluation."""

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
    frechet_pixels,
    frechet_pixels_of_mean,
    generative_metrics,
    mode_coverage,
    nearest_neighbours,
    ruler_modes,
    svm_evaluation,
)
from hf_papers.metrics.generative import describe_measurement
from hf_papers.metrics.rulers import Reading, Ruler, open_ruler
from hf_papers.papers.dcgan import figures_dcgan as draw
from hf_papers.papers.dcgan.image_processing_dcgan import PaperDcganImageProcessor
from hf_papers.papers.dcgan.modeling_dcgan import (
    PaperDcganModel,
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

FILM_IMAGES = 25
NEIGHBOUR_IMAGES = 1000  # samples whose nearest training image is looked for
TRAIN_IMAGES = 50_000  # that they are looked for among
RECALIBRATION = (20, 100)  # batches and latents of each, from which averaged weights get their running statistics
# Losses, averaged over the last steps, beyond which D has won: it errs on no image, and G gets D(G(z)) below 0.3 %.
WON_DISCRIMINATOR_LOSS, WON_GENERATOR_LOSS = 0.1, 6.0
GAME_DECAY = 0.99
NO_RULER = "none is named: FID, KID and Inception Score were not measured"


@dataclass(frozen=True)
class DcganOptions:
    """What only this task knows."""

    discriminator_learning_rate: float | None = option(
        None, "of the discriminator; that of the generator if not given"
    )
    generator_average: float = option(
        0.0,
        "decay of the running average of the generator's weights that is judged and published; 0: its last weights",
    )
    sync_batch_norm: bool = option(True, "with several processes, take batch statistics over all their images")
    margin: int = option(
        0, "pixels of black ground around the picture, inside image_size: 2 make MNIST's 28 pixels 32 without blurring"
    )
    ruler: str | None = option(
        None, "what FID, KID and Inception Score are read from: an image classifier (folder or Hub id), or 'inception'"
    )
    ruler_layer: str | None = option(
        None, "its hidden layer: a number (-1: the last, as if not given) or a module's name"
    )
    original_format: str | None = option(
        None,
        "of the data set's pictures, e.g. PNG; where those read are of another, every number is marked as of copies",
    )
    test_images: int = option(10_000, "generated images that the numbers of the test split come from")
    validation_images: int = option(
        2_000, "generated, and validation, images that an evaluation while training compares"
    )
    classifier_images: int = option(
        20_000, "labelled training images that the judge of mode coverage learns from; 0: no mode coverage"
    )
    svm_images: int = option(
        0,
        "labelled training images that a linear SVM on the discriminator's features learns from (section 5); 0: none",
    )
    film_frames: int = option(40, "pictures of the same latents that are kept while training; 0: no film")

    def __post_init__(self) -> None:
        at_least = {"margin": 0, "test_images": 2, "validation_images": 2, "classifier_images": 0, "svm_images": 0}
        for name, least in {**at_least, "film_frames": 0}.items():
            if not getattr(self, name) >= least:
                raise UserError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        if not 0 <= self.generator_average < 1:
            raise UserError(f"generator_average must be in [0, 1), not {self.generator_average}.")
        if self.discriminator_learning_rate is not None and not self.discriminator_learning_rate > 0:
            raise UserError(f"discriminator_learning_rate must be positive, not {self.discriminator_learning_rate}.")
        if self.ruler_layer is not None and self.ruler is None:
            raise UserError("--ruler_layer names a layer of a --ruler, but there is none.")


class DcganTask(Task):
    """Two convolutional players, two optimisers, one batch of real images at a time."""

    Options: ClassVar[type] = DcganOptions
    greater_is_better: ClassVar[bool] = False

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        self.config = recipe.config
        if self.arguments.per_device_train_batch_size < 2:
            raise UserError(
                "Batch normalisation over a batch of one compares an image with itself: --per_device_train_batch_size must "
                "be at least 2."
            )
        if self.config.image_size <= 2 * self.options.margin:
            raise UserError(
                f"A margin of {self.options.margin} pixels on each side leaves nothing of {self.config.image_size} pixels."
            )
        self.processor = self.build_processor()
        self.ruler = self._open_ruler()
        # What the best weights are chosen by: the ruler's FID, or what can be had without one.
        self.best_metric = f"fid_{self.ruler.name}" if self.ruler is not None else "frechet_pixels"
        self.film: list[tuple[int, torch.Tensor]] = []  # (steps taken, (FILM_IMAGES, c, h, w) uint8)
        self._film_steps: frozenset[int] = frozenset()
        self._game: torch.Tensor | None = None  # (2,): running means of D's and of G's loss
        self._kept: dict[tuple[str, int | None], Batch] = {}
        self._readings: dict[tuple[str, int | None], Reading] = {}
        self._judge: Any = None
        self._measured: dict[str, Any] | None = None
        self._raised: set[str] = set()  # flags that were up at the last validation

    def _open_ruler(self) -> Ruler | None:
        if self.options.ruler is None:
            logger.warning("FID, KID and Inception Score are not measured: no --ruler (an image classifier) is named.")
            return None
        try:
            return open_ruler(self.options.ruler, self.options.ruler_layer)
        except UserError as error:
            raise UserError(f"{error} (That was --ruler; --ruler none trains without FID.)") from error

    def describe(self) -> dict[str, Any]:
        """The ruler, and the format of the pictures: results on JPEG copies are no results on the originals."""
        described: dict[str, Any] = {"ruler": self._measured or NO_RULER}
        if self.source is not None:
            split = self.data.test_split or self.data.train_split
            found = getattr(next(self.source.rows(split))["image"], "format", None) or "pixels"
            described["image_format"] = found
            if self.options.original_format not in (None, found):
                described["note"] = f"{found} copies"
        return described

    # What is trained

    def build_model(self) -> PaperDcganModel:
        model = super().build_model()
        model.synchronise_batch_norm(self.options.sync_batch_norm)
        return model

    def build_processor(self) -> PaperDcganImageProcessor:
        size = self.recipe.config.image_size - 2 * self.options.margin
        return PaperDcganImageProcessor(
            size={"height": size, "width": size},
            margin=self.options.margin,
            num_channels=self.recipe.config.num_channels,
        )

    def networks(self, model: nn.Module) -> dict[str, nn.Module]:
        return {"generator": model.generator, "discriminator": model.discriminator}

    def shadows(self) -> dict[str, Shadow]:
        return {"generator": Shadow(self.options.generator_average)} if self.options.generator_average else {}

    def published(self, model: nn.Module, shadows: dict[str, nn.Module]) -> nn.Module:
        """The pair with the averaged generator, where there is one, under running statistics of its own."""
        if not shadows:
            return model
        averaged = copy.deepcopy(model)
        averaged.generator.load_state_dict(shadows["generator"].state_dict())
        dice = torch.Generator().manual_seed(self.arguments.seed)
        batches, size = RECALIBRATION
        latents = (sample_latents(self.config, size, dice).to(averaged.device) for _ in range(batches))
        averaged.generator.recalibrate(latents)
        return averaged

    def optimizers(self, networks: dict[str, nn.Module]) -> dict[str, Optimizer]:
        rate = self.options.discriminator_learning_rate or self.arguments.learning_rate
        return {
            "generator": build_optimizer(networks["generator"], self.arguments),
            "discriminator": build_optimizer(networks["discriminator"], self.arguments, learning_rate=rate),
        }

    # What it is trained on

    def preprocess(self, rows: list[dict[str, Any]]) -> Batch:
        """`image` -> pixel_values (n, channels, height, width) in [-1, 1]; `label`, where there is one, is kept."""
        images = [row["image"] for row in rows]
        batch = {"pixel_values": self.processor(images, return_tensors="pt")["pixel_values"]}
        if "label" in rows[0]:
            batch["label"] = torch.tensor([row["label"] for row in rows])
        return batch

    def total_steps(self, context: Context) -> int:
        """The steps of the training, and with them those after which the film gets a frame: early ones close together."""
        total, frames = super().total_steps(context), self.options.film_frames
        self._film_steps = frozenset(max(1, round(total * (frame / frames) ** 2)) for frame in range(1, frames + 1))
        return total

    # What a step is

    def losses(
        self, networks: dict[str, nn.Module], shadows: dict[str, nn.Module], batch: Batch, step: int
    ) -> Iterator[Turn]:
        """D's step on real and on generated images, each in a pass of its own; then G's against the D that came of it."""
        generator, discriminator = networks["generator"], networks["discriminator"]
        real = batch["pixel_values"]
        images = generator(sample_latents(self.config, len(real), device=real.device))
        # Two passes: in a joint one, batch norm would compare each image with both kinds, and G never sees such company.
        real_logits = discriminator(real)
        fake_logits = discriminator(images.detach())  # D's step must not move G
        d_loss = discriminator_loss(real_logits, fake_logits)
        yield (
            "discriminator",
            d_loss,
            {
                "real_probability": torch.sigmoid(real_logits.detach().float()).mean(),  # D(x)
                "fake_probability": torch.sigmoid(fake_logits.detach().float()).mean(),  # D(G(z)) before D's step
            },
        )
        g_loss = generator_loss(discriminator(images, True))  # through a D that stands still
        yield "generator", g_loss, {}
        self._watch_game(d_loss, g_loss)
        if step + 1 in self._film_steps:
            self._film_frame(generator, step + 1, real.device)

    def _watch_game(self, d_loss: torch.Tensor, g_loss: torch.Tensor) -> None:
        """Running means of both losses, kept on their device: reading them at every step would stall it."""
        losses = torch.stack([d_loss.detach(), g_loss.detach()]).float()
        self._game = losses if self._game is None else torch.lerp(losses, self._game.to(losses), GAME_DECAY)

    @torch.no_grad()
    def _film_frame(self, generator: nn.Module, step: int, device: torch.device) -> None:
        """A picture of the same latents as always. Every process draws it, because a wrapped network has to be called by
        all of them or by none."""
        generator.eval()
        images = generator(self._fixed_latents(FILM_IMAGES).to(device))
        generator.train()
        self.film.append((step, _to_uint8(self._visible(images))))

    def _fixed_latents(self, count: int) -> torch.Tensor:
        return sample_latents(self.config, count, torch.Generator().manual_seed(self.arguments.seed))

    def _visible(self, images: torch.Tensor) -> torch.Tensor:
        """What a network makes or reads, in [-1, 1], as a picture in [0, 1] without its margin."""
        return self._inside(0.5 + 0.5 * images.float())

    def _inside(self, images: torch.Tensor) -> torch.Tensor:
        margin = self.options.margin
        return images[..., margin:-margin, margin:-margin] if margin else images

    # What is looked at

    def evaluate(self, model: nn.Module, split: str, context: Context) -> dict[str, float]:
        """Distances between generated and real images of a split, mode coverage, diversity and the state of the game.

        "validation" compares some images, enough to compare moments of one run. "test" takes all of the split and as many
        samples as its option says, and adds the distance to training images and the linear SVM on D's features.
        """
        name = self.data.validation_split if split == "validation" else self.data.test_split
        if name is None:
            return {}
        limit = self.options.validation_images if split == "validation" else None
        count = self.options.validation_images if split == "validation" else self.options.test_images
        samples = self._inside(model.sample(count).float()).cpu()
        images = self._images(name, limit)
        metrics = {"frechet_pixels": frechet_pixels(samples, images)}
        if self.ruler is not None:
            metrics |= self._measure(samples, name, limit, context)
        metrics |= self._modes(samples)
        metrics["diversity_ratio"] = diversity_ratio(samples, images)
        if split == "test":
            metrics["nearest_ratio"] = self._nearest_ratio(samples, images)
            metrics |= self._svm(model, context)
        return metrics | self._verdict(metrics, images, split)

    def _measure(self, samples: torch.Tensor, split: str, limit: int | None, context: Context) -> dict[str, float]:
        """FID, KID, Inception Score and modes by the ruler; real images are read once."""
        ruler = self.ruler.to(context.device)
        if (split, limit) not in self._readings:
            self._readings[split, limit] = ruler.read(self._images(split, limit))
        real, generated = self._readings[split, limit], ruler.read(samples)
        self._measured = describe_measurement(ruler, len(generated), len(real))
        metrics = generative_metrics(ruler, generated, real, seed=self.arguments.seed)
        batch = self._tensors(split, limit)
        return metrics | (ruler_modes(ruler, generated, batch["label"]) if "label" in batch else {})

    def _modes(self, samples: torch.Tensor) -> dict[str, float]:
        """Coverage of the classes, where the data set names any, by a small perceptron."""
        if self.options.classifier_images == 0:
            return {}
        train = self._tensors(self.data.train_split, self.options.classifier_images)
        if "label" not in train:
            return {}
        if self._judge is None:
            self._judge = fit_mode_classifier(self._visible(train["pixel_values"]), train["label"])
        coverage = mode_coverage(samples, self._judge, train["label"])
        return {
            "modes_covered": float(coverage.modes_covered),
            "modes_total": float(coverage.num_modes),
            "mode_entropy": coverage.entropy,
            "mode_kl": coverage.kl,
        }

    def _nearest_ratio(self, samples: torch.Tensor, images: torch.Tensor) -> float:
        """How far samples are from the training image nearest to each, relative to unseen real images: near 0, G copies."""
        train = self._images(self.data.train_split, TRAIN_IMAGES)
        ours, theirs = (
            nearest_neighbours(part[:NEIGHBOUR_IMAGES], train)[0].median().item() for part in (samples, images)
        )
        return ours / theirs

    def _svm(self, model: PaperDcganModel, context: Context) -> dict[str, float]:
        """Section 5: what D has learnt without labels, judged by a linear SVM with labels; C chosen on validation images."""
        if self.options.svm_images == 0:
            return {}
        if self.data.validation_split is None:
            raise UserError("The SVM's cost C is chosen on a --validation_split, and there is none.")
        splits = {self.data.train_split: self.options.svm_images, self.data.validation_split: None}
        parts = []
        for split, limit in {**splits, self.data.test_split: None}.items():
            batch = self._tensors(split, limit)
            if "label" not in batch:
                raise UserError(f"The SVM needs labels, and '{split}' has none: --svm_images 0 leaves it out.")
            images = batch["pixel_values"]
            # Filled piece by piece: joining pieces would need the gigabytes twice.
            features = torch.empty(len(images), self.config.num_features, device=context.device)
            for rows in torch.arange(len(images)).split(500):
                features[rows[0] : rows[-1] + 1] = model.features(images[rows[0] : rows[-1] + 1].to(context.device))
            parts.append((features, batch["label"].to(context.device)))
        result = svm_evaluation(*parts)
        return {
            "svm_accuracy": result.accuracy,
            "svm_cost": result.cost,
            "svm_cost_at_edge": float(result.at_edge),
            "svm_features": float(self.config.num_features),
        }

    def _verdict(self, metrics: dict[str, float], images: torch.Tensor, split: str) -> dict[str, float]:
        """Flags, 1.0 or 0.0, for the ways in which the game fails. A flag that goes up is also said in a sentence."""
        covered = metrics.get("modes_covered", 1.0) / metrics.get("modes_total", 1.0)
        modes = f", {metrics['modes_covered']:.0f} of {metrics['modes_total']:.0f} modes" if covered < 1 else ""
        blur = frechet_pixels_of_mean(images)
        flags = {
            "collapsed": (
                metrics["diversity_ratio"] < 0.5 or covered < 0.75,
                f"The generator has collapsed: its images differ {100 * metrics['diversity_ratio']:.0f} % as much as real "
                f"ones{modes}. Try a smaller learning rate, another seed or --discriminator_learning_rate.",
            ),
            "diverged": (
                metrics["frechet_pixels"] > blur,
                f"The generated images are farther from the real ones (frechet_pixels {metrics['frechet_pixels']:.3g}) than "
                f"their mean image is ({blur:.3g}): the generator has not learnt yet, or the game has diverged.",
            ),
        }
        if self._game is not None:
            d_loss, g_loss = self._game.tolist()
            flags["discriminator_won"] = (
                d_loss < WON_DISCRIMINATOR_LOSS and g_loss > WON_GENERATOR_LOSS,
                f"The discriminator has won: its loss is down to {d_loss:.2g} and the generator's up to {g_loss:.2g}, so "
                "there is nothing left to learn from it. Try a smaller --discriminator_learning_rate or a narrower D.",
            )
        for name, (up, sentence) in flags.items():
            # Once while it lasts; the final word on the test split is always said.
            if up and (split == "test" or name not in self._raised):
                logger.warning("%s (%s)", sentence, split)
        if split == "validation":
            self._raised = {name for name, (up, _) in flags.items() if up}
        return {name: float(up) for name, (up, _) in flags.items()}

    def figures(self, model: nn.Module, folder: Path, context: Context) -> dict[str, Path]:
        """Samples beside their nearest training images, walks, arithmetic, filters, the film, and real images."""
        latents = self._fixed_latents(64).to(context.device)
        samples = self._inside(model.decode(latents).float().cpu())
        train = self._images(self.data.train_split, TRAIN_IMAGES)
        nearest = train[nearest_neighbours(samples, train)[1]]
        walks = [
            self._inside(model.interpolate(latents[2 * row], latents[2 * row + 1], 12).float().cpu())
            for row in range(6)
        ]
        real = self._tensors(self.data.train_split, 500)["pixel_values"].to(context.device)
        sums = draw.find_sums(model, self._judge, self._inside, self.arguments.seed)
        pictures = {
            "Samples (left) and the training image nearest to each (right)": grids.side_by_side(
                samples, nearest, folder / "samples.png"
            ),
            "Latent walks: from one z to another": grids.rows(walks, folder / "walk.png"),
            "Vector arithmetic: three z averaged, bold minus thin (or bright minus dark) plus another": draw.arithmetic(
                sums, folder / "arithmetic.png"
            ),
            "Filters of the discriminator's first layer, before and after training": draw.filters(
                model, folder / "filters.png"
            ),
            "What excites features of the discriminator's last layer (guided backpropagation)": draw.responses(
                model, real, folder / "responses.png"
            ),
        }
        if self.film:
            film = [*self.film, (None, _to_uint8(samples[:FILM_IMAGES]))]
            pictures["The same latents while training"] = draw.progression(film, folder / "progression.png")
            pictures["The same latents while training, as a film"] = draw.film(film, folder / "film.gif")
            draw.keep_film(film, folder / "film.safetensors")
        return pictures

    def _images(self, split: str, limit: int | None = None) -> torch.Tensor:
        """Real images as pictures: (n, channels, height, width) in [0, 1] without margin."""
        return self._visible(self._tensors(split, limit)["pixel_values"])

    def _tensors(self, split: str, limit: int | None = None) -> Batch:
        """The first `limit` rows of a split, preprocessed; read once per process."""
        if self.source is None:
            raise UserError("This recipe names no data set: add --dataset, e.g. --dataset ylecun/mnist.")
        if (split, limit) not in self._kept:
            self._kept[split, limit] = self.source.tensors(split, self.preprocess, limit)
        return self._kept[split, limit]

    # What a checkpoint must remember of it

    def state_dict(self) -> dict[str, Any]:
        game = None if self._game is None else self._game.cpu()
        return super().state_dict() | {"film": [list(frame) for frame in self.film], "game": game}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.film = [(step, images) for step, images in state["film"]]
        self._game = state["game"]


def _to_uint8(images: torch.Tensor) -> torch.Tensor:
    return (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()

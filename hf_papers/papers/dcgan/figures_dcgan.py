"""Pictures of a finished run. Images are in [0, 1] or uint8; every function writes one file and returns its path."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import nn

from hf_papers.papers.dcgan.modeling_dcgan import PaperDcganModel, vector_arithmetic
from hf_papers.training import image_grids as grids


SUM_SAMPLES = 2000  # images among which the terms of a sum are looked for
SHOWN_FILTERS = 64
SHOWN_FEATURES, SHOWN_IMAGES = 6, 8
SHOWN_STEPS = 9
FRAME_MS, LAST_FRAME_MS = 160, 2500

Frames = Sequence[tuple[int | None, torch.Tensor]]  # (steps taken, images); None stands for the published model


def progression(frames: Frames, path: Path) -> Path:
    """A row of pictures for each of some frames, evenly chosen, the last one included."""
    chosen = [
        frames[index] for index in torch.linspace(0, len(frames) - 1, SHOWN_STEPS).round().int().unique().tolist()
    ]
    return grids.progression([(step, pictures[:12]) for step, pictures in chosen], path)


def film(frames: Frames, path: Path, width: int = 320) -> Path:
    """A GIF of square grids, with the steps taken below each; the last frame stays for a while."""
    pictures = []
    for step, images in frames:
        side = int(len(images) ** 0.5)
        board = _to_picture(grids.grid([images[row * side : (row + 1) * side] for row in range(side)]))
        scale = max(1, width // board.width)
        board = board.resize((board.width * scale, board.height * scale), Image.Resampling.NEAREST)
        frame = Image.new(board.mode, (board.width, board.height + 16), "white")
        frame.paste(board)
        text = "published" if step is None else f"step {step:,}"
        ImageDraw.Draw(frame).text((4, board.height + 2), text, fill="black")
        # Few colours and no dithering: dots between them would be most of the file.
        pictures.append(frame.quantize(32, dither=Image.Dither.NONE))
    durations = [FRAME_MS] * (len(pictures) - 1) + [LAST_FRAME_MS]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return path


def keep_film(frames: Frames, path: Path) -> Path:
    """The frames themselves: `images` (frames, n, c, h, w) uint8 and `steps` (frames,), the published model's as -1."""
    steps = torch.tensor([-1 if step is None else step for step, _ in frames])
    save_file({"images": torch.stack([images for _, images in frames]), "steps": steps}, path)
    return path


# ------------------------------------------------------------------------------------------------ vector arithmetic


@dataclass(frozen=True)
class Sum:
    """plus - minus + base: of each the three images and that of the mean of their z, (4, c, h, w); and the result's."""

    plus: torch.Tensor
    minus: torch.Tensor
    base: torch.Tensor
    result: torch.Tensor


def find_sums(
    model: PaperDcganModel, judge: Any | None, inside: Callable[[torch.Tensor], torch.Tensor], seed: int
) -> list[Sum]:
    """Terms that differ in one thing: the brightest and the darkest images of a class, and the darkest of another class.

    Brightness is what every data set has: for digits it is how bold they are written. The classes are those of `judge`, a
    classifier of pixels; without one, all images are one class.
    """
    latents = model.sample_latents(SUM_SAMPLES, torch.Generator().manual_seed(seed))
    images = inside(model.decode(latents.to(model.device)).float().cpu())
    classes = torch.zeros(len(images)) if judge is None else torch.as_tensor(judge.predict(images.flatten(1).numpy()))
    brightness = images.flatten(1).mean(1)
    common = [kind for kind in classes.unique().tolist() if (classes == kind).sum() >= 6] or [classes[0].item()]

    def extreme(kind: float, brightest: bool) -> torch.Tensor:
        rows = torch.nonzero(classes == kind).flatten()
        return rows[brightness[rows].argsort(descending=brightest)[:3]]

    sums = []
    for first, second in list(zip(common, common[1:] + common[:1], strict=True))[:4]:
        chosen = [extreme(first, True), extreme(first, False), extreme(second, False)]
        result = vector_arithmetic(*(latents[rows] for rows in chosen))
        means = [latents[rows].mean(0) for rows in chosen]
        drawn = inside(model.decode(torch.stack([*means, result]).to(model.device)).float().cpu())
        terms = [torch.cat([images[rows], drawn[index : index + 1]]) for index, rows in enumerate(chosen)]
        sums.append(Sum(*terms, result=drawn[3]))
    return sums


def arithmetic(sums: Sequence[Sum], path: Path) -> Path:
    """A row per sum: three images and the image of their mean z, for each term; then the result."""
    figure = Figure(figsize=(10, 0.5 + 0.85 * len(sums)), layout="constrained")
    grid = figure.subplots(len(sums), 4, squeeze=False, width_ratios=(4, 4, 4, 1))
    for line, entry in zip(grid, sums, strict=True):
        for axes, images in zip(line, (entry.plus, entry.minus, entry.base, entry.result[None]), strict=True):
            grids.show(axes, grids.grid([images]))
    for axes, title in zip(grid[0], ("three, and their mean", "minus", "plus", "="), strict=True):
        axes.set_title(title, fontsize=10)
    return grids.save(figure, path)


# ---------------------------------------------------------------------------------------------- what D looks for


def untrained(model: PaperDcganModel) -> PaperDcganModel:
    """A network of the same kind with fresh weights, always the same ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return type(model)(copy.deepcopy(model.config)).to(model.device).eval()


def filters(model: PaperDcganModel, path: Path) -> Path:
    """Filters of D's first layer as small pictures, each stretched to the full range, beside those of a fresh network."""
    figure = Figure(figsize=(8, 4.3), layout="constrained")
    for axes, network, title in zip(
        figure.subplots(1, 2), (untrained(model), model), ("before training", "after"), strict=True
    ):
        weight = network.discriminator.layers[0].conv.weight.detach().float().cpu()[:SHOWN_FILTERS]
        if weight.shape[1] not in (1, 3):
            weight = weight.mean(1, keepdim=True)
        spread = weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
        patches = 0.5 + 0.5 * weight / spread
        columns = max(1, round(len(patches) ** 0.5))
        grids.show(axes, grids.grid(list(_pad(patches, columns).split(columns))))
        axes.set_title(title, fontsize=11)
    return grids.save(figure, path)


def responses(model: PaperDcganModel, images: torch.Tensor, path: Path) -> Path:
    """Figure 5 of the paper: for features of D's last layer, what in the images that excite them most does so.

    images: (n, c, h, w) in [-1, 1]. Pairs of rows, image above response, beside those of a fresh network.
    """
    figure = Figure(figsize=(10, 8), layout="constrained")
    for axes, network, title in zip(
        figure.subplots(1, 2), (untrained(model), model), ("before training", "after"), strict=True
    ):
        lines = []
        for feature in range(min(SHOWN_FEATURES, model.config.discriminator_width)):
            shown, response = guided_responses(network, images, feature, SHOWN_IMAGES)
            lines += [0.5 + 0.5 * shown.cpu(), response.cpu()]
        grids.show(axes, grids.grid(lines))
        axes.set_title(title, fontsize=11)
    return grids.save(figure, path)


def guided_responses(
    model: PaperDcganModel, images: torch.Tensor, feature: int, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` images that excite a feature of D's last layer most, and the guided gradient of its largest activation.

    Guided backpropagation (1412.6806, section 3.4): on its way back through a rectifier the gradient passes only where the
    rectifier was on *and* the gradient is positive, so that only what speaks for the feature is left. Both (count, c, h, w);
    responses in [0, 1] with 0.5 for none.
    """
    network = model.discriminator
    rectifiers = [module for module in network.modules() if isinstance(module, nn.LeakyReLU)]
    outputs: dict[nn.Module, torch.Tensor] = {}

    def remember(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        outputs[module] = output.detach()

    def guide(module: nn.Module, inward: tuple[torch.Tensor], outward: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (outward[0].clamp(min=0) * (outputs[module] > 0),)

    with torch.no_grad():
        excitement = network.hidden_maps(images)[-1][:, feature].flatten(1).amax(1)
    chosen = images[excitement.argsort(descending=True)[:count]].clone().requires_grad_()
    handles = [module.register_forward_hook(remember) for module in rectifiers]
    handles += [module.register_full_backward_hook(guide) for module in rectifiers]
    try:
        with torch.enable_grad():
            peak = network.hidden_maps(chosen)[-1][:, feature].flatten(1).amax(1).sum()
            (gradient,) = torch.autograd.grad(peak, chosen)
    finally:
        for handle in handles:
            handle.remove()
    spread = gradient.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    return chosen.detach(), 0.5 + 0.5 * gradient / spread


# ---------------------------------------------------------------------------------------------------------- drawing


def _pad(images: torch.Tensor, columns: int) -> torch.Tensor:
    """(n, c, h, w) with blank ones behind, up to full rows."""
    missing = -len(images) % columns
    return torch.cat([images, images.new_ones(missing, *images.shape[1:])]) if missing else images


def _to_picture(grid: torch.Tensor) -> Image.Image:
    array = (grid.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)

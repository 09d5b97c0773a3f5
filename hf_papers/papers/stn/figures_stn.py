"""Pictures of what a trained spatial transformer network looks at, and of what it sees there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_papers.papers.stn.modeling_stn import PaperStnForImageClassification
from hf_papers.papers.stn.pictures_stn import as_picture, outline
from hf_papers.training.task import Batch


SHOWN = 10
AVERAGED = 2000  # images that class averages are taken over
MARGIN = 0.3  # of the image's side, shown around it: the outline may reach outside
COLOURS = ("#ea580c", "#4f46e5", "#059669", "#db2777")


def draw_figures(
    model: PaperStnForImageClassification, examples: Iterable[Batch], names: list[str], folder: Path
) -> dict[str, Path]:
    """`examples`: batches of pixel_values and labels. Writes PNG files into `folder`: caption -> file."""
    images, labels, views = [], [], []
    first = None
    for batch in examples:
        output = model(batch["pixel_values"])
        first = first or (batch, output)
        if output.transformed is not None:
            views.append(output.transformed.float().cpu())
        images.append(batch["pixel_values"].float().cpu())
        labels.append(batch["labels"].cpu())
        if sum(map(len, labels)) >= AVERAGED:
            break
    batch, output = first
    chosen = torch.arange(min(SHOWN, len(batch["labels"])))
    answers = [names[number] for number in output.logits[chosen].argmax(-1).tolist()]
    if output.grids is None:
        return {"Images and answers": draw_inputs(batch["pixel_values"][chosen].float().cpu(), answers, folder)}
    caption = "The images with the outlines of where the transformer looks, and what it sees there, with the answer"
    files = {
        caption: draw_looks(
            batch["pixel_values"][chosen].float().cpu(),
            output.grids[chosen].float().cpu(),
            output.transformed[chosen].float().cpu(),
            answers,
            model.config.align_corners,
            folder,
        )
    }
    averages = draw_averages(torch.cat(images), torch.cat(views), torch.cat(labels), names, folder)
    files["The average image of each class, and the average of what the transformer makes of it"] = averages
    return files


def draw_inputs(images: torch.Tensor, answers: list[str], folder: Path) -> Path:
    figure = Figure(figsize=(1.3 * len(images), 1.7), layout="constrained")
    for panel, image, answer in zip(figure.subplots(1, len(images), squeeze=False)[0], images, answers, strict=True):
        _show(panel, as_picture(image), answer)
    path = folder / "images.png"
    figure.savefig(path, dpi=110)
    return path


def draw_looks(
    images: torch.Tensor,
    grids: torch.Tensor,
    views: torch.Tensor,
    answers: list[str],
    align_corners: bool,
    folder: Path,
) -> Path:
    """images (n, C, H, W), grids (n, T, 2, h, w), views (n, T C, h, w); a column per image, a row per transformer."""
    count, transformers = grids.shape[:2]
    views = views.unflatten(1, (transformers, -1))
    figure = Figure(figsize=(1.3 * count, 1.4 * (1 + transformers) + 0.3), layout="constrained")
    panels = figure.subplots(1 + transformers, count, squeeze=False)
    size = images.shape[-1]
    for column in range(count):
        _show(panels[0][column], as_picture(images[column]), answers[column])
        panels[0][column].set_xlim(-0.5 - MARGIN * size, (1 + MARGIN) * size - 0.5)
        panels[0][column].set_ylim((1 + MARGIN) * size - 0.5, -0.5 - MARGIN * size)
        for number in range(transformers):
            border = outline(grids[column, number], size, align_corners)
            panels[0][column].plot(*border.numpy(), color=COLOURS[number % len(COLOURS)], linewidth=1.4, clip_on=True)
            _show(panels[1 + number][column], as_picture(views[column, number]), None)
    path = folder / "looks.png"
    figure.savefig(path, dpi=110)
    return path


def draw_averages(
    images: torch.Tensor, views: torch.Tensor, labels: torch.Tensor, names: list[str], folder: Path
) -> Path:
    """Aligned digits have a sharp average, scattered ones a blur: a row of inputs, a row of what the classifier saw."""
    classes = labels.unique().tolist()
    figure = Figure(figsize=(0.95 * len(classes), 2.2), layout="constrained")
    panels = figure.subplots(2, len(classes), squeeze=False)
    for column, label in enumerate(classes):
        for row, pictures in enumerate((images, views)):
            mean = pictures[labels == label].mean(0).mean(0, keepdim=True)
            _show(
                panels[row][column], as_picture(mean / mean.max().clamp_min(1e-6)), names[label] if row == 0 else None
            )
    path = folder / "averages.png"
    figure.savefig(path, dpi=110)
    return path


def _show(panel: Axes, picture: torch.Tensor, title: str | None) -> None:
    panel.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
    panel.set_axis_off()
    if title is not None:
        panel.set_title(title, fontsize=9)


__all__ = ["draw_figures"]

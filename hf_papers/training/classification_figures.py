"""Pictures of a classifier's answers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from matplotlib.figure import Figure

from hf_papers.training.answers import Answers


WRITTEN = 20  # numbers are written into a confusion matrix of at most so many classes
SHOWN = 24  # mistakes


def confusion_matrix(predictions: torch.Tensor, labels: torch.Tensor, num_labels: int) -> torch.Tensor:
    """How often class `row` was taken for class `column`: (n,), (n,) -> (num_labels, num_labels)."""
    return torch.bincount(labels * num_labels + predictions, minlength=num_labels**2).view(num_labels, num_labels)


def draw_confusion(answers: Answers, names: list[str], folder: Path) -> Path:
    """The mistakes coloured by their number; right answers, which are far more, only written."""
    counts = confusion_matrix(answers.predictions, answers.labels, len(names))
    mistakes = counts.clone().fill_diagonal_(0).float()
    side = min(8.0, 2.2 + 0.42 * len(names))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(mistakes.numpy(), cmap="Purples", vmin=0, vmax=max(1.0, mistakes.max().item()))
    if len(names) <= WRITTEN:
        for row in range(len(names)):
            for column in range(len(names)):
                count = int(counts[row, column])
                dark = row != column and mistakes[row, column] > 0.6 * mistakes.max()
                colour = "white" if dark else "#94a3b8" if row == column else "black"
                if count:
                    axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(len(names)), names, rotation=45 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("answer")
    axes.set_ylabel("right class")
    wrong, total = int(mistakes.sum()), len(answers.labels)
    axes.set_title(f"{wrong:,} of {total:,} wrong", fontsize=10)
    path = folder / "confusion.png"
    figure.savefig(path, dpi=110)
    return path


def draw_mistakes(answers: Answers, pictures: Iterable[torch.Tensor], names: list[str], folder: Path) -> Path | None:
    """The wrong answers with the highest probabilities; None where there is none.

    pictures: batches (b, C, H, W) in [0, 1] in the order of the answers.
    """
    sure, predictions = answers.logits.softmax(-1).max(-1)
    wrong = torch.nonzero(predictions != answers.labels).flatten()
    if not len(wrong):
        return None
    chosen = wrong[sure[wrong].argsort(descending=True, stable=True)][:SHOWN]
    images = _pick(pictures, chosen)
    columns = min(8, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(1.25 * columns, 1.5 * rows), layout="constrained")
    for place, (number, image) in enumerate(zip(chosen.tolist(), images, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, place)
        channels = {1: image[0], 2: image.amax(0)}.get(len(image), image.permute(1, 2, 0))
        axes.imshow(channels.numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
        right, answer = names[int(answers.labels[number])], names[int(predictions[number])]
        axes.set_title(f"{right}: {answer}, {sure[number]:.0%}", fontsize=8)
    path = folder / "mistakes.png"
    figure.savefig(path, dpi=110)
    return path


def _pick(batches: Iterable[torch.Tensor], numbers: torch.Tensor) -> list[torch.Tensor]:
    """The rows `numbers` out of batches that follow one another, in the order of `numbers`."""
    wanted, found, start = set(numbers.tolist()), {}, 0
    for batch in batches:
        found |= {start + row: batch[row] for row in range(len(batch)) if start + row in wanted}
        start += len(batch)
    return [found[number] for number in numbers.tolist()]

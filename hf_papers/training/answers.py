"""What a classifier says of the images of a split."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Answers:
    """What a model says of all images of a split, on the CPU."""

    logits: torch.Tensor  # (rows, classes)
    labels: torch.Tensor  # (rows,)
    loss: float  # the mean over the rows

    @property
    def predictions(self) -> torch.Tensor:
        return self.logits.argmax(-1)

    @property
    def error_percent(self) -> float:
        """100 (1 - accuracy), from the counts: 0.95 and not 0.9499999999999953."""
        return 100 * int((self.predictions != self.labels).sum()) / len(self.labels)

    @property
    def accuracy(self) -> float:
        return (self.predictions == self.labels).double().mean().item()


__all__ = ["Answers"]

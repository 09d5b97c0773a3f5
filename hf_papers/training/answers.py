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
    def accuracy(self) -> float:
        return (self.predictions == self.labels).double().mean().item()


__all__ = ["Answers"]

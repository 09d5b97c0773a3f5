"""Mode coverage: which classes of the data does a generator produce, and in what proportions?

An independent classifier, fitted to real images with labels, sorts the generated ones. A generator that has collapsed
leaves classes empty, however sharp its images are.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_papers.errors import UserError


if TYPE_CHECKING:
    from sklearn.neural_network import MLPClassifier

# A class counts as covered when generated images fall into it at a tenth or more of its share in the data.
COVERED_SHARE = 0.1


@dataclass(frozen=True)
class ModeCoverage:
    """modes_covered of num_modes classes; entropy of the generated classes, in nats; kl = KL(generated || data), in nats;
    shares: of each class among the generated images, in the order of the classes."""

    modes_covered: int
    num_modes: int
    entropy: float
    kl: float
    shares: tuple[float, ...]


def fit_mode_classifier(images: torch.Tensor, labels: torch.Tensor, seed: int = 0) -> MLPClassifier:
    """A small perceptron that names the class of an image; independent of any network under test.

    images (n, ...) in [0, 1], labels (n,) whole numbers. 128 hidden units and at most 50,000 / n * 20 (20 to 200)
    passes: half a minute for 55,000 MNIST digits on one core, a second for 8x8 digits.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    pixels, targets = _pixels(images), np.asarray(labels)
    if len(pixels) != len(targets):
        raise UserError(
            f"A classifier needs one label per image: there are {len(pixels)} images and {len(targets)} labels."
        )
    if len(np.unique(targets)) < 2:
        raise UserError("A classifier of modes needs labels of two or more classes.")
    passes = int(np.clip(20 * 50_000 / len(pixels), 20, 200))
    classifier = MLPClassifier((128,), batch_size=min(200, len(pixels)), max_iter=passes, random_state=seed)
    with warnings.catch_warnings():
        # The number of passes is a budget; that the loss could still fall a little is no news.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return classifier.fit(pixels, targets)


def mode_coverage(samples: torch.Tensor, classifier: MLPClassifier, labels: torch.Tensor) -> ModeCoverage:
    """Sort `samples` (n, ...) with a fitted classifier, and compare with the class shares of real `labels` (m,)."""
    classes = classifier.classes_
    found = classifier.predict(_pixels(samples))
    return coverage_of_labels(found, np.asarray(labels), classes)


def coverage_of_labels(generated: np.ndarray, real: np.ndarray, classes: np.ndarray) -> ModeCoverage:
    """The same from classes already assigned: generated (n,) and real (m,) labels, each one of `classes`."""
    shares = _shares(generated, classes)
    expected = _shares(real, classes)
    present = shares > 0
    if (expected[present] == 0).any():
        raise UserError("Generated images fall into a class that the real labels do not contain.")
    return ModeCoverage(
        modes_covered=int(((shares >= COVERED_SHARE * expected) & (expected > 0)).sum()),
        num_modes=int((expected > 0).sum()),
        entropy=float(-(shares[present] * np.log(shares[present])).sum()),
        kl=float((shares[present] * np.log(shares[present] / expected[present])).sum()),
        shares=tuple(float(share) for share in shares),
    )


def _shares(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    if len(labels) == 0:
        raise UserError("Mode coverage needs one image or more.")
    return np.array([(labels == one).mean() for one in classes])


def _pixels(images: torch.Tensor) -> np.ndarray:
    return torch.as_tensor(images).flatten(1).float().cpu().numpy()

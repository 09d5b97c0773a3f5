"""Distances between images: is the generator diverse, and is it more than a copy of the training set?"""

from __future__ import annotations

import torch

from hf_papers.errors import UserError


CHUNK = 512


@torch.no_grad()
def nearest_neighbours(queries: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest of `images` for each query, by Euclidean distance between pixels.

    queries (n, ...), images (m, ...) -> distances (n,) float32 and indices into images (n,).
    """
    queries, images = _flat(queries), _flat(images)
    distances, indices = [], []
    norms = images.square().sum(dim=1)
    for chunk in queries.split(CHUNK):
        squared = torch.addmm(norms, chunk, images.T, alpha=-2.0)
        index = squared.argmin(dim=1)
        # The winner's distance again by subtraction: the expanded form loses small distances to rounding.
        distances.append((chunk - images[index]).norm(dim=1))
        indices.append(index)
    return torch.cat(distances), torch.cat(indices)


@torch.no_grad()
def mean_pairwise_distance(images: torch.Tensor, limit: int = 1000) -> float:
    """Mean Euclidean distance over all pairs of different entries among the first `limit` of (n, ...) images."""
    points = _flat(images)[:limit]
    if len(points) < 2:
        raise UserError(f"A mean distance between images needs two or more of them, not {len(points)}.")
    return torch.pdist(points).mean().item()


def diversity_ratio(samples: torch.Tensor, images: torch.Tensor, limit: int = 1000) -> float:
    """Mean distance between samples / mean distance between real images: near 1 is healthy, near 0 has collapsed."""
    real = mean_pairwise_distance(images, limit)
    if real == 0:
        raise UserError("All real images are alike, so diversity cannot be compared with theirs.")
    return mean_pairwise_distance(samples, limit) / real


def _flat(images: torch.Tensor) -> torch.Tensor:
    images = torch.as_tensor(images)
    if images.ndim < 2 or images.numel() == 0:
        raise UserError(
            f"Distances need images of shape (count, ...) with a count above 0, not {tuple(images.shape)}."
        )
    return images.flatten(1).float()

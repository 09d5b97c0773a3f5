"""The picture of a finished run that is GAN's own; rows of images are drawn by `training.image_grids`."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from hf_papers.training.image_grids import save


INK = "#4f46e5"


def curve(values: dict[float, float], path: Path) -> Path:
    """Parzen log-likelihood over sigma, the best one marked. Far below it the curve falls out of the picture."""
    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    axes = figure.subplots()
    best = max(values, key=values.__getitem__)
    axes.plot(list(values), list(values.values()), color=INK, marker=".")
    axes.axvline(best, color="#9ca3af", linewidth=1, linestyle="--")
    axes.set_xscale("log")
    spread = values[best] - values[max(values)]
    axes.set_ylim(values[best] - max(spread, 1.0), values[best] + 0.1 * max(spread, 1.0))
    axes.set_xlabel(f"sigma of the window (best {best:.3f})")
    axes.set_ylabel("log-likelihood (nats)")
    axes.grid(alpha=0.3)
    return save(figure, path)

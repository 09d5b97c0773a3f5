"""Pictures of a trained variational auto-encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from hf_papers.papers.vae.modeling_vae import PaperVaeModel
from hf_papers.training.task import Context


COLUMNS = 10
TRAVERSED = 10  # at most so many entries of z are shown, those that say most
STEPS = 9


def draw_figures(
    model: PaperVaeModel, images: torch.Tensor, labels: torch.Tensor | None, folder: Path, context: Context
) -> dict[str, Path]:
    """images (n, C, H, W) in [0, 1], labels (n,) or None. Writes PNG files into `folder`: caption -> file."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    images = images.to(context.device)
    shown = images[:COLUMNS]
    pairs = torch.stack([shown, model.reconstruct(shown)])  # (2, columns, C, H, W)
    samples = model.sample(4 * COLUMNS, generator=generator).unflatten(0, (4, COLUMNS))
    half = min(5, len(images) // 2)
    between = model.interpolate(images[:half], images[half : 2 * half], steps=STEPS) if half else None
    means = torch.cat([model.encode(part)[0].float() for part in images.split(1000)]).cpu()

    files = {
        "Test images, and the same ones through the encoder and the decoder": _save_grid(
            pairs, folder / "reconstructions.png"
        ),
        "Images decoded from samples of the prior N(0, I)": _save_grid(samples, folder / "samples.png"),
    }
    if between is not None:
        files["Straight lines in latent space between the first and the last image of each row"] = _save_grid(
            between, folder / "interpolation.png"
        )
    if len(means) > 1:
        active = means.var(0).argsort(descending=True)[:TRAVERSED].tolist()
        rows = model.traverse(shown[:1], dimensions=active, values=torch.linspace(-3, 3, STEPS))
        caption = "One test image with one entry of z at a time set from -3 to 3, the most active entries first"
        files[caption] = _save_grid(rows, folder / "traversals.png")
        kind = "The latent space" if means.shape[1] == 2 else "The two widest directions (PCA) of the latent space"
        files[f"{kind}: means of q(z|x) of test images"] = _save_map(means, labels, folder / "latent_map.png")
    if model.config.latent_size == 2:
        files["The learned manifold, as figure 4 of the paper: decoded quantiles of the prior"] = _save_grid(
            manifold(model), folder / "manifold.png"
        )
    return files


def manifold(model: PaperVaeModel, steps: int = 20) -> torch.Tensor:
    """A square of evenly spaced probabilities through the inverse Gaussian distribution function and the decoder.

    Figure 4 (appendix A): equal steps on the square are equal shares of the prior. -> (steps, steps, C, H, W)
    """
    quantiles = torch.special.ndtri(torch.linspace(0.02, 0.98, steps))
    down, across = torch.meshgrid(-quantiles, quantiles, indexing="ij")
    with torch.no_grad():
        return model.decode(torch.stack([across, down], dim=-1).to(model.device))


def first_two_components(means: torch.Tensor) -> torch.Tensor:
    """Principal components of the means, (n, J) -> (n, 2); two or fewer entries are kept as they are."""
    if means.shape[1] <= 2:
        return torch.nn.functional.pad(means, (0, 2 - means.shape[1]))
    centred = means - means.mean(0)
    _, directions = torch.linalg.eigh(centred.T @ centred)  # eigenvalues rise, so the last columns are the widest
    return centred @ directions[:, -2:].flip(-1)


def _save_grid(images: torch.Tensor, path: Path) -> Path:
    """(rows, columns, C, H, W) in [0, 1] as one picture, enlarged so that small images can be seen."""
    rows, columns, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images.float().cpu(), (1, 1, 1, 1), value=0.5)
    grid = padded.permute(0, 3, 1, 4, 2).reshape(rows * (height + 2), columns * (width + 2), channels)
    scale = max(1, round(80 / height))
    array = (grid.numpy().repeat(scale, 0).repeat(scale, 1) * 255).round().astype(np.uint8)
    from PIL import Image

    Image.fromarray(array[..., 0] if channels == 1 else array).save(path)
    return path


def _save_map(means: torch.Tensor, labels: torch.Tensor | None, path: Path) -> Path:
    points = first_two_components(means).numpy()
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.add_subplot()
    if labels is None:
        axes.scatter(points[:, 0], points[:, 1], s=8, alpha=0.7)
    else:
        labels = labels.numpy()
        drawn = axes.scatter(points[:, 0], points[:, 1], c=labels, s=8, alpha=0.7, cmap="tab10")
        if len(np.unique(labels)) <= 10:
            axes.legend(*drawn.legend_elements(num=None), title="label", loc="center left", bbox_to_anchor=(1, 0.5))
    names = ("z1", "z2") if means.shape[1] <= 2 else ("first component", "second component")
    axes.set(xlabel=names[0], ylabel=names[1], aspect="equal")
    figure.savefig(path, dpi=120)
    return path


__all__ = ["draw_figures", "first_two_components", "manifold"]

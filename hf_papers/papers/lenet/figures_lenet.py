"""Pictures of a trained LeNet-5."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure

from hf_papers.papers.lenet.modeling_lenet import PaperLenetForImageClassification, PaperLenetRbf


SHOWN = 3  # digits whose maps are drawn
CODE_SHAPE = (12, 7)


def draw_figures(
    model: PaperLenetForImageClassification, pixel_values: torch.Tensor, labels: torch.Tensor, folder: Path
) -> dict[str, Path]:
    """pixel_values (n, C, H, W) as the model sees them, labels (n,). Writes PNG files into `folder`: caption -> file."""
    chosen = one_of_each(labels)
    files = {
        "What each layer makes of a digit, from the input to the answer": draw_feature_maps(
            model, pixel_values[chosen[:SHOWN]], folder / "feature_maps.png"
        ),
        "The filters of C1": draw_filters(model, folder / "filters.png"),
    }
    if isinstance(model.output, PaperLenetRbf) and model.output.codes.shape[1] == CODE_SHAPE[0] * CODE_SHAPE[1]:
        path = draw_codes(model, pixel_values[chosen], labels[chosen], folder / "codes.png")
        files["The units of F6 for one image of each class, above the code that they are compared with"] = path
    return files


def one_of_each(labels: torch.Tensor) -> list[int]:
    """The place of the first image of every class that there is, by class."""
    return [int(torch.nonzero(labels == label)[0]) for label in labels.unique()]


def tiles(maps: torch.Tensor, columns: int) -> torch.Tensor:
    """Maps (n, H, W) in rows of `columns`, a gap of NaN between them: -> (rows (H + 1) - 1, columns (W + 1) - 1)."""
    count, height, width = maps.shape
    rows = -(-count // columns)
    page = torch.full((rows, columns, height + 1, width + 1), torch.nan)
    page.flatten(0, 1)[:count, :height, :width] = maps
    return page.permute(0, 2, 1, 3).reshape(rows * (height + 1), columns * (width + 1))[:-1, :-1]


def draw_feature_maps(model: PaperLenetForImageClassification, pixel_values: torch.Tensor, path: Path) -> Path:
    """A row per image, a column per layer; blue is negative, red positive, on one scale per layer."""
    with torch.no_grad():
        layers = model.feature_maps(pixel_values)
        layers = {"input": pixel_values.mean(1, keepdim=True), **layers}
        probabilities = model(pixel_values).logits.float().softmax(-1).cpu()
    names = [*model.config.id2label.values()]
    figure = Figure(figsize=(13, 1.9 * len(pixel_values)), layout="constrained")
    panels = figure.subplots(
        len(pixel_values), len(layers) + 1, squeeze=False, width_ratios=[1, 2, 1.6, 2, 1.4, 1, 1, 1.4]
    )
    for row, axes in enumerate(panels):
        for panel, (name, values) in zip(axes, layers.items(), strict=False):
            page = layer_page(name, values[row].float().cpu(), model.config.hidden_sizes[1])
            if name == "input":
                panel.imshow(page.numpy(), cmap="gray")
            else:
                reach = values.abs().max().item() or 1.0
                panel.imshow(page.numpy(), cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="equal")
            panel.set_axis_off()
            if row == 0:
                panel.set_title(f"{name}\n{' x '.join(map(str, values.shape[1:]))}", fontsize=9)
        best = probabilities[row].topk(min(5, len(names)))
        places = range(len(best.indices))
        axes[-1].barh(places, best.values.numpy(), color="#4f46e5")
        axes[-1].set_yticks(places, [names[index] for index in best.indices.tolist()], fontsize=8)
        axes[-1].invert_yaxis()
        axes[-1].set_xlim(0, 1)
        axes[-1].tick_params(axis="x", labelsize=7)
        if row == 0:
            axes[-1].set_title("answer", fontsize=9)
    figure.savefig(path, dpi=100)
    return path


def layer_page(name: str, values: torch.Tensor, final_units: int) -> torch.Tensor:
    """One layer's values for one image as a picture: maps as tiles, C5 as a block, F6 as the bitmap it is compared with."""
    if values.ndim == 3:
        return tiles(values, columns=4 if len(values) > 6 else 3) if len(values) > 1 else values[0]
    if name == "F6" and final_units == CODE_SHAPE[0] * CODE_SHAPE[1]:
        return values.view(CODE_SHAPE)
    width = 8
    padded = torch.nn.functional.pad(values, (0, -len(values) % width), value=torch.nan)
    return padded.view(-1, width)


def draw_filters(model: PaperLenetForImageClassification, path: Path) -> Path:
    """The filters of the first layer, colours averaged, on one scale."""
    filters = model.c1.weighted_sum.weight.detach().float().mean(1).cpu()  # (maps, k, k)
    figure = Figure(figsize=(1.3 * len(filters), 1.5), layout="constrained")
    reach = filters.abs().max().item()
    for panel, values in zip(figure.subplots(1, len(filters), squeeze=False)[0], filters, strict=True):
        panel.imshow(values.numpy(), cmap="RdBu_r", vmin=-reach, vmax=reach)
        panel.set_axis_off()
    figure.savefig(path, dpi=100)
    return path


def draw_codes(
    model: PaperLenetForImageClassification, pixel_values: torch.Tensor, labels: torch.Tensor, path: Path
) -> Path:
    """F6 of one image of each class as a bitmap, and that class's code under it."""
    with torch.no_grad():
        units = model.feature_maps(pixel_values)["F6"].float().cpu()
    codes = model.output.codes.float().cpu()[labels.cpu()]
    figure = Figure(figsize=(1.1 * len(labels), 3.9), layout="constrained")
    panels = figure.subplots(2, len(labels), squeeze=False)
    for row, values in enumerate((units, codes)):
        for panel, picture in zip(panels[row], values, strict=True):
            panel.imshow(picture.view(CODE_SHAPE).numpy(), cmap="gray_r", vmin=-1.2, vmax=1.2)
            panel.set_xticks([])
            panel.set_yticks([])
    panels[0][0].set_ylabel("F6", fontsize=9)
    panels[1][0].set_ylabel("code", fontsize=9)
    figure.savefig(path, dpi=100)
    return path


__all__ = ["draw_figures", "one_of_each", "tiles"]

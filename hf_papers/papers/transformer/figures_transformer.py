"""Pictures of a trained model: where every head looks, and how it tells places apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from hf_papers.papers.transformer.modeling_transformer import PaperTransformerForSeq2SeqLM
from hf_papers.papers.transformer.translating_transformer import Search, Translator


TOKENS = (6, 18)  # of a source that is shown
MAX_LAYERS, MAX_HEADS = 6, 8
POSITIONS = 64


def draw_figures(translator: Translator, sources: Sequence[str], folder: Path) -> dict[str, Path]:
    """Writes PNG files into `folder`: caption -> file. `sources` are texts that were not learnt from."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    if source := short_source(translator, sources):
        reading = translator.read(source)
        best = translator.candidates(reading, Search())[0]
        looks = translator.look(reading, best)
        shown = f"“{plain(source)}” → “{plain(best.text)}”"
        pictures = (
            (
                "cross",
                "Where the decoder looks in the source while it writes each token (row)",
                looks.cross,
                best.names,
                looks.source,
            ),
            (
                "encoder",
                "Where each source token (row) looks in the source",
                looks.encoder,
                looks.source,
                looks.source,
            ),
            (
                "decoder",
                "Where each token that was written (row) looks behind",
                looks.decoder,
                looks.asking,
                looks.asking,
            ),
        )
        for name, caption, weights, rows, columns in pictures:
            if weights.numel():
                path = folder / f"attention_{name}.png"
                files[f"{caption}, by layer and head: {source}"] = save_heads(weights, rows, columns, shown, path)
    if translator.model.config.architecture == "transformer":
        caption = "Positions: their vectors, and how alike two of them are (dot product over the largest)"
        files[caption] = save_positions(translator.model, folder / "positions.png")
    return files


def short_source(translator: Translator, sources: Sequence[str]) -> str | None:
    """The first source that is short enough to read its tokens in a picture; the first one of all where none is."""
    filled = [text for text in sources if text.strip()]
    fitting = (text for text in filled if TOKENS[0] <= len(translator.read(text).tokens) <= TOKENS[1])
    return next(fitting, filled[0] if filled else None)


def save_heads(weights: torch.Tensor, rows: Sequence[str], columns: Sequence[str], title: str, path: Path) -> Path:
    """weights (layers, heads, rows, columns): a panel for each head, layers from top to bottom."""
    weights = weights[:MAX_LAYERS, :MAX_HEADS]
    layers, heads = weights.shape[:2]
    wide, high = max(2.2, 0.19 * len(columns)), max(1.8, 0.19 * len(rows))
    figure = Figure(figsize=(wide * heads + 1.2, high * layers + 1.4), layout="constrained")
    figure.suptitle(title, fontsize=11, wrap=True)
    for layer, axes_of_layer in enumerate(figure.subplots(layers, heads, squeeze=False)):
        for head, axes in enumerate(axes_of_layer):
            axes.imshow(weights[layer, head], cmap="viridis", vmin=0, vmax=1, aspect="auto")
            is_last, is_first = layer == layers - 1, head == 0
            axes.set_xticks(
                range(len(columns)), [plain(n) for n in columns] if is_last else [], rotation=90, fontsize=7
            )
            axes.set_yticks(range(len(rows)), [plain(n) for n in rows] if is_first else [], fontsize=7)
            axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8)
    figure.savefig(path, dpi=100)
    return path


def save_positions(model: PaperTransformerForSeq2SeqLM, path: Path) -> Path:
    """The table of positions, and the dot products of its rows."""
    table = model.transformer.encoder.embeddings.positions.detach().float().cpu()[:POSITIONS]  # (positions, d)
    alike = table @ table.T
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    limit = float(table.abs().max())
    shown = left.imshow(table, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    left.set_xlabel("entry of the vector")
    left.set_ylabel("position")
    figure.colorbar(shown, ax=left)
    shown = right.imshow(alike / alike.abs().max(), cmap="viridis", interpolation="nearest")
    right.set_xlabel("position")
    right.set_ylabel("position")
    figure.colorbar(shown, ax=right)
    figure.savefig(path, dpi=100)
    return path


def plain(text: Any) -> str:
    """Text that Matplotlib does not take for a formula."""
    return str(text).replace("$", r"\$")


__all__ = ["draw_figures", "save_heads", "save_positions", "short_source"]

"""A map of held-out texts before and after fine-tuning, and how far labels are neighbours in the full space."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from hf_papers.errors import UserError
from hf_papers.papers.bert.glue_start import Start
from hf_papers.papers.bert.modeling_bert import PaperBertModel
from hf_papers.reports.curves import COLOURS, save_picture
from hf_papers.studies.bert.learning import labels_of, read_full_runs
from hf_papers.studies.bert.runs import (
    Study,
    context,
    describe_subject,
    load_start,
    need_classes,
    summarise,
    summarise_runs,
)


Pooling = Literal["cls", "mean"]
POOLINGS: tuple[Pooling, ...] = ("cls", "mean")
NEIGHBOURS = 10


class TextVectors(nn.Module):
    """An encoder that gives one vector a text where a classifier gives logits: [CLS] or the mean of all tokens, (B, H)."""

    def __init__(self, encoder: PaperBertModel, pooling: Pooling) -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, pooling

    def forward(self, **batch: torch.Tensor) -> SimpleNamespace:
        states = self.encoder(**batch).last_hidden_state
        if self.pooling == "cls":
            return SimpleNamespace(logits=states[:, 0])
        mask = batch["attention_mask"][..., None]
        return SimpleNamespace(logits=(states * mask).sum(1) / mask.sum(1))


def neighbour_agreement(vectors: torch.Tensor, labels: torch.Tensor, k: int = NEIGHBOURS) -> float:
    """Mean share of a text's k nearest others, by cosine, that have its label: (n, d), (n,) -> [0, 1]."""
    if not 1 <= k < len(vectors):
        raise UserError(f"{len(vectors)} texts have no {k} neighbours each: lower --neighbours or raise --max_rows.")
    unit = nn.functional.normalize(vectors.float(), dim=-1)
    similarity = (unit @ unit.T).fill_diagonal_(-torch.inf)
    nearest = similarity.topk(k, dim=-1).indices
    return (labels[nearest] == labels[:, None]).float().mean().item()


def chance_agreement(labels: torch.Tensor) -> float:
    """What `neighbour_agreement` is where vectors say nothing of labels."""
    counts = labels.unique(return_counts=True)[1].double()
    return ((counts * (counts - 1)).sum() / (len(labels) * (len(labels) - 1))).item()


def silhouette(vectors: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean silhouette by cosine, from -1 to 1: how much nearer a text is to its own label than to the next one."""
    from sklearn.metrics import silhouette_score

    if len(labels.unique()) < 2:
        raise UserError("All texts have the same label, so none is nearer to its own: raise --max_rows.")
    return float(silhouette_score(vectors.numpy(), labels.numpy(), metric="cosine"))


def text_map(vectors: torch.Tensor, seed: int) -> np.ndarray:
    """t-SNE of (n, d) into the plane, (n, 2)."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=seed).fit_transform(
        vectors.numpy()
    )


def embedding_study(study: Study) -> Path:
    """Held-out texts by the start and by the start fine-tuned; returns the record."""
    limit = study.take("max_rows", int, 872)
    k = study.take("neighbours", int, NEIGHBOURS)
    pooling: Pooling = study.take("pooling", Pooling, "cls")
    train_rows = study.take("max_train_rows", int | None, None)
    fine_tuned = study.take("fine_tuned", list[str], None)
    need_classes(study)
    rows = study.scored_rows(limit)
    labels = torch.from_numpy(labels_of(study, rows))
    encoded = study.task.encoder(rows)
    if fine_tuned:
        folders = read_full_runs(study, fine_tuned)
    else:
        folders = study.train("fine-tuned" + (f"-rows{train_rows}" if train_rows else ""), train_examples=train_rows)
    before = {name: _vectors(study, study.start, encoded, name) for name in POOLINGS}
    after = [{name: _vectors(study, Start(str(folder)), encoded, name) for name in POOLINGS} for folder in folders]
    measured = {
        name: {
            "before": _numbers([before[name]], labels, k),
            "after": _numbers([vectors[name] for vectors in after], labels, k),
        }
        for name in POOLINGS
    }
    maps = {"before fine-tuning": before[pooling], "after fine-tuning": after[0][pooling]}
    shown = {name: (text_map(vectors, study.seeds[0]), vectors) for name, vectors in maps.items()}
    path = draw_maps(shown, labels, study.task.labels, k, study.output / "embeddings.png")
    subject, runs = describe_subject(study), summarise_runs(folders)
    study.seeds = tuple(runs["seeds"])
    return study.write(
        {
            **subject,
            "texts": len(rows),
            "neighbours": k,
            "chance_agreement": chance_agreement(labels),
            "vectors": measured,
            "fine_tuned": runs,
            "note": "'cls' is the last layer's vector of [CLS], 'mean' the mean over all tokens. Agreement: share of a "
            "text's nearest others, by cosine in the full space, that have its label. The map is t-SNE, whose distances "
            "between groups mean nothing.",
        },
        [
            {"what": f"{k}-neighbour agreement {when} fine-tuning ({pooling})", **measured[pooling][when]["agreement"]}
            for when in ("before", "after")
        ],
        {f"{subject['task']}: held-out texts before and after fine-tuning (t-SNE of '{pooling}')": path},
    )


@torch.no_grad()
def _vectors(study: Study, start: Start, encoded: Any, pooling: Pooling) -> torch.Tensor:
    """(texts, H)"""
    model = TextVectors(load_start(start, PaperBertModel), pooling)
    return study.task.logits(model, encoded, context())


def _numbers(all_vectors: list[torch.Tensor], labels: torch.Tensor, k: int) -> dict[str, Any]:
    return {
        "agreement": summarise(neighbour_agreement(vectors, labels, k) for vectors in all_vectors),
        "silhouette": summarise(silhouette(vectors, labels) for vectors in all_vectors),
    }


def draw_maps(
    maps: dict[str, tuple[np.ndarray, torch.Tensor]],
    labels: torch.Tensor,
    names: tuple[str, ...],
    k: int,
    path: Path,
) -> Path:
    """A panel each, coloured by label, with its neighbour agreement; maps: title -> (points (n, 2), vectors (n, d))."""
    figure = Figure(figsize=(5 * len(maps), 4.8), layout="constrained")
    for axes, (title, (points, vectors)) in zip(
        figure.subplots(1, len(maps), squeeze=False)[0], maps.items(), strict=True
    ):
        for number, name in enumerate(names):
            chosen = (labels == number).numpy()
            axes.scatter(*points[chosen].T, s=7, color=COLOURS[number % len(COLOURS)], label=name, alpha=0.7)
        agreement = neighbour_agreement(vectors, labels, k)
        axes.set_title(f"{title}: {100 * agreement:.1f} % of {k} neighbours agree", fontsize=10, loc="left")
        axes.set_xticks([])
        axes.set_yticks([])
    axes.legend(frameon=False, fontsize=8, markerscale=2)
    return save_picture(figure, path)

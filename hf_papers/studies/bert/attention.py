"""Where the attention heads of a BERT look: measured on held-out texts, pictured (after 1906.04341, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from hf_papers.data.memory import Batch, select
from hf_papers.errors import UserError
from hf_papers.papers.bert.glue_data import TextEncoder
from hf_papers.papers.bert.modeling_bert import PaperBertModel
from hf_papers.papers.bert.tokenization_bert import check_vocabulary, load_tokenizer
from hf_papers.reports.curves import save_picture
from hf_papers.studies.bert.runs import Study, describe_subject, device, load_start, summarise


# Shares of a head's attention, and the entropy of where it looks in nats.
SHARES = ("cls", "sep", "previous", "next", "self")
MEASURES = (*SHARES, "entropy")
TITLES = {
    "cls": "to [CLS]",
    "sep": "to [SEP]",
    "previous": "to the previous token",
    "next": "to the next token",
    "self": "to itself",
    "entropy": "entropy, nats",
}
BATCH = 32
EXAMPLE_TOKENS = (8, 18)


@dataclass(frozen=True)
class Heads:
    """`values`: measure -> (layers, heads); `even`: measure -> what a head would get that looks everywhere alike."""

    values: dict[str, torch.Tensor]
    even: dict[str, float]

    def characteristic(self) -> dict[str, tuple[int, int]]:
        """Description -> (layer, head) of the head that does most of each thing, counted from 0."""
        chosen = {f"most attention {TITLES[name]}": _place(self.values[name], largest=True) for name in SHARES}
        chosen["most focused (least entropy)"] = _place(self.values["entropy"], largest=False)
        chosen["broadest (most entropy)"] = _place(self.values["entropy"], largest=True)
        return chosen


def _place(values: torch.Tensor, largest: bool) -> tuple[int, int]:
    number = int(values.argmax() if largest else values.argmin())
    return divmod(number, values.shape[1])


def token_measures(weights: torch.Tensor, batch: Batch, cls: int, sep: int) -> dict[str, torch.Tensor]:
    """Measure -> its sum over the tokens of a batch that look, (A,).

    weights (B, A, T, T), row = the token that looks; batch: input_ids, attention_mask (B, T). The tokens that look are word
    pieces: [CLS], [SEP] and padding are looked at only.
    """
    ids, real = batch["input_ids"], batch["attention_mask"].bool()
    is_cls, is_sep, looks = ids.eq(cls) & real, ids.eq(sep) & real, looking(batch, cls, sep)
    entropy = -torch.special.xlogy(weights, weights).sum(-1)  # (B, A, T)
    seen = {
        "cls": (weights * is_cls[:, None, None, :]).sum(-1),
        "sep": (weights * is_sep[:, None, None, :]).sum(-1),
        "self": weights.diagonal(dim1=-2, dim2=-1),
        # The first token has none before it and the last none after it; both are special and do not look.
        "previous": _neighbour(weights, -1),
        "next": _neighbour(weights, 1),
        "entropy": entropy,
    }
    return {name: (value * looks[:, None, :]).sum((0, 2)) for name, value in seen.items()}


def looking(batch: Batch, cls: int, sep: int) -> torch.Tensor:
    """True for the word pieces, (B, T)."""
    ids = batch["input_ids"]
    return batch["attention_mask"].bool() & ids.ne(cls) & ids.ne(sep)


def _neighbour(weights: torch.Tensor, offset: int) -> torch.Tensor:
    """Attention of each token to the one `offset` from it, 0 where there is none: (B, A, T, T) -> (B, A, T)."""
    found = torch.zeros_like(weights[..., 0])
    values = weights.diagonal(offset, dim1=-2, dim2=-1)
    if offset > 0:
        found[..., :-offset] = values
    else:
        found[..., -offset:] = values
    return found


def even_attention(attention_mask: torch.Tensor, causal: bool) -> torch.Tensor:
    """What a head would do that looks at all visible tokens alike: (B, T) -> (B, 1, T, T)."""
    length = attention_mask.shape[1]
    visible = attention_mask.bool()[:, None, None, :].expand(-1, 1, length, length)
    if causal:
        visible = visible & torch.ones(length, length, dtype=torch.bool, device=visible.device).tril()
    return visible / visible.sum(-1, keepdim=True).clamp_min(1)


@torch.no_grad()
def measure_heads(model: PaperBertModel, batches: list[Batch], cls: int, sep: int) -> Heads:
    """Means over all word pieces of all batches."""
    sums: dict[str, torch.Tensor] = {}
    even: dict[str, float] = dict.fromkeys(MEASURES, 0.0)
    count = 0
    for batch in batches:
        attentions = model(**batch, output_attentions=True).attentions
        layers = [token_measures(weights.float(), batch, cls, sep) for weights in attentions]
        flat = even_attention(batch["attention_mask"], model.config.causal_attention)
        for name, value in token_measures(flat, batch, cls, sep).items():
            stacked = torch.stack([layer[name] for layer in layers]).double().cpu()
            sums[name] = sums.get(name, 0) + stacked
            even[name] += value.item()
        count += int(looking(batch, cls, sep).sum())
    if not count:
        raise UserError("There is no word in these texts whose attention could be measured.")
    values = {name: (sums[name] / count).float() for name in MEASURES}
    return Heads(values, {name: value / count for name, value in even.items()})


# ------------------------------------------------------------------------------------------------------- the study


def attention_study(study: Study) -> Path:
    """Measure all heads of a checkpoint on held-out texts; returns the record."""
    limit = study.take("max_rows", int, 200)
    text_file = study.take("text_file", str | None, None)
    sentence = study.take("sentence", str | None, None)
    study.refuse_rest()
    model = load_start(study.start, PaperBertModel)
    tokenizer = load_tokenizer(study.options.get("tokenizer_name", study.start.name))
    check_vocabulary(tokenizer, model.config.vocab_size, model.config.pad_token_id, rounded=True)
    subject, encoded = _texts(study, model, tokenizer, text_file, limit)
    study.seeds = ()  # nothing is drawn
    heads = measure_heads(model, _batches(encoded, tokenizer), tokenizer.cls_token_id, tokenizer.sep_token_id)
    example = _example(model, tokenizer, encoded, sentence)
    figures = {
        f"Every head: shares of its attention and their entropy, {subject['texts']} held-out texts": draw_heads(
            heads, study.output / "heads.png"
        ),
        "The heads that do most of each thing; row = the token that looks, column = where it looks": draw_examples(
            heads, *example, study.output / "examples.png"
        ),
    }
    return study.write(
        {
            **subject,
            "parameters": model.num_parameters(),
            "measures": {name: _rounded(value) for name, value in heads.values.items()},
            "even": {name: round(value, 5) for name, value in heads.even.items()},
            "characteristic": [
                {"what": what, "layer": layer + 1, "head": head + 1}
                for what, (layer, head) in heads.characteristic().items()
            ],
            "note": "Means over word pieces; [CLS], [SEP] and padding do not look. 'even' is a head that looks at every "
            "visible token alike. Layers and heads of 'characteristic' are counted from 1.",
        },
        [
            {"what": f"attention {TITLES[name]}, the head with most of it", **summarise([heads.values[name].max()])}
            for name in SHARES
        ],
        figures,
    )


def _texts(
    study: Study, model: PaperBertModel, tokenizer: Any, text_file: str | None, limit: int
) -> tuple[dict[str, Any], Batch]:
    """What is looked at, for the record, and the texts as ragged word pieces."""
    if limit < 1:
        raise UserError(f"--max_rows must be at least 1, not {limit}.")
    if text_file is None:
        rows = study.scored_rows(limit)
        encoded = study.task.encoder(rows)
        return {**describe_subject(study), "texts": len(rows)}, encoded
    path = Path(text_file)
    if not path.is_file():
        raise UserError(f"There is no file {path} of texts, one a line.")
    rows = [{"sentence": line} for line in path.read_text(encoding="utf-8").splitlines() if line.strip()][:limit]
    if not rows:
        raise UserError(f"{path} holds no text: write one a line.")
    length = min(128, model.config.max_position_embeddings)
    encoded = TextEncoder(tokenizer, ("sentence",), length, "truncate")(rows)
    return {"scored_on": path.name, "start": study.start.describe(), "texts": len(rows)}, encoded


def _batches(encoded: Batch, tokenizer: Any) -> list[Batch]:
    """Padded batches on the device, texts of about the same length together."""
    from hf_papers.data import Padding

    padding = Padding({"input_ids": tokenizer.pad_token_id, "token_type_ids": 0}, mask="attention_mask")
    order = padding.lengths(encoded).sort(stable=True).indices
    batches = [padding(select(encoded, numbers)) for numbers in order.split(BATCH)]
    return [{name: value.to(device()) for name, value in batch.items()} for batch in batches]


@torch.no_grad()
def _example(
    model: PaperBertModel, tokenizer: Any, encoded: Batch, sentence: str | None
) -> tuple[list[str], torch.Tensor]:
    """Word pieces of a text short enough for a picture, and its attention (layers, heads, T, T)."""
    if sentence is not None:
        length = model.config.max_position_embeddings
        ids = tokenizer(sentence, truncation=True, max_length=length)["input_ids"]
    else:
        low, high = EXAMPLE_TOKENS
        texts = [row.tolist() for row in encoded["input_ids"]]
        fitting = [row for row in texts if low <= len(row) <= high]
        ids = fitting[0] if fitting else min(texts, key=len)[:high]
    attentions = model(torch.tensor([ids], device=device()), output_attentions=True).attentions
    return tokenizer.convert_ids_to_tokens(ids), torch.stack([weights[0].float().cpu() for weights in attentions])


def _rounded(values: torch.Tensor) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in values.tolist()]


# -------------------------------------------------------------------------------------------------------- pictures


def draw_heads(heads: Heads, path: Path) -> Path:
    """A heat map of layers × heads for each measure."""
    layers, width = heads.values["cls"].shape
    figure = Figure(figsize=(11, max(3.2, 0.5 * layers + 1.6)), layout="constrained")
    for axes, name in zip(figure.subplots(2, 3).flat, MEASURES, strict=True):
        top = 1.0 if name in SHARES else None
        image = axes.imshow(heads.values[name], cmap="viridis", vmin=0, vmax=top, aspect="auto")
        axes.set_title(f"{TITLES[name]} (even: {heads.even[name]:.2f})", fontsize=9, loc="left")
        axes.set_xticks(range(width), range(1, width + 1), fontsize=7)
        axes.set_yticks(range(layers), range(1, layers + 1), fontsize=7)
        axes.set_xlabel("head", fontsize=8)
        axes.set_ylabel("layer", fontsize=8)
        figure.colorbar(image, ax=axes).ax.tick_params(labelsize=7)
    return save_picture(figure, path)


def draw_examples(heads: Heads, tokens: list[str], attentions: torch.Tensor, path: Path) -> Path:
    """The most characteristic heads on one text: attentions (layers, heads, T, T)."""
    chosen: dict[tuple[int, int], list[str]] = {}
    for what, place in heads.characteristic().items():
        chosen.setdefault(place, []).append(what)
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    names = [token.replace("$", r"\$") for token in tokens]
    figure = Figure(figsize=(3.4 * columns, 3.7 * rows), layout="constrained")
    for number, ((layer, head), what) in enumerate(chosen.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.imshow(attentions[layer, head], cmap="viridis", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names if number % columns == 0 else [], fontsize=7)
        axes.set_title("\n".join([f"layer {layer + 1}, head {head + 1}", *what]), fontsize=8, loc="left")
    return save_picture(figure, path)

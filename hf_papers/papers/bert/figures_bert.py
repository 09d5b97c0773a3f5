"""Pictures of a pre-trained BERT: its guesses for masked words, and where its heads look."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from hf_papers.papers.bert.modeling_bert import PaperBertForPreTraining
from hf_papers.training.task import Context


SENTENCES = 8
TOP = 5
WORDS = (6, 14)  # words of a sentence that is shown
HEADS = 4  # of the last layer, at most


@dataclass(frozen=True)
class Guess:
    """A sentence with one word masked: `text` shows [MASK], `candidates` are (token, probability), best first."""

    text: str
    truth: str
    candidates: list[tuple[str, float]]


def draw_pretraining_figures(
    model: PaperBertForPreTraining, tokenizer: Any, documents: Iterable[list[str]], folder: Path, context: Context
) -> dict[str, Path]:
    """Writes PNG files into `folder`: caption -> file. `documents` are lists of held-out sentences."""
    folder.mkdir(parents=True, exist_ok=True)
    sentences = short_sentences(documents)
    if not sentences:
        return {}
    files = {}
    if not model.config.causal_attention:
        guesses = [guess_masked_word(model, tokenizer, sentence, context.device) for sentence in sentences]
        files["Held-out sentences with one word masked, and the five likeliest words by the model"] = _save_guesses(
            guesses, folder / "masked_words.png"
        )
    caption = (
        "Attention in the last layer for a held-out sentence: row = the token that looks, column = where it looks"
    )
    files[caption] = _save_attention(model, tokenizer, sentences[0], folder / "attention.png", context.device)
    return files


def short_sentences(documents: Iterable[list[str]], count: int = SENTENCES) -> list[str]:
    """The first sentence of ordinary words and length of each document, until there are `count`."""
    found: list[str] = []
    for sentences in documents:
        for sentence in sentences:
            words = sentence.split()
            if WORDS[0] <= len(words) <= WORDS[1] and sum(word.isalpha() for word in words) >= 0.7 * len(words):
                found.append(sentence)
                break
        if len(found) == count:
            break
    return found


@torch.no_grad()
def guess_masked_word(model: PaperBertForPreTraining, tokenizer: Any, sentence: str, device: torch.device) -> Guess:
    """Mask the longest word of a sentence that is a single token, and ask for it."""
    inputs = tokenizer(sentence, return_tensors="pt", truncation=True, max_length=model.config.max_position_embeddings)
    tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    position = max(range(1, len(tokens) - 1), key=lambda place: _masking_order(tokens, place), default=0)
    truth = tokens[position]
    inputs["input_ids"][0, position] = tokenizer.mask_token_id
    positions = torch.tensor([[position]], device=device)
    logits = model(**inputs.to(device), masked_positions=positions).prediction_logits[0, 0].float()
    best = logits.softmax(-1).topk(min(TOP, len(logits)))
    names = tokenizer.convert_ids_to_tokens(best.indices.tolist())
    text = tokenizer.decode(inputs["input_ids"][0, 1:-1])
    return Guess(text, truth, list(zip(names, best.values.tolist(), strict=True)))


def _masking_order(tokens: list[str], place: int) -> tuple[bool, int]:
    whole = tokens[place].isalpha() and not tokens[place + 1].startswith("##")
    return whole, len(tokens[place])


def _save_guesses(guesses: list[Guess], path: Path) -> Path:
    """A line of text for each sentence, its truth, and bars of the probabilities of the candidates."""
    figure = Figure(figsize=(10, 1.35 * len(guesses) + 0.3), layout="constrained")
    for axes, guess in zip(figure.subplots(len(guesses), squeeze=False)[:, 0], guesses, strict=True):
        names = [name for name, _ in guess.candidates][::-1]
        values = [value for _, value in guess.candidates][::-1]
        colours = ["tab:green" if name == guess.truth else "tab:blue" for name in names]
        bars = axes.barh(range(len(names)), values, color=colours)
        axes.bar_label(bars, [f"{value:.1%}" for value in values], padding=3, fontsize=7)
        axes.set_yticks(range(len(names)), [_plain(name) for name in names], fontsize=8)
        axes.set_xlim(0, 1.05)
        axes.tick_params(axis="x", labelsize=7)
        axes.set_title(_plain(f"{guess.text}    ({guess.truth})"), fontsize=9, loc="left")
    figure.savefig(path, dpi=110)
    return path


@torch.no_grad()
def _save_attention(
    model: PaperBertForPreTraining, tokenizer: Any, sentence: str, path: Path, device: torch.device
) -> Path:
    inputs = tokenizer(sentence, return_tensors="pt", truncation=True, max_length=model.config.max_position_embeddings)
    tokens = [_plain(token) for token in tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())]
    # Asked for its weights, attention is written out; otherwise nobody sees them.
    weights = model(**inputs.to(device), output_attentions=True).attentions[-1][0].float().cpu()  # (A, T, T)
    heads = min(HEADS, len(weights))
    figure = Figure(figsize=(4.2 * heads, 4.6), layout="constrained")
    for head, axes in enumerate(figure.subplots(1, heads, squeeze=False)[0]):
        axes.imshow(weights[head], cmap="viridis", vmin=0, vmax=1)
        axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=8)
        axes.set_yticks(range(len(tokens)), tokens if head == 0 else [], fontsize=8)
        axes.set_title(f"head {head + 1}")
    figure.savefig(path, dpi=110)
    return path


def _plain(text: str) -> str:
    """Text that Matplotlib does not take for a formula."""
    return text.replace("$", r"\$")


__all__ = ["Guess", "draw_pretraining_figures", "guess_masked_word", "short_sentences"]

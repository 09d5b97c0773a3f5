"""Asking a finished BERT: the words of blanks, the class of a text, whether B follows A, where it looks, a text's vector.

Texts may come from anybody: whatever cannot be answered is a `UserError` with a sentence, and whatever was left out or not
understood of a text stands in the answer's `notes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_papers.errors import UserError
from hf_papers.hub.checkpoints import check_finite, load_strict, locate, read_config
from hf_papers.papers.bert.glue_start import sentences
from hf_papers.papers.bert.modeling_bert import (
    PaperBertForPreTraining,
    PaperBertForSequenceClassification,
    PaperBertModel,
    PaperBertPreTrainedModel,
)
from hf_papers.papers.bert.tokenization_bert import CONTINUES, check_vocabulary, load_tokenizer
from hf_papers.registry import find_paper


BLANK = re.compile(r"\[mask\]|_{2,}", re.IGNORECASE)
MAX_BLANKS = 10
CHARACTERS_PER_TOKEN = 20  # what lies beyond so many characters per position is not even cut into tokens
EMBEDDING_BATCH = 32


# --------------------------------------------------------------------------------------------------------------- loading


@dataclass(frozen=True)
class Reader:
    """A model of the paper in eval mode, and the tokenizer that it was trained with."""

    model: PaperBertPreTrainedModel
    tokenizer: Any

    @property
    def encoder(self) -> PaperBertModel:
        return getattr(self.model, "bert", self.model)

    @property
    def max_tokens(self) -> int:
        """Positions of the model, [CLS] and [SEP] included."""
        return self.model.config.max_position_embeddings

    def has(self, part: str) -> bool:
        """Whether the model has this part, and its weights come from the checkpoint and not from chance."""
        missing = self.model.missing_from_reference
        absent = any(name.removeprefix("bert.").startswith(f"{part}.") for name in missing)
        owner = self.encoder if part == "pooler" else self.model
        return getattr(owner, part, None) is not None and not absent


def load_reader(source: str | Path, classifier: bool = False) -> Reader:
    """The BERT in a folder or on the Hub: one of ours, exact or int8, or one in transformers' layout, with its tokenizer.

    Args:
        source: folder or repository id.
        classifier: a classifier is wanted; otherwise a pre-trained network, with those of its outputs that there are.

    Raises `UserError` with a sentence for every other checkpoint, and where the vocabulary does not fit the weights.
    """
    folder = locate(source)
    if read_config(folder).get("model_type") == "bert":
        model_class = PaperBertForSequenceClassification if classifier else PaperBertForPreTraining
        with sentences():
            model = model_class.from_reference(str(folder))
        check_finite(model, folder)
    else:
        model = load_strict(find_paper("bert"), folder)
    reader = Reader(model.float().eval(), load_tokenizer(folder))
    config = reader.model.config
    check_vocabulary(reader.tokenizer, config.vocab_size, config.pad_token_id, rounded=True)
    if classifier:
        check_classifier(reader, folder)
    return reader


def check_classifier(reader: Reader, folder: Path) -> None:
    config = reader.model.config
    kind = config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
    is_classifier = isinstance(reader.model, PaperBertForSequenceClassification) and reader.has("classifier")
    if not is_classifier or kind != "single_label_classification":
        raise UserError(
            f"The checkpoint in {folder} is no classifier that puts a text into one of several classes. Fine-tune one: "
            "python scripts/run_glue.py --task_name sst2 --model_name_or_path …"
        )


# ----------------------------------------------------------------------------------------------------------------- texts


@dataclass(frozen=True)
class Text:
    """A text in tokens, without [CLS] and [SEP].

    ids: numbers in the vocabulary. unknown: what was read as [UNK]. cut: whether its end was left out.
    """

    ids: list[int]
    unknown: list[str]
    cut: bool


def encode(reader: Reader, text: str, limit: int | None = None) -> Text:
    """The first `limit` tokens of a text (as many as the model reads, by default); blanks become [MASK].

    Names of special tokens in the text are text like any other. Raises `UserError` where there is nothing to read.
    """
    limit = reader.max_tokens - 2 if limit is None else min(limit, reader.max_tokens - 2)
    text = plain(text)
    kept = text[: limit * CHARACTERS_PER_TOKEN]
    mask, unk = reader.tokenizer.mask_token_id, reader.tokenizer.unk_token_id
    ids: list[int] = []
    unknown: list[str] = []
    for number, part in enumerate(BLANK.split(kept)):
        ids += [mask] if number else []
        pieces = reader.tokenizer(
            part, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        spans = zip(pieces["input_ids"], pieces["offset_mapping"], strict=True)
        unknown += [part[start:end] for token, (start, end) in spans if token == unk]
        ids += pieces["input_ids"]
    if not ids:
        raise UserError("There is no text: write a few words.")
    if all(token == mask for token in ids[:limit]):
        raise UserError("There is nothing but blanks: write a few words around them.")
    return Text(ids[:limit], unknown, cut=len(ids) > limit or len(kept) < len(text))


def plain(text: Any) -> str:
    """A visitor's text on one line, in characters that can be encoded."""
    if not isinstance(text, str):
        raise UserError("There is no text: write a few words.")
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())


def notes_on(texts: Iterable[Text], limit: int) -> list[str]:
    """What a visitor should know of how the texts were read, in sentences."""
    texts = list(texts)
    notes = []
    if any(text.cut for text in texts):
        notes.append(f"Too long to be read at once: {limit} tokens were read, and the rest was left out.")
    unknown = list(
        dict.fromkeys(piece if len(piece) <= 12 else f"{piece[:11]}…" for t in texts for piece in t.unknown)
    )
    if unknown:
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        notes.append(f"Not in the vocabulary, so read as [UNK]: {', '.join(unknown[:8])}{more}.")
    return notes


def framed(reader: Reader, first: Sequence[int], second: Sequence[int] | None = None) -> dict[str, Tensor]:
    """[CLS] A [SEP], or [CLS] A [SEP] B [SEP] (figure 2 of the paper), as the model's inputs, (1, T) each."""
    cls, sep = reader.tokenizer.cls_token_id, reader.tokenizer.sep_token_id
    ids, segments = [cls, *first, sep], [0] * (len(first) + 2)
    if second is not None:
        ids, segments = [*ids, *second, sep], [*segments, *[1] * (len(second) + 1)]
    return {"input_ids": torch.tensor([ids]), "token_type_ids": torch.tensor([segments])}


def token_names(reader: Reader, ids: Sequence[int]) -> list[str]:
    return reader.tokenizer.convert_ids_to_tokens(list(ids))


# ---------------------------------------------------------------------------------------------------------------- blanks


@dataclass(frozen=True)
class Candidate:
    """A word for a blank. `continues`: a piece that goes on with the word before, as "ly" after "quick"."""

    word: str
    probability: float
    continues: bool


@dataclass(frozen=True)
class Filled:
    """The candidates of each blank, best first; `parts` is the text around them, one part more than there are blanks."""

    parts: list[str]
    blanks: list[list[Candidate]]
    notes: list[str]


@torch.no_grad()
def fill_blanks(reader: Reader, text: str, top: int = 5) -> Filled:
    """The `top` likeliest words for every [MASK] or ___ of a text, each blank guessed for itself, as in pre-training.

    Special tokens are no words and not offered; the probabilities are those of the whole vocabulary.
    """
    if not reader.has("predictions"):
        raise UserError("This checkpoint has no output over the vocabulary, so it cannot guess words.")
    parts = BLANK.split(plain(text))
    if not any(part.strip() for part in parts):
        encode(reader, text)  # says what is missing
    if len(parts) == 1:
        raise UserError("There is no blank in the text: put ___ or [MASK] where a word is to be guessed.")
    if len(parts) > MAX_BLANKS + 1:
        raise UserError(f"There are {len(parts) - 1} blanks in the text; at most {MAX_BLANKS} can be guessed at once.")
    encoded = encode(reader, text)
    positions = [1 + place for place, token in enumerate(encoded.ids) if token == reader.tokenizer.mask_token_id]
    if not positions:
        raise UserError(
            f"The blank comes after the first {reader.max_tokens - 2} tokens, which is all this network can read: shorten "
            "the text before it."
        )
    hidden = reader.encoder(**framed(reader, encoded.ids)).last_hidden_state[0, positions]  # (P, H)
    probabilities = reader.model.predictions(hidden).softmax(-1)  # (P, V)
    blanks = [candidates(reader, row, top) for row in probabilities]
    return Filled(parts, blanks, notes_on([encoded], reader.max_tokens - 2))


def candidates(reader: Reader, probabilities: Tensor, top: int) -> list[Candidate]:
    """The likeliest tokens that are words or pieces of words; probabilities: (V,)."""
    special = set(reader.tokenizer.all_special_ids)
    best = probabilities[: len(reader.tokenizer)].topk(min(top + len(special), len(reader.tokenizer)))
    ranked = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    chosen = [(number, value) for number, value in ranked if number not in special][:top]
    names = token_names(reader, [number for number, _ in chosen])
    return [
        Candidate(name.removeprefix(CONTINUES), value, name.startswith(CONTINUES) and name != CONTINUES)
        for name, (_, value) in zip(names, chosen, strict=True)
    ]


# ------------------------------------------------------------------------------------------- classes and next sentences


@dataclass(frozen=True)
class Verdict:
    """Probability of each possible answer, in the model's order."""

    probabilities: dict[str, float]
    notes: list[str]


@torch.no_grad()
def classify(reader: Reader, text: str) -> Verdict:
    """The probability of every class of a classifier."""
    encoded = encode(reader, text)
    probabilities = reader.model(**framed(reader, encoded.ids)).logits[0].softmax(-1).tolist()
    names = [str(reader.model.config.id2label[number]) for number in range(len(probabilities))]
    return Verdict(dict(zip(names, probabilities, strict=True)), notes_on([encoded], reader.max_tokens - 2))


@torch.no_grad()
def judge_pair(reader: Reader, first: str, second: str) -> Verdict:
    """How likely B follows A, by the second game of pre-training (task #2 of section 3.1)."""
    if not (reader.has("next_sentence") and reader.has("pooler")):
        raise UserError("This checkpoint was not trained on pairs of sentences, or its output for them is missing.")
    texts = [encode(reader, first), encode(reader, second)]
    limit = reader.max_tokens - 3
    a, b = cut_pair(texts[0].ids, texts[1].ids, limit)
    pooled = reader.encoder(**framed(reader, a, b)).pooler_output
    follows, other = reader.model.next_sentence(pooled)[0].softmax(-1).tolist()
    is_cut = any(text.cut for text in texts) or len(a) + len(b) < sum(len(text.ids) for text in texts)
    read = [Text(text.ids, text.unknown, is_cut) for text in texts]
    return Verdict({"B follows A": follows, "B is from elsewhere": other}, notes_on(read, limit))


def cut_pair(first: list[int], second: list[int], limit: int) -> tuple[list[int], list[int]]:
    """Both texts in `limit` tokens together: the longer one loses its end until they fit."""
    a, b = len(first), len(second)
    while a + b > limit:
        a, b = (a - 1, b) if a >= b else (a, b - 1)
    return first[:a], second[:b]


# ---------------------------------------------------------------------------------------------- attention and embeddings


@dataclass(frozen=True)
class Attention:
    """tokens: T names. weights: (layers, heads, T, T); a row is a token that looks, and sums to 1."""

    tokens: list[str]
    weights: Tensor
    notes: list[str]


@torch.no_grad()
def look(reader: Reader, text: str, limit: int) -> Attention:
    """Where every token of the first `limit` looks, in every head of every layer."""
    limit = min(limit, reader.max_tokens - 2)
    encoded = encode(reader, text, limit)
    inputs = framed(reader, encoded.ids)
    weights = torch.cat(reader.encoder(**inputs, output_attentions=True).attentions)
    return Attention(token_names(reader, inputs["input_ids"][0].tolist()), weights, notes_on([encoded], limit))


@torch.no_grad()
def embed(reader: Reader, texts: Sequence[str], limit: int) -> tuple[Tensor, list[str]]:
    """One vector per text, (n, H): the mean over the vectors of its tokens, [CLS] and [SEP] left out; and notes."""
    limit = min(limit, reader.max_tokens - 2)
    encoded = [encode(reader, text, limit) for text in texts]
    vectors = torch.empty(len(texts), reader.model.config.hidden_size)
    by_length = sorted(range(len(texts)), key=lambda row: len(encoded[row].ids))
    for start in range(0, len(texts), EMBEDDING_BATCH):
        rows = by_length[start : start + EMBEDDING_BATCH]
        vectors[rows] = mean_vectors(reader, [encoded[row].ids for row in rows])
    return vectors, notes_on(encoded, limit)


def mean_vectors(reader: Reader, texts: Sequence[list[int]]) -> Tensor:
    """(B, H) of B texts in tokens."""
    tokenizer = reader.tokenizer
    longest = max(map(len, texts)) + 2
    ids = torch.full((len(texts), longest), tokenizer.pad_token_id)
    is_text = torch.zeros(len(texts), longest, dtype=torch.bool)
    for row, tokens in enumerate(texts):
        ids[row, : len(tokens) + 2] = torch.tensor([tokenizer.cls_token_id, *tokens, tokenizer.sep_token_id])
        is_text[row, 1 : len(tokens) + 1] = True
    read = (torch.arange(longest) < is_text.sum(1, keepdim=True) + 2).long()
    hidden = reader.encoder(ids, attention_mask=read).last_hidden_state  # (B, T, H)
    return (hidden * is_text[..., None]).sum(1) / is_text.sum(1, keepdim=True)


__all__ = [
    "Attention",
    "Candidate",
    "Filled",
    "Reader",
    "Text",
    "Verdict",
    "classify",
    "embed",
    "encode",
    "fill_blanks",
    "judge_pair",
    "load_reader",
    "look",
]

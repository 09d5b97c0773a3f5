"""A trained model at work: many texts at once, or one text with its alternatives and where the model looked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessor

from hf_papers.data.buckets import pad_rows, rows_that_fit
from hf_papers.errors import UserError
from hf_papers.hub.checkpoints import load_strict
from hf_papers.papers.transformer.modeling_transformer import PaperTransformerForSeq2SeqLM
from hf_papers.papers.transformer.pairs_transformer import encode
from hf_papers.papers.transformer.tokenization_transformer import SPACE, check_vocabulary, load_tokenizer


LONGER = 50  # a translation has at most so many tokens more than its source (section 6.1)
BATCH_TOKENS = 4096  # of sources, their padding included, that are translated at once


@dataclass(frozen=True)
class Search:
    """How the next token is chosen.

    num_beams: unfinished translations that are kept at every step; 1 is greedy. The paper keeps 4.
    length_penalty: alpha; a finished translation of T tokens is judged by its log-probability / T^alpha. The paper's 0.6
        is of ((5 + T) / 6)^alpha (1609.08144), which for the lengths of sentences is nearly proportional.
    """

    num_beams: int = 4
    length_penalty: float = 0.6

    def options(self) -> dict[str, Any]:
        """As `generate` takes it."""
        if self.num_beams == 1:
            return {"num_beams": 1, "length_penalty": 1.0, "do_sample": False}
        return {"num_beams": self.num_beams, "length_penalty": self.length_penalty, "do_sample": False}


class EndInTime(LogitsProcessor):
    """Ends every translation at a limit of its own, so that it does not depend on the texts translated beside it."""

    def __init__(self, limits: Sequence[int], eos: int) -> None:
        self.limits, self.eos = torch.tensor(limits), eos

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Written so far (texts * beams, T) and log-probabilities of the next token (texts * beams, V) -> the latter."""
        due = (self.limits <= input_ids.shape[1] + 1).to(scores.device)
        if not due.any():
            return scores
        only = torch.full_like(scores, -torch.inf)
        only[:, self.eos] = scores[:, self.eos]  # as likely as it is: what had to be cut is no better for it
        return torch.where(due.repeat_interleave(len(scores) // len(due))[:, None], only, scores)


class Translator:
    """A model with its tokenizer. The model stays on the device it is on, and is left in the mode it was in."""

    def __init__(self, model: PaperTransformerForSeq2SeqLM, tokenizer: Any) -> None:
        check_vocabulary(tokenizer, model.config)
        self.model, self.tokenizer = model, tokenizer
        self.max_tokens = model.config.max_position_embeddings

    @classmethod
    def load(cls, source: str | Path) -> Translator:
        """A finished run, a folder beside a Space or a repository on the Hub."""
        model = load_strict(PaperTransformerForSeq2SeqLM, source)
        return cls(model.float().eval(), load_tokenizer(source))

    @torch.no_grad()
    def translate_all(self, texts: Sequence[str], search: Search) -> list[str]:
        """A translation for each text, however many; texts of about the same length go through the model together.

        What is longer than the model's positions is cut; an empty text has an empty translation.
        """
        tokens = [self._cut(row.tolist()) for row in encode(self.tokenizer, texts)]
        translations = [""] * len(texts)
        filled = [row for row in range(len(texts)) if len(tokens[row]) > 1]
        for batch in batches_of([len(tokens[row]) for row in filled], BATCH_TOKENS // search.num_beams):
            rows = [filled[number] for number in batch]
            written = self._generate([tokens[row] for row in rows], search)
            for row, text in zip(rows, self.tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
                translations[row] = text
        return translations

    def _generate(self, rows: Sequence[list[int]], search: Search, **options: Any) -> torch.Tensor:
        """Translations (rows, T) of sources, each with its own limit."""
        limits = [min(len(row) + LONGER, self.max_tokens) for row in rows]
        end = EndInTime(limits, self.tokenizer.eos_token_id)
        options |= search.options()
        return self.model.generate(**self._inputs(rows), max_length=max(limits), logits_processor=[end], **options)

    def _cut(self, tokens: list[int]) -> list[int]:
        """At most as many tokens as the model has positions, the last one </s>."""
        if len(tokens) <= self.max_tokens:
            return tokens
        return [*tokens[: self.max_tokens - 1], self.tokenizer.eos_token_id]

    def _inputs(self, rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Ragged tokens as `input_ids` and `attention_mask` (rows, longest) on the model's device."""
        longest = max(map(len, rows))
        input_ids = pad_rows(list(rows), self.tokenizer.pad_token_id, longest)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(longest) < lengths[:, None]).long()
        return {"input_ids": input_ids.to(self.model.device), "attention_mask": mask.to(self.model.device)}

    # One text, for people

    def read(self, text: Any) -> Reading:
        """A text in tokens, with sentences on what a person should know. Raises `UserError` where there is none."""
        if not isinstance(text, str) or not text.strip():
            raise UserError("There is no text to translate: write something first.")
        tokens = encode(self.tokenizer, [text])[0].tolist()
        notes = []
        if unknown := self.unknown_characters(text):
            shown = " ".join(unknown[:10]) + (" …" if len(unknown) > 10 else "")
            notes.append(f"The model has never seen {shown} and reads it as {self.tokenizer.unk_token}.")
        if len(tokens) > self.max_tokens:
            notes.append(f"The text has {len(tokens):,} tokens; the first {self.max_tokens - 1} are read.")
        tokens = self._cut(tokens)
        return Reading(tokens, self.names(tokens), notes)

    def unknown_characters(self, text: str) -> list[str]:
        """The characters of a text that no token stands for, each once, in order."""
        unknown = self.tokenizer.unk_token_id
        characters = dict.fromkeys(character for character in text if not character.isspace())
        return [one for one in characters if unknown in encode(self.tokenizer, [one])[0].tolist()]

    def names(self, tokens: Sequence[int]) -> list[str]:
        """Tokens as people read them: the start of a word as it is, letters that continue one with a "·" before them."""
        names = self.tokenizer.convert_ids_to_tokens(list(tokens))
        special = set(self.tokenizer.all_special_tokens)
        shown = []
        for name in names:
            if name in special:
                shown.append(name)
            elif name.startswith(SPACE):
                shown.append(name[1:] or "␣")
            else:
                shown.append(f"·{name}" if name[0].isalpha() else name)
        return shown

    @torch.no_grad()
    def candidates(self, reading: Reading, search: Search, count: int = 1) -> list[Candidate]:
        """The `count` best translations that the search finished, best first; at most as many as there are beams."""
        asked = min(count, search.num_beams)
        written = self._generate([reading.tokens], search, num_return_sequences=asked)
        return [self._candidate(reading, tokens[1:].tolist()) for tokens in written]

    def _candidate(self, reading: Reading, tokens: list[int]) -> Candidate:
        """What the model wrote, up to its first </s>, and how likely it holds it to be."""
        eos = self.tokenizer.eos_token_id
        tokens = tokens[: tokens.index(eos) + 1] if eos in tokens else tokens
        labels = torch.tensor([tokens], device=self.model.device)
        output = self.model(**self._inputs([reading.tokens]), labels=labels)
        log_probs = output.logits[0].float().log_softmax(-1).gather(-1, labels[0][:, None]).squeeze(-1)
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return Candidate(text, tokens, self.names(tokens), log_probs.cpu())

    @torch.no_grad()
    def look(self, reading: Reading, candidate: Candidate) -> Looks:
        """Every attention weight of a source and one of its translations."""
        labels = torch.tensor([candidate.tokens], device=self.model.device)
        output = self.model(**self._inputs([reading.tokens]), labels=labels, output_attentions=True)

        def stacked(weights: tuple[torch.Tensor, ...]) -> torch.Tensor:
            return torch.cat(weights).float().cpu() if weights else torch.empty(0)

        return Looks(
            reading.names,
            candidate.names,
            stacked(output.encoder_attentions),
            stacked(output.decoder_attentions),
            stacked(output.cross_attentions),
        )


@dataclass(frozen=True)
class Reading:
    """A source: its tokens, ending with </s>, their names, and what a person should be told."""

    tokens: list[int]
    names: list[str]
    notes: list[str]


@dataclass(frozen=True)
class Candidate:
    """A translation: its text, its tokens and their names, and the log-probability (T,) of each token after those before."""

    text: str
    tokens: list[int]
    names: list[str]
    log_probs: torch.Tensor


@dataclass(frozen=True)
class Looks:
    """Attention weights by layer and head; a row is a token that looks, and sums to 1.

    encoder: (layers, heads, S, S). decoder: (layers, heads, T, T), from the token *before* each one written (the start for
    the first), because it is what decides it. cross: (layers, heads, T, S). Those that a model has not are empty.
    """

    source: list[str]
    target: list[str]
    encoder: torch.Tensor
    decoder: torch.Tensor
    cross: torch.Tensor

    @property
    def asking(self) -> list[str]:
        """The names of the tokens that the decoder is given: what it has written, one step later."""
        return ["<s>", *self.target[:-1]]


def batches_of(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Row numbers in batches of at most `max_tokens` tokens, shortest rows first."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    start = 0
    for size in rows_that_fit([lengths[row] for row in order], max_tokens):
        yield order[start : start + size]
        start += size


__all__ = ["Candidate", "Looks", "Reading", "Search", "Translator", "batches_of"]

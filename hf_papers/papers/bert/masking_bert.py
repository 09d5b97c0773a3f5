"""Task #1 of BERT (1810.04805, section 3.1 and appendix A.1): 15 % of the tokens are to be predicted; dynamic masking.

The authors mask each text once, before training. Here every look at a text masks it anew (1907.11692, section 4.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_papers.papers.bert.modeling_bert import IGNORED
from hf_papers.papers.bert.tokenization_bert import CONTINUES


SHARE_MASKED, SHARE_KEPT = 0.8, 0.1  # of the chosen tokens; the rest becomes a random token


@dataclass(frozen=True)
class Masked:
    """Sequences with their tokens hidden, and what is to be found.

    input_ids (B, T) · positions (B, P) of the chosen tokens, rising, 0 in slots that are not used · labels (B, P), the true
    tokens, -100 in slots that are not used.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray


def slots(length: int, probability: float) -> int:
    """P, the most predictions in a sequence of `length` tokens: 20 of 128, 77 of 512."""
    return max(1, math.ceil(length * probability - 1e-9))


class Masker:
    """Chooses and hides tokens. Special tokens are never chosen, and never put in place of another."""

    def __init__(self, tokenizer: Any, probability: float = 0.15, whole_words: bool = False) -> None:
        self.probability, self.whole_words = probability, whole_words
        self.mask_token_id = tokenizer.mask_token_id
        size = len(tokenizer)
        special = sorted(number for number in tokenizer.all_special_ids if number < size)
        self.is_special = np.zeros(size, bool)
        self.is_special[special] = True
        self.ordinary = np.flatnonzero(~self.is_special)
        self.continues = np.zeros(size, bool)
        self.continues[[number for piece, number in tokenizer.get_vocab().items() if piece.startswith(CONTINUES)]] = (
            True
        )

    def __call__(self, input_ids: np.ndarray, lengths: np.ndarray, generator: np.random.Generator) -> Masked:
        """input_ids (B, T), of which `lengths` (B,) are no padding -> what the model is shown and asked."""
        candidates = ~self.is_special[input_ids]
        wanted = np.maximum(1, np.rint(lengths * self.probability)).astype(np.int64)
        wanted = np.minimum(wanted, candidates.sum(1))
        count = min(slots(input_ids.shape[1], self.probability), input_ids.shape[1])
        wanted = np.minimum(wanted, count)
        if self.whole_words:
            chosen = self._choose_words(input_ids, candidates, wanted, generator)
        else:
            chosen = _choose_tokens(candidates, wanted, count, generator)
        return self._hide(input_ids, chosen, count, generator)

    def _choose_words(
        self, input_ids: np.ndarray, candidates: np.ndarray, wanted: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        """(B, T): whole words in random order, one that would be too much left out, as the authors' code does."""
        chosen = np.zeros_like(candidates)
        starts = candidates & ~(self.continues[input_ids] & np.roll(candidates, 1, axis=1))
        for row in range(len(input_ids)):
            tokens = np.flatnonzero(candidates[row])
            words = np.split(tokens, np.flatnonzero(starts[row][tokens])[1:])
            room = wanted[row]
            for number in generator.permutation(len(words)):
                if room == 0:
                    break
                if len(words[number]) <= room:
                    chosen[row, words[number]] = True
                    room -= len(words[number])
        return chosen

    def _hide(self, input_ids: np.ndarray, chosen: np.ndarray, count: int, generator: np.random.Generator) -> Masked:
        rows, columns = np.nonzero(chosen)  # by row, and rising within a row
        slot = np.arange(len(rows)) - np.searchsorted(rows, rows)
        truth = input_ids[rows, columns]
        dice = generator.random(len(rows))
        others = self.ordinary[generator.integers(len(self.ordinary), size=len(rows))]
        shown = np.where(dice < SHARE_MASKED, self.mask_token_id, np.where(dice < 1 - SHARE_KEPT, others, truth))
        hidden = input_ids.copy()
        hidden[rows, columns] = shown
        positions = np.zeros((len(input_ids), count), np.int64)
        labels = np.full((len(input_ids), count), IGNORED, np.int64)
        positions[rows, slot], labels[rows, slot] = columns, truth
        return Masked(hidden, positions, labels)


def _choose_tokens(
    candidates: np.ndarray, wanted: np.ndarray, count: int, generator: np.random.Generator
) -> np.ndarray:
    """(B, T): `wanted` (B,) <= `count` of the candidates of each row, every set of them equally likely."""
    keys = generator.random(candidates.shape, dtype=np.float32)
    keys[~candidates] = 2.0  # behind all candidates
    least = np.argpartition(keys, count - 1, axis=1)[:, :count]
    order = np.take_along_axis(keys, least, 1).argsort(1)
    chosen = np.zeros_like(candidates)
    np.put_along_axis(chosen, np.take_along_axis(least, order, 1), np.arange(count) < wanted[:, None], 1)
    return chosen


__all__ = ["IGNORED", "Masked", "Masker", "slots"]

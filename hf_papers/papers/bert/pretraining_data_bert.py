"""Documents -> pairs of sentences -> masked batches, as BERT's authors make them (appendix A.2), but anew at every look.

A *pool* of documents is read and cut into pairs, these are shuffled, and batches are made from them; then the next pool.
So memory is bounded however long the corpus is, and a position is the place where the pool begins and how many of its
batches are done. Everything random follows from (seed, process, pool, batch).
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_papers.errors import UserError
from hf_papers.papers.bert.documents_bert import Document, DocumentReader, MixedReader
from hf_papers.papers.bert.masking_bert import IGNORED, Masker


Batch = dict[str, torch.Tensor]

SPECIAL_IN_PAIR = 3  # [CLS] A [SEP] B [SEP]
FOLLOWS, RANDOM = 0, 1  # next_sentence_label, transformers' convention


# ------------------------------------------------------------------------------------------------------------- pairs


@dataclass(frozen=True)
class Pool:
    """Documents side by side: tokens (n,); sentence i is tokens[starts[i]:starts[i + 1]], starts (s + 1,); document d has
    the sentences documents[d] up to documents[d + 1], documents (d + 1,)."""

    tokens: np.ndarray
    starts: np.ndarray
    documents: np.ndarray

    def __len__(self) -> int:
        return len(self.documents) - 1

    @classmethod
    def of(cls, documents: Iterable[Document]) -> Pool:
        documents = list(documents)
        lengths = np.concatenate([document.lengths for document in documents])
        counts = [len(document.lengths) for document in documents]
        return cls(
            np.concatenate([document.tokens for document in documents]),
            np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        )


def make_pairs(pool: Pool, length: int, short_sequence_probability: float, seed: int) -> np.ndarray:
    """Pairs of spans for sequences of `length` tokens: (n, 5) of A's start and stop, B's start and stop, and the label.

    create_pretraining_data.py of google-research/bert: sentences of a document are gathered until they fill a sequence,
    and split at random into A and B. Half the time (and where there is nothing to split) B is replaced by sentences of
    another document, label 1; the sentences that were not used are put back. What is too long is cut, at random in front
    or behind, from the longer one. In a `short_sequence_probability` of the documents the sequences are shorter.

    Raises `UserError` when there is no other document.
    """
    if len(pool) < 2:
        raise UserError(
            "Next-sentence pairs need sentences from another document, and there is only one document: give a data set of "
            "several, or say by --document_kind how its rows make documents."
        )
    chance = random.Random(seed)
    room = length - SPECIAL_IN_PAIR
    starts, borders = pool.starts.tolist(), pool.documents.tolist()
    pairs = []
    for document in range(len(pool)):
        target = chance.randint(2, room) if chance.random() < short_sequence_probability else room
        for first, middle, stop in _chunks(starts, borders[document], borders[document + 1], target, chance):
            a, b = (starts[first], starts[middle]), (starts[middle], starts[stop])
            label = FOLLOWS
            if middle == stop:
                label = RANDOM
                b = _random_span(starts, borders, document, target - (a[1] - a[0]), chance)
            pairs.append((*_truncate(a, b, room, chance), label))
    return np.array(pairs, dtype=np.int64).reshape(-1, 5)


def _chunks(
    starts: list[int], first: int, end: int, target: int, chance: random.Random
) -> Iterator[tuple[int, int, int]]:
    """The sentences first … end of a document as (first of A, first of B, behind B); no B (middle = stop): to be random."""
    begin = first
    position = first
    while position < end:
        position += 1
        if position < end and starts[position] - starts[begin] < target:
            continue
        count = position - begin
        middle = begin + (chance.randint(1, count - 1) if count > 1 else 1)
        if count == 1 or chance.random() < 0.5:
            position = middle  # B's sentences are put back
            yield begin, middle, middle
        else:
            yield begin, middle, position
        begin = position


def _random_span(
    starts: list[int], borders: list[int], document: int, wanted: int, chance: random.Random
) -> tuple[int, int]:
    """Whole sentences of another document from a random one on, at least `wanted` tokens where it has so many."""
    other = chance.randrange(len(borders) - 2)
    other += other >= document
    first = chance.randrange(borders[other], borders[other + 1])
    stop = first + 1
    while stop < borders[other + 1] and starts[stop] - starts[first] < wanted:
        stop += 1
    return starts[first], starts[stop]


def _truncate(a: tuple[int, int], b: tuple[int, int], room: int, chance: random.Random) -> tuple[int, int, int, int]:
    """Both spans cut to `room` tokens together: always the longer one loses a token, at a random end."""
    a_length, b_length = a[1] - a[0], b[1] - b[0]
    excess = max(0, a_length + b_length - room)
    gap = min(excess, abs(a_length - b_length))
    shared = excess - gap
    # Once they are equally long B goes first, then A, and so on.
    from_a = (gap if a_length > b_length else 0) + shared // 2
    from_b = excess - from_a
    a_front, b_front = _heads(from_a, chance), _heads(from_b, chance)
    return a[0] + a_front, a[1] - (from_a - a_front), b[0] + b_front, b[1] - (from_b - b_front)


def _heads(throws: int, chance: random.Random) -> int:
    return chance.getrandbits(throws).bit_count() if throws else 0


# ----------------------------------------------------------------------------------------------------------- batches


class BatchMaker:
    """Pairs of a pool -> the tensors that the model learns from.

    `left_to_right`: instead of masking, every position predicts the next token ("LTR" of the paper's table 5).
    """

    def __init__(self, tokenizer: Any, masker: Masker, left_to_right: bool = False) -> None:
        self.masker, self.left_to_right = masker, left_to_right
        self.cls, self.sep, self.pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id

    def __call__(self, pool: Pool, pairs: np.ndarray, length: int, generator: np.random.Generator) -> Batch:
        """pairs (B, 5) -> input_ids, token_type_ids, attention_mask (B, T), masked_positions, labels (B, P; T from left to
        right), next_sentence_label (B,), T = length."""
        input_ids, segments, lengths = self._sequences(pool, pairs, length)
        attention_mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
        if self.left_to_right:
            positions = np.tile(np.arange(length), (len(pairs), 1))
            labels = np.full_like(input_ids, IGNORED)
            labels[:, :-1] = np.where(attention_mask[:, 1:] == 1, input_ids[:, 1:], IGNORED)
        else:
            masked = self.masker(input_ids, lengths, generator)
            input_ids, positions, labels = masked.input_ids, masked.positions, masked.labels
        arrays = {
            "input_ids": input_ids,
            "token_type_ids": segments,
            "attention_mask": attention_mask,
            "masked_positions": positions,
            "labels": labels,
            "next_sentence_label": pairs[:, 4].copy(),
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _sequences(self, pool: Pool, pairs: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[CLS] A [SEP] B [SEP] and padding (B, T), segments 0 and 1 (B, T), lengths without padding (B,)."""
        input_ids = np.full((len(pairs), length), self.pad, np.int64)
        segments = np.zeros((len(pairs), length), np.int64)
        lengths = np.zeros(len(pairs), np.int64)
        input_ids[:, 0] = self.cls
        for row, (a, a_stop, b, b_stop, _) in enumerate(pairs.tolist()):
            middle = 1 + a_stop - a
            end = middle + 1 + b_stop - b
            input_ids[row, 1:middle] = pool.tokens[a:a_stop]
            input_ids[row, middle] = self.sep
            input_ids[row, middle + 1 : end] = pool.tokens[b:b_stop]
            input_ids[row, end] = self.sep
            segments[row, middle + 1 : end + 1] = 1
            lengths[row] = end + 1
        return input_ids, segments, lengths


# ------------------------------------------------------------------------------------------------------------ stream


@dataclass(frozen=True)
class PoolSettings:
    """`pool_tokens`: how much text is read before it is shuffled. `length_of`: number of a batch -> T of its sequences."""

    batch_size: int
    length_of: Callable[[int], int]
    short_sequence_probability: float = 0.1
    pool_tokens: int = 4_000_000
    seed: int = 0
    rank: int = 0


class PretrainingStream(Iterator[Batch]):
    """Endless batches over the documents of `reader`; `state_dict` is a position in plain JSON values.

    A pool ends with the epoch, so that no document meets itself in it. What is left over of a pool after the last full
    batch is let go, and so is a lone document at the end of an epoch.
    """

    def __init__(self, reader: DocumentReader | MixedReader, make_batch: BatchMaker, settings: PoolSettings) -> None:
        self.reader, self.make_batch, self.settings = reader, make_batch, settings
        self.epoch = 0
        self._position = {"place": reader.start(), "pool": 0, "done": 0, "length": settings.length_of(0), "batches": 0}
        self._batches: Iterator[Batch] | None = None

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = self._run(copy.deepcopy(self._position))
        return next(self._batches)

    def state_dict(self) -> dict[str, Any]:
        """The position behind the last batch."""
        settings = self.settings
        fixed = {
            "batch_size": settings.batch_size,
            "short_sequence_probability": settings.short_sequence_probability,
            "pool_tokens": settings.pool_tokens,
            "seed": settings.seed,
            "rank": settings.rank,
        }
        return {"settings": fixed, "position": copy.deepcopy(self._position)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the batch after the one that was the last when `state` was taken.

        Raises `UserError` when a setting that decides the batches is another one.
        """
        for name, now in self.state_dict()["settings"].items():
            if state["settings"].get(name) != now:
                raise UserError(
                    f"The batches of {self.reader.where} cannot continue: {name} was {state['settings'].get(name)} when the "
                    f"checkpoint was written and is {now} now. Resume with the settings of the run, or start a new one."
                )
        self._position = copy.deepcopy(state["position"])
        self._batches = None

    def _run(self, position: dict[str, Any]) -> Iterator[Batch]:
        settings = self.settings
        idle = 0  # epochs that ended without a batch
        for pool, place, epoch in self._pools(position["place"]):
            number, done, batches = position["pool"], position["done"], position["batches"]
            length = position["length"] if done else settings.length_of(batches)
            pairs = self._pairs(pool, number, length)
            full = len(pairs) // settings.batch_size
            idle = 0 if full else idle + 1
            if idle > 2 and epoch > 1:
                raise self._too_few(pool, len(pairs))
            self.epoch = epoch
            while done < full and settings.length_of(batches) == length:
                rows = pairs[done * settings.batch_size : (done + 1) * settings.batch_size]
                generator = np.random.default_rng([settings.seed, settings.rank, number, 1, done])
                batch = self.make_batch(pool, rows, length, generator)
                done, batches = done + 1, batches + 1
                self._position = {
                    "place": place,
                    "pool": number,
                    "done": done,
                    "length": length,
                    "batches": batches,
                }
                yield batch
            position = {"pool": number + 1, "done": 0, "length": length, "batches": batches}

    def _pairs(self, pool: Pool, number: int, length: int) -> np.ndarray:
        """The shuffled pairs of a pool (n, 5)."""
        settings = self.settings
        generator = np.random.default_rng([settings.seed, settings.rank, number, 0])
        if len(pool) < 2:
            return np.zeros((0, 5), np.int64)
        seed = int(generator.integers(1 << 62))
        pairs = make_pairs(pool, length, settings.short_sequence_probability, seed)
        return pairs[generator.permutation(len(pairs))]

    def _pools(self, place: dict[str, Any]) -> Iterator[tuple[Pool, dict[str, Any], int]]:
        """Pools from `place` on, with the places where they begin and their epochs."""
        documents: list[Document] = []
        tokens, begun, of_epoch = 0, place, 0
        for document, where, epoch in self.reader.read(place):
            enough = tokens >= self.settings.pool_tokens and len(documents) > 1
            if documents and (epoch != of_epoch or enough):
                yield Pool.of(documents), begun, of_epoch
                documents, tokens = [], 0
            if not documents:
                begun, of_epoch = where, epoch
            documents.append(document)
            tokens += len(document.tokens)

    def _too_few(self, pool: Pool, pairs: int) -> UserError:
        if len(pool) < 2:
            return UserError(
                f"There is only one document with text in {self.reader.where} for process {self.settings.rank}: "
                "next-sentence pairs need another one. Give more documents, or say by --document_kind what makes one."
            )
        return UserError(
            f"{self.reader.where} makes only {pairs} sequences for process {self.settings.rank}, fewer than one batch of "
            f"{self.settings.batch_size}: lower --per_device_train_batch_size or --sequence_length."
        )


def fixed_batches(
    documents: Iterable[Document],
    make_batch: BatchMaker,
    *,
    length: int,
    batch_size: int,
    limit: int,
    seed: int,
    short_sequence_probability: float = 0.1,
    pool_tokens: int = 4_000_000,
) -> list[Batch]:
    """At most `limit` sequences of the first `pool_tokens` tokens, always the same for the same seed, to measure on."""
    chosen, tokens = [], 0
    for document in documents:
        chosen.append(document)
        tokens += len(document.tokens)
        if tokens >= pool_tokens:
            break
    if not chosen:
        raise UserError("There is no text to measure on: every document of the split is empty.")
    pool = Pool.of(chosen)
    generator = np.random.default_rng([seed, 0])
    pairs = make_pairs(pool, length, short_sequence_probability, seed)
    pairs = pairs[generator.permutation(len(pairs))[:limit]]
    return [
        make_batch(pool, pairs[first : first + batch_size], length, np.random.default_rng([seed, 1, first]))
        for first in range(0, len(pairs), batch_size)
    ]


__all__ = ["BatchMaker", "Pool", "PoolSettings", "PretrainingStream", "fixed_batches", "make_pairs"]

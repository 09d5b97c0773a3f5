"""A masked-language model as a judge: no example is learnt from, the task is put as a gap to fill.

The pattern and the words that stand for the classes are in the manner of 2001.07676 (Schick & Schütze): "a fine film. It was
[MASK]." is positive where "great" is likelier than "terrible". As some words are likelier whatever the text says, the same
question without a text is the scale of the calibrated answer (2104.08315, the domain's PMI).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_papers.data import Padding
from hf_papers.errors import UserError
from hf_papers.papers.bert.glue_start import Start
from hf_papers.papers.bert.modeling_bert import PaperBertForMaskedLM
from hf_papers.studies.bert.runs import device, load_start


GAP = re.compile(r"(\{text_b\}|\{text\}|\{mask\})")
BATCH = 64


class NoAnswer(Exception):
    """Why this checkpoint cannot be asked: a sentence for the record, not an error of the user's."""


@dataclass(frozen=True)
class Cloze:
    """`pattern` with {text}, {mask} and, for pairs, {text_b}; `words`: those that stand for each class, in their order."""

    pattern: str
    words: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        for gap in ("{text}", "{mask}"):
            if self.pattern.count(gap) != 1:
                raise UserError(f"The pattern '{self.pattern}' needs {gap} once, e.g. '{{text}} It was {{mask}}.'")
        if len(self.words) < 2 or not all(self.words):
            raise UserError(
                "Label words are written as bad,terrible;good,great: one group a class, two groups or more."
            )


AGREE = ("no",), ("yes",)
INFER = ("yes",), ("no",)
CLOZES = {
    "sst2": Cloze("{text} It was {mask}.", (("terrible", "bad", "awful"), ("great", "good", "wonderful"))),
    "cola": Cloze("{text} This is {mask}.", (("wrong",), ("right",))),
    "mrpc": Cloze("{text} {mask}, {text_b}", AGREE),
    "qqp": Cloze("{text} {mask}, {text_b}", AGREE),
    "mnli": Cloze("{text}? {mask}, {text_b}", (("yes",), ("maybe",), ("no",))),
    "qnli": Cloze("{text} {mask}, {text_b}", INFER),
    "rte": Cloze("{text}? {mask}, {text_b}", INFER),
    "wnli": Cloze("{text}? {mask}, {text_b}", AGREE),
}


def parse_words(text: str) -> tuple[tuple[str, ...], ...]:
    """`bad,terrible;good,great` -> groups of words."""
    return tuple(tuple(word.strip() for word in group.split(",") if word.strip()) for group in text.split(";"))


def find_cloze(task_name: str | None, pattern: str | None, words: str | None, classes: int) -> Cloze:
    """The task's, with the parts that are given instead. Raises `NoAnswer` where none is known."""
    known = CLOZES.get(task_name or "")
    if known is None and (pattern is None or words is None):
        raise NoAnswer("no pattern is known for this task; --pattern and --label_words give one")
    cloze = Cloze(pattern or known.pattern, parse_words(words) if words else known.words)
    if len(cloze.words) != classes:
        raise UserError(f"The label words name {len(cloze.words)} classes, and the task has {classes}.")
    return cloze


def load_judge(start: Start) -> PaperBertForMaskedLM:
    """The start as a masked-language model. Raises `NoAnswer` where it has never learnt to fill a gap."""
    model = load_start(start, PaperBertForMaskedLM)
    if any(name.startswith("predictions.") for name in model.missing_from_reference):
        raise NoAnswer("the start has no masked-language head")
    if model.config.causal_attention:
        raise NoAnswer("the start reads from left to right and has never seen [MASK]")
    return model


class ClozeJudge:
    """Answers by the words that fill the gap best."""

    def __init__(self, model: PaperBertForMaskedLM, tokenizer: Any, cloze: Cloze, max_length: int) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_length = min(max_length, model.config.max_position_embeddings)
        self.words = [self._known(group) for group in cloze.words]
        # Names of gaps, and between them word pieces that stand in every question.
        self.parts = [part if GAP.fullmatch(part) else self._pieces(part) for part in GAP.split(cloze.pattern) if part]

    def _known(self, group: Sequence[str]) -> list[int]:
        """Numbers of the words that are one piece of the vocabulary. Raises `NoAnswer` where none is."""
        pieces = [self._pieces(word) for word in group]
        numbers = [ids[0] for ids in pieces if len(ids) == 1 and ids[0] != self.tokenizer.unk_token_id]
        if not numbers:
            raise NoAnswer(f"the start's vocabulary has none of the label words {', '.join(group)} as one piece")
        return numbers

    def _pieces(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def used_words(self) -> list[list[str]]:
        """The words of each class that the vocabulary has."""
        return [self.tokenizer.convert_ids_to_tokens(numbers) for numbers in self.words]

    def question(self, text: str, text_b: str = "") -> tuple[list[int], int]:
        """[CLS] pattern [SEP] as word pieces, and where the gap is; the longer text is cut where there is no room."""
        filled = {
            "{text}": self._pieces(text),
            "{text_b}": self._pieces(text_b),
            "{mask}": [self.tokenizer.mask_token_id],
        }
        used = [name for name in ("{text}", "{text_b}") if name in self.parts]
        while 2 + sum(len(filled[part] if isinstance(part, str) else part) for part in self.parts) > self.max_length:
            longest = max(used, key=lambda name: len(filled[name]))
            if not filled[longest]:
                raise UserError(f"The pattern alone has more than {self.max_length} word pieces: shorten it.")
            filled[longest].pop()
        ids, gap = [self.tokenizer.cls_token_id], 0
        for part in self.parts:
            gap = len(ids) if part == "{mask}" else gap
            ids += filled[part] if isinstance(part, str) else part
        return [*ids, self.tokenizer.sep_token_id], gap

    @torch.no_grad()
    def scores(self, questions: Sequence[tuple[list[int], int]]) -> torch.Tensor:
        """Logarithm of the mean probability of each class's words in the gap: (questions, classes)."""
        padding = Padding({"input_ids": self.tokenizer.pad_token_id}, mask="attention_mask")
        results = []
        for first in range(0, len(questions), BATCH):
            chunk = questions[first : first + BATCH]
            batch = padding({"input_ids": [np.array(ids, dtype=np.int32) for ids, _ in chunk]})
            batch["masked_positions"] = torch.tensor([[gap] for _, gap in chunk])
            inputs = {name: value.to(device()) for name, value in batch.items()}
            logs = self.model(**inputs).logits[:, 0].float().log_softmax(-1).cpu()  # (B, V)
            means = [logs[:, numbers].logsumexp(-1) - math.log(len(numbers)) for numbers in self.words]
            results.append(torch.stack(means, dim=-1))
        return torch.cat(results)

    def answer(self, texts: Sequence[tuple[str, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Class numbers (texts,): by the likeliest words, and by those that the text made likelier than they are without."""
        scores = self.scores([self.question(*text) for text in texts])
        without = self.scores([self.question(*[""] * len(texts[0]))])
        return scores.argmax(-1), (scores - without).argmax(-1)

"""The encoder by itself: trained, or a trained translator's fine-tuned, to tell classes of texts apart."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_papers.data import BucketedStream, Padding, Source
from hf_papers.data.labels import LABEL, LabelReader, find_labels
from hf_papers.data.memory import select
from hf_papers.data.texts import Texts
from hf_papers.errors import UserError
from hf_papers.metrics.glue import measure
from hf_papers.papers.transformer.modeling_transformer import PaperTransformerForSequenceClassification
from hf_papers.papers.transformer.pairs_transformer import encode, shorten
from hf_papers.papers.transformer.tokenization_transformer import check_vocabulary, load_tokenizer, train_tokenizer
from hf_papers.papers.transformer.translating_transformer import batches_of
from hf_papers.training.arguments import option
from hf_papers.training.start import Start
from hf_papers.training.task import Batch, Context, Task, Turn


POOL_ROWS = 6_000  # texts that are sorted by length together
EVALUATION_TOKENS = 4096
HEAD = r"classifier\."


@dataclass(frozen=True)
class ClassificationOptions:
    """The task's own options."""

    model_name_or_path: str | None = option(
        None, "a translator or classifier of ours whose encoder and vocabulary to start from; none: random weights"
    )
    tokenizer: str | None = option(
        None, "folder or Hub id of a vocabulary; none: that of the start, or one of vocab_size is trained first"
    )
    min_frequency: int = option(2, "of a piece of a word, for a tokenizer that is trained here")
    max_tokens: int = option(128, "tokens of a text; more are cut")
    freeze_encoder: bool = option(False, "train the last layer alone, on the encoder's features")

    def __post_init__(self) -> None:
        for name in ("min_frequency", "max_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}.")

    @property
    def start(self) -> Start | None:
        name = self.model_name_or_path
        return Start(PaperTransformerForSequenceClassification, name) if name else None


class ClassificationTask(Task):
    """Minimise the cross-entropy of each text's class."""

    Options = ClassificationOptions
    options: ClassificationOptions
    pipeline_tag = "text-classification"
    best_metric = "accuracy"
    greater_is_better = True

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        options, config = self.options, recipe.config
        self.start = options.start
        self._frozen: nn.Module | None = None
        if options.max_tokens > config.max_position_embeddings:
            raise UserError(
                f"--max_tokens {options.max_tokens} is more than the {config.max_position_embeddings} positions of the "
                "model: lower it."
            )

    @classmethod
    def model_options(
        cls, options: ClassificationOptions, given: dict[str, Any], known: Collection[str]
    ) -> dict[str, Any]:
        """What is given, over what the start decides. A run's recipe gives everything, so its start may be gone."""
        if options.start is None or set(known) <= set(given):
            return given
        return {**options.start.options(known), **given}

    # What is trained

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes in the order of their numbers."""
        names = find_labels(self._need_source(), self.data.train_split)
        if not names:
            raise UserError(
                f"Column '{LABEL}' of '{self.source.name}' holds numbers with a point: this task learns classes. Choose "
                "another column by --columns label=THEIRS."
            )
        return names

    @cached_property
    def config(self) -> Any:
        """The recipe's config with the data set's classes."""
        config = copy.deepcopy(self.recipe.config)
        config.id2label = dict(enumerate(self.labels))
        config.label2id = {name: number for number, name in enumerate(self.labels)}
        return config

    def build_model(self) -> PaperTransformerForSequenceClassification:
        if self.start is None:
            model = PaperTransformerForSequenceClassification(self.config)
        else:
            model = self.start.load(self.config, fresh=HEAD)
        if self.options.freeze_encoder:
            self._frozen = model.transformer.requires_grad_(False)
        return model

    @cached_property
    def tokenizer(self) -> Any:
        options, config = self.options, self.recipe.config
        if name := options.tokenizer or options.model_name_or_path:
            tokenizer = load_tokenizer(name)
        else:
            texts = Texts(self.data)
            tokenizer = train_tokenizer(
                texts, config.vocab_size, min_frequency=options.min_frequency,
                model_max_length=config.max_position_embeddings,
            )  # fmt: skip
        check_vocabulary(tokenizer, config)
        return tokenizer

    def build_processor(self) -> Any:
        return self.tokenizer

    def _need_source(self) -> Source:
        if self.source is None:
            raise UserError(
                "This recipe names no data set: add --dataset, with columns text and label (--columns text=…)."
            )
        return self.source

    # What it is trained on

    def preprocess(self, rows: list[dict[str, Any]]) -> Batch:
        """Rows as ragged `input_ids` and `labels` (rows,)."""
        for row in rows:
            if not isinstance(row["text"], str):
                raise UserError(
                    f"The column 'text' of '{self.source.name}' should hold texts, but a row holds {shorten(row['text'])}: "
                    "name the right one by --columns text=THEIRS."
                )
        tokens = encode(self.tokenizer, [row["text"] for row in rows])
        return {
            "input_ids": [self._cut(row) for row in tokens],
            "labels": self._label_reader([row[LABEL] for row in rows]),
        }

    def _cut(self, tokens: np.ndarray) -> np.ndarray:
        """At most `max_tokens`, the last one </s>."""
        longest = self.options.max_tokens
        return tokens if len(tokens) <= longest else np.append(tokens[: longest - 1], tokens[-1])

    @cached_property
    def _label_reader(self) -> LabelReader:
        theirs = self.source.label_names(self.data.train_split, LABEL)
        are_numbers = theirs is not None and list(theirs) == list(self.labels)
        return LabelReader(self.labels, are_numbers, f"'{self.source.name}'")

    @property
    def padding(self) -> Padding:
        return Padding({"input_ids": self.tokenizer.pad_token_id}, mask="attention_mask")

    def batches(self, networks: dict[str, nn.Module], context: Context) -> Iterator[Batch]:
        size = self.arguments.per_device_train_batch_size
        place = {"seed": context.seed, "rank": context.rank, "world_size": context.world_size}
        inner = self._need_source().stream(self.data.train_split, self.preprocess, size, **place)
        self._stream = BucketedStream(inner, self.padding, max(1, POOL_ROWS // size))
        if self._stream_state is not None:
            self._stream.load_state_dict(self._stream_state)
        return iter(self._stream)

    def losses(
        self, networks: dict[str, nn.Module], shadows: dict[str, nn.Module], batch: Batch, step: int
    ) -> Iterator[Turn]:
        if self._frozen is not None:
            self._frozen.eval()  # features have no dropout
        yield from super().losses(networks, shadows, batch, step)

    # How it is judged

    def evaluate(
        self, model: PaperTransformerForSequenceClassification, split: str, context: Context
    ) -> dict[str, float]:
        """`accuracy` and `macro_f1`, in [0, 1]."""
        name = self.data.validation_split if split == "validation" else self.data.test_split
        if name is None:
            return {}
        rows = self._need_source().tensors(name, self.preprocess)
        answers = torch.empty(len(rows["labels"]), dtype=torch.long)
        for numbers in batches_of([len(tokens) for tokens in rows["input_ids"]], EVALUATION_TOKENS):
            batch = self.padding(select({"input_ids": rows["input_ids"]}, torch.tensor(numbers)))
            logits = model(**{key: value.to(context.device) for key, value in batch.items()}).logits
            answers[numbers] = logits.argmax(-1).cpu()
        metrics = measure(("accuracy", "macro_f1"), answers.numpy(), rows["labels"].numpy())
        return {name: metrics[name] for name in ("accuracy", "macro_f1")}

    def describe(self) -> dict[str, Any]:
        return {"start": self.options.model_name_or_path or "random weights", "classes": list(self.labels)}


__all__ = ["ClassificationOptions", "ClassificationTask"]

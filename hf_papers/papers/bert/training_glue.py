"""How BERT is fine-tuned for sentences and pairs of them (section 4.1 of 1810.04805), and judged."""

from __future__ import annotations

import copy
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_papers.data import BucketedStream, Padding, Source
from hf_papers.data.labels import LABEL, LabelReader, find_labels
from hf_papers.data.memory import select
from hf_papers.data.sources import parse_split
from hf_papers.data.stream import IndexedStream, Stream, StreamSettings
from hf_papers.errors import UserError
from hf_papers.metrics.glue import measure
from hf_papers.papers.bert.glue_bert import GlueSet, find_glue
from hf_papers.papers.bert.glue_data import (
    TextEncoder,
    few_rows,
    glue_data_arguments,
    open_glue_source,
    text_columns,
)
from hf_papers.papers.bert.glue_start import Start, as_transformers
from hf_papers.papers.bert.modeling_bert import PaperBertForSequenceClassification
from hf_papers.papers.bert.tokenization_bert import check_vocabulary, load_tokenizer
from hf_papers.training.arguments import option
from hf_papers.training.recipe import Recipe
from hf_papers.training.task import Batch, Context, Task, Turn


POOL = 50  # batches that are sorted by length together


@dataclass(frozen=True)
class GlueOptions:
    """The task's own options, where they have one under the names of transformers' run_glue_no_trainer.py."""

    task_name: str | None = option(
        None, "cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte or wnli; none: data of your own"
    )
    model_name_or_path: str | None = option(
        None, "where to start: a run of ours or a BERT checkpoint, folder or Hub id; none: random weights"
    )
    tokenizer_name: str | None = option(None, "folder or Hub id of the tokenizer; none: that of the start")
    train_file: str | None = option(None, "CSV, TSV, JSON or parquet with sentence1[, sentence2] and label")
    validation_file: str | None = option(None, "the same, scored at the end")
    test_file: str | None = option(None, "the same without labels, answered by --do_predict")
    max_length: int = option(128, "word pieces of a text or pair; more are cut")
    pad_to_max_length: bool = option(False, "fill every batch up to max_length instead of to its longest row")
    too_long: Literal["truncate", "refuse"] = option("truncate", "what to do with more than max_length word pieces")
    bucketing: bool = option(True, "batches of rows of about the same length")
    per_device_eval_batch_size: int = option(64, "examples per batch of an evaluation")
    train_examples: int | None = option(None, "learn from this many rows only, as many of each class (few-shot)")
    freeze_encoder: bool = option(False, "train the last layer alone, on the encoder's features")
    ignore_mismatched_sizes: bool = option(False, "start from another task's classifier without its last layer")
    implementation: Literal["ours", "transformers"] = option(
        "ours", "whose model classes; transformers' own, from the same weights, for comparison"
    )

    def __post_init__(self) -> None:
        for name in ("max_length", "per_device_eval_batch_size", "train_examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}.")
        if self.task_name is not None:
            find_glue(self.task_name)

    @property
    def files(self) -> dict[str, str]:
        """Split -> file of the user's own."""
        files = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        return {split: name for split, name in files.items() if name is not None}


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with what its task decides of the data filled in."""
    options: GlueOptions = recipe.task
    spec = find_glue(options.task_name) if options.task_name else None
    return replace(recipe, data=glue_data_arguments(recipe.data, spec, options.files))


class GlueTask(Task):
    """Fine-tune every weight for one task. GLUE's dev set is looked at once, at the end: the role "test" of a recipe.

    GLUE hides the answers of its own test split, so that its dev set is the only one anybody can score on; a recipe
    names it as `test_split`. A split that chooses the best weights can be cut from the training rows.
    """

    Options = GlueOptions
    pipeline_tag = "text-classification"
    best_metric = "score"
    greater_is_better = True

    def __init__(self, recipe: Recipe) -> None:
        options: GlueOptions = recipe.task
        self.spec: GlueSet | None = find_glue(options.task_name) if options.task_name else None
        super().__init__(resolve(recipe))
        self.start = Start(options.model_name_or_path) if options.model_name_or_path else None
        self._frozen: nn.Module | None = None
        self._read_labels: LabelReader | None = None
        self._encoded: dict[str, Batch] = {}  # split that is scored -> its rows
        if options.max_length > recipe.config.max_position_embeddings:
            raise UserError(
                f"--max_length {options.max_length} is more than the {recipe.config.max_position_embeddings} positions of "
                "the model: lower it."
            )

    @classmethod
    def model_options(cls, options: GlueOptions, given: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
        """What is given, over what the start decides. A run's recipe gives everything, so its start may be gone."""
        if options.model_name_or_path is None or set(known) <= set(given):
            return given
        return {**Start(options.model_name_or_path).options(known), **given}

    def open_source(self) -> Source:
        return open_glue_source(self.data, self.options.files)

    # What is trained

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes in the order of their numbers; none of them for a regression."""
        if self.spec is not None:
            return self.spec.labels
        names = find_labels(self.source, self.data.train_split)
        theirs = self.start.class_names if self.start is not None else []
        if not theirs or not names or self.options.ignore_mismatched_sizes:
            return names
        if unknown := [name for name in names if name not in theirs]:
            raise UserError(
                f"The checkpoint {self.start.name} tells apart {', '.join(theirs)}, and the data have the label "
                f"'{unknown[0]}', which it does not know. Add --ignore_mismatched_sizes to train a new last layer."
            )
        return tuple(theirs)

    @cached_property
    def config(self) -> Any:
        """The recipe's config with the task's labels."""
        config = copy.deepcopy(self.recipe.config)
        config.problem_type = "single_label_classification" if self.labels else "regression"
        if self.labels:
            config.id2label = dict(enumerate(self.labels))
            config.label2id = {name: number for number, name in enumerate(self.labels)}
        else:
            config.num_labels = 1
        return config

    def build_model(self) -> PreTrainedModel:
        if self.start is None:
            model = PaperBertForSequenceClassification(self.config)
        else:
            model = self.start.load(self.config, self.options.ignore_mismatched_sizes)
        if self.options.implementation == "transformers":
            model = as_transformers(model)
        if self.options.freeze_encoder:
            self._frozen = model.bert.requires_grad_(False)
        return model

    @cached_property
    def tokenizer(self) -> Any:
        name = self.options.tokenizer_name or self.options.model_name_or_path
        if name is None:
            raise UserError(
                "A training from random weights has to be told which word pieces to use: add --tokenizer_name, or start "
                "from a checkpoint by --model_name_or_path."
            )
        tokenizer = load_tokenizer(name)
        config = self.recipe.config
        check_vocabulary(tokenizer, config.vocab_size, config.pad_token_id, rounded=True)
        return tokenizer

    def build_processor(self) -> Any:
        return self.tokenizer

    # What it is trained on

    @cached_property
    def encoder(self) -> TextEncoder:
        columns = text_columns(self.source, self._a_split, self.spec)
        return TextEncoder(self.tokenizer, columns, self.options.max_length, self.options.too_long)

    @property
    def _a_split(self) -> str:
        """A split that is there, to look at its columns."""
        available = self.source.splits()
        return self.data.train_split if self.data.train_split.split("[")[0] in available else available[0]

    @property
    def padding(self) -> Padding:
        length = self.options.max_length if self.options.pad_to_max_length else None
        values = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": 0}
        return Padding(values, length=length, mask="attention_mask")

    def preprocess(self, rows: list[dict[str, Any]]) -> Batch:
        """Rows as ragged `input_ids` and `token_type_ids`, and `labels` (rows,)."""
        reader = self._read_labels or self._reader(self.config)
        return {**self.encoder(rows), "labels": reader([row[LABEL] for row in rows])}

    def _reader(self, config: Any) -> LabelReader:
        regression = config.problem_type == "regression"
        names = [] if regression else [config.id2label[number] for number in range(config.num_labels)]
        return LabelReader(names, self._labels_are_numbers, f"'{self.source.name}'")

    @cached_property
    def _labels_are_numbers(self) -> bool:
        """Whether column `label` holds the classes' numbers in our order, instead of their names."""
        if self.spec is not None:
            return True
        theirs = self.source.label_names(self._a_split, LABEL)
        return theirs is not None and list(theirs) == list(self.labels)

    def train_rows(self) -> int | None:
        return self.options.train_examples or super().train_rows()

    def batches(self, networks: dict[str, nn.Module], context: Context) -> Iterator[Batch]:
        self._look_at_scored_splits()
        pool = POOL if self.options.bucketing and not self.options.pad_to_max_length else 1
        self._stream = BucketedStream(self._ragged(context), self.padding, pool)
        if self._stream_state is not None:
            self._stream.load_state_dict(self._stream_state)
        return iter(self._stream)

    def _look_at_scored_splits(self) -> None:
        """What is wrong with them is said before the training, not after it."""
        self._read_labels = self._reader(self.config)
        for role in ("validation", "test"):
            for split in self._splits_of(role).values():
                self._rows_to_score(split)

    def _ragged(self, context: Context) -> Stream:
        size = self.arguments.per_device_train_batch_size
        place = {"seed": context.seed, "rank": context.rank, "world_size": context.world_size}
        if self.options.train_examples is None:
            return self.source.stream(self.data.train_split, self.preprocess, size, **place)
        # The same rows on every process.
        generator = np.random.default_rng([context.seed, self.options.train_examples])
        rows = few_rows(
            self.source, self.data.train_split, self.options.train_examples, generator, balance=bool(self.labels)
        )
        return IndexedStream(rows, self.preprocess, StreamSettings(size, **place))

    def losses(
        self, networks: dict[str, nn.Module], shadows: dict[str, nn.Module], batch: Batch, step: int
    ) -> Iterator[Turn]:
        if self._frozen is not None:
            self._frozen.eval()  # features have no dropout
        yield from super().losses(networks, shadows, batch, step)

    # How it is judged

    def evaluate(self, model: PreTrainedModel, split: str, context: Context) -> dict[str, float]:
        """The official metrics, in [-1, 1]; those of MNLI's mismatched split end in `_mm`. `score` is the one of table 1."""
        self._read_labels = self._reader(model.config)
        metrics: dict[str, float] = {}
        for suffix, rows in self._splits_of(split).items():
            encoded = self._rows_to_score(rows)
            answers = self.answers(model, self.logits(model, encoded, context))
            values = measure(self.metric_names(model), answers, encoded["labels"].numpy())
            metrics |= {f"{metric}{suffix}": value for metric, value in values.items()}
        if split == "test" and (note := self.encoder.note()):
            tqdm.write(note, file=sys.stderr)
        return metrics

    def _splits_of(self, role: str) -> dict[str, str]:
        """Suffix of the metrics -> split: MNLI has two splits where others have one called validation."""
        name = self.data.validation_split if role == "validation" else self.data.test_split
        if name is None or (self.options.files and parse_split(name).name not in self.options.files):
            return {}
        return self.spec.scored if self.spec is not None and name == "validation" else {"": name}

    def _rows_to_score(self, split: str) -> Batch:
        if split not in self._encoded:
            self._encoded[split] = self.source.tensors(split, self.preprocess)
        return self._encoded[split]

    def metric_names(self, model: PreTrainedModel) -> tuple[str, ...]:
        """The first one is the score."""
        if self.spec is not None:
            return self.spec.metrics
        if model.config.problem_type == "regression":
            return ("spearmanr", "pearson", "mean_squared_error")
        return ("accuracy", "macro_f1")

    def answers(self, model: PreTrainedModel, logits: torch.Tensor) -> np.ndarray:
        """Class numbers (rows,), or numbers (rows,) of a regression."""
        if model.config.problem_type == "regression":
            return logits.squeeze(-1).numpy()
        return logits.argmax(-1).numpy()

    def logits(self, model: PreTrainedModel, encoded: Batch, context: Context) -> torch.Tensor:
        """(rows, num_labels) on the CPU, of ragged texts as the encoder gives them; rows of a batch are alike in length."""
        padding = self.padding
        texts = {name: encoded[name] for name in padding.values}
        order = padding.lengths(texts).sort(stable=True).indices
        outputs = []
        for numbers in order.split(self.options.per_device_eval_batch_size):
            batch = padding(select(texts, numbers))
            outputs.append(
                model(**{key: value.to(context.device) for key, value in batch.items()}).logits.float().cpu()
            )
        result = torch.empty_like(torch.cat(outputs))
        result[order] = torch.cat(outputs)
        return result

    def describe(self) -> dict[str, Any]:
        start = self.start.describe() if self.start is not None else {"kind": "random"}
        return {
            "task_type": "glue",
            "task_name": self.options.task_name,
            "start": start,
            "implementation": self.options.implementation,
            "labels": list(self.labels),
            "scored_on": self.data.test_split,
            "train_rows": self.train_rows(),
            "truncated": {"texts": self.encoder.truncated, "of": self.encoder.seen},
        }


__all__ = ["GlueOptions", "GlueTask"]

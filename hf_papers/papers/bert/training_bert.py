"""How BERT is pre-trained (1810.04805, section 3.1): masked words and next sentences, on plain text; judged and pictured."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hf_papers.data import DataArguments, Source, open_source
from hf_papers.errors import UserError
from hf_papers.papers.bert.documents_bert import (
    Document,
    DocumentKind,
    DocumentReader,
    MixedReader,
    document_rows,
    documents_once,
    raw_documents,
)
from hf_papers.papers.bert.masking_bert import IGNORED, Masker
from hf_papers.papers.bert.modeling_bert import PaperBertForPreTraining
from hf_papers.papers.bert.pretraining_data_bert import BatchMaker, PoolSettings, PretrainingStream, fixed_batches
from hf_papers.papers.bert.tokenization_bert import check_vocabulary, load_tokenizer, train_tokenizer
from hf_papers.training.arguments import option
from hf_papers.training.task import Batch, Context, Task, Turn


# Every run is judged on the same sequences with the same words masked, whatever its own seed.
EVALUATION_SEEDS = {"validation": 1810, "test": 4805}
EVALUATION_BATCH = 32
COUNTED_TOKENS = 1_000_000  # of the training split, to find its most frequent token
SHORTEST = 8  # tokens: room for the special ones and a few words


@dataclass(frozen=True)
class BertPretrainingOptions:
    """The task's own options."""

    tokenizer: str | None = option(
        None, "folder or Hub id of a vocabulary; none: one of vocab_size tokens is trained on the training split first"
    )
    lowercase: bool = option(True, "a tokenizer that is trained here folds upper case and accents away")
    min_frequency: int = option(2, "of a word piece, for a tokenizer that is trained here")
    tokenizer_documents: int = option(100_000, "documents that a tokenizer is trained on at most")
    document_kind: DocumentKind = option(
        "row", "a document is a row, or the rows up to the next heading ' = Title = ', or rows_per_document sentences"
    )
    rows_per_document: int = option(100, "rows that make a document where rows are sentences")
    second_dataset: str | None = option(None, "a further data set to learn from, beside the one that is measured on")
    second_dataset_config: str | None = option(None, "its configuration")
    second_train_split: str = option("train", "its rows to learn from")
    second_document_kind: DocumentKind = option("row", "what a document of it is, as document_kind")
    second_share: float = option(0.5, "share of the tokens that come from it")
    objective: Literal["mlm_nsp", "mlm", "left_to_right"] = option(
        "mlm_nsp", "masked words and next sentence; without the latter; or each next word by a causal model (table 5)"
    )
    sequence_length: int = option(128, "tokens of a pair, special ones included")
    long_sequence_length: int = option(512, "tokens of a pair in the last steps")
    long_sequence_share: float = option(
        0.0, "share of the steps that have long sequences, at the end; 0.1 in the paper"
    )
    masking_probability: float = option(0.15, "share of the tokens that are to be predicted")
    whole_word_masking: bool = option(False, "all pieces of a word are masked together")
    short_sequence_probability: float = option(0.1, "share of the documents that make shorter sequences")
    pool_tokens: int = option(4_000_000, "tokens of text that are read, cut and shuffled at a time")
    evaluation_sequences: int = option(1000, "held-out sequences that a model is judged on at most")

    def __post_init__(self) -> None:
        for name in (
            "min_frequency",
            "tokenizer_documents",
            "rows_per_document",
            "pool_tokens",
            "evaluation_sequences",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("sequence_length", "long_sequence_length"):
            if getattr(self, name) < SHORTEST:
                raise UserError(f"{name} must be at least {SHORTEST} tokens, not {getattr(self, name)}.")
        for name in ("masking_probability", "second_share"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"{name} must lie between 0 and 1, not be {getattr(self, name)}.")
        for name in ("long_sequence_share", "short_sequence_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is a share from 0 to 1, not {getattr(self, name)}.")


class BertPretrainingTask(Task):
    """Minimise the sum of the mean masked-word and the mean next-sentence loss (appendix A.2)."""

    Options = BertPretrainingOptions
    best_metric = "mlm_loss"
    greater_is_better = False
    options: BertPretrainingOptions

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        self.config = recipe.config
        self._check_options()
        self._tokenizer: Any = None
        self._held_out: dict[str, list[Batch]] = {}
        self._most_frequent: int | None = None
        self._world_size = 1

    def _check_options(self) -> None:
        """Refuse what does not go together, before anything is read."""
        options, config = self.options, self.config
        if self.longest > config.max_position_embeddings:
            raise UserError(
                f"Sequences of {self.longest} tokens do not fit a model of {config.max_position_embeddings} positions: "
                f"lower --sequence_length (or --long_sequence_length), or set --max_position_embeddings {self.longest}."
            )
        if config.causal_attention != (options.objective == "left_to_right"):
            right = "true" if options.objective == "left_to_right" else "false"
            raise UserError(
                f"The objective {options.objective} needs --causal_attention {right}: only a model that sees no word to the "
                "right can learn to predict it, and masked words are guessed from both sides."
            )
        if config.next_sentence_prediction != (options.objective == "mlm_nsp"):
            right = "true" if options.objective == "mlm_nsp" else "false"
            raise UserError(f"The objective {options.objective} needs --next_sentence_prediction {right}.")
        if options.objective == "mlm_nsp" and config.type_vocab_size < 2:
            raise UserError("Pairs of sentences need --type_vocab_size 2.")

    @property
    def longest(self) -> int:
        """Tokens of the longest sequences that are trained on, which are those a model is judged on."""
        options = self.options
        return max(options.sequence_length, options.long_sequence_length if options.long_sequence_share else 0)

    # The vocabulary

    @property
    def tokenizer(self) -> Any:
        """The vocabulary, trained on the training split where none is named; it fits the model."""
        if self._tokenizer is None:
            self._tokenizer = self._make_tokenizer()
            check_vocabulary(self._tokenizer, self.config.vocab_size, self.config.pad_token_id)
        return self._tokenizer

    def _make_tokenizer(self) -> Any:
        options = self.options
        if options.tokenizer is not None:
            return load_tokenizer(options.tokenizer)
        self._need_source()
        return train_tokenizer(
            _Texts(self), self.config.vocab_size, lowercase=options.lowercase, min_frequency=options.min_frequency
        )

    def build_processor(self) -> Any:
        return self.tokenizer

    # What it is trained on

    def total_steps(self, context: Context) -> int:
        if self.arguments.max_steps is None:
            raise UserError("How many sequences a corpus makes is not known before it is read: set --max_steps.")
        return self.arguments.max_steps

    def batches(self, networks: dict[str, nn.Module], context: Context) -> Iterator[Batch]:
        self._need_source()
        options = self.options
        self._world_size = context.world_size
        reader = self._reader(self.source, self.data.train_split, options.document_kind, context)
        if options.second_dataset is not None:
            data = DataArguments(
                dataset=options.second_dataset,
                dataset_config=options.second_dataset_config,
                shuffle_buffer_size=self.data.shuffle_buffer_size,
                memory_budget_gb=self.data.memory_budget_gb,
                num_workers=self.data.num_workers,
            )
            second = self._reader(open_source(data), options.second_train_split, options.second_document_kind, context)
            reader = MixedReader([reader, second], [1 - options.second_share, options.second_share])
        settings = PoolSettings(
            batch_size=self.arguments.per_device_train_batch_size,
            length_of=self.length_of,
            short_sequence_probability=options.short_sequence_probability,
            pool_tokens=options.pool_tokens,
            seed=context.seed,
            rank=context.rank,
        )
        self._stream = PretrainingStream(reader, self._batch_maker(), settings)
        if self._stream_state is not None:
            self._stream.load_state_dict(self._stream_state)
        return iter(self._stream)

    def _reader(self, source: Source, split: str, kind: DocumentKind, context: Context) -> DocumentReader:
        return DocumentReader(
            source,
            split,
            self.tokenizer,
            kind=kind,
            rows_per_document=self.options.rows_per_document,
            seed=context.seed,
            rank=context.rank,
            world_size=context.world_size,
        )

    def length_of(self, batch: int) -> int:
        """Tokens of the sequences of a batch, counted from 0: most of the training on short ones, the end on long ones.

        Appendix A.2: 90 % of the steps with 128 tokens and the rest with 512, to learn the positions; attention to long
        sequences is dear.
        """
        options = self.options
        total = (self.arguments.max_steps or 0) * self.arguments.gradient_accumulation_steps
        is_long = batch >= total - round(total * options.long_sequence_share)
        return options.long_sequence_length if is_long and options.long_sequence_share else options.sequence_length

    def _batch_maker(self) -> BatchMaker:
        options = self.options
        masker = Masker(self.tokenizer, options.masking_probability, options.whole_word_masking)
        return BatchMaker(self.tokenizer, masker, left_to_right=options.objective == "left_to_right")

    @property
    def epoch(self) -> int:
        """Passes over the documents. Not counted among several processes: documents are of different lengths, so nobody
        finishes them at the same step, and nobody needs to."""
        return self._stream.epoch if self._stream is not None and self._world_size == 1 else 0

    def _need_source(self) -> None:
        if self.source is None:
            raise UserError("This recipe names no data set: add --dataset, e.g. --dataset wikimedia/wikipedia.")

    # What a step is

    def losses(
        self, networks: dict[str, nn.Module], shadows: dict[str, nn.Module], batch: Batch, step: int
    ) -> Iterator[Turn]:
        output = networks["model"](**self._inputs(batch))
        with torch.no_grad():
            correct, count = count_correct(output.prediction_logits, batch["labels"])
            metrics = {"mlm_loss": output.mlm_loss.detach(), "mlm_accuracy": correct / count}
            if self.options.objective == "mlm_nsp":
                right = output.seq_relationship_logits.argmax(-1) == batch["next_sentence_label"]
                metrics |= {"nsp_loss": output.nsp_loss.detach(), "nsp_accuracy": right.float().mean()}
        yield "model", output.loss, metrics

    def _inputs(self, batch: Batch) -> Batch:
        """What the model is given: without next-sentence prediction it does not hear of the label."""
        if self.options.objective == "mlm_nsp":
            return batch
        return {name: value for name, value in batch.items() if name != "next_sentence_label"}

    # How it is judged

    def evaluate(self, model: PaperBertForPreTraining, split: str, context: Context) -> dict[str, float]:
        """On held-out sequences that are the same for every run and every objective.

        Returns `mlm_loss` (nats per predicted token), `perplexity` (its exponential), `mlm_accuracy`, `unigram_accuracy`
        (of always answering the most frequent token of the training split), and with next-sentence prediction `nsp_loss`,
        `nsp_accuracy` and `nsp_majority`, the accuracy of always giving the more frequent answer.
        """
        batches = self.held_out(split)
        if batches is None:
            return {}
        most_frequent = self.most_frequent_token()
        sums = dict.fromkeys(
            ("loss", "correct", "frequent", "count", "nsp_loss", "nsp_correct", "random", "pairs"), 0.0
        )
        for batch in batches:
            on_device = {name: value.to(context.device) for name, value in batch.items()}
            output = model(**self._inputs(on_device))
            labels = on_device["labels"]
            correct, count = count_correct(output.prediction_logits, labels)
            logits = output.prediction_logits.float().flatten(0, 1)
            sums["loss"] += F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="sum").item()
            sums["correct"] += correct.item()
            sums["count"] += count.item()
            sums["frequent"] += (labels == most_frequent).sum().item()
            if self.options.objective == "mlm_nsp":
                truth, answer = on_device["next_sentence_label"], output.seq_relationship_logits.float()
                sums["nsp_loss"] += F.cross_entropy(answer, truth, reduction="sum").item()
                sums["nsp_correct"] += (answer.argmax(-1) == truth).sum().item()
                sums["random"] += truth.sum().item()
                sums["pairs"] += len(truth)
        return _metrics(sums)

    def held_out(self, split: str) -> list[Batch] | None:
        """Batches of a split, masked once and for all; None where there is no split."""
        name = self.data.validation_split if split == "validation" else self.data.test_split
        if name is None:
            return None
        if split not in self._held_out:
            options = self.options
            self._held_out[split] = fixed_batches(
                self._documents(name),
                self._batch_maker(),
                length=self.longest,
                batch_size=EVALUATION_BATCH,
                limit=options.evaluation_sequences,
                seed=EVALUATION_SEEDS[split],
                short_sequence_probability=options.short_sequence_probability,
                pool_tokens=options.pool_tokens,
            )
        return self._held_out[split]

    def most_frequent_token(self) -> int:
        """The token that the beginning of the training split holds most often."""
        if self._most_frequent is None:
            counts = np.zeros(self.config.vocab_size, np.int64)
            for document in self._documents(self.data.train_split):
                counts += np.bincount(document.tokens, minlength=len(counts))
                if counts.sum() >= COUNTED_TOKENS:
                    break
            self._most_frequent = int(counts.argmax())
        return self._most_frequent

    def _documents(self, split: str) -> Iterator[Document]:
        self._need_source()
        options = self.options
        return documents_once(self.source, split, self.tokenizer, options.document_kind, options.rows_per_document)

    def figures(self, model: PaperBertForPreTraining, folder: Path, context: Context) -> dict[str, Path]:
        """What it guesses for masked words, and where its heads look: caption -> file."""
        from hf_papers.papers.bert.figures_bert import draw_pretraining_figures

        split = self.data.test_split or self.data.validation_split or self.data.train_split
        options = self.options
        rows = raw_documents(self.source, split, options.document_kind, options.rows_per_document)
        return draw_pretraining_figures(model, self.tokenizer, rows, folder, context)

    # What a checkpoint must remember

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"vocabulary": fingerprint(self.tokenizer)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("vocabulary") not in (None, fingerprint(self.tokenizer)):
            raise UserError(
                "The tokenizer is not the one that this run began with, so its tokens mean something else now: give the "
                "run's own by --tokenizer, or start a new run."
            )
        super().load_state_dict(state)


class _Texts:
    """The documents that a vocabulary is trained on; can be gone through again and again."""

    def __init__(self, task: BertPretrainingTask) -> None:
        self.task = task

    def __iter__(self) -> Iterator[str]:
        options, data = self.task.options, self.task.data
        rows = document_rows(self.task.source, data.train_split, options.document_kind, options.rows_per_document)
        for document in itertools.islice(rows, options.tokenizer_documents):
            yield "\n".join(document)


def fingerprint(tokenizer: Any) -> str:
    """Stands for a vocabulary and the numbers of its tokens."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256("\n".join(token for token, _ in vocabulary).encode()).hexdigest()[:16]


def count_correct(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, P, V), labels (B, P) -> how many of the labels are guessed, and how many there are (those not -100)."""
    return (logits.argmax(-1) == labels).sum(), (labels != IGNORED).sum()


def _metrics(sums: dict[str, float]) -> dict[str, float]:
    loss = sums["loss"] / sums["count"]
    metrics = {
        "mlm_loss": loss,
        "perplexity": math.exp(min(loss, 700)),
        "mlm_accuracy": sums["correct"] / sums["count"],
        "unigram_accuracy": sums["frequent"] / sums["count"],
    }
    if sums["pairs"]:
        random_share = sums["random"] / sums["pairs"]
        metrics |= {
            "nsp_loss": sums["nsp_loss"] / sums["pairs"],
            "nsp_accuracy": sums["nsp_correct"] / sums["pairs"],
            "nsp_majority": max(random_share, 1 - random_share),
        }
    return metrics


__all__ = ["BertPretrainingOptions", "BertPretrainingTask", "count_correct", "fingerprint"]

"""How the Transformer is trained (section 5) and judged (section 6.1): any pairs of a source and a target text."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import nn
from tqdm.auto import tqdm

from hf_papers.data import BucketedStream, FilesSource, Padding, Source
from hf_papers.errors import UserError
from hf_papers.metrics.bleu import corpus_bleu
from hf_papers.papers.transformer.modeling_transformer import IGNORED, PaperTransformerForSeq2SeqLM
from hf_papers.papers.transformer.pairs_transformer import COLUMNS, PairEncoder, PairTexts, encode, read_pairs
from hf_papers.papers.transformer.tokenization_transformer import check_vocabulary, load_tokenizer, train_tokenizer
from hf_papers.papers.transformer.translating_transformer import Search, Translator, batches_of
from hf_papers.training.arguments import option
from hf_papers.training.shadow import Shadow
from hf_papers.training.start import Start
from hf_papers.training.task import Batch, Context, Task, Turn


POOL_ROWS = 20_000  # pairs that are sorted by length together
EVALUATION_TOKENS = 4096
NOTHING = r"(?!)"  # matches no name
SHOWN = 6  # pairs of the test split whose translation stands in results.json


@dataclass(frozen=True)
class TranslationOptions:
    """The task's own options."""

    tokenizer: str | None = option(
        None, "folder or Hub id of a shared vocabulary; none: that of the start, or one of vocab_size is trained first"
    )
    lowercase: bool = option(False, "a tokenizer that is trained here folds upper case away")
    min_frequency: int = option(2, "of a piece of a word, for a tokenizer that is trained here")
    model_name_or_path: str | None = option(
        None, "where to start: a run of ours, folder or Hub id, with its vocabulary; none: random weights"
    )
    train_file: str | None = option(None, "CSV, TSV, JSON or parquet with source and target, instead of a data set")
    validation_file: str | None = option(None, "the same, to choose the best weights by")
    test_file: str | None = option(None, "the same, translated once, at the end")
    tokens_per_batch: int | None = option(
        None, "tokens of a batch on either side, padding included; none: per_device_train_batch_size pairs"
    )
    max_tokens: int = option(128, "pairs with more tokens on a side are left out of the training")
    label_smoothing: float = option(0.1, "share of the truth that is spread over the whole vocabulary (section 5.4)")
    average_decay: float = option(
        0.998, "how slowly the published average of the weights forgets; 0 publishes the last weights themselves"
    )
    num_beams: int = option(4, "unfinished translations kept at every step, on the test split (section 6.1)")
    length_penalty: float = option(0.6, "of beam search: scores are log-probability / length^penalty")
    select_by: Literal["bleu", "exact_match", "loss"] = option("bleu", "what the best weights are chosen by")
    evaluation_rows: int | None = option(None, "pairs of a split that a model is judged on at most; none: all")

    def __post_init__(self) -> None:
        for name in ("min_frequency", "tokens_per_batch", "num_beams", "evaluation_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}.")
        if self.max_tokens < 2:
            raise UserError(f"max_tokens must be at least 2, for a token and </s>, not {self.max_tokens}.")
        if self.tokens_per_batch is not None and self.tokens_per_batch < self.max_tokens:
            raise UserError(
                f"A batch of {self.tokens_per_batch} tokens has no room for a text of {self.max_tokens}: raise "
                "--tokens_per_batch, or lower --max_tokens."
            )
        for name in ("label_smoothing", "average_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} must lie in [0, 1), not {getattr(self, name)}.")
        if not -10 <= self.length_penalty <= 10:
            raise UserError(f"length_penalty must lie between -10 and 10, not {self.length_penalty}.")

    @property
    def start(self) -> Start | None:
        return Start(PaperTransformerForSeq2SeqLM, self.model_name_or_path) if self.model_name_or_path else None

    @property
    def files(self) -> dict[str, str]:
        """Split -> file of the user's own."""
        files = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        return {split: name for split, name in files.items() if name is not None}


class TranslationTask(Task):
    """Minimise the smoothed cross-entropy of each target token, given the source and the target tokens before it.

    What is published is a running average of the weights. The paper averages its last five checkpoints, ten minutes apart;
    a running average is the same idea without files, is looked at by every evaluation, and resumes exactly.
    """

    Options = TranslationOptions
    options: TranslationOptions

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        options, config = self.options, recipe.config
        self.best_metric = options.select_by
        self.greater_is_better = options.select_by != "loss"
        self.start = options.start
        if options.max_tokens > config.max_position_embeddings:
            raise UserError(
                f"--max_tokens {options.max_tokens} is more than the {config.max_position_embeddings} positions of the "
                "model: lower it, or raise --max_position_embeddings."
            )
        self._encoder: PairEncoder | None = None
        self._pairs: dict[str, tuple[list[str], list[str]]] = {}
        self._world_size = 1
        self._clock = {"seconds": 0.0, "tokens": 0, "epochs": 0, "seconds_of_epochs": 0.0}
        self._signature = ""
        self._examples: list[dict[str, str]] = []

    @classmethod
    def model_options(
        cls, options: TranslationOptions, given: dict[str, Any], known: Collection[str]
    ) -> dict[str, Any]:
        """What is given, over what the start decides. A run's recipe gives everything, so its start may be gone."""
        if options.start is None or set(known) <= set(given):
            return given
        return {**options.start.options(known), **given}

    def open_source(self) -> Source | None:
        return FilesSource(self.data, self.options.files) if self.options.files else super().open_source()

    # What is trained

    def build_model(self) -> PaperTransformerForSeq2SeqLM:
        if self.start is None:
            model = PaperTransformerForSeq2SeqLM(self.recipe.config)
        else:
            model = self.start.load(self.recipe.config, fresh=NOTHING)
        # Whoever loads the model translates as it was tested.
        search = Search(self.options.num_beams, self.options.length_penalty)
        model.generation_config.update(**search.options())
        return model

    @cached_property
    def tokenizer(self) -> Any:
        """The shared vocabulary, trained on the training split where none is named."""
        options, config = self.options, self.recipe.config
        if name := options.tokenizer or options.model_name_or_path:
            tokenizer = load_tokenizer(name)
        else:
            tokenizer = train_tokenizer(
                PairTexts(self._need_source(), self.data.train_split),
                config.vocab_size,
                lowercase=options.lowercase,
                min_frequency=options.min_frequency,
                model_max_length=config.max_position_embeddings,
            )
        check_vocabulary(tokenizer, config)
        return tokenizer

    def build_processor(self) -> Any:
        return self.tokenizer

    def shadows(self) -> dict[str, Shadow]:
        return {"model": Shadow(self.options.average_decay, warm=True)} if self.options.average_decay else {}

    def published(self, model: nn.Module, shadows: dict[str, nn.Module]) -> nn.Module:
        return shadows.get("model", model)

    # What it is trained on

    def total_steps(self, context: Context) -> int:
        if self.options.tokens_per_batch is not None and self.arguments.max_steps is None:
            raise UserError("How many batches of so many tokens an epoch makes is not known before: set --max_steps.")
        return super().total_steps(context)

    def preprocess(self, rows: list[dict[str, Any]]) -> Batch:
        """Rows as ragged `input_ids` and `labels`; both are empty for a pair that cannot be learnt from."""
        if self._encoder is None:
            where = f"split '{self.data.train_split}' of '{self._need_source().name}'"
            self._encoder = PairEncoder(self.tokenizer, self.options.max_tokens, where)
        return self._encoder(rows)

    @property
    def padding(self) -> Padding:
        values = {"input_ids": self.tokenizer.pad_token_id, "labels": IGNORED}
        return Padding(values, apart=True, mask="attention_mask")

    def batches(self, networks: dict[str, nn.Module], context: Context) -> Iterator[Batch]:
        self._world_size = context.world_size
        for role in ("validation", "test"):
            self.pairs(role)  # what is wrong with them is said before the training, not after it
        size = self.arguments.per_device_train_batch_size
        place = {"seed": context.seed, "rank": context.rank, "world_size": context.world_size}
        inner = self._need_source().stream(self.data.train_split, self.preprocess, size, **place)
        pool = max(1, POOL_ROWS // size)
        self._stream = BucketedStream(inner, self.padding, pool, self.options.tokens_per_batch)
        if self._stream_state is not None:
            self._stream.load_state_dict(self._stream_state)
        return map(with_label_positions, self._stream)

    @property
    def epoch(self) -> int:
        """Passes over the pairs. Several processes make different numbers of batches of their shares, so nobody counts."""
        return self._stream.epoch if self._stream is not None and self._world_size == 1 else 0

    def _need_source(self) -> Source:
        if self.source is None:
            raise UserError(
                "This recipe names no data set: add --dataset, e.g. --dataset bentrevett/multi30k --columns "
                "source=de,target=en, or files of your own by --train_file."
            )
        return self.source

    # What a step is

    def losses(
        self, networks: dict[str, nn.Module], shadows: dict[str, nn.Module], batch: Batch, step: int
    ) -> Iterator[Turn]:
        started = time.perf_counter()
        output = networks["model"](**batch, label_smoothing=self.options.label_smoothing)
        tokens = len(batch["label_positions"])
        yield "model", output.loss, {"target_tokens": float(tokens)}
        self._note_step(time.perf_counter() - started, tokens)

    def _note_step(self, seconds: float, tokens: int) -> None:
        """Time of the steps alone, without evaluations; of an epoch when the stream begins the next one."""
        clock = self._clock
        if self.epoch > clock["epochs"]:  # this step was the first of it
            clock["epochs"], clock["seconds_of_epochs"] = self.epoch, clock["seconds"]
        clock["seconds"] += seconds
        clock["tokens"] += tokens

    # How it is judged

    def pairs(self, role: str) -> tuple[list[str], list[str]] | None:
        """Sources and targets that a model is judged on, as they were written; None where there is no split."""
        name = self.data.validation_split if role == "validation" else self.data.test_split
        if name is None or (self.options.files and name.split("[")[0] not in self.options.files):
            return None
        if role not in self._pairs:
            self._pairs[role] = read_pairs(self._need_source(), name, self.options.evaluation_rows)
        return self._pairs[role]

    def evaluate(self, model: PaperTransformerForSeq2SeqLM, split: str, context: Context) -> dict[str, float]:
        """Translations against their references, and the likelihood of the references.

        Returns `bleu` (sacreBLEU, 0 to 100), `exact_match` (share of translations that are their reference), `loss` (nats
        per target token, not smoothed) and `perplexity` (its exponential). The validation split is translated greedily,
        the test split by beam search, and once more greedily for `bleu_greedy` and `exact_match_greedy`.
        """
        pairs = self.pairs(split)
        if pairs is None:
            return {}
        sources, references = pairs
        translator = Translator(model, self.tokenizer)
        greedy = self._judge(translator.translate_all(sources, Search(num_beams=1)), references)
        if split == "test":
            translations = translator.translate_all(
                sources, Search(self.options.num_beams, self.options.length_penalty)
            )
            metrics = self._judge(translations, references)
            metrics |= {f"{name}_greedy": value for name, value in greedy.items()}
            shown = zip(sources[:SHOWN], references[:SHOWN], translations[:SHOWN], strict=True)
            self._examples = [dict(zip((*COLUMNS, "translation"), texts, strict=True)) for texts in shown]
            if self._encoder is not None and (note := self._encoder.note()):
                tqdm.write(note, file=sys.stderr)
        else:
            metrics = greedy
        loss = self._loss(model, sources, references, context)
        return {**metrics, "loss": loss, "perplexity": math.exp(min(loss, 700))}

    def _judge(self, translations: list[str], references: list[str]) -> dict[str, float]:
        bleu = corpus_bleu(translations, references)
        self._signature = bleu.signature
        right = sum(ours == theirs for ours, theirs in zip(translations, references, strict=True))
        return {"bleu": bleu.score, "exact_match": right / len(references)}

    def _loss(
        self, model: PaperTransformerForSeq2SeqLM, sources: list[str], references: list[str], context: Context
    ) -> float:
        """Mean of -log p over all target tokens, nats; texts longer than the positions are cut."""
        longest = model.config.max_position_embeddings
        sides = [[row[:longest] for row in encode(self.tokenizer, texts)] for texts in (sources, references)]
        lengths = [max(len(source), len(target)) for source, target in zip(*sides, strict=True)]
        total, count = 0.0, 0
        for rows in batches_of(lengths, EVALUATION_TOKENS):
            source, target = ([side[row] for row in rows] for side in sides)
            batch = with_label_positions(self.padding({"input_ids": source, "labels": target}))
            tokens = len(batch["label_positions"])
            output = model(**{name: value.to(context.device) for name, value in batch.items()})
            total += output.loss.item() * tokens
            count += tokens
        return total / count

    def describe(self) -> dict[str, Any]:
        """What is translated into what, how BLEU was computed, how fast a step was, and some translations."""
        clock = self._clock
        columns = {column: self.data.columns.get(column, column) for column in COLUMNS}
        dataset = self.source.name if self.source is not None else None
        described: dict[str, Any] = {"dataset": dataset, **columns, "architecture": self.recipe.config.architecture}
        if self._signature:
            described["bleu_signature"] = self._signature
            described["search"] = f"beam {self.options.num_beams}, length penalty {self.options.length_penalty}"
        if clock["epochs"]:
            described["seconds_per_epoch"] = round(clock["seconds_of_epochs"] / clock["epochs"], 1)
        if clock["seconds"]:
            described["target_tokens_per_second"] = round(clock["tokens"] / clock["seconds"])
        return {**described, "examples": self._examples}

    def figures(self, model: PaperTransformerForSeq2SeqLM, folder: Path, context: Context) -> dict[str, Path]:
        """Where every head looks for a sentence of the test split, and what positions look like: caption -> file."""
        from hf_papers.papers.transformer.figures_transformer import draw_figures

        pairs = self.pairs("test") or self.pairs("validation")
        return draw_figures(Translator(model, self.tokenizer), pairs[0] if pairs else [], folder)

    # What a checkpoint must remember

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"clock": dict(self._clock)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._clock.update(state.get("clock", {}))


def with_label_positions(batch: Batch) -> Batch:
    """A batch and the positions of its labels that count, so that padding is not projected onto the vocabulary."""
    return {**batch, "label_positions": (batch["labels"].flatten() != IGNORED).nonzero().flatten()}


__all__ = ["TranslationOptions", "TranslationTask", "with_label_positions"]

"""What a fine-tuning starts from: a checkpoint of ours, a published one in transformers' layout, or random weights."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from hf_papers.errors import UserError
from hf_papers.hub.checkpoints import (
    check_finite,
    check_weight_file,
    locate,
    quiet_transformers,
    read_config,
    weight_files,
)
from hf_papers.hub.problems import hub_problems
from hf_papers.papers.bert.configuration_bert import PaperBertConfig
from hf_papers.papers.bert.conversion_bert import config_from_reference
from hf_papers.papers.bert.modeling_bert import PaperBertForSequenceClassification


# Weights that a checkpoint of another head may lack; everything else must be there.
HEAD = re.compile(r"^(bert\.)?(classifier|pooler)\.")
# Some checkpoints round their vocabulary up to a multiple of this, for speed.
VOCABULARY_PADDING = 128


@dataclasses.dataclass(frozen=True)
class Start:
    """A checkpoint by its folder or id on the Hub."""

    name: str

    @cached_property
    def folder(self) -> Path:
        return locate(self.name)

    @cached_property
    def content(self) -> dict[str, Any]:
        """Its config.json."""
        return read_config(self.folder)

    @property
    def is_ours(self) -> bool:
        return self.content.get("model_type") == PaperBertConfig.model_type

    @property
    def is_classifier(self) -> bool:
        return any(name.endswith("ForSequenceClassification") for name in self.content.get("architectures") or [])

    @property
    def class_names(self) -> list[str]:
        """What its classes are called, where somebody has named them."""
        by_number = sorted((int(number), str(name)) for number, name in (self.content.get("id2label") or {}).items())
        names = [name for _, name in by_number]
        named = self.is_classifier and not all(re.fullmatch(r"LABEL_\d+", name) for name in names)
        return names if named else []

    def options(self, known: Collection[str]) -> dict[str, Any]:
        """The fields of our config that its config.json decides, of those in `known`."""
        found = self.content.get("model_type")
        if self.is_ours:
            options = self.content
        elif found == "bert":
            with sentences():
                options = config_from_reference(self.content, self.folder)
        else:
            described = f"a model of type '{found}'" if found else "a model of no stated type"
            raise UserError(
                f"The checkpoint {self.name} is {described}; a fine-tuning of BERT starts from BERT in transformers' layout "
                f"('bert') or from one of ours ('{PaperBertConfig.model_type}')."
            )
        # The task decides what is predicted.
        return {name: options[name] for name in known if name in options and name != "problem_type"}

    def load(self, config: PaperBertConfig, fresh_head: bool) -> PaperBertForSequenceClassification:
        """A classifier of this config with its weights; what it has no weights for is drawn anew.

        Raises `UserError` where its own classifier does not fit, unless `fresh_head` allows to leave that one out.
        """
        model = self._load_ours(config) if self.is_ours else self._load_theirs(config)
        replaced = [name for name in model.missing_from_reference if "classifier." in name]
        if replaced and self.is_classifier and not fresh_head:
            theirs = len(self.content.get("id2label") or {}) or "other"
            raise UserError(
                f"The checkpoint {self.name} has {theirs} classes, and this task has {config.num_labels}: its last layer "
                "does not fit. Add --ignore_mismatched_sizes to train a new one."
            )
        check_finite(model, self.folder)
        return model

    def _load_theirs(self, config: PaperBertConfig) -> PaperBertForSequenceClassification:
        options = config.to_dict()
        for name in ("model_type", "transformers_version", "architectures", "dtype", "_name_or_path"):
            options.pop(name, None)
        known = {entry.name for entry in dataclasses.fields(config)}
        with sentences():
            return PaperBertForSequenceClassification.from_reference(
                str(self.folder), **{name: value for name, value in options.items() if name in known}
            )

    def _load_ours(self, config: PaperBertConfig) -> PaperBertForSequenceClassification:
        for file in weight_files(self.folder):
            check_weight_file(file)
        with quiet_transformers():
            model, info = PaperBertForSequenceClassification.from_pretrained(
                self.folder,
                config=config,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                disable_mmap=True,
                output_loading_info=True,
            )
        mismatched = [name for name, *_ in info["mismatched_keys"]]
        missing = sorted({*info["missing_keys"], *mismatched})
        wrong = [name for name in missing if not HEAD.match(name)]
        if wrong:
            raise UserError(
                f"The weights in {self.folder} do not fit the model that is to be trained: {', '.join(wrong[:3])} are "
                "missing or of another shape. Leave out the model options on the command line, or name another checkpoint."
            )
        model.missing_from_reference = tuple(missing)
        return model

    def describe(self) -> dict[str, str]:
        """Where it comes from, for the results."""
        architecture = next(iter(self.content.get("architectures") or ["a model"]))
        kind = "ours" if self.is_ours else "converted"
        return {"kind": kind, "name": self.name, "architecture": architecture}


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """The conversion travels to the Hub and knows no `UserError`: its sentences become ours here."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


def load_tokenizer(name: str, config: PaperBertConfig) -> Any:
    """The tokenizer saved in a folder or repository. Raises `UserError` when there is none or it does not fit the model."""
    try:
        with hub_problems("Downloading the tokenizer", name), quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(name)
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"No tokenizer can be read from {name}: {reason}. Name the folder or repository of one by --tokenizer_name."
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes up where it finds no file
        raise UserError(
            f"{name} has no vocabulary (vocab.txt or tokenizer.json). Name the folder or repository of the tokenizer "
            "that the model was trained with by --tokenizer_name."
        )
    if not 0 <= config.vocab_size - len(tokenizer) < VOCABULARY_PADDING:
        raise UserError(
            f"The tokenizer of {name} has {len(tokenizer):,} word pieces and the model {config.vocab_size:,}: they do not "
            "belong together. Name the right one by --tokenizer_name; for a model from scratch set --vocab_size to its size."
        )
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"The tokenizer of {name} has no padding token, so texts of different length cannot be batched."
        )
    return tokenizer


def as_transformers(model: PaperBertForSequenceClassification) -> PreTrainedModel:
    """The same weights in transformers' own class: what ours is compared with."""
    from transformers import BertForSequenceClassification

    random_state = torch.get_rng_state()
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        model.to_reference(folder)
        theirs = BertForSequenceClassification.from_pretrained(folder, disable_mmap=True)
    torch.set_rng_state(random_state)
    return theirs

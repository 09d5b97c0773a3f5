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
from transformers import PreTrainedModel

from hf_papers.errors import UserError
from hf_papers.hub.checkpoints import check_finite, load_start, locate, quiet_transformers, read_config
from hf_papers.papers.bert.configuration_bert import PaperBertConfig
from hf_papers.papers.bert.conversion_bert import config_from_reference
from hf_papers.papers.bert.modeling_bert import PaperBertForSequenceClassification


# Weights that a checkpoint of another head may lack; everything else must be there.
HEAD = r"(bert\.)?(classifier|pooler)\."


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
        if self.is_ours:
            model, drawn = load_start(PaperBertForSequenceClassification, self.folder, HEAD, config=config)
        else:
            model = self._load_theirs(config)
            drawn = list(model.missing_from_reference)
        replaced = [name for name in drawn if "classifier." in name]
        if replaced and self.is_classifier and not fresh_head:
            theirs = len(self.content.get("id2label") or {}) or "other"
            raise UserError(
                f"The checkpoint {self.name} has {theirs} classes, and this task has {config.num_labels}: its last layer "
                "does not fit. Add --ignore_mismatched_sizes to train a new one."
            )
        return model

    def _load_theirs(self, config: PaperBertConfig) -> PaperBertForSequenceClassification:
        options = config.to_dict()
        for name in ("model_type", "transformers_version", "architectures", "dtype", "_name_or_path"):
            options.pop(name, None)
        known = {entry.name for entry in dataclasses.fields(config)}
        with sentences():
            model = PaperBertForSequenceClassification.from_reference(
                str(self.folder), **{name: value for name, value in options.items() if name in known}
            )
        check_finite(model, self.folder)
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


def as_transformers(model: PaperBertForSequenceClassification) -> PreTrainedModel:
    """The same weights in transformers' own class: what ours is compared with."""
    from transformers import BertForSequenceClassification

    random_state = torch.get_rng_state()
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        model.to_reference(folder)
        theirs = BertForSequenceClassification.from_pretrained(folder, disable_mmap=True)
    torch.set_rng_state(random_state)
    return theirs

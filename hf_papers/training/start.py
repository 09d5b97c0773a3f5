"""Where a training starts instead of at random weights: another run of the same paper, in a folder or on the Hub."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from hf_papers.hub.checkpoints import check_model_type, load_start, locate, read_config


class Start:
    """A checkpoint by its folder or id on the Hub.

    It answers before the training what config its weights ask for (`options`), and then makes the model (`load`).
    """

    def __init__(self, model_class: type[PreTrainedModel], name: str) -> None:
        self.model_class, self.name = model_class, name
        self.fresh: list[str] = []  # parameters that were drawn anew by `load`

    @cached_property
    def folder(self) -> Path:
        return locate(self.name)

    @cached_property
    def content(self) -> dict[str, Any]:
        """Its config.json. Raises `UserError` when it belongs to another model."""
        content = read_config(self.folder)
        check_model_type(content, self.model_class, self.folder)
        return content

    def options(self, names: Collection[str]) -> dict[str, Any]:
        """The fields of the config, of those in `names`, as the checkpoint has them."""
        return {name: self.content[name] for name in names if name in self.content}

    def load(self, config: PreTrainedConfig, fresh: str) -> PreTrainedModel:
        """A model of this config with the checkpoint's weights; `fresh` as `hub.checkpoints.load_start` has it."""
        model, self.fresh = load_start(self.model_class, self.folder, fresh, config=config)
        return model

    def describe(self) -> dict[str, Any]:
        """Where it comes from and what is new, for the results."""
        return {"name": self.name, "drawn_anew": self.fresh}


__all__ = ["Start"]

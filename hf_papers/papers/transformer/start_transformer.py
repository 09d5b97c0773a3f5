"""Where a training starts, if not at random weights: a run of ours, or its like on the Hub."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_papers.errors import UserError
from hf_papers.hub.checkpoints import load_start, locate, read_config
from hf_papers.papers.transformer.configuration_transformer import PaperTransformerConfig


NOTHING = r"(?!)"  # matches no name
HEAD = r"classifier\."


@dataclass(frozen=True)
class Start:
    """A checkpoint by its folder or id on the Hub."""

    name: str

    @cached_property
    def folder(self) -> Path:
        return locate(self.name)

    @cached_property
    def content(self) -> dict[str, Any]:
        """Its config.json."""
        content = read_config(self.folder)
        if content.get("model_type") != PaperTransformerConfig.model_type:
            raise UserError(
                f"The checkpoint {self.name} is a model of type '{content.get('model_type')}'; a training here starts from "
                f"one of ours ('{PaperTransformerConfig.model_type}')."
            )
        return content

    def options(self, known: Collection[str]) -> dict[str, Any]:
        """The fields of the config that its config.json decides, of those in `known`."""
        return {name: self.content[name] for name in known if name in self.content}

    def load(self, model_class: type, config: Any, fresh: str = NOTHING) -> Any:
        """A model of this class and config with its weights; only what `fresh` matches may be drawn anew."""
        model, _ = load_start(model_class, self.folder, fresh, config=config)
        return model


__all__ = ["HEAD", "Start"]

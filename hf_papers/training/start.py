"""Where a training starts instead of at random weights: another run of the same paper, in a folder or on the Hub."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from hf_papers.errors import UserError
from hf_papers.hub.checkpoints import (
    check_finite,
    check_weight_file,
    locate,
    quiet_transformers,
    read_config,
    weight_files,
)
from hf_papers.registry import Paper


class Start:
    """A checkpoint by its folder or id on the Hub.

    It answers before the training what config its weights ask for (`options`), and then makes the model (`load`). Parts
    that fit no longer, such as the last layer for other classes, are drawn anew.
    """

    def __init__(self, paper: Paper, name: str) -> None:
        self.paper, self.name = paper, name
        self.fresh: tuple[str, ...] = ()  # parameters that were drawn anew by `load`

    @cached_property
    def folder(self) -> Path:
        return locate(self.name)

    @cached_property
    def content(self) -> dict[str, Any]:
        """Its config.json. Raises `UserError` when it belongs to another model."""
        content = read_config(self.folder)
        wanted, found = self.paper.config_class.model_type, content.get("model_type")
        if found != wanted:
            described = f"of type '{found}'" if found else "of no stated type"
            raise UserError(
                f"The checkpoint {self.name} is a model {described}; this training starts from one of type '{wanted}'."
            )
        return content

    def options(self, names: Collection[str]) -> dict[str, Any]:
        """The fields of the config, of those in `names`, as the checkpoint has them."""
        return {name: self.content[name] for name in names if name in self.content}

    def load(
        self, model_class: type[PreTrainedModel], config: PreTrainedConfig, may_differ: str = r"^classifier\."
    ) -> PreTrainedModel:
        """A model of this config with the checkpoint's weights.

        Parameters whose names match `may_differ` are drawn anew where the checkpoint lacks them or has them in another
        shape; anything else of the kind is a `UserError`. Parts that the model does not have are left behind.
        """
        for file in weight_files(self.folder):
            check_weight_file(file)
        with quiet_transformers():
            model, info = model_class.from_pretrained(
                self.folder,
                config=config,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                disable_mmap=True,
                output_loading_info=True,
            )
        fresh = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
        wrong = [name for name in fresh if not re.search(may_differ, name)]
        if wrong:
            raise UserError(
                f"The weights in {self.folder} do not fit the model that is to be trained: {', '.join(wrong[:3])} are "
                "missing or of another shape. Leave out the model options on the command line, or name another checkpoint."
            )
        check_finite(model, self.folder)
        self.fresh = tuple(fresh)
        return model

    def describe(self) -> dict[str, Any]:
        """Where it comes from and what is new, for the results."""
        return {"name": self.name, "drawn_anew": list(self.fresh)}


__all__ = ["Start"]

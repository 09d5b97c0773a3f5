"""Which checkpoint a Space shows, and what is known of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_papers.errors import UserError
from hf_papers.registry import find_paper


def checkpoint_source(default: Path, variable: str = "MODEL_ID") -> str:
    """Where the checkpoint comes from: MODEL_ID (a folder or Hub id) or the folder beside the app.

    `variable`: the name of the environment variable, for a Space with several checkpoints.
    """
    return os.environ.get(variable, "").strip() or str(default)


def require_checkpoint(paper_key: str, default: Path) -> str:
    """As `checkpoint_source`; a `UserError` says what to do when there is none."""
    source = checkpoint_source(default)
    if source == str(default) and not (default / "config.json").is_file():
        paper = find_paper(paper_key)
        recipe = paper.headline or next(iter(paper.recipes), "embedded")
        raise UserError(
            f"There is no checkpoint for this Space in {default}. Train one with `hf-papers train {paper_key} "
            f"--recipe {recipe} --output_dir runs/{paper_key}` and start the app with MODEL_ID=runs/{paper_key}, "
            "or copy the configuration files and model.safetensors of a run there."
        )
    return source


def load_model(paper_key: str, default: Path) -> PreTrainedModel:
    """The checkpoint in eval mode and float32, loaded strictly; `UserError` says what to do when there is none."""
    from hf_papers.hub.checkpoints import load_strict

    source = require_checkpoint(paper_key, default)
    return load_strict(find_paper(paper_key), source).float().eval()


def load_processor(paper_key: str, default: Path) -> Any:
    """The image processor saved with the checkpoint, so that the Space sees the pixels that training saw."""
    processor_class = find_paper(paper_key).image_processor_class
    if processor_class is None:
        raise UserError(f"The paper '{paper_key}' has no image processor.")
    return processor_class.from_pretrained(checkpoint_source(default))


def checkpoint_results(default: Path) -> dict[str, Any]:
    """The results.json beside a local checkpoint, or an empty dict: what the page may say about its quality."""
    path = Path(checkpoint_source(default)) / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def count_parameters(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())

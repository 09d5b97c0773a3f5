"""The papers that deep learning stands on, written from scratch in PyTorch and at home on the Hugging Face Hub.

Importing this package registers every config, model and processor with transformers' Auto classes, so that
`AutoModel.from_pretrained("someone/vae-mnist")` knows them without `trust_remote_code`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hf_papers import registry
from hf_papers.errors import UserError
from hf_papers.registry import Paper, find_paper, register_all


__version__ = "0.1.0"


def _public_names() -> dict[str, tuple[Paper, str]]:
    """Class name -> where it lives, for `from hf_papers import PaperVaeModel`."""
    names = {}
    for paper in registry.papers().values():
        references = [paper.config, paper.task, *paper.tasks.values(), *paper.models.values()]
        references += [paper.image_processor] if paper.image_processor else []
        for reference in references:
            names[reference.split(":")[1]] = (paper, reference)
    return names


def __getattr__(name: str) -> Any:
    public = _public_names()
    if name not in public:
        raise AttributeError(f"module 'hf_papers' has no attribute '{name}'")
    paper, reference = public[name]
    return paper.resolve(reference)


def __dir__() -> list[str]:
    return sorted([*__all__, *_public_names()])


__all__ = ["Paper", "UserError", "find_paper", "register_all"]

# Registering imports torch and transformers. The `hf-papers` command does it only when a command needs models, so
# that `hf-papers --help` answers at once; everybody else gets it from the import.
if Path(sys.argv[0]).stem != "hf-papers":
    register_all()

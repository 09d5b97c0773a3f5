"""The papers of the house, found by their folders: a paper is added by adding `papers/<key>/`, no list is edited."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hf_papers.errors import UserError, nearest


PAPERS_FOLDER = Path(__file__).parent / "papers"


@dataclass(frozen=True)
class Paper:
    """What a paper is. Classes are named as `"module:Class"` inside the paper's folder and imported on first use."""

    key: str
    title: str
    authors: str
    year: int
    arxiv: str | None  # None for a paper that is not there: `page` and `venue` then say where it is
    summary: str
    config: str
    models: dict[str, str]  # name of an Auto class -> our class, e.g. {"AutoModel": "modeling_vae:PaperVaeModel"}
    task: str
    # Further trainings, by the name that a recipe's task_type gives.
    tasks: dict[str, str] = field(default_factory=dict)
    image_processor: str | None = None
    tokenizer_trainer: str | None = None  # a function of (texts, vocab_size, lowercase=, min_frequency=) -> tokenizer
    parameters: dict[str, int] = field(default_factory=dict)  # preset of the config -> exact number of parameters
    headline: str | None = None  # the recipe that stands for the paper where one has to, instead of the first
    pipeline_tag: str | None = None
    tags: tuple[str, ...] = ()
    license: str = "mit"
    page: str | None = None  # its web address
    venue: str | None = None  # journal or proceedings

    @property
    def folder(self) -> Path:
        return PAPERS_FOLDER / self.key

    @property
    def url(self) -> str:
        return self.page or f"https://huggingface.co/papers/{self.arxiv}"

    @property
    def source(self) -> tuple[str, str]:
        """(address, name) of the place where the text itself is."""
        if self.arxiv:
            return f"https://arxiv.org/abs/{self.arxiv}", f"arXiv {self.arxiv}"
        return self.url, self.venue or self.url

    @property
    def hub_tags(self) -> list[str]:
        """What a checkpoint or a Space of this paper is found by on the Hub."""
        return [*self.tags, *([f"arxiv:{self.arxiv}"] if self.arxiv else [])]

    @property
    def recipes(self) -> dict[str, Path]:
        """Recipe name -> YAML file."""
        return {path.stem: path for path in sorted((self.folder / "recipes").glob("*.yaml"))}

    def resolve(self, reference: str) -> Any:
        """The object that a `"module:Name"` string of this paper stands for."""
        module, name = reference.split(":")
        return getattr(importlib.import_module(f"hf_papers.papers.{self.key}.{module}"), name)

    @property
    def config_class(self) -> type:
        return self.resolve(self.config)

    @property
    def model_classes(self) -> dict[str, type]:
        """Auto class name -> our class."""
        return {auto: self.resolve(reference) for auto, reference in self.models.items()}

    @property
    def model_class(self) -> type:
        """The class behind the first Auto class named: what a recipe trains unless its task says otherwise."""
        return self.resolve(next(iter(self.models.values())))

    @property
    def image_processor_class(self) -> type | None:
        return self.resolve(self.image_processor) if self.image_processor else None

    @property
    def task_class(self) -> type:
        """What a recipe without `task_type` trains by."""
        return self.resolve(self.task)

    def find_task(self, name: str | None) -> type:
        """The task that a recipe's `task_type` names; the paper's own where it names none."""
        if name is None:
            return self.task_class
        if name not in self.tasks:
            known = ", ".join(self.tasks) or "none"
            raise UserError(
                f"The paper '{self.key}' has no task '{name}'.{nearest(name, self.tasks)} Besides its own it has: {known}."
            )
        return self.resolve(self.tasks[name])


@cache
def papers() -> dict[str, Paper]:
    """Every paper by key, in the order of their publication."""
    found = []
    for entry in sorted(PAPERS_FOLDER.glob("*/__init__.py")):
        found.append(importlib.import_module(f"hf_papers.papers.{entry.parent.name}").PAPER)
    return {paper.key: paper for paper in sorted(found, key=lambda paper: (paper.year, paper.key))}


def find_paper(key: str) -> Paper:
    """The paper of that key. Raises `UserError` naming the nearest one when there is none."""
    known = papers()
    if key not in known:
        raise UserError(f"There is no paper '{key}'.{nearest(key, known)} The papers are: {', '.join(known)}.")
    return known[key]


@cache
def register_all() -> None:
    """Tell transformers' Auto classes about every paper. Imports torch and transformers: seconds, once."""
    import transformers

    for paper in papers().values():
        config_class = paper.config_class
        transformers.AutoConfig.register(config_class.model_type, config_class)
        for auto, model_class in paper.model_classes.items():
            getattr(transformers, auto).register(config_class, model_class)
        if paper.image_processor_class:
            transformers.AutoImageProcessor.register(
                config_class, image_processor_classes={"pil": paper.image_processor_class}
            )

"""What the studies of BERT share: their options, the trainings behind them, and the record of what came out."""

from __future__ import annotations

import json
import math
import re
import shutil
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hf_papers.errors import UserError, nearest
from hf_papers.hub import checkpoints
from hf_papers.papers.bert.glue_bert import find_glue
from hf_papers.papers.bert.glue_start import Start, sentences
from hf_papers.papers.bert.modeling_bert import PaperBertPreTrainedModel
from hf_papers.papers.bert.training_glue import GlueTask
from hf_papers.reports.aggregate import aggregate, write_json
from hf_papers.studies.bert.glue_runs import run_once
from hf_papers.training.recipe import Recipe, coerce, load_recipe
from hf_papers.training.run import command_line, current_commit, describe_hardware, installed_versions
from hf_papers.training.task import Context


CARDS = Path("model_cards/bert-study")
# Names of weights outside the encoder: a study may draw these anew, the encoder itself has to be in the checkpoint.
NOT_THE_ENCODER = r"(?!(.*\.)?layers\.)(?!.*embeddings)"
Summary = dict[str, Any]  # mean, std (None for one value), values


@dataclass
class Study:
    """One study: what was asked for on the command line, and where its runs and its record go.

    `options` are those of the trainings: what a study takes for itself is removed from them.
    """

    name: str
    options: dict[str, str]
    seeds: tuple[int, ...]
    output: Path
    runs: Path
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def from_options(cls, name: str, options: dict[str, str], seeds: str = "0,1,2") -> Study:
        """`options` as typed; `seeds` where none are given."""
        options = dict(options)
        numbers = tuple(coerce(options.pop("seeds", options.pop("seed", seeds)), list[int], "seeds"))
        if not numbers:
            raise UserError("--seeds needs at least one number, e.g. --seeds 0,1,2.")
        options.pop("seed", None)
        output = Path(options.pop("output", str(CARDS / name)))
        return cls(name, options, numbers, output, Path(options.pop("output_dir", f"runs/bert-study/{name}")))

    def take(self, name: str, kind: Any, default: Any) -> Any:
        """The option of that name, which is the study's own."""
        return coerce(self.options.pop(name), kind, name) if name in self.options else default

    def refuse_rest(self) -> None:
        """For a study that trains nothing: what is left over has no meaning."""
        known = ("task_name", "model_name_or_path", "tokenizer_name", "max_length", "dataset", "test_split")
        for name in self.options:
            if name not in known:
                raise UserError(f"The study {self.name} has no option --{name}.{nearest(name, known)}")

    @property
    def start(self) -> Start:
        """The checkpoint that is studied."""
        name = self.options.get("model_name_or_path")
        if name is None:
            raise UserError("Which checkpoint is to be studied? Add --model_name_or_path with a folder or a Hub id.")
        return Start(name)

    @cached_property
    def task(self) -> GlueTask:
        """The task under the study's options, for its rows and its tokenizer; nothing is trained by it."""
        return GlueTask(self.recipe("unused", self.seeds[0]))

    def recipe(self, label: str, seed: int, **options: Any) -> Recipe:
        """The recipe of one training; `options` over those of the command line."""
        folder = self.runs / label / f"seed{seed}"
        given = {name: str(value) for name, value in options.items() if value is not None}
        defaults = {"report_to": "none", "task_name": "sst2"}
        if {"train_file", "dataset"} & set(self.options):
            del defaults["task_name"]
        fixed = {"seed": str(seed), "output_dir": str(folder)}
        return load_recipe("bert", "glue", {**defaults, **self.options, **given, **fixed})

    def train(self, label: str, **options: Any) -> list[Path]:
        """Folders of finished trainings, one a seed. What has been trained before is left alone."""
        folders = []
        for seed in self.seeds:
            folder = run_once(self.recipe(label, seed, **options))
            # A finished run needs none, and the runs of a study are many.
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            folders.append(folder)
        return folders

    def scored_split(self) -> str:
        """The split whose labels are public: MNLI's matched one."""
        task = self.task
        split = task.data.test_split
        return task.spec.scored[""] if task.spec is not None and split == "validation" else split

    def scored_rows(self, limit: int | None = None) -> list[dict[str, Any]]:
        """The first rows that a model is scored on, held out from every training here."""
        rows = []
        for row in self.task.source.rows(self.scored_split()):
            if limit is not None and len(rows) == limit:
                break
            rows.append(row)
        return rows

    def write(self, results: dict[str, Any], headline: Sequence[dict[str, Any]], figures: dict[str, Path]) -> Path:
        """`results.json` in the output folder: `results` between what was studied and how it was made.

        `headline` are the numbers worth a row in the paper's README: `what` it is, and a `Summary`.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        record = {
            "paper": "bert",
            "study": self.name,
            "seeds": list(self.seeds),
            **results,
            "headline": list(headline),
            "figures": {caption: path.relative_to(self.output).as_posix() for caption, path in figures.items()},
            "wall_clock_s": round(time.perf_counter() - self.started, 1),
            "hardware": describe_hardware(device(), 1),
            "versions": installed_versions(),
            "commit": current_commit(),
            "command": command_line(),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        }
        path = self.output / "results.json"
        write_json(record, path)
        return path


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def context(seed: int = 0) -> Context:
    """This process alone."""
    return Context(device(), rank=0, world_size=1, seed=seed)


def load_start(start: Start, model_class: type[PaperBertPreTrainedModel]) -> PaperBertPreTrainedModel:
    """The checkpoint as a model of this class, in eval mode; `missing_from_reference` names what it has no weights for."""
    start.options(())  # refuses another architecture
    if start.is_ours:
        model, drawn = checkpoints.load_start(model_class, start.folder, NOT_THE_ENCODER)
        model.missing_from_reference = tuple(drawn)
    else:
        with sentences():
            model = model_class.from_reference(str(start.folder))
        if encoder := [name for name in model.missing_from_reference if not re.match(NOT_THE_ENCODER, name)]:
            raise UserError(f"The checkpoint {start.name} lacks weights of the encoder: {', '.join(encoder[:3])}.")
        checkpoints.check_finite(model, start.folder)
    return model.eval().to(device())


def summarise(values: Iterable[float]) -> Summary:
    """Mean, sample standard deviation (None for one value) and the values themselves."""
    numbers = [float(value) for value in values]
    if not numbers or not all(map(math.isfinite, numbers)):
        raise UserError(f"There is no mean of {numbers}: every number of a study has to be finite.")
    spread = statistics.stdev(numbers) if len(numbers) > 1 else None
    return {"mean": statistics.fmean(numbers), "std": spread, "values": numbers}


def summarise_runs(folders: Sequence[Path]) -> dict[str, Any]:
    """What a record says of runs that differ in their seeds alone: metrics over seeds, what they learnt from, their cost."""
    results = aggregate(folders)
    first = read_run(folders[0])
    return {
        "seeds": results["seeds"],
        "metrics": results["metrics"]["test"],
        "train_rows": first.get("task", {}).get("train_rows"),
        "steps": results["steps"],
        "wall_clock_s": results["wall_clock_s"],
        "hardware": results["hardware"],
        "commit": results["commit"],
        "command": results["command"],
    }


def read_run(folder: Path) -> dict[str, Any]:
    """The results of a finished run."""
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a finished run: it holds no results.json.")
    return json.loads(path.read_text(encoding="utf-8"))


def describe_subject(study: Study) -> dict[str, Any]:
    """The task and the start, for the record."""
    task = study.task
    title = find_glue(task.options.task_name).title if task.options.task_name else task.source.name
    return {
        "task_name": task.options.task_name,
        "task": title,
        "metric": task.spec.metrics[0] if task.spec is not None else ("accuracy" if task.labels else "spearmanr"),
        "scored_on": study.scored_split(),
        "start": study.start.describe(),
    }


def need_classes(study: Study) -> None:
    """Refuse a regression where classes are needed."""
    if not study.task.labels:
        raise UserError(
            f"The study {study.name} needs classes, and this task asks for a number: try --task_name sst2."
        )

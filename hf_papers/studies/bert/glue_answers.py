"""Answers for test sets whose labels are hidden: the files that gluebenchmark.com accepts."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_papers.data import open_source
from hf_papers.data.memory import join
from hf_papers.errors import UserError
from hf_papers.papers.bert.glue_bert import GLUE, GlueSet
from hf_papers.papers.bert.training_glue import GlueTask
from hf_papers.training.finish import load_run
from hf_papers.training.task import Context


FILES = [name for spec in GLUE.values() for name in spec.hidden]
DIAGNOSTIC = "AX.tsv"
ROWS_AT_ONCE = 256


def write_answers(run: Path, folder: Path) -> list[Path]:
    """The answers of a finished run to its task's test set, as TSV files in `folder`."""
    task, model = load_run(run)
    if not isinstance(task, GlueTask):
        raise UserError(f"{run} is no fine-tuning: its recipe has no `task_type: glue`.")
    device = torch.device("cuda" if torch.cuda.is_available() and not task.arguments.use_cpu else "cpu")
    context = Context(device, rank=0, world_size=1, seed=task.arguments.seed)
    model.to(device)
    folder.mkdir(parents=True, exist_ok=True)
    if task.spec is None or task.options.files:
        return [_answer_own(task, model, folder, context)]
    written = []
    for name, (config, split) in task.spec.hidden.items():
        try:
            source = open_source(replace(task.data, dataset_config=config))
            answers = answer(task, model, source, split, context)
        except UserError as error:
            if name != DIAGNOSTIC:
                raise
            print(f"{DIAGNOSTIC} is left out: {error}")
            continue
        written.append(write_tsv(folder / name, answer_texts(task.spec, answers)))
    return written


def _answer_own(task: GlueTask, model: Any, folder: Path, context: Context) -> Path:
    if "test" not in task.source.splits():
        raise UserError("There is nothing to answer: name a file without labels by --test_file.")
    answers = answer(task, model, task.source, "test", context)
    if model.config.problem_type == "regression":
        texts = [f"{value:.3f}" for value in answers]
    else:
        texts = [str(model.config.id2label[int(number)]) for number in answers]
    return write_tsv(folder / "predictions.tsv", texts)


@torch.no_grad()
def answer(task: GlueTask, model: Any, source: Any, split: str, context: Context) -> np.ndarray:
    """Class numbers, or numbers of a regression, (rows,) of a split whose labels need not be there."""
    rows = list(source.rows(split))
    parts = [task.encoder(rows[start : start + ROWS_AT_ONCE]) for start in range(0, len(rows), ROWS_AT_ONCE)]
    return task.answers(model, task.logits(model, join(parts), context))


def answer_texts(spec: GlueSet, answers: Sequence[Any]) -> list[str]:
    """Answers as GLUE's files write them: class names for inference, a score from 0 to 5 for STS-B, else class numbers."""
    if spec.is_regression:
        return [f"{min(max(float(value), 0.0), 5.0):.3f}" for value in answers]
    return [spec.labels[int(number)] if spec.writes_names else str(int(number)) for number in answers]


def write_tsv(path: Path, answers: Iterable[str]) -> Path:
    """A header, then a line for each row of the test set in its order: its number from 0, and the answer."""
    lines = ["index\tprediction", *(f"{number}\t{text}" for number, text in enumerate(answers))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_submission(folder: Path) -> tuple[Path, list[str]]:
    """All TSV files of `folder` as the one zip that gluebenchmark.com takes, and the names of those it still lacks."""
    archive = folder / "submission.zip"
    present = [name for name in FILES if (folder / name).is_file()]
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for name in present:
            target.write(folder / name, name)
    return archive, [name for name in FILES if name not in present]

"""How much of a task a pre-trained BERT needs to be shown: zero-shot, few-shot and all examples; frozen or fine-tuned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hf_papers.errors import UserError
from hf_papers.metrics.glue import measure
from hf_papers.reports.curves import COLOURS, save_picture, style_axes
from hf_papers.studies.bert.cloze import ClozeJudge, NoAnswer, find_cloze, load_judge
from hf_papers.studies.bert.runs import (
    Study,
    describe_subject,
    need_classes,
    read_run,
    summarise,
    summarise_runs,
)
from hf_papers.training.recipe import difference, load_run_recipe


FEW = "8,32,128"
FEW_STEPS = 200  # three epochs of eight examples would be three steps: too few to learn anything (2006.04884)
FEW_BATCH = 8
FROZEN_LEARNING_RATE = 1e-3  # for a last layer alone; what suits all weights together hardly moves it


# ------------------------------------------------------------------------------------------------------- few-shot


def few_shot_study(study: Study) -> Path:
    """Zero-shot, a few examples, all of them: the curve over seeds; returns the record."""
    sizes = study.take("examples", list[int], FEW.split(","))
    steps = study.take("few_shot_steps", int, FEW_STEPS)
    batch = study.take("few_shot_batch_size", int, FEW_BATCH)
    limit = study.take("max_train_rows", int | None, None)
    full_runs = study.take("full_runs", list[str], None)
    pattern = study.take("pattern", str | None, None)
    words = study.take("label_words", str | None, None)
    need_classes(study)
    rows = study.task.source.num_rows(study.task.data.train_split)
    sizes = [int(size) for size in sizes if rows is None or int(size) < rows]
    zero = zero_shot(study, pattern, words)
    points = []
    for size in sizes:
        options = {"train_examples": size, "max_steps": steps, "per_device_train_batch_size": min(batch, size)}
        points.append({"examples": size, **summarise_runs(study.train(f"examples{size}", **options))})
    folders = read_full_runs(study, full_runs) if full_runs else train_full(study, limit, rows)
    full = summarise_runs(folders)
    points.append({"examples": full["train_rows"], "full": True, **full})
    subject = describe_subject(study)
    majority = majority_score(study)
    caption = f"{subject['task']}: {subject['metric']} by the number of examples, mean ± std over seeds"
    figure = draw_few_shot(zero, points, majority, subject, study.output / "few_shot.png")
    return study.write(
        {
            **subject,
            "majority": majority,
            "zero_shot": zero,
            "points": points,
            "note": "Each seed draws its own examples, as many of each class, and its own last layer. All "
            "weights are trained.",
        },
        _few_shot_headline(zero, points, subject["metric"]),
        {caption: figure},
    )


def zero_shot(study: Study, pattern: str | None, words: str | None) -> dict[str, Any]:
    """What the start answers without having learnt the task: its metrics, or `not_asked`, the reason why it cannot."""
    task = study.task
    try:
        cloze = find_cloze(task.options.task_name, pattern, words, len(task.labels))
        judge = ClozeJudge(load_judge(study.start), task.tokenizer, cloze, task.options.max_length)
    except NoAnswer as reason:
        return {"not_asked": str(reason)}
    rows = study.scored_rows()
    texts = [tuple(row[column] for column in task.encoder.columns) for row in rows]
    answers, calibrated = judge.answer(texts)
    right = labels_of(study, rows)
    names = task.spec.metrics if task.spec is not None else ("accuracy", "macro_f1")
    return {
        "pattern": cloze.pattern,
        "words": dict(zip(task.labels, judge.used_words(), strict=True)),
        "metrics": measure(names, answers.numpy(), right),
        "calibrated_metrics": measure(names, calibrated.numpy(), right),
        "rows": len(rows),
    }


def labels_of(study: Study, rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """Class numbers (rows,)."""
    return study.task.preprocess(list(rows))["labels"].numpy()


def majority_score(study: Study) -> float:
    """The score of always answering the class that is most frequent in the rows that are scored."""
    labels = labels_of(study, study.scored_rows())
    frequent, _ = Counter(labels.tolist()).most_common(1)[0]
    names = study.task.spec.metrics if study.task.spec is not None else ("accuracy",)
    return measure(names, np.full_like(labels, frequent), labels)["score"]


def train_full(study: Study, limit: int | None, rows: int | None) -> list[Path]:
    """Fine-tuned on everything, or on `limit` rows."""
    if limit is not None and limit < 1:
        raise UserError(f"--max_train_rows must be at least 1, not {limit}.")
    limited = limit is not None and (rows is None or limit < rows)
    return study.train(f"rows{limit}" if limited else "full", train_examples=limit if limited else None)


def read_full_runs(study: Study, names: Sequence[str]) -> list[Path]:
    """Finished runs of run_glue.py of the same task from the same start, instead of training them again."""
    folders = [Path(name) for name in names]
    wanted = study.recipe("full", study.seeds[0])
    for folder in folders:
        read_run(folder)
        theirs = load_run_recipe(folder)
        for name in ("task_name", "model_name_or_path"):
            ours, found = getattr(wanted.task, name), getattr(theirs.task, name, None)
            if ours != found:
                raise UserError(
                    f"The run in {folder} has {name} {found} and this study {ours}: they do not belong together. "
                    f"What differs in all: {'; '.join(difference(theirs, wanted))}."
                )
    return folders


def _few_shot_headline(zero: dict[str, Any], points: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    headline = []
    if "metrics" in zero:
        headline.append({"what": f"{metric}, no example", **summarise([zero["metrics"]["score"]])})
        calibrated = summarise([zero["calibrated_metrics"]["score"]])
        headline.append({"what": f"{metric}, no example, calibrated", **calibrated})
    for point in points:
        headline.append({"what": f"{metric}, {point['examples']:,} examples", **point["metrics"]["score"]})
    return headline


def draw_few_shot(
    zero: dict[str, Any], points: list[dict[str, Any]], majority: float, subject: dict[str, Any], path: Path
) -> Path:
    """Score over the number of examples, logarithmic; zero-shot stands left of the curve."""
    sizes = [point["examples"] for point in points]
    means = np.array([point["metrics"]["score"]["mean"] for point in points])
    spread = np.array([point["metrics"]["score"]["std"] or 0.0 for point in points])
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.errorbar(sizes, means, spread, color=COLOURS[0], marker="o", capsize=4, label="fine-tuned, mean ± std")
    for point in points:
        values = point["metrics"]["score"]["values"]
        axes.plot([point["examples"]] * len(values), values, ".", color=COLOURS[0], alpha=0.4, markersize=5)
    axes.axhline(majority, color="#94a3b8", linestyle=":", label="always the most frequent class")
    axes.set_xscale("log")
    ticks, names = list(sizes), [f"{size:,}" for size in sizes]
    left = min(sizes) / 4
    if "metrics" in zero:
        axes.plot(left, zero["metrics"]["score"], "D", color=COLOURS[1], label="zero-shot, masked words")
        calibrated = zero["calibrated_metrics"]["score"]
        axes.plot(left, calibrated, "D", color=COLOURS[1], fillstyle="none", label="zero-shot, calibrated")
        ticks, names = [left, *ticks], ["0", *names]
    else:
        axes.annotate(
            f"no zero-shot: {zero['not_asked']}", (0.01, 0.01), xycoords="axes fraction", fontsize=7, color="#475569"
        )
    style_axes(axes, f"{subject['task']}, {subject['metric'].replace('_', ' ')} on {subject['scored_on']}")
    axes.minorticks_off()
    axes.set_xticks(ticks, names, fontsize=8)
    axes.set_xlabel("examples of the task", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    return save_picture(figure, path)


# --------------------------------------------------------------------------------------------------------- frozen


def frozen_study(study: Study) -> Path:
    """The same start and the same rows, every weight trained or the last layer alone; returns the record."""
    limit = study.take("max_train_rows", int | None, None)
    rate = study.take("frozen_learning_rate", float, FROZEN_LEARNING_RATE)
    epochs = study.take("frozen_epochs", float | None, None)
    rows = study.task.train_rows()
    if limit is not None and (rows is None or limit < rows):
        study.options["train_examples"] = str(limit)
    ways = {
        "fine-tuned": summarise_runs(study.train("fine-tuned")),
        "frozen": summarise_runs(
            study.train("frozen", freeze_encoder=True, learning_rate=rate, num_train_epochs=epochs)
        ),
    }
    subject = describe_subject(study)
    differences = paired_differences(ways["fine-tuned"], ways["frozen"])
    caption = f"{subject['task']}: every weight fine-tuned, or the last layer alone on frozen features"
    figure = draw_bars(
        {name: way["metrics"]["score"] for name, way in ways.items()}, subject, study.output / "frozen.png"
    )
    return study.write(
        {
            **subject,
            "ways": ways,
            "difference": differences,
            "note": f"Frozen features are C, the pooled [CLS], without dropout; learning rate {rate:g} for the last layer "
            "alone. Section 5.3 and table 7 of the paper ask the same of names of people and places, with a BiLSTM on top.",
        },
        [{"what": f"{subject['metric']}, {name}", **way["metrics"]["score"]} for name, way in ways.items()],
        {caption: figure},
    )


def paired_differences(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Score of the first minus that of the second, seed by seed."""
    pairs = zip(first["metrics"]["score"]["values"], second["metrics"]["score"]["values"], strict=True)
    return summarise(one - other for one, other in pairs)


def draw_bars(scores: dict[str, dict[str, Any]], subject: dict[str, Any], path: Path) -> Path:
    """A bar per mean and a dot per seed."""
    figure = Figure(figsize=(6.4, 0.55 * len(scores) + 1.3), layout="constrained")
    axes = figure.add_subplot()
    for row, summary in enumerate(scores.values()):
        colour = COLOURS[row % len(COLOURS)]
        axes.barh(row, summary["mean"], color=colour, alpha=0.35, height=0.6)
        axes.plot(summary["values"], [row] * len(summary["values"]), "o", color=colour, markersize=4)
    style_axes(axes, f"{subject['task']}, {subject['metric'].replace('_', ' ')} on {subject['scored_on']}")
    axes.set_xlabel("")
    axes.set_yticks(range(len(scores)), list(scores), fontsize=9)
    axes.invert_yaxis()
    return save_picture(figure, path)

"""Learning curves from `metrics.jsonl`: the mean over seeds as a line, ± one standard deviation as a band."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from hf_papers.errors import UserError


MAX_BYTES = 200_000  # of one picture: a repository is cloned by everybody
COLOURS = ("#4f46e5", "#ea580c", "#059669", "#db2777", "#0284c7", "#a16207", "#475569", "#7c3aed")

Curve = tuple[list[int], list[float], list[float]]  # steps, means, standard deviations


def read_metrics(run: Path | str) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl, in order. A last line cut off by a crash is left out; other damage is an error."""
    path = Path(run) / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{run} holds no metrics.jsonl: it is not a run, or it never logged a step.")
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise UserError(f"{path} is damaged in line {number}: {error}.") from error
    return records


def metric_series(run: Path | str, name: str) -> dict[int, float]:
    """Step -> value of one metric; the later line wins where a resumed run logged a step again."""
    return {int(record["step"]): float(record[name]) for record in read_metrics(run) if _is_number(record.get(name))}


def mean_curve(runs: Iterable[Path | str], name: str) -> Curve:
    """Mean and sample standard deviation over runs, at the steps that every run has logged."""
    series = [metric_series(run, name) for run in runs]
    steps = sorted(set.intersection(*(set(one) for one in series))) if series else []
    values = [[one[step] for one in series] for step in steps]
    means = [statistics.fmean(at_step) for at_step in values]
    deviations = [statistics.stdev(at_step) if len(at_step) > 1 else 0.0 for at_step in values]
    return steps, means, deviations


def metric_names(run: Path | str) -> list[str]:
    """Every metric of a run that took more than one finite value, training first, without the clock."""
    values: dict[str, set[float]] = {}
    for record in read_metrics(run):
        for name, value in record.items():
            if name not in ("step", "epoch", "wall_clock_s") and _is_number(value):
                values.setdefault(name, set()).add(value)
    names = [name for name, found in values.items() if len(found) > 1]
    return sorted(names, key=lambda name: (not name.startswith("train/"), "learning_rate" in name))


def learning_curves(
    runs: Iterable[Path | str], folder: Path | str, names: Iterable[str] | None = None
) -> dict[str, Path]:
    """Draw up to six metrics over the steps into `folder/learning_curve.png`; returns caption -> picture.

    Without `names`: what the runs validated on, and the losses they trained on. Runs whose log was not kept are left out.
    """
    runs = [Path(run) for run in runs if (Path(run) / "metrics.jsonl").is_file()]
    if not runs:
        return {}
    chosen = list(names) if names is not None else _telling_metrics(metric_names(runs[0]))
    if not chosen:
        return {}
    columns = min(len(chosen), 3 if len(chosen) > 4 else 2)
    rows = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), layout="constrained")
    for index, name in enumerate(chosen):
        axes = figure.add_subplot(rows, columns, index + 1)
        draw_curve(axes, mean_curve(runs, name), COLOURS[0 if name.startswith("train/") else 1])
        style_axes(axes, name)
    path = save_picture(figure, Path(folder) / "learning_curve.png")
    seeds = f"mean ± std of {len(runs)} seeds" if len(runs) > 1 else "one seed"
    return {f"Learning curves, {seeds}": path}


def comparison_curves(groups: Mapping[str, Iterable[Path | str]], name: str, path: Path | str) -> Path:
    """One metric of several groups of runs in one picture: the figure of an ablation."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for index, (label, runs) in enumerate(groups.items()):
        curve = mean_curve(list(runs), name)
        if not curve[0]:
            raise UserError(
                f"The runs of '{label}' never logged '{name}' at a common step, so there is no curve to draw."
            )
        draw_curve(axes, curve, COLOURS[index % len(COLOURS)], label)
    style_axes(axes, name)
    axes.legend(frameon=False, fontsize=9)
    return save_picture(figure, Path(path))


def draw_curve(axes: Axes, curve: Curve, colour: str, label: str | None = None) -> None:
    """A mean as a line and ± one standard deviation as a band."""
    steps, means, deviations = curve
    axes.plot(
        steps, means, color=colour, linewidth=1.6, label=label, marker="o" if len(steps) < 15 else None, markersize=3
    )
    if any(deviations):
        low = [mean - deviation for mean, deviation in zip(means, deviations, strict=True)]
        high = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)


def style_axes(axes: Axes, title: str) -> None:
    axes.set_title(title.replace("_", " "), fontsize=10, loc="left")
    axes.set_xlabel("step", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save_picture(figure: Figure, path: Path) -> Path:
    """Save as PNG of at most 200 kB, with fewer dots per inch where it needs to; no date inside, so that bytes repeat."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for dpi in (130, 100, 80, 60):
        figure.savefig(path, dpi=dpi, metadata={"Software": None})
        if path.stat().st_size <= MAX_BYTES:
            return path
    raise UserError(f"{path} stays above {MAX_BYTES // 1000} kB; draw fewer curves into one picture.")


def shrink_picture(source: Path, target: Path) -> Path:
    """Copy a picture, reducing its colours and then its size until it is at most 200 kB; a film becomes its first frame."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.stat().st_size <= MAX_BYTES:
        target.write_bytes(source.read_bytes())
        return target
    target = target.with_suffix(".png")
    with Image.open(source) as opened:
        picture = opened.convert("RGB")
    while True:
        picture.quantize(128).save(target, optimize=True)
        if target.stat().st_size <= MAX_BYTES:
            return target
        picture = picture.resize((picture.width * 4 // 5, picture.height * 4 // 5), Image.Resampling.LANCZOS)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _telling_metrics(names: list[str]) -> list[str]:
    """At most six of the metrics: losses of the training first, then everything that was validated."""
    losses = [name for name in names if name.startswith("train/") and "loss" in name][:2]
    validated = [name for name in names if name.startswith("validation/")]
    others = [name for name in names if name not in losses and name not in validated and "learning_rate" not in name]
    return (losses + validated + (others if not losses else []))[:6]

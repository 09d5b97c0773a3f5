"""Several aggregated results side by side: what an ablation says, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from hf_papers.errors import UserError, nearest
from hf_papers.reports.aggregate import aggregate, format_metric, recipe_values, write_json
from hf_papers.reports.curves import COLOURS, comparison_curves, save_picture, style_axes


def compare(groups: Mapping[str, dict[str, Any]], metrics: Iterable[str] | None = None, split: str = "test") -> str:
    """A Markdown table of aggregates: a row per group, a column per metric (mean ± std), and the number of seeds.

    Without `metrics`: those that every group has. Raises `UserError` for groups of different papers or without the metric.
    """
    chosen = _metrics_in_common(groups, metrics, split)
    lines = [
        "| variant | " + " | ".join(name.replace("_", " ") for name in chosen) + " | seeds |",
        "| --- | " + " | ".join("---:" for _ in chosen) + " | ---: |",
    ]
    for label, result in groups.items():
        cells = [format_metric(result["metrics"][split][name]) for name in chosen]
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {len(result['seeds'])} |")
    return "\n".join(lines)


def write_comparison(
    groups: Mapping[str, Iterable[Path | str]],
    folder: Path | str,
    *,
    name: str = "ablation",
    metrics: Iterable[str] | None = None,
    curve: str | None = None,
    split: str = "test",
) -> dict[str, Any]:
    """Aggregate each group of runs and write `<name>.json`, `<name>.md`, `<name>.png` and, for a `curve` metric of
    metrics.jsonl, `<name>_curve.png` into a folder; returns what the JSON holds."""
    runs = {label: [Path(run) for run in group] for label, group in groups.items()}
    results = {label: aggregate(group) for label, group in runs.items()}
    chosen = _metrics_in_common(results, metrics, split)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    comparison = {
        "split": split,
        "metrics": chosen,
        "differences": recipe_differences(runs),
        "groups": results,
    }
    write_json(comparison, target / f"{name}.json")
    (target / f"{name}.md").write_text(compare(results, chosen, split) + "\n", encoding="utf-8")
    draw_comparison(results, chosen, split, target / f"{name}.png")
    if curve is not None:
        comparison_curves(runs, curve, target / f"{name}_curve.png")
    return comparison


def recipe_differences(groups: Mapping[str, list[Path]]) -> dict[str, dict[str, Any]]:
    """Option -> {group: value} for every option of the recipes in which the groups differ, seeds and paths left out."""
    values = {label: recipe_values(runs[0]) for label, runs in groups.items()}
    options = dict.fromkeys(option for recipe in values.values() for option in recipe)
    table = {option: {label: recipe.get(option) for label, recipe in values.items()} for option in options}
    return {
        option: row for option, row in table.items() if any(value != row[next(iter(row))] for value in row.values())
    }


def draw_comparison(groups: Mapping[str, dict[str, Any]], metrics: list[str], split: str, path: Path) -> Path:
    """A panel per metric: every seed as a dot, the mean as a bar, so that no spread hides behind a mean."""
    shown = metrics[:4]
    figure = Figure(figsize=(max(4.0, 3.4 * len(shown)), 0.5 * len(groups) + 1.3), layout="constrained")
    labels = list(groups)
    for index, metric in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), index + 1)
        for row, label in enumerate(labels):
            summary = groups[label]["metrics"][split][metric]
            colour = COLOURS[row % len(COLOURS)]
            axes.barh(row, summary["mean"], color=colour, alpha=0.35, height=0.6)
            axes.plot(summary["values"], [row] * len(summary["values"]), "o", color=colour, markersize=4)
        style_axes(axes, f"{split} {metric}")
        axes.set_xlabel("")
        axes.set_yticks(range(len(labels)), labels if index == 0 else [""] * len(labels), fontsize=9)
        axes.invert_yaxis()
    return save_picture(figure, path)


def _metrics_in_common(groups: Mapping[str, dict[str, Any]], metrics: Iterable[str] | None, split: str) -> list[str]:
    if len(groups) < 2:
        raise UserError("A comparison needs at least two groups of runs.")
    if len({result["paper"] for result in groups.values()}) > 1:
        raise UserError(f"These groups are of different papers ({', '.join(r['paper'] for r in groups.values())}).")
    available = {label: result["metrics"].get(split, {}) for label, result in groups.items()}
    first = next(iter(available.values()))
    common = [name for name in first if all(name in names for names in available.values())]
    if metrics is None:
        if not common:
            raise UserError(f"No {split} metric was measured in every group, so they cannot be compared.")
        return common
    chosen = list(metrics)
    for name in chosen:
        for label, names in available.items():
            if name not in names:
                raise UserError(f"The group '{label}' has no {split} metric '{name}'.{nearest(name, names)}")
    return chosen

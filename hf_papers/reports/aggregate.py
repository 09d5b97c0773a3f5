"""Several runs of one recipe, told apart by their seeds alone, as one result: mean and standard deviation.

Every seed counts: nothing here picks the best one, and runs whose recipes differ in anything else are refused.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from hf_papers.errors import UserError
from hf_papers.training.arguments import TrainingArguments
from hf_papers.training.checkpoint import write_folder


# Kinds of picture that a report carries on.
PICTURES = (".png", ".gif")
# What a report keeps of each run, in seeds/<seed>/: enough to be reported again together with later seeds.
KEPT = ("results.json", "recipe.yaml", "metrics.jsonl", "config.json")


def aggregate(runs: Iterable[Path | str]) -> dict[str, Any]:
    """The results of finished runs over their seeds. A report's folder stands for the runs that it was made of.

    Returns a dict of plain values, ready for JSON:
    `paper`, `recipe` (its name), `seeds`, `runs` (per run: seed, metrics, wall_clock_s, steps), `metrics` (per split and
    metric: mean, std, values in the order of the seeds; std is the sample's, n - 1, and None for one seed), `expected`
    (the recipe's band with our mean and whether it lies within), `reference` (the published numbers that the recipe
    names), `task` (what the task says of itself, where it does; as text where seeds differ in it), `wall_clock_s`
    (mean per run), `hardware`, `versions`, `commit`, `command`.

    Raises `UserError` for runs that are unfinished, have the same seed twice, or come from different recipes.
    """
    folders = runs_of(runs)
    if not folders:
        raise UserError("There is nothing to report: give at least one run folder.")
    loaded = sorted(((_read_run(folder), folder) for folder in folders), key=lambda pair: pair[0]["seed"])
    results = [result for result, _ in loaded]
    ordered = [folder for _, folder in loaded]
    _refuse_mixed(ordered, results)
    recipe = _read_recipe(ordered[0])
    metrics = _metrics_over_seeds(ordered, results)
    return {
        "paper": results[0]["paper"],
        "recipe": results[0]["recipe"],
        "seeds": [result["seed"] for result in results],
        "runs": [{key: result.get(key) for key in ("seed", "steps", "wall_clock_s", "metrics")} for result in results],
        "metrics": metrics,
        "expected": _judge(recipe.get("expected") or {}, metrics),
        "reference": recipe.get("reference") or {},
        **({"task": _agreed(results, "task")} if any(result.get("task") for result in results) else {}),
        "wall_clock_s": statistics.fmean(result["wall_clock_s"] for result in results),
        "hardware": _agreed(results, "hardware"),
        "steps": _agreed(results, "steps"),
        "parameters": _agreed(results, "parameters"),
        "versions": _versions(results),
        "commit": _agreed(results, "commit"),
        "command": results[0].get("command"),
    }


def format_metric(summary: dict[str, Any]) -> str:
    """`mean ± std` of one aggregated metric, with the digits that its spread justifies; the mean alone for one seed."""
    mean, std = summary["mean"], summary["std"]
    if std is None:
        return f"{mean:.4g}" if abs(mean) < 1000 else f"{mean:,.1f}"
    if std == 0:
        return f"{mean:.4g} ± 0" if abs(mean) < 1000 else f"{mean:,.1f} ± 0"
    digits = max(0, 1 - math.floor(math.log10(std)))
    digits = min(digits, max(0, 4 - math.floor(math.log10(abs(mean) or 1))))
    return f"{mean:,.{digits}f} ± {std:,.{digits}f}"


def write_report(runs: Iterable[Path | str], folder: Path | str, paper: Any = None) -> dict[str, Any]:
    """Aggregate runs and write `results.json`, `README.md` (the card) and `figures/` into a folder; returns the results.

    The pictures of the first seed's run are copied beside the learning curve, as they show what the model does. The records
    of the runs are kept in `seeds/`: `write_report([folder, run], folder)` adds a seed, from another machine if need be.
    """
    from hf_papers.hub.cards import render_card
    from hf_papers.registry import find_paper
    from hf_papers.reports.curves import learning_curves, shrink_picture

    folders = runs_of(runs)
    results = aggregate(folders)
    target = Path(folder)
    (target / "figures").mkdir(parents=True, exist_ok=True)
    figures = learning_curves(folders, target / "figures")
    first = min(folders, key=lambda run: _read_run(run)["seed"])
    for caption, source in _run_figures(first).items():
        figures[f"{caption} (seed {results['seeds'][0]})"] = shrink_picture(source, target / "figures" / source.name)
    results["figures"] = {caption: path.relative_to(target).as_posix() for caption, path in figures.items()}
    _keep(folders, target / "seeds")
    write_json(results, target / "results.json")
    card = render_card(paper or find_paper(results["paper"]), _read_config(first), _read_recipe(first), results)
    (target / "README.md").write_text(card, encoding="utf-8")
    return results


def runs_of(folders: Iterable[Path | str]) -> list[Path]:
    """The folders of runs, those of a report being the ones that it keeps."""
    found: list[Path] = []
    for folder in map(Path, folders):
        kept = sorted((folder / "seeds").iterdir()) if (folder / "seeds").is_dir() else [folder]
        found.extend(kept)
    return found


def _keep(runs: Iterable[Path], folder: Path) -> None:
    """The records of runs, without their weights, each under the number of its seed, and nothing of an older report."""

    def copy_records(fresh: Path) -> None:
        for run in runs:
            kept = fresh / str(_read_run(run)["seed"])
            kept.mkdir()
            for name in KEPT:
                if (run / name).is_file():
                    shutil.copyfile(run / name, kept / name)

    write_folder(folder, copy_records)


def _read_config(run: Path) -> dict[str, Any] | None:
    path = run / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_json(values: dict[str, Any], path: Path) -> None:
    """Readable, sorted by nothing (the order means something), and never NaN, which is not JSON."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _read_run(folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(
            f"{folder} is not a finished run: it holds no results.json. Finish it with `hf-papers train … --resume auto`, "
            "or leave it out."
        )
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged: {error}. Run `hf-papers evaluate {folder}` to write it anew.") from error
    missing = [key for key in ("paper", "recipe", "seed", "metrics", "wall_clock_s") if key not in result]
    if missing:
        raise UserError(f"{path} says nothing of {', '.join(missing)}: it was not written by the trainer.")
    return result


def _read_recipe(folder: Path) -> dict[str, Any]:
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise UserError(f"{folder} holds no recipe.yaml, so nobody can tell what its numbers belong to.")
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def _run_figures(folder: Path) -> dict[str, Path]:
    """Caption -> picture of one run, as its results.json lists them; a report that keeps a run has its pictures."""
    listed = _read_run(folder).get("figures") or {}
    home = folder.parent.parent if folder.parent.name == "seeds" else folder
    found = {caption: home / name for caption, name in listed.items()}
    found = {caption: path if path.is_file() else path.with_suffix(".png") for caption, path in found.items()}
    return {caption: path for caption, path in found.items() if path.is_file() and path.suffix in PICTURES}


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def recipe_values(folder: Path) -> dict[str, Any]:
    """Option -> value of a run's recipe, as `section.option`, without the seed and without what changes only where a
    result lands (paths, trackers, logging) or how it is described."""
    harmless = {
        f"training.{entry.name}"
        for entry in dataclasses.fields(TrainingArguments)
        if entry.name == "seed" or not entry.metadata.get("affects_result", True)
    }
    recipe = {
        key: value for key, value in _read_recipe(folder).items() if isinstance(value, dict) and key != "reference"
    }
    return {key: value for key, value in flatten(recipe).items() if key not in harmless}


def _refuse_mixed(folders: list[Path], results: list[dict[str, Any]]) -> None:
    first_folder, first_result = folders[0], results[0]
    first_values = recipe_values(first_folder)
    seen: dict[int, Path] = {}
    for folder, result in zip(folders, results, strict=True):
        for key in ("paper", "recipe"):
            if result[key] != first_result[key]:
                raise UserError(
                    f"These runs do not belong together: the {key} is '{first_result[key]}' in {first_folder} and "
                    f"'{result[key]}' in {folder}. Report them apart."
                )
        values = recipe_values(folder)
        for key in first_values | values:
            ours, theirs = first_values.get(key, "not set"), values.get(key, "not set")
            if ours != theirs:
                raise UserError(
                    f"These runs do not belong together: {key} is {ours} in {first_folder} and {theirs} in {folder}. "
                    "Runs of one report may differ in their seed only; use a comparison to set them side by side."
                )
        if result["seed"] in seen:
            raise UserError(
                f"{seen[result['seed']]} and {folder} have the same seed {result['seed']}: counting it twice would make the "
                "spread look smaller than it is. Leave one out."
            )
        seen[result["seed"]] = folder


def _metrics_over_seeds(folders: list[Path], results: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for split in results[0]["metrics"]:
        summary[split] = {}
        for name in dict.fromkeys(name for result in results for name in result["metrics"].get(split, {})):
            values = []
            for folder, result in zip(folders, results, strict=True):
                value = result["metrics"].get(split, {}).get(name)
                if not isinstance(value, (int, float)) or not math.isfinite(value):
                    raise UserError(
                        f"{folder} has no finite {split} {name} (it says {value}), other runs have. Evaluate it again with "
                        f"`hf-papers evaluate {folder}`, or leave it out and say so."
                    )
                values.append(float(value))
            summary[split][name] = {
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "values": values,
            }
    return summary


def _judge(expected: dict[str, Any], metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The band of each expected metric with our mean over seeds in the test split, and whether it lies within."""
    judged = {}
    for name, band in expected.items():
        summary = metrics.get("test", {}).get(name)
        low, high = band.get("min"), band.get("max")
        mean = summary["mean"] if summary else None
        within = mean is not None and (low is None or mean >= low) and (high is None or mean <= high)
        judged[name] = {"min": low, "max": high, "mean": mean, "within": within}
    return judged


def _agreed(results: list[dict[str, Any]], key: str) -> Any:
    """The value that all runs share; where they differ, the different ones as text, in the order of the seeds."""
    values: list[Any] = []
    for result in results:
        if result.get(key) not in values:
            values.append(result.get(key))
    if len(values) == 1:
        return values[0]
    return ", ".join(describe_device(value) if key == "hardware" else str(value) for value in values)


def _versions(results: list[dict[str, Any]]) -> dict[str, str]:
    """Package -> its version, or the different ones that the runs had."""
    packages = dict.fromkeys(name for result in results for name in result.get("versions") or {})
    return {
        name: ", ".join(dict.fromkeys(str((result.get("versions") or {}).get(name, "none")) for result in results))
        for name in packages
    }


def describe_device(hardware: Any) -> str:
    """The device of a results.json's `hardware` in a few words."""
    if not isinstance(hardware, dict):
        return str(hardware or "")
    processes, threads = hardware.get("processes", 1), hardware.get("threads_per_process")
    amount = f", {processes} processes" if processes > 1 else ""
    amount += f", {threads} thread{'s' if threads > 1 else ''}" if threads and hardware.get("type") == "cpu" else ""
    return f"{hardware.get('device', 'unknown')}{amount}"

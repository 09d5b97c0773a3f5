"""The tables of the READMEs, written from results.json files and the registry, never by hand.

A block between `<!-- results -->` and `<!-- /results -->` in a paper's README holds its recipes with their results; the
block between `<!-- papers -->` and `<!-- /papers -->` in the top README holds a line per paper.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from hf_papers.errors import UserError
from hf_papers.registry import Paper, papers
from hf_papers.reports.aggregate import describe_device, format_metric


NOT_RUN = "not run yet"


def fill_block(text: str, name: str, content: str, where: str = "the text") -> str:
    """`text` with everything between `<!-- name -->` and `<!-- /name -->` replaced by `content`."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise UserError(f"{where} needs the lines {start} and {end} once each, in this order, for its table.")
    pattern = re.compile(re.escape(start) + r".*?" + re.escape(end), re.DOTALL)
    return pattern.sub(lambda _: f"{start}\n\n{content}\n\n{end}", text)


def read_results(root: Path) -> dict[str, dict[str, tuple[str, dict[str, Any]]]]:
    """Paper key -> recipe name -> (name of the card's folder, its results), from `model_cards/*/results.json`."""
    found: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {}
    for path in sorted((root / "model_cards").glob("*/results.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        by_recipe = found.setdefault(results["paper"], {})
        if results["recipe"] in by_recipe:
            raise UserError(
                f"model_cards/{by_recipe[results['recipe']][0]} and model_cards/{path.parent.name} both hold results of "
                f"the recipe '{results['recipe']}' of '{results['paper']}': keep one."
            )
        by_recipe[results["recipe"]] = (path.parent.name, results)
    return found


def results_table(paper: Paper, results: dict[str, tuple[str, dict[str, Any]]]) -> str:
    """A row per recipe and metric that its band or its paper names: ours over seeds, the paper's, band, cost, command."""
    lines = [
        "| recipe | test metric | ours | seeds | paper | band | time per seed | hardware |",
        "| --- | --- | ---: | ---: | ---: | --- | ---: | --- |",
    ]
    recipes = runnable_recipes(paper)
    for name, recipe in recipes.items():
        _, result = results.get(name, (None, None))
        for row in _recipe_rows(name, recipe, result):
            lines.append("| " + " | ".join(row) + " |")
    commands = [f"hf-papers train {paper.key} --recipe {name} --seed 0" for name in recipes]
    return "\n".join([*lines, "", "Each row again, once per seed:", "", "```bash", *commands, "```"])


def papers_table(all_papers: Iterable[Paper], results: dict[str, dict[str, Any]], root: Path) -> str:
    """A line per paper: its number beside ours, and where its card, Space and recipe are."""
    lines = [
        "| paper | year | parameters | metric | paper's | ours | card | Space | command |",
        "| --- | ---: | ---: | --- | ---: | ---: | --- | --- | --- |",
    ]
    for paper in all_papers:
        lines.append("| " + " | ".join(_paper_row(paper, results.get(paper.key, {}), root)) + " |")
    return "\n".join(lines)


def fill_tables(root: Path) -> dict[Path, str]:
    """File -> its text with fresh tables, for the top README and every paper's, those that exist. Writes nothing."""
    results, filled = read_results(root), {}
    top = root / "README.md"
    if top.is_file():
        table = papers_table(papers().values(), results, root)
        filled[top] = fill_block(top.read_text(encoding="utf-8"), "papers", table, str(top))
    for paper in papers().values():
        readme = root / "hf_papers" / "papers" / paper.key / "README.md"
        if readme.is_file():
            table = results_table(paper, results.get(paper.key, {}))
            filled[readme] = fill_block(readme.read_text(encoding="utf-8"), "results", table, str(readme))
    return filled


def runnable_recipes(paper: Paper) -> dict[str, dict[str, Any]]:
    """Recipe name -> its content, without those that wait for the user's own data: they say `dataset: null`."""
    recipes = {name: yaml.safe_load(path.read_text(encoding="utf-8")) or {} for name, path in paper.recipes.items()}
    return {
        name: recipe for name, recipe in recipes.items() if (recipe.get("data") or {}).get("dataset", "") is not None
    }


def main_metrics(recipe: dict[str, Any], result: dict[str, Any] | None) -> list[str]:
    """The test metrics worth a row: those with a band, then the others the paper published; of a recipe that was run,
    those of them that were measured, else the first that was."""
    named = list(dict.fromkeys([*(recipe.get("expected") or {}), *(recipe.get("reference") or {})]))
    measured = list((result or {}).get("metrics", {}).get("test", {}))
    if result is None:
        return named
    return [name for name in named if name in measured] or measured[:1]


def _recipe_rows(name: str, recipe: dict[str, Any], result: dict[str, Any] | None) -> list[list[str]]:
    rows = []
    for metric in main_metrics(recipe, result) or [""]:
        summary = (result or {}).get("metrics", {}).get("test", {}).get(metric)
        rows.append(
            [
                f"`{name}`",
                metric.replace("_", " ") + (note_of(result) if summary else ""),
                f"**{format_metric(summary)}**" if summary else NOT_RUN,
                str(len(result["seeds"])) if result and summary else "",
                _reference(recipe, metric),
                _band((recipe.get("expected") or {}).get(metric)),
                _duration(result["wall_clock_s"]) if result and summary else "",
                describe_device(result["hardware"]) if result and summary else "",
            ]
        )
    return rows


def _paper_row(paper: Paper, results: dict[str, tuple[str, dict[str, Any]]], root: Path) -> list[str]:
    recipe_name = _headline_recipe(paper, results)
    recipe = runnable_recipes(paper).get(recipe_name, {})
    card, result = results.get(recipe_name, (None, None))
    metric = next(iter(main_metrics(recipe, result)), "")
    summary = (result or {}).get("metrics", {}).get("test", {}).get(metric)
    parameters = next(iter(paper.parameters.values()), None)
    return [
        f"[{paper.title}](hf_papers/papers/{paper.key})",
        str(paper.year),
        f"{parameters:,}" if parameters else "",
        metric.replace("_", " ") + (note_of(result) if summary else ""),
        _reference(recipe, metric),
        f"**{format_metric(summary)}** ({_count(result['seeds'])})" if result and summary else NOT_RUN,
        f"[{card}](model_cards/{card})" if card else "",
        f"[app](spaces/{paper.key})" if (root / "spaces" / paper.key / "app.py").is_file() else "",
        f"`hf-papers train {paper.key} --recipe {recipe_name}`" if recipe_name else "",
    ]


def _headline_recipe(paper: Paper, results: dict[str, Any]) -> str | None:
    """The recipe that stands for a paper: one that was run (the paper's `headline` before all), then one that has the
    paper's number beside it, then the first; those on embedded data and paper.yaml come last."""

    recipes = runnable_recipes(paper)

    def rank(name: str) -> tuple[bool, bool, bool, bool, str]:
        recipe = recipes[name]
        is_embedded = str((recipe.get("data") or {}).get("dataset")).startswith("embedded:")
        last = is_embedded or name in ("embedded", "paper")
        return (name not in results, name != paper.headline, not recipe.get("reference"), last, name)

    return min(recipes, key=rank, default=None)


def note_of(results: dict[str, Any] | None) -> str:
    """The words in brackets that a run wants beside each of its numbers, such as " (JPEG copies)"; mostly none."""
    task = (results or {}).get("task")
    return f" ({task['note']})" if isinstance(task, dict) and task.get("note") else ""


def _reference(recipe: dict[str, Any], metric: str) -> str:
    """The paper's number as the recipe states it: `{value, error, source}`; a plain number works as well."""
    reference = (recipe.get("reference") or {}).get(metric)
    if reference is None:
        return "–"
    if not isinstance(reference, dict):
        return f"{reference}"
    error = reference.get("error", reference.get("std"))
    spread = f" ± {error}" if error is not None else ""
    return f"{reference['value']}{spread}"


def _band(band: dict[str, float] | None) -> str:
    if not band:
        return ""
    low, high = band.get("min"), band.get("max")
    if low is not None and high is not None:
        return f"{low} to {high}"
    return f"≥ {low}" if low is not None else f"≤ {high}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _count(seeds: list[int]) -> str:
    return "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds"

"""The card of a checkpoint (README.md on the Hub), rendered from what a run wrote. No number in it is typed by hand.

`render_card` is a function of its arguments and of the paper's own README alone. Where a run has not said something, the
card says "not run yet".
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)

from hf_papers.registry import Paper


NOT_RUN = "not run yet"
PROJECT = "hf_papers"
# A call that loads a checkpoint, up to the name of the checkpoint, and that name in its quotes.
LOADING = r"""(from_pretrained\(|pipeline\("[a-z-]+", )("[^"]+"|'[^']+')"""
# The line of a snippet that says what the model is given.
EXAMPLE = r"^text = .*$"

# Training options that say where a result lands or how it is watched, not what it is.
HOUSEKEEPING = {
    "output_dir",
    "overwrite_output_dir",
    "resume",
    "logging_steps",
    "eval_steps",
    "save_steps",
    "progress",
}
HOUSEKEEPING |= {"save_total_limit", "report_to", "push_to_hub", "hub_model_id", "use_cpu", "num_processes", "seed"}


def render_card(
    paper: Paper,
    config: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    results: dict[str, Any] | None = None,
    *,
    repo_id: str | None = None,
) -> str:
    """The text of README.md: metadata for the Hub, then the card for a reader.

    Args:
        paper: what the model implements.
        config: the model's `config.to_dict()`.
        recipe: the resolved recipe of the run, section by section. Without it, the paper's own recipe of the name that
            `results` gives.
        results: `results.json` of one run, or of a report over seeds; nothing, or parts of it, may be missing.
        repo_id: where the checkpoint lies on the Hub; the snippets then name it.
    """
    results = results or {}
    recipe = recipe or shipped_recipe(paper, results.get("recipe"))
    config = config or {}
    repo_id = repo_id or (recipe.get("training") or {}).get("hub_model_id")
    name = (repo_id or f"{paper.key}-{recipe_name(recipe, results)}").split("/")[-1]
    notes = paper_notes(paper)
    sections = [
        f"# {name}",
        _introduction(paper, recipe, results),
        "## Load it\n\n" + _loading(paper, config, repo_id, notes, recipe),
        "## Results\n\n" + _results(paper, recipe, results),
        _pictures(results),
        "## How it was trained\n\n" + _training(recipe, config, results),
        "## Differences from the paper\n\n" + _differences(paper, config, recipe, notes),
        "## Limits\n\n" + _limits(paper, recipe, notes),
        "## Citation\n\n" + _citation(paper),
    ]
    metadata = card_data(paper, recipe, results, name)
    body = "\n\n".join(section for section in sections if section)
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}\n"))


# ------------------------------------------------------------------------------------------------------------- metadata


def card_data(paper: Paper, recipe: dict[str, Any], results: dict[str, Any], name: str) -> ModelCardData:
    """The metadata block: what the Hub's search, buttons and leaderboards go by."""
    scores = scores_of(results)
    data_set = hub_dataset(recipe)
    source_type, source_name = data_source(recipe)
    pipeline_tag = pipeline_tag_of(paper, recipe)
    example = example_of(paper, recipe)
    return ModelCardData(
        license=paper.license,
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        widget=[{"text": example}] if example else None,
        datasets=[data_set] if data_set else None,
        metrics=sorted(scores) or None,
        tags=[*paper.hub_tags, PROJECT],
        model_name=name if scores else None,
        eval_results=[
            EvalResult(
                task_type=pipeline_tag or "other",
                dataset_type=source_type,
                dataset_name=source_name,
                dataset_config=(recipe.get("data") or {}).get("dataset_config") if data_set else None,
                dataset_split=(recipe.get("data") or {}).get("test_split") if data_set else None,
                dataset_revision=(recipe.get("data") or {}).get("revision") if data_set else None,
                metric_type=metric,
                metric_name=f"test {metric}" + (f", mean of {len(values)} seeds" if len(values) > 1 else ""),
                metric_value=statistics.fmean(values),
            )
            for metric, values in scores.items()
        ]
        or None,
    )


def pipeline_tag_of(paper: Paper, recipe: dict[str, Any]) -> str | None:
    """What the Hub's widget does with the model."""
    task_type = recipe.get("task_type")
    return (paper.find_task(task_type).pipeline_tag if task_type else None) or paper.pipeline_tag


def eval_results_yaml(recipe: dict[str, Any], results: dict[str, Any]) -> str | None:
    """The text of `.eval_results/<data set>.yaml`, the Hub's newer home of results; None where it has nothing to hold.

    That format has one number for a data set, so it gets the main metric: the first that the recipe expects, or compares
    with the paper, or else the first that the run reports. Data that are not on the Hub have no place there.
    """
    scores, data_set = scores_of(results), hub_dataset(recipe)
    if not scores or not data_set:
        return None
    wanted = [*(recipe.get("expected") or {}), *(recipe.get("reference") or {}), *scores]
    metric = next(name for name in wanted if name in scores)
    spread = f" ± {_spread(scores[metric]):.3g} over {len(scores[metric])} seeds" if len(scores[metric]) > 1 else ""
    revision = (recipe.get("data") or {}).get("revision")
    entry = EvalResultEntry(
        dataset_id=data_set,
        task_id=(recipe.get("data") or {}).get("dataset_config") or "default",
        value=statistics.fmean(scores[metric]),
        dataset_revision=revision if revision and re.fullmatch(r"[0-9a-f]{40}", revision) else None,
        date=results.get("date"),
        notes=f"test {metric}{spread}; recipe {recipe_name(recipe, results)}",
    )
    return yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)


def scores_of(results: dict[str, Any], split: str = "test") -> dict[str, list[float]]:
    """Metric -> its value for each seed; from one run's results or from a report over seeds. Only finite ones."""
    found = {}
    for name, value in ((results.get("metrics") or {}).get(split) or {}).items():
        values = value.get("values") or [value.get("mean")] if isinstance(value, dict) else [value]
        values = [
            float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)
        ]
        if values:
            found[name] = values
    return found


def hub_dataset(recipe: dict[str, Any]) -> str | None:
    """The data set's id, if it is one on the Hub: neither embedded, nor a local folder, nor an environment."""
    data_set = (recipe.get("data") or {}).get("dataset")
    is_id = isinstance(data_set, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", data_set)
    return data_set if is_id and not Path(data_set).is_dir() else None


def data_source(recipe: dict[str, Any]) -> tuple[str, str]:
    """(identifier, name for people) of what the model was trained on."""
    data_set = (recipe.get("data") or {}).get("dataset")
    if hub_dataset(recipe):
        return data_set, data_set.split("/")[-1]
    if isinstance(data_set, str) and data_set.startswith("embedded:"):
        name = data_set.removeprefix("embedded:")
        return name, f"{name} (embedded in {PROJECT})"
    if data_set:
        return "custom", Path(str(data_set)).name
    environment = next(filter(None, ((recipe.get(part) or {}).get("environment") for part in ("model", "task"))), None)
    return (environment, environment) if environment else ("unknown", "unknown")


def shipped_recipe(paper: Paper, name: str | None) -> dict[str, Any]:
    """The paper's own recipe of that name, or nothing."""
    path = paper.recipes.get(name or "")
    return {"name": name} | (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path else {}


def recipe_name(recipe: dict[str, Any], results: dict[str, Any]) -> str:
    return recipe.get("name") or results.get("recipe") or "untrained"


# ----------------------------------------------------------------------------------------------------------------- body


def _introduction(paper: Paper, recipe: dict[str, Any], results: dict[str, Any]) -> str:
    source_type, source_name = data_source(recipe)
    where = f"[{source_type}](https://huggingface.co/datasets/{source_type})" if hub_dataset(recipe) else source_name
    preposition = "on" if (recipe.get("data") or {}).get("dataset") else "in the environment"
    trained = f"trained {preposition} {where}" if source_type != "unknown" else "of a training that is not recorded"
    size = f" It has {results['parameters']:,} parameters." if isinstance(results.get("parameters"), int) else ""
    said = f" {recipe['description'].strip().rstrip('.')}." if recipe.get("description") else ""
    return (
        f"{paper.summary}\n\n"
        f"This is *[{paper.title}]({paper.url})* ({_short_authors(paper)}, {paper.year}), written from scratch in PyTorch, "
        f"{trained}.{said}{size} It is a `transformers` model: it loads with the Auto classes, from safetensors."
    )


def _short_authors(paper: Paper) -> str:
    names = [name.strip() for name in paper.authors.split(",")]
    return f"{names[0]} et al." if len(names) > 2 else " and ".join(names)


def _loading(
    paper: Paper, config: dict[str, Any], repo_id: str | None, notes: dict[str, str], recipe: dict[str, Any]
) -> str:
    """Two snippets, the same where they can be: with this repository's own code, and with the package."""
    source, example = repo_id or "path/to/this/folder", example_of(paper, recipe)

    def fill_in(snippet: str) -> str:
        if example:
            line = f"text = {json.dumps(example, ensure_ascii=False)}"
            snippet = re.sub(EXAMPLE, lambda _: line, snippet, flags=re.MULTILINE)
        return re.sub(LOADING, rf'\1"{source}"', snippet)

    shown = usage_snippet(notes, pipeline_tag_of(paper, recipe)) or ""
    portable = without_package(paper, shown)
    bare = fill_in(portable or _generic_snippet(paper, config))
    ours = bare if portable or not shown else fill_in(shown)
    trusting = re.sub(LOADING, r"\1\2, trust_remote_code=True", bare)
    return (
        "Without our package; `trust_remote_code=True` runs the model's code from this repository, "
        f"so read it first (it is short):\n\n```python\n{trusting}\n```\n\n"
        f"With the package (`pip install hf-papers`) no code is taken from here:\n\n"
        f"```python\nimport hf_papers\n{ours}\n```"
    )


def example_of(paper: Paper, recipe: dict[str, Any]) -> str | None:
    """A text to give to the model; a run from before its recipe had one takes it from the recipe as it is today."""
    return recipe.get("example") or shipped_recipe(paper, recipe.get("name")).get("example")


def usage_snippet(notes: dict[str, str], pipeline_tag: str | None = None) -> str | None:
    """A Python block of the paper's README that loads a checkpoint, where it is run by a test.

    The first one that makes a pipeline of the checkpoint's kind, else the first one.
    """
    blocks = re.findall(r"```python\n(.*?)```", "\n".join(notes.values()), re.DOTALL)
    loading = [block.strip() for block in blocks if re.search(LOADING, block)]
    fitting = [block for block in loading if f'pipeline("{pipeline_tag}"' in block]
    return next(iter(fitting + loading), None)


def without_package(paper: Paper, snippet: str) -> str | None:
    """`snippet` with Auto classes of transformers in the place of ours; None where it uses more of the package than that."""
    autos = {name.split(":")[1]: auto for auto, name in paper.models.items()}
    if paper.image_processor:
        autos[paper.image_processor.split(":")[1]] = "AutoImageProcessor"
    lines = []
    for line in snippet.splitlines():
        if line.startswith("import "):
            modules = [name for name in re.split(r",\s*", line.removeprefix("import ")) if name.strip() != PROJECT]
            lines += [f"import {', '.join(modules)}"] if modules else []
        elif line.startswith(f"from {PROJECT} import "):
            names = re.split(r",\s*", line.split(" import ")[1].strip())
            if not set(names) <= set(autos):
                return None
            lines.append(f"from transformers import {', '.join(sorted({autos[name] for name in names}))}")
        else:
            lines.append(re.sub(rf"\b({'|'.join(autos)})\b", lambda match: autos[match.group()], line))
    bare = "\n".join(lines).strip()
    return bare if bare and PROJECT not in bare else None


def _generic_snippet(paper: Paper, config: dict[str, Any]) -> str:
    """Loading and one forward pass, for any model."""
    saved = (config.get("architectures") or [None])[0]
    auto = next((auto for auto, name in paper.models.items() if name.endswith(f":{saved}")), next(iter(paper.models)))
    if paper.image_processor is None:
        return (
            f"from transformers import {auto}\n\n"
            f'model = {auto}.from_pretrained("…")\n'
            "outputs = model(**model.dummy_inputs)  # made-up inputs of the right shapes"
        )
    return (
        f"from PIL import Image\nfrom transformers import AutoImageProcessor, {auto}\n\n"
        f'processor = AutoImageProcessor.from_pretrained("…")\n'
        f'model = {auto}.from_pretrained("…")\n'
        'outputs = model(**processor(Image.open("picture.png"), return_tensors="pt"))'
    )


def _results(paper: Paper, recipe: dict[str, Any], results: dict[str, Any]) -> str:
    """The paper's numbers beside ours, and what ours were measured with."""
    reference = results.get("reference") or recipe.get("reference") or {}
    expected = recipe.get("expected") or results.get("expected") or {}
    test, validation = scores_of(results), scores_of(results, "validation")
    names = [*expected, *(name for name in reference if name not in expected)]
    names += [name for name in test if name not in names]
    task = results.get("task")
    note = f" ({task['note']})" if isinstance(task, dict) and task.get("note") else ""
    rows = [
        f"| metric | paper | ours, test{note} | ours, validation{note} | a run must land in |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in names:
        ours = _mean_and_spread(test.get(name)) or NOT_RUN
        other = _mean_and_spread(validation.get(name)) or ("–" if name in test else NOT_RUN)
        rows.append(f"| {name} | {_reference(reference.get(name))} | {ours} | {other} | {_band(expected.get(name))} |")
    table = "\n".join(rows) if names else f"Results: {NOT_RUN}."
    seeds = results.get("seeds") or ([results["seed"]] if "seed" in results else [])
    kind = "mean ± standard deviation over seeds" if len(seeds) > 1 else "one run, seed"
    facts = {
        "Seeds": f"{kind} {', '.join(map(str, seeds))}" if seeds else NOT_RUN,
        "Steps": f"{results['steps']:,}" if isinstance(results.get("steps"), int) else None,
        "Weights": results.get("weights"),
        "Hardware": _hardware(results.get("hardware")) or NOT_RUN,
        "Wall-clock": _duration(results.get("wall_clock_s")),
        "Command": f"`{results['command']}`" if results.get("command") else NOT_RUN,
        "Code": f"commit `{results['commit']}`" if results.get("commit") else None,
        "Versions": ", ".join(f"{name} {number}" for name, number in (results.get("versions") or {}).items()) or None,
    }
    lines = "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)
    return f"{table}\n\n{lines}" + (
        f"\n\nThe numbers of the paper are from {_sources(reference)}." if _sources(reference) else ""
    )


def _reference(value: Any) -> str:
    if not isinstance(value, dict):
        return "–" if value is None else f"{value}"
    error = value.get("error", value.get("std"))
    spread = f" ± {error}" if error is not None else ""
    return f"{value.get('value', '–')}{spread}"


def _sources(reference: dict[str, Any]) -> str:
    sources = [str(value["source"]) for value in reference.values() if isinstance(value, dict) and value.get("source")]
    return "; ".join(dict.fromkeys(sources))


def _band(band: Any) -> str:
    low, high = (band.get("min"), band.get("max")) if isinstance(band, dict) else (None, None)
    if low is not None and high is not None:
        return f"{low} to {high}"
    return f"≥ {low}" if low is not None else f"≤ {high}" if high is not None else "–"


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _mean_and_spread(values: list[float] | None) -> str | None:
    """`95.6 ± 0.2` with as many digits as the spread justifies; four significant ones for a single value."""
    if not values:
        return None
    mean, spread = statistics.fmean(values), _spread(values)
    if len(values) == 1:
        return f"{mean:,.1f}" if abs(mean) >= 1000 else f"{mean:.4g}"
    digits = 2 if spread == 0 else min(max(0, 1 - math.floor(math.log10(spread))), 6)
    return f"{mean:,.{digits}f} ± {spread:,.{digits}f}"


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, (int, float)):
        return NOT_RUN
    hours, rest = divmod(int(round(seconds)), 3600)
    minutes, left = divmod(rest, 60)
    parts = [(hours, "h"), (minutes, "min"), (left, "s")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or f"{seconds:.1f} s"


def _hardware(hardware: Any) -> str:
    if isinstance(hardware, list):
        return "; ".join(dict.fromkeys(filter(None, map(_hardware, hardware))))
    if not isinstance(hardware, dict):
        return str(hardware) if hardware else ""
    device = str(hardware.get("device") or hardware.get("type") or "")
    processes, threads = hardware.get("processes"), hardware.get("threads_per_process")
    details = [f"{processes} process{'es' if processes != 1 else ''}"] if processes else []
    details += (
        [f"{threads} thread{'s' if threads != 1 else ''} each"] if threads and hardware.get("type") == "cpu" else []
    )
    return f"{device} ({', '.join(details)})" if details else device


def _pictures(results: dict[str, Any]) -> str:
    figures = {caption: path for caption, path in (results.get("figures") or {}).items() if isinstance(path, str)}
    pictures = [f"![{caption}]({path})\n\n*{caption}*" for caption, path in figures.items() if _is_picture(path)]
    return "## Pictures\n\n" + "\n\n".join(pictures) if pictures else ""


def _is_picture(path: str) -> bool:
    return path.lower().endswith((".png", ".jpg", ".gif", ".webp", ".svg"))


def _training(recipe: dict[str, Any], config: dict[str, Any], results: dict[str, Any]) -> str:
    """Every hyper-parameter, by section; and the file that repeats the run."""
    name = recipe_name(recipe, results)
    estimate = f" Its cost: {str(recipe['estimate']).strip().rstrip('.')}." if recipe.get("estimate") else ""
    intro = f"By the recipe `{name}`; all of it is in `recipe.yaml` beside this card.{estimate}" if recipe else NOT_RUN
    model = recipe.get("model") or _plain(config)
    sections = {
        "model": model,
        "task": recipe.get("task"),
        "data": recipe.get("data"),
        "training": recipe.get("training"),
    }
    tables = []
    for title, options in sections.items():
        shown = {k: v for k, v in (options or {}).items() if v is not None and k not in HOUSEKEEPING - {"seed"}}
        if shown:
            rows = "\n".join(f"| {key} | `{_value(value)}` |" for key, value in shown.items())
            tables.append(f"| {title} | |\n| --- | --- |\n{rows}")
    listed = "\n\n".join(tables)
    return f"{intro}\n\n<details><summary>Hyper-parameters</summary>\n\n{listed}\n\n</details>" if tables else intro


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """A config without what transformers adds to every model's."""
    general = {"architectures", "auto_map", "dtype", "transformers_version", "model_type", "id2label", "label2id"}
    general |= {"return_dict", "output_hidden_states", "chunk_size_feed_forward", "is_encoder_decoder", "problem_type"}
    return {key: value for key, value in config.items() if key not in general and not key.startswith("_")}


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or "none"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _differences(paper: Paper, config: dict[str, Any], recipe: dict[str, Any], notes: dict[str, str]) -> str:
    """What the paper's README says, and the options of this checkpoint that are not the paper's."""
    written = notes.get("differences from the paper", "")
    found = [*_config_differences(paper, config), *_recipe_differences(paper, recipe)]
    listed = "\n".join(f"{number}. {line}" for number, line in enumerate(found, 1))
    if listed:
        listed = ("In this checkpoint:\n\n" if written else "") + listed
    unknown = "Not recorded." if not config else "None that its options show: they are the paper's."
    return "\n\n".join(filter(None, [written, listed])) or unknown


def _config_differences(paper: Paper, config: dict[str, Any]) -> list[str]:
    """Options of the model that differ from the paper's own configuration (the first that its parameters are counted of)."""
    config_class = paper.config_class
    preset = next(iter(paper.parameters), "paper")
    if not config or preset not in getattr(config_class, "presets", {}):
        return []
    published = config_class.from_preset(preset).to_dict()
    own = [field.name for field in dataclasses.fields(config_class) if field.name in config_class.__annotations__]
    changed = [name for name in own if name in config and _value(config[name]) != _value(published.get(name))]
    return [f"`{name}` is {_value(config[name])}; the paper's is {_value(published[name])}." for name in changed]


def _recipe_differences(paper: Paper, recipe: dict[str, Any]) -> list[str]:
    """Options of training that differ from the recipe `paper`, which holds the published ones of the paper's own task.

    What that recipe leaves out of the task's own options has the paper's value by default; of the general options it names
    those that the paper does.
    """
    if recipe.get("task_type"):
        return []
    published = shipped_recipe(paper, "paper")
    published["task"] = dataclasses.asdict(paper.task_class.Options()) | (published.get("task") or {})
    lines = []
    for section in ("task", "training", "data"):
        ours = recipe.get(section) or {}
        for name, value in (published.get(section) or {}).items():
            if name in ours and name not in HOUSEKEEPING and not _same(ours[name], value):
                lines.append(f"`{name}` is {_value(ours[name])}; the paper's recipe has {_value(value)}.")
    return lines


def _same(ours: Any, theirs: Any) -> bool:
    """Whether two values of an option are equal; YAML reads `1e-3` as text."""
    try:
        return float(ours) == float(theirs)
    except (TypeError, ValueError):
        return _value(ours) == _value(theirs)


def _limits(paper: Paper, recipe: dict[str, Any], notes: dict[str, str]) -> str:
    written = notes.get("limits", "")
    source_type, source_name = data_source(recipe)
    seen = (
        f"It has seen {source_name} and nothing else: "
        if source_type != "unknown"
        else "What it has seen is not recorded: "
    )
    general = (
        f"{seen}expect nothing of it on other data. It is a reproduction of a paper, made to be read, measured and taken "
        "apart; it has not been tested for use in a product."
    )
    return "\n\n".join(filter(None, [written, general]))


def _citation(paper: Paper) -> str:
    first = re.sub(r"\W", "", paper.authors.split(",")[0].split()[-1]).lower()
    authors = " and ".join(name.strip() for name in paper.authors.split(","))
    journal = f"arXiv preprint arXiv:{paper.arxiv}" if paper.arxiv else paper.venue
    return (
        f"```bibtex\n@article{{{first}{paper.year}{paper.key},\n  title = {{{paper.title}}},\n  author = {{{authors}}},\n"
        f"  year = {{{paper.year}}},\n  journal = {{{journal}}}\n}}\n```"
    )


def paper_notes(paper: Paper) -> dict[str, str]:
    """The sections of the paper's README by their titles in lower case ("" is what stands before the first of them)."""
    path = paper.folder / "README.md"
    if not path.is_file():
        return {}
    parts = re.split(r"^##\s+(.+?)\s*$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {"": parts[0]} | {title.lower(): text.strip() for title, text in zip(parts[1::2], parts[2::2], strict=True)}

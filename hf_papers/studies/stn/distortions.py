"""What a spatial transformer is worth on each distortion of section 4.1 and on MNIST addition: fully connected networks of
one budget, the same images and the same optimiser, with and without it, over seeds."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from hf_papers.errors import UserError
from hf_papers.papers.stn.configuration_stn import PaperStnConfig
from hf_papers.papers.stn.modeling_stn import PaperStnForImageClassification
from hf_papers.reports.aggregate import aggregate, format_metric, write_json
from hf_papers.reports.curves import COLOURS, save_picture, style_axes
from hf_papers.reports.tables import NOT_RUN, fill_block
from hf_papers.training.finish import run_recipe
from hf_papers.training.recipe import Recipe, difference, load_recipe, load_run_recipe
from hf_papers.training.run import command_line, current_commit, describe_hardware, installed_versions


CARD = Path("model_cards/stn-study/distortions")
BLOCK = "distortions"
BUDGET = 400_000  # parameters; "around 400k", appendix A.4
METRIC = "error_percent"


@dataclass(frozen=True)
class Setting:
    """One distortion, as appendix A.4 sets it up: the size of its images, and the averaging behind a transformer."""

    title: str
    image_size: int = 42
    downsampling: int = 1
    num_channels: int = 1
    num_labels: int = 10


SETTINGS = {
    "rotated": Setting("rotated (R)"),
    "rts": Setting("rotated, translated, scaled (RTS)", downsampling=2),
    "projective": Setting("projective (P)"),
    "elastic": Setting("elastic (E)"),
    "cluttered": Setting("translated and cluttered (TC)", image_size=60, downsampling=2),
    "addition": Setting("addition of two digits", downsampling=2, num_channels=2, num_labels=19),
}
NETWORKS = {"fcn": "FCN", "affine": "ST-FCN, affine", "projective": "ST-FCN, projective", "tps": "ST-FCN, spline"}


def network_options(distortion: str, network: str) -> dict[str, Any]:
    """The options of a network for a distortion, its fully connected layers as wide as the budget allows."""
    setting = SETTINGS[distortion]
    options: dict[str, Any] = {"image_size": setting.image_size, "num_channels": setting.num_channels}
    if network == "fcn":
        options |= {"transformer": "none", "downsampling": 1}
    else:
        count = 2 if distortion == "addition" else 1
        options |= {"transformer": network, "downsampling": setting.downsampling, "num_transformers": count}
    shape = {**options, "localization": "fcn", "localization_sizes": (32, 32, 32), "classifier": "fcn"}
    width = widest(shape, setting.num_labels)
    return options | {"hidden_sizes": f"{width},{width}"}


def widest(shape: dict[str, Any], num_labels: int, budget: int = BUDGET) -> int:
    """The largest number of units in both hidden layers with which the network keeps within the budget."""

    def count(width: int) -> int:
        with torch.device("meta"):
            model = PaperStnForImageClassification(
                PaperStnConfig(**shape, hidden_sizes=(width, width), num_labels=num_labels)
            )
        return sum(parameter.numel() for parameter in model.parameters())

    low, high = 1, 2
    if count(low) > budget:
        raise UserError(f"No network of this shape has at most {budget:,} parameters.")
    while count(high) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= budget else (low, middle)
    return low


def load_setting(distortion: str, network: str, seed: int, folder: Path, more: dict[str, str]) -> Recipe:
    """The recipe of one training."""
    options = {key: str(value) for key, value in network_options(distortion, network).items()}
    options |= {"distortion": distortion, "report_to": "none", **more}
    options |= {"seed": str(seed), "output_dir": str(folder / f"{distortion}-{network}" / f"seed{seed}")}
    return load_recipe("stn", "fcn" if network == "fcn" else "st-fcn", options)


def train(recipe: Recipe) -> Path:
    """The folder of the finished training; one that is finished by the same recipe is used again."""
    folder = recipe.output_dir
    if (folder / "results.json").is_file():
        if changes := difference(load_run_recipe(folder), recipe):
            raise UserError(
                f"{folder} holds a run with other options ({'; '.join(changes)}): name another --output_dir."
            )
        return folder
    return run_recipe(recipe, more_follow=True)


def study(
    distortions: Sequence[str], networks: Sequence[str], seeds: Sequence[int], folder: Path, more: dict[str, str]
) -> dict[str, Any]:
    """Train everything that is not there yet; returns the record: distortion -> network -> results over seeds."""
    rows: dict[str, Any] = {}
    for distortion in distortions:
        rows[distortion] = {}
        for network in networks:
            runs = [train(load_setting(distortion, network, seed, folder, more)) for seed in seeds]
            results = aggregate(runs)
            rows[distortion][network] = {
                "parameters": json.loads((runs[0] / "results.json").read_text())["parameters"],
                "error": results["metrics"]["test"][METRIC],
                "wall_clock_s": results["wall_clock_s"],
                "steps": results["steps"],
            }
    return {
        "paper": "stn",
        "study": "distortions",
        "metric": f"test {METRIC}",
        "budget": BUDGET,
        "seeds": list(seeds),
        "rows": rows,
        "gains": {distortion: gain(row) for distortion, row in rows.items()},
        "hardware": describe_hardware(torch.device("cuda" if torch.cuda.is_available() else "cpu"), 1),
        "versions": installed_versions(),
        "commit": current_commit(),
        "command": command_line(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def gain(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By how many per cent points each transformer lowers the error, seed by seed."""
    if "fcn" not in row:
        return {}
    base = row["fcn"]["error"]["values"]
    gains = {}
    for network, result in row.items():
        if network != "fcn":
            values = [before - after for before, after in zip(base, result["error"]["values"], strict=True)]
            spread = statistics.stdev(values) if len(values) > 1 else None
            gains[network] = {"mean": statistics.fmean(values), "std": spread, "values": values}
    return gains


def render_table(record: dict[str, Any] | None) -> str:
    """Errors in per cent by distortion, a column per network, and what the first transformer gains; Markdown."""
    networks = list(next(iter(record["rows"].values()))) if record else ["fcn", "affine"]
    transformers = [network for network in networks if network != "fcn"]
    heads = [*(NETWORKS[network] for network in networks), *(f"gain, {network}" for network in transformers)]
    lines = ["| distortion | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(heads)]
    for distortion, setting in SETTINGS.items():
        row = (record or {"rows": {}})["rows"].get(distortion, {})
        gains = (record or {"gains": {}})["gains"].get(distortion, {})
        cells = [format_metric(row[network]["error"]) if network in row else NOT_RUN for network in networks]
        cells += [f"**{format_metric(gains[name])}**" if name in gains else NOT_RUN for name in transformers]
        lines.append(f"| {setting.title} | " + " | ".join(cells) + " |")
    if record:
        seeds = ", ".join(map(str, record["seeds"]))
        lines += [
            "",
            f"Test error in per cent over the seeds {seeds}; {record['hardware']['device']}, {record['date']}.",
        ]
    return "\n".join(lines)


def draw(record: dict[str, Any], path: Path) -> Path:
    """A panel per distortion, a bar per network, a dot per seed."""
    rows = record["rows"]
    figure = Figure(figsize=(2.3 * len(rows) + 1.4, 0.45 * max(map(len, rows.values())) + 1.2), layout="constrained")
    for number, (distortion, row) in enumerate(rows.items()):
        axes = figure.add_subplot(1, len(rows), number + 1)
        for place, (_, result) in enumerate(row.items()):
            values, colour = result["error"]["values"], COLOURS[place % len(COLOURS)]
            axes.barh(place, result["error"]["mean"], color=colour, alpha=0.35, height=0.6)
            axes.plot(values, [place] * len(values), "o", color=colour, markersize=4)
        style_axes(axes, SETTINGS[distortion].title)
        axes.title.set_fontsize(8)
        axes.set_xlabel("error, %", fontsize=8)
        axes.set_yticks(
            range(len(row)), [NETWORKS[name] for name in row] if number == 0 else [""] * len(row), fontsize=8
        )
        axes.invert_yaxis()
    return save_picture(figure, path)


def fill_readme(root: Path) -> tuple[Path, str]:
    """The paper's README and its text with the study's table. Writes nothing."""
    path, results = root / "hf_papers" / "papers" / "stn" / "README.md", root / CARD / "results.json"
    record = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else None
    return path, fill_block(path.read_text(encoding="utf-8"), BLOCK, render_table(record), str(path))


def command(words: Sequence[str], root: Path = Path()) -> int:
    """What scripts/study_stn.py does. Options that are not its own go to every training."""
    parser = argparse.ArgumentParser(prog="study_stn.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--distortions", default=",".join(SETTINGS), help="of these, several by comma")
    parser.add_argument("--networks", default="fcn,affine", help="of fcn, affine, projective, tps")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--output", type=Path, default=CARD, help="folder of the record and its picture")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/stn-study/distortions"), help="of the trainings")
    parser.add_argument("--table", action="store_true", help="only write the table of the paper's README")
    options, rest = parser.parse_known_args(words)
    if not options.table:
        from hf_papers.cli import parse_overrides

        distortions, networks = _chosen(options.distortions, SETTINGS), _chosen(options.networks, NETWORKS)
        seeds = [int(seed) for seed in options.seeds.split(",")]
        record = study(distortions, networks, seeds, options.output_dir, parse_overrides(rest))
        options.output.mkdir(parents=True, exist_ok=True)
        picture = draw(record, options.output / "distortions.png")
        record["figures"] = {"Test error with and without a transformer; every seed a dot": picture.name}
        write_json(record, options.output / "results.json")
        (options.output / "table.md").write_text(render_table(record) + "\n", encoding="utf-8")
        print(render_table(record))
    path, text = fill_readme(root)
    path.write_text(text, encoding="utf-8")
    return 0


def _chosen(text: str, known: dict[str, Any]) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise UserError(f"There is no '{name}' here: choose from {', '.join(known)}.")
    return names

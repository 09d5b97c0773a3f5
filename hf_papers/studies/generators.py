"""Generators of several papers through one ruler: FID, KID, Inception Score and mode coverage, as one table.

Any model can take part that has `sample(num_images, generator=...)`, which returns images (n, c, h, w) in [0, 1], and an
image processor beside it. Ten thousand images are a sample: the FID of one good generator differs from one draw to the
next by more than a tenth of itself, so each is measured over several draws. Real images go through that processor too, so
that both kinds have seen the same resizing; a `margin` that the processor adds is cut off again. Then the ruler's own
processor takes over.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from torch import nn

from hf_papers.cli import Parser, exit_by
from hf_papers.data import DataArguments, open_source
from hf_papers.errors import UserError
from hf_papers.hub.checkpoints import load_strict, locate, read_config
from hf_papers.metrics import diversity_ratio, generative_metrics, ruler_modes
from hf_papers.metrics.generative import describe_measurement
from hf_papers.metrics.rulers import Reading, Ruler, fingerprint, open_ruler
from hf_papers.registry import Paper, papers
from hf_papers.reports.aggregate import describe_device
from hf_papers.reports.tables import NOT_RUN, fill_block
from hf_papers.training.run import command_line, current_commit, describe_hardware, installed_versions


RECORDS = Path("model_cards") / "generators"
CHUNK = 500
REAL = "training images"  # the row that says what real images score


@dataclass
class Generator:
    """A model that draws, and what is known of its training.

    Args:
        name: paper, recipe and seed where a run says so; else the source.
        source: as it was given.
        model, processor: as loaded.
        steps, images_seen: of the training, where a run says so. An image counts each time it is shown.
        draws: the metrics of each draw.
    """

    name: str
    source: str
    paper: Paper
    model: nn.Module
    processor: Any
    steps: int | None = None
    images_seen: int | None = None
    draws: list[dict[str, float]] = field(default_factory=list)

    @property
    def margin(self) -> int:
        return getattr(self.processor, "margin", 0)


def load_generator(source: str, device: torch.device) -> Generator:
    """A run, a checkpoint folder or a Hub id of any paper whose model draws images."""
    folder = locate(source)
    model_type = read_config(folder).get("model_type")
    paper = next((paper for paper in papers().values() if paper.config_class.model_type == model_type), None)
    if paper is None or not hasattr(paper.model_class, "sample"):
        raise UserError(f"{source} is a model of type '{model_type}', which draws no images.")
    if not (folder / "preprocessor_config.json").is_file():
        raise UserError(f"{source} has no preprocessor_config.json, so real images cannot be brought to its size.")
    results, recipe = _read(folder / "results.json"), _read(folder / "recipe.yaml")
    name = f"{paper.key}-{results['recipe']}-seed{results['seed']}" if "seed" in results else source
    model = load_strict(paper, folder).to(device)
    processor = paper.image_processor_class.from_pretrained(folder)
    return Generator(name, source, paper, model, processor, results.get("steps"), images_seen(results, recipe))


def images_seen(results: dict[str, Any], recipe: dict[str, Any]) -> int | None:
    """Real images shown while training, from what a run wrote; None where it does not say."""
    training = recipe.get("training") or {}
    if "steps" not in results or "per_device_train_batch_size" not in training:
        return None
    per_step = training["per_device_train_batch_size"] * training.get("gradient_accumulation_steps", 1)
    per_step *= (results.get("hardware") or {}).get("processes", 1)
    return results["steps"] * per_step * (recipe.get("task") or {}).get("discriminator_steps", 1)


@torch.no_grad()
def draw(generator: Generator, count: int, seed: int) -> torch.Tensor:
    """`count` images, (count, c, h, w) in [0, 1] on the CPU, without margin; the same ones for the same seed."""
    dice = torch.Generator().manual_seed(seed)
    sizes = [min(CHUNK, count - start) for start in range(0, count, CHUNK)]
    images = torch.cat([generator.model.sample(size, generator=dice).float().cpu() for size in sizes])
    return cut_margin(images, generator.margin)


def real_images(generator: Generator, data: DataArguments, split: str, limit: int) -> dict[str, torch.Tensor]:
    """The first `limit` rows of a split as this generator's training saw them: `images` (n, c, h, w) in [0, 1], `label`."""
    processor = generator.processor

    def transform(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pixels = processor([row["image"] for row in rows], return_tensors="pt", do_normalize=False)["pixel_values"]
        batch = {"images": cut_margin(pixels, generator.margin)}
        if isinstance(rows[0].get("label"), int):
            batch["label"] = torch.tensor([row["label"] for row in rows])
        return batch

    return open_source(data).tensors(split, transform, limit)


def cut_margin(images: torch.Tensor, margin: int) -> torch.Tensor:
    return images[..., margin:-margin, margin:-margin] if margin else images


class Measurement:
    """One ruler, one data set, one number of images and draws; generators are measured one after the other."""

    def __init__(self, ruler: Ruler, data: DataArguments, num_images: int, seed: int, draws: int = 1) -> None:
        self.ruler, self.data, self.num_images, self.seed, self.draws = ruler, data, num_images, seed, draws
        self._real: dict[tuple[Any, ...], tuple[dict[str, torch.Tensor], Reading]] = {}

    def measure(self, generator: Generator) -> list[dict[str, float]]:
        """The metrics of each draw."""
        seeds = range(self.seed, self.seed + self.draws)
        return [self._compare(generator, draw(generator, self.num_images, seed)) for seed in seeds]

    def measure_real(self, generator: Generator) -> list[dict[str, float]]:
        """The same for training images in the generator's place, drawn once: what nobody has to beat."""
        train = real_images(generator, self.data, self.data.train_split, self.num_images)["images"]
        return [self._compare(generator, train)]

    def _compare(self, generator: Generator, images: torch.Tensor) -> dict[str, float]:
        batch, real = self.real(generator)
        reading = self.ruler.read(images)
        metrics = generative_metrics(self.ruler, reading, real, self.seed)
        if "label" in batch:
            metrics |= ruler_modes(self.ruler, reading, batch["label"])
        return metrics | {"diversity_ratio": diversity_ratio(images, batch["images"])}

    def real(self, generator: Generator) -> tuple[dict[str, torch.Tensor], Reading]:
        """Real images at this generator's size and what the ruler reads from them; read once for all of that size."""
        processor = generator.processor
        geometry = (tuple(sorted(dict(processor.size).items())), processor.num_channels)
        if geometry not in self._real:
            batch = real_images(generator, self.data, self.data.test_split, self.num_images)
            self._real[geometry] = batch, self.ruler.read(batch["images"])
        return self._real[geometry]

    def describe(self) -> dict[str, Any]:
        num_real = min(len(reading) for _, reading in self._real.values())
        return describe_measurement(self.ruler, self.num_images, num_real)


# ---------------------------------------------------------------------------------------------------------- command


def main(words: Sequence[str]) -> NoReturn:
    """Run the command and exit, with a sentence where the user can mend what went wrong."""
    exit_by("measure_generators.py", command, words)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="measure_generators.py",
        description="FID, KID, Inception Score and mode coverage of generators through one ruler.",
        epilog="Without generators, --table alone writes the rows of the README anew from the records.",
        allow_abbrev=False,
    )
    parser.add_argument("generators", nargs="*", metavar="RUN_OR_CHECKPOINT", help="runs, folders or Hub ids")
    parser.add_argument("--ruler", help="an image classifier (folder or Hub id), or 'inception'")
    parser.add_argument("--ruler_layer", help="its hidden layer: a number (-1: the last) or a module's name")
    parser.add_argument("--dataset", help="where real images come from, e.g. ylecun/mnist")
    parser.add_argument("--dataset_config", help="which configuration, for data sets that have several")
    parser.add_argument("--columns", default="", help="our name=theirs, comma separated, e.g. image=img")
    parser.add_argument("--original_format", help="of the data set's pictures, e.g. PNG: those of another are copies")
    parser.add_argument("--train_split", default="train", help="of the row that says what real images score")
    parser.add_argument("--test_split", default="test", help="real images that all are compared with")
    parser.add_argument("--num_images", type=int, default=10_000, help="drawn from each generator, and real ones")
    parser.add_argument("--draws", type=int, default=5, help="times that each generator draws so many images")
    parser.add_argument("--seed", type=int, default=0, help="of the first draw; the next ones count on from it")
    parser.add_argument("--use_cpu", action="store_true", help="stay on the CPU though there is an accelerator")
    parser.add_argument("--output", type=Path, help=f"folder; {RECORDS}/DATASET when not given")
    parser.add_argument("--table", action="store_true", help="also write the rows of DCGAN's README")
    parser.add_argument("--check", action="store_true", help="change nothing; fail when those rows are out of date")
    return parser


def command(words: list[str], root: Path = Path()) -> int:
    options = build_parser().parse_args(words)
    if options.generators:
        record = measure_all(options)
        folder = options.output or root / RECORDS / options.dataset.split("/")[-1].replace(":", "-")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (folder / "table.md").write_text(table(record) + "\n", encoding="utf-8")
        print(table(record))
        print(f"Written: {folder / 'results.json'}")
    elif not options.table and not options.check:
        raise UserError("There is nothing to measure: name runs or checkpoints, --ruler and --dataset.")
    if options.table or options.check:
        path, text = fill_readme(root)
        stale = path.read_text(encoding="utf-8") != text
        if options.check:
            if stale:
                print(f"{path} does not say what the records say: run scripts/measure_generators.py --table")
            return int(stale)
        path.write_text(text, encoding="utf-8")
    return 0


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    """The record of a measurement, in plain values."""
    for name in ("ruler", "dataset"):
        if getattr(options, name) is None:
            raise UserError(f"A measurement needs --{name}.")
    for name, least in (("num_images", 2), ("draws", 1)):
        if getattr(options, name) < least:
            raise UserError(f"--{name} must be at least {least}, not {getattr(options, name)}.")
    device = torch.device("cuda" if torch.cuda.is_available() and not options.use_cpu else "cpu")
    columns = dict(pair.split("=", 1) for pair in options.columns.split(",") if "=" in pair)
    data = DataArguments(
        dataset=options.dataset,
        dataset_config=options.dataset_config,
        columns=columns,
        train_split=options.train_split,
        test_split=options.test_split,
    )
    ruler = open_ruler(options.ruler, options.ruler_layer, device)
    measurement = Measurement(ruler, data, options.num_images, options.seed, options.draws)
    generators = [load_generator(source, device) for source in options.generators]
    rows = []
    for generator in generators:
        print(f"{generator.name}: drawing {options.draws} x {options.num_images:,} images …", flush=True)
        generator.draws = measurement.measure(generator)
        rows.append(describe_generator(generator))
    rows.append({"name": REAL, **summarize(measurement.measure_real(generators[0]))})
    found = getattr(next(open_source(data).rows(data.test_split))["image"], "format", None) or "pixels"
    return {
        "study": "generators",
        "ruler": measurement.describe(),
        "dataset": options.dataset,
        "test_split": options.test_split,
        "image_format": found,
        **({"note": f"{found} copies"} if options.original_format not in (None, found) else {}),
        "seed": options.seed,
        "generators": rows,
        "hardware": describe_hardware(device, 1),
        "versions": installed_versions(),
        "commit": current_commit(),
        "command": command_line(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def describe_generator(generator: Generator) -> dict[str, Any]:
    model = generator.model
    return {
        "name": generator.name,
        "source": generator.source,
        "paper": generator.paper.key,
        "fingerprint": fingerprint(model),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "image_size": dict(generator.processor.size),
        "steps": generator.steps,
        "images_seen": generator.images_seen,
        **summarize(generator.draws),
    }


def summarize(draws: list[dict[str, float]]) -> dict[str, Any]:
    """`metrics`: the mean over draws. `spread`: their standard deviation, None for a single draw. `draws`: as measured."""
    values = {name: torch.tensor([draw[name] for draw in draws], dtype=torch.float64) for name in draws[0]}
    spread = {name: value.std().item() for name, value in values.items()} if len(draws) > 1 else None
    return {"metrics": {name: value.mean().item() for name, value in values.items()}, "spread": spread, "draws": draws}


def _read(path: Path) -> dict[str, Any]:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}


# ------------------------------------------------------------------------------------------------------------ table


def table(record: dict[str, Any]) -> str:
    """A Markdown row per generator, the best FID first, and a line that says what it was read with."""
    ruler, name = record["ruler"], record["ruler"]["name"]
    lines = [
        f"| generator | images seen | parameters | FID ({name}) | KID ({name}) × 10³ | IS ({name}) | modes ({name}) | "
        f"KL of modes ({name}) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in sorted(record["generators"], key=lambda row: row["metrics"][f"fid_{name}"]):
        metrics = row["metrics"]
        kid, spread = 1000 * metrics[f"kid_{name}"], 1000 * metrics[f"kid_{name}_std"]
        cells = [
            row["name"],
            _count(row.get("images_seen")),
            _count(row.get("parameters")),
            _fid(row, f"fid_{name}"),
            f"{kid:.3g} ± {spread:.2g}",
            f"{metrics[f'is_{name}']:.3g} ± {metrics[f'is_{name}_std']:.2g}",
            _count(metrics.get(f"modes_covered_{name}")),
            f"{metrics[f'mode_kl_{name}']:.2g}" if f"mode_kl_{name}" in metrics else "–",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    copies = f" ({record['note']})" if "note" in record else ""
    lines += [
        "",
        f"{_draws(record)}{ruler['generated_images']:,} images each against {ruler['real_images']:,} of "
        f"`{record['dataset']}`{copies}, split `{record['test_split']}`; read with {name} ({ruler['source']}, layer "
        f"{ruler['layer']}, fingerprint {ruler['fingerprint']}); KID over {ruler['kid_subsets']} subsets of "
        f"{ruler['kid_subset_size']}. Measured on {describe_device(record['hardware'])}.",
    ]
    return "\n".join(lines)


def fill_readme(root: Path) -> tuple[Path, str]:
    """DCGAN's README and its text with fresh tables. Writes nothing."""
    path = root / "hf_papers" / "papers" / "dcgan" / "README.md"
    records = [
        json.loads(found.read_text(encoding="utf-8")) for found in sorted((root / RECORDS).glob("*/results.json"))
    ]
    content = "\n\n".join(table(record) for record in records) or f"{NOT_RUN.capitalize()}."
    return path, fill_block(path.read_text(encoding="utf-8"), "generators", content, str(path))


def _fid(row: dict[str, Any], name: str) -> str:
    spread = f" ± {row['spread'][name]:.2g}" if row["spread"] else ""
    return f"{row['metrics'][name]:.3g}{spread}"


def _draws(record: dict[str, Any]) -> str:
    count = max(len(row["draws"]) for row in record["generators"])
    return f"Means over {count} draws, FID with their standard deviation. " if count > 1 else ""


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"

"""The folder of a run: what is in it, and what it may be started on."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hf_papers.errors import UserError
from hf_papers.training.checkpoint import CheckpointStore
from hf_papers.training.recipe import Recipe, difference, load_run_recipe


PACKAGES = ("hf-papers", "torch", "transformers", "accelerate", "datasets", "huggingface-hub", "gymnasium", "numpy")


class Run:
    """Paths and records of one training run."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.recipe_file = folder / "recipe.yaml"
        self.metrics_file = folder / "metrics.jsonl"
        self.results_file = folder / "results.json"
        self.best = folder / "best"
        self.figures = folder / "figures"
        self.logs = folder / "logs"
        self.checkpoints = CheckpointStore(folder / "checkpoints", keep)
        self.commit = current_commit()

    def claim(self, recipe: Recipe) -> None:
        """Make the folder ready for this recipe, or refuse in words: nothing of another run is ever mixed in."""
        arguments = recipe.training
        occupied = self.folder.is_dir() and any(self.folder.iterdir())
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"--output_dir {self.folder} is a file, not a folder.")
        if occupied and arguments.overwrite_output_dir:
            self._clear()
        elif occupied and not arguments.resume:
            raise UserError(
                f"The output folder {self.folder} is not empty. Go on with it by --resume auto, "
                "begin anew by --overwrite_output_dir, or choose another --output_dir."
            )
        elif occupied and self.recipe_file.is_file():
            changes = difference(load_run_recipe(self.folder), recipe)
            if changes:
                raise UserError(
                    f"The run in {self.folder} was started with another recipe, so resuming it would mix two. "
                    f"What differs: {'; '.join(changes)}. Give the options of the first start, or another --output_dir."
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        recipe.save(self.recipe_file)

    def _clear(self) -> None:
        if not self.recipe_file.is_file():
            raise UserError(
                f"{self.folder} was not written by a run (it has no recipe.yaml), so --overwrite_output_dir will not "
                "delete it. Choose another --output_dir."
            )
        shutil.rmtree(self.folder)

    def truncate_metrics(self, step: int) -> None:
        """Forget the lines after `step`: a resumed run writes them again."""
        if self.metrics_file.is_file():
            # A line that a crash cut short lacks its closing brace, and lies behind the checkpoint anyway.
            whole = [line for line in self.metrics_file.read_text().splitlines() if line.endswith("}")]
            kept = [line for line in whole if json.loads(line)["step"] <= step]
            temporary = self.metrics_file.with_suffix(".tmp")
            temporary.write_text("".join(line + "\n" for line in kept))
            os.replace(temporary, self.metrics_file)

    def log(self, line: dict[str, Any]) -> None:
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def write_results(self, results: dict[str, Any]) -> None:
        temporary = self.results_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(results, indent=2) + "\n")
        os.replace(temporary, self.results_file)


def describe_hardware(device: Any, world_size: int) -> dict[str, Any]:
    """What a result was measured on."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name()
    return {
        "device": name,
        "type": device.type,
        "processes": world_size,
        "threads_per_process": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def installed_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


@cache
def current_commit() -> str | None:
    """The commit of the code that runs, with `-dirty` when its files differ from it; None outside a checkout.

    As it was when first asked, by the first run of a process: hours later the checkout may be another.
    """
    here = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", str(here.parent)],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}-dirty" if changed else head


def command_line() -> str:
    """The command as a reader would type it again."""
    program = Path(sys.argv[0]).name
    program = "hf-papers" if program in ("hf-papers", "__main__.py") else f"python {sys.argv[0]}"
    return " ".join([program, *sys.argv[1:]])

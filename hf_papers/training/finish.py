"""From a trained network to a run that others can load, read and believe; and measuring such a run again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from hf_papers.errors import UserError
from hf_papers.hub.cards import render_card
from hf_papers.hub.checkpoints import load_strict
from hf_papers.hub.publish import check_can_push, push_run
from hf_papers.training.randomness import forked_randomness
from hf_papers.training.recipe import Recipe, load_run_recipe
from hf_papers.training.run import Run, command_line, describe_hardware, installed_versions
from hf_papers.training.task import Context, Task
from hf_papers.training.trainer import Trainer


def run_recipe(recipe: Recipe, more_follow: bool = False) -> Path:
    """Train, evaluate, save, describe and, where asked for, publish. Returns the run's folder.

    With `more_follow` the processes stay connected for the next run; the last one lets go of them.
    """
    arguments = recipe.training
    if arguments.push_to_hub:
        check_can_push(arguments.hub_model_id)
    run = Run(recipe.output_dir, arguments.save_total_limit)
    trainer = Trainer(recipe.task_class(recipe), run)
    trainer.prepare()
    trainer.train()
    finish(trainer)
    is_first = trainer.accelerator.is_main_process
    trainer.end(more_follow)
    if arguments.push_to_hub and is_first:
        print(f"Published at {push_run(run.folder, arguments.hub_model_id)}")
    return run.folder


def finish(trainer: Trainer) -> None:
    """Evaluate the weights that count on validation and, once, on test; write the model, figures, results and card."""
    task, run, arguments = trainer.task, trainer.run, trainer.arguments
    best = trainer.best_model() if arguments.load_best_model_at_end else None
    model = best if best is not None else trainer.published()
    metrics = {split: trainer.evaluate(model, split) for split in ("validation", "test")}
    if not trainer.accelerator.is_main_process:
        return
    results = {
        "paper": task.recipe.paper.key,
        "recipe": task.recipe.name,
        "seed": arguments.seed,
        "steps": trainer.step,
        "weights": f"best by validation {task.best_metric}, step {trainer.best['step']}"
        if best is not None
        else "last",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **({"task": described} if (described := task.describe()) else {}),
        "metrics": metrics,
        "expected": task.recipe.expected,
        "in_expected_band": in_expected_band(metrics["test"], task.recipe.expected),
        "reference": task.recipe.reference,
        "wall_clock_s": round(trainer.seconds, 1),
        "hardware": describe_hardware(trainer.context.device, trainer.context.world_size),
        "versions": installed_versions(),
        "commit": run.commit,
        "command": command_line(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    _install(run.folder, lambda folder: trainer.save_model(model, folder))
    run.figures.mkdir(exist_ok=True)
    with forked_randomness(arguments.seed, 3), torch.no_grad():
        figures = task.figures(model.eval(), run.figures, trainer.context)
    results["figures"] = {caption: str(path.relative_to(run.folder)) for caption, path in figures.items()}
    run.write_results(results)
    recipe = task.recipe
    (run.folder / "README.md").write_text(render_card(recipe.paper, model.config.to_dict(), recipe.to_dict(), results))


def _install(folder: Path, write: Callable[[Path], None]) -> None:
    """Files appear in `folder` whole: a reader, or a model that maps them, never sees one being overwritten."""
    temporary = folder / ".saving"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    write(temporary)
    for path in temporary.iterdir():
        os.replace(path, folder / path.name)
    temporary.rmdir()


def in_expected_band(metrics: dict[str, float], expected: dict[str, dict[str, float]]) -> bool | None:
    """Whether every expected metric lies in its band; None when the recipe expects nothing."""
    if not expected:
        return None
    return all(
        band.get("min", -float("inf")) <= metrics.get(name, float("nan")) <= band.get("max", float("inf"))
        for name, band in expected.items()
    )


def load_run(folder: Path, overrides: dict[str, str] | None = None) -> tuple[Task, Any]:
    """The task and the final model of a finished run, the model in eval mode."""
    recipe = load_run_recipe(folder, overrides)
    if not (folder / "model.safetensors").is_file():
        raise UserError(
            f"The run in {folder} is not finished: it has no model.safetensors. Resume it by --resume auto."
        )
    task = recipe.task_class(recipe)
    return task, load_strict(recipe.paper, folder)


def evaluate_run(folder: Path, overrides: dict[str, str] | None = None) -> dict[str, dict[str, float]]:
    """Measure a finished run again: split -> metrics, under the same random numbers as at its end."""
    task, model = load_run(folder, overrides)
    arguments = task.arguments
    device = torch.device("cuda" if torch.cuda.is_available() and not arguments.use_cpu else "cpu")
    context = Context(device, rank=0, world_size=1, seed=arguments.seed)
    model.to(device)
    metrics = {}
    for split in ("validation", "test"):
        with forked_randomness(arguments.seed, 2), torch.no_grad():
            metrics[split] = task.evaluate(model, split, context)
    return metrics

"""What the trainer costs: each paper's embedded recipe through it and through a bare PyTorch loop, in turn in one run.

    python scripts/benchmarks/trainer.py --repeats 7 --output results.json

Prints the ratio of CPU times (trainer / bare, the median over pairs); both loops use the same task, model and batches.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from hf_papers.training.randomness import seed_everything
from hf_papers.training.recipe import Recipe, load_recipe
from hf_papers.training.run import Run, current_commit, describe_hardware, installed_versions
from hf_papers.training.task import Context
from hf_papers.training.trainer import Trainer


SIZES = {
    "vae": {"max_steps": "1500", "importance_samples": "0"},
    "gan": {"max_steps": "500"},
    "dqn": {"environment_steps": "4000", "learning_starts": "500"},
}


def bare(recipe: Recipe) -> float:
    """CPU seconds of the steps of a recipe, written as one would without a trainer."""
    task = recipe.task_class(recipe)
    context = Context(torch.device("cpu"), 0, 1, recipe.training.seed)
    seed_everything(recipe.training.seed)
    model = task.build_model()
    model.train()
    networks = task.networks(model)
    rules = task.shadows()
    shadows = {name: rule.copy_of(networks[name]) for name, rule in rules.items()}
    optimizers = task.optimizers(networks)
    parameters = {
        name: list(network.parameters()) if len(networks) > 1 else None for name, network in networks.items()
    }
    limit = recipe.training.max_grad_norm
    total = task.total_steps(context)
    batches = task.batches(networks, context)
    started = time.process_time()
    for step in range(total):
        task.schedule(optimizers, step, total)
        for name, loss, _ in task.losses(networks, shadows, next(batches), step):
            loss.backward(inputs=parameters[name])
            if limit is not None:
                torch.nn.utils.clip_grad_norm_(networks[name].parameters(), limit)
            optimizers[name].step()
            optimizers[name].zero_grad()
        for name, rule in rules.items():
            rule.follow(shadows[name], networks[name], step + 1)
    return time.process_time() - started


def through_trainer(recipe: Recipe, folder: Path) -> float:
    """CPU seconds of the same steps in the trainer with its log and progress, without evaluations and checkpoints."""
    trainer = Trainer(recipe.task_class(recipe), Run(folder))
    trainer.prepare()
    trainer.evaluate_and_keep_best = lambda: None
    trainer.save = lambda: None
    started = time.process_time()
    trainer.train()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = {"benchmark": "trainer / bare loop, CPU time of the steps", "papers": {}}
    with tempfile.TemporaryDirectory() as name:
        for paper, overrides in SIZES.items():
            pairs = []
            for index in range(arguments.repeats + 1):
                out = Path(name) / f"{paper}-{index}"
                options = {"output_dir": str(out), "use_cpu": "true", "report_to": "none", **overrides}
                recipe = load_recipe(paper, "embedded", options)
                pair = (through_trainer(recipe, out), bare(recipe))
                pairs += [pair] if index else []  # the first pair warms caches up
            ratios = [ours / theirs for ours, theirs in pairs]
            record["papers"][paper] = {
                "ratio_median": statistics.median(ratios),
                "ratios": ratios,
                "trainer_s": [ours for ours, _ in pairs],
                "bare_s": [theirs for _, theirs in pairs],
            }
            print(
                f"{paper}: trainer / bare = {statistics.median(ratios):.3f}  (pairs: {[round(r, 3) for r in ratios]})"
            )
    record |= {
        "hardware": describe_hardware(torch.device("cpu"), 1),
        "versions": installed_versions(),
        "commit": current_commit(),
    }
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

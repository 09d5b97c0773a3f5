"""Environment steps per second of our DQN and of stable-baselines3's, at the same settings, in turns, in one process.

    python scripts/benchmarks/dqn_speed.py --output results.json

Both train on CartPole-v1 by the settings of a recipe: network, batch size, memory, exploration, steps between rounds of
learning, gradient steps in a round, clipping and learning-rate schedule. Ours is the whole trainer, with its logging and its
last checkpoint; theirs is `DQN.learn`. Rates are medians over the repetitions; the process has one thread unless asked.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from hf_papers.papers.dqn.training_dqn import DqnTask
from hf_papers.training.recipe import Recipe, load_recipe
from hf_papers.training.run import Run, command_line, current_commit, describe_hardware, installed_versions
from hf_papers.training.trainer import Trainer


def seconds_of_ours(recipe_name: str, steps: int, seed: int) -> float:
    """Wall-clock of the training of `steps` environment steps on our trainer."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_for(recipe_name, steps, seed, folder)
        trainer = Trainer(DqnTask(recipe), Run(Path(folder)))
        trainer.prepare()
        started = time.perf_counter()
        trainer.train()
        elapsed = time.perf_counter() - started
        if trainer.task.environment.steps != steps:
            raise RuntimeError(f"{trainer.task.environment.steps} steps were played instead of {steps}.")
        return elapsed


def recipe_for(name: str, steps: int, seed: int, folder: str) -> Recipe:
    """The recipe without what stable-baselines3 does not do: evaluations in between, tracking."""
    overrides = {"environment_steps": steps, "seed": seed, "output_dir": folder, "validation_episodes": 1}
    overrides |= {
        "eval_steps": 10**9,
        "save_steps": 10**9,
        "held_out_states": 1,
        "report_to": "none",
        "progress": False,
    }
    return load_recipe("dqn", name, {key: str(value) for key, value in overrides.items()})


def seconds_of_theirs(recipe: Recipe, seed: int) -> float:
    """Wall-clock of `DQN.learn` for the same number of environment steps at the same settings."""
    from stable_baselines3 import DQN

    task, training = recipe.task, recipe.training
    model = DQN(
        "MlpPolicy",
        recipe.model["environment"],
        # Their schedules take what is left of the training, from 1 to 0.
        learning_rate=lambda left: training.learning_rate * (left if training.lr_scheduler_type == "linear" else 1.0),
        buffer_size=task.replay_capacity,
        learning_starts=task.learning_starts,
        batch_size=training.per_device_train_batch_size,
        gamma=task.discount,
        train_freq=task.train_frequency,
        gradient_steps=task.gradient_steps,
        # They count environment steps where we count gradient steps.
        target_update_interval=max(1, task.target_update * task.train_frequency // task.gradient_steps),
        exploration_fraction=task.exploration_fraction,
        exploration_initial_eps=task.initial_epsilon,
        exploration_final_eps=task.final_epsilon,
        max_grad_norm=training.max_grad_norm or float("inf"),
        policy_kwargs={"net_arch": list(recipe.model["hidden_sizes"])},
        device="cpu",
        seed=seed,
    )
    started = time.perf_counter()
    model.learn(task.environment_steps)
    elapsed = time.perf_counter() - started
    if model.num_timesteps != task.environment_steps:
        raise RuntimeError(f"{model.num_timesteps} steps were played instead of {task.environment_steps}.")
    return elapsed


def measure(recipe_name: str, steps: int, repeats: int) -> dict[str, Any]:
    """Rates of both in steps per second, one repetition after the other, each beginning with another one of them."""
    rates: dict[str, list[float]] = {"hf_papers": [], "stable_baselines3": []}
    for repeat in range(repeats):
        turns = list(rates) if repeat % 2 == 0 else list(rates)[::-1]
        for who in turns:
            if who == "hf_papers":
                seconds = seconds_of_ours(recipe_name, steps, repeat)
            else:
                with tempfile.TemporaryDirectory() as folder:
                    seconds = seconds_of_theirs(recipe_for(recipe_name, steps, repeat, folder), repeat)
            rates[who].append(round(steps / seconds, 1))
            print(f"repetition {repeat + 1}  {who:<18} {rates[who][-1]:8.1f} steps/s", flush=True)
    medians = {who: statistics.median(values) for who, values in rates.items()}
    return {
        "what": "environment steps per second of training DQN",
        "recipe": recipe_name,
        "environment_steps": steps,
        "rates": rates,
        "medians": medians,
        "ratio": round(medians["hf_papers"] / medians["stable_baselines3"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="cartpole")
    parser.add_argument("--environment_steps", type=int, default=10_000, help="of each training")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="file to write the result to, as JSON")
    options = parser.parse_args()

    import stable_baselines3

    torch.set_num_threads(options.threads)
    result = measure(options.recipe, options.environment_steps, options.repeats)
    result["hardware"] = describe_hardware(torch.device("cpu"), 1)
    result["versions"] = {**installed_versions(), "stable-baselines3": stable_baselines3.__version__}
    result["commit"], result["command"] = current_commit(), command_line()
    print(f"hf_papers is {result['ratio']:.2f} times as fast as stable-baselines3.")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")
        print(f"Written: {options.output}")


if __name__ == "__main__":
    main()

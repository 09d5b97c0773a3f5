"""A training step of our DCGAN beside one of the commonly used network, in turns, in one process.

    python scripts/benchmarks/dcgan_speed.py --output scripts/benchmarks/results/dcgan_speed.json

Theirs is written here from torch's layers as in pytorch/examples: everything a (transposed) convolution, a sigmoid at the
end, `BCELoss`, and D's losses on real and on generated images each taken back on its own. Both have the same sizes,
initial distribution, optimiser, batches and threads; each repetition takes a few steps of each in turn. With --whole, our
trainer too, with its stream of batches, its logging and the watch it keeps over the game.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_papers.papers.dcgan.configuration_dcgan import PaperDcganConfig
from hf_papers.papers.dcgan.modeling_dcgan import (
    PaperDcganModel,
    discriminator_loss,
    generator_loss,
    sample_latents,
)
from hf_papers.papers.dcgan.training_dcgan import DcganTask
from hf_papers.training.recipe import load_recipe
from hf_papers.training.run import Run, command_line, current_commit, describe_hardware, installed_versions
from hf_papers.training.trainer import Trainer


LEARNING_RATE, BETAS = 2e-4, (0.5, 0.999)
Step = Callable[[torch.Tensor], None]


def build_theirs(config: PaperDcganConfig) -> tuple[nn.Sequential, nn.Sequential]:
    """Generator and discriminator, freshly initialised: N(0, 0.02), gains of batch norm N(1, 0.02)."""
    generator: list[nn.Module] = []
    sizes = config.generator_channels
    for index, (before, after) in enumerate(zip([config.latent_size, *sizes], sizes, strict=False)):
        stride, padding = (1, 0) if index == 0 else (2, 1)
        generator.append(nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False))
        generator += [nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    generator += [nn.ConvTranspose2d(sizes[-1], config.num_channels, 4, 2, 1, bias=False), nn.Tanh()]
    judge: list[nn.Module] = []
    sizes = config.discriminator_channels
    for index, (before, after) in enumerate(zip([config.num_channels, *sizes], sizes, strict=False)):
        judge.append(nn.Conv2d(before, after, 4, 2, 1, bias=False))
        judge += [nn.BatchNorm2d(after)] if index else []
        judge.append(nn.LeakyReLU(0.2, inplace=True))
    judge += [nn.Conv2d(sizes[-1], 1, 4, 1, 0, bias=False), nn.Sigmoid()]

    def initialise(module: nn.Module) -> None:
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)

    return nn.Sequential(*generator).apply(initialise), nn.Sequential(*judge).apply(initialise)


def adam(network: nn.Module, fused: bool) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), LEARNING_RATE, BETAS, fused=fused)


def step_of_theirs(config: PaperDcganConfig, fused: bool) -> Step:
    """One iteration of the example's loop."""
    generator, judge = build_theirs(config)
    g_optimizer, d_optimizer = adam(generator, fused), adam(judge, fused)
    criterion = nn.BCELoss()

    def step(real: torch.Tensor) -> None:
        ones, zeros = torch.ones(len(real)), torch.zeros(len(real))
        judge.zero_grad()
        criterion(judge(real).view(-1), ones).backward()
        fake = generator(torch.randn(len(real), config.latent_size, 1, 1))
        criterion(judge(fake.detach()).view(-1), zeros).backward()
        d_optimizer.step()
        generator.zero_grad()
        criterion(judge(fake).view(-1), ones).backward()
        g_optimizer.step()

    return step


def step_of_ours(config: PaperDcganConfig, fused: bool) -> Step:
    """One step as `DcganTask.losses` describes it and the trainer takes it."""
    model = PaperDcganModel(config).train()
    generator, judge = model.generator, model.discriminator
    g_optimizer, d_optimizer = adam(generator, fused), adam(judge, fused)
    g_parameters, d_parameters = list(generator.parameters()), list(judge.parameters())

    def step(real: torch.Tensor) -> None:
        fake = generator(sample_latents(config, len(real)))
        discriminator_loss(judge(real), judge(fake.detach())).backward(inputs=d_parameters)
        d_optimizer.step()
        d_optimizer.zero_grad()
        generator_loss(judge(fake, True)).backward(inputs=g_parameters)
        g_optimizer.step()
        g_optimizer.zero_grad()

    return step


def seconds_of(step: Step, batches: list[torch.Tensor], clock: Callable[[], float]) -> float:
    started = clock()
    for batch in batches:
        step(batch)
    return (clock() - started) / len(batches)


def seconds_of_trainer(config: PaperDcganConfig, batch_size: int, steps: int, clock: Callable[[], float]) -> float:
    """A step of our whole trainer on the embedded digits, brought to that size, without evaluations."""
    overrides = {
        "dataset": "embedded:digits",
        "ruler": "none",
        "margin": 0,
        "columns": "",
        "train_split": "train",
        "validation_split": "none",
        "test_split": "none",
        "image_size": config.image_size,
        "num_channels": config.num_channels,
        "generator_width": config.generator_width,
        "discriminator_width": config.discriminator_width,
        "latent_distribution": config.latent_distribution,
        "mixed_precision": "no",
        "generator_average": 0,
        "film_frames": 0,
        "per_device_train_batch_size": batch_size,
        "max_steps": steps,
        "save_steps": 10**9,
        "eval_steps": 10**9,
        "report_to": "none",
        "progress": False,
        "use_cpu": True,
    }
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe("dcgan", "mnist", {name: str(value) for name, value in overrides.items()})
        trainer = Trainer(DcganTask(recipe), Run(Path(folder)))
        trainer.prepare()
        trainer.save = lambda: None  # the last checkpoint: a constant, which a handful of steps would have to carry
        started = clock()
        trainer.train()
        return (clock() - started) / steps


def measure(config: PaperDcganConfig, batch_size: int, steps: int, repeats: int, whole: bool) -> dict[str, Any]:
    """Seconds of a step of each, one repetition after the other, forwards and backwards; the first warms up.

    With one thread it is the time on the core that counts, which other processes on the machine disturb less.
    """
    alone = torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    size = (batch_size, config.num_channels, config.image_size, config.image_size)
    batches = [2 * torch.rand(size) - 1 for _ in range(steps)]
    runners: dict[str, Callable[[], float]] = {}
    contestants = {
        "hf_papers": step_of_ours(config, fused=True),
        "pytorch_examples": step_of_theirs(config, fused=True),
        "pytorch_examples, default Adam": step_of_theirs(config, fused=False),  # as published
    }
    for name, step in contestants.items():
        runners[name] = partial(seconds_of, step, batches, clock)
    if whole:
        runners["hf_papers, whole trainer"] = partial(seconds_of_trainer, config, batch_size, steps, clock)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for repeat in range(repeats + 1):
        for name in list(runners)[:: 1 if repeat % 2 == 0 else -1]:
            elapsed = runners[name]()
            if repeat:
                seconds[name].append(round(elapsed, 5))
                print(f"repetition {repeat}  {name:<32} {1000 * elapsed:8.1f} ms a step", flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    theirs = seconds["pytorch_examples"]
    return {
        "what": "seconds of a training step of both players",
        "clock": "time on the core" if alone else "wall clock",
        "image_size": config.image_size,
        "num_channels": config.num_channels,
        "width": config.generator_width,
        "batch_size": batch_size,
        "seconds": seconds,
        "medians": medians,
        # Of pairs measured one after the other: a machine that slows down slows both.
        "ratios": {
            name: round(statistics.median(b / a for a, b in zip(values, theirs, strict=True)), 3)
            for name, values in seconds.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="common", help="of the config; --image_size and --width change it")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--num_channels", type=int, default=3)
    parser.add_argument("--width", type=int, default=512, help="maps at 4 x 4")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3, help="of each repetition")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--whole", action="store_true", help="also time our whole trainer")
    parser.add_argument("--output", type=Path, help="file to write the result to, as JSON")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = PaperDcganConfig.from_preset(
        options.preset,
        image_size=options.image_size,
        num_channels=options.num_channels,
        generator_width=options.width,
        discriminator_width=options.width,
    )
    result = measure(config, options.batch_size, options.steps, options.repeats, options.whole)
    result["hardware"] = describe_hardware(torch.device("cpu"), 1)
    result["versions"] = installed_versions()
    result["commit"], result["command"] = current_commit(), command_line()
    print(f"hf_papers is {result['ratios']['hf_papers']:.2f} times as fast as the network of pytorch/examples.")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")
        print(f"Written: {options.output}")


if __name__ == "__main__":
    main()

"""Our U-Net beside MONAI's `BasicUNet`: seconds of a training step at equal shapes and about equal parameters.

    python scripts/benchmarks/unet_speed.py --output results.json

Both have the same channels at every stage, padded convolutions, transposed convolutions on the way up, the same optimiser,
loss and batches, and take their steps in turns within one process. MONAI's normalises each image by itself and ours the
batch; both have their defaults else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets import BasicUNet
from torch import nn

from hf_papers.papers.unet.configuration_unet import PaperUnetConfig
from hf_papers.papers.unet.modeling_unet import PaperUnetForSemanticSegmentation
from hf_papers.training.run import command_line, current_commit, describe_hardware, installed_versions


# Channels of the stages, batch, height and width: MONAI's default, our narrow preset, and the paper's width.
CASES = (
    ((32, 32, 64, 128, 256), 2, 128),
    ((16, 32, 64, 128, 256), 2, 256),
    ((64, 128, 256, 512, 1024), 1, 128),
)


def ours(channels: tuple[int, ...]) -> tuple[nn.Module, Callable[..., torch.Tensor]]:
    config = PaperUnetConfig(stage_channels=channels, padding="same", batch_norm=True, dropout=0.0)
    model = PaperUnetForSemanticSegmentation(config)
    return model, lambda images, labels: model(images, labels).loss


def monais(channels: tuple[int, ...]) -> tuple[nn.Module, Callable[..., torch.Tensor]]:
    model = BasicUNet(spatial_dims=2, in_channels=1, out_channels=2, features=(*channels, channels[0]))
    return model, lambda images, labels: F.cross_entropy(model(images), labels)


def step_of(
    model: nn.Module, loss_of: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, torch.Tensor]
) -> Callable[[], float]:
    """A function that takes one training step (forward, backward, SGD) and returns its seconds."""
    optimizer = torch.optim.SGD(model.train().parameters(), 1e-3, momentum=0.99, fused=True)

    def step() -> float:
        started = time.perf_counter()
        loss_of(*inputs).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - started

    return step


def compare(channels: tuple[int, ...], batch_size: int, size: int, repeats: int) -> dict[str, Any]:
    """Median seconds of both, and the median over the repetitions of MONAI's / ours; the first repetition warms up."""
    inputs = torch.randn(batch_size, 1, size, size), torch.randint(0, 2, (batch_size, size, size))
    models = {"hf_papers": ours(channels), "monai": monais(channels)}
    steps = {name: step_of(*pair, inputs) for name, pair in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name in list(steps) if repeat % 2 else list(steps)[::-1]:
            elapsed = steps[name]()
            if repeat:
                seconds[name].append(round(elapsed, 4))
    ratios = [theirs / mine for theirs, mine in zip(seconds["monai"], seconds["hf_papers"], strict=True)]
    return {
        "what": f"training step, channels {'-'.join(map(str, channels))}, {batch_size} x {size} x {size}",
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, (model, _) in models.items()},
        "seconds": seconds,
        "medians": {name: statistics.median(values) for name, values in seconds.items()},
        "ratio": round(statistics.median(ratios), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="steps of each network")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="file to write the result to, as JSON")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = []
    for channels, batch_size, size in CASES:
        rows.append(compare(channels, batch_size, size, options.repeats))
        print(f"{rows[-1]['what']:<75} ratio {rows[-1]['ratio']:.2f}", flush=True)
    result = {
        "what": "seconds of a training step of MONAI's BasicUNet over seconds of ours, medians over turns",
        "rows": rows,
        "hardware": describe_hardware(torch.device("cpu"), 1),
        "versions": {**installed_versions(), "monai": __import__("monai").__version__},
        "commit": current_commit(),
        "command": command_line(),
    }
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")
        print(f"Written: {options.output}")


if __name__ == "__main__":
    main()

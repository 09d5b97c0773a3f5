"""Our bilinear sampler beside torch's `F.grid_sample`, forward and backward, in turns within one process, on one thread.

    python scripts/benchmarks/stn_speed.py --output results.json

Both read the same images at the same places, each from its own layout of them: ours has x and y in planes (B, 2, h, w),
torch's side by side (B, h, w, 2). In front of a network only the places take a gradient; behind a convolution the input does
too. Times are of the processor, medians over repetitions, and the ratio is the median of the repetitions' own ratios.
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

from hf_papers.papers.stn.modeling_stn import sample_bilinear
from hf_papers.training.run import command_line, current_commit, describe_hardware, installed_versions


# (images, channels, side of the input and of the output, whether the input takes a gradient): what the recipes sample, and
# feature maps behind a convolution.
SHAPES = {
    "cluttered digits, 64 x 60 x 60": (64, 1, 60, False),
    "cluttered digits, 128 x 60 x 60": (128, 1, 60, False),
    "rotated digits, 128 x 42 x 42": (128, 1, 42, False),
    "cluttered digits, gradient of the input too": (64, 1, 60, True),
    "16 feature maps, 64 x 28 x 28, gradient of the input too": (64, 16, 28, True),
}


def places(batch: int, side: int) -> torch.Tensor:
    """Slightly turned, sheared and shifted grids as a trained transformer makes them, (batch, 2, side, side)."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.tensor([[0.8, 0.2, 0.1], [-0.2, 0.9, 0.05]]) + 0.1 * torch.randn(batch, 2, 3, generator=generator)
    grid = F.affine_grid(theta, (batch, 1, side, side), align_corners=False)
    return grid.permute(0, 3, 1, 2).contiguous()


def step_of(
    sampler: Callable, images: torch.Tensor, grid: torch.Tensor, gradient: torch.Tensor
) -> Callable[[], float]:
    """A function that samples and propagates back once, and returns its seconds of processor time."""

    def step() -> float:
        started = time.process_time()
        sampler(images, grid).backward(gradient)
        elapsed = time.process_time() - started
        images.grad = grid.grad = None
        return elapsed

    return step


def measure(shape: tuple[int, int, int, bool], repeats: int) -> dict[str, Any]:
    batch, channels, side, input_gradient = shape
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(batch, channels, side, side, generator=generator).requires_grad_(input_gradient)
    gradient = torch.randn(batch, channels, side, side, generator=generator)
    ours = places(batch, side).requires_grad_()
    theirs = ours.detach().permute(0, 2, 3, 1).contiguous().requires_grad_()
    steps = {
        "hf_papers": step_of(sample_bilinear, images, ours, gradient),
        "torch": step_of(lambda u, g: F.grid_sample(u, g, align_corners=False), images, theirs, gradient),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 3):
        for name in list(steps) if repeat % 2 else list(steps)[::-1]:
            elapsed = steps[name]()
            if repeat >= 3:  # the first ones warm up
                seconds[name].append(elapsed)
    ratios = [mine / other for mine, other in zip(seconds["hf_papers"], seconds["torch"], strict=True)]
    medians = {name: round(statistics.median(values) * 1e3, 3) for name, values in seconds.items()}
    return {"milliseconds": medians, "ratio": round(statistics.median(ratios), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--output", type=Path, help="file to write the result to, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # As in any training, larger blocks have come and gone before: else the C library returns memory to the system after
    # every step, and what is measured is how long it takes to get it back.
    torch.empty(7_000_000)
    result: dict[str, Any] = {
        "what": "bilinear sampling, forward and backward, CPU time, ours / torch's",
        "shapes": {},
    }
    for name, shape in SHAPES.items():
        result["shapes"][name] = measured = measure(shape, options.repeats)
        times = measured["milliseconds"]
        print(
            f"{name:<58} {times['hf_papers']:7.2f} ms, torch {times['torch']:7.2f} ms: {measured['ratio']:.2f} times",
            flush=True,
        )
    result["worst_ratio"] = max(measured["ratio"] for measured in result["shapes"].values())
    result["hardware"] = describe_hardware(torch.device("cpu"), 1)
    result["versions"] = installed_versions()
    result["commit"], result["command"] = current_commit(), command_line()
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")
        print(f"Written: {options.output}")


if __name__ == "__main__":
    main()

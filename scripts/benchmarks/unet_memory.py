"""How much memory U-Net takes above its weights for large images, in tiles, and how far the tiles are from one pass.

    python scripts/benchmarks/unet_memory.py --output results.json
    python scripts/benchmarks/unet_memory.py --preset paper --sizes 1024,4096      # a quarter of an hour on one core

Each size is segmented by a process of its own. What is counted is the largest resident size while it works, the image and
the answer included, less what was resident with the model loaded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from hf_papers.papers.unet.configuration_unet import PaperUnetConfig
from hf_papers.papers.unet.modeling_unet import PaperUnetForSemanticSegmentation
from hf_papers.training.run import command_line, current_commit, describe_hardware, installed_versions


ONE_PASS = 700  # pixels along each side of the image that tiles and one pass are compared on


def build(preset: str) -> PaperUnetForSemanticSegmentation:
    torch.manual_seed(0)
    return PaperUnetForSemanticSegmentation(PaperUnetConfig.from_preset(preset)).eval()


def resident(field: str) -> float:
    """`VmRSS`, the memory of this process now, or `VmHWM`, the most it ever was, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) / 1024


def print_peak(preset: str, size: int) -> None:
    """Memory above the model and seconds of one image, as JSON."""
    model = build(preset)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before, started = resident("VmRSS"), time.perf_counter()
    image = torch.rand(1, model.config.num_channels, size, size)
    answer = model.segment(image)
    seconds = time.perf_counter() - started
    assert answer.shape[-2:] == (size, size)
    print(
        json.dumps(
            {"size": size, "mib_above_model": round(resident("VmHWM") - before, 1), "seconds": round(seconds, 1)}
        )
    )


def measure(preset: str, size: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--preset", preset, "--peak_of", str(size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def difference_from_one_pass(preset: str) -> dict[str, float]:
    """The largest difference of a probability between tiles and one pass over the whole image, and how they spread."""
    model = build(preset)
    image = torch.rand(1, model.config.num_channels, ONE_PASS, ONE_PASS)
    whole = model.segment(image, model.config.geometry.input_covering(ONE_PASS))
    tiled = model.segment(image, model.config.geometry.smallest_tile)
    return {"largest": float((tiled - whole).abs().max()), "std_of_probabilities": float(whole[:, 1].std())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="narrow", help="of the configuration: narrow, paper, padded, …")
    parser.add_argument("--sizes", default="512,1024,2048,4096", help="heights and widths of the images, by comma")
    parser.add_argument("--output", type=Path, help="file to write the result to, as JSON")
    parser.add_argument("--peak_of", type=int, help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    if options.peak_of:
        print_peak(options.preset, options.peak_of)
        return
    rows = []
    for size in options.sizes.split(","):
        rows.append(measure(options.preset, int(size)))
        print(
            f"{size:>6} x {size}: {rows[-1]['mib_above_model']} MiB above the model, {rows[-1]['seconds']} s",
            flush=True,
        )
    result = {
        "what": "memory above the loaded model while an image is segmented in tiles of the default size, image and answer "
        "included",
        "preset": options.preset,
        "tile_size": build(options.preset)._tile_size(None),
        "images": rows,
        "difference_from_one_pass": difference_from_one_pass(options.preset),
        "hardware": describe_hardware(torch.device("cpu"), 1),
        "versions": installed_versions(),
        "commit": current_commit(),
        "command": command_line(),
    }
    print(f"Tiles and one pass differ by at most {result['difference_from_one_pass']['largest']:.1e}.")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

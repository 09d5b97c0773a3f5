"""Put real images beside the Space's checkpoint, for it to compare with: `python spaces/gan/reference.py`.

Takes the first images of each class from the training split that the checkpoint was trained on, as the Hub serves it, and
writes them into checkpoint/reference.safetensors (500 MNIST digits: 400 kB).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from hf_papers.data import DataArguments, open_source
from hf_papers.errors import UserError
from hf_papers.papers.gan.image_processing_gan import PaperGanImageProcessor
from hf_papers.space_kit import whole_number


CHECKPOINT = Path(__file__).parent / "checkpoint"


def write_reference(checkpoint: Path, data: DataArguments, per_class: int, num_classes: int) -> Path:
    """Write the first `per_class` images of each of `num_classes` classes: `images` (n, height, width) uint8, `labels`."""
    processor = PaperGanImageProcessor.from_pretrained(checkpoint)
    images, labels = [], []
    counts = [0] * num_classes
    for row in open_source(data).rows(data.train_split):
        label = whole_number(row["label"], "A label", 0, num_classes - 1)
        if counts[label] < per_class:
            counts[label] += 1
            pixels = processor(row["image"], return_tensors="pt")["pixel_values"][0, 0]
            images.append((pixels * 255).round().to(torch.uint8))
            labels.append(label)
        if min(counts) == per_class:
            break
    path = checkpoint / "reference.safetensors"
    save_file({"images": torch.stack(images), "labels": torch.tensor(labels)}, path)
    return path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="folder of the checkpoint")
    parser.add_argument("--dataset", default="ylecun/mnist", help="what the checkpoint was trained on")
    parser.add_argument("--train_split", default="train", help="rows to take from")
    parser.add_argument("--per_class", type=int, default=50, help="images of each class")
    parser.add_argument("--num_classes", type=int, default=10, help="classes of the data set")
    options = parser.parse_args(arguments)
    try:
        data = DataArguments(dataset=options.dataset, train_split=options.train_split)
        path = write_reference(options.checkpoint, data, options.per_class, options.num_classes)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(f"Written: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

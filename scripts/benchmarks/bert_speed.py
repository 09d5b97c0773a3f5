"""Our BERT beside transformers' own: seconds of a pre-training step, of a fine-tuning step and of an epoch of a GLUE task.

    python scripts/benchmarks/bert_speed.py --output results.json

Both networks have the same sizes, attention (SDPA), optimiser and batches, and take their steps in turns within one process.
Pre-training masks 15 % of the tokens: transformers projects every position onto the vocabulary, ours the masked ones. A GLUE
epoch is our trainer with batches of rows of about the same length, and with every row filled up to 128.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from hf_papers.data import DataArguments, open_source
from hf_papers.papers.bert.configuration_bert import PaperBertConfig
from hf_papers.papers.bert.modeling_bert import IGNORED, PaperBertForMaskedLM, PaperBertForSequenceClassification
from hf_papers.papers.bert.tokenization_bert import train_tokenizer
from hf_papers.training.recipe import load_recipe
from hf_papers.training.run import Run, command_line, current_commit, describe_hardware, installed_versions
from hf_papers.training.trainer import Trainer


MASKED_SHARE = 0.15
GLUE_VOCABULARY = 4096
Inputs = dict[str, torch.Tensor]


def random_texts(batch_size: int, length: int, vocab_size: int) -> Inputs:
    ids = torch.randint(5, vocab_size, (batch_size, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def step_of(model: nn.Module, inputs: Inputs) -> Callable[[], float]:
    """A function that takes one training step (forward, backward, AdamW) and returns its seconds."""
    optimizer = torch.optim.AdamW(model.train().parameters(), 1e-4, fused=True)

    def step() -> float:
        started = time.perf_counter()
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - started

    return step


def in_turns(steps: dict[str, Callable[[], float]], repeats: int) -> dict[str, Any]:
    """Median seconds of each, and the median over the repetitions of theirs / ours; the first repetition warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name in list(steps) if repeat % 2 else list(steps)[::-1]:
            elapsed = steps[name]()
            if repeat:
                seconds[name].append(round(elapsed, 4))
    ratios = [theirs / ours for theirs, ours in zip(seconds["transformers"], seconds["hf_papers"], strict=True)]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"seconds": seconds, "medians": medians, "ratio": round(statistics.median(ratios), 3)}


def pre_training(preset: str, batch_size: int, length: int, repeats: int) -> dict[str, Any]:
    sizes = PaperBertConfig.presets[preset]
    ours, theirs = PaperBertForMaskedLM(PaperBertConfig(**sizes)), BertForMaskedLM(BertConfig(**sizes))
    texts = random_texts(batch_size, length, ours.config.vocab_size)
    count = round(MASKED_SHARE * length)
    positions = torch.stack([torch.randperm(length)[:count].sort().values for _ in range(batch_size)])
    labels = texts["input_ids"].gather(1, positions)
    everywhere = torch.full_like(texts["input_ids"], IGNORED).scatter(1, positions, labels)
    steps = {
        "hf_papers": step_of(ours, texts | {"labels": labels, "masked_positions": positions}),
        "transformers": step_of(theirs, texts | {"labels": everywhere}),
    }
    return {"what": f"pre-training step, {preset}, {batch_size} x {length}", **in_turns(steps, repeats)}


def fine_tuning(preset: str, batch_size: int, length: int, repeats: int) -> dict[str, Any]:
    sizes = PaperBertConfig.presets[preset]
    texts = random_texts(batch_size, length, PaperBertConfig().vocab_size)
    texts["labels"] = torch.randint(0, 2, (batch_size,))
    steps = {
        "hf_papers": step_of(PaperBertForSequenceClassification(PaperBertConfig(**sizes)), texts),
        "transformers": step_of(BertForSequenceClassification(BertConfig(**sizes)), texts),
    }
    return {"what": f"fine-tuning step, {preset}, {batch_size} x {length}", **in_turns(steps, repeats)}


def glue_epoch(task_name: str, preset: str, repeats: int) -> dict[str, Any]:
    """Seconds of an epoch of a GLUE task on our trainer, from random weights, with and without buckets, in turns."""
    seconds: dict[str, list[float]] = {"bucketed": [], "padded to 128": []}
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(task_texts(task_name), GLUE_VOCABULARY).save_pretrained(folder)
        for repeat in range(repeats):
            for name in seconds:
                options = {
                    "task_name": task_name,
                    "tokenizer_name": folder,
                    "pad_to_max_length": str(name != "bucketed"),
                    "num_train_epochs": "1",
                    "report_to": "none",
                    "progress": "false",
                    "output_dir": f"{folder}/{name}-{repeat}",
                    **{key: str(value) for key, value in PaperBertConfig.presets[preset].items()},
                    "vocab_size": str(GLUE_VOCABULARY),
                }
                seconds[name].append(round(seconds_of_training(options), 2))
    ratios = [padded / ours for padded, ours in zip(seconds["padded to 128"], seconds["bucketed"], strict=True)]
    return {
        "what": f"training epoch of {task_name}, {preset}, bucketed against padded to 128",
        "seconds": seconds,
        "ratio": round(statistics.median(ratios), 3),
    }


def task_texts(task_name: str) -> list[str]:
    """The texts of a task's training split."""
    rows = open_source(DataArguments(dataset="nyu-mll/glue", dataset_config=task_name)).rows("train")
    return [value for row in rows for value in row.values() if isinstance(value, str)]


def seconds_of_training(options: dict[str, str]) -> float:
    """Wall-clock of the training; in both, the rows are read and cut into word pieces as it goes."""
    recipe = load_recipe("bert", "glue", options)
    trainer = Trainer(recipe.task_class(recipe), Run(recipe.output_dir))
    trainer.prepare()
    started = time.perf_counter()
    trainer.train()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task_name", default="mrpc", help="of GLUE, for the epochs")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each; epochs and base take a third")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="file to write the result to, as JSON")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    few = max(1, options.repeats // 3)
    rows = []
    for measure, arguments in (
        (pre_training, ("mini", 16, 128, options.repeats)),
        (pre_training, ("base", 4, 128, few)),
        (fine_tuning, ("mini", 32, 64, options.repeats)),
        (fine_tuning, ("base", 8, 64, few)),
        (glue_epoch, (options.task_name, "tiny", few)),
    ):
        rows.append(measure(*arguments))
        print(f"{rows[-1]['what']:<70} ratio {rows[-1]['ratio']:.2f}", flush=True)
    result = {
        "what": "seconds of transformers' BERT (or of padding to 128) over seconds of ours, medians over turns",
        "rows": rows,
        "hardware": describe_hardware(torch.device("cpu"), 1),
        "versions": installed_versions(),
        "commit": current_commit(),
        "command": command_line(),
    }
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")
        print(f"Written: {options.output}")


if __name__ == "__main__":
    main()

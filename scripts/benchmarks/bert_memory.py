"""How much memory the batches of BERT's pre-training take while a corpus streams by, and while one ten times longer does.

    python scripts/benchmarks/bert_memory.py --output results.json

Made-up text is written as parquet and streamed: documents -> word pieces -> pairs -> masked batches. Nothing may be kept
(`memory_budget_gb` 0), pools are small, and each corpus is read by a process of its own, once to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from hf_papers.papers.bert.training_bert import BertPretrainingTask
from hf_papers.training.recipe import load_recipe
from hf_papers.training.run import command_line, current_commit, describe_hardware, installed_versions
from hf_papers.training.task import Context


WORDS_PER_DOCUMENT = 400
SHARDS = 4


def documents(count: int) -> Iterator[str]:
    """Texts of made-up words, a few of them frequent, as words are."""
    draw = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(draw.choice(letters, draw.integers(2, 9))) for _ in range(5000)])
    for _ in range(count):
        ranks = np.minimum(draw.zipf(1.3, WORDS_PER_DOCUMENT), len(words)) - 1
        sentences = np.array_split(words[ranks], WORDS_PER_DOCUMENT // 16)
        yield " ".join(" ".join(sentence) + "." for sentence in sentences)


def write_corpus(folder: Path, count: int) -> int:
    """Documents as parquet shards; returns the bytes of text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = documents(count)
    size = 0
    for shard in range(SHARDS):
        rows = [next(texts) for _ in range(count // SHARDS)]
        size += sum(map(len, rows))
        path = folder / f"train-{shard:05d}-of-{SHARDS:05d}.parquet"
        pq.write_table(pa.table({"text": rows}), path, row_group_size=200)
    return size


def print_sizes(folder: str) -> None:
    """Resident size in MB after every twentieth batch of the first epoch, as a JSON list."""
    overrides = {
        "dataset": f"{folder}/corpus",
        "tokenizer": f"{folder}/tokenizer",
        "validation_split": "none",
        "test_split": "none",
        "memory_budget_gb": "0",
        "shuffle_buffer_size": "500",
        "pool_tokens": "100000",
    }
    task = BertPretrainingTask(load_recipe("bert", "embedded", overrides))
    batches = task.batches({}, Context(torch.device("cpu"), rank=0, world_size=1, seed=0))
    sizes, count = [], 0
    while True:
        next(batches)
        if task.epoch > 0:
            break
        count += 1
        if count % 20 == 0:
            sizes.append(resident_mb())
    print(json.dumps(sizes))


def resident_mb() -> float:
    """The memory of this process, in 10^6 bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def measure(count: int) -> dict[str, object]:
    """The sizes of a process that reads a corpus of `count` documents once."""
    from hf_papers.papers.bert.tokenization_bert import train_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        size = write_corpus(corpus, count)
        vocab_size = load_recipe("bert", "embedded").config.vocab_size
        train_tokenizer(documents(500), vocab_size).save_pretrained(f"{folder}/tokenizer")
        command = [sys.executable, __file__, "--sizes_of", folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        sizes = json.loads(done.stdout.splitlines()[-1])
    return {"documents": count, "text_mb": round(size / 1e6, 1), "largest_mb": max(sizes), "resident_mb": sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--documents", type=int, default=2000, help="of the short corpus; the long one has ten times more"
    )
    parser.add_argument("--output", type=Path, help="file to write the result to, as JSON")
    parser.add_argument("--sizes_of", help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    if options.sizes_of:
        print_sizes(options.sizes_of)
        return
    short, long = measure(options.documents), measure(10 * options.documents)
    result = {
        "what": "resident memory while pre-training batches are made from a corpus, and from one ten times longer",
        "corpora": [short, long],
        "growth_mb": round(long["largest_mb"] - short["largest_mb"], 1),
        "hardware": describe_hardware(torch.device("cpu"), 1),
        "versions": installed_versions(),
        "commit": current_commit(),
        "command": command_line(),
    }
    for corpus in (short, long):
        print(f"{corpus['text_mb']:>8} MB of text   at most {corpus['largest_mb']} MB resident")
    print(f"Ten times more text takes {result['growth_mb']} MB more.")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Kill a training by SIGKILL at random moments, resume it, and compare the final weights with the uninterrupted run's.

    python scripts/benchmarks/resume.py --kills 20 --output results.json

The VAE streams: from `--dataset ylecun/mnist` (set HF_ENDPOINT to serve it) or, by default, from shards written beside it.
Exit status 1 if a single byte of the weights differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from hf_papers.training.run import current_commit, installed_versions


COMMON = ["--use_cpu", "--report_to", "none", "--logging_steps", "10", "--progress", "false"]
RUNS = {
    "vae": ["--recipe", "embedded", "--max_steps", "1200", "--save_steps", "60", "--eval_steps", "300"],
    "gan": ["--recipe", "embedded", "--max_steps", "300", "--save_steps", "20", "--parzen_samples", "200"],
    "dqn": ["--recipe", "embedded", "--environment_steps", "4000", "--save_steps", "100", "--eval_steps", "1000"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--papers", nargs="+", default=list(RUNS))
    parser.add_argument("--dataset", help="Hub id for the VAE, streamed and shuffled; HF_ENDPOINT names the server")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        references = {}
        for paper in arguments.papers:
            out = folder / f"{paper}-whole"
            subprocess.run(command(paper, out, arguments.dataset), check=True, stdout=subprocess.DEVNULL)
            references[paper] = (digest(out), json.loads((out / "results.json").read_text())["steps"])
        for index in range(arguments.kills):
            paper = arguments.papers[index % len(arguments.papers)]
            whole, steps = references[paper]
            moment = moments.uniform(0.05, 0.95)
            out = folder / f"{paper}-{index}"
            killed_at = kill_at(
                command(paper, out, arguments.dataset), out, int(moment * steps), moments.uniform(0, 0.2)
            )
            subprocess.run(command(paper, out, arguments.dataset), check=True, stdout=subprocess.DEVNULL)
            same = digest(out) == whole
            rows.append({"paper": paper, "killed_after_step": killed_at, "of": steps, "bit_identical": same})
            print(
                f"{index + 1:>3}  {paper}  killed after step {killed_at} of {steps}: {'identical' if same else 'DIFFERENT'}"
            )
            shutil.rmtree(out)
            if arguments.output:  # after every kill, so that an interrupted benchmark keeps what it measured
                write(arguments.output, rows, arguments.dataset)
    identical = sum(row["bit_identical"] for row in rows)
    print(f"{identical} of {len(rows)} resumed runs ended bit-identical to the uninterrupted one.")
    sys.exit(identical != len(rows))


def write(path: Path, rows: list[dict], dataset: str | None) -> None:
    record = {
        "benchmark": "resume after SIGKILL",
        "identical": sum(row["bit_identical"] for row in rows),
        "kills": len(rows),
        "vae_data": dataset or "embedded:digits",
        "rows": rows,
        "versions": installed_versions(),
        "commit": current_commit(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")


def command(paper: str, out: Path, dataset: str | None) -> list[str]:
    words = [sys.executable, "-m", "hf_papers", "train", paper, *RUNS[paper], *COMMON, "--output_dir", str(out)]
    if paper == "vae" and dataset:
        # Small blocks and no memory: the position in the stream and in the shuffled block is what must come back.
        words[words.index("embedded")] = "mnist"
        words += ["--dataset", dataset, "--shuffle_buffer_size", "2000", "--memory_budget_gb", "0"]
        words += ["--importance_samples", "0", "--max_steps", "300"]
    return [*words, "--resume", "auto"]


def kill_at(words: list[str], out: Path, step: int, delay: float) -> int:
    """Start, wait until the run's record passes `step` (and a moment more), kill. Returns the last recorded step."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and recorded_step(out) < step:
        try:
            process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
    try:
        process.wait(timeout=delay)
    except subprocess.TimeoutExpired:
        process.kill()
    process.wait()
    return recorded_step(out)


def recorded_step(out: Path) -> int:
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    complete = [line for line in lines if line.endswith("}")]
    return json.loads(complete[-1])["step"] if complete else 0


def digest(out: Path) -> str:
    """Of the weights of the last checkpoint and of the published model."""
    newest = max((out / "checkpoints").glob("checkpoint-????????"))
    files = [newest / "model.safetensors", out / "model.safetensors"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

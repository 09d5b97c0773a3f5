"""How fast batches come: streamed over HTTP, from the second epoch on, and from plain tensors in memory; and how much
memory a data set takes that is ten times larger than its budget.

    python scripts/benchmarks/streaming.py --hub_root ../shared/hub --output results/streaming.json
    HF_ENDPOINT=http://127.0.0.1:8080 python scripts/benchmarks/streaming.py

With `--hub_root` a local Hub serves that folder from a process of its own; else the Hub is where `HF_ENDPOINT` says.
The speeds are taken in turns within one run, so that whatever else the machine does falls on all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[2]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--hub_root", help="folder with datasets/<namespace>/<name> to serve locally")
    parser.add_argument("--dataset", default="ylecun/mnist", help="data set with the columns image and label")
    parser.add_argument("--split", default="train")
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=15, help="how often each kind of epoch from memory is timed")
    parser.add_argument("--memory_rows", type=int, default=20_000, help="rows of the data set that exceeds its budget")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    # For a process of its own: see `resident_sizes`.
    parser.add_argument("--memory_of", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


@contextlib.contextmanager
def local_hub(root: str | None) -> Iterator[None]:
    """The Hub's clients in this process use a server that serves `root`; nothing changes without one."""
    if root is None:
        yield
        return
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.hub.server", "--root", root], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        line = server.stdout.readline().strip()
        if not line.startswith("HF_ENDPOINT="):
            raise SystemExit(f"The local Hub did not start: {line!r}")
        with tempfile.TemporaryDirectory() as home:
            os.environ |= {
                "HF_ENDPOINT": line.removeprefix("HF_ENDPOINT="),
                "HF_HOME": home,
                "HF_HUB_DISABLE_XET": "1",
            }
            yield
    finally:
        server.terminate()
        server.wait()


def to_tensors(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """`pixel_values` (n, 784) float32 in [0, 1] and `labels` (n,)."""
    import numpy as np
    import torch

    pixels = torch.from_numpy(np.stack([np.asarray(row["image"]) for row in rows]))
    return {"pixel_values": pixels.flatten(1) / 255, "labels": torch.tensor([row["label"] for row in rows])}


def plain_batches(tensors: dict[str, Any], batch_size: int) -> Iterator[dict[str, Any]]:
    """One shuffled epoch as a bare PyTorch loop would have it."""
    import torch

    order = torch.randperm(len(tensors["labels"]))
    for start in range(0, len(order) - batch_size + 1, batch_size):
        numbers = order[start : start + batch_size]
        yield {name: values.index_select(0, numbers) for name, values in tensors.items()}


def seconds_of(batches: Iterator[dict[str, Any]], count: int) -> tuple[float, float]:
    """Time to take `count` batches and to touch each of them: by the clock, and of this process's own."""
    start, own_start = time.perf_counter(), time.process_time()
    for _ in range(count):
        next(batches)["pixel_values"][0, 0].item()
    return time.perf_counter() - start, time.process_time() - own_start


def speeds(options: argparse.Namespace) -> dict[str, Any]:
    """Rows per second of the first epoch, of those from memory, and of a bare loop over the same tensors."""
    from hf_papers.data import DataArguments, open_source

    arguments = DataArguments(dataset=options.dataset, num_workers=options.num_workers)
    stream = open_source(arguments).stream(options.split, to_tensors, options.batch_size, seed=0)
    start = time.perf_counter()
    next(stream)
    to_first_batch = time.perf_counter() - start
    batches = 1
    while True:
        next(stream)
        if stream.epoch > 0:
            break
        batches += 1
    first = time.perf_counter() - start
    while not stream.in_memory:
        next(stream)
    tensors = {
        name: values.clone() for name, values in open_source(arguments).tensors(options.split, to_tensors).items()
    }
    from_memory, bare = [], []
    for _ in range(options.rounds):
        from_memory.append(seconds_of(stream, batches))
        bare.append(seconds_of(plain_batches(tensors, options.batch_size), batches))
    rows = batches * options.batch_size
    (ours, ours_cpu), (theirs, theirs_cpu) = (
        map(sum, zip(*from_memory, strict=True)),
        map(sum, zip(*bare, strict=True)),
    )
    return {
        "seconds_to_first_batch": round(to_first_batch, 3),
        "first_epoch_rows_per_second": round(rows / first),
        "later_epochs_rows_per_second": round(options.rounds * rows / ours),
        "in_memory_rows_per_second": round(options.rounds * rows / theirs),
        "later_over_in_memory": round(theirs / ours, 3),
        "later_over_in_memory_cpu_time": round(theirs_cpu / ours_cpu, 3),
        "rows": rows,
    }


def write_large(folder: Path, rows: int) -> int:
    """Random 32x32x3 pictures as parquet in eight shards; how many bytes they are as float32 tensors."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = np.random.default_rng(0)
    for shard in range(8):
        pixels = draw.integers(0, 256, (rows // 8, 3 * 32 * 32), dtype=np.uint8)
        table = pa.table({"pixels": [row.tobytes() for row in pixels]})
        pq.write_table(table, folder / f"train-{shard:05d}-of-00008.parquet", row_group_size=256, compression="NONE")
    return rows // 8 * 8 * 3 * 32 * 32 * 4


def to_floats(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """`pixel_values` (n, 3072) float32."""
    import numpy as np
    import torch

    pixels = np.stack([np.frombuffer(row["pixels"], np.uint8) for row in rows])
    return {"pixel_values": torch.from_numpy(pixels).float()}


def print_memory(folder: str, budget_gb: float) -> None:
    """Resident size in MB through three epochs, as a JSON list: at the start, then at every tenth of an epoch."""
    from hf_papers.data import DataArguments, open_source

    arguments = DataArguments(dataset=folder, memory_budget_gb=budget_gb, shuffle_buffer_size=1000)
    source = open_source(arguments)
    stream = source.stream("train", to_floats, 100, seed=0)
    next(stream)
    per_epoch = source.num_rows("train") // 100
    sizes = [resident_mb()]
    for count in range(1, 3 * per_epoch):
        next(stream)
        if count % (per_epoch // 10) == 0:
            sizes.append(resident_mb())
    print(json.dumps(sizes))


def resident_mb() -> float:
    """The memory of this process, in 10^6 bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Resident sizes for a data set of ten times the budget, and for the same data set when it may be kept."""
    with tempfile.TemporaryDirectory() as folder:
        size = write_large(Path(folder), options.memory_rows)
        curves = {}
        for name, budget in (("ten_times_the_budget", size / 10), ("within_the_budget", size * 2)):
            command = [sys.executable, __file__, "--dataset", folder, "--memory_of", str(budget / 1e9)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            curves[name] = json.loads(done.stdout.splitlines()[-1])
    over = curves["ten_times_the_budget"]
    third = len(over) // 3
    return {
        "data_mb": round(size / 1e6),
        "budget_mb": round(size / 1e7),
        "resident_mb": curves,
        "growth_after_first_epoch_mb": round(max(over[third:]) - max(over[:third]), 1),
        "growth_when_kept_mb": round(max(curves["within_the_budget"]) - curves["within_the_budget"][0], 1),
    }


def main() -> None:
    options = parse()
    sys.path.insert(0, str(ROOT))
    if options.memory_of is not None:
        print_memory(options.dataset, options.memory_of)
        return
    with local_hub(options.hub_root):
        figures = {"speed": speeds(options), "memory": memory(options)}
    import torch

    figures["settings"] = {
        name: getattr(options, name)
        for name in ("dataset", "split", "batch_size", "num_workers", "rounds", "memory_rows")
    }
    figures["machine"] = {
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
    }
    speed, held = figures["speed"], figures["memory"]
    print(f"first epoch, streamed         {speed['first_epoch_rows_per_second']:>12,} rows/s")
    print(f"later epochs                  {speed['later_epochs_rows_per_second']:>12,} rows/s")
    print(f"plain tensors in memory       {speed['in_memory_rows_per_second']:>12,} rows/s")
    print(f"later epochs / plain tensors  {speed['later_over_in_memory']:>12.3f}   (wanted: at least 0.9)")
    print(
        f"  the same in CPU time        {speed['later_over_in_memory_cpu_time']:>12.3f}   (steadier on a busy machine)"
    )
    print(
        f"memory growth after the first epoch, data of {held['data_mb']:,} MB on a budget of {held['budget_mb']:,} MB: "
        f"{held['growth_after_first_epoch_mb']:.1f} MB; when it is kept: {held['growth_when_kept_mb']:,.0f} MB"
    )
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(figures, indent=2) + "\n")
        print(f"written to {options.output}")


if __name__ == "__main__":
    main()

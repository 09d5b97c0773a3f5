"""Two real processes: the documented launcher starts two, they agree, and what is uneven ends in a sentence."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_papers.registry import papers
from tests.common.cases import case_class


ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def run(command, **environment):
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE", "MASTER_"))}
    return subprocess.run(
        command,
        cwd=ROOT,
        env=clean | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def hf_papers(*words):
    return run([sys.executable, "-m", "hf_papers", *words])


# The paper's own tiny runs: a few steps of each kind of training.
SHORT = {key: case_class(paper).short_run for key, paper in papers().items()}


@pytest.mark.parametrize("paper", SHORT)
def test_the_documented_launcher_trains_every_paper_on_two_processes(paper, tmp_path):
    out = tmp_path / "run"
    options = ["--num_processes", "2", "--use_cpu", "--report_to", "none", "--output_dir", str(out), *SHORT[paper]]
    result = hf_papers("train", paper, *options)
    assert result.returncode == 0, result.stderr[-3000:]
    results = json.loads((out / "results.json").read_text())
    assert results["hardware"]["processes"] == 2
    state = next((out / "checkpoints").iterdir()) / "state"
    assert sorted(path.name for path in state.glob("process-*.json")) == ["process-00000.json", "process-00001.json"]
    # Each process drew its own noise and data, or the second one would only repeat the first.
    random = [json.loads((state / f"process-0000{rank}.json").read_text()) for rank in (0, 1)]
    assert random[0] != random[1]


def test_two_processes_resume_bit_identical(tmp_path):
    options = ["--num_processes", "2", "--use_cpu", "--report_to", "none", *SHORT["vae"], "--max_steps", "8"]
    options += ["--save_steps", "4", "--output_dir", str(tmp_path / "run"), "--resume", "auto"]
    result = hf_papers("train", "vae", *options)
    assert result.returncode == 0, result.stderr[-3000:]
    last = tmp_path / "run" / "checkpoints" / "checkpoint-00000008"
    whole = load_file(last / "model.safetensors")
    shutil.rmtree(last)
    result = hf_papers("train", "vae", *options)
    assert result.returncode == 0 and "at step 4" in result.stderr, result.stderr[-3000:]
    again = load_file(last / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_gradients_of_two_processes_equal_those_of_one_with_twice_the_batch(tmp_path):
    script = str(Path(__file__).with_name("vae_gradient.py"))
    for command, name in (([sys.executable], "one"), (TORCHRUN, "two")):
        result = run([*command, script, str(tmp_path / name)], PYTHONPATH=str(ROOT))
        assert result.returncode == 0, result.stderr[-3000:]
    file = "checkpoints/checkpoint-00000001/model.safetensors"
    one, two = load_file(tmp_path / "one" / file), load_file(tmp_path / "two" / file)
    assert one.keys() == two.keys()
    for name, value in one.items():  # one step of plain gradient descent at rate 1: weights differ as gradients do
        assert torch.allclose(value, two[name], rtol=0, atol=1e-6), (name, (value - two[name]).abs().max())


def test_accelerate_launch_on_the_cpu_does_not_silently_run_one_process(tmp_path):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    result = run([*launcher, "scripts/train.py", "vae", "--output_dir", str(tmp_path / "run")])
    assert "asked for several processes but started this one alone" in result.stderr
    assert "--num_processes 2 --use_cpu" in result.stderr
    assert result.returncode != 0 and not (tmp_path / "run").exists()


def test_accelerate_launch_runs_the_script(tmp_path):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    out = tmp_path / "run"
    options = ["--output_dir", str(out), "--report_to", "none", *SHORT["vae"]]
    result = run([*launcher, "scripts/train.py", "vae", *options])
    assert result.returncode == 0, result.stderr[-3000:]
    assert (out / "model.safetensors").is_file()


def test_shards_of_uneven_size_end_in_a_sentence(tmp_path):
    from datasets import Dataset, Features, Image

    images = [{"path": None, "bytes": image} for image in _pngs(72)]
    folder = tmp_path / "data"
    folder.mkdir()
    features = Features({"image": Image()})
    Dataset.from_dict({"image": images[:64]}, features=features).to_parquet(folder / "train-00000.parquet")
    Dataset.from_dict({"image": images[64:]}, features=features).to_parquet(folder / "train-00001.parquet")
    splits = ["--train_split", "train", "--validation_split", "train[:8]", "--test_split", "train[:8]"]
    size = ["--max_steps", "200", "--per_device_train_batch_size", "4", "--importance_samples", "0"]
    options = ["--num_processes", "2", "--use_cpu", "--report_to", "none", "--output_dir", str(tmp_path / "run")]
    result = hf_papers("train", "vae", "--dataset", str(folder), *splits, *size, *options)
    assert result.returncode != 0
    assert "hold different numbers of rows" in result.stderr, result.stderr[-3000:]


def test_fewer_rows_than_processes_end_in_a_sentence(tmp_path):
    from datasets import Dataset, Features, Image

    folder = tmp_path / "data"
    folder.mkdir()
    images = [{"path": None, "bytes": image} for image in _pngs(3)]
    Dataset.from_dict({"image": images}, features=Features({"image": Image()})).to_parquet(folder / "train.parquet")
    splits = ["--train_split", "train", "--validation_split", "train", "--test_split", "train"]
    options = ["--num_processes", "2", "--use_cpu", "--report_to", "none", "--output_dir", str(tmp_path / "run")]
    result = hf_papers("train", "vae", "--dataset", str(folder), *splits, "--max_steps", "5", *options)
    assert result.returncode != 0
    assert "hf-papers:" in result.stderr and "rows" in result.stderr, result.stderr[-3000:]


def _pngs(count):
    import io

    import numpy as np
    from PIL import Image as PilImage

    generator = np.random.default_rng(0)
    for _ in range(count):
        file = io.BytesIO()
        PilImage.fromarray(generator.integers(0, 255, (8, 8), dtype=np.uint8)).save(file, "PNG")
        yield file.getvalue()

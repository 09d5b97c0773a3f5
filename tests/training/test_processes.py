"""Two real processes: every paper trains on them, and together they do what one does with twice the batch."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.launching import ROOT, SHORT, TORCHRUN, hf_papers, run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Every paper trained on two processes: where the runs are, and what was said on the way."""
    root = tmp_path_factory.mktemp("two")
    common = ["--use_cpu", "--report_to", "none"]
    plan = {paper: [*common, "--output_dir", str(root / paper), *words] for paper, words in SHORT.items()}
    (root / "plan.json").write_text(json.dumps(plan))
    script = str(Path(__file__).with_name("every_paper.py"))
    result = run([*TORCHRUN, script, str(root / "plan.json")], PYTHONPATH=str(ROOT))
    return root, result.stderr


@pytest.mark.parametrize("paper", SHORT)
def test_every_paper_trains_on_two_processes(paper, trained):
    root, said = trained
    out = root / paper
    assert (out / "results.json").is_file(), said[-3000:]
    results = json.loads((out / "results.json").read_text())
    assert results["hardware"]["processes"] == 2
    state = next((out / "checkpoints").iterdir()) / "state"
    assert sorted(path.name for path in state.glob("process-*.json")) == ["process-00000.json", "process-00001.json"]
    # Each process drew its own noise and data, or the second one would only repeat the first.
    random = [json.loads((state / f"process-0000{rank}.json").read_text()) for rank in (0, 1)]
    assert random[0] != random[1]


def test_two_processes_started_as_documented_resume_bit_identical(tmp_path):
    options = ["--num_processes", "2", "--use_cpu", "--report_to", "none", *SHORT["vae"], "--max_steps", "8"]
    options += ["--save_steps", "4", "--output_dir", str(tmp_path / "run"), "--resume", "auto"]
    result = hf_papers("train", "vae", *options)
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads((tmp_path / "run" / "results.json").read_text())["hardware"]["processes"] == 2
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

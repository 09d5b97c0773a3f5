"""Two real processes: every paper trains on them, and together they do what one does with twice the batch."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.launching import ROOT, SHORT, TORCHRUN, hf_papers, run
from tests.training.vae_gradient import one_gradient_step


pytestmark = pytest.mark.first

# Long enough to be continued from a checkpoint that is not the last one.
VAE = [*SHORT["vae"], "--max_steps", "8", "--save_steps", "4"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Every paper trained on two processes: where the runs are, and what was said on the way."""
    root = tmp_path_factory.mktemp("two")
    common = ["--use_cpu", "--report_to", "none"]
    options = {**SHORT, "vae": VAE}
    trainings = {paper: [*common, "--output_dir", str(root / paper), *words] for paper, words in options.items()}
    (root / "plan.json").write_text(json.dumps({"trainings": trainings, "gradient": str(root / "gradient")}))
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


def test_two_processes_started_as_documented_resume_bit_identical(trained, tmp_path):
    shutil.copytree(trained[0] / "vae", tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "checkpoint-00000008"
    whole = load_file(last / "model.safetensors")
    shutil.rmtree(last)
    (tmp_path / "run" / "results.json").unlink()
    options = ["--num_processes", "2", "--use_cpu", "--report_to", "none", *VAE, "--resume", "auto"]
    result = hf_papers("train", "vae", *options, "--output_dir", str(tmp_path / "run"))
    assert result.returncode == 0 and "at step 4" in result.stderr, result.stderr[-3000:]
    assert json.loads((tmp_path / "run" / "results.json").read_text())["hardware"]["processes"] == 2
    again = load_file(last / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_gradients_of_two_processes_equal_those_of_one_with_twice_the_batch(trained, tmp_path):
    root, said = trained
    one_gradient_step(str(tmp_path))
    file = "checkpoints/checkpoint-00000001/model.safetensors"
    assert (root / "gradient" / file).is_file(), said[-3000:]
    one, two = load_file(tmp_path / file), load_file(root / "gradient" / file)
    assert one.keys() == two.keys()
    for name, value in one.items():  # one step of plain gradient descent at rate 1: weights differ as gradients do
        assert torch.allclose(value, two[name], rtol=0, atol=1e-6), (name, (value - two[name]).abs().max())

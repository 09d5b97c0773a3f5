"""What the whole suite shares: the registry told to transformers, one thread, and the two subprocesses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel

import hf_papers
from hf_papers.hub.bundle import write_bundle
from tests.common.cases import ModelCase, registered_cases
from tests.common.checks import outputs_of
from tests.common.toy.configuration_toy import PaperToyConfig
from tests.common.toy.modeling_toy import PaperToyModel


PROBE = Path(__file__).with_name("probe.py")


@pytest.fixture(autouse=True, scope="module")
def quiet_and_exact() -> Iterator[None]:
    """One thread, because sums over two differ in their last bit; no progress bars and no load reports."""
    threads, verbosity = torch.get_num_threads(), transformers.logging.get_verbosity()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()


@pytest.fixture(scope="session")
def toy() -> ModelCase:
    hf_papers.register_all()
    AutoConfig.register("paper-toy", PaperToyConfig)
    AutoModel.register(PaperToyConfig, PaperToyModel)
    return ModelCase(PaperToyConfig, PaperToyModel)


Answers = dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """A published folder of every case, with inputs and the outputs that are expected of it."""
    root, jobs = tmp_path_factory.mktemp("bundles"), {}
    for case in registered_cases():
        model, name = case.model(seed=7), repr(case)
        processor_class = case.paper.image_processor_class
        write_bundle(model, processor_class() if processor_class else None, root / name / "bundle")
        inputs = case.inputs(model)
        save_file(inputs, root / name / "inputs.safetensors")
        save_file(
            {key: value.contiguous() for key, value in outputs_of(model, inputs).items()},
            root / name / "expected.safetensors",
        )
        jobs[name] = {
            "folder": str(root / name),
            "auto_class": case.auto_class,
            "config": case.config_class.__name__,
            "model": case.model_class.__name__,
            "processor": processor_class.__name__ if processor_class else "",
        }
    return jobs


def probe(jobs: dict[str, dict[str, str]], mode: str, folder: Path) -> Answers:
    """Runs `probe.py` in a fresh Python, outside the project, and returns what it says of every job."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROBE), mode, str(folder / "jobs.json"), str(folder / "answers.json")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return json.loads((folder / "answers.json").read_text())


@pytest.fixture(scope="session")
def strangers(bundles: dict[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """What a Python without hf_papers finds in every bundle."""
    return probe(bundles, "without", tmp_path_factory.mktemp("without"))


@pytest.fixture(scope="session")
def friends(bundles: dict[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """What a Python that only says `import hf_papers` finds in every bundle, without trusting remote code."""
    return probe(bundles, "with", tmp_path_factory.mktemp("with"))

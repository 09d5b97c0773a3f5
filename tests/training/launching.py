"""Commands in processes of their own, as users start them."""

import os
import subprocess
import sys
from pathlib import Path

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

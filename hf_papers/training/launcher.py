"""Several processes on one machine: started where asked for, and never silently one instead of several."""

from __future__ import annotations

import os
import subprocess
import sys

from hf_papers.errors import UserError


def inside_launcher() -> bool:
    """Whether torchrun or `accelerate launch` already started this process as one of several."""
    return "WORLD_SIZE" in os.environ


def refuse_half_a_launch() -> None:
    """`accelerate launch --cpu --num_processes 2` prepares for two processes and starts one; say so.

    Its launcher for the CPU sets the address of a main process only if several were asked for, and leaves starting them
    to mpirun.
    """
    asked_for_several = "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ
    if asked_for_several and not inside_launcher():
        raise UserError(
            "accelerate launch was asked for several processes but started this one alone, as it does on the CPU without "
            "mpirun. Start them by `python scripts/train.py … --num_processes 2 --use_cpu`."
        )


def relaunch(processes: int, arguments: list[str], module: str = "hf_papers") -> int:
    """Run `python -m module <arguments>` as `processes` processes under torchrun; returns its exit status."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)), **os.environ}
    return subprocess.run([*command, "-m", module, *arguments], env=environment).returncode

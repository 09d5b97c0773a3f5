"""All that the tests want of two processes, one after the other in the same ones: a launch costs more than they do.

torchrun ... tests/training/every_paper.py PLAN.json, which holds paper -> options of its training by `embedded`, and as
`gradient` the folder for `vae_gradient.py`
"""

import json
import sys
from pathlib import Path

from hf_papers.cli import parse_overrides
from hf_papers.registry import register_all
from hf_papers.training.finish import run_recipe
from hf_papers.training.recipe import load_recipe
from tests.training.vae_gradient import one_gradient_step


if __name__ == "__main__":
    plan = json.loads(Path(sys.argv[1]).read_text())
    register_all()
    for paper, words in plan["trainings"].items():
        run_recipe(load_recipe(paper, "embedded", parse_overrides(words)), more_follow=True)
    one_gradient_step(plan["gradient"])

"""The short trainings of several papers one after the other in the same processes; a launch costs more than they do.

torchrun ... tests/training/every_paper.py PLAN.json, which holds paper -> options of its training by `embedded`
"""

import json
import sys
from pathlib import Path

from hf_papers.cli import parse_overrides
from hf_papers.registry import register_all
from hf_papers.training.finish import run_recipe
from hf_papers.training.recipe import load_recipe


if __name__ == "__main__":
    plan = json.loads(Path(sys.argv[1]).read_text())
    register_all()
    for place, (paper, words) in enumerate(plan.items(), 1):
        run_recipe(load_recipe(paper, "embedded", parse_overrides(words)), more_follow=place < len(plan))

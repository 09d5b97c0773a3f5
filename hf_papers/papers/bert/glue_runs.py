"""The command behind scripts/run_glue.py: one or all of GLUE's tasks, seeds averaged, the paper's table 1 beside ours."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from hf_papers.cli import parse_overrides, print_results
from hf_papers.errors import UserError
from hf_papers.registry import register_all
from hf_papers.training.finish import run_recipe
from hf_papers.training.launcher import refuse_half_a_launch
from hf_papers.training.recipe import load_recipe


# Option of transformers' run_glue_no_trainer.py -> ours, where the names differ.
RENAMED = {
    "max_train_steps": "max_steps",
    "num_warmup_steps": "warmup_steps",
    "resume_from_checkpoint": "resume",
    "checkpointing_steps": "save_steps",
}


def house_options(words: Sequence[str]) -> dict[str, str]:
    """The options of the command line under the names of the house. Raises `UserError` for those that have no meaning here."""
    options = {RENAMED.get(name, name): value for name, value in parse_overrides(list(words)).items()}
    if options.get("save_steps") == "epoch":
        raise UserError("--checkpointing_steps takes a number of steps here, not 'epoch'.")
    if options.pop("with_tracking", "false") == "true":
        options.setdefault("report_to", "tensorboard")
    else:
        options.setdefault("report_to", "none")
    if options.get("report_to") == "all":
        options["report_to"] = "tensorboard"
    return options


def main(words: Sequence[str]) -> None:
    """Run the command and exit: 0 when it worked, 2 with a sentence when the user can mend what went wrong."""
    try:
        run(words)
    except UserError as error:
        print(f"run_glue.py: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2))


def run(words: Sequence[str]) -> None:
    options = house_options(words)
    refuse_half_a_launch()
    register_all()
    recipe = load_recipe("bert", options.pop("recipe", "glue"), options)
    folder = run_recipe(recipe)
    if os.environ.get("RANK", "0") == "0":
        print_results(folder)

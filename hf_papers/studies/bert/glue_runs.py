"""The command behind scripts/run_glue.py: one or all of GLUE's tasks, seeds averaged, the paper's table 1 beside ours."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from hf_papers.cli import exit_by, parse_overrides, print_results
from hf_papers.errors import UserError
from hf_papers.papers.bert.glue_bert import EPOCHS, GLUE, LEARNING_RATES, find_glue
from hf_papers.registry import register_all
from hf_papers.studies.bert.glue_table import GlueScores, Try, pick, render_search, render_table, row_label
from hf_papers.training.arguments import TrainingArguments
from hf_papers.training.interruption import Interrupted
from hf_papers.training.launcher import inside_launcher, refuse_half_a_launch, relaunch
from hf_papers.training.recipe import Recipe, coerce, difference, load_recipe, load_run_recipe


# Option of transformers' run_glue_no_trainer.py -> ours, where the names differ.
RENAMED = {
    "max_train_steps": "max_steps",
    "num_warmup_steps": "warmup_steps",
    "resume_from_checkpoint": "resume",
    "checkpointing_steps": "save_steps",
}
GONE = {
    "hub_token": "Log in with `hf auth login` instead.",
    "trust_remote_code": "No code of a checkpoint is ever run here.",
    "use_slow_tokenizer": "There is one kind of tokenizer only.",
}
# The quickest first, so that the table fills early.
ORDER = ("wnli", "rte", "mrpc", "stsb", "cola", "sst2", "qnli", "qqp", "mnli")

HELP = """usage: run_glue.py --task_name TASK[,TASK…]|all [--model_name_or_path FOLDER_OR_HUB_ID] [--OPTION VALUE …]

  --task_name            one of GLUE's tasks, several by comma, or all; none with --train_file and --validation_file
  --seeds 0,1,2          run each and average
  --search               try the paper's learning rates (5e-5, 4e-5, 3e-5, 2e-5) and keep the best on dev
  --learning_rates LIST  the rates to search instead
  --epochs_grid LIST     the epochs to search, 3 when not given
  --do_predict           write the TSV files that gluebenchmark.com accepts
  --recipe NAME          glue when not given, or a YAML file

The names of transformers' run_glue_no_trainer.py work too: --max_train_steps, --num_warmup_steps, --with_tracking,
--resume_from_checkpoint, --checkpointing_steps. What follows are the options of one run.
"""


class ChangedRun(UserError):
    """The output folder holds a finished run of other options."""


@dataclass(frozen=True)
class Plan:
    """What is to be run. `options` are the overrides that all runs share."""

    options: dict[str, str]
    recipe: str = "glue"
    tasks: tuple[str | None, ...] = (None,)  # None: data of the user's own
    seeds: tuple[int, ...] = (0,)
    learning_rates: tuple[float, ...] = ()
    epochs: tuple[float, ...] = ()
    predicts: bool = False
    output_dir: Path = field(default_factory=Path)

    @property
    def searches(self) -> bool:
        return bool(self.learning_rates)

    @property
    def is_single(self) -> bool:
        """One run, which then lies in the output folder itself."""
        return len(self.tasks) == len(self.seeds) == 1 and not self.searches

    def folder(self, task: str | None, seed: int, rate: float | None = None, epochs: float | None = None) -> Path:
        if self.is_single:
            return self.output_dir
        setting = "" if rate is None else f"lr{rate:g}-epochs{epochs:g}-"
        return self.output_dir / (task or "own") / f"{setting}seed{seed}"

    def load(self, task: str | None, seed: int, rate: float | None = None, epochs: float | None = None) -> Recipe:
        """The recipe of one run."""
        options = {**self.options, "seed": str(seed), "output_dir": str(self.folder(task, seed, rate, epochs))}
        options |= {"task_name": task} if task else {}
        options |= {} if rate is None else {"learning_rate": str(rate), "num_train_epochs": str(epochs)}
        return load_recipe("bert", self.recipe, options)


def make_plan(words: Sequence[str]) -> Plan:
    """What the command line asks for. Raises `UserError` for what has no meaning here."""
    options = house_options(words)
    tasks = _tasks(options.pop("task_name", None))
    if tasks == (None,) and not {"train_file", "dataset"} & set(options):
        raise UserError(
            f"What is to be learnt? Add --task_name with one of {', '.join(ORDER)} or all; or files of your own by "
            "--train_file and --validation_file."
        )
    seeds = tuple(coerce(options.pop("seeds", options.pop("seed", "0")), list[int], "seeds"))
    options.pop("seed", None)
    searches = coerce(options.pop("search", "false"), bool, "search")
    rates = (
        tuple(coerce(options.pop("learning_rates", ""), list[float], "learning_rates"))
        if "learning_rates" in options
        else ()
    )
    epochs = (
        tuple(coerce(options.pop("epochs_grid", ""), list[float], "epochs_grid")) if "epochs_grid" in options else ()
    )
    if searches or rates or epochs:
        rates, epochs = rates or LEARNING_RATES, epochs or EPOCHS
        for name in ("learning_rate", "num_train_epochs"):
            if name in options:
                raise UserError(
                    f"--{name} is what --search looks for: leave it out, or give --learning_rates and --epochs_grid."
                )
    names = "-".join(task or "own" for task in tasks) if len(tasks) < len(ORDER) else "all"
    single = len(tasks) == len(seeds) == 1 and not rates
    default = f"runs/bert-glue-{names}" + (f"-seed{seeds[0]}" if single else "")
    predicts = coerce(options.pop("do_predict", "false"), bool, "do_predict")
    if predicts and options.get("implementation") == "transformers":
        raise UserError("--do_predict answers with our model: leave out --implementation transformers.")
    return Plan(
        recipe=options.pop("recipe", "glue"),
        tasks=tasks,
        seeds=seeds,
        learning_rates=rates,
        epochs=epochs,
        predicts=predicts,
        output_dir=Path(options.pop("output_dir", default)),
        options=options,
    )


def house_options(words: Sequence[str]) -> dict[str, str]:
    """The options of the command line under the names of the house. Raises `UserError` for what has no meaning here."""
    options = {RENAMED.get(name, name): value for name, value in parse_overrides(list(words)).items()}
    for name, sentence in GONE.items():
        if name in options:
            raise UserError(f"There is no option --{name} here. {sentence}")
    if options.get("save_steps") == "epoch":
        raise UserError("--checkpointing_steps takes a number of steps here, not 'epoch'.")
    if options.get("resume") == "true":
        options["resume"] = "auto"
    tracks = coerce(options.pop("with_tracking", "false"), bool, "with_tracking")
    options.setdefault("report_to", TrainingArguments().report_to if tracks else "none")
    if options["report_to"] == "all":
        options["report_to"] = TrainingArguments().report_to
    return options


def _numbers(options: dict[str, str], name: str) -> tuple[float, ...]:
    return tuple(coerce(options.pop(name), list[float], name)) if name in options else ()


def _tasks(text: str | None) -> tuple[str | None, ...]:
    if text is None:
        return (None,)
    if text == "all":
        return ORDER
    names = [name.strip() for name in text.split(",") if name.strip()]
    return tuple(find_glue(name).name for name in dict.fromkeys(names))


def main(words: Sequence[str]) -> NoReturn:
    """Run the command and exit, with a sentence where the user can mend what went wrong."""
    exit_by("run_glue.py", command, words)


def command(words: list[str]) -> int:
    if "--help" in words or "-h" in words:
        from hf_papers.training.help import describe_options

        print(HELP + describe_options("bert", "glue").split("\n", 1)[1])
        return 0
    plan = make_plan(words)
    refuse_half_a_launch()
    processes = coerce(plan.options.get("num_processes", "1"), int, "num_processes")
    if processes > 1 and not inside_launcher():
        return relaunch(processes, words, module=__name__)
    register_all()
    status = execute(plan)
    _let_go()
    return status


def _let_go() -> None:
    """All runs are done: the processes part, all at the same time."""
    import torch
    from accelerate import PartialState

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        state = PartialState()
        state.wait_for_everyone()
        state.destroy_process_group()


def execute(plan: Plan) -> int:
    """Run everything that has not run yet, and write and print what came of it. 2 when a task could not be run."""
    metrics: dict[str | None, dict[str, list[float]]] = {}
    record: dict[str, Any] = {"tasks": {}}
    failures = 0
    for task in plan.tasks:
        try:
            folders, tries = run_task(plan, task)
        except UserError as error:
            if isinstance(error, Interrupted | ChangedRun) or len(plan.tasks) == 1:
                raise
            failures += 1
            if is_first():
                print(f"{GLUE[task].title} was not run: {error}", file=sys.stderr)
            continue
        if is_first():
            metrics[task] = report_task(plan, task, folders, tries, record)
            if not plan.is_single:
                write_summary(plan, metrics, record)
    if is_first() and metrics and not plan.is_single:
        print((plan.output_dir / "table.md").read_text())
        print(f"Every run, table.md and results.json are in {plan.output_dir}.")
    if is_first() and plan.predicts:
        _tell_submission(plan)
    return 2 if failures else 0


def run_task(plan: Plan, task: str | None) -> tuple[list[Path], list[Try]]:
    """The folders of the runs that count for a task, one a seed, and what a search tried under the first seed."""
    if not plan.searches:
        return [run_once(plan.load(task, seed)) for seed in plan.seeds], []
    first = plan.seeds[0]
    tries = []
    for rate in plan.learning_rates:
        for epochs in plan.epochs:
            folder = run_once(plan.load(task, first, rate, epochs))
            tries.append(Try(rate, epochs, dev_score(folder), str(folder)))
    best = pick(tries)
    others = [run_once(plan.load(task, seed, best.learning_rate, best.epochs)) for seed in plan.seeds[1:]]
    return [Path(best.folder), *others], tries


def run_once(recipe: Recipe) -> Path:
    """Train, or go on with what was interrupted, or leave alone what is finished. Returns the run's folder."""
    from dataclasses import replace

    from hf_papers.training.finish import run_recipe

    folder = recipe.output_dir
    started = (folder / "recipe.yaml").is_file() and not recipe.training.overwrite_output_dir
    if started and (folder / "results.json").is_file():
        refuse_changed(folder, recipe)
        if is_first():
            print(f"{folder} is finished already.")
        return folder
    if started and recipe.training.resume is None and _has_checkpoint(folder):
        recipe = replace(recipe, training=replace(recipe.training, resume="auto"))
    elif started and recipe.training.resume is None:
        recipe = replace(recipe, training=replace(recipe.training, overwrite_output_dir=True))
    return run_recipe(recipe, more_follow=True)


def refuse_changed(folder: Path, recipe: Recipe) -> None:
    """A finished run of other options must not pass for one of these."""
    from hf_papers.papers.bert.training_glue import resolve

    changes = difference(load_run_recipe(folder), resolve(recipe))
    if changes:
        raise ChangedRun(
            f"The finished run in {folder} had other options: {'; '.join(changes)}. Give another --output_dir, or replace "
            "it by --overwrite_output_dir."
        )


def _has_checkpoint(folder: Path) -> bool:
    from hf_papers.training.checkpoint import CheckpointStore

    return CheckpointStore(folder / "checkpoints", 1).newest() is not None


def dev_score(folder: Path) -> float:
    """The number that a search goes by: the task's score, MNLI's the mean of its two dev sets."""
    metrics = read_results(folder)["metrics"]["test"]
    scores = [value for name, value in metrics.items() if name in ("score", "score_mm")]
    return sum(scores) / len(scores)


def read_results(folder: Path) -> dict[str, Any]:
    import json

    return json.loads((folder / "results.json").read_text())


def report_task(
    plan: Plan, task: str | None, folders: list[Path], tries: list[Try], record: dict[str, Any]
) -> dict[str, list[float]]:
    """Print what a task came to, add it to the record, and return its metrics: name -> a value a seed."""
    from hf_papers.reports import aggregate

    if plan.is_single:
        print_results(folders[0])
        split = read_results(folders[0])["task"]["scored_on"]
        print(f"What is called test above is the split '{split}', scored once, at the end.")
    results = aggregate(folders)
    summary = results["metrics"]["test"]
    record["tasks"][task or "own"] = {
        "seeds": results["seeds"],
        "metrics": summary,
        "start": read_results(folders[0])["task"]["start"],
        "runs": [str(folder) for folder in folders],
        "tries": [entry.to_dict() for entry in tries],
        "recipe": load_run_recipe(folders[0]).to_dict(),
        "wall_clock_s": results["wall_clock_s"],
        **{name: results[name] for name in ("parameters", "hardware", "versions", "commit", "command")},
    }
    if tries:
        print(render_search(task, tries) if task else "")
    if plan.predicts:
        _predict(plan, folders)
    return {name: values["values"] for name, values in summary.items()}


def _predict(plan: Plan, folders: list[Path]) -> None:
    from hf_papers.studies.bert.glue_answers import write_answers

    best = max(folders, key=dev_score)
    for path in write_answers(best, plan.output_dir / "submission"):
        print(f"Written: {path} (by {best})")


def _tell_submission(plan: Plan) -> None:
    from hf_papers.studies.bert.glue_answers import write_submission

    if plan.tasks == (None,):
        return
    archive, missing = write_submission(plan.output_dir / "submission")
    print(f"{archive} lacks {', '.join(missing)} for gluebenchmark.com." if missing else f"{archive} is complete.")


def write_summary(plan: Plan, metrics: dict[str | None, dict[str, list[float]]], record: dict[str, Any]) -> None:
    """Write table.md and results.json of all that has run so far into the output folder."""
    from hf_papers.reports.aggregate import write_json

    first = next(iter(record["tasks"].values()))
    label = row_label(first["start"], plan.options.get("implementation", "ours"), len(plan.seeds), len(first["tries"]))
    row = GlueScores(label, {task: values for task, values in metrics.items() if task})
    parts = [render_table([row])]
    for task, entry in record["tasks"].items():
        if entry["tries"] and task in GLUE:
            tries = [Try(try_["learning_rate"], try_["epochs"], try_["score"], try_["run"]) for try_ in entry["tries"]]
            parts.append(render_search(task, tries))
    record |= {"label": row.label, "average": row.average}
    (plan.output_dir / "table.md").write_text("\n".join(parts), encoding="utf-8")
    write_json(record, plan.output_dir / "results.json")


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"


if __name__ == "__main__":
    main(sys.argv[1:])

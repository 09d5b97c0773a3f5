"""Table 5 of the paper at small scale: what next-sentence prediction and reading from both sides are worth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from hf_papers.errors import UserError
from hf_papers.papers.bert.glue_bert import GLUE, find_glue
from hf_papers.reports.aggregate import recipe_values
from hf_papers.reports.curves import COLOURS, save_picture, style_axes
from hf_papers.studies.bert.runs import Study, read_run, summarise_runs
from hf_papers.training.recipe import load_run_recipe


@dataclass(frozen=True)
class Variant:
    """One pre-training: its row in table 5, and the options that make it of the recipe."""

    title: str
    short: str  # in the picture
    paper_title: str
    objective: str
    options: str

    def command(self, recipe: str, folder: Path) -> str:
        return " ".join(f"hf-papers train bert --recipe {recipe} {self.options} --output_dir {folder}".split())


VARIANTS = {
    "with_nsp": Variant("masked words and next sentence", "with NSP", "BERT BASE", "mlm_nsp", ""),
    "without_nsp": Variant(
        "without next sentence", "no NSP", "No NSP", "mlm", "--objective mlm --next_sentence_prediction false"
    ),
    "left_to_right": Variant(
        "left to right, without next sentence",
        "left to right, no NSP",
        "LTR & No NSP",
        "left_to_right",
        "--objective left_to_right --causal_attention true --next_sentence_prediction false",
    ),
}
# What the record keeps of a pre-training.
PRETRAINING = ("metrics", "steps", "parameters", "wall_clock_s", "hardware", "commit", "command")
# Options in which the three may differ: everything else has to be the same.
VARIED = {"task.objective", "model.causal_attention", "model.next_sentence_prediction"}

# Table 5 of 1810.04805, dev sets, BASE: accuracy in percent, and F1 for SQuAD.
TABLE_5_COLUMNS = {"mnli": "MNLI-m", "qnli": "QNLI", "mrpc": "MRPC", "sst2": "SST-2", "squad": "SQuAD"}
TABLE_5 = {
    "BERT BASE": (84.4, 88.4, 86.7, 92.7, 88.5),
    "No NSP": (83.9, 84.9, 86.5, 92.6, 87.9),
    "LTR & No NSP": (82.1, 84.3, 77.5, 92.1, 77.8),
    "LTR & No NSP + BiLSTM": (82.1, 84.1, 75.7, 91.6, 84.9),
}


def ablation_study(study: Study) -> Path | None:
    """Fine-tune the three pre-trainings on each task; returns the record, or None where only the commands are asked for."""
    recipe = study.take("pretraining_recipe", str, "nltk-english")
    only_commands = study.take("commands", bool, False)
    tasks = [find_glue(name).name for name in study.take("task_name", list[str], ["sst2", "mrpc"])]
    limit = study.take("max_train_rows", int | None, None)
    folders = {name: Path(study.take(name, str, str(study.runs / "pretraining" / name))) for name in VARIANTS}
    if only_commands:
        for name, variant in VARIANTS.items():
            print(variant.command(recipe, folders[name]))
        return None
    if "model_name_or_path" in study.options:
        raise UserError("The starts of this study are its pre-trainings: --with_nsp, --without_nsp, --left_to_right.")
    check_pretrainings(folders, recipe)
    rows = {name: _row(study, name, folders[name], tasks, limit) for name in VARIANTS}
    table = render_table(rows, tasks)
    figure = draw_ablations(rows, tasks, study.output / "ablations.png")
    path = study.write(
        {
            "tasks": tasks,
            "pretraining_recipe": recipe,
            "commands": {name: variant.command(recipe, folders[name]) for name, variant in VARIANTS.items()},
            "rows": rows,
            "table_5": {name: dict(zip(TABLE_5_COLUMNS.values(), row, strict=True)) for name, row in TABLE_5.items()},
            "not_run": {"LTR & No NSP + BiLSTM": "not run yet", "SQuAD": "not run yet"},
            "note": "Dev sets; accuracy as in table 5, CoLA by Matthews correlation. The left-to-right model stays causal "
            "in fine-tuning, as in section 5.1, and its last token stands for the text. One pre-training each; the spread "
            "is that of fine-tuning.",
        },
        [
            {"what": f"{GLUE[task].title}, {VARIANTS[name].title}", **row["tasks"][task]["result"]}
            for task in tasks
            for name, row in rows.items()
        ],
        {"Three pre-trainings of one recipe, fine-tuned: every seed a dot, the mean a bar": figure},
    )
    (study.output / "table.md").write_text(table, encoding="utf-8")
    print(table)
    return path


def check_pretrainings(folders: dict[str, Path], recipe: str) -> None:
    """Refuse what is unfinished, has another objective, or differs in more than what is studied."""
    values = {}
    for name, folder in folders.items():
        variant = VARIANTS[name]
        if not (folder / "results.json").is_file():
            raise UserError(
                f"There is no finished pre-training '{variant.title}' in {folder}. Make it by "
                f"`{variant.command(recipe, folder)}`, or name another folder by --{name}."
            )
        found = getattr(load_run_recipe(folder).task, "objective", None)
        if found != variant.objective:
            raise UserError(f"The run in {folder} was trained for the objective {found}, not {variant.objective}.")
        values[name] = recipe_values(folder)
    first = next(iter(values))
    for name, theirs in values.items():
        for option in (values[first] | theirs).keys() - VARIED:
            if values[first].get(option) != theirs.get(option):
                raise UserError(
                    f"These pre-trainings cannot be compared: {option} is {values[first].get(option)} in {folders[first]} "
                    f"and {theirs.get(option)} in {folders[name]}."
                )


def _row(study: Study, name: str, folder: Path, tasks: list[str], limit: int | None) -> dict[str, Any]:
    """One pre-training and what it came to on each task."""
    results = read_run(folder)
    fine_tuned = {}
    for task in tasks:
        label = f"{name}-{task}" + (f"-rows{limit}" if limit else "")
        runs = summarise_runs(study.train(label, model_name_or_path=folder, task_name=task, train_examples=limit))
        metric = table_metric(runs["metrics"])
        fine_tuned[task] = {"metric": metric, "result": runs["metrics"][metric], **runs}
    return {
        "title": VARIANTS[name].title,
        "paper_title": VARIANTS[name].paper_title,
        "pretraining": {key: results.get(key) for key in PRETRAINING},
        "tasks": fine_tuned,
    }


def table_metric(metrics: dict[str, Any]) -> str:
    """Table 5 shows accuracy, for MRPC too; what has none is shown by its own score."""
    return "accuracy" if "accuracy" in metrics else "score"


def render_table(rows: dict[str, Any], tasks: list[str]) -> str:
    """Ours, in percent, above the paper's table 5; Markdown."""
    columns = {**TABLE_5_COLUMNS, **{task: GLUE[task].title for task in tasks if task not in TABLE_5_COLUMNS}}
    lines = [
        "| pre-training | " + " | ".join(columns.values()) + " |",
        "| --- | " + " | ".join("---:" for _ in columns) + " |",
    ]
    for row in rows.values():
        cells = [_percent(row["tasks"][task]["result"]) if task in row["tasks"] else "not run yet" for task in columns]
        lines.append(f"| ours: {row['title']} | " + " | ".join(cells) + " |")
    for title, numbers in TABLE_5.items():
        cells = [*(f"{number}" for number in numbers), *("–" for _ in range(len(columns) - len(numbers)))]
        lines.append(f"| paper, table 5: {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _percent(summary: dict[str, Any]) -> str:
    spread = "" if summary["std"] is None else f" ± {100 * summary['std']:.1f}"
    return f"{100 * summary['mean']:.1f}{spread}"


def draw_ablations(rows: dict[str, Any], tasks: list[str], path: Path) -> Path:
    """A panel per task, a bar per pre-training, a dot per seed."""
    figure = Figure(figsize=(3.4 * len(tasks) + 1.6, 2.6), layout="constrained")
    for number, task in enumerate(tasks):
        axes = figure.add_subplot(1, len(tasks), number + 1)
        for place, row in enumerate(rows.values()):
            summary, colour = row["tasks"][task]["result"], COLOURS[place]
            axes.barh(place, summary["mean"], color=colour, alpha=0.35, height=0.6)
            axes.plot(summary["values"], [place] * len(summary["values"]), "o", color=colour, markersize=4)
        metric = next(iter(rows.values()))["tasks"][task]["metric"]
        style_axes(axes, f"{GLUE[task].title}, {metric if metric != 'score' else GLUE[task].metrics[0]}")
        axes.set_xlabel("")
        titles = [VARIANTS[name].short for name in rows] if number == 0 else [""] * len(rows)
        axes.set_yticks(range(len(rows)), titles, fontsize=9)
        axes.invert_yaxis()
    return save_picture(figure, path)

"""The paper's table 1 with our rows in it, from the results of runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hf_papers.errors import UserError
from hf_papers.papers.bert.glue_bert import GLUE, TABLE_1, TABLE_1_AVERAGE, TABLE_COLUMNS


MISSING = "not run yet"


@dataclass(frozen=True)
class GlueScores:
    """What was measured for the tasks that have run.

    label: the row's name, which says what the fine-tuning started from.
    metrics: task -> metric -> its value for each seed, between -1 and 1.
    """

    label: str
    metrics: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def values(self, column: str) -> list[float] | None:
        """One column of table 1 in percent, a value a seed; None where its task has not run."""
        task, suffix = TABLE_COLUMNS[column]
        values = self.metrics.get(task, {}).get(f"{GLUE[task].metrics[0]}{suffix}")
        return [100 * value for value in values] if values else None

    def mean(self, column: str) -> float | None:
        values = self.values(column)
        return statistics.fmean(values) if values else None

    @property
    def columns(self) -> list[str]:
        """Those that have run."""
        return [column for column in TABLE_COLUMNS if self.values(column)]

    @property
    def average(self) -> float | None:
        """The mean of all nine columns, as in the paper; None before all of them have run."""
        return _mean_over(self, TABLE_COLUMNS) if len(self.columns) == len(TABLE_COLUMNS) else None


def _mean_over(row: GlueScores, columns: Iterable[str]) -> float:
    return statistics.fmean(row.mean(column) for column in columns)


def paper_average(label: str, columns: Iterable[str]) -> float:
    """A row of the paper's table over some of its columns."""
    by_column = dict(zip(TABLE_COLUMNS, TABLE_1[label], strict=True))
    return statistics.fmean(by_column[column] for column in columns)


def render_table(rows: Iterable[GlueScores]) -> str:
    """Markdown: table 1 of the paper, our rows below it, and what has to be known to compare them."""
    rows = list(rows)
    lines = [_line(["", *TABLE_COLUMNS, "Average"]), _line(["---"] * (len(TABLE_COLUMNS) + 2))]
    for label, values in TABLE_1.items():
        lines.append(_line([f"{label}, test", *map(str, values), str(TABLE_1_AVERAGE[label])]))
    for row in rows:
        average = MISSING if row.average is None else f"{row.average:.1f}"
        lines.append(_line([f"{row.label}, dev", *(_cell(row.values(column)) for column in TABLE_COLUMNS), average]))
    notes = [
        "",
        "F1 for QQP and MRPC, Spearman's correlation for STS-B, Matthews' for CoLA and accuracy for the others, in percent. "
        "**The paper's rows are GLUE's test set, ours its dev set**, whose answers are public: compare them with care.",
    ]
    for row in rows:
        notes += [*_part_average(row), *_wnli(row)]
    return "\n".join([*lines, *notes]) + "\n"


def _part_average(row: GlueScores) -> list[str]:
    if not row.columns or row.average is not None:
        return []
    paper = ", ".join(f"{label} {paper_average(label, row.columns):.1f}" for label in TABLE_1)
    return ["", f"Mean of {', '.join(row.columns)}: {row.label} {_mean_over(row, row.columns):.1f}, {paper}."]


def _wnli(row: GlueScores) -> list[str]:
    values = row.metrics.get("wnli", {}).get("accuracy")
    if not values:
        return []
    return ["", f"WNLI, which the paper leaves out: {row.label} {_cell([100 * value for value in values])}."]


def _cell(values: list[float] | None) -> str:
    if not values:
        return MISSING
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def merge_records(records: Iterable[dict[str, Any]]) -> list[GlueScores]:
    """Results.json files of run_glue.py -> a row for each network and start, whichever files its tasks came from."""
    rows: dict[str, GlueScores] = {}
    for record in records:
        for task, entry in record["tasks"].items():
            implementation, tried = entry["recipe"]["task"]["implementation"], len(entry["tries"])
            label = row_label(entry["start"], implementation, len(entry["seeds"]), tried)
            row = rows.setdefault(label, GlueScores(label))
            if task in row.metrics:
                raise UserError(
                    f"Two records hold {GLUE[task].title} for '{label}': keep the one that is to be shown."
                )
            row.metrics[task] = {name: summary["values"] for name, summary in entry["metrics"].items()}
    return list(rows.values())


def row_label(start: dict[str, str], implementation: str, seeds: int, tried: int = 0) -> str:
    """A row's name: whose code ran, whose weights it started from, and of how many settings it is the best on dev."""
    origin = {
        "random": "random weights",
        "ours": f"our {start.get('architecture', '')} {start.get('name', '').removeprefix('runs/')}",
        "converted": f"converted {start.get('name', '')}" if implementation == "ours" else start.get("name", ""),
    }[start["kind"]]
    whose = "ours" if implementation == "ours" else "transformers' own"
    searched = f", best of {tried} settings" if tried > 1 else ""
    return f"{whose} from {origin}{searched}" + (f", mean of {seeds} seeds" if seeds > 1 else "")


@dataclass(frozen=True)
class Try:
    """One setting of a search: what was tried, and the score on dev that it got."""

    learning_rate: float
    epochs: float
    score: float
    folder: str

    def to_dict(self) -> dict[str, Any]:
        return {"learning_rate": self.learning_rate, "epochs": self.epochs, "score": self.score, "run": self.folder}


def pick(tries: Iterable[Try]) -> Try:
    """The best score on dev; among equals the one tried first."""
    return max(tries, key=lambda entry: entry.score)


def render_search(task: str, tries: Iterable[Try]) -> str:
    """Markdown: all that was tried for a task, the best in bold."""
    tries = list(tries)
    best = pick(tries)
    lines = [
        f"{GLUE[task].title}: chosen on the dev set that is scored, as in the paper (section 4.1).",
        "",
        _line(["learning rate", "epochs", "dev score"]),
        _line(["---"] * 3),
    ]
    for entry in tries:
        mark = "**" if entry is best else ""
        lines.append(_line([f"{entry.learning_rate:g}", f"{entry.epochs:g}", f"{mark}{100 * entry.score:.1f}{mark}"]))
    return "\n".join(lines) + "\n"

"""GLUE's table and the studies' rows in the paper's README, written from their results.json files and never by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_papers.errors import UserError
from hf_papers.reports.aggregate import describe_device, format_metric
from hf_papers.reports.tables import NOT_RUN, fill_block
from hf_papers.studies.bert.glue_table import merge_records, render_table


def studies_table(root: Path, names: tuple[str, ...]) -> str:
    """A row per headline number of every record under model_cards/bert-study; a study without a record has not run."""
    lines = [
        "| study | start | number | measured | seeds | hardware |",
        "| --- | --- | --- | ---: | ---: | --- |",
    ]
    records = read_records(root)
    for name in names:
        found = {folder: record for folder, record in records.items() if record["study"] == name}
        if not found:
            lines.append(f"| {name} | | | {NOT_RUN} | | |")
        for folder, record in found.items():
            lines += [_line(name, folder, record, entry) for entry in record["headline"]]
    return "\n".join(lines)


def _line(name: str, folder: str, record: dict[str, Any], entry: dict[str, Any]) -> str:
    start = record.get("start", {}).get("name", "three pre-trainings")
    link = f"[{name}](../../../model_cards/bert-study/{folder})"
    what = f"{record['task']}: {entry['what']}" if "task" in record else entry["what"]
    cells = [link, Path(start).name, what.replace("_", " "), f"**{format_metric(entry)}**", str(len(entry["values"]))]
    return "| " + " | ".join([*cells, describe_device(record["hardware"])]) + " |"


def read_records(root: Path) -> dict[str, dict[str, Any]]:
    """Folder under model_cards/bert-study -> what its results.json holds."""
    records = {}
    for path in sorted((root / "model_cards" / "bert-study").glob("*/results.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if missing := [key for key in ("study", "headline", "hardware") if key not in record]:
            raise UserError(f"{path} says nothing of {', '.join(missing)}: it was not written by study_bert.py.")
        records[path.parent.name] = record
    return records


def glue_table(root: Path) -> str:
    """The paper's table 1 with a row for everything under model_cards/bert-glue."""
    paths = sorted((root / "model_cards" / "bert-glue").glob("*/results.json"))
    return render_table(merge_records(json.loads(path.read_text(encoding="utf-8")) for path in paths)).rstrip()


def fill_readme(root: Path, names: tuple[str, ...]) -> tuple[Path, str]:
    """The paper's README and its text with fresh rows. Writes nothing."""
    path = root / "hf_papers" / "papers" / "bert" / "README.md"
    text = fill_block(path.read_text(encoding="utf-8"), "glue", glue_table(root), str(path))
    return path, fill_block(text, "studies", studies_table(root, names), str(path))

"""Write the tables of the READMEs from model_cards/*/results.json: `python scripts/readme_table.py [--check]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hf_papers.errors import UserError
from hf_papers.reports.tables import fill_tables


ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Returns the exit status: 1 when `--check` finds a table that is not what the results say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail when a table is out of date")
    check = parser.parse_args(arguments).check
    try:
        filled = fill_tables(root)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    stale = [path for path, text in filled.items() if path.read_text(encoding="utf-8") != text]
    for path in stale:
        if check:
            print(f"{path.relative_to(root)} does not say what the results say: run python scripts/readme_table.py")
        else:
            path.write_text(filled[path], encoding="utf-8")
            print(f"wrote the table of {path.relative_to(root)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""From runs to what can be said about them: mean ± std over seeds, curves, ablations, and the tables of the READMEs."""

from __future__ import annotations

from hf_papers.reports.aggregate import aggregate, write_report
from hf_papers.reports.compare import compare, write_comparison
from hf_papers.reports.curves import comparison_curves, learning_curves, read_metrics
from hf_papers.reports.tables import fill_block, fill_tables


__all__ = [
    "aggregate",
    "compare",
    "comparison_curves",
    "fill_block",
    "fill_tables",
    "learning_curves",
    "read_metrics",
    "write_comparison",
    "write_report",
]

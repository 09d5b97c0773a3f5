"""GLUE as data: its nine tasks, what their columns and labels are called, and table 1 of the paper (1810.04805)."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_papers.errors import UserError, nearest
from hf_papers.metrics.glue import GLUE_METRICS


DATASET = "nyu-mll/glue"
# Section 4.1: "a batch size of 32 and fine-tune for 3 epochs", "the best fine-tuning learning rate (among 5e-5, 4e-5, 3e-5,
# and 2e-5) on the Dev set"; appendix A.3 gives 2, 3, 4 as the epochs that worked well across all tasks.
LEARNING_RATES = (5e-5, 4e-5, 3e-5, 2e-5)
EPOCHS = (3.0,)
EPOCHS_APPENDIX = (2.0, 3.0, 4.0)


@dataclass(frozen=True)
class GlueSet:
    """One of GLUE's tasks.

    columns: of the data set on the Hub that hold the one or two texts.
    labels: class names in the order of their numbers; none where a text pair gets a number (STS-B).
    scored: suffix of a metric's name -> the split whose labels are public.
    hidden: file that gluebenchmark.com accepts -> (configuration, split) without labels.
    writes_names: whether that file holds class names, and not their numbers.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    writes_names: bool = False
    scored: dict[str, str] = field(default_factory=lambda: {"": "validation"})
    hidden: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Official measures, the one of table 1 first."""
        return GLUE_METRICS[self.name]

    @property
    def is_regression(self) -> bool:
        return not self.labels


def _task(name: str, title: str, columns: tuple[str, ...], labels: tuple[str, ...], **options: object) -> GlueSet:
    return GlueSet(name, title, columns, labels, **{"hidden": {f"{title}.tsv": (name, "test")}, **options})


PAIR = ("sentence1", "sentence2")
INFERENCE = ("entailment", "neutral", "contradiction")
ENTAILMENT = ("entailment", "not_entailment")

GLUE = {
    entry.name: entry
    for entry in (
        _task(
            "mnli",
            "MNLI",
            ("premise", "hypothesis"),
            INFERENCE,
            writes_names=True,
            scored={"": "validation_matched", "_mm": "validation_mismatched"},
            # The diagnostic set has no training data: it is answered by the model of MNLI.
            hidden={
                "MNLI-m.tsv": ("mnli", "test_matched"),
                "MNLI-mm.tsv": ("mnli", "test_mismatched"),
                "AX.tsv": ("ax", "test"),
            },
        ),
        _task("qqp", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate")),
        _task("qnli", "QNLI", ("question", "sentence"), ENTAILMENT, writes_names=True),
        _task("sst2", "SST-2", ("sentence",), ("negative", "positive")),
        _task("cola", "CoLA", ("sentence",), ("unacceptable", "acceptable")),
        _task("stsb", "STS-B", PAIR, ()),
        _task("mrpc", "MRPC", PAIR, ("not_equivalent", "equivalent")),
        _task("rte", "RTE", PAIR, ENTAILMENT, writes_names=True),
        _task("wnli", "WNLI", PAIR, ("not_entailment", "entailment")),
    )
}


def find_glue(name: str) -> GlueSet:
    """The task of that name. Raises `UserError` naming the nearest one when there is none."""
    if name not in GLUE:
        raise UserError(f"GLUE has no task '{name}'.{nearest(name, GLUE)} Its tasks are: {', '.join(GLUE)}.")
    return GLUE[name]


# Columns of table 1 in its order: heading -> (task, suffix of its metric). WNLI is not in it (section 4.1).
TABLE_COLUMNS = {
    "MNLI-m": ("mnli", ""),
    "MNLI-mm": ("mnli", "_mm"),
    "QQP": ("qqp", ""),
    "QNLI": ("qnli", ""),
    "SST-2": ("sst2", ""),
    "CoLA": ("cola", ""),
    "STS-B": ("stsb", ""),
    "MRPC": ("mrpc", ""),
    "RTE": ("rte", ""),
}
# Table 1, GLUE test, in percent. Its average counts MNLI twice and leaves WNLI out.
TABLE_1 = {
    "BERT BASE (paper)": (84.6, 83.4, 71.2, 90.5, 93.5, 52.1, 85.8, 88.9, 66.4),
    "BERT LARGE (paper)": (86.7, 85.9, 72.1, 92.7, 94.9, 60.5, 86.5, 89.3, 70.1),
}
TABLE_1_AVERAGE = {"BERT BASE (paper)": 79.6, "BERT LARGE (paper)": 82.1}

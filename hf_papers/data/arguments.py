"""Where examples come from, as options of a recipe. No heavy import: the command line reads this for its help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hf_papers.errors import UserError


def option(default: Any, help: str, *, affects_result: bool = True) -> Any:
    """A field of an options dataclass, with the sentence that `--help` shows.

    affects_result: False lets a resumed run change it.
    """
    return field(default=default, metadata={"help": help, "affects_result": affects_result})


@dataclass(frozen=True)
class DataArguments:
    """The `data` section of a recipe.

    A split is the name of one ("train") or a slice of one: "train[5000:]" leaves out the first 5,000 rows, "train[:5000]"
    is just these, "train[:10%]" the first tenth. Where a data set has no validation split, the first rows of the training
    split serve as one by convention, and the training split is what remains.
    """

    dataset: str | None = option(None, "a data set on the Hub (user/name), a local folder, or embedded:<name>")
    dataset_config: str | None = option(None, "which configuration, for data sets that have several")
    revision: str | None = option(None, "branch, tag or commit of the data set on the Hub")
    train_split: str = option("train", "rows to learn from, e.g. train or train[5000:]")
    validation_split: str | None = option("validation", "rows to select the best model by, e.g. train[:5000]")
    test_split: str | None = option("test", "rows that are looked at once, at the end")
    columns: dict[str, str] = field(
        default_factory=dict,
        metadata={
            "help": "our name=theirs, comma separated, e.g. image=img,label=fine_label (an entry: source=pair.de)"
        },
    )
    streaming: bool = option(True, "read while training; without it the data set is downloaded first")
    shuffle_buffer_size: int = option(10_000, "rows of a streamed data set that are shuffled among themselves")
    memory_budget_gb: float = option(
        2.0, "preprocessed rows that a process may keep, in GB; what fits is read only once, 0 keeps nothing"
    )
    num_workers: int = option(0, "processes per training process that read and preprocess")

    def __post_init__(self) -> None:
        if self.shuffle_buffer_size < 1:
            raise UserError(f"--shuffle_buffer_size must be at least 1 row, not {self.shuffle_buffer_size}.")
        if not self.memory_budget_gb >= 0:
            raise UserError(f"--memory_budget_gb must be 0 or more, not {self.memory_budget_gb}.")
        if self.num_workers < 0:
            raise UserError(f"--num_workers must be 0 or more, not {self.num_workers}.")
        for ours, theirs in self.columns.items():
            if not ours or not isinstance(theirs, str) or not theirs:
                raise UserError(f"--columns is written as ours=theirs, comma separated, not '{ours}={theirs}'.")

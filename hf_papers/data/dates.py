"""Dates as people write them, and in ISO 8601: endless pairs for a small sequence-to-sequence task, made as they are read.

    Thursday, May 3rd, 1979  ->  1979-05-03

Every day from 1900 to 2099 belongs to one split, so that no date of the test was ever learnt from, in whatever form. A row
is a function of its split and number alone: the same one at every reading and on every machine.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any


FIRST, LAST = datetime.date(1900, 1, 1), datetime.date(2099, 12, 31)
ROWS = {"train": 200_000, "validation": 1_000, "test": 2_000}
DAYS = {"validation": 1_000, "test": 2_000}  # that are held out; all others are for training

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth",
    "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth", "twentieth",
    "twenty-first", "twenty-second", "twenty-third", "twenty-fourth", "twenty-fifth", "twenty-sixth", "twenty-seventh",
    "twenty-eighth", "twenty-ninth", "thirtieth", "thirty-first",
)  # fmt: skip


def ordinal(day: int) -> str:
    """1 -> "1st", 12 -> "12th", 23 -> "23rd"."""
    suffix = "th" if day in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{suffix}"


# Where only figures stand, the day comes before the month, as in most of the world.
FORMS: tuple[Callable[[datetime.date], str], ...] = (
    lambda d: f"{d.day} {MONTHS[d.month - 1]} {d.year}",
    lambda d: f"{d.day:02} {MONTHS[d.month - 1][:3]} {d.year}",
    lambda d: f"{ordinal(d.day)} {MONTHS[d.month - 1]} {d.year}",
    lambda d: f"{ordinal(d.day)} of {MONTHS[d.month - 1]}, {d.year}",
    lambda d: f"the {ORDINALS[d.day - 1]} of {MONTHS[d.month - 1]} {d.year}",
    lambda d: f"{MONTHS[d.month - 1]} {d.day}, {d.year}",
    lambda d: f"{MONTHS[d.month - 1][:3]} {d.day}, {d.year}",
    lambda d: f"{MONTHS[d.month - 1]} {ordinal(d.day)}, {d.year}",
    lambda d: f"{MONTHS[d.month - 1]} the {ORDINALS[d.day - 1]}, {d.year}",
    lambda d: f"{WEEKDAYS[d.weekday()]}, {MONTHS[d.month - 1]} {ordinal(d.day)}, {d.year}",
    lambda d: f"{WEEKDAYS[d.weekday()]} {d.day} {MONTHS[d.month - 1]} {d.year}",
    lambda d: f"{WEEKDAYS[d.weekday()][:3]}, {d.day:02} {MONTHS[d.month - 1][:3]} {d.year}",
    lambda d: f"{d.year}, {MONTHS[d.month - 1]} {d.day}",
    lambda d: f"{d.day}/{d.month}/{d.year}",
    lambda d: f"{d.day:02}.{d.month:02}.{d.year}",
    lambda d: f"{d.day}-{MONTHS[d.month - 1][:3]}-{d.year}",
)
CASES: tuple[Callable[[str], str], ...] = (str, str, str, str.lower, str.upper)


@cache
def days_of(split: str) -> tuple[int, ...]:
    """The days (as `date.toordinal` counts them) of a split: a fixed shuffle of them all, the held-out ones first."""
    days = list(range(FIRST.toordinal(), LAST.toordinal() + 1))
    random.Random(1706).shuffle(days)
    test, validation = DAYS["test"], DAYS["validation"]
    parts = {"test": days[:test], "validation": days[test : test + validation], "train": days[test + validation :]}
    return tuple(parts[split])


class DateColumn(Sequence[str]):
    """One column of a split: the sources, or the targets."""

    def __init__(self, split: str, is_source: bool) -> None:
        self.split, self.is_source = split, is_source

    def __len__(self) -> int:
        return ROWS[self.split]

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[row] for row in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        source, target = pair(self.split, number % len(self))
        return source if self.is_source else target


def pair(split: str, number: int) -> tuple[str, str]:
    """(how somebody wrote it, ISO 8601) of row `number`. Held-out days come once each, in order; others at random."""
    chance = random.Random(f"{split} {number}")
    days = days_of(split)
    day = datetime.date.fromordinal(days[number] if split != "train" else chance.choice(days))
    written = chance.choice(CASES)(chance.choice(FORMS)(day))
    return written, day.isoformat()


def date_splits() -> dict[str, dict[str, Sequence[str]]]:
    """split -> {"source": dates as people write them, "target": the same in ISO 8601}."""
    return {split: {"source": DateColumn(split, True), "target": DateColumn(split, False)} for split in ROWS}


__all__ = ["DateColumn", "date_splits", "days_of", "pair"]

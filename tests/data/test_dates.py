"""Dates made as they are read: right, the same every time, and no day of the test among those that are learnt."""

import datetime
import itertools
import re

from hf_papers.data import DataArguments, open_source
from hf_papers.data.dates import DAYS, FORMS, ROWS, date_splits, days_of, ordinal, pair


def test_no_day_is_in_two_splits() -> None:
    days = {split: set(days_of(split)) for split in ROWS}
    for one, other in itertools.combinations(days.values(), 2):
        assert not one & other
    assert sum(map(len, days.values())) == (datetime.date(2099, 12, 31) - datetime.date(1900, 1, 1)).days + 1
    assert {split: len(days[split]) for split in DAYS} == DAYS


def test_no_target_of_the_test_is_ever_a_target_of_the_training() -> None:
    """By the rows themselves, and not by how they are meant to be made."""
    columns = date_splits()
    held_out = {*columns["test"]["target"], *columns["validation"]["target"]}
    assert len(held_out) == sum(DAYS.values()), "every held-out day comes once"
    assert not held_out & {pair("train", number)[1] for number in range(0, ROWS["train"], 7)}


def test_a_row_is_the_same_at_every_reading() -> None:
    first, again = date_splits()["train"], date_splits()["train"]
    assert first["source"][:50] == [again["source"][number] for number in range(50)]
    assert pair("train", 0) == pair("train", 0) and len(set(first["source"][:50])) > 40
    assert first["source"][-1] == first["source"][len(first["source"]) - 1]


def test_what_is_written_is_the_date() -> None:
    """Read back by rules of our own: the year is the number of four digits; names stand for months."""
    months = "jan feb mar apr may jun jul aug sep oct nov dec".split()
    for number in range(500):
        written, iso = pair("train", number)
        year, month, day = map(int, iso.split("-"))
        text = written.lower()
        assert re.search(rf"(?<!\d){year}(?!\d)", text), written
        if not re.search("[a-z]", text):
            assert [int(part) for part in re.split(r"[/.]", text)] == [day, month, year]
            continue
        names = re.findall("|".join(months), re.sub(r"(mon|tues|wednes|thurs|fri|satur|sun)day|second", "", text))
        assert names == [months[month - 1]], written
        figures = [int(part) for part in re.findall(r"\d+", text) if len(part) < 4]
        assert figures in ([day], []), written


def test_weekdays_are_right() -> None:
    date = datetime.date(1979, 10, 3)
    assert {form(date) for form in FORMS} >= {
        "Wednesday, October 3rd, 1979",
        "Wed, 03 Oct 1979",
        "the third of October 1979",
    }
    assert len({form(date) for form in FORMS}) == len(FORMS) == 16


def test_ordinals() -> None:
    assert [ordinal(day) for day in (1, 2, 3, 4, 11, 12, 13, 21, 22, 23, 30, 31)] == (
        ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "22nd", "23rd", "30th", "31st"]
    )


def test_it_is_an_embedded_data_set() -> None:
    source = open_source(DataArguments(dataset="embedded:dates"))
    assert source.num_rows("train") == ROWS["train"] and source.splits() == ["train", "validation", "test"]
    row = next(source.rows("test"))
    assert datetime.date.fromisoformat(row["target"]) and row["source"]
    assert source.features("train")["source"].dtype == "string"

"""Where rows come from: embedded data, folders of several formats, splits and their slices, column maps, bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_papers.data import DataArguments, embedded, open_source, register_embedded
from hf_papers.data.embedded import split_in_order
from hf_papers.data.sources import SplitSlice, parse_split
from hf_papers.errors import UserError
from tests.data.tables import to_ragged, to_tensors, write_parquet


def source_of(dataset: Path | str, **options):
    return open_source(DataArguments(dataset=str(dataset), **options))


def ids(rows) -> list[int]:
    return [row["id"] for row in rows]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_parquet(tmp_path / "numbers", [12, 5], split="train")
    return write_parquet(tmp_path / "numbers", [4], split="test")


# ------------------------------------------------------------------------------------------------------------ options


def test_reading_the_options_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv[0] = 'hf-papers'; import hf_papers.data, hf_papers.data.arguments;"
        "print(sorted({'torch', 'datasets', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_option_is_explained() -> None:
    from dataclasses import fields

    assert all(field.metadata["help"] for field in fields(DataArguments))


@pytest.mark.parametrize(
    "options",
    [{"shuffle_buffer_size": 0}, {"memory_budget_gb": -1.0}, {"memory_budget_gb": float("nan")}, {"num_workers": -1}],
)
def test_impossible_options(options: dict) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        DataArguments(**options)


def test_no_data_set() -> None:
    with pytest.raises(UserError, match="--dataset"):
        open_source(DataArguments())


# ----------------------------------------------------------------------------------------------------------- embedded


def test_digits() -> None:
    source = source_of("embedded:digits")
    assert source.splits() == ["train", "validation", "test"]
    sizes = [source.num_rows(split) for split in source.splits()]
    assert sum(sizes) == 1797 and sizes == [1438, 180, 179]
    assert source.label_names("train") == list("0123456789")
    row = next(source.rows("train"))
    assert (row["image"].mode, row["image"].size, row["label"]) == ("L", (8, 8), 0)
    pixels = np.stack([np.asarray(row["image"]) for row in source.rows("test")])
    assert pixels.min() == 0 and pixels.max() == 255


def test_digits_are_split_class_by_class_without_overlap() -> None:
    source = source_of("embedded:digits")
    pictures = {split: {row["image"].tobytes() for row in source.rows(split)} for split in source.splits()}
    assert sum(len(seen) for seen in pictures.values()) == 1797  # no two digits are alike
    for split in source.splits():
        counts = np.bincount([row["label"] for row in source.rows(split)])
        assert counts.max() - counts.min() <= 0.1 * counts.max() + 1


def test_split_in_order_takes_the_first_rows_of_each_class_first() -> None:
    labels = np.array([0, 1, 0, 1, 0, 0, 1, 1])
    parts = split_in_order(labels, {"train": 0.5, "test": 0.5})
    assert parts["train"].tolist() == [0, 1, 2, 3] and parts["test"].tolist() == [4, 5, 6, 7]


def test_another_embedded_data_set_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "EMBEDDED", dict(embedded.EMBEDDED))

    @register_embedded("squares", "whole numbers and their squares")
    def squares():
        return {"train": {"id": list(range(9)), "square": [i * i for i in range(9)]}}

    source = source_of("embedded:squares")
    assert list(source.rows("train[7:]")) == [{"id": 7, "square": 49}, {"id": 8, "square": 64}]
    assert source.features("train")["square"].dtype == "int64"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "embedded:digit"}, "no embedded data set 'digit'.*Did you mean 'digits'"),
        ({"dataset": "embedded:digits", "revision": "main"}, "--revision"),
        ({"dataset": "embedded:digits", "dataset_config": "x"}, "--dataset_config"),
    ],
)
def test_embedded_mistakes(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source(DataArguments(**options))


# ------------------------------------------------------------------------------------------------------------ folders


@pytest.mark.parametrize("streaming", [True, False])
def test_parquet(folder: Path, streaming: bool) -> None:
    source = source_of(folder, streaming=streaming)
    assert sorted(source.splits()) == ["test", "train"]
    assert source.num_rows("train") == 17
    assert ids(source.rows("train")) == list(range(17))
    assert source.features("train")["text"].dtype == "string"
    assert source.tensors("test", to_tensors)["x"].tolist() == [[i / 2, i - 1] for i in range(4)]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_text_formats(tmp_path: Path, suffix: str, streaming: bool) -> None:
    lines = [json.dumps({"id": i, "text": f"row {i}"}) for i in range(5)]
    if suffix == "csv":
        lines = ["id,text", *(f"{i},row {i}" for i in range(5))]
    (tmp_path / f"train.{suffix}").write_text("\n".join(lines))
    source = source_of(tmp_path, streaming=streaming, columns={"sentence": "text"})
    assert [row["sentence"] for row in source.rows("train[1:3]")] == ["row 1", "row 2"]
    assert set(source.features("train")) == {"id", "sentence"}


@pytest.mark.parametrize("streaming", [True, False])
def test_images_in_folders_of_classes(tmp_path: Path, streaming: bool) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for shade in (10, 200):
            Image.new("L", (6, 4), shade).save(tmp_path / "train" / label / f"{shade}.png")
    source = source_of(tmp_path, streaming=streaming)
    assert source.label_names("train") == ["cat", "dog"]
    rows = list(source.rows("train"))
    assert [row["label"] for row in rows] == [0, 0, 1, 1]
    assert rows[0]["image"].size == (6, 4) and rows[0]["image"].getpixel((0, 0)) in (10, 200)


@pytest.mark.parametrize("streaming", [True, False])
def test_limit(folder: Path, streaming: bool) -> None:
    source = source_of(folder, streaming=streaming)
    for limit in (1, 5, 17, 100):
        assert source.tensors("train", to_tensors, limit=limit)["id"].tolist() == list(range(min(limit, 17)))
    assert [len(tokens) for tokens in source.tensors("train", to_ragged, limit=6)["tokens"]] == [1, 2, 3, 4, 5, 1]


def test_damaged_file(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path, [400], row_group_size=100)
    path = next(folder.iterdir())
    content = bytearray(path.read_bytes())
    content[2000:4000] = bytes(2000)
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read|stopped at row"):
        list(source_of(folder).rows("train"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("./nowhere", "no folder"), ("file.txt", "is a file"), ("empty", "no data files|cannot be read")],
)
def test_not_a_folder_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        source_of(name)


# ------------------------------------------------------------------------------------------------------------- splits


def test_parse_split() -> None:
    assert parse_split("train") == SplitSlice("train")
    assert parse_split("train[5000:]") == SplitSlice("train", "5000", None)
    assert parse_split("a.b-c[:10%]") == SplitSlice("a.b-c", None, "10%")
    for text in ("train[", "train[5]", "train+test", "train[1:2:3]", ""):
        with pytest.raises(UserError, match="is not a split"):
            parse_split(text)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train[:5]", range(5)),
        ("train[5:]", range(5, 17)),
        ("train[10:14]", range(10, 14)),  # across the border of two files
        ("train[-3:]", range(14, 17)),
        ("train[50%:]", range(8, 17)),
        ("train[:100]", range(17)),
        ("train[:-15]", range(2)),
    ],
)
def test_slices(folder: Path, split: str, expected: range, streaming: bool) -> None:
    source = source_of(folder, streaming=streaming)
    assert ids(source.rows(split)) == list(expected)
    assert source.num_rows(split) == len(expected)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("split", ["train[17:]", "train[20:]", "train[3:3]", "train[5:2]"])
def test_empty_slices(folder: Path, split: str, streaming: bool) -> None:
    with pytest.raises(UserError, match="no rows"):
        list(source_of(folder, streaming=streaming).tensors(split, to_tensors))


def test_a_slice_past_the_end_of_a_stream_of_unknown_length(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"id": i}) for i in range(5)))
    source = source_of(tmp_path)
    assert source.num_rows("train") is None
    with pytest.raises(UserError, match="no rows"):
        next(source.stream("train[9:]", to_tensors, 2, seed=0))
    with pytest.raises(UserError, match="--no_streaming"):
        source.num_rows("train[:10%]")
    assert ids(source_of(tmp_path, streaming=False).rows("train[:40%]")) == [0, 1]


def test_validation_and_training_rows_never_meet(tmp_path: Path) -> None:
    """Slices are counted in rows of the data set, however many processes and workers share them."""
    folder = write_parquet(tmp_path, [20, 20, 20, 20])
    source = source_of(folder, memory_budget_gb=0.0)
    held_out = set(ids(source.rows("train[:30]")))
    seen: set[int] = set()
    for rank in range(2):
        stream = source.stream("train[30:]", to_tensors, 5, seed=0, rank=rank, world_size=2)
        seen |= {i for _ in range(5) for i in next(stream)["id"].tolist()}
    assert held_out == set(range(30)) and seen == set(range(30, 80))


@pytest.mark.parametrize("streaming", [True, False])
def test_no_such_split(folder: Path, streaming: bool) -> None:
    with pytest.raises(UserError, match="no split 'tran'.*Did you mean 'train'"):
        source_of(folder, streaming=streaming).num_rows("tran")


# ------------------------------------------------------------------------------------------------------------ columns


@pytest.mark.parametrize("streaming", [True, False])
def test_column_map(folder: Path, streaming: bool) -> None:
    source = source_of(folder, streaming=streaming, columns={"number": "id", "text": "id"})
    assert next(source.rows("train[3:]")) == {"number": 3, "text": 3}
    assert set(source.features("train")) == {"number", "text"}


@pytest.mark.parametrize("streaming", [True, False])
def test_entries_of_a_nested_column_are_named_with_a_dot(tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "pairs").mkdir()
    lines = [json.dumps({"translation": {"de": f"Satz {n}", "en": f"sentence {n}"}, "id": n}) for n in range(5)]
    (tmp_path / "pairs" / "train.jsonl").write_text("\n".join(lines))
    columns = {"source": "translation.de", "target": "translation.en"}
    source = source_of(tmp_path / "pairs", streaming=streaming, columns=columns)
    first = next(source.rows("train"))
    assert (first["source"], first["target"], first["id"]) == ("Satz 0", "sentence 0", 0)
    assert source.features("train")["source"].dtype == "string"
    wrong = source_of(tmp_path / "pairs", streaming=streaming, columns={"source": "translation.fr"})
    for read in (lambda: next(wrong.rows("train")), lambda: wrong.features("train")):
        with pytest.raises(UserError, match="Column 'translation' .* has no entry 'fr'.* Its entries are: de, en"):
            read()
    flat = source_of(tmp_path / "pairs", streaming=streaming, columns={"source": "id.de"})
    with pytest.raises(UserError, match="has no entry 'de'. It holds no entries by name"):
        next(flat.rows("train"))


@pytest.mark.parametrize("streaming", [True, False])
def test_mapped_column_that_does_not_exist(folder: Path, streaming: bool) -> None:
    with pytest.raises(UserError, match="no column 'txt'.*Did you mean 'text'.*id, text"):
        source_of(folder, streaming=streaming, columns={"sentence": "txt"}).num_rows("train")


def test_missing_column_is_explained_where_it_is_used(folder: Path) -> None:
    stream = source_of(folder).stream("train", lambda rows: {"x": [row["image"] for row in rows]}, 4, seed=0)
    with pytest.raises(UserError, match="no column 'image'.*id, text.*--columns image=THEIRS"):
        next(stream)
    with pytest.raises(UserError, match="no column 'label'"):
        source_of("embedded:digits", columns={"target": "label"}).tensors(
            "train", lambda rows: {"x": torch.tensor([row["label"] for row in rows])}
        )

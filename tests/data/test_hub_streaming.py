"""Data sets over HTTP: the real `datasets` client reads from the local Hub, which also fails on demand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hf_papers.data import DataArguments, open_source
from hf_papers.data.rows import RETRIES
from hf_papers.errors import UserError
from tests.data.tables import ids_of, open_stream, take, take_epoch, write_parquet
from tests.hub.server import HubServer


pytest_plugins = ["tests.hub.fixtures"]

PARQUET = r"GET /datasets/me/numbers/resolve/.*\.parquet"


@pytest.fixture
def numbers(hub: HubServer, tmp_path: Path) -> str:
    """`me/numbers`: 300 rows in two shards, train only."""
    folder = write_parquet(tmp_path / "numbers", [160, 140], row_group_size=40)
    files = {f"data/{path.name}": path for path in sorted(folder.iterdir())}
    hub.add_repo("dataset", "me/numbers", files)
    return "me/numbers"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, without_waiting: list[float]) -> None:
    """Failing for good takes no time."""
    monkeypatch.setattr(RETRIES, "seconds", 0.05)
    monkeypatch.setattr(RETRIES, "first_wait", 0.01)


def test_rows_over_http(numbers: str) -> None:
    source = open_source(DataArguments(dataset=numbers))
    assert source.splits() == ["train"]
    assert [row["id"] for row in source.rows("train")] == list(range(300))
    assert [row["text"] for row in source.rows("train[158:162]")] == [f"row {i}" for i in range(158, 162)]


@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_over_http(numbers: str, workers: int) -> None:
    def make():
        return open_stream(numbers, shuffle_buffer_size=40, num_workers=workers)

    whole = take(make(), 60)
    first = make()
    take(first, 33)
    state = json.loads(json.dumps(first.state_dict()))
    resumed = make()
    resumed.load_state_dict(state)
    assert ids_of(take(resumed, 27)) == ids_of(whole[33:])


def test_what_fits_is_downloaded_once(hub: HubServer, numbers: str) -> None:
    stream = open_stream(numbers, memory_budget_gb=1.0)
    take(stream, 76)  # into the second epoch
    sent = hub.bytes_sent(PARQUET)
    take(stream, 300)
    assert stream.epoch == 5
    assert hub.bytes_sent(PARQUET) == sent > 0


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"status": 503, "times": 3}, id="503 three times"),
        pytest.param({"status": 503, "times": 8}, id="503 longer than the client tries"),
        pytest.param({"status": 429, "times": 2}, id="too many requests"),
        pytest.param({"drop_after": 100, "times": 2}, id="cut line"),
        pytest.param({"drop_after": 0, "times": 8}, id="no answer"),
        pytest.param({"drop_after": 50, "times": 2, "reset": True}, id="reset"),
    ],
)
def test_faults_on_the_way_change_nothing(
    hub: HubServer, numbers: str, fault: dict, without_waiting: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RETRIES, "first_wait", 0.01)
    expected = take_epoch(open_stream(numbers, shuffle_buffer_size=32))
    stream = open_stream(numbers, shuffle_buffer_size=32)
    struck = hub.fail(PARQUET, skip=2, **fault)
    assert take_epoch(stream) == expected
    assert struck.struck == fault["times"]


def test_a_server_that_stays_down_is_one_sentence(hub: HubServer, numbers: str, impatient: None) -> None:
    stream = open_stream(numbers, shuffle_buffer_size=16)
    expected = ids_of(take(open_stream(numbers, shuffle_buffer_size=16), 60))
    seen = ids_of(take(stream, 6))
    fault = hub.fail(PARQUET, times=None, status=503)
    with pytest.raises(UserError, match="row") as caught:
        while True:
            seen.append(next(stream)["id"].tolist())
    assert "me/numbers" in str(caught.value) and "--resume auto" in str(caught.value)
    assert fault.struck > 1
    hub.heal()
    assert (seen + ids_of(take(stream, 60 - len(seen)))) == expected  # nothing is lost


def test_the_sentence_comes_out_of_a_worker(hub: HubServer, numbers: str, impatient: None) -> None:
    stream = open_stream(numbers, shuffle_buffer_size=16, num_workers=2)
    hub.fail(PARQUET, times=None, status=503)
    with pytest.raises(UserError, match="--resume auto") as caught:
        take(stream, 200)
    assert "Traceback" not in str(caught.value)


def test_opening_waits_for_a_server_that_restarts(
    hub: HubServer, numbers: str, without_waiting: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RETRIES, "first_wait", 0.01)
    fault = hub.fail(r"/api/datasets/me/numbers", status=503, times=2)
    assert [row["id"] for row in open_source(DataArguments(dataset=numbers)).rows("train[:2]")] == [0, 1]
    assert fault.struck == 2


def test_opening_gives_up_with_a_sentence(hub: HubServer, numbers: str, impatient: None) -> None:
    hub.fail(r".*", status=503, times=None)
    with pytest.raises(UserError, match="could not be opened"):
        open_source(DataArguments(dataset=numbers))


def test_no_such_data_set(hub: HubServer) -> None:
    with pytest.raises(UserError, match="no data set 'me/nothing'"):
        open_source(DataArguments(dataset="me/nothing"))


def test_not_an_id(hub: HubServer) -> None:
    with pytest.raises(UserError, match="user/name"):
        open_source(DataArguments(dataset="a/b/c"))


def test_no_such_revision(numbers: str) -> None:
    with pytest.raises(UserError, match="no revision 'mian'.*Did you mean 'main'"):
        open_source(DataArguments(dataset=numbers, revision="mian"))


def test_a_new_commit_is_noticed(hub: HubServer, numbers: str, tmp_path: Path) -> None:
    stream = open_stream(numbers)
    take(stream, 3)
    folder = write_parquet(tmp_path / "new", [160, 141])
    hub.add_repo("dataset", numbers, {f"data/{path.name}": path for path in sorted(folder.iterdir())})
    again = open_source(DataArguments(dataset=numbers, memory_budget_gb=0.0))
    with pytest.raises(UserError, match="have changed"):
        again.stream("train", lambda rows: {}, 4, seed=0).load_state_dict(stream.state_dict())


def test_configurations_are_named(hub: HubServer, tmp_path: Path) -> None:
    folder = write_parquet(tmp_path, [5])
    content = (folder / "train-00000-of-00001.parquet").read_bytes()
    card = "---\nconfigs:\n- config_name: small\n  data_files: small/*\n- config_name: large\n  data_files: large/*\n---\n"
    hub.add_repo(
        "dataset", "me/two", {"README.md": card, "small/train.parquet": content, "large/train.parquet": content}
    )
    with pytest.raises(UserError, match="several configurations.*small.*large"):
        open_source(DataArguments(dataset="me/two"))
    with pytest.raises(UserError, match="no configuration 'smal'.*Did you mean 'small'"):
        open_source(DataArguments(dataset="me/two", dataset_config="smal"))
    assert open_source(DataArguments(dataset="me/two", dataset_config="large")).splits() == ["train"]


# ------------------------------------------------------------------------------------------------- MNIST as published


def to_pixels(rows: list[dict]) -> dict[str, torch.Tensor]:
    pixels = [torch.frombuffer(bytearray(row["image"].tobytes()), dtype=torch.uint8) for row in rows]
    return {"pixel_values": torch.stack(pixels), "labels": torch.tensor([row["label"] for row in rows])}


def test_mnist_streams_as_published(real_data_hub: HubServer) -> None:
    source = open_source(DataArguments(dataset="ylecun/mnist"))
    assert source.num_rows("train[5000:]") == 55_000
    assert source.num_rows("test") == 10_000
    assert source.label_names("train") == list("0123456789")
    row = next(source.rows("test"))
    assert (row["image"].size, row["image"].mode, row["label"]) == ((28, 28), "L", 7)
    tensors = source.tensors("train[:300]", to_pixels)
    assert tensors["pixel_values"].shape == (300, 784)


@pytest.mark.parametrize("workers", [0, 2])
def test_mnist_resumes_in_the_middle_of_an_epoch(real_data_hub: HubServer, workers: int) -> None:
    arguments = DataArguments(
        dataset="ylecun/mnist", memory_budget_gb=0.0, shuffle_buffer_size=600, num_workers=workers
    )

    def make():
        return open_source(arguments).stream("train[5000:]", to_pixels, 100, seed=3)

    first = make()
    take(first, 9)
    state = json.loads(json.dumps(first.state_dict()))
    expected = take(first, 8)
    resumed = make()
    resumed.load_state_dict(state)
    for ours, theirs in zip(take(resumed, 8), expected, strict=True):
        assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
        assert torch.equal(ours["labels"], theirs["labels"])

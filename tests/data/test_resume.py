"""A stream that is left at any batch and continued elsewhere gives exactly the batches that would have come."""

from __future__ import annotations

import json
import random
from contextlib import closing
from pathlib import Path

import pytest
import torch

from hf_papers.data import Stream
from hf_papers.errors import UserError
from tests.data.tables import ids_of, open_stream, take, take_epoch, to_ragged, write_parquet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """57 rows in 3 shards of different size, several row groups each."""
    return write_parquet(tmp_path / "numbers", [24, 9, 24])


def assert_same_tail(make_stream, stop: int, count: int) -> None:
    """Take `stop` batches, carry the position over as JSON text, and compare the next `count` with the uninterrupted."""
    with closing(make_stream()) as stream:
        whole = take(stream, stop + count)
    with closing(make_stream()) as stream:
        assert_equal(take(stream, stop), whole[:stop])
        state = json.loads(json.dumps(stream.state_dict()))
    with closing(make_stream()) as stream:
        stream.load_state_dict(state)
        assert_equal(take(stream, count), whole[stop:])


def assert_equal(batches: list[dict], expected: list[dict]) -> None:
    assert len(batches) == len(expected)
    for ours, theirs in zip(batches, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, values in ours.items():
            if isinstance(values, torch.Tensor):
                assert torch.equal(values, theirs[name])
            else:
                assert all(torch.equal(a, b) for a, b in zip(values, theirs[name], strict=True))


@pytest.mark.parametrize("stop", [0, 5, 6, 14, 31])  # 14 batches an epoch, 3 a block
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"streaming": False}, id="by number"),
        pytest.param({"streaming": False, "memory_budget_gb": 1.0}, id="by number, kept"),
        pytest.param({"shuffle": False}, id="streamed in order"),
        pytest.param({}, id="streamed"),
        pytest.param({"memory_budget_gb": 1.0}, id="streamed, kept"),
        pytest.param({"memory_budget_gb": 1.0, "shuffle": False, "drop_last": False}, id="streamed in order, kept"),
        pytest.param({"drop_last": False}, id="with a short last batch"),
        pytest.param({"split": "train[5:50]"}, id="slice"),
        pytest.param({"transform": to_ragged}, id="ragged"),
        pytest.param({"transform": to_ragged, "memory_budget_gb": 1.0}, id="ragged, kept"),
        pytest.param({"rank": 1, "world_size": 2}, id="second of two by rows"),
        pytest.param({"rank": 2, "world_size": 3, "batch_size": 3}, id="third of three by shards"),
    ],
)
def test_continues_with_the_next_batch(folder: Path, options: dict, stop: int) -> None:
    options = {"batch_size": 4, "shuffle_buffer_size": 12, **options}
    assert_same_tail(lambda: open_stream(folder, **options), stop, count=20)


@pytest.mark.parametrize("stop", [5, 17])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("budget", [0.0, 1.0])
@pytest.mark.parametrize("streaming", [True, False])
def test_continues_with_workers(folder: Path, streaming: bool, budget: float, workers: int, stop: int) -> None:
    options = {"streaming": streaming, "memory_budget_gb": budget, "num_workers": workers, "shuffle_buffer_size": 12}
    assert_same_tail(lambda: open_stream(folder, **options), stop, count=16)


def random_case(seed: int) -> dict:
    draw = random.Random(seed)
    world_size = draw.choice([1, 1, 2, 3])
    return {
        "shards": [draw.randint(8, 60) for _ in range(draw.choice([1, 2, 3, 4, 6]))],
        "row_group_size": draw.choice([3, 8, 100]),
        "batch_size": draw.randint(1, 7),
        "shuffle_buffer_size": draw.choice([1, 5, 16, 1000]),
        "shuffle": draw.random() < 0.8,
        "drop_last": draw.random() < 0.7,
        "memory_budget_gb": draw.choice([0.0, 0.0, 1e-6, 1.0]),  # 1e-6: a thousand bytes, given up on the way
        "streaming": draw.random() < 0.8,
        "seed": draw.randint(0, 2**31),
        "world_size": world_size,
        "rank": draw.randrange(world_size),
        "stop": draw.randint(0, 120),
    }


@pytest.mark.parametrize("seed", range(40))
def test_any_stream_left_anywhere(tmp_path: Path, seed: int) -> None:
    case = random_case(seed)
    folder = write_parquet(tmp_path, case.pop("shards"), case.pop("row_group_size"))
    assert_same_tail(lambda: open_stream(folder, **case), case.pop("stop"), count=30)


@pytest.mark.parametrize("seed", range(100, 104))
def test_any_stream_left_anywhere_with_workers(tmp_path: Path, seed: int) -> None:
    case = random_case(seed)
    folder = write_parquet(tmp_path, case.pop("shards"), case.pop("row_group_size"))
    workers = 1 + seed % 3
    assert_same_tail(lambda: open_stream(folder, num_workers=workers, **case), case.pop("stop") // 4, count=20)


@pytest.mark.parametrize("seed", range(200, 220))
def test_an_epoch_visits_every_row_once(tmp_path: Path, seed: int) -> None:
    case = random_case(seed)
    shards, size, world_size = case.pop("shards"), case["batch_size"], case.pop("world_size")
    del case["stop"], case["rank"]
    folder = write_parquet(tmp_path, shards, case.pop("row_group_size"))
    epochs = [take_epoch(open_stream(folder, rank=rank, world_size=world_size, **case)) for rank in range(world_size)]
    rows = [i for epoch in epochs for batch in epoch for i in batch]
    assert len(rows) == len(set(rows))
    assert set(rows) <= set(range(sum(shards)))
    dropped = world_size * (size - 1) * case["drop_last"]
    by_shards = case["streaming"] and len(shards) % world_size == 0
    dropped += 0 if by_shards else world_size - 1  # rows of an incomplete round
    assert len(rows) >= sum(shards) - dropped
    if case["drop_last"]:
        assert all(len(batch) == size for epoch in epochs for batch in epoch)
    if not by_shards:
        assert len({len(epoch) for epoch in epochs}) == 1


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("drop_last", [True, False])
def test_workers_share_the_rows(folder: Path, workers: int, drop_last: bool) -> None:
    stream = open_stream(folder, num_workers=workers, batch_size=5, shuffle_buffer_size=10, drop_last=drop_last)
    epoch = take_epoch(stream)
    stream.close()
    rows = [i for batch in epoch for i in batch]
    assert len(rows) == len(set(rows)) == (55 if drop_last else 57)  # leftovers of the workers fill batches too
    assert [len(batch) for batch in epoch] == [5] * 11 + ([] if drop_last else [2])


def test_an_error_does_not_lose_the_place(folder: Path) -> None:
    """A stream that failed goes on behind the last batch that it gave, as often as it is asked."""
    fail_at = {20: True}

    def transform(rows: list[dict]) -> dict:
        for row in rows:
            if fail_at.pop(row["id"], False):
                raise UserError("the network is down")
        return to_ragged(rows)

    expected = ids_of(take(open_stream(folder, transform=to_ragged, shuffle=False), 30))
    stream = open_stream(folder, transform=transform, shuffle=False)
    seen: list[dict] = []
    with pytest.raises(UserError, match="the network is down"):
        while True:
            seen.append(next(stream))
    seen += take(stream, 30 - len(seen))
    assert ids_of(seen) == expected


def test_the_state_is_small_and_plain(folder: Path) -> None:
    stream = open_stream(folder, num_workers=0, shuffle_buffer_size=1000, batch_size=1)
    take(stream, 40)
    assert len(json.dumps(stream.state_dict())) < 1000


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 5}, {"seed": 3}, {"shuffle_buffer_size": 8}, {"num_workers": 1}, {"rank": 1, "world_size": 2}],
)
def test_refuses_other_settings(folder: Path, change: dict) -> None:
    stream = open_stream(folder)
    take(stream, 2)
    with pytest.raises(UserError, match=next(iter(change))):
        open_stream(folder, **change).load_state_dict(stream.state_dict())


def test_refuses_changed_data(tmp_path: Path) -> None:
    state = left_after(open_stream(write_parquet(tmp_path / "data", [20])), 2)
    write_parquet(tmp_path / "data", [30])
    with pytest.raises(UserError, match="have changed"):
        open_stream(tmp_path / "data").load_state_dict(state)


def left_after(stream: Stream, count: int) -> dict:
    take(stream, count)
    return stream.state_dict()

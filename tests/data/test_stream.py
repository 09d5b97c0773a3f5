"""Batches: their order, what is kept, how processes share them, and what they leave alone."""

from __future__ import annotations

import gc
import multiprocessing
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_papers.data import DataArguments, open_source
from hf_papers.errors import UserError
from tests.data.tables import ids_of, open_stream, take, to_ragged, to_tensors, write_parquet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_parquet(tmp_path / "numbers", [20, 20, 20, 20])


def flat(batches: list[list[int]]) -> list[int]:
    return [i for batch in batches for i in batch]


# -------------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("streaming", [True, False])
def test_without_shuffling_rows_keep_their_order(folder: Path, streaming: bool) -> None:
    stream = open_stream(folder, streaming=streaming, shuffle=False, memory_budget_gb=1.0)
    assert flat(ids_of(take(stream, 45))) == [*range(80), *range(80), *range(20)]
    assert stream.epoch == 2 and stream.rows_per_epoch == 80 and stream.batches_per_epoch == 20


@pytest.mark.parametrize("options", [{"streaming": False}, {}, {"memory_budget_gb": 1.0}, {"num_workers": 2}])
def test_every_epoch_has_an_order_of_its_own_that_the_seed_decides(folder: Path, options: dict) -> None:
    def epochs(seed: int) -> list[list[int]]:
        batches = ids_of(take(open_stream(folder, seed=seed, **options), 60))
        return [flat(batches[start : start + 20]) for start in (0, 20, 40)]

    first = epochs(1)
    assert first == epochs(1)
    orders = [*first, *epochs(2)]
    assert len({tuple(order) for order in orders}) == 6
    assert all(sorted(order) == list(range(80)) for order in orders)


def test_shuffling_stays_in_its_block_and_mixes_the_shards(folder: Path) -> None:
    stream = open_stream(folder, shuffle_buffer_size=20)
    orders = []
    for _ in range(3):
        epoch = ids_of(take(stream, 20))
        blocks = [sorted(flat(epoch[start : start + 5])) for start in range(0, 20, 5)]
        assert sorted(blocks) == [
            list(range(start, start + 20)) for start in (0, 20, 40, 60)
        ]  # a block is a shard here
        orders.append([block[0] // 20 for block in blocks])
    assert len({tuple(order) for order in orders}) > 1


def test_from_memory_the_whole_epoch_is_shuffled(folder: Path) -> None:
    stream = open_stream(folder, shuffle_buffer_size=4, memory_budget_gb=1.0)
    take(stream, 20)
    assert not stream.in_memory
    second = ids_of(take(stream, 20))
    assert stream.in_memory and sorted(flat(second)) == list(range(80))
    assert max(max(batch) - min(batch) for batch in second) > 40


def test_the_order_by_number_does_not_depend_on_workers_or_memory(folder: Path) -> None:
    plain = ids_of(take(open_stream(folder, streaming=False), 50))
    for options in ({"num_workers": 2}, {"memory_budget_gb": 1.0}, {"num_workers": 3, "memory_budget_gb": 1.0}):
        assert ids_of(take(open_stream(folder, streaming=False, **options), 50)) == plain


@pytest.mark.parametrize("streaming", [True, False])
def test_the_workers_of_a_forgotten_stream_end_by_themselves(
    folder: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    others, killed = set(multiprocessing.active_children()), []
    stream = open_stream(folder, streaming=streaming, num_workers=2)
    take(stream, 3)
    workers = set(multiprocessing.active_children()) - others
    assert len(workers) == 2
    terminate = multiprocessing.Process.terminate
    monkeypatch.setattr(
        multiprocessing.Process, "terminate", lambda worker: (killed.append(worker), terminate(worker))
    )
    del stream
    gc.collect()
    for worker in workers:
        worker.join()
    assert killed == []  # which is what the loader does after waiting five seconds for each


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("transform", [to_tensors, to_ragged])
def test_batches_from_memory_hold_the_same_rows(folder: Path, transform, streaming: bool) -> None:
    stream = open_stream(folder, transform=transform, streaming=streaming, memory_budget_gb=1.0)
    for batch in take(stream, 45):
        expected = transform([{"id": i} for i in batch["id"].tolist()])
        for name, values in expected.items():
            assert len(batch[name]) == len(values)
            assert all(torch.equal(a, b) for a, b in zip(batch[name], values, strict=True))


# ------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("streaming", [True, False])
def test_what_fits_is_preprocessed_once(folder: Path, streaming: bool) -> None:
    calls: list[int] = []

    def transform(rows: list[dict]) -> dict:
        calls.extend(row["id"] for row in rows)
        return to_tensors(rows)

    stream = open_stream(folder, transform=transform, streaming=streaming, batch_size=7, memory_budget_gb=1.0)
    take(stream, 60)  # 80 rows, 11 batches an epoch: three rows of the first epoch are in none of them
    assert sorted(calls) == list(range(80))


@pytest.mark.parametrize("budget", [0.0, 1e-7, 1.2e-6])  # nothing; two batches; less than the 80 * 16 bytes
@pytest.mark.parametrize("streaming", [True, False])
def test_what_does_not_fit_is_let_go(folder: Path, streaming: bool, budget: float) -> None:
    stream = open_stream(folder, streaming=streaming, memory_budget_gb=budget)
    assert sorted(flat(ids_of(take(stream, 20)))) == list(range(80))
    assert sorted(flat(ids_of(take(stream, 20)))) == list(range(80))
    assert not stream.in_memory
    assert getattr(stream, "_store", None) is None and getattr(stream, "_cache", None) is None


def test_giving_up_in_the_middle_when_the_length_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("id\n" + "\n".join(map(str, range(80))))
    stream = open_stream(tmp_path, memory_budget_gb=1e-6)
    keeping = []
    epoch = []
    for _ in range(20):
        epoch.append(next(stream))
        keeping.append(stream.state_dict()["position"]["keeping"])
    assert keeping[0] and not keeping[-1]
    assert sorted(flat(ids_of(epoch))) == list(range(80))
    assert sorted(flat(ids_of(take(stream, 20)))) == list(range(80))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("streaming", [True, False])
def test_changing_a_batch_does_not_change_the_data(folder: Path, streaming: bool, shuffle: bool) -> None:
    stream = open_stream(folder, streaming=streaming, shuffle=shuffle, memory_budget_gb=1.0)
    for _ in range(60):
        batch = next(stream)
        assert torch.equal(batch["x"], to_tensors([{"id": i} for i in batch["id"].tolist()])["x"])
        batch["x"].fill_(-7.0)


# ---------------------------------------------------------------------------------------------------------- processes


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("budget", [0.0, 1.0])
def test_processes_share_an_epoch(folder: Path, streaming: bool, world_size: int, budget: float) -> None:
    options = {"streaming": streaming, "memory_budget_gb": budget, "world_size": world_size, "shuffle_buffer_size": 8}
    streams = [open_stream(folder, rank=rank, **options) for rank in range(world_size)]
    for _ in range(3):
        epoch = [ids_of(take(stream, 80 // world_size // 4)) for stream in streams]
        rows = flat(flat(epoch))
        assert len(rows) == len(set(rows)) == 80 // world_size // 4 * 4 * world_size
        assert len({stream.epoch for stream in streams}) == 1


def test_two_processes_see_together_what_one_sees_with_twice_the_batch() -> None:
    """Rows by number: step for step the same rows, in every epoch, kept or not."""
    source = open_source(DataArguments(dataset="embedded:digits"))

    def transform(rows: list[dict]) -> dict:
        return {"id": torch.tensor([sum(row["image"].tobytes()[i] * (i + 1) for i in range(64)) for row in rows])}

    one = source.stream("train", transform, 64, seed=5)
    two = [source.stream("train", transform, 32, seed=5, rank=rank, world_size=2) for rank in (0, 1)]
    for _ in range(50):
        together = sorted(next(two[0])["id"].tolist() + next(two[1])["id"].tolist())
        assert sorted(next(one)["id"].tolist()) == together
    assert one.epoch == 2


def test_uneven_shards_show_in_rows_per_epoch(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path, [30, 10])
    streams = [open_stream(folder, rank=rank, world_size=2) for rank in (0, 1)]
    for stream in streams:
        take(stream, 10)
    assert [stream.epoch for stream in streams] == [1, 4]  # 7 and 2 batches an epoch
    assert [stream.rows_per_epoch for stream in streams] == [30, 10]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("shards", "streaming"), [([7], True), ([7], False), ([30, 3], True)])
def test_too_few_rows_stop_every_process(tmp_path: Path, shards: list[int], rank: int, streaming: bool) -> None:
    folder = write_parquet(tmp_path, shards)
    with pytest.raises(UserError, match="fewer than one batch of 4.*fewer processes than 2"):
        next(open_stream(folder, rank=rank, world_size=2, streaming=streaming))


def test_fewer_rows_than_a_batch(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path, [3])
    with pytest.raises(UserError, match="3 rows .* fewer than one batch of 4"):
        next(open_stream(folder))
    assert ids_of(take(open_stream(folder, drop_last=False, shuffle=False), 2)) == [[0, 1, 2], [0, 1, 2]]


# ------------------------------------------------------------------------------------------------------- good manners


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_drawn_from_the_global_generators(folder: Path, streaming: bool, workers: int) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    stream = open_stream(folder, streaming=streaming, num_workers=workers, memory_budget_gb=1.0)
    take(stream, 30)
    stream.close()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda rows: {"x": torch.stack([torch.zeros(row["id"] % 3) for row in rows])}, "cannot be preprocessed"),
        (lambda rows: {"x": torch.zeros(3)}, "3 rows out of"),
        (lambda rows: {}, "no columns at all"),
        (lambda rows: {"x": torch.zeros(4), "y": torch.zeros(5)}, "x 4, y 5"),
    ],
)
def test_preprocessing_that_cannot_be_stacked(folder: Path, transform, message: str) -> None:
    stream = open_stream(folder, transform=transform, batch_size=40, shuffle=False, memory_budget_gb=1.0)
    with pytest.raises(UserError, match=message):
        take(stream, 4)


def test_rows_of_different_shapes_cannot_be_kept(tmp_path: Path) -> None:
    def transform(rows: list[dict]) -> dict:
        return {"x": torch.zeros(len(rows), 1 + (rows[0]["id"] >= 128))}

    folder = write_parquet(tmp_path, [300])
    stream = open_stream(folder, transform=transform, batch_size=128, shuffle=False, memory_budget_gb=1.0)
    with pytest.raises(UserError, match=r"shape \(1,\).*shape \(2,\)"):
        take(stream, 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sentence_comes_out_of_a_worker_as_it_is(folder: Path, workers: int) -> None:
    def transform(rows: list[dict]) -> dict:
        return {"x": torch.tensor([row["pixels"] for row in rows])}

    for streaming in (True, False):
        stream = open_stream(folder, transform=transform, num_workers=workers, streaming=streaming)
        with pytest.raises(UserError, match="^There is no column 'pixels'"):
            next(stream)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch_size": 0}, "batch size"), ({"rank": 2, "world_size": 2}, "no process 2"), ({"seed": -1}, "seed")],
)
def test_impossible_settings(folder: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_stream(folder, **options)

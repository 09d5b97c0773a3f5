"""Length bucketing: every row of a pool exactly once, little padding, and the same batches after a resume."""

import json
from collections import Counter
from itertools import islice

import pytest
import torch

from hf_papers.data.buckets import BucketedStream, Padding, pad_rows
from hf_papers.data.rows import ColumnMap, IndexedRows, MemoryTable
from hf_papers.data.stream import IndexedStream, StreamSettings
from hf_papers.errors import UserError


ROWS, SIZE, POOL = 103, 4, 6  # 25 batches an epoch: pools of 6, 6, 6, 6 and 1
PADDING = Padding({"tokens": -1, "kinds": 0}, mask="mask")


def make(pool: int = POOL, padding: Padding = PADDING, seed: int = 0, rank: int = 0, world_size: int = 1):
    lengths = [1 + (number * 37) % 29 for number in range(ROWS)]
    table = MemoryTable({"number": list(range(ROWS)), "length": lengths}, range(ROWS))
    rows = IndexedRows(table, ColumnMap({}, "the rows"), "fingerprint")

    def transform(rows):
        return {
            "tokens": [[row["number"]] * row["length"] for row in rows],
            "kinds": [[1] * row["length"] for row in rows],
            "labels": torch.tensor([row["number"] for row in rows]),
        }

    inner = IndexedStream(rows, transform, StreamSettings(SIZE, seed, rank, world_size))
    return BucketedStream(inner, padding, pool)


def plain(seed: int = 0):
    return make(pool=1, seed=seed)


def labels(stream, count: int) -> list[list[int]]:
    return [batch["labels"].tolist() for batch in islice(stream, count)]


def test_a_pool_holds_the_rows_of_its_batches_and_no_pool_spans_two_epochs() -> None:
    ours, theirs = labels(make(), 50), labels(plain(), 50)
    for epoch in (0, 25):
        for start, stop in ((0, 6), (6, 12), (12, 18), (18, 24), (24, 25)):
            part = slice(epoch + start, epoch + stop)
            assert Counter(sum(ours[part], [])) == Counter(sum(theirs[part], []))
    assert ours != theirs


def test_rows_of_a_batch_are_neighbours_in_length_and_batches_are_not_in_order_of_it() -> None:
    batches = list(islice(make(), POOL))
    lengths = [batch["mask"].sum(1) for batch in batches]
    spans = sorted((int(part.min()), int(part.max())) for part in lengths)
    assert all(left[1] <= right[0] for left, right in zip(spans, spans[1:], strict=False))
    longest = [int(part.max()) for part in lengths]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)


def test_padding_shrinks() -> None:
    def positions(stream) -> int:
        return sum(batch["tokens"].numel() for batch in islice(stream, 24))

    entries = sum(int(batch["mask"].sum()) for batch in islice(plain(), 24))
    bucketed, unbucketed = positions(make()), positions(plain())
    assert unbucketed > 1.3 * entries
    assert bucketed - entries < 0.4 * (unbucketed - entries)


def test_padded_columns_and_mask() -> None:
    padding = Padding({"tokens": 9, "kinds": 0}, multiple=8, mask="mask")
    batch = padding({"tokens": [[1, 2, 3], [4]], "kinds": [[0, 1, 1], [1]], "labels": torch.tensor([5, 6])})
    assert batch["tokens"].tolist() == [[1, 2, 3, 9, 9, 9, 9, 9], [4, 9, 9, 9, 9, 9, 9, 9]]
    assert batch["kinds"].tolist() == [[0, 1, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]
    assert batch["mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [5, 6] and batch["mask"].dtype == batch["tokens"].dtype == torch.int64
    fixed = Padding({"tokens": 9}, length=5)
    assert fixed({"tokens": [[1], [2, 3]]})["tokens"].shape == (2, 5)
    with pytest.raises(UserError, match="A row of 6 entries does not fit into the 5"):
        fixed({"tokens": [[1] * 6]})
    assert pad_rows([[1], []], 0, 2).tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize("done", [0, 1, 5, 6, 7, 23, 24, 25, 26, 40])
def test_resume_is_exact(done: int) -> None:
    whole = list(islice(make(), 70))
    first = make()
    list(islice(first, done))
    state = json.loads(json.dumps(first.state_dict()))
    second = make()
    second.load_state_dict(state)
    assert second.epoch == first.epoch
    for ours, theirs in zip(islice(second, 70 - done), whole[done:], strict=True):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_state_taken_after_resuming_resumes_too() -> None:
    whole = labels(make(), 40)
    state = None
    seen = []
    for count in (3, 4, 17, 1, 15):
        stream = make()
        if state is not None:
            stream.load_state_dict(state)
        seen += labels(stream, count)
        state = stream.state_dict()
    assert seen == whole


def test_epoch_counts_finished_passes() -> None:
    stream = make()
    epochs = [stream.epoch for _ in islice(stream, 51)]
    assert epochs == [0] * 25 + [1] * 25 + [2]


def test_seeds_and_epochs_differ_and_processes_share_the_rows() -> None:
    assert labels(make(seed=1), 12) != labels(make(seed=0), 12)
    first, second = (labels(make(rank=rank, world_size=2), 12) for rank in (0, 1))
    assert not set(sum(first, [])) & set(sum(second, []))
    stream = make()
    assert labels(stream, 25) != labels(stream, 25)


def test_bad_settings() -> None:
    with pytest.raises(UserError, match="at least 1 batch"):
        make(pool=0)
    with pytest.raises(UserError, match="needs at least one"):
        Padding({})
    other = make(pool=3)
    with pytest.raises(UserError, match="pools had 6 batches .* and have 3 now"):
        other.load_state_dict(make().state_dict())


# ------------------------------------------------------------------------------------------ batches of so many tokens


def by_tokens(max_tokens: int = 60, lengths=None, pool: int = POOL):
    lengths = lengths or [1 + (number * 37) % 29 for number in range(ROWS)]
    table = MemoryTable({"number": list(range(len(lengths))), "length": lengths}, range(len(lengths)))
    rows = IndexedRows(table, ColumnMap({}, "the rows"), "fingerprint")

    def transform(rows):
        return {
            "source": [[row["number"]] * row["length"] for row in rows],
            "target": [[row["number"]] * -(-row["length"] // 2) for row in rows],
            "labels": torch.tensor([row["number"] for row in rows]),
        }

    padding = Padding({"source": -1, "target": -2}, apart=True, mask="mask")
    return BucketedStream(IndexedStream(rows, transform, StreamSettings(SIZE, 0)), padding, pool, max_tokens)


def test_a_batch_holds_as_many_tokens_as_fit_with_its_padding() -> None:
    stream = by_tokens()
    batches = []
    while stream.epoch == 0:
        batches.append(next(stream))
    batches.pop()  # the first of the next epoch
    seen = sum((batch["labels"].tolist() for batch in batches), [])
    assert len(seen) == len(set(seen)) == 100  # 25 batches of 4 of the inner stream
    assert all(batch["source"].numel() <= 60 for batch in batches)
    assert sum(batch["source"].numel() for batch in batches) > 0.75 * 60 * len(batches), "batches are nearly full"
    assert len({len(batch["labels"]) for batch in batches}) > 3


def test_columns_apart_have_their_own_lengths() -> None:
    batch = next(by_tokens())
    longest = int(batch["mask"].sum(1).max())
    assert batch["source"].shape[1] == longest and batch["target"].shape[1] == -(-longest // 2)
    assert (
        batch["mask"].shape == batch["source"].shape and (batch["target"] == -2).sum() <= (batch["source"] == -1).sum()
    )
    padding = Padding({"a": 0, "b": 9}, multiple=4, apart=True, mask="mask")
    batch = padding({"a": [[1] * 5, [1]], "b": [[2], [2, 2]]})
    assert batch["a"].shape == (2, 8) and batch["b"].tolist() == [[2, 9, 9, 9], [2, 2, 9, 9]]


def test_a_row_longer_than_a_batch_is_one() -> None:
    sizes = sorted(len(batch["labels"]) for batch in islice(by_tokens(10, [30, 2, 2, 2, 2, 2, 2, 2], pool=2), 3))
    assert sizes == [1, 2, 5]


@pytest.mark.parametrize("max_tokens", [None, 12])
def test_empty_rows_are_left_out(max_tokens: int | None) -> None:
    stream = by_tokens(max_tokens, [0, 3, 0, 0, 2, 0, 4, 1])
    seen = Counter()
    while stream.epoch < 3:
        seen.update(next(stream)["labels"].tolist())
    assert set(seen) == {1, 4, 6, 7} and min(seen.values()) >= 3
    with pytest.raises(UserError, match="nothing to learn from in the rows: every row of it is left out"):
        next(by_tokens(max_tokens, [0] * 8))


@pytest.mark.parametrize("done", [0, 1, 7, 20, 33, 50])
def test_batches_by_tokens_resume_exactly(done: int) -> None:
    whole = list(islice(by_tokens(), 80))
    first = by_tokens()
    list(islice(first, done))
    second = by_tokens()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for ours, theirs in zip(islice(second, 80 - done), whole[done:], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(UserError, match="its batches had 60 tokens .* and have 70 now"):
        by_tokens(70).load_state_dict(first.state_dict())


def test_an_empty_pool_does_not_disturb_a_resume() -> None:
    lengths = [0, 0, 0, 0, 3, 4, 5, 6] * 6
    whole = [batch["labels"].tolist() for batch in islice(by_tokens(12, lengths, pool=1), 60)]
    for done in (1, 9, 30):
        first = by_tokens(12, lengths, pool=1)
        list(islice(first, done))
        second = by_tokens(12, lengths, pool=1)
        second.load_state_dict(first.state_dict())
        assert [batch["labels"].tolist() for batch in islice(second, 60 - done)] == whole[done:]


def test_a_batch_has_a_token_at_least() -> None:
    with pytest.raises(UserError, match="at least 1 token, not 0"):
        by_tokens(0)

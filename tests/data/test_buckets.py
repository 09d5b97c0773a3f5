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

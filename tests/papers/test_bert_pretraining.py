"""BERT's pre-training: sentences, pairs, masks, positions in an endless stream, and the two losses."""

from __future__ import annotations

import json
from collections import Counter
from pydoc_data.topics import topics

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_papers.data import DataArguments, open_source
from hf_papers.data.embedded import EMBEDDED, EmbeddedDataset
from hf_papers.errors import UserError
from hf_papers.papers.bert.documents_bert import Document, DocumentReader, MixedReader, raw_documents
from hf_papers.papers.bert.figures_bert import draw_pretraining_figures, guess_masked_word
from hf_papers.papers.bert.masking_bert import IGNORED, Masker, slots
from hf_papers.papers.bert.modeling_bert import PaperBertForPreTraining
from hf_papers.papers.bert.pretraining_data_bert import (
    BatchMaker,
    Pool,
    PoolSettings,
    PretrainingStream,
    _truncate,
    make_pairs,
)
from hf_papers.papers.bert.sentences_bert import split_sentences
from hf_papers.papers.bert.tokenization_bert import train_tokenizer
from hf_papers.training.recipe import load_recipe
from hf_papers.training.task import Context


CONTEXT = Context(torch.device("cpu"), rank=0, world_size=1, seed=0)
VOCABULARY = 600


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(sorted(topics.values())[:12], VOCABULARY)


@pytest.fixture
def register(monkeypatch):
    """register(name, columns of the train split) makes an embedded data set for this test; returns its source."""

    def make(columns: dict[str, list], **arguments):
        monkeypatch.setitem(EMBEDDED, "own", EmbeddedDataset("own", "", lambda: {"train": columns}, {}))
        return open_source(DataArguments(dataset="embedded:own", **arguments))

    return make


def numbered_documents(count: int = 40, sentences: int = 12, seed: int = 0) -> Pool:
    """Documents without words: every token tells where it is from, document * 10,000 + its place there."""
    generator = np.random.default_rng(seed)
    documents = []
    for document in range(count):
        lengths = generator.integers(3, 15, size=sentences).astype(np.int32)
        documents.append(Document(document * 10_000 + np.arange(lengths.sum(), dtype=np.int32), lengths))
    return Pool.of(documents)


def build_task(**overrides):
    options = {"max_steps": 4, "vocab_size": VOCABULARY, "tokenizer_documents": 20, "pool_tokens": 20_000, **overrides}
    recipe = load_recipe("bert", "embedded", {name: str(value) for name, value in options.items()})
    return recipe.paper.task_class(recipe)


# --------------------------------------------------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("He came. She left! Why? “So.” Done", ["He came.", "She left!", "Why?", "“So.”", "Done"]),
        ("Mr. Smith met J. Edgar at 3.5 p.m. today.", ["Mr. Smith met J. Edgar at 3.5 p.m. today."]),
        ("It stands in the U.S. He knew.", ["It stands in the U.S.", "He knew."]),
        ("He said (quietly.) Then e.g. Rome fell.", ["He said (quietly.)", "Then e.g. Rome fell."]),
        ("the cast is great . kevin bacon oozes ! why ?", ["the cast is great .", "kevin bacon oozes !", "why ?"]),
        ("A headline\nThe first paragraph, which is long. " + "More of it " * 10, None),
        ("one\n\ntwo\r\n\r\nthree", ["one", "two", "three"]),
        ("Title\n*****\n\nText here.", ["Title", "Text here."]),
        ("", []),
        ("  \n \n", []),
    ],
)
def test_sentences_are_found(text, sentences):
    found = split_sentences(text)
    if sentences is None:
        assert found[:2] == ["A headline", "The first paragraph, which is long."]
    else:
        assert found == sentences


def test_lines_wrapped_at_a_margin_are_put_together():
    wrapped = topics["assert"]
    found = split_sentences(wrapped)
    assert "Assert statements are a convenient way to insert debugging assertions into a program:" in found
    assert any(sentence.startswith("These equivalences assume that") and sentence.endswith(".") for sentence in found)
    assert 'assert_stmt ::= "assert" expression ["," expression]' in found
    # Nothing is lost or doubled, but for the rules of stars under titles.
    assert Counter(" ".join(found).split()) == Counter(word for word in wrapped.split() if set(word) != {"*"})


# --------------------------------------------------------------------------------------------------------- documents


def test_a_row_a_heading_or_so_many_sentences_make_a_document(register):
    lines = [
        "",
        " = One = ",
        "",
        " First of one . Second @-@ rate .",
        " = = Part = = ",
        " Third .",
        " = Two = ",
        " Alone .",
    ]
    wiki = list(raw_documents(register({"text": lines}), "train", "headings"))
    assert wiki == [["One", "First of one .", "Second-rate .", "Part", "Third ."], ["Two", "Alone ."]]
    books = list(raw_documents(register({"text": ["a.", "b. c", "d", "e", "f"]}), "train", "sentences", 2))
    assert books == [["a.", "b. c"], ["d", "e"], ["f"]]
    rows = list(raw_documents(register({"text": ["One. Two.", None, "", "c"]}), "train", "row"))
    assert rows == [["One.", "Two."], ["c"]]


@pytest.mark.parametrize("kind", ["row", "headings", "sentences"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_processes_share_the_documents(register, tokenizer, kind, world_size):
    names = [f"number {number} ." for number in range(60)]
    if kind == "headings":
        rows = [line for name in names for line in (f" = {name} = ", "text behind it .")]
    else:
        rows = [name for name in names for _ in range(2 if kind == "sentences" else 1)]
    source = register({"text": rows})
    seen = []
    for rank in range(world_size):
        reader = DocumentReader(
            source, "train", tokenizer, kind=kind, rows_per_document=2, seed=3, rank=rank, world_size=world_size
        )
        mine = []
        for document, _, epoch in reader.read():
            if epoch > 0:
                break
            mine.append(tuple(document.tokens.tolist()))
        assert len(mine) == 60 // world_size
        seen += mine
    assert len(set(seen)) == 60, "no document twice, none left out"


# ------------------------------------------------------------------------------------------------------------- pairs


def test_b_follows_a_exactly_where_the_label_says_so():
    pool = numbered_documents()
    pairs = make_pairs(pool, 64, 0.1, seed=1)
    assert len(pairs) > 40 and set(pairs[:, 4]) == {0, 1}
    for a, a_stop, b, b_stop, label in pairs.tolist():
        first, second = pool.tokens[a:a_stop], pool.tokens[b:b_stop]
        assert len(first) and len(second) and len(first) + len(second) <= 61
        same_document = first[0] // 10_000 == second[0] // 10_000
        # Truncation may take tokens between them away, so "follows" is: same document, and behind A.
        follows = same_document and second[0] > first[-1]
        assert follows == (label == 0), "the truth and the label disagree"
        assert label == 0 or not same_document, "a random B came from A's own document"
        for span in (first, second):
            assert len(set(span.tolist())) == len(span) and len({token // 10_000 for token in span}) == 1


def test_half_of_the_pairs_are_random_where_there_is_a_choice():
    pool = numbered_documents(400, sentences=40)
    labels = make_pairs(pool, 128, 0.0, seed=0)[:, 4]
    # 61 tokens or more of sentences of at most 14 are never one sentence alone, but for the end of a document.
    assert abs(labels.mean() - 0.5) < 0.05 + 2 / np.sqrt(len(labels))


def test_every_token_is_used_and_unused_sentences_are_put_back():
    """Without truncation A's and following B's partition each document: what a random B displaced comes again as A."""
    pool = numbered_documents(30)
    used = []
    for a, a_stop, b, b_stop, label in make_pairs(pool, 512, 0.0, seed=5).tolist():
        used += pool.tokens[a:a_stop].tolist() + (pool.tokens[b:b_stop].tolist() if label == 0 else [])
    longest = max(np.diff(pool.starts[pool.documents]))
    assert longest < 200, "no document fills a sequence, so none is cut"
    random_share = len(set(used)) / len(pool.tokens)
    assert random_share == 1 and len(used) == len(set(used))


def test_sequences_are_filled_and_some_are_short():
    pool = numbered_documents(300, sentences=60)
    lengths = {}
    for probability in (0.0, 0.1, 1.0):
        pairs = make_pairs(pool, 64, probability, seed=2)
        lengths[probability] = (pairs[:, 1] - pairs[:, 0]) + (pairs[:, 3] - pairs[:, 2])
    assert np.mean(lengths[0.0] == 61) > 0.6
    assert np.mean(lengths[0.0] >= 50) > np.mean(lengths[0.1] >= 50) > np.mean(lengths[1.0] >= 50)


def test_truncation_is_the_authors():
    """Against their loop, in distribution: the longer loses a token, at a random end."""
    import random

    def theirs(a, b, room, chance):
        a, b = list(range(*a)), list(range(*b))
        while len(a) + len(b) > room:
            longer = a if len(a) > len(b) else b
            del longer[0 if chance.random() < 0.5 else -1]
        return a[0], a[-1] + 1, b[0], b[-1] + 1

    for a, b, room in [((0, 9), (20, 23), 8), ((0, 3), (20, 30), 8), ((0, 6), (20, 26), 7), ((0, 2), (5, 7), 9)]:
        chance = random.Random(0)
        ours = Counter(_truncate(a, b, room, chance) for _ in range(4000))
        other = Counter(theirs(a, b, room, chance) for _ in range(4000))
        lengths = {(span[1] - span[0], span[3] - span[2]) for span in ours}
        assert lengths == {(span[1] - span[0], span[3] - span[2]) for span in other} and len(lengths) == 1
        for span in ours | other:
            assert abs(ours[span] - other[span]) < 5 * np.sqrt(4000 * 0.25)


def test_one_document_has_no_other():
    with pytest.raises(UserError, match="only one document"):
        make_pairs(numbered_documents(1), 64, 0.1, seed=0)


# ----------------------------------------------------------------------------------------------------------- masking


def sequences(tokenizer, rows: int = 2000, length: int = 128) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    input_ids = generator.integers(5, len(tokenizer), size=(rows, length))
    lengths = generator.integers(length // 2, length + 1, size=rows)
    input_ids[:, 0] = tokenizer.cls_token_id
    input_ids[np.arange(rows), lengths // 2] = input_ids[np.arange(rows), lengths - 1] = tokenizer.sep_token_id
    input_ids[np.arange(length) >= lengths[:, None]] = tokenizer.pad_token_id
    return input_ids, lengths


def within(count: int, total: int, share: float) -> bool:
    """Whether a binomial count lies within four standard deviations of what is expected."""
    return abs(count - total * share) <= 4 * np.sqrt(total * share * (1 - share))


@pytest.mark.parametrize("whole_words", [False, True])
def test_fifteen_percent_are_predicted_eighty_ten_ten(tokenizer, whole_words):
    input_ids, lengths = sequences(tokenizer)
    masked = Masker(tokenizer, whole_words=whole_words)(input_ids, lengths, np.random.default_rng(1))
    used = masked.labels != IGNORED
    rows, slot = np.nonzero(used)
    at = masked.positions[rows, slot]
    assert masked.positions.shape == masked.labels.shape == (2000, 20) and masked.input_ids.shape == input_ids.shape
    assert (masked.labels[rows, slot] == input_ids[rows, at]).all(), "the label is the true token"
    assert not set(masked.labels[used].tolist()) & set(tokenizer.all_special_ids), "special tokens are never predicted"
    if not whole_words:
        assert (used.sum(1) == np.rint(lengths * 0.15)).all()
    assert abs(used.sum() / lengths.sum() - 0.15) < (0.005 if whole_words else 0.002)
    assert len(set(zip(rows, at, strict=True))) == len(rows), "no position twice"
    shown, truth = masked.input_ids[rows, at], input_ids[rows, at]
    total = len(rows)
    assert within((shown == tokenizer.mask_token_id).sum(), total, 0.8)
    # One of the random tokens in VOCABULARY - 5 happens to be the true one.
    same = 0.1 / (VOCABULARY - 5)
    assert within((shown == truth).sum(), total, 0.1 + same)
    others = shown[(shown != tokenizer.mask_token_id) & (shown != truth)]
    assert within(len(others), total, 0.1 - same)
    assert not set(others.tolist()) & set(tokenizer.all_special_ids) and len(set(others.tolist())) > 500
    untouched = np.ones_like(input_ids, bool)
    untouched[rows, at] = False
    assert (masked.input_ids[untouched] == input_ids[untouched]).all()
    assert (masked.positions[~used] == 0).all()


def test_every_position_is_chosen_equally_often(tokenizer):
    input_ids = np.full((1, 40), 9)
    input_ids[0, 0], input_ids[0, 20], input_ids[0, 39] = 2, 3, 3
    counts = np.zeros(40)
    masker, generator = Masker(tokenizer), np.random.default_rng(0)
    for _ in range(3000):
        masked = masker(input_ids, np.array([40]), generator)
        counts[masked.positions[0]] += 1
    ordinary = [place for place in range(40) if place not in (0, 20, 39)]
    assert counts[[0, 20, 39]].sum() == 0 and counts.sum() == 3000 * slots(40, 0.15) == 3000 * 6
    assert np.abs(counts[ordinary] - 3000 * 6 / 37).max() < 5 * np.sqrt(3000 * 6 / 37)


def test_words_are_masked_whole(tokenizer):
    pieces = tokenizer.get_vocab()
    start = next(number for piece, number in pieces.items() if piece.isalpha())
    inner = next(number for piece, number in pieces.items() if piece.startswith("##"))
    row = np.array([2, *[start, inner, inner, start, start, inner] * 6, 3])
    words = np.cumsum(row == start)
    masker = Masker(tokenizer, whole_words=True)
    generator = np.random.default_rng(0)
    for _ in range(50):
        masked = masker(row[None], np.array([len(row)]), generator)
        chosen = masked.positions[0][masked.labels[0] != IGNORED]
        assert 4 <= len(chosen) <= slots(len(row), 0.15)
        for word in set(words[chosen]):
            assert set(np.flatnonzero(words[1:-1] == word) + 1) <= set(chosen)
        assert 0 not in chosen and len(row) - 1 not in chosen


def test_masks_are_new_at_every_look(tokenizer):
    input_ids, lengths = sequences(tokenizer, 8)
    masker, generator = Masker(tokenizer), np.random.default_rng(0)
    assert (masker(input_ids, lengths, generator).positions != masker(input_ids, lengths, generator).positions).any()
    again = [masker(input_ids, lengths, np.random.default_rng(7)) for _ in range(2)]
    assert (again[0].input_ids == again[1].input_ids).all()


# ----------------------------------------------------------------------------------------------------------- batches


def test_a_batch_is_laid_out_as_bert_reads_it(tokenizer):
    documents = [Document(np.arange(5, 105, dtype=np.uint16) + 100 * n, np.full(10, 10, np.int32)) for n in range(4)]
    pool = Pool.of(documents)
    pairs = make_pairs(pool, 32, 0.5, seed=0)
    make = BatchMaker(tokenizer, Masker(tokenizer))
    batch = make(pool, pairs, 32, np.random.default_rng(0))
    assert batch["input_ids"].shape == (len(pairs), 32) and batch["masked_positions"].shape == (len(pairs), 5)
    original = batch["input_ids"].clone()
    used = batch["labels"] != IGNORED
    rows = used.nonzero()[:, 0]
    original[rows, batch["masked_positions"][used]] = batch["labels"][used]
    for row, (a, a_stop, b, b_stop, label) in enumerate(pairs.tolist()):
        expected = [2, *pool.tokens[a:a_stop].tolist(), 3, *pool.tokens[b:b_stop].tolist(), 3]
        padding = 32 - len(expected)
        assert original[row].tolist() == expected + [0] * padding
        assert batch["attention_mask"][row].tolist() == [1] * len(expected) + [0] * padding
        segments = [0] * (a_stop - a + 2) + [1] * (b_stop - b + 1) + [0] * padding
        assert batch["token_type_ids"][row].tolist() == segments
        assert batch["next_sentence_label"][row] == label


def test_left_to_right_predicts_each_next_token(tokenizer):
    pool = Pool.of([Document(np.arange(5, 105, dtype=np.uint16), np.full(10, 10, np.int32))] * 2)
    pairs = make_pairs(pool, 32, 1.0, seed=0)
    batch = BatchMaker(tokenizer, Masker(tokenizer), left_to_right=True)(pool, pairs, 32, np.random.default_rng(0))
    assert not (batch["input_ids"] == tokenizer.mask_token_id).any()
    for row in range(len(pairs)):
        length = int(batch["attention_mask"][row].sum())
        assert batch["labels"][row, : length - 1].tolist() == batch["input_ids"][row, 1:length].tolist()
        assert (batch["labels"][row, length - 1 :] == IGNORED).all()
    assert (batch["masked_positions"] == torch.arange(32)).all()


# ------------------------------------------------------------------------------------------------------------ stream


def make_stream(source, tokenizer, *, kind="row", rank=0, world_size=1, length_of=lambda batch: 32, pool_tokens=2000):
    reader = DocumentReader(
        source, "train", tokenizer, kind=kind, rows_per_document=30, seed=4, rank=rank, world_size=world_size
    )
    settings = PoolSettings(8, length_of, pool_tokens=pool_tokens, seed=4, rank=rank)
    return PretrainingStream(reader, BatchMaker(tokenizer, Masker(tokenizer)), settings)


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def corpus(kind: str) -> list[str]:
    texts = [topics[name][:1500] for name in sorted(topics)[:40]]
    if kind == "row":
        return texts
    if kind == "headings":
        return [line for text in texts for line in (" = Title = ", *text.split("\n"))]
    return [sentence for text in texts for sentence in split_sentences(text)]


@pytest.mark.parametrize("kind", ["row", "headings", "sentences"])
@pytest.mark.parametrize("memory_budget_gb", [2.0, 0.0])
def test_a_resumed_stream_gives_exactly_the_next_batches(register, tokenizer, kind, memory_budget_gb):
    source = register({"text": corpus(kind)}, memory_budget_gb=memory_budget_gb)
    stream = make_stream(source, tokenizer, kind=kind)
    batches, states = [], []
    while stream.epoch < 2 or len(batches) < 30:
        states.append(json.loads(json.dumps(stream.state_dict())))
        batches.append(next(stream))
    assert len({state["position"]["pool"] for state in states}) > 4
    middle_of_a_pool = [n for n, state in enumerate(states) if state["position"]["done"] > 0]
    for begin in (0, 1, middle_of_a_pool[2], len(states) // 2, len(states) - 2):
        resumed = make_stream(source, tokenizer, kind=kind)
        resumed.load_state_dict(states[begin])
        for batch in batches[begin:][:12]:
            assert same(next(resumed), batch)
        assert resumed.epoch == stream.epoch or begin + 12 < len(batches)
    for first, second in zip(batches, batches[1:], strict=False):
        assert not same(first, second)


def test_two_data_sets_are_mixed_by_their_shares_and_resume(register, tokenizer):
    texts = corpus("row")
    first = ["zzz " + text for text in texts[:25]]
    second = [sentence for text in texts[25:] for sentence in split_sentences(text)]

    def make():
        readers = [
            DocumentReader(register({"text": first}), "train", tokenizer, seed=4),
            DocumentReader(
                register({"text": second}), "train", tokenizer, kind="sentences", rows_per_document=5, seed=4
            ),
        ]
        settings = PoolSettings(8, lambda batch: 32, pool_tokens=3000, seed=4)
        return PretrainingStream(MixedReader(readers, [0.7, 0.3]), BatchMaker(tokenizer, Masker(tokenizer)), settings)

    tokens = {True: 0, False: 0}
    documents = make().reader.read()
    mark = tokenizer("zzz", add_special_tokens=False)["input_ids"]
    for _ in range(150):
        document, _, _ = next(documents)
        tokens[document.tokens[: len(mark)].tolist() == mark] += len(document.tokens)
    assert abs(tokens[True] / sum(tokens.values()) - 0.7) < 0.05

    stream = make()
    batches, states = [], []
    for _ in range(60):
        states.append(json.loads(json.dumps(stream.state_dict())))
        batches.append(next(stream))
    for begin in (0, 17, 45):
        resumed = make()
        resumed.load_state_dict(states[begin])
        assert all(same(next(resumed), batch) for batch in batches[begin:])


def test_resuming_with_other_settings_is_refused(register, tokenizer):
    source = register({"text": corpus("row")})
    state = make_stream(source, tokenizer).state_dict()
    with pytest.raises(UserError, match="pool_tokens was 2000 .* and is 3000 now"):
        make_stream(source, tokenizer, pool_tokens=3000).load_state_dict(state)
    with pytest.raises(UserError, match="rank was 0 .* and is 1 now"):
        make_stream(source, tokenizer, rank=1, world_size=2).load_state_dict(state)


def test_long_sequences_come_at_the_end_and_resume(register, tokenizer):
    source = register({"text": corpus("row")})
    length_of = lambda batch: 64 if batch >= 7 else 32  # noqa: E731
    stream = make_stream(source, tokenizer, length_of=length_of)
    batches, states = [], []
    for _ in range(14):
        states.append(stream.state_dict())
        batches.append(next(stream))
    assert [batch["input_ids"].shape[1] for batch in batches] == [32] * 7 + [64] * 7
    assert batches[0]["labels"].shape[1] == slots(32, 0.15) and batches[-1]["labels"].shape[1] == slots(64, 0.15)
    for begin in (6, 7, 8):
        resumed = make_stream(source, tokenizer, length_of=length_of)
        resumed.load_state_dict(states[begin])
        assert same(next(resumed), batches[begin]) and same(next(resumed), batches[begin + 1])


def test_a_pool_holds_no_document_twice_and_stays_small(register, tokenizer):
    """Random pairs of one pool are never from two copies of a document, and memory does not grow with the corpus."""
    largest = {}
    for times in (1, 10):
        texts = [f"{number} {text}" for number in range(times) for text in corpus("row")]
        stream = make_stream(register({"text": texts}, memory_budget_gb=0), tokenizer)
        sizes = []
        for pool, _, epoch in stream._pools(stream.reader.start()):
            sizes.append(pool.tokens.nbytes)
            starts = pool.starts[pool.documents[:-1]]
            heads = {tuple(pool.tokens[start : start + 40].tolist()) for start in starts}
            assert len(heads) == len(pool), "a document meets itself"
            if epoch > 0:
                break
        largest[times] = max(sizes)
        assert len(sizes) > 4 * times
    assert largest[10] < 1.5 * largest[1]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (["", " ", ""], "There is no text in split 'train' of 'embedded:own'"),
        (["Only one. It has a few sentences. " * 20], "only one document"),
        (["Two words.", "Four more words here."], "fewer than one batch of 8"),
        ([1, 2], "should hold text, but holds values of type int"),
    ],
)
def test_a_corpus_that_makes_no_batch_is_refused_in_a_sentence(register, tokenizer, rows, sentence):
    with pytest.raises(UserError, match=sentence):
        next(make_stream(register({"text": rows}), tokenizer))


# -------------------------------------------------------------------------------------------------------------- task


def test_losses_are_reported_apart_and_both_classes_are_learnt():
    """codertimo/BERT-pytorch #32 and #49: an NSP loss with ignore_index=0 never learns that B follows A (class 0), and its
    accuracy stays at one half."""
    task = build_task(learning_rate=0.002)
    model = PaperBertForPreTraining(task.config).train()
    batch = next(task.batches({"model": model}, CONTEXT))
    turns = list(task.losses({"model": model}, {}, batch, 0))
    assert len(turns) == 1
    name, loss, metrics = turns[0]
    assert name == "model" and set(metrics) == {"mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy"}
    with torch.no_grad():
        output = model(**batch)
        logits, labels = output.prediction_logits, batch["labels"]
        used = labels != IGNORED
        assert torch.isclose(metrics["mlm_loss"], F.cross_entropy(logits[used], labels[used]))
        truth = batch["next_sentence_label"]
        by_hand = -output.seq_relationship_logits.log_softmax(-1)[torch.arange(len(truth)), truth].mean()
        assert torch.isclose(metrics["nsp_loss"], by_hand)
        assert torch.isclose(loss, metrics["mlm_loss"] + metrics["nsp_loss"])
        hits = (logits[used].argmax(-1) == labels[used]).float().mean()
        assert torch.isclose(metrics["mlm_accuracy"], hits)

    for label in (0, 1):  # a batch of one class only: its loss must fall to 0, whichever class it is
        torch.manual_seed(0)
        model = PaperBertForPreTraining(task.config).train()
        one = {**batch, "next_sentence_label": torch.full_like(truth, label)}
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        for _ in range(8):
            _, loss, metrics = next(task.losses({"model": model}, {}, one, 0))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert metrics["nsp_loss"] < 0.1 and metrics["nsp_accuracy"] == 1, label


def test_evaluation_is_the_same_for_every_run_and_adds_up():
    tasks = [build_task(seed=seed) for seed in (0, 5)]
    held_out = [task.held_out("validation") for task in tasks]
    assert all(same(left, right) for left, right in zip(*held_out, strict=True))
    task = tasks[0]
    torch.manual_seed(0)
    model = PaperBertForPreTraining(task.config).eval()
    with torch.no_grad():
        metrics = task.evaluate(model, "validation", CONTEXT)
        logits = torch.cat([model(**batch).prediction_logits for batch in held_out[0]])
    labels = torch.cat([batch["labels"] for batch in held_out[0]])
    used = labels != IGNORED
    expected = F.cross_entropy(logits[used], labels[used]).item()
    assert metrics["mlm_loss"] == pytest.approx(expected, rel=1e-4)
    assert metrics["perplexity"] == pytest.approx(np.exp(expected), rel=1e-3)
    assert metrics["mlm_accuracy"] == pytest.approx((logits[used].argmax(-1) == labels[used]).float().mean().item())
    answers = torch.cat([batch["next_sentence_label"] for batch in held_out[0]]).float()
    assert metrics["nsp_majority"] == pytest.approx(max(answers.mean().item(), 1 - answers.mean().item()))
    frequent = task.most_frequent_token()
    assert metrics["unigram_accuracy"] == pytest.approx((labels[used] == frequent).float().mean().item())
    # Nothing is more frequent in training: no constant answer does much better on held-out text.
    assert metrics["unigram_accuracy"] > 0.5 * labels[used].bincount().max().item() / used.sum().item()


@pytest.mark.parametrize(
    ("objective", "options", "reported"),
    [
        ("mlm", {"next_sentence_prediction": False}, {"mlm_loss", "mlm_accuracy"}),
        ("left_to_right", {"next_sentence_prediction": False, "causal_attention": True}, {"mlm_loss", "mlm_accuracy"}),
    ],
)
def test_the_ablations_of_table_5_train(objective, options, reported, tmp_path):
    task = build_task(objective=objective, **options)
    model = task.build_model()
    batch = next(task.batches({"model": model}, CONTEXT))
    _, loss, metrics = next(task.losses({"model": model}, {}, batch, 0))
    loss.backward()
    assert set(metrics) == reported
    assert all(parameter.grad is not None for parameter in model.parameters()), (
        "an unused weight would stop several GPUs"
    )
    # The same text is learnt from, so that nothing but the objective differs.
    other = next(build_task().batches({}, CONTEXT))
    assert torch.equal(batch["token_type_ids"], other["token_type_ids"])
    with torch.no_grad():
        assert set(task.evaluate(model.eval(), "validation", CONTEXT)) == {
            "mlm_loss",
            "perplexity",
            "mlm_accuracy",
            "unigram_accuracy",
        }


def test_the_schedule_of_lengths_covers_the_last_share():
    task = build_task(max_steps=100, long_sequence_share=0.1, long_sequence_length=64, sequence_length=32)
    assert [task.length_of(step) for step in (0, 89, 90, 99)] == [32, 32, 64, 64]
    task = build_task(max_steps=50, gradient_accumulation_steps=2, long_sequence_share=0.1, long_sequence_length=64)
    task_short = task.options.sequence_length
    assert [task.length_of(batch) for batch in (89, 90)] == [task_short, 64]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sequence_length": 128}, "Sequences of 128 tokens do not fit a model of 64 positions"),
        ({"long_sequence_share": 0.1}, "Sequences of 512 tokens do not fit"),
        ({"objective": "left_to_right"}, "needs --causal_attention true"),
        ({"causal_attention": True}, "needs --causal_attention false"),
        ({"objective": "mlm"}, "needs --next_sentence_prediction false"),
        ({"masking_probability": 1.5}, "masking_probability must lie between 0 and 1"),
        ({"short_sequence_probability": -1}, "is a share from 0 to 1"),
        ({"sequence_length": 3}, "at least 8 tokens"),
        ({"pool_tokens": 0}, "pool_tokens must be at least 1"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_read(options, sentence):
    with pytest.raises(UserError, match=sentence):
        build_task(**options)


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    task = build_task(tokenizer=tmp_path, vocab_size=700)
    with pytest.raises(UserError, match="has 600 tokens, but the model's vocab_size is 700"):
        task.build_processor()
    assert len(build_task(tokenizer=tmp_path).build_processor()) == 600


def test_resuming_with_another_vocabulary_is_refused(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    state = build_task().state_dict()
    with pytest.raises(UserError, match="The tokenizer is not the one"):
        build_task(tokenizer=tmp_path).load_state_dict(state)


def test_how_long_is_asked_for():
    with pytest.raises(UserError, match="set --max_steps"):
        build_task(max_steps=None, num_train_epochs=1).total_steps(CONTEXT)


def test_pictures_are_drawn(tmp_path, tokenizer):
    task = build_task()
    model = PaperBertForPreTraining(task.config).eval()
    sentences = [
        ["The list holds a number of values and names here."],
        ["No."],
        ["When one is called it gives nothing back."],
    ]
    files = draw_pretraining_figures(model, task.tokenizer, sentences, tmp_path, CONTEXT)
    assert len(files) == 2 and all(path.stat().st_size > 5000 for path in files.values())
    guess = guess_masked_word(model, task.tokenizer, sentences[0][0], CONTEXT.device)
    assert guess.text.count("[MASK]") == 1 and guess.truth not in guess.text.split() and len(guess.candidates) == 5
    assert all(0 < probability <= 1 for _, probability in guess.candidates)

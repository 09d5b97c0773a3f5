"""BLEU against a value worked out by hand, and against what people get wrong with it."""

import math

import pytest

from hf_papers.errors import UserError
from hf_papers.metrics import BleuMetric, corpus_bleu


OURS = ["the cat sat on the mat .", "a dog runs"]
THEIRS = ["the cat sat on a mat .", "a dog runs fast"]


def test_by_hand() -> None:
    """7 + 3 words against 7 + 4. Right: 6 + 3 words, 4 + 2 pairs, 2 + 1 triples, 1 + 0 quadruples."""
    result = corpus_bleu(OURS, THEIRS)
    precisions = [9 / 10, 6 / 8, 3 / 6, 1 / 4]
    penalty = math.exp(1 - 11 / 10)
    assert result.precisions == pytest.approx([100 * value for value in precisions])
    assert result.brevity_penalty == pytest.approx(penalty) and result.length_ratio == pytest.approx(10 / 11)
    assert result.score == pytest.approx(100 * penalty * math.prod(precisions) ** 0.25)


def test_the_signature_says_how() -> None:
    parts = dict(part.split(":") for part in corpus_bleu(OURS, THEIRS).signature.split("|"))
    assert parts["case"] == "mixed" and parts["tok"] == "13a" and parts["nrefs"] == "1" and parts["version"]
    assert "case:lc" in corpus_bleu(OURS, THEIRS, lowercase=True).signature


def test_case_counts_unless_it_is_said_not_to() -> None:
    shouted = [text.upper() for text in THEIRS]
    assert corpus_bleu(shouted, THEIRS).score < 20
    assert corpus_bleu(shouted, THEIRS, lowercase=True).score == pytest.approx(100)


def test_it_is_of_the_corpus_and_not_a_mean_over_sentences() -> None:
    whole = corpus_bleu(OURS, THEIRS).score
    single = [corpus_bleu([ours], [theirs]).score for ours, theirs in zip(OURS, THEIRS, strict=True)]
    assert abs(whole - sum(single) / 2) > 1


def test_empty_translations_are_bad_translations() -> None:
    assert corpus_bleu(["", ""], THEIRS).score == 0
    assert corpus_bleu(["", THEIRS[1]], THEIRS).score < corpus_bleu(THEIRS, THEIRS).score


def test_bad_input() -> None:
    with pytest.raises(UserError, match="1 translations cannot be compared with 2 references"):
        corpus_bleu(["a"], ["a", "b"])
    with pytest.raises(UserError, match="one translation or more"):
        corpus_bleu([], [])
    with pytest.raises(UserError, match="a reference is 7"):
        corpus_bleu(["a"], [7])
    with pytest.raises(UserError, match="no way to cut words called '14a'"):
        corpus_bleu(["a"], ["a"], tokenize="14a")


def test_the_evaluate_class_gives_the_same() -> None:
    metric = BleuMetric()
    metric.add_batch(predictions=OURS[:1], references=THEIRS[:1])
    metric.add_batch(predictions=OURS[1:], references=THEIRS[1:])
    found = metric.compute()
    result = corpus_bleu(OURS, THEIRS)
    assert found["bleu"] == pytest.approx(result.score) and found["signature"] == result.signature
    assert metric.compute(predictions=OURS, references=THEIRS, lowercase=True)["signature"].count("case:lc") == 1

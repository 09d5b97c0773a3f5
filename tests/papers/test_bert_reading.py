"""Asking a BERT: answers agree with the model called by hand, and what cannot be answered is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel

from hf_papers import find_paper
from hf_papers.errors import UserError
from hf_papers.papers.bert import reading_bert as reading
from hf_papers.papers.bert.reading_bert import Reader, load_reader
from hf_papers.papers.bert.tokenization_bert import train_tokenizer


TEXTS = ["the quick brown fox jumps over the lazy dog quickly , slowly and sadly .", "a good film and a bad film"]
VOCABULARY = 80


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT of 24 positions with random weights, and its tokenizer."""
    path = tmp_path_factory.mktemp("bert")
    paper = find_paper("bert")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = paper.model_class(
            paper.config_class.from_preset("tiny", vocab_size=VOCABULARY, max_position_embeddings=24)
        )
        for parameter in model.parameters():
            parameter.data.mul_(3.0)
    model.save_pretrained(path)
    train_tokenizer(TEXTS, VOCABULARY, min_frequency=1).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def reader(folder: Path) -> Reader:
    return load_reader(folder)


def by_hand(reader: Reader, *texts: str) -> torch.Tensor:
    return reader.tokenizer(*texts, return_tensors="pt")


# ------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("blank", ["[MASK]", "[mask]", "__", "________"])
def test_blanks_get_the_models_own_probabilities(reader: Reader, blank: str) -> None:
    filled = reading.fill_blanks(reader, f"the {blank} fox jumps over the {blank}.")
    with torch.no_grad():
        inputs = by_hand(reader, "the [MASK] fox jumps over the [MASK].")
        logits = reader.model(**inputs).prediction_logits[0]
    places = (inputs["input_ids"][0] == reader.tokenizer.mask_token_id).nonzero()[:, 0]
    assert len(filled.blanks) == len(places) == 2
    for candidates, row in zip(filled.blanks, logits[places].softmax(-1), strict=True):
        assert [c.probability for c in candidates] == sorted((c.probability for c in candidates), reverse=True)
        for candidate in candidates:
            token = ("##" if candidate.continues else "") + candidate.word
            number = reader.tokenizer.convert_tokens_to_ids(token)
            assert number not in reader.tokenizer.all_special_ids
            assert candidate.probability == pytest.approx(row[number].item(), rel=1e-4)
        words = row.clone()
        words[reader.tokenizer.all_special_ids] = 0
        assert candidates[0].probability == pytest.approx(words.max().item(), rel=1e-4)


def test_names_of_special_tokens_are_text(reader: Reader) -> None:
    """A visitor who writes [SEP] does not end the sentence, and [PAD] hides nothing."""
    encoded = reading.encode(reader, "the [SEP] fox [PAD]")
    assert not {reader.tokenizer.sep_token_id, reader.tokenizer.pad_token_id} & set(encoded.ids)


def test_pairs_are_judged_as_in_pre_training(reader: Reader) -> None:
    verdict = reading.judge_pair(reader, "the fox jumps", "a good film")
    with torch.no_grad():
        logits = reader.model(**by_hand(reader, "the fox jumps", "a good film")).seq_relationship_logits[0]
    assert list(verdict.probabilities.values()) == pytest.approx(logits.softmax(-1).tolist(), rel=1e-4)
    turned = reading.judge_pair(reader, "a good film", "the fox jumps")
    assert turned.probabilities != verdict.probabilities, "A and B are in different segments and order"


def test_attention_rows_sum_to_one(reader: Reader) -> None:
    found = reading.look(reader, "the quick fox", limit=30)
    assert found.tokens[0] == "[CLS]" and found.tokens[-1] == "[SEP]"
    length = len(found.tokens)
    assert found.weights.shape == (2, 2, length, length)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(2, 2, length))


def test_embeddings_are_means_of_tokens_whatever_they_are_batched_with(reader: Reader) -> None:
    texts = ["the fox", "a good film and a bad film", "dog"] * 15
    vectors, notes = reading.embed(reader, texts, limit=20)
    with torch.no_grad():
        hidden = reader.encoder(**by_hand(reader, "a good film and a bad film")).last_hidden_state[0]
    torch.testing.assert_close(vectors[1], hidden[1:-1].mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vectors[:3], vectors[-3:], rtol=1e-4, atol=1e-5)
    assert notes == []


# ------------------------------------------------------------------------------------------------- what visitors write


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "There is no text"),
        (" \n\t ", "There is no text"),
        (None, "There is no text"),
        ("[MASK] ___ [MASK]", "nothing but blanks"),
        ("the quick fox", "There is no blank"),
        ("the ___ " * 11, "11 blanks in the text; at most 10"),
        ("the fox " * 30 + "___", "after the first 22 tokens"),
        ("the fox " * 100_000 + "___", "after the first 22 tokens"),
    ],
)
def test_what_cannot_be_filled_is_said(reader: Reader, text: str | None, words: str) -> None:
    with pytest.raises(UserError, match=words):
        reading.fill_blanks(reader, text)


def test_what_was_cut_or_unknown_is_noted(reader: Reader) -> None:
    long = reading.fill_blanks(reader, "the ___ " + "fox " * 100)
    assert long.notes == ["Too long to be read at once: 22 tokens were read, and the rest was left out."]
    odd = reading.fill_blanks(reader, "the ___ 🙂 你 🙂 \ud800")
    assert len(odd.notes) == 1 and "read as [UNK]: 🙂, 你" in odd.notes[0]


def test_a_pair_that_is_too_long_loses_the_end_of_the_longer(reader: Reader) -> None:
    assert reading.cut_pair([1] * 30, [2] * 4, 21) == ([1] * 17, [2] * 4)
    first, second = reading.cut_pair([1] * 30, [2] * 40, 21)
    assert len(first) + len(second) == 21 and abs(len(first) - len(second)) == 1
    verdict = reading.judge_pair(reader, "fox " * 50, "dog")
    assert "21 tokens were read" in verdict.notes[0]


# ------------------------------------------------------------------------------------------------- checkpoints


def reference(folder: Path, model_class: type, size: int = VOCABULARY) -> Path:
    """A random BERT in transformers' layout, with our tokenizer."""
    config = BertConfig(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=24,
    )
    model_class(config).save_pretrained(folder)
    train_tokenizer(TEXTS, VOCABULARY, min_frequency=1).save_pretrained(folder)
    return folder


def test_a_published_bert_answers_what_it_has_outputs_for(tmp_path: Path) -> None:
    found = load_reader(reference(tmp_path, BertForMaskedLM))
    assert len(reading.fill_blanks(found, "the ___ fox").blanks[0]) == 5
    with pytest.raises(UserError, match="not trained on pairs"):
        reading.judge_pair(found, "the fox", "a film")


def test_an_encoder_alone_does_not_guess_by_chance(tmp_path: Path) -> None:
    found = load_reader(reference(tmp_path, BertModel))
    assert reading.embed(found, ["the fox"], 20)[0].shape == (1, 32)
    with pytest.raises(UserError, match="no output over the vocabulary"):
        reading.fill_blanks(found, "the ___ fox")
    with pytest.raises(UserError, match="no classifier"):
        load_reader(tmp_path, classifier=True)


def test_a_foreign_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 80 tokens, but the model's vocab_size is 500"):
        load_reader(reference(tmp_path, BertModel, size=500))


def test_a_pre_trained_network_is_no_classifier(folder: Path) -> None:
    with pytest.raises(UserError, match="no classifier"):
        load_reader(folder, classifier=True)

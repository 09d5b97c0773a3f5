"""BERT's vocabulary: trained, saved, loaded back, and refused where it does not belong to the model."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import transformers
from transformers import AutoTokenizer, BertTokenizer

from hf_papers.cli import main
from hf_papers.errors import UserError
from hf_papers.papers.bert.configuration_bert import PaperBertConfig
from hf_papers.papers.bert.tokenization_bert import (
    SPECIAL_TOKENS,
    check_vocabulary,
    load_tokenizer,
    train_tokenizer,
)


TEXTS = [
    "The quick brown fox jumps over the lazy dog, naïvely! " * 3,
    "A dog's life: jumping foxes, quickest dogs and lazier cats.",
    "Foxes jumped; dogs barked. Browner is the brownest fox of them all?",
] * 4


def pieces(tokenizer) -> list[str]:
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.get)


def vocabulary_file(tokenizer, folder: Path) -> Path:
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(pieces(tokenizer)) + "\n", encoding="utf-8")
    return folder


def test_special_tokens_come_first_and_the_size_is_exact():
    tokenizer = train_tokenizer(TEXTS, 90)
    assert len(tokenizer) == 90 and tuple(pieces(tokenizer)[:5]) == SPECIAL_TOKENS
    assert tokenizer.pad_token_id == 0
    assert tokenizer.all_special_ids and set(tokenizer.all_special_tokens) == set(SPECIAL_TOKENS)


def test_words_are_cut_as_berts_are():
    """The released code's greedy longest match, on an independent tokenizer with the same vocabulary."""
    tokenizer = train_tokenizer(TEXTS, 90)
    vocabulary = set(pieces(tokenizer))

    def greedy(word: str) -> list[str]:
        found, start = [], 0
        while start < len(word):
            for stop in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:stop]
                if piece in vocabulary:
                    found.append(piece)
                    start = stop
                    break
            else:
                return ["[UNK]"]
        return found

    for word in ("foxes", "jumped", "brownest", "quickdogs", "lazylife", "qqq", "zzzß"):
        assert tokenizer.tokenize(word) == greedy(word), word
    assert tokenizer.tokenize("Fox, FOX!") == ["fox", ",", "fox", "!"]
    assert "##!" not in vocabulary, "punctuation never continues a word, and must not use up the vocabulary"


def test_a_pair_has_two_segments():
    encoded = train_tokenizer(TEXTS, 90)("quick dog", "a fox")
    assert set(encoded) == {"input_ids", "token_type_ids", "attention_mask"}
    cls, sep = 2, 3
    ids, segments = encoded["input_ids"], encoded["token_type_ids"]
    assert ids[0] == cls and ids.count(sep) == 2 and ids[-1] == sep
    assert segments == [0] * (ids.index(sep) + 1) + [1] * (len(ids) - ids.index(sep) - 1)


@pytest.mark.parametrize(("lowercase", "expected"), [(True, ["naively"]), (False, ["Naïvely"])])
def test_case_and_accents_are_folded_or_kept(lowercase, expected):
    tokenizer = train_tokenizer(["Naïvely"] * 9, 22, lowercase=lowercase, min_frequency=1)
    assert "".join(tokenizer.tokenize("Naïvely")).replace("##", "") == expected[0]


def test_training_twice_gives_the_same_vocabulary():
    """The `tokenizers` library alone numbers and even chooses pieces by the order of a hash map, another one each time,
    within a process and from one to the next."""
    texts = [topics[name] for name in sorted(topics)[:12]]
    first = train_tokenizer(texts, 900).get_vocab()
    assert all(train_tokenizer(texts, 900).get_vocab() == first for _ in range(3))


def test_one_pass_over_texts_is_enough():
    assert pieces(train_tokenizer(iter(TEXTS), 90)) == pieces(train_tokenizer(TEXTS, 90))


def test_rare_characters_do_not_fill_the_vocabulary():
    many = "".join(chr(0x1200 + number) for number in range(300))  # Ethiopic: letters without case
    tokenizer = train_tokenizer([many, *TEXTS * 3], 700)
    assert len(tokenizer) == 700 and tokenizer.tokenize("fox") == ["fox"]


def test_auto_tokenizer_loads_it_beside_a_model(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 90)
    PaperBertConfig.from_preset("tiny", vocab_size=90, architectures=["PaperBertForPreTraining"]).save_pretrained(
        tmp_path
    )
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "paper-bert"
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, BertTokenizer)
    sentence = ("The laziest fox?", "Jumping dogs")
    assert dict(loaded(*sentence)) == dict(tokenizer(*sentence))
    assert loaded.decode(loaded("Quick dogs")["input_ids"]) == "[CLS] quick dogs [SEP]"


@pytest.mark.parametrize("form", ["saved", "vocab.txt in a folder", "vocab.txt"])
def test_published_vocabularies_are_loaded(tmp_path, form):
    tokenizer = train_tokenizer(TEXTS, 90)
    if form == "saved":
        tokenizer.save_pretrained(tmp_path / "saved")
        place = tmp_path / "saved"
    else:
        place = vocabulary_file(tokenizer, tmp_path / "published")
        place = place if "folder" in form else place / "vocab.txt"
    loaded = load_tokenizer(place)
    assert pieces(loaded) == pieces(tokenizer) and dict(loaded(*TEXTS[:2])) == dict(tokenizer(*TEXTS[:2]))


def test_a_cased_vocabulary_stays_cased(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 90, lowercase=False)
    loaded = load_tokenizer(vocabulary_file(tokenizer, tmp_path / "cased"))
    assert loaded("The quick Fox")["input_ids"] == tokenizer("The quick Fox")["input_ids"]
    assert loaded.tokenize("T") == ["T"]


def test_what_is_no_tokenizer_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.txt").write_text("a\nb\n")
    for place, sentence in [
        (tmp_path / "empty", "neither a tokenizer.json nor a vocab.txt"),
        (tmp_path / "words.txt", r"lacks \[PAD\]"),
        ("./nowhere", "no tokenizer at ./nowhere"),
    ]:
        with pytest.raises(UserError, match=sentence):
            load_tokenizer(place)


@pytest.mark.parametrize(
    ("texts", "arguments", "sentence"),
    [
        (["", "  \n"], {"vocab_size": 90}, "every document is empty"),
        (TEXTS, {"vocab_size": 5}, "larger than the 5 special tokens"),
        (TEXTS, {"vocab_size": 20}, "the least is"),
        (TEXTS, {"vocab_size": 90, "min_frequency": 0}, "min_frequency must be at least 1"),
        (TEXTS, {"vocab_size": 5000}, r"yield only \d+ word pieces .* not 5000: set --vocab_size to"),
    ],
)
def test_bad_training_is_refused_in_a_sentence(texts, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        train_tokenizer(texts, **arguments)


def test_a_vocabulary_must_fit_the_model():
    tokenizer = train_tokenizer(TEXTS, 90)
    check_vocabulary(tokenizer, 90, 0)
    with pytest.raises(UserError, match=r"has 90 tokens, but the model's vocab_size is 30,522.*--vocab_size 90"):
        check_vocabulary(tokenizer, 30522)
    with pytest.raises(UserError, match="pads with 0, but the model's pad_token_id is 1"):
        check_vocabulary(tokenizer, 90, 1)


# -------------------------------------------------------------------------------------------------------- the command


def call(capsys, *words) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["train-tokenizer", *map(str, words)])
    return caught.value.code, *capsys.readouterr()


def test_the_command_writes_a_tokenizer_that_loads(tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    lines = [json.dumps({"sentence": text, "number": 1}) for text in TEXTS]
    (tmp_path / "texts" / "train.jsonl").write_text("\n".join(lines))
    words = ["bert", "--source", tmp_path / "texts", "--column", "sentence", "--vocab_size", 90, "--no_lowercase"]
    code, out, err = call(capsys, *words, "--output_dir", tmp_path / "out")
    assert code == 0 and "90 tokens" in out, err
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(loaded) == 90 and pieces(loaded) == pieces(train_tokenizer(TEXTS, 90, lowercase=False))

    code, _, err = call(capsys, *words, "--output_dir", tmp_path / "out")
    assert code == 2 and "is not empty" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["vae", "--source", "embedded:pydoc-topics"], "has no tokenizer to train. Papers that have one: "),
        (["bret", "--source", "embedded:pydoc-topics"], "Did you mean 'bert'?"),
        (["bert", "--source", "embedded:pydoc-topic"], "Did you mean 'pydoc-topics'?"),
        (["bert", "--source", "embedded:pydoc-topics", "--column", "body"], "there is no column 'body'"),
        (["bert", "--source", "embedded:pydoc-topics", "--split", "trian"], "Did you mean 'train'?"),
        (
            ["bert", "--source", "embedded:digits", "--column", "label"],
            "should hold text, but holds values of type int",
        ),
        (["bert"], "--source"),
    ],
)
def test_what_is_wrong_with_a_command_is_a_sentence(tmp_path, capsys, words, sentence):
    code, _, err = call(capsys, *words, "--output_dir", tmp_path / "out")
    assert code == 2 and sentence in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()

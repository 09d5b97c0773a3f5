"""The Transformer as it is trained and used: vocabulary, pairs, task, translations, fine-tuning, and bad input."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoTokenizer

from hf_papers.cli import main
from hf_papers.errors import UserError
from hf_papers.hub.checkpoints import load_strict
from hf_papers.hub.export import export_int8
from hf_papers.papers.transformer import PAPER
from hf_papers.papers.transformer.configuration_transformer import PaperTransformerConfig
from hf_papers.papers.transformer.figures_transformer import draw_figures, short_source
from hf_papers.papers.transformer.modeling_transformer import (
    IGNORED,
    PaperTransformerForSeq2SeqLM,
    PaperTransformerForSequenceClassification,
)
from hf_papers.papers.transformer.pairs_transformer import PairEncoder, pair_of
from hf_papers.papers.transformer.tokenization_transformer import (
    SPECIAL_TOKENS,
    check_vocabulary,
    load_tokenizer,
    train_tokenizer,
)
from hf_papers.papers.transformer.training_transformer import TranslationTask, with_label_positions
from hf_papers.papers.transformer.translating_transformer import Search, Translator, batches_of
from hf_papers.training.finish import evaluate_run, run_recipe
from hf_papers.training.recipe import load_recipe
from hf_papers.training.run import Run
from hf_papers.training.task import Context
from hf_papers.training.trainer import Trainer


CONTEXT = Context(torch.device("cpu"), rank=0, world_size=1, seed=0)
README = Path(__file__).resolve().parents[2] / "hf_papers" / "papers" / "transformer" / "README.md"
TEXTS = [
    "Zwei Männer gehen die Straße hinunter, sie reden.",
    "Two men walk down the street (talking).",
    "Ein Hund läuft 1979 über die Straße!",
    "A dog runs across the street in 1979!",
    "Die Männer reden über den Hund; der Hund läuft.",
    "The men are talking about the dog: the dog runs.",
] * 4


# -------------------------------------------------------------------------------------------------------- vocabulary


def pieces(tokenizer: Any) -> list[str]:
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.get)


def test_special_tokens_come_first_and_the_size_is_exact():
    tokenizer = train_tokenizer(TEXTS, 100)
    assert len(tokenizer) == 100 and tuple(pieces(tokenizer)[:4]) == SPECIAL_TOKENS
    config = PaperTransformerConfig(vocab_size=100)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 2, 3)
    check_vocabulary(tokenizer, config)


@pytest.mark.parametrize("text", [*TEXTS[:6], "Straße,Hund", "  so  viele\n\tHunde ", "(reden)!", "19791", "a - b-c"])
def test_what_was_encoded_comes_back(text: str):
    tokenizer = train_tokenizer([*TEXTS, "so viele - a b c"] * 2, 110)
    encoded = tokenizer(text)["input_ids"]
    assert encoded[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(encoded, skip_special_tokens=True) == " ".join(text.split())


def test_pieces_are_merged_as_byte_pairs_are():
    """The most frequent pair of neighbours first, by hand: l+o, lo+w, then e+r."""
    tokenizer = train_tokenizer(["low lower lowest newer"] * 5, 4 + 1 + 8 + 4, min_frequency=2)
    merged = pieces(tokenizer)[13:]
    assert merged[0] in ("lo", "ow", "we") and "low" in "".join(merged)
    assert tokenizer.tokenize("low")[0].startswith("▁")


def test_digits_and_punctuation_are_tokens_of_their_own():
    tokenizer = train_tokenizer(TEXTS * 5, 140)
    assert tokenizer.tokenize("Hund, 1979!")[-6:] == [*"1979", "!"][-5:] or tokenizer.tokenize("1979!")[-5:] == [
        *"1979",
        "!",
    ]
    assert not any(re.search(r"\w[,.!;:()]|\d\d", piece) for piece in pieces(tokenizer)[4:])


def test_source_and_target_share_one_vocabulary():
    tokenizer = train_tokenizer(TEXTS, 80)
    german, english = (set(itertools.chain(*tokenizer(TEXTS[part::2])["input_ids"])) for part in (0, 1))
    assert len(german & english) > 10
    assert "ä" in pieces(tokenizer) and "Z" in pieces(tokenizer), "case and accents are kept"
    folded = pieces(train_tokenizer(TEXTS, 75, lowercase=True))
    assert "ä" in folded and not any(piece != piece.lower() for piece in folded)


def test_training_twice_gives_the_same_vocabulary_and_one_pass_is_enough():
    first = train_tokenizer(TEXTS, 120).get_vocab()
    assert train_tokenizer(TEXTS, 120).get_vocab() == first == train_tokenizer(iter(TEXTS), 120).get_vocab()


def test_unknown_characters_are_one_token_and_do_not_fill_the_vocabulary():
    rare = "".join(chr(0x1200 + number) for number in range(2000))  # Ethiopic
    tokenizer = train_tokenizer([rare, *TEXTS * 30], 1200, min_frequency=1)
    assert len(tokenizer) == 1200 and "▁Hund" in pieces(tokenizer)
    plain = train_tokenizer(TEXTS, 100)
    assert plain.unk_token_id in plain("Hund 你好 Hund")["input_ids"]
    assert plain("你好你")["input_ids"].count(plain.unk_token_id) == 1


def test_auto_tokenizer_loads_it_beside_a_model(tmp_path: Path):
    tokenizer = train_tokenizer(TEXTS, 100)
    PaperTransformerConfig.from_preset("tiny", vocab_size=100).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert dict(loaded(TEXTS[:2])) == dict(tokenizer(TEXTS[:2])) and set(loaded("a")) == {
        "input_ids",
        "attention_mask",
    }
    assert loaded.pad_token_id == 0 and loaded.model_max_length == 512
    assert pieces(load_tokenizer(tmp_path)) == pieces(tokenizer)


@pytest.mark.parametrize(
    ("texts", "arguments", "sentence"),
    [
        (["", " \n"], {"vocab_size": 90}, "every text is empty"),
        (TEXTS, {"vocab_size": 4}, "larger than the 4 special tokens"),
        (TEXTS, {"vocab_size": 20}, "the least is"),
        (TEXTS, {"vocab_size": 90, "min_frequency": 0}, "min_frequency must be at least 1"),
        (TEXTS, {"vocab_size": 5000}, r"yield only \d+ tokens .* not 5000: set --vocab_size to"),
    ],
)
def test_bad_vocabulary_training_is_refused_in_a_sentence(texts: list[str], arguments: dict[str, int], sentence: str):
    with pytest.raises(UserError, match=sentence):
        train_tokenizer(texts, **arguments)


def test_a_tokenizer_must_fit_the_model(tmp_path: Path):
    tokenizer = train_tokenizer(TEXTS, 100)
    with pytest.raises(UserError, match=r"has 100 tokens, but the model's vocab_size is 37,000.*--vocab_size 100"):
        check_vocabulary(tokenizer, PaperTransformerConfig())
    with pytest.raises(UserError, match="eos token has the number 3, but the model's eos_token_id is 5"):
        check_vocabulary(tokenizer, PaperTransformerConfig(vocab_size=100, eos_token_id=5))
    tokenizer.bos_token = None
    with pytest.raises(UserError, match="no bos token"):
        check_vocabulary(tokenizer, PaperTransformerConfig(vocab_size=100))
    for place, sentence in ((tmp_path, "no tokenizer.json in it"), ("./nowhere", "There is no folder ./nowhere")):
        with pytest.raises(UserError, match=sentence):
            load_tokenizer(place)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(tmp_path)


def call(capsys: Any, *words: Any) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([*map(str, words)])
    return caught.value.code, *capsys.readouterr()


def test_the_command_trains_a_shared_vocabulary_of_two_columns(tmp_path: Path, capsys: Any):
    (tmp_path / "pairs").mkdir()
    rows = [json.dumps({"translation": {"de": TEXTS[n], "en": TEXTS[n + 1]}}) for n in range(0, 24, 2)]
    (tmp_path / "pairs" / "train.jsonl").write_text("\n".join(rows))
    words = ["train-tokenizer", "transformer", "--source", tmp_path / "pairs", "--vocab_size", 100]
    code, out, err = call(
        capsys, *words, "--column", "translation.de,translation.en", "--output_dir", tmp_path / "out"
    )
    assert code == 0 and "100 tokens" in out, err
    assert pieces(load_tokenizer(tmp_path / "out")) == pieces(train_tokenizer(TEXTS, 100)), "cased by default"
    code, _, err = call(
        capsys, *words, "--column", "translation.de,translation.fr", "--output_dir", tmp_path / "other"
    )
    assert code == 2 and "has no entry 'fr'" in err


# ------------------------------------------------------------------------------------------------------------- pairs


def row(source: Any, target: Any) -> dict[str, Any]:
    return {"source": source, "target": target}


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        (row("Ein Hund", None), "A row of the data has no target; its source is 'Ein Hund'"),
        (row(None, "A dog"), "A row of the data has no source; its target is 'A dog'"),
        (row("Ein Hund", 7), "column 'target' of the data should hold texts, but a row holds 7"),
        (row({"de": "x"}, "y"), "column 'source' .* --columns source=THEIRS"),
    ],
)
def test_a_pair_with_a_missing_text_is_refused_in_a_sentence(pair: dict[str, Any], sentence: str):
    with pytest.raises(UserError, match=sentence):
        pair_of(pair, "the data")


def test_pairs_that_cannot_be_learnt_from_are_left_out_and_counted():
    tokenizer = train_tokenizer(TEXTS, 100)
    encoder = PairEncoder(tokenizer, 20, "the data")
    rows = [
        row("Ein Hund", "A dog"),
        row("", "A dog"),
        row("Ein Hund", "  "),
        row("Hund " * 20, "A dog"),
        row("a", "b"),
    ]
    batch = encoder(rows)
    assert [len(tokens) > 0 for tokens in batch["input_ids"]] == [True, False, False, False, True]
    assert [len(a) > 0 for a in batch["labels"]] == [len(b) > 0 for b in batch["input_ids"]]
    assert encoder.note() == (
        "Note: of 5 pairs, 2 were left out because a text of theirs is empty, and 1 because one has more than 20 tokens "
        "(--max_tokens)."
    )
    assert batch["labels"][0][-1] == tokenizer.eos_token_id
    assert PairEncoder(tokenizer, 20, "the data").note() is None


# -------------------------------------------------------------------------------------------------------------- task


SMALL = {
    "d_model": "32", "d_ff": "48", "num_heads": "2", "num_encoder_layers": "1", "num_decoder_layers": "1",
    "train_split": "train[:3000]", "validation_split": "validation[:40]", "test_split": "test[:30]",
    "report_to": "none", "progress": "false",
}  # fmt: skip


def recipe_of(tmp_path: Path, name: str = "embedded", **options: Any) -> Any:
    given = {"output_dir": str(tmp_path / "run"), **SMALL, **{key: str(value) for key, value in options.items()}}
    return load_recipe("transformer", name, given)


def task_of(tmp_path: Path, **options: Any) -> TranslationTask:
    recipe = recipe_of(tmp_path, **options)
    return recipe.task_class(recipe)


def write_pairs(path: Path, rows: list[tuple[str, str]], columns: tuple[str, str] = ("source", "target")) -> str:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([columns, *rows])
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Pairs of one's own, German and English in turns, as CSV files."""
    rows = [(TEXTS[n], TEXTS[n + 1]) for n in range(0, 24, 2)]
    return {f"{split}_file": write_pairs(tmp_path / f"{split}.csv", rows) for split in ("train", "validation", "test")}


def test_a_batch_has_at_most_so_many_tokens_and_knows_its_labels(tmp_path: Path):
    task = task_of(tmp_path, tokens_per_batch=200, max_tokens=60)
    batches = task.batches({}, CONTEXT)
    for batch in itertools.islice(batches, 20):
        rows, source, target = len(batch["labels"]), batch["input_ids"].shape[1], batch["labels"].shape[1]
        assert rows * max(source, target) <= 200
        assert torch.equal(batch["attention_mask"].bool(), batch["input_ids"] != 0)
        flat = batch["labels"].flatten()
        assert torch.equal(flat[batch["label_positions"]], flat[flat != IGNORED])
        assert (batch["labels"] == task.tokenizer.eos_token_id).sum() == rows


def test_the_trainer_trains_it_and_publishes_an_average(tmp_path: Path):
    recipe = recipe_of(tmp_path, max_steps=120, eval_steps=120, learning_rate="5e-3", warmup_steps=20)
    trainer = Trainer(recipe.task_class(recipe), Run(Path(recipe.output_dir)))
    trainer.prepare()
    before = trainer.evaluate(trainer.published(), "validation")
    trainer.train()
    after = trainer.evaluate(trainer.published(), "validation")
    test = trainer.evaluate(trainer.published(), "test")
    trainer.end()
    assert after["loss"] < before["loss"] - 1.5
    assert after["perplexity"] == pytest.approx(math.exp(after["loss"]))
    assert set(test) == {"bleu", "exact_match", "bleu_greedy", "exact_match_greedy", "loss", "perplexity"}
    published, last = trainer.published().state_dict(), trainer.model.state_dict()
    assert trainer.published() is not trainer.model
    assert not torch.equal(published["lm_head.weight"], last["lm_head.weight"])
    described = trainer.task.describe()
    assert described["bleu_signature"].startswith("nrefs:1|case:mixed") and described["dataset"] == "embedded:dates"
    assert len(described["examples"]) == 6 and described["examples"][0].keys() == {"source", "target", "translation"}
    assert described["target_tokens_per_second"] > 0 and described["seconds_per_epoch"] > 0


def test_without_an_average_the_last_weights_are_published(tmp_path: Path):
    task = task_of(tmp_path, average_decay=0)
    model = object()
    assert task.shadows() == {} and task.published(model, {}) is model


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path):
    """Batches by tokens, dropout, average and clock go on where they were."""
    options = {"max_steps": 12, "save_steps": 6, "tokens_per_batch": 300, "max_tokens": 60, "save_total_limit": 5}
    whole = run_recipe(recipe_of(tmp_path, **options))
    checkpoints = sorted((whole / "checkpoints").iterdir())
    recipe = recipe_of(tmp_path, **options, resume=checkpoints[0], output_dir=tmp_path / "again")
    again = run_recipe(recipe)
    ours, theirs = (load_strict(PaperTransformerForSeq2SeqLM, folder).state_dict() for folder in (whole, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_loss_is_smoothed_in_training_and_not_in_evaluation(tmp_path: Path):
    task = task_of(tmp_path, label_smoothing=0.3, dropout=0)
    model = task.build_model()
    batch = next(task.batches({}, CONTEXT))
    _, smoothed, _ = next(task.losses({"model": model}, {}, batch, 0))
    plain = model(**batch).loss
    assert not torch.allclose(smoothed, plain)
    torch.testing.assert_close(smoothed, model(**batch, label_smoothing=0.3).loss)
    sources, targets = ["1/2/2003", "5 May 1960"], ["2003-02-01", "1960-05-05"]
    labels = task.tokenizer(targets)["input_ids"]
    total = 0.0
    for source, row in zip(sources, labels, strict=True):
        inputs = task.tokenizer(source, return_tensors="pt")
        total += model(**inputs, labels=torch.tensor([row])).loss.item() * len(row)
    expected = total / sum(map(len, labels))
    assert task._loss(model.eval(), sources, targets, CONTEXT) == pytest.approx(expected, rel=1e-5)


def test_pairs_of_ones_own_files_the_other_way_round_by_one_option(tmp_path: Path, files: dict[str, str]):
    options = {**files, "vocab_size": 100, "min_frequency": 2, "train_split": "train", "validation_split": "validation",
               "test_split": "test", "per_device_train_batch_size": 4}  # fmt: skip
    task = task_of(tmp_path, **options)
    assert task.pairs("test")[0][0].startswith("Zwei") and task.pairs("test")[1][0].startswith("Two")
    assert len(next(task.batches({}, CONTEXT))["labels"]) == 4
    back = task_of(tmp_path, **options, columns="source=target,target=source")
    assert back.pairs("test")[0][0].startswith("Two") and back.describe()["source"] == "target"


def test_bad_pairs_are_said_before_the_training(tmp_path: Path, files: dict[str, str]):
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"source": "Ein Hund", "target": "A dog"}\n{"source": "Zwei Hunde", "target": null}\n')
    good = tmp_path / "good.jsonl"
    good.write_text('{"source": "Ein Hund", "target": "A dog"}\n' * 4)
    options = {"vocab_size": 30, "min_frequency": 1, "train_split": "train", "validation_split": "validation",
               "test_split": "test", "per_device_train_batch_size": 2}  # fmt: skip
    task = task_of(tmp_path, **options, train_file=good, test_file=wrong)
    with pytest.raises(UserError, match="split 'test' .* has no target; its source is 'Zwei Hunde'"):
        next(task.batches({}, CONTEXT))
    task = task_of(tmp_path, **options, train_file=wrong)
    with pytest.raises(UserError, match="split 'train' .* has no target"):
        task.tokenizer  # noqa: B018
    columns = write_pairs(tmp_path / "other.csv", [("a", "b")], ("german", "english"))
    task = task_of(tmp_path, **options, train_file=columns)
    with pytest.raises(UserError, match="no column 'source'.* german, english.*--columns source=THEIRS"):
        task.tokenizer  # noqa: B018


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tokens_per_batch": 50, "max_tokens": 60}, "A batch of 50 tokens has no room for a text of 60"),
        ({"max_tokens": 65}, "--max_tokens 65 is more than the 64 positions"),
        ({"max_tokens": 1}, "max_tokens must be at least 2"),
        ({"label_smoothing": 1.0}, "label_smoothing must lie in"),
        ({"average_decay": 1.0}, "average_decay must lie in"),
        ({"num_beams": 0}, "num_beams must be at least 1"),
        ({"length_penalty": 11}, "length_penalty must lie between"),
        ({"select_by": "blue"}, "Did you mean 'bleu'"),
        ({"model_name_or_path": "./nowhere"}, "There is no folder ./nowhere"),
    ],
)
def test_impossible_options_are_refused_in_a_sentence(tmp_path: Path, options: dict[str, Any], sentence: str):
    with pytest.raises(UserError, match=sentence):
        task_of(tmp_path, **options)


def test_how_long_to_train_must_be_said_in_steps(tmp_path: Path):
    task = task_of(tmp_path, tokens_per_batch=200, max_tokens=60, max_steps="none", num_train_epochs=2)
    with pytest.raises(UserError, match="--max_steps"):
        task.total_steps(CONTEXT)
    assert task_of(tmp_path, max_steps="none", num_train_epochs=2).total_steps(CONTEXT) == 2 * (3000 // 64)


def test_without_data_it_says_how_to_name_them(tmp_path: Path):
    with pytest.raises(UserError, match="--dataset bentrevett/multi30k .*--train_file"):
        task_of(tmp_path, dataset="none").tokenizer  # noqa: B018


# -------------------------------------------------------------------------------------------------------- the recipes


def test_the_papers_recipe_is_the_paper():
    recipe = load_recipe("transformer", "paper")
    assert recipe.config.to_dict() == PaperTransformerConfig.from_preset("base").to_dict()
    training, task = recipe.training, recipe.task
    assert training.learning_rate == pytest.approx((512 * 4000) ** -0.5, rel=1e-3) and training.warmup_steps == 4000
    assert (training.optimizer, training.adam_beta1, training.adam_beta2, training.adam_epsilon) == (
        "adam",
        0.9,
        0.98,
        1e-9,
    )
    assert task.tokens_per_batch * training.gradient_accumulation_steps == 25_000 and task.label_smoothing == 0.1
    assert (task.num_beams, task.length_penalty) == (4, 0.6) and training.max_steps == 100_000


def test_the_cpu_recipes_differ_in_direction_and_architecture_alone():
    recipes = {name: load_recipe("transformer", name) for name in PAPER.recipes}
    one, other = recipes["multi30k-de-en"], recipes["multi30k-en-de"]
    assert one.data.columns == {"source": "de", "target": "en"} and other.data.columns == {
        "source": "en",
        "target": "de",
    }
    assert (one.model, one.task, one.training) == (other.model, other.task, other.training)
    d = one.config.d_model
    assert one.training.learning_rate == pytest.approx((d * one.training.warmup_steps) ** -0.5, rel=1e-3)
    for direction in ("de-en", "en-de"):
        ours, rnn = recipes[f"multi30k-{direction}"], recipes[f"multi30k-{direction}-rnn"]
        assert rnn.task == ours.task and rnn.data == ours.data and rnn.training.max_steps == ours.training.max_steps
        with torch.device("meta"):
            counts = [sum(p.numel() for p in PaperTransformerForSeq2SeqLM(r.config).parameters()) for r in (ours, rnn)]
        assert counts[1] == pytest.approx(counts[0], rel=0.01) and max(counts) < 4_800_000, "int8 in 5 MB"


# --------------------------------------------------------------------------------------------------------- translations


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, good for nothing but being there."""
    folder = tmp_path_factory.mktemp("trained")
    return run_recipe(recipe_of(folder, max_steps=3))


def test_a_run_holds_everything_that_it_takes_to_use_it(trained: Path):
    names = {path.name for path in trained.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "results.json",
        "README.md",
    } <= names
    pictures = {path.name for path in (trained / "figures").iterdir()}
    assert pictures == {"attention_cross.png", "attention_encoder.png", "attention_decoder.png", "positions.png"}
    results = json.loads((trained / "results.json").read_text())
    assert results["task"]["bleu_signature"] and results["task"]["search"] == "beam 4, length penalty 0.6"
    again = evaluate_run(trained)
    assert again["test"] == pytest.approx(results["metrics"]["test"])
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(trained)
    assert (model.generation_config.num_beams, model.generation_config.length_penalty) == (4, 0.6)


def test_many_texts_are_translated_as_each_alone(trained: Path):
    translator = Translator.load(trained)
    texts = ["5 May 1960", "", "Thursday, October 3rd, 1979", "1/2/2003", "   ", "x" * 300]
    for search in (Search(1), Search(3)):
        together = translator.translate_all(texts, search)
        assert together == [translator.translate_all([text], search)[0] for text in texts]
        assert together[1] == together[4] == "" and len(together) == 6


def test_a_small_copy_reads_as_the_run_does(trained: Path, tmp_path: Path):
    small = Translator.load(export_int8(trained, tmp_path / "small"))
    text = "Thursday, October 3rd, 1979 — später"
    assert small.read(text) == Translator.load(trained).read(text)
    assert isinstance(small.translate_all([text], Search(2))[0], str)


def test_one_text_is_read_with_notes(trained: Path):
    translator = Translator.load(trained)
    reading = translator.read("5 May 1960")
    assert reading.notes == [] and reading.names[-1] == "</s>" and len(reading.names) == len(reading.tokens)
    assert "5" in reading.names, "a digit is shown as it is"
    odd = translator.read("5 你 May 好 1960 你")
    assert odd.notes == ["The model has never seen 你 好 and reads it as <unk>."]
    long = translator.read("5 May 1960 " * 30)
    assert len(long.tokens) == 64 and long.tokens[-1] == 3 and "the first 63 are read" in long.notes[0]
    for nothing in ("", "  \n", None, 7):
        with pytest.raises(UserError, match="no text to translate"):
            translator.read(nothing)


def test_candidates_come_best_first_with_their_probabilities(trained: Path):
    translator = Translator.load(trained)
    reading = translator.read("5 May 1960")
    found = translator.candidates(reading, Search(4, 0.6), count=4)
    assert len(found) == 4 and len(translator.candidates(reading, Search(1), count=4)) == 1
    scores = [float(c.log_probs.sum()) / len(c.tokens) ** 0.6 for c in found]
    assert scores == sorted(scores, reverse=True)
    assert all(len(c.tokens) == len(c.names) == len(c.log_probs) for c in found)
    assert found[0].text == translator.translate_all(["5 May 1960"], Search(4, 0.6))[0]


def test_looks_have_a_row_for_every_token(trained: Path):
    translator = Translator.load(trained)
    reading = translator.read("5 May 1960")
    best = translator.candidates(reading, Search())[0]
    looks = translator.look(reading, best)
    s, t = len(reading.tokens), len(best.tokens)
    assert (
        looks.encoder.shape == (1, 2, s, s)
        and looks.decoder.shape == (1, 2, t, t)
        and looks.cross.shape == (1, 2, t, s)
    )
    assert len(looks.asking) == t and looks.asking[0] == "<s>" and looks.asking[1:] == looks.target[:-1]


def test_figures_of_a_text_with_formula_signs(trained: Path, tmp_path: Path):
    translator = Translator.load(trained)
    assert short_source(translator, ["", "x" * 50, "5 May 1960 1960"]) == "5 May 1960 1960"
    assert short_source(translator, []) is None and short_source(translator, ["x" * 50]) == "x" * 50
    found = draw_figures(translator, ["$5 May_1960$ $"], tmp_path)
    assert len(found) == 4 and all(path.stat().st_size > 5000 for path in found.values())
    assert len(draw_figures(translator, [], tmp_path)) == 1


def test_batches_of_texts_hold_each_once():
    lengths = [3, 9, 1, 4, 4, 30]
    batches = list(batches_of(lengths, 12))
    assert sorted(sum(batches, [])) == list(range(6)) and batches[-1] == [5]
    assert all(len(rows) * max(lengths[row] for row in rows) <= 12 for rows in batches[:-1])


def test_the_readmes_five_lines_run(trained: Path, capsys: Any):
    snippet = re.search(r"<!-- five lines -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    lines = [line for line in snippet.splitlines() if line and not line.startswith(("import ", "from "))]
    assert len(lines) <= 5
    exec(snippet.replace("runs/transformer-embedded-seed0", str(trained)), {})
    assert isinstance(capsys.readouterr().out, str)


def test_the_readmes_layer_table_is_the_base_model():
    table = re.search(r"<!-- layers -->(.*?)<!-- /layers -->", README.read_text(), re.DOTALL)[1]
    counts = [int(cell.replace(",", "")) for cell in re.findall(r"\| ([\d,]+) \|$", table, re.MULTILINE)]
    with torch.device("meta"):
        model = PaperTransformerForSeq2SeqLM(PaperTransformerConfig())

    def held(*names: str) -> int:
        found = {id(p): p.numel() for n, p in model.named_parameters() if all(re.search(name, n) for name in names)}
        return sum(found.values())

    expected = [
        held("encoder.embeddings"), held("encoder.layers", r"\.attention\."), held("encoder.layers", "feed_forward\\."),
        held("encoder.layers", "norm"), 0, held("self_attention\\."), held("cross_attention\\."),
        held("decoder.layers", "feed_forward\\."), held("decoder.layers", "norm"), 0,
    ]  # fmt: skip
    assert counts == expected and sum(counts) == 63_082_496


# ----------------------------------------------------------------------------------------------------------- baseline


def test_the_baseline_is_one_option_away(tmp_path: Path):
    folder = run_recipe(recipe_of(tmp_path, architecture="rnn", rnn_hidden_size=20, max_steps=3))
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert model.config.architecture == "rnn" and type(model).__name__ == "PaperTransformerForSeq2SeqLM"
    assert {path.name for path in (folder / "figures").iterdir()} == {"attention_cross.png"}
    looks = Translator.load(folder)
    reading = looks.read("5 May 1960")
    weights = looks.look(reading, looks.candidates(reading, Search())[0])
    assert weights.cross.shape[:2] == (1, 1) and not weights.encoder.numel() and not weights.decoder.numel()


# -------------------------------------------------------------------------------------------------- further training


def test_a_trained_translator_is_trained_further(trained: Path, tmp_path: Path):
    recipe = recipe_of(tmp_path, model_name_or_path=trained, columns="source=target,target=source", d_model=32)
    task = recipe.task_class(recipe)
    model, before = task.build_model(), load_strict(PaperTransformerForSeq2SeqLM, trained)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    assert pieces(task.tokenizer) == pieces(load_tokenizer(trained))
    other = recipe_of(tmp_path, model_name_or_path=trained, num_decoder_layers=2)
    with pytest.raises(UserError, match="do not fit the model that is to be trained: transformer.decoder.layers.1"):
        other.task_class(other).build_model()
    plain = {name: value for name, value in SMALL.items() if name not in ("d_model", "d_ff", "num_heads")}
    resolved = load_recipe("transformer", "multi30k-de-en", {"model_name_or_path": str(trained), "dataset": "embedded:dates",
                                                            "columns": "", "max_tokens": "60", **plain})  # fmt: skip
    assert resolved.config.d_model == 224, "what a recipe says of the model stands above the start"


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """A folder with texts of two classes."""
    folder = tmp_path / "reviews"
    folder.mkdir()
    rows = [
        ("5 May 1960", "spring"),
        ("1 December 1999", "winter"),
        ("3 May 2001", "spring"),
        ("December 24, 1980", "winter"),
    ]
    for split in ("train", "validation", "test"):
        write_pairs(folder / f"{split}.csv", rows * 8, ("sentence", "label"))
    return folder


def classification(tmp_path: Path, reviews: Path, **options: Any) -> Any:
    given = {
        "dataset": reviews, "dataset_config": "none", "columns": "text=sentence", "train_split": "train",
        "validation_split": "validation", "test_split": "test", "vocab_size": 35, "mixed_precision": "no",
        "per_device_train_batch_size": 8, "max_steps": 25, "num_train_epochs": "none", "eval_steps": 25,
        "learning_rate": "5e-3", "dropout": 0, "output_dir": tmp_path / "classifier",
    }  # fmt: skip
    small = {name: value for name, value in SMALL.items() if not name.endswith("split")}
    return load_recipe("transformer", "sst2", {**small, **{k: str(v) for k, v in (given | options).items()}})


def test_an_encoder_learns_classes_from_random_weights(tmp_path: Path, reviews: Path, capsys: Any):
    folder = run_recipe(classification(tmp_path, reviews))
    results = json.loads((folder / "results.json").read_text())
    assert results["metrics"]["test"]["accuracy"] == 1.0 and set(results["metrics"]["test"]) == {
        "accuracy",
        "macro_f1",
    }
    assert results["task"] == {"start": "random weights", "classes": ["spring", "winter"]}
    snippet = re.search(r"<!-- classify -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    snippet = snippet.replace("runs/transformer-sst2-seed0", str(folder))
    capsys.readouterr()
    exec(re.sub("text = .*", 'text = "7 May 1950"', snippet), {})
    assert "'label': 'spring'" in capsys.readouterr().out


def test_a_trained_translators_encoder_is_fine_tuned(trained: Path, tmp_path: Path, reviews: Path):
    sizes = load_strict(PaperTransformerForSeq2SeqLM, trained).config
    recipe = classification(tmp_path, reviews, model_name_or_path=trained, vocab_size=sizes.vocab_size,
                            max_position_embeddings=64, max_tokens=60)  # fmt: skip
    task = recipe.task_class(recipe)
    model = task.build_model()
    assert isinstance(model, PaperTransformerForSequenceClassification)
    before = load_strict(PaperTransformerForSeq2SeqLM, trained).transformer.encoder.state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.transformer.encoder.state_dict().items())
    assert model.config.id2label == {0: "spring", 1: "winter"} and task.describe()["start"] == str(trained)
    frozen = classification(tmp_path, reviews, model_name_or_path=trained, vocab_size=sizes.vocab_size,
                            freeze_encoder="true", max_position_embeddings=64, max_tokens=60)  # fmt: skip
    model = frozen.task_class(frozen).build_model()
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "classifier.weight",
        "classifier.bias",
    ]


def test_the_sizes_of_a_start_are_those_of_the_classifier(trained: Path, reviews: Path):
    options = {
        "model_name_or_path": str(trained),
        "dataset": str(reviews),
        "dataset_config": "none",
        "max_tokens": "60",
    }
    content = {"task_type": "classification", "data": {"columns": {"text": "sentence"}}}
    from hf_papers.training.recipe import recipe_from_dict

    recipe = recipe_from_dict(PAPER, "mine", content, options, "here")
    assert recipe.config.d_model == 32 and recipe.config.num_encoder_layers == 1


def test_bad_classes_are_refused_in_a_sentence(tmp_path: Path, reviews: Path):
    write_pairs(reviews / "train.csv", [("a", "0.5"), ("b", "0.7")], ("sentence", "label"))
    recipe = classification(tmp_path, reviews)
    with pytest.raises(UserError, match="this task learns classes"):
        recipe.task_class(recipe).build_model()
    recipe = classification(tmp_path, reviews, columns="text=label,label=sentence")
    with pytest.raises(UserError, match="column 'text' .* should hold text, but"):
        recipe.task_class(recipe).tokenizer  # noqa: B018


def test_with_label_positions_counts_through_the_batch():
    labels = torch.tensor([[5, 6, IGNORED], [7, IGNORED, IGNORED]])
    assert with_label_positions({"labels": labels})["label_positions"].tolist() == [0, 1, 3]

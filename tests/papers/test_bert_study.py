"""BERT's studies: what heads are measured to do, the masked-word judge, neighbours of a map, table 5, and their records."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from hf_papers.cli import parse_overrides
from hf_papers.errors import UserError
from hf_papers.papers.bert import PAPER
from hf_papers.papers.bert.configuration_bert import PaperBertConfig
from hf_papers.papers.bert.modeling_bert import (
    PaperBertForMaskedLM,
    PaperBertForPreTraining,
    PaperBertForSequenceClassification,
    PaperBertModel,
    PaperBertPreTrainedModel,
)
from hf_papers.papers.bert.tokenization_bert import train_tokenizer
from hf_papers.papers.bert.training_bert import BertPretrainingTask
from hf_papers.studies.bert.ablations import TABLE_5, VARIANTS, check_pretrainings, render_table
from hf_papers.studies.bert.attention import Heads, even_attention, measure_heads, token_measures
from hf_papers.studies.bert.cloze import Cloze, ClozeJudge, NoAnswer, find_cloze, load_judge, parse_words
from hf_papers.studies.bert.commands import command
from hf_papers.studies.bert.embeddings import TextVectors, chance_agreement, neighbour_agreement, silhouette
from hf_papers.studies.bert.runs import Start, load_start, summarise
from hf_papers.studies.bert.table import studies_table
from hf_papers.training.recipe import load_recipe


WORDS = "the a film was is it great good fine terrible bad dull plot and of no yes maybe wrong right ,"
TEXTS = ["the film was great", "it is a fine film", "the plot is dull and bad", "a terrible film", "it was good ."]
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    letters = len(set("".join(WORDS.split())))
    words = [word for word in WORDS.split() if len(word) > 1]
    texts = [" ".join([*TEXTS, WORDS])] * 3
    size = 5 + 2 * letters + 2 * len(words) + 20
    for vocab_size in range(size, 40, -1):  # the largest that these few texts yield
        try:
            return train_tokenizer(texts, vocab_size)
        except UserError:
            continue
    raise AssertionError("no vocabulary")


def save(model_class: type[PaperBertPreTrainedModel], tokenizer: Any, folder: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    model = model_class(PaperBertConfig(vocab_size=len(tokenizer), **{**SMALL, **options}))
    with torch.no_grad():
        for parameter in model.parameters():  # large enough for the texts to matter
            parameter.mul_(8) if parameter.ndim > 1 else None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def start(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(PaperBertForPreTraining, tokenizer, tmp_path_factory.mktemp("start") / "pre")


def write_rows(path: Path, labels: list[str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence", "label"])
        for number, label in enumerate(labels):
            writer.writerow([TEXTS[number % len(TEXTS)], label])
    return path


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Options that name rows of one's own: 24 to learn from and 14 held out."""
    train = write_rows(tmp_path / "train.csv", ["bad", "good"] * 12)
    held_out = write_rows(tmp_path / "validation.csv", ["bad", "good", "good"] * 4 + ["bad", "good"])
    return ["--train_file", str(train), "--validation_file", str(held_out)]


# -------------------------------------------------------------------------------------- the left-to-right classifier


def test_a_causal_classifier_reads_the_whole_text_and_not_its_first_token():
    config = PaperBertConfig(vocab_size=50, causal_attention=True, **SMALL)
    torch.manual_seed(0)
    model = PaperBertForSequenceClassification(config).eval()
    nn.init.normal_(model.classifier.weight)
    one, other = torch.tensor([[2, 7, 8, 9, 3]]), torch.tensor([[2, 7, 11, 9, 3]])
    assert not torch.allclose(model(one).logits, model(other).logits, atol=1e-4)
    padded = torch.tensor([[2, 7, 8, 9, 3, 0, 0], [2, 7, 8, 9, 10, 12, 3]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1] * 7])
    torch.testing.assert_close(model(padded, mask).logits[:1], model(one).logits, atol=1e-5, rtol=0)


def test_a_bidirectional_text_vector_is_that_of_cls():
    torch.manual_seed(0)
    model = PaperBertModel(PaperBertConfig(vocab_size=50, **SMALL)).eval()
    outputs = model(torch.tensor([[2, 7, 8, 3]]), torch.ones(1, 4, dtype=torch.long))
    expected = torch.tanh(model.pooler.dense(outputs.last_hidden_state[:, 0]))
    torch.testing.assert_close(outputs.pooler_output, expected)


# ------------------------------------------------------------------------------------------------------- attention


CLS, SEP, PAD = 2, 3, 0


def hand_made() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """[CLS] a b [SEP] [PAD]; heads: to the previous token, to [CLS], half to itself and half to the next, to [SEP]."""
    ids = torch.tensor([[CLS, 7, 8, SEP, PAD]])
    weights = torch.zeros(1, 4, 5, 5)
    rows = torch.arange(5)
    weights[0, 0, rows, (rows - 1).clamp_min(0)] = 1
    weights[0, 1, :, 0] = 1
    weights[0, 2, rows, rows] = 0.5
    weights[0, 2, rows[:-1], rows[:-1] + 1] = 0.5
    weights[0, 3, :, 3] = 1
    return weights, {"input_ids": ids, "attention_mask": ids.ne(PAD).long()}


def test_measures_of_hand_made_attention():
    weights, batch = hand_made()
    sums = {name: value.tolist() for name, value in token_measures(weights, batch, CLS, SEP).items()}
    # Two word pieces look: "a" after [CLS], and "b" before [SEP].
    assert sums["previous"] == [2, 1, 0, 0]  # [CLS] is what stands before "a"
    assert sums["cls"] == [1, 2, 0, 0]
    assert sums["sep"] == [0, 0, 0.5, 2]
    assert sums["self"] == [0, 0, 1, 0]
    assert sums["next"] == [0, 0, 1, 1]
    assert sums["entropy"] == pytest.approx([0, 0, 2 * math.log(2), 0])


def test_special_tokens_and_padding_do_not_look():
    weights, batch = hand_made()
    changed = weights.clone()
    changed[0, :, [0, 3, 4]] = 0.2
    before, after = (token_measures(given, batch, CLS, SEP) for given in (weights, changed))
    for name, value in before.items():
        assert torch.equal(value, after[name])


def test_even_attention_is_the_measure_of_looking_everywhere():
    _, batch = hand_made()
    even = even_attention(batch["attention_mask"], causal=False)
    sums = {name: value.item() for name, value in token_measures(even, batch, CLS, SEP).items()}
    assert sums == pytest.approx(
        {**dict.fromkeys(("cls", "sep", "previous", "next", "self"), 0.5), "entropy": 2 * math.log(4)}
    )
    causal = even_attention(batch["attention_mask"], causal=True)
    assert causal[0, 0, 1].tolist() == [0.5, 0.5, 0, 0, 0] and causal[0, 0, 4].sum() == 1


def test_heads_are_measured_the_same_with_and_without_padding(tokenizer: Any):
    torch.manual_seed(0)
    model = PaperBertModel(PaperBertConfig(vocab_size=50, **SMALL)).eval()
    texts = [torch.tensor([[CLS, 7, 8, 9, 10, SEP]]), torch.tensor([[CLS, 11, SEP]])]
    apart = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in texts]
    together = torch.zeros(2, 6, dtype=torch.long)
    together[0], together[1, :3] = texts[0], texts[1]
    mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    one = measure_heads(model, apart, CLS, SEP)
    other = measure_heads(model, [{"input_ids": together, "attention_mask": mask}], CLS, SEP)
    assert one.values["cls"].shape == (2, 2)
    for name, value in one.values.items():
        torch.testing.assert_close(value, other.values[name], atol=1e-5, rtol=0)
    assert one.even == pytest.approx(other.even)
    assert one.even["cls"] == pytest.approx((4 / 6 + 1 / 3) / 5)


def test_the_most_characteristic_heads_are_found():
    values = {name: torch.zeros(2, 3) for name in ("cls", "sep", "previous", "next", "self")}
    values["sep"][1, 2] = 0.9
    values["previous"][0, 1] = 0.8
    values["entropy"] = torch.tensor([[1.0, 0.1, 2.0], [3.0, 1.0, 1.0]])
    chosen = Heads(values, {}).characteristic()
    assert chosen["most attention to [SEP]"] == (1, 2)
    assert chosen["most attention to the previous token"] == (0, 1)
    assert chosen["most focused (least entropy)"] == (0, 1) and chosen["broadest (most entropy)"] == (1, 0)


# ----------------------------------------------------------------------------------------------------------- cloze


class Rigged(nn.Module):
    """Says "great" where the text has "fine", "terrible" where it has "dull", and likes "great" whatever the text."""

    def __init__(self, tokenizer: Any, liking: float = 0.0) -> None:
        super().__init__()
        self.config = SimpleNamespace(max_position_embeddings=32)
        self.tokenizer, self.liking = tokenizer, liking
        self.asked: list[tuple[list[int], int]] = []

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, masked_positions: torch.Tensor
    ) -> SimpleNamespace:
        number = self.tokenizer.convert_tokens_to_ids
        logits = torch.zeros(len(input_ids), 1, len(self.tokenizer))
        for row, ids in enumerate(input_ids.tolist()):
            self.asked.append((ids[: attention_mask[row].sum()], masked_positions[row, 0].item()))
            logits[row, 0, number("great")] = self.liking + 2.0 * ids.count(number("fine"))
            logits[row, 0, number("terrible")] = 2.0 * ids.count(number("dull"))
        return SimpleNamespace(logits=logits)


CLOZE = Cloze("{text} it was {mask} .", (("terrible", "unheardof"), ("great",)))


def test_zero_shot_takes_the_likelier_word_and_calibration_takes_its_liking_away(tokenizer: Any):
    texts = [("a fine film",), ("the plot is dull",)]
    plain, calibrated = ClozeJudge(Rigged(tokenizer), tokenizer, CLOZE, 32).answer(texts)
    assert plain.tolist() == calibrated.tolist() == [1, 0]
    plain, calibrated = ClozeJudge(Rigged(tokenizer, liking=5.0), tokenizer, CLOZE, 32).answer(texts)
    assert plain.tolist() == [1, 1] and calibrated.tolist() == [1, 0]


def test_the_gap_is_the_patterns_and_long_texts_are_cut_before_it(tokenizer: Any):
    model = Rigged(tokenizer)
    judge = ClozeJudge(model, tokenizer, CLOZE, 12)
    judge.answer([("[MASK] film " + "fine " * 40,), ("a film",)])
    (long, gap), (short, short_gap), (empty, _) = model.asked
    assert len(long) == 12 and long[1] == tokenizer.mask_token_id and gap == 9
    assert (
        tokenizer.decode(short) == "[CLS] a film it was [MASK]. [SEP]" and short[short_gap] == tokenizer.mask_token_id
    )
    assert tokenizer.decode(empty) == "[CLS] it was [MASK]. [SEP]"


def test_two_texts_share_what_room_there_is(tokenizer: Any):
    model = Rigged(tokenizer)
    judge = ClozeJudge(model, tokenizer, Cloze("{text} {mask} , {text_b}", (("no",), ("yes",))), 10)
    ids, gap = judge.question("film " * 20, "plot")
    assert (
        tokenizer.decode(ids) == "[CLS] " + "film " * 5 + "[MASK], plot [SEP]" and ids[gap] == tokenizer.mask_token_id
    )


def test_words_outside_of_the_vocabulary_are_left_out_and_a_class_without_any_is_not_asked(tokenizer: Any):
    judge = ClozeJudge(Rigged(tokenizer), tokenizer, CLOZE, 32)
    assert judge.used_words() == [["terrible"], ["great"]]
    with pytest.raises(NoAnswer, match="none of the label words unheardof"):
        ClozeJudge(Rigged(tokenizer), tokenizer, Cloze("{text} {mask}", (("unheardof",), ("great",))), 32)


def test_several_words_of_a_class_count_by_their_mean_probability(tokenizer: Any):
    cloze = Cloze("{text} it was {mask} .", (("terrible", "bad", "dull"), ("great",)))
    scores = ClozeJudge(Rigged(tokenizer), tokenizer, cloze, 32).scores([([2, 3], 1)])
    assert scores[0].tolist() == pytest.approx([-math.log(len(tokenizer))] * 2, abs=1e-5)


def test_patterns_and_words_as_typed():
    assert parse_words("bad, dull;good") == (("bad", "dull"), ("good",))
    assert find_cloze("sst2", None, "bad;good", 2).words == (("bad",), ("good",))
    with pytest.raises(NoAnswer, match="no pattern is known"):
        find_cloze(None, "{text} {mask}", None, 2)
    with pytest.raises(UserError, match="name 3 classes, and the task has 2"):
        find_cloze("sst2", None, "bad;good;so", 2)
    with pytest.raises(UserError, match=r"needs \{mask\} once"):
        Cloze("{text} it was great", (("a",), ("b",)))


def test_who_cannot_be_asked_says_why(tokenizer: Any, tmp_path: Path):
    headless = save(PaperBertModel, tokenizer, tmp_path / "headless")
    with pytest.raises(NoAnswer, match="no masked-language head"):
        load_judge(Start(str(headless)))
    causal = save(
        PaperBertForPreTraining, tokenizer, tmp_path / "causal", causal_attention=True, next_sentence_prediction=False
    )
    with pytest.raises(NoAnswer, match="from left to right"):
        load_judge(Start(str(causal)))


def test_a_start_is_loaded_from_both_layouts(tokenizer: Any, start: Path, tmp_path: Path):
    ours = load_start(Start(str(start)), PaperBertForMaskedLM)
    ours.to_reference(str(tmp_path / "theirs"))
    theirs = load_start(Start(str(tmp_path / "theirs")), PaperBertForMaskedLM)
    original = PaperBertForPreTraining.from_pretrained(start).predictions
    for model in (ours, theirs):
        assert not model.training and not model.missing_from_reference
        assert torch.equal(model.predictions.dense.weight, original.dense.weight)


# -------------------------------------------------------------------------------------------------------------- map


def test_neighbour_agreement_of_a_known_layout():
    angles = torch.tensor([0.0, 0.1, 0.2, 3.0, 3.1, 3.2])
    vectors = torch.stack([angles.cos(), angles.sin()], dim=-1) * torch.tensor([1.0, 9, 2, 5, 1, 3])[:, None]
    assert neighbour_agreement(vectors, torch.tensor([0, 0, 0, 1, 1, 1]), 2) == 1
    # The odd one out in each group: two of its three agree with nobody but each other.
    assert neighbour_agreement(vectors, torch.tensor([0, 0, 1, 0, 0, 1]), 2) == pytest.approx(4 / 12)
    assert neighbour_agreement(vectors, torch.tensor([0, 1, 2, 3, 4, 5]), 2) == 0
    with pytest.raises(UserError, match="have no 6 neighbours"):
        neighbour_agreement(vectors, torch.zeros(6), 6)


def test_chance_agreement_is_that_of_random_vectors():
    labels = torch.tensor([0] * 700 + [1] * 300)
    assert chance_agreement(labels) == pytest.approx((700 * 699 + 300 * 299) / (1000 * 999))
    vectors = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    assert neighbour_agreement(vectors, labels, 10) == pytest.approx(chance_agreement(labels), abs=0.02)


def test_the_silhouette_rises_with_the_distance_of_the_groups():
    labels = torch.tensor([0, 0, 1, 1])
    near = torch.tensor([[1.0, 0.0], [1.0, 0.3], [0.3, 1.0], [0.0, 1.0]])
    far = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.1], [-1.0, 0.0]])
    assert silhouette(near, labels) < silhouette(far, labels) <= 1
    with pytest.raises(UserError, match="same label"):
        silhouette(near, torch.zeros(4))


def test_text_vectors_leave_padding_out():
    torch.manual_seed(0)
    model = PaperBertModel(PaperBertConfig(vocab_size=50, **SMALL)).eval()
    short = {"input_ids": torch.tensor([[2, 7, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    padded = {"input_ids": torch.tensor([[2, 7, 3, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    states = model(**short).last_hidden_state
    for pooling, expected in (("cls", states[:, 0]), ("mean", states.mean(1))):
        torch.testing.assert_close(TextVectors(model, pooling)(**padded).logits, expected, atol=1e-5, rtol=0)


# --------------------------------------------------------------------------------------------------------- table 5


def pretraining(folder: Path, name: str, **options: str) -> Path:
    """A finished run, as far as the study looks at it."""
    words = shlex.split(VARIANTS[name].options)
    recipe = load_recipe("bert", "nltk-english", {**parse_overrides(words), **options})
    folder.mkdir(parents=True)
    recipe.save(folder / "recipe.yaml")
    results = {"metrics": {"test": {"mlm_loss": 3.0}}, "steps": 7, "parameters": 99, "wall_clock_s": 5.0}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def fine_tuned(folder: Path, seed: int, metrics: dict[str, float]) -> Path:
    folder.mkdir(parents=True)
    load_recipe("bert", "glue", {"task_name": "mrpc", "seed": str(seed)}).save(folder / "recipe.yaml")
    results = {"paper": "bert", "recipe": "glue", "seed": seed, "metrics": {"test": metrics}, "wall_clock_s": 1.0}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_the_commands_make_pre_trainings_of_the_right_kind(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert command(["ablations", "--commands", "--output_dir", "here", "--output", str(tmp_path)]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 3 and not list(tmp_path.iterdir())
    found = []
    for line in commands:
        program, verb, paper, *words = shlex.split(line)
        assert (program, verb, paper) == ("hf-papers", "train", "bert")
        options = parse_overrides(words)
        recipe = load_recipe("bert", options.pop("recipe"), options)
        monkeypatch.setattr(BertPretrainingTask, "open_source", lambda task: None)
        recipe.task_class(recipe)  # refuses options that do not go together
        found.append((recipe.task.objective, recipe.training.output_dir))
    assert found == [
        (VARIANTS[name].objective, f"here/pretraining/{name}") for name in ("with_nsp", "without_nsp", "left_to_right")
    ]


def test_table_5_is_read_from_finished_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from hf_papers.studies.bert import runs as study_runs

    folders = {name: pretraining(tmp_path / name, name) for name in VARIANTS}
    scores = {"with_nsp": (0.8, 0.7), "without_nsp": (0.6, 0.6), "left_to_right": (0.5, 0.4)}
    trained = []

    def train(recipe: Any) -> Path:
        name = Path(recipe.task.model_name_or_path).name
        accuracy = scores[name][recipe.training.seed]
        trained.append((name, recipe.task.task_name, recipe.config.causal_attention))
        return fine_tuned(recipe.output_dir, recipe.training.seed, {"f1": 0.99, "accuracy": accuracy, "score": 0.99})

    monkeypatch.setattr(study_runs, "run_once", train)
    for folder in folders.values():  # what a start is read from
        (folder / "config.json").write_text(config_of(folder))
    words = [f"--{name}={folder}" for name, folder in folders.items()]
    words += [
        "--task_name",
        "mrpc",
        "--seeds",
        "0,1",
        "--output",
        str(tmp_path / "card"),
        "--output_dir",
        str(tmp_path / "runs"),
    ]
    assert command(["ablations", *words]) == 0
    table = (tmp_path / "card" / "table.md").read_text()
    assert table in capsys.readouterr().out
    lines = table.splitlines()
    assert lines[0] == "| pre-training | MNLI-m | QNLI | MRPC | SST-2 | SQuAD |"
    # Accuracy, as in the paper's table, and not F1.
    assert re.match(
        r"\| ours: masked words and next sentence \| not run yet \| not run yet \| 75\.0 ± 7\.1 \|", lines[2]
    )
    assert "| 60.0 ± 0.0 |" in lines[3] and "| 45.0 ± 7.1 |" in lines[4]
    assert lines[5] == "| paper, table 5: BERT BASE | 84.4 | 88.4 | 86.7 | 92.7 | 88.5 |"
    assert {name: causal for name, _, causal in trained} == {
        "with_nsp": False,
        "without_nsp": False,
        "left_to_right": True,
    }
    record = check_record(tmp_path / "card", "ablations")
    assert record["rows"]["with_nsp"]["pretraining"]["metrics"]["test"]["mlm_loss"] == 3.0
    assert record["table_5"]["LTR & No NSP"]["MRPC"] == TABLE_5["LTR & No NSP"][2] == 77.5


def config_of(folder: Path) -> str:
    import yaml

    model = yaml.safe_load((folder / "recipe.yaml").read_text())["model"]
    return json.dumps({"model_type": "paper-bert", "architectures": ["PaperBertForPreTraining"], **model})


def test_what_is_not_table_5_is_a_column_of_its_own():
    summary = summarise([0.25])
    row = {"title": "mine", "tasks": {"cola": {"result": summary}}}
    lines = render_table({"with_nsp": row}, ["cola"]).splitlines()
    assert lines[0].endswith("| SQuAD | CoLA |") and lines[2].endswith("| not run yet | 25.0 |")
    assert all(line.endswith("| – |") for line in lines[3:]) and len(lines) == 3 + len(TABLE_5)


def test_pre_trainings_that_cannot_be_compared_are_refused(tmp_path: Path):
    folders = {name: pretraining(tmp_path / name, name) for name in VARIANTS}
    check_pretrainings(folders, "nltk-english")
    with pytest.raises(UserError, match="trained for the objective mlm, not mlm_nsp"):
        check_pretrainings({**folders, "with_nsp": folders["without_nsp"]}, "nltk-english")
    longer = pretraining(tmp_path / "longer", "left_to_right", max_steps="123")
    with pytest.raises(UserError, match="cannot be compared: training.max_steps"):
        check_pretrainings({**folders, "left_to_right": longer}, "nltk-english")
    with pytest.raises(UserError, match="hf-papers train bert --recipe nltk-english --objective mlm"):
        check_pretrainings({**folders, "without_nsp": tmp_path / "nothing"}, "nltk-english")


# --------------------------------------------------------------------------------------------------------- records


def check_record(folder: Path, study: str) -> dict[str, Any]:
    """What every record must say; its pictures are there and small."""
    record = json.loads((folder / "results.json").read_text())
    for key in ("seeds", "headline", "wall_clock_s", "hardware", "versions", "commit", "command", "date"):
        assert record[key] is not None, key
    assert record["paper"] == "bert" and record["study"] == study
    assert {"torch", "transformers"} <= set(record["versions"]) and record["hardware"]["device"]
    assert record["figures"] and record["headline"]
    for name in record["figures"].values():
        assert (folder / name).stat().st_size <= 200_000
        with Image.open(folder / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 200
    for entry in record["headline"]:
        assert entry["what"] and len(entry["values"]) >= 1 and math.isfinite(entry["mean"])
    return record


def study(name: str, start: Path, tmp_path: Path, *words: str) -> dict[str, Any]:
    places = ["--output", str(tmp_path / name), "--output_dir", str(tmp_path / "runs" / name)]
    assert command([name, "--model_name_or_path", str(start), *places, "--use_cpu", "--progress=false", *words]) == 0
    return check_record(tmp_path / name, name)


FEW_SHOT = ["--seeds", "0,1", "--examples", "4", "--few_shot_steps", "2", "--max_steps", "2"]
FEW_SHOT += ["--max_length", "16", "--per_device_train_batch_size", "8"]


def test_few_shot_record_and_finished_runs_are_used_again(
    start: Path, tmp_path: Path, data: list[str], monkeypatch: pytest.MonkeyPatch
):
    words = [
        *FEW_SHOT,
        *data,
        "--pattern",
        "{text} it was {mask} .",
        "--label_words",
        "bad;good",
        "--max_train_rows",
        "16",
    ]
    record = study("few-shot", start, tmp_path, *words)
    assert record["zero_shot"]["rows"] == 14 and record["zero_shot"]["words"] == {"bad": ["bad"], "good": ["good"]}
    assert 0 <= record["zero_shot"]["metrics"]["accuracy"] <= 1
    assert [point["examples"] for point in record["points"]] == [4, 16]
    assert [point["seeds"] for point in record["points"]] == [[0, 1]] * 2
    assert record["majority"] == pytest.approx(9 / 14)
    assert not list((tmp_path / "runs").rglob("checkpoints"))
    import hf_papers.training.finish

    monkeypatch.setattr(hf_papers.training.finish, "run_recipe", lambda recipe: pytest.fail("trained again"))
    assert study("few-shot", start, tmp_path, *words)["points"] == record["points"]


def test_without_a_masked_language_head_the_point_says_why(tokenizer: Any, tmp_path: Path, data: list[str]):
    start = save(PaperBertForSequenceClassification, tokenizer, tmp_path / "headless", num_labels=2)
    words = [*FEW_SHOT[2:], "--seeds", "0", *data, "--pattern", "{text} {mask}", "--label_words", "bad;good"]
    record = study("few-shot", start, tmp_path, *words)
    assert "no masked-language head" in record["zero_shot"]["not_asked"]
    assert not any("no example" in entry["what"] for entry in record["headline"])


def test_frozen_record_trains_the_last_layer_alone(start: Path, tmp_path: Path, data: list[str]):
    words = ["--seeds", "0", *data, "--max_steps", "3", "--max_length", "16", "--per_device_train_batch_size", "8"]
    record = study("frozen", start, tmp_path, *words)
    assert set(record["ways"]) == {"fine-tuned", "frozen"} and len(record["difference"]["values"]) == 1
    original = load_start(Start(str(start)), PaperBertModel)
    for way, same in (("fine-tuned", False), ("frozen", True)):
        trained = PaperBertForSequenceClassification.from_pretrained(tmp_path / "runs" / "frozen" / way / "seed0")
        weight = trained.bert.layers[0].attention.query.weight
        assert torch.equal(weight, original.layers[0].attention.query.weight) == same


def test_embeddings_record(start: Path, tmp_path: Path, data: list[str]):
    words = [
        *data,
        "--max_steps",
        "2",
        "--max_length",
        "16",
        "--per_device_train_batch_size",
        "8",
        "--neighbours",
        "3",
    ]
    record = study("embeddings", start, tmp_path, *words)
    assert record["texts"] == 14 and record["seeds"] == [0]
    assert record["chance_agreement"] == pytest.approx((5 * 4 + 9 * 8) / (14 * 13))
    assert set(record["vectors"]) == {"cls", "mean"}
    reused = study(
        "embeddings", start, tmp_path, *words, "--fine_tuned", str(tmp_path / "runs/embeddings/fine-tuned/seed0")
    )
    assert reused["vectors"] == record["vectors"]


def test_attention_record_of_both_layouts(tokenizer: Any, start: Path, tmp_path: Path):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS))
    ours = study_attention(start, tmp_path / "ours", texts)
    load_start(Start(str(start)), PaperBertForMaskedLM).to_reference(str(tmp_path / "reference"))
    tokenizer.save_pretrained(tmp_path / "reference")
    theirs = study_attention(tmp_path / "reference", tmp_path / "theirs", texts)
    assert ours["texts"] == len(TEXTS) and torch.tensor(ours["measures"]["cls"]).shape == (2, 2)
    assert ours["measures"] == theirs["measures"] and ours["seeds"] == []


def study_attention(start: Path, output: Path, texts: Path) -> dict[str, Any]:
    assert (
        command(["attention", "--model_name_or_path", str(start), "--text_file", str(texts), "--output", str(output)])
        == 0
    )
    return check_record(output, "attention")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["few-shoot"], "no study 'few-shoot'. Did you mean 'few-shot'"),
        (["attention"], "Add --model_name_or_path"),
        (["attention", "--max_row", "3"], "has no option --max_row"),
        (["few-shot", "--seeds", "a"], "seeds"),
    ],
)
def test_what_cannot_be_is_said_in_words(words: list[str], sentence: str, tmp_path: Path):
    with pytest.raises(UserError, match=re.escape(sentence)):
        command([*words, "--output", str(tmp_path)])


# ------------------------------------------------------------------------------------------------------- the README


def test_rows_of_studies_come_from_their_records(tmp_path: Path):
    folder = tmp_path / "model_cards" / "bert-study" / "few-shot-mini"
    folder.mkdir(parents=True)
    record = {
        "study": "few-shot",
        "task": "SST-2",
        "start": {"name": "runs/mini"},
        "headline": [{"what": "accuracy, 8 examples", **summarise([0.5, 0.7])}],
        "hardware": {"device": "a CPU"},
    }
    (folder / "results.json").write_text(json.dumps(record))
    lines = studies_table(tmp_path, ("few-shot", "frozen")).splitlines()
    assert lines[2].endswith("| mini | SST-2: accuracy, 8 examples | **0.60 ± 0.14** | 2 | a CPU |")
    assert "bert-study/few-shot-mini)" in lines[2] and lines[3] == "| frozen | | | not run yet | | |"


def readme() -> str:
    return (PAPER.folder / "README.md").read_text(encoding="utf-8")


def block(name: str) -> list[list[str]]:
    """The rows of the table between `<!-- name -->` and `<!-- /name -->`, without its head."""
    text = readme().split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def number(cell: str) -> int:
    return int(cell.replace(",", "").replace("*", ""))


def test_the_layer_table_adds_up_to_the_network():
    with torch.device("meta"):
        model = PaperBertForPreTraining(PaperBertConfig())
    actual: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        place = re.sub(r"^bert\.", "", name).rsplit(".", 1)[0]
        place = re.sub(r"^layers\.\d+\.", "12 × ", place)
        actual[place] = actual.get(place, 0) + parameter.numel()
    total, stated = 0, {}
    for name, _, _, parameters in block("layers"):
        if parameters.startswith("**"):
            assert number(parameters) == total, name
            continue
        total += number(parameters)
        stated[name.replace("`", "")] = number(parameters)
    assert stated.pop("input") == 0 and stated == actual
    assert total == PAPER.parameters["base"]


def test_the_table_of_sizes_is_that_of_the_presets():
    stated = {}
    for name, layers, hidden, heads, encoder, pretraining in block("sizes"):
        stated[name.strip("`")] = tuple(map(number, (layers, hidden, heads, encoder, pretraining)))
    for name in PaperBertConfig.presets:
        config = PaperBertConfig.from_preset(name)
        with torch.device("meta"):
            sizes = [model_class(config).num_parameters() for model_class in (PaperBertModel, PaperBertForPreTraining)]
        assert stated[name] == (
            config.num_hidden_layers,
            config.hidden_size,
            config.num_attention_heads,
            *sizes,
        )
    assert set(stated) == set(PaperBertConfig.presets)


def test_the_python_of_the_readme_works(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    code = re.findall(r"<!-- ([a-z ]+) -->\s*```python\n(.*?)```", readme(), re.DOTALL)
    assert [name for name, _ in code] == ["fill a blank", "classify", "convert"]
    assert readme().count("```python") == len(code)
    save(PaperBertForPreTraining, tokenizer, tmp_path / "runs/bert-nltk-english-seed0")
    save(PaperBertForSequenceClassification, tokenizer, tmp_path / "runs/bert-glue-sst2-seed0")
    torch.manual_seed(0)
    original = PaperBertForMaskedLM(PaperBertConfig(vocab_size=50, **SMALL))
    original.to_reference(str(tmp_path / "google-bert/bert-base-uncased"))
    monkeypatch.chdir(tmp_path)
    for name, lines in code:
        assert len([line for line in lines.splitlines() if line]) <= 5, name
        exec(compile(lines, f"README.md, {name}", "exec"), {})
    said = capsys.readouterr().out
    assert "'token_str'" in said and "'label': 'LABEL_" in said and "next_sentence.weight" in said
    import transformers

    again = transformers.BertForPreTraining.from_pretrained(tmp_path / "bert-again")
    assert torch.equal(again.cls.predictions.transform.dense.weight, original.predictions.dense.weight)


def test_the_commands_of_the_readme_mean_something():
    from hf_papers.cli import build_parser
    from hf_papers.studies.bert.commands import STUDIES
    from hf_papers.studies.bert.glue_runs import make_plan

    code = "\n".join(re.findall(r"```bash\n(.*?)```", readme(), re.DOTALL))
    lines = [shlex.split(line, comments=True) for line in code.splitlines() if line.strip()]
    recipes, studies = set(), set()
    for words in lines:
        if words[:3] == ["hf-papers", "train", "bert"]:
            options = parse_overrides(words[3:])
            recipes.add(load_recipe("bert", options.pop("recipe", "embedded"), options).name)
        elif words[0] == "hf-papers":
            build_parser().parse_args(words[1:])
        elif words[1] == "scripts/run_glue.py":
            assert make_plan(words[2:]).tasks
        else:
            assert words[:2] == ["python", "scripts/study_bert.py"], words
            studies.add(words[2])
    assert recipes | {"glue"} == set(PAPER.recipes) and studies == set(STUDIES)


def test_the_studies_of_this_checkout_are_up_to_date(capsys: pytest.CaptureFixture[str]):
    assert command(["table", "--check"], ROOT) == 0, capsys.readouterr().out

"""Fine-tuning on GLUE: tiny models, tiny data of GLUE's shape in a local folder or on the local Hub."""

import json
import os
import zipfile
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import BertTokenizer

from hf_papers.errors import UserError
from hf_papers.papers.bert.configuration_bert import PaperBertConfig
from hf_papers.papers.bert.glue_bert import GLUE, LEARNING_RATES, TABLE_1, TABLE_1_AVERAGE, TABLE_COLUMNS
from hf_papers.papers.bert.glue_data import balanced_rows
from hf_papers.papers.bert.modeling_bert import PaperBertForPreTraining, PaperBertForSequenceClassification
from hf_papers.studies.bert.glue_answers import answer_texts, write_answers, write_submission, write_tsv
from hf_papers.studies.bert.glue_runs import execute, make_plan
from hf_papers.studies.bert.glue_table import GlueScores, Try, merge_records, pick, render_search, render_table
from hf_papers.training.finish import evaluate_run, load_run, run_recipe
from hf_papers.training.recipe import load_recipe, load_run_recipe
from hf_papers.training.task import Context


pytest_plugins = ["tests.hub.fixtures"]

GOOD, BAD = ("good", "great", "fine", "nice"), ("bad", "poor", "awful", "dull")
FILLERS = ("the", "film", "was", "and", "very", "a", "story", "it")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *FILLERS, "null", "##s"]
SIZE = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
}
QUICK = {"report_to": "none", "progress": "false", "use_cpu": "true", "per_device_train_batch_size": "8"}


def sentence(generator: np.random.Generator, positive: bool) -> str:
    words = list(generator.choice(FILLERS, size=generator.integers(2, 12)))
    words.insert(int(generator.integers(0, len(words))), str(generator.choice(GOOD if positive else BAD)))
    return " ".join(words)


def rows_of(config: str, split: str, count: int) -> dict[str, list]:
    generator = np.random.default_rng([len(config), len(split), count])
    spec = GLUE["mnli" if config == "ax" else config]
    kinds = max(2, len(spec.labels))
    labels = [int(number) % kinds for number in generator.permutation(count)]
    columns = {name: [sentence(generator, label == 0) for label in labels] for name in spec.columns}
    if spec.is_regression:
        columns["label"] = [5.0 * label for label in labels]
    else:
        columns["label"] = labels
    if split.startswith("test"):
        columns["label"] = [type(value)(-1) for value in columns["label"]]
    return {**columns, "idx": list(range(count))}


SPLITS = {
    "mnli": ["train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched"],
    "ax": ["test"],
}
CONFIGS = ("mrpc", "sst2", "stsb", "rte", "mnli", "ax")


def glue_files() -> dict[str, bytes]:
    """A data set in the layout of nyu-mll/glue: path -> content."""
    files, configs = {}, []
    for config in CONFIGS:
        entries = []
        for split in SPLITS.get(config, ["train", "validation", "test"]):
            path = f"{config}/{split}-00000-of-00001.parquet"
            sink = pa.BufferOutputStream()
            pq.write_table(pa.table(rows_of(config, split, 48 if split == "train" else 20)), sink)
            files[path] = sink.getvalue().to_pybytes()
            entries.append({"split": split, "path": f"{config}/{split}-*"})
        configs.append({"config_name": config, "data_files": entries})
    files["README.md"] = f"---\n{yaml.safe_dump({'configs': configs})}---\n".encode()
    return files


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glue")
    for name, content in glue_files().items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """A pre-trained model of ours, as far as its layout goes."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(7)
    PaperBertForPreTraining(PaperBertConfig(**SIZE)).save_pretrained(folder)
    BertTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, start: Path) -> Path:
    """The same weights in transformers' layout."""
    folder = tmp_path_factory.mktemp("reference")
    PaperBertForPreTraining.from_pretrained(start).to_reference(folder)
    BertTokenizer.from_pretrained(start).save_pretrained(folder)
    return folder


def recipe_of(glue: Path | None, **options):
    source = {} if glue is None else {"dataset": str(glue)}
    return load_recipe("bert", "glue", {**QUICK, **source, **{name: str(value) for name, value in options.items()}})


def task_of(glue: Path | None, **options):
    recipe = recipe_of(glue, **options)
    return recipe.task_class(recipe)


def train(glue: Path | None, folder: Path, **options) -> Path:
    return run_recipe(recipe_of(glue, output_dir=folder, **options))


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


CONTEXT = Context(torch.device("cpu"), rank=0, world_size=1, seed=0)


# ---------------------------------------------------------------------------------------------------------- what is known


def test_the_papers_table_agrees_with_its_average() -> None:
    for label, values in TABLE_1.items():
        assert len(values) == len(TABLE_COLUMNS)
        assert round(sum(values) / len(values), 1) == TABLE_1_AVERAGE[label]
    assert LEARNING_RATES == (5e-5, 4e-5, 3e-5, 2e-5)


def test_every_task_has_what_it_needs() -> None:
    assert len(GLUE) == 9
    assert {task for task, _ in TABLE_COLUMNS.values()} == set(GLUE) - {"wnli"}
    names = [name for spec in GLUE.values() for name in spec.hidden]
    assert sorted(names) == sorted(
        f"{name}.tsv" for name in "CoLA SST-2 MRPC STS-B QQP MNLI-m MNLI-mm QNLI RTE WNLI AX".split()
    )


# --------------------------------------------------------------------------------------------------------------- training


def test_training_from_a_pretrained_model_of_ours(glue: Path, start: Path, tmp_path: Path) -> None:
    folder = train(
        glue, tmp_path / "run", task_name="sst2", model_name_or_path=start, max_steps=80, learning_rate=1e-2
    )
    results = results_of(folder)
    assert results["metrics"]["test"]["accuracy"] >= 0.85  # one word decides, and it is in the sentence
    assert results["metrics"]["validation"] == {}  # dev was looked at once, at the end
    assert results["weights"] == "last"
    assert results["task"]["start"] == {"kind": "ours", "name": str(start), "architecture": "PaperBertForPreTraining"}
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "positive"} and config["hidden_size"] == 16
    assert load_run_recipe(folder).config.hidden_size == 16
    again = evaluate_run(folder)
    assert again["test"] == results["metrics"]["test"]
    assert type(load_run(folder)[1]) is PaperBertForSequenceClassification


def test_a_run_can_be_evaluated_when_its_start_is_gone(glue: Path, start: Path, tmp_path: Path) -> None:
    import shutil

    moved = tmp_path / "moved"
    shutil.copytree(start, moved)
    options = {"task_name": "mrpc", "model_name_or_path": moved, "max_steps": 2, "tokenizer_name": start}
    folder = train(glue, tmp_path / "run", **options)
    shutil.rmtree(moved)
    assert evaluate_run(folder)["test"] == results_of(folder)["metrics"]["test"]


def test_both_layouts_start_from_the_same_weights(glue: Path, start: Path, reference: Path) -> None:
    models = []
    for name in (start, reference):
        torch.manual_seed(0)
        models.append(task_of(glue, task_name="mrpc", model_name_or_path=name).build_model())
    for (key, ours), theirs in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        if not key.startswith("classifier."):
            assert torch.equal(ours, theirs), key
    assert task_of(glue, task_name="mrpc", model_name_or_path=reference).describe()["start"]["kind"] == "converted"


def test_transformers_model_trains_from_the_same_weights_to_the_same_losses(
    glue: Path, start: Path, tmp_path: Path
) -> None:
    losses = []
    for name in ("ours", "transformers"):
        options = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0, "logging_steps": 1, "max_steps": 8}
        folder = train(
            glue, tmp_path / name, task_name="mrpc", model_name_or_path=start, implementation=name, **options
        )
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["train/loss"] for line in lines])
        assert results_of(folder)["task"]["implementation"] == name
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and len(losses[0]) == 8


def test_regression_and_two_dev_sets(glue: Path, start: Path, tmp_path: Path) -> None:
    folder = train(glue, tmp_path / "stsb", task_name="stsb", model_name_or_path=start, max_steps=3)
    assert set(results_of(folder)["metrics"]["test"]) == {"spearmanr", "pearson", "score"}
    task, model = load_run(folder)
    assert model.config.problem_type == "regression" and model.config.num_labels == 1
    folder = train(glue, tmp_path / "mnli", task_name="mnli", model_name_or_path=start, max_steps=3)
    assert set(results_of(folder)["metrics"]["test"]) == {"accuracy", "score", "accuracy_mm", "score_mm"}


def test_random_start_needs_a_tokenizer_of_its_size(glue: Path, tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add --tokenizer_name"):
        task_of(glue, task_name="mrpc", **SIZE).build_processor()
    wrong = {**SIZE, "vocab_size": 2000}
    with pytest.raises(
        UserError, match=f"has {len(WORDS)} tokens, but the model.s vocab_size is 2,000: they do not belong together"
    ):
        task_of(glue, task_name="mrpc", tokenizer_name=tokenizer, **wrong).build_processor()
    folder = train(
        glue, tmp_path / "run", task_name="mrpc", tokenizer_name=tokenizer, max_steps=2, max_length=32, **SIZE
    )
    assert results_of(folder)["task"]["start"] == {"kind": "random"}


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_resumed_run_ends_with_the_same_weights(glue: Path, start: Path, tmp_path: Path, streaming: str) -> None:
    options = {
        "task_name": "mrpc",
        "model_name_or_path": start,
        "max_steps": 14,
        "save_steps": 7,
        "streaming": streaming,
    }
    options |= {"save_total_limit": 5}
    whole = train(glue, tmp_path / "whole", **options)
    part = train(glue, tmp_path / "part", **options)
    for name in ("results.json", "model.safetensors"):
        (part / name).unlink()
    newest = max((part / "checkpoints").iterdir())
    import shutil

    shutil.rmtree(newest)
    train(glue, part, resume="auto", **options)
    assert (part / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_few_examples_balanced_and_frozen(glue: Path, start: Path, tmp_path: Path) -> None:
    task = task_of(glue, task_name="mrpc", model_name_or_path=start, train_examples=8, freeze_encoder="true")
    model = task.build_model()
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable == ["classifier.weight", "classifier.bias"]
    batches = list(islice(task.batches({}, CONTEXT), 3))
    seen = {tuple(row) for batch in batches for row in batch["input_ids"].tolist()}
    assert len(seen) <= 8 and all(batch["labels"].sum() == 4 for batch in batches)
    with pytest.raises(UserError, match="only 48 rows"):
        next(task_of(glue, task_name="mrpc", model_name_or_path=start, train_examples=49).batches({}, CONTEXT))


def test_balanced_rows_by_seed() -> None:
    labels = [0] * 90 + [1] * 10
    chosen = balanced_rows(labels, 16, np.random.default_rng(0), balance=True)
    assert len(set(chosen)) == 16 and sum(labels[number] for number in chosen) == 8
    assert chosen == balanced_rows(labels, 16, np.random.default_rng(0), balance=True)
    assert chosen != balanced_rows(labels, 16, np.random.default_rng(1), balance=True)
    assert sum(labels[number] for number in balanced_rows(labels, 40, np.random.default_rng(0), balance=True)) == 10


def test_padding_to_max_length_and_bucketing(glue: Path, start: Path) -> None:
    def positions(**options) -> list[int]:
        task = task_of(glue, task_name="mrpc", model_name_or_path=start, max_length=40, **options)
        return [batch["input_ids"].shape[1] for batch in islice(task.batches({}, CONTEXT), 6)]

    assert positions(pad_to_max_length="true") == [40] * 6
    assert sum(positions()) < sum(positions(bucketing="false")) < 240


def test_truncation_is_counted_or_refused(glue: Path, start: Path, tmp_path: Path, capsys) -> None:
    options = {"task_name": "mrpc", "model_name_or_path": start, "max_length": 8, "max_steps": 2}
    folder = train(glue, tmp_path / "run", **options)
    assert capsys.readouterr().err.count("had more than 8 word pieces and were cut") == 1
    cut = results_of(folder)["task"]["truncated"]
    assert 0 < cut["texts"] <= cut["of"] == 68
    with pytest.raises(UserError, match="more than 8 word pieces: raise --max_length"):
        train(glue, tmp_path / "other", too_long="refuse", **options)
    with pytest.raises(UserError, match="--max_length 129 is more than the 128 positions"):
        task_of(glue, task_name="mrpc", model_name_or_path=start, max_length=129)


# -------------------------------------------------------------------------------------------------------------- bad input


def test_sentences(glue: Path, start: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="GLUE has no task 'mrcp'. Did you mean 'mrpc'"):
        recipe_of(glue, task_name="mrcp")
    with pytest.raises(UserError, match="labels .* are hidden"):
        train(glue, tmp_path / "a", task_name="mrpc", model_name_or_path=start, max_steps=1, test_split="test")
    with pytest.raises(UserError, match="no column 'sentence1'"):
        _ = task_of(glue, task_name="mrpc", dataset_config="sst2", model_name_or_path=start).encoder
    with pytest.raises(UserError, match="no task 'gleu'. Did you mean 'glue'"):
        path = tmp_path / "x.yaml"
        path.write_text("task_type: gleu\n")
        load_recipe("bert", str(path), {})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    with pytest.raises(UserError, match="a model of type 'roberta'"):
        recipe_of(glue, task_name="mrpc", model_name_or_path=tmp_path)
    with pytest.raises(UserError, match="What is to be learnt"):
        task_of(None, model_name_or_path=start)


def test_a_classifier_of_another_task(glue: Path, start: Path, tmp_path: Path) -> None:
    mnli = train(glue, tmp_path / "mnli", task_name="mnli", model_name_or_path=start, max_steps=1)
    with pytest.raises(UserError, match="has 3 classes, and this task has 2.* --ignore_mismatched_sizes"):
        task_of(glue, task_name="mrpc", model_name_or_path=mnli).build_model()
    model = task_of(glue, task_name="mrpc", model_name_or_path=mnli, ignore_mismatched_sizes="true").build_model()
    assert model.classifier.weight.shape == (2, 16)


# --------------------------------------------------------------------------------------------------------- files of the user


def write_csv(path: Path, count: int, labels=("bad", "good"), text: str = "sentence1", label: str = "label") -> Path:
    generator = np.random.default_rng(count)
    lines = [f"{text},{label}"]
    lines += [f"{sentence(generator, number % 2 == 1)},{labels[number % len(labels)]}" for number in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_own_files(start: Path, tmp_path: Path) -> None:
    files = {
        "train_file": write_csv(tmp_path / "train.csv", 48),
        "validation_file": write_csv(tmp_path / "dev.csv", 20),
        "test_file": tmp_path / "test.csv",
    }
    files["test_file"].write_text("sentence1\nit was great\nthe film was awful\nnull\n")
    folder = train(None, tmp_path / "run", model_name_or_path=start, max_steps=120, learning_rate=3e-3, **files)
    assert results_of(folder)["metrics"]["test"]["accuracy"] >= 0.85
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "bad", "1": "good"}
    (path,) = write_answers(folder, tmp_path / "answers")
    lines = path.read_text().splitlines()
    assert lines[:3] == ["index\tprediction", "0\tgood", "1\tbad"] and len(lines) == 4

    odd = write_csv(tmp_path / "odd.csv", 20, labels=("bad", "goood"))
    with pytest.raises(UserError, match="label 'goood' .* none of the classes .* Did you mean 'good'"):
        evaluate_run(folder, {"validation_file": str(odd)})
    third = write_csv(tmp_path / "third.csv", 24, labels=("bad", "good", "ugly"))
    with pytest.raises(UserError, match="have the label 'ugly', which it does not know"):
        task_of(None, model_name_or_path=folder, train_file=third).build_model()


def test_own_numbers_are_a_regression_and_json_works(start: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name, count in (("train", 24), ("dev", 12)):
        rows = [
            {"sentence1": sentence(generator, True), "sentence2": "it", "label": number / 2} for number in range(count)
        ]
        (tmp_path / f"{name}.json").write_text("\n".join(map(json.dumps, rows)))
    files = {"train_file": tmp_path / "train.json", "validation_file": tmp_path / "dev.json"}
    folder = train(None, tmp_path / "run", model_name_or_path=start, max_steps=2, **files)
    assert set(results_of(folder)["metrics"]["test"]) == {"spearmanr", "pearson", "mean_squared_error", "score"}


def test_wrong_files(start: Path, tmp_path: Path) -> None:
    wrong = write_csv(tmp_path / "wrong.csv", 24, text="phrase")
    with pytest.raises(UserError, match="no column 'sentence1' .* columns are: phrase, label"):
        _ = task_of(None, train_file=wrong, model_name_or_path=start).encoder
    right = task_of(None, train_file=wrong, model_name_or_path=start, columns="sentence1=phrase")
    assert len(next(right.batches({}, CONTEXT))["labels"]) == 8
    unlabelled = write_csv(tmp_path / "unlabelled.csv", 24, label="stars")
    with pytest.raises(UserError, match="no column 'label'"):
        _ = task_of(None, train_file=unlabelled, model_name_or_path=start).labels
    with pytest.raises(UserError, match="There is no file"):
        task_of(None, train_file=tmp_path / "gone.csv", model_name_or_path=start)
    same = write_csv(tmp_path / "same.csv", 8, labels=("good",))
    with pytest.raises(UserError, match="nothing to tell apart"):
        _ = task_of(None, train_file=same, model_name_or_path=start).labels


# ------------------------------------------------------------------------------------------------- answers, table, search


def test_answers_as_gluebenchmark_reads_them(tmp_path: Path) -> None:
    assert answer_texts(GLUE["mnli"], [0, 1, 2]) == ["entailment", "neutral", "contradiction"]
    assert answer_texts(GLUE["qnli"], [1]) == ["not_entailment"] and answer_texts(GLUE["rte"], [0]) == ["entailment"]
    assert answer_texts(GLUE["mrpc"], [1, 0]) == ["1", "0"] and answer_texts(GLUE["wnli"], [1]) == ["1"]
    assert answer_texts(GLUE["stsb"], [-0.2, 3.14159, 7.0]) == ["0.000", "3.142", "5.000"]
    path = write_tsv(tmp_path / "RTE.tsv", ["entailment", "not_entailment"])
    assert path.read_bytes() == b"index\tprediction\n0\tentailment\n1\tnot_entailment\n"
    archive, missing = write_submission(tmp_path)
    assert zipfile.ZipFile(archive).namelist() == ["RTE.tsv"] and len(missing) == 10


def test_answers_of_mnli_with_the_diagnostic_set(glue: Path, start: Path, tmp_path: Path) -> None:
    folder = train(glue, tmp_path / "run", task_name="mnli", model_name_or_path=start, max_steps=1)
    files = write_answers(folder, tmp_path / "answers")
    assert [path.name for path in files] == ["MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"]
    for path in files:
        lines = path.read_text().splitlines()
        assert len(lines) == 21 and lines[20].split("\t")[0] == "19"
        assert {line.split("\t")[1] for line in lines[1:]} <= {"entailment", "neutral", "contradiction"}


def test_table() -> None:
    row = GlueScores("ours from x", {"mrpc": {"f1": [0.8, 0.9], "accuracy": [0.1, 0.1]}, "wnli": {"accuracy": [0.5]}})
    text = render_table([row])
    mine = next(line for line in text.splitlines() if line.startswith("| ours from x, dev |"))
    cells = [cell.strip() for cell in mine.strip("|").split("|")]
    assert cells[8] == "85.0 ± 7.1" and cells.count("not run yet") == 9 and len(cells) == 11
    assert "Mean of MRPC: ours from x 85.0, BERT BASE (paper) 88.9, BERT LARGE (paper) 89.3." in text
    assert "WNLI, which the paper leaves out: ours from x 50.0." in text
    assert "| BERT BASE (paper), test | 84.6 | 83.4 | 71.2 | 90.5 | 93.5 | 52.1 | 85.8 | 88.9 | 66.4 | 79.6 |" in text
    metrics = {name: {spec.metrics[0]: [0.5]} for name, spec in GLUE.items() if name != "wnli"}
    assert GlueScores("all", metrics).average is None  # MNLI's mismatched half is missing
    metrics["mnli"]["accuracy_mm"] = [0.95]
    full = GlueScores("all", metrics)
    assert full.average == pytest.approx((8 * 50 + 95) / 9)
    assert "not run yet" not in render_table([full]) and "Mean of" not in render_table([full])


def glue_record(task: str, implementation: str, value: float) -> dict:
    start = {"kind": "converted", "name": "minilm", "architecture": "BertModel"}
    metric = {GLUE[task].metrics[0]: {"mean": value, "std": 0.0, "values": [value, value]}}
    entry = {
        "start": start,
        "seeds": [0, 1],
        "metrics": metric,
        "recipe": {"task": {"implementation": implementation}},
        "tries": [],
    }
    return {"tasks": {task: entry}}


def test_records_of_one_network_share_a_row_and_transformers_own_has_another() -> None:
    records = [
        glue_record("cola", "ours", 0.3),
        glue_record("mrpc", "transformers", 0.8),
        glue_record("sst2", "ours", 0.9),
    ]
    ours, theirs = merge_records(records)
    assert ours.label == "ours from converted minilm, mean of 2 seeds" and ours.columns == ["SST-2", "CoLA"]
    assert theirs.label == "transformers' own from minilm, mean of 2 seeds" and theirs.columns == ["MRPC"]
    assert theirs.values("MRPC") == [80.0, 80.0]
    searched = glue_record("cola", "ours", 0.5)
    searched["tasks"]["cola"]["tries"] = [{"score": 0.4}, {"score": 0.5}]
    best = merge_records([*records, searched])[-1]
    assert best.label == "ours from converted minilm, best of 2 settings, mean of 2 seeds" and best.columns == ["CoLA"]
    with pytest.raises(UserError, match="Two records hold CoLA"):
        merge_records([*records, glue_record("cola", "ours", 0.4)])


def test_search_picks_the_best_and_the_first_of_equals() -> None:
    tries = [Try(5e-5, 3, 0.80, "a"), Try(4e-5, 3, 0.85, "b"), Try(3e-5, 3, 0.85, "c")]
    assert pick(tries).folder == "b"
    text = render_search("mrpc", tries)
    assert text.count("**") == 2 and "| 4e-05 | 3 | **85.0** |" in text and "dev set that is scored" in text


def plan_of(glue: Path, start: Path, folder: Path, *words: str):
    base = ["--dataset", glue, "--model_name_or_path", start, "--output_dir", folder, "--use_cpu", "--no_progress"]
    base += ["--per_device_train_batch_size", 8, "--max_train_steps", 2]
    return make_plan([*map(str, base), *words])


def test_plan_of_tasks_seeds_and_search(glue: Path, start: Path, tmp_path: Path, capsys) -> None:
    words = ["--task_name", "rte,mrpc", "--seeds", "0,1", "--search", "--learning_rates", "1e-3,1e-2"]
    assert execute(plan_of(glue, start, tmp_path, *words)) == 0
    record = json.loads((tmp_path / "results.json").read_text())
    for task in ("rte", "mrpc"):
        entry = record["tasks"][task]
        assert entry["seeds"] == [0, 1] and len(entry["tries"]) == 2 and len(entry["runs"]) == 2
        assert entry["recipe"]["task"]["task_name"] == task and entry["command"]
        best = max(entry["tries"], key=lambda entry: entry["score"])
        assert entry["runs"][0] == best["run"] and f"lr{best['learning_rate']:g}" in entry["runs"][1]
        scores = [results_of(Path(run))["metrics"]["test"]["score"] for run in entry["runs"]]
        assert entry["metrics"]["score"]["mean"] == pytest.approx(np.mean(scores))
    table = (tmp_path / "table.md").read_text()
    assert "mean of 2 seeds" in table and "learning rate" in table and table in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")}
    assert execute(plan_of(glue, start, tmp_path, *words)) == 0  # nothing is trained twice
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")} == before
    with pytest.raises(UserError, match="had other options: weight_decay"):
        execute(plan_of(glue, start, tmp_path, *words, "--weight_decay", "0.5"))


def test_all_goes_on_where_a_task_cannot_run(glue: Path, start: Path, tmp_path: Path, capsys) -> None:
    assert execute(plan_of(glue, start, tmp_path, "--task_name", "cola,rte", "--do_predict")) == 2
    printed = capsys.readouterr()
    assert "CoLA was not run: " in printed.err and "no configuration 'cola'" in printed.err
    assert (tmp_path / "submission" / "RTE.tsv").read_text().count("\n") == 21
    assert "not run yet" in (tmp_path / "table.md").read_text()


def test_names_of_transformers_script() -> None:
    words = (
        "--task_name mrpc --max_train_steps 5 --num_warmup_steps 2 --checkpointing_steps 3 --with_tracking --seed 4"
    )
    plan = make_plan([*words.split(), "--resume_from_checkpoint", "auto", "--pad_to_max_length", "--output_dir", "x"])
    assert plan.options == {
        "max_steps": "5",
        "warmup_steps": "2",
        "save_steps": "3",
        "report_to": "tensorboard",
        "resume": "auto",
        "pad_to_max_length": "true",
    }
    assert plan.seeds == (4,) and plan.is_single and plan.folder("mrpc", 4) == Path("x")
    assert make_plan(["--task_name", "all"]).options["report_to"] == "none"
    for words, sentence_ in (
        (["--task_name", "mrpc", "--checkpointing_steps", "epoch"], "number of steps"),
        (["--task_name", "mrpc", "--trust_remote_code"], "No code of a checkpoint"),
        (["--task_name", "mrpc", "--search", "--learning_rate", "1e-5"], "what --search looks for"),
        (["--task_name", "mrcp"], "Did you mean 'mrpc'"),
        (["--model_name_or_path", "x"], "What is to be learnt"),
    ):
        with pytest.raises(UserError, match=sentence_):
            make_plan(words)


# ------------------------------------------------------------------------------------------------------------------ the Hub


def test_streamed_from_the_hub(hub, start: Path, tmp_path: Path) -> None:
    hub.add_repo("dataset", "nyu-mll/glue", glue_files())
    folder = train(None, tmp_path / "run", task_name="mrpc", model_name_or_path=start, max_steps=3)
    assert load_run_recipe(folder).data.dataset_config == "mrpc"
    assert set(results_of(folder)["metrics"]["test"]) == {"f1", "accuracy", "score"}


def test_real_mrpc(real_data_hub, tmp_path: Path, start: Path) -> None:
    task = task_of(None, task_name="mrpc", model_name_or_path=start)
    assert task.train_rows() == 3668 and task.total_steps(CONTEXT) == 3 * (3668 // 8)
    encoded = task.source.tensors("validation", task.preprocess)
    assert len(encoded["labels"]) == 408 and int(encoded["labels"].sum()) == 279
    assert os.environ["HF_ENDPOINT"] == real_data_hub.url

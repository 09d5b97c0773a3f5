"""What a transformer is worth on each distortion: equal budgets, the record, its table, and the README that shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_papers.errors import UserError
from hf_papers.papers.stn.configuration_stn import PaperStnConfig
from hf_papers.papers.stn.modeling_stn import PaperStnForImageClassification
from hf_papers.reports.tables import NOT_RUN
from hf_papers.studies.stn import distortions
from hf_papers.studies.stn.distortions import (
    BUDGET,
    NETWORKS,
    SETTINGS,
    command,
    fill_readme,
    gain,
    load_setting,
    network_options,
    render_table,
    widest,
)


ROOT = Path(__file__).resolve().parents[2]


def count(distortion: str, network: str) -> int:
    config = load_setting(distortion, network, 0, Path("runs"), {"num_labels": "19"}).config
    labels = SETTINGS[distortion].num_labels
    config = PaperStnConfig(
        **{name: value for name, value in config.to_diff_dict().items() if name in config.__dataclass_fields__},
        num_labels=labels,
    )
    return sum(parameter.numel() for parameter in PaperStnForImageClassification(config).parameters())


@pytest.mark.parametrize("distortion", SETTINGS)
def test_all_networks_of_a_distortion_spend_one_budget(distortion: str):
    for network in NETWORKS:
        spent = count(distortion, network)
        assert 0.985 * BUDGET < spent <= BUDGET, (network, spent)


def test_the_widest_network_is_the_last_one_within_its_budget():
    shape = {"image_size": 20, "transformer": "none", "downsampling": 1, "classifier": "fcn"}

    def weights(width: int) -> int:
        return 400 * width + width + width * width + width + 10 * width + 10

    for budget in (weights(1), weights(37) - 1, weights(37), weights(37) + 1):
        width = widest(shape, 10, budget)
        assert weights(width) <= budget < weights(width + 1)
    with pytest.raises(UserError, match="at most 100 parameters"):
        widest(shape, 10, 100)


def test_averaging_and_sizes_are_those_of_the_appendix():
    sizes = {name: network_options(name, "affine")["image_size"] for name in SETTINGS}
    assert sizes == {name: 60 if name == "cluttered" else 42 for name in SETTINGS}
    averaged = {name for name in SETTINGS if network_options(name, "affine")["downsampling"] == 2}
    assert averaged == {"rts", "cluttered", "addition"}
    assert network_options("addition", "tps")["num_transformers"] == 2
    assert network_options("rts", "fcn")["downsampling"] == 1


def test_the_networks_of_a_distortion_differ_in_nothing_but_the_network():
    with_one, without = (load_setting("elastic", network, 1, Path("runs"), {}) for network in ("affine", "fcn"))
    assert with_one.data == without.data and with_one.task == without.task
    left, right = (
        {name: value for name, value in vars(recipe.training).items() if name != "output_dir"}
        for recipe in (with_one, without)
    )
    assert left == right


def result(*values: float) -> dict[str, Any]:
    return {"error": {"mean": sum(values) / len(values), "std": None, "values": list(values)}}


def test_gains_are_taken_seed_by_seed():
    row = {"fcn": result(9.0, 11.0), "affine": result(4.0, 5.0)}
    assert gain(row)["affine"]["values"] == [5.0, 6.0]
    assert gain(row)["affine"]["mean"] == 5.5 and gain(row)["affine"]["std"] == pytest.approx(0.5**0.5)
    assert gain({"affine": result(4.0)}) == {}


def test_what_has_not_run_says_so():
    assert render_table(None).count(NOT_RUN) == 3 * len(SETTINGS)
    row = {"fcn": result(9.0), "affine": result(4.0)}
    record = {
        "rows": {"rts": row},
        "gains": {"rts": gain(row)},
        "seeds": [0],
        "hardware": {"device": "a CPU"},
        "date": "2020-01-01",
    }
    table = render_table(record)
    assert table.count(NOT_RUN) == 3 * (len(SETTINGS) - 1)
    assert "(RTS) | 9" in table and "**5" in table and "a CPU" in table


def test_the_command_trains_records_and_uses_finished_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    readme = tmp_path / "hf_papers" / "papers" / "stn" / "README.md"
    readme.parent.mkdir(parents=True)
    readme.write_text("<!-- distortions -->\n<!-- /distortions -->\n")
    words = ["--distortions", "elastic", "--seeds", "0,1", "--output", str(tmp_path / distortions.CARD)]
    words += ["--output_dir", str(tmp_path / "runs"), "--dataset", "embedded:digits", "--train_split", "train"]
    words += ["--validation_split", "validation", "--test_split", "test", "--max_steps", "2", "--eval_steps", "2"]
    words += ["--per_device_train_batch_size", "4", "--use_cpu", "--progress=false"]
    assert command(words, tmp_path) == 0
    folder = tmp_path / distortions.CARD
    record = json.loads((folder / "results.json").read_text())
    assert record["seeds"] == [0, 1] and set(record["rows"]["elastic"]) == {"fcn", "affine"}
    for key in ("budget", "hardware", "versions", "commit", "command", "date"):
        assert record[key] is not None, key
    for row in record["rows"]["elastic"].values():
        assert len(row["error"]["values"]) == 2 and row["steps"] == 2 and row["parameters"] <= BUDGET
    with Image.open(folder / "distortions.png") as picture:
        assert min(picture.size) > 100
    table = (folder / "table.md").read_text()
    assert table in capsys.readouterr().out and table.strip() in readme.read_text()

    monkeypatch.setattr(distortions, "run_recipe", lambda *args, **kwargs: pytest.fail("it was trained already"))
    assert command(words, tmp_path) == 0
    with pytest.raises(UserError, match="other options.*--output_dir"):
        command([*words, "--learning_rate", "1e-4"], tmp_path)


@pytest.mark.parametrize(("option", "value"), [("--distortions", "rts,blurred"), ("--networks", "cnn")])
def test_unknown_names_are_refused_with_the_known_ones(option: str, value: str):
    with pytest.raises(UserError, match="choose from"):
        command([option, value])


def test_the_readme_says_what_the_record_says():
    path, text = fill_readme(ROOT)
    assert path.read_text(encoding="utf-8") == text

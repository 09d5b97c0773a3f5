"""Reports: every seed counts, unlike runs are refused, and no number in a README is typed by hand."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from PIL import Image

from hf_papers.errors import UserError
from hf_papers.hub.cards import render_card
from hf_papers.registry import find_paper, papers
from hf_papers.reports import (
    aggregate,
    compare,
    fill_block,
    fill_tables,
    learning_curves,
    read_metrics,
    write_comparison,
    write_report,
)
from hf_papers.reports.aggregate import format_metric
from hf_papers.reports.compare import recipe_differences
from hf_papers.reports.curves import MAX_BYTES, mean_curve, metric_names, shrink_picture
from hf_papers.reports.tables import NOT_RUN, papers_table, read_results, results_table, runnable_recipes


ROOT = Path(__file__).resolve().parents[1]
HARDWARE = {"device": "Test CPU", "type": "cpu", "processes": 1, "threads_per_process": 2}


def make_run(folder: Path, seed: int, score: float, **changes: Any) -> Path:
    """A finished run as the trainer leaves it, with a learning curve of five evaluations."""
    folder.mkdir(parents=True)
    training = {"output_dir": str(folder), "seed": seed, "max_steps": 50, "learning_rate": 1e-3, "report_to": "none"}
    recipe = {
        "paper": "vae",
        "name": "mnist",
        "description": "test",
        "reference": {"negative_elbo": {"value": 98.0, "error": 1, "source": "figure 2"}},
        "model": {"latent_size": 20},
        "task": {},
        "data": {"dataset": "ylecun/mnist"},
        "training": training,
        "expected": {"negative_elbo": {"max": 97.0}},
    }
    for name, value in changes.items():
        section, _, option = name.partition("__")
        recipe[section][option] = value
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    results = {
        "paper": recipe["paper"],
        "recipe": recipe["name"],
        "seed": seed,
        "steps": 50,
        "parameters": 815_824,
        "metrics": {
            "validation": {"negative_elbo": score - 1},
            "test": {"negative_elbo": score, "active_units": 18},
        },
        "wall_clock_s": 100.0 + seed,
        "hardware": HARDWARE,
        "versions": {"torch": "2.13.0"},
        "commit": "abc",
        "command": f"hf-papers train vae --recipe mnist --seed {seed}",
        "figures": {"Samples": "figures/samples.png"},
    }
    (folder / "results.json").write_text(json.dumps(results))
    lines = [
        {"step": step, "train/loss": score + 100 / step, "learning_rate": 1e-3}
        | ({"validation/negative_elbo": score + 50 / step} if step % 10 == 0 else {})
        for step in range(5, 51, 5)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "figures").mkdir()
    (folder / "figures" / "samples.png").write_bytes(large_picture())
    return folder


@cache
def large_picture() -> bytes:
    """A PNG above the size that a report keeps."""
    buffer = io.BytesIO()
    Image.effect_noise((900, 900), 80).convert("RGB").save(buffer, "PNG")
    assert buffer.tell() > MAX_BYTES
    return buffer.getvalue()


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [make_run(tmp_path / f"seed{seed}", seed, score) for seed, score in ((2, 96.5), (0, 95.0), (1, 95.5))]


# --------------------------------------------------------------------------------------------- aggregate


def test_mean_and_sample_deviation_over_all_seeds(runs: list[Path]) -> None:
    results = aggregate(runs)
    assert results["seeds"] == [0, 1, 2]
    elbo = results["metrics"]["test"]["negative_elbo"]
    assert elbo["values"] == [95.0, 95.5, 96.5]
    assert elbo["mean"] == pytest.approx(95.6667, abs=1e-4)
    assert elbo["std"] == pytest.approx(math.sqrt(((0.6667) ** 2 + 0.1667**2 + 0.8333**2) / 2), abs=1e-3)
    assert results["expected"]["negative_elbo"] == {"min": None, "max": 97.0, "mean": elbo["mean"], "within": True}
    assert results["reference"]["negative_elbo"]["value"] == 98.0
    assert results["wall_clock_s"] == 101.0
    assert [run["seed"] for run in results["runs"]] == [0, 1, 2]
    json.dumps(results, allow_nan=False)


def test_one_seed_has_no_spread(runs: list[Path]) -> None:
    elbo = aggregate(runs[:1])["metrics"]["test"]["negative_elbo"]
    assert elbo["std"] is None and format_metric(elbo) == "96.5"


def test_what_the_task_says_is_carried_along_and_its_note_stands_beside_every_number(tmp_path: Path) -> None:
    ruler = {"ruler": {"name": "lenet", "fingerprint": "aa"}, "note": "JPEG copies"}
    runs = [make_run(tmp_path / f"seed{seed}", seed, 96.0) for seed in (0, 1)]
    for run, task in zip(runs, (ruler, {**ruler, "ruler": {"name": "lenet", "fingerprint": "bb"}}), strict=True):
        path = run / "results.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "task": task}))
    assert "task" not in aggregate([make_run(tmp_path / "silent", 5, 96.0)])
    one = aggregate(runs[:1])
    assert one["task"] == ruler
    both = aggregate(runs)["task"]
    assert isinstance(both, str) and "'aa'" in both and "'bb'" in both, "two rulers must not pass for one"
    paper = find_paper("vae")
    rows = [
        line for line in results_table(paper, {"mnist": ("card", one)}).splitlines() if line.startswith("| `mnist`")
    ]
    assert rows and all("(JPEG copies)" in row for row in rows if NOT_RUN not in row)
    assert "ours, test (JPEG copies)" in render_card(paper, results=one)


def test_a_mean_outside_the_band_is_said_to_be(tmp_path: Path) -> None:
    results = aggregate([make_run(tmp_path / "run", 0, 99.0)])
    assert results["expected"]["negative_elbo"]["within"] is False


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training__learning_rate": 1e-2}, r"training.learning_rate is 0.001 in .*seed0 and 0.01 in .*other"),
        ({"model__latent_size": 2}, "model.latent_size is 20"),
        ({"data__train_split": "train"}, "data.train_split is not set"),
    ],
)
def test_unlike_recipes_are_refused_with_the_difference(
    runs: list[Path], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    other = make_run(tmp_path / "other", 7, 90.0, **changes)
    with pytest.raises(UserError, match=said):
        aggregate([*runs, other])


def test_what_does_not_change_a_result_may_differ(runs: list[Path], tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", 7, 95.0, training__report_to="trackio", training__save_steps=10)
    assert aggregate([*runs, other])["seeds"] == [0, 1, 2, 7]


def test_a_seed_counts_once(runs: list[Path], tmp_path: Path) -> None:
    again = make_run(tmp_path / "again", 1, 95.5)
    with pytest.raises(UserError, match="have the same seed 1"):
        aggregate([*runs, again])


def test_unfinished_and_damaged_runs_are_named(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty is not a finished run"):
        aggregate([*runs, tmp_path / "empty"])
    (runs[0] / "results.json").write_text('{"paper": "va')
    with pytest.raises(UserError, match="is damaged"):
        aggregate(runs)
    with pytest.raises(UserError, match="at least one run"):
        aggregate([])


def test_a_missing_or_infinite_metric_is_not_averaged_away(runs: list[Path]) -> None:
    results = json.loads((runs[0] / "results.json").read_text())
    results["metrics"]["test"]["negative_elbo"] = math.inf
    (runs[0] / "results.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match="no finite test negative_elbo"):
        aggregate(runs)
    del results["metrics"]["test"]["negative_elbo"]
    (runs[0] / "results.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match="seed2 has no finite test negative_elbo"):
        aggregate(runs)


def test_differing_commits_and_versions_are_all_reported(runs: list[Path]) -> None:
    results = json.loads((runs[0] / "results.json").read_text())
    results |= {"commit": "def", "versions": {"torch": "2.14.0"}}
    (runs[0] / "results.json").write_text(json.dumps(results))
    combined = aggregate(runs)
    assert combined["commit"] == "abc, def" and combined["versions"] == {"torch": "2.13.0, 2.14.0"}


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        (95.6667, 0.7638, "95.67 ± 0.76"),
        (225.31, 2.04, "225.3 ± 2.0"),
        (500.0, 0.0, "500 ± 0"),
        (0.98765, 0.00123, "0.9877 ± 0.0012"),
        (12345.6, 321.0, "12,346 ± 321"),
    ],
)
def test_digits_follow_the_spread(mean: float, std: float, text: str) -> None:
    assert format_metric({"mean": mean, "std": std, "values": [mean]}) == text


# --------------------------------------------------------------------------------------------- reports and curves


def test_report_holds_results_card_and_small_figures(runs: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "card"
    results = write_report(runs, target)
    assert json.loads((target / "results.json").read_text()) == results
    card = (target / "README.md").read_text()
    assert card.startswith("---\n") and "95.67" in card and "98" in card
    assert len(results["figures"]) == 2
    for name in results["figures"].values():
        path = target / name
        assert 0 < path.stat().st_size <= MAX_BYTES
        with Image.open(path) as picture:
            picture.verify()


def test_a_report_can_be_continued_with_later_seeds(runs: list[Path], tmp_path: Path) -> None:
    together = write_report(runs, tmp_path / "together")
    card = tmp_path / "one_by_one"
    write_report([runs[1]], card)  # seed 0
    for run in (runs[0], runs[2]):
        shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)
        continued = write_report([card, run.rename(tmp_path / "elsewhere")], card)
    assert continued == together
    for name in ("README.md", "figures/learning_curve.png", "figures/samples.png"):
        assert (card / name).read_bytes() == (tmp_path / "together" / name).read_bytes()
    with pytest.raises(UserError, match="same seed 1"):
        aggregate([card, tmp_path / "elsewhere"])


def test_a_report_keeps_nothing_of_an_older_one(runs: list[Path], tmp_path: Path) -> None:
    write_report(runs, tmp_path / "card")
    write_report(runs[:1], tmp_path / "card")
    assert aggregate([tmp_path / "card"])["seeds"] == [2]


def test_curve_is_the_mean_at_common_steps(runs: list[Path]) -> None:
    with (runs[0] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "validation/negative_elbo": 1.0}\n')
    steps, means, deviations = mean_curve(runs, "validation/negative_elbo")
    assert steps == [10, 20, 30, 40, 50]
    assert means[0] == pytest.approx((96.5 + 95.0 + 95.5) / 3 + 5)
    assert deviations[0] == pytest.approx(0.7638, abs=1e-3)


def test_what_never_changes_is_no_curve(runs: list[Path]) -> None:
    with (runs[0] / "metrics.jsonl").open("a") as file:
        for step, covered in ((60, 9.0), (70, 10.0)):
            record = {"step": step, "validation/modes_total": 10.0, "validation/modes_covered": covered}
            file.write(json.dumps(record) + "\n")
    names = metric_names(runs[0])
    assert "validation/modes_covered" in names and "validation/modes_total" not in names


def test_a_line_cut_by_a_crash_is_left_out_and_damage_is_not(runs: list[Path]) -> None:
    path = runs[0] / "metrics.jsonl"
    whole = len(read_metrics(runs[0]))
    path.write_text(path.read_text() + '{"step": 55, "train/lo')
    assert len(read_metrics(runs[0])) == whole
    path.write_text("not json\n" + path.read_text())
    with pytest.raises(UserError, match="damaged in line 1"):
        read_metrics(runs[0])


def test_pictures_come_out_the_same_twice(runs: list[Path], tmp_path: Path) -> None:
    first, second = (
        next(iter(learning_curves(runs, tmp_path / name).values())).read_bytes() for name in ("one", "two")
    )
    assert first == second


def test_shrinking_keeps_the_proportions(tmp_path: Path) -> None:
    source = tmp_path / "noise.png"
    Image.effect_noise((1600, 800), 90).convert("RGB").save(source)
    assert source.stat().st_size > MAX_BYTES
    with Image.open(shrink_picture(source, tmp_path / "small.png")) as small:
        assert small.width / small.height == pytest.approx(2.0, abs=0.02)
    assert (tmp_path / "small.png").stat().st_size <= MAX_BYTES


# --------------------------------------------------------------------------------------------- comparisons


@pytest.fixture
def ablation(tmp_path: Path) -> dict[str, list[Path]]:
    return {
        "20 latents": [make_run(tmp_path / f"a{seed}", seed, 95.0 + seed) for seed in (0, 1)],
        "2 latents": [make_run(tmp_path / f"b{seed}", seed, 140.0 + seed, model__latent_size=2) for seed in (0, 1)],
    }


def test_comparison_writes_table_figure_and_what_differs(ablation: dict[str, list[Path]], tmp_path: Path) -> None:
    target = tmp_path / "out"
    result = write_comparison(
        ablation, target, name="latents", metrics=["negative_elbo"], curve="validation/negative_elbo"
    )
    assert result["differences"] == {"model.latent_size": {"20 latents": 20, "2 latents": 2}}
    lines = (target / "latents.md").read_text().splitlines()
    assert lines[2] == "| 20 latents | 95.50 ± 0.71 | 2 |" and lines[3].startswith("| 2 latents | 140.5")
    for name in ("latents.png", "latents_curve.png"):
        assert 0 < (target / name).stat().st_size <= MAX_BYTES
    assert json.loads((target / "latents.json").read_text())["groups"]["2 latents"]["seeds"] == [0, 1]


def test_comparison_refuses_what_cannot_be_compared(ablation: dict[str, list[Path]]) -> None:
    groups = {label: aggregate(runs) for label, runs in ablation.items()}
    with pytest.raises(UserError, match="Did you mean 'negative_elbo'"):
        compare(groups, ["negative_elb"])
    with pytest.raises(UserError, match="at least two groups"):
        compare({"20 latents": groups["20 latents"]})
    groups["2 latents"] = groups["2 latents"] | {"paper": "gan"}
    with pytest.raises(UserError, match="different papers"):
        compare(groups)


def test_seed_and_folder_are_no_difference(ablation: dict[str, list[Path]]) -> None:
    assert recipe_differences({"one": ablation["20 latents"][:1], "two": ablation["20 latents"][1:]}) == {}


# --------------------------------------------------------------------------------------------- tables


def readme_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_table", ROOT / "scripts" / "readme_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(runs: list[Path], tmp_path: Path) -> Path:
    """A checkout with one finished report and READMEs whose tables are empty."""
    root = tmp_path / "project"
    write_report(runs, root / "model_cards" / "vae-mnist")
    (root / "README.md").write_text("top\n\n<!-- papers -->\nold\n<!-- /papers -->\n\nbottom\n")
    for key in papers():
        folder = root / "hf_papers" / "papers" / key
        folder.mkdir(parents=True)
        (folder / "README.md").write_text(f"# {key}\n\n<!-- results -->\n<!-- /results -->\n\nend\n")
    return root


def test_blocks_are_replaced_and_everything_else_is_kept() -> None:
    text = "a\n<!-- x -->\nold \\1\n<!-- /x -->\nb\n"
    filled = fill_block(text, "x", r"new \1")
    assert filled == "a\n<!-- x -->\n\nnew \\1\n\n<!-- /x -->\nb\n"
    assert fill_block(filled, "x", r"new \1") == filled
    for broken in ("no block", "<!-- x -->", "<!-- /x --> <!-- x -->"):
        with pytest.raises(UserError, match="once each"):
            fill_block(broken, "x", "new")


def test_tables_say_what_the_results_say_and_not_run_yet_otherwise(project: Path) -> None:
    filled = fill_tables(project)
    top = filled[project / "README.md"]
    assert top.startswith("top\n") and top.endswith("bottom\n")
    lines = {key: next(line for line in top.splitlines() if f"papers/{key})" in line) for key in papers()}
    assert "95.67 ± 0.76" in lines["vae"] and "815,824" in lines["vae"] and "vae-mnist" in lines["vae"]
    assert NOT_RUN in lines["gan"] and NOT_RUN in lines["dqn"]
    vae = filled[project / "hf_papers" / "papers" / "vae" / "README.md"]
    rows = [line for line in vae.splitlines() if line.startswith("| `")]
    # `images` is for pictures of one's own: there is nothing to run it on, and no number of it.
    assert {row.split("`")[1] for row in rows} == set(find_paper("vae").recipes) - {"images"}
    for row in rows:
        assert ("95.67" in row) == (row.startswith("| `mnist`") and "negative elbo" in row)
    assert NOT_RUN in filled[project / "hf_papers" / "papers" / "dqn" / "README.md"]


def test_check_fails_until_the_tables_are_written(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = readme_script()
    assert script.main(["--check"], project) == 1
    assert "README.md does not say what the results say" in capsys.readouterr().out
    assert script.main([], project) == 0
    assert script.main(["--check"], project) == 0
    (project / "README.md").write_text("no table")
    assert script.main(["--check"], project) == 2


def test_two_cards_of_one_recipe_are_refused(project: Path, runs: list[Path]) -> None:
    write_report(runs[:1], project / "model_cards" / "vae-mnist-again")
    with pytest.raises(UserError, match="both hold results of the recipe 'mnist'"):
        read_results(project)


def test_empty_results_give_a_table_for_every_paper() -> None:
    for paper in papers().values():
        table = results_table(paper, {})
        assert NOT_RUN in table and all(f"--recipe {name} " in table for name in runnable_recipes(paper))
        assert {name for name in paper.recipes if f"--recipe {name} " not in table} <= {"images", "glue"}
    assert papers_table(papers().values(), {}, ROOT).count(NOT_RUN) == len(papers())


def test_a_paper_names_the_recipe_that_stands_for_it() -> None:
    paper = find_paper("stn")
    assert f"--recipe {paper.headline}`" in papers_table([paper], {}, ROOT)
    other = replace(paper, headline="rts-cnn")
    assert "--recipe rts-cnn`" in papers_table([other], {}, ROOT)
    was_run = {"stn": {"embedded": ("stn-embedded", {"metrics": {"test": {}}, "seeds": [0]})}}
    assert "--recipe embedded`" in papers_table([other], was_run, ROOT), "what has numbers comes before what has none"


def test_no_recipe_on_embedded_data_stands_for_a_paper_that_ran_on_others() -> None:
    paper = replace(find_paper("transformer"), headline=None)
    ran = ("embedded", "embedded-rnn", "multi30k-en-de")
    was_run = {"transformer": {name: (f"transformer-{name}", {"metrics": {"test": {}}, "seeds": [0]}) for name in ran}}
    assert "--recipe multi30k-en-de`" in papers_table([paper], was_run, ROOT)


def test_the_tables_of_this_checkout_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert readme_script().main(["--check"]) == 0, capsys.readouterr().out

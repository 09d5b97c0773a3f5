"""Generators of several papers measured alike: same ruler, same real images, same number of samples, one record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_papers import find_paper
from hf_papers.data import DataArguments
from hf_papers.errors import UserError
from hf_papers.metrics import frechet_distance, open_ruler
from hf_papers.metrics.rulers import fingerprint
from hf_papers.studies import generators
from hf_papers.studies.generators import command, draw, images_seen, load_generator, real_images, table
from tests.metrics.test_rulers import foreign_classifier


CPU = torch.device("cpu")
DIGITS = DataArguments(dataset="embedded:digits")


def save(key: str, folder: Path, processor: dict[str, Any], **config: Any) -> Path:
    """A checkpoint of fresh weights that draws something, with its processor, as a finished run would leave it."""
    paper = find_paper(key)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = paper.model_class(paper.config_class.from_preset("tiny", **config))
        for parameter in model.parameters():
            parameter.data.mul_(3.0)
    model.save_pretrained(folder)
    paper.image_processor_class(**processor).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("generators")
    grey = {"size": {"height": 8, "width": 8}, "num_channels": 1}
    found = {
        "gan": save("gan", root / "gan", grey),
        "vae": save("vae", root / "vae", grey, image_size=8),
        "dcgan": save("dcgan", root / "dcgan", {**grey, "margin": 4}, num_channels=1),
    }
    results = {"paper": "dcgan", "recipe": "mnist", "seed": 2, "steps": 70, "hardware": {"processes": 2}}
    (found["dcgan"] / "results.json").write_text(json.dumps(results))
    (found["dcgan"] / "recipe.yaml").write_text(
        "training: {per_device_train_batch_size: 10, gradient_accumulation_steps: 3}\ntask: {}\n"
    )
    foreign_classifier(root / "ruler")
    return {**found, "ruler": root / "ruler"}


def test_a_run_says_who_it_is_and_how_many_images_it_saw(checkpoints: dict[str, Path]) -> None:
    generator = load_generator(str(checkpoints["dcgan"]), CPU)
    assert generator.name == "dcgan-mnist-seed2" and generator.margin == 4
    assert generator.images_seen == 70 * 10 * 3 * 2
    bare = load_generator(str(checkpoints["gan"]), CPU)
    assert bare.name == str(checkpoints["gan"]) and bare.images_seen is None and bare.margin == 0
    training = {"training": {"per_device_train_batch_size": 100}, "task": {"discriminator_steps": 3}}
    assert images_seen({"steps": 11}, training) == 3300


@pytest.mark.parametrize("key", ["gan", "vae", "dcgan"])
def test_every_generator_draws_by_the_same_protocol(checkpoints: dict[str, Path], key: str) -> None:
    """(n, c, h, w) in [0, 1] at the size of the real images, repeatable, whatever else was drawn before."""
    generator = load_generator(str(checkpoints[key]), CPU)
    images = draw(generator, 7, seed=3)
    assert images.shape == (7, 1, 8, 8) and images.min() >= 0 and images.max() <= 1
    torch.manual_seed(99)
    assert torch.equal(draw(generator, 7, seed=3), images) and not torch.equal(draw(generator, 7, seed=4), images)
    real = real_images(generator, DIGITS, "test", 20)
    assert real["images"].shape == (20, 1, 8, 8) and len(real["label"]) == 20
    torch.testing.assert_close(real["images"], real_images(load_generator(str(checkpoints["gan"]), CPU), DIGITS, "test", 20)["images"])  # fmt: skip  # noqa: E501


def test_the_record_names_ruler_data_and_generators(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    sources = [str(checkpoints[key]) for key in ("gan", "vae", "dcgan")]
    words = [*sources, "--ruler", str(checkpoints["ruler"]), "--dataset", "embedded:digits", "--num_images", "150"]
    words += ["--draws", "2"]
    assert command([*words, "--output", str(tmp_path), "--use_cpu"]) == 0
    record = json.loads((tmp_path / "results.json").read_text())
    ruler = open_ruler(str(checkpoints["ruler"]))
    assert record["ruler"]["fingerprint"] == ruler.fingerprint and record["ruler"]["generated_images"] == 150
    assert record["ruler"]["real_images"] == 150 and record["image_format"] == "pixels"
    rows = {row["name"]: row for row in record["generators"]}
    assert set(rows) == {sources[0], sources[1], "dcgan-mnist-seed2", generators.REAL}
    assert rows["dcgan-mnist-seed2"]["images_seen"] == 4200
    dcgan = load_generator(sources[2], CPU)
    assert rows["dcgan-mnist-seed2"]["fingerprint"] == fingerprint(dcgan.model)
    for row in rows.values():
        assert {"fid_vit", "kid_vit", "is_vit", "diversity_ratio"} <= set(row["metrics"])
    real = real_images(dcgan, DIGITS, "test", 150)["images"]
    first, second = (
        frechet_distance(ruler.read(draw(dcgan, 150, seed)).features, ruler.read(real).features) for seed in (0, 1)
    )
    row = rows["dcgan-mnist-seed2"]
    assert [drawn["fid_vit"] for drawn in row["draws"]] == pytest.approx([first, second], rel=1e-6)
    assert row["metrics"]["fid_vit"] == pytest.approx((first + second) / 2, rel=1e-6)
    assert row["spread"]["fid_vit"] == pytest.approx(abs(first - second) / 2**0.5, rel=1e-4) and first != second
    assert rows[generators.REAL]["spread"] is None and len(rows[generators.REAL]["draws"]) == 1
    assert min(rows, key=lambda name: rows[name]["metrics"]["fid_vit"]) == generators.REAL

    text = (tmp_path / "table.md").read_text()
    assert text.splitlines()[2].startswith(f"| {generators.REAL} |"), "the best first"
    assert "over 2 draws" in text and f" ± {row['spread']['fid_vit']:.2g} |" in text
    assert "FID (vit)" in text and ruler.fingerprint in text and "4,200" in text
    assert "copies" not in text
    record["note"] = "JPEG copies"
    assert "`embedded:digits` (JPEG copies)" in table(record)


def test_what_cannot_take_part_is_refused_in_words(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    dqn = find_paper("dqn")
    dqn.model_class(dqn.config_class.from_preset("tiny")).save_pretrained(tmp_path / "dqn")
    with pytest.raises(UserError, match="'paper-dqn', which draws no images"):
        load_generator(str(tmp_path / "dqn"), CPU)
    gan = find_paper("gan")
    gan.model_class(gan.config_class.from_preset("tiny")).save_pretrained(tmp_path / "gan")
    with pytest.raises(UserError, match="no preprocessor_config.json"):
        load_generator(str(tmp_path / "gan"), CPU)
    with pytest.raises(UserError, match="There is nothing to measure"):
        command([])
    with pytest.raises(UserError, match="needs --ruler"):
        command([str(checkpoints["gan"]), "--dataset", "embedded:digits"])
    with pytest.raises(UserError, match="at least 2"):
        command([str(checkpoints["gan"]), "--dataset", "embedded:digits", "--ruler", "x/y", "--num_images", "1"])
    with pytest.raises(UserError, match="--draws must be at least 1"):
        command([str(checkpoints["gan"]), "--dataset", "embedded:digits", "--ruler", "x/y", "--draws", "0"])


def test_the_table_of_this_checkout_is_up_to_date() -> None:
    assert command(["--check"], Path(__file__).parents[1]) == 0


def test_the_readme_is_filled_from_the_records(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    readme = tmp_path / "hf_papers" / "papers" / "dcgan" / "README.md"
    readme.parent.mkdir(parents=True)
    readme.write_text("before\n\n<!-- generators -->\n<!-- /generators -->\n\nafter\n")
    assert command(["--table"], tmp_path) == 0
    assert "Not run yet." in readme.read_text()
    words = [str(checkpoints["gan"]), "--ruler", str(checkpoints["ruler"]), "--dataset", "embedded:digits"]
    assert command([*words, "--num_images", "60", "--draws", "1", "--table", "--use_cpu"], tmp_path) == 0
    assert (tmp_path / "model_cards" / "generators" / "embedded-digits" / "results.json").is_file()
    assert "FID (vit)" in readme.read_text() and readme.read_text().startswith("before")
    readme.write_text(readme.read_text().replace("FID (vit)", "FID"))
    assert command(["--check"], tmp_path) == 1

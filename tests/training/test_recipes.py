"""Recipes and the one flat namespace of options over them."""

from pathlib import Path

import pytest

from hf_papers.cli import parse_overrides
from hf_papers.errors import UserError
from hf_papers.registry import papers
from hf_papers.training.recipe import coerce, difference, load_recipe, load_run_recipe, option_types
from tests.training.toy import toy_recipe


REAL = [key for key in papers() if key != "toy"]
SHIPPED = [(key, name) for key in REAL for name in papers()[key].recipes]


@pytest.mark.parametrize("paper, name", SHIPPED)
def test_every_shipped_recipe_is_valid_and_says_what_it_costs(paper, name):
    recipe = load_recipe(paper, name)
    assert recipe.description and recipe.estimate
    for band in recipe.expected.values():
        assert band and set(band) <= {"min", "max"}
    for claim in recipe.reference.values():
        assert set(claim) >= {"value", "source"}


@pytest.mark.parametrize("paper", REAL)
def test_every_paper_has_an_embedded_and_a_paper_recipe(paper):
    assert {"embedded", "paper"} <= set(papers()[paper].recipes)
    embedded = load_recipe(paper, "embedded")
    assert embedded.expected, "an embedded run must have a band to land in"
    assert (embedded.data.dataset or "embedded:").startswith("embedded:"), "the embedded recipe needs no network"


@pytest.mark.parametrize("paper", REAL)
def test_an_option_name_means_one_thing(paper):
    names = [name for section in option_types(papers()[paper]).values() for name in section]
    assert sorted(names) == sorted(set(names))


def test_a_resolved_recipe_comes_back_from_its_file(tmp_path):
    recipe = load_recipe("vae", "mnist", {"latent_size": "7", "columns": "image=img", "max_grad_norm": "5"})
    recipe.save(tmp_path / "recipe.yaml")
    again = load_run_recipe(tmp_path)
    assert again.to_dict() == recipe.to_dict()
    assert again.model["latent_size"] == 7 and again.data.columns == {"image": "img"}
    assert difference(recipe, again) == []


@pytest.mark.parametrize("paper, name", SHIPPED)
def test_no_shipped_recipe_differs_from_itself_after_a_round_trip(tmp_path, paper, name):
    recipe = load_recipe(paper, name)  # a tuple of the config that came back as a list once refused every resume
    recipe.save(tmp_path / "recipe.yaml")
    assert difference(load_run_recipe(tmp_path), recipe) == []


def test_the_difference_names_only_what_changes_results(tmp_path):
    recipe = toy_recipe(tmp_path, width=3)
    other = toy_recipe(tmp_path / "elsewhere", width=4, seed=5, logging_steps=3)
    assert difference(recipe, other) == ["width: 3 in the run, 4 now", "seed: 0 in the run, 5 now"]


@pytest.mark.parametrize(
    "call, sentence",
    [
        (("vea",), "There is no paper 'vea'. Did you mean 'vae'?"),
        (("vae", "mnits"), "has no recipe 'mnits'. Did you mean 'mnist'?"),
        (
            ("vae", "embedded", {"learning_rat": "1"}),
            "no option --learning_rat for 'vae'. Did you mean 'learning_rate'?",
        ),
        (("vae", "embedded", {"latent_sise": "1"}), "Did you mean 'latent_size'?"),
        (("vae", "embedded", {"learning_rate": "fast"}), "learning_rate must be a number, not 'fast'"),
        (("vae", "embedded", {"max_steps": "1.5"}), "max_steps must be a whole number, not '1.5'"),
        (("vae", "embedded", {"max_steps": "-3"}), "max_steps must be positive"),
        (("vae", "embedded", {"optimizer": "adm"}), "optimizer cannot be 'adm'. Did you mean 'adam'?"),
        (("vae", "embedded", {"streaming": "maybe"}), "streaming must be true or false"),
        (("vae", "embedded", {"latent_size": "0"}), "latent_size"),
        (("vae", "embedded", {"adam_beta1": "1.0"}), "adam_beta1 must lie in"),
        (("vae", "embedded", {"push_to_hub": "true"}), "--hub_model_id"),
        (("vae", "nowhere.yaml"), "no recipe file nowhere.yaml"),
    ],
)
def test_what_is_wrong_is_one_sentence_with_the_nearest_right_word(call, sentence):
    with pytest.raises(UserError) as caught:
        load_recipe(*call)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_recipe_file_with_a_wrong_section_or_key_names_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("modle: {latent_size: 3}\n")
    with pytest.raises(UserError, match="no section 'modle'. Did you mean 'model'"):
        load_recipe("vae", str(path))
    path.write_text("training: {latent_size: 3}\n")
    with pytest.raises(UserError, match="section 'training' has no option 'latent_size'"):
        load_recipe("vae", str(path))


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a run: it has no recipe.yaml"):
        load_run_recipe(Path(tmp_path))


@pytest.mark.parametrize(
    "text, kind, value",
    [
        ("1e-3", float, 1e-3),
        ("3", float | None, 3.0),
        ("none", int | None, None),
        ("0.0", float | int, 0),
        ("a,b", list[str], ["a", "b"]),
        ("1,2", list[int] | tuple[int, ...], [1, 2]),
        ("low=-0.1,high=2", dict[str, float], {"low": -0.1, "high": 2.0}),
        ("true", bool, True),
        ("7", str | None, "7"),
    ],
)
def test_text_becomes_the_annotated_type(text, kind, value):
    result = coerce(text, kind, "name")
    assert result == value and type(result) is type(value)


def test_options_are_read_in_every_spelling():
    words = ["--learning-rate", "1e-4", "--latent_size=3", "--no_streaming", "--use_cpu", "--shift", "-1"]
    assert parse_overrides(words) == {
        "learning_rate": "1e-4",
        "latent_size": "3",
        "streaming": "false",
        "use_cpu": "true",
        "shift": "-1",
    }
    with pytest.raises(UserError, match="'vae' stands alone"):
        parse_overrides(["vae"])

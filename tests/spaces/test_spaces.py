"""Every Space in a real browser: its main control changes its result, it fits a phone, and it answers nonsense in words."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from hf_papers.registry import find_paper
from tests.spaces.conftest import ROOT, Visit, offline_environment


SPACES = sorted(path.parent.name for path in (ROOT / "spaces").glob("*/app.py"))
ENDPOINTS = {
    "vae": {"/decode", "/sample", "/reconstruct", "/interpolate", "/latent_map"},
    "gan": {"/sample", "/walk", "/judge", "/nearest_real"},
    "dqn": {"/run_episode", "/map_survival"},
    "lenet": {"/classify", "/disturb"},
    "bert": {"/fill_blanks", "/classify", "/judge_pair", "/attention", "/map_sentences"},
}
TABS = {
    "vae": {"Knobs": "decoded", "Your digit": None, "Between two": "latent-way", "Map": "map"},
    "gan": {"Sample": "samples", "Walk": "strip", "Critic": "worst", "Copying?": "pairs"},
    "dqn": {"One episode": None, "Where it holds": None},
    "lenet": {"Layer by layer": "codes", "Disturb it": "moved"},
    "bert": {"Fill in": None, "Sentiment": None, "Next?": None, "Attention": None, "Map": None},
}


def set_slider(visit: Visit, name: str, value: float) -> None:
    """Type into the number beside a slider and leave it, as a visitor does."""
    field = visit.page.locator(f"#{name} input[type=number]")
    field.fill(str(value))
    field.press("Enter")


def set_number(visit: Visit, name: str, value: str) -> None:
    field = visit.page.locator(f"#{name} input")
    field.fill(value)
    field.press("Enter")


def draw_seven(visit: Visit) -> None:
    """A seven, with the mouse, on the drawing pad."""
    canvas = visit.page.locator("#pad canvas")
    canvas.wait_for()
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    points = [(0.3, 0.25), (0.7, 0.25), (0.5, 0.75)]
    x, y = ([box["x"] + box["width"] * a for a, _ in points], [box["y"] + box["height"] * b for _, b in points])
    mouse = visit.page.mouse
    mouse.move(x[0], y[0])
    mouse.down()
    for a, b in zip(x[1:], y[1:], strict=True):
        mouse.move(a, b, steps=12)
    mouse.up()


# --------------------------------------------------------------------------------------------- in the browser


def test_vae_knobs_change_the_image(visit: Callable[..., Visit]) -> None:
    page = visit("vae")
    first = page.picture("decoded")
    set_slider(page, "knob0", 2.5)
    turned = page.wait_for_change("decoded", first)
    page.page.get_by_role("button", name="Draw a new sample").click()
    page.wait_for_change("decoded", turned)
    assert page.page.locator("#seed input").input_value() == "1"
    page.screenshot("vae-knobs")
    assert page.foreign_requests() == [] and page.problems == []


def test_vae_describes_a_drawn_digit(visit: Callable[..., Visit]) -> None:
    page = visit("vae")
    page.open_tab("Your digit")
    draw_seven(page)
    page.page.get_by_role("button", name="Redraw").click()
    page.picture("posterior")
    terms = page.page.locator("#terms .value")
    elbo, reconstruction, kl = (float(term) for term in terms.all_inner_texts())
    assert elbo == pytest.approx(reconstruction - kl, abs=0.11)
    page.screenshot("vae-your-digit")
    page.open_tab("Between two")
    before = page.picture("latent-way")
    page.page.locator("#second input").click()
    page.page.get_by_role("option", name="my digit").click()
    page.wait_for_change("latent-way", before)
    page.screenshot("vae-between-two")
    assert page.foreign_requests() == [] and page.problems == []


def test_vae_asks_for_a_digit_when_there_is_none(visit: Callable[..., Visit]) -> None:
    page = visit("vae")
    page.open_tab("Your digit")
    draw_seven(page)
    page.page.get_by_role("button", name="Wipe").click()
    page.page.get_by_role("button", name="Redraw").click()
    assert "There is no digit in the picture" in page.complaint()
    page.screenshot("vae-wrong-input")


def test_vae_takes_an_example_and_refuses_a_file_that_is_no_picture(
    visit: Callable[..., Visit], tmp_path: Path
) -> None:
    page = visit("vae")
    page.open_tab("Your digit")
    page.page.get_by_role("button", name="Example").click()
    page.picture("posterior")
    ink = "() => document.querySelector('#pad canvas').getContext('2d').getImageData(0, 0, 280, 280).data.some(v => v < 64)"
    page.page.wait_for_function(ink)
    page.screenshot("vae-example")
    wrong = tmp_path / "notes.png"
    wrong.write_text("This is text, whatever it is called.")
    page.page.locator("input[type=file]").last.set_input_files(wrong)
    assert "not a picture that can be read" in page.complaint()


def test_gan_makes_other_images_from_another_seed(visit: Callable[..., Visit]) -> None:
    page = visit("gan")
    first = page.picture("samples")
    set_number(page, "seed", "5")
    page.wait_for_change("samples", first)
    assert re.search(r"\d+ of 10", page.page.locator("#sample-facts").inner_text())
    page.screenshot("gan-sample")
    page.open_tab("Walk")
    here = page.picture("here")
    set_slider(page, "position", 0.9)
    page.wait_for_change("here", here)
    page.screenshot("gan-walk")
    page.open_tab("Critic")
    assert page.picture("best") != page.picture("worst")
    page.screenshot("gan-critic")
    assert page.foreign_requests() == [] and page.problems == []


def test_gan_refuses_a_negative_seed_in_words(visit: Callable[..., Visit]) -> None:
    page = visit("gan")
    page.picture("samples")
    set_number(page, "seed", "-1")
    assert "The seed must be a whole number from 0" in page.complaint()
    page.screenshot("gan-wrong-input")


def test_dqn_plays_another_episode_after_a_shove(visit: Callable[..., Visit]) -> None:
    page = visit("dqn")
    episode = page.page.locator("#episode svg.episode")
    episode.wait_for()
    upright = episode.get_attribute("aria-label")
    set_slider(page, "angle", 10)
    page.page.get_by_role("button", name="Run an episode").click()
    page.page.wait_for_function(
        "before => document.querySelector('#episode svg.episode').getAttribute('aria-label') !== before", arg=upright
    )
    assert "10" in page.page.locator("#angle input[type=number]").input_value()
    page.screenshot("dqn-episode")
    page.open_tab("Where it holds")
    page.page.get_by_role("button", name="Play 441 episodes").click()
    page.page.locator("#map svg.map").wait_for()
    assert page.page.locator("#map svg.map title").count() == 441
    page.screenshot("dqn-where-it-holds")
    assert page.foreign_requests() == [] and page.problems == []


def test_dqn_refuses_half_a_seed_in_words(visit: Callable[..., Visit]) -> None:
    page = visit("dqn")
    page.page.locator("#episode svg.episode").wait_for()
    set_number(page, "seed", "2.5")
    assert "The seed must be a whole number from 0" in page.complaint()
    page.screenshot("dqn-wrong-input")


def test_lenet_lights_up_for_a_drawn_digit(visit: Callable[..., Visit]) -> None:
    page = visit("lenet")
    before = {name: page.picture(name) for name in ("seen", "c1", "s2", "c3", "s4", "c5", "f6")}
    assert page.page.locator("#answer .meter").count() == 5 and page.picture("codes")
    assert page.page.locator("#distances .value").count() == 3
    page.page.get_by_role("button", name="Wipe").click()
    draw_seven(page)
    page.page.get_by_role("button", name="Read it").click()
    for name, picture in before.items():
        page.wait_for_change(name, picture)
    page.screenshot("lenet-layers")
    assert page.foreign_requests() == [] and page.problems == []


def test_lenet_sees_a_turned_digit(visit: Callable[..., Visit]) -> None:
    page = visit("lenet")
    page.picture("codes")
    page.open_tab("Disturb it")
    straight = page.picture("moved")
    set_slider(page, "angle", 90)
    page.wait_for_change("moved", straight)
    assert page.page.locator("#moved-answer .meter").count() == 5
    page.screenshot("lenet-disturbed")


def test_lenet_says_what_is_wrong_with_a_picture(visit: Callable[..., Visit], tmp_path: Path) -> None:
    page = visit("lenet")
    page.picture("codes")
    page.page.get_by_role("button", name="Wipe").click()
    page.page.get_by_role("button", name="Read it").click()
    assert "There is no digit in the picture" in page.complaint()
    wrong = tmp_path / "notes.png"
    wrong.write_text("This is text, whatever it is called.")
    page.page.locator("input[type=file]").last.set_input_files(wrong)
    page.page.get_by_text("not a picture that can be read").wait_for()


def test_bert_fills_blanks(visit: Callable[..., Visit]) -> None:
    page = visit("bert")
    answer = page.page.locator("#blank-answer")
    answer.locator(".meter").first.wait_for()
    field = page.page.locator("#blank-text textarea")
    field.fill("the ___ was [MASK] <b>{{value}}</b> ${1+1} 你好")
    page.page.get_by_role("button", name="Guess").click()
    answer.get_by_text("Blank 2").wait_for()
    assert answer.locator(".meter").count() == 10 and answer.locator("mark").count() == 2
    text = answer.inner_text()
    assert "<b>{{value}}</b> ${1+1}" in text, "what a visitor types is text"
    assert "read as [UNK]" in text and "你" in text and "Each blank is guessed for itself" in text
    page.screenshot("bert-blanks")
    page.page.get_by_role("button", name="She opened the ___").click()
    page.page.wait_for_function("document.querySelectorAll('#blank-answer .meter').length === 5")
    assert field.input_value().startswith("She opened the")
    assert page.foreign_requests() == [] and page.problems == []


def test_bert_answers_in_every_tab(visit: Callable[..., Visit]) -> None:
    page = visit("bert", width=390, height=844)
    page.open_tab("Sentiment")
    page.page.locator("#sentiment .meter").nth(1).wait_for()
    assert "negative" in page.page.locator("#sentiment").inner_text()
    page.open_tab("Next?")
    page.page.locator("#next .meter").nth(1).wait_for()
    page.open_tab("Attention")
    page.page.locator("#looks td").nth(20).wait_for()
    assert page.overflow() <= 0, "a wide table scrolls in its own frame"
    before = page.page.locator("#looks").inner_html()
    page.page.locator("#layer input").click()
    page.page.get_by_role("option", name="layer 2").click()
    page.page.wait_for_function("before => document.querySelector('#looks').innerHTML !== before", arg=before)
    page.screenshot("bert-phone-looks")
    page.open_tab("Map")
    page.page.locator("#map circle").nth(11).wait_for()
    assert page.page.locator("#map ol li").count() == 12 and page.overflow() <= 0
    page.screenshot("bert-phone-map")
    assert page.foreign_requests() == [] and page.problems == []


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "There is no text"), ("no blank here", "There is no blank"), ("[MASK] ___", "nothing but blanks")],
)
def test_bert_says_what_is_missing(visit: Callable[..., Visit], text: str, words: str) -> None:
    page = visit("bert")
    page.page.locator("#blank-answer .meter").first.wait_for()
    page.page.locator("#blank-text textarea").fill(text)
    page.page.get_by_role("button", name="Guess").click()
    assert words in page.complaint()


@pytest.mark.parametrize("key", SPACES)
def test_fits_a_phone(visit: Callable[..., Visit], key: str) -> None:
    page = visit(key, width=390, height=844)
    for tab, shown in TABS[key].items():
        page.open_tab(tab)
        if shown is not None:
            page.picture(shown)
        assert page.overflow() <= 0, f"'{tab}' is {page.overflow()} pixels wider than a phone"
        page.screenshot(f"{key}-phone-{tab.lower().strip('?').replace(' ', '-')}")
    header = page.page.locator(".paper-header a")
    assert header.get_attribute("href") == find_paper(key).source[0]


# --------------------------------------------------------------------------------------------- without a browser


@pytest.mark.parametrize("key", SPACES)
def test_serves_only_the_endpoints_it_means_to(serve: Callable[[str], Any], key: str) -> None:
    from gradio_client import Client

    client = Client(serve(key).url, verbose=False)
    assert set(client.view_api(return_format="dict", print_info=False)["named_endpoints"]) == ENDPOINTS[key]


def test_api_answers_and_refuses_in_words(serve: Callable[[str], Any]) -> None:
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(serve("dqn").url, verbose=False)
    episode, summary = client.predict(0.0, 0.0, 0.0, 3, api_name="/run_episode")
    again, _ = client.predict(0.0, 0.0, 0.0, 3, api_name="/run_episode")
    assert "<svg" in episode and "max Q" in summary
    assert episode == again
    with pytest.raises(AppError, match="whole number"):
        client.predict(0.0, 0.0, 0.0, -3, api_name="/run_episode")


def test_bert_answers_calls_in_numbers(serve: Callable[[str], Any]) -> None:
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(serve("bert").url, verbose=False)
    _, blanks = client.predict("the ___ was ___", api_name="/fill_blanks")
    assert [len(candidates) for candidates in blanks] == [5, 5]
    assert all(0 < share <= 1 for candidates in blanks for _, share in candidates)
    _, classes = client.predict("a warm film", api_name="/classify")
    assert list(classes) == ["negative", "positive"] and sum(classes.values()) == pytest.approx(1, abs=1e-4)
    _, answer = client.predict("a film\nthe door\nthe letter", "PCA", api_name="/map_sentences")
    assert len(answer["places"]) == 3 and all(1 <= number <= 3 for number in answer["nearest"])
    with pytest.raises(AppError, match="at least two sentences"):
        client.predict("one line", "PCA", api_name="/map_sentences")
    with pytest.raises(AppError, match="layer 9 is not in the list"):
        client.predict("a film", "layer 9", "head 1", api_name="/attention")


@pytest.mark.parametrize("key", SPACES)
def test_without_a_checkpoint_it_says_how_to_get_one(tmp_path: Path, key: str) -> None:
    app = shutil.copyfile(ROOT / "spaces" / key / "app.py", tmp_path / "app.py")
    ended = subprocess.run(
        [sys.executable, str(app)], env=offline_environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 2
    assert f"hf-papers train {key}" in ended.stderr and "MODEL_ID" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("key", SPACES)
def test_metadata_and_requirements_are_what_hugging_face_needs(key: str) -> None:
    folder = ROOT / "spaces" / key
    metadata = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert metadata["sdk"] == "gradio" and metadata["app_file"] == "app.py"
    assert metadata["sdk_version"] == version("gradio")
    assert 0 < len(metadata["title"]) <= 60 and 0 < len(metadata["short_description"]) <= 60
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    for line in (line for line in lines if line and not line.startswith("-")):
        requirement = Requirement(line)
        installed = version(requirement.name).split("+")[0]
        assert installed in requirement.specifier, f"{line}, but tested with {installed}"

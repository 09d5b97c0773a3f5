"""DCGAN's Space in a browser, by calls, and its arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hf_papers.errors import UserError
from hf_papers.registry import find_paper
from tests.spaces.common import SpaceTests, Visit, load_app, save_random_image_model


class TestDCGAN(SpaceTests):
    key = "dcgan"
    tabs = {"Sample": "samples", "Walk": "strip", "Arithmetic": "equation", "Film": "frame"}
    endpoints = {"/sample", "/walk", "/choices", "/arithmetic", "/film_frame"}

    @classmethod
    def save_checkpoint(cls, folder: Path) -> None:
        """A tiny pair, and three frames of noise as the film of its training, the last one of the published model."""
        save_random_image_model(folder, cls.key, "tiny")
        dice = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (3, 25, 3, 16, 16), generator=dice, dtype=torch.uint8)
        save_file({"images": images, "steps": torch.tensor([1, 40, -1])}, folder / "film.safetensors")

    # In the browser

    def test_samples_walks_and_plays_its_film(self, visit: Callable[..., Visit]) -> None:
        page = visit()
        first = page.picture("samples")
        page.set_number("seed", "5")
        page.wait_for_change("samples", first)
        assert "%" in page.page.locator("#sample-facts").inner_text()
        page.screenshot("dcgan-sample")
        page.open_tab("Walk")
        here = page.picture("here")
        page.set_slider("position", 0.9)
        page.wait_for_change("here", here)
        page.screenshot("dcgan-walk")
        page.open_tab("Film")
        last = page.picture("frame")
        assert page.picture("film").endswith(".gif")
        page.page.locator("#moment").get_by_text("the published model").wait_for()
        page.set_slider("number", 1)
        page.wait_for_change("frame", last)
        page.page.locator("#moment").get_by_text("after 1 step").wait_for()
        page.screenshot("dcgan-film")
        assert page.foreign_requests() == [] and page.problems == []

    def test_calculates_with_what_was_chosen(self, visit: Callable[..., Visit]) -> None:
        page = visit()
        page.open_tab("Arithmetic")
        page.picture("choices")
        suggested = page.picture("equation")
        assert page.page.locator("#term0 .token").count() == 3, "three images a term are chosen for the visitor"
        page.screenshot("dcgan-arithmetic")
        page.page.locator("#term0 .token-remove").first.click()
        chosen = page.wait_for_change("equation", suggested)
        page.set_number("sum-seed", "9")
        page.wait_for_change("equation", chosen)
        page.page.wait_for_function("document.querySelectorAll('#term0 .token').length === 3")
        assert page.foreign_requests() == [] and page.problems == []

    def test_refuses_in_words(self, visit: Callable[..., Visit]) -> None:
        page = visit()
        page.picture("samples")
        page.set_number("seed", "-1")
        assert "The seed must be a whole number from 0" in page.complaint()
        page.screenshot("dcgan-wrong-input")

    def test_answers_calls_and_refuses_empty_terms(self, client: Any) -> None:
        from gradio_client.exceptions import AppError

        _, *terms = client.predict(3, api_name="/choices")
        assert [len(set(term)) for term in terms] == [3, 3, 3] and len({*terms[0], *terms[1], *terms[2]}) == 9
        equation, around = client.predict(3, *terms, api_name="/arithmetic")
        again, _ = client.predict(3, *terms, api_name="/arithmetic")
        assert Path(equation).read_bytes() == Path(again).read_bytes() != Path(around).read_bytes()
        with pytest.raises(AppError, match="needs between one and six images"):
            client.predict(3, [], terms[1], terms[2], api_name="/arithmetic")
        with pytest.raises(AppError, match="99.*not in the list of choices"):
            client.predict(3, [99], terms[1], terms[2], api_name="/arithmetic")
        with pytest.raises(AppError, match="greater than maximum value 3"):
            client.predict(4, api_name="/film_frame")

    # Without a server

    def test_studio_cuts_the_margin_and_sums_as_the_paper_does(self) -> None:
        app, paper = load_app("dcgan"), find_paper("dcgan")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = paper.model_class(paper.config_class.from_preset("tiny")).eval()
        for parameter in model.generator.parameters():
            parameter.data.mul_(3.0)
        studio = app.Studio(model, margin=2)
        latents = studio.latents(4, app.CHOICE)
        assert torch.equal(studio.draw(latents), model.decode(latents)[..., 2:-2, 2:-2])
        means, around = studio.calculate(4, [[1, 2, 3], [4], [5, 6]])
        result = latents[:3].mean(0) - latents[3] + latents[4:6].mean(0)
        torch.testing.assert_close(around[4], studio.draw(result[None])[0])
        torch.testing.assert_close(means[0], studio.draw(latents[:3].mean(0)[None])[0])
        assert len(around) == 9 and not torch.allclose(around[0], around[4], atol=1e-4)

        plus, minus, base = studio.suggestion(4)
        brightness = studio.draw(latents).flatten(1).mean(1)
        assert {*plus} == {*(brightness.argsort(descending=True)[:3] + 1).tolist()}
        assert {*minus, *base} == {*(brightness.argsort()[:6] + 1).tolist()}
        page = app.numbered(studio.draw(latents))
        assert page.width > 500 and page.height > 300

    def test_film_is_found_and_damage_is_named(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        app = load_app("dcgan")
        monkeypatch.setenv("MODEL_ID", str(checkpoint))
        film = app.Film.find()
        assert [film.title(number) for number in range(3)] == ["after 1 step", "after 40 steps", "the published model"]
        with Image.open(film.gif) as gif:
            assert gif.n_frames == 3 and gif.width == film.frame(0, 260).width
        monkeypatch.setenv("MODEL_ID", str(tmp_path))
        assert app.Film.find() is None
        save_file({"images": torch.zeros(3)}, tmp_path / "film.safetensors")
        with pytest.raises(UserError, match="is no film"):
            app.Film.find()

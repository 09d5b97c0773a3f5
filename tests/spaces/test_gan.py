"""GAN's Space in a browser, and its arithmetic."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hf_papers.errors import UserError
from hf_papers.hub.checkpoints import load_strict
from hf_papers.registry import find_paper
from tests.spaces.common import ROOT, SpaceTests, Visit, load_app, save_random_image_model


class TestGAN(SpaceTests):
    key = "gan"
    tabs = {"Sample": "samples", "Walk": "strip", "Critic": "worst", "Copying?": "pairs"}
    endpoints = {"/sample", "/walk", "/judge", "/nearest_real"}

    @classmethod
    def save_checkpoint(cls, folder: Path) -> None:
        save_random_image_model(folder, cls.key, "tiny")

    # In the browser

    def test_makes_other_images_from_another_seed(self, visit: Callable[..., Visit]) -> None:
        page = visit()
        first = page.picture("samples")
        page.set_number("seed", "5")
        page.wait_for_change("samples", first)
        assert re.search(r"\d+ of 10", page.page.locator("#sample-facts").inner_text())
        page.screenshot("gan-sample")
        page.open_tab("Walk")
        here = page.picture("here")
        page.set_slider("position", 0.9)
        page.wait_for_change("here", here)
        page.screenshot("gan-walk")
        page.open_tab("Critic")
        assert page.picture("best") != page.picture("worst")
        page.screenshot("gan-critic")
        assert page.foreign_requests() == [] and page.problems == []

    def test_refuses_a_negative_seed_in_words(self, visit: Callable[..., Visit]) -> None:
        page = visit()
        page.picture("samples")
        page.set_number("seed", "-1")
        assert "The seed must be a whole number from 0" in page.complaint()
        page.screenshot("gan-wrong-input")

    # Without a server

    def test_finds_real_images_of_its_size(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from safetensors.torch import save_file

        app, model = load_app("gan"), load_strict(find_paper("gan"), checkpoint)
        monkeypatch.setenv("MODEL_ID", str(checkpoint))
        real = app.find_real_images(model)
        assert real.images.shape[1:] == (1, 8, 8) and len(real.images) == len(real.labels) > 1000
        assert 0.0 <= real.images.min() < 0.01 < 0.99 < real.images.max() <= 1.0
        monkeypatch.setenv("MODEL_ID", str(tmp_path))
        save_file(
            {"images": torch.zeros(3, 5, 5, dtype=torch.uint8), "labels": torch.arange(3)},
            tmp_path / "reference.safetensors",
        )
        with pytest.raises(UserError, match="images of 5 pixels"):
            app.find_real_images(model)

    def test_reference_takes_as_many_of_each_class(self, checkpoint: Path, tmp_path: Path) -> None:
        from safetensors.torch import load_file

        spec = importlib.util.spec_from_file_location("space_gan_reference", ROOT / "spaces" / "gan" / "reference.py")
        reference = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(reference)
        shutil.copyfile(checkpoint / "preprocessor_config.json", tmp_path / "preprocessor_config.json")
        arguments = ["--checkpoint", str(tmp_path), "--dataset", "embedded:digits", "--per_class", "3"]
        assert reference.main(arguments) == 0
        tensors = load_file(tmp_path / "reference.safetensors")
        assert tensors["images"].shape == (30, 8, 8) and tensors["images"].dtype == torch.uint8
        assert tensors["labels"].bincount().tolist() == [3] * 10

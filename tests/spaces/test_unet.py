"""U-Net's Space in a browser and by calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_papers.registry import find_paper
from tests.spaces.common import SpaceTests, Visit


class TestUNet(SpaceTests):
    key = "unet"
    tabs = {"Segment": "found-with", "Feature maps": "maps"}
    endpoints = {"/segment", "/example", "/threshold", "/feature_maps"}

    @classmethod
    def save_checkpoint(cls, folder: Path) -> None:
        """A tiny U-Net and its processor, and in `no-skips` its twin without skip connections."""
        paper = find_paper(cls.key)
        for place, skips in ((folder, True), (folder / "no-skips", False)):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = paper.model_class(paper.config_class.from_preset("tiny-padded", skip_connections=skips))
            model.save_pretrained(place)
            paper.image_processor_class(depth=1, padding="same").save_pretrained(place)

    @classmethod
    def variables(cls, folder: Path) -> dict[str, str]:
        return {"MODEL_ID": str(folder), "NO_SKIPS_ID": str(folder / "no-skips")}

    def test_draws_every_cell_and_moves_the_threshold(self, visit: Callable[..., Visit]) -> None:
        page = visit()
        first = page.picture("found-with")
        assert page.picture("found-without") != first
        assert "cells there are" in page.page.locator("#numbers").inner_text()
        page.set_slider("threshold", 0.9)
        moved = page.wait_for_change("found-with", first)
        page.page.get_by_role("button", name="A large example").click()
        large = page.wait_for_change("found-with", moved)
        assert "tiles for 640 × 640 pixels" in page.page.locator("#numbers").inner_text()
        page.page.get_by_label("Show where the tiles meet").check()
        page.wait_for_change("found-with", large)
        page.screenshot("unet-segment")
        original = page.picture("original")
        page.page.get_by_role("button", name="Another example").click()
        page.wait_for_change("original", original)
        page.open_tab("Feature maps")
        maps = page.picture("maps")
        page.page.locator("#stage input").click()
        page.page.get_by_role("option", name="bottom 1").click()
        page.wait_for_change("maps", maps)
        assert "pixels each" in page.page.locator("#sizes").inner_text()
        page.screenshot("unet-feature-maps")
        assert page.foreign_requests() == [] and page.problems == []

    def test_takes_a_picture_of_any_kind_and_size(self, visit: Callable[..., Visit], tmp_path: Path) -> None:
        page = visit()
        page.picture("found-with")
        noise = np.random.default_rng(0).integers(0, 65_535, (300, 420)).astype(np.uint16)
        Image.fromarray(noise).save(tmp_path / "deep.png")
        Image.new("CMYK", (1, 1)).save(tmp_path / "pixel.jpg")
        (tmp_path / "cut.png").write_bytes((tmp_path / "deep.png").read_bytes()[:3000])
        upload = page.page.locator("input[type=file]")
        for name, size in (("deep.png", "420 × 300"), ("pixel.jpg", "1 × 1")):
            upload.set_input_files(tmp_path / name)
            page.page.locator("#numbers").get_by_text(size).wait_for()
        upload.set_input_files(tmp_path / "cut.png")
        assert "not a picture that can be read" in page.complaint()

    def test_answers_calls(self, client: Any, tmp_path: Path) -> None:
        from gradio_client import handle_file
        from gradio_client.exceptions import AppError

        Image.new("RGBA", (70, 50), "grey").save(tmp_path / "cells.png")
        *pictures, numbers = client.predict(handle_file(tmp_path / "cells.png"), 200, 0.5, False, api_name="/segment")
        assert "140 × 100" in numbers and len(pictures) == 3
        *_, example = client.predict(100, 0.5, True, api_name="/example")
        assert "Rand error" in example
        with pytest.raises(AppError, match="maximum value 300"):
            client.predict(handle_file(tmp_path / "cells.png"), 1000, 0.5, False, api_name="/segment")
        with pytest.raises(AppError, match="down 7 is not in the list"):
            client.predict("down 7", "without skip connections", api_name="/feature_maps")

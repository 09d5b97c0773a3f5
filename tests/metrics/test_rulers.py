"""Rulers: any image classifier measures, under its own name and fingerprint; what cannot be a ruler is refused in words."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil
from transformers.modeling_outputs import ImageClassifierOutput

from hf_papers import find_paper, register_all
from hf_papers.errors import UserError
from hf_papers.metrics import generative_metrics, open_ruler, ruler_modes
from hf_papers.metrics.generative import describe_measurement
from hf_papers.metrics.rulers import ClassifierRuler, fingerprint, to_pictures
from hf_papers.registry import papers


def images(count: int, seed: int = 0, channels: int = 1, side: int = 10) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


class TinyClassifier(nn.Module):
    """Two hidden layers and three classes; the second layer is what a ruler reads by default."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(1, 4, 3)
            self.hidden = nn.Linear(4, 5)
            self.output = nn.Linear(5, 3)
        self.config = type("Config", (), {"model_type": "paper-tiny-net"})()

    def forward(self, pixel_values: torch.Tensor, output_hidden_states: bool = False) -> ImageClassifierOutput:
        maps = torch.tanh(self.conv(pixel_values))
        hidden = torch.tanh(self.hidden(maps.mean((2, 3))))
        return ImageClassifierOutput(
            logits=self.output(hidden), hidden_states=(maps, hidden) if output_hidden_states else None
        )


def halve(pictures: list[Image.Image], return_tensors: str) -> dict[str, torch.Tensor]:
    """A processor of its own: half the size, scaled to [-1, 1]."""
    small = [np.asarray(picture.resize((5, 5))) / 127.5 - 1 for picture in pictures]
    return {"pixel_values": torch.tensor(np.stack(small), dtype=torch.float32)[:, None]}


@pytest.fixture
def ruler() -> ClassifierRuler:
    return ClassifierRuler(TinyClassifier(), halve, "somewhere")


def test_every_number_carries_the_name_of_the_ruler(ruler: ClassifierRuler) -> None:
    real, samples = ruler.read(images(300)), ruler.read(images(280, 1) ** 2)
    metrics = generative_metrics(ruler, samples, real)
    assert set(metrics) == {f"{kind}_tiny_net{end}" for kind in ("fid", "kid", "is") for end in ("", "_std")} - {
        "fid_tiny_net_std"
    }
    same = generative_metrics(ruler, ruler.read(images(300, 5)), real)
    assert metrics["fid_tiny_net"] > 5 * same["fid_tiny_net"] > 0
    described = describe_measurement(ruler, len(samples), len(real))
    assert described["fingerprint"] == fingerprint(ruler.model) and described["source"] == "somewhere"
    assert described["generated_images"] == 280 and described["kid_subset_size"] == 280


def test_images_go_through_the_rulers_own_processor(ruler: ClassifierRuler) -> None:
    """Tensors, and the pictures they are made from, are read alike: in 8 bits, by the ruler's resizing and scale."""
    batch = images(7)
    pictures = to_pictures(batch)
    reading, again = ruler.read(batch), ruler.read(iter(pictures))
    assert torch.equal(reading.features, again.features) and torch.equal(reading.logits, again.logits)
    outputs = ruler.model(halve(pictures, "pt")["pixel_values"], output_hidden_states=True)
    torch.testing.assert_close(reading.features, outputs.hidden_states[-1].double())
    torch.testing.assert_close(reading.logits, outputs.logits.double())
    assert reading.features.dtype == torch.float64 and len(reading[2:5]) == 3


def test_the_layer_is_a_number_or_a_module(ruler: ClassifierRuler) -> None:
    model, batch = ruler.model, images(6)
    outputs = model(halve(to_pictures(batch), "pt")["pixel_values"], output_hidden_states=True)
    for layer, expected in (
        ("-2", outputs.hidden_states[0].mean((2, 3))),
        ("0", outputs.hidden_states[0].mean((2, 3))),
        ("hidden", torch.atanh(outputs.hidden_states[1])),
        ("output", outputs.logits),
    ):
        features = ClassifierRuler(model, halve, "x", layer).read(batch).features
        torch.testing.assert_close(features, expected.double(), rtol=1e-4, atol=1e-5)
    assert not model.hidden._forward_hooks
    with pytest.raises(UserError, match="no layer 'hiden'; it begins with: conv, hidden, output"):
        ClassifierRuler(model, halve, "x", "hiden")
    with pytest.raises(UserError, match="2 hidden states, so there is no layer 7"):
        ClassifierRuler(model, halve, "x", "7").read(batch)


def test_another_training_is_another_fingerprint() -> None:
    assert fingerprint(TinyClassifier(0)) == fingerprint(TinyClassifier(0)) != fingerprint(TinyClassifier(1))
    renamed = TinyClassifier(0)
    renamed.other = renamed.output
    assert fingerprint(renamed) != fingerprint(TinyClassifier(0))


def test_modes_are_counted_by_the_rulers_verdicts(ruler: ClassifierRuler) -> None:
    reading = ruler.read(images(50))
    reading.logits[:] = 0
    reading.logits[:40, 0], reading.logits[40:, 2] = 5, 5
    modes = ruler_modes(ruler, reading, torch.arange(99) % 3)
    assert modes["modes_covered_tiny_net"] == 2
    assert modes["mode_kl_tiny_net"] == pytest.approx(0.8 * np.log(0.8 * 3) + 0.2 * np.log(0.2 * 3))
    assert ruler_modes(ruler, reading, torch.arange(10)) == {}, "ten classes are not this ruler's three"
    assert ruler_modes(ruler, reading, torch.tensor([0, 1, 5])) == {}


def test_what_is_no_image_or_no_number_is_refused(ruler: ClassifierRuler) -> None:
    with pytest.raises(UserError, match="no images"):
        ruler.read([])
    with pytest.raises(UserError, match="1 or 3"):
        ruler.read(torch.rand(4, 2, 8, 8))
    ruler.model.hidden.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        ruler.read(images(4))


def foreign_classifier(folder: Path) -> ViTForImageClassification:
    """A small image classifier of transformers', with its processor."""
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, image_size=12, patch_size=4,
        num_labels=4,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ViTForImageClassification(config).eval()
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 12, "width": 12}).save_pretrained(folder)
    return model


def test_a_classifier_of_the_hub_can_be_a_ruler(tmp_path: Path) -> None:
    model = foreign_classifier(tmp_path)
    ruler = open_ruler(str(tmp_path))
    assert ruler.name == "vit" and ruler.describe()["layer"] == "-1"
    reading = ruler.read(images(9, channels=3))
    assert reading.features.shape == (9, 8) and reading.logits.shape == (9, 4)
    grey = ruler.read(images(9))
    torch.testing.assert_close(grey.features, ruler.read(images(9).repeat(1, 3, 1, 1)).features)
    assert ruler.fingerprint == fingerprint(model)


def test_a_classifier_of_ours_can_be_a_ruler(tmp_path: Path) -> None:
    auto = "AutoModelForImageClassification"
    paper = next(paper for paper in papers().values() if auto in paper.models and paper.image_processor)
    register_all()
    model = paper.model_classes[auto](paper.config_class.from_preset("tiny"))
    model.save_pretrained(tmp_path)
    paper.image_processor_class().save_pretrained(tmp_path)
    ruler = open_ruler(str(tmp_path))
    assert ruler.name == paper.key and ruler.fingerprint == fingerprint(model)


def test_what_cannot_be_a_ruler_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder ./nowhere"):
        open_ruler("./nowhere")
    gan = find_paper("gan")
    gan.model_class(gan.config_class.from_preset("tiny")).save_pretrained(tmp_path / "gan")
    with pytest.raises(UserError, match="classifies no images"):
        open_ruler(str(tmp_path / "gan"))
    foreign_classifier(tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="no preprocessor_config.json"):
        open_ruler(str(tmp_path / "vit"))
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(UserError, match="no image classifier"):
        open_ruler(str(tmp_path / "strange"))


class FakeInception(nn.Module):
    """Stands in for torch-fidelity's network: its weights are never fetched by a test."""

    def __init__(self, name: str, features_list: list[str]) -> None:
        super().__init__()
        assert name == "inception-v3-compat" and features_list == ["2048", "logits_unbiased"]
        self.weight = nn.Parameter(torch.arange(12.0).view(3, 4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        means = x.float().mean((2, 3))
        return means, means @ self.weight


def install_fidelity(monkeypatch: pytest.MonkeyPatch, network: Any) -> None:
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = network
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_inception_reads_eight_bit_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    install_fidelity(monkeypatch, FakeInception)
    ruler = open_ruler("inception")
    assert ruler.name == "inception" and ruler.describe()["layer"] == "2048"
    reading = ruler.read(images(5))  # grey ones become colour
    torch.testing.assert_close(
        reading.features[:, 0], (images(5) * 255).round().mean((1, 2, 3)).double(), rtol=1e-5, atol=1e-4
    )
    with pytest.raises(UserError, match="layer 2048"):
        open_ruler("inception", "768")


def test_inception_that_cannot_be_had_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(UserError, match="needs torch-fidelity.*Name an image classifier instead"):
        open_ruler("inception")

    def offline(*_: Any) -> None:
        raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>")

    install_fidelity(monkeypatch, offline)
    with pytest.raises(UserError, match="could not be fetched.*name resolution.*Name an image classifier instead"):
        open_ruler("inception")

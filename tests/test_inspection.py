"""`hf-papers info`: shapes, counts and costs, checked against hand arithmetic and a real forward pass."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_papers.errors import UserError
from hf_papers.inspection import Layer, describe, inspect_paper, join_alike
from hf_papers.registry import Paper, find_paper, papers


every_paper = pytest.mark.parametrize("paper", papers().values(), ids=lambda paper: paper.key)


@every_paper
def test_counts_are_the_stated_ones(paper: Paper) -> None:
    found = inspect_paper(paper)
    assert found.published is not None and found.parameters == found.published
    assert {name: stated for name, (_, stated) in found.presets.items() if stated} == paper.parameters
    assert all(count == stated for count, stated in found.presets.values() if stated)
    assert list(found.presets) == list(paper.config_class.presets)


@every_paper
def test_layers_hold_every_parameter(paper: Paper) -> None:
    found = inspect_paper(paper)
    assert sum(layer.parameters * layer.count for layer in found.layers) == found.parameters
    assert all(layer.inputs != "not used" for layer in found.layers)
    assert found.flops >= sum(layer.flops * layer.count for layer in found.layers) > 0
    assert found.training_flops > found.flops


@every_paper
def test_costs_are_those_of_a_real_pass(paper: Paper) -> None:
    """On the meta device a batch of 7 was counted; here the tiny model really runs its batch of 4."""
    model = paper.model_class(paper.config_class.from_preset("tiny")).eval()
    if model._supports_sdpa:  # the counter does not know the fused attention of the CPU
        model.set_attn_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**model.dummy_inputs)
    assert inspect_paper(paper, "tiny").flops == counter.get_total_flops() // 4


@every_paper
def test_the_text_says_all_of_it(paper: Paper) -> None:
    found = inspect_paper(paper)
    text = describe(found)
    for part in (paper.title, paper.url, f"'{found.preset}'", f"{found.parameters:,}", f"{found.flops:,}"):
        assert part in text
    for name in (*found.config, *found.presets, *paper.recipes, *(layer.name for layer in found.layers)):
        assert name in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_vae_by_hand() -> None:
    """The paper's 784-500-20 network: five matrices, two FLOPs per weight and example."""
    found = inspect_paper(find_paper("vae"), "paper")
    by_name = {layer.name: layer for layer in found.layers}
    hidden = next(layer for name, layer in by_name.items() if layer.inputs == "(B, 784)")
    assert (hidden.outputs, hidden.parameters, hidden.flops) == ("(B, 500)", 784 * 500 + 500, 2 * 784 * 500)
    assert found.flops == 2 * (784 * 500 + 500 * 20 + 500 * 20 + 20 * 500 + 500 * 784)
    assert found.parameters == 815_824


def test_a_batch_that_is_judged_twice_is_shown_as_such() -> None:
    """The GAN's discriminator sees real and generated images in one batch."""
    found = inspect_paper(find_paper("gan"))
    assert any(layer.inputs.startswith("(2B, ") for layer in found.layers if "discriminator" in layer.name)


@pytest.mark.parametrize(("preset", "auto"), [("tinny", None), ("tiny", "AutoModle")])
def test_an_unknown_preset_or_class_gets_the_nearest(preset: str, auto: str | None) -> None:
    with pytest.raises(UserError, match="Did you mean '(tiny|AutoModel)'"):
        inspect_paper(find_paper("vae"), preset, auto)


def test_alike_layers_are_shown_once() -> None:
    layers = [Layer(f"layers.{i}.linear", "Linear", "(B, 8)", "(B, 8)", 72, 128) for i in range(3)]
    layers.insert(1, Layer("layers.0.norm", "LayerNorm", "(B, 8)", "(B, 8)", 16, 0))
    layers.append(Layer("layers.3.linear", "Linear", "(B, 8)", "(B, 4)", 36, 64))
    names = [(layer.name, layer.count) for layer in join_alike(layers)]
    assert names == [("layers.{0..2}.linear", 3), ("layers.0.norm", 1), ("layers.3.linear", 1)]
    gaps = [Layer(f"layers.{i}.linear", "Linear", "(B, 8)", "(B, 8)", 72, 128) for i in (0, 2)]
    assert join_alike(gaps)[0].name == "layers.{0,2}.linear"

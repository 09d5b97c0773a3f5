"""The DCGAN paper: parity with an independent implementation, batch norm and where it stands, training, peers' bugs."""

from __future__ import annotations

import copy
import io
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from hf_papers.errors import UserError
from hf_papers.papers.dcgan import PAPER, figures_dcgan
from hf_papers.papers.dcgan.configuration_dcgan import PaperDcganConfig
from hf_papers.papers.dcgan.image_processing_dcgan import PaperDcganImageProcessor
from hf_papers.papers.dcgan.modeling_dcgan import (
    PaperDcganBatchNorm,
    PaperDcganModel,
    discriminator_loss,
    generator_loss,
    sample_latents,
    vector_arithmetic,
)
from hf_papers.papers.dcgan.training_dcgan import FILM_IMAGES, NO_RULER, DcganTask
from hf_papers.training.recipe import difference, load_recipe
from tests.common.cases import Distribution, ModelCase


ROOT = Path(__file__).parents[2]
CONTEXT = SimpleNamespace(device=torch.device("cpu"), rank=0, world_size=1, seed=0)


class Case(ModelCase):
    """The common suite, told what is special about two adversaries."""

    short_run = (
        *("--max_steps", "4", "--per_device_train_batch_size", "8", "--generator_width", "16"),
        *("--discriminator_width", "16", "--test_images", "60", "--validation_images", "50"),
        *("--classifier_images", "100", "--svm_images", "0", "--film_frames", "2"),
    )

    def loss(self, outputs: Any) -> torch.Tensor:
        """The value that falls is D's; the gradient is that of both players' losses."""
        return outputs.discriminator_loss + (outputs.generator_loss - outputs.generator_loss.detach())

    def overfit_parameters(self, model: PaperDcganModel) -> list[nn.Parameter]:
        """D alone: two adversaries do not overfit, they fight."""
        return list(model.discriminator.parameters())

    def initialisation(self, model: PaperDcganModel) -> dict[str, Distribution]:
        std = model.config.initializer_range
        return {
            "*.conv.weight": Distribution.normal(0.0, std),
            "*.linear.weight": Distribution.normal(0.0, std),
            "*.output.weight": Distribution.normal(0.0, std),
            "*.norm.weight": Distribution.normal(1.0, std),
            "*.norm.bias": Distribution.constant(0.0),
        }

    def nonsense(self) -> list[tuple[str, Any]]:
        return [("image_size", 28), ("image_size", 4), ("generator_width", 17), ("batch_norm_momentum", 0.0)]


def build(preset: str = "tiny", **overrides: Any) -> PaperDcganModel:
    torch.manual_seed(0)
    return PaperDcganModel(PaperDcganConfig.from_preset(preset, **overrides)).eval()


@pytest.fixture
def tiny() -> PaperDcganModel:
    return build()


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ------------------------------------------------------------------------------------------- the paper's networks


def test_parameter_counts_of_the_paper_and_of_the_common_width() -> None:
    expected = {"paper": (12_658_432, 11_036_160), "common": (3_576_704, 2_765_568)}
    for preset, (generator, discriminator) in expected.items():
        with torch.device("meta"):
            model = PaperDcganModel(PaperDcganConfig.from_preset(preset))
        assert (count(model.generator), count(model.discriminator)) == (generator, discriminator), preset
        assert PAPER.parameters[preset] == generator + discriminator


def test_layers_are_those_of_figure_1() -> None:
    config = PaperDcganConfig()
    assert config.generator_channels == [1024, 512, 256, 128]
    assert config.discriminator_channels == [128, 256, 512, 1024]
    with torch.device("meta"):
        model = PaperDcganModel(config)
        maps, shapes = torch.empty(2, 100), []
        for layer in model.generator.eval().layers:
            maps, _ = layer(maps)
            shapes.append(tuple(maps.shape[1:]))
        seen = [tuple(maps.shape[1:]) for maps in model.discriminator.eval().hidden_maps(torch.empty(2, 3, 64, 64))]
    assert shapes == [(1024, 4, 4), (512, 8, 8), (256, 16, 16), (128, 32, 32)]
    assert seen == [(128, 32, 32), (256, 16, 16), (512, 8, 8), (1024, 4, 4)]


def test_the_feature_vector_has_the_papers_length() -> None:
    """Section 5.1: 28,672 numbers, from 32 x 32 pixels (the images that section 5 trains and tests on)."""
    assert PaperDcganConfig.from_preset("paper-32").num_features == 28_672
    model = build()
    assert model.features(model.dummy_inputs["pixel_values"]).shape == (4, model.config.num_features)


def peer(size: int, channels: int, width: int, latent: int, kernel: int) -> tuple[nn.Sequential, nn.Sequential]:
    """The networks as they are commonly written, from torch's own layers: all convolutions, a sigmoid at the end."""
    widths = [width]
    while 4 * 2 ** len(widths) < size:
        widths.append(widths[-1] // 2)
    edge = {"padding": 1} if kernel == 4 else {"padding": 2}
    up = {**edge, "output_padding": 0 if kernel == 4 else 1}
    generator: list[nn.Module] = [nn.ConvTranspose2d(latent, width, 4, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    for before, after in zip(widths, widths[1:], strict=False):
        generator += [nn.ConvTranspose2d(before, after, kernel, 2, bias=False, **up), nn.BatchNorm2d(after), nn.ReLU()]
    generator += [nn.ConvTranspose2d(widths[-1], channels, kernel, 2, bias=False, **up), nn.Tanh()]
    widths = widths[::-1]
    judge: list[nn.Module] = [nn.Conv2d(channels, widths[0], kernel, 2, bias=False, **edge), nn.LeakyReLU(0.2)]
    for before, after in zip(widths, widths[1:], strict=False):
        judge += [nn.Conv2d(before, after, kernel, 2, bias=False, **edge), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
    judge += [nn.Conv2d(widths[-1], 1, 4, bias=False), nn.Sigmoid()]
    return nn.Sequential(*generator), nn.Sequential(*judge)


def copy_weights(model: PaperDcganModel, generator: nn.Sequential, judge: nn.Sequential) -> dict[str, nn.Parameter]:
    """Our weights into theirs; returns their parameters under our names."""
    layers = model.generator.layers
    first = layers[0].linear.weight.detach()  # (width * 16, latent) -> (latent, width, 4, 4)
    generator[0].weight.data = first.T.reshape(first.shape[1], -1, 4, 4).clone()
    names: dict[str, nn.Parameter] = {"generator.layers.0.linear.weight": generator[0].weight}
    for index, layer in enumerate(layers):
        generator[3 * index + 1].load_state_dict(layer.norm.state_dict())
        names |= {f"generator.layers.{index}.norm.{k}": p for k, p in generator[3 * index + 1].named_parameters()}
        if index:
            generator[3 * index].weight.data = layer.conv.weight.detach().clone()
            names[f"generator.layers.{index}.conv.weight"] = generator[3 * index].weight
    generator[-2].weight.data = model.generator.output.weight.detach().clone()
    names["generator.output.weight"] = generator[-2].weight
    place = 0
    for index, layer in enumerate(model.discriminator.layers):
        judge[place].weight.data = layer.conv.weight.detach().clone()
        names[f"discriminator.layers.{index}.conv.weight"] = judge[place].weight
        place += 2
        if layer.norm is not None:
            judge[place - 1].load_state_dict(layer.norm.state_dict())
            names |= {f"discriminator.layers.{index}.norm.{k}": p for k, p in judge[place - 1].named_parameters()}
            place += 1
    judge[-2].weight.data = model.discriminator.output.weight.detach().reshape(1, -1, 4, 4).clone()
    names["discriminator.output.weight"] = judge[-2].weight
    return names


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel_size": 5, "num_channels": 1},
        {"image_size": 32, "generator_width": 64, "discriminator_width": 64, "latent_size": 20},
    ],
    ids=["tiny", "kernel-5", "32-pixels"],
)
def test_parity_with_an_independent_implementation(options: dict[str, Any], training: bool) -> None:
    """Images, verdicts, both losses and all gradients, with batch and with running statistics."""
    model = build(**options).train(training)
    config = model.config
    generator, judge = peer(
        config.image_size, config.num_channels, config.generator_width, config.latent_size, config.kernel_size
    )
    theirs = copy_weights(model, generator, judge)
    assert theirs.keys() == dict(model.named_parameters()).keys()
    generator.train(training), judge.train(training)
    inputs = model.dummy_inputs
    outputs = model(**inputs)

    images = generator(inputs["latents"][:, :, None, None])
    real, fake = judge(inputs["pixel_values"]).flatten(), judge(images.detach()).flatten()
    d_loss = F.binary_cross_entropy(real, torch.ones(4)) + F.binary_cross_entropy(fake, torch.zeros(4))
    statistics = {
        name: buffer.clone() for name, buffer in judge.named_buffers()
    }  # the third pass would move them again
    g_loss = F.binary_cross_entropy(judge(images).flatten(), torch.ones(4))
    torch.testing.assert_close(outputs.images, images, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.sigmoid(outputs.real_logits), real, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.sigmoid(outputs.fake_logits), fake, rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs.discriminator_loss, d_loss, rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs.generator_loss, g_loss, rtol=0, atol=1e-5)

    outputs.loss.backward()
    for player, loss in (("discriminator", d_loss), ("generator", g_loss)):
        names = [name for name in theirs if name.startswith(player)]
        for name, gradient in zip(
            names, torch.autograd.grad(loss, [theirs[name] for name in names], retain_graph=True), strict=True
        ):
            ours = model.get_parameter(name).grad
            if name.endswith("linear.weight"):
                gradient = gradient.flatten(1).T
            torch.testing.assert_close(ours, gradient.reshape(ours.shape), rtol=0, atol=1e-5, msg=name)

    norms = [layer.norm for layer in model.discriminator.layers if layer.norm is not None]
    for ours, (index, _) in zip(
        norms, [(i, m) for i, m in enumerate(judge) if isinstance(m, nn.BatchNorm2d)], strict=True
    ):
        torch.testing.assert_close(ours.running_mean, statistics[f"{index}.running_mean"], rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.running_var, statistics[f"{index}.running_var"], rtol=0, atol=1e-5)
        assert ours.num_batches_tracked == statistics[f"{index}.num_batches_tracked"] == (2 if training else 0)


def test_images_are_in_the_range_of_tanh_and_samples_in_zero_one(tiny: PaperDcganModel) -> None:
    for parameter in tiny.generator.parameters():
        parameter.data.mul_(30.0)
    images = tiny(latents=tiny.dummy_inputs["latents"]).images
    assert images.min() < -0.5 and images.max() > 0.5 and images.abs().max() <= 1
    samples = tiny.decode(tiny.dummy_inputs["latents"])
    torch.testing.assert_close(samples, 0.5 + 0.5 * images)
    assert samples.min() >= 0 and samples.max() <= 1


def test_losses_are_binary_cross_entropies_and_stay_finite() -> None:
    real, fake = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    entropy = F.binary_cross_entropy_with_logits
    torch.testing.assert_close(
        discriminator_loss(real, fake), entropy(real, torch.ones(16)) + entropy(fake, torch.zeros(16))
    )
    torch.testing.assert_close(generator_loss(fake), entropy(fake, torch.ones(16)))
    extreme = torch.tensor([-200.0, 200.0], requires_grad=True)
    for loss in (discriminator_loss(extreme, extreme), generator_loss(extreme)):
        (gradient,) = torch.autograd.grad(loss, extreme)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()
    half = torch.full((2,), -200.0, dtype=torch.bfloat16)
    assert generator_loss(half).dtype == torch.float32


# ---------------------------------------------------------------------------------------------------- batch norm


def norm_places(model: PaperDcganModel) -> tuple[list[bool], list[bool]]:
    generator = [layer.norm is not None for layer in model.generator.layers]
    generator.append(model.generator.output_norm is not None)
    return generator, [layer.norm is not None for layer in model.discriminator.layers]


def test_batch_norm_stands_where_the_paper_puts_it() -> None:
    """Section 3: neither at G's output nor at D's input; the two ablations beside it."""
    assert norm_places(build()) == ([True, True, False], [False, True])
    assert norm_places(build(batch_norm="all")) == ([True, True, True], [True, True])
    without = build(batch_norm="none")
    assert norm_places(without) == ([False] * 3, [False] * 2)
    assert without.generator.layers[1].conv.bias is not None, (
        "without batch norm hidden layers have biases of their own"
    )
    assert build().generator.layers[1].conv.bias is None
    for kind in ("all", "none"):
        model = build(batch_norm=kind).train()
        model(**model.dummy_inputs).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_epsilon_and_momentum_are_what_they_are_called(tiny: PaperDcganModel) -> None:
    """PyTorch-GAN's dcgan.py writes BatchNorm2d(channels, 0.8): an epsilon of 0.8 where a momentum was meant."""
    for norm in (module for module in tiny.modules() if isinstance(module, nn.BatchNorm2d)):
        assert norm.eps == 1e-5 and norm.momentum == 0.1
    norm = PaperDcganBatchNorm(3)
    maps = 5 + 3 * torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    normalised, _ = norm(maps)
    assert normalised.var().item() == pytest.approx(1, abs=0.01)


def test_real_and_generated_images_are_normalised_apart(tiny: PaperDcganModel) -> None:
    """In one joint pass D would judge an image by its company; in two, the verdict on real ones ignores what G drew."""
    tiny.train()
    inputs = tiny.dummy_inputs
    before = tiny(**inputs).real_logits
    others = tiny.sample_latents(4, torch.Generator().manual_seed(5))
    after = tiny(latents=others, pixel_values=inputs["pixel_values"])
    assert torch.equal(after.real_logits, before)
    joint = tiny.discriminator(torch.cat([inputs["pixel_values"], after.images]))[:4]
    assert not torch.allclose(joint, before, atol=1e-4)


def test_a_batch_of_one_is_refused_while_training_and_fine_afterwards(tiny: PaperDcganModel) -> None:
    one = {name: value[:1] for name, value in tiny.dummy_inputs.items()}
    assert tiny(**one).images.shape[0] == 1
    with pytest.raises(ValueError, match="two images or more.*model.eval"):
        tiny.train()(**one)
    with pytest.raises(UserError, match="per_device_train_batch_size must be at least 2"):
        digits_task(per_device_train_batch_size=1)


def test_a_frozen_discriminator_stands_still(tiny: PaperDcganModel) -> None:
    """The generator's view of D: the same verdicts, gradients for the images alone, and no trace in the statistics."""
    tiny.train()
    images = tiny.dummy_inputs["pixel_values"].requires_grad_()
    before = copy.deepcopy(tiny.discriminator.state_dict())
    frozen = tiny.discriminator(images, True)
    for name, value in tiny.discriminator.state_dict().items():
        assert torch.equal(value, before[name]), name
    frozen.sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in tiny.discriminator.parameters())
    torch.testing.assert_close(tiny.discriminator(images), frozen)
    assert any(not torch.equal(v, before[n]) for n, v in tiny.discriminator.state_dict().items())


def test_one_backward_gives_each_player_its_own_gradient(tiny: PaperDcganModel) -> None:
    tiny.train()
    inputs = tiny.dummy_inputs
    outputs = tiny(**inputs)
    for player, other in (("discriminator", "generator"), ("generator", "discriminator")):
        strangers = torch.autograd.grad(
            getattr(outputs, f"{player}_loss"),
            list(getattr(tiny, other).parameters()),
            retain_graph=True,
            allow_unused=True,
        )
        assert all(gradient is None for gradient in strangers), f"{player}_loss moves the {other}"


def test_sampling_uses_running_statistics_and_restores_the_mode(tiny: PaperDcganModel) -> None:
    """A peer's trap: in training mode an image depends on its neighbours in the batch, and sampling moves the statistics."""
    tiny.train()
    tiny(**tiny.dummy_inputs)
    before = copy.deepcopy(tiny.state_dict())
    latents = tiny.sample_latents(6, torch.Generator().manual_seed(0))
    together = tiny.decode(latents)
    torch.testing.assert_close(together, torch.cat([tiny.decode(latent[None]) for latent in latents]))
    features = tiny.features(tiny.dummy_inputs["pixel_values"], batch_size=1)
    torch.testing.assert_close(features, tiny.features(tiny.dummy_inputs["pixel_values"]))
    assert tiny.generator.training and tiny.discriminator.training
    for name, value in tiny.state_dict().items():
        assert torch.equal(value, before[name]), f"sampling changed {name}"


def test_recalibration_is_the_mean_over_batches(tiny: PaperDcganModel) -> None:
    generator, dice = tiny.generator, torch.Generator().manual_seed(1)
    batches = [tiny.sample_latents(32, dice) for _ in range(3)]
    norm = generator.layers[0].norm
    maps = [generator.layers[0].linear(latents).unflatten(1, (-1, 4, 4)) for latents in batches]
    mean = torch.stack([part.mean((0, 2, 3)) for part in maps]).mean(0)
    variance = torch.stack([part.var((0, 2, 3)) for part in maps]).mean(0)
    norm.running_mean.fill_(77.0)
    generator.recalibrate(batches)
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, variance, rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.1 and not generator.training


SYNC_SCRIPT = """
import sys, torch
import torch.distributed as distributed
from safetensors.torch import save_file
from hf_papers.papers.dcgan.configuration_dcgan import PaperDcganConfig
from hf_papers.papers.dcgan.modeling_dcgan import PaperDcganModel

world, path = int(sys.argv[1]), sys.argv[2]
rank = 0
if world > 1:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
torch.manual_seed(0)
model = PaperDcganModel(PaperDcganConfig.from_preset("tiny")).train()
model.synchronise_batch_norm()
dice = torch.Generator().manual_seed(1)
latents, images = torch.rand(6, 6, generator=dice) * 2 - 1, torch.rand(6, 3, 16, 16, generator=dice) * 2 - 1
mine = slice(0, 6) if world == 1 else (slice(0, 2), slice(2, 6))[rank]  # batches of different sizes
share = len(latents[mine]) / 6
(model(latents[mine], images[mine]).loss * share).backward()
result = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
if world > 1:
    for value in result.values():
        distributed.all_reduce(value)
result |= dict(model.named_buffers())
if rank == 0:
    save_file(result, path)
if world > 1:
    distributed.barrier()
    distributed.destroy_process_group()
"""


def test_synchronised_batch_norm_makes_two_processes_one(tmp_path: Path) -> None:
    """Gradients and running statistics of two processes with unequal shares of a batch are those of one with all of it."""
    script = tmp_path / "sync.py"
    script.write_text(SYNC_SCRIPT)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    found = {}
    for world, launcher in ((1, []), (2, torchrun)):
        path = tmp_path / f"{world}.safetensors"
        command = [sys.executable, *launcher, str(script), str(world), str(path)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment())
        assert ended.returncode == 0, ended.stderr[-3000:]
        found[world] = load_file(path)
    assert found[1].keys() == found[2].keys()
    for name, value in found[1].items():
        torch.testing.assert_close(found[2][name], value, rtol=1e-4, atol=1e-6, msg=name)


def environment() -> dict[str, str]:
    import os

    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def test_the_task_synchronises_unless_told_not_to() -> None:
    for option, expected in ((True, True), (False, False)):
        model = digits_task(sync_batch_norm=option).build_model()
        norms = [module for module in model.modules() if isinstance(module, PaperDcganBatchNorm)]
        assert norms and all(norm.synchronised is expected for norm in norms)


# ---------------------------------------------------------------------------------------------------- using a model


def test_sampling_is_repeatable_and_refuses_nonsense(tiny: PaperDcganModel) -> None:
    images = tiny.sample(7, seed=3)
    assert images.shape == (7, 3, 16, 16) and not images.requires_grad
    assert torch.equal(images, tiny.sample(7, seed=3))
    assert torch.equal(images, tiny.sample(7, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(images, tiny.sample(7, seed=4))
    torch.testing.assert_close(images, tiny.sample(7, seed=3, batch_size=2))
    with pytest.raises(ValueError, match="not both"):
        tiny.sample(1, seed=0, generator=torch.Generator())
    with pytest.raises(ValueError, match="at least 1"):
        tiny.sample(0)


def test_a_latent_of_the_wrong_length_is_refused_in_one_sentence(tiny: PaperDcganModel) -> None:
    for wrong in (torch.zeros(2, 5), torch.zeros(6), torch.zeros(2, 6, 1, 1)):
        with pytest.raises(ValueError, match=r"latents must be \(batch, 6\), not"):
            tiny(latents=wrong)
        with pytest.raises(ValueError, match=r"latents must be \(batch, 6\), not"):
            tiny.decode(wrong)


def test_images_of_another_kind_are_refused_in_one_sentence(tiny: PaperDcganModel) -> None:
    for wrong in (torch.zeros(2, 1, 16, 16), torch.zeros(2, 3, 32, 32), torch.zeros(3, 16, 16)):
        with pytest.raises(ValueError, match=r"pixel_values must be \(batch, 3, 16, 16\), not .*image processor"):
            tiny(latents=torch.zeros(2, 6), pixel_values=wrong)
    with pytest.raises(ValueError, match="latents"):
        tiny()
    assert tiny(pixel_values=tiny.dummy_inputs["pixel_values"]).loss is not None  # draws its own latents


@pytest.mark.parametrize(("distribution", "variance"), [("uniform", 1 / 3), ("normal", 1.0)])
def test_latents_follow_their_distribution(distribution: str, variance: float) -> None:
    config = PaperDcganConfig.from_preset("tiny", latent_distribution=distribution)
    latents = sample_latents(config, 20_000, torch.Generator().manual_seed(0))
    assert latents.mean().abs() < 0.02 and latents.var().item() == pytest.approx(variance, rel=0.02)
    if distribution == "uniform":
        assert latents.abs().max() <= 1


def test_latent_walks_are_straight_for_uniform_noise_and_round_for_normal() -> None:
    for distribution in ("uniform", "normal"):
        model = build(latent_distribution=distribution)
        start, end = model.sample_latents(2, torch.Generator().manual_seed(0))
        seen: list[torch.Tensor] = []
        decode = model.decode
        model.decode = lambda latents, seen=seen, decode=decode: seen.append(latents) or decode(latents)
        images = model.interpolate(start, end, 9)
        torch.testing.assert_close(images[[0, -1]], decode(torch.stack([start, end])))
        lengths = torch.linspace(start.norm().item(), end.norm().item(), 9)
        if distribution == "uniform":
            torch.testing.assert_close(seen[0], torch.lerp(start, end, torch.linspace(0, 1, 9)[:, None]))
        else:
            torch.testing.assert_close(seen[0].norm(dim=1), lengths)
        with pytest.raises(ValueError, match="two ends"):
            model.interpolate(start, end, 1)


def test_sums_of_means_of_three_have_the_variance_of_one_latent() -> None:
    config = PaperDcganConfig()
    dice = torch.Generator().manual_seed(0)
    latents = sample_latents(config, 9 * 400, dice).view(400, 3, 3, 100)
    results = torch.stack([vector_arithmetic(*terms) for terms in latents])
    assert results.var().item() == pytest.approx(1 / 3, rel=0.02)
    plus, minus, base = latents[0]
    torch.testing.assert_close(vector_arithmetic(plus, plus, base), base.mean(0))
    torch.testing.assert_close(vector_arithmetic(plus, minus, minus), plus.mean(0))


def test_features_are_the_largest_value_of_each_sixteenth(tiny: PaperDcganModel) -> None:
    images = tiny.dummy_inputs["pixel_values"]
    maps = tiny.discriminator.hidden_maps(images)  # (4, 8, 8, 8) and (4, 16, 4, 4)
    corners = maps[0].reshape(4, 8, 4, 2, 4, 2).amax((3, 5)).flatten(1)
    torch.testing.assert_close(tiny.features(images), torch.cat([corners, maps[1].flatten(1)], 1))


def test_wrong_options_are_refused_in_words() -> None:
    with pytest.raises(TypeError, match="Did you mean 'latent_size'"):
        PaperDcganConfig(latent_sise=4)
    with pytest.raises(ValueError, match="Did you mean 'common'"):
        PaperDcganConfig.from_preset("comon")
    with pytest.raises(Exception, match="image_size must be 8, 16, 32, 64"):
        PaperDcganConfig(image_size=48)
    with pytest.raises(Exception, match="generator_width must be a multiple of 8"):
        PaperDcganConfig(generator_width=100)


# ------------------------------------------------------------------------------------------------- the processor


def test_processor_scales_to_the_range_of_tanh(tmp_path: Path) -> None:
    processor = PaperDcganImageProcessor(size={"height": 16, "width": 16}, num_channels=1)
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = processor(Image.fromarray(ramp), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, torch.from_numpy(ramp / 127.5 - 1).float()[None, None])
    scaled = processor(torch.rand(1, 16, 16), return_tensors="pt")["pixel_values"]
    assert scaled.max() > 0.5 and scaled.min() < -0.5, "floats in [0, 1] were divided by 255 a second time"
    processor.save_pretrained(tmp_path)
    again = PaperDcganImageProcessor.from_pretrained(tmp_path)
    assert torch.equal(again(Image.fromarray(ramp), return_tensors="pt")["pixel_values"], pixels)


def test_the_margin_is_black_and_leaves_the_picture_alone() -> None:
    """28 pixels and a margin of 2 are 32: no resampling, and black around it, not the grey of a padded zero."""
    processor = PaperDcganImageProcessor(size={"height": 28, "width": 28}, num_channels=1, margin=2)
    digit = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    pixels = processor(Image.fromarray(digit), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 1, 32, 32)
    torch.testing.assert_close(pixels[0, 0, 2:-2, 2:-2], torch.from_numpy(digit / 127.5 - 1).float())
    frame = torch.ones(32, 32, dtype=torch.bool)
    frame[2:-2, 2:-2] = False
    assert (pixels[0, 0][frame] == -1).all()
    with pytest.raises(ValueError, match="margin must be a whole number"):
        processor(Image.fromarray(digit), margin=-1)


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_pictures_of_every_kind_are_converted_or_refused_in_words() -> None:
    colour, grey = (
        PaperDcganImageProcessor(size={"height": 16, "width": 16}, num_channels=n, do_normalize=False) for n in (3, 1)
    )
    with pytest.warns(UserWarning, match="Grey pictures are turned into colour"):
        pixels = colour(Image.new("L", (16, 16), 51), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, torch.full((1, 3, 16, 16), 0.2))
    with pytest.warns(UserWarning, match="Coloured pictures are turned grey"):
        pixels = grey(Image.new("RGB", (20, 30), (255, 255, 255)), return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, torch.ones(1, 1, 16, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing to say of these
        clear = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
        assert colour(clear, return_tensors="pt")["pixel_values"].max() == 0, "transparency is laid over black"
        assert colour(Image.new("CMYK", (16, 16)), return_tensors="pt")["pixel_values"].shape == (1, 3, 16, 16)
        assert colour(Image.new("RGB", (1, 1)), return_tensors="pt")["pixel_values"].shape == (1, 3, 16, 16)
        assert colour(Image.new("RGB", (3000, 2)), return_tensors="pt")["pixel_values"].shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match="more than 8 bits"):
        grey(Image.fromarray(np.zeros((16, 16), np.uint16)), return_tensors="pt")
    whole = png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    for processor in (colour, grey):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ValueError, match="cut or damaged"):
                processor(Image.open(io.BytesIO(whole[: len(whole) // 2])), return_tensors="pt")
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        grey(np.full((1, 8, 8), 7.0), return_tensors="pt")


# ---------------------------------------------------------------------------------------------------------- training


def digits_task(**overrides: Any) -> DcganTask:
    small = {
        "generator_width": 16,
        "discriminator_width": 16,
        "film_frames": 0,
        "svm_images": 0,
        "generator_average": 0,
    }
    return DcganTask(load_recipe("dcgan", "embedded", {k: str(v) for k, v in {**small, **overrides}.items()}))


def real_batch(rows: int = 8) -> dict[str, torch.Tensor]:
    return {"pixel_values": 2 * torch.rand(rows, 1, 16, 16, generator=torch.Generator().manual_seed(0)) - 1}


def play(task: DcganTask, model: PaperDcganModel, batch: dict[str, torch.Tensor], step: int = 0) -> list[str]:
    """One step as the trainer takes it: whoever's turn it is gets the gradient of its own loss."""
    networks = task.networks(model)
    optimizers = task.optimizers(networks)
    turns = []
    for name, loss, _ in task.losses(networks, {}, batch, step):
        turns.append(name)
        loss.backward(inputs=list(networks[name].parameters()))
        optimizers[name].step()
        optimizers[name].zero_grad()
    return turns


def test_a_step_is_the_discriminators_turn_and_then_the_generators() -> None:
    task = digits_task()
    assert play(task, task.build_model().train(), real_batch()) == ["discriminator", "generator"]


def test_each_turn_moves_its_own_player_only() -> None:
    """A peer's trap: the discriminator's step runs back through the generator because its images were not detached."""
    task = digits_task()
    model = task.build_model().train()
    networks = task.networks(model)
    for name, loss, _ in task.losses(networks, {}, real_batch(), 0):
        other = "generator" if name == "discriminator" else "discriminator"
        strangers = torch.autograd.grad(loss, list(networks[other].parameters()), retain_graph=True, allow_unused=True)
        assert all(gradient is None for gradient in strangers), f"the {name}'s turn moves the {other}"
        loss.backward(inputs=list(networks[name].parameters()))
        assert all(parameter.grad is not None for parameter in networks[name].parameters())
        networks[name].zero_grad()


def test_the_generator_meets_the_discriminator_that_has_just_moved() -> None:
    task = digits_task()
    model = task.build_model().train()
    networks = task.networks(model)
    torch.manual_seed(0)
    latents = sample_latents(task.config, 8)
    torch.manual_seed(0)
    turns = task.losses(networks, {}, real_batch(), 0)
    next(turns)
    with torch.no_grad():
        model.discriminator.output.weight += 0.5
    _, loss, _ = next(turns)
    with torch.no_grad():
        expected = generator_loss(model.discriminator(model.generator(latents), True))
    torch.testing.assert_close(loss.detach(), expected)


def test_the_papers_optimiser_for_both_players() -> None:
    """Section 4: Adam, learning rate 0.0002, beta_1 0.5."""
    task = digits_task(discriminator_learning_rate=1e-5)
    optimizers = task.optimizers(task.networks(task.build_model()))
    assert all(isinstance(optimizer, torch.optim.Adam) for optimizer in optimizers.values())
    assert {optimizer.param_groups[0]["betas"] for optimizer in optimizers.values()} == {(0.5, 0.999)}
    task.schedule(optimizers, 0, 100)
    assert optimizers["generator"].param_groups[0]["lr"] == pytest.approx(2e-4)
    assert optimizers["discriminator"].param_groups[0]["lr"] == pytest.approx(1e-5)
    paper = load_recipe("dcgan", "paper")
    assert (paper.training.learning_rate, paper.training.adam_beta1) == (2e-4, 0.5)
    assert paper.training.per_device_train_batch_size == 128 and paper.task.discriminator_learning_rate is None


def test_the_average_of_the_generator_is_published_with_statistics_of_its_own() -> None:
    """Averaged weights under the statistics of the last ones would draw something else: they are measured anew."""
    task = digits_task(generator_average=0.9)
    model = task.build_model().train()
    rules = task.shadows()
    assert set(rules) == {"generator"} and not digits_task().shadows()
    shadow = rules["generator"].copy_of(model.generator)
    started = model.generator.output.weight.detach().clone()
    with torch.no_grad():
        model.generator.output.weight.add_(1.0)
        model.generator.layers[0].norm.running_mean.fill_(50.0)
    rules["generator"].follow(shadow, model.generator, 1)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    published = task.published(model, {"generator": shadow})
    assert torch.equal(torch.get_rng_state(), state), "publishing draws from the random numbers of the training"
    torch.testing.assert_close(published.generator.output.weight, started + 0.1)
    assert published.generator.layers[0].norm.running_mean.abs().max() < 5
    torch.testing.assert_close(model.generator.output.weight, started + 1.0)
    assert model.generator.layers[0].norm.running_mean.min() == 50 and model.generator.training
    assert task.published(model, {}) is model


def test_the_film_shows_the_same_latents_and_travels_in_the_state() -> None:
    task = digits_task(film_frames=3, max_steps=9)
    assert task.total_steps(CONTEXT) == 9
    model = task.build_model().train()
    for step in range(9):
        play(task, model, real_batch(), step)
    assert [step for step, _ in task.film] == [1, 4, 9]  # early frames are close together
    assert task.film[0][1].shape == (FILM_IMAGES, 1, 16, 16) and task.film[0][1].dtype == torch.uint8
    expected = (model.decode(task._fixed_latents(FILM_IMAGES)) * 255).round().to(torch.uint8)
    assert torch.equal(task.film[-1][1], expected) and model.generator.training
    other = digits_task()
    other.load_state_dict(task.state_dict())
    assert [step for step, _ in other.film] == [1, 4, 9] and torch.equal(other.film[2][1], task.film[2][1])
    assert torch.equal(other._game, task._game)


def train(folder: Path, steps: int, resume: bool = False) -> Path:
    """A short training without figures; its last checkpoint."""
    from hf_papers.training.run import Run
    from hf_papers.training.trainer import Trainer

    overrides = {"max_steps": steps, "save_steps": 3, "eval_steps": 1000, "per_device_train_batch_size": 8}
    overrides |= {"film_frames": 3, "generator_average": 0.9, "validation_split": "none", "report_to": "none"}
    overrides |= {"output_dir": folder, "progress": False, "use_cpu": True}
    task = digits_task(**overrides, **({"resume": "auto"} if resume else {}))
    trainer = Trainer(task, Run(folder))
    trainer.prepare()
    trainer.train()
    trainer.end()
    return trainer.run.checkpoints.newest()


def test_a_resumed_game_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Weights, running statistics, the average, the film and the watch over the game, as if it had never stopped."""
    import shutil

    whole = train(tmp_path / "run", 6)
    kept = shutil.copytree(whole, tmp_path / "kept")
    shutil.rmtree(whole)
    again = train(tmp_path / "run", 6, resume=True)
    assert again.name == whole.name
    files = ["model.safetensors", "state/trainer.safetensors", "state/process-00000.safetensors"]
    for name in files:
        expected, found = load_file(kept / name), load_file(again / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(value, found[key]) for key, value in expected.items()), name


def test_collapse_divergence_and_a_victorious_discriminator_are_noticed_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """PyTorch-GAN#57: D's loss goes to 0 and G's to 10, and nobody is told until somebody looks at the pictures."""
    task = digits_task(test_images=300, validation_images=200, classifier_images=600)
    model = task.build_model()
    with torch.no_grad():  # a generator that always draws the same image, of stripes
        for parameter in model.generator.parameters():
            parameter.zero_()
        model.generator.output.weight[..., ::2] = 4.0
        model.generator.layers[-1].norm.bias.fill_(1.0)
    metrics = task.evaluate(model.eval(), "validation", CONTEXT)
    assert metrics["collapsed"] == metrics["diverged"] == 1.0 and metrics["diversity_ratio"] == 0
    assert "discriminator_won" not in metrics, "of a game that was not played nothing is known"
    assert "has collapsed" in caplog.text and "diverged" in caplog.text
    caplog.clear()
    for _ in range(500):
        task._watch_game(torch.tensor(0.001), torch.tensor(10.0))
    metrics = task.evaluate(model, "validation", CONTEXT)
    assert metrics["discriminator_won"] == 1.0 and "discriminator has won" in caplog.text
    assert "has collapsed" not in caplog.text, "a flag that stays up is said once"


def test_real_images_would_pass_every_check() -> None:
    """The verdicts come from the data: training images in the generator's place score as a healthy generator."""
    task = digits_task(classifier_images=1400, test_images=1000)
    model = task.build_model().eval()
    train = task._images("train")
    model.sample = lambda number: train[:number]
    for _ in range(50):
        task._watch_game(torch.tensor(0.6), torch.tensor(2.0))
    metrics = task.evaluate(model, "test", CONTEXT)
    assert metrics["collapsed"] == metrics["diverged"] == metrics["discriminator_won"] == 0.0
    assert metrics["modes_covered"] == 10 and metrics["diversity_ratio"] == pytest.approx(1, abs=0.1)
    assert metrics["nearest_ratio"] == 0, "copies of training images are told by their distance to them"


def test_the_svm_chooses_its_cost_on_validation_images_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_papers.papers.dcgan import training_dcgan

    seen: list[list[int]] = []
    evaluation = training_dcgan.svm_evaluation
    monkeypatch.setattr(
        training_dcgan,
        "svm_evaluation",
        lambda *parts: seen.append([len(part[0]) for part in parts]) or evaluation(*parts, costs=(1e-3, 1e-2)),
    )
    task = digits_task(svm_images=500, test_images=100, classifier_images=0)
    model = task.build_model().eval()
    assert "svm_accuracy" not in task.evaluate(model, "validation", CONTEXT) and not seen
    metrics = task.evaluate(model, "test", CONTEXT)
    sizes = [len(task._images(split)) for split in ("validation", "test")]
    assert seen == [[500, *sizes]]
    assert metrics["svm_accuracy"] > 0.6, "even an untrained D tells digits apart"
    assert metrics["svm_features"] == task.config.num_features
    assert metrics["svm_cost"] in (1e-3, 1e-2)


def test_without_a_ruler_there_is_no_fid_and_the_run_says_so(caplog: pytest.LogCaptureFixture) -> None:
    task = digits_task(test_images=100, classifier_images=0)
    assert "no --ruler" in caplog.text and task.best_metric == "frechet_pixels"
    metrics = task.evaluate(task.build_model().eval(), "validation", CONTEXT)
    assert not [name for name in metrics if name.startswith(("fid", "kid", "is_"))] and "frechet_pixels" in metrics
    assert task.describe() == {"ruler": NO_RULER, "image_format": "pixels"}


def test_numbers_from_copies_are_marked_as_such(tmp_path: Path) -> None:
    """CIFAR-10 from JPEG files is another data set than the lossless one: whoever quotes the number must be told."""
    noise = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    for kind in ("PNG", "JPEG"):
        for split in ("train", "test"):
            (tmp_path / kind / split).mkdir(parents=True)
            for number, pixels in enumerate(noise):
                Image.fromarray(pixels).save(tmp_path / kind / split / f"{number}.{kind.lower()}")
        task = digits_task(
            dataset=tmp_path / kind, num_channels=3, original_format="PNG", validation_split="none", streaming=False
        )
        described = task.describe()
        assert described["image_format"] == kind
        assert described.get("note") == (None if kind == "PNG" else "JPEG copies")
    for recipe in ("cifar10", "cifar10-gpu"):
        assert load_recipe("dcgan", recipe).task.original_format == "PNG"


def test_a_ruler_that_is_not_there_is_refused_before_the_training() -> None:
    with pytest.raises(UserError, match="no folder ./nowhere.*--ruler none"):
        digits_task(ruler="./nowhere")
    with pytest.raises(UserError, match="ruler_layer"):
        digits_task(ruler_layer="-2")


def test_a_margin_is_inside_the_image_and_outside_every_comparison() -> None:
    task = digits_task(margin=4)
    assert task.processor.size["height"] == 8 and task.processor.margin == 4
    batch = task.preprocess([{"image": Image.new("L", (8, 8), 255)}])
    assert batch["pixel_values"].shape == (1, 1, 16, 16) and (batch["pixel_values"] == -1).any()
    assert task._images("validation").shape[1:] == (1, 8, 8)
    with pytest.raises(UserError, match="leaves nothing"):
        digits_task(margin=8)


def test_ablations_differ_from_the_mnist_recipe_in_one_thing() -> None:
    base = load_recipe("dcgan", "mnist")
    for name, option in (("mnist-no-batch-norm", "batch_norm"), ("mnist-batch-norm-everywhere", "batch_norm")):
        changed = difference(base, load_recipe("dcgan", name))
        assert len(changed) == 1 and changed[0].startswith(option), changed


def test_mnist_is_shown_as_many_images_as_the_gan() -> None:
    gan, ours = load_recipe("gan", "mnist"), load_recipe("dcgan", "mnist")
    for name in ("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"):
        assert getattr(gan.training, name) == getattr(ours.training, name), name
    assert gan.task.discriminator_steps == 1
    assert (gan.data.train_split, gan.data.test_split) == (ours.data.train_split, ours.data.test_split)


def test_recipes_are_whole_and_fit_their_model() -> None:
    wanted = {"embedded", "mnist", "mnist-no-batch-norm", "cifar10", "cifar10-gpu", "paper", "images"}
    assert wanted <= set(PAPER.recipes)
    for name in PAPER.recipes:
        recipe = load_recipe("dcgan", name)
        assert recipe.description and recipe.estimate, name
        assert recipe.data.train_split != recipe.data.validation_split
        if "cifar10" in name:
            assert recipe.data.columns == {"image": "img"} and recipe.config.image_size == 32
    with torch.device("meta"):
        assert count(PaperDcganModel(load_recipe("dcgan", "paper").config)) == PAPER.parameters["paper"]


def test_figures_are_drawn_from_a_short_run(tmp_path: Path) -> None:
    from hf_papers.training.finish import run_recipe

    options = {**dict(zip(Case.short_run[::2], Case.short_run[1::2], strict=True)), "--svm_images": "200"}
    overrides = {name.removeprefix("--"): value for name, value in options.items()}
    overrides |= {"output_dir": str(tmp_path / "run"), "report_to": "none", "progress": "false", "use_cpu": "true"}
    folder = run_recipe(load_recipe("dcgan", "embedded", overrides))
    results = json.loads((folder / "results.json").read_text())
    names = {Path(path).name for path in results["figures"].values()}
    assert names == {
        *("samples.png", "walk.png", "arithmetic.png", "filters.png", "responses.png"),
        *("progression.png", "film.gif"),
    }
    film = load_file(folder / "figures" / "film.safetensors")
    assert film["images"].shape[1:] == (FILM_IMAGES, 1, 16, 16) and film["steps"].tolist() == [1, 4, -1]
    with Image.open(folder / "figures" / "film.gif") as gif:
        assert gif.n_frames == 3
    assert results["task"]["ruler"] == NO_RULER
    assert {"frechet_pixels", "svm_accuracy", "modes_covered", "nearest_ratio"} <= set(results["metrics"]["test"])


def test_guided_responses_keep_what_speaks_for_a_feature(tiny: PaperDcganModel) -> None:
    """Checked against the definition, layer by layer, and the hooks are gone afterwards."""
    images = 2 * torch.rand(9, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 1
    shown, response = figures_dcgan.guided_responses(tiny, images, feature=3, count=2)
    excitement = tiny.discriminator.hidden_maps(images)[-1][:, 3].flatten(1).amax(1)
    assert torch.equal(shown, images[excitement.argsort(descending=True)[:2]])

    first, second = tiny.discriminator.layers
    before = first.conv(shown)
    hidden = F.leaky_relu(before, 0.2)
    maps = second.norm(second.conv(hidden))[0]
    signal = torch.zeros_like(maps)
    peak = F.leaky_relu(maps, 0.2)[:, 3].flatten(1).argmax(1)
    signal[:, 3].view(2, -1)[torch.arange(2), peak] = 1.0
    signal *= F.leaky_relu(maps, 0.2) > 0
    scale = second.norm.weight / (second.norm.running_var + second.norm.eps).sqrt()
    signal = F.conv_transpose2d(signal * scale[:, None, None], second.conv.weight, stride=2, padding=1)
    signal = signal.clamp(min=0) * (hidden > 0)
    expected = F.conv_transpose2d(signal, first.conv.weight, stride=2, padding=1)
    expected = 0.5 + 0.5 * expected / expected.abs().amax((1, 2, 3), keepdim=True)
    torch.testing.assert_close(response, expected.detach(), rtol=0, atol=1e-5)
    assert not first.activation._backward_hooks and not first.activation._forward_hooks


def test_sums_are_made_of_bold_and_thin_images_of_two_classes(tiny: PaperDcganModel) -> None:
    class Judge:
        """Left half brighter than right half, or not."""

        def predict(self, pixels: np.ndarray) -> np.ndarray:
            halves = pixels.reshape(len(pixels), 3, 16, 2, 8).mean((1, 2, 4))
            return (halves[:, 0] > halves[:, 1]).astype(int)

    for parameter in tiny.generator.parameters():
        parameter.data.mul_(5.0)
    sums = figures_dcgan.find_sums(tiny, Judge(), lambda images: images, seed=0)
    assert len(sums) == 2
    for entry in sums:
        assert entry.plus.shape == (4, 3, 16, 16) and entry.result.shape == (3, 16, 16)
        assert entry.plus[:3].mean() > entry.minus[:3].mean()
        kinds = Judge().predict(torch.cat([entry.plus[:3], entry.minus[:3], entry.base[:3]]).flatten(1).numpy())
        assert len(set(kinds[:6])) == len(set(kinds[6:])) == 1 and kinds[0] != kinds[6]


@pytest.mark.parametrize(("num_channels", "mode"), [(1, "L"), (3, "RGB")])
def test_the_five_lines_of_the_readme(
    num_channels: int, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (PAPER.folder / "README.md").read_text()
    code = re.search(r"<!-- five lines -->\n```python\n(.*?)```", text, re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 5
    build(num_channels=num_channels).save_pretrained(tmp_path / "runs" / "dcgan-mnist-seed0")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102
    assert names["images"].shape[1:] == (num_channels, 16, 16)
    drawn = Image.open(tmp_path / "samples.png")
    assert drawn.mode == mode and drawn.size == (8 * 16, 16)
    second = (names["images"][1] * 255).byte().permute(1, 2, 0).squeeze(-1).numpy()
    assert np.array_equal(np.asarray(drawn)[:, 16:32], second)

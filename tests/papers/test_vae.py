"""Auto-Encoding Variational Bayes: against independent mathematics, against its peers' known bugs, and as it is used."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence
from transformers import AutoImageProcessor, AutoModel

import hf_papers
from hf_papers.errors import UserError
from hf_papers.papers.vae import PAPER
from hf_papers.papers.vae.configuration_vae import PaperVaeConfig
from hf_papers.papers.vae.figures_vae import first_two_components, manifold
from hf_papers.papers.vae.image_processing_vae import PaperVaeImageProcessor
from hf_papers.papers.vae.modeling_vae import PaperVaeModel, gaussian_kl, reparameterize
from hf_papers.training.recipe import load_recipe
from hf_papers.training.run import Run
from hf_papers.training.task import Context
from hf_papers.training.trainer import Trainer
from tests.common.cases import ModelCase


CONTEXT = Context(torch.device("cpu"), rank=0, world_size=1, seed=0)


class Case(ModelCase):
    """The common suite, told how a training is kept short."""

    short_run = ("--max_steps", "4", "--importance_samples", "0")


def build(preset: str = "tiny", **overrides) -> PaperVaeModel:
    torch.manual_seed(0)
    return PaperVaeModel(PaperVaeConfig.from_preset(preset, **overrides)).eval()


def binary_images(count: int, size: int = 8, channels: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (count, channels, size, size), generator=generator).float()


# ------------------------------------------------------------------------------------------------------------- sizes


def test_the_papers_network_has_exactly_its_parameters():
    model = PaperVaeModel(PaperVaeConfig.from_preset("paper"))
    encoder = (784 * 500 + 500) + 2 * (500 * 20 + 20)
    decoder = (20 * 500 + 500) + (500 * 784 + 784)
    assert sum(parameter.numel() for parameter in model.parameters()) == encoder + decoder == 815_824
    assert PAPER.parameters["paper"] == 815_824


def test_the_classic_example_network_has_its_parameters():
    config = PaperVaeConfig(encoder_hidden_sizes=(400,), decoder_hidden_sizes=(400,))
    assert sum(parameter.numel() for parameter in PaperVaeModel(config).parameters()) == 652_824


# ------------------------------------------------------------------------- parity with an independent implementation


class ReferenceVae(nn.Module):
    """The same model from torch's own parts: nn.Sequential networks and torch.distributions for every probability."""

    def __init__(self, ours: PaperVaeModel) -> None:
        super().__init__()
        config = ours.config
        self.config = config
        self.gaussian = config.decoder_distribution == "gaussian"
        pixels, outputs = config.num_pixels, (2 if self.gaussian else 1) * config.num_pixels
        activation = {"tanh": nn.Tanh, "silu": nn.SiLU}[config.hidden_act]
        if config.architecture == "fully_connected":
            self.trunk = nn.Sequential(nn.Flatten(), *self.dense(pixels, config.encoder_hidden_sizes, activation))
            decoder = [*self.dense(config.latent_size, config.decoder_hidden_sizes, activation)]
            decoder += [nn.Linear(config.decoder_hidden_sizes[-1], outputs)]
        else:
            first, second = config.conv_channels
            side = config.image_size // 4
            self.trunk = nn.Sequential(
                nn.Conv2d(config.num_channels, first, 4, 2, 1),
                activation(),
                nn.Conv2d(first, second, 4, 2, 1),
                activation(),
                nn.Flatten(),
                *self.dense(second * side**2, config.encoder_hidden_sizes, activation),
            )
            decoder = [
                *self.dense(config.latent_size, (*config.decoder_hidden_sizes, second * side**2), activation),
                nn.Unflatten(1, (second, side, side)),
                nn.ConvTranspose2d(second, first, 4, 2, 1),
                activation(),
                nn.ConvTranspose2d(first, outputs // config.image_size**2, 4, 2, 1),
                nn.Flatten(),
            ]
        self.mean = nn.Linear(config.encoder_hidden_sizes[-1], config.latent_size)
        self.log_variance = nn.Linear(config.encoder_hidden_sizes[-1], config.latent_size)
        self.decoder = nn.Sequential(*decoder)
        with torch.no_grad():
            for mine, theirs in zip(self.parameters(), self.theirs(ours), strict=True):
                mine.copy_(theirs)

    def dense(self, size: int, sizes: tuple[int, ...], activation: type[nn.Module]) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for out in sizes:
            norm = [nn.LayerNorm(out)] if self.config.layer_norm else []
            layers += [nn.Linear(size, out), *norm, activation()]
            size = out
        return layers

    @staticmethod
    def theirs(ours: PaperVaeModel) -> list[nn.Parameter]:
        """Our parameters in the order in which this class made its own."""
        encoder, decoder = ours.encoder, ours.decoder
        parts = (encoder.convolutions, encoder.layers, encoder.mean, encoder.log_variance)
        parts += (decoder.layers, decoder.output, decoder.convolutions)
        return [parameter for part in parts for parameter in part.parameters()]

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.trunk(x)
        posterior = Normal(self.mean(hidden), torch.exp(self.log_variance(hidden) / 2))
        z = posterior.loc + posterior.scale * noise
        output = self.decoder(z)
        if self.gaussian:
            mean, log_variance = output.chunk(2, dim=1)
            pixels = Normal(torch.sigmoid(mean), torch.exp(log_variance / 2))
        else:
            pixels = Bernoulli(logits=output)
        reconstruction = -Independent(pixels, 1).log_prob(x.flatten(1))
        prior = Normal(torch.zeros_like(z), torch.ones_like(z))
        return reconstruction.mean(), kl_divergence(posterior, prior).sum(1).mean()


@pytest.mark.parametrize("preset", ["tiny", "tiny-conv"])
@pytest.mark.parametrize("distribution", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_forward_and_gradients_agree_with_an_independent_implementation(
    preset: str, distribution: str, layer_norm: bool
):
    options = {"hidden_act": "silu", "encoder_hidden_sizes": (12, 10), "layer_norm": layer_norm}
    model = build(preset, decoder_distribution=distribution, **options)
    reference = ReferenceVae(model)
    inputs = model.dummy_inputs
    output = model(**inputs)
    reconstruction, kl = reference(inputs["pixel_values"], inputs["noise"])
    torch.testing.assert_close(output.reconstruction_loss, reconstruction, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.kl, kl, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss, reconstruction + kl, rtol=1e-5, atol=1e-5)

    output.loss.backward()
    (reconstruction + kl).backward()
    for ours, theirs in zip(ReferenceVae.theirs(model), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_three_adam_steps_agree_with_the_independent_implementation():
    model = build()
    reference = ReferenceVae(model)
    ours, theirs = (torch.optim.Adam(network.parameters(), lr=1e-2) for network in (model, reference))
    inputs = model.dummy_inputs
    for _ in range(3):
        for optimizer, loss in ((ours, model(**inputs).loss), (theirs, sum(reference(**rename(inputs))))):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for mine, other in zip(ReferenceVae.theirs(model), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def rename(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"x": inputs["pixel_values"], "noise": inputs["noise"]}


# ------------------------------------------------------------------------------------------- the bound and its pieces


def test_the_loss_is_its_two_terms_in_nats_per_image():
    model = build()
    output = model(**model.dummy_inputs)
    assert torch.equal(output.loss, output.reconstruction_loss + output.kl)
    with torch.no_grad():  # with all logits at 0 every pixel costs log 2, whatever it is
        model.decoder.output.weight.zero_()
        model.decoder.output.bias.zero_()
    flat = model(**model.dummy_inputs)
    assert flat.reconstruction_loss.item() == pytest.approx(64 * math.log(2), rel=1e-6)
    assert torch.equal(flat.kl, output.kl)


def test_the_divergence_is_appendix_b():
    mean, log_variance = torch.tensor([[0.0, 1.5, -2.0]]), torch.tensor([[0.0, -1.0, 0.7]])
    prior = Normal(torch.zeros(3), torch.ones(3))
    expected = kl_divergence(Normal(mean, torch.exp(0.5 * log_variance)), prior)
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected)
    assert gaussian_kl(torch.zeros(1), torch.zeros(1)).item() == 0.0


def test_gradients_pass_through_the_sample():
    mean = torch.tensor([0.3], requires_grad=True)
    log_variance = torch.tensor([math.log(4.0)], requires_grad=True)
    z = reparameterize(mean, log_variance, torch.tensor([1.5]))
    z.backward()
    assert z.item() == pytest.approx(0.3 + 2.0 * 1.5)
    assert mean.grad.item() == 1.0
    assert log_variance.grad.item() == pytest.approx(0.5 * 2.0 * 1.5)


def test_without_noise_the_latents_are_sampled_in_eval_mode_too():
    model = build()
    pixel_values = model.dummy_inputs["pixel_values"]
    torch.manual_seed(1)
    first, second = model(pixel_values), model(pixel_values)
    assert not torch.equal(first.latents, second.latents)
    assert not torch.equal(first.latents, first.mean)


class TestKlScale:
    """pytorch/examples#234 and #290: the divergence was divided by the number of pixels, or the reconstruction was
    averaged where the divergence was summed. The weight between the terms then depends on the size of the batch or of the
    image, and the loss is no bound."""

    def test_neither_term_depends_on_the_size_of_the_batch(self):
        model = build()
        once = model.dummy_inputs
        thrice = {name: value.repeat(3, *[1] * (value.ndim - 1)) for name, value in once.items()}
        small, large = model(**once), model(**thrice)
        torch.testing.assert_close(small.kl, large.kl)
        torch.testing.assert_close(small.reconstruction_loss, large.reconstruction_loss)

    def test_the_divergence_does_not_shrink_with_the_number_of_pixels(self):
        outputs = {}
        for size in (8, 16):
            model = build(image_size=size)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.zero_()
                model.encoder.mean.bias.fill_(1.0)  # KL = 1/2 for each of the 4 entries of z
            outputs[size] = model(**model.dummy_inputs)
        assert outputs[8].kl.item() == outputs[16].kl.item() == pytest.approx(2.0)
        assert outputs[16].reconstruction_loss.item() == pytest.approx(4 * outputs[8].reconstruction_loss.item())

    def test_the_reconstruction_is_summed_over_pixels_not_averaged(self):
        model = build()
        output = model(**model.dummy_inputs)
        pixel_values = model.dummy_inputs["pixel_values"]
        per_pixel = nn.functional.binary_cross_entropy(output.reconstruction, pixel_values)
        assert output.reconstruction_loss.item() == pytest.approx(64 * per_pixel.item(), rel=1e-5)


def test_the_kl_weight_scales_only_the_divergence():
    model = build()
    full, half = model(**model.dummy_inputs), model(**model.dummy_inputs, kl_weight=0.5)
    assert torch.equal(full.kl, half.kl)
    torch.testing.assert_close(half.loss, full.reconstruction_loss + 0.5 * full.kl)


def test_free_bits_stop_pressing_entries_that_say_little():
    model = build()
    with torch.no_grad():
        model.encoder.mean.weight.zero_()
        model.encoder.log_variance.weight.zero_()
        model.encoder.log_variance.bias.zero_()
        model.encoder.mean.bias.copy_(torch.tensor([2.0, 0.1, 0.0, 0.0]))  # KL 2, 0.005, 0, 0
    output = model(**model.dummy_inputs, free_bits=0.5)
    assert output.kl.item() == pytest.approx(2.005)
    assert (output.loss - output.reconstruction_loss).item() == pytest.approx(2.0 + 3 * 0.5, rel=1e-5)
    (output.loss - output.reconstruction_loss).backward()
    gradient = model.encoder.mean.bias.grad
    assert gradient[0].item() == pytest.approx(2.0, rel=1e-4)
    torch.testing.assert_close(gradient[1:], torch.zeros(3), atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------------------------------- likelihoods


def exact_log_likelihood(model: PaperVaeModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """log p(x) = log of the integral over a one-dimensional z, by a fine sum: (B, 1, H, W) -> (B,)."""
    z = torch.linspace(-9, 9, 4001)[:, None]
    with torch.no_grad():
        logits, log_variance = model.decoder(z)
    if model.config.decoder_distribution == "gaussian":
        pixels = Normal(logits.sigmoid(), torch.exp(0.5 * log_variance))
    else:
        pixels = Bernoulli(logits=logits)
    prior = Normal(0.0, 1.0).log_prob(z[:, 0])
    logs = torch.stack([pixels.log_prob(image).flatten(1).sum(1) + prior for image in pixel_values])
    return torch.logsumexp(logs.double(), dim=1) + math.log(18 / 4000)


def one_dimensional(distribution: str) -> PaperVaeModel:
    model = build(latent_size=1, decoder_distribution=distribution)
    with torch.no_grad():  # a decoder that listens to z, and a posterior that is off but wide enough
        model.decoder.layers[0].linear.weight.mul_(2.0)
        model.encoder.mean.weight.mul_(0.2)
    return model


@pytest.mark.parametrize("distribution", ["bernoulli", "gaussian"])
def test_importance_sampling_agrees_with_the_exact_likelihood(distribution: str):
    model = one_dimensional(distribution)
    pixel_values = binary_images(5)
    estimate = model.log_likelihood(pixel_values, 20_000, torch.Generator().manual_seed(0))
    exact = exact_log_likelihood(model, pixel_values).float()
    torch.testing.assert_close(estimate, exact, atol=0.03, rtol=0)


def test_the_bound_rises_from_the_elbo_to_the_likelihood_with_the_number_of_samples():
    model = one_dimensional("bernoulli")
    pixel_values = binary_images(4)
    many = pixel_values.repeat_interleave(3000, 0)
    means = []
    for samples in (1, 5, 50):
        generator = torch.Generator().manual_seed(samples)
        estimates = model.log_likelihood(many, samples, generator, chunk_size=60_000)
        means.append(estimates.view(4, -1).mean(1))
    elbo = torch.stack([-model(many[i : i + 3000]).loss.detach() for i in range(0, len(many), 3000)])
    exact = exact_log_likelihood(model, pixel_values).float()
    torch.testing.assert_close(means[0], elbo, atol=0.1, rtol=0)  # one sample is the bound of eq. 3
    assert (means[0] < means[1]).all() and (means[1] < means[2]).all()
    assert (means[2] < exact + 0.02).all()
    assert (exact - means[0] > 0.05).all()  # the posterior is off here: a gap there must be


def test_the_estimate_does_not_depend_on_how_the_work_is_cut():
    model = build()
    with torch.no_grad():  # a decoder deaf to z and q(z|x) = p(z): every sample gives log p(x) itself
        model.decoder.output.weight.zero_()
        for layer in (model.encoder.mean, model.encoder.log_variance):
            layer.weight.zero_()
            layer.bias.zero_()
    pixel_values = binary_images(7)
    expected = Bernoulli(logits=model.decoder.output.bias).log_prob(pixel_values.flatten(1)).sum(1).detach()
    for samples, chunk_size in ((1, 1), (10, 3), (10, 1000), (3, 7)):
        estimate = model.log_likelihood(pixel_values, samples, torch.Generator().manual_seed(0), chunk_size)
        torch.testing.assert_close(estimate, expected, rtol=1e-5, atol=1e-5)


def test_what_has_no_likelihood_is_refused_in_words():
    with pytest.raises(ValueError, match="make them 0 and 1"):
        build().log_likelihood(torch.full((1, 1, 8, 8), 0.5))
    with pytest.raises(ValueError, match="plain auto-encoder"):
        build(variational=False).log_likelihood(binary_images(1))
    with pytest.raises(ValueError, match="num_samples"):
        build().log_likelihood(binary_images(1), num_samples=0)


def test_the_gaussian_decoders_variance_has_a_floor():
    model = build(decoder_distribution="gaussian", min_log_variance=-3.0)
    with torch.no_grad():
        model.decoder.output.bias[64:] = -50.0
    output = model(**model.dummy_inputs)
    assert output.reconstruction_log_variance.min().item() == -3.0
    assert torch.isfinite(output.loss)


def test_a_gaussian_decoder_scores_a_wrong_image_below_the_right_one():
    model = build(decoder_distribution="gaussian")
    output = model(**model.dummy_inputs)
    right = model.log_prob(output.reconstruction, output.logits, output.reconstruction_log_variance)
    wrong = model.log_prob(1 - output.reconstruction, output.logits, output.reconstruction_log_variance)
    assert (right > wrong).all()


# ----------------------------------------------------------------------------------------------- plain auto-encoder


def test_one_flag_makes_it_a_plain_auto_encoder():
    model = build(variational=False)
    output = model(model.dummy_inputs["pixel_values"])
    assert output.log_variance is None
    assert output.kl.item() == 0.0
    assert torch.equal(output.loss, output.reconstruction_loss)
    assert torch.equal(output.latents, output.mean)
    again = model(model.dummy_inputs["pixel_values"], noise=torch.randn(4, 4), free_bits=1.0)
    assert torch.equal(again.loss, output.loss)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# --------------------------------------------------------------------------------------------------------- using it


@pytest.mark.parametrize("preset", ["tiny", "tiny-conv"])
def test_shapes_of_what_a_user_asks_for(preset: str):
    model = build(preset, num_channels=3)
    pixel_values = binary_images(5, channels=3)
    assert model.sample(6).shape == (6, 3, 8, 8)
    assert model.reconstruct(pixel_values).shape == (5, 3, 8, 8)
    assert model.interpolate(pixel_values, pixel_values.flip(0), steps=4).shape == (5, 4, 3, 8, 8)
    assert model.traverse().shape == (4, 7, 3, 8, 8)
    assert model.traverse(pixel_values[:1], [1, 3], torch.tensor([-1.0, 0.0, 1.0])).shape == (2, 3, 3, 8, 8)
    assert model.decode(torch.zeros(2, 5, 4)).shape == (2, 5, 3, 8, 8)
    for images in (model.sample(6), model.reconstruct(pixel_values)):
        assert 0 <= images.min() and images.max() <= 1


def test_sampling_repeats_with_a_generator_and_narrows_with_the_temperature():
    model = build()
    first, second = (model.sample(8, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(model.sample(2, temperature=0.0)[0], model.decode(torch.zeros(4)))


def test_an_interpolation_begins_and_ends_at_the_reconstructions():
    model = build()
    pixel_values = binary_images(2)
    between = model.interpolate(pixel_values[:1], pixel_values[1:], steps=5)[0]
    torch.testing.assert_close(between[[0, -1]], model.reconstruct(pixel_values))


def test_a_traversal_moves_one_entry_and_no_other():
    model = build()
    pixel_values = binary_images(1)
    mean = model.encode(pixel_values)[0]
    shown = model.traverse(pixel_values, [2], mean[:, 2].detach())
    torch.testing.assert_close(shown[0, 0], model.reconstruct(pixel_values)[0])
    moved = mean.clone()
    moved[0, 2] = 3.0
    torch.testing.assert_close(model.traverse(pixel_values, [2])[0, -1], model.decode(moved)[0])
    with pytest.raises(ValueError, match="one image"):
        model.traverse(binary_images(2))


def test_active_units_are_those_that_vary():
    model = build()
    pixel_values = binary_images(300)
    with torch.no_grad():
        model.encoder.mean.weight[1:3] = 0.0  # these two say the same of every image
        model.encoder.mean.bias.fill_(7.0)
        model.encoder.mean.weight[[0, 3]] *= 5
    assert model.active_units(pixel_values) == 2
    assert model.active_units(pixel_values, chunk_size=7) == 2
    with pytest.raises(ValueError, match="at least two"):
        model.active_units(pixel_values[:1])


def test_images_of_another_shape_are_refused_in_words():
    with pytest.raises(ValueError, match=r"must be \(batch, 1, 8, 8\), not \(2, 1, 28, 28\)"):
        build()(binary_images(2, size=28))
    with pytest.raises(ValueError, match="entries"):
        build().decode(torch.zeros(1, 5))


# -------------------------------------------------------------------------------------------- initialisation, config


def test_the_papers_initialisation_survives():
    torch.manual_seed(0)
    model = PaperVaeModel(PaperVaeConfig.from_preset("paper"))
    for name, parameter in model.named_parameters():
        if parameter.numel() > 400:  # biases too, as in section 5
            assert parameter.std().item() == pytest.approx(0.01, rel=0.15), name
            assert abs(parameter.mean().item()) < 0.002, name


def test_the_other_initialisation_is_by_fan_in_and_fan_out():
    model = PaperVaeModel(PaperVaeConfig.from_preset("best"))
    weight = model.encoder.layers[0].linear.weight
    bound = math.sqrt(6 / (784 + 300))
    assert 0.9 * bound < weight.abs().max().item() <= bound
    assert not model.encoder.layers[0].linear.bias.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_sise": 3}, "Did you mean 'latent_size'"),
        ({"latent_size": 0}, "latent_size must be at least 1"),
        ({"num_channels": 2}, "grey"),
        ({"encoder_hidden_sizes": ()}, "at least one layer"),
        ({"decoder_hidden_sizes": (5, 0)}, "positive sizes"),
        ({"architecture": "convolutional", "image_size": 30}, "multiple of 4"),
        ({"architecture": "convolutional", "conv_channels": ()}, "at least one stage"),
        ({"initializer_range": 0.0}, "must be positive"),
        ({"min_log_variance": 3.0}, "min_log_variance"),
        ({"decoder_distribution": "poisson"}, "decoder_distribution"),
    ],
)
def test_impossible_configurations_are_refused_in_words(options: dict, message: str):
    with pytest.raises((TypeError, StrictDataclassError), match=message):
        PaperVaeConfig(**options)


def test_presets_are_found_by_name():
    assert PaperVaeConfig.from_preset("latent2").latent_size == 2
    assert PaperVaeConfig.from_preset("paper", latent_size=5).latent_size == 5
    with pytest.raises(ValueError, match="Did you mean 'paper'"):
        PaperVaeConfig.from_preset("papr")


def test_residual_layers_add_their_input_where_sizes_agree():
    model = build(encoder_hidden_sizes=(16, 16), residual=True)
    first, second = model.encoder.layers
    assert not first.residual and second.residual
    hidden_states = torch.randn(2, 16)
    plain = torch.tanh(second.linear(hidden_states))
    torch.testing.assert_close(second(hidden_states), hidden_states + plain)


# -------------------------------------------------------------------------------------------------------- processor


class TestImageProcessor:
    grey = (np.arange(28 * 28, dtype=np.uint8).reshape(28, 28) * 3) % 255

    def process(self, image, **options) -> torch.Tensor:
        return PaperVaeImageProcessor(**options)(image, return_tensors="pt")["pixel_values"]

    def test_grey_pictures_become_numbers_from_0_to_1(self):
        pixel_values = self.process(Image.fromarray(self.grey))
        assert pixel_values.shape == (1, 1, 28, 28) and pixel_values.dtype == torch.float32
        np.testing.assert_allclose(pixel_values[0, 0].numpy(), self.grey / 255, atol=1e-6)

    def test_pictures_and_arrays_of_every_layout_agree(self):
        expected = self.process(Image.fromarray(self.grey))
        colour = np.stack([self.grey] * 3)
        for image in (self.grey, self.grey[None], self.grey[..., None], colour, np.moveaxis(colour, 0, -1)):
            torch.testing.assert_close(self.process(image), expected, atol=1.01 / 255, rtol=0)
        torch.testing.assert_close(self.process(self.grey / 255.0), expected)
        torch.testing.assert_close(self.process(torch.from_numpy(self.grey)), expected)
        assert set(self.process(self.grey > 100).unique().tolist()) == {0.0, 1.0}

    def test_colours_become_grey_and_the_size_is_made_right(self):
        red = Image.new("RGB", (50, 40), (255, 0, 0))
        pixel_values = self.process(red)
        assert pixel_values.shape == (1, 1, 28, 28)
        assert pixel_values.mean().item() == pytest.approx(76 / 255, abs=1e-6)  # ITU-R 601 weight of red
        assert self.process([red, Image.fromarray(self.grey)]).shape == (2, 1, 28, 28)
        assert self.process(red, size={"height": 8, "width": 8}, num_channels=3).shape == (1, 3, 8, 8)
        assert self.process(Image.fromarray(self.grey), num_channels=3).shape == (1, 3, 28, 28)

    def test_transparency_is_black_ground(self):
        picture = Image.new("RGBA", (28, 28), (255, 255, 255, 0))
        picture.putpixel((3, 4), (255, 255, 255, 255))
        pixel_values = self.process(picture)
        assert pixel_values.sum().item() == 1.0 and pixel_values[0, 0, 4, 3].item() == 1.0

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (np.full((28, 28), 200.0), r"must lie in \[0, 1\]"),
            (np.full((28, 28), np.nan), r"must lie in \[0, 1\]"),
            (np.full((28, 28), 4000, dtype=np.int32), r"0\.\.255"),
            (Image.new("I;16", (28, 28)), "more than 8 bits"),
            (Image.new("F", (28, 28)), "more than 8 bits"),
        ],
    )
    def test_what_would_be_misread_is_refused_in_words(self, image, message: str):
        with pytest.raises(ValueError, match=message):
            self.process(image)

    def test_it_is_saved_with_its_size(self, tmp_path: Path):
        PaperVaeImageProcessor(size={"height": 8, "width": 8}, num_channels=3).save_pretrained(tmp_path)
        PaperVaeConfig.from_preset("tiny").save_pretrained(tmp_path)
        loaded = AutoImageProcessor.from_pretrained(tmp_path)
        assert isinstance(loaded, PaperVaeImageProcessor)
        assert loaded(self.grey, return_tensors="pt")["pixel_values"].shape == (1, 3, 8, 8)


# --------------------------------------------------------------------------------------------------------- training


def small_recipe(tmp_path: Path, **overrides: str):
    options = {
        "output_dir": str(tmp_path / "run"),
        "report_to": "none",
        "progress": "false",
        "encoder_hidden_sizes": "32",
        "decoder_hidden_sizes": "32",
        "latent_size": "4",
        "max_steps": "60",
        "eval_steps": "30",
        "importance_samples": "20",
        "likelihood_images": "30",
    }
    return load_recipe("vae", "embedded", options | overrides)


def task_of(tmp_path: Path, **overrides: str):
    recipe = small_recipe(tmp_path, **overrides)
    return recipe.paper.task_class(recipe)


def test_every_recipe_is_valid_and_says_what_it_is():
    for name in PAPER.recipes:
        recipe = load_recipe("vae", name)
        assert recipe.description and recipe.estimate, name
    assert {"embedded", "mnist", "mnist-best", "mnist-conv", "mnist-latent2", "paper"} <= set(PAPER.recipes)
    paper = load_recipe("vae", "paper")
    assert paper.config.to_dict() == PaperVaeConfig.from_preset("paper").to_dict()
    assert paper.training.optimizer == "adagrad" and paper.training.per_device_train_batch_size == 100


def test_the_recipes_networks_are_the_presets():
    for recipe, preset in {"mnist-best": "best", "mnist-conv": "conv", "mnist-latent2": "latent2"}.items():
        assert load_recipe("vae", recipe).config.to_dict() == PaperVaeConfig.from_preset(preset).to_dict(), recipe


def test_the_trainer_trains_it(tmp_path: Path):
    recipe = small_recipe(tmp_path, max_steps="300", eval_steps="300", learning_rate="5e-3")
    trainer = Trainer(recipe.paper.task_class(recipe), Run(Path(recipe.output_dir)))
    trainer.prepare()
    before = trainer.evaluate(trainer.model, "validation")
    trainer.train()
    after = trainer.evaluate(trainer.model, "test")
    trainer.end()
    assert set(before) == {"negative_elbo", "reconstruction", "kl", "active_units"}
    assert set(after) == {*before, "nll"}
    assert after["negative_elbo"] == pytest.approx(after["reconstruction"] + after["kl"])
    assert after["negative_elbo"] < before["negative_elbo"] - 8
    assert after["nll"] < after["negative_elbo"] + 1  # of the first 30 images only, hence the tolerance
    assert trainer.best["value"] < before["negative_elbo"] - 8


def test_evaluation_sees_the_same_binary_images_whatever_the_seed(tmp_path: Path):
    first, second = (task_of(tmp_path, seed=seed) for seed in ("0", "1"))
    torch.rand(7)
    images = first.evaluation_images("test")
    assert torch.equal(images, second.evaluation_images("test"))
    assert ((images == 0) | (images == 1)).all()
    assert not torch.equal(first.evaluation_images("validation")[:10], images[:10])
    model = first.build_model().eval()
    with torch.no_grad():
        measured = [task.evaluate(model, "test", CONTEXT) for task in (first, second, first)]
    assert measured[0] == measured[1] == measured[2]


def test_training_images_are_drawn_anew_at_every_look(tmp_path: Path):
    grey = torch.rand(2, 1, 8, 8)
    task = task_of(tmp_path)
    torch.manual_seed(0)
    looks = torch.stack([task.binarize(grey) for _ in range(3000)])
    assert set(looks.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(looks.mean(0), grey, atol=0.05, rtol=0)
    black_and_white = torch.tensor([0.0, 1.0]).repeat(1000)
    assert torch.equal(task.binarize(black_and_white), black_and_white)
    assert torch.equal(task_of(tmp_path, binarize="threshold").binarize(grey), (grey >= 0.5).float())
    assert torch.equal(task_of(tmp_path, binarize="none").binarize(grey), grey)


def test_grey_images_under_a_bernoulli_decoder_get_no_likelihood(tmp_path: Path):
    task = task_of(tmp_path, binarize="none")
    with torch.no_grad():
        metrics = task.evaluate(task.build_model().eval(), "test", CONTEXT)
    assert "negative_elbo" in metrics and "nll" not in metrics


def test_the_gaussian_decoder_wants_grey_images(tmp_path: Path):
    with pytest.raises(UserError, match="--binarize none"):
        task_of(tmp_path, decoder_distribution="gaussian")
    task = task_of(tmp_path, decoder_distribution="gaussian", binarize="none")
    with torch.no_grad():
        metrics = task.evaluate(task.build_model().eval(), "test", CONTEXT)
    assert math.isfinite(metrics["nll"])


def test_the_kl_weight_warms_up(tmp_path: Path):
    task = task_of(tmp_path, kl_warmup_steps="100", kl_weight="2.0")
    assert [task.kl_weight(step) for step in (0, 50, 100, 5000)] == [0.0, 1.0, 2.0, 2.0]
    model = task.build_model()
    batch = {"pixel_values": binary_images(4)}
    name, loss, metrics = next(task.losses({"model": model}, {}, batch, step=0))
    assert name == "model" and torch.equal(loss.detach(), metrics["reconstruction"])
    assert metrics["kl"].item() > 0


def test_a_plain_auto_encoder_is_judged_by_its_reconstruction(tmp_path: Path):
    task = task_of(tmp_path, variational="false")
    with torch.no_grad():
        metrics = task.evaluate(task.build_model().eval(), "test", CONTEXT)
    assert set(metrics) == {"reconstruction", "active_units"}
    assert task.best_metric == "reconstruction"


def test_nonsense_options_are_refused_in_words(tmp_path: Path):
    with pytest.raises(UserError, match="free_bits"):
        task_of(tmp_path, free_bits="-1")
    with pytest.raises(UserError, match="Did you mean 'dynamic'"):
        task_of(tmp_path, binarize="dynamik")


def test_without_a_test_split_nothing_is_reported_of_it(tmp_path: Path):
    task = task_of(tmp_path, test_split="none")
    assert task.evaluate(task.build_model().eval(), "test", CONTEXT) == {}


@pytest.mark.parametrize("latent_size", ["2", "4"])
def test_figures_are_drawn(tmp_path: Path, latent_size: str):
    task = task_of(tmp_path, latent_size=latent_size)
    with torch.no_grad():
        files = task.figures(task.build_model().eval(), tmp_path / "figures", CONTEXT)
    names = {path.name for path in files.values()}
    expected = {"reconstructions.png", "samples.png", "interpolation.png", "traversals.png", "latent_map.png"}
    assert names == expected | ({"manifold.png"} if latent_size == "2" else set())
    for path in files.values():
        with Image.open(path) as picture:
            assert min(picture.size) > 50


def test_a_folder_of_colour_pictures_trains_by_one_command(tmp_path: Path):
    random = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(40):
        pixels = random.integers(0, 255, (20 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number:03}.png")
    options = {
        "dataset": str(tmp_path / "pictures"),
        "output_dir": str(tmp_path / "run"),
        "per_device_train_batch_size": "8",
        "max_steps": "2",
        "report_to": "none",
        "progress": "false",
    }
    recipe = load_recipe("vae", "images", options)
    trainer = Trainer(recipe.paper.task_class(recipe), Run(Path(recipe.output_dir)))
    trainer.prepare()
    trainer.train()
    assert trainer.task.evaluation_images("validation").shape == (4, 3, 32, 32)
    assert trainer.evaluate(trainer.model, "test") == {}  # the recipe keeps no test split of a folder that has none
    with torch.no_grad():
        trainer.task.figures(trainer.model.eval(), tmp_path / "figures", CONTEXT)
    trainer.end()
    with Image.open(tmp_path / "figures" / "samples.png") as picture:
        assert picture.mode == "RGB"


def test_principal_components_are_the_widest_directions():
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(500, 5, generator=generator) * torch.tensor([0.1, 3.0, 0.2, 1.0, 0.1])
    components = first_two_components(means)
    assert components.shape == (500, 2)
    assert abs(torch.corrcoef(torch.stack([components[:, 0], means[:, 1]]))[0, 1]) > 0.99
    assert abs(torch.corrcoef(torch.stack([components[:, 1], means[:, 3]]))[0, 1]) > 0.99
    assert torch.equal(first_two_components(means[:, :2]), means[:, :2])


def test_the_manifold_has_the_priors_middle_in_its_middle():
    model = build(latent_size=2)
    shown = manifold(model, steps=5)
    assert shown.shape == (5, 5, 1, 8, 8)
    torch.testing.assert_close(shown[2, 2], model.decode(torch.zeros(2)), atol=1e-5, rtol=0)


# ----------------------------------------------------------------------------------------------------------- README


def test_the_five_lines_of_the_readme_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    readme = (PAPER.folder / "README.md").read_text()
    code = re.search(r"<!-- five lines -->\s*```python\n(.*?)```", readme, re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line]) <= 5
    build("paper", image_size=8).save_pretrained(tmp_path / re.search(r'from_pretrained\("([^"]+)"\)', code).group(1))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.mode == "L" and picture.size == (8, 64)


def test_importing_the_package_is_enough_for_the_auto_classes(tmp_path: Path):
    assert hf_papers.PaperVaeModel is PaperVaeModel
    model = build()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, PaperVaeModel) and not loaded.training
    assert torch.equal(loaded.encoder.mean.weight, model.encoder.mean.weight)

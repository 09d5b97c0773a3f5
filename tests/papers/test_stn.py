"""Spatial Transformer Networks: the sampler and the grids against torch and scipy, the distorted digits, and its use."""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from scipy import ndimage
from scipy.interpolate import RBFInterpolator
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

import hf_papers
from hf_papers.errors import UserError
from hf_papers.papers.stn import PAPER, modeling_stn
from hf_papers.papers.stn.configuration_stn import PaperStnConfig
from hf_papers.papers.stn.distortions_stn import Dice, Distortion, homography, rotation
from hf_papers.papers.stn.image_processing_stn import PaperStnImageProcessor
from hf_papers.papers.stn.modeling_stn import (
    PaperStnForImageClassification,
    PaperStnGridGenerator,
    control_grid,
    identity_theta,
    regular_grid,
    sample_bilinear,
    spline_matrix,
)
from hf_papers.papers.stn.pictures_stn import as_picture, outline
from hf_papers.training.recipe import load_recipe
from hf_papers.training.run import Run
from hf_papers.training.task import Context
from hf_papers.training.trainer import Trainer
from tests.common.cases import Distribution, ModelCase


CONTEXT = Context(torch.device("cpu"), rank=0, world_size=1, seed=0)
TRANSFORMERS = ("affine", "projective", "tps")


class Case(ModelCase):
    """The common suite, told how the weights start, and what follows from it: behind a layer of zeros nothing gets a
    gradient before that layer has taken its first step."""

    without_gradient = ("transformers.*.localization.convolutions.*", "transformers.*.localization.hidden.*")

    def initialisation(self, model: PaperStnForImageClassification) -> dict[str, Distribution]:
        output = model.classifier.output
        found = {
            "classifier.output.weight": Distribution.normal(0, math.sqrt(2 / output.in_features)),
            "classifier.output.bias": Distribution.constant(0),
        }
        if model.transformers:
            found["transformers.*.localization.regression.weight"] = Distribution.constant(0)
        return found


def build(preset: str = "tiny", **overrides: Any) -> PaperStnForImageClassification:
    torch.manual_seed(0)
    return PaperStnForImageClassification(PaperStnConfig.from_preset(preset, **overrides)).eval()


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ------------------------------------------------------------------------------------------------------- the sampler


def test_the_model_uses_none_of_its_oracles():
    source = inspect.getsource(modeling_stn)
    assert "grid_sample" not in source and "affine_grid" not in source


def anywhere(*shape: int) -> torch.Tensor:
    """Points inside, outside and far outside of an image."""
    points = numbers(*shape, seed=1) * 3 - 1.5
    points.flatten()[:: max(1, points.numel() // 7)] *= 1e5
    return points


def kinks(size: int, other: int, align_corners: bool) -> torch.Tensor:
    """Points on the middles of pixels, half-way between them, and at and just behind the border: (2, points), `size` wide.

    Sizes have to be such that the way from pixels to coordinates and back is exact: at a kink, rounding chooses the slope.
    """
    pixels = torch.arange(-2.5, size + 2, 0.25, dtype=torch.double)
    reach = (size - 1) / 2 if align_corners else size / 2
    across = (pixels - (size - 1) / 2) / reach
    return torch.stack([across, torch.linspace(-0.9, 0.9, len(across), dtype=torch.double) * (other - 1) / other])


def assert_agrees_with_torch(images: torch.Tensor, grids: torch.Tensor, align_corners: bool) -> None:
    """Values, and both gradients, to 1e-6."""
    results = []
    for ours in (True, False):
        images, grids = (tensor.detach().clone().requires_grad_() for tensor in (images, grids))
        if ours:
            seen = sample_bilinear(images, grids, align_corners)
        else:
            theirs = grids.permute(0, 2, 3, 1)
            seen = F.grid_sample(images, theirs, align_corners=align_corners)
        seen.backward(numbers(*seen.shape, seed=2))
        results.append((seen.detach(), images.grad, grids.grad))
    for name, ours, theirs in zip(("values", "gradient of images", "gradient of positions"), *results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
        assert ours.abs().sum() > 0


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("shape", [(2, 1, 9, 6), (3, 4, 5, 12), (2, 2, 2, 31)])
def test_the_sampler_agrees_with_torchs_anywhere(shape: tuple[int, ...], align_corners: bool):
    assert_agrees_with_torch(numbers(*shape), anywhere(shape[0], 2, 13, 10), align_corners)


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_sampler_agrees_with_torchs_on_pixels_and_at_borders(align_corners: bool):
    height, width = (9, 17) if align_corners else (8, 16)
    along_x = kinks(width, height, align_corners)
    along_y = kinks(height, width, align_corners).flip(0)
    points = torch.cat([along_x, along_y], 1)[None, :, None]
    assert_agrees_with_torch(numbers(1, 3, height, width), points, align_corners)


def test_the_sampler_in_single_precision_is_as_good_as_torchs():
    images, grids = numbers(2, 3, 30, 40), anywhere(2, 2, 20, 20)
    exact = F.grid_sample(images, grids.permute(0, 2, 3, 1), align_corners=False)
    ours = sample_bilinear(images.float(), grids.float())
    theirs = F.grid_sample(images.float(), grids.float().permute(0, 2, 3, 1), align_corners=False)
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max() + 1e-6


def test_the_derivatives_are_those_of_equation_5():
    images = numbers(1, 2, 5, 4).requires_grad_()
    grids = (numbers(1, 2, 3, 3, seed=3) * 1.6 - 0.8).requires_grad_()
    assert torch.autograd.gradcheck(lambda u, g: sample_bilinear(u, g), (images, grids))


def test_only_the_gradient_that_is_asked_for_is_computed():
    images, grids = numbers(1, 1, 4, 4), numbers(1, 2, 3, 3).requires_grad_()
    sample_bilinear(images, grids).sum().backward()
    assert images.grad is None and grids.grad is not None


def test_a_position_that_is_not_a_number_gives_an_output_that_is_not_one():
    grids = torch.zeros(1, 2, 2, 2)
    grids[0, 0, 1, 1] = float("nan")
    seen = sample_bilinear(torch.ones(1, 1, 4, 4), grids)
    assert seen[0, 0, 1, 1].isnan() and torch.isfinite(seen[0, 0, 0]).all()


def test_images_in_half_precision_are_read_at_exact_places():
    """8 bits of bfloat16 for a coordinate of up to 60 pixels would be a quarter of a pixel off."""
    images = numbers(1, 1, 60, 60).float()
    grids = regular_grid(60, False).float().view(1, 2, 60, 60)
    seen = sample_bilinear(images.bfloat16(), grids)
    assert seen.dtype == torch.bfloat16 and torch.equal(seen, images.bfloat16())
    model = build("tiny", image_size=60).bfloat16()
    output = model(images.bfloat16())
    assert output.theta.dtype == torch.float32 and output.logits.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert build("tiny", image_size=60)(images).grids.dtype == torch.float32


# ------------------------------------------------------------------------------------------------ the grid generators


def generator(kind: str, size: int = 7, **options: Any) -> PaperStnGridGenerator:
    config = PaperStnConfig(transformer=kind, output_size=size, downsampling=1, classifier="fcn", **options)
    return PaperStnGridGenerator(config)


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_affine_grid_agrees_with_torchs(align_corners: bool):
    theta = (numbers(3, 6) * 2 - 1).requires_grad_()
    ours = generator("affine", align_corners=align_corners)(theta)
    theirs = F.affine_grid(theta.view(3, 2, 3), (3, 1, 7, 7), align_corners=align_corners).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    upstream = numbers(*ours.shape, seed=4)
    gradients = [torch.autograd.grad(grid, theta, upstream)[0] for grid in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", TRANSFORMERS)
@pytest.mark.parametrize("align_corners", [False, True])
def test_the_identity_is_the_regular_grid(kind: str, align_corners: bool):
    found = generator(kind, align_corners=align_corners)(identity_theta(PaperStnConfig(transformer=kind))[None])
    torch.testing.assert_close(found[0].flatten(1), regular_grid(7, align_corners).float(), rtol=0, atol=1e-5)
    assert found.shape == (1, 2, 7, 7)
    assert found[0, 0, 3, -1] > 0.8 and found[0, 1, -1, 3] > 0.8  # x to the right, y downwards


def test_a_projective_grid_is_a_homography():
    theta = torch.tensor([[1.1, 0.2, -0.1, 0.05, 0.9, 0.3, 0.25, -0.15]], dtype=torch.double)
    found = generator("projective")(theta)[0].flatten(1).T
    for (x, y), source in zip(regular_grid(7, False).T.tolist(), found.tolist(), strict=True):
        depth = 0.25 * x - 0.15 * y + 1
        assert source == pytest.approx(
            [(1.1 * x + 0.2 * y - 0.1) / depth, (0.05 * x + 0.9 * y + 0.3) / depth], abs=1e-6
        )
    flat = torch.cat([theta[:, :6], torch.zeros(1, 2, dtype=torch.double)], 1)
    torch.testing.assert_close(generator("projective")(flat), generator("affine")(theta[:, :6]))


def test_the_horizon_of_a_projective_grid_is_far_away_and_finite():
    theta = torch.tensor([[1.0, 0, 0, 0, 1, 0, 1.0, 0]], requires_grad=True)  # depth x + 1 is 0 at the left edge
    grid = generator("projective", size=5, align_corners=True)(theta)
    assert torch.isfinite(grid).all() and grid.abs().max() > 100
    sample_bilinear(torch.rand(1, 1, 5, 5), grid).sum().backward()
    assert torch.isfinite(theta.grad).all()


def test_a_thin_plate_spline_agrees_with_scipy():
    controls, targets = control_grid(4), regular_grid(9, True).T
    sources = controls + 0.2 * torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    theirs = RBFInterpolator(controls.numpy(), sources.numpy(), kernel="thin_plate_spline", degree=1)(targets.numpy())
    ours = spline_matrix(targets, controls) @ sources
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-9)
    grid = generator("tps", size=9, align_corners=True)(sources.T.reshape(1, -1))
    np.testing.assert_allclose(grid[0].flatten(1).T.numpy(), theirs, rtol=0, atol=1e-5)


def test_a_thin_plate_spline_passes_through_its_points_and_keeps_straight_lines():
    controls = control_grid(4)
    matrix = spline_matrix(controls, controls)
    torch.testing.assert_close(matrix, torch.eye(16, dtype=torch.double), rtol=0, atol=1e-9)
    targets = regular_grid(6, False).T
    affine = torch.tensor([[0.8, -0.3], [0.1, 1.2]], dtype=torch.double)
    moved = spline_matrix(targets, controls) @ (controls @ affine + 0.4)
    torch.testing.assert_close(moved, targets @ affine + 0.4, rtol=0, atol=1e-9)


# ---------------------------------------------------------------------------------------------------------- the network


def test_networks_that_are_compared_have_the_same_budget():
    """Appendix A.4: "all networks for a particular experiment contain the same number of learnable parameters"."""
    counts = {preset: parameters(build(preset)) for preset in PAPER.parameters}
    assert counts == PAPER.parameters
    assert max(counts.values()) / min(counts.values()) < 1.02


@pytest.mark.parametrize(
    ("first", "second"), [("rts-cnn", "rts-st-cnn"), ("cluttered-cnn", "cluttered-st-cnn"), ("fcn", "st-fcn")]
)
def test_recipes_that_are_compared_have_the_same_budget(first: str, second: str):
    counts = [parameters(PaperStnForImageClassification(load_recipe("stn", name).config)) for name in (first, second)]
    assert max(counts) / min(counts) < 1.02


@pytest.mark.parametrize("kind", TRANSFORMERS)
@pytest.mark.parametrize("align_corners", [False, True])
def test_a_fresh_transformer_shows_its_input_unchanged(kind: str, align_corners: bool):
    model = build("tiny", transformer=kind, downsampling=1, align_corners=align_corners, kernel_sizes=(3, 3))
    pixel_values = model.dummy_inputs["pixel_values"]
    output = model(pixel_values)
    torch.testing.assert_close(output.transformed, pixel_values, rtol=0, atol=2e-5)
    plain = build("tiny-cnn")
    plain.classifier.load_state_dict(model.classifier.state_dict())
    torch.testing.assert_close(output.logits, plain(pixel_values).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_the_localisation_network_learns_from_its_second_step_on(kind: str):
    model = build("tiny", transformer=kind).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = model.transformers[0].localization.convolutions[1].weight
    for step in range(2):
        optimizer.zero_grad()
        model(**model.dummy_inputs).loss.backward()
        assert bool(first.grad.abs().sum() > 0) == (step > 0)
        optimizer.step()


def test_a_shift_of_the_transformer_is_a_shift_of_what_it_sees():
    model = build("tiny", downsampling=1)
    with torch.no_grad():
        model.transformers[0].localization.regression.bias[2] = 2 * 3 / 28  # three pixels to the right
    pixel_values = model.dummy_inputs["pixel_values"]
    seen = model(pixel_values).transformed
    torch.testing.assert_close(seen[..., :-3], pixel_values[..., 3:], rtol=0, atol=1e-5)
    assert (seen[..., -3:] == 0).all()


def test_what_was_sampled_is_averaged_and_stacked_by_transformer():
    model = build("tiny-tps")
    with torch.no_grad():
        bias = model.transformers[1].localization.regression.bias
        bias.mul_(0.5)  # the second one looks at the middle, enlarged
    pixel_values = model.dummy_inputs["pixel_values"]
    seen = model(pixel_values).transformed
    assert seen.shape == (4, 4, 14, 14)
    torch.testing.assert_close(seen[:, :2], F.avg_pool2d(pixel_values, 2), rtol=0, atol=1e-4)
    enlarged = F.grid_sample(
        pixel_values, 0.5 * regular_grid(28, False).float().view(2, 28, 28).permute(1, 2, 0).expand(4, -1, -1, -1),
        align_corners=False,
    )  # fmt: skip
    torch.testing.assert_close(seen[:, 2:], F.avg_pool2d(enlarged, 2), rtol=0, atol=1e-4)


def test_forward_and_gradients_agree_with_a_network_of_torchs_own_parts():
    model = build("tiny")
    with torch.no_grad():
        regression = model.transformers[0].localization.regression
        regression.weight.normal_(0, 0.05)
        regression.bias.add_(torch.tensor([-0.2, 0.1, 0.15, 0.05, 0.1, -0.1]))
    inputs = model.dummy_inputs
    localization = model.transformers[0].localization

    def reference(images: torch.Tensor) -> torch.Tensor:
        halved = F.avg_pool2d(images, 2)
        first = F.max_pool2d(F.relu(localization.convolutions[1](halved)), 2, ceil_mode=True)
        hidden = F.relu(localization.hidden[0](F.relu(localization.convolutions[4](first)).flatten(1)))
        theta = F.linear(hidden, regression.weight, regression.bias).view(-1, 2, 3)
        seen = F.grid_sample(images, F.affine_grid(theta, images.shape, align_corners=False), align_corners=False)
        conv = model.classifier.layers
        maps = F.max_pool2d(F.relu(conv[0](F.avg_pool2d(seen, 2))), 2, ceil_mode=True)
        maps = F.max_pool2d(F.relu(conv[3](maps)), 2, ceil_mode=True)
        return model.classifier.output(maps.flatten(1))

    output = model(**inputs)
    torch.testing.assert_close(output.logits, reference(inputs["pixel_values"]), rtol=1e-5, atol=1e-5)
    gradients = []
    for loss in (output.loss, F.cross_entropy(reference(inputs["pixel_values"]), inputs["labels"])):
        model.zero_grad()
        loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, ours in gradients[0].items():
        torch.testing.assert_close(
            ours, gradients[1][name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tranformer": "affine"}, "Did you mean 'transformer'"),
        ({"transformer": "rigid"}, "transformer"),
        ({"transformer": "none"}, "transformer 'none' leaves no use"),
        ({"image_size": 20}, "image_size 20"),
        ({"output_size": 1}, "output_size"),
        ({"control_points": 1}, "control_points"),
        ({"conv_channels": (3,)}, "conv_channels"),
        ({"hidden_sizes": ()}, "hidden_sizes"),
        ({"num_transformers": 0}, "num_transformers"),
    ],
)
def test_impossible_configurations_are_refused_in_words(options: dict, message: str):
    with pytest.raises((TypeError, StrictDataclassError), match=message):
        PaperStnConfig(**options)


def test_images_of_another_shape_are_refused_in_words():
    with pytest.raises(ValueError, match=r"must be \(batch, 1, 28, 28\), not \(2, 1, 60, 60\)"):
        build()(torch.zeros(2, 1, 60, 60))


# -------------------------------------------------------------------------------------------------------- processor


class TestGroundIsZero:
    """pytorch/tutorials#1117: images were normalised and then sampled with zero padding. What lay outside was grey, a class
    of pixel of its own, and the transformer learnt to zoom out until everything collapsed."""

    def test_what_lies_outside_looks_like_the_ground_inside(self):
        black = PaperStnImageProcessor(size={"height": 28, "width": 28})(Image.new("L", (28, 28)), return_tensors="pt")
        model = build("tiny")
        with torch.no_grad():
            model.transformers[0].localization.regression.bias.copy_(
                torch.tensor([2.0, 0, 0, 0, 2.0, 0])
            )  # zoomed out
        seen = model(black["pixel_values"]).transformed
        assert (seen == black["pixel_values"].flatten()[0]).all(), "a frame has appeared around the image"

    def test_a_normalisation_is_refused_in_words(self):
        with pytest.raises(ValueError, match="ground of the images must be 0"):
            PaperStnImageProcessor()(Image.new("L", (28, 28)), do_normalize=True, image_mean=0.13, image_std=0.31)
        assert not PaperStnImageProcessor().do_normalize

    def test_zooming_out_of_distorted_digits_shows_no_frame(self):
        for kind in ("rotated", "rts", "projective", "elastic", "cluttered"):
            images, _ = Distortion(kind, 42)(torch.rand(4, 1, 28, 28), torch.zeros(4).long())
            grids = 1.7 * regular_grid(42, False).float().view(1, 2, 42, 42).expand(4, -1, -1, -1)
            far_out = sample_bilinear(images, grids)
            assert (far_out[..., 0, :] == 0).all() and images.min() == 0, kind


class TestImageProcessor:
    grey = (np.arange(60 * 60).reshape(60, 60) % 256).astype(np.uint8)

    def process(self, image: Any, **options: Any) -> torch.Tensor:
        return PaperStnImageProcessor(**options)(image, return_tensors="pt")["pixel_values"]

    def test_pictures_and_arrays_of_every_layout_agree(self):
        expected = self.process(Image.fromarray(self.grey))
        np.testing.assert_allclose(expected[0, 0].numpy(), self.grey / 255, atol=1e-6)
        colour = np.stack([self.grey] * 3)
        for image in (self.grey, self.grey[None], self.grey[..., None], colour, np.moveaxis(colour, 0, -1)):
            torch.testing.assert_close(self.process(image), expected, atol=1.01 / 255, rtol=0)
        torch.testing.assert_close(self.process(self.grey / 255.0), expected)
        assert self.process([Image.new("CMYK", (1, 1)), Image.new("RGBA", (2000, 9))]).shape == (2, 1, 60, 60)
        assert self.process(self.grey, num_channels=3).shape == (1, 3, 60, 60)

    def test_pairs_of_digits_are_two_channels(self):
        pair = np.stack([self.grey, 255 - self.grey])
        found = self.process(pair, num_channels=2)
        assert found.shape == (1, 2, 60, 60)
        np.testing.assert_allclose(found[0].numpy(), pair / 255, atol=1e-6)
        assert self.process(pair[:, :30, :40], num_channels=2).shape == (1, 2, 60, 60)
        with pytest.raises(ValueError, match="one channel for each"):
            self.process(Image.fromarray(self.grey), num_channels=2)

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (np.full((28, 28), 200.0), r"must lie in \[0, 1\]"),
            (np.full((28, 28), 4000, dtype=np.int32), r"0\.\.255"),
            (Image.new("I;16", (28, 28)), "more than 8 bits"),
        ],
    )
    def test_what_would_be_misread_is_refused_in_words(self, image: Any, message: str):
        with pytest.raises(ValueError, match=message):
            self.process(image)

    def test_it_is_saved_with_its_size(self, tmp_path: Path):
        PaperStnImageProcessor(size={"height": 42, "width": 42}).save_pretrained(tmp_path)
        PaperStnConfig.from_preset("tiny").save_pretrained(tmp_path)
        loaded = AutoImageProcessor.from_pretrained(tmp_path)
        assert isinstance(loaded, PaperStnImageProcessor)
        assert loaded(self.grey, return_tensors="pt")["pixel_values"].shape == (1, 1, 42, 42)


# ------------------------------------------------------------------------------------------------- the distorted digits


def bars(count: int) -> torch.Tensor:
    """Digits that are easy to follow: an upright bar a little right of the middle."""
    digits = torch.zeros(count, 1, 28, 28)
    digits[:, :, 5:23, 15:19] = 1.0
    return digits


def dice(batch: int, seed: int = 0) -> Dice:
    return Dice(batch, torch.device("cpu"), torch.Generator().manual_seed(seed))


KINDS = ("rotated", "rts", "projective", "elastic", "cluttered", "addition")


@pytest.mark.parametrize("kind", KINDS)
def test_distorted_digits_repeat_with_their_generator_and_differ_within_a_batch(kind: str):
    distortion = Distortion(kind, 60 if kind == "cluttered" else 42)
    digits, labels = bars(6), torch.arange(6)
    results = [distortion(digits, labels, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    (images, answers), again, other = results
    assert images.shape == (6, distortion.num_channels, distortion.size, distortion.size)
    assert torch.equal(images, again[0]) and torch.equal(answers, again[1])
    assert not torch.equal(images, other[0]) and not torch.equal(images[0], images[1])
    assert images.min() >= 0 and images.max() <= 1.0 + 1e-5
    torch.manual_seed(5)
    first = distortion(digits, labels)[0]
    torch.manual_seed(5)
    assert torch.equal(first, distortion(digits, labels)[0]), "a resumed run would see other images"


def test_a_rotated_digit_agrees_with_scipys_by_the_same_angle():
    images, _ = Distortion("rotated", 28)(bars(5), torch.zeros(5).long(), torch.Generator().manual_seed(0))
    angles = dice(5).uniform(-90, 90)
    assert angles.min() < -30 and angles.max() > 30
    for image, angle in zip(images, angles.tolist(), strict=True):
        expected = [ndimage.rotate(bars(1)[0, 0].numpy(), sign * angle, reshape=False, order=1) for sign in (1, -1)]
        gaps = [np.abs(image[0].numpy() - one).max() for one in expected]
        assert min(gaps) < 1e-4 < max(gaps)


def test_rts_digits_lie_inside_at_every_place_and_size():
    count = 400
    images, _ = Distortion("rts", 42)(bars(count), torch.zeros(count).long(), torch.Generator().manual_seed(0))
    areas = images.sum((1, 2, 3)) / bars(1).sum()  # the square of the scale, if nothing is cut off
    assert 0.7**2 * 0.93 < areas.min() < 0.55 and 1.3 < areas.max() < 1.2**2 * 1.05
    x = (images.sum((1, 2)) * torch.arange(42.0)).sum(1) / images.sum((1, 2, 3))
    assert x.min() < 13 and x.max() > 29


def test_a_homography_carries_corners_to_corners():
    corners = torch.tensor([[-14.0, -14], [14, -14], [14, 14], [-14, 14]])
    pulled = corners + 4 * torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    matrices = homography(pulled, corners)
    carried = torch.cat([pulled, torch.ones(3, 4, 1)], -1) @ matrices.mT
    torch.testing.assert_close(carried[..., :2] / carried[..., 2:], corners.expand(3, -1, -1), rtol=0, atol=1e-3)


def test_a_turn_of_what_is_read_is_clockwise_for_positive_degrees():
    x_axis = torch.tensor([1.0, 0.0]) @ rotation(torch.tensor([90.0]))[0]
    torch.testing.assert_close(x_axis, torch.tensor([0.0, -1.0]), atol=1e-6, rtol=0)


def test_elastic_digits_are_bent_and_not_torn():
    images, _ = Distortion("elastic", 42)(bars(50), torch.zeros(50).long(), torch.Generator().manual_seed(0))
    areas = images.sum((1, 2, 3)) / bars(1).sum()
    assert 0.35 < areas.min() and areas.max() < 1.6
    for image in images[:10]:
        assert ndimage.label(image[0].numpy() > 0.5)[1] == 1


def test_cluttered_images_hold_the_whole_digit_and_pieces_of_others():
    digits = torch.zeros(3, 1, 28, 28)
    for number, value in enumerate((0.25, 0.5, 1.0)):
        digits[number, :, 4:24, 4:24] = value
    images, labels = Distortion("cluttered", 60)(digits, torch.arange(3), torch.Generator().manual_seed(0))
    assert labels.tolist() == [0, 1, 2]
    for number, value in enumerate((0.25, 0.5, 1.0)):
        shown = images[number, 0]
        windows = (shown >= value).float()[None, None]
        assert F.avg_pool2d(windows, 20, 1).max() == 1.0, "the digit is not whole"
        others = {0.25, 0.5, 1.0} - {value}
        assert any((shown == other).any() for other in others), "no piece of another digit"
    lonely, _ = Distortion("cluttered", 60)(digits[:1], torch.zeros(1).long())
    assert torch.isfinite(lonely).all()


def test_pieces_of_clutter_have_their_number_and_size():
    places = dice(50).squares(6, 60, 8)
    assert places.shape == (50, 6, 64) and places.min() >= 0 and places.max() < 3600
    rows, columns = places // 60, places % 60
    assert (rows.amax(-1) - rows.amin(-1) == 7).all() and (columns.amax(-1) - columns.amin(-1) == 7).all()
    assert rows.max() == 59 and rows.min() == 0
    others = dice(50).others(6)
    assert not (others == torch.arange(50)[:, None]).any()


def test_the_answer_of_an_addition_is_the_sum():
    digits = torch.zeros(40, 1, 28, 28)
    for number in range(40):
        digits[number, :, 10:18, 10:18] = (number % 10 + 1) / 10
    images, sums = Distortion("addition", 42)(digits, torch.arange(40) % 10, torch.Generator().manual_seed(0))
    values = (images.amax((2, 3)) * 10).round().long() - 1  # the grey level tells which digit a channel holds
    assert torch.equal(values.sum(1), sums) and (values[:, 0] == torch.arange(40) % 10).all()
    assert not torch.equal(values[:, 0], values[:, 1])


# --------------------------------------------------------------------------------------------------------- training


def small_recipe(tmp_path: Path, **overrides: Any):
    options = {"output_dir": str(tmp_path / "run"), "report_to": "none", "progress": "false", "max_steps": "6"}
    return load_recipe("stn", "embedded", options | {key: str(value) for key, value in overrides.items()})


def task_of(tmp_path: Path, **overrides: Any):
    recipe = small_recipe(tmp_path, **overrides)
    return recipe.paper.task_class(recipe)


def train(recipe: Any) -> Trainer:
    trainer = Trainer(recipe.paper.task_class(recipe), Run(Path(recipe.output_dir)))
    trainer.prepare()
    trainer.train()
    return trainer


def test_every_recipe_is_valid_and_says_what_it_is():
    for name in PAPER.recipes:
        recipe = load_recipe("stn", name)
        assert recipe.description and recipe.estimate, name
        if recipe.data.dataset is not None:
            recipe.task  # noqa: B018
    paper = load_recipe("stn", "paper")
    assert paper.training.optimizer == "sgd" and paper.training.max_steps == 150_000
    assert paper.config.to_dict() == PaperStnConfig.from_preset("cluttered-st-cnn").to_dict()


def test_evaluation_images_are_the_same_whatever_the_seed_and_the_batches(tmp_path: Path):
    tasks = [task_of(tmp_path, seed=seed, eval_batch_size=size) for seed, size in ((0, 500), (1, 500), (0, 7))]
    looks = []
    for task in tasks:
        torch.rand(3)
        batches = list(task.examples("validation", CONTEXT.device))
        looks.append([torch.cat([batch[name] for batch in batches]) for name in ("pixel_values", "labels")])
    for images, labels in looks[1:]:
        assert torch.equal(images, looks[0][0]) and torch.equal(labels, looks[0][1])
    test = next(tasks[0].examples("test", CONTEXT.device))["pixel_values"]
    assert not torch.equal(test[:10], looks[0][0][:10])


def test_training_images_are_distorted_anew_at_every_look(tmp_path: Path):
    task = task_of(tmp_path)
    batch = next(task.batches({}, CONTEXT))
    first, second = (task.training_inputs(batch)["pixel_values"] for _ in range(2))
    assert first.shape[1:] == (1, task.recipe.config.image_size, task.recipe.config.image_size)
    assert not torch.equal(first, second)


def test_a_resumed_run_sees_the_same_images_and_ends_with_the_same_weights(tmp_path: Path):
    options = {"per_device_train_batch_size": 4, "eval_steps": 100, "save_steps": 4}
    straight = train(small_recipe(tmp_path / "a", max_steps=7, **options))
    train(small_recipe(tmp_path / "b", max_steps=7, **options)).end(more_follow=True)
    checkpoint = next((tmp_path / "b" / "run" / "checkpoints").glob("*4"))
    resumed = train(small_recipe(tmp_path / "b", max_steps=7, resume=checkpoint, **options))
    for ours, theirs in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    resumed.end(more_follow=True)


def test_additions_have_nineteen_classes_and_two_channels(tmp_path: Path):
    task = task_of(tmp_path, distortion="addition", num_channels=2, num_transformers=2)
    model = task.build_model().eval()
    assert model.config.num_labels == 19 and model.config.id2label[18] == "18"
    metrics = task.evaluate(model, "validation", CONTEXT)
    assert 50 < metrics["error_percent"] <= 100
    batch = next(task.examples("test", CONTEXT.device))
    assert batch["pixel_values"].shape[1] == 2 and batch["labels"].max() > 9


def test_the_localisation_network_may_learn_at_a_rate_of_its_own(tmp_path: Path):
    task = task_of(tmp_path, localization_rate=0.1, learning_rate=1e-2, weight_decay=0.1)
    model = task.build_model()
    optimizer = task.optimizers({"model": model})["model"]
    rates = {id(p): round(group["peak_lr"], 9) for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    assert {rates[id(p)] for p in model.transformers.parameters()} == {1e-3}
    assert {rates[id(p)] for p in model.classifier.parameters()} == {1e-2}


def test_images_of_ones_own_are_classified_as_they_are(tmp_path: Path):
    task = task_of(tmp_path, distortion="none")
    row = next(task.source.rows("train"))
    expected = task.processor(row["image"], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(task.training_inputs(task.preprocess([row]))["pixel_values"], expected.float())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distortion": "addition"}, "--num_channels 2"),
        ({"distortion": "blurred"}, "distortion cannot be 'blurred'"),
        ({"digit_size": 41}, "do not fit images"),
        ({"clutter_size": 30}, "clutter_size 30 is more than"),
        ({"clutter_patches": 0}, "clutter_patches"),
        ({"localization_rate": -1}, "localization_rate"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_words(tmp_path: Path, options: dict, message: str):
    with pytest.raises(UserError, match=message):
        task_of(tmp_path, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"transformer": "tps", "num_transformers": 2, "num_channels": 2, "distortion": "addition"},
        {"transformer": "none", "downsampling": 1},
    ],
    ids=["affine", "addition", "baseline"],
)
def test_figures_are_drawn(tmp_path: Path, options: dict):
    task = task_of(tmp_path, **options)
    with torch.no_grad():
        files = task.figures(task.build_model().eval(), tmp_path / "figures", CONTEXT)
    pictures = {"images.png"} if options.get("transformer") == "none" else {"looks.png", "averages.png"}
    assert {path.name for path in files.values()} == {"confusion.png", "mistakes.png"} | pictures
    for path in files.values():
        with Image.open(path) as picture:
            assert min(picture.size) > 50


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_outline_of_an_untouched_grid_is_the_border_of_the_image(align_corners: bool):
    grid = regular_grid(20, align_corners).view(2, 20, 20)
    border = outline(grid, 20, align_corners)
    assert border.min().item() == pytest.approx(0) and border.max().item() == pytest.approx(19)
    torch.testing.assert_close(border[:, 0], border[:, -1])


def test_two_channels_are_shown_in_two_inks():
    image = torch.zeros(2, 3, 3)
    image[0, 0, 0] = image[1, 2, 2] = 1.0
    picture = as_picture(image)
    assert picture.shape == (3, 3, 3) and (picture[1, 1] == 0).all()
    assert picture[0, 0].argmax() == 0 and picture[2, 2].argmax() == 2
    assert as_picture(image[:1]).shape == (3, 3)


# ----------------------------------------------------------------------------------------------------- README and Hub


def test_the_five_lines_of_the_readme_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    readme = (PAPER.folder / "README.md").read_text()
    code = re.search(r"<!-- five lines -->\s*```python\n(.*?)```", readme, re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line]) <= 5
    folder = tmp_path / re.search(r'"(runs/[^"]+)"', code).group(1)
    build("tiny").save_pretrained(folder)
    PaperStnImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    Image.new("L", (60, 60)).save("digit.png")
    exec(compile(code, "README.md", "exec"), {})
    assert "score" in capsys.readouterr().out


def test_the_pipeline_answers_with_probabilities_of_the_named_classes(tmp_path: Path):
    model = build("tiny")
    model.save_pretrained(tmp_path)
    PaperStnImageProcessor(size={"height": 28, "width": 28}).save_pretrained(tmp_path)
    assert hf_papers.PaperStnForImageClassification is PaperStnForImageClassification
    picture = Image.fromarray(TestImageProcessor.grey)
    answers = pipeline("image-classification", str(tmp_path))(picture, top_k=10)
    assert {answer["label"] for answer in answers} == set("0123456789")
    pixel_values = AutoImageProcessor.from_pretrained(tmp_path)(picture, return_tensors="pt")["pixel_values"]
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert answers[0]["label"] == loaded.config.id2label[loaded(pixel_values).logits.argmax().item()]

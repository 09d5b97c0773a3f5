"""LeNet-5: against independent arithmetic, against the numbers that the paper prints, and as it is used."""

from __future__ import annotations

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
from scipy.signal import correlate2d
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

import hf_papers
from hf_papers.errors import UserError
from hf_papers.papers.lenet import PAPER
from hf_papers.papers.lenet.configuration_lenet import PaperLenetConfig
from hf_papers.papers.lenet.figures_lenet import tiles
from hf_papers.papers.lenet.image_processing_lenet import PaperLenetImageProcessor
from hf_papers.papers.lenet.levenberg_marquardt_lenet import LevenbergMarquardt, diagonal_curvature
from hf_papers.papers.lenet.modeling_lenet import (
    TABLE_I,
    PaperLenetForImageClassification,
    digit_codes,
    map_loss,
    mse_loss,
    random_codes,
    scaled_tanh,
)
from hf_papers.training.recipe import load_recipe
from hf_papers.training.run import Run
from hf_papers.training.task import Context
from hf_papers.training.trainer import Trainer
from tests.common.cases import Distribution, ModelCase


CONTEXT = Context(torch.device("cpu"), rank=0, world_size=1, seed=0)


class Case(ModelCase):
    """The common suite, told how the weights start, and that the sigmoids of this network learn slowly at first."""

    overfit_steps = 500

    def initialisation(self, model: PaperLenetForImageClassification) -> dict[str, Distribution]:
        config = model.config
        pixels = config.num_channels * config.kernel_size**2
        c5 = config.conv_channels[1] * config.final_size**2
        if config.initialization == "he":
            return {
                "c1.weighted_sum.weight": Distribution.normal(0, math.sqrt(2 / pixels)),
                "c5.weighted_sum.weight": Distribution.normal(0, math.sqrt(2 / c5)),
                "*.bias": Distribution.constant(0),
            }
        uniform = {
            "c1.weighted_sum.weight": pixels,
            "c5.weighted_sum.weight": c5,
            "f6.weighted_sum.weight": config.hidden_sizes[0],
        }
        if config.subsampling == "trainable":
            uniform |= {"s[24].weighted_sum.*": 4}
        return {name: Distribution.uniform(-2.4 / fan_in, 2.4 / fan_in) for name, fan_in in uniform.items()}


def build(preset: str = "tiny", **overrides: Any) -> PaperLenetForImageClassification:
    torch.manual_seed(0)
    return PaperLenetForImageClassification(PaperLenetConfig.from_preset(preset, **overrides)).eval()


def lively(model: PaperLenetForImageClassification) -> PaperLenetForImageClassification:
    """Larger weights, so that every layer says something and errors show."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(8.0 if name.startswith(("c5", "f6")) else 2.0)
    return model


# ------------------------------------------------------------------------------------- the numbers of section II.B


def test_every_layer_has_the_papers_number_of_weights():
    model = build("paper")
    counts = {
        name: sum(parameter.numel() for parameter in getattr(model, name).parameters())
        for name in ("c1", "s2", "c3", "s4", "c5", "f6", "output")
    }
    assert counts == {"c1": 156, "s2": 12, "c3": 1_516, "s4": 32, "c5": 48_120, "f6": 10_164, "output": 0}
    assert sum(counts.values()) == 60_000 == PAPER.parameters["paper"]


def test_the_modern_network_has_its_number_of_weights():
    assert sum(p.numel() for p in build("modern").parameters()) == 61_706 == PAPER.parameters["modern"]


def test_the_network_has_the_papers_number_of_connections():
    """340,908, section II.B: the inputs of every unit, biases included."""
    model = build("paper")
    maps = model.feature_maps(model.dummy_inputs["pixel_values"])
    shapes = {name: tuple(values.shape[1:]) for name, values in maps.items()}
    assert shapes == {
        "C1": (6, 28, 28), "S2": (6, 14, 14), "C3": (16, 10, 10), "S4": (16, 5, 5), "C5": (120,), "F6": (84,),
    }  # fmt: skip
    c1, s2, c3, s4 = 6 * 28**2 * 26, 6 * 14**2 * 5, 10**2 * sum(25 * len(row) + 1 for row in TABLE_I), 16 * 5**2 * 5
    assert (c1, s2, c3, s4) == (122_304, 5_880, 151_600, 2_000)
    assert c1 + s2 + c3 + s4 + 48_120 + 10_164 + 84 * 10 == 340_908


def test_table_1_is_as_the_text_describes_it():
    neighbours = [{(start + offset) % 6 for offset in range(count)} for count in (3, 4) for start in range(6)]
    assert [set(row) for row in TABLE_I[:12]] == neighbours
    for row in TABLE_I[12:15]:  # "discontinuous subsets of four"
        assert len(row) == 4 and set(row) not in neighbours
    assert TABLE_I[15] == (0, 1, 2, 3, 4, 5)
    assert [sum(column in row for row in TABLE_I) for column in range(6)] == [10] * 6
    assert all(list(row) == sorted(row) for row in TABLE_I)


def test_the_codes_are_ten_different_pictures_of_84_pixels():
    codes = digit_codes()
    assert codes.shape == (10, 84) and set(codes.unique().tolist()) == {-1.0, 1.0}
    different = (codes[:, None] != codes[None]).sum(-1)
    assert different[~torch.eye(10, dtype=torch.bool)].min() >= 10  # a distance of at least 40 between any two
    one = codes[1].view(12, 7)
    assert (one[1:11, 3:5] == 1).all() and (one[0] == -1).all()
    assert torch.equal(random_codes(26, 30), random_codes(26, 30))
    assert set(random_codes(26, 30).unique().tolist()) == {-1.0, 1.0}


def test_the_squashing_function_is_appendix_a():
    assert scaled_tanh(torch.tensor([1.0, -1.0])).tolist() == pytest.approx([1.0, -1.0], abs=1e-4)
    assert scaled_tanh(torch.tensor(100.0)).item() == pytest.approx(1.7159)
    a = torch.tensor(0.0, dtype=torch.double, requires_grad=True)
    scaled_tanh(a).backward()
    assert a.grad.item() == pytest.approx(1.7159 * 2 / 3)


# ------------------------------------------------------------------------- parity with an independent implementation


def reference_forward(model: PaperLenetForImageClassification, image: np.ndarray) -> np.ndarray:
    """The distances of eq. 7 for one image (32, 32), by scipy and loops over maps, in double precision."""
    weights = {name: parameter.detach().double().numpy() for name, parameter in model.named_parameters()}

    def squash(a: np.ndarray) -> np.ndarray:
        return 1.7159 * np.tanh(2 / 3 * a)

    def subsample(maps: np.ndarray, name: str) -> np.ndarray:
        sums = maps.reshape(len(maps), maps.shape[1] // 2, 2, maps.shape[2] // 2, 2).sum((2, 4))
        coefficient, bias = weights[f"{name}.weighted_sum.coefficient"], weights[f"{name}.weighted_sum.bias"]
        return squash(np.stack([sums[m] * coefficient[m] + bias[m] for m in range(len(maps))]))

    filters, bias = weights["c1.weighted_sum.weight"], weights["c1.weighted_sum.bias"]
    c1 = squash(np.stack([correlate2d(image, filters[m, 0], "valid") + bias[m] for m in range(6)]))
    s2 = subsample(c1, "s2")
    filters, bias, number, c3 = weights["c3.weighted_sum.weight"], weights["c3.weighted_sum.bias"], 0, []
    for m, sources in enumerate(TABLE_I):
        total = bias[m]
        for source in sources:
            total = total + correlate2d(s2[source], filters[number], "valid")
            number += 1
        c3.append(squash(total))
    s4 = subsample(np.stack(c3), "s4")
    c5 = squash(weights["c5.weighted_sum.weight"] @ s4.ravel() + weights["c5.weighted_sum.bias"])
    f6 = squash(weights["f6.weighted_sum.weight"] @ c5 + weights["f6.weighted_sum.bias"])
    codes = digit_codes().double().numpy()
    return np.array([((f6 - code) ** 2).sum() for code in codes])


def test_the_papers_network_agrees_with_scipy():
    model = lively(build("paper"))
    pixel_values = model.dummy_inputs["pixel_values"]
    logits = model(pixel_values).logits.detach()
    for image, found in zip(pixel_values, logits, strict=True):
        expected = -reference_forward(model, image[0].double().numpy())
        np.testing.assert_allclose(found.double().numpy(), expected, rtol=1e-5, atol=1e-4)
    assert (logits.max(0).values - logits.min(0).values).max() > 1.0  # the images are told apart at all


class MaskedLenet(nn.Module):
    """LeNet-5 from torch's own layers: all 96 filters of C3, 36 of them masked; sub-sampling by grouped convolution."""

    def __init__(self, ours: PaperLenetForImageClassification) -> None:
        super().__init__()
        self.c1, self.c3 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.s2, self.s4 = nn.Conv2d(6, 6, 2, 2, groups=6), nn.Conv2d(16, 16, 2, 2, groups=16)
        self.c5, self.f6 = nn.Conv2d(16, 120, 5), nn.Linear(120, 84)
        self.mask = torch.zeros(16, 6, 1, 1)
        theirs = dict(ours.named_parameters())
        number = 0
        with torch.no_grad():
            for row, columns in enumerate(TABLE_I):
                for column in columns:
                    self.mask[row, column] = 1
                    self.c3.weight[row, column] = theirs["c3.weighted_sum.weight"][number]
                    number += 1
            self.c3.bias.copy_(theirs["c3.weighted_sum.bias"])
            for mine, name in ((self.c1, "c1"), (self.c5, "c5"), (self.f6, "f6")):
                mine.weight.copy_(theirs[f"{name}.weighted_sum.weight"].view_as(mine.weight))
                mine.bias.copy_(theirs[f"{name}.weighted_sum.bias"])
            for mine, name in ((self.s2, "s2"), (self.s4, "s4")):
                mine.weight.copy_(theirs[f"{name}.weighted_sum.coefficient"].view(-1, 1, 1, 1).expand_as(mine.weight))
                mine.bias.copy_(theirs[f"{name}.weighted_sum.bias"])

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        def squash(a: torch.Tensor) -> torch.Tensor:
            return 1.7159 * torch.tanh(2 * a / 3)

        x = squash(self.s2(squash(self.c1(x))))
        x = squash(self.s4(squash(F.conv2d(x, self.c3.weight * self.mask, self.c3.bias))))
        x = squash(self.f6(squash(self.c5(x)).flatten(1)))
        distances = torch.cdist(x, digit_codes(), compute_mode="donot_use_mm_for_euclid_dist").square()
        return map_loss(distances, labels, 20.0)


def test_gradients_agree_with_an_independent_implementation():
    model = lively(build("paper", map_constant=20.0))
    reference = MaskedLenet(model)
    inputs = model.dummy_inputs
    ours, theirs = model(**inputs).loss, reference(inputs["pixel_values"], inputs["labels"])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    ours.backward()
    theirs.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    expected = {
        "c1.weighted_sum.weight": reference.c1.weight.grad,
        "c3.weighted_sum.weight": torch.cat(
            [reference.c3.weight.grad[row, list(row_)] for row, row_ in enumerate(TABLE_I)]
        ),
        "c3.weighted_sum.bias": reference.c3.bias.grad,
        "c5.weighted_sum.weight": reference.c5.weight.grad.flatten(1),
        "f6.weighted_sum.weight": reference.f6.weight.grad,
        "s2.weighted_sum.coefficient": reference.s2.weight.grad.sum((1, 2, 3)),  # one coefficient for all four
        "s4.weighted_sum.coefficient": reference.s4.weight.grad.sum((1, 2, 3)),
        "s4.weighted_sum.bias": reference.s4.bias.grad,
    }
    for name, value in expected.items():
        torch.testing.assert_close(
            grads[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_modern_network_agrees_with_a_sequence_of_torchs_layers():
    model = build("modern")
    reference = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip
    with torch.no_grad():
        for mine, theirs in zip(reference.parameters(), model.parameters(), strict=True):
            mine.copy_(theirs)
    inputs = model.dummy_inputs
    output = model(**inputs)
    torch.testing.assert_close(output.logits, reference(inputs["pixel_values"]), rtol=1e-5, atol=1e-5)
    loss = F.cross_entropy(reference(inputs["pixel_values"]), inputs["labels"])
    torch.testing.assert_close(output.loss, loss)
    output.loss.backward()
    loss.backward()
    for mine, theirs in zip(reference.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, mine.grad, rtol=1e-5, atol=1e-6)


# ----------------------------------------------------------------------------------------------------- the criteria


def test_the_map_criterion_is_equation_9():
    distances = torch.tensor([[3.0, 7.0, 40.0], [2.0, 1.5, 60.0]], dtype=torch.double)
    labels, j = torch.tensor([0, 2]), 5.0
    expected = 0.0
    for row, label in zip(distances.tolist(), labels.tolist(), strict=True):
        expected += row[label] + math.log(math.exp(-j) + sum(math.exp(-y) for y in row))
    assert map_loss(distances, labels, j).item() == pytest.approx(expected / 2, rel=1e-12)


def test_the_map_criterion_lies_between_its_two_limits():
    distances = torch.rand(8, 10, generator=torch.Generator().manual_seed(0)) * 30
    labels = torch.arange(8)
    torch.testing.assert_close(map_loss(distances, labels, 1e4), F.cross_entropy(-distances, labels))
    far = distances + 100  # all classes much farther than the constant: nothing is left to push
    torch.testing.assert_close(map_loss(far, labels, 0.5), mse_loss(far, labels) - 0.5)
    assert mse_loss(distances, labels).item() == pytest.approx(distances[range(8), labels].mean().item())


def test_classes_that_are_far_already_are_not_pushed_on():
    """ "prevents the penalties of classes that are already very large from being pushed further up" (section II.C)."""
    distances = torch.tensor([[1.0, 8.0, 60.0]], requires_grad=True)
    map_loss(distances, torch.tensor([0]), 10.0).backward()
    right, near, far = distances.grad[0].tolist()
    assert right > 0 and near < -1e-4 and abs(far) < 1e-20


def test_the_answer_is_the_class_with_the_nearest_code():
    model = lively(build("paper"))
    pixel_values = torch.rand(20, 1, 32, 32, generator=torch.Generator().manual_seed(1)) * 4 - 2
    output = model(pixel_values, output_hidden_states=True)
    nearest = torch.cdist(output.hidden_states[-1], digit_codes()).argmin(1)
    assert torch.equal(output.logits.argmax(1), nearest)
    assert (output.logits <= 0).all()


def test_the_codes_are_not_trained_and_not_saved(tmp_path: Path):
    model = build("paper")
    assert not any("codes" in name for name in [*dict(model.named_parameters()), *model.state_dict()])
    model.save_pretrained(tmp_path)
    assert torch.equal(PaperLenetForImageClassification.from_pretrained(tmp_path).output.codes, digit_codes())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conv_chanels": (6, 16)}, "Did you mean 'conv_channels'"),
        ({"image_size": 30}, "image_size 30 does not fit"),
        ({"num_channels": 2}, "grey"),
        ({"conv_channels": (6, 16, 32)}, "two positive numbers"),
        ({"conv_channels": (8, 16)}, "connections 'table' is for 6 maps"),
        ({"output": "linear"}, "needs output 'rbf'"),
        ({"num_labels": 26}, "codes 'bitmap' are pictures of ten digits"),
        ({"hidden_sizes": (120, 80)}, "use 'random'"),
        ({"map_constant": 0}, "map_constant must be positive"),
    ],
)
def test_impossible_configurations_are_refused_in_words(options: dict, message: str):
    with pytest.raises((TypeError, StrictDataclassError), match=message):
        PaperLenetConfig(**options)


def test_other_classes_get_codes_of_their_own():
    model = build("tiny", num_labels=26, codes="random")
    assert model.output.codes.shape == (26, 84) and model(**model.dummy_inputs).logits.shape == (4, 26)


def test_images_of_another_shape_are_refused_in_words():
    with pytest.raises(ValueError, match=r"must be \(batch, 1, 32, 32\), not \(2, 1, 28, 28\)"):
        build("paper")(torch.zeros(2, 1, 28, 28))


def test_weights_start_by_the_number_of_inputs_of_their_units():
    weight = build("paper").c3.weighted_sum.weight.detach()
    start = 0
    for row in TABLE_I:
        filters, bound = weight[start : start + len(row)], 2.4 / (25 * len(row))
        assert 0.8 * bound < filters.abs().max() <= bound
        start += len(row)


# -------------------------------------------------------------------------------------------------------- processor


class TestImageProcessor:
    grey = (np.arange(28 * 28, dtype=np.uint8).reshape(28, 28) * 3) % 255

    def process(self, image: Any, **options: Any) -> torch.Tensor:
        return PaperLenetImageProcessor(**options)(image, return_tensors="pt")["pixel_values"]

    def test_ground_and_ink_have_the_papers_values_and_the_digit_is_in_the_middle(self):
        pixel_values = self.process(Image.fromarray(self.grey))
        assert pixel_values.shape == (1, 1, 32, 32) and pixel_values.dtype == torch.float32
        expected = np.pad(self.grey, 2) / 255 * 1.275 - 0.1
        np.testing.assert_allclose(pixel_values[0, 0].numpy(), expected, atol=1e-6)
        white = self.process(np.full((28, 28), 255, np.uint8))
        assert white[0, 0, 5, 5].item() == pytest.approx(1.175, abs=1e-6)

    def test_the_margin_is_ground_not_grey(self):
        """pytorch/tutorials#1117: padding with zeros behind the normalisation makes a frame that no digit has."""
        frame = self.process(Image.fromarray(self.grey))[0, 0]
        edges = torch.cat([frame[:2].flatten(), frame[-2:].flatten(), frame[:, :2].flatten(), frame[:, -2:].flatten()])
        torch.testing.assert_close(edges, torch.full_like(edges, -0.1), rtol=0, atol=1e-6)

    def test_pictures_and_arrays_of_every_layout_agree(self):
        expected = self.process(Image.fromarray(self.grey))
        colour = np.stack([self.grey] * 3)
        for image in (self.grey, self.grey[None], self.grey[..., None], colour, np.moveaxis(colour, 0, -1)):
            torch.testing.assert_close(self.process(image), expected, atol=1.3 / 255, rtol=0)
        torch.testing.assert_close(self.process(self.grey / 255.0), expected)
        assert self.process([self.grey, Image.new("CMYK", (9, 200))]).shape == (2, 1, 32, 32)

    def test_sizes_colours_and_transparency(self):
        assert self.process(Image.new("RGB", (1, 1))).shape == (1, 1, 32, 32)
        assert self.process(self.grey, num_channels=3).shape == (1, 3, 32, 32)
        assert self.process(self.grey, size={"height": 16, "width": 16}, margin=0).shape == (1, 1, 16, 16)
        clear = self.process(Image.new("RGBA", (28, 28), (255, 255, 255, 0)))
        torch.testing.assert_close(clear, torch.full_like(clear, -0.1))

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (np.full((28, 28), 200.0), r"must lie in \[0, 1\]"),
            (np.full((28, 28), np.nan), r"must lie in \[0, 1\]"),
            (np.full((28, 28), 4000, dtype=np.int32), r"0\.\.255"),
            (Image.new("I;16", (28, 28)), "more than 8 bits"),
            (np.zeros((0, 28)), "An image is"),
        ],
    )
    def test_what_would_be_misread_is_refused_in_words(self, image: Any, message: str):
        with pytest.raises(ValueError, match=message):
            self.process(image)

    @pytest.mark.parametrize(("option", "value"), [("num_channels", 2), ("margin", -1)])
    def test_nonsense_is_refused_in_words(self, option: str, value: int):
        with pytest.raises(ValueError, match=option):
            self.process(self.grey, **{option: value})

    def test_it_is_saved_with_its_size(self, tmp_path: Path):
        PaperLenetImageProcessor(size={"height": 16, "width": 16}, margin=4).save_pretrained(tmp_path)
        PaperLenetConfig.from_preset("tiny").save_pretrained(tmp_path)
        loaded = AutoImageProcessor.from_pretrained(tmp_path)
        assert isinstance(loaded, PaperLenetImageProcessor)
        assert loaded(self.grey, return_tensors="pt")["pixel_values"].shape == (1, 1, 24, 24)


# ------------------------------------------------------------------------------------------- appendix C, the optimiser


def slow_curvature(model: PaperLenetForImageClassification, image: torch.Tensor) -> dict[str, np.ndarray]:
    """h_kk for one image by the sums of appendix C, connection by connection, for the last two layers and C3's biases."""
    maps = {name: values[0].double().numpy() for name, values in model.feature_maps(image[None]).items()}

    def slope(squashed: np.ndarray) -> np.ndarray:
        return 2 / 3 * 1.7159 * (1 - (squashed / 1.7159) ** 2)

    f6_weight = model.f6.weighted_sum.weight.detach().double().numpy()
    c5_weight = model.c5.weighted_sum.weight.detach().double().numpy()
    s4_coefficient = model.s4.weighted_sum.coefficient.detach().double().numpy()
    f6 = slope(maps["F6"]) ** 2 * 2.0  # d2E/da2 of each unit
    c5 = slope(maps["C5"]) ** 2 * (f6_weight**2).T.dot(f6)
    s4 = (slope(maps["S4"]) ** 2).ravel() * (c5_weight**2).T.dot(c5)
    s4 = s4.reshape(maps["S4"].shape)
    c3 = np.zeros_like(maps["C3"])
    s4_shared = np.zeros(len(s4))
    for m, y, x in np.ndindex(*s4.shape):
        for dy, dx in np.ndindex(2, 2):  # four connections share the coefficient
            s4_shared[m] += s4[m, y, x] * maps["C3"][m, 2 * y + dy, 2 * x + dx] ** 2
            c3[m, 2 * y + dy, 2 * x + dx] = s4[m, y, x] * s4_coefficient[m] ** 2
    c3 *= slope(maps["C3"]) ** 2
    return {
        "f6.weighted_sum.weight": np.outer(f6, maps["C5"] ** 2),
        "f6.weighted_sum.bias": f6,
        "c5.weighted_sum.weight": np.outer(c5, (maps["S4"] ** 2).ravel()),
        "s4.weighted_sum.coefficient": s4_shared,
        "s4.weighted_sum.bias": s4.sum((1, 2)),
        "c3.weighted_sum.bias": c3.sum((1, 2)),
    }


def test_second_derivatives_agree_with_the_sums_of_appendix_c():
    model = lively(build())
    images = model.dummy_inputs["pixel_values"][:2]
    found = diagonal_curvature(model, images)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert set(map(id, found)) == {id(parameter) for parameter in model.parameters()}
    slow = [slow_curvature(model, image) for image in images]
    for parameter, value in found.items():
        assert value.shape == parameter.shape and (value >= 0).all()
        if names[parameter] in slow[0]:
            expected = np.mean([one[names[parameter]] for one in slow], axis=0)
            np.testing.assert_allclose(value.numpy(), expected, rtol=1e-4, atol=1e-9, err_msg=names[parameter])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_last_layers_second_derivatives_are_the_true_ones_of_the_squared_distance():
    """E = y_D is quadratic in F6, so that Gauss-Newton misses only the bend of the squashing function there."""
    model = build()
    image = model.dummy_inputs["pixel_values"][:1]
    with torch.no_grad():  # where tanh is straight
        model.f6.weighted_sum.weight.zero_()
        model.f6.weighted_sum.bias.zero_()
    bias = model.f6.weighted_sum.bias
    features = model.feature_maps(image)["C5"]

    def error(values: torch.Tensor) -> torch.Tensor:
        units = scaled_tanh(F.linear(features, model.f6.weighted_sum.weight, values))
        return (units - model.output.codes[3]).square().sum()

    exact = torch.autograd.functional.hessian(error, bias.detach()).diagonal()
    torch.testing.assert_close(diagonal_curvature(model, image)[bias], exact, rtol=1e-5, atol=1e-6)


def test_a_step_divides_each_gradient_by_its_own_second_derivative():
    weight = nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = LevenbergMarquardt([weight], lr=0.1, mu=0.5)
    optimizer.set_curvature({weight: torch.tensor([0.0, 1.5])})
    weight.grad = torch.tensor([1.0, 1.0])
    optimizer.step()
    assert weight.tolist() == pytest.approx([1 - 0.1 / 0.5, 1 - 0.1 / 2.0])
    twin = LevenbergMarquardt([weight], lr=0.3, mu=0.1)
    twin.load_state_dict(optimizer.state_dict())
    assert torch.equal(twin.state[weight]["curvature"], torch.tensor([0.0, 1.5])) and twin.param_groups[0]["mu"] == 0.5


# --------------------------------------------------------------------------------------------------------- training


def small_recipe(tmp_path: Path, name: str = "embedded", **overrides: Any):
    options = {"output_dir": str(tmp_path / "run"), "report_to": "none", "progress": "false", "max_steps": "6"}
    return load_recipe("lenet", name, options | {key: str(value) for key, value in overrides.items()})


def train(recipe: Any) -> Trainer:
    trainer = Trainer(recipe.paper.task_class(recipe), Run(Path(recipe.output_dir)))
    trainer.prepare()
    trainer.train()
    return trainer


def test_every_recipe_is_valid_and_says_what_it_is():
    for name in PAPER.recipes:
        recipe = load_recipe("lenet", name)
        assert recipe.description and recipe.estimate, name
    for name in ("mnist", "paper"):
        assert load_recipe("lenet", name).config.to_dict() == PaperLenetConfig.from_preset("paper").to_dict()
    assert load_recipe("lenet", "mnist-modern").config.to_dict() == PaperLenetConfig.from_preset("modern").to_dict()
    paper = load_recipe("lenet", "paper")
    assert paper.task.levenberg_marquardt and paper.training.per_device_train_batch_size == 1


def test_the_trainer_trains_it(tmp_path: Path):
    trainer = train(small_recipe(tmp_path, max_steps=400, eval_steps=400))
    metrics = trainer.evaluate(trainer.model, "test")
    trainer.end()
    assert metrics["error_percent"] < 30  # of 90 by chance
    assert trainer.model.config.id2label[7] == "7"


def test_appendix_c_trains_and_resumes_to_the_same_weights(tmp_path: Path):
    options = {"levenberg_marquardt": True, "rates_by_pass": "1e-4,5e-5", "curvature_images": 20, "curvature_steps": 4}
    options |= {"per_device_train_batch_size": 2, "eval_steps": 100}
    straight = train(small_recipe(tmp_path / "a", max_steps=9, **options))
    train(small_recipe(tmp_path / "b", max_steps=9, save_steps=6, **options)).end(more_follow=True)
    checkpoint = next((tmp_path / "b" / "run" / "checkpoints").glob("*6"))
    resumed = train(small_recipe(tmp_path / "b", max_steps=9, save_steps=6, resume=checkpoint, **options))
    for ours, theirs in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert straight.model.c1.weighted_sum.bias.abs().sum() > 0
    resumed.end(more_follow=True)


def test_each_pass_has_its_rate(tmp_path: Path):
    options = {"levenberg_marquardt": True, "rates_by_pass": "5e-4,2e-4", "per_device_train_batch_size": 100}
    recipe = small_recipe(tmp_path, **options)
    task = recipe.paper.task_class(recipe)
    optimizers = task.optimizers({"model": task.build_model()})
    assert task.steps_per_pass == task.train_rows() // 100
    rates = []
    for step in (0, task.steps_per_pass - 1, task.steps_per_pass, 50 * task.steps_per_pass):
        task.schedule(optimizers, step, 1000)
        rates.append(optimizers["model"].param_groups[0]["lr"])
    assert rates == [5e-4, 5e-4, 2e-4, 2e-4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levenberg_marquardt": True, "subsampling": "max"}, "paper's own layers"),
        ({"rates_by_pass": "1e-3"}, "belongs to --levenberg_marquardt"),
        ({"levenberg_marquardt": True, "mu": 0}, "mu must be positive"),
        ({"curvature_images": 0}, "curvature_images"),
        ({"levenberg_marquardt": True, "rates_by_pass": "1e-3,0"}, "rates_by_pass"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_words(tmp_path: Path, options: dict, message: str):
    with pytest.raises(UserError, match=message):
        recipe = small_recipe(tmp_path, **options)
        recipe.paper.task_class(recipe)


@pytest.mark.parametrize("preset", ["tiny", "tiny-modern"])
def test_figures_are_drawn(tmp_path: Path, preset: str):
    options = {name: value for name, value in PaperLenetConfig.presets[preset].items() if name != "hidden_sizes"}
    recipe = small_recipe(tmp_path, hidden_sizes="24,84" if preset == "tiny" else "24,20", **options)
    task = recipe.paper.task_class(recipe)
    files = task.figures(task.build_model().eval(), tmp_path / "figures", CONTEXT)
    names = {path.name for path in files.values()}
    assert names == {"confusion.png", "mistakes.png", "feature_maps.png", "filters.png"} | (
        {"codes.png"} if preset == "tiny" else set()
    )
    for path in files.values():
        with Image.open(path) as picture:
            assert min(picture.size) > 50


def test_tiles_keep_every_map():
    maps = torch.arange(5.0).view(5, 1, 1).expand(5, 2, 3)
    page = tiles(maps, columns=3)
    assert page.shape == (5, 11)
    assert page[0, 4] == 1 and page[3, 0] == 3 and page[4, 6] == 4 and page[2].isnan().all()


# ----------------------------------------------------------------------------------------------------- README and Hub


def test_the_five_lines_of_the_readme_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    readme = (PAPER.folder / "README.md").read_text()
    code = re.search(r"<!-- five lines -->\s*```python\n(.*?)```", readme, re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line]) <= 5
    folder = tmp_path / re.search(r'pipeline\("image-classification", "([^"]+)"\)', code).group(1)
    build("paper").save_pretrained(folder)
    PaperLenetImageProcessor().save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    Image.new("L", (28, 28)).save("digit.png")
    exec(compile(code, "README.md", "exec"), {})
    assert "score" in capsys.readouterr().out


def test_the_pipeline_answers_with_probabilities_of_the_named_classes(tmp_path: Path):
    model = lively(build("paper"))
    model.save_pretrained(tmp_path)
    PaperLenetImageProcessor().save_pretrained(tmp_path)
    assert hf_papers.PaperLenetForImageClassification is PaperLenetForImageClassification
    picture = Image.fromarray(TestImageProcessor.grey)
    answers = pipeline("image-classification", str(tmp_path))(picture, top_k=10)
    assert {answer["label"] for answer in answers} == set("0123456789")
    assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-5)
    pixel_values = PaperLenetImageProcessor()(picture, return_tensors="pt")["pixel_values"]
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert answers[0]["label"] == loaded.config.id2label[loaded(pixel_values).logits.argmax().item()]

"""U-Net: sizes, parity with independent implementations, tiles that equal one pass, and pictures of every kind."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

import hf_papers
from hf_papers.papers.unet import PAPER
from hf_papers.papers.unet.configuration_geometry_unet import Geometry, mirrored, tiles
from hf_papers.papers.unet.configuration_unet import PaperUnetConfig
from hf_papers.papers.unet.image_processing_unet import PaperUnetImageProcessor
from hf_papers.papers.unet.modeling_unet import (
    PaperUnetForSemanticSegmentation,
    PaperUnetModel,
    weighted_cross_entropy,
)
from tests.common.cases import Distribution, ModelCase


class Case(ModelCase):
    """The common suite, told what the bare network is drawn to and how its weights start."""

    def loss(self, outputs):
        """The bare network ends in a rectifier: it is drawn to positive numbers, one for each image and channel."""
        if hasattr(outputs, "loss"):
            return super().loss(outputs)
        value = outputs.last_hidden_state
        target = torch.rand(*value.shape[:2], 1, 1, generator=torch.Generator().manual_seed(0))
        return (value - target.to(value)).square().mean()

    def initialisation(self, model):
        found = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                found[f"{name}.weight"] = Distribution.normal(0, math.sqrt(2 / module.weight[0].numel()))
            elif isinstance(module, nn.ConvTranspose2d):
                found[f"{name}.weight"] = Distribution.normal(0, math.sqrt(2 / module.in_channels))
            elif isinstance(module, nn.BatchNorm2d):
                found[f"{name}.weight"] = Distribution.constant(1)
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)) and module.bias is not None:
                found[f"{name}.bias"] = Distribution.constant(0)
        return found

    def nonsense(self):
        return [("stage_channels", (8,)), ("stage_channels", (8, 0)), ("dropout", 1)]


def build(preset: str = "tiny", seed: int = 0, **overrides) -> PaperUnetForSemanticSegmentation:
    torch.manual_seed(seed)
    return PaperUnetForSemanticSegmentation(PaperUnetConfig.from_preset(preset, **overrides)).eval()


# ------------------------------------------------------------------------------------------------------------- sizes


def test_the_papers_network_has_exactly_its_parameters():
    with torch.device("meta"):
        model = PaperUnetForSemanticSegmentation(PaperUnetConfig())
    widths = (1, 64, 128, 256, 512, 1024)
    down = sum(9 * a * b + b + 9 * b * b + b for a, b in zip(widths, widths[1:], strict=False))
    up = sum(4 * 2 * c * c + c + 9 * 2 * c * c + c + 9 * c * c + c for c in widths[1:-1])
    assert sum(parameter.numel() for parameter in model.parameters()) == down + up + 64 * 2 + 2 == 31_030_658


def test_the_sizes_of_figure_1():
    with torch.device("meta"):
        outputs = PaperUnetForSemanticSegmentation(PaperUnetConfig())(
            torch.empty(1, 1, 572, 572), output_hidden_states=True
        )
    assert outputs.logits.shape == (1, 2, 388, 388)
    down = [(64, 568), (128, 280), (256, 136), (512, 64), (1024, 28)]
    up = [(512, 52), (256, 100), (128, 196), (64, 388)]
    assert [tuple(states.shape) for states in outputs.hidden_states] == [(1, c, s, s) for c, s in down + up]


def sizes_through(size: int, depth: int, padding: int) -> int | None:
    """The output's size by going through the network step by step; None where a size is odd or used up."""
    shrink, kept = 4 - 4 * padding, []
    for _ in range(depth):
        size -= shrink
        if size <= 0 or size % 2:
            return None
        kept.append(size)
        size //= 2
    size -= shrink
    for skipped in reversed(kept):
        size = 2 * size
        if size <= 0 or size > skipped:
            return None
        size -= shrink
    return size if size > 0 else None


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("valid", [True, False])
def test_the_geometry_is_that_of_going_through_step_by_step(depth: int, valid: bool):
    geometry = Geometry(depth, valid)
    fitting = {size: out for size in range(1, 700) if (out := sizes_through(size, depth, not valid)) is not None}
    assert {size for size in range(1, 700) if geometry.fits(size)} == set(fitting)
    assert all(geometry.output_size(size) == out for size, out in fitting.items())
    for size in (1, 50, 388, 500):
        above = [fit for fit in fitting if fit >= size]
        if above:
            below = [fit for fit in fitting if fit <= size]
            assert geometry.nearest(size) == (max(below) if below else None, min(above))
        covering = [fit for fit, out in fitting.items() if out >= size]
        if covering:
            assert geometry.input_covering(size) == min(covering)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_an_output_pixel_sees_as_far_as_the_geometry_says(depth: int, padding: str):
    config = PaperUnetConfig(stage_channels=[2] * (depth + 1), padding=padding)
    model, geometry = PaperUnetForSemanticSegmentation(config).double().eval(), config.geometry
    for parameter in model.parameters():  # nothing is rectified away
        parameter.data.uniform_(0.1, 1.0)
    size = geometry.input_covering(2 * geometry.multiple + 4 * geometry.reach)
    image = torch.rand(1, 1, size, size, dtype=torch.double, requires_grad=True)
    logits = model(image).logits[0, 0]
    farthest = 0
    for pixel in range(len(logits) // 2, len(logits) // 2 + geometry.multiple):
        gradient = torch.autograd.grad(logits[pixel, pixel], image, retain_graph=True)[0]
        rows = gradient[0, 0].sum(1).nonzero().flatten() - geometry.border
        farthest = max(farthest, pixel - int(rows.min()), int(rows.max()) - pixel)
    assert farthest == geometry.reach


@pytest.mark.parametrize(
    ("preset", "size", "words"),
    [
        (
            "tiny",
            (61, 60),
            "A height of 61 pixels cannot be halved 2 times evenly between unpadded convolutions: 60 and 64 fit",
        ),
        ("tiny", (60, 20), "A width of 20 .* 44 fits"),
        ("tiny-padded", (16, 15), "A width of 15 pixels cannot be halved 1 times evenly: 14 and 16 fit"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_nearest_that_do(preset: str, size: tuple[int, int], words: str):
    with pytest.raises(ValueError, match=words):
        build(preset)(torch.zeros(1, 1, *size))


def test_wrong_shapes_are_refused_in_words():
    with pytest.raises(ValueError, match=r"must be \(batch, 1, height, width\), not \(1, 3, 60, 60\)"):
        build()(torch.zeros(1, 3, 60, 60))
    with pytest.raises(
        ValueError, match=r"labels must be \(1, 20, 20\) \(or \(1, 60, 60\), as the images\), not \(1, 21, 21\)"
    ):
        build()(torch.zeros(1, 1, 60, 60), labels=torch.zeros(1, 21, 21, dtype=torch.long))
    labels = torch.zeros(1, 20, 20, dtype=torch.long)
    with pytest.raises(ValueError, match=r"pixel_weights must be \(1, 20, 20\) .*, not \(20, 20\)"):
        build()(torch.zeros(1, 1, 60, 60), labels, torch.ones(20, 20))


def test_a_bottom_of_one_pixel_is_nothing_to_normalise_by():
    model = build("tiny-padded").train()
    with pytest.raises(ValueError, match="One image of 2x2 pixels is a single pixel at the bottom"):
        model(torch.zeros(1, 1, 2, 2))
    assert model(torch.zeros(2, 1, 2, 2)).logits.shape == (2, 2, 2, 2)
    assert model.eval()(torch.zeros(1, 1, 2, 2)).logits.shape == (1, 2, 2, 2)


# ------------------------------------------------------------------------ parity with independent implementations


class ReferenceUnet(nn.Module):
    """The network again, written as recursion, with torch's own layers and its crop by `F.pad` with negative widths."""

    def __init__(self, config: PaperUnetConfig) -> None:
        super().__init__()
        self.config = config
        widths = (config.num_channels, *config.stage_channels)
        self.down = nn.ModuleList(self.twice(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.ups, self.up = nn.ModuleList(), nn.ModuleList()
        for below, width in zip(widths[:1:-1], widths[-2:0:-1], strict=False):
            self.ups.append(nn.ConvTranspose2d(below, width, 2, 2))
            self.up.append(self.twice(2 * width if config.skip_connections else width, width))
        self.last = nn.Conv2d(widths[1], config.num_labels, 1)

    def twice(self, ins: int, outs: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for width in (ins, outs):
            layers.append(nn.Conv2d(width, outs, 3, padding=self.config.padding, bias=not self.config.batch_norm))
            layers += [nn.BatchNorm2d(outs)] if self.config.batch_norm else []
            layers.append(nn.ReLU())
        return nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.below(x, 0))

    def below(self, x: torch.Tensor, stage: int) -> torch.Tensor:
        x = self.down[stage](x)
        if stage == len(self.ups):
            return x
        step = len(self.ups) - 1 - stage
        y = self.ups[step](self.below(nn.MaxPool2d(2)(x), stage + 1))
        if self.config.skip_connections:
            cut = (x.shape[-1] - y.shape[-1]) // 2
            y = torch.cat([F.pad(x, [-cut] * 4), y], 1)
        return self.up[step](y)

    def take(self, ours: PaperUnetForSemanticSegmentation) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Copies our weights; returns pairs (ours, this class's)."""
        pairs = []
        for mine, theirs in self.modules_beside(ours):
            mine.load_state_dict(theirs.state_dict())
            pairs += zip(theirs.parameters(), mine.parameters(), strict=True)
        return pairs

    def modules_beside(self, ours: PaperUnetForSemanticSegmentation):
        down, up = ours.unet.contracting_path.stages, ours.unet.expanding_path.stages
        blocks = list(zip(self.down, down, strict=True))
        blocks += [(block, stage.convolutions) for block, stage in zip(self.up, up, strict=True)]
        for block, stage in blocks:
            own = list(stage.convolutions), list(stage.norms)
            yield from zip([layer for layer in block if isinstance(layer, nn.Conv2d)], own[0], strict=True)
            if self.config.batch_norm:
                yield from zip([layer for layer in block if isinstance(layer, nn.BatchNorm2d)], own[1], strict=True)
        yield from ((mine, stage.up_convolution) for mine, stage in zip(self.ups, up, strict=True))
        yield self.last, ours.classifier


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-3))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "same", "batch_norm": True},
        {"skip_connections": False},
        {"stage_channels": (3, 7, 5, 6), "num_channels": 2},
    ],
    ids=["paper", "padded", "plain", "uneven"],
)
@pytest.mark.parametrize("training", [False, True])
def test_forward_and_gradients_agree_with_an_independent_implementation(options: dict, training: bool):
    model = build("tiny", dropout=0.0, **options).train(training)
    reference = ReferenceUnet(model.config).train(training)
    pairs = reference.take(model)
    inputs = model.dummy_inputs
    logits = reference(inputs["pixel_values"])
    # Eq. 1, written out.
    log_likelihood = logits.log_softmax(1).gather(1, inputs["labels"][:, None])[:, 0]
    loss = -(inputs["pixel_weights"] * log_likelihood).sum() / log_likelihood.numel()
    outputs = model(**inputs)
    assert relative(outputs.logits, logits) <= 1e-5
    assert relative(outputs.loss, loss) <= 1e-5
    outputs.loss.backward()
    loss.backward()
    for ours, theirs in pairs:
        assert relative(ours.grad, theirs.grad) <= 1e-4 if training else relative(ours.grad, theirs.grad) <= 1e-5


def test_the_padded_network_agrees_with_monais():
    nets = pytest.importorskip("monai.networks.nets", reason="MONAI is not installed: pip install 'hf-papers[peers]'")
    widths = (4, 4, 8, 16, 32)  # it halves the channels on the way up, whatever they are
    model = build("tiny-padded", stage_channels=widths)
    theirs = nets.BasicUNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=2,
        features=(*widths, widths[0]),
        act="relu",
        norm="batch",
        bias=False,
        upsample="deconv",
    ).eval()
    contracting = [theirs.conv_0, *(getattr(theirs, f"down_{step}").convs for step in (1, 2, 3, 4))]
    expanding = [getattr(theirs, f"upcat_{step}") for step in (4, 3, 2, 1)]
    blocks = list(zip(model.unet.contracting_path.stages, contracting, strict=True))
    for ours, other in zip(model.unet.expanding_path.stages, expanding, strict=True):
        blocks.append((ours.convolutions, other.convs))
        other.upsample.deconv.load_state_dict(ours.up_convolution.state_dict())
    for ours, other in blocks:
        for number, part in enumerate((other.conv_0, other.conv_1)):
            part.conv.load_state_dict(ours.convolutions[number].state_dict())
            part.adn.N.load_state_dict(ours.norms[number].state_dict())
    theirs.final_conv.load_state_dict(model.classifier.state_dict())
    images = torch.randn(2, 1, 48, 32, generator=torch.Generator().manual_seed(0))
    assert relative(model(images).logits, theirs(images)) <= 1e-5


def test_eq_1_counts_every_pixel_by_its_weight():
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 1, 0, 0] = math.log(3)  # p = 1/4, 3/4 there, 1/2 and 1/2 beside
    labels, weights = torch.tensor([[[0, 1]]]), torch.tensor([[[2.0, 5.0]]])
    expected = (2 * math.log(4) + 5 * math.log(2)) / 2
    assert weighted_cross_entropy(logits, labels, weights).item() == pytest.approx(expected)
    assert weighted_cross_entropy(logits, labels).item() == pytest.approx((math.log(4) + math.log(2)) / 2)


def test_labels_of_the_inputs_size_are_cropped_as_the_output_is():
    model = build()
    inputs = model.dummy_inputs
    size, border = inputs["pixel_values"].shape[-1], model.config.geometry.border
    large = {name: F.pad(inputs[name], [border] * 4) for name in ("labels", "pixel_weights")}
    assert large["labels"].shape[-1] == size
    assert torch.equal(model(**inputs).loss, model(inputs["pixel_values"], **large).loss)


def test_every_convolution_starts_with_the_gain_of_two_that_a_rectifier_halves_again():
    """What section 3 asks of the initialisation; with the fan-in of a transposed convolution mistaken, it fails."""
    torch.manual_seed(0)
    model = PaperUnetModel(PaperUnetConfig(stage_channels=(64, 128, 256), dropout=0.0)).eval()
    gains = {}

    def note(name: str):
        return lambda _, inputs, output: gains.update({name: float(output.var() / inputs[0].square().mean())})

    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.register_forward_hook(note(name))
    with torch.no_grad():
        model(torch.randn(4, 1, 100, 100))
    assert len(gains) == 12 and all(1.3 < gain < 2.7 for gain in gains.values()), gains


def test_dropout_is_at_the_end_of_the_way_down_and_nowhere_else():
    model = build("tiny", dropout=0.9).train()
    with torch.no_grad():
        states = model.unet(model.dummy_inputs["pixel_values"], output_hidden_states=True).hidden_states
        again = model.unet(model.dummy_inputs["pixel_values"], output_hidden_states=True).hidden_states
    same = [torch.equal(first, second) for first, second in zip(states, again, strict=True)]
    assert same == [True, False, False, False, False]


def test_without_skip_connections_only_the_bottom_is_handed_up():
    for skip_connections in (True, False):
        model = build("tiny", skip_connections=skip_connections)
        states = model.unet.contracting_path(model.dummy_inputs["pixel_values"])
        states[0].retain_grad()
        detached = [states[0], states[1], states[2].detach()]
        last = model.unet.expanding_path(detached)[-1]
        if skip_connections:
            last.sum().backward()
            assert states[0].grad.abs().sum() > 0
        else:
            grads = torch.autograd.grad(last.sum(), [states[0], states[1]], allow_unused=True)
            assert grads == (None, None)


# ------------------------------------------------------------------------------------------- images of any size


@pytest.mark.parametrize(
    "options",
    [{"stage_channels": (3, 4)}, {"stage_channels": (3, 4, 5)}, {"stage_channels": (2, 2, 3, 3)}],
    ids=["depth 1", "depth 2", "depth 3"],
)
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("views", [1, 8])
def test_tiles_equal_one_pass(options: dict, padding: str, views: int):
    model = build("tiny", padding=padding, batch_norm=padding == "same", **options)
    with torch.no_grad():
        model.classifier.weight.mul_(5)  # decided answers: differences must show
    geometry = model.config.geometry
    smallest = geometry.smallest_tile
    for height, width in ((1, 1), (37, 3), (smallest + 5, 2 * smallest + 3), (150, 40)):
        image = torch.randn(1, 1, height, width, generator=torch.Generator().manual_seed(height))
        tiled = model.segment(image, smallest, views)
        whole = model.segment(image, geometry.input_covering(400), views)
        assert tiled.shape == (1, 2, height, width)
        assert (tiled - whole).abs().max() <= 1e-5
        torch.testing.assert_close(tiled.sum(1), torch.ones(1, height, width))


def test_one_pass_of_a_padded_network_is_its_forward():
    model = build("tiny-padded")
    image = torch.randn(1, 1, 60, 80)
    assert (model.segment(image, 26) - model(image).logits.softmax(1)).abs().max() <= 1e-5


def test_beyond_its_edges_the_image_is_mirrored():
    model = build()
    border = model.config.geometry.border
    image = torch.randn(1, 1, 36, 36)
    by_hand = F.pad(image, [border] * 4, mode="reflect")
    torch.testing.assert_close(model.segment(image), model(by_hand).logits.softmax(1))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_mirroring_goes_on_as_often_as_it_takes(size: int):
    line = np.arange(size)
    assert mirrored(-17, size + 13, size) == np.pad(line, (17, 13), mode="reflect").tolist()


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_the_network_never_sees_more_than_a_tile(padding: str):
    model = build("tiny", padding=padding)
    seen = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(tuple(kwargs["pixel_values"].shape)), with_kwargs=True
    )
    done = []
    model.segment(torch.zeros(1, 1, 300, 200), 64, progress=lambda count, total: done.append((count, total)))
    assert set(seen) == {(1, 1, 64, 64)}
    assert done == [(count, len(seen)) for count in range(1, len(seen) + 1)]


def test_every_pixel_is_answered_for_once():
    for geometry in (Geometry(2, True), Geometry(3, False), Geometry(1, True)):
        for size in (1, 17, 200, 333):
            for tile in (geometry.smallest_tile, geometry.input_covering(geometry.smallest_tile + 30)):
                cut = tiles(size, tile, geometry)
                written = [range(part.write_start, part.write_stop) for part in cut]
                assert [pixel for part in written for pixel in part] == list(range(size))
                assert all((part.read_start + geometry.border) % geometry.multiple == 0 for part in cut)


def test_the_mean_over_eight_views_turns_with_the_image():
    model = build()
    image = torch.randn(1, 1, 36, 36)
    straight = model.segment(image, views=8)
    for turn in (lambda x: x.rot90(1, (-2, -1)), lambda x: x.flip(-1), lambda x: x.transpose(-2, -1)):
        torch.testing.assert_close(model.segment(turn(image), views=8), turn(straight), atol=1e-5, rtol=0)
    assert (model.segment(image.flip(-1)) - model.segment(image).flip(-1)).abs().max() > 1e-3
    rotations = model.segment(image, views=4)
    torch.testing.assert_close(
        model.segment(image.rot90(1, (-2, -1)), views=4), rotations.rot90(1, (-2, -1)), atol=1e-5, rtol=0
    )


def test_what_segment_cannot_do_it_says():
    model = build()
    with pytest.raises(ValueError, match="call model.eval"):
        model.train().segment(torch.zeros(1, 1, 60, 60))
    model.eval()
    with pytest.raises(ValueError, match="views is 1, 4"):
        model.segment(torch.zeros(1, 1, 60, 60), views=7)
    for size in (20, 61):
        with pytest.raises(ValueError, match="Tiles of .* use"):
            model.segment(torch.zeros(1, 1, 60, 60), size)


# ------------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage_chanels": (3, 4)}, "Did you mean 'stage_channels'"),
        ({"stage_channels": (64,)}, "at least two stages"),
        ({"padding": "reflect"}, "padding"),
        ({"dropout": 1.0}, "dropout"),
        ({"num_channels": 0}, "num_channels"),
    ],
)
def test_impossible_configurations_are_refused_in_words(options: dict, message: str):
    with pytest.raises((TypeError, StrictDataclassError), match=message):
        PaperUnetConfig(**options)


def test_any_number_of_classes(tmp_path: Path):
    names = {0: "ground", 1: "cell", 2: "nucleus"}
    model = build(id2label=names, label2id={name: number for number, name in names.items()})
    assert model.dummy_inputs["labels"].max() == 2
    assert model(**model.dummy_inputs).logits.shape[1] == 3
    model.save_pretrained(tmp_path)
    assert AutoModelForSemanticSegmentation.from_pretrained(tmp_path).config.id2label == names


# ---------------------------------------------------------------------------------------------------- processor


class TestImageProcessor:
    grey = (np.arange(20 * 30, dtype=np.uint8).reshape(20, 30) * 7) % 251

    def read(self, image, **options) -> np.ndarray:
        """One picture without padding, (channels, height, width), back on the scale from 0 to 1."""
        values = PaperUnetImageProcessor(**options)(image, do_pad=False, return_tensors="np")["pixel_values"]
        return values[0] * 0.25 + 0.5

    def test_grey_values_become_about_unit_variance(self):
        values = PaperUnetImageProcessor()(Image.fromarray(self.grey), do_pad=False, return_tensors="pt")[
            "pixel_values"
        ]
        assert values.shape == (1, 1, 20, 30) and values.dtype == torch.float32
        np.testing.assert_allclose(values[0, 0], (self.grey / 255 - 0.5) / 0.25, atol=1e-5)

    def test_pictures_and_arrays_of_every_layout_agree(self):
        colour = np.stack([self.grey] * 3)
        images = [self.grey, self.grey[None], self.grey[..., None], colour, np.moveaxis(colour, 0, -1)]
        images += [
            torch.from_numpy(self.grey),
            self.grey / 255.0,
            (self.grey.astype(np.uint16)),
            Image.fromarray(self.grey),
        ]
        for image in images[:-2] + images[-1:]:
            np.testing.assert_allclose(self.read(image), self.grey[None] / 255, atol=1e-6)
        assert set(np.unique(self.read(self.grey > 100)).round(5).tolist()) == {0.0, 1.0}

    def test_sixteen_bits_are_read_over_their_whole_range(self):
        deep = self.grey.astype(np.uint16) * 257
        np.testing.assert_allclose(self.read(deep), self.grey[None] / 255, atol=1e-6)
        np.testing.assert_allclose(self.read(Image.fromarray(deep)), self.grey[None] / 255, atol=1e-6)
        fine = np.array([[0, 1, 2, 65_535]], dtype=np.uint16)
        assert len(np.unique(self.read(fine))) == 4, "no precision is lost"

    def test_colours_become_grey_and_grey_becomes_colours_with_a_note(self, monkeypatch: pytest.MonkeyPatch):
        notes: list[str] = []
        monkeypatch.setattr(
            "hf_papers.papers.unet.image_processing_unet.logger.warning_once", lambda note: notes.append(note)
        )
        red = Image.new("RGB", (5, 4), (255, 0, 0))
        values = self.read(red)
        assert values.shape == (1, 4, 5)
        assert values.mean() == pytest.approx(76 / 255, abs=1e-5)  # ITU-R 601 weight of red
        assert "turned grey" in notes.pop()
        assert self.read(Image.fromarray(self.grey), num_channels=3).shape == (3, 20, 30)
        assert "made equal" in notes.pop()
        self.read(Image.fromarray(self.grey).convert("RGB"))  # grey already: nothing is lost
        assert not notes

    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_every_kind_of_picture_is_read(self, mode: str, channels: int):
        source = Image.fromarray(np.stack([self.grey] * 3, -1)) if mode == "LAB" else Image.fromarray(self.grey)
        if mode == "LAB":
            picture = Image.new("LAB", source.size, (128, 128, 128))
        elif mode.startswith("I"):
            picture = Image.fromarray(self.grey.astype(np.uint16 if ";" in mode else np.int32) * 257)
        else:
            picture = source.convert(mode)
        values = self.read(picture, num_channels=channels)
        assert values.shape == (channels, 20, 30) and 0 <= values.min() < values.max() + 1e-6 <= 1 + 1e-5
        if mode in ("L", "RGB", "I", "I;16", "LA", "RGBA"):
            np.testing.assert_allclose(values[0], self.grey / 255, atol=1.01 / 255)

    def test_transparency_is_laid_over_black(self):
        picture = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
        picture.putpixel((1, 2), (255, 255, 255, 255))
        for image in (picture, np.moveaxis(np.asarray(picture), -1, 0)):
            values = self.read(image)[0]
            assert values[2, 1] == pytest.approx(1.0) and values.sum() == pytest.approx(1.0, abs=1e-5)

    def test_a_truncated_file_is_refused_in_words(self, tmp_path: Path):
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(buffer, "PNG")
        (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:2000])
        with pytest.raises(ValueError, match="cannot be read to its end"):
            PaperUnetImageProcessor()(Image.open(tmp_path / "cut.png"))

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (np.full((8, 8), 200.0), r"must lie in \[0, 1\]"),
            (np.full((8, 8), np.nan), r"must lie in \[0, 1\]"),
            (np.full((8, 8), 70_000), "up to 65,535"),
            (np.full((8, 8), -1), "up to 65,535"),
            (Image.fromarray(np.full((8, 8), 300.0, np.float32)), r"must lie in \[0, 1\]"),
        ],
    )
    def test_what_would_be_misread_is_refused_in_words(self, image, message: str):
        with pytest.raises(ValueError, match=message):
            PaperUnetImageProcessor()(image)

    @pytest.mark.parametrize(("height", "width"), [(1, 1), (388, 388), (389, 100), (20, 500)])
    @pytest.mark.parametrize("padding", ["valid", "same"])
    def test_padding_makes_any_size_fit_and_covers_it(self, height: int, width: int, padding: str):
        processor, geometry = PaperUnetImageProcessor(padding=padding), Geometry(4, padding == "valid")
        image = np.random.default_rng(0).random((height, width))
        values = processor(image, return_tensors="pt")["pixel_values"][0, 0]
        for size, length in zip(values.shape, (height, width), strict=True):
            assert geometry.fits(size) and geometry.output_size(size) >= length
        border = geometry.border
        inside = values[border : border + height, border : border + width] * 0.25 + 0.5
        np.testing.assert_allclose(inside, image, atol=1e-5)

    def test_pictures_of_several_sizes_share_one(self):
        values = PaperUnetImageProcessor(depth=2)([self.grey, self.grey[:10]], return_tensors="pt")["pixel_values"]
        assert values.shape[0] == 2 and Geometry(2, True).fits(values.shape[-1])

    def test_nonsense_is_refused_in_words(self):
        for options, words in (
            ({"num_channels": 2}, "grey"),
            ({"depth": 0}, "depth"),
            ({"threshold": 1.0}, "threshold"),
        ):
            with pytest.raises(ValueError, match=words):
                PaperUnetImageProcessor(**options)(self.grey)

    def test_it_is_saved_with_what_the_training_chose(self, tmp_path: Path):
        processor = PaperUnetImageProcessor(num_channels=3, depth=2, padding="same")
        processor.threshold = 0.27
        processor.save_pretrained(tmp_path)
        PaperUnetConfig.from_preset("tiny").save_pretrained(tmp_path)
        loaded = AutoImageProcessor.from_pretrained(tmp_path)
        assert isinstance(loaded, PaperUnetImageProcessor)
        assert (loaded.num_channels, loaded.depth, loaded.padding, loaded.threshold) == (3, 2, "same", 0.27)


# --------------------------------------------------------------------------------------------------- using it


@pytest.mark.parametrize("preset", ["tiny", "tiny-padded"])
@pytest.mark.parametrize(("height", "width"), [(50, 37), (1, 1)])
def test_the_pipeline_gives_masks_of_the_pictures_size(preset: str, height: int, width: int):
    """Also where the network's output is smaller than its input: the usual stretching of logits would be wrong there."""
    model = build(preset, id2label={0: "membrane", 1: "cell"}, label2id={"membrane": 0, "cell": 1})
    processor = PaperUnetImageProcessor(depth=model.config.depth, padding=model.config.padding, threshold=0.4)
    pixels = np.random.default_rng(0).integers(0, 255, (height, width), dtype=np.uint8)
    segment = pipeline("image-segmentation", model=model, image_processor=processor)
    for options in ({"subtask": "semantic"}, {}):
        parts = {part["label"]: np.asarray(part["mask"]) for part in segment(Image.fromarray(pixels), **options)}
        values = processor(pixels, do_pad=False, return_tensors="pt")["pixel_values"]
        expected = (model.segment(values)[0, 1] >= 0.4).numpy()
        for label, wanted in (("cell", expected), ("membrane", ~expected)):
            if wanted.any():
                assert parts[label].shape == (height, width) and np.array_equal(parts[label] > 0, wanted)
            else:
                assert label not in parts


def test_outputs_that_do_not_cover_the_picture_are_refused_in_words():
    model = build()
    outputs = model(model.dummy_inputs["pixel_values"][:1])
    processor = PaperUnetImageProcessor()
    assert processor.post_process_semantic_segmentation(outputs)[0].shape == outputs.logits.shape[-2:]
    with pytest.raises(ValueError, match="does not cover"):
        processor.post_process_semantic_segmentation(outputs, [(100, 8)])
    with pytest.raises(ValueError, match="1 pictures and 2 target sizes"):
        processor.post_process_semantic_segmentation(outputs, [(4, 4), (4, 4)])


def test_more_than_two_classes_are_told_by_the_most_likely():
    model = build(id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2})
    outputs = model(model.dummy_inputs["pixel_values"])
    found = PaperUnetImageProcessor().post_process_semantic_segmentation(outputs, [(5, 6)] * 4)
    assert torch.equal(torch.stack(found), outputs.logits.argmax(1)[:, :5, :6])


def test_checkpointing_with_batch_norm_counts_a_batch_once():
    plain, saving = (build("tiny-padded", seed=3).train() for _ in range(2))
    saving.activation_checkpointing_enable()
    for model in (plain, saving):
        model(**model.dummy_inputs).loss.backward()
    for (name, first), (_, second) in zip(plain.named_buffers(), saving.named_buffers(), strict=True):
        assert torch.equal(first, second), name
        if name.endswith("num_batches_tracked"):
            assert first.item() == 1


def test_the_five_lines_of_the_readme_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    readme = (PAPER.folder / "README.md").read_text()
    code = re.search(r"<!-- five lines -->\s*```python\n(.*?)```", readme, re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line]) <= 5
    folder = tmp_path / re.search(r'pipeline\("image-segmentation", "([^"]+)"', code).group(1)
    model = build("tiny-padded", id2label={0: "background", 1: "cell"}, label2id={"background": 0, "cell": 1})
    model.save_pretrained(folder)
    PaperUnetImageProcessor(depth=1, padding="same").save_pretrained(folder)
    picture = re.search(r'"(\w+\.png)"', code).group(1)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30), dtype=np.uint8)).save(tmp_path / picture)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    written = [path for path in tmp_path.glob("*.png") if path.name != picture]
    assert written and all(Image.open(path).size == (30, 40) for path in written)


def test_importing_the_package_is_enough_for_the_auto_classes(tmp_path: Path):
    assert hf_papers.PaperUnetForSemanticSegmentation is PaperUnetForSemanticSegmentation
    build().save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert isinstance(loaded, PaperUnetForSemanticSegmentation) and not loaded.training

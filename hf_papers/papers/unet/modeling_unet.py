"""U-Net (Ronneberger, Fischer and Brox, 2015), https://huggingface.co/papers/1505.04597.

The network of figure 1. A way down sees more and more of the image in less and less detail; a way up brings the detail back
by taking over, at each size, the feature maps that the way down had there. Each pixel of the output is classified:

    E = - sum over pixels x of  w(x) log p_l(x)(x),   p_k(x) = exp(a_k(x)) / sum_k' exp(a_k'(x))      (section 3, eq. 1)

with a_k the last feature maps, l(x) the true class and w(x) how much the pixel counts (eq. 2, in weight_map_unet.py). The
paper's energy is a sum; here it is the mean over pixels, so that the learning rate does not depend on the size of the tiles.

Shapes: B images, C channels, H x W pixels; K classes; h x w pixels of output, smaller than H x W without padding. Stage s
has C_s = stage_channels[s] channels and a 2^s-th of the height and width.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, SemanticSegmenterOutput

from .configuration_geometry_unet import mirrored, tiles
from .configuration_unet import PaperUnetConfig


PAPER_TILE = 572  # pixels along each side of the input in figure 1


def centre_crop(values: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The middle of (..., H, W) as (..., height, width): what is left of it after unpadded convolutions."""
    top, left = (values.shape[-2] - height) // 2, (values.shape[-1] - width) // 2
    return values[..., top : top + height, left : left + width]


def weighted_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, pixel_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Eq. 1 per pixel: the mean of -w(x) log p_l(x)(x). logits (B, K, h, w), labels, pixel_weights (B, h, w) -> scalar."""
    losses = F.cross_entropy(logits.float(), labels, reduction="none")  # (B, h, w)
    return losses.mean() if pixel_weights is None else (pixel_weights * losses).mean()


def layout(maps: torch.Tensor, weight: torch.Tensor) -> torch.memory_format:
    """How maps (B, C, H, W) should lie in memory. Convolutions want channels last, and then copy their weights into that
    order too: that pays where the maps of an image are larger than the weights, but not near the bottom of the U. Not the
    maps of the batch: dropout draws its mask in the order of memory, which must not depend on the batch's size."""
    _, channels, height, width = maps.shape
    return torch.channels_last if channels * height * width > weight.numel() else torch.contiguous_format


class PaperUnetBatchNorm(nn.BatchNorm2d):
    """Batch normalisation that counts a batch once, also where checkpointing computes it again in the backward pass."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # Only inside a backward pass is there a graph task; torch's own checkpointing tells its passes apart by it.
        if self.training and not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            counted = (self.running_mean.clone(), self.running_var.clone())  # moved, and then forgotten
            return F.batch_norm(hidden_states, *counted, self.weight, self.bias, True, self.momentum, self.eps)
        return super().forward(hidden_states)


class PaperUnetConvolutions(GradientCheckpointingLayer):
    """Two 3x3 convolutions, each followed by a rectifier: (B, in_channels, H, W) -> (B, out_channels, H - 4, W - 4).

    With padding, H and W stay.
    """

    def __init__(self, config: PaperUnetConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        padding = 1 if config.padding == "same" else 0
        self.convolutions = nn.ModuleList(
            nn.Conv2d(*channels, kernel_size=3, padding=padding, bias=not config.batch_norm)
            for channels in ((in_channels, out_channels), (out_channels, out_channels))
        )
        self.norms = nn.ModuleList(
            PaperUnetBatchNorm(out_channels) if config.batch_norm else nn.Identity() for _ in self.convolutions
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            hidden_states = convolution(hidden_states)
            hidden_states = hidden_states.contiguous(memory_format=layout(hidden_states, convolution.weight))
            hidden_states = F.relu(norm(hidden_states), inplace=True)
        return hidden_states


class PaperUnetContractingPath(nn.Module):
    """The way down: convolutions, then 2x2 max pooling, the channels doubled at each step.

    pixel_values (B, C, H, W) -> feature maps of every stage, from (B, C_0, H - 4, W - 4) to the bottom of the U.
    """

    def __init__(self, config: PaperUnetConfig) -> None:
        super().__init__()
        channels = (config.num_channels, *config.stage_channels)
        self.stages = nn.ModuleList(PaperUnetConvolutions(config, *pair) for pair in pairwise(channels))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        features: list[torch.Tensor] = []
        hidden_states = pixel_values
        for stage, convolutions in enumerate(self.stages):
            if stage > 0:
                hidden_states = F.max_pool2d(hidden_states, 2)  # height and width halved
            hidden_states = convolutions(hidden_states)
            if stage >= len(self.stages) - 2:  # the end of the way down; the last skip connection carries it as well
                hidden_states = self.dropout(hidden_states)
            features.append(hidden_states)
        return features


class PaperUnetExpandingStage(nn.Module):
    """One step up: a 2x2 up-convolution that halves the channels, the cropped map from the way down beside it, convolutions.

    hidden_states (B, C_{s+1}, H, W), skipped (B, C_s, H', W') with H' >= 2 H -> (B, C_s, 2 H - 4, 2 W - 4).
    """

    def __init__(self, config: PaperUnetConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.skip_connections = config.skip_connections
        self.up_convolution = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
        self.convolutions = PaperUnetConvolutions(
            config, 2 * out_channels if config.skip_connections else out_channels, out_channels
        )

    def forward(self, hidden_states: torch.Tensor, skipped: torch.Tensor) -> torch.Tensor:
        hidden_states = self.up_convolution(hidden_states)  # (B, C_s, 2 H, 2 W)
        if self.skip_connections:
            hidden_states = torch.cat([centre_crop(skipped, *hidden_states.shape[-2:]), hidden_states], dim=1)
        return self.convolutions(hidden_states)


class PaperUnetExpandingPath(nn.Module):
    """The way up. Feature maps of every stage, from the image's size to the bottom -> of every step, the largest last."""

    def __init__(self, config: PaperUnetConfig) -> None:
        super().__init__()
        pairs = pairwise(reversed(config.stage_channels))
        self.stages = nn.ModuleList(PaperUnetExpandingStage(config, *pair) for pair in pairs)

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        hidden_states, steps = features[-1], []
        for stage, skipped in zip(self.stages, reversed(features[:-1]), strict=True):
            hidden_states = stage(hidden_states, skipped)
            steps.append(hidden_states)
        return steps


class PaperUnetPreTrainedModel(PreTrainedModel):
    """What both models share: the initialisation and the sizes that fit."""

    config: PaperUnetConfig
    base_model_prefix = "unet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["PaperUnetConvolutions", "PaperUnetExpandingStage"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """He's initialisation (section 3): N(0, 2 / N) with N the incoming nodes of one unit, so that rectified maps keep
        about unit variance. Biases are 0."""
        if isinstance(module, nn.Conv2d):
            incoming = module.in_channels * math.prod(module.kernel_size)
        elif isinstance(module, nn.ConvTranspose2d):
            incoming = module.in_channels  # with stride 2 and kernel 2, one pixel below reaches each pixel above
        else:
            super()._init_weights(module)
            return
        init.normal_(module.weight, mean=0.0, std=math.sqrt(2 / incoming))
        if module.bias is not None:
            init.zeros_(module.bias)

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Four small images that fit."""
        size = self.config.geometry.input_covering(2 * self.config.geometry.multiple)
        generator = torch.Generator().manual_seed(0)
        return {"pixel_values": torch.randn(4, self.config.num_channels, size, size, generator=generator)}

    def _check_images(self, pixel_values: torch.Tensor) -> None:
        channels, geometry = self.config.num_channels, self.config.geometry
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise ValueError(
                f"pixel_values must be (batch, {channels}, height, width), not {tuple(pixel_values.shape)}: the image "
                "processor saved beside the model brings pictures to that shape."
            )
        for name, size in zip(("height", "width"), pixel_values.shape[-2:], strict=True):
            if not geometry.fits(size):
                below, above = geometry.nearest(size)
                nearest = f"{above} fits" if below is None else f"{below} and {above} fit"
                raise ValueError(
                    f"A {name} of {size} pixels cannot be halved {geometry.depth} times evenly"
                    f"{' between unpadded convolutions' if geometry.valid else ''}: {nearest}. `segment` takes any size, "
                    "and so does the image processor."
                )


class PaperUnetModel(PaperUnetPreTrainedModel):
    """Figure 1 without its last layer: pixel_values (B, C, H, W) -> the last feature maps (B, C_0, h, w)."""

    def __init__(self, config: PaperUnetConfig) -> None:
        super().__init__(config)
        self.contracting_path = PaperUnetContractingPath(config)
        self.expanding_path = PaperUnetExpandingPath(config)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None) -> BaseModelOutput:
        """`hidden_states`: depth + 1 feature maps on the way down, then depth of them on the way up.

        Raises:
            ValueError: for images of a size that does not fit, naming those that do; and for a batch whose bottom is a
                single pixel, which batch normalisation cannot be trained on.
        """
        self._check_images(pixel_values)
        features = self.contracting_path(pixel_values)  # C_0 channels first, C_depth at the bottom
        steps = self.expanding_path(features)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return BaseModelOutput(last_hidden_state=steps[-1], hidden_states=(*features, *steps) if wanted else None)

    def _check_images(self, pixel_values: torch.Tensor) -> None:
        super()._check_images(pixel_values)
        if not (self.training and self.config.batch_norm and self.config.padding == "same"):
            return
        batch_size, _, height, width = pixel_values.shape
        if batch_size == 1 and height == width == self.config.geometry.multiple:
            raise ValueError(
                f"One image of {height}x{width} pixels is a single pixel at the bottom, and batch normalisation has "
                "nothing to compare it with: train on larger tiles or on more."
            )


class PaperUnetForSemanticSegmentation(PaperUnetPreTrainedModel):
    """U-Net: a class for every pixel."""

    def __init__(self, config: PaperUnetConfig) -> None:
        super().__init__(config)
        self.unet = PaperUnetModel(config)
        self.classifier = nn.Conv2d(config.stage_channels[0], config.num_labels, kernel_size=1)
        self.post_init()

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Four small images that fit, a class and a weight for each pixel of the output."""
        inputs = super().dummy_inputs
        size = self.config.geometry.output_size(inputs["pixel_values"].shape[-1])
        generator = torch.Generator().manual_seed(1)
        return {
            **inputs,
            "labels": torch.randint(0, self.config.num_labels, (4, size, size), generator=generator),
            "pixel_weights": 0.5 + torch.rand(4, size, size, generator=generator),
        }

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        pixel_weights: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> SemanticSegmenterOutput:
        """pixel_values (B, C, H, W) -> logits (B, K, h, w), and with labels the loss of eq. 1.

        Args:
            pixel_values: images as the image processor makes them, of a size that fits.
            labels: the class of every pixel, (B, h, w); or (B, H, W), of which the middle is used.
            pixel_weights: w(x), of the labels' shape; all 1 when not given.
            output_hidden_states: also return the feature maps, those of the way down first.
        """
        outputs = self.unet(pixel_values, output_hidden_states)
        logits = self.classifier(outputs.last_hidden_state)  # (B, K, h, w)
        loss = None
        if labels is not None:
            self._check_targets({"labels": labels, "pixel_weights": pixel_weights}, pixel_values, logits)
            height, width = logits.shape[-2:]
            if pixel_weights is not None:
                pixel_weights = centre_crop(pixel_weights, height, width)
            loss = weighted_cross_entropy(logits, centre_crop(labels, height, width), pixel_weights)
        return SemanticSegmenterOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)

    def _check_targets(
        self, targets: dict[str, torch.Tensor | None], pixel_values: torch.Tensor, logits: torch.Tensor
    ) -> None:
        """What says something of every pixel is of the output's size or of the input's."""
        sizes = [(len(pixel_values), *values.shape[-2:]) for values in (logits, pixel_values)]
        for name, values in targets.items():
            if values is not None and tuple(values.shape) not in sizes:
                raise ValueError(
                    f"{name} must be {sizes[0]} (or {sizes[1]}, as the images), not {tuple(values.shape)}."
                )

    @torch.no_grad()
    def segment(
        self,
        pixel_values: torch.Tensor,
        tile_size: int | None = None,
        views: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> torch.Tensor:
        """Probabilities of the classes for images of any size, by the overlap-tile strategy (figure 2).

        (B, C, H, W) -> (B, K, H, W). The image is cut into tiles that overlap by what the network sees beyond its output;
        what a tile needs from outside the image is the image mirrored. Memory beyond input and output is that of one
        tile, and the result is that of one pass over the whole image.

        Args:
            pixel_values: images as the image processor makes them without padding. They may stay on the CPU while the model
                is elsewhere: tiles are sent to it one by one.
            tile_size: height and width of a tile; the paper's 572, or the nearest that fits, by default.
            views: 1, or the mean over 4 rotations, or 8: these and their mirror images. The paper averages over 7 rotations.
            progress: called with (tiles done, all tiles) after each tile.
        """
        if self.training:
            raise ValueError("Dropout and batch normalisation are still in training mode: call model.eval() first.")
        if views not in (1, 4, 8):
            raise ValueError(f"views is 1, 4 (rotations) or 8 (and their mirror images), not {views}.")
        geometry = self.config.geometry
        tile_size = self._tile_size(tile_size)
        height, width = pixel_values.shape[-2:]
        probabilities = pixel_values.new_empty(
            len(pixel_values), self.config.num_labels, height, width, dtype=torch.float32
        )
        across = tiles(width, tile_size, geometry)
        pairs = [(down, right) for down in tiles(height, tile_size, geometry) for right in across]
        for done, (down, right) in enumerate(pairs, start=1):
            rows = torch.tensor(mirrored(down.read_start, down.read_stop, height), device=pixel_values.device)
            columns = torch.tensor(mirrored(right.read_start, right.read_stop, width), device=pixel_values.device)
            tile = pixel_values.index_select(-2, rows).index_select(-1, columns)
            answer = self._mean_over_views(tile.to(self.device, self.dtype), views)  # (B, K, h, w)
            taken = answer[
                ...,
                down.keep : down.keep + down.write_stop - down.write_start,
                right.keep : right.keep + right.write_stop - right.write_start,
            ]
            probabilities[..., down.write_start : down.write_stop, right.write_start : right.write_stop] = taken
            if progress is not None:
                progress(done, len(pairs))
        return probabilities

    def _tile_size(self, tile_size: int | None) -> int:
        geometry = self.config.geometry
        if tile_size is None:
            return max(geometry.nearest(PAPER_TILE)[0] or 0, geometry.smallest_tile)
        if not geometry.fits(tile_size) or tile_size < geometry.smallest_tile:
            below, above = geometry.nearest(max(tile_size, geometry.smallest_tile))
            nearest = f"{above}" if below is None or below in (above, tile_size) else f"{below} or {above}"
            raise ValueError(
                f"Tiles of {tile_size} pixels do not do for this network, whose smallest are {geometry.smallest_tile}: "
                f"use {nearest}."
            )
        return tile_size

    def _mean_over_views(self, tile: torch.Tensor, views: int) -> torch.Tensor:
        """Class probabilities (B, K, h, w) of a tile (B, C, H, W), the mean of those of its turned and mirrored versions."""
        total: torch.Tensor | None = None
        for turn, back in _views(views):
            answer = back(self(pixel_values=turn(tile)).logits.float().softmax(1))
            total = answer if total is None else total + answer
        return total / views


def _views(
    count: int,
) -> Iterator[tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]]:
    """The first `count` symmetries of a square: how to turn an image, and how to turn what was made of it back."""
    for mirror in (False, True)[: 1 + (count == 8)]:
        for quarter in range(min(count, 4)):

            def turn(images: torch.Tensor, mirror: bool = mirror, quarter: int = quarter) -> torch.Tensor:
                return torch.rot90(images.flip(-1) if mirror else images, quarter, (-2, -1))

            def back(images: torch.Tensor, mirror: bool = mirror, quarter: int = quarter) -> torch.Tensor:
                turned = torch.rot90(images, -quarter, (-2, -1))
                return turned.flip(-1) if mirror else turned

            yield turn, back


__all__ = ["PaperUnetConfig", "PaperUnetForSemanticSegmentation", "PaperUnetModel"]

"""Spatial Transformer Networks (Jaderberg et al., 2015), https://huggingface.co/papers/1506.02025.

A spatial transformer is a layer that decides where in its input to look, and reads the input there (figure 2):

    theta = f_loc(U)          a localisation network looks at the input and names a transformation          (section 3.1)
    (x_s, y_s) = T_theta(G)   a grid generator says for each output pixel where in the input it comes from  (section 3.2)
    V = sum U k(...)          a sampler reads the input there, between pixels too                           (section 3.3)

All three can be differentiated, so the localisation network learns from the loss of whatever comes behind it: nobody
tells it where the object is. Coordinates run from -1 to 1 over the input and over the output alike, x to the right and y
downwards.

Shapes: B images, C channels, H x W input pixels, h x w output pixels, P = h w, T transformers side by side.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput
from transformers.utils.generic import maybe_autocast

from .configuration_stn import PaperStnConfig


MARGIN = 2  # ground around the input, so that points outside find their neighbours too
CACHED_VALUES = 2**18
NEAR_HORIZON = 1e-3


@dataclass
class PaperStnOutput(ModelOutput):
    """What the network says of a batch of images, and where it looked.

    Args:
        loss: cross-entropy, where labels are given.
        logits: (B, classes).
        theta: the transformations, (B, T, numbers of one transformation); None without transformers.
        grids: where each output pixel was read, x and y from -1 to 1, (B, T, 2, h, w).
        transformed: what the classifier saw: (B, T C, h, w), averaged by `downsampling`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    theta: torch.FloatTensor | None = None
    grids: torch.FloatTensor | None = None
    transformed: torch.FloatTensor | None = None


# ------------------------------------------------------------------------------------------ the sampler (section 3.3)


class BilinearSampling(torch.autograd.Function):
    """Eq. 5 and its derivatives, eq. 6 and 7, in plain tensor operations.

        V_i = sum_nm U_nm max(0, 1 - |x_i - m|) max(0, 1 - |y_i - n|)

    Only the four pixels around (x_i, y_i) count. With (m, n) the upper left one of them and (dx, dy) the rest, V_i is read
    off three straight lines: one along the upper two pixels, one along the lower two, and one down from the first to the
    second.

    padded: (B, C, H + 4, W + 4), the input with a margin of ground. positions: (B, 2, P), x and y from -1 to 1. scale,
    shift: (x, y), which bring positions to pixels of `padded`. Most operations work in place: they cost as much as their
    memory.
    """

    @staticmethod
    def forward(
        ctx: Any,
        padded: torch.Tensor,
        positions: torch.Tensor,
        scale: tuple[float, float],
        shift: tuple[float, float],
    ) -> torch.Tensor:
        channels, height, width = padded.shape[1:]
        # Far outside is as good as in the outer margin: all four neighbours are ground there, and every slope is 0.
        shift_x, shift_y = positions.new_tensor(shift).unbind()
        x = torch.add(shift_x, positions[:, 0], alpha=scale[0]).clamp_(0, width - 2)  # (B, P)
        y = torch.add(shift_y, positions[:, 1], alpha=scale[1]).clamp_(0, height - 2)
        left, top = x.floor(), y.floor()
        dx, dy = x.sub_(left)[:, None], y.sub_(top)[:, None]  # (B, 1, P)
        # A position that is NaN has to give an output that is NaN, by dx and dy, and not an address outside of memory.
        index = left.add_(top, alpha=width).nan_to_num_(0.0).long()[:, None].expand(-1, channels, -1)
        pixels = padded.flatten(2)  # (B, C, (H + 4) (W + 4))
        upper = pixels.gather(2, index)
        upper_slope = pixels[:, :, 1:].gather(2, index).sub_(upper)
        upper.addcmul_(upper_slope, dx)
        lower = pixels[:, :, width:].gather(2, index)
        lower_slope = pixels[:, :, width + 1 :].gather(2, index).sub_(lower)
        drop = lower.addcmul_(lower_slope, dx).sub_(upper)
        across = upper_slope.lerp_(lower_slope, dy)  # the slope along x at the point itself, as `drop` is along y
        ctx.save_for_backward(across, drop, dx, dy, index)
        ctx.shape, ctx.scale = padded.shape, scale
        return upper.addcmul_(drop, dy)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        across, drop, dx, dy, index = ctx.saved_tensors
        to_input, to_positions = None, None
        if ctx.needs_input_grad[0]:  # eq. 6: each of the four pixels gets the share that it gave
            width = ctx.shape[3]
            pixels = gradient.new_zeros(*ctx.shape[:2], ctx.shape[2] * width)
            lower = gradient * dy
            for row, share in ((width, lower), (0, gradient - lower)):
                right = share * dx
                pixels[:, :, row + 1 :].scatter_add_(2, index, right)
                pixels[:, :, row:].scatter_add_(2, index, share.sub_(right))
            to_input = pixels.view(ctx.shape)
        if ctx.needs_input_grad[1]:  # eq. 7: the slopes of the image at that point, summed over its channels
            slopes = gradient[:, None] * gradient.new_tensor(ctx.scale)[:, None, None]  # (B, 2, C, P)
            slopes[:, 0].mul_(across)
            slopes[:, 1].mul_(drop)
            to_positions = slopes.sum(2) if slopes.shape[2] > 1 else slopes.squeeze(2)
        return to_input, to_positions, None, None


def sample_bilinear(images: torch.Tensor, grids: torch.Tensor, align_corners: bool = False) -> torch.Tensor:
    """Images (B, C, H, W) read at `grids` (B, 2, h, w), x and y from -1 to 1 -> (B, C, h, w).

    Outside of an image there is nothing: no pixel is near, and the sum of eq. 5 is 0. align_corners: -1 and 1 are the
    middles of the outermost pixels instead of their outer edges.
    """
    height, width = images.shape[-2:]
    reach = tuple((size - 1) / 2 if align_corners else size / 2 for size in (width, height))
    middle = tuple((size - 1) / 2 + MARGIN for size in (width, height))
    padded, places = F.pad(images.to(grids.dtype), (MARGIN, MARGIN, MARGIN, MARGIN)), grids.flatten(2)
    # On the CPU as many images at a time as fit the cache of a core, with all that is computed of them.
    count = max(1, CACHED_VALUES // (images.shape[1] * places.shape[2]))
    if torch.compiler.is_compiling() or images.device.type != "cpu" or len(images) <= count:
        output = BilinearSampling.apply(padded, places, reach, middle)
    else:
        parts = zip(padded.split(count), places.split(count), strict=True)
        output = torch.cat([BilinearSampling.apply(*part, reach, middle) for part in parts])
    return output.unflatten(2, grids.shape[2:]).to(images.dtype)


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


# ----------------------------------------------------------------------------------- the grid generator (section 3.2)


def regular_grid(size: int, align_corners: bool) -> torch.Tensor:
    """G: x and y of the pixels of a size x size image from -1 to 1, row by row, (2, size^2)."""
    ends = 1.0 if align_corners else 1.0 - 1.0 / size
    steps = torch.linspace(-ends, ends, size, dtype=torch.float64, device="cpu")
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()])


def control_grid(points: int) -> torch.Tensor:
    """The fixed control points of a thin-plate spline in the output, spread evenly from -1 to 1: (points^2, 2)."""
    return regular_grid(points, align_corners=True).T


def spline_matrix(targets: torch.Tensor, controls: torch.Tensor) -> torch.Tensor:
    """What a thin-plate spline makes of values at its control points: (P, 2), (K, 2) -> (P, K).

    The spline through values v at the controls c is f(t) = a_0 + a_1 t_x + a_2 t_y + sum_k w_k U(|t - c_k|) with
    U(r) = r^2 log r^2, the smoothest of all (Bookstein, 1989). Its coefficients solve linear equations in v,

        [K  P] [w]   [v]
        [P' 0] [a] = [0]        K_ij = U(|c_i - c_j|),  P_i = (1, c_i),

    so f(t) is linear in v as well, and the matrix is the same for every image.
    """

    def bend(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        squared = (a[:, None] - b[None]).square().sum(-1)
        return squared * torch.log(squared.clamp_min(1e-30))  # 0 at distance 0

    def plane(points: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.ones_like(points[:, :1]), points], 1)  # (n, 3)

    count = len(controls)
    system = torch.zeros(count + 3, count + 3, dtype=controls.dtype, device="cpu")
    system[:count, :count] = bend(controls, controls)
    system[:count, count:] = plane(controls)
    system[count:, :count] = plane(controls).T
    coefficients = torch.linalg.inv(system)[:, :count]  # (K + 3, K)
    return torch.cat([bend(targets, controls), plane(targets)], 1) @ coefficients


def identity_theta(config: PaperStnConfig) -> torch.Tensor:
    """The theta that changes nothing, (numbers,)."""
    if config.transformer == "tps":  # every control point comes from where it is
        return control_grid(config.control_points).T.flatten().float()
    return torch.eye(3, device="cpu").flatten()[: config.num_theta]


class PaperStnGridGenerator(nn.Module):
    """T_theta(G): theta (B, numbers) -> where each output pixel is read in the input, (B, 2, h, w)."""

    def __init__(self, config: PaperStnConfig) -> None:
        super().__init__()
        self.kind = config.transformer
        self.size = config.output_size or config.image_size
        self.control_points = config.control_points
        self.align_corners = config.align_corners
        # The sizes decide it, so it is not saved.
        self.register_buffer("basis", self.make_basis(), persistent=False)

    def make_basis(self) -> torch.Tensor:
        """What theta is multiplied by: (x_t, y_t, 1) of each pixel, (3, P), or the spline's matrix, (K, P)."""
        targets = regular_grid(self.size, self.align_corners)
        if self.kind == "tps":
            basis = spline_matrix(targets.T, control_grid(self.control_points)).T
        else:
            basis = torch.cat([targets, torch.ones_like(targets[:1])])
        return basis.float().contiguous()

    def forward(self, theta: torch.Tensor) -> torch.Tensor:
        basis = self.basis.to(theta.dtype)
        if self.kind == "affine":  # eq. 1
            sources = theta.unflatten(1, (2, 3)) @ basis
        elif self.kind == "projective":
            homogeneous = F.pad(theta, (0, 1), value=1.0).unflatten(1, (3, 3)) @ basis  # (B, 3, P)
            depth = homogeneous[:, 2:]
            # At depth 0 lies the horizon, infinitely far away.
            depth = torch.where(depth.abs() < NEAR_HORIZON, torch.full_like(depth, NEAR_HORIZON), depth)
            sources = homogeneous[:, :2] / depth
        else:
            sources = theta.unflatten(1, (2, -1)) @ basis
        return sources.unflatten(2, (self.size, self.size))


# ----------------------------------------------------------------- the localisation network and the layer (section 3.1)


class PaperStnLocalization(GradientCheckpointingLayer):
    """f_loc of appendix A.4: images (B, C, H, W) -> theta (B, numbers).

    "cnn": half the resolution, two convolutions of 5 x 5 with a pooling in between, fully connected layers. "fcn": fully
    connected layers alone. The last layer starts with weights of 0 and the identity as its bias, so that training begins
    with the input as it is.
    """

    def __init__(self, config: PaperStnConfig) -> None:
        super().__init__()
        self.convolutions = nn.Sequential()
        features = config.num_channels * config.image_size**2
        if config.localization == "cnn":
            first, second = config.localization_channels
            self.convolutions = nn.Sequential(
                nn.AvgPool2d(2),
                nn.Conv2d(config.num_channels, first, 5),
                nn.ReLU(),
                nn.MaxPool2d(2, ceil_mode=True),
                nn.Conv2d(first, second, 5),
                nn.ReLU(),
            )
            features = second * config.localization_maps()[1] ** 2
        self.hidden = nn.Sequential()
        for size in config.localization_sizes:
            self.hidden.append(nn.Linear(features, size))
            self.hidden.append(nn.ReLU())
            features = size
        self.regression = PaperStnRegression(features, config.num_theta)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.regression(self.hidden(self.convolutions(images).flatten(1)))


class PaperStnRegression(nn.Linear):
    """The last layer of a localisation network: (B, features) -> theta (B, numbers), never below float32.

    With the 8 bits of bfloat16 a transformer could not tell neighbouring pixels apart.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with maybe_autocast(features.device.type, enabled=False):
            return F.linear(at_least_float32(features), at_least_float32(self.weight), at_least_float32(self.bias))


class PaperStnTransformer(nn.Module):
    """Images (B, C, H, W) -> what it sees (B, C, h, w), where it looked (B, 2, h, w), and theta (B, numbers)."""

    def __init__(self, config: PaperStnConfig) -> None:
        super().__init__()
        self.align_corners = config.align_corners
        self.localization = PaperStnLocalization(config)
        self.grid_generator = PaperStnGridGenerator(config)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        theta = self.localization(images)
        with maybe_autocast(images.device.type, enabled=False):
            grids = self.grid_generator(theta)
            return sample_bilinear(images, grids, self.align_corners), grids, theta


# --------------------------------------------------------------------------------- the classifiers (appendix A.4)


class PaperStnClassifier(GradientCheckpointingLayer):
    """A "cnn", two convolutions, each with a pooling, or an "fcn", fully connected layers; behind them the output layer.

    Images (B, T C, h, w) -> logits (B, classes). Pooling keeps a last odd row, without which the 7 x 7 filters of the second
    convolution would not fit what is left of 21 x 21 pixels.
    """

    def __init__(self, config: PaperStnConfig) -> None:
        super().__init__()
        channels, side = config.num_channels * config.num_transformers, config.classifier_input
        if config.classifier == "cnn":
            (first, second), (wide, narrow) = config.conv_channels, config.kernel_sizes
            layers = [nn.Conv2d(channels, first, wide), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
            layers += [nn.Conv2d(first, second, narrow), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True), nn.Flatten()]
            features = second * config.classifier_maps()[1] ** 2
        else:
            layers, features = [nn.Flatten()], channels * side**2
            for size in config.hidden_sizes:
                layers += [nn.Linear(features, size), nn.ReLU()]
                features = size
        self.layers = nn.Sequential(*layers)
        self.output = nn.Linear(features, config.num_labels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.output(self.layers(images))


class PaperStnForImageClassification(PreTrainedModel):
    """Spatial transformers side by side, and a classifier of what they see (section 3.4)."""

    config: PaperStnConfig
    base_model_prefix = "stn"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["PaperStnLocalization", "PaperStnClassifier"]

    def __init__(self, config: PaperStnConfig) -> None:
        super().__init__(config)
        count = config.num_transformers if config.transformer != "none" else 0
        self.transformers = nn.ModuleList(PaperStnTransformer(config) for _ in range(count))
        self.classifier = PaperStnClassifier(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Random weights as 1502.01852 draws them for rectifiers; localisation begins with the identity (section 4.1)."""
        if isinstance(module, PaperStnRegression):
            init.zeros_(module.weight)
            init.copy_(module.bias, identity_theta(self.config))
        elif isinstance(module, PaperStnGridGenerator):
            init.copy_(module.basis, module.make_basis())
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
            init.zeros_(module.bias)

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Four images of noise and their labels."""
        generator = torch.Generator().manual_seed(0)
        shape = (4, self.config.num_channels, self.config.image_size, self.config.image_size)
        return {
            "pixel_values": torch.rand(shape, generator=generator),
            "labels": torch.arange(4) % self.config.num_labels,
        }

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> PaperStnOutput | tuple[torch.Tensor, ...]:
        """
        Args:
            pixel_values: (B, C, H, W); their ground has to be 0, which is what lies outside of them.
            labels: (B,) class numbers, for the loss.
            return_dict: False for a tuple.
        """
        self._check_images(pixel_values)
        pixel_values = pixel_values.to(self.classifier.output.weight.dtype)
        seen = [transformer(pixel_values) for transformer in self.transformers]
        images = torch.cat([views for views, _, _ in seen], 1) if seen else pixel_values  # (B, T C, h, w)
        if self.config.downsampling > 1:
            images = F.avg_pool2d(images, self.config.downsampling)
        logits = self.classifier(images)
        output = PaperStnOutput(
            loss=F.cross_entropy(logits.float(), labels) if labels is not None else None,
            logits=logits,
            theta=torch.stack([theta for _, _, theta in seen], 1) if seen else None,
            grids=torch.stack([grids for _, grids, _ in seen], 1) if seen else None,
            transformed=images if seen else None,
        )
        return output.to_tuple() if return_dict is False else output

    def _check_images(self, pixel_values: torch.Tensor) -> None:
        expected = (self.config.num_channels, self.config.image_size, self.config.image_size)
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(
                f"pixel_values must be (batch, {', '.join(map(str, expected))}), not {tuple(pixel_values.shape)}: "
                "the image processor saved beside the model brings pictures to that size."
            )


__all__ = ["PaperStnConfig", "PaperStnForImageClassification", "PaperStnOutput"]

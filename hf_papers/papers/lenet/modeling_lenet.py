"""LeNet-5, section II.B of "Gradient-Based Learning Applied to Document Recognition" (LeCun et al., Proc. IEEE, 1998).

A digit is read by layers that look at small neighbourhoods with the same few weights everywhere (C1, C3, C5), with layers in
between that halve the resolution (S2, S4), so that what is found matters more than where exactly. The last layer compares 84
numbers with the picture of each digit:

    y_i = sum_j (x_j - w_ij)^2                                                                                      (eq. 7)

a distance for each class, the smaller the likelier. `logits` are -y, so that argmax and softmax mean what they always do.

Shapes: B images, C channels; sizes in comments are those of the paper's 32 x 32 input.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ImageClassifierOutput

from .configuration_lenet import PaperLenetConfig


# Table I: the maps of S2 that each map of C3 is connected to. The first six take three neighbours, the next six four, then
# three take four that are not neighbours, and the last one takes all: different inputs force maps to become different.
TABLE_I = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)

# The codes of the digits 0 to 9, 7 x 12 pixels each, # for +1 and . for -1: drawn for this project after the description of
# figure 3, a stylised image of the character.
BITMAPS = """
    ....... ....... ....... ....... ....... ....... ....... ....... ....... .......
    ..###.. ...##.. .#####. ####### ....##. ####### ..####. ####### .#####. .#####.
    .##.##. ..###.. ##...## .....## ...###. ##..... .##.... .....## ##...## ##...##
    ##...## .####.. .....## ....##. ..####. ##..... ##..... .....## ##...## ##...##
    ##...## ...##.. .....## ...##.. .##.##. ##..... ##..... ....##. ##...## ##...##
    ##...## ...##.. ....##. ..####. ##..##. ######. ######. ...##.. .#####. .######
    ##...## ...##.. ...##.. .....## ##..##. .....## ##...## ...##.. ##...## .....##
    ##...## ...##.. ..##... .....## ####### .....## ##...## ..##... ##...## .....##
    ##...## ...##.. .##.... .....## ....##. .....## ##...## ..##... ##...## .....##
    .##.##. ...##.. ##..... ##...## ....##. ##...## ##...## ..##... ##...## ....##.
    ..###.. .###### ####### .#####. ....##. .#####. .#####. ..##... .#####. .####..
    ....... ....... ....... ....... ....... ....... ....... ....... ....... .......
"""


def digit_codes() -> torch.Tensor:
    """The pictures of the ten digits as rows of +1 (ink) and -1, (10, 84)."""
    rows = [line.split() for line in BITMAPS.strip().splitlines()]
    pictures = ["".join(row[digit] for row in rows) for digit in range(10)]
    return torch.tensor([[1.0 if pixel == "#" else -1.0 for pixel in picture] for picture in pictures], device="cpu")


def random_codes(num_labels: int, size: int) -> torch.Tensor:
    """Codes of +1 and -1 drawn once and for all, (num_labels, size): section II.B, "chosen at random with equal
    probabilities for -1 and +1"."""
    generator = torch.Generator("cpu").manual_seed(1998)
    return torch.randint(0, 2, (num_labels, size), generator=generator, device="cpu").float() * 2 - 1


def scaled_tanh(activation: torch.Tensor) -> torch.Tensor:
    """f(a) = A tanh(S a) with A = 1.7159 and S = 2/3, so that f(1) = 1 and f(-1) = -1 where it bends most (appendix A)."""
    return 1.7159 * torch.tanh(activation * (2 / 3))


ACTIVATIONS = {"scaled_tanh": scaled_tanh, "tanh": torch.tanh, "relu": torch.relu}


def mse_loss(distances: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean distance to the right class's code, eq. 8: (B, classes), (B,) -> scalar."""
    return distances.gather(1, labels[:, None]).mean()


def map_loss(distances: torch.Tensor, labels: torch.Tensor, constant: float) -> torch.Tensor:
    """Eq. 9: (B, classes), (B,) -> scalar, the mean over the batch of

        y_D + log(exp(-j) + sum_i exp(-y_i))

    with D the right class. The first term pulls its distance down, the second pushes all others up, until they are much
    farther than the constant j, the distance of a class "neither of them" that cannot be pushed.
    """
    rivals = torch.cat([-distances, distances.new_full((len(distances), 1), -constant)], dim=1)
    return mse_loss(distances, labels) + rivals.logsumexp(1).mean()


class PaperLenetTableConv(nn.Module):
    """Convolution whose output maps see only some of the input maps: (B, in, H, W) -> (B, out, H - k + 1, W - k + 1).

    Only the filters that exist are parameters, one (k, k) for each connected pair of maps: 60 of 96 in table I.
    """

    def __init__(self, in_channels: int, table: tuple[tuple[int, ...], ...], kernel_size: int) -> None:
        super().__init__()
        self.table, self.in_channels = table, in_channels
        self.weight = nn.Parameter(torch.empty(sum(map(len, table)), kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(len(table)))
        # Where each filter stands in the full (out * in) list. The table decides it, so it is not saved.
        self.register_buffer("places", self.filter_places(), persistent=False)

    def filter_places(self) -> torch.Tensor:
        places = [row * self.in_channels + column for row, columns in enumerate(self.table) for column in columns]
        return torch.tensor(places, device="cpu")

    def fan_in(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs F of the unit that each filter (filters, 1, 1) and each bias (out,) belongs to."""
        counts = torch.tensor([len(columns) for columns in self.table], device=self.weight.device)
        inputs = counts * self.weight[0].numel()
        return inputs.repeat_interleave(counts)[:, None, None], inputs

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        full = self.weight.new_zeros(len(self.table) * self.in_channels, *self.weight.shape[1:])
        full = full.index_copy(0, self.places, self.weight)  # filters that do not exist are 0 and stay so
        return F.conv2d(maps, full.unflatten(0, (-1, self.in_channels)), self.bias)


class PaperLenetLayer(GradientCheckpointingLayer):
    """What C1 to F6 have in common: x = f(a), with a the weighted sum of a unit's inputs and its bias."""

    def __init__(self, config: PaperLenetConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activation(self.weighted_sum(hidden_states))


class PaperLenetConvLayer(PaperLenetLayer):
    """C1 or C3: (B, in, H, W) -> (B, out, H - k + 1, W - k + 1)."""

    def __init__(
        self,
        config: PaperLenetConfig,
        in_channels: int,
        out_channels: int,
        table: tuple[tuple[int, ...], ...] | None = None,
    ) -> None:
        super().__init__(config)
        if table is None:
            self.weighted_sum = nn.Conv2d(in_channels, out_channels, config.kernel_size)
        else:
            self.weighted_sum = PaperLenetTableConv(in_channels, table, config.kernel_size)


class PaperLenetSums(nn.Module):
    """The sum of each 2 x 2, times a coefficient, plus a bias, both one per map: (B, C, H, W) -> (B, C, H / 2, W / 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.coefficient = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        rows = maps[:, :, ::2] + maps[:, :, 1::2]
        sums = rows[..., ::2] + rows[..., 1::2]
        return torch.addcmul(self.bias[:, None, None], sums, self.coefficient[:, None, None])


class PaperLenetSubsampling(PaperLenetLayer):
    """S2 or S4: (B, C, H, W) -> (B, C, H / 2, W / 2).

    A small coefficient makes a unit quasi-linear, a blur; a large one makes it a noisy OR or AND of its four inputs.
    """

    def __init__(self, config: PaperLenetConfig, channels: int) -> None:
        super().__init__(config)
        self.weighted_sum = PaperLenetSums(channels)


class PaperLenetFullLayer(PaperLenetLayer):
    """C5 or F6: every unit sees every input, (B, in) -> (B, out).

    The paper counts C5 among the convolutions, with 5 x 5 filters that just cover the 5 x 5 of S4: it would have more than
    one output on a larger image. On one of 32 x 32 the two are the same.
    """

    def __init__(self, config: PaperLenetConfig, in_units: int, out_units: int) -> None:
        super().__init__(config)
        self.weighted_sum = nn.Linear(in_units, out_units)


def subsampling(config: PaperLenetConfig, channels: int) -> nn.Module:
    """S2 or S4 of the paper, or what came after it: the largest or the mean of each 2 x 2, with nothing to learn."""
    if config.subsampling == "trainable":
        return PaperLenetSubsampling(config, channels)
    return nn.MaxPool2d(2) if config.subsampling == "max" else nn.AvgPool2d(2)


class PaperLenetRbf(nn.Module):
    """Euclidean radial basis functions, eq. 7: (B, units) -> squared distances to each class's code, (B, classes).

    The codes are fixed, as in the paper: free ones could all move to where F6 is, and make every distance 0.
    """

    def __init__(self, config: PaperLenetConfig) -> None:
        super().__init__()
        self.shape = (config.num_labels, config.hidden_sizes[1])
        self.kind = config.codes
        self.register_buffer("codes", self.make_codes(), persistent=False)

    def make_codes(self) -> torch.Tensor:
        return digit_codes() if self.kind == "bitmap" else random_codes(*self.shape)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        differences = hidden_states[:, None] - self.codes.to(hidden_states.dtype)  # (B, classes, units)
        return differences.square().sum(-1)


class PaperLenetForImageClassification(PreTrainedModel):
    """LeNet-5: C1, S2, C3, S4, C5, F6 and the output layer (figure 2)."""

    config: PaperLenetConfig
    base_model_prefix = "lenet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["PaperLenetConvLayer", "PaperLenetSubsampling", "PaperLenetFullLayer"]

    def __init__(self, config: PaperLenetConfig) -> None:
        super().__init__(config)
        first, second = config.conv_channels
        units, final_units = config.hidden_sizes
        table = TABLE_I if config.connections == "table" else None
        self.c1 = PaperLenetConvLayer(config, config.num_channels, first)
        self.s2 = subsampling(config, first)
        self.c3 = PaperLenetConvLayer(config, first, second, table)
        self.s4 = subsampling(config, second)
        self.c5 = PaperLenetFullLayer(config, second * config.final_size**2, units)
        self.f6 = PaperLenetFullLayer(config, units, final_units)
        self.output = PaperLenetRbf(config) if config.output == "rbf" else nn.Linear(final_units, config.num_labels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Appendix A: uniform within 2.4 / F of 0, with F the inputs of the unit, keeps units where the tanh bends."""
        if isinstance(module, PaperLenetTableConv):
            init.copy_(module.places, module.filter_places())
            fan_in, bias_fan_in = module.fan_in()
            self._draw(module.weight, fan_in)
            self._draw(module.bias, bias_fan_in, is_bias=True)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            fan_in = torch.tensor(module.weight[0].numel(), device=module.weight.device)
            self._draw(module.weight, fan_in)
            self._draw(module.bias, fan_in, is_bias=True)
        elif isinstance(module, PaperLenetSums):
            fan_in = torch.tensor(4, device=module.bias.device)
            self._draw(module.coefficient, fan_in)
            self._draw(module.bias, fan_in, is_bias=True)
        elif isinstance(module, PaperLenetRbf):
            init.copy_(module.codes, module.make_codes())

    def _draw(self, parameter: nn.Parameter, fan_in: torch.Tensor, is_bias: bool = False) -> None:
        if self.config.initialization == "fan_in":
            init.copy_(parameter, (2 * torch.rand_like(parameter) - 1) * (2.4 / fan_in))
        elif is_bias:
            init.zeros_(parameter)
        else:
            init.copy_(parameter, torch.randn_like(parameter) * (2 / fan_in).sqrt())

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Four images of noise, as bright as normalised digits, and their labels."""
        generator = torch.Generator().manual_seed(0)
        shape = (4, self.config.num_channels, self.config.image_size, self.config.image_size)
        return {
            "pixel_values": torch.rand(shape, generator=generator) * 1.275 - 0.1,
            "labels": torch.arange(4) % self.config.num_labels,
        }

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutput | tuple[torch.Tensor, ...]:
        """
        Args:
            pixel_values: (B, C, 32, 32); the ground of the image at -0.1 and its ink at 1.175 (section II.B).
            labels: (B,) class numbers, for the loss.
            output_hidden_states: whether to return what each layer computes, in the order of `LAYERS`.
            return_dict: False for a tuple.

        Returns `logits` (B, classes): minus the distances of eq. 7, or the linear output; and `loss` where labels are given.
        """
        self._check_images(pixel_values)
        c1 = self.c1(pixel_values.to(self.f6.weighted_sum.weight.dtype))  # (B, 6, 28, 28)
        s2 = self.s2(c1)  # (B, 6, 14, 14)
        c3 = self.c3(s2)  # (B, 16, 10, 10)
        s4 = self.s4(c3)  # (B, 16, 5, 5)
        c5 = self.c5(s4.flatten(1))  # (B, 120)
        f6 = self.f6(c5)  # (B, 84)
        output = self.output(f6)  # (B, 10)
        logits = -output if self.config.output == "rbf" else output
        result = ImageClassifierOutput(
            loss=self.criterion(logits.float(), labels) if labels is not None else None,
            logits=logits,
            hidden_states=(c1, s2, c3, s4, c5, f6) if output_hidden_states else None,
        )
        return result.to_tuple() if return_dict is False else result

    def criterion(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What training minimises: (B, classes), (B,) -> scalar."""
        if self.config.criterion == "cross_entropy":
            return F.cross_entropy(logits, labels)
        if self.config.criterion == "mse":
            return mse_loss(-logits, labels)
        return map_loss(-logits, labels, self.config.map_constant)

    @torch.no_grad()
    def feature_maps(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """What each layer makes of the images, by the paper's names: "C1" (B, 6, 28, 28), ..., "F6" (B, 84)."""
        return dict(zip(LAYERS, self(pixel_values, output_hidden_states=True).hidden_states, strict=True))

    def _check_images(self, pixel_values: torch.Tensor) -> None:
        expected = (self.config.num_channels, self.config.image_size, self.config.image_size)
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(
                f"pixel_values must be (batch, {', '.join(map(str, expected))}), not {tuple(pixel_values.shape)}: "
                "the image processor saved beside the model brings pictures to that size."
            )


LAYERS = ("C1", "S2", "C3", "S4", "C5", "F6")

__all__ = ["PaperLenetConfig", "PaperLenetForImageClassification"]

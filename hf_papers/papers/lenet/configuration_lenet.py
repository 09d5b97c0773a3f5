"""Configuration of LeNet-5, of "Gradient-Based Learning Applied to Document Recognition" (https://doi.org/10.1109/5.726791)."""

import difflib
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


# What transformers itself passes through a config's constructor beside the declared fields.
TRANSFORMERS_OPTIONS = {
    "_commit_hash",
    "_name_or_path",
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "torch_dtype",
    "transformers_weights",
}
DIGITS = 10
BITMAP_PIXELS = 84  # 7 x 12, the units of layer F6


@strict
class PaperLenetConfig(PreTrainedConfig):
    """LeNet-5 for pictures of one size; the defaults are the paper's network for 32 x 32 pixels (section II.B).

    Args:
        image_size: height and width of the input in pixels; 32 in the paper, where the digits of MNIST have 28 and a margin
            of 2 around them.
        num_channels: colours per pixel; 1 is grey, as in the paper, 3 is red, green and blue.
        conv_channels: maps of layers C1 and C3; 6 and 16 in the paper.
        kernel_size: side of the filters of C1 and C3; 5 in the paper. C5 sees the whole of S4, as the paper's does.
        hidden_sizes: units of layers C5 and F6; 120 and 84 in the paper.
        connections: which maps of S2 a map of C3 sees: those of "table", the paper's table I for 6 and 16 maps, or
            "all" of them.
        subsampling: S2 and S4 halve height and width: "trainable" as in the paper (the sum of 2 x 2 values, times a
            coefficient, plus a bias, through the activation), or an "average" or the "max" of the four, with neither.
        hidden_act: after every layer up to F6: "scaled_tanh" is 1.7159 tanh(2/3 a) of appendix A; "tanh" and "relu" are not
            in the paper.
        output: "rbf" is the paper's: a class is as likely as the units of F6 are close to its code of +1 and -1.
            "linear" is a layer of weights.
        codes: "bitmap" are the paper's codes for output "rbf": each class's digit as a picture of 7 x 12, for ten classes
            and 84 units in F6. "random" draws codes for any other number of classes and units.
        criterion: "map" is eq. 9; "mse" is eq. 8, the distance to the right code alone; "cross_entropy" is eq. 9 without its
            constant, and the only one for output "linear".
        map_constant: j of eq. 9, in the units of a squared distance: a wrong class that is farther away than this by more
            than a few is not pushed on. The paper says only that it is positive.
        initialization: "fan_in" draws weights and biases uniformly from +-2.4 / F with F inputs to the unit (appendix A);
            "he" is N(0, 2 / F) with zero biases, for rectifiers, not in the paper.
    """

    model_type = "paper-lenet"

    image_size: int = 32
    num_channels: int = 1
    conv_channels: list[int] | tuple[int, ...] = (6, 16)
    kernel_size: int = 5
    hidden_sizes: list[int] | tuple[int, ...] = (120, BITMAP_PIXELS)
    connections: Literal["table", "all"] = "table"
    subsampling: Literal["trainable", "average", "max"] = "trainable"
    hidden_act: Literal["scaled_tanh", "tanh", "relu"] = "scaled_tanh"
    output: Literal["rbf", "linear"] = "rbf"
    codes: Literal["bitmap", "random"] = "bitmap"
    criterion: Literal["map", "mse", "cross_entropy"] = "map"
    map_constant: float | int = 5.0
    initialization: Literal["fan_in", "he"] = "fan_in"

    # Not annotated: a property of the class, not an option of one configuration.
    _modern = {
        "connections": "all",
        "subsampling": "max",
        "hidden_act": "relu",
        "output": "linear",
        "criterion": "cross_entropy",
        "initialization": "he",
    }
    presets = {
        "paper": {},
        "modern": _modern,
        "tiny": {"image_size": 20, "hidden_sizes": (24, BITMAP_PIXELS)},
        "tiny-modern": {**_modern, "image_size": 20, "hidden_sizes": (24, 20)},
        "tiny-others": {  # every option that neither of them takes
            "image_size": 20,
            "num_channels": 3,
            "conv_channels": (4, 8),
            "hidden_sizes": (24, 20),
            "connections": "all",
            "subsampling": "average",
            "hidden_act": "tanh",
            "codes": "random",
            "criterion": "mse",
        },
    }

    def __post_init__(self, **kwargs: Any) -> None:
        options = [name for name in self.__dataclass_fields__ if not name.startswith("_")]
        for name in sorted(set(kwargs) - TRANSFORMERS_OPTIONS):
            near = difflib.get_close_matches(name, options, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise TypeError(f"PaperLenetConfig has no option '{name}'.{hint}")
        if self.id2label is None and "num_labels" not in kwargs:  # transformers' own default is two classes
            self.id2label = {digit: str(digit) for digit in range(DIGITS)}
            self.label2id = {str(digit): digit for digit in range(DIGITS)}
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Refuse values with which the network makes no sense."""
        for name in ("image_size", "kernel_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.num_channels not in (1, 3):
            raise ValueError(f"num_channels is 1 (grey) or 3 (colour), not {self.num_channels}.")
        for name, what in (("conv_channels", "maps of C1 and C3"), ("hidden_sizes", "units of C5 and F6")):
            sizes = getattr(self, name)
            if len(sizes) != 2 or any(size < 1 for size in sizes):
                raise ValueError(f"{name} are two positive numbers, the {what}, not {sizes}.")
        if self.final_size is None:
            raise ValueError(
                f"image_size {self.image_size} does not fit: two layers of filters with kernel_size {self.kernel_size}, "
                "each followed by a halving, must leave an even number of pixels before each halving and some after the "
                "last, as 32 and 5 do (28, 14, 10, 5)."
            )
        if self.connections == "table" and tuple(self.conv_channels) != (6, 16):
            raise ValueError(
                f"connections 'table' is for 6 maps in C1 and 16 in C3, not {self.conv_channels}: use 'all'."
            )
        if self.output == "linear" and self.criterion != "cross_entropy":
            raise ValueError(f"criterion '{self.criterion}' needs output 'rbf': a linear output has no distances.")
        if self.output == "rbf" and self.codes == "bitmap":
            if (self.num_labels, self.hidden_sizes[1]) != (DIGITS, BITMAP_PIXELS):
                raise ValueError(
                    f"codes 'bitmap' are pictures of ten digits with 84 pixels; for {self.num_labels} classes and "
                    f"{self.hidden_sizes[1]} units in F6 use 'random'."
                )
        if not 0 < self.map_constant < float("inf"):
            raise ValueError(f"map_constant must be positive, not {self.map_constant}.")

    @property
    def final_size(self) -> int | None:
        """Height and width of S4; None where the sizes do not work out."""
        size = self.image_size
        for _ in range(2):
            size -= self.kernel_size - 1
            if size < 2 or size % 2:
                return None
            size //= 2
        return size

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "PaperLenetConfig":
        """The configuration called `name` in `presets`, with single options replaced by `overrides`."""
        if name not in cls.presets:
            near = difflib.get_close_matches(name, cls.presets, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"There is no preset '{name}'.{hint} The presets are: {', '.join(cls.presets)}.")
        return cls(**{**cls.presets[name], **overrides})


__all__ = ["PaperLenetConfig"]

"""Configuration of the networks of "Spatial Transformer Networks" (https://huggingface.co/papers/1506.02025)."""

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


@strict
class PaperStnConfig(PreTrainedConfig):
    """A classifier with spatial transformers in front of it, or without: the networks of section 4.1 and appendix A.

    The defaults are the ST-CNN for the 60 x 60 translated and cluttered digits, with an affine transformer.

    Args:
        image_size: height and width of the input in pixels; 60 for cluttered digits, 42 for the other distortions.
        num_channels: channels of the input; 1 is grey, 2 are the two digits of MNIST addition, 3 are colours.
        transformer: what a transformer may do to its input: "affine" (eq. 1), "projective", or "tps", a thin-plate spline;
            "none" leaves it out, which is the paper's baseline.
        num_transformers: how many of them look at the same input side by side; what they see is stacked as channels
            (section 3.4; two for MNIST addition).
        control_points: of a thin-plate spline, along each side; 4 in the paper, 16 in all.
        localization: the network that decides where to look: "cnn" or "fcn" (appendix A.4).
        localization_channels: filters of the two 5 x 5 convolutions of a "cnn".
        localization_sizes: units of the fully connected layers behind them, or of the "fcn", which has three of 32.
        output_size: height and width of what a transformer samples; the input's when not given.
        downsampling: each block of so many pixels a side of what was sampled is averaged (appendix A.4: 2 for cluttered and
            for rotated, translated and scaled digits, else 1).
        align_corners: whether -1 and 1 are the middles of the outermost pixels, or their outer edges.
        classifier: "cnn" or "fcn" (appendix A.4).
        conv_channels: filters of the two convolutions of a "cnn"; 32 to 64 in the paper.
        kernel_sizes: their sides; 9 and 7 in the paper.
        hidden_sizes: units of the fully connected layers of an "fcn"; two of 128 to 256 in the paper.
    """

    model_type = "paper-stn"

    image_size: int = 60
    num_channels: int = 1
    transformer: Literal["none", "affine", "projective", "tps"] = "affine"
    num_transformers: int = 1
    control_points: int = 4
    localization: Literal["cnn", "fcn"] = "cnn"
    localization_channels: list[int] | tuple[int, ...] = (20, 20)
    localization_sizes: list[int] | tuple[int, ...] = (20,)
    output_size: int | None = None
    downsampling: int = 2
    align_corners: bool = False
    classifier: Literal["cnn", "fcn"] = "cnn"
    conv_channels: list[int] | tuple[int, ...] = (64, 64)
    kernel_sizes: list[int] | tuple[int, ...] = (9, 7)
    hidden_sizes: list[int] | tuple[int, ...] = (128, 128)

    # Not annotated: properties of the class, not options of one configuration.
    _fcn = {"localization": "fcn", "localization_sizes": (32, 32, 32), "classifier": "fcn"}
    _baseline = {"transformer": "none", "downsampling": 1}
    _tiny = {
        "image_size": 28,
        "localization_channels": (4, 4),
        "localization_sizes": (8,),
        "conv_channels": (6, 8),
        "kernel_sizes": (3, 3),
        "hidden_sizes": (24, 16),
    }
    presets = {
        # Translated and cluttered digits, 60 x 60; all of one size, about 400,000 parameters (appendix A.4).
        "cluttered-st-cnn": {"conv_channels": (84, 84)},
        "cluttered-cnn": {**_baseline, "conv_channels": (80, 80)},
        "cluttered-st-fcn": {**_fcn, "hidden_sizes": (244, 244)},
        "cluttered-fcn": {**_fcn, **_baseline, "hidden_sizes": (107, 107)},
        # Two digits in two channels, 42 x 42: MNIST addition with one transformer for each (appendix A.1).
        "addition": {**_fcn, "image_size": 42, "num_channels": 2, "num_transformers": 2, "hidden_sizes": (90, 90)},
        "tiny": _tiny,
        "tiny-tps": {**_tiny, "transformer": "tps", "num_transformers": 2, "num_channels": 2},
        "tiny-projective": {
            **_tiny,
            **_fcn,
            "transformer": "projective",
            "localization_sizes": (8, 8),
            "output_size": 12,
        },
        "tiny-cnn": {**_tiny, **_baseline},
    }

    def __post_init__(self, **kwargs: Any) -> None:
        options = [name for name in self.__dataclass_fields__ if not name.startswith("_")]
        for name in sorted(set(kwargs) - TRANSFORMERS_OPTIONS):
            near = difflib.get_close_matches(name, options, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise TypeError(f"PaperStnConfig has no option '{name}'.{hint}")
        if self.id2label is None and "num_labels" not in kwargs:  # transformers' own default is two classes
            self.id2label = {digit: str(digit) for digit in range(10)}
            self.label2id = {str(digit): digit for digit in range(10)}
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Refuse values with which the network makes no sense."""
        for name in ("image_size", "num_channels", "num_transformers", "downsampling"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.output_size is not None and self.output_size < 2:
            raise ValueError(f"output_size must be at least 2, not {self.output_size}.")
        if self.control_points < 2:
            raise ValueError(f"control_points must be at least 2 along each side, not {self.control_points}.")
        for name, count in (("localization_channels", 2), ("conv_channels", 2), ("kernel_sizes", 2)):
            sizes = getattr(self, name)
            if len(sizes) != count or any(size < 1 for size in sizes):
                raise ValueError(f"{name} are {count} positive numbers, not {sizes}.")
        for name in ("localization_sizes", "hidden_sizes"):
            sizes = getattr(self, name)
            if not sizes or any(size < 1 for size in sizes):
                raise ValueError(f"{name} needs at least one layer and positive sizes, not {sizes}.")
        if self.transformer == "none" and (self.num_transformers > 1 or self.downsampling > 1):
            raise ValueError("transformer 'none' leaves no use for num_transformers or downsampling: set both to 1.")
        if self.classifier_input < 1 or (self.classifier == "cnn" and min(self.classifier_maps()) < 1):
            raise ValueError(
                f"image_size {self.image_size} (output_size {self.output_size}, downsampling {self.downsampling}) is too "
                f"small for two convolutions with kernel_sizes {self.kernel_sizes}."
            )
        if self.transformer != "none" and self.localization == "cnn" and min(self.localization_maps()) < 1:
            raise ValueError(
                f"image_size {self.image_size} is too small for the 5 x 5 convolutions of localization 'cnn': use 'fcn'."
            )

    @property
    def classifier_input(self) -> int:
        """Height and width of what the classifier sees."""
        return (self.output_size or self.image_size) // self.downsampling

    def classifier_maps(self) -> tuple[int, int]:
        """Height and width behind each convolution and its pooling, which keeps a last odd row."""
        first = -(-(self.classifier_input - self.kernel_sizes[0] + 1) // 2)
        return first, -(-(first - self.kernel_sizes[1] + 1) // 2)

    def localization_maps(self) -> tuple[int, int]:
        """Height and width behind the pooled first and behind the second convolution of the localisation network."""
        first = -(-(self.image_size // 2 - 4) // 2)
        return first, first - 4

    @property
    def num_theta(self) -> int:
        """Numbers that describe one transformation."""
        return {"none": 0, "affine": 6, "projective": 8, "tps": 2 * self.control_points**2}[self.transformer]

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "PaperStnConfig":
        """The configuration called `name` in `presets`, with single options replaced by `overrides`."""
        if name not in cls.presets:
            near = difflib.get_close_matches(name, cls.presets, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"There is no preset '{name}'.{hint} The presets are: {', '.join(cls.presets)}.")
        return cls(**{**cls.presets[name], **overrides})


__all__ = ["PaperStnConfig"]

"""Configuration of the network of "U-Net" (https://huggingface.co/papers/1505.04597)."""

import difflib
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_geometry_unet import Geometry


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
class PaperUnetConfig(PreTrainedConfig):
    """A U-Net; the defaults are the network of figure 1.

    How many classes it tells apart is `num_labels`, 2 in the paper, and their names are `id2label`.

    Args:
        num_channels: colours per pixel; 1 is grey.
        stage_channels: channels of each stage, from the image's own size down to the bottom of the U. Its length is the
            depth: each stage after the first halves height and width. The way up mirrors the way down.
        padding: "valid" as in the paper, where every 3x3 convolution takes a pixel from each side and the output is smaller
            than the input; or "same", where each pads with zeros and both are of one size (not in the paper).
        batch_norm: normalise what each 3x3 convolution computes (not in the paper; 1502.03167). The convolutions have no
            biases then.
        skip_connections: hand the way down's feature maps across to the way up, which is what the paper is about. Without
            them the way up works with what comes from below alone.
        dropout: share of features that are dropped at the end of the way down, behind its last two stages. Section 3.1 has
            dropout there and gives no rate; 0.5 is that of the authors' published network.
    """

    model_type = "paper-unet"

    num_channels: int = 1
    stage_channels: list[int] | tuple[int, ...] = (64, 128, 256, 512, 1024)
    padding: Literal["valid", "same"] = "valid"
    batch_norm: bool = False
    skip_connections: bool = True
    dropout: float | int = 0.5

    # Not annotated: a property of the class, not an option of one configuration.
    presets = {
        "paper": {},
        "padded": {"num_channels": 3, "padding": "same", "batch_norm": True},  # what most people call U-Net today
        "narrow": {"stage_channels": (16, 32, 64, 128, 256), "padding": "same", "batch_norm": True, "dropout": 0.2},
        "tiny": {"stage_channels": (4, 8, 12), "dropout": 0.1},
        "tiny-padded": {"stage_channels": (4, 8), "padding": "same", "batch_norm": True, "dropout": 0.0},
        "tiny-plain": {"stage_channels": (6, 8), "num_channels": 3, "skip_connections": False, "dropout": 0.0},
    }

    def __post_init__(self, **kwargs: Any) -> None:
        options = [name for name in self.__dataclass_fields__ if not name.startswith("_")]
        for name in sorted(set(kwargs) - TRANSFORMERS_OPTIONS):
            near = difflib.get_close_matches(name, options, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise TypeError(f"PaperUnetConfig has no option '{name}'.{hint}")
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Refuse values with which the network makes no sense."""
        if self.num_channels < 1:
            raise ValueError(f"num_channels must be at least 1, not {self.num_channels}.")
        if len(self.stage_channels) < 2 or any(channels < 1 for channels in self.stage_channels):
            raise ValueError(
                f"stage_channels needs at least two stages, a way down and a bottom, and positive sizes, not "
                f"{list(self.stage_channels)}."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), not {self.dropout}.")

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "PaperUnetConfig":
        """The configuration called `name` in `presets`, with single options replaced by `overrides`."""
        if name not in cls.presets:
            near = difflib.get_close_matches(name, cls.presets, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"There is no preset '{name}'.{hint} The presets are: {', '.join(cls.presets)}.")
        return cls(**{**cls.presets[name], **overrides})

    @property
    def depth(self) -> int:
        """How often height and width are halved: 4 in the paper."""
        return len(self.stage_channels) - 1

    @property
    def geometry(self) -> Geometry:
        """Which sizes go in and what comes out."""
        return Geometry(self.depth, self.padding == "valid")


__all__ = ["PaperUnetConfig"]

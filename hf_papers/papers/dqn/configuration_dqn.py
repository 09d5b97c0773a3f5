"""Configuration of the deep Q-network (1312.5602, and Nature 518:529-533, 2015).

The network and the world it acts in belong together: a checkpoint that is scored with other wrappers, another frame skip
or another ε than it was trained for gives another number. So the configuration holds both.
"""

import difflib
from dataclasses import field
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


# What transformers itself passes to a config besides its declared fields.
FOREIGN_OPTIONS = {
    "_commit_hash", "_name_or_path", "attn_implementation", "auto_map", "custom_pipelines", "experts_implementation",
    "model_type", "name_or_path", "num_labels", "output_attentions", "per_layer_config", "torch_dtype",
    "transformers_weights",
}  # fmt: skip

SEQUENCES = ("observation_shape", "conv_channels", "conv_kernels", "conv_strides", "hidden_sizes")


@strict
class PaperDqnConfig(PreTrainedConfig):
    """A Q-network and the environment that it plays.

    The defaults are the network of the Nature paper (Methods, "Model architecture") with Breakout's 4 actions.

    The network:
        observation_shape: `(frames, height, width)` for stacked grey images, `(size,)` for vectors. Nature: the last 4
            frames of 84 x 84 pixels (Methods, "Preprocessing").
        num_actions: how many discrete actions there are, one output each (4 to 18 in Atari).
        observation_scale: what each number of a vector is multiplied by before the first layer, as bytes are by 1/255.
            Not in the papers, whose observations are all images. None leaves vectors as they are.
        conv_channels, conv_kernels, conv_strides: one entry per convolution, each followed by a rectifier, without
            padding. Nature: 32 8x8/4, 64 4x4/2, 64 3x3/1. The 2013 paper: 16 8x8/4, 32 4x4/2. Empty for vectors.
        hidden_sizes: units of the fully connected layers between the convolutions (or the vector) and the outputs.
            Nature 512, 2013 paper 256.
        td_loss: `"huber"` clips the derivative of the squared temporal-difference error to [-1, 1] (Nature, Methods,
            "Training algorithm"); `"squared"` is the loss of the 2013 paper (equation 2).

    The environment:
        environment: Gymnasium id that the network was trained for, such as `"CartPole-v1"`; none for a network alone.
        environment_options: keyword arguments of `gymnasium.make`, such as `{"is_slippery": False}`.
        frame_skip: game frames for which an action is repeated; images only (Nature, Extended Data Table 1: 4).
        noop_max: at most this many do-nothing actions at the start of a game; images only (Nature: 30).
        evaluation_epsilon: share of random actions when the network is scored (Nature, Methods, "Evaluation procedure":
            0.05).
    """

    model_type = "paper-dqn"

    observation_shape: list[int] | tuple[int, ...] = (4, 84, 84)
    observation_scale: list[float | int] | tuple[float | int, ...] | None = None
    num_actions: int = 4
    conv_channels: list[int] | tuple[int, ...] = (32, 64, 64)
    conv_kernels: list[int] | tuple[int, ...] = (8, 4, 3)
    conv_strides: list[int] | tuple[int, ...] = (4, 2, 1)
    hidden_sizes: list[int] | tuple[int, ...] = (512,)
    td_loss: Literal["huber", "squared"] = "huber"

    environment: str | None = None
    environment_options: dict[str, Any] = field(default_factory=dict)
    frame_skip: int = 4
    noop_max: int = 30
    evaluation_epsilon: float | int = 0.05

    presets = {
        "nature": {},
        "nips": {
            "conv_channels": (16, 32), "conv_kernels": (8, 4), "conv_strides": (4, 2), "hidden_sizes": (256,),
            "td_loss": "squared",
        },
        "cartpole": {
            "observation_shape": (4,), "num_actions": 2, "conv_channels": (), "conv_kernels": (), "conv_strides": (),
            "hidden_sizes": (256, 256), "environment": "CartPole-v1", "frame_skip": 1, "noop_max": 0,
            "evaluation_epsilon": 0.0,
        },
        "tiny": {
            "observation_shape": (2, 20, 20), "num_actions": 3, "conv_channels": (4, 8), "conv_kernels": (4, 3),
            "conv_strides": (2, 2), "hidden_sizes": (16,),
        },
    }  # fmt: skip

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "PaperDqnConfig":
        """The named configuration (`presets`), with single options replaced."""
        if name not in cls.presets:
            raise ValueError(
                f"There is no preset '{name}'.{_nearest(name, cls.presets)} There are: {', '.join(cls.presets)}."
            )
        return cls(**{**cls.presets[name], **overrides})

    def __post_init__(self, **kwargs: Any) -> None:
        for name in sorted(set(kwargs) - FOREIGN_OPTIONS):
            options = [option for option in self.__dataclass_fields__ if not option.startswith("_")]
            raise TypeError(f"PaperDqnConfig has no option '{name}'.{_nearest(name, options)}")
        for name in (*SEQUENCES, "observation_scale"):
            if isinstance(getattr(self, name), list):
                # JSON knows lists only: so a loaded configuration equals the saved one.
                setattr(self, name, tuple(getattr(self, name)))
        super().__post_init__(**kwargs)

    @property
    def takes_images(self) -> bool:
        """Whether observations are stacked images rather than vectors."""
        return len(self.observation_shape) == 3

    def validate_architecture(self) -> None:
        """Refuse what cannot be built or played, in words."""
        if len(self.observation_shape) not in (1, 3):
            raise ValueError(
                "observation_shape must be (size,) for vectors or (frames, height, width) for images, not "
                f"{tuple(self.observation_shape)}."
            )
        lengths = {len(self.conv_channels), len(self.conv_kernels), len(self.conv_strides)}
        if len(lengths) > 1:
            raise ValueError(
                "conv_channels, conv_kernels and conv_strides need one entry per convolution each, but have "
                f"{len(self.conv_channels)}, {len(self.conv_kernels)} and {len(self.conv_strides)}."
            )
        for name in SEQUENCES:
            if any(size < 1 for size in getattr(self, name)):
                raise ValueError(f"{name} must hold positive numbers only, not {tuple(getattr(self, name))}.")
        if self.observation_scale is not None:
            self._validate_scale(self.observation_scale)
        if self.num_actions < 1 or self.frame_skip < 1 or self.noop_max < 0:
            raise ValueError(
                "num_actions and frame_skip must be at least 1 and noop_max at least 0, not "
                f"{self.num_actions}, {self.frame_skip} and {self.noop_max}."
            )
        if not 0 <= self.evaluation_epsilon <= 1:
            raise ValueError(
                f"evaluation_epsilon is a share of random actions, from 0 to 1, not {self.evaluation_epsilon}."
            )
        if self.takes_images:
            self.feature_shape  # noqa: B018  raises when the image is too small for the convolutions
        elif len(self.conv_channels) or self.frame_skip != 1 or self.noop_max:
            raise ValueError(
                "Vector observations take no convolutions, frame_skip or noop_max: set conv_channels, conv_kernels and "
                "conv_strides to (), frame_skip to 1 and noop_max to 0."
            )

    def _validate_scale(self, scale: Any) -> None:
        if self.takes_images:
            raise ValueError("observation_scale is for vectors; images are scaled by 1/255 already.")
        if len(scale) != self.observation_shape[0] or not all(0 < factor < float("inf") for factor in scale):
            raise ValueError(
                f"observation_scale needs {self.observation_shape[0]} positive numbers, one per entry of an observation, "
                f"or none, not {list(scale)}."
            )

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of what the fully connected layers read, before flattening: (64, 7, 7) in the Nature network."""
        if not self.takes_images:
            return tuple(self.observation_shape)
        channels, height, width = self.observation_shape
        convolutions = zip(self.conv_channels, self.conv_kernels, self.conv_strides, strict=True)
        for i, (out, kernel, stride) in enumerate(convolutions):
            if min(height, width) < kernel:
                raise ValueError(
                    f"Convolution {i + 1} has a {kernel} x {kernel} kernel but meets a map of only {height} x {width}: "
                    "take larger images, or fewer or smaller convolutions."
                )
            channels, height, width = out, (height - kernel) // stride + 1, (width - kernel) // stride + 1
        return channels, height, width


def _nearest(word: str, choices: Any) -> str:
    matches = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ""


__all__ = ["PaperDqnConfig"]

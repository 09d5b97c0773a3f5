"""Configuration of the convolutional adversarial pair of "Unsupervised Representation Learning with Deep Convolutional
Generative Adversarial Networks" (https://huggingface.co/papers/1511.06434)."""

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

# Height and width of the maps where the generator begins and the discriminator ends (figure 1).
SMALLEST_MAP = 4


@strict
class PaperDcganConfig(PreTrainedConfig):
    """A generator G and a discriminator D for square images of one size; the defaults are figure 1 of the paper.

    G starts from 4 x 4 maps and doubles them until they are as large as the image; D halves the image until it is down to
    4 x 4. Each doubling halves the number of maps, each halving doubles it, as in figure 1: 1024, 512, 256, 128.

    Args:
        image_size: height and width of an image in pixels: 8, 16, 32, 64 and so on; 64 in figure 1.
        num_channels: colours per pixel; 1 is grey, 3 red, green and blue.
        latent_size: entries of the noise vector z that G turns into an image; 100 in figure 1.
        latent_distribution: p_z. "uniform" on [-1, 1] is the paper's (figure 1); "normal" is N(0, 1).
        generator_width: maps of G's first layer, at 4 x 4; halved by each layer that follows. 1024 in figure 1.
        discriminator_width: maps of D's last layer, at 4 x 4; halved by each layer before it.
        kernel_size: side of the filters: 4, of which every pixel of an enlarged map gets equally many terms, or 5 as drawn
            in figure 1. The number of layers and their sizes are the same.
        batch_norm: "hidden" normalises all layers but G's output and D's input (section 3); "all" these two as well, which
            the paper found to oscillate; "none" no layer: hidden layers then have biases in place of its shifts.
        batch_norm_momentum: share of a new batch in the running mean and variance that a trained network uses.
        batch_norm_eps: added to variances.
        leaky_relu_slope: slope below zero of D's units; 0.2 (section 4).
        initializer_range: standard deviation of all initial weights around 0, and of batch norm's gains around 1; 0.02
            (section 4).
    """

    model_type = "paper-dcgan"

    image_size: int = 64
    num_channels: int = 3
    latent_size: int = 100
    latent_distribution: Literal["uniform", "normal"] = "uniform"
    generator_width: int = 1024
    discriminator_width: int = 1024
    kernel_size: Literal[4, 5] = 4
    batch_norm: Literal["hidden", "all", "none"] = "hidden"
    batch_norm_momentum: float | int = 0.1
    batch_norm_eps: float | int = 1e-5
    leaky_relu_slope: float | int = 0.2
    initializer_range: float | int = 0.02

    # Not annotated: a property of the class, not an option of one configuration.
    presets = {
        "paper": {},
        # The width that later implementations agreed on, with noise from a normal distribution.
        "common": {"generator_width": 512, "discriminator_width": 512, "latent_distribution": "normal"},
        "paper-32": {"image_size": 32},
        "tiny": {"image_size": 16, "latent_size": 6, "generator_width": 16, "discriminator_width": 16},
    }

    def __post_init__(self, **kwargs: Any) -> None:
        options = [name for name in self.__dataclass_fields__ if not name.startswith("_")]
        for name in sorted(set(kwargs) - TRANSFORMERS_OPTIONS):
            near = difflib.get_close_matches(name, options, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise TypeError(f"PaperDcganConfig has no option '{name}'.{hint}")
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Refuse values with which the two networks make no sense."""
        for name in ("num_channels", "latent_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        doublings = self.image_size // SMALLEST_MAP
        if doublings < 2 or doublings & (doublings - 1) or self.image_size % SMALLEST_MAP:
            raise ValueError(
                f"image_size must be 8, 16, 32, 64, 128 and so on (4 doubled once or more), not {self.image_size}: the "
                "image processor brings pictures of other sizes to it."
            )
        least = 2 ** (self.num_layers - 1)
        for name in ("generator_width", "discriminator_width"):
            if getattr(self, name) < 1 or getattr(self, name) % least:
                raise ValueError(
                    f"{name} must be a multiple of {least}, because it is halved {self.num_layers - 1} times for an "
                    f"image_size of {self.image_size}; it is {getattr(self, name)}."
                )
        if not 0 < self.batch_norm_momentum <= 1:
            raise ValueError(f"batch_norm_momentum must be in (0, 1], not {self.batch_norm_momentum}.")
        if not 0 < self.batch_norm_eps < 1:
            raise ValueError(f"batch_norm_eps must be a small positive number, not {self.batch_norm_eps}.")
        if not 0 <= self.leaky_relu_slope < 1:
            raise ValueError(f"leaky_relu_slope must be in [0, 1), not {self.leaky_relu_slope}.")
        if not 0 < self.initializer_range < float("inf"):
            raise ValueError("initializer_range must be positive: weights that all start at 0 stay alike for ever.")

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "PaperDcganConfig":
        """The configuration called `name` in `presets`, with single options replaced by `overrides`."""
        if name not in cls.presets:
            near = difflib.get_close_matches(name, cls.presets, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"There is no preset '{name}'.{hint} The presets are: {', '.join(cls.presets)}.")
        return cls(**{**cls.presets[name], **overrides})

    @property
    def num_layers(self) -> int:
        """Doublings between 4 x 4 and the image, which are the hidden layers of each player: 4 for 64 pixels."""
        return (self.image_size // SMALLEST_MAP).bit_length() - 1

    @property
    def generator_channels(self) -> list[int]:
        """Maps of G's hidden layers, from 4 x 4 on: 1024, 512, 256, 128."""
        return [self.generator_width >> layer for layer in range(self.num_layers)]

    @property
    def discriminator_channels(self) -> list[int]:
        """Maps of D's hidden layers, from the image on: 128, 256, 512, 1024."""
        return [self.discriminator_width >> layer for layer in reversed(range(self.num_layers))]

    @property
    def num_features(self) -> int:
        """Entries of D's feature vector (section 5.1): 4 x 4 of every map. 28,672 for 32 pixels at the paper's width."""
        return SMALLEST_MAP**2 * sum(self.discriminator_channels)


__all__ = ["PaperDcganConfig"]

"""Configuration of the adversarial pair of "Generative Adversarial Networks" (https://huggingface.co/papers/1406.2661)."""

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
class PaperGanConfig(PreTrainedConfig):
    """A generator G and a discriminator D for images of one size; the defaults are the paper's MNIST networks.

    The paper (section 5) names only the kinds of units; sizes, initial weights and dropout rates come from the
    hyper-parameter file its authors published, https://github.com/goodfeli/adversarial (`mnist.yaml`).

    Args:
        image_size: height and width of an image, in pixels.
        num_channels: colours per pixel; 1 is grey.
        latent_size: entries of the noise vector z that G turns into an image.
        latent_distribution: p_z. "normal" is N(0, 1), what the authors' code draws by default; "uniform" is its other
            choice, uniform on [-sqrt(3), sqrt(3)], which has the same mean and variance.
        generator_hidden_sizes: units of each hidden layer of G.
        generator_activation: of G's hidden layers. The paper uses rectified linear units.
        generator_batch_norm: normalise G's hidden layers over the batch (not in the paper; 1502.03167).
        discriminator_type: "maxout" as in the paper, or "leaky_relu".
        discriminator_hidden_sizes: units of each hidden layer of D.
        maxout_pieces: linear pieces of which a maxout unit takes the largest (1302.4389).
        leaky_relu_slope: slope below zero of the leaky units of both players, where they are used.
        input_dropout: probability of dropping a pixel before D's first layer, while training.
        hidden_dropout: probability of dropping a hidden unit of D, while training.
        spectral_norm: divide every weight of D by its largest singular value (not in the paper; 1802.05957).
        generator_loss: "non_saturating" maximises log D(G(z)), the advice of section 3 and what the authors ran;
            "minimax" minimises log(1 - D(G(z))), eq. 1 to the letter.
        label_smoothing: D is asked for 1 minus this on real images (one-sided; not in the paper; 1606.03498, section 3.4).
        generator_init_range: G's weights start uniform within plus and minus this; biases start at 0.
        discriminator_init_range: the same for D.
    """

    model_type = "paper-gan"

    image_size: int = 28
    num_channels: int = 1
    latent_size: int = 100
    latent_distribution: Literal["normal", "uniform"] = "normal"
    generator_hidden_sizes: list[int] | tuple[int, ...] = (1200, 1200)
    generator_activation: Literal["relu", "leaky_relu"] = "relu"
    generator_batch_norm: bool = False
    discriminator_type: Literal["maxout", "leaky_relu"] = "maxout"
    discriminator_hidden_sizes: list[int] | tuple[int, ...] = (240, 240)
    maxout_pieces: int = 5
    leaky_relu_slope: float | int = 0.2
    input_dropout: float | int = 0.2
    hidden_dropout: float | int = 0.5
    spectral_norm: bool = False
    generator_loss: Literal["non_saturating", "minimax"] = "non_saturating"
    label_smoothing: float | int = 0.0
    generator_init_range: float | int = 0.05
    discriminator_init_range: float | int = 0.005

    # Not annotated: a property of the class, not an option of one configuration.
    presets = {
        "paper": {},
        "stable": {
            "generator_activation": "leaky_relu",
            "generator_batch_norm": True,
            "discriminator_type": "leaky_relu",
            "discriminator_hidden_sizes": (512, 256),
            "input_dropout": 0.0,
            "hidden_dropout": 0.0,
            "spectral_norm": True,
            "label_smoothing": 0.1,
            # Spectral normalisation undoes the scale of D's weights; they only must not start at zero.
            "discriminator_init_range": 0.05,
        },
        "tiny": {
            "image_size": 8,
            "latent_size": 6,
            "generator_hidden_sizes": (16, 16),
            "discriminator_hidden_sizes": (12, 12),
            "maxout_pieces": 3,
            "generator_init_range": 0.3,
            "discriminator_init_range": 0.3,
        },
    }

    def __post_init__(self, **kwargs: Any) -> None:
        options = [name for name in self.__dataclass_fields__ if not name.startswith("_")]
        for name in sorted(set(kwargs) - TRANSFORMERS_OPTIONS):
            near = difflib.get_close_matches(name, options, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise TypeError(f"PaperGanConfig has no option '{name}'.{hint}")
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Refuse values with which the two networks make no sense."""
        for name in ("image_size", "num_channels", "latent_size", "maxout_pieces"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("generator_hidden_sizes", "discriminator_hidden_sizes"):
            sizes = getattr(self, name)
            if not sizes or min(sizes) < 1:
                raise ValueError(f"{name} needs at least one layer and positive sizes, not {sizes}.")
        for name in ("input_dropout", "hidden_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is a probability in [0, 1), not {getattr(self, name)}.")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"label_smoothing must be in [0, 0.5), not {self.label_smoothing}: from 0.5 on, D would be "
                "taught to call real images generated."
            )
        if not 0 <= self.leaky_relu_slope < 1:
            raise ValueError(f"leaky_relu_slope must be in [0, 1), not {self.leaky_relu_slope}.")
        for name in ("generator_init_range", "discriminator_init_range"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive: weights that all start at 0 stay alike for ever.")

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "PaperGanConfig":
        """The configuration called `name` in `presets`, with single options replaced by `overrides`."""
        if name not in cls.presets:
            near = difflib.get_close_matches(name, cls.presets, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"There is no preset '{name}'.{hint} The presets are: {', '.join(cls.presets)}.")
        return cls(**{**cls.presets[name], **overrides})

    @property
    def num_pixels(self) -> int:
        """Numbers in one image: channels x height x width."""
        return self.num_channels * self.image_size**2


__all__ = ["PaperGanConfig"]

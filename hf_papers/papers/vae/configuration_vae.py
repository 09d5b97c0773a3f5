"""Configuration of the auto-encoder of "Auto-Encoding Variational Bayes" (https://huggingface.co/papers/1312.6114)."""

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
class PaperVaeConfig(PreTrainedConfig):
    """A variational auto-encoder for images of one size; the defaults are the paper's MNIST networks.

    Section 5 of the paper: fully-connected networks with one hidden layer of 500 units on MNIST and 200 on Frey Faces,
    and latent spaces of several sizes; appendix C gives the networks' equations, with tanh between the layers.

    Args:
        image_size: height and width of an image, in pixels.
        num_channels: colours per pixel; 1 is grey, 3 is red, green and blue.
        architecture: "fully_connected" as in appendix C, or "convolutional" (not in the paper).
        encoder_hidden_sizes: units of each hidden layer of q(z|x). In the convolutional architecture, the fully-connected
            layers behind the convolutions; may be empty there.
        decoder_hidden_sizes: the same for p(x|z), counted from z towards the image.
        conv_channels: convolutional architecture only: channels of each stage from the image inwards. Each stage halves
            height and width, and the decoder mirrors them.
        latent_size: J, the number of entries of z.
        hidden_act: activation of the hidden layers; "tanh" in appendix C. "leaky_relu" has a slope of 0.1 below zero.
        layer_norm: normalise what a fully-connected hidden layer computes before its activation (not in the paper;
            1607.06450): more entries of z stay active and training is faster.
        residual: add a hidden layer's input to its output where both have the same size (not in the paper).
        decoder_distribution: p(x|z) of one pixel: "bernoulli" (appendix C.1, binary data) or "gaussian" (appendix C.2,
            real-valued data in [0, 1], the means kept there by a sigmoid as section 5 does for Frey Faces).
        min_log_variance: floor of the Gaussian decoder's log-variances. Not in the paper, which gives no floor: a pixel
            that never changes then has an unbounded density, and training diverges. -8 is a standard deviation of 0.018,
            five of the 256 levels of grey.
        variational: false makes it a plain auto-encoder for comparison: z is the encoder's mean, nothing is sampled, the
            encoder has no variance and the loss no divergence.
        initialization: "normal" draws every parameter, biases too, from N(0, initializer_range^2) as section 5 does;
            "xavier" is uniform by fan-in and fan-out with zero biases (not in the paper), for deeper networks.
        initializer_range: standard deviation of the "normal" initialisation. The paper writes N(0, 0.01).
    """

    model_type = "paper-vae"

    image_size: int = 28
    num_channels: int = 1
    architecture: Literal["fully_connected", "convolutional"] = "fully_connected"
    encoder_hidden_sizes: list[int] | tuple[int, ...] = (500,)
    decoder_hidden_sizes: list[int] | tuple[int, ...] = (500,)
    conv_channels: list[int] | tuple[int, ...] = (32, 64)
    latent_size: int = 20
    hidden_act: Literal["tanh", "relu", "leaky_relu", "elu", "gelu", "silu", "softplus", "sigmoid"] = "tanh"
    layer_norm: bool = False
    residual: bool = False
    decoder_distribution: Literal["bernoulli", "gaussian"] = "bernoulli"
    min_log_variance: float | int = -8.0
    variational: bool = True
    initialization: Literal["normal", "xavier"] = "normal"
    initializer_range: float | int = 0.01

    # Not annotated: a property of the class, not an option of one configuration.
    presets = {
        "paper": {},
        "paper-frey": {  # section 5: Frey Faces are 28 x 20; here they are resized to a square
            "encoder_hidden_sizes": (200,),
            "decoder_hidden_sizes": (200,),
            "latent_size": 10,
            "decoder_distribution": "gaussian",
        },
        "latent2": {"latent_size": 2, "initialization": "xavier"},  # figure 4: the latent space as a map
        "best": {
            "encoder_hidden_sizes": (300, 300),
            "decoder_hidden_sizes": (300, 300),
            "latent_size": 40,
            "hidden_act": "silu",
            "layer_norm": True,
            "initialization": "xavier",
        },
        "conv": {
            "architecture": "convolutional",
            "encoder_hidden_sizes": (128,),
            "decoder_hidden_sizes": (128,),
            "conv_channels": (16, 32),
            "hidden_act": "silu",
            "initialization": "xavier",
        },
        "tiny": {
            "image_size": 8,
            "encoder_hidden_sizes": (16,),
            "decoder_hidden_sizes": (16,),
            "latent_size": 4,
            "initialization": "xavier",
        },
        "tiny-deep": {  # every option that the paper's network leaves out
            "image_size": 8,
            "encoder_hidden_sizes": (12, 12),
            "decoder_hidden_sizes": (12, 12),
            "latent_size": 4,
            "hidden_act": "silu",
            "layer_norm": True,
            "residual": True,
            "decoder_distribution": "gaussian",
            "initialization": "xavier",
        },
        "tiny-conv": {
            "image_size": 8,
            "architecture": "convolutional",
            "encoder_hidden_sizes": (12,),
            "decoder_hidden_sizes": (12,),
            "conv_channels": (4, 6),
            "latent_size": 4,
            "initialization": "xavier",
        },
    }

    def __post_init__(self, **kwargs: Any) -> None:
        options = [name for name in self.__dataclass_fields__ if not name.startswith("_")]
        for name in sorted(set(kwargs) - TRANSFORMERS_OPTIONS):
            near = difflib.get_close_matches(name, options, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise TypeError(f"PaperVaeConfig has no option '{name}'.{hint}")
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Refuse values with which the two networks make no sense."""
        for name in ("image_size", "num_channels", "latent_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.num_channels not in (1, 3):
            raise ValueError(f"num_channels is 1 (grey) or 3 (colour), not {self.num_channels}.")
        convolutional = self.architecture == "convolutional"
        for name in ("encoder_hidden_sizes", "decoder_hidden_sizes"):
            sizes = getattr(self, name)
            if (not sizes and not convolutional) or any(size < 1 for size in sizes):
                raise ValueError(f"{name} needs at least one layer and positive sizes, not {sizes}.")
        if (not self.conv_channels and convolutional) or any(channels < 1 for channels in self.conv_channels):
            raise ValueError(f"conv_channels needs at least one stage and positive sizes, not {self.conv_channels}.")
        if convolutional:
            factor = 2 ** len(self.conv_channels)
            if self.image_size % factor:
                raise ValueError(
                    f"image_size {self.image_size} cannot be halved {len(self.conv_channels)} times, once for each of "
                    f"conv_channels: use a multiple of {factor}, or fewer stages."
                )
        if not -30 <= self.min_log_variance <= 0:
            raise ValueError(f"min_log_variance must be in [-30, 0], not {self.min_log_variance}.")
        if not 0 < self.initializer_range < float("inf"):
            raise ValueError("initializer_range must be positive: weights that all start at 0 stay alike for ever.")

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "PaperVaeConfig":
        """The configuration called `name` in `presets`, with single options replaced by `overrides`."""
        if name not in cls.presets:
            near = difflib.get_close_matches(name, cls.presets, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"There is no preset '{name}'.{hint} The presets are: {', '.join(cls.presets)}.")
        return cls(**{**cls.presets[name], **overrides})

    @property
    def num_pixels(self) -> int:
        """D, the numbers in one image: channels x height x width."""
        return self.num_channels * self.image_size**2


__all__ = ["PaperVaeConfig"]

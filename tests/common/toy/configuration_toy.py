"""Options of the toy model."""

import difflib
import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


FROM_THE_BASE_CLASS = {"name_or_path", "_name_or_path", "_commit_hash", "torch_dtype", "num_labels", "model_type"} | {
    "attn_implementation",
    "experts_implementation",
    "output_attentions",
    "per_layer_config",
    "auto_map",
    "custom_pipelines",
    "transformers_weights",
}


@strict
class PaperToyConfig(PreTrainedConfig):
    """Options of a residual classifier of vectors.

    Args:
        input_size: numbers per example.
        hidden_size: width of the residual stream.
        num_hidden_layers: residual blocks.
        num_classes: classes.
        widths: sizes of the two layers of the head.
        dropout: share of hidden units that are dropped in training, 0 to 1.
        noise_std: standard deviation of the positions' table.
        activation: `"tanh"` or `"gelu"`.
    """

    model_type = "paper-toy"
    presets = {
        "paper": {},
        "tiny": {"input_size": 6, "hidden_size": 16, "num_hidden_layers": 2, "num_classes": 3, "widths": [8, 8]},
    }

    input_size: int = 32
    hidden_size: int = 64
    num_hidden_layers: int = 3
    num_classes: int = 10
    widths: list[int] | tuple[int, ...] = (32, 16)
    dropout: float | int = 0.1
    noise_std: float | int = 0.5
    activation: Literal["tanh", "gelu"] = "tanh"

    def __post_init__(self, **kwargs: Any) -> None:
        for name in kwargs:
            if name not in FROM_THE_BASE_CLASS and name not in self.__dataclass_fields__:
                close = difflib.get_close_matches(name, self.__dataclass_fields__, n=1, cutoff=0.5)
                raise TypeError(f"unknown option '{name}'." + (f" Did you mean '{close[0]}'?" if close else ""))
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        for name in ("input_size", "hidden_size", "num_hidden_layers", "num_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"'{name}' must be at least 1, got {getattr(self, name)}")
        if len(self.widths) != 2 or min(self.widths) < 1:
            raise ValueError(f"'widths' must be two positive numbers, got {self.widths}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"'dropout' must be in [0, 1), got {self.dropout}")
        if not (math.isfinite(self.noise_std) and self.noise_std >= 0):
            raise ValueError(f"'noise_std' must be a number ≥ 0, got {self.noise_std}")

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "PaperToyConfig":
        if name not in cls.presets:
            close = difflib.get_close_matches(name, cls.presets, n=1, cutoff=0.5)
            raise ValueError(f"no preset '{name}'." + (f" Did you mean '{close[0]}'?" if close else ""))
        return cls(**{**cls.presets[name], **overrides})

"""Configuration of the Transformer of "Attention Is All You Need" (https://huggingface.co/papers/1706.03762)."""

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
class PaperTransformerConfig(PreTrainedConfig):
    """An encoder and a decoder for text; the defaults are the paper's base model (table 3).

    Args:
        vocab_size: V, tokens of the vocabulary that source and target share; about 37,000 in section 5.1.
        d_model: numbers in a token's vector; 512, in the big model 1024.
        d_ff: units of a layer's feed-forward network; 2048, big 4096 (section 3.3).
        num_heads: h, heads of every attention; 8, big 16 (section 3.2.2).
        num_encoder_layers: N of the encoder; 6 (section 3.1).
        num_decoder_layers: N of the decoder; 6.
        d_k: numbers in a query or key of one head; none: d_model / h, 64 in the paper.
        d_v: numbers in a value of one head; none: d_model / h.
        dropout: P_drop, share of every sub-layer's output, and of the sums of embeddings and positions, that is set to 0
            in training (section 5.4); 0.1, big 0.3.
        attention_dropout: share of attention weights set to 0 in training; the paper has none.
        activation_dropout: share of the feed-forward network's hidden units set to 0 in training; the paper has none.
        attention_bias: whether the four projections of an attention add a bias; the paper's formulas have none, its
            number of parameters is the same to three digits either way.
        norm_first: normalise what enters a sub-layer, and once more at the end, instead of normalising sums as the paper
            does (section 3.1). Not in the paper; deep stacks learn without a warm-up then.
        position_embedding: "sinusoidal" as in section 3.5, or "learned" as in row E of table 3.
        max_position_embeddings: the longest text, in tokens. Sinusoids cost nothing and may be as many as you like.
        layer_norm_eps: what layer normalisation adds to a variance before it divides by its root; 1e-6 in the authors' code.
        tie_word_embeddings: source embeddings, target embeddings and the output layer are one matrix (section 3.4); else
            three.
        architecture: "transformer", or "rnn" for the baseline: a bidirectional GRU as encoder, a GRU with additive
            attention as decoder (1409.0473). Vocabulary, d_model, dropout and everything around them stay the same.
        rnn_hidden_size: units of the baseline's GRUs, in each direction. The Transformer does not use it.
        pad_token_id: fills up short texts; never looked at, never predicted.
        bos_token_id: what the decoder is given before the first token.
        eos_token_id: ends every text.
    """

    model_type = "paper-transformer"
    # What transformers' caches ask for.
    attribute_map = {
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_decoder_layers",
    }

    vocab_size: int = 37_000
    d_model: int = 512
    d_ff: int = 2048
    num_heads: int = 8
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    d_k: int | None = None
    d_v: int | None = None
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    attention_bias: bool = True
    norm_first: bool = False
    position_embedding: Literal["sinusoidal", "learned"] = "sinusoidal"
    max_position_embeddings: int = 512
    layer_norm_eps: float | int = 1e-6
    tie_word_embeddings: bool = True
    architecture: Literal["transformer", "rnn"] = "transformer"
    rnn_hidden_size: int = 1000
    pad_token_id: int = 0
    bos_token_id: int = 2
    eos_token_id: int = 3

    # Not annotated: a property of the class, not an option of one configuration.
    presets = {
        "base": {},
        "big": {"d_model": 1024, "d_ff": 4096, "num_heads": 16, "dropout": 0.3},
        "tiny": {
            "vocab_size": 31,
            "d_model": 16,
            "d_ff": 24,
            "num_heads": 2,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "max_position_embeddings": 24,
        },
        "tiny-departing": {  # every option that is not the paper's
            "vocab_size": 31,
            "d_model": 16,
            "d_ff": 24,
            "num_heads": 2,
            "num_encoder_layers": 1,
            "num_decoder_layers": 2,
            "d_k": 6,
            "d_v": 5,
            "attention_bias": False,
            "attention_dropout": 0.1,
            "activation_dropout": 0.1,
            "norm_first": True,
            "position_embedding": "learned",
            "max_position_embeddings": 10,
            "tie_word_embeddings": False,
        },
        "tiny-rnn": {
            "vocab_size": 31,
            "d_model": 16,
            "architecture": "rnn",
            "rnn_hidden_size": 12,
            "max_position_embeddings": 24,
        },
    }

    def __post_init__(self, **kwargs: Any) -> None:
        options = [name for name in self.__dataclass_fields__ if not name.startswith("_")]
        for name in sorted(set(kwargs) - TRANSFORMERS_OPTIONS):
            near = difflib.get_close_matches(name, options, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise TypeError(f"PaperTransformerConfig has no option '{name}'.{hint}")
        self.is_encoder_decoder = True
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Refuse values with which the network makes no sense."""
        for name in (
            "vocab_size",
            "d_model",
            "d_ff",
            "num_heads",
            "num_encoder_layers",
            "num_decoder_layers",
            "d_k",
            "d_v",
            "max_position_embeddings",
            "rnn_hidden_size",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")
        if self.d_model % self.num_heads and None in (self.d_k, self.d_v):
            raise ValueError(
                f"d_model {self.d_model} cannot be shared evenly among {self.num_heads} heads: choose a multiple of "
                "num_heads, or set d_k and d_v."
            )
        if self.d_model % 2 and self.position_embedding == "sinusoidal":
            raise ValueError(f"d_model must be even for pairs of a sine and a cosine, not {self.d_model}.")
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is a share, at least 0 and below 1, not {getattr(self, name)}.")
        if not 0 < self.layer_norm_eps < float("inf"):
            raise ValueError(f"layer_norm_eps must be positive, not {self.layer_norm_eps}.")
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(
                    f"{name} {getattr(self, name)} is no entry of a vocabulary of {self.vocab_size} (vocab_size)."
                )

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "PaperTransformerConfig":
        """The configuration called `name` in `presets`, with single options replaced by `overrides`."""
        if name not in cls.presets:
            near = difflib.get_close_matches(name, cls.presets, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"There is no preset '{name}'.{hint} The presets are: {', '.join(cls.presets)}.")
        return cls(**{**cls.presets[name], **overrides})

    @property
    def key_size(self) -> int:
        """d_k, numbers in a query or key of one head."""
        return self.d_k or self.d_model // self.num_heads

    @property
    def value_size(self) -> int:
        """d_v, numbers in a value of one head."""
        return self.d_v or self.d_model // self.num_heads


__all__ = ["PaperTransformerConfig"]

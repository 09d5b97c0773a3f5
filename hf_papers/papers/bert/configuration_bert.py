"""Configuration of BERT (https://huggingface.co/papers/1810.04805)."""

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


def _size(num_hidden_layers: int, hidden_size: int) -> dict[str, int]:
    """L and H of a published model; A is H/64 and the feed-forward size 4H in all of them (section 3, footnote 3)."""
    return {
        "num_hidden_layers": num_hidden_layers,
        "hidden_size": hidden_size,
        "num_attention_heads": hidden_size // 64,
        "intermediate_size": 4 * hidden_size,
    }


@strict
class PaperBertConfig(PreTrainedConfig):
    """A bidirectional Transformer encoder for text; the defaults are BERT BASE.

    Section 3 of the paper: L layers, hidden size H and A heads; BASE is L=12, H=768, A=12 and LARGE is L=24, H=1024, A=16.
    The smaller sizes are those of 1908.08962 (Turc et al.).

    Args:
        vocab_size: V, word pieces in the vocabulary; 30,000 in the paper's words, 30,522 in the released one.
        hidden_size: H, numbers in a token's vector.
        num_hidden_layers: L, Transformer blocks.
        num_attention_heads: A, heads of every block; H must be a multiple of it.
        intermediate_size: units of a block's feed-forward layer; 4H in the paper.
        hidden_act: activation of the feed-forward and prediction layers; "gelu" in appendix A.2. "gelu_tanh" is its
            approximation by a hyperbolic tangent, which the authors' own code computes.
        hidden_dropout_prob: share of embedding and sub-layer outputs set to 0 in training; 0.1 in appendix A.2.
        attention_probs_dropout_prob: share of attention weights set to 0 in training; 0.1.
        classifier_dropout: share of what a task's output layer reads that is set to 0 in training; none: as
            hidden_dropout_prob.
        max_position_embeddings: the longest sequence, in tokens; 512.
        type_vocab_size: kinds of segments: sentence A and sentence B.
        layer_norm_eps: what layer normalisation adds to a variance before it divides by its root.
        initializer_range: standard deviation of the normal initialisation; 0.02 in the authors' code.
        pad_token_id: the word piece [PAD], whose embedding starts at 0; 0 in the released vocabularies.
        causal_attention: each token sees those before it and itself only: "LTR" of table 5, which is not BERT.
        next_sentence_prediction: false leaves the next-sentence output out of the pre-training model: "No NSP" of table 5.
        tie_word_embeddings: the output layer over the vocabulary shares the word embeddings' weights; true in the paper's
            code.
        problem_type: what a sequence classifier learns: one class of several, several labels at once, or numbers; none: a
            number where there is one label, else one class.
    """

    model_type = "paper-bert"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    classifier_dropout: float | int | None = None
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float | int = 1e-12
    initializer_range: float | int = 0.02
    pad_token_id: int = 0
    causal_attention: bool = False
    next_sentence_prediction: bool = True
    tie_word_embeddings: bool = True
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = None

    # Not annotated: a property of the class, not an option of one configuration.
    presets = {
        "base": _size(12, 768),
        "large": _size(24, 1024),
        "medium": _size(8, 512),
        "small": _size(4, 512),
        "mini": _size(4, 256),
        "tiny": _size(2, 128),
    }

    def __post_init__(self, **kwargs: Any) -> None:
        options = [name for name in self.__dataclass_fields__ if not name.startswith("_")]
        for name in sorted(set(kwargs) - TRANSFORMERS_OPTIONS):
            near = difflib.get_close_matches(name, options, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise TypeError(f"PaperBertConfig has no option '{name}'.{hint}")
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Refuse values with which the encoder makes no sense."""
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("max_position_embeddings", "type_vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} cannot be shared evenly among {self.num_attention_heads} heads: choose a "
                "multiple of num_attention_heads."
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} is a share, at least 0 and below 1, not {value}.")
        for name in ("layer_norm_eps", "initializer_range"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}.")
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"pad_token_id {self.pad_token_id} is no entry of a vocabulary of {self.vocab_size}.")

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "PaperBertConfig":
        """The configuration called `name` in `presets`, with single options replaced by `overrides`."""
        if name not in cls.presets:
            near = difflib.get_close_matches(name, cls.presets, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"There is no preset '{name}'.{hint} The presets are: {', '.join(cls.presets)}.")
        return cls(**{**cls.presets[name], **overrides})


__all__ = ["PaperBertConfig"]

"""Attention Is All You Need (Vaswani et al., 2017), https://huggingface.co/papers/1706.03762.

An encoder reads the source text, a decoder writes the target text one token at a time. Neither has recurrence or
convolution: every token asks all tokens that it may see (a query against their keys), and takes in the answers (their
values) in proportion to how well question and key agree.

    Attention(Q, K, V) = softmax(Q K^T / sqrt(d_k)) V                        (eq. 1)
    MultiHead(Q, K, V) = Concat(head_1 ... head_h) W^O                       (section 3.2.2)
                         head_i = Attention(Q W_i^Q, K W_i^K, V W_i^V)
    FFN(x)             = max(0, x W_1 + b_1) W_2 + b_2                       (eq. 2)
    x                 <- LayerNorm(x + Sublayer(x))                          (section 3.1)

Shapes: B texts, S source tokens, T target tokens, P tokens written before, d = d_model, h heads, V = vocab_size.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
    SequenceClassifierOutput,
)
from transformers.utils import can_return_tuple

from .configuration_transformer import PaperTransformerConfig
from .modeling_dropout import dropout
from .modeling_rnn import PaperRnnDecoder, PaperRnnEncoder, PaperRnnGru


IGNORED = -100  # the label of a position that is not to be predicted
ROWS_AT_ONCE = 256  # of a matrix of logits; so many stay in the processor's cache


# ------------------------------------------------------------------------------------------------ attention, section 3.2


def scaled_dot_product_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, dropout_prob: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 1: queries (B, h, T, d_k), keys (B, h, S, d_k), values (B, h, S, d_v) -> (B, h, T, d_v), weights (B, h, T, S).

    mask: broadcasts to (B, h, T, S), true where a query may look. The products are divided by the root of a *head's* size:
    a sum of d_k products of unit variance has variance d_k, and the softmax of large numbers has no gradient. A query
    that may look nowhere takes in nothing, where minus infinity everywhere would give 0/0.
    """
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask is None:
        weights = scores.softmax(-1)
    else:
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(~mask, 0.0)
    return F.dropout(weights, dropout_prob) @ value, weights


def padding_mask(attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """Which keys are there: (B, S), 1 for a token and 0 for padding -> (B, 1, 1, S), true for a token."""
    return None if attention_mask is None else attention_mask.bool()[:, None, None, :]


def causal_mask(length: int, past: int, device: torch.device) -> torch.Tensor:
    """What a token may see of those written so far: (T, P + T), true for itself and everything before it."""
    return torch.ones(length, past + length, dtype=torch.bool, device=device).tril(past)


class PaperTransformerAttention(nn.Module):
    """Multi-head attention: h small attentions side by side, each in a space of its own (section 3.2.2).

    Args:
        layer: the number of the decoder's layer, whose place in the cache it is; none where nothing is cached.
        is_cross: keys and values come from the encoder and are the same at every step.
    """

    def __init__(self, config: PaperTransformerConfig, layer: int | None = None, is_cross: bool = False) -> None:
        super().__init__()
        self.config, self.layer, self.is_cross = config, layer, is_cross
        self.num_heads = config.num_heads
        self.dropout_prob = config.attention_dropout
        heads, bias = config.num_heads, config.attention_bias
        self.query = nn.Linear(config.d_model, heads * config.key_size, bias)  # W_1^Q ... W_h^Q side by side
        self.key = nn.Linear(config.d_model, heads * config.key_size, bias)
        self.value = nn.Linear(config.d_model, heads * config.value_size, bias)
        self.output = nn.Linear(heads * config.value_size, config.d_model, bias)  # W^O

    def forward(
        self,
        hidden_states: torch.Tensor,
        source: torch.Tensor,
        mask: torch.Tensor | None,
        cache: EncoderDecoderCache | None = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens (B, T, d) look at the tokens of `source` (B, S, d), and at those in the cache: (B, T, d), weights.

        mask: as in `scaled_dot_product_attention`. The weights (B, h, T, S) are given where they are asked for or
        `attn_implementation` is "eager".
        """
        query = self._split_heads(self.query(hidden_states))  # (B, h, T, d_k)
        key, value = self._keys_and_values(source, cache)
        dropout_prob = self.dropout_prob if self.training else 0.0
        if output_attentions or self._writes_out(query):
            context, weights = scaled_dot_product_attention(query, key, value, mask, dropout_prob)
        else:
            # The same numbers; the weights are never written to memory.
            context, weights = F.scaled_dot_product_attention(query, key, value, mask, dropout_prob), None
        return self.output(context.transpose(1, 2).flatten(2)), weights

    def _writes_out(self, query: torch.Tensor) -> bool:
        # The fused kernel's backward pass in bfloat16 takes a CPU many times as long as the formula.
        slow = query.dtype == torch.bfloat16 and query.device.type == "cpu" and query.requires_grad
        return slow or self.config._attn_implementation == "eager"

    def _keys_and_values(
        self, source: torch.Tensor, cache: EncoderDecoderCache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys (B, h, P + S, d_k) and values (B, h, P + S, d_v); those of the encoder are projected once per text."""
        if cache is not None and self.is_cross and cache.is_updated.get(self.layer):
            stored = cache.cross_attention_cache.layers[self.layer]
            return stored.keys, stored.values
        key, value = self._split_heads(self.key(source)), self._split_heads(self.value(source))
        if cache is None:
            return key, value
        if not self.is_cross:
            return cache.self_attention_cache.update(key, value, self.layer)
        cache.is_updated[self.layer] = True
        return cache.cross_attention_cache.update(key, value, self.layer)

    def _split_heads(self, projected: torch.Tensor) -> torch.Tensor:
        """(B, T, h d_k) -> (B, h, T, d_k)"""
        return projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


# ------------------------------------------------------------ feed-forward, embeddings and positions, sections 3.3 to 3.5


class PaperTransformerFeedForward(nn.Module):
    """Eq. 2, for each token alone: (B, T, d) -> (B, T, d), by way of d_ff."""

    def __init__(self, config: PaperTransformerConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(config.d_model, config.d_ff)
        self.output = nn.Linear(config.d_ff, config.d_model)
        self.dropout_prob = config.activation_dropout

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.output(dropout(self.inner(hidden_states).relu(), self.dropout_prob, self.training))


def sinusoids(positions: int, d_model: int) -> torch.Tensor:
    """Section 3.5: (positions, d_model), waves from 2 pi to 10000 * 2 pi tokens long, a sine and a cosine of each.

    PE(pos, 2i) = sin(pos / 10000^(2i / d_model)), PE(pos, 2i + 1) = cos(the same): the wave of pos + k is a rotation of
    that of pos by an angle that only k decides, so that "k tokens further" is a linear map.
    """
    rates = torch.exp(torch.arange(0, d_model, 2, dtype=torch.float64) * (-math.log(10_000.0) / d_model))
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * rates  # (positions, d_model / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


class PaperTransformerEmbeddings(nn.Module):
    """What a token is, times sqrt(d_model) (section 3.4), plus where it stands: (B, T) -> (B, T, d)."""

    def __init__(self, config: PaperTransformerConfig) -> None:
        super().__init__()
        self.scale = math.sqrt(config.d_model)
        self.dropout_prob = config.dropout
        self.tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.is_learned = config.position_embedding == "learned"
        if self.is_learned:
            self.positions = nn.Parameter(torch.empty(config.max_position_embeddings, config.d_model))
        else:
            table = sinusoids(config.max_position_embeddings, config.d_model)
            self.register_buffer("positions", table, persistent=False)

    def forward(self, input_ids: torch.Tensor, past: int = 0) -> torch.Tensor:
        """input_ids (B, T), behind `past` tokens. Raises `ValueError` for a text longer than the positions."""
        end, longest = past + input_ids.shape[1], len(self.positions)
        if end > longest:
            raise ValueError(
                f"A text of {end} tokens is longer than the {longest} positions of this model: cut it, e.g. by "
                "tokenizer(text, truncation=True)."
            )
        tokens = self.tokens(input_ids) * self.scale
        # A buffer stays in float32 when a model is loaded in less.
        positions = self.positions[past:end].to(tokens.dtype)
        return dropout(tokens + positions, self.dropout_prob, self.training)


# --------------------------------------------------------------------------------------- encoder and decoder, section 3.1


class PaperTransformerAddAndNorm(nn.Module):
    """The residual around a sub-layer: LayerNorm(x + Sublayer(x)), or with `norm_first` x + Sublayer(LayerNorm(x)).

    What enters the sub-layer is `enter(x)`, what leaves it with output y is `leave(x, y)`; all (B, T, d).
    """

    def __init__(self, config: PaperTransformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.norm_first = config.norm_first
        self.dropout_prob = config.dropout

    def enter(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.norm(hidden_states) if self.norm_first else hidden_states

    def leave(self, hidden_states: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        total = hidden_states + dropout(output, self.dropout_prob, self.training)
        return total if self.norm_first else self.norm(total)


class PaperTransformerEncoderLayer(GradientCheckpointingLayer):
    """Self-attention, then the feed-forward network: (B, S, d) -> (B, S, d), weights (B, h, S, S) if they are given."""

    def __init__(self, config: PaperTransformerConfig) -> None:
        super().__init__()
        self.attention = PaperTransformerAttention(config)
        self.attention_add = PaperTransformerAddAndNorm(config)
        self.feed_forward = PaperTransformerFeedForward(config)
        self.feed_forward_add = PaperTransformerAddAndNorm(config)

    def forward(
        self, hidden_states: torch.Tensor, mask: torch.Tensor | None, output_attentions: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        entering = self.attention_add.enter(hidden_states)
        attended, weights = self.attention(entering, entering, mask, None, output_attentions)
        hidden_states = self.attention_add.leave(hidden_states, attended)
        fed = self.feed_forward(self.feed_forward_add.enter(hidden_states))
        return self.feed_forward_add.leave(hidden_states, fed), weights


class PaperTransformerDecoderLayer(GradientCheckpointingLayer):
    """Self-attention to what is written, attention to the source, the feed-forward network: (B, T, d) -> (B, T, d)."""

    def __init__(self, config: PaperTransformerConfig, layer: int) -> None:
        super().__init__()
        self.self_attention = PaperTransformerAttention(config, layer)
        self.self_attention_add = PaperTransformerAddAndNorm(config)
        self.cross_attention = PaperTransformerAttention(config, layer, is_cross=True)
        self.cross_attention_add = PaperTransformerAddAndNorm(config)
        self.feed_forward = PaperTransformerFeedForward(config)
        self.feed_forward_add = PaperTransformerAddAndNorm(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        self_mask: torch.Tensor | None,
        source: torch.Tensor,
        source_mask: torch.Tensor | None,
        cache: EncoderDecoderCache | None,
        output_attentions: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Also returns the weights of both attentions, (B, h, T, P + T) and (B, h, T, S), if they are given."""
        entering = self.self_attention_add.enter(hidden_states)
        attended, self_weights = self.self_attention(entering, entering, self_mask, cache, output_attentions)
        hidden_states = self.self_attention_add.leave(hidden_states, attended)

        entering = self.cross_attention_add.enter(hidden_states)
        attended, cross_weights = self.cross_attention(entering, source, source_mask, cache, output_attentions)
        hidden_states = self.cross_attention_add.leave(hidden_states, attended)

        fed = self.feed_forward(self.feed_forward_add.enter(hidden_states))
        return self.feed_forward_add.leave(hidden_states, fed), self_weights, cross_weights


class PaperTransformerEncoder(nn.Module):
    """Source tokens (B, S) -> a vector for each, in the light of all others (B, S, d)."""

    def __init__(self, config: PaperTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = PaperTransformerEmbeddings(config)
        self.layers = nn.ModuleList(PaperTransformerEncoderLayer(config) for _ in range(config.num_encoder_layers))
        self.norm = final_norm(config)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutput:
        """
        Args:
            input_ids: (B, S) entries of the vocabulary.
            attention_mask: (B, S), 1 for a token, 0 for padding, which then changes nothing; all tokens by default.
            output_attentions: also return every layer's attention weights, (B, h, S, S) each.
            output_hidden_states: also return the embeddings and every layer's output, (B, S, d) each.

        Raises `ValueError` for a text longer than `max_position_embeddings`.
        """
        mask = padding_mask(attention_mask)
        hidden_states = self.embeddings(input_ids)
        all_hidden_states, all_attentions = [hidden_states], []
        for layer in self.layers:
            hidden_states, weights = layer(hidden_states, mask, bool(output_attentions))
            all_hidden_states.append(hidden_states)
            all_attentions.append(weights)
        return BaseModelOutput(
            last_hidden_state=self.norm(hidden_states),
            hidden_states=tuple(all_hidden_states) if output_hidden_states else None,
            attentions=tuple(all_attentions) if output_attentions else None,
        )


class PaperTransformerDecoder(nn.Module):
    """Target tokens (B, T) and the encoded source (B, S, d) -> a vector for each *next* target token (B, T, d)."""

    def __init__(self, config: PaperTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = PaperTransformerEmbeddings(config)
        layers = range(config.num_decoder_layers)
        self.layers = nn.ModuleList(PaperTransformerDecoderLayer(config, layer) for layer in layers)
        self.norm = final_norm(config)

    def forward(
        self,
        input_ids: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """
        Args:
            input_ids: (B, T), the target from its start on, or what follows the tokens in the cache. Padding stands at the
                end, where no token looks, so it needs no mask.
            encoder_hidden_states: (B, S, d).
            encoder_attention_mask: (B, S), 1 for a source token, 0 for padding.
            past_key_values: keys and values of the tokens before `input_ids`; those of `input_ids` are added.
            output_attentions: also return every layer's weights, `attentions` (B, h, T, P + T) each, `cross_attentions`
                (B, h, T, S) each.
            output_hidden_states: also return the embeddings and every layer's output, (B, T, d) each.
        """
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        length = input_ids.shape[1]
        self_mask = causal_mask(length, past, input_ids.device) if length > 1 else None  # the last token sees all
        source_mask = padding_mask(encoder_attention_mask)
        hidden_states = self.embeddings(input_ids, past)
        all_hidden_states, all_attentions, all_cross_attentions = [hidden_states], [], []
        for layer in self.layers:
            hidden_states, weights, cross_weights = layer(
                hidden_states, self_mask, encoder_hidden_states, source_mask, past_key_values, bool(output_attentions)
            )
            all_hidden_states.append(hidden_states)
            all_attentions.append(weights)
            all_cross_attentions.append(cross_weights)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.norm(hidden_states),
            past_key_values=past_key_values,
            hidden_states=tuple(all_hidden_states) if output_hidden_states else None,
            attentions=tuple(all_attentions) if output_attentions else None,
            cross_attentions=tuple(all_cross_attentions) if output_attentions else None,
        )


def final_norm(config: PaperTransformerConfig) -> nn.Module:
    """With `norm_first` nobody has normalised the last sum; in the paper's order the last layer has."""
    return nn.LayerNorm(config.d_model, eps=config.layer_norm_eps) if config.norm_first else nn.Identity()


PARTS = {"transformer": (PaperTransformerEncoder, PaperTransformerDecoder), "rnn": (PaperRnnEncoder, PaperRnnDecoder)}


# ------------------------------------------------------------------------------------------------- what all models share


class PaperTransformerPreTrainedModel(PreTrainedModel):
    """Initialisation and made-up inputs."""

    config: PaperTransformerConfig
    base_model_prefix = "transformer"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["PaperTransformerEncoderLayer", "PaperTransformerDecoderLayer"]
    _supports_sdpa = True

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """`model.set_attn_implementation("eager")` works: attention asks the config at every call."""
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The paper says nothing of it. As its authors' code: matrices uniform by fan-in and fan-out, embeddings
        N(0, 1 / d_model), which times sqrt(d_model) is as large as the sinusoids. Recurrent matrices are orthogonal."""
        std = self.config.d_model**-0.5
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, PaperTransformerEmbeddings):
            if module.is_learned:
                init.normal_(module.positions, std=std)
            else:
                init.copy_(module.positions, sinusoids(*module.positions.shape))
        elif isinstance(module, PaperRnnGru):
            for gate in module.states.weight.chunk(3):
                init.orthogonal_(gate)

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Four made-up sources of unequal length."""
        generator = torch.Generator().manual_seed(0)
        length = min(7, self.config.max_position_embeddings)
        lengths = torch.tensor([length, length - 2, length, length - 1])
        attention_mask = (torch.arange(length) < lengths[:, None]).long()
        input_ids = torch.randint(0, self.config.vocab_size, (4, length), generator=generator)
        return {
            "input_ids": torch.where(attention_mask.bool(), input_ids, self.config.pad_token_id),
            "attention_mask": attention_mask,
        }

    def dummy_targets(self) -> torch.Tensor:
        """Four made-up targets (4, T), as long as each other."""
        length = min(6, self.config.max_position_embeddings)
        return torch.randint(0, self.config.vocab_size, (4, length), generator=torch.Generator().manual_seed(1))

    def _asked(self, argument: bool | None, option: str) -> bool:
        return bool(getattr(self.config, option, False)) if argument is None else argument


class PaperTransformerModel(PaperTransformerPreTrainedModel):
    """Encoder and decoder: source and target in, a vector for each next target token out."""

    _tied_weights_keys = {"decoder.embeddings.tokens.weight": "encoder.embeddings.tokens.weight"}

    def __init__(self, config: PaperTransformerConfig, add_decoder: bool = True) -> None:
        super().__init__(config)
        encoder, decoder = PARTS[config.architecture]
        self.encoder = encoder(config)
        self.decoder = decoder(config) if add_decoder else None
        if not add_decoder:
            self._tied_weights_keys = {}
        self.post_init()

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        return super().dummy_inputs | {"decoder_input_ids": self.dummy_targets()}

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder.embeddings.tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.encoder.embeddings.tokens = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> Seq2SeqModelOutput:
        """
        Args:
            input_ids: (B, S) source; not needed where `encoder_outputs` are given.
            attention_mask: (B, S), 1 for a source token, 0 for padding.
            decoder_input_ids: (B, T) target so far, beginning with `bos_token_id`; with a cache, what follows it.
            encoder_outputs: what the encoder said of the source.
            past_key_values: the cache of the steps before.
            use_cache: fill a cache, so that the next call needs the next token only.
            output_attentions: return the weights of all three kinds of attention.
            output_hidden_states: return what every layer says.
        """
        if decoder_input_ids is None or (input_ids is None and encoder_outputs is None):
            raise ValueError(
                "The model reads a source (input_ids) and the target so far (decoder_input_ids): give both."
            )
        output_attentions = self._asked(output_attentions, "output_attentions")
        output_hidden_states = self._asked(output_hidden_states, "output_hidden_states")
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids, attention_mask, output_attentions, output_hidden_states, return_dict=True
            )
        if use_cache and past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        decoded = self.decoder(
            decoder_input_ids,
            encoder_outputs.last_hidden_state,
            attention_mask,
            past_key_values,
            output_attentions,
            output_hidden_states,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            past_key_values=decoded.past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )


# ---------------------------------------------------------------------------------------- translation, sections 3.4 and 5.4


def shift_right(labels: torch.Tensor, bos_token_id: int, pad_token_id: int) -> torch.Tensor:
    """What the decoder is given to predict `labels`: the start, then every label but the last. (B, T) -> (B, T)."""
    start = torch.full_like(labels[:, :1], bos_token_id)
    return torch.cat([start, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, pad_token_id)], dim=1)


class SmoothedCrossEntropy(torch.autograd.Function):
    """sum_n -sum_k q_nk log p_nk for logits (N, V) and labels (N,), -100 for none; its gradient is p - q.

    Left to itself, autograd writes and reads matrices of N x V float32 numbers seven times. Here loss and gradient of some
    rows at a time are computed together, while they are in the processor's cache.
    """

    @staticmethod
    def forward(context: Any, logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
        total = torch.zeros((), device=logits.device)
        gradient = torch.empty_like(logits)
        parts = (values.split(ROWS_AT_ONCE) for values in (logits, labels, gradient))
        for rows, labels_of_rows, gradient_of_rows in zip(*parts, strict=True):
            counts = labels_of_rows != IGNORED
            truth = labels_of_rows.masked_fill(~counts, 0)[:, None]
            log_probs = rows.float().log_softmax(-1)  # (rows, V)
            losses = (smoothing - 1) * log_probs.gather(-1, truth).squeeze(-1) - smoothing * log_probs.mean(-1)
            total = total + losses.masked_fill(~counts, 0).sum()
            difference = log_probs.exp_().sub_(smoothing / logits.shape[-1])
            difference.scatter_add_(-1, truth, torch.full_like(truth, smoothing - 1, dtype=torch.float32))
            gradient_of_rows.copy_(difference.mul_(counts[:, None]))
        context.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(context: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = context.saved_tensors
        return gradient * upstream, None, None


def smoothed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Mean over the labels that are not -100 of -sum_k q_k log p_k, nats: logits (..., V), labels (...) -> scalar.

    q gives 1 - smoothing to the true token and spreads `smoothing` over all V tokens (section 5.4; 1512.00567, section 7).
    """
    logits, labels = logits.flatten(0, -2), labels.flatten()
    if logits.requires_grad:
        total = SmoothedCrossEntropy.apply(logits, labels, smoothing)
    else:
        options = {"ignore_index": IGNORED, "reduction": "sum", "label_smoothing": smoothing}
        total = F.cross_entropy(logits.float(), labels, **options)
    return total / (labels != IGNORED).sum().clamp(min=1)


class PaperTransformerForSeq2SeqLM(PaperTransformerPreTrainedModel, GenerationMixin):
    """Encoder, decoder, and a score for every token of the vocabulary to be the next."""

    _tied_weights_keys = {"lm_head.weight": "transformer.encoder.embeddings.tokens.weight"}

    def __init__(self, config: PaperTransformerConfig) -> None:
        super().__init__(config)
        self.transformer = PaperTransformerModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()
        # transformers stops after 20 tokens by default.
        self.generation_config.max_length = config.max_position_embeddings

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        return super().dummy_inputs | {"labels": self.dummy_targets()}

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        return self.transformer.encoder

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        label_positions: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
        encoder_outputs: BaseModelOutput | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> Seq2SeqLMOutput:
        """As `PaperTransformerModel.forward`, and:

        Args:
            labels: (B, T) target, ending with `eos_token_id`, -100 behind it. What the decoder is given follows from it.
            label_positions: (N,), the only positions of the target that are predicted, counted through the batch (text *
                T + token). The matrix onto the vocabulary is the largest, and padding needs none. Only the loss is wanted
                then: logits are not returned.
            label_smoothing: epsilon_ls; 0.1 in section 5.4. With 0, `loss` is the mean log-probability of a token.
        """
        if labels is not None and decoder_input_ids is None:
            decoder_input_ids = shift_right(labels, self.config.bos_token_id, self.config.pad_token_id)
        outputs = self.transformer(
            input_ids,
            attention_mask,
            decoder_input_ids,
            encoder_outputs,
            past_key_values,
            use_cache,
            output_attentions,
            output_hidden_states,
            return_dict=True,
        )
        hidden_states = outputs.last_hidden_state
        if label_positions is not None:
            hidden_states = hidden_states.flatten(0, 1).index_select(0, label_positions)  # (N, d)
            labels = None if labels is None else labels.flatten().index_select(0, label_positions)
        logits = self.lm_head(hidden_states)  # (B, T, V)
        loss = None if labels is None else smoothed_cross_entropy(logits, labels, label_smoothing)
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits if label_positions is None else None,
            past_key_values=outputs.past_key_values,
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
        )


# ------------------------------------------------------------------------------------------------ the encoder, by itself


class PaperTransformerForSequenceClassification(PaperTransformerPreTrainedModel):
    """The encoder with one layer on top, for a class per text. Not in the paper: what a translator's encoder is good for."""

    def __init__(self, config: PaperTransformerConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.transformer = PaperTransformerModel(config, add_decoder=False)
        is_rnn = config.architecture == "rnn"
        self.classifier = nn.Linear(2 * config.rnn_hidden_size if is_rnn else config.d_model, config.num_labels)
        self.post_init()

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        return super().dummy_inputs | {"labels": torch.arange(4) % self.num_labels}

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> SequenceClassifierOutput:
        """
        Args:
            input_ids: (B, S) texts.
            attention_mask: (B, S), 1 for a token, 0 for padding.
            labels: (B,) class numbers; `loss` is their mean cross-entropy, nats.
        """
        outputs = self.transformer.encoder(
            input_ids,
            attention_mask,
            self._asked(output_attentions, "output_attentions"),
            self._asked(output_hidden_states, "output_hidden_states"),
            return_dict=True,
        )
        pooled = mean_over_tokens(outputs.last_hidden_state, attention_mask)
        logits = self.classifier(dropout(pooled, self.config.dropout, self.training))  # (B, num_labels)
        return SequenceClassifierOutput(
            loss=None if labels is None else F.cross_entropy(logits.float(), labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def mean_over_tokens(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """A text's vector: the mean of its tokens' (B, S, d), padding left out -> (B, d)."""
    if attention_mask is None:
        return hidden_states.mean(1)
    mask = attention_mask[..., None].to(hidden_states.dtype)
    return (hidden_states * mask).sum(1) / mask.sum(1).clamp(min=1)


__all__ = [
    "PaperTransformerForSeq2SeqLM",
    "PaperTransformerForSequenceClassification",
    "PaperTransformerModel",
]

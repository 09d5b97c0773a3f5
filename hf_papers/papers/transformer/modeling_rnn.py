"""The baseline: a recurrent encoder and decoder with additive attention (Bahdanau et al., 2014, 1409.0473).

The encoder reads the source once in each direction; the decoder keeps a state s, and at every step looks at the source
through it before it writes the next token (appendix A.1 and A.2 of that paper):

    e_ij = v^T tanh(W s_(i-1) + U h_j),  alpha_i = softmax(e_i),  c_i = sum_j alpha_ij h_j
    s_i  = GRU(E y_(i-1), c_i; s_(i-1))
    t_i  = maxout(U_o s_(i-1) + V_o E y_(i-1) + C_o c_i),  p(y_i) = softmax(E t_i)

Both have the forward of the Transformer's encoder and decoder, so that everything around them is shared: the embeddings'
matrix, the loss, generation and its cache, which holds the states of a text where the Transformer has keys.

Shapes: B texts, S source tokens, T target tokens, d = d_model, H = rnn_hidden_size.
"""

import math

import torch
from torch import nn
from transformers import EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions
from transformers.utils import can_return_tuple

from .configuration_transformer import PaperTransformerConfig
from .modeling_dropout import dropout


class PaperRnnGru(nn.Module):
    """A gated recurrent unit's step, (B, inputs) and a state (B, H) -> the next state (B, H).

        r, z = sigmoid(W x + U s)   for reset and update,   n = tanh(W_n x + r * U_n s),   s <- (1 - z) n + z s

    The reset gate multiplies U_n s and not s, so that U is one matrix product for all three: as cuDNN and torch.nn.GRU.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(input_size, 3 * hidden_size)
        self.states = nn.Linear(hidden_size, 3 * hidden_size)

    def forward(self, projected: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """projected: W x (B, 3H), which is computed for all steps at once where x is known."""
        reset, update, new = projected.chunk(3, dim=-1)
        past_reset, past_update, past_new = self.states(state).chunk(3, dim=-1)
        update = (update + past_update).sigmoid()
        candidate = (new + (reset + past_reset).sigmoid() * past_new).tanh()
        return candidate + update * (state - candidate)


class PaperRnnDirection(GradientCheckpointingLayer):
    """A GRU over a text from its first token to its last: (B, S, d) -> (B, S, H)."""

    def __init__(self, config: PaperTransformerConfig) -> None:
        super().__init__()
        self.hidden_size = config.rnn_hidden_size
        self.gru = PaperRnnGru(config.d_model, config.rnn_hidden_size)

    def forward(self, embedded: torch.Tensor) -> torch.Tensor:
        projected = self.gru.inputs(embedded)  # (B, S, 3H)
        state = embedded.new_zeros(embedded.shape[0], self.hidden_size)
        states = []
        for step in projected.unbind(1):
            state = self.gru(step, state)
            states.append(state)
        return torch.stack(states, dim=1)


def reverse(values: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Every text backwards, its padding left behind it: (B, S, d), (B, S) -> (B, S, d)."""
    length = values.shape[1]
    positions = torch.arange(length, device=values.device)
    tokens = attention_mask.sum(1, keepdim=True)
    order = torch.where(positions < tokens, tokens - 1 - positions, positions)  # (B, S)
    return values.gather(1, order[..., None].expand_as(values))


class PaperRnnEmbeddings(nn.Module):
    """What a token is: (B, T) -> (B, T, d). Times sqrt(d_model) as in the Transformer: the matrix is the output's too."""

    def __init__(self, config: PaperTransformerConfig) -> None:
        super().__init__()
        self.scale = math.sqrt(config.d_model)
        self.dropout_prob = config.dropout
        self.tokens = nn.Embedding(config.vocab_size, config.d_model)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return dropout(self.tokens(input_ids) * self.scale, self.dropout_prob, self.training)


class PaperRnnEncoder(nn.Module):
    """What stands at each source token, read from both sides: (B, S) -> (B, S, 2H), forward states first."""

    def __init__(self, config: PaperTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = PaperRnnEmbeddings(config)
        self.forwards = PaperRnnDirection(config)
        self.backwards = PaperRnnDirection(config)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutput:
        """As the Transformer's encoder. It has no attention to give; its hidden states are the embeddings and the end."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        embedded = self.embeddings(input_ids)
        states = [self.forwards(embedded), reverse(self.backwards(reverse(embedded, mask)), mask)]
        hidden_states = dropout(torch.cat(states, dim=-1), self.config.dropout, self.training)
        return BaseModelOutput(
            last_hidden_state=hidden_states,
            hidden_states=(embedded, hidden_states) if output_hidden_states else None,
            attentions=() if output_attentions else None,
        )


class PaperRnnRecurrence(GradientCheckpointingLayer):
    """The decoder's state over the target: what it was before each token, and what it saw of the source then."""

    def __init__(self, config: PaperTransformerConfig) -> None:
        super().__init__()
        size = config.rnn_hidden_size
        self.query = nn.Linear(size, size)  # W
        self.score = nn.Linear(size, 1, bias=False)  # v
        self.gru = PaperRnnGru(config.d_model + 2 * size, size)

    def forward(
        self,
        embedded: torch.Tensor,
        state: torch.Tensor,
        keys: torch.Tensor,
        source: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """embedded (B, T, d), state (B, H), keys U h (B, S, H), source h (B, S, 2H), mask (B, S) true where a token is
        -> states (B, T + 1, H), the given one first; contexts c (B, T, 2H); weights alpha (B, T, S)."""
        states, contexts, all_weights = [state], [], []
        for token in embedded.unbind(1):
            scores = self.score((self.query(state)[:, None] + keys).tanh()).squeeze(-1)  # (B, S)
            if mask is not None:
                scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            weights = scores.softmax(-1)
            context = (weights[:, None].to(source.dtype) @ source).squeeze(1)  # (B, 2H)
            state = self.gru(self.gru.inputs(torch.cat([token, context], dim=-1)), state)
            states.append(state)
            contexts.append(context)
            all_weights.append(weights)
        return torch.stack(states, 1), torch.stack(contexts, 1), torch.stack(all_weights, 1)


class PaperRnnDecoder(nn.Module):
    """From the target so far to a vector for each next token: (B, T) -> (B, T, d)."""

    def __init__(self, config: PaperTransformerConfig) -> None:
        super().__init__()
        self.config = config
        size = config.rnn_hidden_size
        self.embeddings = PaperRnnEmbeddings(config)
        self.initial = nn.Linear(size, size)  # s_0 = tanh(W_s h_1 backwards)
        self.key = nn.Linear(2 * size, size, bias=False)  # U
        self.recurrence = PaperRnnRecurrence(config)
        self.readout = nn.Linear(size + config.d_model + 2 * size, 2 * config.d_model)

    def forward(
        self,
        input_ids: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """As the Transformer's decoder; of its attentions there are the cross-attentions, (B, 1, T, S)."""
        embedded = self.embeddings(input_ids)
        state, keys = self._past(encoder_hidden_states, past_key_values)
        mask = None if encoder_attention_mask is None else encoder_attention_mask.bool()
        states, contexts, weights = self.recurrence(embedded, state, keys, encoder_hidden_states, mask)
        if past_key_values is not None:
            later = states[:, None, 1:]  # (B, 1, T, H), where a layer with one head has its keys
            past_key_values.self_attention_cache.update(later, later[..., :0], 0)
        before = states[:, :-1]
        output = self.readout(torch.cat([before, embedded, contexts], dim=-1))
        output = output.unflatten(-1, (-1, 2)).amax(-1)  # maxout: the larger of each pair
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=dropout(output, self.config.dropout, self.training),
            past_key_values=past_key_values,
            hidden_states=(embedded, output) if output_hidden_states else None,
            attentions=() if output_attentions else None,
            cross_attentions=(weights[:, None],) if output_attentions else None,
        )

    def _past(self, source: torch.Tensor, cache: EncoderDecoderCache | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The state before the first given token (B, H), and the projected source U h (B, S, H), out of the cache."""
        if cache is not None and cache.is_updated.get(0):
            return cache.self_attention_cache.layers[0].keys[:, 0, -1], cache.cross_attention_cache.layers[0].keys[
                :, 0
            ]
        state = self.initial(source[:, 0, self.config.rnn_hidden_size :]).tanh()
        keys = self.key(source)
        if cache is not None:
            cache.cross_attention_cache.update(keys[:, None], keys[:, None, :, :0], 0)
            cache.is_updated[0] = True
        return state, keys


__all__ = ["PaperRnnDecoder", "PaperRnnDirection", "PaperRnnEncoder", "PaperRnnGru", "PaperRnnRecurrence"]

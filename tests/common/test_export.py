"""ONNX export: what is in the graph, that a wrong graph never appears under its name, and what is said instead."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_papers.errors import UserError
from hf_papers.hub import export
from hf_papers.registry import find_paper
from tests.common.cases import ModelCase
from tests.common.toy.configuration_toy import PaperToyConfig
from tests.common.toy.modeling_toy import PaperToyModel, PaperToyOutput


def names(entries: Any) -> list[str]:
    return [entry.name for entry in entries]


class Masked(PaperToyModel):
    """A mask that is all ones in the dummy inputs."""

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        return {**super().dummy_inputs, "mask": torch.ones(4, dtype=torch.long)}

    def forward(self, values: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> PaperToyOutput:
        return super().forward(values if mask is None else values * mask[:, None], labels)


class Sampling(PaperToyModel):
    """Draws its own noise when none is given."""

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        inputs = super().dummy_inputs
        return {**inputs, "noise": torch.ones_like(inputs["values"])}

    def forward(self, values: Tensor, labels: Tensor | None = None, noise: Tensor | None = None) -> PaperToyOutput:
        return super().forward(values + (torch.randn_like(values) if noise is None else noise), labels)


class Echo(PaperToyModel):
    """Needs its labels, and gives an output that is called like an input."""

    def forward(self, values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = super().forward(values).logits + F.one_hot(labels, 3)
        return {"values": values * 2, "logits": logits, "mean": logits.mean()}


def test_the_graph_takes_what_the_answer_needs(toy: ModelCase, tmp_path: Path) -> None:
    """Labels only make the loss, so they are not asked for; the batch is free; the model is left as it was."""
    model = toy.model().train()
    path = export.export_model(model, tmp_path / "deep" / "toy.onnx")
    assert path == tmp_path / "deep" / "toy.onnx" and names(path.parent.iterdir()) == ["toy.onnx"]
    assert model.training
    graph = onnx.load(path)
    assert next(entry.version for entry in graph.opset_import if entry.domain == "") == export.OPSET
    session = onnxruntime.InferenceSession(path)
    assert names(session.get_inputs()) == ["values"] and names(session.get_outputs()) == ["logits"]
    assert session.get_inputs()[0].shape == ["batch", 6]
    values = torch.randn(9, 6)
    with torch.no_grad():
        expected = model.eval()(values).logits.numpy()
    np.testing.assert_allclose(session.run(None, {"values": values.numpy()})[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("model_class", "needed"),
    [
        (PaperToyModel, ["values"]),
        (Masked, ["values", "mask"]),
        (Sampling, ["values", "noise"]),
        (Echo, ["values", "labels"]),
    ],
)
def test_needed_inputs(model_class: type[PaperToyModel], needed: list[str]) -> None:
    model = model_class(PaperToyConfig.from_preset("tiny")).eval()
    with torch.no_grad():
        assert list(export.needed_inputs(model)) == needed
        assert "mean" not in export.batched_outputs(model, model.dummy_inputs)


def test_an_output_called_like_an_input_is_marked(tmp_path: Path) -> None:
    path = export.export_model(Echo(PaperToyConfig.from_preset("tiny")), tmp_path / "echo.onnx")
    session = onnxruntime.InferenceSession(path)
    assert names(session.get_outputs()) == ["values_output", "logits"]


def test_a_run_s_folder_is_exported(tmp_path: Path) -> None:
    """From a checkpoint in bfloat16 too: the graph computes in float32."""
    paper = find_paper("vae")
    model = paper.model_class(paper.config_class.from_preset("tiny")).bfloat16()
    model.save_pretrained(tmp_path / "run")
    path = export.export_onnx(tmp_path / "run", tmp_path / "vae.onnx", opset=18)
    session = onnxruntime.InferenceSession(path)
    assert {entry.type for entry in session.get_inputs()} == {"tensor(float)"}
    inputs = {name: value[:2] for name, value in model.dummy_inputs.items()}
    found = session.run(["reconstruction"], {name: value.numpy() for name, value in inputs.items()})[0]
    with torch.no_grad():
        expected = model.float()(**inputs).reconstruction.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_wrong_graph_never_appears(toy: ModelCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter goes wrong; the file of an earlier export stays as it was, and nothing else is left."""
    right = torch.onnx.export

    def wrong(module: Any, *args: Any, **kwargs: Any) -> Any:
        bias = module.model.classifier.bias
        with torch.no_grad():
            bias.add_(1.0)
            done = right(module, *args, **kwargs)
            bias.sub_(1.0)
        return done

    monkeypatch.setattr(torch.onnx, "export", wrong)
    (tmp_path / "toy.onnx").write_text("the earlier one")
    with pytest.raises(UserError, match="'logits' differs from PyTorch by .* Nothing was written"):
        export.export_model(toy.model(), tmp_path / "toy.onnx")
    assert names(tmp_path.iterdir()) == ["toy.onnx"]
    assert (tmp_path / "toy.onnx").read_text() == "the earlier one"


def test_what_cannot_be_exported_is_said(toy: ModelCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("\n  no symbol for aten::strange\nand a long story")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(
        UserError, match=r"PaperToyModel cannot be exported to ONNX \(opset 20\): no symbol for aten::str"
    ):
        export.export_model(toy.model(), tmp_path / "toy.onnx")
    assert not list(tmp_path.iterdir())


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(UserError, match=r"needs onnxscript: .*pip install 'hf-papers\[onnx\]'"):
        export.export_onnx(tmp_path, tmp_path / "x.onnx")


def test_bad_paths_are_said(toy: ModelCase, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="something.onnx, not 'model.pt'"):
        export.export_model(toy.model(), tmp_path / "model.pt")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(UserError, match="is a folder; name the file"):
        export.export_model(toy.model(), tmp_path / "folder.onnx")
    with pytest.raises(UserError, match="no config.json"):
        export.export_onnx(tmp_path, tmp_path / "x.onnx")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('{"architectures": ["PaperVaeModle"]}', "Did you mean 'PaperVaeModel'"),
        ('{"model_type": "bert"}', "describes 'bert'"),
        ("{", "not valid JSON"),
        ("[1]", "does not hold the options"),
    ],
)
def test_a_foreign_folder_is_said(config: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=words):
        export.export_onnx(tmp_path, tmp_path / "x.onnx")
    assert json.dumps(names(tmp_path.iterdir())) == '["config.json"]'

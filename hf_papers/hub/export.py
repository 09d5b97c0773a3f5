"""From a checkpoint to other formats: ONNX, which runs without PyTorch, and int8, which is small. Both are checked first."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_papers.errors import UserError, nearest
from hf_papers.hub import COMPANIONS
from hf_papers.hub.checkpoints import INDEX, WEIGHTS, load_strict, locate
from hf_papers.hub.quantized import save_quantized
from hf_papers.registry import papers


OPSET = 20  # read by onnxruntime from 1.17 (early 2024) on
TOLERANCE = 1e-4  # largest difference from PyTorch in float32, relative to the largest number of an output
CHECKED_BATCH_SIZES = (3, 1)  # neither is the batch of four that the exporter sees
SINGLE_FILE_LIMIT = 1_800_000_000  # bytes; a protobuf file ends at 2 GB, beyond it weights go into a file beside it


def export_onnx(folder: str | Path, output: str | Path, opset: int = OPSET) -> Path:
    """Exports the model of a run or checkpoint folder to the ONNX file `output`, and returns its path.

    The graph takes the model's inputs and gives its per-example outputs by the names they have in PyTorch; the batch
    size is free. Before the file appears under its name, onnxruntime has run it for two batch sizes and agreed with
    PyTorch.

    Raises `UserError` when the extra `onnx` is not installed, the folder holds no sound checkpoint of a known paper, the
    model cannot be exported, or the graph disagrees with PyTorch.
    """
    _require_onnx()
    return export_model(load_model(Path(folder)), output, opset)


def export_int8(folder: str | Path, output: str | Path) -> Path:
    """Writes the model of a run or checkpoint folder into the folder `output` with int8 weights, and returns it.

    Beside the weights lie config.json, the tokenizer or image processor, and results.json where there is one. Of a
    tokenizer's file, made for people's eyes, the white space between entries stays behind: it is more than half. The files
    appear under their names after `load_strict` has read them; older ones of these names are replaced.

    Raises `UserError` when the folder holds no sound checkpoint of a known paper, or `output` holds exact weights already:
    it would then hold two models.
    """
    source, output = locate(Path(folder)), Path(output)
    if output.is_file():
        raise UserError(f"'{output}' is a file; name the folder to write.")
    if any((output / name).is_file() for name in (WEIGHTS, INDEX)):
        raise UserError(f"'{output}' holds exact weights, which would be used instead: name another folder.")
    model = load_model(source)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".int8-") as temporary:
        staged = Path(temporary)
        save_quantized(model, staged)
        load_strict(type(model), staged)
        for name in COMPANIONS:
            if (source / name).is_file():
                _copy(source / name, staged / name)
        for path in sorted(staged.iterdir()):
            os.replace(path, output / path.name)
    return output


def _copy(source: Path, target: Path) -> None:
    if source.name != "tokenizer.json":
        shutil.copyfile(source, target)
        return
    content = json.loads(source.read_text(encoding="utf-8"))
    target.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def load_model(folder: Path) -> PreTrainedModel:
    """The model of a folder, of the class that its config names. Raises `UserError` when there is none of ours."""
    return load_strict(_model_class(folder), folder)


def export_model(model: PreTrainedModel, output: str | Path, opset: int = OPSET) -> Path:
    """As `export_onnx`, for a model in memory, which is left as it is. The graph computes in float32."""
    _require_onnx()
    output = Path(output)
    if output.suffix != ".onnx":
        raise UserError(f"An ONNX file is called something.onnx, not '{output.name}'.")
    if output.is_dir():
        raise UserError(f"'{output}' is a folder; name the file to write.")
    output.parent.mkdir(parents=True, exist_ok=True)
    model = copy.deepcopy(model).to("cpu", torch.float32).eval()
    with torch.no_grad():
        inputs = needed_inputs(model)
        graph = _Graph(model, tuple(inputs), tuple(batched_outputs(model, inputs))).eval()
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".onnx-") as folder:
            path = Path(folder) / output.name
            _write(graph, inputs, path, opset)
            _verify(graph, inputs, path)
            # The weights' file first: the graph must not appear before what it refers to.
            for part in sorted(Path(folder).iterdir(), key=lambda part: part == path):
                os.replace(part, output.parent / part.name)
    return output


def needed_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """The dummy inputs that the model's answer depends on. Labels and targets, which only make the loss, are left out."""
    inputs = dict(model.dummy_inputs)
    for name in list(inputs):
        if name != model.main_input_name and len(inputs) > 1 and _is_idle(model, inputs, name):
            del inputs[name]
    return inputs


def batched_outputs(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of one row per example, by name, in order. inputs: a batch; `loss` and other summaries are left out."""
    batch_size = _batch_size(inputs)
    found = {
        name: value
        for name, value in model(**inputs).items()
        if isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == batch_size
    }
    if not found:
        raise UserError(
            f"{type(model).__name__} has no output with one row per example, so there is nothing to export."
        )
    return found


def _is_idle(model: PreTrainedModel, inputs: dict[str, Tensor], name: str) -> bool:
    """Whether what the model answers without this input is the same with it, whatever its value.

    Zeros are tried as the other value: they are valid labels, targets and images, and as a mask or as noise they change
    the answer, so such an input is kept.
    """
    fewer = {other: value for other, value in inputs.items() if other != name}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            without = batched_outputs(model, fewer)
            zeros = batched_outputs(model, {**inputs, name: torch.zeros_like(inputs[name])})
        except Exception:  # a forward that needs the input may say so in any way
            return False
    given = batched_outputs(model, inputs)
    return all(
        key in given and key in zeros and torch.equal(given[key], value) and torch.equal(zeros[key], value)
        for key, value in without.items()
    )


class _Graph(nn.Module):
    """The model as a function from positional tensors to a tuple of tensors, which is what the exporter takes."""

    def __init__(self, model: PreTrainedModel, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        answers = self.model(**dict(zip(self.inputs, tensors, strict=True)))
        return tuple(answers[name] for name in self.outputs)


def _write(graph: _Graph, inputs: dict[str, Tensor], path: Path, opset: int) -> None:
    batch = torch.export.Dim("batch", min=1)
    size = _batch_size(inputs)
    shapes = tuple({0: batch} if value.dim() and value.shape[0] == size else {} for value in inputs.values())
    # torch specialises sizes 0 and 1, so the example is the dummy batch of four.
    weights = sum(p.numel() * p.element_size() for p in graph.parameters())
    try:
        with _quiet():
            torch.onnx.export(
                graph,
                tuple(inputs.values()),
                path,
                input_names=list(graph.inputs),
                output_names=[_output_name(name, graph) for name in graph.outputs],
                dynamic_shapes=(shapes,),
                opset_version=opset,
                dynamo=True,
                external_data=weights > SINGLE_FILE_LIMIT,
                verbose=False,
            )
    except Exception as error:  # the exporter's errors have no common class; --debug shows the whole
        name = type(graph.model).__name__
        raise UserError(f"{name} cannot be exported to ONNX (opset {opset}): {_first_line(error)}") from error


def _output_name(name: str, graph: _Graph) -> str:
    """An ONNX graph keeps inputs and outputs in one list of names, so an output that is called like an input is marked."""
    return f"{name}_output" if name in graph.inputs else name


def _verify(graph: _Graph, inputs: dict[str, Tensor], path: Path) -> None:
    """Raise `UserError` unless onnxruntime gives PyTorch's numbers for every one of `CHECKED_BATCH_SIZES`."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no public base class
        raise UserError(f"onnxruntime cannot read the ONNX graph: {_first_line(error)}") from error
    known = {entry.name for entry in session.get_inputs()}
    size = _batch_size(inputs)
    for batch_size in CHECKED_BATCH_SIZES:
        batch = {n: v[:batch_size] if v.dim() and v.shape[0] == size else v for n, v in inputs.items()}
        expected = graph(*batch.values())
        try:
            found = session.run(None, {name: value.numpy() for name, value in batch.items() if name in known})
        except Exception as error:
            raise UserError(
                f"The ONNX graph is wrong: onnxruntime cannot run it for a batch of {batch_size}: {_first_line(error)}"
            ) from error
        for name, ours, theirs in zip(graph.outputs, expected, found, strict=True):
            _compare(name, ours, torch.from_numpy(theirs), batch_size)


def _compare(name: str, expected: Tensor, found: Tensor, batch_size: int) -> None:
    if expected.shape != found.shape:
        shapes = f"{tuple(found.shape)} in onnxruntime, {tuple(expected.shape)} in PyTorch"
        raise UserError(f"The ONNX graph is wrong: for a batch of {batch_size}, '{name}' has the shape {shapes}.")
    expected, found = expected.double(), found.double()
    gap = float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-3))
    if not gap <= TOLERANCE:
        raise UserError(
            f"The ONNX graph is wrong: for a batch of {batch_size}, '{name}' differs from PyTorch by {gap:.1e} of its "
            f"largest number, more than {TOLERANCE:.0e}. Nothing was written."
        )


def _batch_size(inputs: dict[str, Tensor]) -> int:
    return next(iter(inputs.values())).shape[0]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress, which is about itself and not about the model."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _require_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"Exporting to ONNX needs {' and '.join(missing)}: install the extra with  pip install 'hf-papers[onnx]'."
        )


def _model_class(folder: Path) -> type[PreTrainedModel]:
    """The registered class that the folder's config.json names."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"'{folder}' holds no config.json, so it is neither a finished run nor a checkpoint.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"'{path}' is not valid JSON ({error}).") from error
    if not isinstance(config, dict):
        raise UserError(f"'{path}' does not hold the options of a model.")
    names = config.get("architectures") or []
    classes = {c.__name__: c for paper in papers().values() for c in paper.model_classes.values()}
    for name in names:
        if name in classes:
            return classes[name]
    asked = names[0] if names else str(config.get("model_type"))
    raise UserError(f"'{path}' describes '{asked}', which is not a model of hf_papers.{nearest(asked, classes)}")

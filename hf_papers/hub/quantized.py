"""Weights in a quarter of their bytes: int8 with one scale per row, in a safetensors file that `load_strict` reads.

    w ≈ scale · q,   scale = max |w| / 127 over a row,   q a whole number from -127 to 127

so that no weight moves by more than scale / 2. (Symmetric absmax quantisation as in LLM.int8(), 2208.07339, section 2.1;
here for storage only: a loaded model computes in floating point.) A row is what belongs to one index of the first
dimension: an output unit of a layer, the vector of a word. Biases and norms, which have no rows, are kept in float16 where
that is precise enough.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from hf_papers.errors import UserError


INT8_WEIGHTS = "model.int8.safetensors"
FORMAT = "hf_papers int8 rows"  # in the file's metadata, so that a foreign file is known
LEVELS = 127
SCALE = "#scale"  # ends the name of a tensor's scales; no name in a state dict has a '#'
# float16 rounds to 5e-4 of a number, unless it is very small or large: of itself, and of the largest of its tensor.
HALF_TOLERANCE, HALF_FLOOR = 1e-3, 1e-6


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, ...) floating point -> int8 of the same shape and the scales (rows,) in float32."""
    rows = weight.detach().float().flatten(1)
    scales = rows.abs().amax(1) / LEVELS
    divisors = torch.where(scales > 0, scales, 1.0)  # a row of zeros has the scale 0
    levels = (rows / divisors[:, None]).round().clamp(-LEVELS, LEVELS)
    return levels.to(torch.int8).view(weight.shape), scales


def dequantize(levels: Tensor, scales: Tensor) -> Tensor:
    """int8 (rows, ...) and scales (rows,) -> float32 of the shape of `levels`."""
    return (levels.float().flatten(1) * scales[:, None]).view(levels.shape)


def quantized_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """What the file holds: of each tied pair one, tensors with rows as int8 and scales, the others as they are or in half.

    Raises `UserError` for weights that are not finite: they have no scale.
    """
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        tensor = tensor.detach().cpu().contiguous()
        if not tensor.is_floating_point():
            state[name] = tensor.clone()
        elif not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{name} holds NaN or infinite values, which int8 cannot express: the training diverged.")
        elif tensor.dim() > 1:
            state[name], state[name + SCALE] = quantize(tensor)
        else:
            state[name] = in_half(tensor)
    return state


def in_half(tensor: Tensor) -> Tensor:
    """float16 where no number changes by more than a thousandth (or a millionth of the largest), else float32."""
    exact = tensor.float()
    half = exact.half()
    floor = HALF_FLOOR * float(exact.abs().max()) if exact.numel() else 0.0
    return half if torch.allclose(half.float(), exact, rtol=HALF_TOLERANCE, atol=floor) else exact.clone()


def save_quantized(model: PreTrainedModel, folder: str | Path) -> Path:
    """Writes config.json and the int8 weights of `model` into `folder`; returns the file of the weights."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = quantized_state(model)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    writing = folder / f"{INT8_WEIGHTS}.writing"
    save_file(state, writing, metadata={"format": "pt", "quantization": FORMAT})
    os.replace(writing, folder / INT8_WEIGHTS)
    return folder / INT8_WEIGHTS


def read_quantized(path: Path) -> dict[str, Tensor]:
    """The state dict in a file of `save_quantized`, in floating point.

    Raises `UserError` for a file of another kind, and for levels and scales that do not belong together. That the state
    fits a model is for `load_strict` to check.
    """
    with safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("quantization") != FORMAT:
            raise UserError(
                f"{path} was not written by hf-papers export --int8, so nobody can tell what its numbers mean."
            )
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    scales = {name.removesuffix(SCALE): stored.pop(name) for name in list(stored) if name.endswith(SCALE)}
    if lost := sorted(scales.keys() - stored.keys()):
        raise UserError(f"{path} is damaged: it has scales for {lost[0]}, but not its weights.")
    return {name: restore(name, tensor, scales.get(name), path) for name, tensor in stored.items()}


def restore(name: str, tensor: Tensor, scales: Tensor | None, path: Path) -> Tensor:
    """One tensor of the file in floating point; counters and the like stay whole numbers."""
    if scales is None:
        if tensor.dtype == torch.int8:
            raise UserError(f"{path} is damaged: {name} is int8 without scales.")
        return tensor.float() if tensor.is_floating_point() else tensor
    rows = tensor.shape[:1]
    if tensor.dtype != torch.int8 or tensor.dim() < 2 or scales.shape != rows or not scales.is_floating_point():
        raise UserError(
            f"{path} is damaged: {name} should be int8 with one scale for each of its rows, not {tensor.dtype} "
            f"{list(tensor.shape)} with scales {list(scales.shape)}."
        )
    return dequantize(tensor, scales.float())


__all__ = ["INT8_WEIGHTS", "dequantize", "quantize", "quantized_state", "read_quantized", "save_quantized"]

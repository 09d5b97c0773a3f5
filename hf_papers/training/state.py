"""Nested Python state as safetensors and JSON: readable, inspectable, and unable to run code when it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from hf_papers.errors import UserError


# Wrapped values stand in the JSON as {MARK: kind, ...}.
MARK = "__kind__"


def save_state(state: Any, stem: Path) -> None:
    """Write `state` as `<stem>.json` and `<stem>.safetensors`.

    It may hold dicts, lists, tuples, str, int (any size), float, bool, None, bytes, numpy arrays and tensors, nested.
    """
    tensors: dict[str, torch.Tensor] = {}
    skeleton = _pack(state, "", tensors)
    save_file(tensors, stem.with_suffix(".safetensors"))
    stem.with_suffix(".json").write_text(json.dumps(skeleton))


def load_state(stem: Path) -> Any:
    """The state that `save_state` wrote, tensors on the CPU and free of the file they came from."""
    try:
        tensors = load_file(stem.with_suffix(".safetensors"))
        skeleton = json.loads(stem.with_suffix(".json").read_text())
    except Exception as error:
        raise UserError(
            f"The checkpoint file {stem}.* cannot be read ({error}). Resume from an older checkpoint."
        ) from error
    return _unpack(skeleton, tensors)


def _pack(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if value is None or isinstance(value, bool | str | int | float):
        return value
    if isinstance(value, torch.Tensor):
        # safetensors refuses views that share memory: every entry gets its own.
        tensors[path] = value.detach().to("cpu", copy=True).contiguous()
        return {MARK: "tensor", "name": path}
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise TypeError(f"State at '{path}' is an array of {value.dtype}, which safetensors cannot hold.")
        # 0-dimensional arrays and unsigned wide types travel as bytes with their dtype beside them.
        raw = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        tensors[path] = torch.from_numpy(raw.copy())
        return {MARK: "array", "name": path, "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, np.generic):
        return _pack(value.item(), path, tensors)
    if isinstance(value, bytes):
        tensors[path] = (
            torch.frombuffer(bytearray(value), dtype=torch.uint8) if value else torch.empty(0, dtype=torch.uint8)
        )
        return {MARK: "bytes", "name": path}
    if isinstance(value, tuple):
        return {MARK: "tuple", "items": [_pack(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [_pack(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, dict):
        # Pairs, because JSON would turn the integer keys of an optimiser's state into strings.
        items = [[_pack(k, path, tensors), _pack(v, f"{path}/{k}", tensors)] for k, v in value.items()]
        return {MARK: "dict", "items": items}
    raise TypeError(
        f"State at '{path}' is a {type(value).__name__}; it must be made of plain values, arrays and tensors."
    )


def _unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value[MARK]
    if kind == "dict":
        return {_unpack(k, tensors): _unpack(v, tensors) for k, v in value["items"]}
    if kind == "tuple":
        return tuple(_unpack(item, tensors) for item in value["items"])
    stored = tensors[value["name"]].clone()  # load_file maps the file; a clone survives its deletion by rotation
    if kind == "tensor":
        return stored
    raw = stored.numpy()
    if kind == "bytes":
        return raw.tobytes()
    return raw.view(np.dtype(value["dtype"])).reshape(value["shape"])

"""What a paper's model looks like from outside: its options, its layers with their shapes, its size and its cost.

Everything is computed on torch's meta device, where tensors have shapes and no memory, so the largest model takes a
moment and no memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel

from hf_papers.errors import UserError, nearest
from hf_papers.registry import Paper


BATCH = 7  # no layer has a size of 7 by chance, so that a multiple of it is the batch


@dataclass(frozen=True)
class Layer:
    """A module that holds weights, or several alike.

    Args:
        name: where it stands in the model; `{0..11}` where several alike are shown as one.
        kind: its class.
        inputs, outputs: shapes, the batch as "B" (or "2B" for two batches at once).
        parameters: numbers that it learns, one of them where several are alike.
        flops: multiplications and additions of its matrix products for one example, likewise.
        count: how many are alike.
    """

    name: str
    kind: str
    inputs: str
    outputs: str
    parameters: int
    flops: int
    count: int = 1


@dataclass(frozen=True)
class Inspection:
    """What `inspect_paper` finds.

    Args:
        config: the paper's own options and their values.
        parameters: numbers that the model learns.
        published: how many the paper's entry in the registry says there are, if it does.
        flops: of the forward pass for one example, a multiplication and an addition counted as two.
        training_flops: of forward and backward for one example.
        presets: preset -> (parameters, published or None).
    """

    paper: Paper
    preset: str
    model: str
    config: dict[str, Any]
    layers: tuple[Layer, ...]
    parameters: int
    published: int | None
    flops: int
    training_flops: int
    presets: dict[str, tuple[int, int | None]]


def inspect_paper(paper: Paper, preset: str | None = None, auto_class: str | None = None) -> Inspection:
    """Looks at a paper's model of one preset; by default the first that its entry states a parameter count for.

    Raises `UserError` for a preset, or an Auto class, that the paper does not have.
    """
    presets = paper.config_class.presets
    preset = preset or next(iter(paper.parameters), next(iter(presets)))
    _require(preset, presets, f"preset of '{paper.key}'")
    auto_class = auto_class or next(iter(paper.models))
    _require(auto_class, paper.models, f"model of '{paper.key}'")
    model_class = paper.model_classes[auto_class]
    published = paper.parameters if model_class is paper.model_class else {}
    model = _build(model_class, paper.config_class.from_preset(preset))
    layers, flops = _watch(model)
    return Inspection(
        paper=paper,
        preset=preset,
        model=model_class.__name__,
        config=own_options(model.config),
        layers=tuple(join_alike(layers)),
        parameters=count_parameters(model),
        published=published.get(preset),
        flops=flops,
        training_flops=_training_flops(model),
        presets={
            name: (count_parameters(_build(model_class, paper.config_class.from_preset(name))), published.get(name))
            for name in presets
        },
    )


def own_options(config: PreTrainedConfig) -> dict[str, Any]:
    """The options that the paper's config declares itself, in its order."""
    own = [base for base in type(config).__mro__ if base not in PreTrainedConfig.__mro__]
    names = [name for base in reversed(own) for name in vars(base).get("__annotations__", {})]
    return {name: getattr(config, name) for name in dict.fromkeys(names) if hasattr(config, name)}


def count_parameters(model: nn.Module) -> int:
    """Numbers that the model learns; a weight that is used in two places counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def describe(found: Inspection) -> str:
    """The inspection as text for a terminal."""
    paper = found.paper
    parts = [
        f"{paper.title} ({paper.year})\n{paper.authors}\n{paper.url}\n\n{paper.summary}",
        f"{found.model}, preset '{found.preset}'",
        "Config\n" + _table([[name, _value(value)] for name, value in found.config.items()]),
        "Layers (B is the batch; FLOPs of one example, in matrix products)\n" + _layer_table(found),
        f"Parameters  {_stated(found.parameters, found.published)}\n"
        f"FLOPs       {found.flops:,} for the forward pass of one example, {found.training_flops:,} with backward\n"
        "            (with everything that the loss needs; a multiplication and an addition are two)",
        "Presets\n" + _table([[name, _stated(*counts)] for name, counts in found.presets.items()]),
    ]
    if paper.recipes:
        parts.append(f"Recipes     {', '.join(paper.recipes)}")
    return "\n\n".join(parts)


# -------------------------------------------------------------------------------------------------------- measuring


def _require(name: str, choices: Mapping[str, Any], what: str) -> None:
    if name not in choices:
        raise UserError(f"There is no {what} called '{name}'.{nearest(name, choices)} Known: {', '.join(choices)}.")


def _build(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        model = model_class(config).eval()
    # Also what the model makes on the CPU, whatever the default device: tables that hold values.
    return model.to("meta")


def _inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """The model's dummy inputs, drawn out to a batch of `BATCH`, without their content."""
    inputs = {}
    for name, value in model.dummy_inputs.items():
        batched = value.dim() > 0 and value.shape[0] == 4
        shape = (BATCH, *value.shape[1:]) if batched else value.shape
        inputs[name] = torch.empty(shape, dtype=value.dtype, device="meta")
    return inputs


def _watch(model: PreTrainedModel) -> tuple[list[Layer], int]:
    """One forward pass: every module that holds weights of its own, in the order of use, and the FLOPs of an example."""
    seen: dict[str, tuple[str, str]] = {}

    def note(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            seen.setdefault(name, (_shapes([*args, *kwargs.values()]), _shapes([output])))

        return hook

    modules = {name: module for name, module in model.named_modules() if list(module.parameters(recurse=False))}
    handles = [m.register_forward_hook(note(name), with_kwargs=True) for name, m in modules.items()]
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(**_inputs(model))
    finally:
        for handle in handles:
            handle.remove()
    by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    root = type(model).__name__
    names = [*seen, *(name for name in modules if name not in seen)]  # what the pass did not use comes last
    owned = _owned_parameters(modules)
    layers = [
        Layer(
            name=name or "(the model itself)",
            kind=type(modules[name]).__name__,
            inputs=seen.get(name, ("not used", ""))[0],
            outputs=seen.get(name, ("not used", ""))[1],
            parameters=owned[name],
            flops=round(by_module.get(f"{root}.{name}", 0) / BATCH),
        )
        for name in names
    ]
    return layers, round(counter.get_total_flops() / BATCH)


def _owned_parameters(modules: dict[str, nn.Module]) -> dict[str, int]:
    """How many parameters each module has; one that several share is counted where it stands first."""
    counted: set[int] = set()
    owned = {}
    for name, module in modules.items():
        new = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in counted]
        counted |= {id(parameter) for parameter in new}
        owned[name] = sum(parameter.numel() for parameter in new)
    return owned


def _training_flops(model: PreTrainedModel) -> int:
    """FLOPs of forward and backward for one example; the forward's alone for a model that gives no loss."""
    with FlopCounterMode(display=False) as counter:
        loss = getattr(model(**_inputs(model)), "loss", None)
        if loss is not None:
            loss.backward()
    return round(counter.get_total_flops() / BATCH)


def _shapes(values: Iterable[Any]) -> str:
    """Shapes of the tensors among `values`, also of those inside tuples and outputs."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(_shape(value))
        elif isinstance(value, (tuple, list)):
            found.append(_shapes(value))
        elif isinstance(value, Mapping):
            found.append(_shapes(value.values()))
    return ", ".join(text for text in found if text)


def _shape(value: Tensor) -> str:
    sizes = [str(size) for size in value.shape]
    if value.dim() and value.shape[0] and value.shape[0] % BATCH == 0:
        batches = value.shape[0] // BATCH
        sizes[0] = "B" if batches == 1 else f"{batches}B"
    return f"({', '.join(sizes)})"


def join_alike(layers: list[Layer]) -> list[Layer]:
    """Layers that differ by a number in their name only, shown as one: `layers.{0..11}.linear`."""
    groups: dict[tuple[Any, ...], list[Layer]] = {}
    for layer in layers:
        key = (re.sub(r"\d+", "#", layer.name), layer.kind, layer.inputs, layer.outputs, layer.parameters, layer.flops)
        groups.setdefault(key, []).append(layer)
    return [_joined(group) for group in groups.values()]


def _joined(group: list[Layer]) -> Layer:
    first = group[0]
    if len(group) == 1:
        return first
    numbers = [re.findall(r"\d+", layer.name) for layer in group]
    parts = re.split(r"\d+", first.name)
    name = parts[0]
    for place, rest in enumerate(parts[1:]):
        name += _numbers([int(found[place]) for found in numbers]) + rest
    return Layer(name, first.kind, first.inputs, first.outputs, first.parameters, first.flops, len(group))


def _numbers(values: list[int]) -> str:
    """[0, 1, 2] -> "{0..2}", [0, 2] -> "{0,2}", [3, 3] -> "3"."""
    different = sorted(set(values))
    if len(different) == 1:
        return str(different[0])
    if different == list(range(different[0], different[-1] + 1)):
        return f"{{{different[0]}..{different[-1]}}}"
    return f"{{{','.join(map(str, different))}}}"


# ------------------------------------------------------------------------------------------------------- the tables


def _layer_table(found: Inspection) -> str:
    rows = [["name", "kind", "input", "output", "parameters", "FLOPs"]]
    for layer in found.layers:
        times = f" x{layer.count}" if layer.count > 1 else ""
        numbers = [f"{layer.parameters:,}{times}", f"{layer.flops:,}{times}"]
        rows.append([layer.name, layer.kind, layer.inputs, layer.outputs, *numbers])
    return _table(rows, right={4, 5})


def _table(rows: list[list[str]], right: frozenset[int] | set[int] = frozenset()) -> str:
    """Rows in columns two spaces apart, indented by two; those in `right` are flush right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _stated(count: int, published: int | None) -> str:
    """A count beside the one that the registry states."""
    if published is None:
        return f"{count:,}"
    return f"{count:,} (stated: {published:,}{'' if count == published else ', which differs'})"


__all__ = ["Inspection", "Layer", "count_parameters", "describe", "inspect_paper", "own_options"]

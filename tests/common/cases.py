"""What the suite has to know about a model. Everything is taken from the registry; a paper overrides what differs.

A paper is tested by being registered: each of its presets called `tiny` or `tiny-something` is built, fed
`model.dummy_inputs`, and put through every check of `checks.py`. Where a default does not suit a paper, its own
`tests/papers/test_<paper>.py` says so:

    class Case(ModelCase):
        overfit_steps = 500

        def loss_floor(self, model, inputs):      # the least loss that this batch allows
            return binary_entropy(inputs["pixel_values"])
"""

from __future__ import annotations

import fnmatch
import importlib
import importlib.util
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_papers.registry import Paper, papers


SIZE = re.compile(r"(^num_|_size$|^size$|layers?$|heads$|channels?$|widths?$|features$|pieces$|units$|dim$|actions$)")
SHARE = re.compile(r"(dropout|prob$|probability)")
NOT_NEGATIVE = re.compile(r"(dropout|prob$|probability|_std$|^std$|_range$|eps$|epsilon$|(?<!log_)variance$|momentum)")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global random numbers start from `seed` inside, and go on outside as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Memory that nobody has filled reads NaN (floats) or the largest value (integers), instead of luck."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill


@dataclass(frozen=True)
class Distribution:
    """How a weight is published to start: drawn from a normal or a uniform distribution, or constant."""

    kind: Literal["normal", "uniform", "constant"]
    mean: float = 0.0
    std: float = 0.0

    @classmethod
    def normal(cls, mean: float, std: float) -> Distribution:
        return cls("normal", mean, std)

    @classmethod
    def uniform(cls, low: float, high: float) -> Distribution:
        return cls("uniform", (low + high) / 2, (high - low) / math.sqrt(12))

    @classmethod
    def constant(cls, value: float) -> Distribution:
        return cls("constant", value)


class ModelCase:
    """One model class under one Auto class. The attributes and methods below are the hooks of a paper."""

    overfit_steps = 200
    overfit_learning_rate = 1e-2
    overfit_to = 0.25  # share of the first loss (above `loss_floor`) that may be left after `overfit_steps`
    loss_is_mean_over_batch = True  # the loss of a batch is the mean of the losses of its examples
    tolerance = 1e-5  # between two ways to compute the same float32 number, relative to the largest of its tensor
    bfloat16_tolerance = 0.1  # of the loss in bfloat16, relative to float32
    short_run: tuple[str, ...] = ("--max_steps", "4")  # options that end a training by `embedded` within seconds
    without_gradient: tuple[str, ...] = ()  # patterns of parameters that rightly get no gradient from the loss
    sensible: tuple[tuple[str, Any], ...] = ()  # (field, value) pairs that look like nonsense but mean something

    def __init__(
        self,
        config_class: type[PreTrainedConfig],
        model_class: type[PreTrainedModel],
        auto_class: str = "AutoModel",
        parameters: Mapping[str, int] | None = None,
        paper: Paper | None = None,
        preset: str = "tiny",
    ) -> None:
        self.config_class, self.model_class, self.auto_class = config_class, model_class, auto_class
        self.parameters, self.paper, self.preset = dict(parameters or {}), paper, preset

    def __repr__(self) -> str:
        return f"{self.paper.key if self.paper else 'toy'}-{self.preset}-{self.auto_class}"

    # ------------------------------------------------------------------------------------------------------- hooks

    def loss(self, outputs: Any) -> Tensor:
        """The scalar that training lowers. A bare model, whose output has no `loss`, is drawn to fixed noise instead."""
        if hasattr(outputs, "loss"):
            assert isinstance(outputs.loss, Tensor), "the dummy inputs give no loss: they must hold the labels too"
            return outputs.loss
        value = next(tensor for tensor in named_tensors(outputs).values() if tensor.is_floating_point())
        target = torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
        return (value - target.to(value)).square().mean()

    def loss_floor(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> float:
        """The least loss that `inputs` allow. 0 unless the data themselves have entropy."""
        return 0.0

    def overfit_parameters(self, model: PreTrainedModel) -> list[nn.Parameter]:
        """What is trained when one batch is overfitted: all, unless the players are adversaries."""
        return list(model.parameters())

    def initialisation(self, model: PreTrainedModel) -> dict[str, Distribution]:
        """The paper's initialisation: pattern of parameter names (`"encoder.*.weight"`) -> distribution."""
        return {}

    def nonsense(self) -> list[tuple[str, Any]]:
        """More (field, value) pairs that the config must refuse, beside those that follow from the fields' types."""
        return []

    # -------------------------------------------------------------------------------------------------- the model

    def config(self, **overrides: Any) -> PreTrainedConfig:
        return self.config_class.from_preset(self.preset, **overrides)

    def model(self, seed: int = 0, **overrides: Any) -> PreTrainedModel:
        """A fresh small model in eval mode; the same one for the same seed."""
        with seeded(seed):
            return self.model_class(self.config(**overrides)).eval()

    def inputs(self, model: PreTrainedModel, batch_size: int = 4) -> dict[str, Tensor]:
        """`dummy_inputs`, with its examples repeated up to `batch_size`."""
        index = torch.arange(batch_size) % 4
        return {name: value[index] if is_batched(value) else value for name, value in model.dummy_inputs.items()}

    def own_fields(self) -> dict[str, set[Any]]:
        """The config's own options (not those of the base class) and the types that each accepts."""
        own: dict[str, set[Any]] = {}
        for base in reversed(self.config_class.__mro__):
            if base not in PreTrainedConfig.__mro__:
                hints = typing.get_type_hints(types.SimpleNamespace(__annotations__=annotations_of(base)))
                own.update({name: accepted_types(hint) for name, hint in hints.items()})
        return own


def annotations_of(base: type) -> dict[str, Any]:
    """The options that this class itself declares."""
    declared = vars(base).get("__annotations__", {})
    return {name: hint for name, hint in declared.items() if get_origin(hint) is not typing.ClassVar}


def is_batched(value: Tensor) -> bool:
    """Whether a dummy input holds one row per example of the batch of four."""
    return value.dim() > 0 and value.shape[0] == 4


def accepted_types(hint: Any) -> set[Any]:
    """The plain types (and Literal values, as `Literal[...]`) of an annotation."""
    if get_origin(hint) in (Union, UnionType):
        return set().union(*(accepted_types(part) for part in get_args(hint)))
    if get_origin(hint) is Literal:
        return {hint}
    return {get_origin(hint) or hint}


def nonsense_of_types(case: ModelCase) -> list[tuple[str, Any]]:
    """(field, value) pairs that no reader of the field's name and type would take for a value."""
    defaults = case.config_class()
    return [
        (name, value)
        for name, kinds in case.own_fields().items()
        for value in nonsense_values(name, kinds, getattr(defaults, name))
    ]


def nonsense_values(name: str, kinds: set[Any], default: Any) -> Iterator[Any]:
    texts = {t for t in kinds if t is str or get_origin(t) is Literal}
    if not (default is None and str in kinds):  # an optional text names something outside; any other is one of a few
        yield "no such thing"  # wrong for a number as well
    if NoneType not in kinds:
        yield None
    numbers = kinds & {int, float}
    if numbers and not texts:
        yield [1, 2, 3] if not kinds & {list, tuple} else {"a": 1}
    if float in kinds:
        yield from (math.nan, math.inf)
    elif int in kinds:
        yield 2.5
    if texts and not numbers:
        yield 7
    if numbers and (SIZE.search(name) or int in kinds and float not in kinds and "id" not in name.split("_")):
        yield -1
    if numbers and NOT_NEGATIVE.search(name):
        yield -0.5 if float in kinds else -1
    if numbers and SIZE.search(name):
        yield 0
    if float in kinds and SHARE.search(name):
        yield 1.5
    if kinds & {list, tuple} and not numbers:
        yield from (3, ["no such thing"], [-1])


def named_tensors(value: Any, prefix: str = "") -> dict[str, Tensor]:
    """Every tensor of a model's output by its path: `{"loss": ..., "hidden_states.0": ...}`."""
    if isinstance(value, Tensor):
        return {prefix: value}
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, (tuple, list)):
        items = list(enumerate(value))
    else:
        return {}
    found: dict[str, Tensor] = {}
    for key, part in items:
        found.update(named_tensors(part, f"{prefix}.{key}" if prefix else str(key)))
    return found


def matching(patterns: Mapping[str, Any] | tuple[str, ...], name: str) -> list[str]:
    """Those of `patterns` that fit `name`."""
    return [pattern for pattern in patterns if fnmatch.fnmatchcase(name, pattern)]


def case_class(paper: Paper) -> type[ModelCase]:
    """`Case` of `tests/papers/test_<paper>.py`, or the plain one."""
    name = f"tests.papers.test_{paper.key}"
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        found = None
    return getattr(importlib.import_module(name), "Case", ModelCase) if found else ModelCase


def registered_cases() -> list[ModelCase]:
    """One case per (paper, Auto class, tiny preset) of the registry. The paper's counts belong to its first class."""
    cases = []
    for paper in papers().values():
        make = case_class(paper)
        for auto_class, model_class in paper.model_classes.items():
            counts = paper.parameters if model_class is paper.model_class else {}
            for preset in sorted(name for name in paper.config_class.presets if name.split("-")[0] == "tiny"):
                cases.append(make(paper.config_class, model_class, auto_class, counts, paper, preset))
    return cases

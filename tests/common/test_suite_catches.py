"""The suite is worth what it catches: a sound toy passes every check, and each fault is found by the check against it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig
from transformers import initialization as init

from hf_papers.errors import UserError
from tests.common import checks
from tests.common.cases import Distribution, ModelCase, nonsense_of_types
from tests.common.toy.configuration_toy import PaperToyConfig
from tests.common.toy.modeling_toy import (
    PaperToyBlock,
    PaperToyModel,
    PaperToyOutput,
    PaperToyPositions,
)


def run(check: Callable[..., None], case: ModelCase, folder: Path) -> None:
    check(case, folder) if check.__code__.co_argcount == 2 else check(case)


def case_of(model_class: type[PaperToyModel]) -> ModelCase:
    return ModelCase(model_class.config_class, model_class)


ALL = [f for name, f in vars(checks).items() if name.startswith("check_") and f.__code__.co_argcount < 3]


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.__name__)
def test_a_sound_model_passes(check: Callable[..., None], toy: ModelCase, tmp_path: Path) -> None:
    run(check, toy, tmp_path)


@pytest.mark.parametrize("damage", checks.DAMAGES)
def test_a_sound_loader_passes(damage: str, toy: ModelCase, tmp_path: Path) -> None:
    checks.check_damaged_checkpoint_is_refused(toy, tmp_path / "checkpoint", damage)


# ---------------------------------------------------------------------------------------------------- broken models


class TableOnlyInInit(PaperToyModel):
    """A fixed table that is not saved, and not made again on loading."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, PaperToyPositions):
            init.normal_(module.scale, std=0.5)
        else:
            super()._init_weights(module)


class TensorAttribute(PaperToyModel):
    """A tensor that is neither parameter nor buffer stays on the meta device."""

    def __init__(self, config: PaperToyConfig) -> None:
        super().__init__(config)
        self.offset = torch.ones(3)


class InitInInit(PaperToyModel):
    """An initialisation that post_init undoes."""

    def post_init(self) -> None:  # the place where __init__ has built everything
        nn.init.kaiming_normal_(self.embed.weight)
        super().post_init()


class DataInInit(PaperToyModel):
    """The same through `.data`."""

    def post_init(self) -> None:
        self.blocks[0].linear.weight.data.mul_(10.0)
        super().post_init()


class SliceInInit(PaperToyModel):
    """The same by assignment to a part."""

    def post_init(self) -> None:
        with torch.no_grad():
            self.classifier.weight[0] = 1.0
        super().post_init()


class DataInInitWeights(PaperToyModel):
    """Writes behind the back of the marks that protect loaded weights."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, PaperToyPositions):
            init.copy_(module.table, torch.cos(torch.arange(len(module.table), dtype=torch.float32) + 1))
            module.scale.data.normal_(0, 0.5)
        else:
            super()._init_weights(module)


class RawParameterForgotten(PaperToyModel):
    """`_init_weights` knows layers only; a parameter of the model's own keeps what was in memory."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, PaperToyPositions):
            init.copy_(module.table, torch.cos(torch.arange(len(module.table), dtype=torch.float32) + 1))
        else:
            super()._init_weights(module)


class DefaultInitialisation(PaperToyModel):
    """transformers' N(0, 0.02) instead of the published distribution."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=0.02)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)


class PublishedCase(ModelCase):
    """The toy's own initialisation, as a paper's case would state it."""

    def initialisation(self, model: PaperToyModel) -> dict[str, Distribution]:
        bound = (6 / (2 * model.config.hidden_size)) ** 0.5
        return {
            "blocks.*.linear.weight": Distribution.uniform(-bound, bound),
            "blocks.*.linear.bias": Distribution.constant(0.0),
            "positions.scale": Distribution.normal(0.0, 0.5),
        }


class OwnDice(PaperToyModel):
    """Draws its weights from a source that the seed does not reach."""

    def __init__(self, config: PaperToyConfig) -> None:
        super().__init__(config)
        dice = torch.Generator()
        dice.seed()
        with torch.no_grad():
            self.embed.weight.add_(torch.rand(self.embed.weight.shape, generator=dice))


class NoDice(PaperToyModel):
    """The same weights whatever the seed."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        for parameter in module.parameters(recurse=False):
            init.constant_(parameter, 0.1)


class BiasNotSaved(PaperToyModel):
    _keys_to_ignore_on_save = ["embed.bias"]


class StatisticsNotSaved(PaperToyModel):
    """A running mean that training moves and eval uses, kept out of the checkpoint."""

    def __init__(self, config: PaperToyConfig) -> None:
        super().__init__(config)
        self.register_buffer("running_mean", torch.zeros(config.input_size), persistent=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.zeros_(self.running_mean)

    def forward(self, values: Tensor, labels: Tensor | None = None) -> PaperToyOutput:
        if self.training:
            self.running_mean.lerp_(values.mean(0), 0.5)
        return super().forward(values - self.running_mean, labels)


class WrappedKeys(PaperToyModel):
    def __init__(self, config: PaperToyConfig) -> None:
        super().__init__(config)
        self.module = nn.Linear(2, 2)


class SharedCopy(PaperToyModel):
    def __deepcopy__(self, memo: dict[int, Any]) -> SharedCopy:
        return self


class GlobalDummies(PaperToyModel):
    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        return {"values": torch.randn(4, self.config.input_size), "labels": torch.tensor([0, 1, 2, 0])}


class UnusedLayer(PaperToyModel):
    def __init__(self, config: PaperToyConfig) -> None:
        super().__init__(config)
        self.unused = nn.Linear(2, 2)


class ZeroGradient(PaperToyModel):
    """The graph reaches the parameter, the gradient is zero."""

    def forward(self, values: Tensor, labels: Tensor | None = None) -> PaperToyOutput:
        self.positions.scale.data.clamp_(max=0)
        outputs = super().forward(values, labels)
        loss = outputs.logits.clamp(min=0).sum() * 0 + F.cross_entropy(self.embed(values)[:, :3], labels)
        return PaperToyOutput(loss=loss, logits=outputs.logits)


class BlindModel(PaperToyModel):
    """Cannot tell one example from another."""

    def forward(self, values: Tensor, labels: Tensor | None = None) -> PaperToyOutput:
        return super().forward(values * 0, labels)


class DropoutInEval(PaperToyModel):
    def forward(self, values: Tensor, labels: Tensor | None = None) -> PaperToyOutput:
        return super().forward(F.dropout(values, 0.5), labels)


class CountsInEval(PaperToyModel):
    """Changes its own state when it only answers."""

    def __init__(self, config: PaperToyConfig) -> None:
        super().__init__(config)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, values: Tensor, labels: Tensor | None = None) -> PaperToyOutput:
        self.calls += 1
        return super().forward(values, labels)


class BatchMean(PaperToyModel):
    """An answer depends on its neighbours."""

    def forward(self, values: Tensor, labels: Tensor | None = None) -> PaperToyOutput:
        return super().forward(values - values.mean(0), labels)


class SummedLoss(PaperToyModel):
    """The loss grows with the batch."""

    def forward(self, values: Tensor, labels: Tensor | None = None) -> PaperToyOutput:
        logits = super().forward(values).logits
        return PaperToyOutput(loss=F.cross_entropy(logits, labels, reduction="sum"), logits=logits)


class InPlace(PaperToyModel):
    def forward(self, values: Tensor, labels: Tensor | None = None) -> PaperToyOutput:
        return super().forward(values.mul_(2.0), labels)


class LostInHalf(PaperToyModel):
    """1 + 1e-4 is 1 in bfloat16, and what is left of the difference divides."""

    def forward(self, values: Tensor, labels: Tensor | None = None) -> PaperToyOutput:
        small = (torch.ones_like(self.embed(values)[:, :1]) + 1e-4) - 1.0
        return super().forward(values * (1e-4 / small).to(values.dtype), labels)


class NothingCheckpointed(PaperToyModel):
    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        return None


class CountingBlock(PaperToyBlock):
    """A block that advances a state each time it is computed, so also when it is computed again."""

    def __init__(self, config: PaperToyConfig) -> None:
        super().__init__(config)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls.add_(1)
        return super().forward(hidden)


class StatefulBlocks(PaperToyModel):
    def __init__(self, config: PaperToyConfig) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(CountingBlock(config) for _ in range(config.num_hidden_layers))
        self.post_init()


class GraphBreak(PaperToyModel):
    def forward(self, values: Tensor, labels: Tensor | None = None) -> PaperToyOutput:
        if values.sum().item() > 0:
            values = values + 1.0
        return super().forward(values, labels)


class FixedBatch(PaperToyModel):
    """The batch of the export is written into the graph."""

    def forward(self, values: Tensor, labels: Tensor | None = None) -> PaperToyOutput:
        size = int(values.shape[0])
        return super().forward(values[:4] if size >= 4 else values.new_zeros(size, self.config.input_size), labels)


# --------------------------------------------------------------------------------------------------- broken configs


@strict
class OpenConfig(PaperToyConfig):
    """Takes whatever it is given."""

    def __post_init__(self, **kwargs: Any) -> None:
        PreTrainedConfig.__post_init__(self, **kwargs)


class LooseConfig(PaperToyConfig):
    """Checks no values."""

    def validate_architecture(self) -> None:
        return None


LooseConfig = strict(LooseConfig)


@strict
class UnannotatedConfig(PaperToyConfig):
    """`num_heads` is not annotated, so it is not saved."""

    num_heads = 4


@strict
class SilentConfig(PaperToyConfig):
    """Says nothing of its options."""


@strict
class ForgetfulConfig(PaperToyConfig):
    """Loses an option on the way to the file."""

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_dict().items() if name != "hidden_size"}


@strict
class FloatConfig(PaperToyConfig):
    """`temperature` refuses 1."""

    temperature: float = 1.0


class UntypedConfig(PaperToyConfig):
    """Refuses what is too small, but takes a text for a number (and falls over it) or NaN."""

    __setattr__ = object.__setattr__


def with_config(config: type[PaperToyConfig]) -> ModelCase:
    return ModelCase(config, type("ToyWithConfig", (PaperToyModel,), {"config_class": config}))


class Miscounted(ModelCase):
    def __init__(self) -> None:
        super().__init__(PaperToyConfig, PaperToyModel, parameters={"paper": 12_345})


FAULTS = [
    (checks.check_save_and_load, BiasNotSaved),
    (checks.check_save_and_load, TableOnlyInInit),
    (checks.check_save_and_load, DataInInitWeights),
    (checks.check_trained_weights_survive, StatisticsNotSaved),
    (checks.check_keys_are_clean, WrappedKeys),
    (checks.check_copy, SharedCopy),
    (checks.check_same_seed_same_weights, OwnDice),
    (checks.check_same_seed_same_weights, NoDice),
    (checks.check_dummy_inputs, GlobalDummies),
    (checks.check_buffers_after_meta_build, TableOnlyInInit),
    (checks.check_buffers_after_meta_build, TensorAttribute),
    (checks.check_loaded_weights_are_kept, DataInInitWeights),
    (checks.check_init_survives_post_init, InitInInit),
    (checks.check_init_survives_post_init, DataInInit),
    (checks.check_init_survives_post_init, SliceInInit),
    (checks.check_initialisation, RawParameterForgotten),
    (checks.check_initialisation, PublishedCase(PaperToyConfig, DefaultInitialisation)),
    (checks.check_gradients_reach_every_parameter, UnusedLayer),
    (checks.check_gradients_reach_every_parameter, ZeroGradient),
    (checks.check_overfits_one_batch, BlindModel),
    (checks.check_eval_is_deterministic, DropoutInEval),
    (checks.check_eval_is_deterministic, CountsInEval),
    (checks.check_eval_is_batch_independent, BatchMean),
    (checks.check_eval_is_batch_independent, SummedLoss),
    (checks.check_inputs_are_not_mutated, InPlace),
    (checks.check_bfloat16, LostInHalf),
    (checks.check_gradient_checkpointing, NothingCheckpointed),
    (checks.check_gradient_checkpointing, StatefulBlocks),
    (checks.check_parameter_counts, Miscounted()),
    (checks.check_config_round_trip, with_config(ForgetfulConfig)),
    (checks.check_options_are_annotated, with_config(UnannotatedConfig)),
    (checks.check_fractions_may_be_whole, with_config(FloatConfig)),
    (checks.check_options_are_documented, with_config(SilentConfig)),
    (checks.check_misspelt_options_are_refused, with_config(OpenConfig)),
    (checks.check_nonsense_is_refused, with_config(LooseConfig)),
    (checks.check_nonsense_is_refused, with_config(UntypedConfig)),
]


def fault_title(fault: Any) -> str:
    return getattr(fault, "__name__", None) or type(fault).__name__ + "-" + fault.config_class.__name__


@pytest.mark.parametrize(("check", "fault"), FAULTS, ids=fault_title)
def test_a_fault_is_caught(check: Callable[..., None], fault: Any, toy: ModelCase, tmp_path: Path) -> None:
    case = fault if isinstance(fault, ModelCase) else case_of(fault)
    with pytest.raises(AssertionError):
        run(check, case, tmp_path)


def test_the_published_initialisation_passes(tmp_path: Path) -> None:
    checks.check_initialisation(PublishedCase(PaperToyConfig, PaperToyModel), tmp_path)


def test_a_misnamed_published_weight_is_caught(tmp_path: Path) -> None:
    class Misnamed(ModelCase):
        def initialisation(self, model: PaperToyModel) -> dict[str, Distribution]:
            return {"no.such.weight": Distribution.constant(0.0)}

    with pytest.raises(AssertionError, match="no.such.weight"):
        checks.check_initialisation(Misnamed(PaperToyConfig, PaperToyModel), tmp_path)


def test_a_graph_break_is_caught() -> None:
    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        checks.check_compiles_without_breaks(case_of(GraphBreak))
    torch._dynamo.reset()


def test_a_fixed_batch_is_caught(tmp_path: Path) -> None:
    with pytest.raises((AssertionError, UserError)):
        checks.check_onnx(case_of(FixedBatch), tmp_path)


def test_a_wrong_auto_class_is_caught(toy: ModelCase, tmp_path: Path) -> None:
    AutoModel.register(PaperToyConfig, BiasNotSaved, exist_ok=True)
    try:
        with pytest.raises(AssertionError):
            checks.check_auto_class(toy, tmp_path)
    finally:
        AutoModel.register(PaperToyConfig, PaperToyModel, exist_ok=True)


def plain_load(model_class: type[PaperToyModel], folder: Path) -> PaperToyModel:
    """transformers' own way, which warns at most."""
    return model_class.from_pretrained(folder)


@pytest.mark.parametrize("damage", checks.DAMAGES)
def test_a_trusting_loader_is_caught(
    damage: str, toy: ModelCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "load_strict", plain_load)
    with pytest.raises(
        (AssertionError, OSError, RuntimeError, TypeError, ValueError, SafetensorError, UnpicklingError)
    ):
        checks.check_damaged_checkpoint_is_refused(toy, tmp_path / "checkpoint", damage)


def test_a_mapped_load_is_caught(toy: ModelCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "load_strict", plain_load)
    with pytest.raises(AssertionError, match="overwritten in place"):
        checks.check_strict_load(toy, tmp_path)


def test_nonsense_follows_from_the_fields(toy: ModelCase) -> None:
    found = nonsense_of_types(toy)
    for expected in [("hidden_size", -1), ("hidden_size", 0), ("hidden_size", 2.5), ("hidden_size", "no such thing")]:
        assert expected in found
    assert ("activation", "no such thing") in found and ("widths", 3) in found and ("widths", [-1]) in found
    assert ("dropout", 1.5) in found and ("noise_std", float("inf")) in found


def test_nothing_of_this_leaves_marks_on_the_toy(toy: ModelCase) -> None:
    """The broken classes are subclasses; the toy itself must not have been changed by them."""
    assert toy.model_class.config_class is PaperToyConfig
    assert copy.deepcopy(toy.config()).hidden_size == PaperToyConfig.presets["tiny"]["hidden_size"]

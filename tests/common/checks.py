"""The checks of the suite, one function each. `test_models.py` and `test_checkpoints.py` run them on every registered model,
and `test_suite_catches.py` shows that each one fails for a model with the fault that it is there for."""

from __future__ import annotations

import copy
import json
import pickle
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_papers.errors import UserError
from hf_papers.hub.checkpoints import load_strict
from tests.common.cases import (
    ModelCase,
    annotations_of,
    is_batched,
    matching,
    named_tensors,
    nonsense_of_types,
    poisoned_memory,
    seeded,
)


Inputs = dict[str, Tensor]
LIBRARIES = ("torch", "transformers")
WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_ddp.")


# -------------------------------------------------------------------------------------------------------- helpers


def outputs_of(model: PreTrainedModel, inputs: Inputs) -> dict[str, Tensor]:
    with torch.no_grad():
        return named_tensors(model(**inputs))


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor], what: str) -> None:
    """Equal names and equal numbers, bit for bit (NaN counts as different)."""
    assert left.keys() == right.keys(), f"{what}: {sorted(left.keys() ^ right.keys())} on one side only"
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different, f"{what}: {different} differ"


def distance(value: Tensor, reference: Tensor) -> float:
    """The largest difference, relative to the largest number of the reference (or to 1e-3 when that is tiny)."""
    if not value.numel():
        return 0.0
    value, reference = value.detach().double(), reference.detach().double()
    return float((value - reference).abs().max() / reference.abs().max().clamp(min=1e-3))


def assert_close(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float, what: str) -> None:
    assert left.keys() == right.keys(), f"{what}: {sorted(left.keys() ^ right.keys())} on one side only"
    for name in left:
        assert left[name].shape == right[name].shape, f"{what}: shape of {name}"
        gap = distance(left[name], right[name])
        assert gap <= tolerance, f"{what}: {name} differs by {gap:.1e} > {tolerance:.1e}"  # also fails for NaN


def gradients_of(case: ModelCase, model: PreTrainedModel, inputs: Inputs, seed: int = 0) -> dict[str, Tensor]:
    """Gradients of the loss by parameter name; parameters that the loss does not reach are left out."""
    model.zero_grad(set_to_none=True)
    with seeded(seed):
        case.loss(model(**inputs)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def state_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def load(case: ModelCase, folder: Path, **options: Any) -> PreTrainedModel:
    """Loads into memory of its own: mapped files are aligned differently, which moves the last bit of a convolution."""
    return case.model_class.from_pretrained(folder, disable_mmap=True, **options)


def load_with_keys(case: ModelCase, folder: Path, keep: Callable[[int], bool]) -> tuple[PreTrainedModel, Inputs]:
    """The model from a checkpoint in `folder` of which only the tensors that `keep` picks (by place) are left."""
    case.model(seed=3).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for i, (name, tensor) in enumerate(sorted(tensors.items())) if keep(i)}
    save_file(kept or {"nothing": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    with poisoned_memory():
        return load(case, folder), kept


def refused(call: Callable[[], Any]) -> str:
    """What the refusal said, or "" when there was none."""
    try:
        call()
    except (TypeError, ValueError, StrictDataclassError) as error:
        return str(error)
    return ""


# --------------------------------------------------------------------------------------------------- save and load


def check_save_and_load(case: ModelCase, folder: Path) -> None:
    """save -> load -> save -> load: the same weights and outputs, bit for bit, the model in eval mode, clean keys."""
    model = case.model(seed=1)
    inputs = case.inputs(model)
    expected, weights = outputs_of(model, inputs), state_of(model)
    current = model
    for round_number in ("first", "second"):
        current.save_pretrained(folder / round_number)
        current, info = load(case, folder / round_number, output_loading_info=True)
        assert not any(info.values()), f"the {round_number} load was not exact: {info}"
        assert not current.training, "from_pretrained left the model in training mode"
        assert_same(state_of(current), weights, f"weights after the {round_number} load")
        assert_same(outputs_of(current, inputs), expected, f"outputs after the {round_number} load")
        written = {path.name for path in (folder / round_number).iterdir()} - {"generation_config.json"}
        assert written == {"config.json", "model.safetensors"}, f"saving wrote {sorted(written)}"
    mapped = case.model_class.from_pretrained(folder / "second")
    assert_same(state_of(mapped), weights, "weights after a mapped load")
    assert_close(outputs_of(mapped, inputs), expected, case.tolerance, "outputs after a mapped load")


def check_trained_weights_survive(case: ModelCase, folder: Path) -> None:
    """What training moved (weights and running statistics) is in the checkpoint: a load gives it back."""
    model = case.model().train()
    inputs = case.inputs(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    gradients_of(case, model, inputs)
    optimizer.step()
    model.eval()
    expected = outputs_of(model, inputs)
    model.save_pretrained(folder)
    assert_same(outputs_of(load(case, folder), inputs), expected, "outputs of a trained model after loading")


def check_auto_class(case: ModelCase, folder: Path) -> None:
    """The Auto classes find config and model of a plain checkpoint."""
    model = case.model(seed=2)
    model.save_pretrained(folder)
    assert type(AutoConfig.from_pretrained(folder)) is case.config_class
    loaded = getattr(transformers, case.auto_class).from_pretrained(folder, disable_mmap=True)
    assert type(loaded) is case.model_class
    assert_same(state_of(loaded), state_of(model), f"weights through {case.auto_class}")


def check_keys_are_clean(case: ModelCase, folder: Path) -> None:
    """No wrapper leaves its prefix in the keys, neither in memory nor in the file, also when a wrapper saves."""
    model = case.model()
    torch.compile(model, backend="eager").save_pretrained(folder)
    saved = set(load_file(folder / "model.safetensors"))
    dirty = [
        name for name in saved | set(model.state_dict()) if any(w in f".{name}" for w in (f".{p}" for p in WRAPPERS))
    ]
    assert not dirty, f"keys with the prefix of a wrapper: {dirty}"
    assert saved <= set(model.state_dict()), "the file holds keys that the model has not"


def check_copy(case: ModelCase) -> None:
    """A deep copy (a moving average, a target network) answers as the original and shares nothing with it."""
    model = case.model()
    inputs = case.inputs(model)
    expected = outputs_of(model, inputs)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert_same(outputs_of(twin, inputs), expected, "outputs of a deep copy")


# ----------------------------------------------------------------------------------------------- building the model


def check_same_seed_same_weights(case: ModelCase) -> None:
    assert_same(state_of(case.model(seed=5)), state_of(case.model(seed=5)), "two models of one seed")
    first, other = state_of(case.model(seed=5)), state_of(case.model(seed=6))
    assert any(not torch.equal(first[name], other[name]) for name in first), "the seed does not change the weights"


def check_dummy_inputs(case: ModelCase) -> None:
    """Deterministic tensors, a batch of four, drawn without touching the global random numbers."""
    model = case.model()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = model.dummy_inputs
    assert torch.equal(before, torch.get_rng_state()), "dummy_inputs draws from the global random numbers"
    torch.manual_seed(2)
    assert all(isinstance(value, Tensor) for value in first.values()), "dummy_inputs must hold tensors only"
    assert_same(first, model.dummy_inputs, "two calls of dummy_inputs")
    assert is_batched(first[model.main_input_name]), f"'{model.main_input_name}' must be a batch of four"


def check_buffers_after_meta_build(case: ModelCase, folder: Path) -> None:
    """`from_pretrained` builds on the meta device: every buffer, saved or not, must come back as it was built."""
    model = case.model()
    model.save_pretrained(folder)
    with poisoned_memory():
        loaded = load(case, folder)
    assert_same(dict(loaded.named_buffers()), dict(model.named_buffers()), "buffers after from_pretrained")
    stuck = [
        f"{name or 'model'}.{attribute}"
        for name, module in loaded.named_modules()
        for attribute, value in vars(module).items()
        for tensor in named_tensors(value if attribute[0] != "_" else None).values()
        if tensor.is_meta
    ]
    assert not stuck, f"plain tensor attributes left on the meta device: {stuck}"
    assert not [name for name, parameter in loaded.named_parameters() if parameter.is_meta]


def check_loaded_weights_are_kept(case: ModelCase, folder: Path) -> None:
    """Initialising what a checkpoint lacks must not touch what it has (`.data.normal_()` in `_init_weights` does)."""
    for name, parity in (("even", 0), ("odd", 1)):
        model, kept = load_with_keys(case, folder / name, lambda place, parity=parity: place % 2 == parity)
        state = state_of(model)
        assert_same({key: state[key] for key in kept}, kept, "loaded weights beside missing ones")


class OwnWrites(TorchFunctionMode):
    """Notes every in-place write to a tensor that a model's own file makes outside `_init_weights`."""

    def __init__(self, files: set[str]) -> None:
        super().__init__()
        self.files, self.written = files, {}

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        if in_place and args and isinstance(args[0], Tensor) and not args[0].is_meta and name != "requires_grad_":
            if self._is_own(sys._getframe(1)):
                self.written[args[0].untyped_storage().data_ptr()] = args[0].detach().clone()
        return result

    def _is_own(self, frame: FrameType | None) -> bool:
        """Whether the write comes from a file of the model, not from a torch layer's own reset or `_init_weights`."""
        own = False
        while frame is not None:
            code = frame.f_code
            if code.co_name in ("_init_weights", "initialize_weights", "init_weights"):
                return False
            if not own and "torch/nn/modules" in code.co_filename.replace("\\", "/"):
                return False
            own = own or code.co_filename in self.files
            frame = frame.f_back
        return own


def model_files(model_class: type) -> set[str]:
    """The files of the model class, of its bases outside torch and transformers, and those beside them."""
    modules = [sys.modules[base.__module__] for base in model_class.__mro__]
    own = [m for m in modules if getattr(m, "__file__", None) and m.__name__.split(".")[0] not in LIBRARIES]
    return {str(path) for module in own for path in Path(module.__file__).parent.glob("*.py")}


def check_init_survives_post_init(case: ModelCase) -> None:
    """What `__init__` writes into a weight is still there after `post_init`: else it belongs into `_init_weights`."""
    writes = OwnWrites(model_files(case.model_class))
    config = case.config()
    with seeded(0), writes:
        model = case.model_class(config)
    lost = [
        name
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if (value := writes.written.get(tensor.untyped_storage().data_ptr())) is not None
        and not (value.numel() == tensor.numel() and torch.equal(value.reshape(tensor.shape), tensor))
    ]
    assert not lost, f"post_init overwrote what __init__ had set: {lost}. Set it in _init_weights"


def samples(models: Iterator[PreTrainedModel]) -> dict[str, Tensor]:
    """Every parameter of several models, flattened and joined, by name."""
    drawn: dict[str, list[Tensor]] = {}
    for model in models:
        for name, parameter in model.named_parameters():
            drawn.setdefault(name, []).append(parameter.detach().flatten().double())
    return {name: torch.cat(parts) for name, parts in drawn.items()}


def assert_drawn_from(name: str, values: Tensor, mean: float, std: float, count: int, what: str) -> None:
    """Mean and standard deviation within six standard errors of what `count` normal draws would show."""
    if std == 0:
        assert torch.allclose(values, torch.full_like(values, mean), rtol=1e-6), f"{what}: {name} must be {mean:.6g}"
        return
    error = 6 * std / count**0.5
    found = float(values.mean()), float(values.std())
    assert abs(found[0] - mean) <= error, f"{what}: the mean of {name} is {found[0]:.4g}, not {mean:.4g}"
    assert abs(found[1] - std) <= error, f"{what}: the standard deviation of {name} is {found[1]:.4g}, not {std:.4g}"


def check_initialisation(case: ModelCase, folder: Path) -> None:
    """Weights start as published, whether built by the class or missing from a checkpoint that was loaded."""

    def load_nothing(seed: int) -> PreTrainedModel:
        with seeded(seed):
            return load_with_keys(case, folder / str(seed), lambda place: False)[0]

    with poisoned_memory():
        built = samples(case.model(seed=seed) for seed in range(8))
    loaded = samples(load_nothing(seed) for seed in range(8))
    published = case.initialisation(case.model())
    idle = [pattern for pattern in published if not any(matching((pattern,), name) for name in built)]
    assert not idle, f"no parameter fits {idle}"
    for name, values in built.items():
        filled = torch.isfinite(values).all() and torch.isfinite(loaded[name]).all()
        assert filled, f"{name} holds memory that nothing has initialised: set it in _init_weights"
        mean, std = float(values.mean()), 0.0 if bool((values == values[0]).all()) else float(values.std())
        # Both sides are samples here, so their difference has the standard error of half as many draws.
        assert_drawn_from(name, loaded[name], mean, std, len(values) / 2, "after a load that lacked it")
        for pattern in matching(published, name):
            expected = published[pattern]
            assert_drawn_from(name, values, expected.mean, expected.std, len(values), "after construction")


# ------------------------------------------------------------------------------------------------------- behaviour


def check_gradients_reach_every_parameter(case: ModelCase) -> None:
    model = case.model().train()
    gradients = gradients_of(case, model, case.inputs(model))
    dead = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and not matching(case.without_gradient, name)
        and (name not in gradients or not gradients[name].abs().sum() > 0)
    ]
    assert not dead, f"no gradient reaches {dead}"
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values()), "a gradient is not finite"


def check_overfits_one_batch(case: ModelCase) -> None:
    """Adam drives the loss of one batch down to the share that the case allows."""
    model = case.model().train()
    inputs = case.inputs(model)
    parameters = case.overfit_parameters(model)
    optimizer = torch.optim.Adam(parameters, lr=case.overfit_learning_rate)
    floor = case.loss_floor(model, inputs)
    losses = []
    with seeded(0):
        for _ in range(case.overfit_steps):
            loss = case.loss(model(**inputs))
            optimizer.zero_grad(set_to_none=True)
            loss.backward(inputs=parameters)
            optimizer.step()
            losses.append(loss.detach())
    first, last = float(losses[0]) - floor, float(torch.stack(losses[-10:]).mean()) - floor
    assert first > 0, f"the first loss {first + floor:.4g} is below the floor {floor:.4g}: check loss_floor"
    assert last <= case.overfit_to * first, (
        f"one batch is not learnt in {case.overfit_steps} steps: above its floor, the loss went from {first:.4g} to "
        f"{last:.4g}"
    )


def check_eval_is_deterministic(case: ModelCase) -> None:
    """Two calls in eval mode agree bit for bit, whatever the global random numbers are, and change no state."""
    model = case.model()
    inputs, before = case.inputs(model), state_of(model)
    with seeded(1):
        first = outputs_of(model, inputs)
    with seeded(2):
        second = outputs_of(model, inputs)
    assert_same(first, second, "two calls in eval mode")
    assert_same(state_of(model), before, "the model's state after two calls in eval mode")


def check_eval_is_batch_independent(case: ModelCase) -> None:
    """A batch of four equals four batches of one, and the loss of the batch is the mean of theirs."""
    model = case.model()
    inputs = case.inputs(model)
    together = outputs_of(model, inputs)
    alone = [
        outputs_of(model, {name: value[i : i + 1] if is_batched(value) else value for name, value in inputs.items()})
        for i in range(4)
    ]
    rows = {name: value for name, value in together.items() if is_batched(value)}
    assert rows, "no output has one row per example"
    joined = {name: torch.cat([part[name] for part in alone]) for name in rows}
    assert_close(joined, rows, case.tolerance, "a batch of four against four batches of one")
    if case.loss_is_mean_over_batch and isinstance(together.get("loss"), Tensor):
        mean = torch.stack([part["loss"] for part in alone]).mean()
        assert_close({"loss": mean}, {"loss": together["loss"]}, case.tolerance, "mean of four losses")


def check_inputs_are_not_mutated(case: ModelCase) -> None:
    for mode in (True, False):
        model = case.model().train(mode)
        inputs = case.inputs(model)
        before = {name: value.clone() for name, value in inputs.items()}
        gradients_of(case, model, inputs)
        assert_same(inputs, before, f"inputs after forward and backward ({'train' if mode else 'eval'} mode)")


def check_bfloat16(case: ModelCase, folder: Path) -> None:
    """In bfloat16, loaded as such and under autocast: everything finite and the loss near that of float32."""
    model = case.model()
    inputs = case.inputs(model)
    with torch.no_grad():
        reference = float(case.loss(model(**inputs)))
    model.save_pretrained(folder)
    half = load(case, folder, dtype=torch.bfloat16)
    cast = {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}
    for what, network, batch, autocast in (("bfloat16", half, cast, False), ("autocast", model, inputs, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = network(**batch)
            loss = case.loss(outputs)
        loss.backward()
        bad = [name for name, value in named_tensors(outputs).items() if not torch.isfinite(value.float()).all()]
        bad += [
            name
            for name, parameter in network.named_parameters()
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
        ]
        assert not bad, f"{what}: {bad} are not finite"
        found = float(loss.detach())
        gap = abs(found - reference) / max(abs(reference), 1e-3)
        assert gap <= case.bfloat16_tolerance, f"{what}: the loss is {found:.4g}, in float32 {reference:.4g}"


def check_gradient_checkpointing(case: ModelCase) -> None:
    """Layers are computed again in the backward pass, and loss, gradients and state are those without, bit for bit."""
    plain, saving = case.model().train(), case.model().train()
    assert saving.supports_gradient_checkpointing, "supports_gradient_checkpointing is not set"
    saving.activation_checkpointing_enable()
    calls: list[str] = []
    for name, module in saving.named_modules():
        if isinstance(
            module, GradientCheckpointingLayer
        ):  # its own hooks stay outside the checkpoint, its parts' do not
            for part, inner in module.named_modules(prefix=name):
                if inner is not module:
                    inner.register_forward_pre_hook(lambda _module, _args, part=part: calls.append(part))
    inputs = case.inputs(plain)
    expected = gradients_of(case, plain, inputs)
    found = gradients_of(case, saving, inputs)
    assert len(calls) > len(set(calls)), "nothing was computed again: no layer is checkpointed"
    assert_same(found, expected, "gradients with checkpointing")
    assert_same(state_of(saving), state_of(plain), "state after a step with checkpointing")


def check_compiles_without_breaks(case: ModelCase) -> None:
    """`torch.compile(fullgraph=True)` takes forward in both modes, and it answers as without, for two batch sizes."""
    for training in (False, True):
        torch._dynamo.reset()
        model = case.model().train(training)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        for batch_size in (4,) if training else (4, 3):
            inputs = case.inputs(model, batch_size)
            twin = copy.deepcopy(model)
            with seeded(0):
                expected = named_tensors(twin(**inputs))
            with seeded(0):
                found = named_tensors(compiled(**inputs))
            mode = f"compiled in {'train' if training else 'eval'} mode, batch of {batch_size}"
            assert_close(found, expected, case.tolerance, mode)
    torch._dynamo.reset()


def check_onnx(case: ModelCase, folder: Path) -> None:
    """The exported graph answers as PyTorch does, for two batch sizes that the exporter did not see."""
    import onnxruntime

    from hf_papers.hub.export import export_model

    model = case.model()
    path = export_model(model, folder / "model.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    taken = {entry.name for entry in session.get_inputs()}
    names = [output.name for output in session.get_outputs()]
    names = [name if name.removesuffix("_output") not in taken else name.removesuffix("_output") for name in names]
    for batch_size in (1, 6):
        inputs = case.inputs(model, batch_size)
        expected = outputs_of(model, inputs)
        answers = session.run(None, {i.name: inputs[i.name].numpy() for i in session.get_inputs()})
        found = {name: torch.from_numpy(answer) for name, answer in zip(names, answers, strict=True)}
        assert found, "the graph has no outputs"
        for name, value in found.items():
            assert value.shape == expected[name].shape, f"{name}: {tuple(value.shape)} for a batch of {batch_size}"
        assert_close(found, {name: expected[name] for name in found}, 10 * case.tolerance, f"ONNX, batch {batch_size}")


# ---------------------------------------------------------------------------------------------------------- config


def check_parameter_counts(case: ModelCase) -> None:
    """Every count that the paper's entry names, without memory for the weights."""
    missing = set(case.parameters) - set(case.config_class.presets)
    assert not missing, f"parameters are listed for presets that do not exist: {sorted(missing)}"
    for preset, count in case.parameters.items():
        with torch.device("meta"):
            model = case.model_class(case.config_class.from_preset(preset))
        found = sum(parameter.numel() for parameter in model.parameters())
        assert found == count, f"preset '{preset}' has {found:,} parameters, not {count:,}"


def own_options(config: PreTrainedConfig, case: ModelCase) -> dict[str, Any]:
    """The config's own values with tuples as JSON gives them back."""
    return json.loads(json.dumps({name: getattr(config, name) for name in case.own_fields()}))


def check_config_round_trip(case: ModelCase, folder: Path) -> None:
    """Every preset comes back from a dictionary, a file, a copy and through AutoConfig with every option as it was."""
    assert case.config_class(), "the config must have a default for everything"
    for preset in case.config_class.presets:
        config = case.config_class.from_preset(preset)
        config.save_pretrained(folder / preset)
        for way, twin in (
            ("to_dict", case.config_class.from_dict(config.to_dict())),
            ("save_pretrained", case.config_class.from_pretrained(folder / preset)),
            ("AutoConfig", AutoConfig.from_pretrained(folder / preset)),
            ("deepcopy", copy.deepcopy(config)),
        ):
            assert type(twin) is case.config_class, f"{way} gave a {type(twin).__name__}"
            assert own_options(twin, case) == own_options(config, case), f"preset '{preset}' through {way}"
        saved = json.loads((folder / preset / "config.json").read_text())
        assert saved["model_type"] == case.config_class.model_type


def check_options_are_annotated(case: ModelCase) -> None:
    """An option without an annotation is a class attribute: it can be set, and is lost on saving."""
    lost = [
        name
        for base in case.config_class.__mro__
        if base not in PreTrainedConfig.__mro__
        for name, value in vars(base).items()
        if isinstance(value, (bool, int, float, str, list, tuple)) or value is None
        if name[0] != "_" and name not in annotations_of(base) and not hasattr(PreTrainedConfig, name)
    ]
    assert not lost, f"options without an annotation are not saved: {lost}"


def check_fractions_may_be_whole(case: ModelCase) -> None:
    """`float` alone refuses 1 and 0, which is what people and YAML files write."""
    strict = [name for name, kinds in case.own_fields().items() if float in kinds and int not in kinds]
    assert not strict, f"options that refuse whole numbers, annotate them `float | int`: {strict}"


def check_options_are_documented(case: ModelCase) -> None:
    text = case.config_class.__doc__ or ""
    silent = [name for name in case.own_fields() if not re.search(rf"\b{name}\b", text)]
    assert not silent, f"options that the config's docstring does not explain: {silent}"


def misspelt(name: str) -> str:
    """`name` as a hurried typist would give it: a letter lost, or doubled when there are too few to lose one."""
    middle = len(name) // 2
    return name[:middle] + name[middle + 1 :] if len(name) > 4 else name + name[-1]


def check_misspelt_options_are_refused(case: ModelCase, folder: Path) -> None:
    """A misspelt option is refused with the right one, from the constructor, a preset and a config.json."""
    config = case.config()
    config.save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    for name in case.own_fields():
        wrong, value = misspelt(name), getattr(config, name)
        (folder / "config.json").write_text(json.dumps({**saved, wrong: saved.get(name)}))
        for way, call in (
            ("constructor", lambda wrong=wrong, value=value: case.config_class(**{wrong: value})),
            ("from_preset", lambda wrong=wrong, value=value: case.config(**{wrong: value})),
            ("config.json", lambda: case.config_class.from_pretrained(folder)),
        ):
            words = refused(call)
            assert words, f"the {way} accepts '{wrong}' for '{name}'"
            assert wrong in words and f"'{name}'" in words, (
                f"the {way} does not lead from '{wrong}' to '{name}': {words}"
            )
    words = refused(lambda: case.config_class.from_preset("tinny"))
    assert "'tiny'" in words, f"from_preset('tinny') does not suggest 'tiny': {words or 'accepted'}"


def check_nonsense_is_refused(case: ModelCase) -> None:
    """Values that nobody can mean are refused, by a message that names the option."""
    accepted, unclear = [], []
    for name, value in [*nonsense_of_types(case), *case.nonsense()]:
        if any(name == field and value == allowed for field, allowed in case.sensible):
            continue
        words = refused(lambda name=name, value=value: case.config(**{name: value}))
        if not words:
            accepted.append((name, value))
        elif name not in words:
            unclear.append((name, value, words))
    assert not accepted, f"accepted without a word: {accepted}"
    assert not unclear, f"refused without naming the option: {unclear}"


# ------------------------------------------------------------------------------------- damaged and foreign checkpoints


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Replaces the weights of the checkpoint by what `change` makes of them, in place."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def first_float(tensors: dict[str, Tensor]) -> str:
    return next(name for name in sorted(tensors) if tensors[name].is_floating_point() and tensors[name].numel())


def damage_truncated(folder: Path) -> str:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return "model.safetensors"


def damage_empty(folder: Path) -> str:
    (folder / "model.safetensors").write_bytes(b"")
    return "model.safetensors"


def damage_lfs_pointer(folder: Path) -> str:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1234\n"
    (folder / "model.safetensors").write_text(text)
    return "model.safetensors"


def damage_foreign(folder: Path) -> str:
    """A checkpoint of somebody else: other config, other tensors."""
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    save_file({"embeddings.weight": torch.zeros(3, 3)}, folder / "model.safetensors", metadata={"format": "pt"})
    return "bert"


def damage_missing_key(folder: Path) -> str:
    names: list[str] = []
    rewrite(folder, lambda tensors: (names.append(first_float(tensors)), tensors.pop(names[0])))
    return names[0]


def damage_unexpected_key(folder: Path) -> str:
    rewrite(folder, lambda tensors: tensors.update({"stranger.weight": torch.zeros(2)}))
    return "stranger.weight"


def damage_wrapper_prefix(folder: Path) -> str:
    def prefix(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[f"module.{name}"] = tensors.pop(name)

    rewrite(folder, prefix)
    return "module."


def damage_shape(folder: Path) -> str:
    names: list[str] = []

    def grow(tensors: dict[str, Tensor]) -> None:
        names.append(first_float(tensors))
        tensors[names[0]] = torch.cat([tensors[names[0]]] * 2)

    rewrite(folder, grow)
    return names[0]


def damage_nan(folder: Path) -> str:
    names: list[str] = []

    def spoil(tensors: dict[str, Tensor]) -> None:
        names.append(first_float(tensors))
        tensors[names[0]].view(-1)[-1] = float("nan")

    rewrite(folder, spoil)
    return names[0]


def damage_infinity(folder: Path) -> str:
    names: list[str] = []

    def spoil(tensors: dict[str, Tensor]) -> None:
        names.append(first_float(tensors))
        tensors[names[0]].view(-1)[0] = float("inf")

    rewrite(folder, spoil)
    return names[0]


def damage_no_config(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "config.json"


def damage_broken_config(folder: Path) -> str:
    path = folder / "config.json"
    path.write_text(path.read_text()[:-10])
    return "config.json"


def damage_config_with_unknown_option(folder: Path) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "no_such_option": 3}))
    return "no_such_option"


def damage_no_weights(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    return "model.safetensors"


class Trap:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "code from the pickle has run")


def damage_only_pickle(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(folder / "trap"), protocol=2))
    return "pytorch_model.bin"


def damage_pickle_named_safetensors(folder: Path) -> str:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap(folder / "trap"), protocol=2))
    return "model.safetensors"


def damage_no_folder(folder: Path) -> str:
    shutil.rmtree(folder)
    return folder.name


DAMAGES = {name.removeprefix("damage_"): f for name, f in sorted(globals().items()) if name.startswith("damage_")}


def check_damaged_checkpoint_is_refused(case: ModelCase, folder: Path, damage: str) -> None:
    """`load_strict` refuses in one sentence that names what is wrong, and runs no code from the file."""
    case.model().save_pretrained(folder)
    culprit = DAMAGES[damage](folder)
    try:
        load_strict(case.model_class, folder)
    except UserError as error:
        words = str(error)
    else:
        raise AssertionError(f"a checkpoint with damage '{damage}' was loaded without a word")
    assert culprit in words, f"the refusal does not name '{culprit}': {words}"
    assert "Traceback" not in words and len(words) < 1000, f"not a sentence: {words}"
    assert not (folder / "trap").exists(), "code from the pickle has run"


def check_strict_load(case: ModelCase, folder: Path) -> None:
    """A sound checkpoint passes `load_strict`, exactly, in eval mode, and later writes to its file do not reach it."""
    model = case.model(seed=4)
    model.save_pretrained(folder)
    loaded = load_strict(case.model_class, folder)
    assert type(loaded) is case.model_class and not loaded.training
    assert_same(state_of(loaded), state_of(model), "weights through load_strict")
    path = folder / "model.safetensors"
    with path.open("r+b") as file:  # in place, as `cp` does: a mapped file would change under the model
        file.write(b"\0" * path.stat().st_size)
    assert_same(dict(loaded.state_dict()), state_of(model), "weights after their file was overwritten in place")

"""Recipes: a YAML file holds everything a run needs, the command line overrides any of it by one flat name."""

from __future__ import annotations

import dataclasses
import inspect
import types
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from hf_papers.data.arguments import DataArguments
from hf_papers.errors import UserError, nearest
from hf_papers.registry import Paper, find_paper
from hf_papers.training.arguments import TrainingArguments


# What a recipe says in words, or of the paper; none of it changes a run.
NOTES = ("description", "estimate", "example", "reference", "expected")
SECTIONS = ("task_type", "model", "task", "data", "training", *NOTES)


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe. `model` are fields of the paper's config, `task` an instance of the task's `Options`.

    `task_type` names one of the paper's further tasks; none means its own.
    """

    paper: Paper
    name: str
    model: dict[str, Any]
    task: Any
    data: DataArguments
    training: TrainingArguments
    task_type: str | None = None
    description: str = ""
    estimate: str = ""
    example: str = ""  # a text that the card gives to the model
    reference: dict[str, Any] = field(default_factory=dict)  # the paper's own numbers: metric -> {value, source}
    expected: dict[str, dict[str, float]] = field(default_factory=dict)  # metric -> {min, max} a run must land in

    @property
    def task_class(self) -> type:
        """What is trained: a subclass of `Task`."""
        return self.paper.find_task(self.task_type)

    @cached_property
    def config(self) -> Any:
        """The model's config. Raises `UserError` for an impossible value."""
        from huggingface_hub.errors import StrictDataclassError

        try:
            return self.paper.config_class(**self.model)
        except (TypeError, ValueError, StrictDataclassError) as error:
            raise UserError(f"The model options of recipe '{self.name}' do not fit: {_last_line(error)}") from error

    def to_dict(self) -> dict[str, Any]:
        """Sections of plain values, as the YAML of a run holds them: what is read back compares equal."""
        sections = {
            "paper": self.paper.key,
            "name": self.name,
            **({"task_type": self.task_type} if self.task_type else {}),
            "description": self.description,
            "estimate": self.estimate,
            **({"example": self.example} if self.example else {}),
            "reference": self.reference,
            # All fields, so that a run says what it was even where a default has changed since.
            "model": {name: getattr(self.config, name) for name in _config_types(self.paper.config_class)},
            "task": dataclasses.asdict(self.task),
            "data": dataclasses.asdict(self.data),
            "training": dataclasses.asdict(self.training),
            "expected": self.expected,
        }
        return _plain(sections)

    def save(self, path: Path) -> None:
        path.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True))

    @property
    def output_dir(self) -> Path:
        return Path(self.training.output_dir or f"runs/{self.paper.key}-{self.name}-seed{self.training.seed}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def load_recipe(paper_key: str, name: str = "embedded", overrides: dict[str, str] | None = None) -> Recipe:
    """The recipe `name` of a paper, or the YAML file at path `name`, with `overrides` as typed on the command line.

    Raises `UserError` with the nearest right word for an unknown paper, recipe, option or value.
    """
    paper = find_paper(paper_key)
    path = Path(name) if name.endswith((".yaml", ".yml")) else paper.recipes.get(name)
    if path is None:
        raise UserError(
            f"The paper '{paper.key}' has no recipe '{name}'.{nearest(name, paper.recipes)} "
            f"Its recipes are: {', '.join(paper.recipes)}."
        )
    if not path.is_file():
        raise UserError(f"There is no recipe file {path}.")
    return recipe_from_dict(paper, path.stem, yaml.safe_load(path.read_text()) or {}, overrides or {}, str(path))


def load_run_recipe(run: Path, overrides: dict[str, str] | None = None) -> Recipe:
    """The resolved recipe that a run folder holds."""
    path = run / "recipe.yaml"
    if not path.is_file():
        raise UserError(f"{run} is not a run: it has no recipe.yaml. Give the folder that `hf-papers train` wrote.")
    content = yaml.safe_load(path.read_text())
    return recipe_from_dict(find_paper(content.pop("paper")), content.pop("name"), content, overrides or {}, str(path))


def recipe_from_dict(
    paper: Paper, name: str, content: dict[str, Any], overrides: dict[str, str], where: str
) -> Recipe:
    for section in content:
        if section not in SECTIONS:
            raise UserError(f"{where}: there is no section '{section}'.{nearest(section, SECTIONS)}")
    task_class = paper.find_task(content.get("task_type"))
    types_of = option_types(paper, task_class)
    values: dict[str, dict[str, Any]] = {section: {} for section in types_of}
    for section, known in types_of.items():
        for key, value in (content.get(section) or {}).items():
            if key not in known:
                raise UserError(f"{where}: section '{section}' has no option '{key}'.{nearest(key, known)}")
            values[section][key] = coerce(value, known[key], key)
    for key, text in overrides.items():
        section = next((section for section, known in types_of.items() if key in known), None)
        if section is None:
            everything = [option for known in types_of.values() for option in known]
            raise UserError(f"There is no option --{key} for '{paper.key}'.{nearest(key, everything)}")
        values[section][key] = coerce(text, types_of[section][key], key)
    task = _build(task_class.Options, values["task"], where)
    recipe = Recipe(
        paper=paper,
        name=name,
        model=task_class.model_options(task, values["model"], types_of["model"]),
        task=task,
        data=_build(DataArguments, values["data"], where),
        training=_build(TrainingArguments, values["training"], where),
        task_type=content.get("task_type"),
        **{key: content[key] for key in NOTES if content.get(key)},
    )
    recipe.config  # refuse impossible model options now, before any work starts  # noqa: B018
    return recipe


def option_types(paper: Paper, task_class: type | None = None) -> dict[str, dict[str, Any]]:
    """Section -> option -> type: the one flat namespace of the command line of a paper's task (its own by default)."""
    return {
        "training": get_type_hints(TrainingArguments),
        "data": get_type_hints(DataArguments),
        "task": _field_types((task_class or paper.task_class).Options),
        "model": _config_types(paper.config_class),
    }


def _config_types(config_class: type) -> dict[str, Any]:
    """The fields that a config adds to those of every config of transformers."""
    from transformers import PreTrainedConfig

    own = [ancestor for ancestor in config_class.__mro__ if ancestor not in PreTrainedConfig.__mro__]
    hints: dict[str, Any] = {}
    for ancestor in reversed(own):
        hints |= inspect.get_annotations(ancestor, eval_str=True)
    names = {entry.name for entry in dataclasses.fields(config_class)}
    return {name: kind for name, kind in hints.items() if name in names}


def _field_types(options: type) -> dict[str, Any]:
    hints = get_type_hints(options)
    return {entry.name: hints[entry.name] for entry in dataclasses.fields(options)}


def difference(ours: Recipe, theirs: Recipe) -> list[str]:
    """What differs between two recipes and would change the result of a run, one line an option."""
    harmless = {
        entry.name for entry in dataclasses.fields(TrainingArguments) if not entry.metadata.get("affects_result", True)
    }
    left, right = ours.to_dict(), theirs.to_dict()
    lines = []
    if ours.task_type != theirs.task_type:
        lines.append(f"task_type: {ours.task_type} in the run, {theirs.task_type} now")
    for section in ("model", "task", "data", "training"):
        for key in sorted({*left[section], *right[section]}):
            a, b = left[section].get(key), right[section].get(key)
            if a != b and key not in harmless:
                lines.append(f"{key}: {a} in the run, {b} now")
    return lines


def coerce(value: Any, expected: Any, name: str) -> Any:
    """`value` (from YAML, or text from the command line) as the annotated type, or a `UserError` that names both."""
    origin, arguments = get_origin(expected), get_args(expected)
    if origin in (Union, types.UnionType):
        return _coerce_union(value, arguments, name)
    if origin is Literal:
        if value in arguments:
            return value
        choices = ", ".join(map(str, arguments))
        raise UserError(
            f"{name} cannot be '{value}'.{nearest(str(value), map(str, arguments))} Choose from: {choices}."
        )
    if expected is bool:
        return _coerce_bool(value, name)
    if expected in (int, float):
        return _coerce_number(value, expected, name)
    if expected is str:
        return str(value)
    if origin in (list, tuple):
        items = [part.strip() for part in value.split(",")] if isinstance(value, str) else list(value)
        inner = arguments[0] if arguments else str
        return [coerce(item, inner, name) for item in items]
    if origin is dict or expected is dict:
        return _coerce_mapping(value, arguments, name)
    return value


def _coerce_union(value: Any, members: tuple[Any, ...], name: str) -> Any:
    if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
        if type(None) in members:
            return None
    # A bool is an int to Python, text fits every str: try the narrow types first.
    order = [bool, int, float]
    candidates = sorted(
        (member for member in members if member is not type(None)),
        key=lambda member: order.index(member) if member in order else len(order),
    )
    problem = None
    for member in candidates:
        try:
            return coerce(value, member, name)
        except UserError as error:
            problem = error
    raise problem or UserError(f"{name} cannot be '{value}'.")


def _coerce_bool(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("true", "yes", "1"):
        return True
    if str(value).lower() in ("false", "no", "0"):
        return False
    raise UserError(f"{name} must be true or false, not '{value}'.")


def _coerce_number(value: Any, expected: type, name: str) -> int | float:
    kind = "a whole number" if expected is int else "a number"
    if isinstance(value, bool):
        raise UserError(f"{name} must be {kind}, not '{value}'.")
    try:
        number = float(value)  # YAML reads 1e-3 as text
    except (TypeError, ValueError):
        raise UserError(f"{name} must be {kind}, not '{value}'.") from None
    if expected is float:
        return number
    if number != int(number):
        raise UserError(f"{name} must be {kind}, not '{value}'.")
    return int(number)


def _coerce_mapping(value: Any, arguments: tuple[Any, ...], name: str) -> dict[str, Any]:
    if isinstance(value, str):
        pairs = [part.split("=", 1) for part in value.split(",") if part]
        if any(len(pair) != 2 for pair in pairs):
            raise UserError(f"{name} is written as ours=theirs,ours=theirs, not '{value}'.")
        value = {key.strip(): theirs.strip() for key, theirs in pairs}
    inner = arguments[1] if len(arguments) == 2 else Any
    return {key: coerce(item, inner, name) if inner is not Any else item for key, item in value.items()}


def _build(options: type, values: dict[str, Any], where: str) -> Any:
    try:
        return options(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {_last_line(error)}") from error


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()

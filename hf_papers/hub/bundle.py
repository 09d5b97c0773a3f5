"""A checkpoint that carries its own code: whoever gets the folder can load it without this package.

`transformers` has `register_for_auto_class` for that, but it is a switch on the class (every later save then copies code),
it names only the class that is saved, and it skips some imports without a word. So the few things it does are done here
on purpose, at the one place where a model leaves the house.
"""

from __future__ import annotations

import ast
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin

from hf_papers.errors import UserError
from hf_papers.hub.checkpoints import quiet_transformers
from hf_papers.registry import Paper, papers


# What code may import that travels with a checkpoint, beside its own folder: see CODE_RULE.
TRAVELLING = {"torch", "transformers", "huggingface_hub", "numpy", "safetensors", "PIL"}
CODE_RULE = (
    "Files that travel with a checkpoint import torch, transformers, huggingface_hub, numpy, the standard library "
)
CODE_RULE += "and, as `from .name import x`, files beside them."


def write_bundle(
    model: PreTrainedModel,
    processor: Any | None,
    folder: str | Path,
    auto_classes: dict[str, type[PreTrainedModel]] | None = None,
) -> Path:
    """Writes weights, config, processor and the code of all three into `folder`; returns it.

    The result loads by `AutoModel.from_pretrained(folder, trust_remote_code=True)`, and by every other Auto class that
    the model's paper names, where this package is not installed; and after being loaded and saved again there.

    Args:
        model: any model of a paper (or, with `auto_classes`, of anybody).
        processor: what is saved beside it: an image processor of ours, a tokenizer of transformers, or None.
        folder: made if it is missing. Files of the same names are replaced, others are left alone.
        auto_classes: name of an Auto class -> class to load by it; from the registry of papers when not given.

    Raises `UserError` when the code cannot travel (it imports what will not be there).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    auto_classes = auto_classes or registered_classes(model)
    with quiet_transformers():
        model.save_pretrained(folder)
    code = {path.name: path for cls in auto_classes.values() for path in code_files(cls)}
    code |= {path.name: path for path in code_files(type(model.config))}
    references = {"AutoConfig": type(model.config), **auto_classes}
    set_auto_map(folder / "config.json", {auto: reference(cls) for auto, cls in references.items()})
    if processor is not None:
        processor.save_pretrained(folder)
        if travels(processor):
            code |= {path.name: path for path in code_files(type(processor))}
            entry = {"AutoImageProcessor": reference(type(processor))}
            set_auto_map(folder / "preprocessor_config.json", entry)
    for name, path in code.items():
        shutil.copyfile(path, folder / name)
    return folder


def registered_classes(model: PreTrainedModel) -> dict[str, type[PreTrainedModel]]:
    """Every Auto class that this model's paper names, with its class.

    A paper is known by its `model_type`, so this also holds for a model that was itself loaded with remote code; its own
    classes are then looked up beside it, in the module that it came from.
    """
    paper = paper_of(model)
    if isinstance(model, tuple(paper.model_classes.values())):
        return paper.model_classes
    module = sys.modules[type(model).__module__]
    found = {auto: getattr(module, name.split(":")[1], None) for auto, name in paper.models.items()}
    return {auto: cls for auto, cls in found.items() if cls is not None}


def paper_of(model: PreTrainedModel) -> Paper:
    model_type = model.config.model_type
    found = next((p for p in papers().values() if p.config_class.model_type == model_type), None)
    if found is None:
        raise UserError(
            f"{type(model).__name__} (model type '{model_type}') belongs to no paper, so nobody knows by which Auto classes "
            "it should load. Add its paper's folder to hf_papers/papers."
        )
    return found


def travels(processor: Any) -> bool:
    """Whether the processor's class is our own, so that its code has to come along."""
    if type(processor).__module__.startswith("transformers."):
        return False
    if not isinstance(processor, ImageProcessingMixin):
        raise UserError(
            f"{type(processor).__name__} cannot be bundled: give an image processor, or a tokenizer of transformers."
        )
    return True


def reference(cls: type) -> str:
    """How an `auto_map` names a class: by its file's name and its own."""
    return f"{cls.__module__.rsplit('.', 1)[-1]}.{cls.__name__}"


def set_auto_map(path: Path, entries: dict[str, str]) -> None:
    """Replaces the `auto_map` of a saved config: entries of an earlier life would point to files elsewhere."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["auto_map"] = entries
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def code_files(cls: type) -> list[Path]:
    """The file that defines `cls` and all files beside it that it imports, directly or not."""
    found: list[Path] = []
    waiting = [Path(sys.modules[cls.__module__].__file__ or "")]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.append(path)
            waiting += [path.with_name(f"{name}.py") for name in sibling_imports(path)]
    return found


def sibling_imports(path: Path) -> list[str]:
    """Names of the files beside `path` that it imports.

    Raises `UserError` for an import that would not be there on somebody else's machine, or that transformers would
    overlook when it fetches the code.
    """
    siblings = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            outside = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            outside = [(node.module or "").split(".")[0]]
        elif isinstance(node, ast.ImportFrom):
            if node.level > 1 or not node.module or "." in node.module:
                raise _cannot_travel(path, node.lineno, ast.unparse(node))
            siblings.append(node.module)
            continue
        else:
            continue
        for name in outside:
            if name not in TRAVELLING and name not in sys.stdlib_module_names:
                raise _cannot_travel(path, node.lineno, ast.unparse(node))
    for name in siblings:
        if not path.with_name(f"{name}.py").is_file():
            raise UserError(f"{path} imports .{name}, but there is no {name}.py beside it. {CODE_RULE}")
    return siblings


def _cannot_travel(path: Path, line: int, statement: str) -> UserError:
    return UserError(f"{path}, line {line}: `{statement}` would not work where the checkpoint is loaded. {CODE_RULE}")

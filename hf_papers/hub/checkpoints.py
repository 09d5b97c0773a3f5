"""Loading a checkpoint so that whatever is wrong with it is said, instead of met later as strange results.

`from_pretrained` alone warns, or says nothing, when keys are missing, weights are NaN, the checkpoint belongs to another
model or `config.json` is absent; and it reads pickles. `load_strict` refuses all of these.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from hf_papers.errors import UserError
from hf_papers.hub.problems import hub_problems
from hf_papers.hub.quantized import INT8_WEIGHTS, read_quantized
from hf_papers.registry import Paper


WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
DOWNLOADED = ("*.json", "*.safetensors", "vocab.txt")


def load_strict(
    model: type[PreTrainedModel] | Paper,
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    mmap: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """The model saved in `source`, in eval mode, exactly as it was saved; a `UserError` when anything is in doubt.

    Args:
        model: the class to load, or a paper, whose class is then chosen by the checkpoint's `architectures`.
        source: a folder, or a repository id on the Hub. A folder of that name wins.
        revision: branch, tag or commit, for a repository.
        token: for a private repository; the one you logged in with by default.
        mmap: leave the weights mapped to their file, as `from_pretrained` does. They then change, or the process dies,
            when that file is overwritten in place or cut; so it is off unless asked for.
        options: more for `from_pretrained`, such as `dtype=` or `attn_implementation=`.

    int8 weights (`hf-papers export RUN --int8`) are read where a folder has no others, and become floating point.

    Refused: no folder, no `config.json` or a broken one, a config of another model or with unknown options, no weights,
    pickled weights only, an LFS pointer instead of weights, empty, truncated or foreign files, missing shards, missing,
    unexpected or differently shaped keys, NaN or infinite weights.
    """
    folder = locate(source, revision, token)
    config = read_config(folder)
    model_class = choose_class(model, config, folder) if isinstance(model, Paper) else model
    check_model_type(config, model_class, folder)
    quantized = is_quantized(folder)
    for file in [folder / INT8_WEIGHTS] if quantized else weight_files(folder):
        check_weight_file(file)
    try:
        if quantized:
            loaded, info = _load_int8(model_class, folder, **options)
        else:
            loaded, info = _load_quietly(model_class, folder, disable_mmap=not mmap, **options)
    except (TypeError, ValueError, RuntimeError) as error:  # an option of the config, or a class that cannot be built
        raise UserError(
            f"The checkpoint in {folder} cannot be loaded as {model_class.__name__}: {_reason(error)}"
        ) from error
    check_keys(info, model_class, folder)
    check_finite(loaded, folder)
    return loaded.eval()


def load_start(
    model_class: type[PreTrainedModel],
    source: str | Path,
    fresh: str,
    *,
    config: PreTrainedConfig | None = None,
    revision: str | None = None,
) -> tuple[PreTrainedModel, list[str]]:
    """A model to be trained further, with the weights of a checkpoint of ours that may have another head.

    Args:
        model_class: what is to be trained.
        source: a folder, or a repository id on the Hub.
        fresh: a regular expression; weights whose names it matches from the start may be missing from the checkpoint, or
            be of another shape there, and are drawn anew then. All others must be there.
        config: of the model, where it is not the checkpoint's.
        revision: branch, tag or commit, for a repository.

    Returns the model, in eval mode, and the names of what was drawn anew. What the model has no use for (the checkpoint's
    own head) stays behind. Raises `UserError` as `load_strict` does; int8 weights are no start.
    """
    folder = locate(source, revision)
    check_model_type(read_config(folder), model_class, folder)
    for file in weight_files(folder):
        check_weight_file(file)
    options = {} if config is None else {"config": config}
    try:
        model, info = _load_quietly(model_class, folder, disable_mmap=True, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"The checkpoint in {folder} cannot be loaded as {model_class.__name__}: {_reason(error)}"
        ) from error
    mismatched = [name for name, *_ in info["mismatched_keys"]]
    drawn = sorted({*info["missing_keys"], *mismatched})
    if wrong := [name for name in drawn if not re.match(fresh, name)]:
        raise UserError(
            f"The weights in {folder} do not fit the model that is to be trained: {_some(wrong)} are missing or of another "
            "shape. Leave out the model options on the command line, or name another checkpoint."
        )
    check_finite(model, folder)
    return model.eval(), drawn


def is_quantized(folder: Path) -> bool:
    """Whether int8 weights are the only ones in the folder: the exact ones win."""
    return (folder / INT8_WEIGHTS).is_file() and not any((folder / name).is_file() for name in (WEIGHTS, INDEX))


def _load_int8(model_class: type[PreTrainedModel], folder: Path, **options: Any) -> tuple[PreTrainedModel, dict]:
    weights = read_quantized(folder / INT8_WEIGHTS)
    config = model_class.config_class.from_pretrained(folder, local_files_only=True)
    return _load_quietly(model_class, None, config=config, state_dict=weights, **options)


def _load_quietly(
    model_class: type[PreTrainedModel], folder: Path | None, **options: Any
) -> tuple[PreTrainedModel, dict]:
    """`from_pretrained` without its printed report: what it reports is raised by `check_keys`."""
    with quiet_transformers():
        return model_class.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # so that they come back as a list, by name
            output_loading_info=True,
            **options,
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """transformers shows neither warnings nor progress bars inside: our models load in an instant and are checked by us."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    hook = transformers_logging.set_tqdm_hook(lambda bar, args, options: bar(*args, **{**options, "disable": True}))
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(hook)
        transformers_logging.set_verbosity(verbosity)


def locate(source: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """The local folder of a checkpoint; a repository's config and weights are downloaded (or taken from the cache)."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise UserError(
            f"{source} is a file. Give the folder it lies in, which should hold config.json and {WEIGHTS}."
        )
    text = str(source)
    if isinstance(source, Path) or text.startswith((".", "~", os.sep)) or text.count("/") != 1:
        raise UserError(f"There is no folder {source}, and it is not a repository id of the form user/name either.")
    with hub_problems("Downloading the checkpoint", text, revision):
        return Path(snapshot_download(text, revision=revision, token=token, allow_patterns=list(DOWNLOADED)))


def read_config(folder: Path) -> dict[str, Any]:
    """The content of `config.json`, which has to be there: without it transformers would use the defaults silently."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder} has no config.json, so nobody can tell what its weights belong to. Is it the right folder?"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}). Get the checkpoint again.") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} does not hold the options of a model. Get the checkpoint again.")
    return config


def choose_class(paper: Paper, config: dict[str, Any], folder: Path) -> type[PreTrainedModel]:
    """The class of `paper` that the checkpoint was saved from; the paper's first one where it does not say."""
    names = config.get("architectures") or []
    classes = {model_class.__name__: model_class for model_class in paper.model_classes.values()}
    if not names:
        return paper.model_class
    check_model_type(config, paper.model_class, folder)
    found = next((classes[name] for name in names if name in classes), None)
    if found is None:
        raise UserError(
            f"The checkpoint in {folder} holds a {names[0]}, which is none of the models of '{paper.key}': "
            f"{', '.join(classes)}."
        )
    return found


def check_model_type(config: dict[str, Any], model_class: type[PreTrainedModel], folder: Path) -> None:
    wanted, found = model_class.config_class.model_type, config.get("model_type")
    if found != wanted:
        described = f"of type '{found}'" if found else "of no stated type"
        raise UserError(
            f"The checkpoint in {folder} is a model {described}, but {model_class.__name__} needs one of type '{wanted}'. "
            "Name another checkpoint, or load this one with the class it was made for."
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the checkpoint: one, or the shards that its index names."""
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file():
        return [single]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError) as error:
            raise UserError(f"{index} is damaged. Get the checkpoint again.") from error
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise UserError(
                f"{folder} lacks {len(missing)} of its {len(names)} weight files: {_some(missing)}. Download it anew."
            )
        return [folder / name for name in names]
    if (folder / INT8_WEIGHTS).is_file():
        raise UserError(
            f"{folder} holds rounded weights only ({INT8_WEIGHTS}), which are made to be used and not to be trained "
            "further. Name the run that they were exported from."
        )
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise UserError(
            f"{folder} holds its weights as a pickle ({_some(pickles)}), which can run code when read, and no {WEIGHTS}. "
            "Ask for the checkpoint in safetensors, or convert it where you trust it: load it there and call "
            "save_pretrained()."
        )
    raise UserError(f"{folder} has a config.json but no weights: {WEIGHTS} is missing. Is the training finished?")


def check_weight_file(path: Path) -> None:
    """Opens the file's header: tells a pointer, an empty, a cut and a foreign file from a sound one. No tensor is read."""
    with path.open("rb") as file:
        start = file.read(40)
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is an LFS pointer, not the weights themselves. Run `git lfs pull` in its repository.")
    try:
        with safe_open(path, framework="pt") as tensors:
            names = list(tensors.keys())
    except (SafetensorError, OSError) as error:
        kind = "empty" if not start else f"truncated or not a safetensors file ({_reason(error)})"
        raise UserError(f"{path} is {kind}. Download or save the checkpoint again.") from error
    if not names:
        raise UserError(f"{path} holds no tensors. Save the checkpoint again.")


def check_keys(info: dict[str, Any], model_class: type[PreTrainedModel], folder: Path) -> None:
    """Raises unless the checkpoint has exactly the model's weights in the model's shapes."""
    missing, unexpected = sorted(info.get("missing_keys", ())), sorted(info.get("unexpected_keys", ()))
    shapes = [
        f"{name} is {list(found)}, not {list(wanted)}" for name, found, wanted in info.get("mismatched_keys", ())
    ]
    problems = [f"it lacks {_some(missing)}"] if missing else []
    problems += [f"it has {_some(unexpected)}, which the model does not know"] if unexpected else []
    problems += [_some(sorted(shapes), 2)] if shapes else []
    problems += [_some([str(message) for message in info["error_msgs"]], 1)] if info.get("error_msgs") else []
    if not problems:
        return
    prefixes = {name.split(".")[0] for name in unexpected}
    wrapped = prefixes == {"module"} or prefixes == {"_orig_mod"}
    advice = (
        f"It was saved from a wrapped model: save the model inside (without the prefix '{prefixes.pop()}.')."
        if wrapped
        else "The config and the weights do not belong together, or the code has changed since."
    )
    raise UserError(f"The weights in {folder} do not fit {model_class.__name__}: {'; '.join(problems)}. {advice}")


def check_finite(model: PreTrainedModel, folder: Path) -> None:
    """Raises when a weight or a saved buffer holds NaN or infinity."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            what = "NaN" if bool(torch.isnan(tensor).any()) else "infinite values"
            raise UserError(
                f"The weights in {folder} hold {what} (first in {name}): the training that wrote them diverged, or the file "
                "is damaged. Use an earlier checkpoint."
            )


def _some(names: list[str], count: int = 3) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:count])
    return shown if len(names) <= count else f"{shown} and {len(names) - count} more"


def _reason(error: BaseException) -> str:
    """The last line of an error's message: strict configs put the reason there, under a headline."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]

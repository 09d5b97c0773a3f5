"""Published BERT weights into our classes and back: transformers' own names and ours, and nothing half-loaded."""

import json
import os
import re
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from .configuration_bert import PaperBertConfig


Model = TypeVar("Model", bound=PreTrainedModel)

# Our name and theirs; {n} is a layer's number.
ENCODER = {
    "embeddings.word_embeddings": "embeddings.word_embeddings",
    "embeddings.position_embeddings": "embeddings.position_embeddings",
    "embeddings.token_type_embeddings": "embeddings.token_type_embeddings",
    "embeddings.layer_norm": "embeddings.LayerNorm",
    "layers.{n}.attention.query": "encoder.layer.{n}.attention.self.query",
    "layers.{n}.attention.key": "encoder.layer.{n}.attention.self.key",
    "layers.{n}.attention.value": "encoder.layer.{n}.attention.self.value",
    "layers.{n}.attention.output": "encoder.layer.{n}.attention.output.dense",
    "layers.{n}.attention_norm": "encoder.layer.{n}.attention.output.LayerNorm",
    "layers.{n}.feed_forward.intermediate": "encoder.layer.{n}.intermediate.dense",
    "layers.{n}.feed_forward.output": "encoder.layer.{n}.output.dense",
    "layers.{n}.feed_forward_norm": "encoder.layer.{n}.output.LayerNorm",
    "pooler.dense": "pooler.dense",
}
HEADS = {
    "predictions.dense": "cls.predictions.transform.dense",
    "predictions.layer_norm": "cls.predictions.transform.LayerNorm",
    "predictions.decoder": "cls.predictions.decoder",
    "next_sentence": "cls.seq_relationship",
    "classifier": "classifier",
    "span": "qa_outputs",
}
# Options under the same name and with the same meaning in both configs.
SHARED_OPTIONS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "initializer_range",
    "pad_token_id",
    "tie_word_embeddings",
    "problem_type",
    "id2label",
    "label2id",
)
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
THEIR_ACTIVATION = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}
# What may be missing because a checkpoint was saved from a model without it; everything else must be there.
OPTIONAL = re.compile(r"^(pooler|predictions|next_sentence|classifier|span)\.")
# Tables that old checkpoints carry and that hold no weights, or copies of what stands under another name.
NOT_WEIGHTS = ("embeddings.position_ids", "embeddings.token_type_ids")

Weights = dict[str, torch.Tensor]


def load_reference(model_class: type[Model], source: str, config_options: dict[str, Any]) -> Model:
    """See `PaperBertPreTrainedModel.from_reference`."""
    folder = locate_reference(source)
    theirs = read_reference_config(folder)
    config = PaperBertConfig(**{**config_from_reference(theirs, folder), **config_options})
    weights = translate(read_weights(folder), config.num_hidden_layers, folder)
    model = model_class(config)
    model.missing_from_reference = fill(model, weights, folder)
    return model.eval()


def save_reference(model: PreTrainedModel, folder: str) -> None:
    """See `PaperBertPreTrainedModel.to_reference`."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    weights = weights_to_reference(model)
    save_file(weights, path / "model.safetensors.writing", metadata={"format": "pt"})
    config = config_to_reference(model.config, type(model).__name__)
    (path / "config.json.writing").write_text(json.dumps(config, indent=2) + "\n")
    for name in ("model.safetensors", "config.json"):  # whole files under their names, or none
        os.replace(path / f"{name}.writing", path / name)


# ---------------------------------------------------------------------------------------------------------------- reading


def locate_reference(source: str) -> Path:
    """The folder of a checkpoint: `source` itself, or a repository's config and safetensors weights, downloaded."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists() or str(source).startswith((".", "/", "~")):
        raise ValueError(f"There is no folder {source}: give one with config.json and model.safetensors, or a Hub id.")
    return Path(
        snapshot_download(str(source), allow_patterns=["config.json", "*.safetensors", "*.safetensors.index.json"])
    )


def read_reference_config(folder: Path) -> dict[str, Any]:
    """Their config.json. Raises `ValueError` when it is missing, or is not BERT's."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json, so nobody can tell what its weights belong to.")
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}). Get the checkpoint again.") from error
    found = theirs.get("model_type") if isinstance(theirs, dict) else None
    if found != "bert":
        described = f"a model of type '{found}'" if found else "a model of no stated type"
        raise ValueError(f"The checkpoint in {folder} is {described}, not BERT in transformers' layout ('bert').")
    return theirs


def config_from_reference(theirs: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Options of our config. Raises `ValueError` for a variant of BERT that is not the paper's."""
    activation = theirs.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"The checkpoint in {folder} has the activation '{activation}'; ours are: {known}.")
    positions = theirs.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise ValueError(
            f"The checkpoint in {folder} has '{positions}' positions; the paper's, and ours, are absolute."
        )
    if theirs.get("add_cross_attention"):
        raise ValueError(
            f"The checkpoint in {folder} attends to a second text (cross-attention), which BERT does not."
        )
    options = {name: theirs[name] for name in SHARED_OPTIONS if theirs.get(name) is not None}
    if "id2label" in options:
        options["id2label"] = {int(number): name for number, name in options["id2label"].items()}
    return {**options, "hidden_act": ACTIVATIONS[activation], "causal_attention": bool(theirs.get("is_decoder"))}


def read_weights(folder: Path) -> Weights:
    """All tensors of the safetensors files in `folder`, one file or the shards of an index."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        pickled = " It holds a pickle, which can run code when read: ask for safetensors." if pickles(folder) else ""
        raise ValueError(f"{folder} lacks the weights {', '.join(missing)}.{pickled}")
    weights: Weights = {}
    for name in names:
        try:
            weights |= load_file(folder / name)
        except SafetensorError as error:
            raise ValueError(f"{folder / name} is damaged ({error}). Get the checkpoint again.") from error
    return weights


def pickles(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt")]


def translate(weights: Weights, num_layers: int, folder: Path) -> Weights:
    """Their weights under our names, the encoder's without a prefix. Raises `ValueError` for what BERT does not have."""
    theirs = {plain_name(name): tensor for name, tensor in weights.items()}
    for name in NOT_WEIGHTS:
        theirs.pop(name, None)
    bias = theirs.pop("cls.predictions.bias", None)
    if bias is not None:
        theirs.setdefault("cls.predictions.decoder.bias", bias)
    ours: Weights = {}
    for mine, name in all_names(num_layers).items():
        for kind in ("weight", "bias"):
            if f"{name}.{kind}" in theirs:
                ours[f"{mine}.{kind}"] = theirs.pop(f"{name}.{kind}")
    if theirs:
        some = ", ".join(sorted(theirs)[:3])
        raise ValueError(f"The checkpoint in {folder} holds weights that BERT does not have, such as {some}.")
    return ours


def plain_name(name: str) -> str:
    """Without the prefix of models with a head; norms of the first checkpoints call their weights gamma and beta."""
    name = name.removeprefix("bert.")
    return re.sub(r"gamma$", "weight", re.sub(r"beta$", "bias", name))


def all_names(num_layers: int) -> dict[str, str]:
    """Our name -> theirs of every module."""
    encoder = {
        mine.format(n=layer): theirs.format(n=layer) for mine, theirs in ENCODER.items() for layer in range(num_layers)
    }
    return encoder | HEADS


def fill(model: PreTrainedModel, weights: Weights, folder: Path) -> tuple[str, ...]:
    """Copy `weights` into the model and return our names of those it lacks, which keep their fresh initialisation.

    Raises `ValueError` before anything is copied when a weight is missing that every BERT has, or has another shape.
    """
    state = model.state_dict()
    short = {plain_name(name): name for name in state}
    tied = {plain_name(name) for name in (getattr(model, "_tied_weights_keys", None) or {})}
    is_tied = model.config.tie_word_embeddings
    found = {name: weights[name] for name in short if name in weights and not (is_tied and name in tied)}
    wrong = [
        f"{name} is {list(tensor.shape)}, not {list(state[short[name]].shape)}"
        for name, tensor in found.items()
        if tensor.shape != state[short[name]].shape
    ]
    # A classifier of another number of classes belongs to another task: a fresh one takes its place.
    replaced = {entry.split(" ")[0] for entry in wrong if entry.startswith("classifier.")}
    wrong = [entry for entry in wrong if entry.split(" ")[0] not in replaced]
    missing = [name for name in short if name not in found and not (is_tied and name in tied)]
    needed = [name for name in missing if not OPTIONAL.match(name)]
    if wrong or needed:
        problems = wrong[:3] + [f"it lacks {', '.join(needed[:3])}" for _ in needed[:1]]
        raise ValueError(f"The weights in {folder} do not fit their config.json: {'; '.join(problems)}.")
    with torch.no_grad():
        for name, tensor in found.items():
            if name not in replaced:
                state[short[name]].copy_(tensor)
    return tuple(sorted(short[name] for name in {*missing, *replaced}))


# ---------------------------------------------------------------------------------------------------------------- writing


def weights_to_reference(model: PreTrainedModel) -> Weights:
    """Their names and tensors; the encoder's carry the prefix `bert.` when the model has a head, as theirs do."""
    names = all_names(model.config.num_hidden_layers)
    has_head = hasattr(model, "bert")
    weights: Weights = {}
    for name, tensor in model.state_dict().items():
        module, kind = plain_name(name).rsplit(".", 1)
        prefix = "bert." if has_head and name.startswith("bert.") else ""
        if module == "predictions.decoder":
            weights |= _decoder_to_reference(kind, tensor, model.config.tie_word_embeddings)
        else:
            weights[f"{prefix}{names[module]}.{kind}"] = tensor.clone()
    return weights


def _decoder_to_reference(kind: str, tensor: torch.Tensor, tied: bool) -> Weights:
    if kind == "bias":
        return {"cls.predictions.bias": tensor.clone()}
    return {} if tied else {"cls.predictions.decoder.weight": tensor.clone()}


def config_to_reference(config: PaperBertConfig, class_name: str) -> dict[str, Any]:
    """Their config.json."""
    options = {name: getattr(config, name) for name in SHARED_OPTIONS}
    return {
        "architectures": [class_name.removeprefix("Paper")],
        "model_type": "bert",
        **options,
        "hidden_act": THEIR_ACTIVATION[config.hidden_act],
        "is_decoder": config.causal_attention,
        "dtype": str(config.dtype).removeprefix("torch.") if config.dtype is not None else "float32",
    }

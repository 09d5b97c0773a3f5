"""Rulers: feature networks that generated and real images are compared through. Every number names the one it was read from.

    ruler = open_ruler("spaces/lenet/checkpoint")            # an image classifier: a folder, a run, or a Hub id
    reading = ruler.read(images)                             # (n, c, h, w) in [0, 1], or pictures
    generative_metrics(ruler, ruler.read(samples), reading)  # {"fid_lenet": …, "kid_lenet": …, "is_lenet": …}

Numbers of two rulers have nothing to do with each other, and neither have those of two trainings of one network: the
fingerprint of its weights says which one it was.
"""

from __future__ import annotations

import abc
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from hf_papers.errors import UserError
from hf_papers.hub.checkpoints import load_strict, locate, quiet_transformers, read_config
from hf_papers.registry import papers


INCEPTION = "inception"  # the one name that is not a checkpoint
CHUNK = 250  # pictures at a time: their maps in the network are what takes memory


@dataclass(frozen=True)
class Reading:
    """What a ruler reads from n images: features (n, d), and its logits (n, classes), both float64 on the CPU."""

    features: torch.Tensor
    logits: torch.Tensor

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: slice) -> Reading:
        return Reading(self.features[rows], self.logits[rows])


class Ruler(abc.ABC):
    """A network with a name (part of every number read from it), a source, a layer and a fingerprint."""

    model: nn.Module
    name: str
    source: str
    layer: str
    fingerprint: str

    def describe(self) -> dict[str, Any]:
        """What results.json says of it."""
        return {"name": self.name, "source": self.source, "layer": self.layer, "fingerprint": self.fingerprint}

    def to(self, device: torch.device | str) -> Ruler:
        """Itself, with the network on `device`."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def read(self, images: torch.Tensor | Iterable[Image.Image]) -> Reading:
        """Features and logits of (n, c, h, w) images in [0, 1], rounded to 8 bits as real ones are, or of pictures."""
        parts = [self.read_chunk(pictures) for pictures in _chunks(images)]
        if not parts:
            raise UserError("There are no images to read.")
        features, logits = (torch.cat(part).double().cpu() for part in zip(*parts, strict=True))
        if not torch.isfinite(features).all():
            raise UserError(f"The ruler '{self.name}' ({self.source}) answers with numbers that are not finite.")
        return Reading(features, logits)

    @abc.abstractmethod
    def read_chunk(self, pictures: Sequence[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, d) features and (n, classes) logits of a few pictures."""


class ClassifierRuler(Ruler):
    """An image classifier and the processor that was saved with it, read at one hidden layer.

    Args:
        model: gives `logits`.
        processor: turns pictures into `pixel_values`; it decides size, colours and scale.
        source: where both come from.
        layer: a number counts in the model's `hidden_states`, -1 is the last and usual one; any other text is the name of a
            module, whose output is taken. Maps (n, c, h, w) are averaged over their positions.
        name: how its numbers are called; by default what the model calls its type, without "paper-".
    """

    def __init__(
        self, model: nn.Module, processor: Any, source: str, layer: str = "-1", name: str | None = None
    ) -> None:
        self.model, self.processor, self.source, self.layer = model.eval(), processor, source, str(layer)
        self.name = name or re.sub(r"\W+", "_", model.config.model_type.removeprefix("paper-"))
        self.fingerprint = fingerprint(model)
        if not _is_number(self.layer) and self.layer not in dict(model.named_modules()):
            children = ", ".join(name for name, _ in model.named_children())
            raise UserError(f"The ruler {source} has no layer '{self.layer}'; it begins with: {children}.")

    def read_chunk(self, pictures: Sequence[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        device = next(self.model.parameters()).device
        # Processors of transformers leave a grey picture grey though their model reads colours.
        mode = {1: "L", 3: "RGB"}.get(getattr(self.model.config, "num_channels", None))
        shown = [picture if mode in (None, picture.mode) else picture.convert(mode) for picture in pictures]
        pixel_values = self.processor(shown, return_tensors="pt")["pixel_values"].to(device)
        if not _is_number(self.layer):
            return self._read_module(pixel_values)
        outputs = self.model(pixel_values, output_hidden_states=True)
        states = outputs.hidden_states
        if not states or not -len(states) <= int(self.layer) < len(states):
            raise UserError(
                f"The ruler {self.source} gives {len(states or ())} hidden states, so there is no layer {self.layer}; "
                "the name of a module does as well."
            )
        return _as_rows(states[int(self.layer)]), outputs.logits

    def _read_module(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen: list[torch.Tensor] = []
        handle = self.model.get_submodule(self.layer).register_forward_hook(lambda *call: seen.append(call[2]))
        try:
            logits = self.model(pixel_values).logits
        finally:
            handle.remove()
        return _as_rows(seen[0] if isinstance(seen[0], torch.Tensor) else seen[0][0]), logits


class InceptionRuler(Ruler):
    """InceptionV3 with the weights of 1706.08500, as published FIDs are measured: 2,048 features and unbiased logits.

    Raises `UserError` when torch-fidelity is missing or its weights cannot be fetched.
    """

    name, layer = INCEPTION, "2048"
    source = "torch-fidelity, inception-v3-compat"

    def __init__(self, device: torch.device) -> None:
        instead = "Name an image classifier instead: a folder or a Hub id, and the numbers will carry its name."
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise UserError(
                f"InceptionV3 as ruler needs torch-fidelity: pip install torch-fidelity. {instead}"
            ) from error
        try:
            self.model = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
        except (OSError, RuntimeError) as error:  # no network is an OSError, a file that was cut off a RuntimeError
            raise UserError(f"The weights of InceptionV3 could not be fetched ({error}). {instead}") from error
        self.model.to(device).eval()
        self.fingerprint = fingerprint(self.model)

    def read_chunk(self, pictures: Sequence[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        arrays = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
        device = next(self.model.parameters()).device
        features, logits = self.model(torch.from_numpy(arrays).movedim(-1, 1).contiguous().to(device))
        return features, logits


def open_ruler(source: str, layer: str | None = None, device: torch.device | str = "cpu") -> Ruler:
    """The ruler of that name: "inception", or an image classifier in a folder or on the Hub, read at `layer`.

    A classifier of ours is loaded strictly; any other by transformers' `AutoModelForImageClassification`. Raises `UserError`
    when there is none, or when it has no image processor beside it: somebody would have to guess what it was shown.
    """
    if source == INCEPTION:
        if layer not in (None, InceptionRuler.layer):
            raise UserError(f"InceptionV3 is read at its layer {InceptionRuler.layer}, as published numbers are.")
        return InceptionRuler(torch.device(device))
    folder = locate(source)
    model, processor = _load_classifier(folder)
    return ClassifierRuler(model.to(device), processor, source, "-1" if layer is None else layer)


def _load_classifier(folder: Path) -> tuple[nn.Module, Any]:
    """The model, in float32 and eval mode, and its image processor."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model_type = read_config(folder).get("model_type")
    paper = next((paper for paper in papers().values() if paper.config_class.model_type == model_type), None)
    if paper is not None:
        model_class = paper.model_classes.get("AutoModelForImageClassification")
        if model_class is None or paper.image_processor_class is None:
            raise UserError(
                f"{folder} holds a model of '{paper.key}', which classifies no images: it cannot be a ruler."
            )
        load_processor = paper.image_processor_class.from_pretrained
        model = load_strict(model_class, folder)
    else:
        load_processor = AutoImageProcessor.from_pretrained
        try:
            with quiet_transformers():
                model = AutoModelForImageClassification.from_pretrained(folder, use_safetensors=True)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{folder} holds no image classifier that could be a ruler: {reason}") from error
    if not (folder / "preprocessor_config.json").is_file():
        raise UserError(
            f"The ruler in {folder} has no preprocessor_config.json, so nobody could show it images as it was trained on. "
            "Save its image processor there."
        )
    return model.float().eval(), load_processor(folder)


def fingerprint(model: nn.Module) -> str:
    """16 hexadecimal digits that stand for the weights: the start of the SHA-256 of their names, types and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def to_pictures(images: torch.Tensor) -> list[Image.Image]:
    """(n, c, h, w) in [0, 1] with 1 or 3 channels as 8-bit pictures."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"A ruler reads images (n, 1 or 3, height, width), not {tuple(images.shape)}.")
    arrays = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().movedim(1, -1).numpy()
    return [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]


def _chunks(images: torch.Tensor | Iterable[Image.Image]) -> Iterator[list[Image.Image]]:
    if isinstance(images, torch.Tensor):
        for part in images.split(CHUNK):
            yield to_pictures(part)
        return
    pictures: list[Image.Image] = []
    for picture in images:
        pictures.append(picture)
        if len(pictures) == CHUNK:
            yield pictures
            pictures = []
    if pictures:
        yield pictures


def _as_rows(features: torch.Tensor) -> torch.Tensor:
    """(n, d) of what a layer gives: maps (n, c, h, w) are averaged over positions, tokens (n, length, d) over the length."""
    if features.ndim == 4:
        return features.mean((2, 3))
    return features.mean(1) if features.ndim == 3 else features.flatten(1)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+", text) is not None

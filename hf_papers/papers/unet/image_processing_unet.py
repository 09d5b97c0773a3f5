"""Pictures of any kind and size to the numbers U-Net sees, and its answer back to masks of the pictures' size."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging

from .configuration_geometry_unet import Geometry, mirrored


logger = logging.get_logger(__name__)

SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
GREY_WEIGHTS = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601, as Pillow has it


class PaperUnetImageProcessorKwargs(ImagesKwargs, total=False):
    """num_channels: 1 turns every picture grey, 3 into red, green and blue. depth, padding: the network's. threshold: of two
    classes, the probability from which a pixel is of the second."""

    num_channels: int
    depth: int
    padding: Literal["valid", "same"]
    threshold: float


class PaperUnetImageProcessor(PilBackend):
    """Pictures keep their size. Values from 0 to 255 become (value / 255 - image_mean) / image_std, about unit variance; the
    picture is mirrored at its edges until it has a size that fits the network, and an output that covers it (`do_pad`).

    Pictures or arrays -> pixel_values (batch, channels, h, w). Pictures of several sizes share the size that covers all of
    them. Arrays are (h, w), channels first or channels last: bytes, 16-bit numbers, true/false, or floats in [0, 1].
    16-bit pictures are read from 0 to 65,535; transparent ones are laid over black; where colours do not fit the network
    they are converted, with a note.
    """

    valid_kwargs = PaperUnetImageProcessorKwargs

    num_channels = 1
    depth = 4
    padding = "valid"
    threshold = 0.5
    do_resize = False
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = 0.5
    image_std = 0.25
    do_pad = True
    do_convert_rgb = False

    def _validate_preprocess_kwargs(
        self,
        num_channels: int | None = None,
        depth: int | None = None,
        padding: str | None = None,
        threshold: float | None = None,
        **kwargs: Any,
    ) -> None:
        if num_channels not in (1, 3):
            raise ValueError(f"num_channels is 1 (grey) or 3 (colour), not {num_channels}.")
        if padding not in ("valid", "same") or not isinstance(depth, int) or depth < 1:
            raise ValueError(f"padding is 'valid' or 'same' and depth at least 1, not {padding!r} and {depth}.")
        if threshold is None or not 0 < threshold < 1:
            raise ValueError(f"threshold must lie between 0 and 1, not {threshold}.")
        super()._validate_preprocess_kwargs(**kwargs)

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> Any:
        # transformers knows arrays of three dimensions only; a grey image commonly comes with two.
        if getattr(images, "ndim", None) == 2:
            images = images[None]
        elif isinstance(images, (list, tuple)):
            images = [image[None] if getattr(image, "ndim", None) == 2 else image for image in images]
        return super()._prepare_images_structure(images, expected_ndims)

    def process_image(
        self, image: Any, do_convert_rgb: bool | None = None, input_data_format: Any = None, **kwargs: Any
    ) -> np.ndarray:
        """One picture as (channels, height, width): bytes, or floats from 0 to 255 where it has more than 8 bits."""
        if isinstance(image, Image.Image):
            array = _from_picture(image)
        else:
            image = super().process_image(image, do_convert_rgb=False, input_data_format=input_data_format)
            array = _from_array(np.asarray(image))
        return _with_channels(array, kwargs.get("num_channels") or self.num_channels)

    def _preprocess(
        self,
        images: list[np.ndarray],
        *,
        do_pad: bool | None,
        return_tensors: Any,
        depth: int,
        padding: str,
        **kwargs: Any,
    ) -> BatchFeature:
        kwargs = {name: value for name, value in kwargs.items() if name not in ("num_channels", "threshold")}
        features = super()._preprocess(images, do_pad=False, return_tensors=None, **kwargs)
        values = features["pixel_values"]
        if do_pad:
            geometry = Geometry(depth, padding == "valid")
            height, width = (max(image.shape[axis] for image in values) for axis in (1, 2))
            values = [mirror_around(image, height, width, geometry) for image in values]
        return BatchFeature(data={"pixel_values": values}, tensor_type=return_tensors)

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: list[tuple[int, int]] | None = None
    ) -> list[torch.Tensor]:
        """The class of every pixel, one (height, width) tensor for each picture: the most likely one, and of two classes the
        second where its probability reaches `threshold`, which the training chose on validation images.

        Args:
            outputs: of `PaperUnetForSemanticSegmentation`; logits (B, K, h, w).
            target_sizes: (height, width) of each picture; without them, of the whole output, the mirrored rim included.
        """
        if outputs.logits.shape[1] == 2:
            classes = (outputs.logits.float().softmax(1)[:, 1] >= self.threshold).long()  # (B, h, w)
        else:
            classes = outputs.logits.argmax(dim=1)  # (B, h, w)
        if target_sizes is None:
            return list(classes)
        if len(target_sizes) != len(classes):
            raise ValueError(f"There are {len(classes)} pictures and {len(target_sizes)} target sizes.")
        for height, width in target_sizes:
            if height > classes.shape[1] or width > classes.shape[2]:
                raise ValueError(
                    f"The output of {classes.shape[1]}x{classes.shape[2]} pixels does not cover a picture of "
                    f"{height}x{width}: prepare pictures with do_pad, and by the processor saved beside the model."
                )
        # Mirroring put the picture into the output's upper left corner.
        return [found[:height, :width] for found, (height, width) in zip(classes, target_sizes, strict=True)]


def mirror_around(image: np.ndarray, height: int, width: int, geometry: Geometry) -> np.ndarray:
    """(channels, h, w) mirrored at its edges so that the network's output covers at least `height` x `width` pixels."""
    for axis, size in ((1, height), (2, width)):
        start, stop = -geometry.border, geometry.input_covering(size) - geometry.border
        image = image.take(mirrored(start, stop, image.shape[axis]), axis=axis)
    return image


def _from_picture(image: Image.Image) -> np.ndarray:
    """A picture of any mode as (1 or 3, height, width), bytes or floats from 0 to 255."""
    try:
        image.load()
    except OSError as error:
        raise ValueError(f"A picture cannot be read to its end ({error}): get the file again.") from error
    if image.mode in SIXTEEN_BITS or image.mode in ("I", "F"):
        return _from_array(np.asarray(image)[None])
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        logger.warning_once("Some pictures are transparent in places: they are laid over black.")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image.convert("RGBA"))
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def _from_array(array: np.ndarray) -> np.ndarray:
    """(channels, height, width) of bytes, 16-bit numbers, floats in [0, 1] or booleans as (1 or 3, ...), as above."""
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(f"An image is (h, w), (channels, h, w) or (h, w, channels), not {array.shape}.")
    if array.shape[0] not in (1, 3, 4):
        raise ValueError(f"An image has 1, 3 or 4 channels, not {array.shape[0]}.")
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError("Floating-point images must lie in [0, 1]; give values from 0 to 255 as uint8.")
        array = (array * 255).astype(np.float32)
    elif array.dtype.kind == "b":
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 65_535:
        raise ValueError(
            f"Images hold whole numbers up to 65,535 or floats in [0, 1], not these {array.dtype} values."
        )
    elif array.dtype == np.uint8 or (array.dtype != np.uint16 and array.max() <= 255):
        array = array.astype(np.uint8)
    else:
        logger.warning_once(
            "Some pictures have 16 bits: black is 0 and white 65,535. Stretch those that use a part of it."
        )
        array = array.astype(np.float32) / 257
    if array.shape[0] == 4:
        logger.warning_once("Some pictures are transparent in places: they are laid over black.")
        array = (array[:3] * (array[3:].astype(np.float32) / 255)).astype(array.dtype)
    return array


def _with_channels(array: np.ndarray, channels: int) -> np.ndarray:
    """(1 or 3, height, width) as (channels, height, width)."""
    if len(array) == channels:
        return array
    if channels == 3:
        logger.warning_once("Some pictures are grey and the network takes colours: all three colours are made equal.")
        return np.repeat(array, 3, axis=0)
    if (array == array[:1]).all():  # grey already, written thrice
        return array[:1]
    logger.warning_once("Some pictures have colours and the network takes grey ones: they are turned grey.")
    grey = np.tensordot(GREY_WEIGHTS, array, axes=1)[None]
    return grey.round().astype(np.uint8) if array.dtype == np.uint8 else grey


__all__ = ["PaperUnetImageProcessor"]

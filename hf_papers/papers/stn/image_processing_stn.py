"""Pictures to the pixels in [0, 1], black ground at 0, that a spatial transformer looks at."""

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ImagesKwargs


class PaperStnImageProcessorKwargs(ImagesKwargs, total=False):
    """num_channels: 1 turns every picture grey, 3 turns it into red, green and blue, 2 takes pairs of grey images."""

    num_channels: int


class PaperStnImageProcessor(PilBackend):
    """Grey (or coloured), resized to `size`, divided by 255. Pictures or arrays -> pixel_values (batch, channels, h, w).

    No mean is subtracted, on purpose: what a transformer reads outside the image is 0, and 0 has to be the images' own
    ground. After a normalisation it would be a grey that no image has (pytorch/tutorials#1117).
    Arrays are (h, w), channels first or channels last; pairs of grey images are arrays (2, h, w). Integers are in 0..255,
    true/false is white/black, and floating-point values have to be in [0, 1].
    """

    valid_kwargs = PaperStnImageProcessorKwargs

    size = {"height": 60, "width": 60}
    num_channels = 1
    resample = PILImageResampling.BILINEAR
    do_resize = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = False
    do_convert_rgb = False

    def _validate_preprocess_kwargs(
        self, num_channels: int | None = None, do_normalize: bool | None = None, **kwargs
    ) -> None:
        if num_channels not in (1, 2, 3):
            raise ValueError(f"num_channels is 1 (grey), 2 (pairs) or 3 (colour), not {num_channels}.")
        if do_normalize:
            raise ValueError(
                "do_normalize has to stay off: the ground of the images must be 0, as it is outside of them."
            )
        super()._validate_preprocess_kwargs(do_normalize=do_normalize, **kwargs)

    def _prepare_images_structure(self, images, expected_ndims: int = 3):
        # transformers knows arrays of three dimensions only; a grey image commonly comes with two.
        if getattr(images, "ndim", None) == 2:
            images = images[None]
        elif isinstance(images, (list, tuple)):
            images = [image[None] if getattr(image, "ndim", None) == 2 else image for image in images]
        return super()._prepare_images_structure(images, expected_ndims)

    def process_image(self, image, do_convert_rgb=None, input_data_format=None, **kwargs) -> np.ndarray:
        """One picture as a uint8 array (channels, height, width)."""
        channels = kwargs.get("num_channels") or self.num_channels
        if channels == 2:
            return _pair(image)
        if not isinstance(image, Image.Image):
            image = super().process_image(image, do_convert_rgb=False, input_data_format=input_data_format)
            image = _array_to_picture(np.asarray(image))
        mode = "L" if channels == 1 else "RGB"
        if image.mode != mode:
            image = _convert(image, mode)
        array = np.asarray(image)
        return array[None] if mode == "L" else np.moveaxis(array, -1, 0)

    def resize(self, image: np.ndarray, size, resample=None, **kwargs) -> np.ndarray:
        """(channels, h, w) to (channels, size.height, size.width); a picture of the right size is left alone."""
        if image.shape[1:] == (size.height, size.width):
            return image
        if len(image) == 2:  # Pillow has no pictures of two channels
            return np.concatenate([super(PaperStnImageProcessor, self).resize(c[None], size, resample) for c in image])
        return super().resize(image, size, resample, **kwargs)


def _pair(image) -> np.ndarray:
    """Two grey images in one array (2, h, w), as bytes."""
    if isinstance(image, Image.Image) or np.asarray(image).ndim != 3 or len(image) != 2:
        raise ValueError("A pair of grey images is one array of shape (2, height, width), one channel for each.")
    return np.stack([np.asarray(_array_to_picture(np.asarray(channel)[None])) for channel in image])


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """A picture of any common mode as grey ("L") or colour ("RGB")."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("RGBA", "LA", "PA"):
        # Transparency is laid over black, the ground of MNIST; over white it would drown a drawn digit.
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image.convert("RGBA"))
    if image.mode not in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"):
        # Pillow would cut 16-bit and floating-point pixels off at 255 without a word.
        raise ValueError(f"A picture of mode '{image.mode}' has more than 8 bits per colour: convert it to 'L' first.")
    return image.convert(mode)


def _array_to_picture(array: np.ndarray) -> Image.Image:
    """(channels, h, w) of integers in 0..255, floats in [0, 1] or booleans, to a picture."""
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(f"An image is (h, w), (channels, h, w) or (h, w, channels), not {array.shape}.")
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError("Floating-point images must lie in [0, 1]; give values from 0 to 255 as uint8.")
        array = np.round(array * 255)
    elif array.dtype.kind == "b":
        array = array * 255
    elif array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        raise ValueError(f"Image arrays hold integers in 0..255 or floats in [0, 1], not these {array.dtype} values.")
    array = array.astype(np.uint8)
    if array.shape[0] == 1:
        return Image.fromarray(array[0])
    if array.shape[0] in (3, 4):
        return Image.fromarray(np.ascontiguousarray(np.moveaxis(array, 0, -1)))
    raise ValueError(f"An image has 1, 3 or 4 channels, not {array.shape[0]}.")


__all__ = ["PaperStnImageProcessor"]

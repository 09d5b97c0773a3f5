"""Pictures to the pixels in [-1, 1] that the discriminator reads."""

import warnings

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ImagesKwargs


class PaperDcganImageProcessorKwargs(ImagesKwargs, total=False):
    """num_channels: 1 turns every picture grey, 3 turns it into red, green and blue. margin: pixels of black ground that
    are put around the resized picture on each side."""

    num_channels: int
    margin: int


class PaperDcganImageProcessor(PilBackend):
    """Grey or coloured, resized to `size`, framed by `margin`, scaled to [-1, 1]. Pictures or arrays -> pixel_values
    (batch, channels, size + 2 margin, size + 2 margin).

    No other preprocessing, as in section 4: [-1, 1] is the range of tanh, which G ends in, and D has to see real and
    generated pixels on the same scale. A margin brings small pictures to a size that G can make without blurring them:
    the 28 pixels of MNIST with a margin of 2 are 32.

    Arrays are (h, w), channels first or channels last. Integers are in 0..255 and true/false is white/black. Floating-point
    values have to be in [0, 1].
    """

    valid_kwargs = PaperDcganImageProcessorKwargs

    size = {"height": 64, "width": 64}
    margin = 0
    num_channels = 3
    resample = PILImageResampling.BILINEAR
    do_resize = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = 0.5  # one number for all channels
    image_std = 0.5
    do_convert_rgb = False

    def _validate_preprocess_kwargs(
        self, num_channels: int | None = None, margin: int | None = None, **kwargs
    ) -> None:
        if num_channels not in (1, 3):
            raise ValueError(f"num_channels is 1 (grey) or 3 (colour), not {num_channels}.")
        if not isinstance(margin, int) or margin < 0:
            raise ValueError(f"margin must be a whole number of pixels, at least 0, not {margin}.")
        super()._validate_preprocess_kwargs(**kwargs)

    def _prepare_images_structure(self, images, expected_ndims: int = 3):
        # transformers knows arrays of three dimensions only; a grey image commonly comes with two.
        if getattr(images, "ndim", None) == 2:
            images = images[None]
        elif isinstance(images, (list, tuple)):
            images = [image[None] if getattr(image, "ndim", None) == 2 else image for image in images]
        return super()._prepare_images_structure(images, expected_ndims)

    def process_image(self, image, do_convert_rgb=None, input_data_format=None, **kwargs) -> np.ndarray:
        """One picture as a uint8 array (channels, height, width)."""
        if not isinstance(image, Image.Image):
            image = super().process_image(image, do_convert_rgb=False, input_data_format=input_data_format)
            image = _array_to_picture(np.asarray(image))
        mode = "L" if (kwargs.get("num_channels") or self.num_channels) == 1 else "RGB"
        if image.mode != mode:
            image = _convert(image, mode)
        try:
            array = np.asarray(image)
        except OSError as error:
            raise ValueError(
                f"This picture cannot be read to its end ({error}): the file is cut or damaged."
            ) from error
        return array[None] if mode == "L" else np.moveaxis(array, -1, 0)

    def _preprocess(self, images: list[np.ndarray], margin: int, **kwargs):
        """The margin is laid around the resized pictures while they are still 0 to 255: black, not grey."""
        if kwargs["do_resize"]:
            images = [self.resize(image, kwargs["size"], kwargs["resample"]) for image in images]
        framed = [np.pad(image, ((0, 0), (margin, margin), (margin, margin))) for image in images]
        return super()._preprocess(framed, **{**kwargs, "do_resize": False})

    def resize(self, image: np.ndarray, size, resample=None, **kwargs) -> np.ndarray:
        """(channels, h, w) to (channels, size.height, size.width); a picture of the right size is left alone."""
        if image.shape[1:] == (size.height, size.width):
            return image
        return super().resize(image, size, resample, **kwargs)


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """A picture of any common mode as grey ("L") or colour ("RGB"), with a note where that changes what it is."""
    was_grey = image.mode in ("1", "L", "LA")
    if was_grey and mode == "RGB":
        warnings.warn("Grey pictures are turned into colour ones: the network has 3 channels.", stacklevel=2)
    elif not was_grey and mode == "L":
        warnings.warn("Coloured pictures are turned grey: the network has 1 channel.", stacklevel=2)
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"):
        # Pillow would cut 16-bit and floating-point pixels off at 255 without a word.
        raise ValueError(f"A picture of mode '{image.mode}' has more than 8 bits per colour: convert it to 'L' first.")
    try:
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        if image.mode in ("RGBA", "LA", "PA"):
            # Transparency is laid over black, the ground of MNIST; over white it would drown a drawn digit.
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image.convert("RGBA"))
        return image.convert(mode)
    except OSError as error:
        raise ValueError(f"This picture cannot be read to its end ({error}): the file is cut or damaged.") from error


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


__all__ = ["PaperDcganImageProcessor"]

"""Pictures to the grey pixels in [0, 1] that the discriminator sees."""

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling


class PaperGanImageProcessor(PilBackend):
    """Grey, resized to `size`, divided by 255. Pictures or uint8 arrays -> pixel_values (batch, 1, height, width).

    Arrays are (height, width), (1, height, width), (3, height, width) or channels last. Floating-point arrays are taken
    as they are and have to be in [0, 1] already: dividing those by 255 again is the classic way to train on black images.
    """

    size = {"height": 28, "width": 28}
    resample = PILImageResampling.BILINEAR
    do_resize = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = False
    do_convert_rgb = False

    def process_image(self, image, do_convert_rgb=None, input_data_format=None, **kwargs) -> np.ndarray:
        """One picture as a grey uint8 array (1, height, width)."""
        if not isinstance(image, Image.Image):
            image = super().process_image(image, do_convert_rgb=False, input_data_format=input_data_format)
            image = _array_to_picture(np.asarray(image))
        if image.mode in ("RGBA", "LA", "PA"):  # transparency over white would turn a digit's background into ink
            backdrop = Image.new("RGBA", image.size, (0, 0, 0, 255))
            image = Image.alpha_composite(backdrop, image.convert("RGBA"))
        if image.mode not in ("L", "1", "P", "RGB", "RGBA"):
            raise ValueError(f"A picture of mode '{image.mode}' has more than 8 bits per colour; convert it to 'L' first.")
        return np.asarray(image.convert("L"))[None]


def _array_to_picture(array: np.ndarray) -> Image.Image:
    """(channels, height, width), uint8 in 0..255 or float in [0, 1], to a picture."""
    if array.dtype.kind == "f":
        if array.size and not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError("Floating-point images must lie in [0, 1]; give values from 0 to 255 as uint8.")
        array = np.round(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        if array.size and not (array.min() >= 0 and array.max() <= 255):
            raise ValueError("Integer images must lie in 0..255.")
        array = array.astype(np.uint8)
    if array.shape[0] == 1:
        return Image.fromarray(array[0])
    if array.shape[0] in (3, 4):
        return Image.fromarray(np.ascontiguousarray(np.moveaxis(array, 0, -1)))
    raise ValueError(f"An image has 1, 3 or 4 channels, not {array.shape[0]}.")


__all__ = ["PaperGanImageProcessor"]

"""Masks as people store them: recognised, or refused with the values that were found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hf_papers.metrics.segmentation import cells_of
from hf_papers.papers.unet.weight_map_unet import cells_apart


MANY = 12  # values that a message lists before it only counts them


@dataclass(frozen=True)
class MaskReader:
    """Turns the mask of one image into classes and cells.

    `kind` "classes": a pixel's value is its class, 0 to `num_labels` - 1; with two classes also 0 and 255. `values` lists
    other values in the order of their classes, such as (0, 128, 255). `kind` "instances": 0 is background, every other value
    a cell; cells that touch get a line of background between them.
    """

    kind: Literal["classes", "instances"]
    num_labels: int
    values: tuple[int, ...] | None = None

    def __call__(self, mask: Any, size: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """mask: a picture or an array; size: (height, width) of its image, where that is at hand -> classes (H, W) uint8,
        cells (H, W) int32.

        Raises `ValueError`, in a sentence, for anything that is not a mask of that image.
        """
        array = as_array(mask)
        if size is not None and array.shape != size:
            raise ValueError(
                f"A mask has {array.shape[0]}x{array.shape[1]} pixels and its image {size[0]}x{size[1]} (height x width): "
                "they should be of one size."
            )
        if self.kind == "instances":
            cells = cells_apart(array.astype(np.int32))
            return (cells > 0).astype(np.uint8), cells
        classes = self._classes(array)
        return classes, cells_of(classes).astype(np.int32)

    def _classes(self, array: np.ndarray) -> np.ndarray:
        found = np.unique(array).tolist()
        if self.values is not None:
            if unknown := [value for value in found if value not in self.values]:
                raise ValueError(
                    f"A mask holds the value {unknown[0]}, which is not among --mask_values "
                    f"{describe(list(self.values))}; it holds {describe(found)}."
                )
            # Binary search in the sorted values, then back to the order they were given in.
            order = np.argsort(self.values)
            return order[np.searchsorted(np.array(self.values)[order], array)].astype(np.uint8)
        if set(found) <= set(range(self.num_labels)):
            return array.astype(np.uint8)
        if self.num_labels == 2 and set(found) <= {0, 255}:
            return (array > 0).astype(np.uint8)
        expected = "0 and 1, or 0 and 255" if self.num_labels == 2 else f"the classes 0 to {self.num_labels - 1}"
        raise ValueError(f"A mask holds {describe(found)} instead of {expected}. {self._advice(found)}")

    def _advice(self, found: list[int]) -> str:
        if len(found) > MANY:
            return (
                "If every value is a cell of its own, add --mask_kind instances; if it was saved as JPEG or resized "
                "smoothly, make it again without."
            )
        if len(found) == self.num_labels:
            return f"If these are the classes in order, add --mask_values {','.join(map(str, found))}."
        return (
            "Name the values in the order of --class_names by --mask_values, or add --mask_kind instances for cells."
        )


def as_array(mask: Any) -> np.ndarray:
    """A mask as whole numbers (height, width). Palettes keep their indices; colours are taken where all three are equal."""
    if mask is None:
        raise ValueError("A row has no mask: choose another split, or filter such rows.")
    if hasattr(mask, "getbands"):  # a PIL picture
        try:
            mask.load()
        except OSError as error:
            raise ValueError(f"A mask cannot be read to its end ({error}): get the file again.") from error
        if mask.mode in ("LA", "La"):
            mask = mask.convert("L")
    array = np.asarray(mask)
    if array.ndim == 3 and array.shape[-1] in (3, 4):
        if not (array[..., :3] == array[..., :1]).all():
            raise ValueError("A mask has colours: turn it into one number per pixel, the class or the cell.")
        array = array[..., 0]
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 2:
        raise ValueError(f"A mask is (height, width), not {array.shape}.")
    if array.dtype.kind == "f" and (array == np.rint(array)).all():
        array = array.astype(np.int64)
    if array.dtype.kind not in "iub":
        raise ValueError(f"A mask holds whole numbers, not {array.dtype} values such as {array.flat[0]}.")
    return array.astype(np.int64)


def describe(values: list[int]) -> str:
    """Values in words: all of them, or the first few and how many there are."""
    if len(values) <= MANY:
        return ", ".join(map(str, values)) if len(values) > 1 else f"only the value {values[0]}"
    return f"{len(values)} values ({', '.join(map(str, values[:5]))}, … {values[-1]})"


__all__ = ["MaskReader", "as_array"]

"""A folder of pictures with a mask for each, as microscopists keep them: images/cell01.tif and masks/cell01.png."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from hf_papers.data import DataArguments, Source
from hf_papers.data.rows import ColumnMap, IndexedRows, MemoryTable
from hf_papers.data.sources import SplitSlice
from hf_papers.errors import UserError


if TYPE_CHECKING:
    from datasets import Features

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
MASK_ENDINGS = ("", "_mask", "-mask", "_label", "_labels")  # behind the picture's own name


def is_pairs_folder(name: str | None) -> bool:
    """Whether `name` is a local folder with `images` and `masks` in it, or with splits that have them."""
    return bool(name) and bool(_split_folders(Path(str(name)).expanduser()))


class PictureFiles(Sequence[Image.Image]):
    """Pictures in files, opened when they are asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Image.Image:
        try:
            with Image.open(self.paths[number]) as picture:
                picture.load()
                return picture
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{self.paths[number]} cannot be read as a picture: {error}.") from error


class PairsFolder(Source):
    """Columns `image` and `mask` from a folder that has `images` and `masks` in it, where pairs share their names.

    FOLDER/images, FOLDER/masks is the split "train"; FOLDER/train/images, FOLDER/test/images and so on are several.
    """

    def __init__(self, arguments: DataArguments) -> None:
        super().__init__(arguments)
        for option in ("dataset_config", "revision"):
            if getattr(arguments, option) is not None:
                raise UserError(f"'{self.name}' is a local folder and has no --{option}: leave it out.")
        self._folders = _split_folders(Path(self.name).expanduser())

    def splits(self) -> list[str]:
        return list(self._folders)

    def _open(self, split: SplitSlice, mapping: ColumnMap) -> IndexedRows:
        pairs = find_pairs(self._folders[split.name])
        first, stop = split.rows(len(pairs), mapping.where)
        columns = {
            "image": PictureFiles([image for image, _ in pairs]),
            "mask": PictureFiles([mask for _, mask in pairs]),
        }
        mapping.names(list(columns))
        described = [f"{path}:{path.stat().st_size}" for pair in pairs for path in pair]
        fingerprint = hashlib.sha256("\n".join(described).encode()).hexdigest()[:16]
        return IndexedRows(
            MemoryTable(columns, range(first, len(pairs) if stop is None else stop)), mapping, fingerprint
        )

    def _indexed_features(self, rows: IndexedRows) -> Features:
        from datasets import Features
        from datasets import Image as ImageFeature

        return Features({"image": ImageFeature(), "mask": ImageFeature()})


def find_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """(image, mask) files of a folder with `images` and `masks`, in the order of their names. Raises `UserError` for one
    without the other, and for names that are not clear."""
    images, masks = (_by_name(folder / part) for part in ("images", "masks"))
    pairs, used = [], set()
    for name, image in images.items():
        fitting = [name + ending for ending in MASK_ENDINGS if name + ending in masks]
        if not fitting:
            raise UserError(f"There is no mask for {image}: {folder / 'masks'} should hold one called {name}.")
        pairs.append((image, masks[fitting[0]]))
        used.add(fitting[0])
    if not pairs:
        raise UserError(f"There are no pictures in {folder / 'images'} ({', '.join(sorted(SUFFIXES))}).")
    if left := sorted(set(masks) - used):
        others = f" ({len(left)} masks are without one)" if len(left) > 1 else ""
        raise UserError(f"There is no image for {masks[left[0]]}{others}: {folder / 'images'} should hold it.")
    return pairs


def _by_name(folder: Path) -> dict[str, Path]:
    """Name without suffix -> picture file."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            if path.stem in found:
                raise UserError(f"{found[path.stem]} and {path} have the same name: which one is meant?")
            found[path.stem] = path
    return found


def _split_folders(root: Path) -> dict[str, Path]:
    """Split -> the folder that holds its `images` and `masks`."""

    def has_both(folder: Path) -> bool:
        return (folder / "images").is_dir() and (folder / "masks").is_dir()

    if has_both(root):
        return {"train": root}
    parts = sorted(root.iterdir()) if root.is_dir() else []
    return {part.name: part for part in parts if has_both(part)}


__all__ = ["PairsFolder", "find_pairs", "is_pairs_folder"]

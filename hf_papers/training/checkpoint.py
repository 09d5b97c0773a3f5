"""Checkpoints on disk: complete or absent, never half a one, and made of safetensors and JSON alone."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from hf_papers.errors import UserError


NAME = re.compile(r"checkpoint-(\d+)")
PARTIAL = ".partial"


class CheckpointStore:
    """The checkpoints of one run: `checkpoint-00001000/` and so on, of which the newest `keep` stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.is_dir() and NAME.fullmatch(path.name))

    def newest(self) -> Path | None:
        found = self.complete()
        return found[-1] if found else None

    def partial(self, step: int) -> Path:
        """Where the files of the checkpoint at `step` gather before it counts; every process may write there."""
        return self.folder / f"checkpoint-{step:08d}{PARTIAL}"

    def open(self, step: int) -> None:
        """Make an empty place for the checkpoint at `step`, clearing what a crash left behind."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(f"*{PARTIAL}"):
            shutil.rmtree(leftover)
        self.partial(step).mkdir()

    def commit(self, step: int) -> Path:
        """Flush what was written and give it its final name, in this order; then drop the oldest beyond `keep`."""
        final = self.folder / f"checkpoint-{step:08d}"
        publish_folder(self.partial(step), final)
        for old in self.complete()[: -self.keep]:
            # Renamed first: a checkpoint that is half deleted must not look complete.
            doomed = old.with_name(old.name + PARTIAL)
            os.replace(old, doomed)
            shutil.rmtree(doomed)
        return final


def publish_folder(written: Path, final: Path) -> None:
    """Rename a written folder to its final name once every byte of it is on the disk. Replaces an older one."""
    for path in written.rglob("*"):
        if path.is_file():
            _flush(path)
    _flush(written)
    if final.exists():
        old = final.with_name(final.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(final, old)
        os.replace(written, final)
        shutil.rmtree(old)
    else:
        os.replace(written, final)
    _flush(final.parent)


def write_folder(final: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder that appears under its name only when complete; on failure nothing is left."""
    written = final.with_name(final.name + PARTIAL)
    shutil.rmtree(written, ignore_errors=True)
    written.mkdir(parents=True)
    try:
        write(written)
        publish_folder(written, final)
    except BaseException:
        shutil.rmtree(written, ignore_errors=True)
        raise


def resolve_resume(resume: str, store: CheckpointStore) -> Path | None:
    """The checkpoint that `--resume` means; None when `auto` finds none, so that one command starts and restarts."""
    if resume == "auto":
        return store.newest()
    path = Path(resume)
    if not (path / "state").is_dir():
        hint = f" The newest here is {store.newest()}." if store.newest() else ""
        raise UserError(f"--resume {resume}: that is no complete checkpoint.{hint}")
    return path


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

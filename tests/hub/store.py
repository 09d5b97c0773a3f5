"""What the local Hub keeps: files with the checksums that git and LFS know them by, commits, branches, repositories."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


# The default .gitattributes of a new repository, as far as it matters here, and the size from which the Hub asks for LFS.
LFS_PATTERNS = ("*.safetensors", "*.bin", "*.parquet", "*.onnx", "*.npz", "*.npy", "*.zip", "*.gz", "*.pt", "*.pkl")
LFS_PATTERNS += ("*.arrow", "*.msgpack", "*.h5", "*.ckpt", "*.tar", "*.gif", "*.mp4", "*.png", "*.jpg", "tfevents*")
LFS_SIZE = 10 * 1024 * 1024

CHUNK = 1 << 20


@dataclass(frozen=True)
class Blob:
    """One file's content (`source` is a path or the bytes themselves) with the checksums that the Hub shows of it."""

    source: Path | bytes
    size: int
    oid: str  # git's sha-1 of the file, or of its LFS pointer
    sha256: str | None  # set when the file is kept in LFS

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yields the bytes from `start` up to but not including `stop`, in chunks."""
        if isinstance(self.source, bytes):
            yield from (self.source[at : min(at + CHUNK, stop)] for at in range(start, stop, CHUNK))
            return
        with open(self.source, "rb") as file:
            file.seek(start)
            for at in range(start, stop, CHUNK):
                yield file.read(min(CHUNK, stop - at))


def lfs_pointer(sha256: str, size: int) -> bytes:
    """What git itself stores for a file that is kept in LFS."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def git_oid(content_size: int, chunks: Iterator[bytes]) -> str:
    digest = hashlib.sha1(b"blob %d\0" % content_size)
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def wants_lfs(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub would keep this file in LFS: by its name, by its size, or because it is not text."""
    name = path.rsplit("/", 1)[-1]
    return size > LFS_SIZE or b"\0" in sample or any(fnmatch.fnmatch(name, pattern) for pattern in LFS_PATTERNS)


def make_blob(path: str, source: Path | bytes, lfs: bool | None = None) -> Blob:
    """Reads `source` once or twice for its checksums. `lfs=None` decides as the Hub would."""
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    raw = Blob(source, size, "", None)
    if lfs is None:
        lfs = size > 0 and wants_lfs(path, size, next(raw.read(0, min(size, 512)), b""))
    if not lfs:
        return Blob(source, size, git_oid(size, raw.read(0, size)), None)
    digest = hashlib.sha256()
    for chunk in raw.read(0, size):
        digest.update(chunk)
    pointer = lfs_pointer(digest.hexdigest(), size)
    return Blob(source, size, git_oid(len(pointer), iter([pointer])), digest.hexdigest())


@dataclass(frozen=True)
class Commit:
    sha: str
    title: str
    message: str
    date: str
    files: dict[str, Blob]
    parent: Commit | None = None

    def history(self) -> Iterator[Commit]:
        """This commit and its ancestors, newest first."""
        commit: Commit | None = self
        while commit is not None:
            yield commit
            commit = commit.parent


def make_commit(title: str, message: str, files: dict[str, Blob], parent: Commit | None) -> Commit:
    """A commit whose sha is a digest of its content and parent (the date is left out: equal content, equal sha)."""
    digest = hashlib.sha1((parent.sha if parent else "root").encode() + title.encode())
    for path in sorted(files):
        digest.update(f"{path}\0{files[path].etag}\n".encode())
    date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return Commit(digest.hexdigest(), title, message, date, dict(files), parent)


@dataclass
class Repo:
    kind: str
    id: str
    private: bool = False
    mounted: bool = False
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)  # what the creator sent (a Space's sdk, hardware …)

    def commit(self, revision: str) -> Commit | None:
        """The commit that a branch, a tag or a (shortened) sha names; None if there is none."""
        for refs, prefix in ((self.branches, "refs/heads/"), (self.tags, "refs/tags/")):
            if (found := refs.get(revision.removeprefix(prefix))) is not None:
                return found
        if not re.fullmatch(r"[0-9a-f]{5,40}", revision):
            return None
        heads = [*self.branches.values(), *self.tags.values()]
        return next((c for head in heads for c in head.history() if c.sha.startswith(revision)), None)

    @property
    def files(self) -> dict[str, bytes]:
        """Everything on `main`, read into memory: for tests to look at."""
        return {path: b"".join(blob.read(0, blob.size)) for path, blob in self.branches["main"].files.items()}

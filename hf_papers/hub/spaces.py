"""A paper's Space: run here, or put together and published so that it runs on Hugging Face by itself."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from huggingface_hub import RepoCard, SpaceCardData

from hf_papers.errors import UserError
from hf_papers.hub import COMPANIONS
from hf_papers.registry import Paper, find_paper, papers


PACKAGE = Path(__file__).resolve().parents[1]
SPACES = PACKAGE.parent / "spaces"

# What of a checkpoint's folder a Space needs; the rest of a run (optimisers, logs) stays at home.
CHECKPOINT_FILES = ("config.json", *COMPANIONS, "*.safetensors", "*.safetensors.index.json")
NEVER_SENT = ("__pycache__", "*.pyc", ".*", "*.bin", "*.pt", "*.pth", "*.pkl")


def space_folder(paper_key: str) -> Path:
    """`spaces/<paper>`, which lies beside the package in a checkout of the project."""
    find_paper(paper_key)
    folder = SPACES / paper_key
    if not (folder / "app.py").is_file():
        there = [key for key in papers() if (SPACES / key / "app.py").is_file()]
        raise UserError(
            f"There is no Space for '{paper_key}' in {SPACES}. "
            + (f"There is one for: {', '.join(there)}." if there else "Spaces come with a checkout of the project.")
        )
    return folder


def run_locally(paper_key: str, model: str | Path | None = None) -> int:
    """Runs the Space's app until it is stopped; returns its exit status.

    `model` is a folder or a Hub id that it shows instead of the checkpoint beside it (environment variable MODEL_ID).
    """
    folder = space_folder(paper_key)
    if importlib.util.find_spec("gradio") is None:
        raise UserError("Spaces need Gradio: pip install 'hf-papers[spaces]'.")
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    if model is not None:
        environment["MODEL_ID"] = str(Path(model).resolve()) if Path(model).is_dir() else str(model)
    process = subprocess.Popen([sys.executable, str(folder / "app.py")], env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        return 0


def deploy(paper_key: str, repo_id: str, model: str | Path | None = None, private: bool = False) -> str:
    """Publishes the paper's Space with a checkpoint and this package's source, in one commit; returns its address.

    `model` is a run, a folder or a Hub id whose checkpoint goes along instead of the one beside the app. The source comes
    too, so that the Space needs nothing of ours from PyPI and runs the code that was tested here.
    """
    from hf_papers.hub.publish import check_can_push, upload

    space_folder(paper_key)
    check_can_push(repo_id)
    with tempfile.TemporaryDirectory(prefix="hf-papers-space-") as temporary:
        staged = stage_space(paper_key, Path(temporary), model)
        return upload(staged, repo_id, "space", f"Deploy {paper_key}", private=private, space_sdk="gradio")


def stage_space(paper_key: str, folder: Path, model: str | Path | None = None) -> Path:
    """Everything that `deploy` publishes, in `folder`: app, metadata, requirements, checkpoint, source."""
    from hf_papers.hub.checkpoints import load_strict, locate

    paper, source = find_paper(paper_key), space_folder(paper_key)
    checkpoint = locate(model) if model is not None else source / "checkpoint"
    if not (checkpoint / "config.json").is_file():
        raise UserError(
            f"There is no checkpoint in {checkpoint} to show. Name one with --model (a run, a folder or user/name), or "
            f"train one: hf-papers train {paper_key}."
        )
    load_strict(paper, checkpoint)
    ignored = shutil.ignore_patterns(*NEVER_SENT)
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*NEVER_SENT, "checkpoint"))
    (folder / "checkpoint").mkdir()
    for path in sorted({path for pattern in CHECKPOINT_FILES for path in checkpoint.glob(pattern)}):
        shutil.copyfile(path, folder / "checkpoint" / path.name)
    shutil.copytree(PACKAGE, folder / "hf_papers", ignore=ignored)
    is_hub_id = model is not None and not Path(model).is_dir()
    (folder / "README.md").write_text(space_card(paper, source, str(model) if is_hub_id else None), encoding="utf-8")
    if not (folder / "requirements.txt").is_file():
        (folder / "requirements.txt").write_text(requirements(), encoding="utf-8")
    return folder


def space_card(paper: Paper, source: Path, model: str | None = None) -> str:
    """The Space's README: the one in its folder, with the metadata that Hugging Face needs filled in where it lacks them."""
    path = source / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    card = RepoCard(text) if text.startswith("---") else None
    written: dict[str, Any] = card.data.to_dict() if card is not None else {}
    body = (
        card.text if card is not None else text or f"\n# {paper.title}\n\n{paper.summary}\n\nThe paper: {paper.url}\n"
    )
    metadata = {
        "title": f"{paper.title}"[:60],
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py",
        "license": paper.license,
        "short_description": shorten(paper.summary, 60),
        "tags": [*paper.hub_tags, "hf_papers"],
        **written,
    }
    if model is not None:
        metadata["models"] = list(dict.fromkeys([*metadata.get("models", []), model]))
    return f"---\n{SpaceCardData(**metadata).to_yaml()}\n---\n{body}"


def shorten(text: str, limit: int) -> str:
    """The first words of `text` that fit."""
    if len(text) <= limit:
        return text
    return text[: limit - 1].rsplit(" ", 1)[0].rstrip(" ,;:") + "…"


def requirements() -> str:
    """What the package needs, at the versions that are installed here; torch from the index of CPU builds."""
    try:
        needed = requires("hf-papers") or []
    except PackageNotFoundError:
        raise UserError("hf-papers is not installed here, so its requirements are unknown: pip install -e .") from None
    names = [re.match(r"[\w.-]+", line).group() for line in needed if "extra ==" not in line]  # type: ignore[union-attr]
    pins = [f"{name}=={version(name).split('+')[0]}" for name in names]
    return "\n".join(["--extra-index-url https://download.pytorch.org/whl/cpu", *pins]) + "\n"

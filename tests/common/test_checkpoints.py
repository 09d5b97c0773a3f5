"""Every registered model, through every check of what it leaves on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoImageProcessor

import hf_papers
from hf_papers.registry import papers
from tests.common import checks
from tests.common.cases import ModelCase, registered_cases


hf_papers.register_all()
WITH_FOLDER = [f for n, f in vars(checks).items() if n.startswith("check_") and f.__code__.co_argcount == 2]
PROCESSORS = {key: paper.image_processor_class for key, paper in papers().items() if paper.image_processor_class}

every_model = pytest.mark.parametrize("case", registered_cases(), ids=repr)


def title(check: Any) -> str:
    return check.__name__.removeprefix("check_")


@every_model
@pytest.mark.parametrize("check", WITH_FOLDER, ids=title)
def test_model_on_disk(case: ModelCase, check: Any, tmp_path: Path) -> None:
    check(case, tmp_path)


@every_model
@pytest.mark.parametrize("damage", checks.DAMAGES)
def test_damaged_checkpoint(case: ModelCase, damage: str, tmp_path: Path) -> None:
    checks.check_damaged_checkpoint_is_refused(case, tmp_path / "checkpoint", damage)


@pytest.mark.parametrize("key", PROCESSORS)
def test_image_processor_round_trip(key: str, tmp_path: Path) -> None:
    processor = PROCESSORS[key]()
    processor.save_pretrained(tmp_path / "first")
    loaded = AutoImageProcessor.from_pretrained(tmp_path / "first")
    assert type(loaded) is PROCESSORS[key]
    loaded.save_pretrained(tmp_path / "second")
    name = "preprocessor_config.json"
    assert (tmp_path / "first" / name).read_text() == (tmp_path / "second" / name).read_text()

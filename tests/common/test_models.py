"""Every registered model, through every check."""

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
CASES = registered_cases()
IN_MEMORY = [f for n, f in vars(checks).items() if n.startswith("check_") and f.__code__.co_argcount == 1]
WITH_FOLDER = [f for n, f in vars(checks).items() if n.startswith("check_") and f.__code__.co_argcount == 2]
PROCESSORS = {key: paper.image_processor_class for key, paper in papers().items() if paper.image_processor_class}

every_model = pytest.mark.parametrize("case", CASES, ids=repr)


def title(check: Any) -> str:
    return check.__name__.removeprefix("check_")


def test_every_paper_is_here() -> None:
    assert {case.paper.key for case in CASES} == set(papers()), "a paper without a preset called 'tiny' is not tested"


@every_model
@pytest.mark.parametrize("check", IN_MEMORY, ids=title)
def test_model(case: ModelCase, check: Any) -> None:
    check(case)


@every_model
@pytest.mark.parametrize("check", WITH_FOLDER, ids=title)
def test_model_on_disk(case: ModelCase, check: Any, tmp_path: Path) -> None:
    check(case, tmp_path)


@every_model
@pytest.mark.parametrize("damage", checks.DAMAGES)
def test_damaged_checkpoint(case: ModelCase, damage: str, tmp_path: Path) -> None:
    checks.check_damaged_checkpoint_is_refused(case, tmp_path / "checkpoint", damage)


def assert_found(case: ModelCase, answer: dict[str, Any]) -> None:
    """The answer of `probe.py` holds the right classes, and the right numbers each time it loaded them."""
    assert "error" not in answer, answer.get("error")
    assert answer["model"] == case.model_class.__name__
    assert answer["config"] == case.config_class.__name__
    assert not answer["training"]
    assert answer["differences"] == {"first": [], "saved again": [], "second time": []}
    if case.paper.image_processor_class:
        assert answer["processor"] == case.paper.image_processor_class.__name__


@every_model
def test_loads_as_remote_code_where_the_package_is_not(case: ModelCase, strangers: dict[str, Any]) -> None:
    answer = strangers[repr(case)]
    assert_found(case, answer)
    assert answer["module"].startswith("transformers_modules.")
    assert answer["refused without trust"], "code from the folder must not run unasked"


@every_model
def test_loads_after_importing_the_package(case: ModelCase, friends: dict[str, Any]) -> None:
    answer = friends[repr(case)]
    assert_found(case, answer)
    assert answer["module"].startswith("hf_papers.papers.")


@pytest.mark.parametrize("key", PROCESSORS)
def test_image_processor_round_trip(key: str, tmp_path: Path) -> None:
    processor = PROCESSORS[key]()
    processor.save_pretrained(tmp_path / "first")
    loaded = AutoImageProcessor.from_pretrained(tmp_path / "first")
    assert type(loaded) is PROCESSORS[key]
    loaded.save_pretrained(tmp_path / "second")
    name = "preprocessor_config.json"
    assert (tmp_path / "first" / name).read_text() == (tmp_path / "second" / name).read_text()

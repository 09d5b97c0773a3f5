"""Every registered model, published with its code and loaded by processes that have hf_papers and that have it not."""

from __future__ import annotations

from typing import Any

import pytest

import hf_papers
from tests.common.cases import ModelCase, registered_cases


hf_papers.register_all()

every_model = pytest.mark.parametrize("case", registered_cases(), ids=repr)


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

"""Every registered model, through every check that needs no folder."""

from __future__ import annotations

from typing import Any

import pytest

import hf_papers
from hf_papers.registry import papers
from tests.common import checks
from tests.common.cases import ModelCase, registered_cases


hf_papers.register_all()
CASES = registered_cases()
IN_MEMORY = [f for n, f in vars(checks).items() if n.startswith("check_") and f.__code__.co_argcount == 1]


def title(check: Any) -> str:
    return check.__name__.removeprefix("check_")


def test_every_paper_is_here() -> None:
    assert {case.paper.key for case in CASES} == set(papers()), "a paper without a preset called 'tiny' is not tested"


@pytest.mark.parametrize("case", CASES, ids=repr)
@pytest.mark.parametrize("check", IN_MEMORY, ids=title)
def test_model(case: ModelCase, check: Any) -> None:
    check(case)

"""No Space without its tests."""

from __future__ import annotations

import importlib

import pytest

from tests.spaces.common import ROOT, SpaceTests


@pytest.mark.parametrize("key", sorted(path.parent.name for path in (ROOT / "spaces").glob("*/app.py")))
def test_it_is_asked_what_every_space_is_asked(key: str) -> None:
    module = importlib.import_module(f"tests.spaces.test_{key}")
    classes = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, SpaceTests)]
    assert [value.key for value in classes if value is not SpaceTests] == [key]

"""The order of the suite: the files whose tests take minutes start first, so that no process is left alone with them."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("first") is None)

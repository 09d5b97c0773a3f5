import pytest

from hf_papers.registry import papers
from tests.training.toy import TOY


@pytest.fixture(autouse=True)
def toy_paper():
    """The toy stands among the papers for the length of a test."""
    papers()[TOY.key] = TOY
    yield TOY
    del papers()[TOY.key]

"""Every paper's embedded recipe, from the command line to the end: the run must land in the band that the recipe states.

Minutes in all; the default suite trains every paper for a few steps, in `training/test_processes.py` and in its own tests.
"""

import json

import pytest

from hf_papers.cli import main
from hf_papers.registry import papers


@pytest.mark.slow
@pytest.mark.parametrize("paper", sorted(papers()))
def test_the_embedded_recipe_lands_in_its_band(paper, tmp_path, capsys):
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as caught:
        main(["train", paper, "--output_dir", str(out), "--use_cpu", "--report_to", "none"])
    assert caught.value.code == 0, capsys.readouterr().err
    results = json.loads((out / "results.json").read_text())
    assert results["in_expected_band"] is True, (results["metrics"]["test"], results["expected"])

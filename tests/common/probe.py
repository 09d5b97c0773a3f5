"""Run by the suite in a process of its own: loads published folders as somebody else would.

    python probe.py without|with jobs.json answers.json

`without`: hf_papers cannot be imported, the code comes from the folder. `with`: hf_papers is imported, nothing is trusted.
"""

from __future__ import annotations

import importlib.abc
import json
import sys
import traceback
from pathlib import Path
from typing import Any


class Absent(importlib.abc.MetaPathFinder):
    """Makes hf_papers look as if it were not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] == "hf_papers":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


def main(mode: str, jobs_path: str, answers_path: str) -> None:
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).parent]
    if mode == "without":
        sys.meta_path.insert(0, Absent())
        try:
            import hf_papers  # noqa: F401
        except ModuleNotFoundError:
            pass
        else:
            raise SystemExit("hf_papers can be imported, so this proves nothing")
    else:
        import hf_papers  # noqa: F401

    answers = {}
    for name, job in json.loads(Path(jobs_path).read_text()).items():
        try:
            answers[name] = look(job, trust=mode == "without")
        except Exception:
            answers[name] = {"error": traceback.format_exc()}
    assert mode == "with" or not any(module.split(".")[0] == "hf_papers" for module in sys.modules)
    Path(answers_path).write_text(json.dumps(answers))


def look(job: dict[str, str], trust: bool) -> dict[str, Any]:
    """Loads config, processor and model; runs it; saves it again and loads that too; loads the first a second time."""
    import transformers
    from safetensors.torch import load_file

    folder, auto = Path(job["folder"]), getattr(transformers, job["auto_class"])
    inputs, expected = load_file(folder / "inputs.safetensors"), load_file(folder / "expected.safetensors")
    bundle, again = folder / "bundle", folder / f"again-{trust}"
    config = transformers.AutoConfig.from_pretrained(bundle, trust_remote_code=trust)
    answer: dict[str, Any] = {"config": type(config).__name__, "differences": {}}
    model = auto.from_pretrained(bundle, trust_remote_code=trust, disable_mmap=True)
    answer |= {"model": type(model).__name__, "module": type(model).__module__, "training": model.training}
    answer["differences"]["first"] = differences(model, inputs, expected)
    model.save_pretrained(again)
    resaved = auto.from_pretrained(again, trust_remote_code=trust, disable_mmap=True)
    answer["differences"]["saved again"] = differences(resaved, inputs, expected)
    second = auto.from_pretrained(bundle, trust_remote_code=trust, disable_mmap=True)
    answer["differences"]["second time"] = differences(second, inputs, expected)
    if job["processor"]:
        processor = transformers.AutoImageProcessor.from_pretrained(bundle, trust_remote_code=trust)
        answer["processor"] = type(processor).__name__
    if trust:
        try:
            auto.from_pretrained(bundle, trust_remote_code=False)
            answer["refused without trust"] = False
        except ValueError:
            answer["refused without trust"] = True
    return answer


def differences(model: Any, inputs: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Names of the outputs that are not the expected ones, bit for bit."""
    import torch

    with torch.no_grad():
        found = {name: value for name, value in model(**inputs).items() if isinstance(value, torch.Tensor)}
    return [name for name in found if not torch.equal(found[name], expected[name])]


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    main(*sys.argv[1:])

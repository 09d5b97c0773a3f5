"""What a person sees while a run goes on: a bar with throughput and time left, and the metrics between."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from tqdm.auto import tqdm

from hf_papers.errors import UserError


class Meter:
    """Gathers the metrics of the steps since the last report without waiting for the device."""

    def __init__(self) -> None:
        self._values: dict[str, list[torch.Tensor | float]] = {}

    def add(self, name: str, value: torch.Tensor | float) -> None:
        values = self._values.get(name)
        if values is None:
            self._values[name] = [value]
        else:
            values.append(value)

    def not_finite(self) -> Iterator[tuple[str, int, int]]:
        """(name, index of the first bad value, number of values) of every loss that was not finite."""
        for name, values in self._values.items():
            if name.endswith("loss"):
                bad = ~torch.isfinite(torch.stack([torch.as_tensor(value) for value in values]))
                if bad.any():
                    yield name, int(bad.int().argmax()), len(values)

    def means(self) -> dict[str, float]:
        """The mean of every metric; the meter is empty afterwards."""
        means = {}
        for name, values in self._values.items():
            if isinstance(values[0], torch.Tensor):
                means[name] = float(torch.stack([value.detach().float() for value in values]).mean())
            else:
                means[name] = sum(values) / len(values)
        self._values.clear()
        return means


class Progress:
    """A bar on a terminal; a line per report where the output is a file. Silent on all processes but the first."""

    def __init__(self, total: int, start: int, examples_per_step: int, visible: bool) -> None:
        self.examples_per_step = examples_per_step
        self.visible = visible
        self.total = total
        on_terminal = visible and sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True) if on_terminal else None
        self._since = time.perf_counter()
        self._last_step = start

    def advance(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def report(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Show `metrics`; returns the speed since the last report in steps and examples per second."""
        now = time.perf_counter()
        rate = (step - self._last_step) / max(now - self._since, 1e-9)
        self._since, self._last_step = now, step
        speed = {"steps_per_second": rate, "examples_per_second": rate * self.examples_per_step}
        shown = {name.removeprefix("train/"): f"{value:.4g}" for name, value in metrics.items()}
        if self._bar is not None:
            self._bar.set_postfix(shown | {"ex/s": f"{speed['examples_per_second']:.0f}"}, refresh=False)
        elif self.visible:
            left = (self.total - step) / rate if rate else float("inf")
            numbers = "  ".join(f"{name} {value}" for name, value in shown.items())
            self.say(f"step {step}/{self.total}  {numbers}  {rate:.1f} steps/s  {left:.0f} s left")
        return speed

    def pause(self) -> None:
        """Time spent outside of training (evaluation, saving) does not count against its speed."""
        self._since = time.perf_counter()

    def say(self, text: str) -> None:
        if self.visible:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def check_trackers(names: list[str]) -> None:
    """Accelerate only warns about a tracker that is not installed, and then records nothing: refuse instead."""
    from accelerate.tracking import get_available_trackers

    packages = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}
    for name in names:
        if name not in packages:
            raise UserError(f"--report_to {name}: choose from {', '.join(packages)} or none.")
        if name not in {str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()}:
            raise UserError(f"--report_to {name} needs a package that is missing: pip install {packages[name]}.")


def tracker_config(recipe: dict[str, Any]) -> dict[str, Any]:
    """The options of a recipe as flat plain values; TensorBoard raises on None and on lists."""
    flat = {}
    for section in ("model", "task", "data", "training"):
        for key, value in recipe[section].items():
            flat[f"{section}/{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat

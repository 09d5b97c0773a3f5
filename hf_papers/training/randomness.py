"""The global random sources of a process: seeded, saved, restored, and left untouched by evaluation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_everything(*parts: int) -> None:
    """Seed Python's, numpy's and torch's global generators from a tuple of numbers, well mixed."""
    mixed = np.random.SeedSequence(parts).generate_state(3, np.uint32)
    random.seed(int(mixed[0]))
    np.random.seed(int(mixed[1]))
    torch.manual_seed(int(mixed[2]))


def get_random_state() -> dict[str, Any]:
    """The state of all global generators of this process, as plain values and tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (name, keys, position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def forked_randomness(*parts: int) -> Iterator[None]:
    """Inside, the global generators start from `parts`; afterwards they are as if nothing had been drawn."""
    before = get_random_state()
    seed_everything(*parts)
    try:
        yield
    finally:
        set_random_state(before)

"""The replay memory (2013 paper, section 4; Nature, Algorithm 1): what was lived through, to be learned from again.

An observation of a game is a stack of the last few frames, and consecutive observations share all but one of them. So
every frame is stored **once**, as it came (bytes for images), and stacks are put together when a batch is drawn:
1,000,000 frames of 84 x 84 take 7 GB, where storing observation and next observation whole would take 56 GB.

How an episode lies in the ring, T steps long, after a reset:

    slot       i        i+1      …   i+T-1        i+T
    frame      x_0      x_1      …   x_{T-1}      x_T  (the last one seen; nothing was done there)
    action     a_0      a_1      …   a_{T-1}      -
    reward     r_0      r_1      …   r_{T-1}      -

The frame that follows slot j is always in slot j + 1, also at the end of an episode, because x_T is kept. That makes it
possible to bootstrap from the value of x_T where a time limit cut the episode (*truncated*), and not to where the game
was really over (*terminated*).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Transitions:
    """Steps of the environment, each field with the same leading dimensions (any number of them).

    observations, next_observations: (…, *observation_shape). actions: (…) int64. rewards: (…) float32.
    terminated: (…) bool, whether nothing can be earned any more after the step.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminated: np.ndarray


class ReplayMemory:
    """A ring of frames with what was done at each. The oldest are overwritten.

    capacity: frames it holds. frame_shape: of one frame. stack: frames per observation; 1 gives observations of
    `frame_shape` itself, more gives `(stack, *frame_shape)`, oldest first, the first frame of an episode repeated where
    there is none before it. The generator is its own, so that drawing batches disturbs no other randomness.
    """

    def __init__(
        self, capacity: int, frame_shape: tuple[int, ...], dtype: Any, *, stack: int = 1, seed: Any = 0
    ) -> None:
        if capacity < stack + 2:
            raise ValueError(
                f"A replay memory of stacks of {stack} holds at least {stack + 2} frames, not {capacity}."
            )
        self.capacity, self.stack = capacity, stack
        # np.zeros asks the operating system for pages only when they are written to: an empty memory costs nothing.
        self.frames = np.zeros((capacity, *frame_shape), dtype)
        self.actions = np.zeros(capacity, np.int64)
        self.rewards = np.zeros(capacity, np.float32)
        self.terminated = np.zeros(capacity, np.bool_)
        # Frames of the same episode before this one, counted up to stack - 1: how far back a stack may reach.
        self.age = np.zeros(capacity, np.uint8)
        # Whether an action was taken at this frame, that is, whether a transition starts here.
        self.acted = np.zeros(capacity, np.bool_)
        self.head = 0  # the slot that will be written next
        self.size = 0  # slots that hold something
        self.transitions = 0  # slots that a transition starts at
        self.generator = np.random.default_rng(seed)

    @staticmethod
    def bytes_needed(capacity: int, frame_shape: tuple[int, ...], dtype: Any) -> int:
        """Memory of a full ring in bytes, frames and everything beside them."""
        beside = 8 + 4 + 1 + 1 + 1  # action, reward, terminated, age, acted
        return capacity * (int(np.prod(frame_shape)) * np.dtype(dtype).itemsize + beside)

    def __len__(self) -> int:
        """How many transitions are stored."""
        return self.transitions

    def start(self, frame: np.ndarray) -> None:
        """A new episode begins with this frame."""
        self._write(frame, 0)

    def add(self, action: int, reward: float, frame: np.ndarray, terminated: bool) -> None:
        """In the newest frame `action` was done; it earned `reward` and led to `frame`.

        `terminated` says that no further reward can follow. The caller goes on with `start` whenever the episode is
        over, terminated or truncated.
        """
        newest = self.head - 1  # -1, the last slot, right after the ring was wrapped around
        self.actions[newest] = action
        self.rewards[newest] = reward
        self.terminated[newest] = terminated
        self.acted[newest] = True
        self.transitions += 1
        self._write(frame, min(int(self.age[newest]) + 1, self.stack - 1))

    def _write(self, frame: np.ndarray, age: int) -> None:
        head = self.head
        if self.acted[head]:
            self.transitions -= 1
        self.frames[head] = frame
        self.age[head] = age
        self.acted[head] = False
        self.head = head + 1 if head + 1 < self.capacity else 0
        if self.size < self.capacity:
            self.size += 1

    def _usable(self, slots: np.ndarray) -> np.ndarray:
        """Which slots start a transition whose whole stack is still there.

        The frame after a slot that was acted on is always there: it was written later. The stack before it may have
        been overwritten: the slots behind the head hold the newest frames of all, from another time.
        """
        position = slots - self.head if self.size == self.capacity else slots  # 0 is the oldest frame
        position = np.where(position < 0, position + self.capacity, position)
        return self.acted[slots] & (position >= self.age[slots])

    def sample(self, *shape: int) -> Transitions:
        """Transitions drawn uniformly with replacement, e.g. `sample(32)`, or `sample(128, 64)` for 128 batches at once."""
        # At most stack - 1 transitions have lost part of their stack to the head, so with more there is one to draw.
        if self.transitions < self.stack and not self._usable(np.arange(self.size)).any():
            raise ValueError("The replay memory holds no complete transition yet: play before you sample.")
        slots = self.generator.integers(0, self.size, int(np.prod(shape)))
        unusable = np.flatnonzero(~self._usable(slots))
        while len(unusable):  # few: one slot per episode, and those around the head
            slots[unusable] = self.generator.integers(0, self.size, len(unusable))
            unusable = unusable[~self._usable(slots[unusable])]
        return self._gather(slots.reshape(shape))

    def latest(self, batches: int, batch_size: int, span: int) -> Transitions:
        """What a learner without memory sees: batches of consecutive steps, sliding over the newest `span` transitions.

        Fields are (batches, batch_size, …). The last batch ends with the newest transition; nothing is drawn at random.
        """
        newest_first = (
            self.head - 1 - np.arange(min(self.size, 2 * (span + batch_size) + self.stack))
        ) % self.capacity
        slots = newest_first[self._usable(newest_first)][::-1]
        ends = len(slots) - span + np.ceil(np.arange(1, batches + 1) * span / batches).astype(np.int64)
        index = ends[:, None] + np.arange(-batch_size, 0)
        return self._gather(slots[np.clip(index, 0, None)])

    def _gather(self, slots: np.ndarray) -> Transitions:
        following = slots + 1
        following[following == self.capacity] = 0
        if self.stack == 1:
            observations, next_observations = self.frames[slots], self.frames[following]
        else:
            # One window of stack + 1 frames holds the observation and the next one. Reaching back is limited by age,
            # so that the first frame of an episode repeats itself and nothing of the episode before it is seen.
            back = np.minimum(np.arange(self.stack - 1, -1, -1), self.age[slots][..., None])
            window = np.concatenate([slots[..., None] - back, following[..., None]], axis=-1)
            frames = self.frames[window % self.capacity]
            leading = (slice(None),) * slots.ndim
            observations, next_observations = frames[(*leading, slice(0, -1))], frames[(*leading, slice(1, None))]
        return Transitions(
            observations, self.actions[slots], self.rewards[slots], next_observations, self.terminated[slots]
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything, as arrays and plain values; the arrays are views of the filled part, to be saved at once."""
        arrays = {name: getattr(self, name)[: self.size] for name in self._ARRAYS}
        numbers = {"head": self.head, "transitions": self.transitions}
        return {**arrays, **numbers, "generator": self.generator.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken. The memory must have been built with the same capacity and shapes."""
        size = len(state["frames"])
        if size > self.capacity or state["frames"].shape[1:] != self.frames.shape[1:]:
            raise ValueError(
                f"The saved replay memory holds {size} frames of {state['frames'].shape[1:]}, but this one has room for "
                f"{self.capacity} of {self.frames.shape[1:]}."
            )
        for name in self._ARRAYS:
            getattr(self, name)[:size] = state[name]
        self.size, self.head, self.transitions = size, state["head"], state["transitions"]
        self.generator.bit_generator.state = state["generator"]

    _ARRAYS = ("frames", "actions", "rewards", "terminated", "age", "acted")

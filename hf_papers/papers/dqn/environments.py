"""Worlds to act in: any Gymnasium environment with discrete actions, by its id, in the form that the network reads.

Vectors pass as they are, other small observations (numbers, tuples, dictionaries) are flattened to vectors, and images go
through the preprocessing of the Nature paper. Training, evaluation and the Space all make their environments here, from
the same configuration, so that no score depends on who measured it.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, FrameStackObservation, TransformAction
from huggingface_hub.errors import StrictDataclassError
from PIL import Image

from hf_papers.errors import UserError, nearest
from hf_papers.papers.dqn.configuration_dqn import PaperDqnConfig


ATARI = "ALE/"
# What a seed is for. Seeds of different purposes never meet: seed = 4 * number + purpose.
TRAINING, VALIDATION, TEST, PROBE = range(4)
IMAGE_SHAPE = (4, 84, 84)
VECTOR_FIELDS = {"conv_channels": (), "conv_kernels": (), "conv_strides": (), "frame_skip": 1, "noop_max": 0}


def training_seed(seed: int, rank: int, episode: int) -> int:
    """The seed that the `episode`-th training episode of process `rank` is reset with."""
    mixed = np.random.SeedSequence([seed, rank, episode]).generate_state(1, np.uint32)[0]
    return 4 * (int(mixed) >> 3) + TRAINING


def evaluation_seeds(purpose: int, count: int) -> list[int]:
    """The same `count` seeds for every run, so that all are scored on the same starts; none is ever trained on."""
    return [4 * number + purpose for number in range(count)]


class FramePreprocessing(gym.Wrapper):
    """Nature, Methods, "Preprocessing": repeat an action, take the brighter of the last two frames, grey, shrink.

    Observations are (height, width) bytes. An action is repeated for `frame_skip` frames and their rewards are added up.
    An episode begins with 1 to `noop_max` do-nothing frames, which gives a game without randomness different starts.
    """

    def __init__(self, env: gym.Env, size: tuple[int, int], frame_skip: int, noop_max: int) -> None:
        super().__init__(env)
        self.size, self.frame_skip, self.noop_max = size, frame_skip, noop_max
        self.observation_space = spaces.Box(0, 255, size, np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        frame, info = self.env.reset(seed=seed, options=options)
        wait = int(np.random.default_rng(seed).integers(1, self.noop_max + 1)) if self.noop_max else 0
        for _ in range(wait):
            frame, _, terminated, truncated, info = self.env.step(0)
            if terminated or truncated:
                frame, info = self.env.reset(options=options)
        return self.shrink(frame), info

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward, previous = 0.0, None
        for repeat in range(self.frame_skip):
            frame, earned, terminated, truncated, info = self.env.step(action)
            reward += float(earned)
            if terminated or truncated:
                break
            if repeat == self.frame_skip - 2:
                previous = frame
        # Atari draws some sprites in even and others in odd frames only.
        seen = frame if previous is None else np.maximum(previous, frame)
        return self.shrink(seen), reward, terminated, truncated, info

    def shrink(self, frame: np.ndarray) -> np.ndarray:
        """Colour (height, width, 3) or grey frame to grey (height, width) of the size asked for: luminance, bilinear."""
        grey = Image.fromarray(np.ascontiguousarray(frame.squeeze())).convert("L")
        height, width = self.size
        return np.asarray(grey.resize((width, height), Image.Resampling.BILINEAR))


def make_environment(config: PaperDqnConfig, *, render: bool = False) -> gym.Env:
    """The environment of `config`, wrapped as the network needs it; with `render`, `.render()` gives RGB frames.

    Raises `UserError` for an id that does not exist, an environment that cannot be made here, and one whose actions
    cannot be counted.
    """
    if config.environment is None:
        raise UserError("This network names no environment: set --environment, e.g. --environment CartPole-v1.")
    env = _make(config.environment, config.environment_options, render)
    if is_image(env.observation_space):
        frames, height, width = config.observation_shape
        env = FramePreprocessing(env, (height, width), config.frame_skip, config.noop_max)
        return FrameStackObservation(env, frames)
    space = env.observation_space
    return env if isinstance(space, spaces.Box) and len(space.shape) == 1 else FlattenObservation(env)


def is_image(space: gym.Space) -> bool:
    """Whether observations are pictures: bytes, (height, width) or (height, width, 1 or 3)."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return False
    return len(space.shape) == 2 or (len(space.shape) == 3 and space.shape[-1] in (1, 3))


def fit_config(model: dict[str, Any]) -> PaperDqnConfig:
    """The configuration that a recipe's `model` options and the environment they name make together.

    The environment decides the number of actions, whether observations are images, and the size of vectors.
    """
    if not model.get("environment"):
        raise UserError("Which environment? Add --environment with a Gymnasium id, e.g. --environment CartPole-v1.")
    name = model["environment"]
    env = _make(name, model.get("environment_options") or {}, render=False)
    fitted = {**model, "num_actions": int(env.action_space.n)}
    if not is_image(env.observation_space):
        fitted |= {"observation_shape": (int(spaces.flatdim(env.observation_space)),), **VECTOR_FIELDS}
    elif len(model.get("observation_shape", IMAGE_SHAPE)) != len(IMAGE_SHAPE):  # a recipe for vectors
        fitted = {key: value for key, value in fitted.items() if key not in ("observation_shape", *VECTOR_FIELDS)}
    env.close()
    try:
        return PaperDqnConfig(**fitted)
    except (TypeError, ValueError, StrictDataclassError) as error:
        problem = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"The network does not fit {name}: {problem}") from error


def reward_threshold(name: str) -> float | None:
    """The mean return from which the environment's authors call it solved, where they say so."""
    return gym.spec(name).reward_threshold


def _make(name: str, options: dict[str, Any], render: bool) -> gym.Env:
    """`gymnasium.make` that fails in sentences, and refuses what a Q-network cannot act or see in."""
    _announce(name)
    options = dict(options)
    if name.startswith(ATARI):
        # Frames are skipped by our own wrapper, and neither paper repeated actions by chance ("sticky actions").
        options = {"frameskip": 1, "repeat_action_probability": 0.0, **options}
    if render:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame must not look for a screen
        options["render_mode"] = "rgb_array"
    try:
        # The checker warns about badly written environments and costs a third of a step.
        env = gym.make(name, disable_env_checker=True, **options)
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        raise UserError(
            f"The environment {name} needs a package that is not installed: {_first_line(error)}"
        ) from error
    except (gym.error.Error, TypeError, ValueError) as error:
        raise UserError(
            f"The environment {name} cannot be made with options {options}: {_first_line(error)}"
        ) from error
    if not isinstance(env.action_space, spaces.Discrete):
        kind = "continuous actions" if isinstance(env.action_space, spaces.Box) else "actions of several parts"
        raise UserError(
            f"{name} has {kind} ({env.action_space}), but a Q-network gives one value to each of a fixed number of "
            "actions. Choose an environment with a Discrete action space, such as CartPole-v1 or Acrobot-v1."
        )
    try:
        spaces.flatdim(env.observation_space)
    except (NotImplementedError, ValueError) as error:
        raise UserError(f"The observations of {name} ({env.observation_space}) have no fixed size.") from error
    first = int(env.action_space.start)
    if first:
        actions = spaces.Discrete(int(env.action_space.n))
        env = TransformAction(env, lambda action: action + first, actions)
    return env


def _announce(name: str) -> None:
    """Let Gymnasium know where the environment comes from; refuse an id that is nowhere."""
    if ":" in name:
        module = name.split(":")[0]
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"The module '{module}' of the environment {name} cannot be imported: {error}.") from error
    if name.startswith(ATARI):
        try:
            import ale_py
        except ImportError as error:
            raise UserError(
                f"{name} is an Atari game and needs its emulator: pip install 'hf-papers[atari]'."
            ) from error
        gym.register_envs(ale_py)
    bare = name.split(":")[-1]
    try:
        gym.spec(name)
    except gym.error.Error as error:
        # The right name with another version is nearer than a short name that happens to look alike.
        stem = bare.rsplit("-v", 1)[0]
        same = sorted(known for known in gym.registry if known.rsplit("-v", 1)[0].lower() == stem.lower())
        suggestion = f" Did you mean '{same[-1]}'?" if same else nearest(bare, gym.registry)
        raise UserError(
            f"Gymnasium knows no environment '{name}'.{suggestion} gymnasium.pprint_registry() lists them."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].strip().rstrip(".") + "."

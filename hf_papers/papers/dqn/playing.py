"""Acting in environments: choosing fast, living through training episodes that can be lived again, scoring."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from PIL import Image

from hf_papers.errors import UserError
from hf_papers.papers.dqn.configuration_dqn import PaperDqnConfig
from hf_papers.papers.dqn.environments import make_environment, training_seed
from hf_papers.papers.dqn.modeling_dqn import PaperDqnModel
from hf_papers.papers.dqn.replay import ReplayMemory


class GreedyPolicy:
    """The most valuable action of an observation, at as little cost as possible.

    A vector goes through a handful of small matrix products: there numpy on the weights themselves is several times
    faster than calling the modules. Images go through the model. `refresh` after the weights have changed.
    """

    def __init__(self, model: PaperDqnModel) -> None:
        self.model = model
        self.refresh()

    def refresh(self) -> None:
        """See the present weights. (On the CPU the arrays are the weights' own memory, elsewhere copies.)"""
        self.layers: list[tuple[np.ndarray, np.ndarray]] | None = None
        if not self.model.config.takes_images:
            linear = [*(layer.linear for layer in self.model.hidden), self.model.values]
            scale = self.model.observation_scale
            self.scale = None if scale is None else _array(scale)
            self.layers = [(_array(layer.weight).T, _array(layer.bias)) for layer in linear]

    def q_values(self, observations: np.ndarray) -> np.ndarray:
        """(batch, …) or a single observation -> (batch, num_actions) or (num_actions,)."""
        if self.layers is None:
            return self.model.q_values(torch.from_numpy(observations)).float().cpu().numpy()
        values = np.asarray(observations, np.float32)
        if self.scale is not None:
            values = values * self.scale
        for weight, bias in self.layers[:-1]:
            values = values @ weight
            values += bias
            np.maximum(values, 0.0, out=values)
        weight, bias = self.layers[-1]
        return values @ weight + bias

    def action(self, observation: np.ndarray) -> int:
        return int(self.q_values(observation).argmax())


def _array(parameter: torch.Tensor) -> np.ndarray:
    return parameter.detach().float().cpu().numpy()


class TrainingEnvironment:
    """Plays training episodes into a replay memory, and can be put back to where it was, to the bit.

    An environment as such cannot be saved: it may hold anything. But an episode is settled by the seed of its reset and
    the actions since, so these are recorded, and `load_state_dict` lives through the episode once more. Every episode has
    a seed of its own, from (seed, rank, number of the episode).
    """

    def __init__(self, config: PaperDqnConfig, replay: ReplayMemory, *, seed: int, rank: int = 0) -> None:
        self.env = make_environment(config)
        self.num_actions, self.stack = config.num_actions, replay.stack
        self.replay, self.seed, self.rank = replay, seed, rank
        self.generator = np.random.default_rng([seed, rank, 1])  # of exploration alone
        self.clip_rewards = self.terminal_on_life_loss = False
        self.steps = 0  # taken in all episodes
        self.episode = 0  # episodes finished
        self.actions: list[int] = []  # of the running episode
        self.episode_return = 0.0
        self.lives: int | None = None
        self.returns: list[tuple[int, float]] = []  # (steps when it ended, return) of finished episodes
        self.observation: np.ndarray | None = None  # None before the first reset

    def play(self, policy: GreedyPolicy, epsilons: np.ndarray) -> None:
        """Take `len(epsilons)` steps, the i-th with probability `epsilons[i]` a random one, and remember them."""
        if self.observation is None:
            self._begin_episode()
        # All of the chance of these steps at once: two calls instead of two per step.
        explores = (self.generator.random(len(epsilons)) < epsilons).tolist()
        random_actions = self.generator.integers(0, self.num_actions, len(epsilons)).tolist()
        for explore, random_action in zip(explores, random_actions, strict=True):
            action = random_action if explore else policy.action(self.observation)
            self.step(action)

    def step(self, action: int) -> None:
        self.observation, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        self.actions.append(action)
        self.episode_return += float(reward)
        learned_reward = min(1.0, max(-1.0, float(reward))) if self.clip_rewards else reward
        over = terminated or (self.terminal_on_life_loss and self._lost_a_life(info))
        self.replay.add(action, learned_reward, self._newest_frame(), over)
        if terminated or truncated:
            self.returns.append((self.steps, self.episode_return))
            self.episode += 1
            self._begin_episode()

    def _begin_episode(self) -> None:
        self.observation, info = self.env.reset(seed=training_seed(self.seed, self.rank, self.episode))
        self.lives = info.get("lives")
        self.actions, self.episode_return = [], 0.0
        self.replay.start(self._newest_frame())

    def _newest_frame(self) -> np.ndarray:
        return self.observation[-1] if self.stack > 1 else self.observation

    def _lost_a_life(self, info: dict[str, Any]) -> bool:
        before, self.lives = self.lives, info.get("lives")
        return before is not None and self.lives is not None and self.lives < before

    @property
    def recent_return(self) -> float:
        """Mean return of the last (at most) 100 episodes."""
        recent = self.returns[-100:]
        return sum(value for _, value in recent) / len(recent)

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.bit_generator.state,
            "steps": self.steps,
            "episode": self.episode,
            "actions": np.array(self.actions, np.int64),
            "observation": None if self.observation is None else np.array(self.observation),
            "returns": np.array(self.returns, np.float64).reshape(-1, 2),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Live through the running episode again. Raises `UserError` when the environment does not repeat itself."""
        self.generator.bit_generator.state = state["generator"]
        self.steps, self.episode = state["steps"], state["episode"]
        self.returns = [(int(step), float(value)) for step, value in state["returns"]]
        self.actions = [int(action) for action in state["actions"]]
        if state["observation"] is None:
            return
        self.episode_return = 0.0
        self.observation, info = self.env.reset(seed=training_seed(self.seed, self.rank, self.episode))
        over = False
        for action in self.actions:
            self.observation, reward, terminated, truncated, info = self.env.step(action)
            self.episode_return += float(reward)
            over = over or terminated or truncated
        self.lives = info.get("lives")
        if over or not np.array_equal(self.observation, state["observation"]):
            raise UserError(
                f"The environment {self.env.spec.id if self.env.spec else ''} does not repeat itself: after the same seed "
                f"and the same {len(self.actions)} actions it shows something else than when the checkpoint was written. "
                "Only a training in an environment that is settled by its seed can be resumed; begin anew with "
                "--overwrite_output_dir, or install the version of the environment that the run began with."
            )


@dataclass(frozen=True)
class Scores:
    """Undiscounted, unclipped return and number of steps of each episode, (episodes,)."""

    returns: np.ndarray
    lengths: np.ndarray


def play_episodes(
    model: PaperDqnModel,
    config: PaperDqnConfig,
    seeds: Sequence[int],
    *,
    epsilon: float = 0.0,
    random_actions: int = 0,
    reset_options: dict[str, Any] | None = None,
    max_steps: int | None = None,
) -> Scores:
    """One episode per seed in environments made for this purpose, ε-greedy, nothing learned.

    The episodes run side by side, so that the network sees many observations at once. `random_actions` random steps come
    before the network takes over (their reward does not count), and `reset_options` go to the resets: both lead to
    states that training never started from. `max_steps` ends an episode early.
    """
    policy = GreedyPolicy(model)
    waiting = list(enumerate(seeds))[::-1]
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), np.int64)
    running: list[_Episode] = []
    free = [make_environment(config) for _ in range(min(len(seeds), 8 if config.takes_images else 100))]
    while running or waiting:
        while waiting and free:
            number, seed = waiting.pop()
            running.append(_Episode(free.pop(), number, seed, config.num_actions, random_actions, reset_options))
        greedy = policy.q_values(np.stack([episode.observation for episode in running])).argmax(axis=1).tolist()
        still_running = []
        for episode, action in zip(running, greedy, strict=True):
            if episode.step(action, epsilon) or episode.length == max_steps:
                returns[episode.number], lengths[episode.number] = episode.total, episode.length
                free.append(episode.env)
            else:
                still_running.append(episode)
        running = still_running
    for env in free:
        env.close()
    return Scores(returns, lengths)


class _Episode:
    """An episode that is being scored; its chance depends on its own seed only, not on its neighbours."""

    def __init__(
        self,
        env: gym.Env,
        number: int,
        seed: int,
        num_actions: int,
        random_actions: int,
        reset_options: dict[str, Any] | None,
    ) -> None:
        self.env, self.number, self.num_actions = env, number, num_actions
        self.generator = np.random.default_rng([seed, 1])
        self.observation, _ = env.reset(seed=seed, options=reset_options)
        for _ in range(random_actions):
            self.observation, _, terminated, truncated, _ = env.step(int(self.generator.integers(num_actions)))
            if terminated or truncated:
                self.observation, _ = env.reset(options=reset_options)
        self.total, self.length = 0.0, 0

    def step(self, greedy: int, epsilon: float) -> bool:
        """One step; returns whether it was the last one."""
        explores = epsilon > 0.0 and self.generator.random() < epsilon
        action = int(self.generator.integers(self.num_actions)) if explores else greedy
        self.observation, reward, terminated, truncated, _ = self.env.step(action)
        self.total += float(reward)
        self.length += 1
        return bool(terminated or truncated)


def random_states(config: PaperDqnConfig, count: int, seed: int) -> np.ndarray:
    """(count, *observation_shape) observations that a random player meets, a few steps apart.

    The 2013 paper (section 5.1) follows the mean of max_a Q over such a fixed set through training: it rises far more
    evenly than the return does.
    """
    env = make_environment(config)
    generator = np.random.default_rng([seed, 2])
    states: list[np.ndarray] = []
    observation, _ = env.reset(seed=seed)
    while len(states) < count:
        states.append(np.array(observation))
        for _ in range(int(generator.integers(1, 8))):
            observation, _, terminated, truncated, _ = env.step(int(generator.integers(config.num_actions)))
            if terminated or truncated:
                observation, _ = env.reset()
    env.close()
    return np.stack(states)


def film_episode(
    model: PaperDqnModel, config: PaperDqnConfig, seed: int, *, every: int = 2, max_frames: int = 200, width: int = 300
) -> list[Image.Image]:
    """Pictures of one greedy episode, every `every`-th step, `width` pixels wide."""
    policy = GreedyPolicy(model)
    env = make_environment(config, render=True)
    observation, _ = env.reset(seed=seed)
    pictures, over, step = [], False, 0
    while not over and len(pictures) < max_frames:
        if step % every == 0:
            picture = Image.fromarray(env.render())
            pictures.append(picture.resize((width, round(width * picture.height / picture.width))))
        observation, _, terminated, truncated, _ = env.step(policy.action(observation))
        over = terminated or truncated
        step += 1
    env.close()
    return pictures


def save_film(pictures: list[Image.Image], path: Path, *, milliseconds: int = 40) -> None:
    """Write an animated GIF and, where the extra "video" is installed, the same beside it as .mp4."""
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, optimize=True)
    if importlib.util.find_spec("imageio") is None or importlib.util.find_spec("imageio_ffmpeg") is None:
        return
    import imageio.v2 as imageio

    # The codec halves the resolution of colour, so both sides must be even.
    width, height = pictures[0].width // 2 * 2, pictures[0].height // 2 * 2
    frames = [np.asarray(picture.convert("RGB"))[:height, :width] for picture in pictures]
    imageio.mimwrite(path.with_suffix(".mp4"), frames, fps=1000 / milliseconds, macro_block_size=2)

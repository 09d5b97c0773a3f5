"""DQN: the network against stable-baselines3, the memory against a naive one, the task against arithmetic by hand."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces

from hf_papers.errors import UserError
from hf_papers.papers.dqn import PAPER
from hf_papers.papers.dqn.configuration_dqn import PaperDqnConfig
from hf_papers.papers.dqn.environments import (
    TEST,
    VALIDATION,
    FramePreprocessing,
    evaluation_seeds,
    fit_config,
    make_environment,
    training_seed,
)
from hf_papers.papers.dqn.modeling_dqn import PaperDqnModel, td_loss
from hf_papers.papers.dqn.playing import GreedyPolicy, TrainingEnvironment, play_episodes, random_states
from hf_papers.papers.dqn.replay import ReplayMemory
from hf_papers.papers.dqn.training_dqn import DqnOptions, DqnTask, td_targets
from hf_papers.training.recipe import load_recipe
from hf_papers.training.run import Run
from hf_papers.training.trainer import Trainer
from tests.common.cases import ModelCase


class Case(ModelCase):
    """The common suite, told how a training is kept short."""

    short_run = (
        *("--environment_steps", "600", "--learning_starts", "300"),
        *("--test_episodes", "2", "--validation_episodes", "2"),
    )


CARTPOLE = PaperDqnConfig.from_preset("cartpole", hidden_sizes=(16,))


class EchoEnv(gym.Env):
    """The observation names the action that earns 1. Truncated after 20 steps, never terminated."""

    observation_space = spaces.Discrete(3)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.wanted = 0, int(self.np_random.integers(3))
        return self.wanted, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        reward = float(action == self.wanted)
        self.steps, self.wanted = self.steps + 1, int(self.np_random.integers(3))
        return self.wanted, reward, False, self.steps == 20, {}


class ArcadeEnv(gym.Env):
    """A toy arcade game: colour frames whose brightness counts the frames, lives that are lost, rewards of 5."""

    observation_space = spaces.Box(0, 255, (40, 30, 3), np.uint8)
    action_space = spaces.Discrete(3, start=1)
    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def render(self) -> np.ndarray:
        return self._frame()

    def _frame(self) -> np.ndarray:
        return np.full((40, 30, 3), self.frames, np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.frames, self.lives = int(self.np_random.integers(5)), 3
        self.length = int(self.np_random.integers(12, 60))
        return self._frame(), {"lives": self.lives}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert action in (1, 2, 3), f"actions start at 1, not {action}"
        self.frames += 1
        if self.frames % 16 == 0:
            self.lives -= 1
        return self._frame(), 5.0, self.lives == 0, self.frames >= self.length, {"lives": self.lives}


class MoodyEnv(EchoEnv):
    """Does not repeat itself: the first observation after a seed counts the environments made so far."""

    made = 0

    def reset(self, **kwargs: Any) -> tuple[int, dict[str, Any]]:
        super().reset(**kwargs)
        MoodyEnv.made += 1
        self.wanted = MoodyEnv.made % 3
        return self.wanted, {}


for name, kind in {"Echo-v0": EchoEnv, "Arcade-v0": ArcadeEnv, "Moody-v0": MoodyEnv}.items():
    gym.register(id=name, entry_point=kind)

SMALL = {
    "hidden_sizes": "16",
    "observation_scale": "none",
    "report_to": "none",
    "progress": "false",
    "environment_steps": "400",
    "learning_starts": "100",
    "train_frequency": "50",
    "gradient_steps": "20",
    "target_update": "20",
    "validation_episodes": "2",
    "test_episodes": "2",
    "eval_steps": "1000",
    "held_out_states": "10",
    "per_device_train_batch_size": "16",
}


def trainer_for(folder: Path, **overrides: Any) -> Trainer:
    values = {**SMALL, "output_dir": str(folder), **{key: str(value) for key, value in overrides.items()}}
    recipe = load_recipe("dqn", "cartpole", values)
    trainer = Trainer(DqnTask(recipe), Run(recipe.output_dir, recipe.training.save_total_limit))
    trainer.prepare()
    return trainer


# The network


@pytest.mark.parametrize(
    ("preset", "overrides", "count"),
    [
        ("nature", {}, 1_686_180),
        ("nature", {"num_actions": 6}, 1_687_206),
        ("nips", {}, 677_172),
        ("cartpole", {}, 4 * 256 + 256 + 256 * 256 + 256 + 256 * 2 + 2),
    ],
)
def test_parameter_counts_are_the_papers(preset: str, overrides: dict[str, int], count: int) -> None:
    with torch.device("meta"):
        assert PaperDqnModel(PaperDqnConfig.from_preset(preset, **overrides)).num_parameters() == count
    if not overrides:
        assert PAPER.parameters[preset] == count


@pytest.mark.parametrize("preset", ["nature", "cartpole"])
def test_agrees_with_stable_baselines3(preset: str) -> None:
    pytest.importorskip("stable_baselines3", reason="install the extra 'peers' to compare with stable-baselines3")
    from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
    from stable_baselines3.dqn.policies import QNetwork

    torch.manual_seed(0)
    config = PaperDqnConfig.from_preset(preset)
    ours = PaperDqnModel(config)
    if config.takes_images:
        space = spaces.Box(0, 255, config.observation_shape, np.uint8)
        theirs = QNetwork(space, spaces.Discrete(4), NatureCNN(space, 512), 512, net_arch=[])
    else:
        space = spaces.Box(-1, 1, config.observation_shape, np.float32)
        theirs = QNetwork(space, spaces.Discrete(2), FlattenExtractor(space), 4, net_arch=[256, 256])
    # Both register their layers in the order of the computation.
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    with torch.no_grad():
        for mine, other in pairs:
            other.copy_(mine)

    batch = ours.dummy_inputs
    out = ours(**batch)
    q = theirs(batch["observations"])
    torch.testing.assert_close(out.q_values, q, rtol=0, atol=1e-5)
    loss = F.smooth_l1_loss(q.gather(1, batch["actions"][:, None]), batch["targets"][:, None])
    torch.testing.assert_close(out.loss, loss, rtol=0, atol=1e-5)
    out.loss.backward()
    loss.backward()
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-5)


def test_bytes_and_floats_of_the_same_image_have_the_same_values() -> None:
    model = PaperDqnModel(PaperDqnConfig.from_preset("tiny"))
    images = model.dummy_inputs["observations"]
    torch.testing.assert_close(model.q_values(images), model.q_values(images / 255.0))


def test_clipped_error_is_hubers_and_its_derivative_stays_within_one() -> None:
    targets = torch.tensor([0.0, 0.0, 0.0, 0.0])
    q = torch.tensor([-3.0, -0.5, 0.25, 40.0], requires_grad=True)
    loss = td_loss(q, targets, "huber")
    torch.testing.assert_close(loss, F.huber_loss(q, targets, delta=1.0))
    torch.testing.assert_close(loss, torch.tensor((2.5 + 0.125 + 0.03125 + 39.5) / 4))
    (gradient,) = torch.autograd.grad(loss * 4, q)
    torch.testing.assert_close(gradient, torch.tensor([-1.0, -0.5, 0.25, 1.0]))  # a large error still teaches
    torch.testing.assert_close(td_loss(q, targets, "squared"), (q**2).mean())


def test_epsilon_greedy_actions() -> None:
    model = PaperDqnModel(CARTPOLE)
    observations = torch.randn(2000, 4)
    greedy = model.act(observations, epsilon=0.0)
    assert torch.equal(greedy, model.q_values(observations).argmax(1))
    assert torch.equal(model.act(observations), greedy)  # the configuration says 0
    mixed = model.act(observations, epsilon=0.5, generator=torch.Generator().manual_seed(0))
    assert 0.2 < (mixed != greedy).float().mean() < 0.3  # half are random, half of those agree by chance
    assert model.act(observations[0]).shape == ()
    with pytest.raises(ValueError, match="probability"):
        model.act(observations[0], epsilon=1.5)


def test_fast_policy_is_the_model() -> None:
    model = PaperDqnModel(PaperDqnConfig.from_preset("cartpole", observation_scale=(1.0, 2.0, 5, 0.5)))
    policy = GreedyPolicy(model)
    observations = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    expected = model.q_values(torch.from_numpy(observations)).numpy()
    np.testing.assert_allclose(policy.q_values(observations), expected, atol=1e-6)
    np.testing.assert_allclose(policy.q_values(observations[3]), expected[3], atol=1e-6)
    with torch.no_grad():
        model.values.bias.add_(torch.tensor([100.0, 0.0]))
    policy.refresh()
    assert policy.action(observations[0]) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hiden_sizes": (3,)}, "Did you mean 'hidden_sizes'"),
        ({"observation_shape": (4, 4)}, "vectors or"),
        ({"observation_shape": (4,)}, "Vector observations take no convolutions"),
        ({"observation_shape": (4, 20, 20)}, "larger images"),
        ({"conv_kernels": (8, 4)}, "one entry per convolution"),
        ({"num_actions": 0}, "at least 1"),
        ({"observation_scale": (1.0,)}, "for vectors"),
        ({"evaluation_epsilon": 1.5}, "from 0 to 1"),
        ({"td_loss": "hubert"}, "td_loss"),
    ],
)
def test_impossible_configurations_are_refused_in_words(options: dict[str, Any], words: str) -> None:
    with pytest.raises(Exception, match=re.escape(words)):
        PaperDqnConfig(**options)


def test_vectors_are_scaled_before_the_first_layer(tmp_path: Path) -> None:
    plain = PaperDqnModel(CARTPOLE)
    scaled = PaperDqnModel(
        PaperDqnConfig.from_preset("cartpole", hidden_sizes=(16,), observation_scale=(1, 2.0, 5.0, 1))
    )
    scaled.load_state_dict(plain.state_dict(), strict=False)
    observations = torch.randn(7, 4)
    torch.testing.assert_close(
        scaled.q_values(observations), plain.q_values(observations * torch.tensor([1, 2, 5, 1]))
    )
    scaled.save_pretrained(tmp_path)
    loaded = PaperDqnModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.observation_scale, torch.tensor([1.0, 2.0, 5.0, 1.0]))
    assert loaded.config.observation_scale == scaled.config.observation_scale
    with pytest.raises(Exception, match="4 positive numbers"):
        PaperDqnConfig.from_preset("cartpole", observation_scale=(1.0, -1.0, 1.0, 1.0))


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'nature'"):
        PaperDqnConfig.from_preset("natur")


# The memory


class NaiveMemory:
    """Every transition with both of its stacks, whole: what the ring has to be equal to."""

    def __init__(self, stack: int) -> None:
        self.stack, self.steps = stack, []

    def start(self, frame: np.ndarray) -> None:
        self.episode = [frame]

    def observation(self) -> np.ndarray:
        frames = [self.episode[0]] * (self.stack - 1) + self.episode
        return np.stack(frames[-self.stack :])

    def add(self, action: int, reward: float, frame: np.ndarray, terminated: bool) -> None:
        before = self.observation()
        self.episode.append(frame)
        self.steps.append((before, action, reward, self.observation(), terminated))


def fill(memories: list[Any], steps: int, *, shape: tuple[int, ...] = (2, 3), seed: int = 0) -> None:
    """The same random episodes, of 1 to 9 steps, into every memory. A reward numbers its transition."""
    rng = np.random.default_rng(seed)
    left = 0
    for number in range(steps):
        if left == 0:
            left = int(rng.integers(1, 10))
            first = rng.integers(0, 256, shape).astype(np.uint8)
            for memory in memories:
                memory.start(first)
        left -= 1
        action, frame = int(rng.integers(4)), rng.integers(0, 256, shape).astype(np.uint8)
        terminated = left == 0 and bool(rng.integers(2))  # else truncated
        for memory in memories:
            memory.add(action, float(number), frame, terminated)


@pytest.mark.parametrize("stack", [1, 2, 4])
@pytest.mark.parametrize("steps", [3, 40, 500])
def test_stacks_are_rebuilt_as_they_were_seen(stack: int, steps: int) -> None:
    memory, naive = ReplayMemory(64, (2, 3), np.uint8, stack=stack, seed=1), NaiveMemory(stack)
    fill([memory, naive], steps)
    drawn = memory.sample(40, 50)
    assert drawn.observations.shape == ((40, 50, 2, 3) if stack == 1 else (40, 50, stack, 2, 3))
    assert drawn.observations.dtype == np.uint8
    seen = set()
    for i, j in np.ndindex(40, 50):
        number = int(drawn.rewards[i, j])
        before, action, _, after, terminated = naive.steps[number]
        if stack == 1:
            before, after = before[0], after[0]
        assert np.array_equal(drawn.observations[i, j], before)
        assert np.array_equal(drawn.next_observations[i, j], after)
        assert (drawn.actions[i, j], drawn.terminated[i, j]) == (action, terminated)
        seen.add(number)
    # Everything that is still whole is drawn (2,000 draws from at most 63), and nothing that was overwritten.
    assert max(seen) == steps - 1
    assert len(seen) >= len(memory) - (stack - 1)
    assert len(seen) == len(memory) or steps == 500


def test_memory_draws_evenly() -> None:
    memory = ReplayMemory(100, (1,), np.uint8, seed=3)
    fill([memory], 60, shape=(1,))
    counts = np.bincount(memory.sample(60_000).rewards.astype(int), minlength=60)
    assert len(memory) == 60
    assert counts.min() > 850 and counts.max() < 1150  # 1,000 expected, 5 standard deviations are 157


def test_a_million_frames_take_7_gb_not_28() -> None:
    """rlcode PR#128: memories of whole stacks, or of floats, end in the machine's swap."""
    needed = ReplayMemory.bytes_needed(1_000_000, (84, 84), np.uint8)
    assert needed == 1_000_000 * (84 * 84 + 15)
    assert needed < 7.1e9
    memory = ReplayMemory(1000, (84, 84), np.uint8, stack=4)
    arrays = [getattr(memory, name) for name in ("frames", "actions", "rewards", "terminated", "age", "acted")]
    assert sum(array.nbytes for array in arrays) == ReplayMemory.bytes_needed(1000, (84, 84), np.uint8)
    assert memory.frames.dtype == np.uint8


def test_memory_continues_where_it_was_saved() -> None:
    one, other = (ReplayMemory(50, (2, 3), np.uint8, stack=4, seed=seed) for seed in (5, 6))
    fill([one], 130)
    one.sample(7)
    other.load_state_dict(one.state_dict())
    fill([one, other], 30, seed=9)
    a, b = one.sample(64), other.sample(64)
    for name in ("observations", "actions", "rewards", "next_observations", "terminated"):
        assert np.array_equal(getattr(a, name), getattr(b, name))
    assert len(one) == len(other)
    with pytest.raises(ValueError, match="has room for"):
        ReplayMemory(20, (2, 3), np.uint8, stack=4).load_state_dict(one.state_dict())


def test_empty_memory_refuses_to_be_drawn_from() -> None:
    memory = ReplayMemory(10, (2,), np.uint8)
    with pytest.raises(ValueError, match="play before"):
        memory.sample(1)
    memory.start(np.zeros(2))
    with pytest.raises(ValueError, match="play before"):
        memory.sample(1)


def test_without_replay_batches_are_the_newest_steps_in_order() -> None:
    memory = ReplayMemory(64, (2, 3), np.uint8, seed=0)
    fill([memory], 300)
    drawn = memory.latest(batches=5, batch_size=4, span=10)
    expected = [[286 + 2 * batch + i + 2 for i in range(4)] for batch in range(5)]
    assert drawn.rewards.astype(int).tolist() == expected
    assert expected[-1][-1] == 299


# Targets


class Values(torch.nn.Module):
    """A network with given answers, one row per observation number."""

    def __init__(self, *rows: list[float]) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.tensor(rows))

    def forward(self, observations: torch.Tensor) -> Any:
        from hf_papers.papers.dqn.modeling_dqn import PaperDqnOutput

        return PaperDqnOutput(q_values=self.table[observations])


def test_targets_by_hand() -> None:
    q, frozen = Values([1.0, 9.0], [5.0, 0.0]), Values([10.0, 20.0], [30.0, 40.0])
    batch = {
        "next_observations": torch.tensor([0, 1, 1]),
        "rewards": torch.tensor([1.0, 2.0, 3.0]),
        "discounts": torch.tensor([0.9, 0.9, 0.0]),  # the last step ended the game
    }
    expected = torch.tensor([1 + 0.9 * 20, 2 + 0.9 * 40, 3.0])
    torch.testing.assert_close(td_targets(q, frozen, batch), expected)
    assert not td_targets(q, frozen, batch).requires_grad
    # Double: q would do action 1 in state 0 and action 0 in state 1; frozen values these.
    doubled = torch.tensor([1 + 0.9 * 20, 2 + 0.9 * 30, 3.0])
    torch.testing.assert_close(td_targets(q, frozen, batch, double_q=True), doubled)


@pytest.mark.parametrize("overrides", [{"target_update": 7}, {"target_update": 60, "gradient_accumulation_steps": 3}])
def test_targets_made_in_blocks_are_those_of_every_batch(tmp_path: Path, overrides: dict[str, int]) -> None:
    trainer = trainer_for(tmp_path, max_steps=50, **overrides)
    compared = 0
    losses = trainer.task.losses

    def watched(networks: Any, shadows: Any, batch: Any, step: int) -> Any:
        nonlocal compared
        block = trainer.task._frozen_targets(shadows["q"], batch["position"], step)
        torch.testing.assert_close(block, td_targets(networks["q"], shadows["q"], batch))
        compared += 1
        yield from losses(networks, shadows, batch, step)

    trainer.task.losses = watched
    trainer.train()
    assert compared == 50 * overrides.get("gradient_accumulation_steps", 1)


def test_time_limits_are_bootstrapped_through_and_ends_are_not(tmp_path: Path) -> None:
    """Many reproductions treat a time limit like a lost game: then standing at step 499 of CartPole looks worthless."""
    trainer = trainer_for(tmp_path, environment="Echo-v0")  # all of its episodes are cut after 20 steps
    batch = next(trainer.task.batches(trainer.networks, trainer.context))
    assert batch["discounts"].unique().tolist() == [pytest.approx(0.99)]
    trainer = trainer_for(tmp_path / "cartpole")  # a random player always drops the pole
    batches = trainer.task.batches(trainer.networks, trainer.context)
    discounts = torch.cat([next(batches)["discounts"] for _ in range(20)])
    assert sorted({round(value, 4) for value in discounts.tolist()}) == [0.0, 0.99]


# Exploration and budget


def test_epsilon_comes_down_in_a_straight_line() -> None:
    options = DqnOptions(
        environment_steps=1000, learning_starts=100, train_frequency=10, exploration_fraction=0.5, final_epsilon=0.1
    )
    epsilons = options.epsilons(0, 1000)
    assert (epsilons[:100] == 1.0).all()
    np.testing.assert_allclose(epsilons[100:500], 1 - 0.9 * np.arange(100, 500) / 500)
    np.testing.assert_allclose(epsilons[500:], 0.1)
    np.testing.assert_allclose(options.epsilons(300, 5), epsilons[300:305])


@pytest.mark.parametrize(("budget", "expected"), [(400, 120), (437, 120), (149, 0)])
def test_training_ends_exactly_at_its_budget(tmp_path: Path, budget: int, expected: int) -> None:
    if not expected:
        with pytest.raises(UserError, match="Nothing would be learned"):
            trainer_for(tmp_path, environment_steps=budget)
        return
    trainer = trainer_for(tmp_path, environment_steps=budget)
    trainer.train()
    assert trainer.step == expected
    assert trainer.task.environment.steps == budget


def test_more_gradient_steps_than_the_budget_has_room_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--environment_steps 450"):
        trainer_for(tmp_path, max_steps=121)


def test_target_network_moves_only_when_due(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, target_update=7, max_steps=30)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    losses = trainer.task.losses

    def watched(networks: Any, shadows: Any, batch: Any, step: int) -> Any:
        seen.append((shadows["q"].values.weight.clone(), networks["q"].values.weight.detach().clone()))
        yield from losses(networks, shadows, batch, step)

    trainer.task.losses = watched
    trainer.train()
    for step, (frozen, _) in enumerate(seen):
        assert torch.equal(frozen, seen[step - step % 7][1])  # what the network was at the last multiple of 7
    assert not torch.equal(seen[6][0], seen[6][1])


def test_without_target_network_there_is_no_copy(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, use_target_network=False)
    assert trainer.shadows == {}
    trainer.train()
    assert trainer.step == 120


def test_the_authors_rmsprop() -> None:
    recipe = load_recipe("dqn", "cartpole", {**SMALL, "optimizer": "rmsprop", "adam_epsilon": "0.01"})
    task = DqnTask(recipe)
    (group,) = task.optimizers({"q": task.build_model()})["q"].param_groups
    assert (group["alpha"], group["centered"], group["eps"], group["momentum"]) == (0.95, True, 0.01, 0.0)


def test_learns_to_echo(tmp_path: Path) -> None:
    """The smallest thing to learn: do what the observation says. Chance earns 6.7 of 20."""
    trainer = trainer_for(
        tmp_path, environment="Echo-v0", environment_steps=800, gradient_steps=25, learning_rate=1e-2, discount=0.5
    )
    trainer.train()
    assert trainer.evaluate(trainer.model, "test")["mean_return"] == 20.0


# Environments


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("CartPol-v1", "Did you mean 'CartPole-v"),
        ("CartPole-v7", "Did you mean 'CartPole-v1'"),
        ("cartpole-v1", "Did you mean 'CartPole-v1'"),
        ("Pendulum-v1", "continuous actions"),
        ("no_such_module:Game-v0", "cannot be imported"),
        ("", "Which environment"),
    ],
)
def test_what_cannot_be_played_is_refused_before_any_work(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        trainer_for(tmp_path / "run", environment=name)
    assert not (tmp_path / "run").exists()


def test_wrong_environment_options_are_a_sentence() -> None:
    with pytest.raises(UserError, match="cannot be made with options"):
        fit_config({"environment": "CartPole-v1", "environment_options": {"gravitas": 3}})


def test_options_for_another_environment() -> None:
    """The recipe of CartPole serves any environment, images too, but a scale must be meant for it."""
    cartpole = {"environment": "CartPole-v1", "observation_shape": [4], "num_actions": 2, "hidden_sizes": [8]}
    cartpole |= {"conv_channels": [], "conv_kernels": [], "conv_strides": [], "frame_skip": 1, "noop_max": 0}
    acrobot = fit_config({**cartpole, "environment": "Acrobot-v1"})
    assert (acrobot.observation_shape, acrobot.num_actions) == ((6,), 3)
    arcade = fit_config({**cartpole, "environment": "Arcade-v0"})
    assert (arcade.observation_shape, arcade.num_actions, arcade.frame_skip) == ((4, 84, 84), 3, 4)
    with pytest.raises(
        UserError, match="does not fit Acrobot-v1: ValueError: observation_scale needs 6 positive numbers"
    ):
        fit_config({**cartpole, "environment": "Acrobot-v1", "observation_scale": [1.0, 1.0, 5.0, 1.0]})


def test_atari_without_its_emulator_says_how_to_get_it() -> None:
    try:
        import ale_py  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=re.escape("hf-papers[atari]")):
            DqnTask(load_recipe("dqn", "paper", {}))
    else:
        assert DqnTask(load_recipe("dqn", "paper", {})).config.num_actions == 4


@pytest.mark.parametrize(
    ("name", "size", "actions"),
    [
        ("CartPole-v1", 4, 2),
        ("Acrobot-v1", 6, 3),
        ("FrozenLake-v1", 16, 4),
        ("Blackjack-v1", 45, 2),
        ("Echo-v0", 3, 3),
    ],
)
def test_the_environment_decides_the_shapes(name: str, size: int, actions: int) -> None:
    config = fit_config({"environment": name, "hidden_sizes": [8]})
    assert (config.observation_shape, config.num_actions) == ((size,), actions)
    scores = play_episodes(PaperDqnModel(config), config, [0, 1], epsilon=0.5, max_steps=30)
    assert (scores.lengths >= 1).all()


def test_frames_are_skipped_brightened_and_shrunk() -> None:
    env = FramePreprocessing(gym.make("Arcade-v0"), (20, 10), frame_skip=4, noop_max=0)
    frame, _ = env.reset(seed=0)
    start = int(frame[0, 0])
    assert frame.shape == (20, 10) and frame.dtype == np.uint8
    frame, reward, *_ = env.step(2)
    assert int(frame[0, 0]) == start + 4 and reward == 20.0
    waiting = FramePreprocessing(gym.make("Arcade-v0"), (20, 10), frame_skip=1, noop_max=0)
    assert np.array_equal(waiting.reset(seed=0)[0], np.full((20, 10), start))


ARCADE = {
    "environment": "Arcade-v0",
    "observation_shape": (4, 20, 20),
    "hidden_sizes": (8,),
    "frame_skip": 1,
    "noop_max": 0,
}
ARCADE |= {"conv_channels": (4,), "conv_kernels": (4,), "conv_strides": (4,)}


@pytest.mark.parametrize("life_loss", [False, True])
def test_memory_gives_back_what_the_player_saw(life_loss: bool) -> None:
    """The stacks of the wrapper and those of the memory are one thing: wrappers of training and acting never differ."""
    config = fit_config(ARCADE)
    memory = ReplayMemory(400, (20, 20), np.uint8, stack=4)
    player = TrainingEnvironment(config, memory, seed=0)
    player.clip_rewards, player.terminal_on_life_loss = True, life_loss
    player._begin_episode()
    seen, returns = [], 0
    for step in range(200):
        before = np.array(player.observation)
        finished = player.episode
        player.step(step % 3)
        seen.append((before, np.array(player.observation), player.episode == finished))
        returns += player.episode == finished
    slots = np.flatnonzero(memory.acted)
    drawn = memory._gather(slots)
    assert len(slots) == 200
    for index, (before, after, goes_on) in enumerate(seen):
        assert np.array_equal(drawn.observations[index], before)
        if goes_on:
            assert np.array_equal(drawn.next_observations[index], after)
    assert set(drawn.rewards) == {1.0}  # 5, clipped
    assert player.returns[0][1] == 5.0 * player.returns[0][0]  # the score is not
    losses_of_life = sum(int(before[-1, 0, 0]) % 16 == 15 for before, _, _ in seen)
    ends = sum(int(before[-1, 0, 0]) == 47 for before, _, _ in seen)
    assert drawn.terminated.sum() == (losses_of_life if life_loss else ends)


def test_seeds_of_training_and_evaluation_never_meet() -> None:
    training = {
        training_seed(seed, rank, episode) for seed in range(3) for rank in range(2) for episode in range(2000)
    }
    validation, test = (set(evaluation_seeds(purpose, 2000)) for purpose in (VALIDATION, TEST))
    assert len(validation) == len(test) == 2000
    assert not (training & validation or training & test or validation & test)
    assert {seed % 4 for seed in training} == {0}  # by construction, not by luck


def test_evaluation_uses_fresh_environments_and_these_seeds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from hf_papers.papers.dqn import playing

    trainer = trainer_for(tmp_path)
    trainer.train()
    before = trainer.task.environment.state_dict()
    asked: list[list[int]] = []
    play = playing.play_episodes
    monkeypatch.setattr(
        "hf_papers.papers.dqn.training_dqn.play_episodes",
        lambda model, config, seeds, **rules: asked.append(list(seeds)) or play(model, config, seeds, **rules),
    )
    first, again = (trainer.evaluate(trainer.model, "test") for _ in range(2))
    assert first == again
    assert asked == [evaluation_seeds(TEST, 2)] * 4  # the usual starts and the unseen ones, twice
    after = trainer.task.environment.state_dict()
    assert np.array_equal(before["observation"], after["observation"]) and before["generator"] == after["generator"]
    assert {"mean_return_unseen_starts", "mean_max_q"} <= set(first)
    assert "mean_return_unseen_starts" not in trainer.evaluate(trainer.model, "validation")


def test_scores_do_not_depend_on_neighbours_and_unseen_starts_are_unseen() -> None:
    torch.manual_seed(1)
    model = PaperDqnModel(CARTPOLE)
    together = play_episodes(model, CARTPOLE, range(6), epsilon=0.3)
    alone = [play_episodes(model, CARTPOLE, [seed], epsilon=0.3).returns[0] for seed in range(6)]
    assert together.returns.tolist() == alone
    env = make_environment(CARTPOLE)
    usual = np.stack([env.reset(seed=seed)[0] for seed in range(50)])
    wide = np.stack([env.reset(seed=seed, options={"low": -0.15, "high": 0.15})[0] for seed in range(50)])
    assert np.abs(usual).max() <= 0.05 < np.abs(wide).max()
    assert random_states(CARTPOLE, 20, 7).shape == (20, 4)
    assert np.array_equal(random_states(CARTPOLE, 20, 7), random_states(CARTPOLE, 20, 7))


def test_a_score_can_be_repeated_in_a_fresh_process(tmp_path: Path) -> None:
    """baselines#893 (good in training, bad in evaluation: other ε, other wrappers) and SB3#1861 (spaces not stored)."""
    torch.manual_seed(0)
    config = fit_config({"environment": "CartPole-v1", "hidden_sizes": (8,), "evaluation_epsilon": 0.25})
    model = PaperDqnModel(config)
    model.save_pretrained(tmp_path)
    here = play_episodes(model, config, range(5), epsilon=config.evaluation_epsilon).returns.tolist()
    code = (
        "import json, sys, hf_papers\n"
        "from transformers import AutoModel\n"
        "from hf_papers.papers.dqn.playing import play_episodes\n"
        "model = AutoModel.from_pretrained(sys.argv[1])\n"
        "scores = play_episodes(model, model.config, range(5), epsilon=model.config.evaluation_epsilon)\n"
        "print(json.dumps(scores.returns.tolist()))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(out.strip().splitlines()[-1]) == here


def test_scoring_with_the_wrong_network_is_refused(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path)
    trainer.model = PaperDqnModel(fit_config({"environment": "Acrobot-v1", "hidden_sizes": [4]}))
    with pytest.raises(UserError, match="The network was made for"):
        trainer.evaluate(trainer.model, "test")


# Resuming


def test_an_episode_is_lived_again_to_the_bit() -> None:
    def player(environment: str = "CartPole-v1") -> TrainingEnvironment:
        config = fit_config({"environment": environment, "hidden_sizes": [8]})
        memory = ReplayMemory(1000, tuple(config.observation_shape), np.float32)
        return TrainingEnvironment(config, memory, seed=3, rank=1)

    torch.manual_seed(0)
    policy = GreedyPolicy(PaperDqnModel(CARTPOLE))
    one, other = player(), player()
    one.play(policy, np.full(333, 0.5))
    state = one.state_dict()
    other.load_state_dict(state)
    assert len(state["actions"]) > 0
    assert other.episode_return == one.episode_return
    one.replay.start(one.observation), other.replay.start(other.observation)
    one.play(policy, np.full(100, 0.5)), other.play(policy, np.full(100, 0.5))
    assert np.array_equal(one.observation, other.observation)
    assert one.returns == other.returns and one.actions == other.actions

    moody = player("Moody-v0")
    moody.play(GreedyPolicy(PaperDqnModel(fit_config({"environment": "Moody-v0", "hidden_sizes": [8]}))), np.ones(10))
    with pytest.raises(UserError, match="does not repeat itself"):
        moody.load_state_dict({**moody.state_dict(), "actions": np.array([], np.int64)})


@pytest.mark.parametrize(
    "overrides",
    [{}, {"use_replay": False, "gradient_accumulation_steps": 2}, {"double_q": True, "environment": "Echo-v0"}],
)
def test_resumed_training_ends_with_the_same_weights(tmp_path: Path, overrides: dict[str, Any]) -> None:
    straight = trainer_for(tmp_path / "straight", **overrides)
    straight.train()
    begun = trainer_for(tmp_path / "cut", save_steps=47, save_total_limit=99, **overrides)  # in the midst of a round
    begun.train()
    first, *others = begun.run.checkpoints.complete()
    for later in others:
        later.rename(tmp_path / later.name)
    resumed = trainer_for(tmp_path / "cut", save_steps=47, save_total_limit=99, resume="auto", **overrides)
    assert resumed.step == 47
    resumed.train()
    for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert straight.task.environment.returns == resumed.task.environment.returns


# Recipes, pictures and words


def test_every_recipe_can_be_read() -> None:
    assert {"embedded", "cartpole", "cartpole-no-replay", "cartpole-no-target", "paper"} <= set(PAPER.recipes)
    for name in PAPER.recipes:
        recipe = load_recipe("dqn", name)
        assert recipe.description and recipe.estimate
        options = recipe.task
        assert options.random_steps + options.rounds * options.train_frequency == options.environment_steps
        assert recipe.training.max_steps is None  # the budget is said once, in steps of the environment


def test_paper_recipe_is_extended_data_table_1() -> None:
    recipe = load_recipe("dqn", "paper")
    options, training = recipe.task, recipe.training
    assert (options.replay_capacity, options.learning_starts, options.target_update) == (1_000_000, 50_000, 10_000)
    assert (options.train_frequency, options.gradient_steps, options.discount) == (4, 1, 0.99)
    assert options.exploration_fraction * options.environment_steps == 1_000_000
    assert (options.initial_epsilon, options.final_epsilon, options.clip_rewards) == (1.0, 0.1, True)
    assert (training.optimizer, training.learning_rate, training.adam_epsilon) == ("rmsprop", 2.5e-4, 0.01)
    assert training.per_device_train_batch_size == 32
    assert (recipe.config.frame_skip, recipe.config.noop_max, recipe.config.evaluation_epsilon) == (4, 30, 0.05)


def test_ablations_change_one_thing_only() -> None:
    whole = load_recipe("dqn", "cartpole").to_dict()
    for name, flag in {"cartpole-no-replay": "use_replay", "cartpole-no-target": "use_target_network"}.items():
        part = load_recipe("dqn", name).to_dict()
        assert part["task"].pop(flag) is False
        assert part["task"] == {key: value for key, value in whole["task"].items() if key != flag}
        assert (part["model"], part["training"]) == (whole["model"], whole["training"])


def test_figures_of_a_run(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, eval_steps=60)
    trainer.train()
    figures = trainer.task.figures(trainer.model, tmp_path, trainer.context)
    assert {path.name for path in figures.values()} == {"returns.png", "q_values.png", "episode.gif"}
    assert all(path.stat().st_size > 1000 for path in figures.values())
    has_video = all(importlib.util.find_spec(name) for name in ("imageio", "imageio_ffmpeg"))
    assert (tmp_path / "episode.mp4").exists() == has_video
    assert [steps for steps, _, _ in trainer.task.evaluations] == [250, 400]


def test_the_readmes_five_lines_run(tmp_path: Path) -> None:
    readme = (PAPER.folder / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    five_lines = next(block for block in blocks if "from_pretrained" in block)
    assert len([line for line in five_lines.splitlines() if line]) <= 5
    PaperDqnModel(CARTPOLE).save_pretrained(tmp_path)
    checkpoint = re.search(r'from_pretrained\("([^"]+)"\)', five_lines).group(1)
    names: dict[str, Any] = {}
    exec(five_lines.replace(checkpoint, str(tmp_path)), names)
    assert int(names["action"]) in (0, 1)

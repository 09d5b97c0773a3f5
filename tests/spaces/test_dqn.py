"""DQN's Space in a browser, by calls, and its arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.spaces.common import SpaceTests, Visit, load_app, save_random_model


class Leaning(torch.nn.Module):
    """A player that pushes towards where the pole falls, which holds it for a while; `q_values` as the model has it."""

    def q_values(self, observations: torch.Tensor) -> torch.Tensor:
        lean = observations[..., 2] + 0.3 * observations[..., 3]
        return torch.stack([-lean, lean], dim=-1)


class TestDQN(SpaceTests):
    key = "dqn"
    tabs = {"One episode": None, "Where it holds": None}
    endpoints = {"/run_episode", "/map_survival"}

    @classmethod
    def save_checkpoint(cls, folder: Path) -> None:
        save_random_model(folder, cls.key, "cartpole")

    # In the browser

    def test_plays_another_episode_after_a_shove(self, visit: Callable[..., Visit]) -> None:
        page = visit()
        episode = page.page.locator("#episode svg.episode")
        episode.wait_for()
        upright = episode.get_attribute("aria-label")
        page.set_slider("angle", 10)
        page.page.get_by_role("button", name="Run an episode").click()
        page.page.wait_for_function(
            "before => document.querySelector('#episode svg.episode').getAttribute('aria-label') !== before",
            arg=upright,
        )
        assert "10" in page.page.locator("#angle input[type=number]").input_value()
        page.screenshot("dqn-episode")
        page.open_tab("Where it holds")
        page.page.get_by_role("button", name="Play 441 episodes").click()
        page.page.locator("#map svg.map").wait_for()
        assert page.page.locator("#map svg.map title").count() == 441
        page.screenshot("dqn-where-it-holds")
        assert page.foreign_requests() == [] and page.problems == []

    def test_refuses_half_a_seed_in_words(self, visit: Callable[..., Visit]) -> None:
        page = visit()
        page.page.locator("#episode svg.episode").wait_for()
        page.set_number("seed", "2.5")
        assert "The seed must be a whole number from 0" in page.complaint()
        page.screenshot("dqn-wrong-input")

    def test_api_answers_and_refuses_in_words(self, client: Any) -> None:
        from gradio_client.exceptions import AppError

        episode, summary = client.predict(0.0, 0.0, 0.0, 3, api_name="/run_episode")
        again, _ = client.predict(0.0, 0.0, 0.0, 3, api_name="/run_episode")
        assert "<svg" in episode and "max Q" in summary
        assert episode == again
        with pytest.raises(AppError, match="whole number"):
            client.predict(0.0, 0.0, 0.0, -3, api_name="/run_episode")

    # Without a server

    def test_episode_starts_where_it_is_told_and_the_shove_comes_after_two_seconds(self) -> None:
        app = load_app("dqn")
        calm = app.play(Leaning(), angle=3.0, shove=0.0, epsilon=0.0, seed=0)
        shoved = app.play(Leaning(), angle=3.0, shove=2.0, epsilon=0.0, seed=0)
        assert math.degrees(calm.states[0, 2]) == pytest.approx(3.0, abs=1e-5)
        assert calm.steps > 101 and not calm.shoved and shoved.shoved
        assert np.array_equal(calm.states[:101], shoved.states[:101])
        assert shoved.states[102, 3] - calm.states[102, 3] > 1.0
        assert len(calm.states) == len(calm.q_values) == calm.steps + 1

    def test_random_actions_follow_epsilon_and_the_seed(self) -> None:
        app = load_app("dqn")
        reckless = app.play(Leaning(), angle=0.0, shove=0.0, epsilon=1.0, seed=1)
        assert reckless.random.all()
        again = app.play(Leaning(), angle=0.0, shove=0.0, epsilon=1.0, seed=1)
        assert np.array_equal(reckless.actions, again.actions)
        assert not app.play(Leaning(), 0.0, 0.0, 0.0, 1).random.any()

    def test_survival_map_agrees_with_single_episodes(self) -> None:
        app = load_app("dqn")
        angles, velocities = np.array([-4.0, 0.0, 8.0]), np.array([0.0])
        *_, (_, lasted) = app.survival(Leaning(), angles, velocities)
        assert lasted.shape == (1, 3)
        for column, angle in enumerate(angles):
            environment = app.gymnasium.make(app.ENVIRONMENT)
            environment.reset(seed=0)
            environment.unwrapped.state = np.array([0.0, 0.0, math.radians(angle), 0.0])
            observation, steps, done = environment.unwrapped.state.astype(np.float32), 0, False
            while not done:
                action = int(Leaning().q_values(torch.from_numpy(observation)).argmax())
                observation, _, terminated, truncated, _ = environment.step(action)
                steps, done = steps + 1, terminated or truncated
            assert abs(lasted[0, column] - steps) <= 2  # the two simulators round differently

    def test_ticks_are_round_and_inside(self) -> None:
        app = load_app("dqn")
        assert app._round_ticks(7.2, 25.1) == [10, 15, 20, 25]
        assert list(app._second_ticks(10.0)) == [0, 2, 4, 6, 8, 10]

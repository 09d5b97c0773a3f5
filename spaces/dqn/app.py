"""Watch a deep Q-network balance a pole, and find out where it was never taught to: `python spaces/dqn/app.py`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import gymnasium
import numpy as np
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from transformers import PreTrainedModel

from hf_papers.errors import UserError
from hf_papers.space_kit import (
    ACCENT,
    CONTRAST,
    bounded,
    errors_as_sentences,
    facts,
    footer,
    header,
    hint,
    load_model,
    run,
    valid_seed,
)


CHECKPOINT = Path(__file__).parent / "checkpoint"
ENVIRONMENT = "CartPole-v1"
MAX_STEPS = 500  # of CartPole-v1
STEP_SECONDS = 0.02
SHOVE_STEP = 100  # two seconds into the episode
TRAINED_ANGLE = math.degrees(0.05)  # episodes of the training start within this angle, in degrees
LIMIT_ANGLE = 12.0  # degrees at which the pole counts as fallen
MAX_ANGLE, MAX_SHOVE = 11.0, 3.0


@dataclass(frozen=True)
class Episode:
    """One game. With T actions: `states` (T + 1, 4), `q_values` (T + 1, 2), `actions` and `random` (T,)."""

    states: np.ndarray
    q_values: np.ndarray
    actions: np.ndarray
    random: np.ndarray
    shoved: bool

    @property
    def steps(self) -> int:
        return len(self.actions)

    @property
    def seconds(self) -> float:
        return self.steps * STEP_SECONDS

    def ending(self) -> str:
        position, _, angle, _ = self.states[-1]
        if abs(angle) > math.radians(LIMIT_ANGLE):
            return "the pole fell"
        return "off the track" if abs(position) > 2.4 else "balanced to the end"


def play(model: PreTrainedModel, angle: float, shove: float, epsilon: float, seed: int) -> Episode:
    """Play one episode of at most 500 steps from a pole tilted by `angle` degrees.

    `shove` (rad/s) is added to the pole's angular velocity after two seconds; the network does not see it coming.
    """
    environment = gymnasium.make(ENVIRONMENT)
    observation, _ = environment.reset(seed=seed)
    inner = environment.unwrapped
    inner.state = np.array(inner.state, dtype=np.float64)
    inner.state[2] = math.radians(angle)
    observation = inner.state.astype(np.float32)
    dice = torch.Generator().manual_seed(seed)
    states, values, actions, random = [observation], [], [], []
    done = False
    while not done:
        q_values = model.q_values(torch.from_numpy(observation))
        explore = bool(torch.rand((), generator=dice) < epsilon)
        action = int(torch.randint(2, (), generator=dice)) if explore else int(q_values.argmax())
        if len(actions) == SHOVE_STEP and shove:
            inner.state = np.array(inner.state) + np.array([0.0, 0.0, 0.0, shove])
        observation, _, terminated, truncated, _ = environment.step(action)
        states.append(observation)
        values.append(q_values.numpy())
        actions.append(action)
        random.append(explore)
        done = terminated or truncated
    values.append(model.q_values(torch.from_numpy(observation)).numpy())
    environment.close()
    shoved = bool(shove) and len(actions) > SHOVE_STEP
    return Episode(np.stack(states), np.stack(values), np.array(actions), np.array(random), shoved)


def survival(model: PreTrainedModel, angles: np.ndarray, velocities: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Play every combination of starting angle (degrees) and angular velocity (rad/s) at once, without randomness.

    Yields (steps played, steps each episode has lasted: (velocities, angles)) every 25 steps, up to 500.
    """
    grid_velocity, grid_angle = np.meshgrid(velocities, np.radians(angles), indexing="ij")
    environment = CartPoleVectorEnv(num_envs=grid_angle.size, max_episode_steps=10 * MAX_STEPS)
    environment.reset(seed=0)
    zeros = np.zeros(grid_angle.size)
    environment.state = np.stack([zeros, zeros, grid_angle.ravel(), grid_velocity.ravel()])
    observations = environment.state.T.astype(np.float32)
    alive, lasted = np.ones(grid_angle.size, dtype=bool), np.zeros(grid_angle.size, dtype=int)
    for step in range(1, MAX_STEPS + 1):
        actions = np.zeros(len(alive), dtype=np.int64)
        actions[alive] = model.q_values(torch.from_numpy(observations[alive])).argmax(1).numpy()
        observations, _, terminated, _, _ = environment.step(actions)
        lasted[alive] += 1
        alive &= ~terminated
        if step % 25 == 0 or not alive.any():
            yield step, lasted.reshape(grid_angle.shape)
        if not alive.any():
            return


# --------------------------------------------------------------------------------------------- pictures


def _numbers(values: np.ndarray, digits: int = 1) -> str:
    return ";".join(f"{value:.{digits}f}" for value in values)


def draw_episode(episode: Episode) -> str:
    """The episode as an animated SVG in real time: cart and pole above, both Q-values with a running clock below.

    SVG rather than a GIF: sharp on every screen, a hundredth of the bytes, and the clock and the cart stay in step.
    """
    width, ground, chart_top, chart_bottom, left, right = 480, 190, 262, 400, 44, 470
    x = width / 2 + episode.states[:, 0] * 90  # 2.4 m = 216 pixels
    tilt = np.degrees(episode.states[:, 2])
    duration = f'dur="{max(episode.seconds, 0.2):.2f}s" repeatCount="indefinite"'
    low, high = float(episode.q_values.min()), float(episode.q_values.max())
    margin = 0.08 * (high - low) + 1e-3
    low, high = low - margin, high + margin
    time = np.linspace(left, right, len(episode.states))

    def to_y(values: np.ndarray) -> np.ndarray:
        return chart_bottom - (values - low) / (high - low) * (chart_bottom - chart_top)

    def line(values: np.ndarray, colour: str) -> str:
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(time, to_y(values), strict=True))
        return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"/>'

    def at(step: float) -> float:
        return left + (right - left) * step / max(episode.steps, 1)

    tick = max(1.5, (right - left) / episode.steps)
    random_steps = "".join(
        f'<rect x="{at(step):.1f}" y="{chart_bottom + 1}" width="{tick:.1f}" height="5"/>'
        for step in np.flatnonzero(episode.random)
    )
    shove = at(SHOVE_STEP) if episode.shoved else None
    shove_mark = (
        f'<line x1="{shove:.1f}" y1="{chart_top}" x2="{shove:.1f}" y2="{chart_bottom}" class="shove"/>'
        f'<text x="{shove + 5:.1f}" y="{chart_top + 13}" class="small">shove</text>'
        if shove is not None
        else ""
    )
    force = np.append(episode.actions, episode.actions[-1])
    towards_left, towards_right = (_numbers((force == action).astype(float), 0) for action in (0, 1))
    discrete = 'calcMode="discrete"'
    ticks = "".join(
        f'<text x="{left - 6}" y="{float(to_y(np.array(value))) + 4:.1f}" text-anchor="end" class="small">{value:.0f}</text>'
        f'<line x1="{left}" x2="{right}" y1="{float(to_y(np.array(value))):.1f}" y2="{float(to_y(np.array(value))):.1f}" '
        'class="grid"/>'
        for value in _round_ticks(low, high)
    )
    seconds = "".join(
        f'<text x="{at(second / STEP_SECONDS):.1f}" y="{chart_bottom + 20}" class="small middle">{second} s</text>'
        for second in _second_ticks(episode.seconds)
    )
    return f"""
<svg class="episode" viewBox="0 30 {width} 398" role="img" aria-label="Episode of {episode.steps} steps: {episode.ending()}">
<style>
.episode {{ width: 100%; max-width: 720px; height: auto; display: block; margin: 0 auto; color: var(--body-text-color); }}
.episode .middle {{ text-anchor: middle; }}
.episode text {{ font-size: 14px; fill: currentColor; }}
.episode .small {{ font-size: 12.5px; fill: var(--body-text-color-subdued); }}
.episode .grid {{ stroke: var(--border-color-primary); stroke-width: 1; }}
.episode .shove {{ stroke: currentColor; stroke-width: 1.5; stroke-dasharray: 4 4; }}
</style>
<line x1="24" x2="456" y1="{ground}" y2="{ground}" stroke="currentColor" stroke-width="2"/>
<line x1="24" x2="24" y1="{ground - 9}" y2="{ground + 9}" stroke="currentColor" stroke-width="2"/>
<line x1="456" x2="456" y1="{ground - 9}" y2="{ground + 9}" stroke="currentColor" stroke-width="2"/>
<g transform="translate({x[0]:.1f} {ground})">
<animateTransform attributeName="transform" type="translate" {duration}
 values="{";".join(f"{value:.1f} {ground}" for value in x)}"/>
<g fill="{ACCENT}"><path d="M-42 -24 l-22 11 l22 11 z" opacity="0">
<animate attributeName="opacity" {duration} {discrete} values="{towards_left}"/></path></g>
<g fill="{CONTRAST}"><path d="M42 -24 l22 11 l-22 11 z" opacity="0">
<animate attributeName="opacity" {duration} {discrete} values="{towards_right}"/></path></g>
<rect x="-34" y="-26" width="68" height="26" rx="5" fill="currentColor"/>
<g transform="rotate({tilt[0]:.2f} 0 -24)"><animateTransform attributeName="transform" type="rotate" {duration}
 values="{";".join(f"{value:.2f} 0 -24" for value in tilt)}"/>
<line x1="0" y1="-24" x2="0" y2="-146" stroke="#d97706" stroke-width="9" stroke-linecap="round"/>
<circle cx="0" cy="-24" r="5" fill="#fde68a"/></g></g>
<text x="{left}" y="{chart_top - 26}">What the network expects, if it pushes now</text>
<circle cx="{left + 5}" cy="{chart_top - 13}" r="4.5" fill="{ACCENT}"/>
<text x="{left + 14}" y="{chart_top - 8}" class="small">Q(left)</text>
<circle cx="{left + 80}" cy="{chart_top - 13}" r="4.5" fill="{CONTRAST}"/>
<text x="{left + 89}" y="{chart_top - 8}" class="small">Q(right)</text>
{ticks}{seconds}{line(episode.q_values[:, 0], ACCENT)}{line(episode.q_values[:, 1], CONTRAST)}{shove_mark}
<g fill="#94a3b8">{random_steps}</g>
<line x1="{left}" x2="{left}" y1="{chart_top}" y2="{chart_bottom}" stroke="currentColor" stroke-width="1.5">
<animate attributeName="x1" {duration} values="{_numbers(time)}"/>
<animate attributeName="x2" {duration} values="{_numbers(time)}"/></line>
</svg>"""


def _round_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers between low and high."""
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = max(1.0, next(factor for factor in (1, 2, 5, 10) if factor * magnitude >= raw) * magnitude)
    return [value * step for value in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _second_ticks(seconds: float) -> range:
    return range(0, math.floor(seconds) + 1, max(1, math.ceil(seconds / 6)))


def draw_survival(lasted: np.ndarray, angles: np.ndarray, velocities: np.ndarray) -> str:
    """Steps survived per starting state as an SVG map; `lasted` is (velocities, angles)."""
    cell, left, top = 18, 62, 30
    width, height = left + cell * len(angles) + 14, top + cell * len(velocities) + 52

    def colour(steps: int) -> str:
        # Orange, cream, lavender, indigo.
        stops = np.array([[251, 146, 60], [254, 243, 226], [165, 180, 252], [55, 48, 163]])
        mixed = [np.interp(steps / MAX_STEPS, [0.0, 0.2, 0.5, 1.0], channel) for channel in stops.T]
        return "#" + "".join(f"{round(value):02x}" for value in mixed)

    def across(angle: float) -> float:
        return left + cell * ((angle - angles[0]) / (angles[1] - angles[0]) + 0.5)

    def down(velocity: float) -> float:
        return top + cell * ((velocities[-1] - velocity) / (velocities[1] - velocities[0]) + 0.5)

    cells = "".join(
        f'<rect x="{left + column * cell}" y="{top + (len(velocities) - 1 - row) * cell}" width="{cell}" height="{cell}" '
        f'fill="{colour(lasted[row, column])}"><title>{angles[column]:+.0f}°, {velocities[row]:+.1f} rad/s: '
        f"{lasted[row, column]} steps</title></rect>"
        for row in range(len(velocities))
        for column in range(len(angles))
    )
    labels = "".join(
        f'<text x="{across(angle):.0f}" y="{height - 34}" text-anchor="middle">{angle:+.0f}°</text>'
        for angle in angles[::5]
    ) + "".join(
        f'<text x="{left - 6}" y="{down(velocity) + 5:.0f}" text-anchor="end">{velocity:+.1f}</text>'
        for velocity in velocities[::5]
    )
    x, y, right, bottom = across(-TRAINED_ANGLE), down(0.05) - 2, across(TRAINED_ANGLE), down(-0.05) + 2
    box = f'x="{x:.1f}" y="{y:.1f}" width="{right - x:.1f}" height="{bottom - y:.1f}"'
    return f"""
<svg class="map" viewBox="0 0 {width} {height}" shape-rendering="crispEdges" role="img"
 aria-label="Steps survived for each start">
<style>.map {{ width: 100%; max-width: 560px; height: auto; display: block; margin: 0 auto; }}
.map text {{ font-size: 15px; fill: var(--body-text-color); }}</style>
<text x="6" y="18">starting spin of the pole, rad/s</text>{cells}{labels}
<text x="{left + cell * len(angles) / 2:.0f}" y="{height - 10}" text-anchor="middle">starting angle of the pole</text>
<g fill="none" stroke="#ffffff" stroke-width="4"><rect {box}/></g>
<g fill="none" stroke="#111827" stroke-width="1.5"><rect {box}/></g>
</svg>"""


# ------------------------------------------------------------------------------------------------- page


def build() -> gr.Blocks:
    """The page around one checkpoint. Raises `UserError` when there is none, or it plays something else."""
    model = load_model("dqn", CHECKPOINT)
    if model.config.environment not in (None, ENVIRONMENT) or tuple(model.config.observation_shape) != (4,):
        raise UserError(
            f"This Space plays {ENVIRONMENT}, but the checkpoint was trained for "
            f"{model.config.environment or model.config.observation_shape}. Give one of the `cartpole` recipe in MODEL_ID."
        )

    @errors_as_sentences
    def run_episode(angle: float, shove: float, epsilon: float, seed: float) -> tuple[str, str]:
        """Play one episode; returns an animated SVG and a summary as HTML."""
        episode = play(
            model,
            bounded(angle, "The starting angle", -MAX_ANGLE, MAX_ANGLE),
            bounded(shove, "The shove", -MAX_SHOVE, MAX_SHOVE),
            bounded(epsilon, "ε", 0.0, 1.0),
            valid_seed(seed),
        )
        share = float(episode.random.mean())
        summary = {
            "return: steps before the end, at most 500": f"{episode.steps}",
            "how it ended": episode.ending(),
            "expected at the start: max Q": f"{episode.q_values[0].max():.0f}",
            "random actions": f"{share:.0%}",
        }
        return draw_episode(episode), facts(summary)

    @errors_as_sentences
    def map_survival(progress: gr.Progress = gr.Progress()) -> tuple[str, str]:  # noqa: B008  gradio finds it in the signature
        """Play 441 episodes from a grid of starts; returns the map as SVG and a summary as HTML."""
        angles, velocities = np.linspace(-10, 10, 21), np.linspace(-2, 2, 21)
        lasted = np.zeros((21, 21), dtype=int)
        for step, so_far in survival(model, angles, velocities):
            lasted = so_far
            progress(step / MAX_STEPS, desc="Playing 441 episodes side by side")
        inside = lasted[:, np.abs(angles) <= TRAINED_ANGLE][np.abs(velocities) <= 0.05]
        summary = {
            "of the starts on this map end in 500 steps": f"{np.mean(lasted == MAX_STEPS):.0%}",
            "of those inside the box, as in training": f"{np.mean(inside == MAX_STEPS):.0%}",
        }
        return draw_survival(lasted, angles, velocities), facts(summary)

    with gr.Blocks(title="DQN: learning to balance") as demo:
        header(
            "dqn",
            "It was told nothing but “still standing”",
            "The network sees four numbers and predicts, for each of two pushes, how long things will go well: Q(left) and "
            "Q(right). It takes the larger. Give it a start or a shove that its training never had, and watch what it "
            "expects.",
        )
        with gr.Tabs():
            with gr.Tab("One episode"):
                with gr.Row():
                    with gr.Column(scale=6, min_width=300):
                        summary = gr.HTML(elem_id="episode-facts")
                        episode = gr.HTML(elem_id="episode")
                    with gr.Column(scale=4, min_width=260):
                        angle = gr.Slider(
                            -MAX_ANGLE, MAX_ANGLE, 0, step=0.5, label="Starting angle of the pole, degrees",
                            elem_id="angle",
                            info=f"In training: within ±{TRAINED_ANGLE:.1f}. Beyond ±12 it counts as fallen.",
                        )  # fmt: skip
                        shove = gr.Slider(
                            -MAX_SHOVE, MAX_SHOVE, 0, step=0.1, label="Shove after two seconds, rad/s",
                            info="Never happens in training.", elem_id="shove",
                        )  # fmt: skip
                        epsilon = gr.Slider(
                            0, 1, 0, step=0.01, label="ε: share of random actions",
                            info="1 is a player that has learnt nothing.", elem_id="epsilon",
                        )  # fmt: skip
                        seed = gr.Number(0, label="Seed", precision=None, elem_id="seed")
                        button = gr.Button("Run an episode", variant="primary", size="lg")
                inputs = [angle, shove, epsilon, seed]
                gr.on(
                    [button.click, demo.load, angle.release, shove.release, epsilon.release, seed.submit],
                    run_episode, inputs, [episode, summary], api_name="run_episode", show_progress="hidden",
                )  # fmt: skip
            with gr.Tab("Where it holds"):
                hint(
                    "Every cell is an episode from another start: indigo held out for all 500 steps, orange fell at once. "
                    "The small box in the middle is all that training ever started from; the rest it has met only while "
                    "recovering."
                )
                map_button = gr.Button("Play 441 episodes", variant="primary", size="lg")
                map_summary = gr.HTML(elem_id="map-facts")
                survival_map = gr.HTML(elem_id="map", min_height=80)
                map_button.click(map_survival, None, [survival_map, map_summary], api_name="map_survival")
        footer("dqn", model, CHECKPOINT)
    return demo


if __name__ == "__main__":
    run(build)

"""Training the deep Q-network: Algorithm 1 of the Nature paper, on the shared trainer.

A step of the trainer is one gradient step. Between gradient steps the task plays: first `learning_starts` steps at random,
then again and again `train_frequency` steps of the environment followed by `gradient_steps` gradient steps, until
`environment_steps` have been played. Nature plays 4 and learns 1; many on few are played and learned faster.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from hf_papers.errors import UserError
from hf_papers.papers.dqn.environments import (
    PROBE,
    TEST,
    VALIDATION,
    evaluation_seeds,
    fit_config,
    reward_threshold,
)
from hf_papers.papers.dqn.modeling_dqn import PaperDqnModel
from hf_papers.papers.dqn.playing import (
    GreedyPolicy,
    TrainingEnvironment,
    film_episode,
    play_episodes,
    random_states,
    save_film,
)
from hf_papers.papers.dqn.replay import ReplayMemory, Transitions
from hf_papers.training.arguments import option
from hf_papers.training.recipe import Recipe
from hf_papers.training.shadow import Shadow
from hf_papers.training.task import Batch, Context, Task, Turn


# Batches of a phase are drawn together, up to this many bytes of observations.
DRAWN_AT_ONCE = 64 * 2**20


@dataclass(frozen=True)
class DqnOptions:
    """How DQN plays and learns. The defaults are Nature's, Extended Data Table 1."""

    environment_steps: int = option(50_000_000, "steps of the environment in the whole training, of each process")
    learning_starts: int = option(50_000, "steps played at random before the first gradient step")
    train_frequency: int = option(4, "steps of the environment between two rounds of learning")
    gradient_steps: int = option(1, "gradient steps in a round of learning")
    replay_capacity: int = option(1_000_000, "frames that the replay memory holds")
    discount: float = option(0.99, "γ: what a reward is worth one step later")
    target_update: int = option(10_000, "gradient steps between two updates of the target network")
    initial_epsilon: float = option(1.0, "share of random actions at the beginning")
    final_epsilon: float = option(0.1, "share of random actions once exploration has come down")
    exploration_fraction: float = option(
        0.02, "part of environment_steps over which it comes down, in a straight line"
    )
    clip_rewards: bool = option(True, "learn from rewards clipped to [-1, 1]; scores are never clipped")
    terminal_on_life_loss: bool = option(
        False, "learn as if the game ended with each lost life, where there are lives"
    )
    double_q: bool = option(False, "let the learning network choose the next action and the target network value it")
    use_replay: bool = option(True, "false: learn only from the newest steps, in their order (ablation)")
    use_target_network: bool = option(True, "false: the learning network makes its own targets (ablation)")
    validation_episodes: int = option(20, "episodes of an evaluation during training")
    test_episodes: int = option(30, "episodes of the final evaluation")
    evaluation_max_steps: int | None = option(
        None, "longest evaluated episode in steps; none: as the environment says"
    )
    held_out_states: int = option(500, "states on which the mean of max Q is followed")
    unseen_random_actions: int = option(
        0, "random actions before the network takes over, in the test from unseen states"
    )
    unseen_reset_options: dict[str, float] = field(
        default_factory=dict,
        metadata={"help": "options of the resets in the test from unseen states, e.g. low=-0.1,high=0.1"},
    )

    def __post_init__(self) -> None:
        positive = ("environment_steps", "train_frequency", "gradient_steps", "replay_capacity", "target_update")
        positive += ("validation_episodes", "test_episodes", "held_out_states", "evaluation_max_steps")
        for name in positive:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("learning_starts", "unseen_random_actions"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be at least 0, not {getattr(self, name)}.")
        for name in ("discount", "initial_epsilon", "final_epsilon", "exploration_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name} must lie in [0, 1], not {getattr(self, name)}.")
        if self.learning_starts + self.train_frequency > self.environment_steps:
            raise UserError(
                f"Nothing would be learned: environment_steps is {self.environment_steps}, but the first gradient step "
                f"comes after learning_starts + train_frequency = {self.learning_starts + self.train_frequency} steps."
            )

    @property
    def rounds(self) -> int:
        """Rounds of playing and learning after the random beginning."""
        return (self.environment_steps - self.learning_starts) // self.train_frequency

    @property
    def random_steps(self) -> int:
        """Length of the random beginning: `learning_starts`, and what would not fill a round, so that the sum is exact."""
        return self.environment_steps - self.rounds * self.train_frequency

    def epsilons(self, first: int, count: int) -> np.ndarray:
        """Share of random actions at the environment steps first, first + 1, …, (count,)."""
        steps = np.arange(first, first + count)
        progress = np.clip(steps / max(1.0, self.exploration_fraction * self.environment_steps), 0.0, 1.0)
        epsilons = self.initial_epsilon + (self.final_epsilon - self.initial_epsilon) * progress
        return np.where(steps < self.random_steps, 1.0, epsilons)


class DqnTask(Task):
    """Deep Q-learning with experience replay and a target network, in any environment with discrete actions."""

    Options: ClassVar[type] = DqnOptions
    best_metric: ClassVar[str] = "mean_return"
    greater_is_better: ClassVar[bool] = True

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.options: DqnOptions
        self.config = fit_config(recipe.model)  # makes the environment once: what is wrong with it is said now
        self._check_lengths()
        self.environment: TrainingEnvironment | None = None
        self.replay: ReplayMemory | None = None
        self._learned = self._batches_per_round()  # batches handed out since the last round of playing
        self._draw_state: dict[str, Any] | None = None  # the replay's generator before the draw in use
        self._drawn: Batch = {}  # the batches of the draw in use, stacked
        self._targets: torch.Tensor | None = None  # of those that the present target network makes
        self._targets_from = self._targets_to = 0  # positions in the draw
        self._restored: dict[str, Any] | None = None
        self._held_out: np.ndarray | None = None
        self._watched: dict[str, float] = {}
        self.evaluations: list[tuple[int, float, float]] = []  # (environment steps, mean return, mean max Q)

    def _check_lengths(self) -> None:
        options, batch = self.options, self.arguments.per_device_train_batch_size
        steps, possible = self.arguments.max_steps, options.rounds * options.gradient_steps
        if steps is not None and steps > possible:
            needed = options.learning_starts + -(-steps // options.gradient_steps) * options.train_frequency
            raise UserError(
                f"max_steps counts gradient steps, and {options.environment_steps} environment steps have room for "
                f"{possible} of them, not {steps}: leave max_steps out, or set --environment_steps {needed}."
            )
        if options.replay_capacity < 2 * (options.train_frequency + batch):
            raise UserError(
                f"replay_capacity {options.replay_capacity} is too small for rounds of {options.train_frequency} steps and "
                f"batches of {batch}: at least {2 * (options.train_frequency + batch)}."
            )

    # What is trained

    def build_model(self) -> PaperDqnModel:
        return PaperDqnModel(self.config)

    def networks(self, model: nn.Module) -> dict[str, nn.Module]:
        return {"q": model}

    def shadows(self) -> dict[str, Shadow]:
        """The target network: a copy of Q that is brought up to date every `target_update` gradient steps."""
        if not self.options.use_target_network:
            return {}
        return {"q": Shadow(decay=0.0, every=self.options.target_update)}

    def optimizers(self, networks: dict[str, nn.Module]) -> dict[str, Optimizer]:
        """As the arguments say; `rmsprop` is the authors' own kind, which divides by the gradient's standard deviation.

        Extended Data Table 1 calls its two averages "gradient momentum" and "squared gradient momentum", both 0.95:
        `centered` with `alpha` 0.95, not a heavy ball. (PyTorch adds epsilon outside of the root, the authors inside.)
        """
        arguments = self.arguments
        if arguments.optimizer != "rmsprop":
            return super().optimizers(networks)
        optimizer = torch.optim.RMSprop(
            networks["q"].parameters(),
            arguments.learning_rate,
            alpha=0.95,
            eps=arguments.adam_epsilon,
            weight_decay=arguments.weight_decay,
            momentum=arguments.momentum,
            centered=True,
        )
        for group in optimizer.param_groups:
            group["peak_lr"] = arguments.learning_rate
        return {"q": optimizer}

    # What it is trained on

    def total_steps(self, context: Context) -> int:
        """Gradient steps: `max_steps`, else as many as `environment_steps` have room for (exactly)."""
        accumulated = self.options.rounds * self.options.gradient_steps
        return self.arguments.max_steps if self.arguments.max_steps is not None else accumulated

    def _batches_per_round(self) -> int:
        return self.options.gradient_steps * self.arguments.gradient_accumulation_steps

    def _prepare(self, context: Context) -> None:
        """An environment, and a memory with room for the whole training at most."""
        config, options = self.config, self.options
        # Every episode keeps one frame more than it has steps, and the shortest has one step.
        capacity = min(options.replay_capacity, max(2 * options.environment_steps, 2 * options.train_frequency + 512))
        if config.takes_images:
            stack, frame, dtype = config.observation_shape[0], tuple(config.observation_shape[1:]), np.uint8
        else:
            stack, frame, dtype = 1, tuple(config.observation_shape), np.float32
        seed = [context.seed, context.rank, 2]
        self.replay = ReplayMemory(capacity, frame, dtype, stack=stack, seed=seed)
        self.environment = TrainingEnvironment(config, self.replay, seed=context.seed, rank=context.rank)
        self.environment.clip_rewards = options.clip_rewards
        self.environment.terminal_on_life_loss = options.terminal_on_life_loss
        if self._restored is not None:
            self.replay.load_state_dict(self._restored["replay"])
            self.environment.load_state_dict(self._restored["environment"])
            self._restored = None
            self._watch()

    def batches(self, networks: dict[str, nn.Module], context: Context) -> Iterator[Batch]:
        """Play a round, hand out its batches, and again. One batch is one gradient step's."""
        self._prepare(context)
        return self._rounds(GreedyPolicy(context.unwrap(networks["q"])))

    def _rounds(self, policy: GreedyPolicy) -> Iterator[Batch]:
        count = self._batches_per_round()
        while True:
            if self._learned == count:
                self._play_round(policy)
                self._learned = 0
            at_once = self._draw_size()
            position = self._learned % at_once
            if position == 0:
                self._draw_state = self.replay.generator.bit_generator.state
            else:  # resumed in the midst of a draw: draw the same once more
                self.replay.generator.bit_generator.state = self._draw_state
            self._drawn = self._as_tensors(self._draw(min(at_once, count - self._learned + position)))
            self._targets = None
            for index in range(position, len(self._drawn["actions"])):
                self._learned += 1
                yield {"position": index, **{name: value[index] for name, value in self._drawn.items()}}

    def _play_round(self, policy: GreedyPolicy) -> None:
        options, environment = self.options, self.environment
        policy.refresh()
        steps = options.train_frequency + (options.random_steps if environment.steps == 0 else 0)
        environment.play(policy, options.epsilons(environment.steps, steps))
        self._watch()

    def _draw_size(self) -> int:
        """How many batches are drawn together."""
        if not self.options.use_replay:
            return self._batches_per_round()
        one = self.replay.frames[0].nbytes * (self.replay.stack + 1) * self.arguments.per_device_train_batch_size
        return min(self._batches_per_round(), max(1, DRAWN_AT_ONCE // one))

    def _draw(self, batches: int) -> Transitions:
        """`batches` batches: drawn from everything remembered or, without replay, the newest steps in their order."""
        size = self.arguments.per_device_train_batch_size
        if self.options.use_replay:
            return self.replay.sample(batches, size)
        return self.replay.latest(batches, size, span=self.options.train_frequency)

    def _as_tensors(self, drawn: Transitions) -> Batch:
        discounts = np.where(drawn.terminated, 0.0, self.options.discount).astype(np.float32)
        return {
            "observations": torch.from_numpy(drawn.observations),
            "actions": torch.from_numpy(drawn.actions),
            "rewards": torch.from_numpy(drawn.rewards),
            "next_observations": torch.from_numpy(drawn.next_observations),
            "discounts": torch.from_numpy(discounts),  # γ, and 0 where nothing follows
        }

    # What a step is, and what is looked at

    def losses(
        self, networks: dict[str, nn.Module], shadows: dict[str, nn.Module], batch: Batch, step: int
    ) -> Iterator[Turn]:
        q = networks["q"]
        if "q" in shadows and not self.options.double_q:
            targets = self._frozen_targets(shadows["q"], batch["position"], step).to(batch["rewards"].device)
        else:
            targets = td_targets(q, shadows.get("q", q), batch, double_q=self.options.double_q)
        outputs = q(batch["observations"], actions=batch["actions"], targets=targets)
        yield "q", outputs.loss, {"q_value": outputs.q_values.detach(), **self._watched}

    def _frozen_targets(self, frozen: nn.Module, position: int, step: int) -> torch.Tensor:
        """Targets of the batch at `position` of the draw, (batch,).

        While the target network stands still, so do the targets: those of all batches drawn until it moves are made by
        one forward pass. Where such a block begins and ends depends on the step alone, not on where a run was resumed.
        """
        if self._targets is None or not self._targets_from <= position < self._targets_to:
            per_step, every = self.arguments.gradient_accumulation_steps, self.options.target_update
            moved = position - position % per_step - per_step * (step % every)  # the first batch after it moved
            self._targets_from = max(0, moved)
            self._targets_to = min(len(self._drawn["actions"]), moved + per_step * every)
            device = next(frozen.parameters()).device
            block = {
                name: value[self._targets_from : self._targets_to].flatten(0, 1).to(device)
                for name, value in self._drawn.items()
            }
            size = self._targets_to - self._targets_from
            self._targets = td_targets(frozen, frozen, block).view(size, -1)
        return self._targets[position - self._targets_from]

    def _watch(self) -> None:
        """What is shown of the player beside the loss; it changes only while the task plays."""
        environment = self.environment
        epsilon = float(self.options.epsilons(environment.steps, 1)[0])
        self._watched = {"environment_steps": float(environment.steps), "epsilon": epsilon}
        if environment.returns:
            self._watched["episode_return"] = environment.recent_return

    def evaluate(self, model: nn.Module, split: str, context: Context) -> dict[str, float]:
        """Mean return of ε-greedy episodes in fresh environments, on seeds that training never used.

        mean_return, std_return, min_return and episode_length are over the episodes. mean_max_q is the mean of max_a Q
        over a fixed set of states (2013 paper, section 5.1). On test also mean_return_unseen_starts: from states outside
        of the distribution that episodes start in, where the recipe says how to get there.
        """
        self._check_fits(model)
        options = self.options
        count, purpose = (
            (options.validation_episodes, VALIDATION) if split == "validation" else (options.test_episodes, TEST)
        )
        seeds = evaluation_seeds(purpose, count)
        rules = {"epsilon": float(self.config.evaluation_epsilon), "max_steps": options.evaluation_max_steps}
        scores = play_episodes(model, self.config, seeds, **rules)
        metrics = {
            "mean_return": float(scores.returns.mean()),
            "std_return": float(scores.returns.std()),
            "min_return": float(scores.returns.min()),
            "episode_length": float(scores.lengths.mean()),
            "mean_max_q": self._mean_max_q(model),
        }
        if split == "test" and (options.unseen_random_actions or options.unseen_reset_options):
            unseen = play_episodes(
                model,
                self.config,
                seeds,
                random_actions=options.unseen_random_actions,
                reset_options=dict(options.unseen_reset_options),
                **rules,
            )
            metrics["mean_return_unseen_starts"] = float(unseen.returns.mean())
            metrics["std_return_unseen_starts"] = float(unseen.returns.std())
        if split == "validation":
            self._remember(metrics)
        return metrics

    def _check_fits(self, model: nn.Module) -> None:
        ours, theirs = self.config, model.config
        if ours.num_actions != theirs.num_actions or ours.observation_shape != theirs.observation_shape:
            raise UserError(
                f"The network was made for observations of {tuple(theirs.observation_shape)} and {theirs.num_actions} "
                f"actions, but {ours.environment} has {tuple(ours.observation_shape)} and {ours.num_actions}."
            )

    def _mean_max_q(self, model: nn.Module) -> float:
        if self._held_out is None:
            self._held_out = random_states(self.config, self.options.held_out_states, 4 + PROBE)
        values = [model.q_values(torch.from_numpy(part)).max(dim=1).values for part in _parts(self._held_out, 250)]
        return float(torch.cat(values).mean())

    def _remember(self, metrics: dict[str, float]) -> None:
        steps = self.environment.steps if self.environment is not None else 0
        if not self.evaluations or self.evaluations[-1][0] != steps:  # not the final look at the best weights
            self.evaluations.append((steps, metrics["mean_return"], metrics["mean_max_q"]))

    def figures(self, model: nn.Module, folder: Path, context: Context) -> dict[str, Path]:
        """Return and Q-values over training, and a film of one episode."""
        figures: dict[str, Path] = {}
        if self.environment is not None and self.evaluations:
            figures["Return of the training episodes, and of the validation episodes played greedily"] = (
                self._draw_returns(folder / "returns.png")
            )
            figures["Mean of max Q over a fixed set of states, the curve of the 2013 paper"] = self._draw_q_values(
                folder / "q_values.png"
            )
        film = self._film(model, folder / "episode.gif")
        if film is not None:
            figures[f"One episode of {self.config.environment}, from a test seed"] = film
        return figures

    def _draw_returns(self, path: Path) -> Path:
        figure, axes = _axes("environment steps", "return")
        steps, returns = np.array(self.environment.returns, np.float64).reshape(-1, 2).T
        axes.plot(steps, returns, ".", markersize=2, alpha=0.4, label="training episodes (ε-greedy)")
        axes.plot(*np.array(self.evaluations)[:, :2].T, "o-", markersize=3, label="validation, mean")
        threshold = reward_threshold(self.config.environment)
        if threshold is not None:
            axes.axhline(threshold, color="grey", linewidth=0.8, linestyle="--", label=f"solved: {threshold:g}")
        axes.legend(frameon=False)
        figure.savefig(path, dpi=120)
        return path

    def _draw_q_values(self, path: Path) -> Path:
        figure, axes = _axes("environment steps", "mean max Q of held-out states")
        steps, _, values = np.array(self.evaluations).T
        axes.plot(steps, values, "o-", markersize=3)
        figure.savefig(path, dpi=120)
        return path

    def _film(self, model: nn.Module, path: Path) -> Path | None:
        try:
            pictures = film_episode(model, self.config, evaluation_seeds(TEST, 1)[0])
        except (UserError, gym.error.Error, ImportError) as error:
            warnings.warn(f"No film, since {self.config.environment} cannot be drawn here: {error}", stacklevel=2)
            return None
        save_film(pictures, path)
        return path

    # What a checkpoint must remember of it

    def state_dict(self) -> dict[str, Any]:
        if self.environment is None:
            return self._restored or {}
        return {
            "replay": self.replay.state_dict(),
            "environment": self.environment.state_dict(),
            "learned": self._learned,
            "draw_state": self._draw_state,
            "evaluations": [list(entry) for entry in self.evaluations],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self._restored = state
            self._learned, self._draw_state = state["learned"], state["draw_state"]
            self.evaluations = [tuple(entry) for entry in state["evaluations"]]


@torch.no_grad()
def td_targets(q: nn.Module, frozen: nn.Module, batch: Batch, *, double_q: bool = False) -> torch.Tensor:
    """y = r + γ max_a' Q(s', a'; θ⁻), or r alone where the episode is over (Nature, Algorithm 1), (batch,).

    `frozen` holds θ⁻. With `double_q` the action is chosen by `q` and only valued by `frozen` (van Hasselt et al., 2015).
    """
    next_q = frozen(batch["next_observations"]).q_values  # (batch, num_actions)
    if double_q:
        chosen = q(batch["next_observations"]).q_values.argmax(dim=1, keepdim=True)
        best = next_q.gather(1, chosen).squeeze(1)
    else:
        best = next_q.amax(dim=1)
    return batch["rewards"] + batch["discounts"] * best


def _parts(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(array), size):
        yield array[start : start + size]


def _axes(x: str, y: str) -> tuple[Any, Any]:
    """A figure that needs no screen, with one pair of axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes

"""The deep Q-network of "Playing Atari with Deep Reinforcement Learning" (https://huggingface.co/papers/1312.5602) and
"Human-level control through deep reinforcement learning" (Nature 518:529-533, 2015).

Q*(s, a) is the most reward, discounted, that can still be collected after doing a in state s. It obeys the Bellman
equation (2013 paper, equation 1)

    Q*(s, a) = E[ r + γ max_a' Q*(s', a') ]

so a network Q(s, a; θ) is fitted by regression onto targets y = r + γ max_a' Q(s', a'; θ⁻), where θ⁻ is an older copy of θ
(Nature, equation in Methods, "Training algorithm"). The network reads a state once and gives the values of all actions.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from .configuration_dqn import PaperDqnConfig


@dataclass
class PaperDqnOutput(ModelOutput):
    """What the network says of a batch.

    loss: () mean loss of the temporal-difference errors; only when actions and targets were given.
    q_values: (batch, num_actions) Q(s, a; θ) for every action.
    td_errors: (batch,) y - Q(s, a; θ) of the actions taken; only when actions and targets were given.
    """

    loss: torch.FloatTensor | None = None
    q_values: torch.FloatTensor | None = None
    td_errors: torch.FloatTensor | None = None


def td_loss(q_taken: torch.Tensor, targets: torch.Tensor, kind: str = "huber") -> torch.Tensor:
    """Mean loss over a batch of `q_taken` Q(s, a; θ) and `targets` y, both (batch,).

    `"squared"` is (y - Q)² (2013 paper, equation 2). `"huber"` is what Nature calls clipping the error term to [-1, 1]:
    half the square within ±1 and the absolute value beyond, so that no single surprise has a derivative above 1. (Clipping
    the *loss* instead, a frequent slip, gives large errors no gradient at all.)
    """
    if kind == "huber":
        return F.smooth_l1_loss(q_taken, targets, beta=1.0)
    return F.mse_loss(q_taken, targets)


class PaperDqnConvolution(GradientCheckpointingLayer):
    """A convolution without padding and a rectifier: (batch, in, height, width) -> (batch, out, height', width')."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.relu(self.convolution(hidden_states))


class PaperDqnHidden(GradientCheckpointingLayer):
    """A fully connected layer and a rectifier: (batch, in) -> (batch, out)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.relu(self.linear(hidden_states))


class PaperDqnModel(PreTrainedModel):
    """Observations in, one value per action out."""

    config: PaperDqnConfig
    base_model_prefix = "dqn"
    main_input_name = "observations"
    supports_gradient_checkpointing = True
    _no_split_modules = ["PaperDqnConvolution", "PaperDqnHidden"]

    def __init__(self, config: PaperDqnConfig) -> None:
        super().__init__(config)
        channels = [config.observation_shape[0], *config.conv_channels]
        self.convolutions = nn.ModuleList(
            PaperDqnConvolution(channels[i], channels[i + 1], config.conv_kernels[i], config.conv_strides[i])
            for i in range(len(config.conv_channels))
        )
        features = 1
        for size in config.feature_shape:
            features *= size
        sizes = [features, *config.hidden_sizes]
        self.hidden = nn.ModuleList(PaperDqnHidden(sizes[i], sizes[i + 1]) for i in range(len(config.hidden_sizes)))
        self.values = nn.Linear(sizes[-1], config.num_actions)
        scale = (
            None if config.observation_scale is None else torch.tensor(config.observation_scale, dtype=torch.float32)
        )
        self.register_buffer("observation_scale", scale)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Uniform in ±1/√fan_in, weights and biases: what Torch7 gave the authors, who state nothing else."""
        if isinstance(module, nn.Linear | nn.Conv2d):
            bound = module.weight.shape[1:].numel() ** -0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """A batch of 4 that gives a loss, always the same."""
        generator = torch.Generator().manual_seed(0)
        shape = (4, *self.config.observation_shape)
        if self.config.takes_images:
            observations = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        else:
            observations = torch.randn(shape, generator=generator)
        actions = torch.arange(4) % self.config.num_actions
        return {"observations": observations, "actions": actions, "targets": torch.randn(4, generator=generator)}

    def forward(
        self, observations: torch.Tensor, actions: torch.Tensor | None = None, targets: torch.Tensor | None = None
    ) -> PaperDqnOutput:
        """Values of all actions and, given the actions taken and what they should have been worth, the loss.

        observations: (batch, frames, height, width), bytes from 0 to 255 or floats already in [0, 1]; or (batch, size).
        actions: (batch,) integers. targets: (batch,) the y of the module's docstring.
        """
        hidden_states = observations.to(self.values.weight.dtype)
        if observations.dtype == torch.uint8:
            hidden_states = hidden_states / 255.0
        if self.observation_scale is not None:
            hidden_states = hidden_states * self.observation_scale
        for convolution in self.convolutions:
            hidden_states = convolution(hidden_states)  # Nature: (batch, 32, 20, 20), (…, 64, 9, 9), (…, 64, 7, 7)
        hidden_states = hidden_states.flatten(1)  # (batch, 3136)
        for layer in self.hidden:
            hidden_states = layer(hidden_states)  # (batch, 512)
        q_values = self.values(hidden_states)  # (batch, num_actions)
        if actions is None or targets is None:
            return PaperDqnOutput(q_values=q_values)
        q_taken = q_values.gather(1, actions.unsqueeze(1)).squeeze(1)  # (batch,)
        targets = targets.to(q_taken.dtype)
        loss = td_loss(q_taken, targets, self.config.td_loss)
        return PaperDqnOutput(loss=loss, q_values=q_values, td_errors=targets - q_taken)

    @torch.no_grad()
    def q_values(self, observations: torch.Tensor) -> torch.Tensor:
        """Q(s, a) of every action, (batch, num_actions), or (num_actions,) for a single observation without batch.

        observations: anything that `torch.as_tensor` takes, such as what `env.step` returned.
        """
        observations = torch.as_tensor(observations)
        single = observations.ndim == len(self.config.observation_shape)
        batch = observations.unsqueeze(0) if single else observations
        q_values = self(batch.to(self.device)).q_values
        return q_values[0] if single else q_values

    @torch.no_grad()
    def act(
        self, observation: torch.Tensor, epsilon: float | None = None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """The ε-greedy action: a random one with probability `epsilon`, else the most valuable one.

        observation: one observation, or a batch of them, as for `q_values`. `epsilon` defaults to
        the configuration's `evaluation_epsilon`. `generator` (of the CPU) makes the random part repeatable.
        Returns a () or (batch,) tensor of action numbers.
        """
        epsilon = self.config.evaluation_epsilon if epsilon is None else epsilon
        if not 0.0 <= epsilon <= 1.0:
            raise ValueError(f"epsilon is a probability, from 0 to 1, not {epsilon}.")
        greedy = self.q_values(observation).argmax(dim=-1)
        explore = torch.rand(greedy.shape, generator=generator) < epsilon
        random = torch.randint(self.config.num_actions, greedy.shape, generator=generator)
        return torch.where(explore.to(greedy.device), random.to(greedy.device), greedy)


__all__ = ["PaperDqnModel", "PaperDqnOutput", "td_loss"]

"""The toy model: a residual classifier with a fixed table, a raw parameter, dropout and checkpointed blocks."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from .configuration_toy import PaperToyConfig


@dataclass
class PaperToyOutput(ModelOutput):
    """`loss` (scalar), `logits` (batch, num_classes)."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


def table(size: int) -> torch.Tensor:
    """A fixed table of cosines, (size,)."""
    return torch.cos(torch.arange(size, dtype=torch.float32) + 1)


class PaperToyBlock(GradientCheckpointingLayer):
    """h + dropout(act(W norm(h))), (batch, hidden_size) -> the same."""

    def __init__(self, config: PaperToyConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.linear = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.activation = torch.tanh if config.activation == "tanh" else F.gelu

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.dropout(self.activation(self.linear(self.norm(hidden))))


class PaperToyPositions(nn.Module):
    """Adds a fixed table, kept out of the checkpoint, times a learned scale."""

    def __init__(self, config: PaperToyConfig) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(config.hidden_size))
        self.register_buffer("table", table(config.hidden_size), persistent=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.scale * self.table.to(hidden.dtype)  # a bfloat16 load leaves such a table in float32


class PaperToyModel(PreTrainedModel):
    """Vectors to classes. `values` (batch, input_size), `labels` (batch,) -> `PaperToyOutput`."""

    config: PaperToyConfig
    base_model_prefix = "toy"
    main_input_name = "values"
    supports_gradient_checkpointing = True

    def __init__(self, config: PaperToyConfig) -> None:
        super().__init__(config)
        self.embed = nn.Linear(config.input_size, config.hidden_size)
        self.positions = PaperToyPositions(config)
        self.blocks = nn.ModuleList(PaperToyBlock(config) for _ in range(config.num_hidden_layers))
        first, second = config.widths
        self.head = nn.Sequential(nn.Linear(config.hidden_size, first), nn.Tanh(), nn.Linear(first, second), nn.Tanh())
        self.classifier = nn.Linear(second, config.num_classes)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, PaperToyPositions):
            init.normal_(module.scale, std=self.config.noise_std)
            init.copy_(module.table, table(self.config.hidden_size))

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(4, self.config.input_size, generator=generator)
        labels = torch.randint(self.config.num_classes, (4,), generator=generator)
        return {"values": values.to(self.device), "labels": labels.to(self.device)}

    def forward(self, values: torch.Tensor, labels: torch.Tensor | None = None) -> PaperToyOutput:
        hidden = self.positions(self.embed(values))  # (batch, hidden_size)
        for block in self.blocks:
            hidden = block(hidden)
        logits = self.classifier(self.head(hidden))  # (batch, num_classes)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return PaperToyOutput(loss=loss, logits=logits)

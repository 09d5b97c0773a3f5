"""Generative Adversarial Networks (Goodfellow et al., 2014), https://huggingface.co/papers/1406.2661.

Two players and one value function (eq. 1):

    min_G max_D  V(D, G) = E_x~data[log D(x)] + E_z~p(z)[log(1 - D(G(z)))]

The generator G turns noise z into an image. The discriminator D says how likely an image is to be real. Networks below
return the *logit* of D, a number a with D = sigmoid(a): the logarithms of eq. 1 are then softplus functions that neither
overflow nor lose their gradient to rounding:

    -log D = softplus(-a)      -log(1 - D) = softplus(a)
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from .configuration_gan import PaperGanConfig


@dataclass
class PaperGanOutput(ModelOutput):
    """What one look at the game shows.

    Args:
        loss: discriminator_loss + generator_loss. Its gradient is the pair of simultaneous gradients of the game: each
            player's parameters receive the gradient of that player's own loss only. Its *value* need not fall.
        generator_loss: what G minimises, in nats, scalar.
        discriminator_loss: what D minimises, in nats, scalar; 2 log 2 = 1.386 when D cannot tell (section 4.1).
        images: G(z), (batch, channels, height, width) in [0, 1].
        real_logits: logit of D(x), (batch,).
        fake_logits: logit of D(G(z)), (batch,).
    """

    loss: torch.FloatTensor | None = None
    generator_loss: torch.FloatTensor | None = None
    discriminator_loss: torch.FloatTensor | None = None
    images: torch.FloatTensor | None = None
    real_logits: torch.FloatTensor | None = None
    fake_logits: torch.FloatTensor | None = None


def discriminator_loss(
    real_logits: torch.Tensor, fake_logits: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """-V(D, G) of eq. 1, in nats: what the discriminator minimises.

    real_logits, fake_logits (batch,) -> scalar. With `label_smoothing` e > 0 the first term becomes the cross-entropy
    against the probability 1 - e instead of 1; generated images keep their 0, because smoothing that side too would
    reward D for answering "real" where the generator already is (1606.03498, section 3.4).
    """
    real = (1.0 - label_smoothing) * F.softplus(-real_logits) + label_smoothing * F.softplus(real_logits)
    return real.mean() + F.softplus(fake_logits).mean()


def generator_loss(fake_logits: torch.Tensor, kind: str = "non_saturating") -> torch.Tensor:
    """What the generator minimises, in nats. fake_logits (batch,) -> scalar.

    "minimax": log(1 - D(G(z))), the generator's half of eq. 1. Its slope in the logit is -D(G(z)), which vanishes just
    when G is bad and D sure of it. "non_saturating": -log D(G(z)), section 3. Same fixed point, and the slope
    -(1 - D(G(z))) is largest when G is worst.
    """
    if kind == "minimax":
        return -F.softplus(fake_logits).mean()
    if kind == "non_saturating":
        return F.softplus(-fake_logits).mean()
    raise ValueError(f"The generator's loss is 'minimax' or 'non_saturating', not '{kind}'.")


def sample_latents(
    config: PaperGanConfig,
    num_images: int,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """z ~ p(z): (num_images, latent_size), every entry of mean 0 and variance 1."""
    device = generator.device if generator is not None else device
    shape = (num_images, config.latent_size)
    if config.latent_distribution == "normal":
        return torch.randn(shape, generator=generator, device=device)
    return (2.0 * torch.rand(shape, generator=generator, device=device) - 1.0) * math.sqrt(3.0)


class PaperGanLinear(nn.Linear):
    """y = x W^T + b, starting uniform within plus and minus `init_range`. (..., in_features) -> (..., out_features).

    With `spectral_norm`, W is divided by an estimate of its largest singular value s = u^T W v, where u and v follow the
    singular vectors by one power iteration per training step (1802.05957, algorithm 1).
    """

    def __init__(self, in_features: int, out_features: int, init_range: float, spectral_norm: bool = False):
        super().__init__(in_features, out_features)
        self.init_range = init_range
        self.spectral_norm = spectral_norm
        if spectral_norm:
            # Persistent: without them a loaded discriminator would judge by another scale than the trained one.
            self.register_buffer("left_vector", torch.empty(out_features))
            self.register_buffer("right_vector", torch.empty(in_features))

    def reset_vectors(self) -> None:
        """Start u and v near the singular vectors of the initial weight."""
        left = F.normalize(torch.randn_like(self.left_vector), dim=0)
        for _ in range(15):
            right = F.normalize(self.weight.T @ left, dim=0)
            left = F.normalize(self.weight @ right, dim=0)
        init.copy_(self.left_vector, left)
        init.copy_(self.right_vector, right)

    @torch.no_grad()
    def power_iteration(self) -> None:
        """One step of u and v towards the singular vectors of the present weight."""
        right = F.normalize(self.weight.T @ self.left_vector, dim=0)
        self.right_vector.copy_(right)
        self.left_vector.copy_(F.normalize(self.weight @ right, dim=0))

    def forward(self, hidden_states: torch.Tensor, frozen: bool = False) -> torch.Tensor:
        """With `frozen`, gradients pass through the layer but do not reach its parameters."""
        weight, bias = self.weight, self.bias
        if frozen:
            weight, bias = weight.detach(), bias.detach()
        if self.spectral_norm:
            # Copies, because power_iteration changes the originals, which the backward pass would still need.
            left, right = self.left_vector.clone(), self.right_vector.clone()
            weight = weight / torch.dot(left, torch.mv(weight, right))
        return F.linear(hidden_states, weight, bias)


class PaperGanGeneratorLayer(GradientCheckpointingLayer):
    """One hidden layer of G: affine, batch norm where configured, rectifier. (batch, in) -> (batch, out)."""

    def __init__(self, config: PaperGanConfig, in_features: int, out_features: int):
        super().__init__()
        self.linear = PaperGanLinear(in_features, out_features, config.generator_init_range)
        self.norm = nn.BatchNorm1d(out_features) if config.generator_batch_norm else None
        self.slope = float(config.leaky_relu_slope) if config.generator_activation == "leaky_relu" else 0.0

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.linear(hidden_states)
        if self.norm is not None:
            hidden_states = self.norm(hidden_states)
        return F.leaky_relu(hidden_states, self.slope) if self.slope else F.relu(hidden_states)


class PaperGanGenerator(nn.Module):
    """G of section 5: rectified linear layers, then sigmoid pixels.

    latents (batch, latent_size) -> images (batch, channels, height, width) in [0, 1]
    """

    def __init__(self, config: PaperGanConfig):
        super().__init__()
        self.image_shape = (config.num_channels, config.image_size, config.image_size)
        sizes = [config.latent_size, *config.generator_hidden_sizes]
        self.layers = nn.ModuleList(
            PaperGanGeneratorLayer(config, fan_in, fan_out) for fan_in, fan_out in zip(sizes, sizes[1:], strict=False)
        )
        self.output = PaperGanLinear(sizes[-1], config.num_pixels, config.generator_init_range)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        hidden_states = latents
        for layer in self.layers:
            hidden_states = layer(hidden_states)  # (batch, hidden)
        return torch.sigmoid(self.output(hidden_states)).unflatten(1, self.image_shape)


class PaperGanDiscriminatorLayer(GradientCheckpointingLayer):
    """One hidden layer of D: dropout on its input, then maxout (or leaky) units. (batch, in) -> (batch, out).

    A maxout unit (1302.4389, eq. 2) is the largest of k affine pieces, h_i = max_j (x^T W_.ij + b_ij): a convex
    function that the unit learns. Row i * k + j of the weight is piece j of unit i.
    """

    def __init__(self, config: PaperGanConfig, in_features: int, out_features: int, dropout: float):
        super().__init__()
        maxout = config.discriminator_type == "maxout"
        self.pieces = config.maxout_pieces if maxout else 1
        self.slope = None if maxout else float(config.leaky_relu_slope)
        self.dropout = nn.Dropout(dropout)
        self.linear = PaperGanLinear(
            in_features, out_features * self.pieces, config.discriminator_init_range, config.spectral_norm
        )

    def forward(self, hidden_states: torch.Tensor, frozen: bool = False) -> torch.Tensor:
        hidden_states = self.linear(self.dropout(hidden_states), frozen)  # (batch, out * pieces)
        if self.slope is not None:
            return F.leaky_relu(hidden_states, self.slope)
        return hidden_states.unflatten(1, (-1, self.pieces)).amax(-1)


class PaperGanDiscriminator(nn.Module):
    """D of section 5: maxout layers trained with dropout, then one logit.

    pixel_values (batch, channels, height, width) in [0, 1] -> logit of D(x), (batch,)
    """

    def __init__(self, config: PaperGanConfig):
        super().__init__()
        sizes = [config.num_pixels, *config.discriminator_hidden_sizes]
        rates = [config.input_dropout] + [config.hidden_dropout] * (len(sizes) - 2)
        self.layers = nn.ModuleList(
            PaperGanDiscriminatorLayer(config, fan_in, fan_out, float(rate))
            for fan_in, fan_out, rate in zip(sizes, sizes[1:], rates, strict=False)
        )
        self.dropout = nn.Dropout(float(config.hidden_dropout))
        self.output = PaperGanLinear(sizes[-1], 1, config.discriminator_init_range, config.spectral_norm)

    def forward(self, pixel_values: torch.Tensor, frozen: bool = False) -> torch.Tensor:
        """`frozen` lets gradients through to the images but not into D's parameters: the generator's view of D."""
        if self.training and not frozen:
            self.power_iteration()
        hidden_states = pixel_values.flatten(1)  # (batch, pixels)
        for layer in self.layers:
            hidden_states = layer(hidden_states, frozen)  # (batch, hidden)
        return self.output(self.dropout(hidden_states), frozen).squeeze(1)

    def power_iteration(self) -> None:
        """Bring the singular vectors up to date. Outside the layers, so that recomputing a layer (gradient
        checkpointing) does not advance them a second time."""
        for linear in [*(layer.linear for layer in self.layers), self.output]:
            if linear.spectral_norm:
                linear.power_iteration()


class PaperGanPreTrainedModel(PreTrainedModel):
    """Loading, saving and the published initialisation."""

    config: PaperGanConfig
    base_model_prefix = "model"
    main_input_name = "latents"
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Uniform weights and zero biases, as `irange` of the authors' mnist.yaml: 0.05 for G and 0.005 for D."""
        super()._init_weights(module)
        if isinstance(module, PaperGanLinear):
            init.uniform_(module.weight, -module.init_range, module.init_range)
            init.zeros_(module.bias)
            if module.spectral_norm:
                module.reset_vectors()


class PaperGanModel(PaperGanPreTrainedModel):
    """The adversarial pair: `generator` and `discriminator`, each a module of its own, and the losses between them."""

    def __init__(self, config: PaperGanConfig):
        super().__init__(config)
        self.generator = PaperGanGenerator(config)
        self.discriminator = PaperGanDiscriminator(config)
        self.post_init()

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Four latents and four images, always the same."""
        dice = torch.Generator().manual_seed(0)
        size, channels = self.config.image_size, self.config.num_channels
        return {
            "latents": self.sample_latents(4, generator=dice).to(self.device),
            "pixel_values": torch.rand(4, channels, size, size, generator=dice).to(self.device),
        }

    def forward(
        self,
        latents: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
    ) -> PaperGanOutput:
        """Generate from `latents`, and judge against `pixel_values` where they are given.

        latents: (batch, latent_size). Drawn from the global random state, one per image, when left out.
        pixel_values: real images (batch, channels, height, width) in [0, 1]. Without them there are images and their
            logits, and no losses. Raises ValueError when both are missing.
        """
        if latents is None:
            if pixel_values is None:
                raise ValueError(
                    "Give latents to generate from, or pixel_values to be told apart from as many images."
                )
            latents = self.sample_latents(pixel_values.shape[0]).to(pixel_values)
        images = self.generator(latents)
        if pixel_values is None:
            return PaperGanOutput(images=images, fake_logits=self.discriminator(images))

        # D's step moves D alone, so G's images count as constants ...
        judged = self.discriminator(torch.cat([pixel_values, images.detach()]))
        real_logits, fake_logits = judged.tensor_split([pixel_values.shape[0]])
        d_loss = discriminator_loss(real_logits, fake_logits, self.config.label_smoothing)
        # ... and G's step moves G alone, through a D that stands still.
        g_loss = generator_loss(self.discriminator(images, frozen=True), self.config.generator_loss)
        return PaperGanOutput(
            loss=d_loss + g_loss,
            generator_loss=g_loss,
            discriminator_loss=d_loss,
            images=images,
            real_logits=real_logits,
            fake_logits=fake_logits,
        )

    def sample_latents(self, num_images: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """z ~ p(z): (num_images, latent_size), on the device of the torch `generator` if there is one, else the model's."""
        return sample_latents(self.config, num_images, generator, None if generator is not None else self.device)

    @torch.no_grad()
    def sample(
        self,
        num_images: int = 1,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        batch_size: int = 1000,
    ) -> torch.Tensor:
        """New images, (num_images, channels, height, width) in [0, 1].

        Repeatable with a `seed` or a torch `generator` (one of the two). Runs in eval mode, whatever mode the model is in:
        under batch statistics an image would depend on its neighbours in the batch.
        """
        if seed is not None and generator is not None:
            raise ValueError("Give a seed or a generator, not both.")
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, not {num_images}.")
        if seed is not None:
            generator = torch.Generator(self.device).manual_seed(seed)
        latents = self.sample_latents(num_images, generator).to(self.device, self.dtype)
        return self.decode(latents, batch_size)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, batch_size: int = 1000) -> torch.Tensor:
        """G(z) in eval mode, in pieces: latents (n, latent_size) -> images (n, channels, height, width) in [0, 1]."""
        training = self.generator.training
        self.generator.eval()
        try:
            return torch.cat([self.generator(piece) for piece in latents.split(batch_size)])
        finally:
            self.generator.train(training)

    def interpolate(
        self, start: torch.Tensor, end: torch.Tensor, num_images: int = 8, spherical: bool | None = None
    ) -> torch.Tensor:
        """Images on the way between two latents (both ends included).

        start, end: (latent_size,) -> (num_images, channels, height, width). `spherical` follows the great circle, which
        keeps the length that latents of a normal distribution have; a straight line passes nearer to the origin than
        nearly all training latents. Default: spherical for normal latents, straight for uniform ones.
        """
        if num_images < 2:
            raise ValueError(f"An interpolation shows at least its two ends; num_images was {num_images}.")
        if spherical is None:
            spherical = self.config.latent_distribution == "normal"
        steps = torch.linspace(0.0, 1.0, num_images, device=start.device, dtype=start.dtype).unsqueeze(1)
        latents = _slerp(start, end, steps) if spherical else torch.lerp(start, end, steps)
        return self.decode(latents)


def _slerp(start: torch.Tensor, end: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Spherical interpolation; the length changes evenly from |start| to |end|. steps (n, 1) in [0, 1] -> (n, size)."""
    lengths = torch.lerp(start.norm(), end.norm(), steps)
    start, end = F.normalize(start, dim=0), F.normalize(end, dim=0)
    angle = torch.arccos(torch.dot(start, end).clamp(-1.0, 1.0))
    if torch.sin(angle).abs() < 1e-4:  # (anti)parallel: no great circle is singled out, the straight line is the limit
        return lengths * F.normalize(torch.lerp(start, end, steps), dim=1)
    return lengths * (torch.sin((1 - steps) * angle) * start + torch.sin(steps * angle) * end) / torch.sin(angle)


__all__ = [
    "PaperGanDiscriminator",
    "PaperGanGenerator",
    "PaperGanModel",
    "PaperGanOutput",
    "PaperGanPreTrainedModel",
    "discriminator_loss",
    "generator_loss",
    "sample_latents",
]

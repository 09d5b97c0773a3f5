"""Auto-Encoding Variational Bayes (Kingma and Welling, 2013), https://huggingface.co/papers/1312.6114.

An image x is thought to come from a few hidden numbers z:  z ~ p(z) = N(0, I), then x ~ p(x|z), a *decoder* network. How
likely x is, log p(x), needs an integral over all z. An *encoder* network q(z|x) that guesses the z behind an x makes a
lower bound of it that can be climbed by gradients (eq. 3, with its sign turned, is what `loss` holds):

    -log p(x)  <=  KL(q(z|x) || p(z))  -  E_q(z|x)[log p(x|z)]
                   what z costs to tell   what is then left to tell of x, given z

All logarithms are natural, so every loss is in nats per image: summed over pixels and over entries of z, averaged over
the batch, and over nothing else.

Shapes: B images, C channels, H x W pixels, D = C H W, J = config.latent_size.
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from .configuration_vae import PaperVaeConfig


ACTIVATIONS = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": partial(nn.LeakyReLU, 0.1),
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
}
LOG_2_PI = math.log(2 * math.pi)


@dataclass
class PaperVaeOutput(ModelOutput):
    """What the model says of a batch of images.

    Args:
        loss: what training minimises, nats per image, scalar. With `kl_weight` 1 and no `free_bits` it is the negative
            evidence lower bound, reconstruction_loss + kl.
        reconstruction_loss: -E_q[log p(x|z)] by one sample of z, nats per image, scalar.
        kl: KL(q(z|x) || p(z)), nats per image, scalar; never weighted, never floored. 0 in a plain auto-encoder.
        logits: (B, C, H, W); their sigmoid is `reconstruction`.
        reconstruction: (B, C, H, W) in [0, 1], the decoder's mean of each pixel.
        reconstruction_log_variance: (B, C, H, W), Gaussian decoder only.
        mean: mu of q(z|x), (B, J).
        log_variance: log sigma^2 of q(z|x), (B, J); None in a plain auto-encoder.
        latents: the z that was decoded, (B, J).
    """

    loss: torch.FloatTensor | None = None
    reconstruction_loss: torch.FloatTensor | None = None
    kl: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    reconstruction: torch.FloatTensor | None = None
    reconstruction_log_variance: torch.FloatTensor | None = None
    mean: torch.FloatTensor | None = None
    log_variance: torch.FloatTensor | None = None
    latents: torch.FloatTensor | None = None


def reparameterize(mean: torch.Tensor, log_variance: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """z = g(eps, x) = mu + sigma * eps, eq. 4 for a Gaussian (section 2.4): (..., J) -> (..., J).

    The chance sits in eps, which no parameter touches, so that gradients reach mu and sigma through a sampled z.
    """
    return mean + torch.exp(0.5 * log_variance) * noise


def gaussian_kl(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)) of each entry of z, in nats, by the closed form of appendix B.

    -1/2 (1 + log sigma^2 - mu^2 - sigma^2): (B, J) -> (B, J).
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)


def bernoulli_log_prob(pixel_values: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """log p(x|z) for binary pixels (appendix C.1), summed over the pixels: (..., C, H, W) twice -> (...).

    sum_i x_i log y_i + (1 - x_i) log(1 - y_i) with y = sigmoid(a) is sum_i x_i a_i - softplus(a_i), which never takes the
    logarithm of a probability that has been rounded to 0. The leading dimensions broadcast.
    """
    return (pixel_values * logits).flatten(-3).sum(-1) - F.softplus(logits).flatten(-3).sum(-1)


def gaussian_log_prob(values: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """log N(x; mu, sigma^2) of each entry, in nats (eq. 9 and appendix C.2): three (...) -> (...)."""
    return -0.5 * (LOG_2_PI + log_variance + (values - mean).square() * torch.exp(-log_variance))


class PaperVaeLayer(GradientCheckpointingLayer):
    """h = f(W x + b), (..., in_size) -> (..., out_size); f is tanh in appendix C. With `residual` and equal sizes, x + h."""

    def __init__(self, config: PaperVaeConfig, in_size: int, out_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_size, out_size)
        self.norm = nn.LayerNorm(out_size) if config.layer_norm else nn.Identity()
        self.activation = ACTIVATIONS[config.hidden_act]()
        self.residual = config.residual and in_size == out_size

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        output = self.activation(self.norm(self.linear(hidden_states)))
        return hidden_states + output if self.residual else output


class PaperVaeConvLayer(GradientCheckpointingLayer):
    """Halve the image: (B, in_channels, H, W) -> (B, out_channels, H/2, W/2). Not in the paper."""

    def __init__(self, config: PaperVaeConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1)
        self.activation = ACTIVATIONS[config.hidden_act]()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activation(self.conv(hidden_states))


class PaperVaeUpsampleLayer(GradientCheckpointingLayer):
    """Double the image: (B, in_channels, H, W) -> (B, out_channels, 2H, 2W). Kernel 4 with stride 2 overlaps evenly."""

    def __init__(self, config: PaperVaeConfig, in_channels: int, out_channels: int, activate: bool) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1)
        self.activation = ACTIVATIONS[config.hidden_act]() if activate else nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activation(self.conv(hidden_states))


def hidden_layers(config: PaperVaeConfig, in_size: int, sizes: list[int] | tuple[int, ...]) -> nn.Sequential:
    """Fully-connected layers of the given sizes, one after the other."""
    return nn.Sequential(*(PaperVaeLayer(config, *pair) for pair in pairwise((in_size, *sizes))))


class PaperVaeEncoder(nn.Module):
    """q(z|x) = N(z; mu, sigma^2 I), eq. 9, with mu and log sigma^2 from a network (appendix C.2).

    pixel_values (B, C, H, W) -> mean (B, J), log_variance (B, J) or None in a plain auto-encoder.
    """

    def __init__(self, config: PaperVaeConfig) -> None:
        super().__init__()
        size = config.num_pixels
        self.convolutions = nn.Sequential()
        if config.architecture == "convolutional":
            channels = (config.num_channels, *config.conv_channels)
            self.convolutions.extend(PaperVaeConvLayer(config, *pair) for pair in pairwise(channels))
            size = channels[-1] * (config.image_size // 2 ** len(config.conv_channels)) ** 2
        self.layers = hidden_layers(config, size, config.encoder_hidden_sizes)
        size = (size, *config.encoder_hidden_sizes)[-1]
        self.mean = nn.Linear(size, config.latent_size)
        self.log_variance = nn.Linear(size, config.latent_size) if config.variational else None

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden_states = self.convolutions(pixel_values).flatten(1)  # (B, D), or what the last stage leaves
        hidden_states = self.layers(hidden_states)  # (B, encoder_hidden_sizes[-1])
        log_variance = None if self.log_variance is None else self.log_variance(hidden_states)
        return self.mean(hidden_states), log_variance


class PaperVaeDecoder(nn.Module):
    """p(x|z): what each pixel is likely to be, given z (appendix C.1 and C.2).

    latents (B, J) -> logits (B, C, H, W), log_variance (B, C, H, W) or None with a Bernoulli decoder. The sigmoid of the
    logits is the mean of each pixel: appendix C.1's y, and for the Gaussian the mean that section 5 keeps in (0, 1).
    """

    def __init__(self, config: PaperVaeConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = hidden_layers(config, config.latent_size, config.decoder_hidden_sizes)
        size = (config.latent_size, *config.decoder_hidden_sizes)[-1]
        outputs = config.num_channels * (2 if config.decoder_distribution == "gaussian" else 1)
        self.convolutions = nn.Sequential()
        if config.architecture == "convolutional":
            channels = (*reversed(config.conv_channels), outputs)
            side = config.image_size // 2 ** len(config.conv_channels)
            self.grid = (channels[0], side, side)
            self.output = PaperVaeLayer(config, size, math.prod(self.grid))
            for stage, pair in enumerate(pairwise(channels), start=1):
                self.convolutions.append(PaperVaeUpsampleLayer(config, *pair, activate=stage < len(channels) - 1))
        else:
            self.grid = (outputs, config.image_size, config.image_size)
            self.output = nn.Linear(size, math.prod(self.grid))

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden_states = self.output(self.layers(latents)).unflatten(-1, self.grid)  # (B, channels, side, side)
        output = self.convolutions(hidden_states)  # (B, C or 2 C, H, W)
        if self.config.decoder_distribution == "bernoulli":
            return output, None
        logits, log_variance = output.chunk(2, dim=1)
        return logits, log_variance.clamp(min=self.config.min_log_variance)


class PaperVaeModel(PreTrainedModel):
    """The variational auto-encoder: encoder, reparameterisation, decoder, and the bound that trains them (algorithm 1)."""

    config: PaperVaeConfig
    base_model_prefix = "vae"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["PaperVaeLayer", "PaperVaeConvLayer", "PaperVaeUpsampleLayer"]

    def __init__(self, config: PaperVaeConfig) -> None:
        super().__init__(config)
        self.encoder = PaperVaeEncoder(config)
        self.decoder = PaperVaeDecoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Section 5 draws all parameters from N(0, 0.01); read here as a standard deviation of 0.01."""
        if isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        if not isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            return
        if self.config.initialization == "normal":
            init.normal_(module.weight, std=self.config.initializer_range)
            init.normal_(module.bias, std=self.config.initializer_range)
        else:
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Four binary images and the noise that makes their loss repeatable."""
        generator = torch.Generator().manual_seed(0)
        shape = (4, self.config.num_channels, self.config.image_size, self.config.image_size)
        return {
            "pixel_values": torch.randint(0, 2, shape, generator=generator).float(),
            "noise": torch.randn(4, self.config.latent_size, generator=generator),
        }

    def forward(
        self,
        pixel_values: torch.Tensor,
        noise: torch.Tensor | None = None,
        kl_weight: float | torch.Tensor = 1.0,
        free_bits: float = 0.0,
        return_dict: bool | None = None,
    ) -> PaperVaeOutput | tuple[torch.Tensor, ...]:
        """Estimate the bound with one sample of z per image: eq. 10 with L = 1, with its sign turned.

        Args:
            pixel_values: (B, C, H, W) in [0, 1]; 0 or 1 for the bound of a Bernoulli decoder to be one.
            noise: eps of eq. 4, (B, J); drawn from N(0, I) by the global random state when not given, in eval() too: with
                the mean in z's place the loss would no longer be a bound. Ignored by a plain auto-encoder.
            kl_weight: factor of the divergence in `loss`: below 1 while it is warmed up, beta of a beta-VAE else.
            free_bits: nats per entry of z below which the divergence (averaged over the batch) is not pressed any further
                (1606.04934, appendix C.8).
            return_dict: False for a tuple.
        """
        self._check_images(pixel_values)
        pixel_values = pixel_values.to(self.encoder.mean.weight.dtype)
        mean, log_variance = self.encoder(pixel_values)  # (B, J) each
        if log_variance is None:
            latents = mean
            kl = mean.new_zeros(mean.shape, dtype=torch.float32)
        else:
            noise = torch.randn_like(mean) if noise is None else noise.to(mean.dtype)
            latents = reparameterize(mean, log_variance, noise)
            kl = gaussian_kl(mean.float(), log_variance.float())
        logits, reconstruction_log_variance = self.decoder(latents)  # (B, C, H, W) each

        reconstruction_loss = -self.log_prob(pixel_values, logits, reconstruction_log_variance).mean()
        kl = kl.mean(0)  # (J,): averaged over the images, not yet summed over the entries of z
        penalty = kl.clamp(min=free_bits).sum() if free_bits and log_variance is not None else kl.sum()
        output = PaperVaeOutput(
            loss=reconstruction_loss + kl_weight * penalty,
            reconstruction_loss=reconstruction_loss,
            kl=kl.sum(),
            logits=logits,
            reconstruction=logits.sigmoid(),
            reconstruction_log_variance=reconstruction_log_variance,
            mean=mean,
            log_variance=log_variance,
            latents=latents,
        )
        return output.to_tuple() if return_dict is False else output

    def log_prob(
        self, pixel_values: torch.Tensor, logits: torch.Tensor, log_variance: torch.Tensor | None
    ) -> torch.Tensor:
        """log p(x|z) in nats, summed over the pixels of an image, always in float32: (..., C, H, W) -> (...)."""
        pixel_values, logits = pixel_values.float(), logits.float()
        if log_variance is None:
            return bernoulli_log_prob(pixel_values, logits)
        return gaussian_log_prob(pixel_values, logits.sigmoid(), log_variance.float()).flatten(-3).sum(-1)

    def encode(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """mean and log_variance of q(z|x), (B, J) each; the variance is None in a plain auto-encoder."""
        self._check_images(pixel_values)
        return self.encoder(pixel_values.to(self.encoder.mean.weight.dtype))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The mean of p(x|z): latents (..., J) -> images (..., C, H, W) in [0, 1]."""
        if latents.shape[-1] != self.config.latent_size:
            raise ValueError(f"latents end in {latents.shape[-1]} entries, this model has {self.config.latent_size}.")
        latents = latents.to(self.encoder.mean.weight.dtype)
        logits, _ = self.decoder(latents.reshape(-1, latents.shape[-1]))
        return logits.sigmoid().reshape(*latents.shape[:-1], *logits.shape[1:])

    @torch.no_grad()
    def sample(
        self, num_images: int = 16, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Draw z ~ p(z) and show its pixels' means: -> (num_images, C, H, W) in [0, 1].

        `temperature` scales the standard deviation of z: below 1 the images are more typical, and more alike. A
        plain auto-encoder has learnt no p(z); what it draws from N(0, I) is shown for comparison.
        """
        return self.decode(temperature * self._noise((num_images, self.config.latent_size), generator))

    @torch.no_grad()
    def reconstruct(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode images, take the mean of q(z|x) and decode it: (B, C, H, W) -> (B, C, H, W) in [0, 1]."""
        return self.decode(self.encode(pixel_values)[0])

    @torch.no_grad()
    def interpolate(self, first: torch.Tensor, second: torch.Tensor, steps: int = 8) -> torch.Tensor:
        """The straight way in latent space from one image to another: twice (B, C, H, W) -> (B, steps, C, H, W)."""
        start, end = self.encode(first)[0], self.encode(second)[0]
        weight = torch.linspace(0, 1, steps, device=start.device, dtype=start.dtype).view(1, -1, 1)
        return self.decode(torch.lerp(start[:, None], end[:, None], weight))

    @torch.no_grad()
    def traverse(
        self,
        pixel_values: torch.Tensor | None = None,
        dimensions: list[int] | None = None,
        values: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Turn one entry of z at a time while the others stay: -> (dimensions, values, C, H, W) in [0, 1].

        Args:
            pixel_values: the one image to start from, (1, C, H, W); the middle of p(z) when not given.
            dimensions: which entries of z; all of them when not given.
            values: what they are set to, (steps,); seven from -3 to 3, as p(z) is N(0, I), when not given.
        """
        device = self.encoder.mean.weight.device
        start = torch.zeros(1, self.config.latent_size, device=device)
        if pixel_values is not None:
            if len(pixel_values) != 1:
                raise ValueError(f"A traversal starts from one image, not from {len(pixel_values)}.")
            start = self.encode(pixel_values)[0].float()
        dimensions = list(range(self.config.latent_size)) if dimensions is None else dimensions
        values = torch.linspace(-3, 3, 7) if values is None else values
        latents = start.repeat(len(dimensions), len(values), 1)  # (dimensions, values, J)
        for row, dimension in enumerate(dimensions):
            latents[row, :, dimension] = values.to(latents)
        return self.decode(latents)

    @torch.no_grad()
    def log_likelihood(
        self,
        pixel_values: torch.Tensor,
        num_samples: int = 1000,
        generator: torch.Generator | None = None,
        chunk_size: int = 2000,
    ) -> torch.Tensor:
        """log p(x) of each image by importance sampling with q(z|x), in nats: (B, C, H, W) -> (B,).

            log p(x)  >=  E[ log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x) ],   z_k ~ q(z|x)

        (1509.00519, section 3). With K = `num_samples` = 1 this is the bound of eq. 3; it rises with K and reaches log p(x)
        in the limit. The sum is taken of logarithms: the terms themselves are as small as exp(-500). Work is cut into
        pieces of `chunk_size` decoded images, so memory does not grow with K.

        Raises:
            ValueError: for a plain auto-encoder, which has no likelihood, and for pixels that are neither 0 nor 1 with a
                Bernoulli decoder, which gives no probability to anything between.
        """
        if not self.config.variational:
            raise ValueError("A plain auto-encoder defines no p(x): it has no log-likelihood.")
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, not {num_samples}.")
        if self.config.decoder_distribution == "bernoulli" and not ((pixel_values == 0) | (pixel_values == 1)).all():
            raise ValueError("A Bernoulli decoder gives likelihoods to binary images only: make them 0 and 1 first.")
        per_chunk = max(1, chunk_size // num_samples)
        parts = pixel_values.split(per_chunk)
        return torch.cat([self._log_likelihood(part, num_samples, generator, chunk_size) for part in parts])

    def _log_likelihood(
        self, pixel_values: torch.Tensor, num_samples: int, generator: torch.Generator | None, chunk_size: int
    ) -> torch.Tensor:
        """`log_likelihood` of a few images, (B, C, H, W) -> (B,), in rounds of at most `chunk_size` decoded images."""
        mean, log_variance = (part.float() for part in self.encode(pixel_values))
        total = torch.full(mean.shape[:1], -torch.inf, device=mean.device)
        at_once = max(1, chunk_size // len(pixel_values))
        for start in range(0, num_samples, at_once):
            noise = self._noise((min(at_once, num_samples - start), *mean.shape), generator)  # (K', B, J)
            latents = reparameterize(mean, log_variance, noise)
            logits, variances = self.decoder(latents.flatten(0, 1).to(self.encoder.mean.weight.dtype))
            logits = logits.unflatten(0, noise.shape[:2])  # (K' B, C, H, W) -> (K', B, C, H, W)
            variances = None if variances is None else variances.unflatten(0, noise.shape[:2])
            # log p(z) - log q(z|x): the squared noise is what (z - mu)^2 / sigma^2 comes to.
            log_ratio = 0.5 * (noise.square() + log_variance - latents.square()).sum(-1)
            log_weights = self.log_prob(pixel_values, logits, variances) + log_ratio  # (K', B)
            total = torch.logaddexp(total, torch.logsumexp(log_weights, dim=0))
        return total - math.log(num_samples)

    @torch.no_grad()
    def active_units(self, pixel_values: torch.Tensor, threshold: float = 0.01, chunk_size: int = 1000) -> int:
        """How many entries of z say anything: those whose mean varies over the images by more than `threshold`.

        1509.00519, section 5.1.2: the variance over x of E_q(z|x)[z], against 0.01. An entry that has collapsed onto the
        prior has the same mean for every x. (B, C, H, W), B at least 2 -> a number from 0 to J.
        """
        if len(pixel_values) < 2:
            raise ValueError("A variance over images needs at least two of them.")
        means = torch.cat([self.encode(part)[0].float() for part in pixel_values.split(chunk_size)])
        return int((means.var(0) > threshold).sum())

    def _noise(self, shape: tuple[int, ...], generator: torch.Generator | None) -> torch.Tensor:
        """N(0, 1) on the model's device, drawn where `generator` lives so that a seed means the same on every device."""
        device = self.encoder.mean.weight.device
        return torch.randn(shape, generator=generator, device=generator.device if generator else device).to(device)

    def _check_images(self, pixel_values: torch.Tensor) -> None:
        expected = (self.config.num_channels, self.config.image_size, self.config.image_size)
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(
                f"pixel_values must be (batch, {', '.join(map(str, expected))}), not {tuple(pixel_values.shape)}: "
                "the image processor saved beside the model brings pictures to that size."
            )


__all__ = ["PaperVaeConfig", "PaperVaeModel", "PaperVaeOutput"]

"""Deep Convolutional Generative Adversarial Networks (Radford et al., 2015), https://huggingface.co/papers/1511.06434.

The game is that of 1406.2661; what is new are the players (section 3):

    - strided convolutions in D and fractionally-strided ones in G, instead of pooling and of fully connected layers;
    - batch normalisation in both, but not in G's output nor in D's input;
    - ReLU in G with tanh at its output, LeakyReLU in D;
    - all weights from N(0, 0.02), Adam with learning rate 2e-4 and beta_1 = 0.5 (section 4).

D returns the *logit* a of its verdict sigmoid(a), and its loss is the binary cross-entropy of it: -log D = softplus(-a) and
-log(1 - D) = softplus(a) neither overflow nor lose their gradient. Images are in [-1, 1], the range of tanh, wherever a
network makes or reads them; `sample`, `decode` and `interpolate` return them in [0, 1], ready to be looked at.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from .configuration_dcgan import SMALLEST_MAP, PaperDcganConfig


Statistics = tuple[torch.Tensor, torch.Tensor]  # mean (channels,) and unbiased variance (channels,) of one batch


@dataclass
class PaperDcganOutput(ModelOutput):
    """What one look at the game shows.

    Args:
        loss: discriminator_loss + generator_loss. Its gradient is the pair of simultaneous gradients of the game: each
            player's parameters receive the gradient of that player's own loss only. Its *value* need not fall.
        generator_loss: what G minimises, in nats, scalar.
        discriminator_loss: what D minimises, in nats, scalar; 2 log 2 = 1.386 when D cannot tell.
        images: G(z), (batch, channels, height, width) in [-1, 1].
        real_logits: logit of D(x), (batch,).
        fake_logits: logit of D(G(z)), (batch,).
    """

    loss: torch.FloatTensor | None = None
    generator_loss: torch.FloatTensor | None = None
    discriminator_loss: torch.FloatTensor | None = None
    images: torch.FloatTensor | None = None
    real_logits: torch.FloatTensor | None = None
    fake_logits: torch.FloatTensor | None = None


def discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """-E[log D(x)] - E[log(1 - D(G(z)))], in nats: two binary cross-entropies. (batch,), (batch,) -> scalar."""
    return F.softplus(-real_logits.float()).mean() + F.softplus(fake_logits.float()).mean()


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """-E[log D(G(z))], in nats: the binary cross-entropy of calling generated images real. (batch,) -> scalar.

    Not log(1 - D(G(z))): its slope vanishes just when D is sure of itself (1406.2661, section 3).
    """
    return F.softplus(-fake_logits.float()).mean()


def sample_latents(
    config: PaperDcganConfig,
    num_images: int,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """z ~ p(z): (num_images, latent_size), uniform on [-1, 1] or N(0, 1)."""
    device = generator.device if generator is not None else device
    shape = (num_images, config.latent_size)
    if config.latent_distribution == "normal":
        return torch.randn(shape, generator=generator, device=device)
    return 2.0 * torch.rand(shape, generator=generator, device=device) - 1.0


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes, on each of them. All their losses depend on it: gradients are summed too."""

    @staticmethod
    def forward(ctx, value: torch.Tensor) -> torch.Tensor:
        total = value.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return SumOverProcesses.apply(gradient)


def num_processes() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


class PaperDcganBatchNorm(nn.BatchNorm2d):
    """Batch normalisation (1502.03167) per map: (batch, channels, h, w) -> the same, and the batch's statistics.

    While training it normalises by the batch and returns mean and variance instead of storing them: a checkpointed layer
    runs a second time in the backward pass and must not count its batch twice. `remember` stores them.
    """

    synchronised = False  # over all processes: the statistics are those of the joint batch

    def forward(self, maps: torch.Tensor, frozen: bool = False) -> tuple[torch.Tensor, Statistics | None]:
        weight, bias = (self.weight.detach(), self.bias.detach()) if frozen else (self.weight, self.bias)
        if not self.training:
            normalised = F.batch_norm(maps, self.running_mean, self.running_var, weight, bias, False, 0.0, self.eps)
            return normalised, None
        if self.synchronised and num_processes() > 1:
            return self.synchronised_forward(maps, weight, bias)
        if maps.shape[0] < 2:
            raise ValueError(
                "Batch normalisation needs two images or more while training: over a batch of one, an image would be "
                "compared with itself. Give a larger batch, or call model.eval()."
            )
        # With a momentum of 1 the "running" statistics become those of this batch.
        mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        return F.batch_norm(maps, mean, variance, weight, bias, True, 1.0, self.eps), (mean, variance)

    def synchronised_forward(
        self, maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor, Statistics]:
        """The same with mean and variance over the batches of all processes, which may differ in size.

        Two rounds, because squares summed before the mean is known lose digits. In float32 also under autocast.
        """
        maps_ = maps.float()
        count = maps_.new_full((1,), maps.shape[0] * maps.shape[2] * maps.shape[3])
        total = SumOverProcesses.apply(torch.cat([maps_.sum((0, 2, 3)), count]))
        mean, count = total[:-1] / total[-1], total[-1].detach()
        centred = maps_ - mean[:, None, None]
        variance = SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / count
        scale = weight.float() * torch.rsqrt(variance + self.eps)
        normalised = torch.addcmul(bias.float()[:, None, None], centred, scale[:, None, None])
        return normalised.to(maps.dtype), (mean.detach(), variance.detach() * (count / (count - 1)))

    @torch.no_grad()
    def remember(self, statistics: Statistics | None) -> None:
        """Move the running statistics towards a batch's by `momentum`; nothing to remember in eval mode."""
        if statistics is None:
            return
        mean, variance = statistics
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var), self.momentum)
        self.num_batches_tracked.add_(1)


def build_norm(config: PaperDcganConfig, channels: int, outermost: bool = False) -> PaperDcganBatchNorm | None:
    """Batch norm where the configuration has it; `outermost` are G's output and D's input layer."""
    if config.batch_norm == "none" or (outermost and config.batch_norm == "hidden"):
        return None
    return PaperDcganBatchNorm(channels, eps=config.batch_norm_eps, momentum=config.batch_norm_momentum)


class PaperDcganUpsampling(nn.ConvTranspose2d):
    """A fractionally-strided convolution: (batch, in, h, w) -> (batch, out, 2 h, 2 w)."""

    def __init__(self, config: PaperDcganConfig, in_channels: int, out_channels: int, bias: bool):
        size = config.kernel_size
        # What makes 2 h of h: 2 (h - 1) - 2 padding + size + output_padding.
        super().__init__(in_channels, out_channels, size, 2, (size - 1) // 2, output_padding=size % 2, bias=bias)


class PaperDcganDownsampling(nn.Conv2d):
    """A strided convolution: (batch, in, h, w) -> (batch, out, h / 2, w / 2)."""

    def __init__(self, config: PaperDcganConfig, in_channels: int, out_channels: int, bias: bool):
        size = config.kernel_size
        super().__init__(in_channels, out_channels, size, 2, (size - 1) // 2, bias=bias)

    def forward(self, maps: torch.Tensor, frozen: bool = False) -> torch.Tensor:
        weight, bias = self.weight, self.bias
        if frozen:
            weight, bias = weight.detach(), None if bias is None else bias.detach()
        return F.conv2d(maps, weight, bias, self.stride, self.padding)


class PaperDcganGeneratorLayer(GradientCheckpointingLayer):
    """A hidden layer of G: (batch, in, h, w) -> (batch, out, 2 h, 2 w); batch norm, then ReLU.

    Without `in_channels` it is the first one, "project and reshape" of figure 1: (batch, latent_size) -> (batch, out, 4, 4).
    """

    def __init__(self, config: PaperDcganConfig, in_channels: int | None, out_channels: int):
        super().__init__()
        bias = config.batch_norm == "none"  # batch norm subtracts a bias and adds one of its own
        if in_channels is None:
            self.linear = nn.Linear(config.latent_size, out_channels * SMALLEST_MAP**2, bias=bias)
        else:
            self.conv = PaperDcganUpsampling(config, in_channels, out_channels, bias)
        self.is_first = in_channels is None
        self.norm = build_norm(config, out_channels)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, Statistics | None]:
        if self.is_first:
            maps = self.linear(hidden_states).unflatten(1, (-1, SMALLEST_MAP, SMALLEST_MAP))
        else:
            maps = self.conv(hidden_states)
        statistics = None
        if self.norm is not None:
            maps, statistics = self.norm(maps)
        return F.relu(maps), statistics


class PaperDcganGenerator(nn.Module):
    """G of figure 1: latents (batch, latent_size) -> images (batch, channels, height, width) in [-1, 1]."""

    def __init__(self, config: PaperDcganConfig):
        super().__init__()
        self.latent_size = config.latent_size
        channels = config.generator_channels
        self.layers = nn.ModuleList(
            PaperDcganGeneratorLayer(config, before, after)
            for before, after in zip([None, *channels], channels, strict=False)
        )
        self.output = PaperDcganUpsampling(config, channels[-1], config.num_channels, bias=False)
        self.output_norm = build_norm(config, config.num_channels, outermost=True)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        if latents.ndim != 2 or latents.shape[1] != self.latent_size:
            raise ValueError(
                f"latents must be (batch, {self.latent_size}), not {tuple(latents.shape)}: this generator makes an image "
                f"of {self.latent_size} numbers."
            )
        maps = latents.to(self.output.weight.dtype)
        for layer in self.layers:
            maps, statistics = layer(maps)  # (batch, 1024, 4, 4), (batch, 512, 8, 8), ...
            if layer.norm is not None:
                layer.norm.remember(statistics)
        maps = self.output(maps)  # (batch, channels, height, width)
        if self.output_norm is not None:
            maps, statistics = self.output_norm(maps)
            self.output_norm.remember(statistics)
        return torch.tanh(maps)

    @torch.no_grad()
    def recalibrate(self, batches: Iterable[torch.Tensor]) -> None:
        """Replace the running statistics by the mean of those of `batches` of latents, (batch, latent_size) each.

        Averaged weights need it: their statistics are not the average of those that the weights had on the way
        (1809.11096, appendix B, calls these standing statistics).
        """
        norms = [module for module in self.modules() if isinstance(module, PaperDcganBatchNorm)]
        training, usual = self.training, [(norm.momentum, norm.synchronised) for norm in norms]
        self.train()
        try:
            for number, latents in enumerate(batches, start=1):
                for norm in norms:
                    norm.momentum, norm.synchronised = 1.0 / number, False
                self(latents)
        finally:
            for norm, (momentum, synchronised) in zip(norms, usual, strict=True):
                norm.momentum, norm.synchronised = momentum, synchronised
            self.train(training)


class PaperDcganDiscriminatorLayer(GradientCheckpointingLayer):
    """A hidden layer of D: (batch, in, h, w) -> (batch, out, h / 2, w / 2); batch norm, then LeakyReLU."""

    def __init__(self, config: PaperDcganConfig, in_channels: int, out_channels: int, is_first: bool):
        super().__init__()
        # D's first layer has neither batch norm nor, as in the implementations that followed the paper, a bias.
        bias = config.batch_norm == "none" and not is_first
        self.conv = PaperDcganDownsampling(config, in_channels, out_channels, bias)
        self.norm = build_norm(config, out_channels, outermost=is_first)
        self.activation = nn.LeakyReLU(config.leaky_relu_slope)

    def forward(self, maps: torch.Tensor, frozen: bool = False) -> tuple[torch.Tensor, Statistics | None]:
        maps, statistics = self.conv(maps, frozen), None
        if self.norm is not None:
            maps, statistics = self.norm(maps, frozen)
        return self.activation(maps), statistics


class PaperDcganDiscriminator(nn.Module):
    """D, the mirror image of G: pixel_values (batch, channels, height, width) in [-1, 1] -> logit of D(x), (batch,)."""

    def __init__(self, config: PaperDcganConfig):
        super().__init__()
        self.image_shape = (config.num_channels, config.image_size, config.image_size)
        channels = [config.num_channels, *config.discriminator_channels]
        self.layers = nn.ModuleList(
            PaperDcganDiscriminatorLayer(config, before, after, is_first=index == 0)
            for index, (before, after) in enumerate(zip(channels, channels[1:], strict=False))
        )
        self.output = nn.Linear(channels[-1] * SMALLEST_MAP**2, 1, bias=False)

    def forward(self, pixel_values: torch.Tensor, frozen: bool = False) -> torch.Tensor:
        """`frozen` is the generator's view of D, which stands still: gradients pass to the images and not into D's
        parameters, and its running statistics stay as they are."""
        flat = self.hidden_maps(pixel_values, frozen)[-1].flatten(1)  # (batch, 1024 * 4 * 4)
        logits = F.linear(flat, self.output.weight.detach()) if frozen else self.output(flat)
        return logits.squeeze(1)

    def hidden_maps(self, pixel_values: torch.Tensor, frozen: bool = False) -> list[torch.Tensor]:
        """What each hidden layer makes of the images: (batch, 128, 32, 32), ..., (batch, 1024, 4, 4)."""
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != self.image_shape:
            raise ValueError(
                f"pixel_values must be (batch, {', '.join(map(str, self.image_shape))}), not {tuple(pixel_values.shape)}: "
                "the image processor saved beside the model brings pictures to that size."
            )
        maps, found = pixel_values.to(self.output.weight.dtype), []
        for layer in self.layers:
            maps, statistics = layer(maps, frozen)
            if layer.norm is not None and not frozen:
                layer.norm.remember(statistics)
            found.append(maps)
        return found

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Section 5.1: the maps of every layer, max-pooled to 4 x 4, flattened and joined: (batch, `config.num_features`).

        28,672 numbers for 32 x 32 pixels at the paper's width. Call it in eval mode: with batch statistics the features of
        an image would depend on its neighbours.
        """
        pooled = [F.adaptive_max_pool2d(maps, SMALLEST_MAP) for maps in self.hidden_maps(pixel_values)]
        return torch.cat([maps.flatten(1) for maps in pooled], dim=1)


class PaperDcganPreTrainedModel(PreTrainedModel):
    """Loading, saving and the published initialisation."""

    config: PaperDcganConfig
    base_model_prefix = "model"
    main_input_name = "latents"
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """All weights from N(0, 0.02) (section 4); gains of batch norm around 1, as in the authors' code; biases 0."""
        super()._init_weights(module)  # running statistics
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            init.normal_(module.weight, 0.0, std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, PaperDcganBatchNorm):
            init.normal_(module.weight, 1.0, std)
            init.zeros_(module.bias)


class PaperDcganModel(PaperDcganPreTrainedModel):
    """The adversarial pair: `generator` and `discriminator`, each a module of its own, and the losses between them."""

    def __init__(self, config: PaperDcganConfig):
        super().__init__(config)
        self.generator = PaperDcganGenerator(config)
        self.discriminator = PaperDcganDiscriminator(config)
        self.post_init()

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Four latents and four images, always the same."""
        dice = torch.Generator().manual_seed(0)
        size, channels = self.config.image_size, self.config.num_channels
        return {
            "latents": self.sample_latents(4, generator=dice).to(self.device),
            "pixel_values": 2.0 * torch.rand(4, channels, size, size, generator=dice).to(self.device) - 1.0,
        }

    def forward(
        self,
        latents: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
    ) -> PaperDcganOutput:
        """Generate from `latents`, and judge against `pixel_values` where they are given.

        latents: (batch, latent_size). Drawn from the global random state, one per image, when left out.
        pixel_values: real images (batch, channels, height, width) in [-1, 1]. Without them there are images and their
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
            return PaperDcganOutput(images=images, fake_logits=self.discriminator(images))

        # D's step moves D alone, so G's images count as constants. Real and generated images go through D one after the
        # other, not joined: batch norm would tell D of each image in what company it comes ...
        real_logits = self.discriminator(pixel_values)
        fake_logits = self.discriminator(images.detach())
        d_loss = discriminator_loss(real_logits, fake_logits)
        # ... and G's step moves G alone, through a D that stands still.
        g_loss = generator_loss(self.discriminator(images, True))
        return PaperDcganOutput(
            loss=d_loss + g_loss,
            generator_loss=g_loss,
            discriminator_loss=d_loss,
            images=images,
            real_logits=real_logits,
            fake_logits=fake_logits,
        )

    def synchronise_batch_norm(self, synchronised: bool = True) -> None:
        """While training with several processes, take batch statistics over the batches of all of them (or, again, not).

        Otherwise every process normalises by its own share, and the game is another one for every number of devices.
        """
        for module in self.modules():
            if isinstance(module, PaperDcganBatchNorm):
                module.synchronised = synchronised

    def sample_latents(self, num_images: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """z ~ p(z): (num_images, latent_size), on the device of the torch `generator` if there is one, else the model's."""
        return sample_latents(self.config, num_images, generator, None if generator is not None else self.device)

    @torch.no_grad()
    def sample(
        self,
        num_images: int = 1,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        batch_size: int = 500,
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
        return self.decode(self.sample_latents(num_images, generator).to(self.device), batch_size)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, batch_size: int = 500) -> torch.Tensor:
        """G(z) in eval mode, in pieces: latents (n, latent_size) -> images (n, channels, height, width) in [0, 1]."""
        training = self.generator.training
        self.generator.eval()
        try:
            return torch.cat([0.5 + 0.5 * self.generator(piece) for piece in latents.split(batch_size)])
        finally:
            self.generator.train(training)

    @torch.no_grad()
    def features(self, pixel_values: torch.Tensor, batch_size: int = 500) -> torch.Tensor:
        """D's features of section 5.1 in eval mode, in pieces: images in [-1, 1] -> (n, `config.num_features`)."""
        training = self.discriminator.training
        self.discriminator.eval()
        try:
            return torch.cat([self.discriminator.features(piece) for piece in pixel_values.split(batch_size)])
        finally:
            self.discriminator.train(training)

    def interpolate(
        self, start: torch.Tensor, end: torch.Tensor, num_images: int = 8, spherical: bool | None = None
    ) -> torch.Tensor:
        """Images on the way between two latents, both ends included (section 6.1, figure 4).

        start, end: (latent_size,) -> (num_images, channels, height, width). `spherical` follows the great circle, which
        keeps the length that latents of a normal distribution have; a straight line passes nearer to the origin than
        nearly all training latents. Default: straight for uniform latents, as in the paper, spherical for normal ones.
        """
        if num_images < 2:
            raise ValueError(f"An interpolation shows at least its two ends; num_images was {num_images}.")
        if spherical is None:
            spherical = self.config.latent_distribution == "normal"
        steps = torch.linspace(0.0, 1.0, num_images, device=start.device, dtype=start.dtype).unsqueeze(1)
        latents = _slerp(start, end, steps) if spherical else torch.lerp(start, end, steps)
        return self.decode(latents)


def vector_arithmetic(plus: torch.Tensor, minus: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """mean(plus) - mean(minus) + mean(base): three times (k, latent_size) -> (latent_size,), section 6.3.2.

    "smiling woman" - "neutral woman" + "neutral man". A single z each is unstable, so the paper averages k = 3. A mean of
    three has a third of the variance of one z, and the three means together have all of it again: the result lies where G
    has learnt to draw.
    """
    return plus.mean(0) - minus.mean(0) + base.mean(0)


def _slerp(start: torch.Tensor, end: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Spherical interpolation; the length changes evenly from |start| to |end|. steps (n, 1) in [0, 1] -> (n, size)."""
    lengths = torch.lerp(start.norm(), end.norm(), steps)
    start, end = F.normalize(start, dim=0), F.normalize(end, dim=0)
    angle = torch.arccos(torch.dot(start, end).clamp(-1.0, 1.0))
    if torch.sin(angle).abs() < 1e-4:  # (anti)parallel: no great circle is singled out, the straight line is the limit
        return lengths * F.normalize(torch.lerp(start, end, steps), dim=1)
    return lengths * (torch.sin((1 - steps) * angle) * start + torch.sin(steps * angle) * end) / torch.sin(angle)


__all__ = [
    "PaperDcganBatchNorm",
    "PaperDcganDiscriminator",
    "PaperDcganGenerator",
    "PaperDcganModel",
    "PaperDcganOutput",
    "PaperDcganPreTrainedModel",
    "discriminator_loss",
    "generator_loss",
    "sample_latents",
    "vector_arithmetic",
]

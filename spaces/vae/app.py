"""Turn the few numbers in which a variational auto-encoder describes a digit: `python spaces/vae/app.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import torch
from PIL import Image
from transformers import PreTrainedModel

from hf_papers.errors import UserError
from hf_papers.space_kit import (
    MAX_SEED,
    QUIET,
    UNLISTED,
    DigitPad,
    bounded,
    caption,
    decode_drawing,
    errors_as_sentences,
    example_digit,
    facts,
    footer,
    header,
    hint,
    load_model,
    load_processor,
    picture,
    picture_grid,
    run,
    to_digit,
    valid_seed,
)


CHECKPOINT = Path(__file__).parent / "checkpoint"
MAX_KNOBS = 6
FIRST_EXAMPLE = 2
REACH = 3.0  # p(z) is N(0, 1): 99.7 % of every entry lies within
MINE = "my digit"


# ------------------------------------------------------------------------------------------------- model


@torch.no_grad()
def active_dimensions(model: PreTrainedModel, count: int) -> list[int]:
    """The entries of z that say most, most first: those whose posterior mean varies most over the model's own samples.

    The activity of 1509.00519, section 5.1.2, with samples of the model in place of data: a Space needs no data set.
    """
    images = model.sample(512, generator=torch.Generator().manual_seed(0))
    return model.encode(images)[0].var(0).argsort(descending=True)[:count].tolist()


@torch.no_grad()
def latent_map(model: PreTrainedModel, across: int, down: int, cells: int = 15) -> torch.Tensor:
    """Figure 4 of the paper: images (cells², C, H, W) for a grid over two entries of z, the others 0.

    The grid is even on the unit square and goes through the inverse of the normal's distribution function, so every cell
    stands for an equal share of p(z).
    """
    quantiles = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(cells) + 0.5) / cells)
    latents = torch.zeros(cells, cells, model.config.latent_size)
    latents[:, :, across] = quantiles[None, :]
    latents[:, :, down] = quantiles.flip(0)[:, None]
    return model.decode(latents.flatten(0, 1))


@torch.no_grad()
def bound(model: PreTrainedModel, pixel_values: torch.Tensor, samples: int = 64) -> dict[str, float]:
    """The two terms of eq. 10 for one image (1, C, H, W) in nats, the first averaged over `samples` draws of z."""
    if model.config.decoder_distribution == "bernoulli":
        pixel_values = (pixel_values > 0.5).float()
    noise = torch.randn(samples, model.config.latent_size, generator=torch.Generator().manual_seed(0))
    output = model(pixel_values.expand(samples, -1, -1, -1), noise=noise)
    return {"reconstruction": -output.reconstruction_loss.item(), "kl": output.kl.item()}


@torch.no_grad()
def uncertain_reconstructions(model: PreTrainedModel, pixel_values: torch.Tensor, count: int) -> torch.Tensor:
    """Decodings (count, C, H, W) of draws from q(z|x) of one image: what the code leaves open."""
    mean, log_variance = model.encode(pixel_values)
    noise = torch.randn(count, mean.shape[1], generator=torch.Generator().manual_seed(0))
    spread = 0.0 if log_variance is None else (0.5 * log_variance).exp()
    return model.decode(mean + spread * noise)


# ------------------------------------------------------------------------------------------------- page


def build() -> gr.Blocks:
    """The page around one checkpoint. Raises `UserError` when there is none."""
    model = load_model("vae", CHECKPOINT)
    processor = load_processor("vae", CHECKPOINT)
    size, latent_size = model.config.image_size, model.config.latent_size
    order = active_dimensions(model, latent_size)
    knobs = order[:MAX_KNOBS]

    def pixels(image: Image.Image) -> torch.Tensor:
        return processor(to_digit(image, size), return_tensors="pt")["pixel_values"].float()

    def position(base: list[float] | None, values: tuple[float, ...]) -> torch.Tensor:
        latents = torch.zeros(latent_size) if base is None else torch.tensor(base)
        for dimension, value in zip(knobs, values, strict=True):
            latents[dimension] = bounded(value, f"z{dimension + 1}", -REACH, REACH)
        return latents

    def show(latents: torch.Tensor) -> tuple[Image.Image, Image.Image]:
        steps = torch.linspace(-REACH, REACH, 9)
        rows = latents.repeat(len(knobs), len(steps), 1)
        for row, dimension in enumerate(knobs):
            rows[row, :, dimension] = steps
        with torch.no_grad():
            return picture_grid(model.decode(latents[None]), columns=1, width=560), picture_grid(
                model.decode(rows.flatten(0, 1)), columns=len(steps)
            )

    @errors_as_sentences
    def decode(base: list[float] | None, *values: float) -> tuple[Image.Image, Image.Image]:
        """The image of a point in latent space, and what turning each knob from -3 to 3 would do to it."""
        return show(position(base, values))

    @errors_as_sentences
    def sample(seed: float) -> list[Any]:
        """Draw z from N(0, I): the new base point and the settings of the knobs."""
        generator = torch.Generator().manual_seed(valid_seed(seed))
        latents = torch.randn(latent_size, generator=generator).clamp(-REACH, REACH)
        settings = [round(latents[dimension].item(), 2) for dimension in knobs]
        return [latents.tolist(), *show(position(latents.tolist(), tuple(settings))), *settings]

    @errors_as_sentences
    def reconstruct(drawing: str) -> tuple[Image.Image, Image.Image, str]:
        """A drawn digit beside its reconstruction, eight draws from its posterior, and its evidence lower bound."""
        image = decode_drawing(drawing)
        if image is None:
            raise UserError(
                "There is no digit in the picture: draw one with the brush, or upload a clear picture of one."
            )
        inputs = pixels(image)
        terms = bound(model, inputs)
        values = {"ELBO in nats: higher is more like its data": f"{terms['reconstruction'] - terms['kl']:.1f}"}
        values["reconstruction term: E log p(x|z)"] = f"{terms['reconstruction']:.1f}"
        if model.config.variational:
            values["KL(q(z|x) ‖ p(z)): what the code costs"] = f"{terms['kl']:.1f}"
        pair = torch.cat([inputs, model.reconstruct(inputs)])
        return (
            picture_grid(pair, columns=2),
            picture_grid(uncertain_reconstructions(model, inputs, 8), columns=8),
            facts(values),
        )

    @errors_as_sentences
    def interpolate(first: str, second: str, drawing: str) -> tuple[Image.Image, Image.Image]:
        """The straight way between two digits: in latent space, and, for comparison, pixel by pixel."""

        def find(choice: str) -> torch.Tensor:
            if choice != MINE:
                return pixels(example_digit(int(choice)))
            image = decode_drawing(drawing)
            if image is None:
                raise UserError("You have not drawn a digit yet: draw it under “Your digit”, or choose another here.")
            return pixels(image)

        start, end = find(first), find(second)
        blend = torch.linspace(0, 1, 9).view(-1, 1, 1, 1)
        return (
            picture_grid(model.interpolate(start, end, steps=9)[0], columns=9),
            picture_grid(start * (1 - blend) + end * blend, columns=9),
        )

    @errors_as_sentences
    def draw_map(across: str, down: str) -> Image.Image:
        """225 images on a grid over two entries of z, named "z1", "z2", …; the others are 0."""
        names = {f"z{dimension + 1}": dimension for dimension in range(latent_size)}
        for name in (across, down):
            if name not in names:
                raise UserError(f"There is no entry {name}: choose from z1 to z{latent_size}.")
        if across == down:
            raise UserError("A map needs two different entries of z: choose another one for up and down.")
        return picture_grid(latent_map(model, names[across], names[down]), columns=15, width=1260, gap=0)

    with gr.Blocks(title="VAE: a few numbers behind every digit") as demo:
        header(
            "vae",
            f"{latent_size} numbers behind every digit",
            "An encoder describes an image by a few numbers, a decoder draws it from them. Both learn together, and the "
            "numbers are kept so tidy that almost any choice of them draws something sensible.",
        )
        with gr.Tabs():
            with gr.Tab("Knobs"):
                base = gr.State(None)
                with gr.Row():
                    with gr.Column(scale=4, min_width=280):
                        image = picture("Drawn from these numbers", "decoded", "single")
                    with gr.Column(scale=5, min_width=280):
                        with gr.Row(elem_classes="inline"):
                            seed = gr.Number(0, label="Seed", elem_id="seed", min_width=100)
                            button = gr.Button("Draw a new sample", variant="primary", size="lg", min_width=170)
                        sliders = [
                            gr.Slider(-REACH, REACH, 0, step=0.01, label=f"z{dimension + 1}", elem_id=f"knob{place}")
                            for place, dimension in enumerate(knobs)
                        ]
                        if len(knobs) < latent_size:
                            hint(
                                f"These are the {len(knobs)} most telling of {latent_size} numbers; a new sample "
                                "draws all of them."
                            )
                knob_rows = picture("What each knob does: from −3 to 3, the others staying", "traversal", "grid")
                gr.on(
                    [slider.input for slider in sliders], decode, [base, *sliders], [image, knob_rows],
                    api_name="decode", show_progress="hidden", trigger_mode="always_last",
                )  # fmt: skip
                sampled = [base, image, knob_rows, *sliders]
                gr.on([demo.load, seed.submit], sample, seed, sampled, api_name="sample", show_progress="hidden")
                button.click(_next_seed, seed, seed, api_visibility="private", show_progress="hidden").success(
                    sample, seed, sampled, api_visibility="private", show_progress="hidden"
                )
            with gr.Tab("Your digit"):
                with gr.Row():
                    with gr.Column(scale=4, min_width=280):
                        caption("Draw a digit here, or upload a picture of one")
                        pad = DigitPad("Redraw", FIRST_EXAMPLE)
                    with gr.Column(scale=5, min_width=280):
                        pair = picture("As the network sees it, and as it redraws it", "reconstruction")
                        terms = gr.HTML(elem_id="terms")
                spread = picture("Eight draws from its description: what the numbers leave open", "posterior")
                redrawing = {"fn": reconstruct, "inputs": pad.drawing, "outputs": [pair, spread, terms]}
                pad.go.click(**redrawing, api_name="reconstruct", **QUIET)
                for filled in pad.filled():
                    filled.success(**redrawing, **UNLISTED)
            with gr.Tab("Between two") as between:
                with gr.Row():
                    choices = [*map(str, range(10)), MINE]
                    first = gr.Dropdown(choices, value="3", label="From", elem_id="first", min_width=130)
                    second = gr.Dropdown(choices, value="6", label="To", elem_id="second", min_width=130)
                latent_way = picture("Through latent space: every step is a digit", "latent-way")
                pixel_way = picture("Pixel by pixel, for comparison: one fades, the other appears", "pixel-way")
                ends, ways = [first, second, pad.drawing], [latent_way, pixel_way]
                changed = [first.input, second.input, between.select]
                gr.on(changed, interpolate, ends, ways, api_name="interpolate", **QUIET)
            with gr.Tab("Map") as map_tab:
                hint(
                    "Every cell is drawn from one point of a plane through latent space, laid out so that each stands for "
                    "an equal share of the prior: figure 4 of the paper."
                )
                names = [f"z{dimension + 1}" for dimension in order]
                with gr.Row():
                    across = gr.Dropdown(names, value=names[0], label="Left to right", elem_id="across", min_width=130)
                    down = gr.Dropdown(
                        names,
                        value=names[min(1, latent_size - 1)],
                        label="Bottom to top",
                        elem_id="down",
                        min_width=130,
                    )
                atlas = picture("225 digits from one plane", "map", "grid")
                gr.on(
                    [across.input, down.input, map_tab.select], draw_map, [across, down], atlas, api_name="latent_map",
                    show_progress="hidden",
                )  # fmt: skip
        footer("vae", model, CHECKPOINT)
    return demo


@errors_as_sentences
def _next_seed(seed: float) -> int:
    return (valid_seed(seed) + 1) % (MAX_SEED + 1)


if __name__ == "__main__":
    run(build)

"""A convolutional generator: sample it, walk through its noise, calculate with it: `python spaces/dcgan/app.py`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import gradio as gr
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from transformers import PreTrainedModel

from hf_papers.errors import UserError
from hf_papers.papers.dcgan.modeling_dcgan import vector_arithmetic
from hf_papers.space_kit import (
    checkpoint_source,
    draw_seed,
    errors_as_sentences,
    facts,
    footer,
    header,
    hint,
    load_model,
    load_processor,
    picture,
    picture_grid,
    run,
    sample_tab,
    to_picture,
    valid_seed,
    walk_tab,
    whole_number,
)


CHECKPOINT = Path(__file__).parent / "checkpoint"
CHOICE = 24  # images to choose the terms of a sum from
COLUMNS = 6
NEIGHBOUR_NOISE = 0.25  # figure 7: uniform noise added to a result, to see what lies around it
TERMS = ("Take the mean of", "take off the mean of", "add the mean of")
FRAME_MS, LAST_FRAME_MS = 160, 2500


class Studio:
    """The generator and what is drawn with it. Images are (n, channels, height, width) in [0, 1], without their margin."""

    def __init__(self, model: PreTrainedModel, margin: int) -> None:
        self.model, self.margin = model, margin

    def inside(self, images: torch.Tensor) -> torch.Tensor:
        margin = self.margin
        return images[..., margin:-margin, margin:-margin] if margin else images

    def latents(self, seed: int, count: int) -> torch.Tensor:
        """The noise that a seed stands for, (count, latent_size)."""
        return self.model.sample_latents(count, torch.Generator().manual_seed(seed))

    def draw(self, latents: torch.Tensor) -> torch.Tensor:
        return self.inside(self.model.decode(latents))

    def walk(self, first: int, second: int, steps: int) -> torch.Tensor:
        return self.inside(self.model.interpolate(self.latents(first, 1)[0], self.latents(second, 1)[0], steps))

    @torch.no_grad()
    def belief(self, latents: torch.Tensor) -> torch.Tensor:
        """D(G(z)), how real each image looks to the discriminator, (n,)."""
        return torch.sigmoid(self.model.discriminator(self.model.generator(latents)))

    def suggestion(self, seed: int) -> list[list[int]]:
        """Numbers, from 1, of images for the three terms: the three brightest, and twice three of the darkest.

        Of the six darkest the three that look most like the bright ones are taken off, so that what remains of the
        difference is brightness: for digits, how bold they are.
        """
        images = self.draw(self.latents(seed, CHOICE)).flatten(1)
        order = images.mean(1).argsort(descending=True)
        bright, dark = order[:3], order[-6:]
        shape = torch.nn.functional.normalize(images - images.mean(0), dim=1)
        likeness = shape[dark] @ shape[bright].mean(0)
        dark = dark[likeness.argsort(descending=True)]
        return [(rows + 1).tolist() for rows in (bright, dark[:3], dark[3:])]

    def calculate(self, seed: int, terms: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Images of the three means (3, ...), and of the result with eight neighbours (9, ...), the result in the middle."""
        latents = self.latents(seed, CHOICE)
        chosen = [latents[torch.tensor(numbers) - 1] for numbers in terms]
        result = vector_arithmetic(*chosen)
        noise = torch.rand(9, len(result), generator=torch.Generator().manual_seed(0)) * 2 - 1
        noise[4] = 0
        means = torch.stack([term.mean(0) for term in chosen])
        return self.draw(means), self.draw(result + NEIGHBOUR_NOISE * noise)


@dataclass(frozen=True)
class Film:
    """images (frames, n, c, h, w) uint8 and the steps (frames,) they were taken after; -1 is the published model."""

    images: torch.Tensor
    steps: torch.Tensor

    @classmethod
    def find(cls) -> Film | None:
        """`film.safetensors` beside the checkpoint, if there is one."""
        path = Path(checkpoint_source(CHECKPOINT)) / "film.safetensors"
        if not path.is_file():
            return None
        tensors = load_file(path)
        if not {"images", "steps"} <= tensors.keys() or tensors["images"].ndim != 5:
            raise UserError(f"{path} is no film: it must hold `images` (frames, n, c, h, w) and `steps`.")
        return cls(tensors["images"], tensors["steps"])

    def frame(self, number: int, width: int = 420) -> Image.Image:
        images = self.images[number].float() / 255
        return picture_grid(images, columns=max(1, round(len(images) ** 0.5)), width=width)

    def title(self, number: int) -> str:
        step = int(self.steps[number])
        return "the published model" if step < 0 else f"after {step:,} step{'s' if step > 1 else ''}"

    @cached_property
    def gif(self) -> str:
        """All frames as a GIF that repeats; the path of its file."""
        frames = [self.frame(number, width=260) for number in range(len(self.images))]
        # Few colours and no dithering: dots that change from frame to frame would flicker and fill the file.
        frames = [frame.quantize(32, dither=Image.Dither.NONE) for frame in frames]
        path = Path(tempfile.mkdtemp(prefix="dcgan-film-")) / "film.gif"
        durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)
        return str(path)


def numbered(images: torch.Tensor, columns: int = COLUMNS, width: int = 760) -> Image.Image:
    """Images in rows, each with its number, from 1, below it."""
    scale = max(1, width // columns // (images.shape[-1] + 4))
    side, band = images.shape[-1] * scale, 22
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * (side + 8), rows * (side + band)), "white")
    pen = ImageDraw.Draw(page)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        corner = (column * (side + 8) + 4, row * (side + band))
        page.paste(to_picture(image).resize((side, side), Image.Resampling.NEAREST).convert("RGB"), corner)
        pen.text(
            (corner[0] + side / 2, corner[1] + side + band / 2),
            f"{index + 1}",
            fill="#334155",
            anchor="mm",
            font_size=17,
        )
    return page


def sum_as_picture(images: torch.Tensor, width: int = 900) -> Image.Image:
    """Three images and a fourth with the signs of "a - b + c = d" between them."""
    signs, gap = ("-", "+", "="), 44
    scale = max(1, (width - 3 * gap) // 4 // images.shape[-1])
    side = images.shape[-1] * scale
    page = Image.new("RGB", (4 * side + 3 * gap, side), "white")
    pen = ImageDraw.Draw(page)
    for index, image in enumerate(images):
        left = index * (side + gap)
        page.paste(to_picture(image).resize((side, side), Image.Resampling.NEAREST).convert("RGB"), (left, 0))
        if index < 3:
            pen.text((left + side + gap / 2, side / 2), signs[index], fill="#334155", anchor="mm", font_size=40)
    return page


def numbers(value: object, name: str) -> list[int]:
    """What a visitor chose for one term: between one and six numbers of images, or a `UserError`."""
    chosen = value if isinstance(value, list) else []
    if not 1 <= len(chosen) <= 6:
        raise UserError(f"'{name}' needs between one and six images: choose them by the numbers below them.")
    return [whole_number(number, f"An image of '{name}'", 1, CHOICE) for number in chosen]


def build() -> gr.Blocks:
    """The page around one checkpoint. Raises `UserError` when there is none."""
    model = load_model("dcgan", CHECKPOINT)
    studio = Studio(model, load_processor("dcgan", CHECKPOINT).margin)
    film = Film.find()
    frames = 0 if film is None else len(film.images)

    @errors_as_sentences
    def sample(seed: float) -> tuple[Image.Image, str]:
        """36 images from a seed as one picture, and how real the discriminator finds them, as HTML."""
        latents = studio.latents(valid_seed(seed), 36)
        belief = studio.belief(latents)
        values = {
            "the discriminator’s belief that they are real, on average": f"{belief.mean():.0%}",
            "in the one that it believes most": f"{belief.max():.0%}",
        }
        return picture_grid(studio.draw(latents), columns=6), facts(values)

    @errors_as_sentences
    def choices(seed: float) -> tuple[Image.Image, list[int], list[int], list[int]]:
        """The images of a seed with their numbers, and a suggestion for the three terms."""
        seed = valid_seed(seed)
        return numbered(studio.draw(studio.latents(seed, CHOICE))), *studio.suggestion(seed)

    @errors_as_sentences
    def arithmetic(seed: float, plus: list[int], minus: list[int], base: list[int]) -> tuple[Image.Image, Image.Image]:
        """The means of the three terms (numbers of images of this seed) with their sum, and what lies around the sum."""
        seed = valid_seed(seed)
        terms = [numbers(value, name) for value, name in zip((plus, minus, base), TERMS, strict=True)]
        means, around = studio.calculate(seed, terms)
        return sum_as_picture(torch.cat([means, around[4:5]])), picture_grid(around, columns=3, width=420)

    @errors_as_sentences
    def show_film() -> str:
        if film is None:
            raise UserError("There is no film beside this checkpoint.")
        return film.gif

    @errors_as_sentences
    def film_frame(number: float) -> tuple[Image.Image, str]:
        """One frame of the training's film (from 1), and after how many steps it was taken, as HTML."""
        if film is None:
            raise UserError("There is no film beside this checkpoint: a run writes film.safetensors into its figures.")
        number = whole_number(number, "The frame", 1, frames)
        return film.frame(number - 1), f'<p class="hint">{film.title(number - 1)}</p>'

    with gr.Blocks(title="DCGAN: arithmetic with images") as demo:
        header(
            "dcgan",
            "Calculate with images",
            "The generator paints an image from a hundred random numbers. Convolutions and batch normalisation made its "
            "training stable, and left it with a space of noise in which directions mean something: you can walk through "
            "it, and add and subtract in it.",
        )
        with gr.Tabs():
            sample_tab(demo, sample)
            walk_tab(
                "From one seed’s noise to the other’s. If the network had memorised images, the way would jump from one "
                "to the next; it bends one into the other instead.",
                studio.walk,
            )
            with gr.Tab("Arithmetic") as sum_tab:
                hint(
                    "Noise of three images, averaged, stands for what they share. Chosen for you: bold images, minus thin "
                    "ones that resemble them, plus other thin ones. What should come out is those others, in bold. One "
                    "image a term works as well, only worse."
                )
                with gr.Row(elem_classes="inline"):
                    sum_seed = gr.Number(0, label="Seed of the images", elem_id="sum-seed", min_width=140)
                    fresh = gr.Button("Other images", size="lg", min_width=120)
                page = picture("Choose from these", "choices")
                with gr.Row():
                    fields = [
                        gr.Dropdown(
                            list(range(1, CHOICE + 1)),
                            multiselect=True,
                            max_choices=6,
                            label=name,
                            elem_id=f"term{index}",
                            min_width=200,
                        )
                        for index, name in enumerate(TERMS)
                    ]
                with gr.Row():
                    with gr.Column(scale=5, min_width=300):
                        equation = picture("What each mean looks like, and the result", "equation")
                    with gr.Column(scale=3, min_width=240):
                        around = picture("The result, with neighbours around it", "around", "single")
                calculation = {
                    "fn": arithmetic,
                    "inputs": [sum_seed, *fields],
                    "outputs": [equation, around],
                    "show_progress": "hidden",
                }
                # `input`, not `change`: what the suggestion fills in is calculated once, not three times.
                gr.on([field.input for field in fields], **calculation, api_name="arithmetic")
                gr.on(
                    [sum_tab.select, sum_seed.submit, sum_seed.blur],
                    choices, sum_seed, [page, *fields], api_name="choices", show_progress="hidden",
                ).success(**calculation, api_visibility="private")  # fmt: skip
                draw_seed(fresh, sum_seed).success(
                    choices, sum_seed, [page, *fields], api_visibility="private", show_progress="hidden"
                ).success(**calculation, api_visibility="private")
            with gr.Tab("Film", visible=film is not None) as film_tab:
                hint(
                    "The same 25 noise vectors at moments of the training, close together at its beginning. Watch a place: "
                    "what appears there early is refined, and now and then becomes something else."
                )
                with gr.Row():
                    with gr.Column(scale=4, min_width=280):
                        moving = picture("The film", "film", "grid")
                    with gr.Column(scale=4, min_width=280):
                        still = picture("One frame of it", "frame", "grid")
                        number = gr.Slider(1, max(frames, 2), max(frames, 1), step=1, label="Frame", elem_id="number")
                        moment = gr.HTML(elem_id="moment")
                film_tab.select(show_film, None, moving, api_visibility="private", show_progress="hidden")
                gr.on(
                    [number.change, film_tab.select],
                    film_frame, number, [still, moment], api_name="film_frame", show_progress="hidden",
                    trigger_mode="always_last",
                )  # fmt: skip
        footer("dcgan", model, CHECKPOINT)
    return demo


if __name__ == "__main__":
    run(build)

"""A generator that learnt to fool a critic: sample it, walk through its noise: `python spaces/gan/app.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import PreTrainedModel

from hf_papers.data.embedded import find_embedded
from hf_papers.errors import UserError
from hf_papers.metrics.modes import ModeCoverage, fit_mode_classifier, mode_coverage
from hf_papers.metrics.neighbours import nearest_neighbours
from hf_papers.space_kit import (
    checkpoint_source,
    errors_as_sentences,
    facts,
    footer,
    header,
    hint,
    load_model,
    picture,
    picture_grid,
    run,
    sample_tab,
    valid_seed,
    walk_tab,
)


CHECKPOINT = Path(__file__).parent / "checkpoint"
COVERAGE_SAMPLES = 500
JUDGED_SAMPLES = 400


@dataclass(frozen=True)
class RealImages:
    """Real images (n, channels, size, size) in [0, 1] to compare with, and their classes (n,)."""

    images: torch.Tensor
    labels: torch.Tensor


def find_real_images(model: PreTrainedModel) -> RealImages | None:
    """Real images of the model's size: `reference.safetensors` beside the checkpoint (uint8 `images` (n, height, width)
    and `labels`, written by reference.py), else the embedded digits for an 8 x 8 model, else none."""
    size = model.config.image_size
    path = Path(checkpoint_source(CHECKPOINT)) / "reference.safetensors"
    if path.is_file():
        tensors = load_file(path)
        images, labels = tensors["images"].float().div(255).unsqueeze(1), tensors["labels"]
    elif (size, model.config.num_channels) == (8, 1):
        rows = find_embedded("digits").load()["train"]
        pictures = [torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8) for picture in rows["image"]]
        images = torch.stack(pictures).view(-1, 1, 8, 8).float() / 255
        labels = torch.tensor(rows["label"])
    else:
        return None
    if images.shape[-1] != size:
        raise UserError(f"{path} holds images of {images.shape[-1]} pixels, but the checkpoint makes {size}.")
    return RealImages(images, labels)


class Critic:
    """Sorts generated images by an independent classifier, which is fitted to the real ones on first use."""

    def __init__(self, real: RealImages) -> None:
        self.real = real
        self.classifier = fit_mode_classifier(real.images, real.labels)

    def coverage(self, images: torch.Tensor) -> ModeCoverage:
        return mode_coverage(images, self.classifier, self.real.labels)


def draw_coverage(coverage: ModeCoverage, classes: list[int]) -> str:
    """Share of every class among the samples as bars, as HTML."""
    highest = max(*coverage.shares, 1e-9)
    bars = "".join(
        f'<div class="bar"><div class="track"><div style="height: {max(2.0, 100 * share / highest):.0f}%"></div></div>'
        f"<b>{name}</b><span>{share:.0%}</span></div>"
        for name, share in zip(classes, coverage.shares, strict=True)
    )
    return f'<div class="bars">{bars}</div>'


def latent(model: PreTrainedModel, seed: int) -> torch.Tensor:
    """The noise vector that a seed stands for, (latent_size,)."""
    return model.sample_latents(1, torch.Generator().manual_seed(seed))[0]


def build() -> gr.Blocks:
    """The page around one checkpoint. Raises `UserError` when there is none."""
    model = load_model("gan", CHECKPOINT)
    real = find_real_images(model)
    critic = Critic(real) if real is not None else None
    classes = sorted(set(real.labels.tolist())) if real is not None else []

    @errors_as_sentences
    def sample(seed: float) -> tuple[Image.Image, str]:
        """36 images from a seed as one picture, and how varied the generator is, as HTML."""
        images = model.sample(COVERAGE_SAMPLES, seed=valid_seed(seed))
        with torch.no_grad():
            believed = torch.sigmoid(model.discriminator(images)).mean().item()
        values = {"the discriminator's belief that these are real, on average": f"{believed:.0%}"}
        bars = ""
        if critic is not None:
            coverage = critic.coverage(images)
            values["kinds of images made often enough, of all in the data"] = (
                f"{coverage.modes_covered} of {coverage.num_modes}"
            )
            bars = draw_coverage(coverage, classes)
            bars += (
                f'<p class="hint">How often each kind appears among {COVERAGE_SAMPLES} samples, by a small classifier that '
                "can err. Where bars are missing, the generator has collapsed onto what fools the discriminator.</p>"
            )
        return picture_grid(images[:36], columns=6), facts(values) + bars

    def way(first: int, second: int, steps: int) -> torch.Tensor:
        return model.interpolate(latent(model, first), latent(model, second), num_images=steps)

    @errors_as_sentences
    def judge(seed: float) -> tuple[Image.Image, Image.Image, str]:
        """Of 400 images, the 16 that the discriminator believes most and the 16 that it believes least."""
        images = model.sample(JUDGED_SAMPLES, seed=valid_seed(seed))
        with torch.no_grad():
            belief = torch.sigmoid(model.discriminator(images))
        order = belief.argsort(descending=True)
        values = {
            "belief in the 16 best": f"{belief[order[:16]].mean():.0%}",
            "belief in the 16 worst": f"{belief[order[-16:]].mean():.0%}",
        }
        return picture_grid(images[order[:16]], columns=8), picture_grid(images[order[-16:]], columns=8), facts(values)

    @errors_as_sentences
    def compare(seed: float) -> Image.Image:
        """Eight generated images above the real images nearest to each."""
        if real is None:
            raise UserError(
                "There are no real images beside this checkpoint to compare with: write them with "
                "`python spaces/gan/reference.py`."
            )
        images = model.sample(8, seed=valid_seed(seed))
        _, nearest = nearest_neighbours(images, real.images)
        return picture_grid(torch.cat([images, real.images[nearest]]), columns=8)

    with gr.Blocks(title="GAN: images from noise") as demo:
        header(
            "gan",
            "It has never seen a real image",
            "The generator turns random numbers into images. It learnt from one thing alone: how a second network, which "
            "did see real images, could tell. Each grid below is made from nothing but its seed.",
        )
        with gr.Tabs():
            sample_tab(demo, sample)
            walk_tab(
                "Move from one seed’s noise to the other’s. No picture in between was ever asked for, yet each is a "
                "plausible image: the generator has learnt a space, not a list.",
                way,
            )
            with gr.Tab("Critic") as judge_tab:
                hint(
                    f"The other player, asked about {JUDGED_SAMPLES} samples: the forgeries that it believes, and those "
                    "that it sees through. At the game’s equilibrium it could only give all of them the same answer."
                )
                judge_seed = gr.Number(0, label="Seed", elem_id="judge-seed")
                judge_facts = gr.HTML(elem_id="judge-facts")
                best, worst = picture("Believed most", "best"), picture("Believed least", "worst")
                gr.on(
                    [judge_seed.submit, judge_seed.blur, judge_tab.select],
                    judge, judge_seed, [best, worst, judge_facts], api_name="judge", show_progress="hidden",
                )  # fmt: skip
            with gr.Tab("Copying?", visible=real is not None) as compare_tab:
                hint(
                    "Above: generated. Below: the nearest of the real images at hand, pixel by pixel. A generator that had "
                    "memorised would show pairs alike to the pixel."
                )
                compare_seed = gr.Number(0, label="Seed", elem_id="compare-seed")
                pairs = picture("Generated, and the nearest real image", "pairs")
                gr.on(
                    [compare_seed.submit, compare_seed.blur, compare_tab.select],
                    compare, compare_seed, pairs, api_name="nearest_real", show_progress="hidden",
                )  # fmt: skip
        footer("gan", model, CHECKPOINT)
    return demo


if __name__ == "__main__":
    run(build)

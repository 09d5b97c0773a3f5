"""What every Space shares: look, header, loading of the checkpoint, errors as sentences, and the launch.

A Space makes no request of its own: fonts and styles are served by Gradio itself, telemetry is off, and the checkpoint
lies beside the app unless the environment variable MODEL_ID names another folder or Hub repository.
"""

from __future__ import annotations

import base64
import functools
import html
import inspect
import io
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when a Blocks is built; exactly this spelling
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import PreTrainedModel

from hf_papers.errors import UserError
from hf_papers.registry import Paper, find_paper


logger = logging.getLogger(__name__)
Function = TypeVar("Function", bound=Callable[..., Any])

ACCENT = "#4f46e5"  # indigo 600: the first line of a plot, the button
CONTRAST = "#ea580c"  # orange 600: the second line, told apart from the first also without colour vision

THEME = gr.themes.Soft(
    primary_hue="indigo",
    secondary_hue="indigo",
    neutral_hue="slate",
    font=("ui-sans-serif", "system-ui", "sans-serif"),
).set(
    body_text_color_subdued="*neutral_500",  # contrast 4.8 on white; the theme's own has 2.6
    block_title_background_fill="transparent",
    block_title_background_fill_dark="transparent",
    block_title_text_color="*body_text_color",
    block_title_text_color_dark="*body_text_color",
    block_title_padding="0",
    block_label_text_color="*body_text_color",
    block_label_text_color_dark="*body_text_color",
    block_info_text_color="*neutral_500",
)

CSS = """
.gradio-container { max-width: 1080px !important; margin: 0 auto !important; padding: 8px clamp(2px, 1vw, 16px) !important; }
.gradio-container .main.app { padding: 8px clamp(4px, 1vw, 16px) !important; }
.gradio-container .html-container { padding: 6px 4px !important; }
.paper-header h1 { margin: 0 0 2px; font-size: clamp(1.35rem, 4.5vw, 1.9rem); line-height: 1.2; font-weight: 700; }
.paper-header .by { margin: 0 0 10px; color: var(--body-text-color-subdued); font-size: .92rem; }
.paper-header .by a { color: var(--link-text-color); text-decoration: underline;
  text-underline-offset: 2px; white-space: nowrap; }
.paper-header .idea { margin: 0; font-size: 1.02rem; line-height: 1.5; max-width: 68ch; }
.facts { display: flex; flex-wrap: wrap; gap: 8px; margin: 2px 0; }
.facts > div { flex: 1 1 110px; padding: 8px 12px; border-radius: 10px; background: var(--background-fill-secondary);
  border: 1px solid var(--border-color-primary); }
.facts .value { display: block; font-size: 1.2rem; font-weight: 650; font-variant-numeric: tabular-nums; }
.facts .name { display: block; font-size: .8rem; line-height: 1.3; color: var(--body-text-color-subdued); }
.foot { color: var(--body-text-color-subdued); font-size: .85rem; line-height: 1.5; overflow-wrap: anywhere; }
.foot a { color: var(--link-text-color); }
.pixels, .pixels * { background: transparent !important; border: 0 !important; box-shadow: none !important; }
.pixels img { width: 100% !important; max-width: 100%; height: auto !important; border-radius: 6px; }
.pixels .empty { min-height: 56px !important; }
.grid img { max-width: min(100%, 720px) !important; margin: 0 !important; }
.single img { max-width: min(68vw, 340px) !important; margin: 0 !important; }
.caption { margin: 0 0 -8px; font-weight: 600; font-size: .92rem; }
.inline { align-items: end; }
.inline button { min-height: 44px; }
.bars { display: flex; gap: 4px; align-items: end; margin: 8px 0; }
.bars .bar { flex: 1; min-width: 0; text-align: center; font-size: .82rem; line-height: 1.25; }
.bars .track { height: 72px; display: flex; align-items: end; }
.bars .track div { width: 100%; border-radius: 4px 4px 0 0; background: #4f46e5; }
.bars b, .bars span { display: block; }
.bars span { color: var(--body-text-color-subdued); }
.meter { display: grid; max-width: 720px;
  grid-template-columns: minmax(84px, 22%) 1fr 52px; gap: 10px; align-items: center; margin: 5px 0;
  font-size: .95rem; line-height: 1.25; }
.meter .label { overflow-wrap: anywhere; }
.meter .track { height: 14px; border-radius: 4px; background: var(--background-fill-secondary); overflow: hidden; }
.meter .track span { display: block; height: 100%; border-radius: 4px; background: #4f46e5; }
.meter .share { text-align: right; font-variant-numeric: tabular-nums; color: var(--body-text-color-subdued); }
.hint { color: var(--body-text-color-subdued); font-size: .92rem; }
footer { margin-top: 8px !important; }
"""


# ------------------------------------------------------------------------------------------------- errors


def errors_as_sentences(function: Function) -> Function:
    """Show what a visitor did wrong as a sentence on the page; log what we did wrong and say that it was us.

    `UserError` and `ValueError` carry sentences for the visitor. Works on functions and on generators.
    """

    def sentence(error: Exception) -> gr.Error:
        if isinstance(error, gr.Error):
            return error
        if isinstance(error, (UserError, ValueError)):
            return gr.Error(str(error), print_exception=False)
        logger.error("%s failed", function.__name__, exc_info=error)
        return gr.Error(
            "This did not work, and it is not your fault: the details are in the log of this Space.",
            print_exception=False,
        )

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                yield from function(*args, **kwargs)
            except Exception as error:
                raise sentence(error) from error
    else:

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                raise sentence(error) from error

    return guarded  # type: ignore[return-value]


def whole_number(value: Any, name: str, minimum: int, maximum: int) -> int:
    """`value` as an int, or a `UserError` that says what would be right: number fields can be empty or 2.5."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value != int(value)
        or not minimum <= value <= maximum
    ):
        raise UserError(f"{name} must be a whole number from {minimum} to {maximum:,}, not {value}.")
    return int(value)


def bounded(value: Any, name: str, minimum: float, maximum: float) -> float:
    """`value` as a float within its bounds, or a `UserError`: calls of the API are not held by sliders."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not minimum <= value <= maximum:
        raise UserError(f"{name} must be a number from {minimum:g} to {maximum:g}, not {value}.")
    return float(value)


# ------------------------------------------------------------------------------------------------- checkpoint


def checkpoint_source(default: Path, variable: str = "MODEL_ID") -> str:
    """Where the checkpoint comes from: MODEL_ID (a folder or Hub id) or the folder beside the app.

    `variable`: the name of the environment variable, for a Space with several checkpoints.
    """
    return os.environ.get(variable, "").strip() or str(default)


def require_checkpoint(paper_key: str, default: Path) -> str:
    """As `checkpoint_source`; a `UserError` says what to do when there is none."""
    source = checkpoint_source(default)
    if source == str(default) and not (default / "config.json").is_file():
        paper = find_paper(paper_key)
        recipe = paper.headline or next(iter(paper.recipes), "embedded")
        raise UserError(
            f"There is no checkpoint for this Space in {default}. Train one with `hf-papers train {paper_key} "
            f"--recipe {recipe} --output_dir runs/{paper_key}` and start the app with MODEL_ID=runs/{paper_key}, "
            "or copy the configuration files and model.safetensors of a run there."
        )
    return source


def load_model(paper_key: str, default: Path) -> PreTrainedModel:
    """The checkpoint in eval mode and float32, loaded strictly; `UserError` says what to do when there is none."""
    from hf_papers.hub.checkpoints import load_strict

    source = require_checkpoint(paper_key, default)
    return load_strict(find_paper(paper_key), source).float().eval()


def load_processor(paper_key: str, default: Path) -> Any:
    """The image processor saved with the checkpoint, so that the Space sees the pixels that training saw."""
    processor_class = find_paper(paper_key).image_processor_class
    if processor_class is None:
        raise UserError(f"The paper '{paper_key}' has no image processor.")
    return processor_class.from_pretrained(checkpoint_source(default))


def checkpoint_results(default: Path) -> dict[str, Any]:
    """The results.json beside a local checkpoint, or an empty dict: what the page may say about its quality."""
    path = Path(checkpoint_source(default)) / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def count_parameters(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ------------------------------------------------------------------------------------------------- page


def header(paper_key: str, headline: str, idea: str) -> gr.HTML:
    """Top of the page: a headline, the paper with its link, and its idea in two plain sentences."""
    paper: Paper = find_paper(paper_key)
    names = [name.strip() for name in paper.authors.split(",")]
    authors = paper.authors if len(names) <= 2 else f"{names[0]} et al."
    address, place = paper.source
    return gr.HTML(
        f'<div class="paper-header"><h1>{html.escape(headline)}</h1>'
        f'<p class="by" title="{html.escape(paper.authors)}"><em>{html.escape(paper.title)}</em>, {html.escape(authors)}, '
        f"{paper.year} · "
        f'<a href="{html.escape(address)}" target="_blank" rel="noopener">{html.escape(place)}</a></p>'
        f'<p class="idea">{idea}</p></div>'
    )


def caption(text: str) -> gr.HTML:
    return gr.HTML(f'<p class="caption">{html.escape(text)}</p>')


def hint(text: str) -> gr.HTML:
    """What to look for, in a sentence or two."""
    return gr.HTML(f'<p class="hint">{html.escape(text)}</p>')


def picture(label: str, name: str, kind: Literal["strip", "grid", "single"] = "strip") -> gr.Image:
    """A picture under its caption, as wide as its column, a grid at most 720 pixels and a single image at most 340;
    `name` is its id in the page.

    The caption stands above: Gradio's own label would lie on the picture.
    """
    caption(label)
    return gr.Image(
        label=label,
        alt_text=label,
        show_label=False,
        format="png",
        interactive=False,
        container=False,
        buttons=[],
        elem_id=name,
        elem_classes=["pixels", kind],
    )


def facts(values: dict[str, str]) -> str:
    """A row of small tiles, `name -> value`, as HTML; wraps on a narrow screen."""
    tiles = "".join(
        f'<div><span class="value">{html.escape(value)}</span><span class="name">{html.escape(name)}</span></div>'
        for name, value in values.items()
    )
    return f'<div class="facts">{tiles}</div>'


def percent(share: float) -> str:
    """A share in words: whole per cents, below ten with one digit."""
    return f"{share:.1%}" if share < 0.0995 else f"{share:.0%}"


def meters(values: Sequence[tuple[str, float]]) -> str:
    """(name, share from 0 to 1) as horizontal bars, the share beside each, as HTML."""
    rows = "".join(
        f'<div class="meter"><span class="label">{html.escape(name)}</span><span class="track">'
        f'<span style="width: {100 * share:.1f}%"></span></span><span class="share">{percent(share)}</span></div>'
        for name, share in values
    )
    return f'<div class="meters">{rows}</div>'


def footer(paper_key: str, model: PreTrainedModel, default: Path) -> gr.HTML:
    """Bottom of the page: which checkpoint this is, how large, and what its own results.json says of it."""
    source = checkpoint_source(default)
    name = Path(source).name if source == str(default) or Path(source).is_dir() else source
    return gr.HTML(
        f'<div class="foot">Model: {html.escape(model.__class__.__name__)}, {count_parameters(model):,} parameters, '
        f"checkpoint <code>{html.escape(name)}</code>; {html.escape(_result_sentence(checkpoint_results(default)))} "
        f"Runs on this machine's CPU. Code: <code>hf_papers/papers/{paper_key}</code>.</div>"
    )


def _result_sentence(results: dict[str, Any]) -> str:
    """The test metrics of a results.json in words; understands one run (numbers) and an aggregate (mean, std)."""
    values = results.get("metrics", {}).get("test", {})
    parts = []
    for name, value in list(values.items())[:3]:
        number = value["mean"] if isinstance(value, dict) else value
        parts.append(f"{name.replace('_', ' ')} {number:.4g}")
    return f"test set: {', '.join(parts)}." if parts else "test results: not run yet."


def launch(demo: gr.Blocks, css: str = "") -> None:
    """Serve the page: bounded queue, nothing recorded, nothing sent. GRADIO_SERVER_NAME and _PORT are honoured.

    `css`: styles of this Space beside those that all share.
    """
    demo.queue(default_concurrency_limit=1, max_size=16)
    demo.launch(
        theme=THEME,
        css=CSS + css,
        ssr_mode=False,
        show_error=True,
        run_history=False,
        max_file_size="5mb",
        footer_links=["api", "settings"],
    )


def run(build: Callable[[], gr.Blocks], css: str = "") -> None:
    """What `python app.py` does: build the page and serve it, or say in one sentence why not and exit with status 2."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        demo = build()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    launch(demo, css)


# ------------------------------------------------------------------------------------------------- drawing

PAD_SIZE = 280  # pixels of the canvas, both ways
PAD_BRUSH = 22
MAX_DRAWING_BYTES = 3_000_000
MAX_PIXELS = 40_000_000  # of an uploaded picture: decoded, four bytes each

PAD_TEMPLATE = f"""
<canvas width="{PAD_SIZE}" height="{PAD_SIZE}" aria-label="Drawing pad"></canvas>
<button type="button" class="wipe" aria-label="Wipe the pad">Wipe</button>
"""

PAD_CSS = """
& { position: relative; width: min(100%, 320px); }
canvas { width: 100%; aspect-ratio: 1; display: block; background: white; border: 1px solid #cbd5e1; border-radius: 8px;
  cursor: crosshair; touch-action: none; }
.wipe { position: absolute; top: 8px; right: 8px; padding: 4px 12px; border-radius: 6px; font-size: .85rem; color: #334155;
  background: #f1f5f9; }
"""

# The value of the pad is its picture as a data URL, "" when it is blank. `element`, `props` and `watch` are Gradio's.
PAD_SCRIPT = f"""
const canvas = element.querySelector("canvas"), pen = canvas.getContext("2d");
let last = null, own = "";
const blank = () => {{ pen.fillStyle = "white"; pen.fillRect(0, 0, canvas.width, canvas.height); }};
const place = (event) => {{
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) * canvas.width / box.width, (event.clientY - box.top) * canvas.height / box.height];
}};
const publish = (value) => {{ own = value; props.value = value; }};
const show = () => {{
  if (props.value === own) return;
  own = props.value || "";
  blank();
  if (!own) return;
  const image = new Image();
  image.onload = () => {{
    const scale = Math.min(canvas.width / image.width, canvas.height / image.height);
    const [width, height] = [image.width * scale, image.height * scale];
    pen.drawImage(image, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
  }};
  image.src = own;
}};
blank();
pen.lineWidth = {PAD_BRUSH}; pen.lineCap = pen.lineJoin = "round"; pen.strokeStyle = "black";
canvas.addEventListener("pointerdown", (event) => {{
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  last = place(event);
  pen.beginPath(); pen.moveTo(...last); pen.lineTo(...last); pen.stroke();
}});
canvas.addEventListener("pointermove", (event) => {{
  if (!last) return;
  pen.beginPath(); pen.moveTo(...last); last = place(event); pen.lineTo(...last); pen.stroke();
}});
const lift = () => {{ if (last) {{ last = null; publish(canvas.toDataURL("image/png")); }} }};
canvas.addEventListener("pointerup", lift);
canvas.addEventListener("pointercancel", lift);
element.querySelector(".wipe").addEventListener("click", () => {{ blank(); publish(""); }});
watch("value", show);
show();
"""


def drawing_pad(name: str) -> gr.HTML:
    """A white square to draw on with mouse or finger, ready at once; `name` is its id in the page.

    Its value is text for `decode_drawing`. (Gradio's own Sketchpad asks a visitor to choose a tool first.)
    """
    return gr.HTML(
        "",
        html_template=PAD_TEMPLATE,
        css_template=PAD_CSS,
        js_on_load=PAD_SCRIPT,
        elem_id=name,
        apply_default_css=False,
    )


def decode_drawing(value: Any) -> Image.Image | None:
    """The picture on a drawing pad, None when it is blank. Raises `UserError` for text that is no picture."""
    if not value:
        return None
    wrong = "The drawing must be a PNG picture as a data URL (data:image/png;base64,…), or empty."
    start, _, content = value.partition(",") if isinstance(value, str) else ("", "", "")
    if start != "data:image/png;base64" or len(content) > MAX_DRAWING_BYTES:
        raise UserError(wrong)
    try:
        return open_picture(io.BytesIO(base64.b64decode(content, validate=True)))
    except ValueError as error:
        raise UserError(wrong) from error


def encode_drawing(image: Image.Image) -> str:
    """A picture as the value of a drawing pad."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def open_picture(file: str | Path | BinaryIO, limit: int = 1024) -> Image.Image:
    """The picture in a visitor's file, upright, RGBA, at most `limit` pixels wide and high, or a `UserError`."""
    try:
        with Image.open(file) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise UserError(
                    f"This picture has {opened.width:,} x {opened.height:,} pixels, too many for this page: make it smaller."
                )
            opened.draft(None, (limit, limit))
            image = _eight_bits(ImageOps.exif_transpose(opened)).convert("RGBA")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError("This file is not a picture that can be read: upload a PNG, JPEG or WebP.") from error
    image.thumbnail((limit, limit))
    return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey pictures with 16 bits or floating-point numbers, from their darkest to their brightest pixel, as 8 bits."""
    if not image.mode.startswith(("I", "F")):
        return image
    pixels = np.asarray(image, dtype=np.float64)
    low, high = pixels.min(), pixels.max()
    if not np.isfinite([low, high]).all():
        raise UserError("This picture holds numbers that are not finite: save it as PNG or JPEG.")
    return Image.fromarray(((pixels - low) * (255 / max(high - low, 1e-9))).astype(np.uint8))


# ------------------------------------------------------------------------------------------------- digits


def to_digit(drawing: Image.Image, size: int) -> Image.Image:
    """A drawing or photograph of a digit as the data sets hold them: white ink on black, centred, (size, size), mode L.

    As MNIST was made: the ink is scaled into 20/28 of the frame with its proportions kept, and its centre of mass moved to
    the middle. (The 8 x 8 digits of scikit-learn have no margin: theirs fills the frame.) Dark ink on a light ground is
    turned round. Raises `UserError` when there is no ink, or nothing else.
    """
    canvas = Image.new("RGBA", drawing.size, "white")
    grey = Image.alpha_composite(canvas, drawing.convert("RGBA")).convert("L")
    pixels = np.asarray(grey, dtype=np.float32) / 255
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    if np.median(border) > 0.5:
        pixels = 1 - pixels
    pixels = np.clip(pixels - np.median(border if np.median(border) <= 0.5 else 1 - border), 0, None)
    if pixels.max() < 0.2:
        raise UserError("There is no digit in the picture: draw one with the brush, or upload a clear picture of one.")
    pixels /= pixels.max()
    rows, columns = (np.flatnonzero(pixels.max(axis) > 0.3) for axis in (1, 0))
    ink = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if ink.mean() > 0.9 and ink.size > 0.5 * pixels.size:
        raise UserError("The picture is nearly all ink: leave some ground around the digit.")
    scale = (size if size <= 8 else round(size * 20 / 28)) / max(ink.shape)
    shape = (max(1, round(ink.shape[1] * scale)), max(1, round(ink.shape[0] * scale)))
    small = np.asarray(
        Image.fromarray((ink * 255).astype(np.uint8)).resize(shape, Image.Resampling.LANCZOS), np.float32
    )
    y, x = (
        np.average(np.arange(n), weights=small.sum(axis) + 1e-6) for n, axis in zip(small.shape, (1, 0), strict=True)
    )
    frame = Image.new("L", (size, size))
    corner = tuple(
        int(np.clip(round(size / 2 - 0.5 - middle), 0, size - length))
        for middle, length in zip((x, y), shape, strict=True)
    )
    frame.paste(Image.fromarray(small.astype(np.uint8)), corner)
    return frame


@functools.cache
def example_digit(label: int, number: int = 0) -> Image.Image:
    """One of scikit-learn's handwritten digits (8 x 8), enlarged, dark on light like a drawing."""
    from hf_papers.data.embedded import find_embedded

    rows = find_embedded("digits").load()["test"]
    chosen = [image for image, found in zip(rows["image"], rows["label"], strict=True) if found == label]
    framed = ImageOps.expand(chosen[number % len(chosen)], 1)
    return ImageOps.invert(framed.resize((280, 280), Image.Resampling.BICUBIC))


# ------------------------------------------------------------------------------------------------- pictures


def to_picture(image: torch.Tensor) -> Image.Image:
    """One image (channels, height, width) with values in [0, 1], 1 or 3 channels, as a PIL picture."""
    pixels = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return (
        Image.fromarray(pixels[0], "L") if pixels.shape[0] == 1 else Image.fromarray(np.moveaxis(pixels, 0, -1), "RGB")
    )


def picture_grid(
    images: torch.Tensor | Sequence[torch.Tensor], columns: int, width: int = 1000, gap: int = 3
) -> Image.Image:
    """Images (n, channels, height, width) in [0, 1] as one picture about `width` pixels wide, pixels kept square.

    Every image is enlarged by a whole factor, so that an 8 × 8 digit shows its pixels and is not blurred.
    """
    tiles = [to_picture(image) for image in images]
    if not tiles:
        raise ValueError("there are no images to show")
    rows = math.ceil(len(tiles) / columns)
    scale = max(1, (width - gap * (columns - 1)) // (columns * tiles[0].width))
    tile_width, tile_height = tiles[0].width * scale, tiles[0].height * scale
    size = (columns * tile_width + gap * (columns - 1), rows * tile_height + gap * (rows - 1))
    grid = Image.new("RGB", size, "#c7d2fe")
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        enlarged = tile.resize((tile_width, tile_height), Image.Resampling.NEAREST).convert("RGB")
        grid.paste(enlarged, (column * (tile_width + gap), row * (tile_height + gap)))
    return grid

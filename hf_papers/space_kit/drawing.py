"""A pad to draw on, and pictures that visitors bring."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any, BinaryIO

import gradio as gr
import numpy as np
from PIL import Image, ImageOps

from hf_papers.errors import UserError


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
    image = _eight_bits(upright_picture(file, limit)).convert("RGBA")
    image.thumbnail((limit, limit))
    return image


def upright_picture(
    file: str | Path | BinaryIO, limit: int, advice: str = "make it smaller", kinds: str = "PNG, JPEG or WebP"
) -> Image.Image:
    """The picture in a visitor's file as it is stored, upright and read to its end, or a `UserError`.

    limit: pixels a side that the caller needs; a JPEG may come smaller than it is, but not below.
    """
    try:
        with Image.open(file) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise UserError(
                    f"This picture has {opened.width:,} x {opened.height:,} pixels, too many for this page: {advice}."
                )
            opened.draft(None, (limit, limit))
            upright = ImageOps.exif_transpose(opened)
            upright.load()
            return upright
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"This file is not a picture that can be read: upload a {kinds}.") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey pictures with 16 bits or floating-point numbers, from their darkest to their brightest pixel, as 8 bits."""
    if not image.mode.startswith(("I", "F")):
        return image
    pixels = np.asarray(image, dtype=np.float64)
    low, high = pixels.min(), pixels.max()
    if not np.isfinite([low, high]).all():
        raise UserError("This picture holds numbers that are not finite: save it as PNG or JPEG.")
    return Image.fromarray(((pixels - low) * (255 / max(high - low, 1e-9))).astype(np.uint8))

"""The look that all pages share, their top and bottom, what stands on them, and how they are served."""

from __future__ import annotations

import html
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from transformers import PreTrainedModel

from hf_papers.errors import UserError
from hf_papers.registry import Paper, find_paper
from hf_papers.space_kit.checkpoints import checkpoint_results, checkpoint_source, count_parameters


ACCENT = "#4f46e5"  # indigo 600: the first line of a plot, the button
CONTRAST = "#ea580c"  # orange 600: the second line, told apart from the first also without colour vision

# Options of events that answer at once, where a progress bar would only flicker; UNLISTED: that are no endpoints either.
QUIET = {"show_progress": "hidden"}
UNLISTED = {**QUIET, "api_visibility": "private"}

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

"""A network that reads and writes by attention alone: translate, see where it looks: `python spaces/transformer/app.py`."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from hf_papers.errors import UserError
from hf_papers.papers.transformer.translating_transformer import Candidate, Looks, Reading, Search, Translator
from hf_papers.space_kit import (
    bounded,
    checkpoint_results,
    checkpoint_source,
    count_parameters,
    errors_as_sentences,
    footer,
    header,
    hint,
    require_checkpoint,
    run,
    whole_number,
)


CHECKPOINT = Path(__file__).parent / "checkpoint"
RNN = Path(__file__).parent / "checkpoint-rnn"
RNN_VARIABLE = "RNN_ID"
MAX_BEAMS, MAX_PENALTY = 8, 2.0
MAX_LOOKING = 40  # tokens of a text, on either side, whose attention is drawn
MEAN = "all heads"
LANGUAGES = {
    "de": "German",
    "en": "English",
    "fr": "French",
    "es": "Spanish",
    "it": "Italian",
    "cs": "Czech",
    "ro": "Romanian",
}
# Which texts look, and at which: name of the choice -> (weights, rows, columns).
LOOKS = {
    "writing: at the source": ("cross", "written", "source"),
    "writing: at what is written": ("decoder", "given", "given"),
    "reading: the source at itself": ("encoder", "source", "source"),
}


Heatmap = tuple[torch.Tensor, list[str], list[str]]  # weights (rows, columns), and the names of both


# ------------------------------------------------------------------------------------------------- what it was trained for


@dataclass(frozen=True)
class Purpose:
    """What the checkpoint translates: the kinds of text on both sides, examples, and what to expect."""

    source: str
    target: str
    examples: list[str]
    warning: str


DATES = Purpose(
    "A date as people write it",
    "ISO 8601",
    ["Thursday, May 3rd, 1979", "the thirty-first of December 1999", "4/7/2031", "JUNE 16, 1904"],
    "It has learnt dates from 1900 to 2099 and nothing else: whatever it is given, it answers with a date. Where only "
    "figures stand, the day comes before the month.",
)


def purpose_of(results: dict[str, Any]) -> Purpose:
    """From the results.json beside a checkpoint; one that says nothing translates “a text”."""
    task = results.get("task") or {}
    if task.get("dataset") == "embedded:dates":
        return DATES
    sides = [LANGUAGES.get(str(task.get(side)), "a text") for side in ("source", "target")]
    examples = [str(example["source"]) for example in task.get("examples") or []][:5]
    captions = "multi30k" in str(task.get("dataset"))
    warning = (
        "It has read 29,000 captions of pictures and nothing else: people, dogs, streets and sports it knows; news, "
        "questions and your mail it does not."
        if captions
        else "It knows what stood in its training texts, and their style."
    )
    return Purpose(sides[0], sides[1], examples, warning)


# ------------------------------------------------------------------------------------------------- answers as HTML


def say(notes: Sequence[str]) -> str:
    return "".join(f'<p class="hint">{html.escape(note)}</p>' for note in notes)


def draw_candidates(reading: Reading, candidates: Sequence[Candidate], penalty: float, seconds: float) -> str:
    """The best translation, each token as sure as the network was of it, then the other beams with their scores."""
    best = candidates[0]
    tokens = "".join(
        f'<span style="--p:{probability:.2f}" title="{html.escape(name)}: {probability:.0%}">{html.escape(name)}</span>'
        for name, probability in zip(best.names, best.log_probs.exp().tolist(), strict=True)
    )
    rows = "".join(
        f"<tr><td>{html.escape(c.text) or '<i>nothing</i>'}</td><td>{float(c.log_probs.sum()):.2f}</td>"
        f"<td>{score(c, penalty):.2f}</td></tr>"
        for c in candidates
    )
    shown = html.escape(best.text) or "<i>nothing</i>"
    return (
        f'<p class="answer" lang="und">{shown}</p>'
        f'<div class="tokens" aria-label="Tokens, darker where the network was surer">{tokens}</div>'
        f'<p class="hint">Its tokens: the paler, the less sure it was. “·” continues a word. {len(reading.tokens)} tokens '
        f"in, {len(best.tokens)} out, {seconds:.2f} s.</p>"
        f'<div class="wide"><table class="beams"><thead><tr><th>what the beams ended with</th><th>log p</th>'
        f"<th>/ length<sup>{penalty:g}</sup></th></tr></thead><tbody>{rows}</tbody></table></div>{say(reading.notes)}"
    )


def score(candidate: Candidate, penalty: float) -> float:
    """What beam search ranks by."""
    return float(candidate.log_probs.sum()) / len(candidate.tokens) ** penalty


def chips(names: Sequence[str], weights: Sequence[float]) -> str:
    """Tokens in a row, as dark as they were looked at."""
    strongest = max([*weights, 1e-9])
    return "".join(
        f'<span style="--a:{weight / strongest:.2f}" title="{html.escape(name)}: {weight:.0%}">{html.escape(name)}'
        f"<small>{weight:.0%}</small></span>"
        for name, weight in zip(names, weights, strict=True)
    )


def draw_looks(rows: Sequence[str], columns: Sequence[str], weights: torch.Tensor, chosen: int | None) -> str:
    """A table of attention weights (rows, columns): row = the token that looks; the chosen row is framed."""
    strongest = max(float(weights.max()), 1e-9)
    names = [html.escape(name) for name in columns]
    head = "".join(f'<th scope="col"><span>{name}</span></th>' for name in names)
    body = ""
    for number, (row, values) in enumerate(zip(rows, weights.tolist(), strict=True)):
        cells = "".join(
            f'<td style="--a:{value / strongest:.2f}" title="{html.escape(row)} → {name}: {value:.0%}"></td>'
            for name, value in zip(names, values, strict=True)
        )
        mark = ' class="chosen"' if number == chosen else ""
        body += f'<tr{mark}><th scope="row">{html.escape(row)}</th>{cells}</tr>'
    table = f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="looks" tabindex="0">{table}</div>'


CSS = """
.answer { font-size: 1.3rem; line-height: 1.4; overflow-wrap: anywhere; margin: 4px 0 8px; font-weight: 600; }
.tokens { display: flex; flex-wrap: wrap; gap: 4px; margin: 4px 0; }
.tokens span { padding: 3px 7px; border-radius: 6px; font-size: .9rem; border: 1px solid var(--border-color-primary);
  background: color-mix(in srgb, #818cf8 calc(var(--p, 0) * 55%), var(--background-fill-primary)); }
.chips { display: flex; flex-wrap: wrap; gap: 5px; margin: 6px 0 10px; }
.chips span { padding: 4px 8px 3px; border-radius: 7px; border: 1px solid var(--border-color-primary); text-align: center;
  background: color-mix(in srgb, #818cf8 calc(var(--a) * 85%), var(--background-fill-primary)); }
.chips small { display: block; font-size: .7rem; line-height: 1.1; opacity: .8; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; contain: inline-size; max-width: calc(100vw - 24px); }
table.beams { width: 100%; margin: 8px 0 !important; border: 0 !important; border-collapse: collapse; font-size: .92rem; }
table.beams th, table.beams td { text-align: left; padding: 4px 10px 4px 0; border: 0;
  border-bottom: 1px solid var(--border-color-primary); font-variant-numeric: tabular-nums; vertical-align: top; }
table.beams th { font-weight: 500; color: var(--body-text-color-subdued); white-space: nowrap; }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 16px 28px; }
.beside h3 { margin: 0 0 2px; font-size: 1rem; font-weight: 650; }
.examples button { white-space: normal; text-align: left; }
.looks { overflow-x: auto; contain: inline-size; max-width: calc(100vw - 24px); }
.looks table { border: 0 !important; border-collapse: separate; border-spacing: 1px; width: auto; margin: 0 0 6px; }
.looks th, .looks td { padding: 0; border: 0; font-weight: 400; font-size: .82rem; line-height: 1; }
.looks thead th { height: 74px; vertical-align: bottom; }
.looks thead th span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 72px; overflow: hidden;
  white-space: nowrap; }
.looks tbody th { position: sticky; left: 0; background: var(--background-fill-primary); text-align: right;
  padding-right: 6px; max-width: 92px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.looks tbody td { width: 22px; min-width: 22px; height: 20px; border-radius: 2px;
  background: color-mix(in srgb, #4f46e5 calc(var(--a) * 100%), var(--background-fill-secondary)); }
.looks tr.chosen th { font-weight: 700; color: #4f46e5; }
.looks tr.chosen td { outline: 1px solid #4f46e5; }
"""


# ------------------------------------------------------------------------------------------------- page


def load_rnn() -> Translator | None:
    """The recurrent network, None where there is none beside the app and RNN_ID names none."""
    source = checkpoint_source(RNN, RNN_VARIABLE)
    if source == str(RNN) and not (RNN / "config.json").is_file():
        return None
    return Translator.load(source)


def introduce(translator: Translator, purpose: Purpose) -> str:
    """What network this is, and what not to expect of it."""
    config, count = translator.model.config, count_parameters(translator.model)
    size = f"{count / 1e6:.1f} million" if count > 1e6 else f"{count:,}"
    layers = f"{config.num_encoder_layers} layers that read and {config.num_decoder_layers} that write"
    parts = "a recurrent network" if config.architecture == "rnn" else f"{layers}, {config.num_heads} heads each"
    return f"This network has {size} weights: {parts}. {purpose.warning}"


def build() -> gr.Blocks:
    """The page around the checkpoints. Raises `UserError` when there is none."""
    translator, rnn = Translator.load(require_checkpoint("transformer", CHECKPOINT)), load_rnn()
    purpose = purpose_of(checkpoint_results(CHECKPOINT))
    layers, heads = shape_of(translator)

    def search_of(beams: Any, penalty: Any) -> Search:
        return Search(
            whole_number(beams, "The beam width", 1, MAX_BEAMS),
            bounded(penalty, "The length penalty", 0.0, MAX_PENALTY),
        )

    @errors_as_sentences
    def translate(text: str, beams: int, penalty: float) -> tuple[str, list[Any]]:
        """The translations that a search ends with, best first: as HTML, and as [[text, log-probability], …]."""
        search = search_of(beams, penalty)
        reading = translator.read(text)
        started = time.perf_counter()
        candidates = translator.candidates(reading, search, count=search.num_beams)
        drawn = draw_candidates(reading, candidates, penalty, time.perf_counter() - started)
        return drawn, [[c.text, float(c.log_probs.sum())] for c in candidates]

    def attend(text: str, kind: str, layer: str, head: str) -> tuple[Reading, Candidate, Heatmap]:
        """The best translation of a text, and where its tokens (or the source's) look in one layer and head."""
        if kind not in LOOKS:
            raise UserError(f"There is no {kind!r}: choose from {', '.join(LOOKS)}.")
        of_layer = number_of(layer, "layer", layers)
        of_head = None if head == MEAN else number_of(head, "head", heads)
        reading = translator.read(text)
        best = translator.candidates(reading, Search())[0]
        return reading, best, chosen_weights(translator.look(reading, best), kind, of_layer, of_head)

    @errors_as_sentences
    def show_looks(text: str, kind: str, layer: str, head: str, word: int | None) -> tuple[str, Any]:
        """Where one word (by its number from 0) looks, and where all do; and the words that there are to choose from."""
        reading, best, (weights, rows, columns) = attend(text, kind, layer, head)
        cut = len(rows) > MAX_LOOKING or len(columns) > MAX_LOOKING
        weights, rows, columns = weights[:MAX_LOOKING, :MAX_LOOKING], rows[:MAX_LOOKING], columns[:MAX_LOOKING]
        number = word if isinstance(word, int) and 0 <= word < len(rows) else first_letters(rows)
        notes = [*reading.notes, *([f"The first {MAX_LOOKING} tokens of a side are shown."] if cut else [])]
        drawn = (
            f'<p class="answer">{html.escape(best.text)}</p><p class="hint">Where “{html.escape(rows[number])}” looks:</p>'
            f'<div class="chips">{chips(columns, weights[number].tolist())}</div>'
            f"{draw_looks(rows, columns, weights, number)}{say(notes)}"
        )
        choices = [(name, place) for place, name in enumerate(rows)]
        return drawn, gr.update(choices=choices, value=number)

    @errors_as_sentences
    def look_up(
        text: str, kind: str = next(iter(LOOKS)), layer: str = "layer 1", head: str = MEAN
    ) -> dict[str, str | list[str] | list[list[float]]]:
        """Where every token looks: the translation, the tokens that look (rows), those looked at (columns), and weights."""
        _, best, (weights, rows, columns) = attend(text, kind, layer, head)
        return {"translation": best.text, "rows": rows, "columns": columns, "weights": weights.tolist()}

    @errors_as_sentences
    def compare(text: str, beams: int) -> tuple[str, list[Any]]:
        """Both networks on one text: as HTML, and as [[name, translation, log-probability, seconds], …]."""
        if rnn is None:
            raise UserError(
                "There is no recurrent network beside this app: train one (hf-papers train transformer "
                f"--architecture rnn …) and start the app with {RNN_VARIABLE} naming its folder."
            )
        search = search_of(beams, Search().length_penalty)
        parts, answers = [], []
        for name, network in (("Transformer", translator), ("GRU with attention", rnn)):
            reading = network.read(text)
            started = time.perf_counter()
            best = network.candidates(reading, search)[0]
            seconds = time.perf_counter() - started
            looks = network.look(reading, best)
            weights = looks.cross[-1].mean(0)[:MAX_LOOKING, :MAX_LOOKING]
            table = draw_looks(best.names[:MAX_LOOKING], looks.source[:MAX_LOOKING], weights, None)
            sure = float(best.log_probs.mean().exp())
            parts.append(
                f'<div><h3>{name}, {count_parameters(network.model):,} weights</h3><p class="answer">'
                f'{html.escape(best.text)}</p><p class="hint">{seconds:.2f} s, a token’s probability {sure:.0%} '
                f"(geometric mean)</p>{table}{say(reading.notes)}</div>"
            )
            answers.append([name, best.text, float(best.log_probs.sum()), seconds])
        return f'<div class="beside">{"".join(parts)}</div>', answers

    with gr.Blocks(title="Transformer: attention is all it needs") as demo:
        header(
            "transformer",
            "It reads and writes by looking",
            "No recurrence, no convolution: every word asks all others what they mean to it, and takes in the answers in "
            "proportion. One part of the network reads, another writes, one token after the other.",
        )
        hint(introduce(translator, purpose))
        with gr.Tabs():
            with gr.Tab("Translate"):
                translate_tab(demo, translate, purpose)
            with gr.Tab("Where it looked") as tab:
                look_tab(tab, show_looks, purpose, layers, heads)
            with gr.Tab("Beside an RNN") as tab:
                compare_tab(tab, compare, purpose)
        gr.api(look_up, api_name="look")
        footer("transformer", translator.model, CHECKPOINT)
    return demo


def shape_of(translator: Translator) -> tuple[int, int]:
    """Layers and heads that there are to look at."""
    config = translator.model.config
    return (1, 1) if config.architecture == "rnn" else (config.num_decoder_layers, config.num_heads)


def chosen_weights(looks: Looks, kind: str, layer: int, head: int | None) -> Heatmap:
    """Weights (rows, columns) of a layer and head, and the names of both. Raises `UserError` where a network has none."""
    which, *sides = LOOKS[kind]
    weights = getattr(looks, which)
    if layer >= len(weights):
        raise UserError(f"This network has no layer {layer + 1} that looks so: choose another layer, or another kind.")
    names = {"source": looks.source, "written": looks.target, "given": looks.asking}
    rows, columns = (names[side] for side in sides)
    return (weights[layer].mean(0) if head is None else weights[layer, head]), rows, columns


def first_letters(names: Sequence[str]) -> int:
    """The number of the first token that is a word; 0 where none is."""
    return next((number for number, name in enumerate(names) if name.isalpha()), 0)


def number_of(choice: str, kind: str, count: int) -> int:
    """ "layer 3" -> 2. Raises `UserError` for what is not in the list."""
    names = [f"{kind} {number + 1}" for number in range(count)]
    if choice not in names:
        raise UserError(f"There is no {choice}: choose from {names[0]} to {names[-1]}.")
    return names.index(choice)


QUIET = {"show_progress": "hidden", "trigger_mode": "always_last"}


def source_box(purpose: Purpose, name: str, number: int = 0) -> gr.Textbox:
    text = purpose.examples[min(number, len(purpose.examples) - 1)] if purpose.examples else ""
    return gr.Textbox(text, label=purpose.source[:1].upper() + purpose.source[1:], elem_id=name, lines=2)


def translate_tab(demo: gr.Blocks, translate: Any, purpose: Purpose) -> None:
    with gr.Row():
        with gr.Column(scale=5, min_width=280):
            text = source_box(purpose, "source")
            with gr.Row():
                beams = gr.Slider(
                    1, MAX_BEAMS, 4, step=1, label="Beam width", elem_id="beams", min_width=130,
                    info="Unfinished texts it keeps at every step; 1 is greedy.",
                )  # fmt: skip
                penalty = gr.Slider(
                    0, MAX_PENALTY, 0.6, step=0.1, label="Length penalty", elem_id="penalty", min_width=130,
                    info="0 favours short texts; more, longer ones.",
                )  # fmt: skip
            button = gr.Button("Translate", variant="primary", size="lg")
        with gr.Column(scale=6, min_width=280):
            answer, values = gr.HTML(elem_id="answer"), gr.JSON(visible=False)
    inputs, outputs = [text, beams, penalty], [answer, values]
    gr.on(
        [button.click, text.submit, beams.release, penalty.release, demo.load], translate, inputs, outputs,
        api_name="translate", **QUIET,
    )  # fmt: skip
    examples(purpose, text, translate, inputs, outputs)


def look_tab(tab: gr.Tab, look: Any, purpose: Purpose, layers: int, heads: int) -> None:
    hint(
        "Every row of the table is a token and shows how it shares its attention. Pick a word to see its row as the words "
        "it looked at. Heads specialise: some follow the word being translated, some look at the neighbour, some rest."
    )
    text = source_box(purpose, "look-text")
    with gr.Row():
        kinds = list(LOOKS)
        kind = gr.Dropdown(kinds, value=kinds[0], label="Who looks at what", elem_id="kind", min_width=280)
        names = [f"layer {number + 1}" for number in range(layers)]
        layer = gr.Dropdown(names, value=names[-1], label="Layer", elem_id="layer", min_width=110)
        names = [MEAN, *(f"head {number + 1}" for number in range(heads))]
        head = gr.Dropdown(names, value=MEAN, label="Head", elem_id="head", min_width=110)
    button = gr.Button("Translate and look", variant="primary", size="lg")
    word = gr.Radio([], label="Word", elem_id="word", type="value")
    answer = gr.HTML(elem_id="looks")
    inputs = [text, kind, layer, head, word]
    gr.on(
        [button.click, text.submit, kind.input, layer.input, head.input, word.input, tab.select], look, inputs,
        [answer, word], api_visibility="private", **QUIET,
    )  # fmt: skip


def compare_tab(tab: gr.Tab, compare: Any, purpose: Purpose) -> None:
    hint(
        "The same vocabulary, the same training texts, as many weights: a network that reads one word after the other, and "
        "looks back at the source with a single attention while it writes. Rows: what was written; columns: the source."
    )
    text = source_box(purpose, "both-text", 1)
    beams = gr.Slider(1, MAX_BEAMS, 4, step=1, label="Beam width of both", elem_id="both-beams")
    button = gr.Button("Let both write", variant="primary", size="lg")
    answer, values = gr.HTML(elem_id="both"), gr.JSON(visible=False)
    gr.on(
        [button.click, text.submit, beams.release, tab.select], compare, [text, beams], [answer, values],
        api_name="compare", **QUIET,
    )  # fmt: skip


def examples(purpose: Purpose, text: Any, function: Any, inputs: list[Any], outputs: list[Any]) -> None:
    """One click puts an example into the field and translates it."""
    if not purpose.examples:
        return
    with gr.Column(elem_classes="examples"):
        rows = gr.Examples(
            [[example] for example in purpose.examples], [text], cache_examples=False, api_visibility="private",
            label="Try one",
        )  # fmt: skip
    rows.load_input_event.then(function, inputs, outputs, api_visibility="private", **QUIET)


if __name__ == "__main__":
    run(build, CSS)

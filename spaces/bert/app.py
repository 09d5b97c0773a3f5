"""A network that has learnt a language by filling in blanks: ask it, and see where it looks: `python spaces/bert/app.py`."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from sklearn.manifold import TSNE

from hf_papers.errors import UserError
from hf_papers.papers.bert.reading_bert import (
    Attention,
    Candidate,
    Filled,
    Reader,
    Verdict,
    classify,
    embed,
    fill_blanks,
    judge_pair,
    load_reader,
    look,
)
from hf_papers.space_kit import (
    QUIET,
    UNLISTED,
    checkpoint_source,
    count_parameters,
    errors_as_sentences,
    footer,
    header,
    hint,
    meters,
    require_checkpoint,
    run,
)


CHECKPOINT = Path(__file__).parent / "checkpoint"
CLASSIFIER = Path(__file__).parent / "checkpoint-classifier"
CLASSIFIER_VARIABLE = "CLASSIFIER_ID"
BUNDLED = "It was trained on 18 million characters in under an hour, on a CPU."
SMALL = 30_000_000  # weights below which a network is introduced as a small one
MAX_LOOKING = 30  # tokens of a text whose attention is drawn
MAX_SENTENCES, SENTENCE_TOKENS = 200, 24
TSNE_FROM = 20  # sentences that t-SNE is chosen from; with fewer its neighbourhoods are nearly everything
TSNE_LEAST = 5
METHODS = ("Automatic", "PCA", "t-SNE")
MEAN = "mean over heads"

BLANKS = [
    "The movie was so ___ that we left before the end.",
    "She opened the ___ and looked at the letter.",
    "The president of the United ___ spoke to the ___.",
    "It is one of the best films of the ___.",
]
REVIEWS = [
    "a warm, funny and moving film",
    "the plot is a mess and the jokes are not funny",
    "it is not without charm, but it never comes to life",
]
PAIRS = [
    ("He sat down and opened the book.", "The first page was missing."),
    ("He sat down and opened the book.", "Oil prices rose by two per cent in the first quarter."),
    ("The film begins in a small town.", "Its people have known each other all their lives."),
]
LOOKED_AT = "The actor forgot his lines, so the director stopped the film."
OWN_SENTENCES = """The film was wonderful.
I loved every minute of this movie.
The acting is very good.
A boring and stupid film.
The plot makes no sense at all.
The worst movie of the year.
The president spoke to the congress.
The government will raise taxes.
The people of this nation want peace.
The bank reported a loss.
Oil prices rose again this year.
The company sold its shares."""


# ------------------------------------------------------------------------------------------------- answers as HTML


def say(notes: Sequence[str]) -> str:
    return "".join(f'<p class="hint">{html.escape(note)}</p>' for note in notes)


def shown_word(candidate: Candidate) -> str:
    return f"…{candidate.word}" if candidate.continues else candidate.word


def draw_filled(filled: Filled) -> str:
    """The text with the best word in every blank, then five bars for each blank."""
    sentence = html.escape(filled.parts[0])
    for candidates, part in zip(filled.blanks, filled.parts[1:], strict=False):
        best = candidates[0]
        sentence = (sentence.rstrip() if best.continues else sentence) + f"<mark>{html.escape(best.word)}</mark>"
        sentence += html.escape(part)
    blanks = "".join(
        f"<div>{f'<b>Blank {number}</b>' if len(filled.blanks) > 1 else ''}"
        f"{meters([(shown_word(candidate), candidate.probability) for candidate in candidates])}</div>"
        for number, candidates in enumerate(filled.blanks, 1)
    )
    notes = list(filled.notes)
    if len(filled.blanks) < len(filled.parts) - 1:
        notes.append("Blanks beyond the part that was read are left out.")
    if any(candidate.continues for candidates in filled.blanks for candidate in candidates):
        notes.append("… marks a piece that continues the word before it: rare words are written in several pieces.")
    if len(filled.blanks) > 1:
        notes.append("Each blank is guessed for itself, as in pre-training, so the words need not go together.")
    return f'<p class="answer">{sentence}</p><div class="columns">{blanks}</div>{say(notes)}'


def draw_verdict(verdict: Verdict) -> str:
    return meters(list(verdict.probabilities.items())) + say(verdict.notes)


def draw_attention(attention: Attention, layer: int, head: int | None) -> str:
    """A table of T x T cells: row = the token that looks, column = where it looks; as dark as it looks hard.

    A table and not a picture: it scrolls sideways on a phone while the names of its rows stay.
    """
    weights = attention.weights[layer].mean(0) if head is None else attention.weights[layer, head]  # (T, T)
    strongest = float(weights.max())
    names = [html.escape(token) for token in attention.tokens]
    columns = "".join(f'<th scope="col"><span>{name}</span></th>' for name in names)
    rows = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(
            f'<td style="--a:{value / strongest:.2f}" title="{name} → {other}: {value:.0%}"></td>'
            for other, value in zip(names, values, strict=True)
        )
        + "</tr>"
        for name, values in zip(names, weights.tolist(), strict=True)
    )
    return (
        f'<div class="looks" tabindex="0"><table><thead><tr><td></td>{columns}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        f'<p class="hint">Darkest: {strongest:.0%} of a row. {strongest_links(attention.tokens, weights)}</p>'
        + say(attention.notes)
    )


def strongest_links(tokens: Sequence[str], weights: torch.Tensor, count: int = 4) -> str:
    """The strongest looks from one word at another, in words; weights: (T, T)."""
    inner, names = weights[1:-1, 1:-1], tokens[1:-1]  # [CLS] and [SEP] are no words
    strongest: dict[str, float] = {}
    for place in inner.flatten().argsort(descending=True).tolist():
        row, column = divmod(place, len(names))
        if row != column:
            strongest.setdefault(f"{names[row]} → {names[column]}", float(inner[row, column]))
    links = [f"{link} {value:.0%}" for link, value in list(strongest.items())[:count]]
    return html.escape(f"From word to word most: {', '.join(links)}.") if links else ""


# ------------------------------------------------------------------------------------------------- map of sentences


@dataclass(frozen=True)
class SentenceMap:
    """n sentences: `places` (n, 2), the number of the nearest other one and the cosine between their vectors, (n,) each."""

    sentences: list[str]
    places: torch.Tensor
    nearest: list[int]
    similarity: list[float]
    method: str
    notes: list[str]


def map_sentences(reader: Reader, text: str, method: str) -> SentenceMap:
    """The lines of a text on a plane. Raises `UserError` for fewer than two."""
    if method not in METHODS:
        raise UserError(f"There is no method {method}: choose from {', '.join(METHODS)}.")
    lines = [line.strip() for line in (text if isinstance(text, str) else "").splitlines() if line.strip()]
    if len(lines) < 2:
        raise UserError("A map needs at least two sentences, each on a line of its own.")
    sentences = lines[:MAX_SENTENCES]
    vectors, notes = embed(reader, sentences, SENTENCE_TOKENS)
    if len(lines) > MAX_SENTENCES:
        notes.append(f"The first {MAX_SENTENCES} of {len(lines):,} lines are shown.")
    chosen = method if method != METHODS[0] else ("t-SNE" if len(sentences) >= TSNE_FROM else "PCA")
    if chosen == "t-SNE" and len(sentences) < TSNE_LEAST:
        notes.append(f"t-SNE needs at least {TSNE_LEAST} sentences: this is PCA.")
        chosen = "PCA"
    places = principal_components(vectors) if chosen == "PCA" else neighbour_embedding(vectors)
    directions = torch.nn.functional.normalize(vectors, dim=1)
    similarity = (directions @ directions.T).fill_diagonal_(-2.0)
    best = similarity.max(1)
    return SentenceMap(sentences, places, best.indices.tolist(), best.values.tolist(), chosen, notes)


def principal_components(vectors: torch.Tensor) -> torch.Tensor:
    """The two directions in which the vectors differ most: (n, H) -> (n, 2)."""
    centred = vectors - vectors.mean(0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    places = left[:, :2] * values[:2]
    return torch.nn.functional.pad(places, (0, 2 - places.shape[1]))


def neighbour_embedding(vectors: torch.Tensor) -> torch.Tensor:
    """t-SNE by cosine distance, the same for the same sentences: (n, H) -> (n, 2)."""
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    model = TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=0, max_iter=500, n_jobs=1)
    return torch.from_numpy(model.fit_transform(vectors.numpy())).float()


def draw_map(found: SentenceMap) -> str:
    """Numbered points, each joined to its nearest neighbour, and the sentences below."""
    width, height, margin = 400, 300, 18
    low, high = found.places.min(0).values, found.places.max(0).values
    span = torch.where(high - low > 1e-6, high - low, 1.0)
    share = torch.where(high - low > 1e-6, (found.places - low) / span, 0.5)
    x = (margin + share[:, 0] * (width - 2 * margin)).tolist()
    y = (height - margin - share[:, 1] * (height - 2 * margin)).tolist()
    lines = "".join(
        f'<line x1="{x[a]:.1f}" y1="{y[a]:.1f}" x2="{x[b]:.1f}" y2="{y[b]:.1f}"/>' for a, b in enumerate(found.nearest)
    )
    radius = 9 if len(x) <= 60 else 6
    points = "".join(
        f'<g><circle cx="{a:.1f}" cy="{b:.1f}" r="{radius}"/><text x="{a:.1f}" y="{b:.1f}" dy=".35em" '
        f'font-size="{radius if number < 100 else radius - 1}">{number}</text><title>{html.escape(sentence)}</title></g>'
        for number, (a, b, sentence) in enumerate(zip(x, y, found.sentences, strict=True), 1)
    )
    items = "".join(
        f"<li>{html.escape(shorten(sentence))}<span>nearest: {other + 1}, "
        f"“{html.escape(shorten(found.sentences[other], 60))}” · cosine {similarity:.2f}</span></li>"
        for sentence, other, similarity in zip(found.sentences, found.nearest, found.similarity, strict=True)
    )
    return (
        f'<svg class="sentences" viewBox="0 0 {width} {height}" role="img" aria-label="Map of {len(x)} sentences by '
        f'{found.method}">{lines}{points}</svg><p class="hint">{found.method}. A line joins each sentence to its nearest: '
        "the largest cosine between their mean vectors, in all dimensions.</p>"
        f'{say(found.notes)}<ol class="sentences">{items}</ol>'
    )


def shorten(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


CSS = """
.answer { font-size: 1.12rem; line-height: 1.5; overflow-wrap: anywhere; margin: 4px 0 10px; }
.answer mark { background: #c7d2fe; color: #1e1b4b; padding: 0 4px; border-radius: 4px; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 280px), 1fr)); gap: 14px 28px; }
.tab-container button { padding-left: clamp(5px, 1.6vw, 16px); padding-right: clamp(5px, 1.6vw, 16px); }
.examples button { white-space: normal; text-align: left; }
.looks { overflow-x: auto; contain: inline-size; max-width: calc(100vw - 24px); }
.looks table { border: 0 !important; border-collapse: separate; border-spacing: 1px; width: auto; margin: 0 0 6px; }
.looks th, .looks td { padding: 0; border: 0; font-weight: 400; font-size: .82rem; line-height: 1; }
.looks thead th { height: 84px; vertical-align: bottom; }
.looks thead th span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 82px; overflow: hidden;
  white-space: nowrap; }
.looks tbody th { position: sticky; left: 0; background: var(--background-fill-primary); text-align: right;
  padding-right: 6px; max-width: 92px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.looks tbody td { width: 22px; min-width: 22px; height: 22px; border-radius: 2px;
  background: color-mix(in srgb, #4f46e5 calc(var(--a) * 100%), var(--background-fill-secondary)); }
svg.sentences { display: block; width: 100%; max-width: 720px; border: 1px solid var(--border-color-primary);
  border-radius: 10px; }
svg.sentences line { stroke: #94a3b8; stroke-width: 1; }
svg.sentences circle { fill: #4f46e5; }
svg.sentences text { fill: white; text-anchor: middle; }
ol.sentences { padding-left: 2.2em; margin: 8px 0; list-style: decimal; }
ol.sentences li { margin: 4px 0; overflow-wrap: anywhere; }
ol.sentences span { display: block; font-size: .85rem; color: var(--body-text-color-subdued); }
"""


# ------------------------------------------------------------------------------------------------- page


def introduce(reader: Reader) -> str:
    """What network this is, and what not to expect of it."""
    config, count = reader.model.config, count_parameters(reader.model)
    is_bundled = checkpoint_source(CHECKPOINT) == str(CHECKPOINT)
    parts = [f"This network has {config.num_hidden_layers} layers and {count / 1e6:.1f} million weights."]
    if is_bundled:
        parts.append(BUNDLED)
    if count < SMALL:
        parts.append(
            "BERT BASE has 110 million and read 3.3 billion words. Expect grammar and everyday words; names, numbers and "
            "facts are mostly wrong, and it follows the topic of a text rather than its argument."
        )
    return " ".join(parts)


def load_classifier() -> Reader | None:
    """The fine-tuned network, None where there is none beside the app and CLASSIFIER_ID names none."""
    source = checkpoint_source(CLASSIFIER, CLASSIFIER_VARIABLE)
    if source == str(CLASSIFIER) and not (CLASSIFIER / "config.json").is_file():
        return None
    return load_reader(source, classifier=True)


def build() -> gr.Blocks:
    """The page around the checkpoints. Raises `UserError` when there is none."""
    reader = load_reader(require_checkpoint("bert", CHECKPOINT))
    classifier = load_classifier()
    layers, heads = reader.model.config.num_hidden_layers, reader.model.config.num_attention_heads

    @errors_as_sentences
    def fill(text: str) -> tuple[str, list[Any]]:
        """The five likeliest words for each [MASK] or ___ of a text: as HTML, and as [[[word, probability], …], …]."""
        filled = fill_blanks(reader, text)
        return draw_filled(filled), [[[shown_word(c), c.probability] for c in blank] for blank in filled.blanks]

    @errors_as_sentences
    def judge_text(text: str) -> tuple[str, dict[str, float]]:
        """The probability of each class of a text: as HTML, and by name."""
        if classifier is None:
            raise UserError(
                "There is no classifier beside this app: fine-tune one (python scripts/run_glue.py --task_name sst2 "
                f"--model_name_or_path …) and start the app with {CLASSIFIER_VARIABLE} naming its folder."
            )
        verdict = classify(classifier, text)
        return draw_verdict(verdict), verdict.probabilities

    @errors_as_sentences
    def judge_next(first: str, second: str) -> tuple[str, dict[str, float]]:
        """The probability that sentence B follows sentence A: as HTML, and by name."""
        verdict = judge_pair(reader, first, second)
        return draw_verdict(verdict), verdict.probabilities

    @errors_as_sentences
    def attend(text: str, layer: str, head: str) -> str:
        """Where each token looks, in "layer 1" and "head 1" or "mean over heads", as an HTML table."""
        chosen_layer = number_of(layer, "layer", layers)
        chosen_head = None if head == MEAN else number_of(head, "head", heads)
        return draw_attention(look(reader, text, MAX_LOOKING), chosen_layer, chosen_head)

    @errors_as_sentences
    def place(text: str, method: str) -> tuple[str, dict[str, Any]]:
        """A map of 2 to 200 sentences, one per line: as HTML, and their places and nearest neighbours (from 1)."""
        found = map_sentences(reader, text, method)
        answer = {
            "places": found.places.tolist(),
            "nearest": [number + 1 for number in found.nearest],
            "method": found.method,
        }
        return draw_map(found), answer

    with gr.Blocks(title="BERT: words from both sides") as demo:
        header(
            "bert",
            "It learnt by filling in blanks",
            "Words of a text were hidden, and the network guessed them from what stands before <em>and</em> behind. What "
            "it learnt that way, grammar and a little of the world, a short fine-tuning turns to other tasks.",
        )
        hint(introduce(reader))
        with gr.Tabs():
            with gr.Tab("Fill in"):
                blanks_tab(demo, fill)
            with gr.Tab("Sentiment") as tab:
                sentiment_tab(tab, judge_text)
            with gr.Tab("Next?") as tab:
                pair_tab(tab, judge_next)
            with gr.Tab("Attention") as tab:
                attention_tab(tab, attend, layers, heads)
            with gr.Tab("Map") as tab:
                map_tab(tab, place)
        footer("bert", reader.model, CHECKPOINT)
    return demo


def number_of(choice: str, kind: str, count: int) -> int:
    """ "layer 3" -> 2. Raises `UserError` for what is not in the list."""
    names = [f"{kind} {number + 1}" for number in range(count)]
    if choice not in names:
        raise UserError(f"There is no {choice}: choose from {names[0]} to {names[-1]}.")
    return names.index(choice)


LATEST = {**QUIET, "trigger_mode": "always_last"}
UNLISTED_LATEST = {**UNLISTED, **LATEST}


def blanks_tab(demo: gr.Blocks, fill: Any) -> None:
    text = gr.Textbox(BLANKS[0], label="Text with ___ or [MASK], as often as you like", elem_id="blank-text", lines=2)
    button = gr.Button("Guess", variant="primary", size="lg")
    answer, values = gr.HTML(elem_id="blank-answer"), gr.JSON(visible=False)
    gr.on([button.click, text.submit, demo.load], fill, text, [answer, values], api_name="fill_blanks", **LATEST)
    examples([[example] for example in BLANKS], [text], fill, [answer, values])
    hint(
        "It has no opinions and no knowledge of the truth: a word scores high when such words stood in such places in what "
        "it has read."
    )


def sentiment_tab(tab: gr.Tab, judge_text: Any) -> None:
    hint(
        "The same network, fine-tuned on sentences of film reviews (SST-2). It says how a reviewer sounds, of films; other "
        "subjects, irony and double negation often mislead it, and it has no answer for “neither”."
    )
    text = gr.Textbox(REVIEWS[0], label="Sentence", elem_id="review", lines=2)
    button = gr.Button("Judge", variant="primary", size="lg")
    answer, values = gr.HTML(elem_id="sentiment"), gr.JSON(visible=False)
    gr.on([button.click, text.submit, tab.select], judge_text, text, [answer, values], api_name="classify", **LATEST)
    examples([[example] for example in REVIEWS], [text], judge_text, [answer, values])


def pair_tab(tab: gr.Tab, judge_next: Any) -> None:
    hint(
        "Does B follow A? The second game of pre-training: did B stand after A, or was it taken from another document? "
        "Sharing a topic is most of what it goes by."
    )
    with gr.Row():
        first = gr.Textbox(PAIRS[0][0], label="Sentence A", elem_id="first", lines=2, min_width=260)
        second = gr.Textbox(PAIRS[0][1], label="Sentence B", elem_id="second", lines=2, min_width=260)
    button = gr.Button("Judge", variant="primary", size="lg")
    answer, values = gr.HTML(elem_id="next"), gr.JSON(visible=False)
    inputs, outputs = [first, second], [answer, values]
    gr.on(
        [button.click, first.submit, second.submit, tab.select], judge_next, inputs, outputs, api_name="judge_pair", **LATEST
    )  # fmt: skip
    examples([list(pair) for pair in PAIRS], inputs, judge_next, outputs)


def attention_tab(tab: gr.Tab, attend: Any, layers: int, heads: int) -> None:
    hint(
        "Every row is a token, and shows how it shares its attention among all tokens. Heads specialise: some look at the "
        "neighbour, some at the same word elsewhere, and many rest on [SEP] when they have nothing to say."
    )
    text = gr.Textbox(LOOKED_AT, label=f"Text: the first {MAX_LOOKING} tokens are shown", elem_id="look-text", lines=2)
    with gr.Row():
        names = [f"layer {number + 1}" for number in range(layers)]
        layer = gr.Dropdown(names, value=names[0], label="Layer", elem_id="layer", min_width=130)
        names = [MEAN, *(f"head {number + 1}" for number in range(heads))]
        head = gr.Dropdown(names, value=names[min(1, heads)], label="Head", elem_id="head", min_width=130)
    button = gr.Button("Look", variant="primary", size="lg")
    answer = gr.HTML(elem_id="looks")
    gr.on(
        [button.click, text.submit, layer.input, head.input, tab.select], attend, [text, layer, head], answer,
        api_name="attention", **LATEST,
    )  # fmt: skip


def map_tab(tab: gr.Tab, place: Any) -> None:
    hint(
        "Every sentence becomes one vector, the mean of its tokens’ vectors. Nobody told the network which sentences are "
        "alike; it was not trained for this, and shared words and length count for more than meaning."
    )
    with gr.Row():
        with gr.Column(scale=4, min_width=280):
            text = gr.Textbox(
                OWN_SENTENCES, label=f"2 to {MAX_SENTENCES} sentences, one per line", elem_id="lines", lines=12,
                max_lines=16,
            )  # fmt: skip
            method = gr.Radio(
                METHODS, value=METHODS[0], label="Onto the plane by", elem_id="method",
                info=f"Automatic: PCA, and t-SNE from {TSNE_FROM} sentences on.",
            )  # fmt: skip
            button = gr.Button("Draw the map", variant="primary", size="lg")
        with gr.Column(scale=6, min_width=280):
            answer, values = gr.HTML(elem_id="map"), gr.JSON(visible=False)
    inputs, outputs = [text, method], [answer, values]
    gr.on(
        [button.click, method.input, tab.select], place, inputs, outputs, api_name="map_sentences",
        show_progress="minimal", trigger_mode="always_last",
    )  # fmt: skip


def examples(rows: list[list[str]], inputs: list[Any], function: Any, outputs: list[Any]) -> None:
    """One click puts an example into the fields and asks."""
    with gr.Column(elem_classes="examples"):
        gr.Examples(
            rows, inputs, outputs, function, run_on_click=True, cache_examples=False, api_visibility="private",
            label="Try one",
        )  # fmt: skip


if __name__ == "__main__":
    run(build, CSS)

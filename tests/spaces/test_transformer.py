"""The Transformer's Space in a browser, by calls, and what it says of its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_papers.errors import UserError
from hf_papers.hub.quantized import save_quantized
from hf_papers.papers.transformer.tokenization_transformer import train_tokenizer
from hf_papers.papers.transformer.translating_transformer import Candidate, Looks
from hf_papers.registry import find_paper
from tests.spaces.common import SpaceTests, Visit, load_app


TEXTS = [
    "Ein Mann mit rotem Hut sieht etwas an.",
    "A man in a red hat is looking at something.",
    "Zwei Hunde laufen durch den Schnee.",
    "Two dogs run through the snow.",
]
VOCABULARY = 60


class TestTransformer(SpaceTests):
    key = "transformer"
    tabs = {"Translate": None, "Where it looked": None, "Beside an RNN": None}
    endpoints = {"/translate", "/look", "/compare"}

    @classmethod
    def save_checkpoint(cls, folder: Path) -> None:
        """A tiny Transformer, and in `rnn` a tiny recurrent network: int8 weights, one vocabulary, a run's results."""
        paper, tokenizer = find_paper(cls.key), train_tokenizer(TEXTS, VOCABULARY, min_frequency=1)
        task = {"dataset": "bentrevett/multi30k", "source": "de", "target": "en",
                "examples": [{"source": text, "target": "", "translation": ""} for text in TEXTS[::2]]}  # fmt: skip
        for place, preset in ((folder, "tiny"), (folder / "rnn", "tiny-rnn")):
            place.mkdir(exist_ok=True)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = paper.model_class(paper.config_class.from_preset(preset, vocab_size=VOCABULARY))
            for parameter in model.parameters():
                parameter.data.mul_(3.0)
            save_quantized(model, place)
            tokenizer.save_pretrained(place)
            (place / "results.json").write_text(json.dumps({"task": task}))

    @classmethod
    def variables(cls, folder: Path) -> dict[str, str]:
        return {"MODEL_ID": str(folder), "RNN_ID": str(folder / "rnn")}

    # In the browser

    def test_translates_as_wide_as_it_is_told(self, visit: Callable[..., Visit]) -> None:
        page = visit()
        answer = page.page.locator("#answer")
        rows = answer.locator("table.beams tbody tr")
        page.page.wait_for_function("document.querySelectorAll('#answer table.beams tbody tr').length === 4")
        page.set_slider("beams", 2)
        page.page.locator("#beams input[type=range]").dispatch_event("pointerup")
        page.page.get_by_role("button", name="Translate", exact=True).click()
        page.page.wait_for_function("document.querySelectorAll('#answer table.beams tbody tr').length === 2")
        assert rows.count() == 2 and answer.locator(".tokens span").count() >= 1
        field = page.page.locator("#source textarea")
        field.fill("Ein 你 Mann 好 <b>")
        page.page.get_by_role("button", name="Translate", exact=True).click()
        answer.get_by_text("never seen").wait_for()
        assert "never seen 你 好 < b > and reads it as <unk>" in answer.inner_text()
        page.page.get_by_role("button", name=TEXTS[2]).click()
        page.page.wait_for_function("!document.querySelector('#answer').innerText.includes('never seen')")
        assert field.input_value() == TEXTS[2]
        page.screenshot("transformer-translate")
        assert page.foreign_requests() == [] and page.problems == []

    def test_a_chosen_word_shows_where_it_looked(self, visit: Callable[..., Visit]) -> None:
        page = visit()
        page.open_tab("Where it looked")
        looks = page.page.locator("#looks")
        looks.locator("table tbody tr.chosen").wait_for()
        words = page.page.locator("#word label")
        assert words.count() == looks.locator("table tbody tr").count() > 1
        words.last.click()
        page.page.wait_for_function(
            "() => [...document.querySelectorAll('#looks tbody tr')].pop().className === 'chosen'"
        )
        assert looks.locator("tr.chosen").count() == 1
        assert looks.locator(".chips span").count() == looks.locator("thead th").count()
        shares = [float(text.rstrip("%")) for text in looks.locator(".chips small").all_inner_texts()]
        assert sum(shares) == pytest.approx(100, abs=0.5 * len(shares)), "a word's attention is shared out completely"
        page.screenshot("transformer-looks")
        page.page.locator("#kind input").click()
        page.page.get_by_role("option", name="reading: the source at itself").click()
        page.page.wait_for_function("document.querySelectorAll('#looks tbody tr').length === "
                                    "document.querySelectorAll('#looks thead th').length")  # fmt: skip
        assert page.foreign_requests() == [] and page.problems == []

    def test_both_networks_stand_side_by_side(self, visit: Callable[..., Visit]) -> None:
        page = visit()
        page.open_tab("Beside an RNN")
        parts = page.page.locator("#both .beside > div")
        parts.nth(1).wait_for()
        assert [title.split(",")[0] for title in parts.locator("h3").all_inner_texts()] == [
            "Transformer",
            "GRU with attention",
        ]
        assert parts.locator(".looks table").count() == 2
        page.screenshot("transformer-both")
        assert page.foreign_requests() == [] and page.problems == []

    def test_says_what_is_missing(self, visit: Callable[..., Visit]) -> None:
        page = visit()
        page.page.locator("#source textarea").fill("   ")
        page.page.get_by_role("button", name="Translate", exact=True).click()
        assert "There is no text to translate" in page.complaint()
        page.screenshot("transformer-wrong-input")

    # By calls

    def test_answers_calls_in_numbers(self, client: Any) -> None:
        page, beams = client.predict(TEXTS[0], 3, 0.6, api_name="/translate")
        assert len(beams) == 3 and all(isinstance(text, str) and log_p < 0 for text, log_p in beams)
        assert page.count("<tr>") == 4
        _, greedy = client.predict(TEXTS[0], 1, 0.6, api_name="/translate")
        assert len(greedy) == 1
        _, both = client.predict(TEXTS[2], 2, api_name="/compare")
        assert [row[0] for row in both] == ["Transformer", "GRU with attention"] and all(row[2] < 0 for row in both)
        seen = client.predict(TEXTS[0], "writing: at what is written", "layer 1", "head 2", api_name="/look")
        assert seen["rows"] == seen["columns"] and seen["rows"][0] == "<s>"
        weights = torch.tensor(seen["weights"])
        torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights)))
        assert not weights.triu(1).any(), "what is not written yet cannot be looked at"

    @pytest.mark.parametrize(
        ("arguments", "name", "words"),
        [
            ((" \n", 4, 0.6), "/translate", "no text to translate"),
            ((TEXTS[0], 2.5, 0.6), "/translate", "The beam width must"),
            ((TEXTS[0], 9, 0.6), "/translate", "greater than maximum value 8"),
            ((TEXTS[0], 4, -1), "/translate", "less than minimum value 0"),
            (("", 4), "/compare", "no text to translate"),
            ((TEXTS[0], "writing: at the source", "layer 9"), "/look", "no layer 9: choose from layer 1 to layer 2"),
            ((TEXTS[0], "sideways"), "/look", "no 'sideways': choose from"),
        ],
    )
    def test_refuses_in_words(self, client: Any, arguments: tuple[Any, ...], name: str, words: str) -> None:
        with pytest.raises(Exception, match=words):
            client.predict(*arguments, api_name=name)

    def test_a_text_longer_than_the_positions_is_cut_with_a_note(self, client: Any) -> None:
        page, _ = client.predict("Hund " * 500, 1, 0.6, api_name="/translate")
        assert "tokens; the first 23 are read" in page


def looks_of(layers: int = 2, heads: int = 3) -> Looks:
    """Weights of two source and three written tokens; each row sums to 1."""

    def rows(rows: int, columns: int) -> torch.Tensor:
        return torch.rand(layers, heads, rows, columns, generator=torch.Generator().manual_seed(0)).softmax(-1)

    return Looks(["Hund", "</s>"], ["a", "dog", "</s>"], rows(2, 2), rows(3, 3), rows(3, 2))


def test_the_choice_of_a_look_decides_rows_and_columns() -> None:
    app, looks = load_app("transformer"), looks_of()
    weights, rows, columns = app.chosen_weights(looks, "writing: at the source", 1, 2)
    assert torch.equal(weights, looks.cross[1, 2]) and (rows, columns) == (looks.target, looks.source)
    weights, rows, columns = app.chosen_weights(looks, "writing: at what is written", 0, None)
    assert torch.equal(weights, looks.decoder[0].mean(0)) and rows == columns == ["<s>", "a", "dog"]
    weights, rows, columns = app.chosen_weights(looks, "reading: the source at itself", 0, 0)
    assert torch.equal(weights, looks.encoder[0, 0]) and rows == columns == looks.source
    with pytest.raises(UserError, match="no layer 3"):
        app.chosen_weights(looks, "writing: at the source", 2, None)


def test_beams_are_ranked_as_the_search_ranks_them() -> None:
    app = load_app("transformer")
    candidate = Candidate("x", [5, 6, 7, 3], list("abcd"), torch.tensor([-1.0, -2.0, -0.5, -0.5]))
    assert app.score(candidate, 0.0) == pytest.approx(-4)
    assert app.score(candidate, 0.5) == pytest.approx(-2)
    assert app.score(candidate, 1.0) == pytest.approx(-1)


def test_what_a_text_says_is_shown_and_not_run() -> None:
    app = load_app("transformer")
    shown = app.draw_looks(["<img src=x>"], ["<b>&"], torch.tensor([[1.0]]), 0)
    assert "<img" not in shown and "&lt;img" in shown and "<b>" not in shown
    assert "<img" not in app.chips(["<img src=x>"], [0.5])


@pytest.mark.parametrize(
    ("task", "source", "words"),
    [
        ({"dataset": "embedded:dates"}, "A date as people write it", "1900 to 2099"),
        ({"dataset": "bentrevett/multi30k", "source": "de", "target": "en"}, "German", "captions"),
        ({"dataset": "mine", "source": "source", "target": "target"}, "a text", "training texts"),
        ({}, "a text", "training texts"),
    ],
)
def test_the_page_says_what_its_network_is_for(task: dict[str, Any], source: str, words: str) -> None:
    purpose = load_app("transformer").purpose_of({"task": task})
    assert purpose.source == source and words in purpose.warning

"""BERT's Space in a browser, by calls, and its arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_papers.errors import UserError
from hf_papers.hub.quantized import save_quantized
from hf_papers.papers.bert.reading_bert import Attention, load_reader
from hf_papers.papers.bert.tokenization_bert import train_tokenizer
from hf_papers.registry import find_paper
from tests.spaces.common import SpaceTests, Visit, load_app


TEXTS = [
    "the movie was so good that we left before the end",
    "she opened the door and looked at the letter quickly and slowly",
    "a warm funny and moving film, it is one of the best of the year .",
]


class TestBERT(SpaceTests):
    key = "bert"
    tabs = {"Fill in": None, "Sentiment": None, "Next?": None, "Attention": None, "Map": None}
    endpoints = {"/fill_blanks", "/classify", "/judge_pair", "/attention", "/map_sentences"}

    @classmethod
    def save_checkpoint(cls, folder: Path) -> None:
        """A tiny BERT with int8 weights and its tokenizer, and in `classifier` one that sorts texts, exact weights."""
        paper, tokenizer = find_paper(cls.key), train_tokenizer(TEXTS, 90, min_frequency=1)
        labels = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
        config = paper.config_class.from_preset("tiny", vocab_size=90, max_position_embeddings=40, **labels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = paper.model_class(config)
            classifier = paper.model_classes["AutoModelForSequenceClassification"](config)
            for network in (model, classifier):
                for parameter in network.parameters():
                    parameter.data.mul_(3.0)
        save_quantized(model, folder)
        classifier.save_pretrained(folder / "classifier")
        for place in (folder, folder / "classifier"):
            tokenizer.save_pretrained(place)

    @classmethod
    def variables(cls, folder: Path) -> dict[str, str]:
        return {"MODEL_ID": str(folder), "CLASSIFIER_ID": str(folder / "classifier")}

    # In the browser

    def test_fills_blanks(self, visit: Callable[..., Visit]) -> None:
        page = visit()
        answer = page.page.locator("#blank-answer")
        answer.locator(".meter").first.wait_for()
        field = page.page.locator("#blank-text textarea")
        field.fill("the ___ was [MASK] <b>{{value}}</b> ${1+1} 你好")
        page.page.get_by_role("button", name="Guess").click()
        answer.get_by_text("Blank 2").wait_for()
        assert answer.locator(".meter").count() == 10 and answer.locator("mark").count() == 2
        text = answer.inner_text()
        assert "<b>{{value}}</b> ${1+1}" in text, "what a visitor types is text"
        assert "read as [UNK]" in text and "你" in text and "Each blank is guessed for itself" in text
        page.screenshot("bert-blanks")
        page.page.get_by_role("button", name="She opened the ___").click()
        page.page.wait_for_function("document.querySelectorAll('#blank-answer .meter').length === 5")
        assert field.input_value().startswith("She opened the")
        assert page.foreign_requests() == [] and page.problems == []

    def test_answers_in_every_tab(self, visit: Callable[..., Visit]) -> None:
        page = visit(width=390, height=844)
        page.open_tab("Sentiment")
        page.page.locator("#sentiment .meter").nth(1).wait_for()
        assert "negative" in page.page.locator("#sentiment").inner_text()
        page.open_tab("Next?")
        page.page.locator("#next .meter").nth(1).wait_for()
        page.open_tab("Attention")
        page.page.locator("#looks td").nth(20).wait_for()
        assert page.overflow() <= 0, "a wide table scrolls in its own frame"
        before = page.page.locator("#looks").inner_html()
        page.page.locator("#layer input").click()
        page.page.get_by_role("option", name="layer 2").click()
        page.page.wait_for_function("before => document.querySelector('#looks').innerHTML !== before", arg=before)
        page.screenshot("bert-phone-looks")
        page.open_tab("Map")
        page.page.locator("#map circle").nth(11).wait_for()
        assert page.page.locator("#map ol li").count() == 12 and page.overflow() <= 0
        page.screenshot("bert-phone-map")
        assert page.foreign_requests() == [] and page.problems == []

    @pytest.mark.parametrize(
        ("text", "words"),
        [("", "There is no text"), ("no blank here", "There is no blank"), ("[MASK] ___", "nothing but blanks")],
    )
    def test_says_what_is_missing(self, visit: Callable[..., Visit], text: str, words: str) -> None:
        page = visit()
        page.page.locator("#blank-answer .meter").first.wait_for()
        page.page.locator("#blank-text textarea").fill(text)
        page.page.get_by_role("button", name="Guess").click()
        assert words in page.complaint()

    def test_answers_calls_in_numbers(self, client: Any) -> None:
        from gradio_client.exceptions import AppError

        _, blanks = client.predict("the ___ was ___", api_name="/fill_blanks")
        assert [len(candidates) for candidates in blanks] == [5, 5]
        assert all(0 < share <= 1 for candidates in blanks for _, share in candidates)
        _, classes = client.predict("a warm film", api_name="/classify")
        assert list(classes) == ["negative", "positive"] and sum(classes.values()) == pytest.approx(1, abs=1e-4)
        _, answer = client.predict("a film\nthe door\nthe letter", "PCA", api_name="/map_sentences")
        assert len(answer["places"]) == 3 and all(1 <= number <= 3 for number in answer["nearest"])
        with pytest.raises(AppError, match="at least two sentences"):
            client.predict("one line", "PCA", api_name="/map_sentences")
        with pytest.raises(AppError, match="layer 9 is not in the list"):
            client.predict("a film", "layer 9", "head 1", api_name="/attention")

    # Without a server

    def test_sentences_keep_their_distances_on_a_plane_that_holds_them(self) -> None:
        """Points that lie in a plane of many dimensions: PCA must not change any distance between them."""
        plane, _ = torch.linalg.qr(torch.randn(30, 2, generator=torch.Generator().manual_seed(0)))
        vectors = torch.randn(12, 2, generator=torch.Generator().manual_seed(1)) @ plane.T + 5.0
        places = load_app("bert").principal_components(vectors)
        torch.testing.assert_close(torch.cdist(places, places), torch.cdist(vectors, vectors), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        "count, method, used", [(2, "t-SNE", "PCA"), (6, "t-SNE", "t-SNE"), (25, "Automatic", "t-SNE")]
    )
    def test_any_number_of_sentences_gets_a_map(self, checkpoint: Path, count: int, method: str, used: str) -> None:
        app, reader = load_app("bert"), load_reader(checkpoint)
        found = app.map_sentences(reader, "\n".join(f"{'the door ' * (n % 7 + 1)} film" for n in range(count)), method)
        assert found.method == used and found.places.shape == (count, 2) and bool(torch.isfinite(found.places).all())
        assert all(number != other for number, other in enumerate(found.nearest))
        assert app.draw_map(found).count("<circle") == count

    def test_sentences_that_are_all_the_same_have_a_map_too(self, checkpoint: Path) -> None:
        app = load_app("bert")
        found = app.map_sentences(load_reader(checkpoint), "the door\nthe door\n\n  the door\n", "PCA")
        assert "nan" not in app.draw_map(found) and found.similarity == pytest.approx([1, 1, 1], abs=1e-4)

    def test_more_than_two_hundred_sentences_are_cut_with_a_note(self, checkpoint: Path) -> None:
        found = load_app("bert").map_sentences(load_reader(checkpoint), "the door\n" * 201 + "🙂", "PCA")
        assert len(found.sentences) == 200 and found.notes == ["The first 200 of 202 lines are shown."]

    @pytest.mark.parametrize("text", ["", "one line", "\n\n", None])
    def test_a_map_of_one_sentence_is_refused(self, checkpoint: Path, text: str | None) -> None:
        with pytest.raises(UserError, match="at least two sentences"):
            load_app("bert").map_sentences(load_reader(checkpoint), text, "PCA")

    def test_attention_is_drawn_row_by_row_and_names_are_escaped(self) -> None:
        weights = torch.zeros(1, 2, 4, 4)
        weights[0, 1, 1, 2] = 1.0  # "<b>" looks at "cat", in the second head
        weights[0, 1, 0, 0] = weights[0, 1, 2, 2] = weights[0, 1, 3, 3] = 0.5
        drawn = load_app("bert").draw_attention(
            Attention(["[CLS]", "<b>", "cat", "[SEP]"], weights, ["A note."]), 0, 1
        )
        assert '<td style="--a:1.00" title="&lt;b&gt; → cat: 100%">' in drawn and drawn.count("<td style") == 16
        assert "From word to word most: &lt;b&gt; → cat 100%" in drawn and "<b>" not in drawn and "A note." in drawn
        mean = load_app("bert").draw_attention(Attention(["[CLS]", "a", "cat", "[SEP]"], weights, []), 0, None)
        assert "Darkest: 50%" in mean

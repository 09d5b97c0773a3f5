"""Image classification as every paper's task inherits it: pixels, random changes, labels, errors, pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_papers.data.embedded import EMBEDDED, EmbeddedDataset
from hf_papers.errors import UserError
from hf_papers.training.answers import Answers
from hf_papers.training.classification_figures import confusion_matrix, draw_confusion, draw_mistakes
from hf_papers.training.recipe import load_recipe
from hf_papers.training.task import Context


CONTEXT = Context(torch.device("cpu"), rank=0, world_size=1, seed=0)


def task_of(tmp_path: Path, **overrides: str) -> Any:
    """The task of a paper that classifies images, on the embedded digits unless told otherwise."""
    options = {"output_dir": str(tmp_path / "run"), "report_to": "none", "progress": "false"}
    recipe = load_recipe("lenet", "embedded", {**options, **{name: str(value) for name, value in overrides.items()}})
    return recipe.task_class(recipe)


def rows_of(task: Any, count: int) -> list[dict[str, Any]]:
    rows = task.source.rows("train")
    return [next(rows) for _ in range(count)]


class Oracle(torch.nn.Module):
    """Answers from a list, in the order in which images are shown to it."""

    def __init__(self, answers: torch.Tensor, classes: int) -> None:
        super().__init__()
        self.answers, self.classes, self.place = answers, classes, 0

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> Any:
        part = self.answers[self.place : self.place + len(labels)]
        self.place += len(labels)
        logits = torch.nn.functional.one_hot(part, self.classes).float() * 5
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return type("Output", (), {"logits": logits, "loss": loss})()


# ---------------------------------------------------------------------------------------------------------- pixels


def test_a_model_in_training_sees_what_its_processor_gives_to_users(tmp_path: Path) -> None:
    """Bytes that are normalised on the device, against the processor at once: any difference is a hidden domain shift."""
    task = task_of(tmp_path, rotation=0, scaling=0, translation=0, shear=0)
    rows = rows_of(task, 5)
    batch = task.preprocess(rows)
    assert batch["images"].dtype == torch.uint8
    expected = task.processor([row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(task.training_inputs(batch)["pixel_values"], expected.float(), rtol=0, atol=1e-6)
    assert task.training_inputs(batch)["labels"].tolist() == [row["label"] for row in rows]


def test_what_a_change_uncovers_is_ground(tmp_path: Path) -> None:
    """pytorch/tutorials#1117: zeros that come in after the normalisation are grey, not black."""
    task = task_of(tmp_path, translation=15, rotation=0, scaling=0, shear=0, border="zeros")
    batch = {
        "images": torch.full((64, 1, 20, 20), 255, dtype=torch.uint8),
        "labels": torch.zeros(64, dtype=torch.long),
    }
    shifted = task.training_inputs(batch)["pixel_values"]
    ground = task.processor(np.zeros((20, 20), np.uint8), return_tensors="pt")["pixel_values"].min()
    assert ground.item() == pytest.approx(-0.1, abs=1e-6)
    torch.testing.assert_close(shifted.min(), ground.float(), rtol=0, atol=1e-5)  # 0 with the mistake
    uncovered = shifted < 1.0
    assert uncovered.any((1, 2, 3)).sum() > 60 and (shifted[uncovered] < 0).float().mean() > 0.9


def test_pictures_of_what_was_shown_are_the_pixels_again(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    images = torch.rand(2, 1, 20, 20)
    torch.testing.assert_close(task.to_pictures(task.normalise(images)), images, rtol=0, atol=1e-6)


def test_changes_are_for_training_alone_and_repeat_with_the_global_generator(tmp_path: Path) -> None:
    task = task_of(tmp_path, rotation=30)
    batch = task.preprocess(rows_of(task, 4))
    torch.manual_seed(3)
    first, second = (task.training_inputs(batch)["pixel_values"] for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(task.training_inputs(batch)["pixel_values"], first)
    assert not torch.equal(first, second)
    looks = [next(task.examples("validation", CONTEXT.device))["pixel_values"] for _ in range(2)]
    assert torch.equal(*looks)


# ---------------------------------------------------------------------------------------------------------- labels


def test_the_classes_names_reach_the_model(tmp_path: Path) -> None:
    config = task_of(tmp_path).build_model().config
    assert config.id2label == {digit: str(digit) for digit in range(10)} and config.label2id["7"] == 7


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set of three classes that have no names, one of whose labels is hidden in the split "bad"."""

    def load() -> dict[str, dict[str, list[Any]]]:
        images = [Image.new("L", (16, 16), 80 * label) for label in range(3)]
        return {
            "train": {"image": images * 8, "label": [0, 1, 2] * 8},
            "bad": {"image": images, "label": [0, -1, 2]},
        }

    monkeypatch.setitem(EMBEDDED, "shapes", EmbeddedDataset("shapes", "three greys", load, {}))


def test_a_data_set_without_names_has_to_say_how_many_classes_it_has(tmp_path: Path, shapes: None) -> None:
    options = {"dataset": "embedded:shapes", "validation_split": "train", "test_split": "none", "codes": "random"}
    with pytest.raises(UserError, match="--num_labels"):
        task_of(tmp_path, **options).build_model()
    task = task_of(tmp_path, num_labels=3, **options)
    assert task.build_model().config.num_labels == 3
    assert task.evaluate(task.build_model().eval(), "validation", CONTEXT).keys() == {
        "loss",
        "accuracy",
        "error_percent",
    }
    assert task.evaluate(task.build_model(), "test", CONTEXT) == {}
    with pytest.raises(UserError, match="has 2 classes"):
        task = task_of(tmp_path, num_labels=2, **options)
        task.preprocess(rows_of(task, 3))


def test_hidden_labels_are_refused_in_words(tmp_path: Path, shapes: None) -> None:
    task = task_of(tmp_path, num_labels=3, dataset="embedded:shapes", validation_split="bad", codes="random")
    with pytest.raises(UserError, match="hidden or missing"):
        task.evaluate(task.build_model(), "validation", CONTEXT)


def test_a_model_that_does_not_fit_the_classes_is_refused_in_words(tmp_path: Path, shapes: None) -> None:
    with pytest.raises(UserError, match="codes 'bitmap' are pictures of ten digits"):
        task_of(tmp_path, dataset="embedded:shapes", num_labels=3).build_model()


@pytest.mark.parametrize(("option", "value"), [("num_labels", "1"), ("eval_batch_size", "0"), ("rotation", "-3")])
def test_nonsense_is_refused_in_words(tmp_path: Path, option: str, value: str) -> None:
    with pytest.raises(UserError, match=option):
        task_of(tmp_path, **{option: value})


# ---------------------------------------------------------------------------------------------------------- judging


def test_the_error_is_the_share_of_wrong_answers(tmp_path: Path) -> None:
    task = task_of(tmp_path, eval_batch_size=50)  # 180 rows: the last batch is a short one
    labels = task.scored_rows("validation")["labels"]
    answers = labels.clone()
    answers[:27] = (answers[:27] + 1) % 10
    metrics = task.evaluate(Oracle(answers, 10), "validation", CONTEXT)
    assert metrics["error_percent"] == 100 * 27 / len(labels)  # to the last digit: it is printed
    assert metrics["accuracy"] == pytest.approx(1 - 27 / len(labels))
    logits = torch.nn.functional.one_hot(answers, 10).float() * 5
    assert metrics["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_a_confusion_matrix_has_a_row_for_every_right_class() -> None:
    counts = confusion_matrix(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 1]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_the_surest_mistakes_are_drawn_and_none_where_there_is_none(tmp_path: Path) -> None:
    logits = torch.tensor([[3.0, 0.0], [0.0, 9.0], [5.0, 0.0]])
    pictures = [torch.rand(2, 1, 8, 8), torch.rand(1, 1, 8, 8)]
    answers = Answers(logits, torch.tensor([1, 1, 1]), 0.0)
    assert answers.accuracy == pytest.approx(1 / 3)
    with Image.open(draw_mistakes(answers, iter(pictures), ["a", "b"], tmp_path)) as picture:
        assert min(picture.size) > 50
    with Image.open(draw_confusion(answers, ["a", "b"], tmp_path)) as picture:
        assert min(picture.size) > 100
    assert draw_mistakes(Answers(logits, torch.tensor([0, 1, 0]), 0.0), pictures, ["a", "b"], tmp_path) is None

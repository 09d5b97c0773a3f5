"""GLUE's measures against values worked out by hand."""

import math

import pytest

from hf_papers.errors import UserError
from hf_papers.metrics import GlueMetric
from hf_papers.metrics.glue import GLUE_METRICS, glue_metrics


# 3 true positives, 1 false positive, 2 false negatives, 2 true negatives.
PREDICTIONS = [1, 1, 1, 1, 0, 0, 0, 0]
REFERENCES = [1, 1, 1, 0, 1, 1, 0, 0]


def test_f1_and_accuracy_by_hand() -> None:
    values = glue_metrics("mrpc", PREDICTIONS, REFERENCES)
    assert values["accuracy"] == pytest.approx(5 / 8)
    assert values["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert values["score"] == values["f1"]
    assert glue_metrics("qqp", PREDICTIONS, REFERENCES) == values


def test_f1_is_that_of_the_positive_class() -> None:
    flipped = glue_metrics("mrpc", [1 - p for p in PREDICTIONS], [1 - r for r in REFERENCES])
    assert flipped["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 2))


def test_matthews_by_hand() -> None:
    expected = (3 * 2 - 1 * 2) / math.sqrt((3 + 1) * (3 + 2) * (2 + 1) * (2 + 2))
    values = glue_metrics("cola", PREDICTIONS, REFERENCES)
    assert values == {"matthews_correlation": pytest.approx(expected), "score": pytest.approx(expected)}
    assert glue_metrics("cola", [1] * 8, REFERENCES)["score"] == 0
    assert glue_metrics("cola", REFERENCES, REFERENCES)["score"] == pytest.approx(1)


def test_correlations_by_hand() -> None:
    values = glue_metrics("stsb", [0.0, 1.0, 4.0, 9.0], [0.0, 1.0, 2.0, 3.0])
    assert values["spearmanr"] == pytest.approx(1) and values["score"] == values["spearmanr"]
    assert values["pearson"] == pytest.approx(15 / math.sqrt(5 * 49))
    ties = glue_metrics("stsb", [1.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0])
    assert ties["spearmanr"] == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert glue_metrics("stsb", [2.0, 2.0, 2.0], [1.0, 2.0, 3.0])["score"] == 0


@pytest.mark.parametrize("task", ["sst2", "mnli", "qnli", "rte", "wnli"])
def test_the_others_are_accuracy(task: str) -> None:
    assert glue_metrics(task, [2, 1, 0], [2, 1, 1]) == {
        "accuracy": pytest.approx(2 / 3),
        "score": pytest.approx(2 / 3),
    }


def test_bad_input() -> None:
    with pytest.raises(UserError, match="no task 'mrcp'. Did you mean 'mrpc'"):
        glue_metrics("mrcp", [1], [1])
    with pytest.raises(UserError, match="1 predictions cannot be compared with 2"):
        glue_metrics("rte", [1], [1, 0])


@pytest.mark.parametrize("task", GLUE_METRICS)
def test_evaluate_metric(task: str) -> None:
    predictions, references = ([0.5, 2.0, 4.5], [1.0, 2.0, 3.0]) if task == "stsb" else ([1, 0, 1], [1, 1, 1])
    metric = GlueMetric(task)
    for ours, right in zip(predictions, references, strict=True):
        metric.add(prediction=ours, reference=right)
    assert metric.compute() == pytest.approx(glue_metrics(task, predictions, references))

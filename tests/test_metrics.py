"""Scores, by hand and against the libraries."""

import math

import numpy as np
import pytest

import data


def test_metrics_worked_by_hand():
    predictions, labels = np.array([1, 1, 1, 0, 0, 0]), np.array([1, 1, 0, 1, 0, 0])
    scores = {name: metric(predictions, labels) for name, metric in data.METRICS.items()}
    # precision 2/3, recall 2/3; Matthews (2·2 − 1·1) / √(3·3·3·3) = 1/3
    assert scores["accuracy"] == pytest.approx(4 / 6) and scores["f1"] == pytest.approx(2 / 3)
    assert scores["matthews"] == pytest.approx(1 / 3)
    assert data.pearson(np.array([1.0, 2, 3]), np.array([1.0, 2, 9])) == pytest.approx(8 / math.sqrt(2 * 38))
    assert data.ranked(np.array([5.0, 1, 5, 3])).tolist() == [3.5, 1, 3.5, 2]
    # ranks (1, 2.5, 2.5, 4) against (1, 2, 3, 4): 4.5 / √(4.5 · 5)
    found = data.METRICS["spearman"](np.array([0.1, 7, 7, 8]), np.array([1.0, 2, 3, 4]))
    assert found == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_metrics_of_three_classes_worked_by_hand():
    predictions, labels = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 1, 2, 2])
    # of each class 2 hits / (predicted + labelled): 2/3, 2/4, 4/5
    assert data.METRICS["f1"](predictions, labels) == pytest.approx((2 / 3 + 2 / 4 + 4 / 5) / 3)
    # Gorodkin: (6·4 − (1·2 + 3·1 + 2·3)) / √((36 − (4 + 1 + 9)) (36 − (1 + 9 + 4)))
    assert data.METRICS["matthews"](predictions, labels) == pytest.approx(13 / 22)


def test_constant_predictions_score_zero():
    labels = np.array([0, 1, 1, 0])
    for constant in (np.zeros(4, int), np.full(4, 0.1)):
        for name in ("matthews", "pearson", "spearman"):
            assert data.METRICS[name](constant, labels) == data.METRICS[name](labels, constant) == 0.0
    assert data.METRICS["f1"](np.zeros(4, int), labels) == data.METRICS["f1"](np.zeros(4, int), np.zeros(4, int)) == 0.0
    assert data.METRICS["f1"](np.ones(4, int), labels) == pytest.approx(2 / 3)


@pytest.mark.parametrize("case", ["random", "ties", "one class said", "one class there", "all wrong", "single"])
def test_metrics_agree_with_the_libraries(case):
    sklearn, stats = pytest.importorskip("sklearn.metrics"), pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(2, size=(2, 1 if case == "single" else 60))
    predictions = {"one class said": 0 * labels + 1, "all wrong": 1 - labels}.get(case, predictions)
    labels = 0 * labels if case == "one class there" else labels
    expected = {"accuracy": sklearn.accuracy_score(labels, predictions), "f1": sklearn.f1_score(labels, predictions, zero_division=0),
                "matthews": sklearn.matthews_corrcoef(labels, predictions)}  # fmt: skip
    assert {name: data.METRICS[name](predictions, labels) for name in expected} == pytest.approx(expected)
    if case != "single":
        scores = rng.normal(size=60).astype(np.float32)
        truth = (rng.integers(6, size=60) if case == "ties" else rng.normal(size=60)).astype(np.float32)
        assert data.pearson(scores, truth) == pytest.approx(stats.pearsonr(scores.astype(float), truth).statistic)
        assert data.METRICS["spearman"](scores, truth) == pytest.approx(stats.spearmanr(scores, truth).statistic)


@pytest.mark.parametrize("said, there", [([0, 1, 2], [0, 1, 2]), ([0, 2], [0, 1, 2]), ([0, 1, 2], [1, 2]), ([2], [0, 1]), ([0, 1], [2])])
def test_metrics_of_three_classes_agree_with_the_libraries(said, there):
    """The classes that are said and those that are there; of real scores, then, with many ties."""
    sklearn, stats = pytest.importorskip("sklearn.metrics"), pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    predictions, labels = rng.choice(said, 60), rng.choice(there, 60)
    expected = {"accuracy": sklearn.accuracy_score(labels, predictions), "matthews": sklearn.matthews_corrcoef(labels, predictions),
                "f1": sklearn.f1_score(labels, predictions, average="macro", zero_division=0)}  # fmt: skip
    if len(said) > 1 and len(there) > 1:
        expected["spearman"] = stats.spearmanr(predictions, labels).statistic
    found = {name: data.METRICS[name](predictions, labels) for name in expected}
    assert found == pytest.approx(expected, rel=0, abs=1e-12)

"""Scores, by hand and against the libraries."""

import math

import numpy as np
import pytest

import data


def scores(predictions, labels, names=("accuracy", "f1", "matthews")):
    return {name: data.METRICS[name](np.array(predictions), np.array(labels)) for name in names}


def test_metrics_worked_by_hand():
    found = scores([1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0])
    # precision 2/3, recall 2/3; Matthews (2·2 − 1·1) / √(3·3·3·3) = 1/3
    assert found == pytest.approx({"accuracy": 4 / 6, "f1": 2 / 3, "matthews": 1 / 3})
    found = scores([0, 0, 1, 2, 2, 2], [0, 1, 1, 1, 2, 2])
    # F1 of each class is 2 hits / (predicted + labelled): 2/3, 2/4, 4/5.
    # Gorodkin's coefficient: (6·4 − (1·2 + 3·1 + 2·3)) / √((36 − (4 + 1 + 9)) (36 − (1 + 9 + 4)))
    assert found == pytest.approx({"accuracy": 4 / 6, "f1": (2 / 3 + 2 / 4 + 4 / 5) / 3, "matthews": 13 / 22})
    assert scores([1, 0], [0, 1]) == {"accuracy": 0, "f1": 0, "matthews": -1}
    assert data.pearson(np.array([1.0, 2, 3]), np.array([1.0, 2, 9])) == pytest.approx(8 / math.sqrt(2 * 38))
    assert data.ranked(np.array([5.0, 1, 5, 3])).tolist() == [3.5, 1, 3.5, 2]
    # ranks (1, 2.5, 2.5, 4) against (1, 2, 3, 4): 4.5 / √(4.5 · 5)
    assert scores([0.1, 7, 7, 8], [1.0, 2, 3, 4], ["spearman"])["spearman"] == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_constant_predictions_score_zero():
    labels, undefined = np.array([0, 1, 1, 0]), ("matthews", "pearson", "spearman")
    for constant in (np.zeros(4, int), np.full(4, 0.1)):
        assert {*scores(constant, labels, undefined).values(), *scores(labels, constant, undefined).values()} == {0.0}
    assert scores([0] * 4, labels)["f1"] == scores([0] * 4, [0] * 4)["f1"] == 0
    assert scores([1], [1]) == {"accuracy": 1, "f1": 1, "matthews": 0}
    assert scores([1] * 4, labels)["f1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("said, there", [
    ([0, 1], [0, 1]), ([1], [0, 1]), ([0, 1], [0]), ([0], [1]), ([0, 1, 2], [0, 1, 2]), ([0, 2], [0, 1, 2]),
    ([0, 1, 2], [1, 2]), ([2], [0, 1]), ([0, 1], [2]),
])  # fmt: skip
def test_metrics_of_classes_agree_with_scikit_learn(said, there):
    """Of the classes that are said, and those that are there."""
    sklearn, rng = pytest.importorskip("sklearn.metrics"), np.random.default_rng(0)
    predictions, labels = rng.choice(said, 60), rng.choice(there, 60)
    average = "macro" if 2 in said + there else "binary"
    expected = {
        "accuracy": sklearn.accuracy_score(labels, predictions),
        "matthews": sklearn.matthews_corrcoef(labels, predictions),
        "f1": sklearn.f1_score(labels, predictions, average=average, zero_division=0),
    }
    assert scores(predictions, labels) == pytest.approx(expected, rel=0, abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_agree_with_scipy(ties):
    stats, rng = pytest.importorskip("scipy.stats"), np.random.default_rng(0)
    drawn = rng.integers(6, size=(2, 60)) if ties else rng.normal(size=(2, 60))
    predictions, labels = drawn.astype(np.float32)
    expected = {"pearson": stats.pearsonr(predictions.astype(float), labels).statistic}
    expected["spearman"] = stats.spearmanr(predictions, labels).statistic
    assert scores(predictions, labels, ["pearson", "spearman"]) == pytest.approx(expected)

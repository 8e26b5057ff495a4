"""Metrics: values worked out by hand, and equality with scikit-learn and scipy where these are installed.

    python -m pytest tests/tasks/test_metrics.py
"""

import math
import warnings

import numpy as np
import pytest

from minibert.tasks.metrics import METRICS, accuracy, f1, matthews, pearson, score, spearman

CLASSES = ("accuracy", "f1", "matthews")


@pytest.mark.parametrize("metric, predictions, labels, expected", [
    (accuracy, [1, 0, 1, 2], [1, 0, 0, 2], 3 / 4),
    (f1, [1, 1, 0, 0], [1, 0, 1, 0], 1 / 2),
    (f1, [1, 1, 1, 0], [1, 1, 0, 0], 4 / 5),  # of class 1: the other one's is 2 / 3
    (matthews, [1, 1, 1, 0], [1, 1, 0, 0], 2 / math.sqrt(3 * 1 * 2 * 2)),  # (2 * 1 - 1 * 0) / sqrt(...)
    (matthews, [0, 1], [1, 0], -1),
    (matthews, [0, 1, 2, 2], [0, 1, 2, 2], 1),
    (pearson, [1, 2, 3], [1, 2, 4], 3 / math.sqrt(2 * 14 / 3)),
    (pearson, [0.5, 0.0, 1.0], [2.5, 0.0, 5.0], 1),
    (spearman, [1, 2, 3, 4], [10, 300, 20, 4000], 4 / 5),  # 1 - 6 * 2 / (4 * 15)
    (spearman, [1, 1, 2], [1, 2, 3], math.sqrt(3) / 2),  # ranks 1.5, 1.5, 3 against 1, 2, 3
])
def test_by_hand(metric, predictions, labels, expected):
    value = metric(predictions, labels)
    assert type(value) is float and value == pytest.approx(expected, abs=1e-15)


def test_a_constant_answer_scores_zero_and_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for labels in ([0, 1, 1], [1, 1, 1], [0, 0, 0]):
            assert matthews([1, 1, 1], labels) == matthews(labels, [0, 0, 0]) == 0
        assert f1([0, 0, 0], [0, 0, 0]) == f1([0, 0, 0], [0, 1, 1]) == 0
        for constant in ([0.1] * 3, [1e308] * 3):  # the mean of three 0.1 is not 0.1
            for metric in (pearson, spearman):
                assert metric(constant, [0.0, 2.5, 5.0]) == metric([0.0, 2.5, 5.0], constant) == 0
        assert pearson([2.0], [1.0]) == spearman([2.0], [1.0]) == 0


def test_scores_that_are_not_numbers_stay_visible():
    for metric in (pearson, spearman):
        assert math.isnan(metric([1.0, math.nan, 3.0], [1.0, 2.0, 3.0]))


def test_tiny_and_large_scores_do_not_vanish():
    labels = np.array([0.0, 1.0, 2.0, 4.0])
    for scale, shift in ((1e-100, 0), (1e100, 0), (1e-6, 1000)):
        assert pearson(labels * scale + shift, labels) == pytest.approx(1, abs=1e-6)


def test_float32_is_summed_in_float64():
    x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    y = np.arange(1000)
    assert pearson(x + np.float32(1000), y) == pearson((x + np.float32(1000)).astype(np.float64), y)


def test_score_keeps_the_order_of_the_names():
    assert list(score(("f1", "accuracy"), [1, 0], [1, 1]).items()) == [("f1", 2 / 3), ("accuracy", 0.5)]
    assert list(score(("accuracy", "f1"), [1, 0], [1, 1])) == ["accuracy", "f1"]


@pytest.mark.parametrize("predictions, labels", [([], []), ([1], [1, 1]), ([[1], [0]], [1, 0])])
def test_shapes_that_do_not_fit_are_refused(predictions, labels):
    for metric in METRICS.values():
        with pytest.raises(ValueError, match="one prediction for each label"):
            metric(predictions, labels)


@pytest.mark.filterwarnings("ignore")  # scikit-learn's, about the degenerate cases
@pytest.mark.parametrize("n", [2, 5, 1000])
@pytest.mark.parametrize("n_classes", [1, 2, 3])
def test_classes_equal_scikit_learn(n, n_classes):
    reference = pytest.importorskip("sklearn.metrics")
    theirs = {"accuracy": reference.accuracy_score, "matthews": reference.matthews_corrcoef,
              "f1": lambda labels, predictions: reference.f1_score(labels == 1, predictions == 1)}
    generator = np.random.default_rng(n + n_classes)
    for _ in range(3):
        labels = generator.integers(n_classes, size=n)
        guesses = generator.integers(n_classes, size=n)
        some_right = np.where(generator.random(n) < 0.6, labels, guesses)
        for predictions in (some_right, labels, np.full(n, n_classes - 1)):
            for name in CLASSES:
                expected = theirs[name](labels, predictions)
                assert METRICS[name](predictions, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [3, 10, 1000])
@pytest.mark.parametrize("values", [2, 7, None])  # 2: nearly all ties; None: no ties
def test_scores_equal_scipy(n, values):
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(n)
    for _ in range(10):
        y = generator.random(n)
        x = y + generator.normal(size=n)
        if values:
            x, y = np.floor(x * values), np.floor(y * values)
            x[:2] = y[:2] = 0, 1  # never constant, which scipy leaves undefined
        assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-12)
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)

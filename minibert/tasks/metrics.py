"""The metrics of GLUE. Predictions and labels are class numbers, or scores in a regression task. The value of
a metric is at most 1.0. The value is NaN only if a prediction or a label is NaN or infinite.
"""

import math
from collections.abc import Iterable

import numpy as np


def accuracy(predictions, labels) -> float:
    """Returns the share of predictions that are equal to their labels."""
    predictions, labels = _arrays(predictions, labels)
    return float((predictions == labels).mean())


def f1(predictions, labels) -> float:
    """Returns F1 of class 1 against all other classes, or 0.0 if no prediction and no label is class 1."""
    predictions, labels = _arrays(predictions, labels)
    positives = (predictions == 1).sum() + (labels == 1).sum()
    return float(2 * ((predictions == 1) & (labels == 1)).sum() / positives) if positives else 0.0


def matthews(predictions, labels) -> float:
    """Returns the Matthews correlation for any number of classes (Gorodkin 2004), or 0.0 if all predictions
    are equal or all labels are equal.
    """
    predictions, labels = _arrays(predictions, labels)
    n, classes = float(len(labels)), np.union1d(predictions, labels)
    predicted = np.array([(predictions == k).sum() for k in classes], dtype=np.float64)
    true = np.array([(labels == k).sum() for k in classes], dtype=np.float64)
    if predicted.max() == n or true.max() == n:
        return 0.0
    covariance = (predictions == labels).sum() * n - predicted @ true
    return float(covariance / np.sqrt((n * n - predicted @ predicted) * (n * n - true @ true)))


def pearson(predictions, labels) -> float:
    """Returns Pearson's correlation, or 0.0 if all predictions are equal or all labels are equal."""
    x, y = _arrays(predictions, labels)
    # max and min are compared, because rounding can make the variance of equal values larger than 0
    if x.max() == x.min() or y.max() == y.min():
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def spearman(predictions, labels) -> float:
    """Returns Spearman's correlation: Pearson's correlation of the ranks."""
    x, y = _arrays(predictions, labels)
    return math.nan if np.isnan(x + y).any() else pearson(_ranks(x), _ranks(y))


METRICS = {metric.__name__: metric for metric in (accuracy, f1, matthews, pearson, spearman)}


def score(metrics: Iterable[str], predictions, labels) -> dict[str, float]:
    """Returns a dict from the name of each metric in `metrics` to its value."""
    return {name: METRICS[name](predictions, labels) for name in metrics}


def _arrays(predictions, labels) -> tuple[np.ndarray, np.ndarray]:
    predictions, labels = (np.asarray(values, dtype=np.float64) for values in (predictions, labels))
    if predictions.shape != labels.shape or predictions.ndim != 1 or not len(labels):
        raise ValueError("there must be one prediction for each label, but the shapes are "
                         f"{predictions.shape} and {labels.shape}")
    return predictions, labels


def _ranks(x: np.ndarray) -> np.ndarray:
    """Returns the ranks of the values, counted from 1. Equal values get the mean of their ranks."""
    _, group, sizes = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    return ((last - sizes + 1 + last) / 2)[group]

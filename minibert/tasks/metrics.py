"""The metrics of GLUE, as fractions in float64. They take class numbers or scores of any array type.

A metric that is not defined is 0.0, for example if a model gives the same answer everywhere. Such a model
says nothing about its texts. NaN would be wrong here, because the best epoch is chosen by comparing. Only
scores that are NaN themselves give NaN.
"""

from collections.abc import Iterable

import numpy as np


def accuracy(predictions, labels) -> float:
    """The share of equal class numbers."""
    predictions, labels = _arrays(predictions, labels)
    return float((predictions == labels).mean())


def f1(predictions, labels) -> float:
    """F1 of class 1 against all others; 0.0 if class 1 is neither predicted nor a label."""
    predictions, labels = _arrays(predictions, labels)
    positives = (predictions == 1).sum() + (labels == 1).sum()
    return float(2 * ((predictions == 1) & (labels == 1)).sum() / positives) if positives else 0.0


def matthews(predictions, labels) -> float:
    """Matthews' correlation, for K classes in Gorodkin's form; 0.0 if either side has one class only."""
    predictions, labels = _arrays(predictions, labels)
    n, classes = float(len(labels)), np.union1d(predictions, labels)
    predicted = np.array([(predictions == k).sum() for k in classes], dtype=np.float64)
    true = np.array([(labels == k).sum() for k in classes], dtype=np.float64)
    if predicted.max() == n or true.max() == n:
        return 0.0
    covariance = (predictions == labels).sum() * n - predicted @ true
    return float(covariance / np.sqrt((n * n - predicted @ predicted) * (n * n - true @ true)))


def pearson(predictions, labels) -> float:
    """Pearson's correlation; 0.0 if either side is constant."""
    x, y = _arrays(predictions, labels)
    if np.isnan(x).any() or np.isnan(y).any():
        return float("nan")
    if x.max() == x.min() or y.max() == y.min():  # not by variance: rounding may leave some
        return 0.0
    x, y = (_unit(side) for side in (x, y))
    return float(np.clip(x @ y, -1, 1))


def spearman(predictions, labels) -> float:
    """Pearson's correlation of the ranks, where ties have their mean rank; 0.0 if either side is constant."""
    x, y = _arrays(predictions, labels)
    if np.isnan(x).any() or np.isnan(y).any():
        return float("nan")
    return pearson(_ranks(x), _ranks(y))


METRICS = {metric.__name__: metric for metric in (accuracy, f1, matthews, pearson, spearman)}


def score(metrics: Iterable[str], predictions, labels) -> dict[str, float]:
    """The named metrics, as `Task.metrics` lists them, in that order."""
    return {name: METRICS[name](predictions, labels) for name in metrics}


def constant_class(predictions) -> int | None:
    """The class that is predicted everywhere, or None. It needs a warning, since accuracy and F1 may look
    fine.
    """
    classes = np.unique(np.asarray(predictions))
    return int(classes[0]) if len(classes) == 1 else None


def _arrays(predictions, labels) -> tuple[np.ndarray, np.ndarray]:
    predictions, labels = (np.asarray(values, dtype=np.float64) for values in (predictions, labels))
    if predictions.shape != labels.shape or predictions.ndim != 1 or not len(labels):
        raise ValueError(f"one prediction for each label: {predictions.shape} against {labels.shape}")
    return predictions, labels


def _unit(x: np.ndarray) -> np.ndarray:
    """Centred and of length 1; scaled first, as squares of tiny numbers would be 0."""
    x = x - x.mean()
    x = x / np.abs(x).max()
    return x / np.sqrt(x @ x)


def _ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values having the mean of theirs."""
    _, group, sizes = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    return ((last - sizes + 1 + last) / 2)[group]

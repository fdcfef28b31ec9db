"""Accuracy of predictions, and intervals by resampling the test images."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROWS = 200  # resamples drawn at once, so that memory stays small for large test sets


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


def top_k(logits: NDArray[np.float32], labels: NDArray[np.int64], k: int) -> float:
    """Share of images whose label is among the ``k`` highest logits; ties count against it.

    Args:
        logits: (n, classes).
        labels: (n,).
        k: at most the number of classes is meaningful: beyond, the share is 1.
    """
    own = np.take_along_axis(logits, labels[:, None], 1)
    # The label itself is one of those that are not lower.
    return float(((logits >= own).sum(1) <= k).mean())


def confusion(predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """(classes, classes) counts: row the label, column the prediction."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def most_confused(matrix: NDArray[np.int64], count: int) -> list[tuple[int, int, int]]:
    """The ``count`` largest entries off the diagonal above zero: (label, prediction, images), by images, then label."""
    rows, columns = np.nonzero(matrix)
    wrong = rows != columns
    rows, columns = rows[wrong], columns[wrong]
    images = matrix[rows, columns]
    order = np.lexsort((columns, rows, -images))[:count]
    return [(int(rows[i]), int(columns[i]), int(images[i])) for i in order]


def per_class(matrix: NDArray[np.int64]) -> list[float | None]:
    """Accuracy of each class from its row of the confusion matrix; None for a class without images."""
    return [float(row[label] / row.sum()) if row.sum() else None for label, row in enumerate(matrix)]


def bootstrap(values: NDArray[np.float64], resamples: int, confidence: float, seed: int) -> Interval:
    """The mean of per-image values with its BCa interval (Efron 1987) over the images.

    With ``values`` the correctness of each test image this is an accuracy; with the difference of two classifiers'
    correctness it is a paired difference, and equal seeds resample the same images.

    Args:
        values: (n,), one per image.
        resamples: how many.
        confidence: of the interval, 0..1.
        seed: of the resampling.
    """
    n, estimate = len(values), float(values.mean())
    rng = np.random.default_rng(seed)
    sizes = [min(_ROWS, resamples - start) for start in range(0, resamples, _ROWS)]
    means = np.sort(np.concatenate([values[rng.integers(0, n, (rows, n))].mean(1) for rows in sizes]))
    spread = values - estimate
    if not spread.any():
        return Interval(estimate, estimate, estimate)
    normal = NormalDist()
    # Means of counts tie often: half of the ties are counted as below, and rounding must not split them.
    below = np.mean(means < estimate - 1e-12) + 0.5 * np.mean(abs(means - estimate) <= 1e-12)
    bias = normal.inv_cdf(min(max(float(below), 1 / (2 * resamples)), 1 - 1 / (2 * resamples)))
    acceleration = float((spread**3).sum() / (6 * (spread**2).sum() ** 1.5))
    ends = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = bias + normal.inv_cdf(tail)
        ends.append(normal.cdf(bias + z / (1 - acceleration * z)))
    low, high = np.quantile(means, ends)
    return Interval(estimate, float(low), float(high))

"""Accuracy and related measures of predictions, with intervals over images or over groups of images."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_ROWS = 200  # resamples drawn at once, so that memory stays small for large test sets
_ENOUGH_GROUPS = 20  # with fewer, a bootstrap interval over groups is too narrow


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


def top_k(logits: NDArray[np.float32], labels: NDArray[np.int64], k: int) -> float:
    """The share of images whose label is among the ``k`` highest logits; a tie counts as wrong.

    Args:
        logits: (n, classes).
        labels: (n,).
        k: number of logits; above the number of classes the share is 1.
    """
    of_label = np.take_along_axis(logits, labels[:, None], 1)
    # The label's logit is one of the logits that are not lower than itself.
    return float(((logits >= of_label).sum(1) <= k).mean())


def confusion(predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """The confusion matrix, (classes, classes) counts: labels are rows, predictions are columns."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def most_confused(matrix: NDArray[np.int64], count: int) -> list[tuple[int, int, int]]:
    """The ``count`` most frequent mistakes as (label, prediction, images), sorted by images, then by label."""
    rows, columns = np.nonzero(matrix)
    wrong = rows != columns
    rows, columns = rows[wrong], columns[wrong]
    images = matrix[rows, columns]
    order = np.lexsort((columns, rows, -images))[:count]
    return [(int(rows[i]), int(columns[i]), int(images[i])) for i in order]


def per_class(matrix: NDArray[np.int64]) -> list[float | None]:
    """The accuracy of each class, from its row of the confusion matrix; None for a class without images."""
    return [float(row[label] / row.sum()) if row.sum() else None for label, row in enumerate(matrix)]


def balanced_accuracy(matrix: NDArray[np.int64]) -> float:
    """The mean accuracy of the classes that have images, from the (classes, classes) confusion matrix."""
    images = matrix.sum(1)
    return float((matrix.diagonal()[images > 0] / images[images > 0]).mean())


def macro_f1(matrix: NDArray[np.int64]) -> float:
    """The mean F1 of the classes that have images or predictions, from the (classes, classes) confusion matrix."""
    total = matrix.sum(0) + matrix.sum(1)
    return float((2 * matrix.diagonal()[total > 0] / total[total > 0]).mean())


def auroc(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float | None:
    """The area under the ROC curve of each class's probability against the rest, averaged over classes.

    Args:
        logits: (n, classes).
        labels: (n,).

    Returns:
        None where a class has no images, or all of them.
    """
    from scipy.special import softmax

    counts = np.bincount(labels, minlength=logits.shape[1])
    if counts.min() == 0 or counts.max() == len(labels):
        return None
    scores = softmax(logits.astype(np.float64), axis=1)
    areas = []
    for label, column in enumerate(scores.T):
        members, others = column[labels == label], np.sort(column[labels != label])
        # The area is the share of pairs in which the class's image scores higher; ties count half.
        beaten = np.searchsorted(others, members, "left") + np.searchsorted(others, members, "right")
        areas.append(float(beaten.mean()) / (2 * len(others)))
    return float(np.mean(areas))


def majority(learned: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """The accuracy of always answering the most frequent training class; among equals, one is drawn at random.

    Args:
        learned: (m,) labels of the training images.
        labels: (n,) labels of the scored images.
    """
    classes = int(max(learned.max(), labels.max())) + 1
    counts = np.bincount(learned, minlength=classes)
    shares = np.bincount(labels, minlength=classes) / len(labels)
    return float(shares[counts == counts.max()].mean())


def grouped(groups: Sequence[str]) -> NDArray[np.int64] | None:
    """The (n,) group numbers of images, or None where an interval has to take the images as independent.

    That is so where every image is a group, and where all images are one group.
    """
    numbers = {name: index for index, name in enumerate(dict.fromkeys(groups))}
    if len(numbers) in (1, len(groups)):
        return None
    return np.array([numbers[name] for name in groups], np.int64)


def interval(
    values: NDArray[np.float64],
    resamples: int,
    confidence: float,
    seed: int,
    groups: NDArray[np.int64] | None = None,
    *,
    paired: bool = False,
) -> Interval:
    """The mean of per-image values with its interval, over images or over groups.

    Images of one writer or patient are not independent: an interval over images then says nothing about other writers.
    With 20 or more groups, whole groups are resampled. With fewer, such intervals are too narrow (Cameron, Gelbach &
    Miller 2008); the interval is then the mean's t interval, with the variance between groups and one degree of
    freedom less than there are groups.

    Where nearly all values are equal, both methods underestimate the uncertainty: twelve right answers of twelve give
    an interval without width. So no interval is narrower than the score interval over independent images: Wilson's
    (1927) for an accuracy, Tango's (1998) for a paired difference.

    Args:
        values: (n,), one per image: 1 where it is right, else 0; with ``paired`` the difference of two such values.
        resamples: number of resamples, where images or groups are resampled.
        confidence: the interval's confidence, 0..1.
        seed: the seed of the resampling.
        groups: (n,) group numbers, from 0 on, or None for independent images.
        paired: whether the values are differences: -1, 0 or 1.
    """
    if groups is None or groups.max() + 1 >= _ENOUGH_GROUPS:
        mean = bootstrap(values, resamples, confidence, seed, groups)
    else:
        mean = _between_groups(values, confidence, groups)
    low, high = _score_interval(values, confidence, paired=paired)
    least = -1.0 if paired else 0.0
    return Interval(mean.estimate, max(min(mean.low, low), least), min(max(mean.high, high), 1.0))


def _score_interval(values: NDArray[np.float64], confidence: float, *, paired: bool) -> tuple[float, float]:
    """The ends of the score interval over independent images."""
    if paired:
        from dreamset.metrics.mcnemar import score_interval

        return score_interval(int((values > 0).sum()), int((values < 0).sum()), len(values), confidence)
    return wilson(int((values > 0).sum()), len(values), confidence)


def wilson(right: int, of: int, confidence: float) -> tuple[float, float]:
    """Return the ends of Wilson's interval of the share ``right`` of ``of``."""
    from scipy.stats import binomtest

    ends = binomtest(right, of).proportion_ci(confidence, method="wilson")
    return float(ends.low), float(ends.high)


def _between_groups(values: NDArray[np.float64], confidence: float, groups: NDArray[np.int64]) -> Interval:
    """The mean's t interval with the variance between groups; its ends may lie outside a mean's range."""
    from scipy.stats import t

    count, estimate = int(groups.max()) + 1, float(values.mean())
    spread = np.bincount(groups, values - estimate)
    error = float(np.sqrt(count / (count - 1) * (spread**2).sum()) / len(values))
    half = error * float(t.ppf((1 + confidence) / 2, count - 1))
    return Interval(estimate, estimate - half, estimate + half)


def bootstrap(
    values: NDArray[np.float64],
    resamples: int,
    confidence: float,
    seed: int,
    groups: NDArray[np.int64] | None = None,
) -> Interval:
    """The mean of per-image values with its BCa interval (Efron 1987) over the images, or over whole groups.

    The mean of each test image's correctness is an accuracy. The mean difference of two classifiers' correctness is a
    paired difference; equal seeds resample the same images.

    Args:
        values: (n,), one per image.
        resamples: number of resamples.
        confidence: the interval's confidence, 0..1.
        seed: the seed of the resampling.
        groups: (n,) group numbers, from 0 on; groups are drawn whole. None: single images are drawn.
    """
    estimate = float(values.mean())
    if groups is None:
        groups = np.arange(len(values))
    # A resample's mean is a ratio of two sums over the drawn units: the values and the number of images.
    sums, sizes = np.bincount(groups, values), np.bincount(groups).astype(float)
    n = len(sums)
    rng = np.random.default_rng(seed)
    parts = [min(_ROWS, resamples - start) for start in range(0, resamples, _ROWS)]
    drawn = (rng.integers(0, n, (rows, n)) for rows in parts)
    means = np.sort(np.concatenate([sums[units].sum(1) / sizes[units].sum(1) for units in drawn]))
    # The influence of each unit with its sign reversed, from leaving the unit out.
    spread = (sums - estimate * sizes) / (len(values) - sizes)
    spread -= spread.mean()
    if not (values - estimate).any() or not abs(spread).max() > 1e-12:
        return Interval(estimate, estimate, estimate)
    normal = NormalDist()
    # Means of counts often tie: half of the ties count as below, and rounding must not split them.
    below = np.mean(means < estimate - 1e-12) + 0.5 * np.mean(abs(means - estimate) <= 1e-12)
    bias = normal.inv_cdf(min(max(float(below), 1 / (2 * resamples)), 1 - 1 / (2 * resamples)))
    acceleration = float((spread**3).sum() / (6 * (spread**2).sum() ** 1.5))
    ends = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = bias + normal.inv_cdf(tail)
        ends.append(normal.cdf(bias + z / (1 - acceleration * z)))
    low, high = np.quantile(means, ends)
    return Interval(estimate, float(low), float(high))

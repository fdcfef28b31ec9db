"""What is said of predictions: accuracy and its relatives, with intervals over images or over groups of them."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_ROWS = 200  # resamples drawn at once, so that memory stays small for large test sets
_ENOUGH_GROUPS = 20  # to resample: with fewer a bootstrap interval of groups is too narrow


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


def balanced_accuracy(matrix: NDArray[np.int64]) -> float:
    """Mean accuracy of the classes that have images, of their (classes, classes) confusion matrix."""
    images = matrix.sum(1)
    return float((matrix.diagonal()[images > 0] / images[images > 0]).mean())


def macro_f1(matrix: NDArray[np.int64]) -> float:
    """Mean F1 of the classes that have images or were predicted, of their (classes, classes) confusion matrix."""
    met = matrix.sum(0) + matrix.sum(1)
    return float((2 * matrix.diagonal()[met > 0] / met[met > 0]).mean())


def auroc(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float | None:
    """Area under the ROC curve of each class's probability against the rest, mean over classes.

    Args:
        logits: (n, classes).
        labels: (n,).

    Returns:
        None where a class has no images, or all of them.
    """
    from scipy.special import softmax

    own = np.bincount(labels, minlength=logits.shape[1])
    if own.min() == 0 or own.max() == len(labels):
        return None
    scores = softmax(logits.astype(np.float64), axis=1)
    areas = []
    for label, column in enumerate(scores.T):
        mine, others = column[labels == label], np.sort(column[labels != label])
        # The area is the share of pairs in which the class's image scores higher; ties count half.
        beaten = np.searchsorted(others, mine, "left") + np.searchsorted(others, mine, "right")
        areas.append(float(beaten.mean()) / (2 * len(others)))
    return float(np.mean(areas))


def majority(learned: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Accuracy of answering always with the most frequent training class; among equals, of one drawn at random.

    Args:
        learned: (m,) labels of the training images.
        labels: (n,) labels of the scored ones.
    """
    classes = int(max(learned.max(), labels.max())) + 1
    counts = np.bincount(learned, minlength=classes)
    shares = np.bincount(labels, minlength=classes) / len(labels)
    return float(shares[counts == counts.max()].mean())


def grouped(groups: Sequence[str]) -> NDArray[np.int64] | None:
    """(n,) numbers of the groups of images, or None where an interval has to take the images as independent.

    That is where every group is one image, and where all are one group.
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

    Images of one writer or patient are not independent: an interval over images then says nothing of other writers.
    From 20 groups on the groups are resampled; below that such intervals are too narrow (Cameron, Gelbach & Miller
    2008), and the interval is the mean's t interval with a variance between groups and one degree of freedom less
    than there are groups.

    Where hardly any image differs from the others, neither method sees how much it does not know: all right on twelve
    images is an interval of no width. So none is narrower than the score interval over independent images, which is
    Wilson's (1927) of an accuracy and Tango's (1998) of a paired difference.

    Args:
        values: (n,), one per image: 1 where it is right, else 0; or with ``paired`` the difference of two of these.
        resamples: how many, where images or groups are resampled.
        confidence: of the interval, 0..1.
        seed: of the resampling.
        groups: (n,) numbers of the groups, from 0 on, or None for independent images.
        paired: the values are differences: -1, 0 or 1.
    """
    if groups is None or groups.max() + 1 >= _ENOUGH_GROUPS:
        found = bootstrap(values, resamples, confidence, seed, groups)
    else:
        found = _between_groups(values, confidence, groups)
    low, high = _score_interval(values, confidence, paired=paired)
    least = -1.0 if paired else 0.0
    return Interval(found.estimate, max(min(found.low, low), least), min(max(found.high, high), 1.0))


def _score_interval(values: NDArray[np.float64], confidence: float, *, paired: bool) -> tuple[float, float]:
    """The ends of the score interval that takes images as independent."""
    if paired:
        from dreamset.metrics.mcnemar import score_interval

        return score_interval(int((values > 0).sum()), int((values < 0).sum()), len(values), confidence)
    from scipy.stats import binomtest

    found = binomtest(int((values > 0).sum()), len(values)).proportion_ci(confidence, "wilson")
    return float(found.low), float(found.high)


def _between_groups(values: NDArray[np.float64], confidence: float, groups: NDArray[np.int64]) -> Interval:
    """The mean's t interval with a variance between groups; its ends may lie beyond what a mean can be."""
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
    """The mean of per-image values with its BCa interval (Efron 1987) over the images, or over whole groups of them.

    With ``values`` the correctness of each test image this is an accuracy; with the difference of two classifiers'
    correctness it is a paired difference, and equal seeds resample the same images.

    Args:
        values: (n,), one per image.
        resamples: how many.
        confidence: of the interval, 0..1.
        seed: of the resampling.
        groups: (n,) numbers of the groups, from 0 on, that are drawn whole; None: images are drawn.
    """
    estimate = float(values.mean())
    if groups is None:
        groups = np.arange(len(values))
    # A resample's mean is the ratio of two sums over the units drawn: of values, and of images.
    sums, sizes = np.bincount(groups, values), np.bincount(groups).astype(float)
    n = len(sums)
    rng = np.random.default_rng(seed)
    parts = [min(_ROWS, resamples - start) for start in range(0, resamples, _ROWS)]
    drawn = (rng.integers(0, n, (rows, n)) for rows in parts)
    means = np.sort(np.concatenate([sums[units].sum(1) / sizes[units].sum(1) for units in drawn]))
    # Minus the influence of each unit, from leaving it out.
    spread = (sums - estimate * sizes) / (len(values) - sizes)
    spread -= spread.mean()
    if not (values - estimate).any() or not abs(spread).max() > 1e-12:
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

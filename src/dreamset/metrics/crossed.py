"""The standard error of a mean over two crossed random factors, such as seeds and images.

It imports nothing of this project, so that what uses it does not depend on how accuracies are told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def crossed_error(differences: NDArray[np.float64], groups: NDArray[np.int64] | None = None) -> tuple[float, float]:
    """The standard error of the mean of ``statistics.crossed`` and its degrees of freedom, without an interval.

    Args:
        differences: (seeds, images) with two seeds and two images or more, not all equal.
        groups: as there.
    """
    seeds, images = differences.shape
    estimate = float(differences.mean())
    if groups is None:
        groups = np.arange(images)
    count = int(groups.max()) + 1
    # What each seed and group adds to the mean, in units in which the mean of all entries is the mean difference.
    parts = np.stack([np.bincount(groups, row - estimate, count) for row in differences]) * (count / images)
    by_seed, by_group = parts.mean(1), parts.mean(0)
    rest = parts - by_seed[:, None] - by_group
    squares = (
        float(count * (by_seed**2).sum() / (seeds - 1)),
        float(seeds * (by_group**2).sum() / (count - 1)),
        float((rest**2).sum() / ((seeds - 1) * (count - 1))),
    )
    free = (seeds - 1, count - 1, (seeds - 1) * (count - 1))
    variance = squares[0] + squares[1] - squares[2]
    larger = 0 if squares[0] >= squares[1] else 1
    if variance > squares[larger]:
        degrees = variance**2 / sum(square**2 / each for square, each in zip(squares, free, strict=True))
    else:
        variance, degrees = squares[larger], free[larger]
    return (variance / (seeds * count)) ** 0.5, degrees

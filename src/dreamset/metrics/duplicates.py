"""Copies: synthetic images that are nearer to a real image than new real images usually are.

The distances of new real images define "near"; a threshold is a percentile of these distances:

- to a shot: the distances of held-out real images to their nearest shot;
- to a test image: the distances of test images to their nearest test image of another group (another writer, patient,
  burst). The shots would be new images too, but they are too few for a percentile, and generators have learned from
  them. A test image of the same group may be nearly the same picture. Leaving out a group thins the searched set and
  so raises the threshold a little: more images are flagged, not fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

PERCENTILE = 1.0  # of the new images' distances: this share of new real images would be flagged too

_CELLS = 2**24  # distances in memory at once: 128 MiB


@dataclass(frozen=True)
class Duplicates:
    """The searched images (mostly synthetic) that are nearer to a real one than ``threshold``.

    Attributes:
        threshold: an image at a smaller distance is a near-duplicate.
        count: number of near-duplicates.
        pairs: (searched, real, distance), nearest first, above the threshold too.
        touched: (t,) int64 indices of the real images that have a near-duplicate, in order.
    """

    threshold: float
    count: int
    pairs: list[tuple[int, int, float]]
    touched: NDArray[np.int64]


def nearest(features: NDArray[np.float32], shots: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The nearest of ``shots`` (m, d) to each of ``features`` (n, d): its index and Euclidean distance."""
    y = shots.astype(np.float64)
    lengths = (y**2).sum(1)
    rows = max(1, _CELLS // len(y))
    indices, distances = [], []
    for start in range(0, len(features), rows):
        x = features[start : start + rows].astype(np.float64)
        index = ((x**2).sum(1)[:, None] + lengths - 2 * x @ y.T).argmin(1)
        indices.append(index)
        # From the difference itself: rounding in the expanded square would hide the zero of an exact copy.
        distances.append(np.sqrt(((x - y[index]) ** 2).sum(1)))
    return np.concatenate(indices), np.concatenate(distances)


def apart(features: NDArray[np.float32], groups: Sequence[str]) -> NDArray[np.float64]:
    """The distance (n,) from each of ``features`` (n, d) to the nearest one of another group.

    Where there is only one group, each image counts as a group. The result is empty for fewer than two images.
    """
    if len(features) < 2:
        return np.empty(0)
    names, codes = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        codes = np.arange(len(features))
    x = features.astype(np.float64)
    lengths = (x**2).sum(1)
    rows = max(1, _CELLS // len(x))
    distances = []
    for start in range(0, len(x), rows):
        block = x[start : start + rows]
        squares = (block**2).sum(1)[:, None] + lengths - 2 * block @ x.T
        squares[codes[start : start + rows, None] == codes] = np.inf
        distances.append(np.sqrt(((block - x[squares.argmin(1)]) ** 2).sum(1)))
    return np.concatenate(distances)


def near_duplicates(
    features: NDArray[np.float32], real: NDArray[np.float32], fresh: NDArray[np.float64], pairs: int
) -> Duplicates:
    """Count copies of real images.

    Args:
        features: (n, d) features of the images that are searched for copies.
        real: (m, d) features of the images that they may copy.
        fresh: (k,) distances of new real images from ``nearest`` or ``apart``; they set the threshold, which is 0
            where there are none.
        pairs: number of nearest pairs to return.
    """
    threshold = float(np.percentile(fresh, PERCENTILE)) if len(fresh) else 0.0
    index, distance = nearest(features, real)
    order = np.argsort(distance, kind="stable")[:pairs]
    closest = [(int(i), int(index[i]), float(distance[i])) for i in order]
    touched = np.flatnonzero(nearest(real, features)[1] < threshold)
    return Duplicates(threshold, int((distance < threshold).sum()), closest, touched)

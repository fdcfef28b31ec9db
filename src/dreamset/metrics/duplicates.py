"""Synthetic images that are nearer to a real one than real images of the world are: copies rather than draws.

What is near is told by what fresh real images do, so a threshold is a percentile of *their* distances:

- to a shot: the distances of held-out real images to their nearest shot;
- to a test image: the distances of test images to their nearest test image of another group (another writer, patient,
  burst). The shots would be fresh too, but are too few for a percentile, and generators have learned from them; a test
  image of the same group may be nearly the same picture. Leaving a group out thins the set that is searched, and so
  raises the threshold a little: more is flagged, not less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

PERCENTILE = 1.0  # of the fresh images' distances: this share of fresh real images would be flagged too

_CELLS = 2**24  # distances that are in memory at once: 128 MiB


@dataclass(frozen=True)
class Duplicates:
    """Synthetic images, or whatever was searched, that are nearer to a real one than ``threshold``.

    ``count`` of them; ``pairs`` of (searched, real, distance), nearest first, whether below the threshold or not;
    ``touched`` (t,) int64: the real images with one of them below the threshold, in order.
    """

    threshold: float
    count: int
    pairs: list[tuple[int, int, float]]
    touched: NDArray[np.int64]


def nearest(features: NDArray[np.float32], shots: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Index of, and Euclidean distance to, the nearest of ``shots`` (m, d) for each of ``features`` (n, d)."""
    y = shots.astype(np.float64)
    lengths = (y**2).sum(1)
    rows = max(1, _CELLS // len(y))
    indices, distances = [], []
    for start in range(0, len(features), rows):
        x = features[start : start + rows].astype(np.float64)
        index = ((x**2).sum(1)[:, None] + lengths - 2 * x @ y.T).argmin(1)
        indices.append(index)
        # From the difference itself: the expanded square loses a planted copy's zero to rounding.
        distances.append(np.sqrt(((x - y[index]) ** 2).sum(1)))
    return np.concatenate(indices), np.concatenate(distances)


def apart(features: NDArray[np.float32], groups: Sequence[str]) -> NDArray[np.float64]:
    """Distance (n,) of each of ``features`` (n, d) to the nearest one of another group.

    Where all are of one group, or of none, each image is a group. Empty for fewer than two images.
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
        own = x[start : start + rows]
        squares = (own**2).sum(1)[:, None] + lengths - 2 * own @ x.T
        squares[codes[start : start + rows, None] == codes] = np.inf
        distances.append(np.sqrt(((own - x[squares.argmin(1)]) ** 2).sum(1)))
    return np.concatenate(distances)


def near_duplicates(
    features: NDArray[np.float32], real: NDArray[np.float32], fresh: NDArray[np.float64], pairs: int
) -> Duplicates:
    """Count copies of real images.

    Args:
        features: (n, d) of the images that are searched for copies.
        real: (m, d) features of the images that they may be copies of.
        fresh: (k,) distances of real images that are no copies, as ``nearest`` or ``apart`` gives them: they set the
            threshold, which is 0 where there are none.
        pairs: how many of the nearest pairs to return.
    """
    threshold = float(np.percentile(fresh, PERCENTILE)) if len(fresh) else 0.0
    index, distance = nearest(features, real)
    order = np.argsort(distance, kind="stable")[:pairs]
    closest = [(int(i), int(index[i]), float(distance[i])) for i in order]
    touched = np.flatnonzero(nearest(real, features)[1] < threshold)
    return Duplicates(threshold, int((distance < threshold).sum()), closest, touched)

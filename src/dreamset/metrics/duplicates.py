"""Synthetic images that are nearer to a shot than real images of the world are: copies rather than draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PERCENTILE = 1.0  # of the held-out images' distances: this share of fresh real images would be flagged too

_CELLS = 2**24  # distances that are in memory at once: 128 MiB


@dataclass(frozen=True)
class Duplicates:
    """``count`` synthetic images nearer than ``threshold``; ``pairs`` of (synthetic, shot, distance), nearest first."""

    threshold: float
    count: int
    pairs: list[tuple[int, int, float]]


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


def near_duplicates(
    synthetic: NDArray[np.float32], shots: NDArray[np.float32], held_out: NDArray[np.float32], pairs: int
) -> Duplicates:
    """Count copies of the shots.

    Args:
        synthetic: (n, d) features of synthetic images.
        shots: (m, d) features of the images that the generator learned from.
        held_out: (k, d) features of real images that it has not seen; their distances to the shots set the threshold.
        pairs: how many of the nearest pairs to return.
    """
    threshold = float(np.percentile(nearest(held_out, shots)[1], PERCENTILE))
    index, distance = nearest(synthetic, shots)
    order = np.argsort(distance, kind="stable")[:pairs]
    closest = [(int(i), int(index[i]), float(distance[i])) for i in order]
    return Duplicates(threshold, int((distance < threshold).sum()), closest)

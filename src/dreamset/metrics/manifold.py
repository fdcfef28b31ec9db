"""How much of the real images synthetic ones resemble, how much they cover, and how varied they are.

FID and KID are one number for two faults. Precision and density fall when synthetic images are unlike any real one;
recall and coverage fall when some real ones are like no synthetic one; the Vendi score falls when synthetic images
resemble one another, whatever the real ones are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

PRECISION_K: Final = 3  # nearest neighbours, as in Kynkäänniemi et al. 2019
DENSITY_K: Final = 5  # as in Naeem et al. 2020

_CELLS = 2**23  # distances that are in memory at once: 64 MiB, and as much again while they are sorted
_ROUNDING: Final = 1e-12  # share of the squared lengths up to which a squared distance is that of one point


@dataclass(frozen=True)
class Manifold:
    """``precision``, ``recall`` and ``coverage`` are shares; ``density`` is 1 for equal sets and may be above."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(real: NDArray[np.float32], fake: NDArray[np.float32]) -> Manifold:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    The real images are taken to fill the balls around each of them that reach to its k-th nearest other real image,
    and the synthetic ones likewise. Memory grows with n + m, time with (n + m)^2.

    Args:
        real: (n, d) features, n above ``DENSITY_K``.
        fake: (m, d) features, m above ``PRECISION_K``.
    """
    # About the middle: the expanded square loses fewer digits there.
    middle = real.mean(0, dtype=np.float64)
    x, y = real - middle, fake - middle
    real_near, real_wide = _radii(x, (PRECISION_K, DENSITY_K)).T
    fake_near = _radii(y, (PRECISION_K,))[:, 0]
    precise = inside = 0
    recalled, covered = np.zeros(len(x), bool), np.zeros(len(x), bool)
    for rows, squares in _squares(y, x):
        precise += int((squares <= real_near).any(1).sum())
        recalled |= (squares <= fake_near[rows, None]).any(0)
        # Open balls, as Naeem et al. have them: equal sets have density 1.
        within = squares < real_wide
        inside += int(within.sum())
        covered |= within.any(0)
    return Manifold(precise / len(y), float(recalled.mean()), inside / (DENSITY_K * len(y)), float(covered.mean()))


def vendi(features: NDArray[np.float32]) -> float:
    """Effective number of different images: the Vendi score under the cosine kernel (Friedman and Dieng 2023).

    It is 1 where all are alike, n where all n are orthogonal, and never above n or the width of the features.

    Args:
        features: (n, d), n of at least 1.
    """
    x = features.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True).clip(min=1e-12)
    # The kernel's eigenvalues other than zero are those of the smaller of the two products.
    gram = x.T @ x if x.shape[1] < len(x) else x @ x.T
    shares = np.linalg.eigvalsh(gram / len(x))
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _radii(x: NDArray[np.float64], neighbours: tuple[int, ...]) -> NDArray[np.float64]:
    """Squared distances (n, len(neighbours)) from each row to its k-th nearest other row."""
    radii = np.empty((len(x), len(neighbours)))
    for rows, squares in _squares(x, x):
        # An image is its own nearest, so the k-th other one is at index k.
        radii[rows] = np.partition(squares, neighbours, axis=1)[:, neighbours]
    return radii


def _squares(x: NDArray[np.float64], y: NDArray[np.float64]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Squared distances of some rows of ``x`` to all of ``y`` at a time."""
    along_x, along_y = (x**2).sum(1), (y**2).sum(1)
    step = max(1, _CELLS // len(y))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        lengths = along_x[rows, None] + along_y
        squares = lengths - 2 * x[rows] @ y.T
        squares[squares < _ROUNDING * lengths] = 0
        yield rows, squares

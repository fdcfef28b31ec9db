"""Fidelity, coverage and variety of synthetic images: precision, recall, density, coverage and the Vendi score.

FID and KID mix two faults in one number. Precision and density fall when synthetic images resemble no real one. Recall
and coverage fall when no synthetic image resembles some of the real ones. The Vendi score falls when synthetic images
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

_CELLS = 2**23  # distances in memory at once: 64 MiB, and as much again while they are sorted
_ROUNDING: Final = 1e-12  # share of the squared lengths below which a squared distance counts as 0


@dataclass(frozen=True)
class Manifold:
    """Four measures of two sets: ``density`` is 1 for equal sets and may be higher, the others are shares."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(real: NDArray[np.float32], fake: NDArray[np.float32]) -> Manifold:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    A set is modelled as the union of balls around its images; each ball reaches to the k-th nearest other image of the
    set. Memory grows with n + m, time with (n + m)^2.

    Args:
        real: (n, d) features, n above ``DENSITY_K``.
        fake: (m, d) features, m above ``PRECISION_K``.
    """
    # Centred on the mean, where the expanded square loses fewer digits.
    middle = real.mean(0, dtype=np.float64)
    x, y = real - middle, fake - middle
    real_near, real_wide = _radii(x, (PRECISION_K, DENSITY_K)).T
    fake_near = _radii(y, (PRECISION_K,))[:, 0]
    precise = inside = 0
    recalled, covered = np.zeros(len(x), bool), np.zeros(len(x), bool)
    for rows, squares in _squares(y, x):
        precise += int((squares <= real_near).any(1).sum())
        recalled |= (squares <= fake_near[rows, None]).any(0)
        # Open balls, as in Naeem et al.: equal sets have density 1.
        within = squares < real_wide
        inside += int(within.sum())
        covered |= within.any(0)
    return Manifold(precise / len(y), float(recalled.mean()), inside / (DENSITY_K * len(y)), float(covered.mean()))


def vendi(features: NDArray[np.float32]) -> float:
    """The effective number of different images: the Vendi score under the cosine kernel (Friedman and Dieng 2023).

    It is 1 where all images are alike and n where all n are orthogonal. It never exceeds n or the features' width.

    Args:
        features: (n, d), n of at least 1.
    """
    x = features.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True).clip(min=1e-12)
    # The kernel's nonzero eigenvalues are those of the smaller of the two products.
    gram = x.T @ x if x.shape[1] < len(x) else x @ x.T
    shares = np.linalg.eigvalsh(gram / len(x))
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _radii(x: NDArray[np.float64], neighbours: tuple[int, ...]) -> NDArray[np.float64]:
    """The squared distances (n, len(neighbours)) from each row to its k-th nearest other rows."""
    radii = np.empty((len(x), len(neighbours)))
    for rows, squares in _squares(x, x):
        # The nearest image is the image itself, so the k-th other one is at index k.
        radii[rows] = np.partition(squares, neighbours, axis=1)[:, neighbours]
    return radii


def _squares(x: NDArray[np.float64], y: NDArray[np.float64]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield blocks of rows of ``x`` with their squared distances to all rows of ``y``."""
    along_x, along_y = (x**2).sum(1), (y**2).sum(1)
    step = max(1, _CELLS // len(y))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        lengths = along_x[rows, None] + along_y
        squares = lengths - 2 * x[rows] @ y.T
        squares[squares < _ROUNDING * lengths] = 0
        yield rows, squares

"""FID and KID: the distance of a set of synthetic images from real ones, in a network's features.

Both depend on the network and on the number of images, so results always state these too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SUBSETS = 100


def fid(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """The Frechet distance between Gaussians fitted to two sets of features (Heusel et al. 2017).

    Args:
        first: (n, d) features, n of at least 2.
        second: (m, d) features.
    """
    means, covariances = [], []
    for features in (first, second):
        values = features.astype(np.float64)
        means.append(values.mean(0))
        covariances.append(np.atleast_2d(np.cov(values, rowvar=False)))
    gap = float(((means[0] - means[1]) ** 2).sum())
    # tr sqrt(AB) from the symmetric sqrt(A) B sqrt(A), which has the same eigenvalues and no imaginary part.
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root).clip(min=0)).sum()
    return max(0.0, gap + float(np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * cross))


def kid(first: NDArray[np.float32], second: NDArray[np.float32], subset: int, seed: int) -> tuple[float, float]:
    """The unbiased squared maximum mean discrepancy under the kernel (x.y / d + 1)^3 (Binkowski et al. 2018).

    Args:
        first: (n, d) features, n of at least 2.
        second: (m, d) features.
        subset: images of each set per estimate, at most n and m.
        seed: the seed of the subsets.

    Returns:
        Mean and standard deviation over 100 random subsets; where a subset is the whole set, the single value and 0.
    """
    x, y = first.astype(np.float64), second.astype(np.float64)
    size = min(subset, len(x), len(y))
    if size == len(x) == len(y):
        return _mmd(x, y), 0.0
    rng = np.random.default_rng(seed)
    values = [_mmd(x[rng.permutation(len(x))[:size]], y[rng.permutation(len(y))[:size]]) for _ in range(_SUBSETS)]
    return float(np.mean(values)), float(np.std(values))


def _mmd(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    n, m, width = len(x), len(y), x.shape[1]
    within_x, within_y, across = ((a @ b.T / width + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    same_x = (within_x.sum() - np.trace(within_x)) / (n * (n - 1))
    same_y = (within_y.sum() - np.trace(within_y)) / (m * (m - 1))
    return float(same_x + same_y - 2 * across.mean())


def matched(
    real: NDArray[np.int64], synthetic: NDArray[np.int64], classes: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose equally many real and synthetic images of every class.

    A distance grows as the counts shrink, and changes with the mix of classes. So each class gives the same number on
    both sides, as many as the smaller side has. The real images are drawn at random, because their order may have a
    meaning (digits are ordered by writer). The synthetic images are the first of their class.

    Args:
        real: (n,) labels of the real images.
        synthetic: (m,) labels of the synthetic images.
        classes: number of classes.
        seed: the seed of the draw.

    Returns:
        Indices into ``real`` and into ``synthetic``, ordered by class.
    """
    rng = np.random.default_rng(seed)
    chosen_real, chosen_synthetic = [], []
    for label in range(classes):
        shuffled = rng.permutation(np.flatnonzero(real == label))
        drawn = np.flatnonzero(synthetic == label)
        count = min(len(shuffled), len(drawn))
        chosen_real.append(np.sort(shuffled[:count]))
        chosen_synthetic.append(drawn[:count])
    return np.concatenate(chosen_real), np.concatenate(chosen_synthetic)

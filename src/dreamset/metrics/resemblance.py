"""Whether drawn pictures look like the shots, in the judge's features."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.seeds import seed_for

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PERMUTATIONS: Final = 500


def look(
    shots: NDArray[np.float32], shot_labels: NDArray[np.int64], drawn: NDArray[np.float32], labels: NDArray[np.int64]
) -> dict[str, Any]:
    """Compare drawn pictures with the shots, in the judge's features.

    KID of balanced sets is below zero where nothing differs, the more so the fewer images a class has. So its mean
    over random exchanges of shots and pictures within their classes stands beside it. The same exchanges give the
    permutation test.

    Args:
        shots: (n, d) features.
        shot_labels: (n,).
        drawn: (m, d) features.
        labels: (m,).

    Returns:
        ``kid``, ``kid_exchanged`` and ``p``; ``near``, the share of pictures that are no farther from a shot than 95 %
        of the shots are from another shot.
    """
    import numpy as np

    from dreamset.metrics.duplicates import nearest

    features, classes = np.concatenate([shots, drawn]).astype(np.float64), np.concatenate([shot_labels, labels])
    kernel = (features @ features.T / features.shape[1] + 1) ** 3
    is_shot = np.arange(len(classes)) < len(shots)
    value = _kid(kernel, is_shot)
    rng, members = np.random.default_rng(seed_for("look")), [np.flatnonzero(classes == c) for c in np.unique(classes)]
    exchanged = np.empty(_PERMUTATIONS)
    for i in range(_PERMUTATIONS):
        side = is_shot.copy()
        for rows in members:
            side[rows] = is_shot[rng.permutation(rows)]
        exchanged[i] = _kid(kernel, side)
    lengths = np.diag(features[: len(shots)] @ features[: len(shots)].T)
    squares = lengths[:, None] + lengths - 2 * features[: len(shots)] @ features[: len(shots)].T
    np.fill_diagonal(squares, np.inf)
    usual = math.sqrt(max(0.0, float(np.quantile(squares.min(1), 0.95))))
    return {
        "kid": round(value, 4),
        "kid_exchanged": round(float(exchanged.mean()), 4),
        "p": round((1 + int((exchanged >= value).sum())) / (1 + _PERMUTATIONS), 4),
        "near": round(float((nearest(drawn, shots)[1] <= usual).mean()), 4),
    }


def _kid(kernel: NDArray[np.float64], side: NDArray[np.bool_]) -> float:
    """Return the KID of the two sides of a kernel's matrix, unbiased for independent draws."""
    one, two = side.astype(float), (~side).astype(float)
    n, m, diagonal = one.sum(), two.sum(), kernel.diagonal()
    within = (one @ kernel @ one - diagonal @ one) / (n * (n - 1)) + (two @ kernel @ two - diagonal @ two) / (
        m * (m - 1)
    )
    return float(within - 2 * (one @ kernel @ two) / (n * m))

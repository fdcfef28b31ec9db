"""Statistics over seeds: intervals over seeds and test images, tests over seeds, families of tests."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Final

import numpy as np

from dreamset.core.seeds import seed_for
from dreamset.metrics.accuracy import Interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

ENOUGH_SEEDS: Final = 6  # from here on the smallest p of a two-sided sign-flip test, 2 / 2^n, is below 0.05
_EXACT_SEEDS: Final = 20  # 2^20 flips take a moment; beyond, they are drawn
_DRAWN_FLIPS: Final = 100_000
_BATCH: Final = 200  # resamples drawn at once, so that memory stays small for large test sets


def crossed_bca(differences: NDArray[np.float64], resamples: int, confidence: float) -> Interval:
    """The mean difference with its BCa interval over seeds and test images, resampled crosswise.

    All seeds are scored on the same images: a row of the table is a seed, a column an image. Rows and columns are drawn
    independently, and the mean is taken where they cross. The variation of a single entry counts in both, so the
    interval is too wide rather than too narrow (Owen 2007).

    With one seed, only the images are resampled, because nothing is known about other seeds. Where all entries are
    equal, the interval is the estimate itself. Where the acceleration is undefined (the jackknife's means do not vary),
    it is the percentile interval.

    Args:
        differences: (seeds, images), the difference of two classifiers' correctness: -1, 0 or 1.
        resamples: number of resamples.
        confidence: the interval's confidence, 0..1.
    """
    from scipy import stats

    seeds, images = differences.shape
    estimate = float(differences.mean())
    if not (differences != differences[0, 0]).any():
        return Interval(estimate, estimate, estimate)
    sides = [side for side in (seeds, images) if side > 1]

    def mean(*chosen: NDArray[np.int64], axis: int = -1) -> NDArray[np.float64]:
        """The means over the chosen rows and columns, of shapes (..., rows) and (..., columns)."""
        assert axis == -1
        each = iter(chosen)
        rows = _shares(next(each), seeds) if seeds > 1 else np.ones(1)
        columns = _shares(next(each), images) if images > 1 else np.ones(1)
        means: NDArray[np.float64] = np.einsum("...s,...s->...", rows, columns @ differences.T)
        return means

    with warnings.catch_warnings():
        # A degenerate case gives NaN ends, which are handled below.
        warnings.simplefilter("ignore")
        result = stats.bootstrap(
            tuple(np.arange(side) for side in sides),
            mean,
            n_resamples=resamples,
            batch=_BATCH,
            vectorized=True,
            paired=False,
            confidence_level=confidence,
            method="BCa",
            rng=np.random.default_rng(seed_for("crossed_bca")),
        )
    low, high = (float(end) for end in result.confidence_interval)
    if not np.isfinite([low, high]).all():
        tail = (1 - confidence) / 2
        low, high = (float(end) for end in np.quantile(result.bootstrap_distribution, (tail, 1 - tail)))
    return Interval(estimate, low, high)


def _shares(chosen: NDArray[np.int64], among: int) -> NDArray[np.float64]:
    """Turn drawn indices (..., drawn) into the share of draws of each index (..., among)."""
    flat = chosen.reshape(-1, chosen.shape[-1])
    offsets = np.arange(len(flat))[:, None] * among
    counts = np.bincount((flat + offsets).ravel(), minlength=len(flat) * among)
    shares: NDArray[np.float64] = counts.reshape(*chosen.shape[:-1], among) / chosen.shape[-1]
    return shares


def sign_flip(by_seed: Sequence[float]) -> float:
    """The two-sided p of the sign-flip test: are the seeds' mean differences symmetric about zero?

    Up to 20 seeds it uses all 2^n flips, beyond that 100,000 drawn ones. The seeds are the sample; the test images are
    fixed.

    Args:
        by_seed: a difference per seed, in any unit.
    """
    values = np.asarray(by_seed, np.float64)
    observed = abs(values.sum())
    # Equal sums must count as equal, whatever the order of addition.
    least = observed - 1e-9 * max(1.0, float(abs(values).sum()))
    if len(values) <= _EXACT_SEEDS:
        sums = np.zeros(1)
        for value in values:
            sums = np.concatenate([sums + value, sums - value])
        return float((abs(sums) >= least).mean())
    rng = np.random.default_rng(seed_for("sign_flip"))
    sums = rng.choice((-1.0, 1.0), (_DRAWN_FLIPS, len(values))) @ values
    # The observed signs count as one of the flips (Phipson and Smyth 2010).
    return float((1 + (abs(sums) >= least).sum()) / (1 + _DRAWN_FLIPS))


def holm(p_values: Sequence[float], family: int | None = None) -> list[float]:
    """Holm's (1979) adjusted p of every test of a family, in the given order.

    Args:
        p_values: 0..1 each.
        family: number of tests in the family, where some are still to come; these count as not significant.
    """
    tests = max(family or 0, len(p_values))
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (tests - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def indicative(seeds: int) -> bool:
    """Whether the seeds are too few for more than a hint: no two-sided sign-flip test of them can reach 5 %."""
    return seeds < ENOUGH_SEEDS


def spearman(
    x: Sequence[float], y: Sequence[float], seeds: Sequence[int], resamples: int, confidence: float
) -> Interval | None:
    """Spearman's rank correlation with a percentile interval that resamples whole seeds.

    Points of one seed share shots and noise, so they are drawn together.

    Args:
        x: one value per point.
        y: one value per point.
        seeds: the seed of each point.
        resamples: number of resamples.
        confidence: the interval's confidence, 0..1.

    Returns:
        None where fewer than three seeds or an unvarying side leave it undefined.
    """
    members = [np.flatnonzero(np.asarray(seeds) == seed) for seed in sorted(set(seeds))]
    if len(members) < 3:
        return None
    points = np.array([x, y], np.float64)
    estimate = _rank_correlation(points)
    if estimate is None:
        return None
    rng = np.random.default_rng(seed_for("spearman"))
    drawn = [
        _rank_correlation(points[:, np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])])
        for _ in range(resamples)
    ]
    defined = [value for value in drawn if value is not None]
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(low), float(high))


def _rank_correlation(points: NDArray[np.float64]) -> float | None:
    """The rank correlation of (2, n) points; None where a side does not vary."""
    from scipy.stats import rankdata

    ranks = rankdata(points, axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    size = np.sqrt((ranks**2).sum(1).prod())
    return float((ranks[0] * ranks[1]).sum() / size) if size else None

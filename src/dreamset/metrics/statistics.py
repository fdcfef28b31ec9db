"""Statistics over seeds: intervals over seeds and test images, tests over seeds, families of tests."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

import numpy as np

from dreamset.core.seeds import seed_for
from dreamset.metrics.accuracy import Interval, interval
from dreamset.metrics.crossed import crossed_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

ENOUGH_SEEDS: Final = 6  # from here on the smallest p of a two-sided sign-flip test, 2 / 2^n, is below 0.05
_EXACT_SEEDS: Final = 20  # 2^20 flips take a moment; beyond, they are drawn
_DRAWN_FLIPS: Final = 100_000
_MAX_T_SEEDS: Final = 14  # a family has hundreds of tests, so all flips take longer
_MAX_T_FLIPS: Final = 20_000


def crossed(
    differences: NDArray[np.float64],
    resamples: int,
    confidence: float,
    groups: NDArray[np.int64] | None = None,
) -> Interval:
    """The mean difference with its interval over seeds and groups of test images, or over seeds and single images.

    All seeds are scored on the same images, so seeds and groups cross. The mean's variance is that of two crossed
    random factors: the variance between seeds plus that between groups, less what both count twice (Cameron, Gelbach &
    Miller 2011), and never below the larger of the two. The interval is the t interval with Satterthwaite's (1946)
    degrees of freedom. Thus it also holds for few seeds and few groups, where resampled ones give too narrow intervals;
    ``benchmarks/coverage.py`` measures how often it does.

    With one seed it is ``accuracy.interval``, because nothing is known about other seeds. Where all entries are equal,
    it is the estimate itself.

    Args:
        differences: (seeds, images), the difference of two classifiers' correctness: -1, 0 or 1.
        resamples: number of resamples for one seed.
        confidence: the interval's confidence, 0..1.
        groups: (images,) group numbers, from 0 on, two or more; None: each image is a group.
    """
    from scipy.stats import t

    seeds, images = differences.shape
    estimate = float(differences.mean())
    if seeds == 1:
        return interval(differences[0], resamples, confidence, seed_for("bootstrap"), groups, paired=True)
    if not (differences != differences[0, 0]).any() or images == 1:
        return Interval(estimate, estimate, estimate)
    error, degrees = crossed_error(differences, groups)
    half = error * float(t.ppf((1 + confidence) / 2, degrees))
    return Interval(estimate, max(estimate - half, -1.0), min(estimate + half, 1.0))


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


def max_t(by_test: NDArray[np.float64]) -> list[float]:
    """Adjusted p of every test of a family, by the largest statistic under the same sign flips.

    Tests of a family share seeds, and thus their chance: flips of a seed's sign turn all of its differences. A test's
    statistic is the size of its sum over the root of its sum of squares, which rises with that of a t test. Its
    adjusted p is how often the largest statistic of those that are no more significant reaches it (step-down maxT;
    Westfall & Young 1993, algorithm 2.8). So the more the tests agree, the less their number costs, while Holm's
    adjustment grows with the number alone.

    Args:
        by_test: (tests, seeds) differences; 0 where a test lacks a seed.
    """
    tests, seeds = by_test.shape
    if not tests:
        return []
    sizes = np.sqrt((by_test**2).sum(1))
    scaled = by_test / np.where(sizes > 0, sizes, 1.0)[:, None]
    observed = abs(scaled.sum(1))
    order = np.argsort(-observed, kind="stable")
    if exact := seeds <= _MAX_T_SEEDS:
        flips = np.array(list(itertools.product((1.0, -1.0), repeat=seeds)))
    else:
        flips = np.random.default_rng(seed_for("max_t")).choice((-1.0, 1.0), (_MAX_T_FLIPS, seeds))
    reached = np.zeros(tests)
    for part in np.array_split(flips, max(1, flips.shape[0] * tests // 2**22)):
        statistics = abs(part @ scaled[order].T)
        # The largest of each test and of all that come after it in the order.
        largest = np.maximum.accumulate(statistics[:, ::-1], axis=1)[:, ::-1]
        # Equal sums must count as equal, whatever the order of addition.
        reached += (largest >= observed[order] - 1e-9).sum(0)
    shares = reached / len(flips) if exact else (1 + reached) / (1 + len(flips))
    adjusted = np.empty(tests)
    adjusted[order] = np.maximum.accumulate(shares)
    return [float(p) for p in adjusted]


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

"""Intervals, tests and corrections against cases whose answer is known."""

import numpy as np
import pytest
from scipy import stats

from dreamset.metrics import statistics


def covered(noise: float, runs: int = 300, truth: float = 0.05) -> float:
    """Share of 90 % intervals that hold the true mean, where seeds, images and their meetings vary."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(runs):
        differences = truth + rng.normal(0, 0.1, (12, 1)) + rng.normal(0, 0.3, (1, 80))
        found = statistics.crossed_bca(differences + rng.normal(0, noise, (12, 80)), 300, 0.9)
        held += found.low <= truth <= found.high
    return held / runs


def test_the_interval_covers_as_often_as_it_says() -> None:
    # Three Monte-Carlo errors; that twelve seeds are few takes about one point.
    assert covered(noise=0.05) == pytest.approx(0.9, abs=0.01 + 3 * (0.9 * 0.1 / 300) ** 0.5)


def test_the_interval_errs_on_the_wide_side_where_single_entries_vary_most() -> None:
    assert covered(noise=3.0) >= 0.9


def test_pairing_finds_a_small_gain_that_every_seed_has() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random((1, 500))
    base = (rng.random((5, 500)) > 0.2 + 0.3 * hard).astype(float)
    better = np.where(rng.random((5, 500)) < 0.08, 1.0, base)
    found = statistics.crossed_bca(better - base, 1000, 0.95)
    assert 0 < found.low < found.estimate < found.high
    assert found.estimate == pytest.approx((better - base).mean())


def test_differences_between_seeds_widen_the_interval() -> None:
    same = np.tile([[1.0] * 10 + [0.0] * 90], (5, 1))
    varied = np.stack([np.roll([1.0] * n + [0.0] * (100 - n), n) for n in (0, 2, 8, 15, 25)])
    found = [statistics.crossed_bca(d, 1000, 0.95) for d in (same, varied)]
    assert found[1].high - found[1].low > found[0].high - found[0].low


def test_one_seed_is_the_interval_over_images() -> None:
    values = np.random.default_rng(3).choice([-1.0, 0.0, 1.0], (1, 300), p=[0.1, 0.7, 0.2])
    found = statistics.crossed_bca(values, 2000, 0.95)
    theirs = stats.bootstrap(
        (values[0],), np.mean, n_resamples=4000, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx(theirs, abs=0.012)


def test_what_does_not_vary_has_no_width() -> None:
    for shape in ((1, 1), (1, 50), (4, 50)):
        assert statistics.crossed_bca(np.full(shape, 0.0), 100, 0.95) == statistics.Interval(0.0, 0.0, 0.0)
    # All seeds alike: what varies is the images.
    alike = np.tile([[1.0] * 10 + [0.0] * 90], (5, 1))
    found = statistics.crossed_bca(alike, 1000, 0.95)
    assert 0 < found.low < 0.1 < found.high < 0.25


@pytest.mark.parametrize("seeds", [1, 5, 6, 10])
def test_all_seeds_on_one_side_have_the_least_p(seeds: int) -> None:
    for sign in (1, -1):
        p = statistics.sign_flip([sign * 0.01 * (i + 1) for i in range(seeds)])
        assert p == 2 / 2**seeds
        assert statistics.indicative(seeds) == (p > 0.05)


def test_sign_flip_agrees_with_scipys_permutations() -> None:
    values = np.random.default_rng(1).normal(0.4, 1, 9)
    theirs = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert statistics.sign_flip(values.tolist()) == pytest.approx(theirs.pvalue)


def test_many_seeds_are_flipped_at_random() -> None:
    values = np.random.default_rng(2).normal(0.3, 1, 24)
    exact_like = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(5)
    )
    assert statistics.sign_flip(values.tolist()) == pytest.approx(exact_like.pvalue, abs=0.015)
    assert statistics.sign_flip([1.0] * 30) == 1 / 100_001


def test_no_difference_is_no_evidence() -> None:
    assert statistics.sign_flip([0.0, 0.0, 0.0]) == 1
    assert statistics.sign_flip([0.1, -0.1]) == 1
    # Sums that are equal but for the order of adding count as equal.
    assert statistics.sign_flip([0.1, 0.2, 0.3, -0.3, -0.2, -0.1]) == 1


def test_holms_textbook_example() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]
    assert statistics.holm([]) == []
    # Two of six were made: the other four count as not significant.
    assert statistics.holm([0.02, 0.01], family=6) == pytest.approx([0.1, 0.06])


def test_spearman_is_scipys_and_resamples_seeds() -> None:
    rng = np.random.default_rng(4)
    seeds = np.repeat(np.arange(8), 6)
    x = rng.normal(size=48).round(1)  # with ties
    y = -x + rng.normal(0, 0.5, 48)
    found = statistics.spearman(x.tolist(), y.tolist(), seeds.tolist(), 500, 0.95)
    assert found is not None
    assert found.estimate == pytest.approx(stats.spearmanr(x, y).statistic)
    assert -1 <= found.low < found.estimate < found.high < 0
    assert statistics.spearman([1.0] * 48, y.tolist(), seeds.tolist(), 100, 0.95) is None
    assert statistics.spearman([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0, 0, 1], 100, 0.95) is None

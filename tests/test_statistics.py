"""Intervals, tests and corrections against cases whose answer is known."""

import numpy as np
import pytest
from scipy import stats

from dreamset.core.seeds import seed_for
from dreamset.metrics import accuracy, statistics


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    # Where seeds vary most, where groups do, and where all do: few of either make resampled intervals too narrow.
    for seeds, groups, sd in ((6, 25, (0.1, 0, 0.1)), (10, 5, (0.01, 0.1, 0.1)), (6, 5, (0.1, 0.1, 0.1))):
        members = np.arange(50) % groups
        held = 0
        for _ in range(400):
            differences = 0.05 + rng.normal(0, sd[0], (seeds, 1)) + rng.normal(0, sd[1], groups)[members]
            found = statistics.crossed(differences + rng.normal(0, sd[2], (seeds, 50)), 300, 0.9, members)
            held += found.low <= 0.05 <= found.high
        # Three Monte-Carlo errors of 4.5 points.
        assert 0.855 <= held / 400 <= 0.965


def test_the_interval_is_that_of_the_factor_that_varies_alone() -> None:
    rng = np.random.default_rng(1)
    by_seed, by_group = rng.normal(0.1, 0.1, 7), rng.normal(0.1, 0.1, 5)
    alike = np.tile(by_seed[:, None], (1, 20))
    found = statistics.crossed(alike, 100, 0.95)
    assert (found.low, found.high) == pytest.approx(
        stats.t.interval(0.95, 6, by_seed.mean(), stats.sem(by_seed)), abs=1e-9
    )
    grouped = np.tile(np.repeat(by_group, 4), (6, 1))
    found = statistics.crossed(grouped, 100, 0.95, np.repeat(np.arange(5), 4))
    assert (found.low, found.high) == pytest.approx(
        stats.t.interval(0.95, 4, by_group.mean(), stats.sem(by_group)), abs=1e-9
    )
    # As single images, the same differences would seem surer than they are.
    single = statistics.crossed(grouped, 100, 0.95)
    assert single.high - single.low < 0.6 * (found.high - found.low)


def test_pairing_finds_a_small_gain_that_every_seed_has() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random((1, 500))
    base = (rng.random((5, 500)) > 0.2 + 0.3 * hard).astype(float)
    better = np.where(rng.random((5, 500)) < 0.08, 1.0, base)
    found = statistics.crossed(better - base, 1000, 0.95)
    assert 0 < found.low < found.estimate < found.high
    assert found.estimate == pytest.approx((better - base).mean())


def test_differences_between_seeds_widen_the_interval() -> None:
    same = np.tile([[1.0] * 10 + [0.0] * 90], (5, 1))
    varied = np.stack([np.roll([1.0] * n + [0.0] * (100 - n), n) for n in (0, 2, 8, 15, 25)])
    found = [statistics.crossed(d, 1000, 0.95) for d in (same, varied)]
    assert found[1].high - found[1].low > found[0].high - found[0].low


@pytest.mark.parametrize("groups", [None, np.arange(300) % 30, np.arange(300) % 5])
def test_one_seed_is_the_interval_over_images_or_groups(groups: np.ndarray | None) -> None:
    values = np.random.default_rng(3).choice([-1.0, 0.0, 1.0], (1, 300), p=[0.1, 0.7, 0.2])
    found = statistics.crossed(values, 2000, 0.95, groups)
    assert found == accuracy.interval(values[0], 2000, 0.95, seed_for("bootstrap"), groups, paired=True)


def test_what_does_not_vary_has_no_width() -> None:
    for shape in ((2, 1), (4, 50)):
        assert statistics.crossed(np.full(shape, 0.0), 100, 0.95) == statistics.Interval(0.0, 0.0, 0.0)
    # All seeds alike: what varies is the images.
    alike = np.tile([[1.0] * 10 + [0.0] * 90], (5, 1))
    found = statistics.crossed(alike, 1000, 0.95)
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


def test_the_largest_statistic_is_adjusted_as_one_test_where_all_agree() -> None:
    by_seed = np.random.default_rng(5).normal(0.02, 0.01, 10)
    alone = statistics.sign_flip(by_seed.tolist())
    assert statistics.max_t(by_seed[None]) == [alone]
    # Holm would multiply by 200; copies of one test are one test.
    assert statistics.max_t(np.tile(by_seed, (200, 1)) * np.linspace(0.5, 2, 200)[:, None]) == [alone] * 200
    # A test that lacks seeds, and one without any difference.
    lacking = np.stack([by_seed, np.where(np.arange(10) < 6, by_seed, 0.0), np.zeros(10)])
    assert statistics.max_t(lacking)[0] == pytest.approx(alone, abs=2 / 2**10)
    assert statistics.max_t(lacking)[1:] == [pytest.approx(2 / 2**6, abs=2 / 2**10), 1.0]
    assert statistics.max_t(np.empty((0, 0))) == []


@pytest.mark.parametrize("seeds", [8, 16])
def test_the_largest_statistic_errs_as_often_as_it_says(seeds: int) -> None:
    rng, wrong, found = np.random.default_rng(6), 0, 0
    for _ in range(100):
        # Twenty tests that share much of their chance; in half of the families one is true.
        by_test = rng.normal(0, 0.01, (1, seeds)) + rng.normal(0, 0.005, (20, seeds))
        wrong += min(statistics.max_t(by_test)) <= 0.05
        by_test[7] += 0.03
        adjusted = statistics.max_t(by_test)
        found += adjusted[7] <= 0.05
        assert all(0 < p <= 1 for p in adjusted)
    assert wrong <= 12  # three Monte-Carlo errors above 5
    assert found >= 90

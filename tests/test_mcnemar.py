"""McNemar's exact test, what few images can show, and intervals over groups, against cases that are known."""

from __future__ import annotations

from itertools import product
from math import comb
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dreamset.metrics.accuracy import auroc, balanced_accuracy, bootstrap, confusion, grouped, interval, macro_f1
from dreamset.metrics.accuracy import majority as majority_accuracy
from dreamset.metrics.mcnemar import (
    detectable_gain,
    fewest_discordant,
    mcnemar,
    power,
    reach,
    score_interval,
    smallest_gain,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

Z = 1.959963984540054  # normal quantile of 97.5 %
RNG = np.random.default_rng(0)


def test_the_p_value_is_that_of_a_fair_coin() -> None:
    found = mcnemar(np.array([1.0] * 8 + [-1.0] * 2 + [0.0] * 30))
    assert (found.gained, found.lost) == (8, 2)
    # Both tails of ten throws: 0, 1, 2 and 8, 9, 10 heads.
    assert found.p == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert mcnemar(np.array([1.0] * 6)).p == pytest.approx(2 / 64)
    assert mcnemar(np.array([1.0, -1.0, 0.0])).p == 1
    assert mcnemar(np.zeros(5)).p == 1


def test_six_discordant_images_are_the_fewest_at_95_percent() -> None:
    assert [fewest_discordant(level) for level in (0.5, 0.9, 0.95, 0.99)] == [2, 5, 6, 8]
    for count in (5, 6):
        assert (mcnemar(np.ones(count)).p <= 0.05) == (count >= fewest_discordant(0.95))
    assert smallest_gain(48, 0.95) == 6 / 48
    assert smallest_gain(6, 0.95) == 1
    assert smallest_gain(5, 0.95) is None


def test_power_is_the_sum_over_every_outcome() -> None:
    """All ways in which seven images can come out: better, worse or equal, each by itself."""
    gain, discordant = 0.5, 0.8
    better, worse = (discordant + gain) / 2, (discordant - gain) / 2
    expected = 0.0
    for outcome in product((1, -1, 0), repeat=7):
        up, down = outcome.count(1), outcome.count(-1)
        tail = sum(comb(up + down, k) for k in range(down + 1)) / 2 ** (up + down)
        if up > down and 2 * tail <= 0.05:
            expected += better**up * worse**down * (1 - discordant) ** outcome.count(0)
    assert power(gain, 7, 0.95, discordant) == pytest.approx(expected, abs=1e-5)


def test_the_detectable_gain_is_detected_as_often_as_it_says() -> None:
    images, discordant = 200, 0.2
    gain = detectable_gain(images, 0.95, discordant)
    assert gain is not None
    chances = [(discordant + gain) / 2, (discordant - gain) / 2, 1 - discordant]
    drawn = RNG.choice([1.0, -1.0, 0.0], (400, images), p=chances)
    found = np.mean([mcnemar(row).p <= 0.05 and row.sum() > 0 for row in drawn])
    assert found == pytest.approx(0.8, abs=0.06)
    # Many images follow the usual approximation (Connor 1987).
    large = detectable_gain(5000, 0.95, discordant)
    assert large == pytest.approx((1.96 + 0.84) * np.sqrt(discordant / 5000), rel=0.05)


def test_too_few_images_are_warned_of() -> None:
    assert "no difference can be shown" in reach(5, 0.95)["warning"]
    assert (reach(5, 0.95)["smallest_gain"], reach(5, 0.95)["detectable_gain"]) == (None, None)
    assert "no gain is found" in reach(12, 0.95)["warning"]
    assert reach(100, 0.95)["warning"] is None
    assert "a true gain of 12.8 points" in reach(100, 0.95)["words"]


def test_averages_over_classes_agree_with_scikit_learn() -> None:
    from sklearn import metrics

    logits = RNG.normal(0, 1, (60, 4)).astype(np.float32)
    labels = np.array([0] * 30 + [1] * 20 + [2] * 6 + [3] * 4)
    logits[np.arange(60), labels] += 1
    logits[:7] = 0  # ties
    chances = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(1, keepdims=True)
    guess = logits.argmax(1)
    matrix = confusion(guess, labels, 4)
    assert balanced_accuracy(matrix) == pytest.approx(metrics.balanced_accuracy_score(labels, guess))
    assert macro_f1(matrix) == pytest.approx(metrics.f1_score(labels, guess, average="macro"))
    expected = metrics.roc_auc_score(labels, chances, multi_class="ovr", average="macro")
    assert auroc(logits, labels) == pytest.approx(expected)
    # A class that has no images and is predicted all the same.
    few = confusion(np.array([0, 2, 1]), np.array([0, 0, 1]), 4)
    assert balanced_accuracy(few) == pytest.approx(metrics.balanced_accuracy_score([0, 0, 1], [0, 2, 1]))
    assert macro_f1(few) == pytest.approx(metrics.f1_score([0, 0, 1], [0, 2, 1], average="macro"))
    assert auroc(logits[:50], labels[:50]) is None


def test_the_majority_is_that_of_the_training_images() -> None:
    learned = np.array([0] * 2 + [1] * 5 + [2] * 3)
    assert majority_accuracy(learned, np.array([0, 1, 1, 2])) == 0.5
    # Equally many of all: the expectation of a guess.
    assert majority_accuracy(np.array([0, 1, 2]), np.array([0, 0, 0, 1])) == pytest.approx(1 / 3)


def test_groups_count_where_they_are_larger_than_an_image() -> None:
    assert grouped(["a", "b", "c"]) is None
    assert grouped(["a", "a", "a"]) is None
    numbers = grouped(["b", "a", "b", "c"])
    assert numbers is not None
    assert numbers.tolist() == [0, 1, 0, 2]
    values = (RNG.random(50) < 0.7).astype(float)
    assert bootstrap(values, 300, 0.95, 3) == bootstrap(values, 300, 0.95, 3, np.arange(50))


@pytest.mark.parametrize(("groups", "each"), [(5, 60), (40, 20)])
def test_an_interval_over_groups_covers_where_one_over_images_does_not(groups: int, each: int) -> None:
    """Writers differ: each has a rate of its own around 0.8, and the interval is about other writers."""
    rng = np.random.default_rng(1)
    numbers = np.repeat(np.arange(groups), each)
    hits = np.zeros(2)
    for trial in range(150):
        rates = rng.beta(4, 1, groups)
        values = (rng.random(groups * each) < rates[numbers]).astype(float)
        for kind, own in enumerate((numbers, None)):
            found = interval(values, 200, 0.9, trial, own)
            hits[kind] += found.low <= 0.8 <= found.high
    assert hits[0] / 150 > 0.82
    assert hits[1] / 150 < 0.75


@pytest.mark.parametrize("groups", [None, np.repeat(np.arange(4), 3), np.repeat(np.arange(24), 2)])
def test_all_right_is_no_interval_without_width(groups: NDArray[np.int64] | None) -> None:
    count = 12 if groups is None else len(groups)
    wilson = count / (count + Z**2)  # of all right; one minus it of all wrong
    right = interval(np.ones(count), 100, 0.95, 0, groups)
    assert (right.low, right.estimate, right.high) == (pytest.approx(wilson), 1, 1)
    wrong = interval(np.zeros(count), 100, 0.95, 0, groups)
    assert (wrong.low, wrong.estimate, wrong.high) == (0, 0, pytest.approx(1 - wilson))
    equal = interval(np.zeros(count), 100, 0.95, 0, groups, paired=True)
    assert (-equal.low, equal.estimate, equal.high) == (pytest.approx(equal.high), 0, pytest.approx(1 - wilson))


def test_an_interval_over_groups_may_leave_what_was_seen() -> None:
    """Four writers of whom none got worse: another one may."""
    values = np.array([1.0] * 6 + [0.0] * 42)
    found = interval(values, 100, 0.95, 0, np.repeat(np.arange(4), 12), paired=True)
    assert found.low < 0 < found.estimate < found.high <= 1
    # One of two writers all right, the other all wrong: no accuracy lies beyond 0 and 1.
    found = interval(np.repeat([0.0, 1.0], 6), 100, 0.95, 0, np.repeat(np.arange(2), 6))
    assert (found.low, found.high) == (0, 1)


def test_few_discordant_images_leave_both_signs_open() -> None:
    for gained, lost in ((0, 0), (0, 1), (3, 0)):
        values = np.array([1.0] * gained + [-1.0] * lost + [0.0] * (48 - gained - lost))
        found = interval(values, 2000, 0.95, 0, paired=True)
        assert found.low < 0 < found.high
        assert found.high > 0.05


def test_tango_s_interval_is_the_published_one() -> None:
    # Tango 1998, of 44 crossed pairs with one discordant; and the closed form of none.
    assert score_interval(0, 1, 44, 0.95) == pytest.approx((-0.118, 0.059), abs=5e-4)
    assert score_interval(0, 0, 48, 0.95) == pytest.approx((-(Z**2) / (48 + Z**2), Z**2 / (48 + Z**2)))
    assert score_interval(6, 0, 6, 0.95)[1] == 1
    for gained, lost, images in ((0, 1, 44), (5, 2, 30), (6, 0, 6), (40, 3, 640)):
        low, high = score_interval(gained, lost, images, 0.9)
        assert score_interval(lost, gained, images, 0.9) == pytest.approx((-high, -low))


def test_tango_s_ends_are_where_the_most_likely_table_just_passes() -> None:
    """The constrained estimate by search instead of by its formula."""
    from scipy.optimize import minimize_scalar

    gained, lost, images = 9, 4, 60
    for end in score_interval(gained, lost, images, 0.95):

        def unlikely(share: float, end: float = end) -> float:
            rest = images - gained - lost
            chances = share + end, share, 1 - 2 * share - end
            return -float(np.dot((gained, lost, rest), np.log(chances)))

        found = minimize_scalar(unlikely, (max(0, -end), (1 - end) / 2), bounds=(max(0, -end), (1 - end) / 2))
        variance = images * (2 * found.x + end * (1 - end))
        assert abs(gained - lost - images * end) / np.sqrt(variance) == pytest.approx(Z, abs=1e-3)


@pytest.mark.parametrize(("gain", "discordant"), [(0.0, 0.2), (0.1, 0.2), (0.05, 0.05), (0.02, 0.04)])
def test_tango_s_interval_holds_the_truth_as_often_as_it_says(gain: float, discordant: float) -> None:
    from scipy.stats import multinomial

    images, covered = 30, 0.0
    chances = [(discordant + gain) / 2, (discordant - gain) / 2, 1 - discordant]
    for gained in range(images + 1):
        for lost in range(images + 1 - gained):
            chance = float(multinomial.pmf([gained, lost, images - gained - lost], images, chances))
            if chance > 1e-6:
                low, high = score_interval(gained, lost, images, 0.95)
                covered += chance * (low <= gain <= high)
    assert covered > 0.94

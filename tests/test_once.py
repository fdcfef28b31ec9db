"""What several parts of the program decide in one place: learning rates, curves, sums, names that belong together."""

import math

import pytest

from dreamset.core.arithmetic import thinned, total, warm_up_cosine
from dreamset.core.groups import representatives
from dreamset.metrics.accuracy import wilson


def test_the_rate_rises_and_falls() -> None:
    rates = [warm_up_cosine(step, 10, 4, 0.3) for step in range(11)]
    assert rates[:5] == [0.3 * step / 4 for step in range(4)] + [0.3]
    assert rates[4:] == sorted(rates[4:], reverse=True) and rates[10] == pytest.approx(0)
    # One step of the rise lies before the first step.
    assert [warm_up_cosine(step, 10, 4, 0.3, lead=1) for step in range(4)] == [
        0.3 * (step + 1) / 5 for step in range(4)
    ]
    assert warm_up_cosine(7, 10, 4, 0.3, lead=1) == 0.3 * 0.5 * (1 + math.cos(math.pi * 0.5))
    assert warm_up_cosine(0, 1, 0, 0.3) == 0.3


def test_a_curve_is_thinned_to_means() -> None:
    assert thinned([1.0, 2.0, 4.0, 8.0, 16.0], 2) == [
        {"step": 2, "loss": 1.5},
        {"step": 4, "loss": 6.0},
        {"step": 5, "loss": 16.0},
    ]


def test_a_sum_with_an_unknown_part_is_unknown() -> None:
    assert total([1.5, 2]) == 3.5
    assert total([0.0]) == 0
    assert total([1.5, None]) is None
    assert total([]) is None


def test_pairs_join_what_belongs_together() -> None:
    joined = representatives([("a", "b"), ("c", "d"), ("e", "e"), ("b", "c")])
    assert joined == {"a": "d", "b": "d", "c": "d", "d": "d", "e": "e"}


def test_wilsons_interval() -> None:
    assert wilson(9, 10, 0.95) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert wilson(0, 10, 0.95)[0] == 0

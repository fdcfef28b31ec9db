"""Shares of variance on functions whose shares are known."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from benchmarks import shares
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

import studied
from dreamset.study.importance import ENOUGH, ENOUGH_FOR_PAIRS, forest_shares, importance, unit

SCHEDULERS = ("ddim", "pndm", "unipc")


def space(**spans: BaseDistribution) -> dict[str, Any]:
    return {knob: json.loads(distribution_to_json(span)) for knob, span in spans.items()}


def grid(columns: int, side: int) -> np.ndarray:
    """(side ** columns, columns): the centres of a grid of the unit cube."""
    centres = (np.arange(side) + 0.5) / side
    return np.stack(np.meshgrid(*[centres] * columns, indexing="ij"), -1).reshape(-1, columns)


def test_shares_of_a_product_are_those_of_the_integrals() -> None:
    # Of x y over the unit square: variance 7/144, each alone 3/144, together beyond that 1/144.
    x = grid(2, 9)
    main, pairs, r2 = forest_shares(x, x[:, 0] * x[:, 1])
    assert main[0] == pytest.approx(3 / 7, abs=0.05)
    assert main[1] == pytest.approx(3 / 7, abs=0.05)
    assert pairs[0, 1] == pytest.approx(1 / 7, abs=0.03)
    assert main[0] + main[1] + pairs[0, 1] == pytest.approx(1)
    assert r2 > 0.9


def test_a_sum_has_no_interaction_and_a_knob_that_does_nothing_no_share() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(60, 3))
    main, pairs, r2 = forest_shares(x, x[:, 0] + x[:, 1] + rng.normal(0, 0.02, 60))
    assert max(pairs.values()) < 0.03
    assert main[2] < 0.02
    assert main[0] > 0.3 and main[1] > 0.3
    assert r2 > 0.5


def test_what_only_two_knobs_together_do_is_seen() -> None:
    x = np.random.default_rng(1).uniform(size=(110, 3))
    main, pairs, _ = forest_shares(x, (x[:, 0] - 0.5) * (x[:, 2] - 0.5))
    assert pairs[0, 2] > 0.5
    assert pairs[0, 2] > 5 * max(pairs[0, 1], pairs[1, 2])
    assert pairs[0, 2] > max(main.values())


def test_values_that_do_not_vary_have_no_shares() -> None:
    main, pairs, r2 = forest_shares(grid(2, 5), np.ones(25))
    assert set(main.values()) == {0.0} == set(pairs.values())
    assert r2 == 0


def test_noise_is_told_by_the_left_out_trials() -> None:
    rng = np.random.default_rng(2)
    assert forest_shares(rng.uniform(size=(24, 3)), rng.normal(size=24))[2] <= 0.1


def test_places_in_a_range() -> None:
    spans = space(
        steps=IntDistribution(5, 30),
        lr=FloatDistribution(1e-4, 1e-2, log=True),
        scheduler=CategoricalDistribution(SCHEDULERS),
        epoch=FloatDistribution(0.1, 1.0, step=0.1),
        alone=CategoricalDistribution(("ddim",)),
    )
    # A whole number fills its step: 26 of them from 5 to 30, and ten places of a training.
    assert unit(spans["steps"], [5, 30]) == pytest.approx([0.5 / 26, 25.5 / 26])
    assert unit(spans["epoch"], [0.1, 1.0]) == pytest.approx([0.05, 0.95])
    assert unit(spans["lr"], [1e-4, 1e-3, 1e-2]) == pytest.approx([0, 0.5, 1])
    assert unit(spans["scheduler"], ["pndm", "ddim"]) == pytest.approx([1 / 2, 1 / 6])
    assert unit(spans["alone"], ["ddim"]) == pytest.approx([0.5])


def trials(count: int, **more: Any) -> list[dict[str, Any]]:
    """CAS by guidance and scheduler together, and steps that do nothing."""
    rng = np.random.default_rng(3)
    made = []
    for number in range(count):
        guidance, scheduler = float(rng.uniform(1, 7.5)), str(rng.choice(SCHEDULERS))
        # One scheduler wants high guidance, the others low.
        cas = 0.5 + 0.05 * (guidance - 4.25) * (1 if scheduler == "pndm" else -1)
        params = {"guidance": guidance, "steps": int(rng.integers(5, 31)), "scheduler": scheduler}
        made.append(studied.trial(number, params=params, values=[cas, 1.0]) | more)
    return made


SPACE = space(
    guidance=FloatDistribution(1.0, 7.5), steps=IntDistribution(5, 30), scheduler=CategoricalDistribution(SCHEDULERS)
)


def test_the_record_of_a_study_with_a_list_of_schedulers() -> None:
    made = trials(ENOUGH_FOR_PAIRS)
    found = importance(made, SPACE)
    assert found["trials"] == ENOUGH_FOR_PAIRS
    assert set(found["main"]) == set(SPACE)
    assert found["main"]["steps"] < 0.15
    assert found["pairs"][0]["knobs"] == ["guidance", "scheduler"]
    assert found["pairs"][0]["share"] > 2 * found["pairs"][1]["share"]
    assert [pair["share"] for pair in found["pairs"]] == sorted((p["share"] for p in found["pairs"]), reverse=True)
    assert 0 < found["r2"] <= 1
    json.dumps(found, allow_nan=False)
    # From one trial fewer a pair has no share, since it would be too low.
    fewer = importance(made[1:], SPACE)
    assert fewer["pairs"] == [] and set(fewer["main"]) == set(SPACE)


def test_the_share_of_a_pair_is_right_from_so_many_trials_on_and_not_from_twenty() -> None:
    error = {trials: shares.measure(trials, 0.42, range(2))["error"] for trials in (ENOUGH, ENOUGH_FOR_PAIRS)}
    assert error[ENOUGH_FOR_PAIRS] < 0.1 < 0.3 < error[ENOUGH]


def test_only_finished_trials_within_the_ranges_count() -> None:
    enough = trials(ENOUGH)
    outside = studied.trial(98, params=enough[0]["params"] | {"guidance": 12.0}, values=[0.9])
    pruned = studied.stopped(99, 9, params=enough[1]["params"])
    assert importance([*enough, outside, pruned], SPACE) == importance(enough, SPACE)
    assert importance([*enough[1:], outside, pruned], SPACE) == {"too_few": ENOUGH - 1, "enough": ENOUGH}


def test_one_knob_has_no_pairs_and_nothing_is_said_on_the_way(capfd: pytest.CaptureFixture[str]) -> None:
    alone = [trial | {"params": {"guidance": trial["params"]["guidance"]}} for trial in trials(ENOUGH)]
    found = importance(alone, {"guidance": SPACE["guidance"]})
    assert found["pairs"] == []
    assert found["main"]["guidance"] == pytest.approx(1, abs=1e-6)
    level = [trial | {"values": [0.5]} for trial in alone]
    assert importance(level, {"guidance": SPACE["guidance"]})["main"] == {"guidance": 0.0}
    assert "created in memory" not in capfd.readouterr().err


def test_what_a_study_says_is_read_without_heavy_libraries() -> None:
    heavy = ("torch", "optuna", "sklearn", "scipy", "pandas")
    read = "dreamset.study.plots, dreamset.study.sentences"
    code = f"import sys, {read}; sys.exit(any(n.split('.')[0] in {heavy} for n in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""What a study chooses: the best trial, unless the recipe's own values cannot be told from it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dreamset.classifiers.selection import standard_error
from dreamset.study.choice import Comparison, choose, compare, confirm, finalists
from studied import right, stopped, trial

OWN = {"guidance": 2.0, "steps": 20}


def placed(number: int, cas: float, *seconds: float, images: int = 1000, **more: Any) -> dict[str, Any]:
    """A finished trial; trial 0 has the values of the recipe's row."""
    params = OWN | {"guidance": 2.0 + number}
    return trial(number, **({"params": params, "values": [cas, *seconds], "right": right(cas, images)} | more))


def chosen(*trials: dict[str, Any], objectives: str = "cas") -> dict[str, Any]:
    found = choose(trials, OWN, objectives)
    assert found is not None
    return found


def test_two_trials_are_compared_by_the_images_that_one_alone_gets_right() -> None:
    found = compare("1110010", "1001010")
    assert (found.gained, found.lost, found.gain) == (2, 1, pytest.approx(1 / 7))
    assert found.standard_error == pytest.approx(math.sqrt((4 / 9 - (1 / 9) ** 2) / 9))
    # What both get right or wrong tells nothing, and trials that agree are not told apart.
    assert compare("1100", "1100") == Comparison(0, 0, 0.0, pytest.approx(math.sqrt(1 / 6 / 6)))


def test_the_standard_error_is_that_of_an_accuracy_where_trials_share_nothing() -> None:
    # Of two trials whose errors are independent the variance of the difference is the sum of the two.
    rng = np.random.default_rng(0)
    one, other = ("".join(map(str, (rng.random(4000) < share).astype(int))) for share in (0.6, 0.6))
    apart = math.sqrt(2) * standard_error(0.6, 4000)
    assert compare(one, other).standard_error == pytest.approx(apart, rel=0.02)
    # If one gets right what the other does, and little more, far less is enough.
    assert compare("1" * 2440 + "0" * 1560, "1" * 2400 + "0" * 1600).standard_error < apart / 4


def test_one_image_of_forty_does_not_replace_the_recipe_s_own_values() -> None:
    # As in the default run: 25 right against 24.
    own, lucky = placed(0, 0.6, images=40), placed(7, 0.625, images=40)
    found = chosen(own, placed(3, 0.5, images=40), lucky)
    assert (found["chosen"], found["highest"], found["own"]) == (0, 7, 0)
    assert (found["gained"], found["lost"], found["gain"]) == (1, 0, 0.025)
    assert found["gain"] < found["standard_error"]
    assert found["reason"] == "trial 7 is within one standard error of the recipe’s own values, which are kept"
    # Nor do five more if as many were lost.
    crossed = placed(7, 0.625, right="0" * 5 + "1" * 25 + "0" * 10)
    assert chosen(own, crossed)["chosen"] == 0


def test_a_gain_above_one_standard_error_replaces_them() -> None:
    found = chosen(placed(0, 0.6), placed(1, 0.62), placed(2, 0.63))
    assert (found["chosen"], found["highest"], found["gained"]) == (2, 2, 30)
    assert found["reason"] == "it is better than the recipe’s own values by more than one standard error"
    assert chosen(placed(0, 0.6), placed(1, 0.5))["reason"].startswith("no trial is better")


def test_only_finished_trials_within_the_limits_compete() -> None:
    unfinished = stopped(1, 9, rungs={"3": 0.9, "9": 0.99})
    infeasible = placed(2, 0.95, feasible=False)
    assert chosen(placed(0, 0.5), unfinished, infeasible)["highest"] == 0
    assert choose([unfinished, infeasible], OWN, "cas") is None
    # Own values that are beyond a limit, failed or cannot be had are no measure, and that is said.
    for own, values, why in (
        (placed(0, 0.5, feasible=False), OWN, "The recipe’s own values are beyond a limit"),
        (placed(0, 0.5, state="FAIL", values=None), OWN, "The trial of the recipe’s own values failed"),
        (placed(0, 0.1), None, "No trial can have the recipe’s own values"),
    ):
        found = choose([own, placed(1, 0.5), placed(2, 0.501), placed(3, 0.501)], values, "cas")
        assert found is not None and found["chosen"] == 2  # the first of equal ones
        assert found["reason"] == f"{why}, so no trial could be compared with them, and this may be luck"
        assert found["own"] is found["gain"] is None


def test_of_two_objectives_the_quickest_of_those_as_good_as_the_best_is_chosen() -> None:
    def pick(*pairs: tuple[float, float], images: int = 100) -> tuple[int, str]:
        trials = [placed(number, cas, seconds, images=images) for number, (cas, seconds) in enumerate(pairs)]
        found = chosen(*trials, objectives="cas_and_seconds")
        return found["chosen"], found["reason"]

    pairs = [(0.80, 0.4), (0.79, 0.2), (0.50, 0.1), (0.79, 0.3)]
    # On 100 images 0.79 cannot be told from 0.80, and 0.50 can.
    assert pick(*pairs) == (
        1,
        "no trial is more than one standard error better than the recipe’s own values, and this one is quicker",
    )
    assert pick(*pairs, images=10_000)[0] == 0
    # Own values that are as good and as quick within a tenth are kept: seconds vary by some percent, too.
    number, reason = pick((0.79, 0.21), (0.80, 0.2), (0.50, 0.1))
    assert number == 0 and reason.endswith("are kept, and no trial as good is quicker by a tenth")
    assert pick((0.79, 0.23), (0.80, 0.2), (0.79, 0.19))[0] == 1
    number, reason = pick((0.5, 0.3), (0.80, 0.4), (0.79, 0.2))
    assert (number, reason) == (2, "it is within one standard error of trial 1, the best, and quicker")


def test_luck_replaces_the_recipe_s_own_values_less_often_than_the_best_score_would() -> None:
    # Eight trials of equal worth on forty images, as in the default run: nothing is there to be found.
    rng, studies, replaced, highest = np.random.default_rng(1), 400, 0, 0
    for _ in range(studies):
        hard = rng.random(40)  # images differ in difficulty, so that trials share errors
        rights = ["".join(map(str, (hard + rng.normal(0, 0.3, 40) < 0.6).astype(int))) for _ in range(8)]
        found = chosen(*(placed(number, bits.count("1") / 40, right=bits) for number, bits in enumerate(rights)))
        replaced += found["chosen"] != 0
        highest += found["highest"] != 0
    # docs/studies.md has the shares.
    assert replaced / studies == pytest.approx(0.47, abs=0.02) and highest / studies == pytest.approx(0.84, abs=0.02)


def again(**shares: float) -> dict[int, list[str]]:
    """Three repetitions by number of the trial, ``t0`` and so on, each right on a share of 1,000 images."""
    rng = np.random.default_rng(2)
    shifts, hard = rng.normal(0, 0.01, 3), rng.random(1000)
    return {
        int(name[1:]): ["".join("1" if each < share + shift else "0" for each in hard) for shift in shifts]
        for name, share in shares.items()
    }


def test_only_what_would_replace_the_own_values_is_scored_again() -> None:
    trials = [placed(0, 0.6), placed(1, 0.62), placed(2, 0.63), placed(3, 0.64), placed(4, 0.601)]
    assert finalists(trials, chosen(*trials), "cas") == [0, 3, 2]
    kept = [placed(0, 0.6), placed(4, 0.6)]
    assert finalists(kept, chosen(*kept), "cas") == []
    lone = [placed(1, 0.62), placed(2, 0.63), placed(3, 0.61)]
    assert finalists(lone, chosen(*lone), "cas") == [2, 1]
    assert finalists(lone[:1], chosen(*lone[:1]), "cas") == []
    quick = [placed(0, 0.6, 0.4), placed(1, 0.6, 0.2)]
    assert finalists(quick, chosen(*quick, objectives="cas_and_seconds"), "cas_and_seconds") == [0, 1]


def test_fresh_noise_decides_among_the_finalists() -> None:
    trials = [placed(0, 0.6), placed(1, 0.62), placed(2, 0.63)]
    choice = chosen(*trials)
    assert choice["chosen"] == 2
    # It was the luck of one noise.
    found = confirm(choice, again(t0=0.6, t2=0.6, t1=0.59))
    assert (found["chosen"], found["highest"]) == (0, 2)
    assert found["reason"] == (
        "trial 2 is no more than one standard error better in 3 repetitions from fresh noise (+0.0 ± 0.0 points), so "
        "the recipe’s own values are kept"
    )
    assert [row["number"] for row in found["again"]] == [0, 2, 1]
    # It was not; and the second of the study may be the first.
    found = confirm(choice, again(t0=0.6, t2=0.62, t1=0.65))
    assert found["chosen"] == 1
    assert found["reason"].startswith("it is better than the recipe’s own values by more than one standard error, also")
    assert found["again"][2]["gain"] == pytest.approx(0.05, abs=0.02)
    # What is quicker is told with its new figure, whatever the first look said of it.
    pair = placed(0, 0.5, 0.4, images=100), placed(1, 0.7, 0.2, images=100)
    quick, seconds = chosen(*pair, objectives="cas_and_seconds"), {0: 0.4, 1: 0.2}
    for share, words in ((0.6, "no more than one standard error worse"), (0.7, "more than one standard error better")):
        found = confirm(quick, again(t0=0.6, t1=share), seconds)
        assert found["chosen"] == 1
        assert found["reason"].startswith(f"trial 1 is quicker, and {words} than the recipe’s own values in 3 rep")
    assert confirm(quick, again(t0=0.6, t1=0.5), seconds)["chosen"] == 0
    # Where the own values do not compete, the best of the fresh scores is taken.
    lone = chosen(placed(1, 0.62), placed(2, 0.63))
    found = confirm(lone, again(t2=0.5, t1=0.6))
    assert (found["chosen"], found["own"]) == (1, None)
    assert found["reason"].endswith("were not tried; it is the best of the finalists in 3 repetitions from fresh noise")


def test_the_quicker_is_kept_where_fresh_noise_does_not_show_it_worse() -> None:
    choice = chosen(placed(0, 0.6, 0.4), placed(1, 0.6, 0.2), objectives="cas_and_seconds")
    assert choice["reason"].endswith("and this one is quicker")
    seconds = {0: 0.4, 1: 0.2}
    assert confirm(choice, again(t0=0.6, t1=0.599), seconds)["chosen"] == 1
    worse = confirm(choice, again(t0=0.6, t1=0.55), seconds)
    assert worse["chosen"] == 0 and worse["reason"].startswith("trial 1 is quicker, and worse than")
    # What is quicker than the best and slower than the own values has to be better than these.
    slower = chosen(placed(0, 0.5, 0.3), placed(1, 0.8, 1.0), placed(2, 0.79, 0.5), objectives="cas")
    slower |= {"chosen": 2, "reason": "it is within one standard error of trial 1, the best, and quicker"}
    assert confirm(slower, again(t0=0.6, t2=0.6), {0: 0.3, 2: 0.5})["chosen"] == 0
    found = confirm(slower, again(t0=0.6, t2=0.7), {0: 0.3, 2: 0.5})
    assert found["chosen"] == 2 and found["reason"].startswith("trial 2 is more than one standard error better than")


def test_one_image_confirms_nothing() -> None:
    choice = chosen(placed(0, 0.6), placed(1, 0.7))
    assert confirm(choice, {0: ["0", "1", "0"], 1: ["1", "1", "1"]})["chosen"] == 0


def test_fresh_noise_makes_luck_rarer_and_finds_what_is_better() -> None:
    # As above, with the noise of a training that moves all images of a trial together.
    rng, studies, images = np.random.default_rng(3), 200, 160

    def bits(hard: Any, worth: float) -> str:
        shift = worth + rng.normal(0, 0.05)
        return "".join(map(str, (hard + rng.normal(0, 0.3, images) < 0.6 + shift).astype(int)))

    replaced, found = {"before": 0, "after": 0}, {"before": 0, "after": 0}
    for study in range(studies):
        gain = 0.12 if study % 2 else 0.0  # in every other study one of the trials is worth more
        hard = rng.random(images)
        worths = [0.0, gain, *[0.0] * 6]
        rights = [bits(hard, worth) for worth in worths]
        trials = [placed(n, one.count("1") / images, right=one) for n, one in enumerate(rights)]
        before = chosen(*trials)
        numbers = finalists(trials, before, "cas")
        scored = {number: [bits(hard, worths[number]) for _ in range(3)] for number in numbers}
        after = confirm(before, scored) if numbers else before
        for name, choice in (("before", before), ("after", after)):
            replaced[name] += choice["chosen"] != 0 and not gain
            found[name] += choice["chosen"] == 1 and gain > 0
    # docs/studies.md has the shares.
    assert replaced["before"] / 100 == pytest.approx(0.8, abs=0.1) and replaced["after"] / 100 <= 0.35
    assert found["after"] >= 0.9 * found["before"]

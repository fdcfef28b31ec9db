"""What a study may search and score by beside guidance and steps: a gain, strengths, numbers of images, weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import toy
from dreamset import adapt, generate, train, tune
from dreamset.core.files import read_json, write_json
from dreamset.core.workspace import Workspace
from dreamset.data.work import Work
from dreamset.study import objective as scoring
from dreamset.study import rungs
from small_study import BASE, LORA, PLAIN, RUNGS, parameters, record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dreamset.params import Params


@pytest.fixture
def small(tiny_generator: Path) -> Callable[..., Params]:
    return parameters(tiny_generator)


def test_a_gain_is_scored_by_what_images_add_to_the_shots(
    small: Callable[..., Params], place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {f"{BASE}tune__steps": 60, f"{BASE}train__resnet20__width": 8}
    alone, together = (small(tune__objectives=objectives, **changed) for objectives in ("cas", "gain"))
    # The shots teach here, so that each is held out of a fold; CAS of these images asks for no fold.
    made = [tune.objective(Work.read(params, place, PLAIN)) for params in (alone, together)]
    assert [len(one.holdouts) for one in made] == [1, 4]
    assert all({*h.scored}.isdisjoint(h.split.train) for h in made[1].holdouts)
    # Images of pure noise teach nothing; the shots beside them do.
    monkeypatch.setattr(toy, "picture", lambda label, rng: rng.integers(0, 256, (16, 16, 3)).astype(np.uint8))
    toy.write_synthetic(place, PLAIN, per_class=8)
    scores = [one._score(one.params, [place] * len(one.holdouts), RUNGS[-1])[0] for one in made]
    assert scores[0] < 0.6 < scores[1]
    # Another weight of the shots is another study of a gain, and the same one of CAS.
    keys = [
        tune.objective(Work.read(small(tune__objectives=objectives, train__real_weight=weight), place, PLAIN)).key
        for objectives in ("cas", "gain")
        for weight in (0.8, 0.3)
    ]
    assert keys[0] == keys[1] and len(set(keys)) == 3


def test_a_study_searches_strength_and_guide_and_its_choice_draws(
    small: Callable[..., Params], place: Workspace
) -> None:
    search = {
        "adapter_scales": {"low": 0.2, "high": 0.9},
        "guide": ["adapted", "base"],
        "guide_until": {"low": 0.5, "high": 1.0},
    }
    toy.write_splits(place, shots=2)  # two folds
    toy.write_clip(place.root / "models/base/clip")  # a guide that is searched may be one that sees through it
    params = small(
        active=[LORA],
        primary=LORA,
        tune__trials=3,
        tune__sampler="random",
        tune__pruner="none",
        **{f"recipes__{LORA}__search": search, f"{BASE}tune__per_class": [1, 2]},
    )
    adapt.run(params, place, LORA)
    tune.run(params, place, LORA)
    found = record(place, LORA)
    assert found["searched"] == [*search] and all(trial["state"] == "COMPLETE" for trial in found["trials"])
    assert found["trials"][0]["params"] == {"adapter_scales": 1.0, "guide": "adapted", "guide_until": 1.0}
    assert all(0.2 <= trial["params"]["adapter_scales"] <= 0.9 for trial in found["trials"][1:])
    assert generate.run(params, place, LORA)["images"] == 3 * params.per_class


def test_a_study_searches_number_and_weights_and_its_choice_is_trained_with(
    small: Callable[..., Params], place: Workspace
) -> None:
    search = {
        "per_class": {"low": 2, "high": 9},
        "real_weight": {"low": 0.1, "high": 0.9},
        "finish_on_real": {"low": 0, "high": 0.5},
        "nearness": {"low": -2, "high": 2},
    }
    toy.write_splits(place, shots=2)
    params = small(
        tune__trials=3,
        tune__sampler="random",
        tune__pruner="none",
        tune__objectives="gain",
        train__classifiers=["resnet20"],
        **{f"recipes__{PLAIN}__search": search, f"{BASE}train__resnet20__steps": 4},
    )
    toy.write_clip(place.root / "models/base/clip")
    adapt.run(params, place, PLAIN)
    tune.run(params, place, PLAIN)
    found = record(place)
    assert found["searched"] == [*search] and all(trial["state"] == "COMPLETE" for trial in found["trials"])
    own = {"per_class": params.per_class, "real_weight": 0.5, "finish_on_real": 0.0, "nearness": 0.0}
    assert found["trials"][0]["params"] == own
    for trial in found["trials"]:
        # Of two folds and three classes; the last rung has the number that the trial has.
        assert trial["images"] == 2 * 3 * trial["params"]["per_class"]
        counts = trial["images_per_class"]
        assert counts[-1] == trial["params"]["per_class"] and len(counts) == len(RUNGS)
    # Whatever the study chose: here another than its own values.
    found["best"] = values = {"per_class": 5, "real_weight": 0.25, "finish_on_real": 0.5, "nearness": 1.5}
    write_json(place.result("tune", PLAIN), found)
    assert generate.run(params, place, PLAIN)["images"] == 3 * 5
    runs = {run["train_on"]: run for run in train.run(params, place, PLAIN)["runs"]}
    assert runs["both"]["tried"][0]["configuration"]["real_weight"] == values["real_weight"]
    assert runs["both"]["synthetic_images"] == 15
    kept = read_json(place.classifiers(PLAIN) / "both_resnet20/classifier.json", "dreamset train")
    assert (kept["finish_on_real"], kept["nearness"]) == (0.5, 1.5)


def test_rungs_of_a_searched_number_are_shares_of_it(small: Callable[..., Params]) -> None:
    params = small(**{f"recipes__{PLAIN}__search": {"per_class": {"low": 2, "high": 9}}})
    counts = [rungs.images_at(params.with_values(PLAIN, {"per_class": 9}), PLAIN, rung) for rung in RUNGS]
    assert counts == [2, 4, 9]
    # Blocks of a rung are those of the next one, whatever the numbers.
    at = [rungs.params_at(params.with_values(PLAIN, {"per_class": 9}), PLAIN, rung, 3) for rung in RUNGS]
    assert [one.generate.per_class for one in at] == counts
    assert {one.base.generate.batch for one in at} == {3}
    assert all(one.drawn_per_class(PLAIN, (4, 4, 4)) == (count,) * 3 for one, count in zip(at, counts, strict=True))
    # Each strength of an adapter has as many, though neither the rungs nor the number are even.
    scaled = small(
        active=[LORA],
        primary=LORA,
        **{
            f"recipes__{LORA}__adapter_scales": [0.25, 0.5],
            f"recipes__{LORA}__search": {"per_class": {"low": 2, "high": 9}},
        },
    )
    assert [rungs.images_at(scaled.with_values(LORA, {"per_class": 9}), LORA, rung) for rung in RUNGS] == [2, 4, 8]
    # A number that is not searched is no matter of a study's.
    fixed = small(**{f"recipes__{PLAIN}__per_class": 7})
    assert [rungs.images_at(fixed, PLAIN, rung) for rung in RUNGS] == RUNGS
    assert rungs.params_at(fixed, PLAIN, 2, 3).drawn_per_class(PLAIN, (4, 4, 4)) == (2, 2, 2)


def test_shots_that_have_a_part_in_the_images_score_in_folds(small: Callable[..., Params], place: Workspace) -> None:
    def folds(**row: Any) -> int:
        changed = {f"recipes__{PLAIN}__{name}": value for name, value in row.items()}
        return len(scoring.holdouts(Work.read(small(**changed), place, PLAIN)))

    guidance = {"guidance": {"low": 1.0, "high": 3.0}}
    assert folds() == folds(filter="argmax") == 1
    # Else the shots would be scored by images that were pulled toward them or chosen by them.
    assert folds(guide="mode") == folds(filter="k_of_n") == folds(filter="real_features") == 4
    assert folds(search=guidance | {"filter": ["none", "influence"]}) == 4
    assert folds(search=guidance | {"guide": ["adapted", "mode"]}) == 4
    # They would be scored by classifiers whose images weigh by the distance to them.
    assert folds(nearness=1.0) == folds(search={"nearness": {"low": -2, "high": 2}}) == 4

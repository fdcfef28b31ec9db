"""What a study has chosen, as later stages take it: of these rows and shots, or not at all."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import toy
from dreamset import adapt, generate, train, tune
from dreamset.command.plan import describe
from dreamset.core.errors import InputError
from dreamset.core.files import write_json
from dreamset.core.workspace import Workspace
from dreamset.data import tuned
from dreamset.data.runs import BOTH, Run
from dreamset.data.splits import read_split, write_split
from dreamset.data.work import Work
from dreamset.study import artifacts, identity, rungs, space
from dreamset.study.objective import Objective
from small_study import BASE, PLAIN, parameters

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.params import Params

FIRST, SECOND, THIRD = "stable_diffusion_tuned", "stable_diffusion", "datadream_dset"
SEARCH = {"guidance": {"low": 1.0, "high": 7.5}, "steps": {"low": 1, "high": 3}}


def chain(**changes: Any) -> Params:
    """A recipe with a study, one that starts from it without, and a third that starts from that."""
    settings: dict[str, Any] = {
        "active": [FIRST],
        "after": {SECOND: FIRST, THIRD: SECOND},
        f"recipes__{FIRST}__search": copy.deepcopy(SEARCH),
        f"recipes__{THIRD}__search": None,
    }
    return toy.params(**(settings | changes))


def record(workspace: Workspace, recipe: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(workspace.result("tune", recipe).read_text())
    return found


def studied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of a landscape in place of drawing and training."""
    monkeypatch.setattr(generate, "run", lambda *_: {})
    monkeypatch.setattr(artifacts, "keep_samples", lambda *_: None)
    monkeypatch.setattr(Objective, "_spent", lambda self, places: (3, 3, 1.0))
    # The later trials are the better ones.
    count = iter(range(1000))
    monkeypatch.setattr(Objective, "_score", lambda *_: ((right := next(count)) / 1000, np.arange(1000) < right))


def test_another_s_record_is_not_used(place: Workspace) -> None:
    params = chain()
    toy.write_study(params, place, FIRST, best={"guidance": 4.5})
    assert tuned.values(params, place, THIRD) == {"guidance": 4.5}
    fewer = dataclasses.replace(read_split(place.splits), train=read_split(place.splits).train[1:])
    others = (
        chain(tune__trials=7),
        chain(**{f"recipes__{FIRST}__prompt": "label"}),
        chain(**{f"recipes__{FIRST}__search__steps__high": 4}),
        dataclasses.replace(params, model="sd21_base"),
    )
    for other in others:
        with pytest.raises(InputError, match=f"for other parameters or shots; run `dreamset tune {FIRST}` again"):
            tuned.values(other, place, THIRD)
    # What changes nothing of it; a follower's row is no affair of the study.
    for same in (chain(tune__heartbeat_s=7), chain(**{f"recipes__{SECOND}__prompt": "label"})):
        assert tuned.values(same, place, FIRST) == {"guidance": 4.5}
    assert "guidance: 4.5" in describe(params, place, "generate", FIRST, verbose=True)
    assert "guidance: 4.5" not in describe(others[0], place, "generate", FIRST, verbose=True)
    # A trial says its sampler itself, and what it starts from is as it was.
    assert tuned.values(rungs.params_at(params, SECOND, 1, 3), place, SECOND) == {}
    write_split(place.splits, fewer)
    with pytest.raises(InputError, match="other parameters or shots"):
        tuned.values(params, place, FIRST)


def test_a_fold_takes_over_what_was_chosen_by_all_shots(place: Workspace) -> None:
    params, split = chain(), read_split(place.splits)
    toy.write_study(params, place, FIRST, best={"guidance": 4.5})
    fold = Workspace(place.root, place.root / "fold")
    write_split(fold.splits, dataclasses.replace(split, train=split.train[1:]))
    adapt.run_parents(params, place, fold, THIRD)
    assert tuned.values(params, fold, THIRD) == {"guidance": 4.5}
    # And not what was chosen for other shots than the workspace's.
    write_split(place.splits, dataclasses.replace(split, train=split.train[2:]))
    with pytest.raises(InputError, match="other parameters or shots"):
        adapt.run_parents(params, place, fold, THIRD)


@pytest.mark.parametrize("selection", ["cv", "fixed"])
def test_a_tuned_recipe_trains_in_folds_too(tiny_generator: Path, place: Workspace, selection: str) -> None:
    small = parameters(tiny_generator)
    toy.write_clip(place.root / "models/base/clip")
    toy.write_splits(place)
    changes: dict[str, Any] = {"train__classifiers": ["resnet20"], "train__baselines": [], "train__simple": []}
    params = small(selection=selection, **changes, **{f"{BASE}train__resnet20__steps": 4})
    adapt.run(params, place, PLAIN)
    toy.write_study(params, place, PLAIN, best={"guidance": 2.0, "steps": 2})
    write_json(place.tuned(PLAIN) / "adapters.json", {"recipe": PLAIN, "tuned": False, "adapters": []})
    generate.run(params, place, PLAIN)
    if selection == "cv":
        assert train.run(params, place, PLAIN)["seconds_folds"] > 0
    else:
        found = train.held_out(params, place, [Run(PLAIN, BOTH, "resnet20")])
        assert found[Run(PLAIN, BOTH, "resnet20")].shape == (12, 3)


def test_what_no_trial_uses_asks_for_no_other_study(tiny_generator: Path, place: Workspace) -> None:
    """Changes of knobs that count, and of knobs that do not, for a study's key and for the record of its choice."""
    small = parameters(tiny_generator)
    toy.write_clip(place.root / "models/base/clip")
    toy.write_splits(place)

    def of(search: dict[str, Any], **changes: Any) -> tuple[str, str]:
        params = small(**{f"recipes__{PLAIN}__search": search}, **changes)
        work = Work.read(params, place, PLAIN)
        return identity.key_of(work, space.ranges(params, place, PLAIN)), tuned.made_for(params, place, PLAIN)

    own, gain = f"recipes__{PLAIN}__", {"tune__objectives": "gain"}
    guidance, number = {"guidance": {"low": 1, "high": 3}}, {"per_class": {"low": 2, "high": 9}}
    finish = {"finish_on_real": {"low": 0, "high": 0.5}}
    for search, before, change, counts in (
        (guidance, {}, {f"{own}per_class": 7}, False),
        (guidance, {}, {f"{own}real_weight": 0.25}, False),
        (guidance, {}, {f"{own}finish_on_real": 0.25}, False),
        (guidance, {}, {f"{own}nearness": 1.0}, True),
        (guidance, gain, {f"{own}real_weight": 0.25}, True),
        (guidance, gain, {f"{own}finish_on_real": 0.25}, True),
        (guidance, gain, {"train__finish_part": "head"}, False),
        (guidance, gain | {f"{own}finish_on_real": 0.25}, {"train__finish_part": "head"}, True),
        (finish, gain, {"train__finish_part": "head"}, True),
        # The own values are a trial.
        (number, {}, {"generate__per_class": 7}, True),
        (number, {}, {f"{BASE}generate__per_class": 7}, True),
        (number, {}, {f"{own}per_class": 7}, True),
        (guidance, {}, {"generate__per_class": 7}, False),
    ):
        one = of(search, train__classifiers=["resnet20"], train__baselines=[], **before)
        other = of(search, train__classifiers=["resnet20"], train__baselines=[], **(before | change))
        assert [a != b for a, b in zip(one, other, strict=True)] == [counts, counts], (search, before, change)


def test_a_record_changes_with_all_that_it_starts_from(place: Workspace) -> None:
    found = []
    for changes, guidance in (({}, 4.5), ({}, 5.5), ({f"recipes__{FIRST}__prompt": "label"}, 5.5)):
        params = chain(**changes)
        toy.write_study(params, place, FIRST, best={"guidance": guidance})
        tune.run(params, place, SECOND)
        tune.run(params, place, THIRD)
        found.append((record(place, SECOND), record(place, THIRD)))
    assert [own[1]["inherited"] for own in found] == [{"guidance": 4.5}, {"guidance": 5.5}, {"guidance": 5.5}]
    for index in range(2):
        assert found[0][index] != found[1][index] != found[2][index]


def test_strength_is_inherited_by_what_starts_from_images_alone(place: Workspace) -> None:
    search = {"strength": {"low": 0.2, "high": 0.9}, "guidance": {"low": 1.0, "high": 7.5}}
    images = {f"recipes__{FIRST}__init": "image", f"recipes__{FIRST}__sampler": {"strength": 0.5}}
    images |= {f"recipes__{FIRST}__search": search}
    params = chain(**images)
    best = {"strength": 0.7, "guidance": 3.0}
    toy.write_study(params, place, FIRST, best=best)
    assert tuned.values(params, place, SECOND) == {"guidance": 3.0}
    row = dataclasses.replace(params.recipes[SECOND], init="image")
    assert tuned.values(dataclasses.replace(params, recipes=params.recipes | {SECOND: row}), place, SECOND) == best


def test_fewer_trials_choose_as_if_there_had_been_no_more(
    tiny_generator: Path, place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    studied(monkeypatch)
    own = {"models__bundled__generator": str(tiny_generator), "tune__pruner": "none", "tune__rescored": 0}
    tune.run(chain(tune__trials=6, **own), place, FIRST)
    assert record(place, FIRST)["best_trial"] == 5
    assert tune.run(chain(tune__trials=3, **own), place, FIRST)["trials"] == 3
    found = record(place, FIRST)
    assert [trial["number"] for trial in found["trials"]] == [0, 1, 2]
    assert found["best_trial"] == 2 and found["counts"] == {"complete": 3, "pruned": 0, "failed": 0, "slow": 0}
    assert tune.join(chain(tune__trials=3, **own), place, FIRST)["trials"] == 3


def test_what_breaks_after_the_trials_loses_none(
    tiny_generator: Path, place: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    studied(monkeypatch)
    params = toy.params(
        active=[THIRD],
        models__bundled__generator=str(tiny_generator),
        tune__trials=2,
        tune__rescored=0,
        **{f"recipes__{THIRD}__search": {"lr": {"low": 1e-3, "high": 2e-3}}},
    )
    monkeypatch.setattr(adapt, "run", lambda *_: {"seconds": 0.0})
    monkeypatch.setattr(tune, "_forget_epochs", lambda *_: None)
    with monkeypatch.context() as broken:
        broken.setattr(tune, "_write_chosen_adapters", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tune.run(params, place, THIRD)
    assert not place.result("tune", THIRD).exists() and not place.tuned(THIRD).exists()
    assert f"are kept; when the error below is fixed, run `dreamset tune {THIRD}` again" in capsys.readouterr().err
    monkeypatch.setattr(Objective, "__call__", lambda *_: pytest.fail("a trial again"))
    monkeypatch.setattr(tune, "_write_chosen_adapters", lambda *_: None)
    tune.run(params, place, THIRD)
    assert len(record(place, THIRD)["trials"]) == 2

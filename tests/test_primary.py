"""The recipe of the verdict, where ``primary: auto`` leaves it to ``expect``."""

from __future__ import annotations

from typing import Any

import pytest

import toy
from dreamset import deliver, evaluate, expect, train
from dreamset.command import tracked
from dreamset.core.errors import InputError
from dreamset.core.files import read_json, write_json
from dreamset.core.workspace import Workspace
from dreamset.data import primary
from dreamset.data.runs import arms
from dreamset.metrics import expectation
from dreamset.report.evidence import load
from dreamset.report.headline import headline
from dreamset.sweep import cells, crossval
from dreamset.track import spool

LIGHT, FULL, PLAIN = "datadream_light", "datadream_dset", "stable_diffusion"


def found(right: int, of: int, classes: int) -> dict[str, Any]:
    """What ``expect`` decides where CLIP names so many of the shots."""
    return expectation.strength(expect.share(right, of, 0.95) | {"chance": 1 / classes})


@pytest.mark.parametrize(
    ("right", "of", "classes", "first"),
    [
        (36, 40, 10, LIGHT),
        (20, 40, 10, LIGHT),
        (19, 40, 10, FULL),
        (5, 100, 26, FULL),
        # Half of few shots of two classes are no more than chance.
        (5, 8, 2, FULL),
    ],
)
def test_names_that_clip_knows_take_the_weak_adapter_and_others_the_full_one(
    right: int, of: int, classes: int, first: str
) -> None:
    decided = found(right, of, classes)
    assert decided["order"] == [first, *({LIGHT, FULL} - {first})]
    assert decided["known"] == (first == LIGHT)
    assert f"{100 * right / of:.0f} % of the shots" in decided["reason"]


@pytest.mark.parametrize(
    ("active", "right", "taken"),
    [
        ([PLAIN, LIGHT, FULL], 36, LIGHT),
        ([PLAIN, LIGHT, FULL], 2, FULL),
        ([PLAIN, FULL], 36, FULL),
        ([PLAIN, LIGHT], 2, LIGHT),
        ([PLAIN, "datadream_cls"], 36, "datadream_cls"),
        ([PLAIN], 2, PLAIN),
    ],
)
def test_the_first_active_recipe_of_the_order_is_taken(
    workspace: Workspace, active: list[str], right: int, taken: str
) -> None:
    write_json(workspace.result("expect"), {"primary": found(right, 40, 10)})
    assert primary.settle(toy.params(active=active, primary="auto"), workspace).primary_recipe == taken
    given = toy.params(active=active, primary=PLAIN)
    assert primary.settle(given, workspace) is given


def test_what_cannot_be_decided_is_one_sentence_before_any_work(workspace: Workspace) -> None:
    params = toy.params(primary="auto")
    for record, words in (
        (None, r"expect\.json: is missing; run `dreamset expect`"),
        ({"expectation": "adapt"}, r"expect\.json: names no recipe for primary: auto; run `dreamset expect` again"),
    ):
        if record:
            write_json(workspace.result("expect"), record)
        for work in (
            lambda: evaluate.run(params, workspace, crossval.run),
            lambda: deliver.run(params, workspace, crossval.run),
            lambda: cells.run(params, workspace, [4], [0], 1),
        ):
            with pytest.raises(InputError, match=words):
                work()
    with pytest.raises(InputError, match=r"primary: no row 'aut' in recipes .did you mean auto.*, auto"):
        toy.params(primary="aut")


def test_evaluation_delivery_page_and_mlflow_take_what_was_decided(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.write_clip(workspace.root / "models/base/clip")
    toy.write_judge(workspace.root / "models/base/judge")
    toy.write_splits(workspace)
    short = {"active": [LIGHT, FULL], "train__classifiers": ["resnet20"], "train__baselines": []}
    params = toy.params(primary="auto", **short)
    for seed, recipe in enumerate(params.active):
        toy.write_synthetic(workspace, recipe, seed=seed)
    for arm in arms(params):
        train.run(params, workspace, arm)
    by_primary = {}
    for right, recipe in ((2, FULL), (38, LIGHT)):
        write_json(workspace.result("expect"), {"primary": found(right, 40, 10)})
        evaluation = evaluate.run(params, workspace, crossval.run)
        assert evaluation["verdict"]["recipe"] == recipe
        assert evaluation["primary"]["order"][0] == recipe
        by_primary[recipe] = read_json(workspace.result("metrics"), "x")
        assert deliver.run(params, workspace, crossval.run)["arm"] in (recipe, "real")
        page = headline(load(primary.settle(params, workspace), workspace))
        assert page.recipe == recipe
        assert any("by the shots alone: the base's CLIP names" in sentence for sentence in page.caveat)
        told: list[spool.Run] = []
        monkeypatch.setattr(tracked.track, "record", lambda *given, told=told: told.extend(given[4]))
        monkeypatch.setattr(tracked.track, "finish", lambda *given: None)
        tracked.stage(params, workspace, "evaluate", None, evaluation, 0.0)
        assert told[0].tags["primary"] == recipe
        assert told[0].params["primary"] == "auto"
    assert by_primary[FULL] != by_primary[LIGHT]
    # The same numbers as with the recipe's name in the file.
    evaluation = evaluate.run(toy.params(primary=LIGHT, **short), workspace, crossval.run)
    assert "primary" not in evaluation
    assert read_json(workspace.result("metrics"), "x") == by_primary[LIGHT]

"""One LoRA per shot in a study and under cross-validation: no fold draws with the LoRA of a shot that it holds out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import toy
from dreamset import adapt, evaluate, generate, tune
from dreamset.core.workspace import Workspace
from dreamset.data import folds
from dreamset.data.adapters import read_adapters
from dreamset.data.splits import read_split
from dreamset.data.synthetic import read_metadata
from dreamset.sweep import crossval
from small_study import BASE, parameters, record
from test_folds import photographs, small, stages

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.params import Params

ROWS = ("loft", "chimera")
SHORT = {
    f"{BASE}adapt__{scope}__{knob}": value
    for scope in ("image", "shared")
    for knob, value in (("max_steps", 1), ("warmup", 0), ("batch", 2))
}


def drawn_with(place: Workspace, recipe: str) -> tuple[set[str], set[str]]:
    """The shots whose LoRAs the images of a place were drawn with, and its shots."""
    shot_of = {adapter.sha256: adapter.shot for adapter in read_adapters(place.adapter(recipe))}
    used = {shot_of[sha] for image in read_metadata(place.synthetic(recipe)) for sha in image.adapters or ()}
    return {shot for shot in used if shot}, {sample.sha256 for sample in read_split(place.splits).train}


@pytest.mark.parametrize("recipe", ROWS)
def test_a_study_over_loras_of_shots(
    tiny_generator: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    toy.write_splits(workspace, shots=3)
    settings: dict[str, Any] = {
        "active": [recipe],
        "tune__trials": 2,
        "tune__pruner": "none",
        f"{BASE}tune": {"classifier": "resnet20", "steps": 2, "per_class": [1, 3]},
        f"recipes__{recipe}__search": {"guidance": {"low": 1.5, "high": 5.0}},
    }
    params = parameters(tiny_generator)(**SHORT, **settings)
    seen: dict[str, tuple[set[str], set[str]]] = {}
    draw = generate.run

    def drawing(params: Params, place: Workspace, name: str, load: Any = None) -> dict[str, Any]:
        summary = draw(params, place, name, load)
        seen[place.cell.name] = drawn_with(place, name)
        return summary

    monkeypatch.setattr(generate, "run", drawing)
    adapt.run(params, workspace, recipe)
    assert tune.run(params, workspace, recipe)["complete"] == 2
    found = record(workspace, recipe)
    assert found["selection"]["folds"] == len(seen) == 3
    # Each fold has two of the three shots of each class, and an image of three has both.
    assert all(used == shots and len(shots) == 6 for used, shots in seen.values())
    assert len(set.union(*(shots for _, shots in seen.values()))) == 9
    assert 1.5 <= found["best"]["guidance"] <= 5.0
    draw(params, workspace, recipe)
    images = read_metadata(workspace.synthetic(recipe))
    assert {image.sampler["guidance"] for image in images} == {found["best"]["guidance"]}
    assert drawn_with(workspace, recipe)[0] <= seen_of(workspace)


def seen_of(place: Workspace) -> set[str]:
    return {sample.sha256 for sample in read_split(place.splits).train}


def test_folds_over_loras_of_shots(tiny_generator: Path, workspace: Workspace) -> None:
    toy.write_clip(workspace.root / "models/base/clip")
    toy.write_judge(workspace.root / "models/base/judge")
    photographs(workspace.root / "data/raw")
    changes = {"active": list(ROWS), "shots": 3, "train__baselines": [], "train__simple": []}
    params = small(workspace, tiny_generator, **SHORT, **changes)
    stages(params, workspace)
    whole = {name: {one.shard for one in read_adapters(workspace.adapter(name))} for name in ROWS}
    evaluation = evaluate.run(params, workspace, crossval.run)
    plan = folds.test_folds(params, workspace, read_split(workspace.splits))
    assert evaluation["protocol"] == "cv" and evaluation["folds"] == len(plan) == 2
    assert {run["arm"] for run in evaluation["runs"]} == {"real", "zero_shot", *ROWS}
    for fold in plan:
        held = {sample.sha256 for sample in fold.held_out}
        for name in ROWS:
            used, shots = drawn_with(fold.workspace, name)
            assert used and used <= shots and not shots & held
            parts = {one.shard for one in read_adapters(fold.workspace.adapter(name))}
            # The LoRA of a shot is that of the whole; where the A is shared, each fold has its own.
            assert parts < whole[name] if name == "loft" else not parts & whole[name]

"""The stage ``train``: equal steps, selection, curves, and what is written."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toy
from dreamset import classifiers, train
from dreamset.classifiers import fit, fitting, resnet20
from dreamset.classifiers.parts import Part
from dreamset.core.errors import InputError
from dreamset.core.files import read_json
from dreamset.core.workspace import Workspace
from dreamset.data import arrays, runs
from dreamset.data.splits import read_split
from dreamset.data.synthetic import read_metadata, write_metadata
from dreamset.params import Params

RECIPE = "datadream_dset"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    place = Workspace.at(tmp_path)
    toy.write_splits(place, selection=3)
    toy.write_synthetic(place, RECIPE)
    # Training may not so much as look: the test manifest is not there.
    place.test_split.unlink()
    return place


def test_a_plateau_keeps_the_best_step_and_needs_images_to_go_by(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "STOP", 3)
    changes: dict[str, Any] = {"train__classifiers": ["resnet20"], "train__baselines": [], "selection": "extra:3"}
    params = toy.params(**changes, models__bundled__train__resnet20__schedule="plateau")
    runs = {run["train_on"]: run for run in train.run(params, workspace, "real")["runs"]}
    for kind in ("real", "real_strong"):
        run = runs[kind]
        scores = {point["step"]: point["accuracy"] for point in run["selection_curve"]}
        assert run["chosen_step"] == max(scores, key=lambda step: (scores[step], -step))
        assert run["loss"][-1]["step"] == max(scores) <= run["steps"] == 12
        record = classifiers.load(workspace.classifiers("real") / f"{kind}_resnet20")
        held = arrays.real(read_split(workspace.splits).selection, workspace.cell, 16)
        right = (record.logits(held.images).argmax(1) == held.labels).mean()
        assert right == pytest.approx(scores[run["chosen_step"]], abs=1e-4)
    more = runs["real_more"]
    assert (more["chosen_step"], more["selection_curve"], more["loss"][-1]["step"]) == (12, [], 12)
    cosine = {run["train_on"]: run for run in train.run(toy.params(**changes), workspace, "real")["runs"]}
    assert cosine["real_more"]["loss"] == more["loss"]
    assert cosine["real"]["loss"][-1] != runs["real"]["loss"][-1]


def test_scales_are_nested_and_change_no_other_run(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"train__classifiers": ["resnet20"], "train__baselines": [], "generate__per_class": 6}
    changes |= {"models__bundled__train__resnet20__steps": 4, "models__bundled__train__resnet20__warmup": 1}
    places = [Workspace.at(tmp_path / name) for name in ("plain", "scaled")]
    for place, each in zip(places, (6, 12), strict=True):
        toy.write_splits(place)
        if each == 12:
            # The first six of each class are those of the other set.
            _grow(places[0], place)
        else:
            toy.write_synthetic(place, RECIPE, per_class=each)
    plain = train.run(toy.params(**changes), places[0], RECIPE)["runs"]
    params = toy.params(**changes, train__scales=[1, 3])
    scaled = train.run(params, places[1], RECIPE)["runs"]
    timed = ("seconds", "images_per_second")
    for one, two in zip(plain, scaled, strict=False):
        assert {k: v for k, v in one.items() if k not in timed} == {k: v for k, v in two.items() if k not in timed}
    sized = scaled[len(plain) :]
    assert [(run["train_on"], run["synthetic_images"], run["steps"], run["real_images"]) for run in sized] == [
        ("synthetic_x1", 12, 4, 0),
        ("synthetic_x3", 36, 4, 0),
    ]
    assert [run.kind.scale for run in runs.runs(params, RECIPE)] == [None] * 3 + [1, 3]
    part = Part(params, places[1], read_split(places[1].splits), RECIPE, places[1].shards)
    small, large = (part.scaled(scale, resnet20.network(3, 4, 16, 0.0)) for scale in (1, 3))
    for label in range(3):
        own = [name for name, its in zip(small.names, small.labels, strict=True) if its == label]
        assert own == [name for name, its in zip(large.names, large.labels, strict=True) if its == label][:4]
    # What the curve is compared with is trained though nothing else asks for it.
    other = toy.params(**changes, train__scales="ravuri_vinyals", models__bundled__tune__classifier="resnet50")
    assert [run.folder for run in runs.runs(other, "real")[-2:]] == ["real_resnet50", "real_strong_resnet50"]
    with pytest.raises(InputError, match=rf"too few images for train.scales: 3; run `dreamset generate {RECIPE}`"):
        train.run(params, places[0], RECIPE)


def _grow(small: Workspace, large: Workspace) -> None:
    """The synthetic dataset of ``small`` with as many more images of each class behind."""
    toy.write_synthetic(large, RECIPE, per_class=12, seed=9)
    rows = read_metadata(large.synthetic(RECIPE))
    first = {row.file_name: row for row in read_metadata(small.synthetic(RECIPE))}
    for name in first:
        (large.synthetic(RECIPE) / name).write_bytes((small.synthetic(RECIPE) / name).read_bytes())
    write_metadata(large.synthetic(RECIPE), [first.get(row.file_name, row) for row in rows])


def test_real_and_recipe_train_equal_steps_and_write_what_others_read(workspace: Workspace) -> None:
    toy.write_clip(workspace.root / "models/base/clip")
    params = toy.params(selection="extra:3")
    results = {arm: train.run(params, workspace, arm) for arm in ("real", RECIPE)}
    assert [(r["train_on"], r["classifier"]) for r in results["real"]["runs"]] == [
        *((kind, "resnet20") for kind in ("real", "real_strong", "real_more")),
        *((kind, "clip_lora") for kind in ("real", "real_strong", "real_more")),
        ("real", "linear_probe"),
    ]
    runs = [run for result in results.values() for run in result["runs"]]
    assert len(runs) == 12
    for name, steps in (("resnet20", 12), ("clip_lora", 6)):
        assert {run["steps"] for run in runs if run["classifier"] == name} == {steps}
    assert {(run["train_on"], run["real_images"], run["synthetic_images"]) for run in runs} == {
        ("real", 12, 0),
        ("real_strong", 12, 0),
        ("real_more", 21, 0),
        ("synthetic", 0, 18),
        ("both", 12, 18),
        ("both_strong", 12, 18),
    }
    result = results[RECIPE]
    assert read_json(workspace.result("train", RECIPE), "") == result
    assert {run["train_on"]: (run["labels_train_per_class"], run["labels_selection_per_class"]) for run in runs} == {
        **dict.fromkeys(("real", "real_strong", "synthetic", "both", "both_strong"), (4, 3)),
        "real_more": (7, 0),
    }
    assert all((run["selection"], run["temperature_images"]) == ("extra:3", 9) for run in result["runs"])
    assert [point["step"] for point in result["runs"][0]["selection_curve"]] == [4, 8, 12]
    folder = workspace.classifiers(RECIPE)
    assert sorted(path.name for path in folder.iterdir()) == [
        "both_clip_lora",
        "both_resnet20",
        "both_strong_resnet20",
        "shards.json",
        "synthetic_clip_lora",
        "synthetic_resnet20",
    ]
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []
    record = read_json(folder / "both_clip_lora/classifier.json", "")
    assert record["classes"] == list(toy.CLASSES)
    assert record["base"] == "models/base/clip"
    assert record["chosen_step"] in (2, 4, 6)
    assert classifiers.load(folder / "both_clip_lora").logits(np.zeros((2, 16, 16, 3), np.uint8)).shape == (2, 3)
    with (workspace.plots("train", RECIPE) / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["run"] for row in rows} == {path.name for path in folder.glob("*/")}
    assert float(rows[0]["loss"]) > 0


def _learning(**changes: Any) -> Params:
    """ResNet-20 alone, with enough steps to learn the toy classes."""
    row = {"steps": 30, "batch": 18, "width": 4, "lr": 0.02} | changes
    return toy.params(
        selection="extra:3",
        train__classifiers=["resnet20"],
        train__baselines=[],
        **{f"models__bundled__train__resnet20__{k}": v for k, v in row.items()},
    )


def test_training_learns_and_repeats_and_does_not_know_the_recipe(workspace: Workspace, tmp_path: Path) -> None:
    other = Workspace.at(tmp_path / "other")
    shutil.copytree(workspace.cell / "data", other.cell / "data")
    toy.write_synthetic(other, "stable_diffusion")
    params = _learning()
    first = train.run(params, workspace, RECIPE)
    twin = train.run(params, other, "stable_diffusion")  # the same images under another name, without shards to share
    for one, two in zip(first["runs"], twin["runs"], strict=True):
        assert one["loss"] == two["loss"]
        assert one["loss"][-1]["loss"] < 0.7 * one["loss"][0]["loss"]
        assert max(point["accuracy"] for point in one["selection_curve"]) > 0.7
    name = "synthetic_resnet20/model.safetensors"
    assert (workspace.classifiers(RECIPE) / name).read_bytes() == (
        other.classifiers("stable_diffusion") / name
    ).read_bytes()


def test_a_killed_run_goes_on_with_the_next_classifier(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what another recipe has learned from the same images is not learned again; one step more is."""
    fitted: list[str] = []
    plain = fit.fit

    def counted(*rest: Any, **named: Any) -> Any:
        if len(fitted) == 2 and "killed" not in fitted:
            fitted.append("killed")
            raise KeyboardInterrupt
        fitted.append(named["what"])
        return plain(*rest, **named)

    monkeypatch.setattr(fit, "fit", counted)
    params = _learning(steps=4)
    with pytest.raises(KeyboardInterrupt):
        train.run(params, workspace, RECIPE)
    assert not workspace.classifiers(RECIPE).exists()
    first = train.run(params, workspace, RECIPE)
    runs = [f"train {RECIPE} {kind} resnet20" for kind in ("synthetic", "both", "both_strong")]
    assert fitted == [*runs[:2], "killed", runs[2]]
    assert train.run(params, workspace, RECIPE) == first
    toy.write_synthetic(workspace, "stable_diffusion")
    assert train.run(params, workspace, "stable_diffusion")["runs"] == first["runs"]
    record = read_json(workspace.classifiers("stable_diffusion") / "both_resnet20/classifier.json", "")
    assert (record["arm"], record["chosen_step"]) == ("stable_diffusion", first["runs"][1]["chosen_step"])
    assert len(fitted) == 4
    train.run(_learning(steps=5), workspace, RECIPE)
    assert len(fitted) == 7


def test_labels_come_from_the_metadata_and_changed_files_are_named(workspace: Workspace) -> None:
    split = read_split(workspace.splits)
    folder = workspace.synthetic(RECIPE)
    data = arrays.synthetic(folder, split, 16)
    assert data.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    other = type(split)(**(split.__dict__ | {"classes": ("bar", "spot", "plank")}))
    with pytest.raises(InputError, match="holds class 'plank'"):
        arrays.synthetic(folder, other, 16)
    victim = folder / data.names[3]
    victim.write_bytes((folder / data.names[4]).read_bytes())
    with pytest.raises(InputError, match=rf"{data.names[3]}.*dreamset generate {RECIPE}"):
        arrays.synthetic(folder, split, 16)
    (workspace.cell / split.train[0].path).unlink()
    with pytest.raises(InputError, match="dreamset prepare"):
        arrays.real(split.train, workspace.cell, 16)


def test_an_unknown_arm_is_named(workspace: Workspace) -> None:
    with pytest.raises(InputError, match="neither 'real' nor an active recipe"):
        train.run(toy.params(), workspace, "datadream_cls")


def test_a_failed_run_leaves_the_old_classifiers(workspace: Workspace) -> None:
    changes: dict[str, Any] = {"selection": "extra:3", "train__baselines": []}
    params = toy.params(train__classifiers=["resnet20"], **changes)
    train.run(params, workspace, "real")
    before = sorted(path.name for path in workspace.classifiers("real").rglob("*"))
    with pytest.raises(InputError, match="open_clip folder"):
        train.run(toy.params(**changes), workspace, "real")
    assert sorted(path.name for path in workspace.classifiers("real").rglob("*")) == before
    assert [path.name for path in workspace.classifiers("real").parent.iterdir()] == ["real"]


def test_importing_the_stages_is_cheap() -> None:
    code = "import sys, dreamset.train, dreamset.evaluate; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_missing_weights_are_told_before_anything_is_trained(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("trained first")

    monkeypatch.setattr(fitting, "_fit", never)
    params = toy.params(train__classifiers=["resnet20", "clip_lora"], models__bundled__clip="hub:nobody/nothing")
    with pytest.raises(InputError, match="dreamset fetch"):
        train.run(params, workspace, "real")

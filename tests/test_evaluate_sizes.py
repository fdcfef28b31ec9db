"""Accuracy by the size of the synthetic set, by its share beside the shots, and the scores of dataset distillation."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toy
from dreamset import evaluate, report, train
from dreamset.core.errors import InputError
from dreamset.core.files import read_json
from dreamset.core.workspace import Workspace
from dreamset.data.runs import Run, arms
from dreamset.data.splits import read_split
from dreamset.evaluate import output, records
from dreamset.sweep import crossval


def test_cas_by_scale_stands_beside_the_real_arms_and_in_no_difference(tmp_path: Path) -> None:
    place = Workspace.at(tmp_path)
    toy.write_clip(place.root / "models/base/clip")
    toy.write_judge(place.root / "models/base/judge")
    toy.write_splits(place)
    toy.write_synthetic(place, "stable_diffusion", per_class=8)
    changes: dict[str, Any] = {"active": ["stable_diffusion"], "train__classifiers": ["resnet20"]}
    params = toy.params(**changes, train__baselines=[], train__scales=[1, 2], generate__per_class=5)
    for arm in arms(params):
        train.run(params, place, arm)
    evaluation = evaluate.run(params, place, crossval.run)
    accuracy = {(run["arm"], run["train_on"]): run["accuracy"] for run in evaluation["runs"]}
    with (place.plots("evaluate") / "scales.csv").open() as file:
        curve = [(row["run"], row["scale"], float(row["accuracy"])) for row in csv.DictReader(file)]
    assert sorted(curve) == sorted(
        (name, str(scale), accuracy[key])
        for scale in (1, 2)
        for name, key in (
            ("stable_diffusion", ("stable_diffusion", f"synthetic_x{scale}")),
            ("real", ("real", "real")),
            ("real_strong", ("real", "real_strong")),
        )
    )
    sized = [row for row in output.rows(evaluation) if row["scale"] is not None]
    assert [(row["train_on"], row["scale"], row["classifier"]) for row in sized] == [
        ("synthetic_x1", 1, "resnet20"),
        ("synthetic_x2", 2, "resnet20"),
    ]
    assert {run["measure"] for run in evaluation["runs"] if run["scale"]} == {"CAS"}
    assert not any("synthetic_x" in row["of"] + row["minus"] for row in evaluation["differences"])
    # What is said of the set is said of what the other arms learn from.
    assert evaluation["sets"]["stable_diffusion"]["images"] == 15
    report.run(params, place)
    page = (place.results / "report.html").read_text()
    assert "How many images it takes" in page and "stable_diffusion · synthetic_x2 · resnet20" in page


def test_the_share_of_synthetic_images_and_the_scores_of_distillation(tmp_path: Path) -> None:
    place = Workspace.at(tmp_path)
    toy.write_clip(place.root / "models/base/clip")
    toy.write_judge(place.root / "models/base/judge")
    toy.write_splits(place)
    for recipe in ("stable_diffusion", "datadream_dset"):
        toy.write_synthetic(place, recipe, per_class=8)
    changes: dict[str, Any] = {"active": ["stable_diffusion", "datadream_dset"], "train__classifiers": ["clip_lora"]}
    changes |= {"train__baselines": [], "train__simple": [], "generate__per_class": 2}
    params = toy.params(**changes, train__scales=[1, 2], train__scaled=["both"], train__distillation=True)
    assert params.setting(()) == toy.params(**changes, train__scales=[1, 2]).setting(())
    for arm in arms(params):
        trained = {(run["train_on"], run["classifier"]): run for run in train.run(params, place, arm)["runs"]}
        if arm == "real":
            shots = read_split(place.splits).train_per_class
            assert trained["real", "resnet20"]["real_images"] == sum(shots) > 6
            assert trained["real_few", "resnet20"]["real_images"] == 6
    assert trained["both_strong_x2", "resnet20"]["synthetic_images"] == 2 * sum(shots)
    assert trained["both_strong_x2", "resnet20"]["real_images"] == sum(shots)
    assert ("synthetic_x1", "resnet20") not in trained
    evaluation = evaluate.run(params, place, crossval.run)
    accuracy = {(run["arm"], run["train_on"], run["classifier"]): run["accuracy"] for run in evaluation["runs"]}
    with (place.plots("evaluate") / "scales.csv").open() as file:
        curve = {(row["run"], row["scale"]): float(row["accuracy"]) for row in csv.DictReader(file)}
    for arm in params.active:
        for scale in (1, 2):
            assert curve[f"real + {arm}", str(scale)] == accuracy[arm, f"both_strong_x{scale}", "resnet20"]
    for row in evaluation["distillation"]:
        own = accuracy[row["arm"], "synthetic", "resnet20"]
        recovery, over = accuracy["real", "real", "resnet20"] - own, own - accuracy["real", "real_few", "resnet20"]
        assert row["hlr"][0] == pytest.approx(recovery, abs=2e-4) and row["hlr"][1] <= row["hlr"][0] <= row["hlr"][2]
        assert row["ior"][0] == pytest.approx(over, abs=2e-4)
        assert row["lrs"] == pytest.approx((over - recovery) / 2, abs=2e-4)
    assert [row["arm"] for row in evaluation["distillation"]] == [*params.active]
    # None of these runs is in a difference, or asked for by a verdict.
    assert not any("_x" in row["of"] or "few" in row["minus"] for row in evaluation["differences"])
    report.run(params, place)
    page = (place.results / "report.html").read_text()
    assert "Synthetic images beside the shots" in page and "Synthetic images alone: CAS" not in page
    assert "How well the images stand for the shots" in page
    # Of another number of images nothing is said; and no comparison of equal sets is called one of fewer.
    other = toy.params(**changes, train__distillation=True, recipes__datadream_dset__per_class=1)
    train.run(other, place, "datadream_dset")
    names = ("real/real", "real/real_few", *(f"{arm}/synthetic" for arm in params.active))
    right = {Run.parse(f"{name}/resnet20"): np.ones(24) for name in names}
    made = {arm: read_json(place.result("train", arm), "") for arm in arms(other)}
    assert [row["arm"] for row in records.distillation(other, right, None, made)] == ["stable_diffusion"]
    # It is no way to train on the real images that a verdict or a headline chooses among.
    assert "best of 2 ways" in page
    assert "real_few" not in str(read_json(place.results / "metrics.json", "")["accuracy"])
    few = next(run for run in made["real"]["runs"] if run["train_on"] == "real_few")
    assert few["labels_train_per_class"] == 2
    with pytest.raises(InputError, match=r"train.distillation: .*class 'bar' has 4 shots for 4 .*; lower generate.per"):
        train.run(toy.params(**(changes | {"generate__per_class": 4}), train__distillation=True), place, "real")

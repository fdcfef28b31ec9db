"""What a dry run counts is what the stages would do."""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import toy
from dreamset.command import counts, plan, times
from dreamset.command.plan import describe
from dreamset.command.timed_steps import Timed
from dreamset.core.files import write_json
from dreamset.core.workspace import Workspace
from dreamset.data import folds
from dreamset.data.splits import Sample, Split, read_split, write_split

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.params import Params

ROW = "models__bundled__"


def small(**changes: Any) -> Params:
    """A step of an adapter for each image of its class, and classes balanced."""
    settings: dict[str, Any] = {
        "active": ["stable_diffusion", "datadream_cls"],
        "evaluate__folds": 4,
        "generate__per_class": "balance",
        f"{ROW}generate__per_class": 5,
        f"{ROW}adapt__class__epochs": 1,
        f"{ROW}adapt__class__batch": 1,
    }
    return toy.params(**(settings | changes))


def workspace_of(root: Path, selection: str) -> Workspace:
    """Eight shots of one class and four of the other, to be cross-validated."""
    place = Workspace.at(root)
    samples = [Sample(f"{label}_{i}.png", label, f"{label}_{i}", f"{label}{i}") for label in (0, 1) for i in range(8)]
    shots = tuple(sample for i, sample in enumerate(samples) if i < 12)
    split = Split("toy", ("a", "b"), "a {class}", (), "all", 0, shots, (), protocol="cv")
    write_split(place.splits, folds.holdout(split) if selection == "holdout" else split)
    write_json(place.result("prepare"), {"test": 0})
    return place


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        # Each fold leaves 6 and 3 images: 6 and 3 steps of adapters, and 5 and 8 images of each of two recipes.
        ("fixed", "36 adapter steps, 104 images"),
        # It takes 2 and 1 of these away.
        ("holdout", "24 adapter steps, 96 images"),
        # Then three folds of 4 and 2 in each fold: 4 and 2 steps of adapters, and 5 and 7 images.
        ("cv", "108 adapter steps, 392 images"),
    ],
)
def test_the_folds_work_is_counted_as_it_is_done(tmp_path: Path, selection: str, words: str) -> None:
    place = workspace_of(tmp_path, selection)
    flat = " ".join(describe(small(selection=selection), place, "evaluate", None).split())
    assert f"cv, 4 folds, in each of which all that learns is done again: {words}" in flat
    # What selects is a shot like any other, and scored.
    assert "On 12 images" in flat


def test_the_folds_images_are_as_many_as_a_study_chose(tmp_path: Path) -> None:
    place = workspace_of(tmp_path, "fixed")
    search = {"per_class": {"low": 2, "high": 9}}
    params = small(active=["stable_diffusion"], recipes__stable_diffusion__search=search, generate__per_class=None)
    before = " ".join(describe(params, place, "evaluate", None).split())
    assert "0 adapter steps, 40 images" in before
    toy.write_study(params, place, "stable_diffusion", best={"per_class": 3})
    # Of both classes, in each of four folds.
    assert "0 adapter steps, 24 images" in " ".join(describe(params, place, "evaluate", None).split())


def test_balanced_images_are_counted_of_whatever_origin(tmp_path: Path) -> None:
    place = workspace_of(tmp_path, "fixed")
    for recipe in ("stable_diffusion", "retrieved"):
        params = small(active=[recipe])
        assert "images: 14" in describe(params, place, "generate", recipe)
    assert "steps: 12" in describe(small(), place, "adapt", "datadream_cls")


def files_of(params: Params, place: Workspace, stage: str, item: str | None = None) -> tuple[list[str], list[str]]:
    """Inputs and outputs of a stage in a folder with the project's dvc.yaml."""
    shutil.copyfile(toy.ROOT / "dvc.yaml", place.root / "dvc.yaml")
    described = yaml.safe_load(describe(params, place, stage, item))
    return described["inputs"], described["outputs"]


def test_what_a_recipe_starts_from_is_an_input(tmp_path: Path) -> None:
    place = workspace_of(tmp_path, "fixed")
    params = small(active=["class_encoder"], after={"class_encoder_ft": "class_encoder"})
    taken = {"models/adapters/class_encoder", "models/tuned/class_encoder", "results/tune/class_encoder.json"}
    missing = {f"{path}  (missing)" for path in taken}
    for stage in ("adapt", "tune"):
        assert missing <= set(files_of(params, place, stage, "class_encoder_ft")[0])
        assert not missing & set(files_of(params, place, stage, "datadream_cls")[0])
        assert "data/real  (missing)" in files_of(params, place, stage, "class_encoder_ft")[0]
    place.real.mkdir(parents=True)
    for stage in ("adapt", "tune"):
        assert "data/real" in files_of(params, place, stage, "class_encoder_ft")[0]


def test_inputs_and_outputs_are_those_of_the_graph(tmp_path: Path) -> None:
    place = workspace_of(tmp_path, "fixed")
    assert files_of(small(), place, "adapt", "datadream_cls") == (
        [
            *("data/prompts  (missing)", "data/real  (missing)", "data/splits/go  (missing)"),
            *("data/splits/train.json", "models/base/clip  (missing)", "models/base/sd  (missing)"),
        ],
        [
            "models/adapters/datadream_cls",
            "results/adapt/datadream_cls.json",
            "results/plots/adapt/datadream_cls",
        ],
    )
    inputs, outputs = files_of(small(), place, "train", "real")
    assert not any("synthetic" in path for path in inputs)
    assert "results/train/real.json" in outputs
    assert "results/metrics.json" in files_of(small(), place, "evaluate")[1]
    # A row that is not active may be named, too.
    assert "data/synthetic/retrieved" in files_of(small(), place, "generate", "retrieved")[1]


def test_the_weights_are_those_of_the_model_s_row(tmp_path: Path) -> None:
    place = workspace_of(tmp_path, "fixed")
    params = small(models__bundled__generator="hub:owner/model@0123", prepare__source="imagefolder:photos")
    inputs, _ = files_of(params, place, "generate", "stable_diffusion")
    assert "hub:owner/model@0123" in inputs
    assert not any(path.startswith("models/base/sd") for path in inputs)
    assert "photos  (missing)" in files_of(params, place, "prepare")[0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "cannot be read"),
        ("stages: {other: {}}", "has no stage adapt"),
        ("[]", "has no stage adapt"),
        ("# empty", "has no stage adapt"),
        ("stages: {adapt: {deps: [1], outs: []}}", "lists something that is no path"),
    ],
)
def test_without_the_graph_a_sentence_says_so(tmp_path: Path, text: str | None, why: str) -> None:
    place = workspace_of(tmp_path, "fixed")
    if text:
        (tmp_path / "dvc.yaml").write_text(text)
    described = yaml.safe_load(describe(small(), place, "adapt", "datadream_cls"))
    assert why in described["inputs and outputs"]
    assert described["inputs and outputs"].endswith(
        ("run this in the project's folder.", "`git checkout dvc.yaml` has it.")
    )
    assert described["counts"]["steps"] == 12


def test_studies_are_done_again_in_each_fold_and_counted(tmp_path: Path) -> None:
    place = workspace_of(tmp_path, "fixed")
    search = {"guidance": {"low": 1.0, "high": 4.0}}
    params = small(recipes__stable_diffusion__search=search, recipes__datadream_cls__search=search)
    flat = " ".join(describe(params, place, "evaluate", None).split())
    # 8 trials of 2 x 27 images and 10 + 30 + 90 steps: in one part where nothing is learned from the shots, and of
    # the adapters in three, of 4 and 2 images with as many steps; all of it in each of four folds.
    images, steps = 4 * 8 * 54 * (1 + 3), 4 * 8 * 130 * (1 + 3)
    assert f"in 8 studies at most 64 trials, {images} images, {steps} classifier steps, 72 adapter steps" in flat


def test_a_plan_says_what_each_classifier_sees_and_how_long_it_learns(tmp_path: Path) -> None:
    place = workspace_of(tmp_path, "fixed")
    write_split(place.splits, dataclasses.replace(read_split(place.splits), native=28))
    rule = {"epochs": 3, "low": 1, "high": 100}
    params = small(
        train__classifiers=["resnet20", "clip_lora"],
        train__baselines=["linear_probe"],
        generate__per_class=20,
        **{f"{ROW}train__clip_lora__steps": rule, f"{ROW}train__clip_lora__batch": 10},
    )
    told = yaml.safe_load(describe(params, place, "train", "stable_diffusion"))
    assert told["classifiers"] == {
        "resnet20": "sees 28 x 28 pixels, for the shots have 28 on their short side; 12 steps of 16 images",
        # Two classes of 20 synthetic images are more than 12 shots: four batches, three times.
        "clip_lora": "12 steps of 10 images, for 40 images",
        "linear_probe": "6 steps of 16 images",
    }
    assert told["counts"]["steps of clip_lora"] == 2 * 12
    empty = yaml.safe_load(describe(params, Workspace.at(tmp_path / "empty"), "train", "real"))
    assert empty["classifiers"] == "known when `dreamset prepare` has run"


def test_candidates_of_a_filter_are_counted(prepared: tuple[Params, Workspace], small: dict[str, Any]) -> None:
    _, workspace = prepared
    found = {}
    for kind in ("none", "argmax", "k_of_n", "entropy"):
        more = {"filter_tries": 3} if kind != "none" else {}
        more |= {"first_round": 2} if kind == "entropy" else {}
        small["recipes"]["stable_diffusion"] |= {"filter": kind, "filter_tries": None, "first_round": None} | more
        params = toy.parse(small)
        work = counts.of(params, workspace, "generate", "stable_diffusion")
        key = times._key(params, workspace, "generate", "stable_diffusion")
        looked = counts.expected(params, workspace, "stable_diffusion")
        found[kind] = (work.get("candidates"), work.get("candidates at most"), looked, key)
    assert [row[:3] for row in found.values()] == [
        (None, None, 40),
        (None, 120, 40),
        (120, None, 120),
        (80, None, 80),
    ]
    # The time of one says nothing of another.
    assert len({row[3] for row in found.values()}) == 4


def test_what_a_filter_accepted_before_is_expected_again(
    prepared: tuple[Params, Workspace], small: dict[str, Any]
) -> None:
    _, workspace = prepared
    row = small["recipes"]["stable_diffusion"]
    row |= {"filter": "argmax", "filter_tries": 5}
    params = toy.parse(small)
    assert counts.expected(params, workspace, "stable_diffusion") == 40
    chosen = {"kind": "argmax", "candidates": {"zero": 30, "one": 10}, "gave_up": {}}
    record = {"images": 20, "copies": {"images": 4}, "filter": chosen}
    write_json(workspace.result("generate", "stable_diffusion"), record)
    # 40 candidates became 16 images: two and a half each.
    assert counts.expected(params, workspace, "stable_diffusion") == 100
    assert plan.makes(params, workspace, "generate", "stable_diffusion").startswith("40 images out of about 100 cand")
    steps = {"draw": Timed(0.1, fixed=0.3)}
    seconds = times.estimate(params, workspace, "generate", "stable_diffusion", steps).seconds
    assert seconds == pytest.approx(100 * (2 * 0.1 + 0.3))
    row["filter"] = "threshold"
    assert counts.expected(toy.parse(small), workspace, "stable_diffusion") == 40


def test_a_study_pays_for_the_candidates_of_its_filter(
    prepared: tuple[Params, Workspace], small: dict[str, Any]
) -> None:
    _, workspace = prepared
    small["models"]["bundled"]["tune"] |= {"per_class": [2, 4], "steps": 10}
    small["tune"]["trials"] = 3
    # Images that are set apart score: a filter that learns from the shots would ask for folds of these.
    split = read_split(workspace.splits)
    write_split(workspace.splits, dataclasses.replace(split, selection=split.train))
    row = small["recipes"]["stable_diffusion"]
    steps = {"draw": Timed(0.1, fixed=0.3), "classifier resnet20": Timed(0.0)}
    found = {}
    for kind in ("none", "k_of_n", "entropy", "argmax"):
        more = {"filter_tries": None if kind == "none" else 6, "first_round": 1 if kind == "entropy" else None}
        row |= {"search": {"guidance": {"low": 1.5, "high": 3.0}}, "filter": kind} | more
        params = toy.parse(small)
        work = counts.of(params, workspace, "tune", "stable_diffusion")
        seconds = times.estimate(params, workspace, "tune", "stable_diffusion", steps).seconds
        found[kind] = (work["images at most"], work.get("candidates at most"), seconds)
    # Three trials of four images of ten classes, each image in two steps.
    assert found == {
        "none": (120, None, pytest.approx(120 * 0.5)),
        "k_of_n": (120, 720, pytest.approx(720 * 0.5)),
        "entropy": (120, 3 * 10 * (1 + 3 * 6), pytest.approx(570 * 0.5)),
        "argmax": (120, 720, pytest.approx(120 * 0.5)),
    }


def test_calls_of_the_network_are_those_of_the_steps_that_are_taken(
    prepared: tuple[Params, Workspace], small: dict[str, Any]
) -> None:
    def calls(**knobs: Any) -> int:
        small["recipes"]["datadream_dset"] |= knobs
        return counts.of(toy.parse(small), prepared[1], "generate", "datadream_dset")["U-Net calls per image"]

    assert calls(sampler={"steps": 20, "guidance": 3.0}) == 40
    assert calls(guide_until=0.5) == 30
    assert calls(guide_until=None, init="image", sampler={"steps": 100, "guidance": 3.0, "strength": 0.4}) == 80
    assert calls(sampler={"steps": 100, "guidance": 1.0, "strength": 0.4}) == 40


@pytest.mark.parametrize(("shots", "count"), [(12, 4), (10, 2)])
def test_as_many_folds_choose_as_the_class_with_the_fewest_shots_allows(tmp_path: Path, shots: int, count: int) -> None:
    place = workspace_of(tmp_path, "fixed")
    split = read_split(place.splits)
    write_split(place.splits, dataclasses.replace(split, train=split.train[:shots], protocol="test"))
    told = yaml.safe_load(describe(small(selection="cv"), place, "train", "real"))["counts"]
    assert told["folds"] == count
    assert told["steps of resnet20"] == yaml.safe_load(describe(small(), place, "train", "real"))["counts"][
        "steps of resnet20"
    ] * (count + 1)

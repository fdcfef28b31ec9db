"""Cross-validation: every labelled image is scored once, by classifiers that nothing of it has reached."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import toy
from dreamset import adapt, classifiers, deliver, evaluate, generate, prepare, train
from dreamset.classifiers import fitting
from dreamset.classifiers.calibration import fit_temperature, nll
from dreamset.command.plan import describe
from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write, read_json, sha256
from dreamset.core.images import png
from dreamset.core.workspace import Workspace
from dreamset.data import arrays, folds
from dreamset.data.adapters import read_adapters
from dreamset.data.runs import REAL, REAL_STRONG, SYNTHETIC, Run, arms
from dreamset.data.splits import Sample, Split, read_split, read_test
from dreamset.data.synthetic import read_metadata
from dreamset.evaluate import logits
from dreamset.params import Params
from dreamset.sweep import crossval
from dreamset.use import predict

RECIPES = ("stable_diffusion", "datadream_dset")
FOLDS = 2

_watched: list[list[str]] = []


def _opened(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watched and isinstance(arguments[0], str | os.PathLike):
        _watched[-1].append(os.path.realpath(os.fspath(arguments[0])))


@contextmanager
def opened() -> Iterator[list[str]]:
    """The files that are opened meanwhile."""
    _watched.append([])
    try:
        yield _watched[-1]
    finally:
        _watched.pop()


LOGITS = logits.__name__


@pytest.fixture(scope="module", autouse=True)
def _audit() -> None:
    # A hook cannot be taken back: one for all, silent where nobody watches.
    sys.addaudithook(_opened)


def photographs(root: Path) -> Path:
    """Three class folders without a test part: six pictures each, two of them in two files."""
    rng = np.random.default_rng(3)
    for label, name in enumerate(toy.CLASSES):
        for index in range(6):
            data = png(toy.picture(label, rng))
            atomic_write(root / name / f"{index}.png", data)
    atomic_write(root / "bar/copy.png", (root / "bar/0.png").read_bytes())
    return root


def small(place: Workspace, generator: Path, **changes: Any) -> Params:
    row = "models__bundled__"
    settings: dict[str, Any] = {
        "active": list(RECIPES),
        "shots": 5,
        "train__classifiers": ["resnet20"],
        "train__simple": ["pixels"],
        "evaluate__folds": FOLDS,
        "prepare__source": f"imagefolder:{place.root / 'data/raw'}",
        "selection": "fixed",
        "prepare__template": "a photo of a {class}",
        f"{row}generator": str(generator),
        f"{row}train__resnet20__steps": 4,
        f"{row}generate__per_class": 3,
        f"{row}generate__steps": 2,
        "adapt__sample_images": 1,
        f"{row}adapt__sample_every": 10,
        f"{row}adapt__dataset__max_steps": 2,
        f"{row}adapt__dataset__batch": 4,
    }
    return toy.params(**(settings | changes))


def stages(params: Params, place: Workspace) -> None:
    prepare.run(params, place)
    for arm in arms(params):
        if arm != REAL:
            adapt.run(params, place, arm)
            generate.run(params, place, arm)
        train.run(params, place, arm)


def moved(plan: list[folds.Fold], root: Path, beside: Path) -> list[folds.Fold]:
    """The same folds, made in other places."""
    return [dataclasses.replace(fold, workspace=Workspace(root, beside / f"fold{fold.index}")) for fold in plan]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_generator: Path) -> tuple[Workspace, Params, dict[str, Any]]:
    """A folder without test images, taken through every stage."""
    place = Workspace.at(tmp_path_factory.mktemp("cv"))
    toy.write_clip(place.root / "models/base/clip")
    toy.write_judge(place.root / "models/base/judge")
    photographs(place.root / "data/raw")
    params = small(place, tiny_generator)
    stages(params, place)
    return place, params, evaluate.run(params, place, crossval.run)


def made_up(groups: list[list[str]]) -> Split:
    """Shots of two classes, by the groups of each."""
    samples = [
        Sample(f"{label}_{index}.png", label, group, f"{label}{index}")
        for label, own in enumerate(groups)
        for index, group in enumerate(own)
    ]
    return Split("toy", ("a", "b"), "a {class}", (), 4, 0, tuple(samples), ())


def test_folds_hold_out_every_shot_once_in_equal_shares() -> None:
    split = made_up([list("ABCDEFGH"), list("IJKLMNOP")])
    held = folds.held_out(split, 4, "test")
    assert Counter(sample for own in held for sample in own) == Counter(split.train)
    assert [Counter(sample.label for sample in own) for own in held] == [{0: 2, 1: 2}] * 4
    assert held == folds.held_out(split, 4, "test")
    assert held != folds.held_out(split, 4, "selection")


def test_groups_are_never_divided_and_limit_the_folds() -> None:
    split = made_up([list("AAABBC"), list("DDEEFF")])
    held = folds.held_out(split, 5, "test")
    assert len(held) == 3
    of = [{sample.group for sample in own} for own in held]
    assert not (of[0] & of[1] or of[0] & of[2] or of[1] & of[2])
    with pytest.raises(InputError, match="class 'b' has shots of one group only"):
        folds.held_out(made_up([list("ABC"), list("DDD")]), 5, "test")


def test_without_a_test_part_nothing_is_held_out(world: tuple[Workspace, Params, dict[str, Any]]) -> None:
    place, _, _ = world
    split = read_split(place.splits)
    assert (split.protocol, len(split.train)) == ("cv", 15)
    assert read_test(place.test_split).test == ()
    assert read_json(place.result("prepare"), "")["protocol"] == "cv"
    # Both files of one picture are of one group.
    copies = {sample.group for sample in split.train if Path(sample.path).name in ("0.png", "copy.png")}
    named = [s for s in split.train if s.label == 0 and Path(s.path).name in ("0.png", "copy.png")]
    assert len(named) < 2 or len({sample.group for sample in named}) == 1
    assert copies


def test_one_shot_per_class_is_refused_before_any_work(
    world: tuple[Workspace, Params, dict[str, Any]], tmp_path: Path
) -> None:
    place, params, _ = world
    with pytest.raises(InputError, match=r"has one shot only.*raise shots"):
        prepare.run(dataclasses.replace(params, shots=1), Workspace(place.root, tmp_path))


def test_folds_that_cannot_select_are_refused_before_any_work(
    world: tuple[Workspace, Params, dict[str, Any]], tmp_path: Path
) -> None:
    place, params, _ = world
    two = dataclasses.replace(params, shots=2)
    prepare.run(two, Workspace(place.root, tmp_path))
    for rule in ("cv", "holdout"):
        # One shot is left in each fold.
        with pytest.raises(InputError, match=r"in a fold of evaluate\.protocol: cv.*raise shots"):
            prepare.run(dataclasses.replace(two, selection=rule), Workspace(place.root, tmp_path))
    four = prepare.run(dataclasses.replace(params, shots=4, selection="holdout"), Workspace(place.root, tmp_path))
    # What is held out of the shots is not lacking, and what is beyond them is lost on everyone.
    assert (four["train"], four["selection"]) == (9, 3)
    assert four["warnings"] == [
        "7 labelled images are more than shots (4) asks for and are not used at all; shots: all uses every one"
    ]
    every = prepare.run(dataclasses.replace(params, shots="all"), Workspace(place.root, tmp_path))
    assert every["warnings"] == []


def test_every_shot_is_predicted_once_and_unseen(world: tuple[Workspace, Params, dict[str, Any]]) -> None:
    place, params, _ = world
    split = read_split(place.splits)
    plan = folds.test_folds(params, place, split)
    assert len(plan) == FOLDS
    everything = {sample.sha256 for sample in split.train}
    assert Counter(s.path for fold in plan for s in fold.held_out) == Counter(
        (place.cell / s.path).resolve().as_posix() for s in split.train
    )
    for fold in plan:
        held = {sample.sha256 for sample in fold.held_out}
        learned = {sample.sha256 for sample in read_split(fold.workspace.splits).train}
        assert learned == everything - held
        assert not {s.group for s in fold.held_out} & {s.group for s in fold.split.train}
        card = read_json(fold.workspace.adapter("datadream_dset") / "adapters.json", "")
        assert set(card["trained_on"]) == learned
        (adapter,) = read_adapters(fold.workspace.adapter("datadream_dset"))
        drawn = read_metadata(fold.workspace.synthetic("datadream_dset"))
        assert {image.adapter for image in drawn} == {adapter.sha256}
        for arm in arms(params):
            runs = read_json(fold.workspace.result("train", arm), "")["runs"]
            assert all(run["real_images"] in (0, len(fold.split.train)) for run in runs)
    # The delivered ones learn from all.
    card = read_json(place.adapter("datadream_dset") / "adapters.json", "")
    assert set(card["trained_on"]) == everything


def test_what_is_reported_is_of_the_pooled_predictions(world: tuple[Workspace, Params, dict[str, Any]]) -> None:
    place, _, evaluation = world
    split = read_split(place.splits)
    guesses = read_json(place.plots("evaluate") / "predictions.json", "")
    labels = np.array(guesses["labels"])
    assert labels.tolist() == [sample.label for sample in split.train]
    assert (evaluation["protocol"], evaluation["folds"], evaluation["test_images"]) == ("cv", FOLDS, 15)
    assert "estimate" in evaluation["accuracy_of"]
    # Zero-shot; the shots plain, strongly augmented, under a linear probe and simple classifiers; two recipes.
    assert len(evaluation["runs"]) == 1 + 3 + 3 + 2 * 3
    right = {key: np.array(guess) == labels for key, guess in guesses["predicted"].items()}
    for run in evaluation["runs"]:
        own = right[f"{run['arm']}/{run['train_on']}/{run['classifier']}"]
        assert run["accuracy"] == pytest.approx(own.mean(), abs=1e-4)
        assert run["majority"] == pytest.approx(1 / 3, abs=1e-4)
        assert 0 <= run["auroc"] <= 1
    for row in evaluation["differences"]:
        assert row["gained"] == (right[row["of"]] & ~right[row["minus"]]).sum()
        assert row["lost"] == (right[row["minus"]] & ~right[row["of"]]).sum()
        assert row["difference"] == pytest.approx((row["gained"] - row["lost"]) / 15, abs=1e-4)
        assert 0 < row["mcnemar_p"] <= 1
    for found in evaluation["sets"].values():
        assert (found["images"], found["n"], found["folds"]) == (9, 8, FOLDS)
        assert found["kid"] is not None
        assert len(found["near_duplicates"]["pairs"]) == 3
    assert "no gain is found" in evaluation["reach"]["warning"]


def test_a_folder_without_test_images_ends_in_a_classifier_that_labels_new_files(
    world: tuple[Workspace, Params, dict[str, Any]], tmp_path: Path
) -> None:
    place, params, evaluation = world
    assert evaluation["verdict"]["outcome"] == "cannot_tell"
    deliver.run(params, place, crossval.run)
    card = (place.classifier / "README.md").read_text()
    assert evaluation["verdict"]["sentence"] in card and "held out once" in card
    split = read_split(place.splits)
    root = photographs(tmp_path / "new")
    new = [root / f"{name}/{index}.png" for name in toy.CLASSES for index in range(6)]
    predict.run([str(path) for path in new], place.classifier, tmp_path / "out.csv", None)
    # The one that learned from all shots, and none of the folds'.
    whole = classifiers.load(place.classifiers(REAL) / "real_strong_resnet20")
    files = [Sample(str(path), 0, "", sha256(path.read_bytes())) for path in new]
    expected = whole.logits(arrays.real(files, place.cell, whole.size).images).argmax(1)
    with (tmp_path / "out.csv").open(newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [split.classes[label] for label in expected]


def test_delivered_probabilities_are_of_the_folds_that_were_scored(
    world: tuple[Workspace, Params, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, params, _ = world

    def learned(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is learned again")

    monkeypatch.setattr(train, "run", learned)
    run, split = Run(REAL, REAL_STRONG, "resnet20"), read_split(place.splits)
    folded = folds.test_folds(params, place, split)
    files = [fold.workspace.cell / "scored/real.safetensors" for fold in folded]
    found = np.concatenate([load_file(file)[str(run)] for file in files])
    labels = np.array([sample.label for fold in folded for sample in fold.held_out])
    calibrated = dataclasses.replace(params.deliver, calibrate=True)
    done = deliver.run(dataclasses.replace(params, deliver=calibrated), place, crossval.run)
    # All candidates are compared by the folds that score them, and the one with the least loss is delivered.
    rows = {row["run"]: row for row in done["candidates"]}
    assert {"real/real/nearest_pixels", "real/real/logistic_pixels", "real/real/forest_pixels", str(run)} <= set(rows)
    assert all(row["accuracy_folds"] == pytest.approx(row["accuracy"], abs=1e-4) for row in rows.values())
    best = min(rows.values(), key=lambda row: row["nll_folds"])
    assert best["delivered"] and best["run"] == f"real/{done['train_on']}/{done['classifier']}"
    assert rows[str(run)]["nll_folds"] == pytest.approx(nll(found / fit_temperature(found, labels), labels), abs=1e-3)
    best_found = np.concatenate([load_file(file)[best["run"]] for file in files])
    assert done["temperature"] == round(fit_temperature(best_found, labels), 4)
    # As it was for the tests that follow.
    monkeypatch.undo()
    assert deliver.run(params, place, crossval.run)["temperature"] == 1


def test_classifiers_of_folds_leave_only_their_logits(world: tuple[Workspace, Params, dict[str, Any]]) -> None:
    """Of the size of CLIP they would fill a disk."""
    place, params, _ = world
    cells = sorted(place.root.glob(".dreamset/folds/*/*/scored"))
    assert len(cells) == FOLDS
    assert not [path for cell in cells for path in cell.parent.rglob(fitting.RECORD)]
    kept = [read_json(place.classifiers(arm) / train.SHARDS, "") for arm in arms(params)]
    assert {key for keys in kept for key in keys} <= {path.name for path in place.shards.iterdir()}


def test_near_duplicates_of_held_out_images_are_counted_over_all_folds(
    world: tuple[Workspace, Params, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dreamset.metrics.compare import Reference

    whole = Reference.compare

    def three(self: Reference, synthetic: Any) -> Any:
        found = whole(self, synthetic)
        leaks = found.record["near_duplicates_test"] | {"count": 3, "share": 1 / 3}
        return replace(found, record=found.record | {"near_duplicates_test": leaks})

    monkeypatch.setattr(Reference, "compare", three)
    place, params, _ = world
    for found in evaluate.run(params, place, crossval.run)["sets"].values():
        leaks = found["near_duplicates_test"]
        assert (leaks["count"], leaks["share"]) == (3 * FOLDS, pytest.approx(1 / 3, abs=1e-4))


def test_the_pooled_logits_are_those_of_each_fold(world: tuple[Workspace, Params, dict[str, Any]]) -> None:
    """A fold's classifier, trained again by hand on its manifest, says the same of what was held out."""
    place, params, _ = world
    split = read_split(place.splits)
    fold = folds.test_folds(params, place, split)[1]
    train.run(params, fold.workspace, REAL)
    predictor = classifiers.load(fold.workspace.classifiers(REAL) / "real_resnet20")
    images = arrays.real(fold.held_out, fold.workspace.cell, predictor.size).images
    guess = predictor.logits(images).argmax(1).tolist()
    pooled = read_json(place.plots("evaluate") / "predictions.json", "")["predicted"]["real/real/resnet20"]
    at = {(place.cell / sample.path).resolve().as_posix(): i for i, sample in enumerate(split.train)}
    assert [pooled[at[sample.path]] for sample in fold.held_out] == guess


def test_nothing_that_learns_in_a_fold_opens_what_is_held_out(
    world: tuple[Workspace, Params, dict[str, Any]], tmp_path: Path
) -> None:
    place, params, _ = world
    split = read_split(place.splits)
    # In a place of its own, so that no shard and no logit is there yet.
    plan = moved(folds.test_folds(params, place, split)[:1], tmp_path, tmp_path)
    (tmp_path / "models").symlink_to(place.root / "models")
    seen: list[tuple[folds.Fold, list[str]]] = []

    def score(fold: folds.Fold, arm: str) -> folds.Predictions:
        seen.append((fold, list(files)))
        files.clear()
        run = Run(arm, SYNTHETIC, "resnet20")
        return folds.Predictions({run: np.zeros((len(fold.held_out), 3), np.float32)}, {run: 1.0})

    score.__module__ = LOGITS  # stored logits are keyed by the module that computes them
    with opened() as files:
        crossval.run(params, plan, score)
    assert len(seen) == 3
    for fold, opened_files in seen:
        held = {os.path.realpath(sample.path) for sample in fold.held_out}
        shots = {os.path.realpath(sample.path) for sample in fold.split.train}
        assert shots & set(opened_files)
        assert not held & set(opened_files)
        # Written before, and read by nobody.
        manifest = os.path.realpath(fold.workspace.test_split)
        assert manifest not in opened_files
        assert os.path.realpath(place.test_split) not in opened_files


def test_a_killed_run_goes_on_to_the_same_numbers(
    world: tuple[Workspace, Params, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, params, evaluation = world
    other = Workspace(place.root, tmp_path / "cell")
    for part in ("data", "models", "results"):
        shutil.copytree(place.cell / part, other.cell / part)
    calls: list[tuple[str, str]] = []
    whole = train.run

    def counted(params: Params, workspace: Workspace, arm: str, **named: Any) -> dict[str, Any]:
        calls.append((workspace.cell.name, arm))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(params, workspace, arm, **named)

    monkeypatch.setattr(train, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(params, other, crossval.run)
    again = evaluate.run(params, other, crossval.run)
    # The fourth is the only one that is done twice.
    assert [calls.count(call) for call in dict.fromkeys(calls)] == [1] * 3 + [2] + [1] * 2
    assert again == evaluation
    done = len(calls)
    # What only counts differently trains nothing; another recipe trains nothing of the others.
    wider = dataclasses.replace(params, evaluate=dataclasses.replace(params.evaluate, confidence=0.9))
    assert evaluate.run(wider, other, crossval.run)["confidence"] == 0.9
    fewer = dataclasses.replace(params, active=params.active[:1])
    evaluate.run(fewer, other, crossval.run)
    assert len(calls) == done
    slower = dataclasses.replace(params, train=dataclasses.replace(params.train, selections=2))
    evaluate.run(slower, other, crossval.run)
    assert len(calls) == done + FOLDS * 3


def test_an_image_that_is_changed_makes_its_folds_again(
    world: tuple[Workspace, Params, dict[str, Any]], tmp_path: Path
) -> None:
    place, params, _ = world
    split = read_split(place.splits)
    plan = moved(folds.test_folds(params, place, split), place.root, tmp_path)
    first = plan[0]
    crossval._write_manifests(first)
    atomic_write(first.workspace.cell / "scored/real.json", "{}")
    crossval._write_manifests(first)
    assert (first.workspace.cell / "scored/real.json").is_file()
    other = dataclasses.replace(first.held_out[0], sha256="0" * 64)
    crossval._write_manifests(dataclasses.replace(first, held_out=(other, *first.held_out[1:])))
    assert not (first.workspace.cell / "scored").exists()


def test_a_retrieved_fold_is_made_again_when_what_is_searched_changes(
    world: tuple[Workspace, Params, dict[str, Any]], tmp_path: Path, tiny_generator: Path
) -> None:
    place, _, _ = world
    pool = photographs(tmp_path / "pool")
    params = small(place, tiny_generator, active=["retrieved"], models__bundled__retrieval=f"imagefolder:{pool}")
    fold = folds.test_folds(params, place, read_split(place.splits))[0]
    before = {arm: crossval._made_with(params, fold, arm, LOGITS) for arm in arms(params)}
    (pool / "bar/0.png").unlink()
    after = {arm: crossval._made_with(params, fold, arm, LOGITS) for arm in arms(params)}
    assert after["real"] == before["real"]
    assert after["retrieved"] != before["retrieved"]


def test_logits_that_are_made_again_never_stand_beside_an_older_record(
    world: tuple[Workspace, Params, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, params, _ = world
    own = folds.test_folds(params, place, read_split(place.splits))[0]
    fold = dataclasses.replace(own, workspace=Workspace(place.root, tmp_path / "fold"))
    crossval._write_manifests(fold)
    record = fold.workspace.cell / "scored/real.json"
    atomic_write(record, '{"made_with": "older", "sha256": "", "temperatures": {}}')
    atomic_write(record.with_suffix(".safetensors"), "older")

    def held(params: Params, workspace: Workspace, arm: str, **_: Any) -> None:
        assert not record.exists()
        Path(fold.held_out[0].path).read_bytes()

    monkeypatch.setattr(train, "run", held)
    # And what is held out is closed to all that learns.
    with pytest.raises(RuntimeError, match="only evaluate opens"):
        crossval.run(params, [fold], logits.scorer(params, []))
    assert not record.exists()


def test_the_dry_run_says_what_it_costs_and_what_can_be_shown(
    world: tuple[Workspace, Params, dict[str, Any]],
) -> None:
    place, params, evaluation = world
    with opened() as files:
        shown = describe(params, place, "evaluate", None)
    assert os.path.realpath(place.test_split) not in files
    flat = " ".join(shown.split())
    assert "cv, 2 folds" in flat
    # Two folds: 2 steps of one adapter, 2 recipes x 9 images, 8 classifiers x 4 steps and a linear probe's 6.
    assert "4 adapter steps, 36 images and 76 classifier steps" in flat
    assert "On 15 images" in flat
    assert evaluation["reach"]["words"] in flat


def test_another_protocol_than_the_splits_is_refused(world: tuple[Workspace, Params, dict[str, Any]]) -> None:
    place, params, _ = world
    other = dataclasses.replace(params, evaluate=dataclasses.replace(params.evaluate, protocol="test"))
    with pytest.raises(InputError, match=r"drawn for evaluate\.protocol: cv"):
        evaluate.run(other, place, crossval.run)

"""What chooses: each rule's labels, folds that adapt without what they hold out, and the one-standard-error rule."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toy
from dreamset import adapt, classifiers, generate, prepare, train
from dreamset import params as parameters
from dreamset.classifiers import fit, fitting, selection
from dreamset.classifiers.parts import Part, learned
from dreamset.command import plan
from dreamset.command.cli import main
from dreamset.core.errors import InputError
from dreamset.core.files import read_json
from dreamset.core.workspace import Workspace
from dreamset.data import folds
from dreamset.data.runs import BOTH_STRONG, REAL_ONLY, Run
from dreamset.data.splits import Sample, Split, read_split, write_split

RECIPE = "datadream_dset"


def short(**changes: Any) -> parameters.Params:
    """One classifier that trains for an instant."""
    return toy.params(**{"train__classifiers": ["resnet20"], "train__baselines": [], **changes})


def ungrouped(split: Split) -> Split:
    """Every image a group of its own."""
    own = tuple(dataclasses.replace(sample, group=sample.path) for sample in split.train)
    return dataclasses.replace(split, train=own)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        # 36 of 40 is the best; its error with one more right and one more wrong is 0.050.
        ([{1: 0.75, 2: 0.90, 3: 0.875}], (0, 3)),
        ([{1: 0.75, 2: 0.90, 3: 0.80}], (0, 2)),
        ([{1: 0.50, 2: 0.60}, {1: 0.60, 2: 0.60}], (0, 2)),
        ([{1: 0.875, 2: 0.70}, {1: 0.90, 2: 0.90}], (0, 1)),
        ([{1: 0.50, 2: 0.55}, {1: 0.80, 2: 0.75}, {1: 0.90, 2: 0.875}], (2, 2)),
        ([{1: 0.50}, {2: 0.90}, {3: 0.90}], (1, 2)),
    ],
)
def test_what_is_within_one_standard_error_of_the_best_gives_way_to_the_row_and_the_last_step(
    scores: list[dict[int, float]], expected: tuple[int, int]
) -> None:
    choice = selection.choose(scores, 40)
    assert (choice.configuration, choice.step) == expected
    assert choice.best == max(max(steps.values()) for steps in scores)
    assert choice.threshold == pytest.approx(choice.best - selection.standard_error(choice.best, 40))
    assert choice.accuracy == scores[choice.configuration][choice.step]


def test_no_wrong_image_is_no_certainty_and_many_images_are_nearly_one() -> None:
    assert selection.standard_error(1.0, 8) == pytest.approx((0.9 * 0.1 / 10) ** 0.5)
    assert selection.choose([{1: 1.0, 2: 7 / 8}], 8).step == 1
    assert selection.choose([{1: 0.9, 2: 0.89}], 40).step == 2
    assert selection.choose([{1: 0.9, 2: 0.89}], 4000).step == 1


def test_every_arm_tries_the_same_configurations_and_the_row_first() -> None:
    row, probe = (toy.params().base.train.rows[name].course(500) for name in ("resnet20", "linear_probe"))
    found = selection.configurations(row, 0.8, 6, 0)
    assert found == selection.configurations(row, 0.8, 6, 0)
    assert found[:3] == selection.configurations(row, 0.8, 3, 0)
    assert found[0].of(row) == row
    assert (found[0].mixup, found[0].real_weight) == (0, 0.8)
    assert found[1:] != selection.configurations(row, 0.8, 6, 1)[1:]
    assert len({own.lr for own in found}) == 6
    for own, other in zip(found, selection.configurations(probe, 0.8, 6, 0), strict=True):
        assert own.lr / row.lr == pytest.approx(other.lr / probe.lr)
        assert 1 / 4 <= own.lr / row.lr <= 4
        assert row.steps // 2 <= own.steps <= 2 * row.steps
        assert (own.mixup, own.real_weight) == (other.mixup, other.real_weight)


@pytest.mark.parametrize(
    ("rule", "counts"),
    [("fixed", (8, 0)), ("cv", (8, 0)), ("extra:3", (8, 3)), ("coop", (8, 4))],
)
def test_each_rule_sets_its_own_number_of_labels_apart(
    raw: dict[str, Any], tmp_path: Path, rule: str, counts: tuple[int, int]
) -> None:
    params = toy.parse(raw | {"selection": rule, "shots": 8})
    place = Workspace.at(tmp_path)
    summary = prepare.run(params, place)
    split = read_split(place.splits)
    assert (summary["train"], summary["selection"]) == (10 * counts[0], 10 * counts[1])
    assert set(Counter(sample.label for sample in split.train).values()) == {counts[0]}
    assert all(n == counts[1] for n in Counter(sample.label for sample in split.selection).values())


def test_holdout_takes_its_labels_out_of_the_shots(raw: dict[str, Any], tmp_path: Path) -> None:
    whole, part = Workspace.at(tmp_path / "whole"), Workspace.at(tmp_path / "part")
    prepare.run(toy.parse(raw | {"shots": 8}), whole)
    prepare.run(toy.parse(raw | {"shots": 8, "selection": "holdout"}), part)
    shots, split = read_split(whole.splits).train, read_split(part.splits)
    assert {sample.sha256 for sample in (*split.train, *split.selection)} == {sample.sha256 for sample in shots}
    assert len(split.train) + len(split.selection) == 80
    assert not {sample.group for sample in split.train} & {sample.group for sample in split.selection}
    for side in (split.train, split.selection):
        assert {sample.label for sample in side} == set(range(10))


@pytest.mark.parametrize(("shots", "held"), [(2, 1), (3, 1), (5, 1), (8, 2), (16, 4)])
def test_holdout_is_a_quarter_of_each_class_and_at_least_one(tmp_path: Path, shots: int, held: int) -> None:
    split = folds.holdout(ungrouped(toy.write_splits(Workspace.at(tmp_path), shots=shots)))
    assert Counter(sample.label for sample in split.selection) == dict.fromkeys(range(3), held)
    assert Counter(sample.label for sample in split.train) == dict.fromkeys(range(3), shots - held)


def test_one_shot_cannot_be_held_out(raw: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"selection: holdout cannot take .* \(class 'zero' has 1\); raise shots"):
        prepare.run(toy.parse(raw | {"shots": 1, "selection": "holdout"}), Workspace.at(tmp_path))


def test_copies_of_a_file_are_held_out_together(tmp_path: Path) -> None:
    split = ungrouped(toy.write_splits(Workspace.at(tmp_path), shots=4))
    rows = list(split.train)
    rows[1] = dataclasses.replace(rows[1], sha256=rows[0].sha256)
    split = dataclasses.replace(split, train=tuple(rows))
    for held in (folds.holdout(split).selection, *folds.held_out(split, 4, "selection")):
        assert (rows[0] in held) == (rows[1] in held)


def test_no_fold_leaves_a_class_without_images() -> None:
    # Two groups a class, one of them shared: a careless division holds both out at once.
    def sample(index: int, label: int, group: str) -> Sample:
        return Sample(f"{index}", label, group, f"{index}")

    def split(*groups: str, seed: int = 0) -> Split:
        rows = [sample(3 * label + i, label, g) for label, own in enumerate(groups) for i, g in enumerate(own)]
        return Split("toy", toy.CLASSES, "a {class}", (), 3, seed, tuple(rows), ())

    for seed in range(20):
        whole = split("abb", "cdd", "acc", seed=seed)
        for held in folds.held_out(whole, 2, "selection"):
            assert {row.label for row in whole.train if row not in held} == {0, 1, 2}
    # Three groups, each pair of them all that some class has: two of them are always together.
    with pytest.raises(InputError, match="cannot be divided into 2 folds"):
        folds.held_out(split("abb", "acc", "bcc"), 2, "selection")


def test_rules_that_make_no_sense_are_refused(raw: dict[str, Any], tmp_path: Path) -> None:
    for wrong in ("extra", "extra:0", "extra:-1", "extra:x", "best", "cv:3"):
        with pytest.raises(InputError, match="selection: expected fixed, holdout, cv, coop or extra:N"):
            toy.parse(raw | {"selection": wrong})
    many = copy.deepcopy(raw)
    many["train"]["configurations"] = 3
    with pytest.raises(InputError, match=r"train.configurations: 3 cannot be chosen among with selection: fixed"):
        toy.parse(many)
    toy.parse(many | {"selection": "cv"})
    place = Workspace.at(tmp_path)
    toy.write_splits(place, selection=2)
    with pytest.raises(InputError, match=r"has some selection images, unlike selection: fixed; run `dreamset prepare"):
        train.run(short(), place, "real")


def test_selection_images_change_the_choice_and_nothing_else(tmp_path: Path) -> None:
    """Their labels poisoned, every candidate is the same classifier with the same curve of losses."""
    found = {}
    changes: dict[str, Any] = {"selection": "extra:3", "train__configurations": 2}
    params = short(**changes, models__bundled__train__resnet20__steps=9)
    for name in ("clean", "poisoned"):
        place = Workspace.at(tmp_path / name)
        split = toy.write_splits(place, selection=3)
        if name == "poisoned":
            rows = [dataclasses.replace(row, label=(row.label + 1) % 3) for row in split.selection]
            write_split(place.splits, dataclasses.replace(split, selection=tuple(rows)))
        part = Part(params, place, read_split(place.splits), "real", place.shards)
        run = Run("real", REAL_ONLY, "resnet20")
        fitted = [fitting._fit(part, run, own) for own in fitting.configurations(part, "resnet20")]
        found[name] = [history for _, history, _ in fitted]
    assert len(found["clean"]) == 2
    for clean, poisoned in zip(found["clean"], found["poisoned"], strict=True):
        assert clean.losses == poisoned.losses
        assert clean.logits.keys() == poisoned.logits.keys()
        assert all(np.array_equal(clean.logits[step], poisoned.logits[step]) for step in clean.logits)
        for step, state in clean.states.items():
            assert all(bool((value == poisoned.states[step][key]).all()) for key, value in state.items())


def test_the_saved_classifier_is_the_candidate_that_was_chosen(tmp_path: Path) -> None:
    place = Workspace.at(tmp_path)
    toy.write_splits(place, selection=5)
    toy.write_synthetic(place, RECIPE)
    changes = {f"models__bundled__train__resnet20__{key}": value for key, value in {"steps": 12, "lr": 0.01}.items()}
    params = short(selection="extra:5", train__configurations=3, **changes)
    runs = [run for arm in ("real", RECIPE) for run in train.run(params, place, arm)["runs"]]
    tried = {run["train_on"]: [own["configuration"] for own in run["tried"]] for run in runs}
    assert len(tried.pop("real_more")) == 1
    # Strong augmentation mixes where the configuration itself does not, and by CutMix too; the record says so.
    strong = [own | {"mixup": own["mixup"] or fit.MIXUP, "cutmix": fit.CUTMIX} for own in tried["real"]]
    assert tried.pop("real_strong") == tried.pop("both_strong") == strong != tried["real"]
    assert len(tried) == 3 and all(own == tried["real"] and len(own) == 3 for own in tried.values())
    assert tried["real"][0]["mixup"] == tried["real"][0]["cutmix"] == 0
    split = read_split(place.splits)
    for run in runs:
        arm = "real" if run["train_on"].startswith("real") else RECIPE
        folder = place.classifiers(arm) / f"{run['train_on']}_resnet20"
        predictor, record = classifiers.load(folder), read_json(folder / classifiers.RECORD, "")
        assert predictor.temperature == record["temperature"] == run["temperature"]
        if run["train_on"] == "real_more":
            assert (run["chosen_step"], run["temperature"], run["temperature_images"]) == (12, 1.0, 0)
            assert (run["selection"], run["choice"], run["tried"][0]["scores"]) == ("fixed", None, [])
            continue
        choice = run["choice"]
        assert run["configuration"] == run["tried"][choice["configuration"]]["configuration"]
        assert run["chosen_step"] == choice["step"]
        part = Part(params, place, split, "real", place.shards)
        data = part.of(predictor.classifier)[1]
        right = (predictor.logits(data.images).argmax(1) == data.labels).mean()
        scores = {row["step"]: row["accuracy"] for row in run["tried"][choice["configuration"]]["scores"]}
        assert right == pytest.approx(scores[choice["step"]], abs=1e-4)
        assert run["temperature_images"] == 15


def test_images_that_are_held_out_steer_no_training_that_they_score(tmp_path: Path) -> None:
    place = Workspace.at(tmp_path)
    toy.write_splits(place, selection=5)
    row = {"schedule": "plateau", "steps": 12}
    params = short(selection="extra:5", **{f"models__bundled__train__resnet20__{key}": row[key] for key in row})
    (found,) = train.held_out(params, place, [Run("real", REAL_ONLY, "resnet20")]).values()
    assert found.shape == (len(read_split(place.splits).train), len(toy.CLASSES)) and np.isfinite(found).all()


@pytest.fixture
def folded(small: dict[str, Any], tmp_path: Path) -> tuple[parameters.Params, Workspace]:
    """Four shots of each of three classes, on the random generator."""
    small |= {"selection": "cv", "shots": 4, "active": [RECIPE]}
    small["train"] |= {"classifiers": ["resnet20"], "baselines": [], "selections": 2, "configurations": 2}
    small["models"]["bundled"]["train"]["resnet20"] |= {"width": 4, "steps": 4, "warmup": 1, "batch": 8}
    small["models"]["bundled"]["adapt"] |= {"sample_every": 1000}
    params, place = toy.parse(small), Workspace.at(tmp_path)
    toy.write_splits(place)
    place.test_split.unlink()
    adapt.run(params, place, RECIPE)
    generate.run(params, place, RECIPE)
    return params, place


def test_cv_repeats_all_of_the_method_without_what_a_fold_holds_out(
    folded: tuple[parameters.Params, Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    params, place = folded
    split = read_split(place.splits)
    seen: list[tuple[set[str], int | None]] = []
    plain = fit.fit

    def recorded(classifier: Any, sources: Any, chosen_on: Any, *rest: Any, **named: Any) -> Any:
        names = {name for source in sources if source.name == "real" for name in source.data.names}
        assert not names & set(chosen_on.names)
        seen.append((names, named["stop"]))
        return plain(classifier, sources, chosen_on, *rest, **named)

    monkeypatch.setattr(fit, "fit", recorded)
    first = train.run(params, place, RECIPE)
    count = len(folds.held_out(split, folds.SELECTING, "selection"))
    assert count >= 2
    # Three kinds and two configurations a fold, then each kind once on all the shots.
    assert len(seen) == 6 * count + 3
    assert seen[-1][0] == {sample.path for sample in split.train}
    held_everywhere: list[str] = []
    for index in range(count):
        own = folds.at(place, "selection", index)
        manifest = read_split(own.splits)
        learned, held = ({row.sha256 for row in rows} for rows in (manifest.train, manifest.selection))
        assert held and not held & learned
        assert len(manifest.train) + len(manifest.selection) == len(split.train)
        adapted = read_json(own.adapter(RECIPE) / "adapters.json", "")
        assert set(adapted["trained_on"]) == learned
        drawn = {row["sha256"] for row in adapted["adapters"]}
        assert drawn == {image.adapter for image in _images(own)} != {image.adapter for image in _images(place)}
        held_everywhere += sorted(held)
    assert sorted(held_everywhere) == sorted(row.sha256 for row in split.train)
    for run in first["runs"]:
        assert (run["labels_train_per_class"], run["labels_selection_per_class"]) == (4, 4)
        assert (run["selection"], run["temperature_images"]) == ("cv", 12)
        assert run["chosen_step"] == run["choice"]["step"] == len(run["loss"])
        assert len(run["tried"]) == 2

    # What folds use is not garbage.
    (place.root / "params.yaml").write_text((toy.ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(place.root)
    main(["gc"])

    # Classifiers are learned again, to the same numbers; adapters and images are what they were.
    fitted = {path.parent for path in place.shards.glob(f"*/{fitting.RECORD}")}
    assert len(fitted) == 6 * count + 3
    for folder in fitted:
        shutil.rmtree(folder)
    writing = fitting.shards.writing

    def only_classifiers(store: Path, key: str, size: int | None = None) -> Any:
        assert store / key in fitted, "work that was done is done again"
        return writing(store, key, size)

    monkeypatch.setattr(fitting.shards, "writing", only_classifiers)
    again = train.run(params, place, RECIPE)
    # What the folds adapted and drew, once for all runs: the same though it was made before.
    places = [folds.at(place, "selection", index) for index in range(count)]
    parts = [read_json(own.result(stage, RECIPE), "") for own in places for stage in ("adapt", "generate")]
    spent = sum(part["seconds"] for part in parts)
    assert first["seconds_folds"] == again["seconds_folds"] == pytest.approx(spent, abs=0.01)
    assert spent > 0
    timed = ("seconds", "images_per_second")
    for one, two in zip(first["runs"], again["runs"], strict=True):
        assert {k: v for k, v in one.items() if k not in timed} == {k: v for k, v in two.items() if k not in timed}
    assert "folds, each adapted and drawn again: 4" in plan.describe(params, place, "train", RECIPE)

    # Delivery compares by the same folds, and makes nothing anew for it.
    before = {path.parent for path in place.shards.glob(f"*/{fitting.RECORD}")}
    logits = train.held_out(params, place, [Run(RECIPE, BOTH_STRONG, "resnet20")])
    assert [one.shape for one in logits.values()] == [(12, 3)]
    assert {path.parent for path in place.shards.glob(f"*/{fitting.RECORD}")} == before


def _images(place: Workspace) -> list[Any]:
    from dreamset.data.synthetic import read_metadata

    return read_metadata(place.synthetic(RECIPE))


# 60 epochs of 100 classes with 500 images each, in batches of 256 (DataDream); then few images, and many.
@pytest.mark.parametrize(("images", "steps"), [(50_000, 11_700), (500, 1_000), (10**6, 20_000)])
def test_steps_follow_the_images_within_limits(images: int, steps: int) -> None:
    rule = {"epochs": 60, "low": 1000, "high": 20_000}
    row = toy.params(models__sd21_base__train__clip_lora__steps=rule).models["sd21_base"].train.rows["clip_lora"]
    course = row.course(images)
    assert (course.steps, course.warmup) == (steps, min(1170, steps // 10))
    assert course.batch == row.batch


def test_a_number_of_steps_stays_and_a_wrong_rule_is_named() -> None:
    row = toy.params(models__bundled__train__resnet20__steps=90).base.train.rows["resnet20"]
    assert {row.course(images).steps for images in (1, 10**6)} == {90}
    key = "models.bundled.train.resnet20.steps"
    for wrong, words in (
        ({"epochs": 3, "low": 1}, rf"{key}\.high: is missing"),
        ({"epochs": 0, "low": 1, "high": 2}, rf"{key}\.epochs: expected a number above 0"),
        ({"epochs": 1, "low": 3, "high": 2}, rf"{key}: expected low of at most high"),
        ("auto", rf"{key}: expected an integer of at least 1 or a mapping of epochs, low, high, got 'auto'"),
    ):
        with pytest.raises(InputError, match=words):
            toy.params(models__bundled__train__resnet20__steps=wrong)


def test_all_arms_and_all_folds_take_the_steps_of_the_whole(tmp_path: Path) -> None:
    place = Workspace.at(tmp_path)
    split = toy.write_splits(place, shots=8)
    toy.write_synthetic(place, "stable_diffusion", per_class=6)
    rule = {"epochs": 1, "low": 1, "high": 100}
    params = short(
        selection="cv",
        generate__per_class=6,
        models__bundled__train__resnet20__steps=rule,
        models__bundled__train__resnet20__batch=2,
    )
    # 24 shots, which are more than the 18 synthetic images; a fold has 18 of them.
    assert learned(params, split) == 24
    train.run(params, place, "real")
    record = read_json(place.result("train", "real"), "x")
    assert {run["steps"] for run in record["runs"]} == {12}
    assert {max(point["step"] for point in run["selection_curve"]) for run in record["runs"]} == {12}
    scored = Part(params, place, split, "stable_diffusion", place.shards)
    assert [own.steps for own in fitting.configurations(scored, "resnet20")] == [12]

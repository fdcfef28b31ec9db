"""The score of a trial: its rungs, its noise, the real images that score it, and the study that it belongs to."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import optuna
import pytest

import toy
from dreamset import adapt, generate, tune
from dreamset.core.errors import InputError
from dreamset.core.files import write_json
from dreamset.core.seeds import image_seed
from dreamset.core.workspace import Workspace
from dreamset.data import arrays
from dreamset.data.adapters import read_adapters
from dreamset.data.splits import read_split
from dreamset.data.synthetic import read_metadata, write_metadata
from dreamset.data.work import Work
from dreamset.generator.trainings import Training
from dreamset.study import kills, rungs
from dreamset.study import objective as scoring
from dreamset.study.objective import Holdout, Objective
from small_study import BASE, LORA, PLAIN, RUNGS, parameters, record, scored_by

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dreamset.params import Params


@pytest.fixture
def small(tiny_generator: Path) -> Callable[..., Params]:
    return parameters(tiny_generator)


def test_every_rung_is_reported_and_the_last_is_never_asked(
    small: Callable[..., Params], place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored_by(monkeypatch, lambda knobs, rung: rung / 10)
    asked: list[int] = []

    class Watched(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            asked.append(trial.last_step or 0)
            # Would throw away what is paid for, if it were asked.
            return trial.last_step == RUNGS[-1]

    made = tune.objective(Work.read(small(), place, PLAIN))
    study = optuna.create_study(direction="maximize", pruner=Watched())
    study.optimize(made, n_trials=2)
    assert asked == RUNGS[:-1] * 2
    for trial in study.trials:
        assert trial.state == optuna.trial.TrialState.COMPLETE
        assert trial.intermediate_values == {rung: rung / 10 for rung in RUNGS}
        assert trial.value == RUNGS[-1] / 10


def test_rungs_are_prefixes_on_noise_that_is_the_trials_own(small: Callable[..., Params], place: Workspace) -> None:
    params = small()
    adapt.run(params, place, PLAIN)
    seeds, pixels = [], []
    for values in ({"guidance": 2.0, "steps": 2}, {"guidance": 4.0, "steps": 2}):
        chosen = params.with_values(PLAIN, values)
        before: dict[tuple[int, int], str] = {}
        for rung in RUNGS:
            summary = generate.run(rungs.params_at(chosen, PLAIN, rung, 3), place, PLAIN)
            rows = read_metadata(place.synthetic(PLAIN))
            assert summary["images"] == summary["drawn"] == 3 * rung
            found = {(row.label, row.index): row.sha256 for row in rows}
            assert before.items() <= found.items()
            before = found
        seeds.append([row.seed for row in rows])
        pixels.append(before)
    assert seeds[0] == seeds[1]
    assert pixels[0] != pixels[1]
    # No trial has drawn what `generate` draws.
    kept = {image_seed(params.seed, name, index) for name in toy.CLASSES for index in range(50)}
    assert not kept & set(seeds[0])


def test_rungs_hold_every_strength_of_an_adapter_and_nothing_beyond(
    small: Callable[..., Params], place: Workspace
) -> None:
    params = small(**{f"recipes__{LORA}__adapter_scales": [0.0, 1.0], f"{BASE}tune__per_class": [2, 4]})
    adapt.run(params, place, LORA)
    for rung in (2, 4):
        summary = generate.run(rungs.params_at(params, LORA, rung, 3), place, LORA)
        assert summary["images"] == summary["drawn"] == 3 * rung
        strengths = [row.adapter_scale for row in read_metadata(place.synthetic(LORA)) if row.label == 1]
        assert strengths == [None, 1.0] * (rung // 2)
    with pytest.raises(InputError, match=r"adapter_scales: a study draws 3, 9 images per class, and 2 scales do not"):
        small(
            **{
                f"recipes__{LORA}__adapter_scales": [0.0, 1.0],
                f"recipes__{LORA}__search": {"guidance": {"low": 1.0, "high": 3.0}},
                f"{BASE}tune__per_class": [3, 9],
            }
        )


def test_adapters_are_trained_once_per_fold_and_scored_on_the_others(
    small: Callable[..., Params], place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = toy.write_splits(place, shots=2)
    params = small(
        active=[LORA],
        tune__trials=2,
        tune__pruner="none",
        **{f"{BASE}tune__per_class": [1, 2], f"recipes__{LORA}__search": {"guidance": {"low": 1.0, "high": 5.0}}},
    )
    holdouts = scoring.holdouts(Work(params, place, split, LORA))
    assert len(holdouts) == 2
    for own in holdouts:
        assert not {s.sha256 for s in own.scored} & {s.sha256 for s in own.split.train}
    assert sorted(s.sha256 for own in holdouts for s in own.scored) == sorted(s.sha256 for s in split.train)
    trained = []
    train_jobs = adapt._train

    def counted(work: Work, training: Training) -> None:
        trained.extend(job.key for job in training.jobs if not (work.workspace.shards / job.key).is_dir())
        train_jobs(work, training)

    monkeypatch.setattr(adapt, "_train", counted)
    tune.run(params, place, LORA)
    found = record(place, LORA)
    assert found["selection"] == {"rule": "cv", "folds": 2, "images": 6, "labels_per_class": 2.0}
    assert [trial["state"] for trial in found["trials"]] == ["COMPLETE"] * 2
    assert len(trained) == len(set(trained)) == 2
    assert [trial["images"] for trial in found["trials"]] == [2 * 3 * 2] * 2
    # One image of a class cannot be both learned from and scored.
    alone = toy.write_splits(place, shots=1)
    with pytest.raises(InputError, match=f"recipes.{LORA}.search: with selection: fixed a study scores folds"):
        scoring.holdouts(Work(params, place, alone, LORA))
    assert read_adapters(place.tuned(LORA)) == []


@pytest.mark.parametrize("selection", ["fixed", "extra:2"])
def test_the_real_images_that_score_are_those_of_the_rule(
    small: Callable[..., Params], tmp_path: Path, selection: str
) -> None:
    place = Workspace.at(tmp_path)
    split = toy.write_splits(place, selection=0 if selection == "fixed" else 2)
    params = small(selection=selection, tune__trials=1, **{f"{BASE}tune__per_class": [1]})
    (held,) = scoring.holdouts(Work(params, place, split, PLAIN))
    wanted = split.train if selection == "fixed" else split.selection
    assert [sample.sha256 for sample in held.scored] == [sample.sha256 for sample in wanted]
    tune.run(params, place, PLAIN)
    assert record(place)["selection"]["images"] == len(wanted)


def test_fid_is_measured_to_the_real_images_that_score(small: Callable[..., Params], place: Workspace) -> None:
    tune.run(small(tune__max_fid=1e6, tune__trials=1), place, PLAIN)
    found = record(place)
    assert found["trials"][0]["fid"] > 0
    # Four shots and four synthetic images of each of three classes.
    assert found["limits"] == {"max_seconds_per_image": None, "max_fid": 1e6, "fid_images": 12}
    # A process that runs no trial of its own finds it in the store.
    place.result("tune", PLAIN).unlink()
    tune.run(small(tune__max_fid=1e6, tune__trials=1), place, PLAIN)
    assert record(place)["limits"]["fid_images"] == 12


def test_another_study_begins_when_its_scores_would_differ(small: Callable[..., Params], place: Workspace) -> None:
    split = read_split(place.splits)

    def key(params: Params, own: Any = split, recipe: str = PLAIN) -> str:
        return tune.objective(Work(params, place, own, recipe)).name

    before = key(small())
    for same in ({"tune__trials": 99}, {"tune__heartbeat_s": 7}, {"tune__storage": "sqlite:///b.db"}, {"shots": 7}):
        assert key(small(**same)) == before, same
    for other in (
        {"seed": 1},
        {"tune__sampler": "random"},
        {"tune__pruner": "none"},
        {"tune__objectives": "cas_and_seconds"},
        {"tune__max_fid": 9.0},
        {f"{BASE}tune__steps": 5},
        {f"{BASE}tune__per_class": [1, 2]},
        {f"{BASE}generate__scheduler": "ddim"},
        {f"{BASE}train__resnet20__lr": 1e-4},
        {f"{BASE}train__crop": 0.5},
        {f"recipes__{PLAIN}__prompt": "label"},
        {f"recipes__{PLAIN}__search__steps__high": 4},
    ):
        assert key(small(**other)) != before, other
    fewer = dataclasses.replace(split, train=split.train[1:])
    assert key(small(), fewer) != before
    # Where the files lie does not matter, so that workers on other machines share the study.
    moved = tuple(dataclasses.replace(sample, path=f"/elsewhere/{sample.path}") for sample in split.train)
    assert key(small(), dataclasses.replace(split, train=moved)) == before


def test_a_trial_s_sheet_is_there_from_its_first_rung_on(
    small: Callable[..., Params], place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(knobs: dict[str, Any], rung: int) -> float:
        told.append(f"scored {rung}")
        if rung > RUNGS[0]:
            raise InputError("black images.")
        return 0.5

    told: list[str] = []
    scored_by(monkeypatch, score)
    made = tune.objective(Work.read(small(), place, PLAIN), lambda trial, folder: told.append("drawn"))
    study = optuna.create_study(direction="maximize")
    with pytest.raises(InputError):
        study.optimize(made, n_trials=1)
    assert told == ["drawn", f"scored {RUNGS[0]}", f"scored {RUNGS[1]}"]


def test_a_score_is_the_share_of_real_images_that_are_right(
    small: Callable[..., Params], place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tune.objective(Work.read(small(), place, PLAIN))
    made.holdouts = [
        Holdout(made.holdouts[0].split, made.holdouts[0].scored[:5]),
        Holdout(made.holdouts[0].split, made.holdouts[0].scored[5:]),
    ]
    each = [np.arange(5) < 2, np.arange(7) >= 0]
    monkeypatch.setattr(Objective, "_right", lambda self, params, own, index, rung: each[index])
    score, right = made._score(made.params, [place, place], 1)
    assert score == 9 / 12 and right.tolist() == [True] * 2 + [False] * 3 + [True] * 7
    monkeypatch.undo()
    # A classifier that learns from the very images that it is scored on, as synthetic ones.
    toy.write_synthetic(place, PLAIN, per_class=8)
    params = small(**{f"{BASE}tune__steps": 60, f"{BASE}train__resnet20__width": 8})
    made = tune.objective(Work.read(params, place, PLAIN))
    assert arrays.synthetic(place.synthetic(PLAIN), made.holdouts[0].split, 16).labels.tolist().count(0) == 8
    score, right = made._score(params, [place], RUNGS[-1])
    assert score > 0.6 and right.shape == (12,) and right.sum() == round(12 * score)


def test_a_worker_that_takes_a_trial_over_passes_the_rungs_that_were_scored(
    small: Callable[..., Params], place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watched(optuna.pruners.BasePruner):
        answers: ClassVar[list[bool]] = [False, True]

        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            return self.answers.pop(0)

    def killed(trial: optuna.Trial, name: str, value: Any) -> None:
        if name == "rungs" and len(value) == 2 and not lost:
            lost.append(1)
            raise KeyboardInterrupt
        set_attribute(trial, name, value)

    lost: list[int] = []
    set_attribute = optuna.Trial.set_user_attr
    monkeypatch.setattr(optuna.Trial, "set_user_attr", killed)
    asked = scored_by(monkeypatch, lambda knobs, rung: rung / 10)
    made = tune.objective(Work.read(small(), place, PLAIN))
    study = optuna.create_study(direction="maximize", pruner=Watched())
    study.enqueue_trial({"guidance": 4.0, "steps": 1})
    trial = study.ask()
    with pytest.raises(KeyboardInterrupt):
        made(trial)
    assert asked == RUNGS[:2]
    # Lost between the pruner's answer and the end: the rung is scored once more, and the answer stands.
    for _ in range(2):
        with pytest.raises(optuna.TrialPruned):
            made(optuna.Trial(study, trial._trial_id))
    assert asked == [RUNGS[0], RUNGS[1], RUNGS[1]]
    assert study.trials[0].user_attrs["rungs"] == {"1": 0.1, "2": 0.2}


def test_a_worker_that_is_lost_before_the_fid_leaves_images_to_be_found_again(
    small: Callable[..., Params], place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = scored_by(monkeypatch, lambda knobs, rung: rung / 10)
    distances: list[Any] = [KeyboardInterrupt(), 5.0]

    def measured(self: Objective, places: list[Workspace]) -> tuple[float, int]:
        found = distances.pop(0)
        if isinstance(found, BaseException):
            raise found
        return float(found), 12

    monkeypatch.setattr(Objective, "_fid", measured)
    made = tune.objective(Work.read(small(tune__max_fid=9.0), place, PLAIN))
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.NopPruner())
    trial = study.ask()
    with pytest.raises(KeyboardInterrupt):
        made(trial)
    # The images lie in a folder of the process that is gone, so the last rung is made once more, of finished shards.
    assert made(optuna.Trial(study, trial._trial_id)) == RUNGS[-1] / 10
    assert asked == [*RUNGS, RUNGS[-1]]


def test_the_steps_of_a_trial_are_told_apart_for_whoever_counts_lost_workers(
    small: Callable[..., Params], place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    monkeypatch.setattr(kills, "begin", lambda trial, step: steps.append(step))
    tune.run(small(tune__trials=1), place, PLAIN)
    kinds = [step.split(",")[0] for step in steps]
    assert kinds == [f"{work} {rung} per class" for rung in RUNGS for work in ("drawing", "training on")]
    assert len(set(steps)) == len(steps)


def test_seconds_are_those_of_an_image_that_is_kept(small: Callable[..., Params], place: Workspace) -> None:
    made = tune.objective(Work.read(small(), place, PLAIN))
    rows = toy.write_synthetic(place, PLAIN, per_class=2)
    write_metadata(place.shards / "filtered", rows)
    write_json(place.shards / "filtered/record.json", {"drawn": 48, "seconds": 12.0})
    write_json(place.synthetic(PLAIN) / "shards.json", ["filtered"])
    assert made._spent([place]) == (48, len(rows), 12.0)


def test_a_repetition_has_noise_and_initial_weights_of_its_own(small: Callable[..., Params], place: Workspace) -> None:
    made = tune.objective(Work.read(small(), place, PLAIN))
    values = made.row_values
    assert values is not None
    first, second = (made.repeated(repetition) for repetition in (1, 2))
    seeds = {rungs.params_at(made.params, PLAIN, 4, 3, repetition).seed for repetition in range(3)}
    assert len(seeds) == 3
    rights = [first.again(values), made.repeated(1).again(values), second.again(values)]
    assert rights[0] == rights[1] and all(len(right) == made.images and set(right) <= set("01") for right in rights)
    drawn = [[path.read_bytes() for path in sorted(p.rglob("*.png"))] for p in sorted(made.folder.glob("*/*_again*"))]
    assert len(drawn) == 2 and drawn[0] and drawn[0] != drawn[1]
    # The trials see nothing of it.
    assert made.repetition == 0 and made.holdouts == tune.objective(Work.read(small(), place, PLAIN)).holdouts


def test_a_repetition_has_folds_of_its_own_and_scores_every_shot_once(
    small: Callable[..., Params], place: Workspace
) -> None:
    search = {"guidance": {"low": 1.0, "high": 3.0}}
    params = small(active=[LORA], primary=LORA, **{f"recipes__{LORA}__search": search})
    work = Work.read(params, place, LORA)
    folds = [
        [sorted(sample.path for sample in holdout.scored) for holdout in scoring.holdouts(work, repetition)]
        for repetition in range(3)
    ]
    shots = sorted(path for paths in folds[0] for path in paths)
    assert all(sorted(path for paths in each for path in paths) == shots for each in folds)
    assert folds[0] != folds[1] and folds[1] != folds[2]
    assert folds[1] == [[s.path for s in sorted(h.scored, key=lambda s: s.path)] for h in scoring.holdouts(work, 1)]

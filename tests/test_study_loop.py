"""A study's trials: how they begin, end, are pruned and go on after a stop."""

from __future__ import annotations

import errno
import fcntl
from typing import TYPE_CHECKING, Any

import optuna
import pytest

import toy_study
from dreamset.core.errors import DiskFullError, InputError, StoppedError
from dreamset.study import kills, loop, sampling, storage
from toy_study import RUNGS, run, states, told

if TYPE_CHECKING:
    from pathlib import Path

    from optuna.trial import Trial


def test_the_first_trial_has_the_values_that_were_given() -> None:
    study = run(trials=3, sampler="random")
    assert study.trials[0].params == toy_study.FIRST
    assert len(study.trials) == 3
    assert len({trial.params["guidance"] for trial in study.trials}) == 3


@pytest.mark.parametrize("pruner", ["hyperband", "successive_halving", "median"])
def test_a_pruner_stops_bad_trials_early_and_none_at_the_last_rung(pruner: str) -> None:
    study = run(trials=20, pruner=pruner, sampler="random")
    assert states(study).keys() == {"COMPLETE", "PRUNED"}
    pruned = [trial for trial in study.trials if trial.state.name == "PRUNED"]
    assert all(trial.last_step in RUNGS[:-1] for trial in pruned)
    assert study.best_trial.value == max(trial.value for trial in study.trials if trial.last_step == RUNGS[-1])


def test_hyperband_has_a_bracket_for_each_rung() -> None:
    study = run(trials=30, sampler="random")
    # The last bracket prunes nothing, the middle one not at the first rung.
    assert {trial.last_step for trial in study.trials} == set(RUNGS)
    assert len(study.pruner._pruners) == len(RUNGS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("changed", [{"pruner": "none"}, {"max_fid": 20.0}])
def test_nothing_is_pruned_where_a_trial_is_judged_at_its_end(changed: dict[str, Any]) -> None:
    assert states(run(trials=10, **changed)) == {"COMPLETE": 10}


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_study_stopped_anywhere_equals_an_unbroken_one(tmp_path: Path, sampler: str) -> None:
    trials = 7 if sampler == "gp" else 12  # the sampler's model is fitted after five
    whole = run(trials=trials, sampler=sampler)
    tune = toy_study.tune(trials=trials, sampler=sampler, storage=f"sqlite:///{tmp_path}/studies.db")
    stops = iter([(2, 9), (6, 3), (8, 3), (trials - 1, 27)])
    stop: tuple[int, int] | None = next(stops)

    def interrupted(trial: Trial) -> float:
        def at(rung: int) -> None:
            nonlocal stop
            # The last rung is not reached by a trial that is pruned.
            if stop and trial.number >= stop[0] and rung >= min(stop[1], 9 if trial.number > stop[0] else 27):
                stop = next(stops, None)
                raise KeyboardInterrupt

        return toy_study.objective(trial, at)

    broken = 0
    while True:
        # Each time as in a process of its own: nothing is handed on but the file.
        study = loop.open_study(tune, "toy", ["maximize"])
        try:
            toy_study.optimise(study, tune, interrupted)
            break
        except KeyboardInterrupt:
            broken += 1
    assert broken >= 2
    assert told(study.trials) == told(whole.trials)


def test_a_lost_trial_s_error_does_not_end_its_worker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    elsewhere = loop.open_study(toy_study.tune(storage=url), "toy", ["maximize"])
    errors: list[BaseException] = [FileNotFoundError("its folder is gone"), KeyboardInterrupt()]

    def losing(trial: Trial) -> float:
        if errors:
            elsewhere.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            raise errors.pop(0)
        return toy_study.objective(trial)

    with pytest.raises(KeyboardInterrupt):
        run(trials=4, of=losing, storage=url)
    assert "trial 0: was silent for too long and given to another worker" in capsys.readouterr().err
    study = run(trials=4, of=losing, storage=url)
    assert [trial.state.name for trial in study.trials[:2]] == ["FAIL", "FAIL"] and len(study.trials) == 4
    assert not list((tmp_path / "studies.db.locks").iterdir())


def test_a_sampler_of_another_seed_draws_other_values() -> None:
    assert run(trials=4, seed=1).trials[1].params != run(trials=4, seed=2).trials[1].params


def test_more_trials_go_on_with_the_same_study(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    assert len(run(trials=9, storage=url).trials) == 9
    again = run(trials=9, storage=url)
    assert len(again.trials) == 9
    more = run(trials=12, storage=url)
    assert told(more.trials) == told(run(trials=12).trials)


def test_a_trial_that_cannot_be_run_is_failed_with_the_reason_and_the_study_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def picky(trial: Trial) -> float:
        if trial.number == 1:
            raise InputError("steps: too few for this scheduler.")
        return toy_study.objective(trial) if trial.number != 2 else float("nan")

    study = run(trials=5, of=picky)
    assert [loop.reason(trial) for trial in study.trials[:3]] == [
        None,
        "steps: too few for this scheduler.",
        "the objective gave nan",
    ]
    assert states(study)["FAIL"] == 2 and len(study.trials) == 5
    assert "trial 1 failed: steps: too few for this scheduler." in capsys.readouterr().err


def test_a_study_in_which_all_fails_says_why() -> None:
    def hopeless(trial: Trial) -> float:
        raise InputError("data/splits/train.json: is not there.")

    with pytest.raises(InputError, match=r"toy: all of its 3 trials failed; the last: data/splits/train.json: is not"):
        run(trials=3, of=hopeless)


def test_what_nobody_foresaw_fails_the_trial_and_ends_therun(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"

    def broken(trial: Trial) -> float:
        if trial.number == 2:
            raise ZeroDivisionError("division by zero")
        return toy_study.objective(trial)

    with pytest.raises(ZeroDivisionError):
        run(trials=5, of=broken, storage=url)
    study = run(trials=5, of=broken, storage=url)
    assert loop.reason(study.trials[2]) == "ZeroDivisionError: division by zero"
    assert len(study.trials) == 5


@pytest.mark.parametrize("error", [StoppedError("tune: a newer run has taken over."), DiskFullError(28, "full", "/")])
def test_where_the_machine_cannot_go_on_the_trial_is_left_to_the_nextrun(tmp_path: Path, error: Exception) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    stopped = False

    def stopping(trial: Trial) -> float:
        nonlocal stopped
        if trial.number == 2 and not stopped:
            trial.suggest_float("guidance", 1.0, 7.5)
            stopped = True
            raise error
        return toy_study.objective(trial)

    with pytest.raises(type(error)):
        run(trials=5, of=stopping, storage=url)
    study = run(trials=5, of=stopping, storage=url)
    assert told(study.trials) == told(run(trials=5).trials)
    assert not list((tmp_path / "studies.db.locks").iterdir())


def test_marks_of_a_trial() -> None:
    study = run(trials=2)
    assert all(trial.user_attrs["worker"] == loop.worker() for trial in study.trials)
    assert study.trials[0].user_attrs["started"] <= study.trials[1].user_attrs["started"]


def test_two_objectives_are_unpruned() -> None:
    def both(trial: Trial) -> tuple[float, float]:
        guidance, steps = trial.suggest_float("guidance", 1.0, 7.5), trial.suggest_int("steps", 5, 30)
        return toy_study.cas(guidance, steps, RUNGS[-1]), steps / 100

    study = run(trials=8, of=both, objectives="cas_and_seconds")
    assert states(study) == {"COMPLETE": 8}
    assert 1 <= len(study.best_trials) <= 8


def test_a_trial_that_was_tried_again_does_not_count() -> None:
    made = optuna.trial.create_trial
    fail, complete = optuna.trial.TrialState.FAIL, optuna.trial.TrialState.COMPLETE
    study = optuna.create_study()
    study.add_trial(made(state=fail, user_attrs={"worker": "host:1"}))
    study.add_trial(made(state=fail, user_attrs={"reason": "steps: too few."}))
    study.add_trial(made(state=complete, value=1.0, system_attrs={"failed_trial": 0, "retry_history": [0]}))
    assert loop.repeated(study.trials) == {0}
    assert [trial.number for trial in loop.ended(study.trials)] == [1, 2]
    assert loop.reason(study.trials[0]) == "its worker host:1 fell silent"


@pytest.mark.parametrize("retries", [0, 2])
def test_a_stale_trial_is_tried_again_without_the_notes_of_the_first_try(retries: int) -> None:
    study = optuna.create_study(direction="maximize")
    study.enqueue_trial(toy_study.FIRST)
    trial = study.ask()
    trial.suggest_float("guidance", 1.0, 7.5)
    trial.set_constraint("seconds", 1.0)
    for _ in range(retries + 1):
        trial.set_user_attr("worker", "host:1")
        kills.begin(trial, "drawing")
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        loop._retry_stale(toy_study.tune(retries=retries), study, study.trials[-1])
        if study.trials[-1].state.name == "WAITING":
            trial = study.ask()
            trial.suggest_float("guidance", 1.0, 7.5)
    again = study.trials[1:]
    assert len(again) == retries
    # Beside its values a trial hands on what it is suspected of, and its draws are those of the first try.
    assert [found.user_attrs.get("killed") for found in again] == list(range(1, retries + 1))
    assert {sampling._number(found) for found in again} <= {0}
    for found in again:
        assert found.params == {"guidance": toy_study.FIRST["guidance"]}
        assert not found.constraints
        assert found.system_attrs["fixed_params"] == toy_study.FIRST and found.system_attrs["failed_trial"] == 0


def test_own_values_outside_the_ranges_are_tried_again_when_their_worker_falls_silent() -> None:
    # Optuna 5.0.0 raises a ValueError here: findings/optuna_enqueued_values_outside_the_range_are_not_retried.sh
    study = optuna.create_study(direction="maximize")
    study.enqueue_trial({"guidance": 0.5})
    for number in range(2):
        trial = study.ask()
        with pytest.warns(UserWarning, match="out of range"):
            assert trial.suggest_float("guidance", 1.0, 7.5) == 0.5
        assert trial.number == number
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        loop._retry_stale(toy_study.tune(retries=2), study, study.trials[-1])


def test_samplers_are_made_anew_for_every_trial() -> None:
    made: list[int] = []

    def make(seed: int) -> optuna.samplers.BaseSampler:
        made.append(seed)
        return optuna.samplers.RandomSampler(seed=seed)

    study = optuna.create_study(sampler=sampling.Numbered(make, 0))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    assert len(set(made)) == len(made) == 1 + 3 * 2


def test_without_flock_no_worker_is_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = loop.open_study(toy_study.tune(storage="sqlite:///studies.db"), "toy", ["maximize"], tmp_path)
    lock = storage.hold(study, 1)
    assert lock is not None and storage.hold(study, 1, taken_over=True) is None  # it is held
    lock.release()
    assert storage.hold(study, 1, taken_over=True) is None  # nobody has left it behind
    (tmp_path / "studies.db.locks/trial_1.lock").touch()

    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refused)
    assert storage.hold(study, 1, taken_over=True) is None
    monkeypatch.undo()
    (tmp_path / "studies.db.locks/trial_1.lock").touch()
    assert storage.hold(study, 1, taken_over=True) is not None


def test_trials_of_other_code_are_kept_apart_and_come_back(tmp_path: Path) -> None:
    tune = toy_study.tune(storage="sqlite:///studies.db")

    def opened(code: str) -> optuna.Study:
        return loop.open_study(tune, "toy", ["maximize"], tmp_path, code)

    study = opened("a" * 64)
    study.enqueue_trial({"x": 1.0})
    assert len(opened("a" * 64).trials) == 1
    assert opened("b" * 64).trials == []
    assert [trial.system_attrs["fixed_params"] for trial in opened("a" * 64).trials] == [{"x": 1.0}]
    assert {found.study_name for found in optuna.get_all_study_summaries(study._storage)} == {
        "toy.aaaaaaaa",
        "toy.bbbbbbbb",
    }


def test_brackets_are_the_same_whatever_code_scores_a_trial(tmp_path: Path) -> None:
    tune, brackets = toy_study.tune(storage="sqlite:///studies.db"), []
    for code in ("a" * 64, "b" * 64):
        study = loop.open_study(tune, "toy", ["maximize"], tmp_path, code)
        pruner = sampling.pruner(tune, 9, 81, study.user_attrs["name"])
        study.pruner = pruner
        assert isinstance(pruner, sampling.NamedHyperband)
        trials = [optuna.trial.create_trial(value=0.0) for _ in range(30)]
        for number, trial in enumerate(trials):
            trial.number = number
        brackets.append([pruner._get_bracket_id(study, trial) for trial in trials])
    assert brackets[0] == brackets[1]
    assert len(set(brackets[0])) == 3
    # Those of Optuna itself for a study of the plain name.
    plain = optuna.pruners.HyperbandPruner(9, 81, sampling.REDUCTION)
    bare = optuna.create_study(study_name="toy", pruner=plain)
    plain._try_initialization(bare)
    assert [plain._get_bracket_id(bare, trial) for trial in trials] == brackets[0]

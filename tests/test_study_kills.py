"""A kill is no fault of a trial: a study that was killed equals an unbroken one."""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import optuna
import pytest

import toy_study
from dreamset.core import locks
from dreamset.study import kills, loop, sampling
from toy_study import RUNGS, run, told

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from optuna.trial import Trial


class Killed(BaseException):
    """The end of a process, as ``Dying`` plays it."""


class Dying:
    """Lets this process die as by SIGKILL after so many writes to the store: nothing is written or tidied later."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left, self._held = 10**9, list[locks.Lock]()
        for name in dir(optuna.storages.RDBStorage):
            if name.startswith(("set_trial", "record_heartbeat", "create_new_trial")):
                monkeypatch.setattr(optuna.storages.RDBStorage, name, self._writing(name))
        take, release = locks.take, locks.Lock.release

        def taken(path: Path) -> locks.Lock | None:
            lock = take(path)
            self._held += [lock] if lock else []
            return lock

        def released(lock: locks.Lock) -> None:
            if lock in self._held:  # else the dead process has lost it
                self._held.remove(lock)
                release(lock)

        monkeypatch.setattr(locks, "take", taken)
        monkeypatch.setattr(locks.Lock, "release", released)

    def _writing(self, name: str) -> Callable[..., Any]:
        write = getattr(optuna.storages.RDBStorage, name)

        def watched(*given: Any, **named: Any) -> Any:
            if self.left <= 0:
                self.die()
            self.left -= 1
            return write(*given, **named)

        return watched

    def die(self) -> None:
        """The kernel closes the files of a dead process, which ends its locks; their names stay."""
        self.left = 0
        while self._held:
            os.close(self._held.pop().handle)
        raise Killed


@pytest.mark.parametrize("seed", [0, 1])
def test_a_study_killed_between_any_two_writes_equals_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    whole = run(trials=9)
    dying, rng = Dying(monkeypatch), random.Random(seed)
    tune = toy_study.tune(trials=9, storage=f"sqlite:///{tmp_path}/studies.db")
    kinds: Counter[bool] = Counter()
    while True:
        study = loop.open_study(tune, "toy", ["maximize"])
        # A worker that takes a trial over writes nine times before it gains anything.
        dying.left = rng.randint(10, 24)
        try:
            toy_study.optimise(study, tune, toy_study.objective)
            break
        except Killed:
            kinds[bool(toy_study.running(study))] += 1
    # Far more often than retries would allow if each kill counted.
    assert kinds[True] > 3 * tune.retries
    assert told(study.trials) == told(whole.trials)


def test_a_pruner_that_is_asked_again_answers_as_before() -> None:
    for name in ("hyperband", "successive_halving"):
        study = optuna.create_study(
            direction="maximize", pruner=sampling.pruner(toy_study.tune(pruner=name), 3, 27, "toy")
        )
        answers: list[bool] = []
        for value in (0.5, 0.4, 0.3, 0.6, 0.2, 0.1, 0.55, 0.45, 0.35, 0.7):
            trial = study.ask()
            for rung in RUNGS[:-1]:
                trial.report(value * rung, rung)
                asked = [trial.should_prune() for _ in range(3)]
                assert len(set(asked)) == 1
                answers += asked[:1]
                if asked[0]:
                    break
            study.tell(trial, value)
        assert set(answers) == {True, False}


@pytest.mark.parametrize(
    ("steps", "times", "given_up"),
    [
        (("draw 3", "draw 3", "draw 3"), 3, True),
        (("draw 3", "draw 9", "draw 3"), 1, False),  # something was gained between
        (("draw 3", None, "draw 3"), 2, False),  # a worker that died before the trial's own work tells nothing
        ((None, None, None, None), 0, False),
        (("draw 3", "draw 3", "draw 9", "draw 9"), 2, False),
    ],
)
def test_workers_lost_at_the_same_step_one_after_the_other_count(
    steps: tuple[str | None, ...], times: int, given_up: bool
) -> None:
    attributes: dict[str, Any] = {}
    for step in steps:
        attributes = kills.count(attributes | {kills.STEP: step})
    assert attributes["killed"] == times
    why = kills.exceeds(attributes, 2)
    assert (why is not None) == given_up
    assert why is None or why == "3 workers in a row were lost at its step draw 3"


def test_a_trial_left_longer_ago_than_the_grace_is_gone_on_with_and_uses_up_no_retry(tmp_path: Path) -> None:
    tune = toy_study.tune(trials=6, retries=0, storage=f"sqlite:///{tmp_path}/studies.db")
    stops = 0

    def interrupted(trial: Trial) -> float:
        def at(rung: int) -> None:
            nonlocal stops
            if trial.number == 3 and stops < 3:
                stops += 1
                raise KeyboardInterrupt

        return toy_study.objective(trial, at)

    for _ in range(3):
        study = loop.open_study(tune, "toy", ["maximize"])
        with pytest.raises(KeyboardInterrupt):
            toy_study.optimise(study, tune, interrupted)
        toy_study.silent_for_long(study)
    toy_study.optimise(study, tune, interrupted)
    assert told(study.trials) == told(run(trials=6).trials)

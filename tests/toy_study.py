"""A study of milliseconds: three rungs, one knob that matters and one that hardly does."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import yaml

from dreamset.core.strict import build
from dreamset.params.sections import Tune
from dreamset.study import kills, loop, storage

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.trial import FrozenTrial, Trial

RUNGS = (3, 9, 27)
FIRST = {"guidance": 4.0, "steps": 10}


def tune(**changed: Any) -> Tune:
    """The section of params.yaml, with what a test changes of it; nothing is kept where no storage is given."""
    raw = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text(encoding="utf-8"))["tune"]
    return dataclasses.replace(build(Tune, raw), **({"storage": "memory://"} | changed))


def cas(guidance: float, steps: int, rung: int) -> float:
    """Best at guidance 2 and many steps; a few images say less."""
    return 1 - (guidance - 2) ** 2 / 40 - 1 / (4 * steps) - 1 / rung / (1 + guidance)


def objective(trial: Trial, at_rung: Callable[[int], None] = lambda rung: None) -> float:
    guidance = trial.suggest_float("guidance", 1.0, 7.5)
    steps = trial.suggest_int("steps", 5, 30)
    value = 0.0
    for rung in RUNGS:
        kills.begin(trial, f"rung {rung}")
        at_rung(rung)
        value = cas(guidance, steps, rung)
        trial.report(value, step=rung)
        if rung < RUNGS[-1] and trial.should_prune():
            raise optuna.TrialPruned
    return value


def optimise(study: optuna.Study, section: Tune, of: Callable[[Trial], float] = objective, seed: int = 0) -> None:
    loop.optimise(study, of, section, seed, RUNGS[-1], RUNGS[0], [FIRST])


def silent_for_long(study: optuna.Study) -> None:
    """Let the last heartbeat of every trial be longer ago than any grace."""
    import sqlalchemy

    database = storage.backend(study)
    assert database is not None
    with database.engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = '2000-01-01 00:00:00'"))


def running(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that a worker has begun and nobody has ended, read anew."""
    return [trial for trial in optuna.load_study(study_name=study.study_name, storage=study._storage).trials
            if trial.state == optuna.trial.TrialState.RUNNING]  # fmt: skip


def told(trials: list[FrozenTrial]) -> list[tuple[Any, ...]]:
    """What two equal studies have in common, trial by trial."""
    return [(t.number, t.state.name, t.params, t.values, t.intermediate_values) for t in trials]


def states(study: optuna.Study) -> Counter[str]:
    return Counter(trial.state.name for trial in study.trials)


def run(seed: int = 0, of: Callable[[Trial], Any] = objective, **changed: Any) -> optuna.Study:
    chosen = tune(**changed)
    directions = ["maximize", "minimize"] if chosen.objectives == "cas_and_seconds" else ["maximize"]
    study = loop.open_study(chosen, "toy", directions)  # type: ignore[arg-type]
    optimise(study, chosen, of, seed)
    return study

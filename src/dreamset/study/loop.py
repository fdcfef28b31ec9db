"""Runs the trials of a study, in this process alone."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING, Any, Final, Literal

from dreamset.errors import InputError
from dreamset.seeds import seed_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import optuna

    from dreamset.params import Tune

_SQLITE: Final = "sqlite:///"


def open_study(
    tune: Tune, name: str, directions: Sequence[Literal["maximize", "minimize"]], root: Path
) -> optuna.Study:
    """The study ``name`` of ``tune.storage``, made where it is missing; a relative file lies under ``root``."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = tune.storage
    if url.startswith(_SQLITE):
        url = f"{_SQLITE}{(root / url.removeprefix(_SQLITE)).absolute()}"
    return optuna.create_study(storage=url, study_name=name, directions=list(directions), load_if_exists=True)


def optimise(
    study: optuna.Study,
    objective: Callable[[optuna.Trial], float | tuple[float, float]],
    tune: Tune,
    seed: int,
    max_resource: int,
    min_resource: int,
    first: list[dict[str, Any]],
) -> None:
    """Run trials until there are ``tune.trials`` of them.

    Raises:
        InputError: every trial failed.
    """
    import optuna

    def told(trial: optuna.Trial) -> float | tuple[float, float]:
        trial.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")
        try:
            return objective(trial)
        except InputError as error:
            trial.set_user_attr("reason", str(error))
            raise

    study.pruner = _pruner(tune, max_resource, min_resource)
    if not study.trials:
        for values in first:
            study.enqueue_trial(values)
    while (number := sum(trial.state.is_finished() for trial in study.trials)) < tune.trials:
        # Seeded by the trial, so that a study that goes on later equals one that was never left.
        study.sampler = _sampler(tune, seed_for("sampler", seed, number) % 2**32)
        study.optimize(told, n_trials=1, catch=(InputError,))
        reason = study.trials[-1].user_attrs.get("reason")
        if reason:
            print(f"dreamset: trial {number} failed: {reason}", file=sys.stderr, flush=True)
    if all(trial.state == optuna.trial.TrialState.FAIL for trial in study.trials):
        raise InputError(f"every trial failed, the last one because: {study.trials[-1].user_attrs.get('reason')}")


def _sampler(tune: Tune, seed: int) -> optuna.samplers.BaseSampler:
    from optuna import samplers

    if tune.sampler == "random":
        return samplers.RandomSampler(seed=seed)
    if tune.sampler == "gp":
        return samplers.GPSampler(seed=seed, deterministic_objective=True)
    return samplers.TPESampler(seed=seed, n_startup_trials=5)


def _pruner(tune: Tune, max_resource: int, min_resource: int) -> optuna.pruners.BasePruner:
    from optuna import pruners

    if not tune.prunes:
        return pruners.NopPruner()
    if tune.pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource, max_resource, reduction_factor=3)
    if tune.pruner == "successive_halving":
        return pruners.SuccessiveHalvingPruner(min_resource, reduction_factor=3)
    return pruners.MedianPruner(n_startup_trials=4)

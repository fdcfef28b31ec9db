"""Samplers and pruners by name. A trial's draws depend on its number and on the trials before it, on nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import optuna
from optuna.samplers import BaseSampler

from dreamset.core.seeds import seed_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial, TrialState

    from dreamset.params.sections import Tune

# Trials drawn at random before a model is fitted, over all of Hyperband's brackets; as many before the median prunes.
STARTUP: Final = 5
# Of three trials that reach a rung, one goes on. Hyperband's rungs then are those of three times the images each.
REDUCTION: Final = 3


class Numbered(BaseSampler):
    """A sampler made anew for every trial, seeded by the trial's number, and by the knob where that is drawn alone.

    One that lives as long as its process would draw other values after a restart: its state is not in the storage.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._now = self._of(-1)

    def _of(self, number: int, *knob: str) -> BaseSampler:
        return self._make(seed_for("sampler", self._seed, number, *knob) % 2**32)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Called as a trial begins."""
        self._now = self._of(trial.number)
        self._now.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """What is drawn jointly."""
        return self._now.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values that are drawn jointly."""
        return self._now.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """One value that was not drawn jointly."""
        return self._of(trial.number, param_name).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Called as a trial ends."""
        self._now.after_trial(study, trial, state, values)


def sampler(name: str, seed: int) -> BaseSampler:
    """``tune.sampler``: tpe, gp or random."""
    make: dict[str, Callable[[int], BaseSampler]] = {
        "tpe": lambda drawn: optuna.samplers.TPESampler(n_startup_trials=STARTUP, seed=drawn),
        "gp": lambda drawn: optuna.samplers.GPSampler(n_startup_trials=STARTUP, seed=drawn),
        "random": lambda drawn: optuna.samplers.RandomSampler(seed=drawn),
    }
    return Numbered(make[name], seed)


def pruner(tune: Tune, min_resource: int, max_resource: int) -> optuna.pruners.BasePruner:
    """``tune.pruner``; none where a trial's worth is known at its end alone.

    Args:
        tune: the section of the parameters.
        min_resource: images per class at the first rung.
        max_resource: images per class at the last.
    """
    if not tune.prunes:
        return optuna.pruners.NopPruner()
    make: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
        "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource, max_resource, REDUCTION),
        "successive_halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource, REDUCTION),
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
    }
    return make[tune.pruner]()

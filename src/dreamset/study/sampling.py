"""Samplers and pruners by name. The values of a trial depend on its number and the trials before it alone."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

import optuna
from optuna.samplers import BaseSampler

from dreamset.core.seeds import seed_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial, TrialState

    from dreamset.params.sections import Tune

# Random trials before a sampler fits a model, over all brackets of Hyperband, and trials before the median prunes.
STARTUP: Final = 5
# One of three trials that reach a rung goes on; each rung of Hyperband has three times the images of the one before.
REDUCTION: Final = 3


class Numbered(BaseSampler):
    """A sampler that is made anew for every trial, seeded by the number of the trial.

    For a knob that is drawn by itself, the name of the knob is in the seed too. A sampler that lived as long as its
    process would draw other values after a restart, since the storage does not hold its state.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._now = self._of(-1)

    def _of(self, number: int, *knob: str) -> BaseSampler:
        return self._make(seed_for("sampler", self._seed, number, *knob) % 2**32)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Make the sampler of a trial that begins."""
        self._now = self._of(_number(trial))
        self._now.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the distributions of the knobs that are drawn jointly."""
        return self._now.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the values of the knobs that are drawn jointly."""
        return self._now.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the value of a knob that is drawn by itself."""
        return self._of(_number(trial), param_name).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Pass the end of a trial on to its sampler."""
        self._now.after_trial(study, trial, state, values)


def sampler(name: str, seed: int) -> BaseSampler:
    """Return the sampler of ``tune.sampler``: tpe, gp or random."""
    make: dict[str, Callable[[int], BaseSampler]] = {
        "tpe": lambda trial_seed: optuna.samplers.TPESampler(n_startup_trials=STARTUP, seed=trial_seed),
        "gp": lambda trial_seed: optuna.samplers.GPSampler(n_startup_trials=STARTUP, seed=trial_seed),
        "random": lambda trial_seed: optuna.samplers.RandomSampler(seed=trial_seed),
    }
    return Numbered(make[name], seed)


def _number(trial: FrozenTrial) -> int:
    """Return the number of a trial; for one that is tried again that of the first try, whose draws it repeats."""
    return int(trial.system_attrs.get("failed_trial", trial.number))


class Halving(optuna.pruners.SuccessiveHalvingPruner):
    """Successive halving whose answer is the same when a trial asks again.

    A worker may be lost between the answer and the end of the trial. By then Optuna has noted in the store that the
    trial has completed the rung. Asked again, it would take the rung for passed, or count the trial twice.
    """

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether a trial ends at its newest rung."""
        before = max(sorted(trial.intermediate_values)[:-1], default=0)
        rung, asked = 0, copy.copy(trial)
        while self._promotion(rung) <= before:
            rung += 1
        notes = {f"completed_rung_{index}" for index in range(rung)}
        asked.system_attrs = {
            name: value
            for name, value in trial.system_attrs.items()
            if name in notes or not name.startswith("completed_rung_")
        }
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        seen = SimpleNamespace(get_trials=lambda **_: others, _storage=study._storage, direction=study.direction)
        return super().prune(cast("Study", seen), asked)

    def _promotion(self, rung: int) -> int:
        """Return the images per class from which a trial has completed a rung."""
        return int(self._min_resource or 1) * int(self._reduction_factor ** (self._min_early_stopping_rate + rung))


class NamedHyperband(optuna.pruners.HyperbandPruner):
    """Hyperband whose brackets are drawn from a name of its own: that of a study in the store holds a hash of code."""

    def __init__(self, min_resource: int, max_resource: int, name: str) -> None:
        super().__init__(min_resource, max_resource, REDUCTION)
        self._name = name
        self._try_initialization(cast("Study", None))  # Optuna asks the study for nothing if the resources are given
        brackets = range(len(self._pruners))
        self._pruners = [Halving(min_resource, REDUCTION, bracket) for bracket in brackets]

    def _get_bracket_id(self, study: Study, trial: FrozenTrial) -> int:
        # Optuna hashes the study's name and the trial's number, and asks nothing else of either.
        named, numbered = SimpleNamespace(study_name=self._name), SimpleNamespace(number=_number(trial))
        return int(super()._get_bracket_id(cast("Study", named), cast("FrozenTrial", numbered)))


def pruner(tune: Tune, min_resource: int, max_resource: int, name: str) -> optuna.pruners.BasePruner:
    """Return the pruner of ``tune.pruner``, or one that prunes nothing if the score of a trial needs its end.

    Args:
        tune: the section of the parameters.
        min_resource: images per class at the first rung.
        max_resource: images per class at the last.
        name: the name that Hyperband draws brackets from.
    """
    if not tune.prunes:
        return optuna.pruners.NopPruner()
    make: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
        "hyperband": lambda: NamedHyperband(min_resource, max_resource, name),
        "successive_halving": lambda: Halving(min_resource, REDUCTION),
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
    }
    return make[tune.pruner]()

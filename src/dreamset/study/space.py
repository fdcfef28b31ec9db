"""What a study searches: the ranges of a recipe's ``search`` as they stand for this run, and a trial's values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dreamset import tuned
from dreamset.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import optuna

    from dreamset.params import Params
    from dreamset.workspace import Workspace

_WHOLE: Final = ("steps", "epoch", "epochs")


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included: whole ones ``step`` apart, or any where that is None."""

    low: float
    high: float
    step: int | None = None
    log: bool = False

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and (self.step is None or (value - self.low) % self.step == 0)


# Of each knob its range, or what is chosen among.
Space = dict[str, Range | tuple[str, ...]]


def ranges(params: Params, workspace: Workspace, recipe: str, images: Iterable[int]) -> Space:
    """The ranges of the knobs that ``recipe`` searches.

    Args:
        params: all parameters.
        workspace: where the study is whose best values a range refers to.
        recipe: a row with a ``search``.
        images: how many the adapters of each fold learn from, which says at which epoch their training ends.

    Raises:
        InputError: a range is empty, or refers to a study that is not there.
    """
    search = params.recipes[recipe].search
    assert search is not None
    if search.epoch is not None and (search.epochs is not None or search.epoch.log):
        raise InputError(
            f"recipes.{recipe}.search.epoch: goes with neither epochs nor log: true, for the weights of a training are "
            "kept at even distances up to its end; remove one of them."
        )
    found: Space = {}
    for knob in search.knobs:
        span, key = getattr(search, knob), f"recipes.{recipe}.search.{knob}"
        if isinstance(span, tuple):
            found[knob] = span
            continue
        low, high, step = span.low, span.high, 1 if knob in _WHOLE else None
        if high is None:
            parent = params.after.get(recipe)
            if parent is None:
                raise InputError(f"{key}.high_times_best: {recipe} starts from no other recipe; give high, or after.")
            chosen = current(tuned.applied(params, workspace, parent), parent)[knob]
            if chosen is None:
                raise InputError(f"{key}.high_times_best: {parent} has no {knob} to multiply; give high.")
            high = span.high_times_best * chosen
        if knob == "epoch":
            step = params.base.adapt.keep_every
            high = min(high, *(_last_epoch(params, recipe, count) for count in images))
            low = step * math.ceil(low / step)
        if step is not None:
            low, high = int(low), int(low) + (math.floor(high + 1e-9) - int(low)) // step * step
        if high < low:
            raise InputError(
                f"{key}: nothing is left between {low:g} and what it may be at most ({high:g}); lower its low."
            )
        found[knob] = Range(low, high, step, span.log)
    return found


def _last_epoch(params: Params, recipe: str, images: int) -> int:
    """The epoch that the training of an adapter on so many images ends with: ``max_steps`` may cut it short."""
    schedule = params.schedule(recipe)
    return max(1, schedule.steps(images) // math.ceil(images / schedule.batch))


def current(params: Params, recipe: str) -> dict[str, Any]:
    """Every knob of a recipe as its row and its model have it; None where it has none, and for the last epoch."""
    row, sampler = params.recipes[recipe], params.sampler(recipe)
    found: dict[str, Any] = {
        "guidance": sampler.guidance,
        "steps": sampler.steps,
        "scheduler": sampler.scheduler,
        "strength": sampler.strength,
        "epoch": row.epoch,
        "lr": None,
        "epochs": None,
    }
    if row.adapter != "none":
        schedule = params.schedule(recipe)
        found |= {"lr": schedule.lr, "epochs": schedule.epochs}
    return found


def own(params: Params, recipe: str, space: Space) -> dict[str, Any] | None:
    """The recipe's own values of what is searched; None where one of them lies outside."""
    values = {knob: value for knob, value in current(params, recipe).items() if knob in space}
    if "epoch" in values and values["epoch"] is None:
        # The last of those that are kept, which is where training ends or shortly before.
        limits = space["epoch"]
        assert isinstance(limits, Range)
        values["epoch"] = int(limits.high)
    inside = all(value is not None and value in space[knob] for knob, value in values.items())
    return {knob: values[knob] for knob in space} if inside else None


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """Values of a trial, by knob."""
    values: dict[str, Any] = {}
    for knob, allowed in space.items():
        if isinstance(allowed, tuple):
            values[knob] = trial.suggest_categorical(knob, allowed)
        elif allowed.step is None:
            values[knob] = trial.suggest_float(knob, allowed.low, allowed.high, log=allowed.log)
        elif allowed.log:
            # Optuna takes no step on a logarithmic scale.
            values[knob] = trial.suggest_int(knob, int(allowed.low), int(allowed.high), log=True)
        else:
            values[knob] = trial.suggest_int(knob, int(allowed.low), int(allowed.high), step=allowed.step)
    return values


def told(space: Mapping[str, Range | tuple[str, ...]]) -> dict[str, Any]:
    """A space as JSON and YAML have it."""
    return {
        knob: list(allowed)
        if isinstance(allowed, tuple)
        else {"low": allowed.low, "high": allowed.high, "step": allowed.step, "log": allowed.log}
        for knob, allowed in space.items()
    }

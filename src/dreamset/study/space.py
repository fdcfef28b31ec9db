"""The search space of a study: the ranges of a recipe's ``search`` in this run, and the values of a trial."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.errors import InputError
from dreamset.data import tuned
from dreamset.params.knob_rules import HIGHEST

if TYPE_CHECKING:
    from collections.abc import Mapping

    import optuna

    from dreamset.core.workspace import Workspace
    from dreamset.params import Params

_WHOLE: Final = ("steps", "epochs", "per_class")


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included, ``step`` apart; all numbers if ``step`` is None."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    def is_scored(self, value: float) -> bool:
        """Whether a trial can have a value: within the ends or beyond them, on the steps if there are any."""
        steps = 0 if self.step is None else (value - self.low) / self.step
        return abs(steps - round(steps)) < 1e-6 and (value > 0 or not self.log)


# The range of each knob, or its choices.
Space = dict[str, Range | tuple[str, ...]]


def ranges(params: Params, workspace: Workspace, recipe: str) -> Space:
    """Return the ranges of the knobs that ``recipe`` searches.

    Args:
        params: all parameters.
        workspace: with the study of the parent, whose best values a range may refer to.
        recipe: a row with a ``search``.

    Raises:
        InputError: a range is empty, or refers to a study that is missing.
    """
    search = params.recipes[recipe].search
    assert search is not None
    space: Space = {}
    for knob in search.knobs:
        span, key = getattr(search, knob), f"recipes.{recipe}.search.{knob}"
        if isinstance(span, tuple):
            space[knob] = span
            continue
        low, high = span.low, span.high
        if high is None:
            parent = params.after.get(recipe)
            if parent is None:
                raise InputError(f"{key}.high_times_best: {recipe} starts from no other recipe; give high, or after.")
            chosen = current(tuned.applied(params, workspace, parent), parent)[knob]
            if chosen is None:
                raise InputError(f"{key}.high_times_best: {parent} has no {knob} to multiply; give high.")
            high = min(span.high_times_best * chosen, HIGHEST.get(knob, math.inf))
        step: float | None = None
        if knob == "per_class":
            # Each strength of the adapter has as many.
            unit = params.recipes[recipe].unit
            low, high = math.ceil(low / unit) * unit, math.floor(high / unit + 1e-9) * unit
            step = unit
        elif knob == "epoch":
            kept = params.base.adapt.kept
            # The choices are shares of a training, so that they are the same in every fold.
            low, high = max(1, math.ceil(low * kept - 1e-9)) / kept, math.floor(min(high, 1) * kept + 1e-9) / kept
            step = 1 / kept
        elif knob in _WHOLE:
            low, high, step = int(low), math.floor(high + 1e-9), 1
        if high < low:
            raise InputError(
                f"{key}: nothing is left between low ({low:g}) and the highest value allowed ({high:g}); lower its low."
            )
        space[knob] = Range(low, high, step, span.log)
    return space


def current(params: Params, recipe: str) -> dict[str, Any]:
    """Return the value of every knob of a recipe by its row and its model; None for a knob that it lacks."""
    row, sampler, own = params.recipes[recipe], params.sampler(recipe), params.of(recipe)
    values: dict[str, Any] = {
        "guidance": sampler.guidance,
        "steps": sampler.steps,
        "scheduler": sampler.scheduler,
        "strength": sampler.strength,
        "epoch": None,
        "lr": None,
        "epochs": None,
        "adapter_scales": row.strengths[0] if row.trains_lora and len(row.strengths) == 1 else None,
        "guide": row.guide or "adapted",
        "guide_until": 1.0 if row.guide_until is None else row.guide_until,
        "filter": row.filter or "none",
        "per_class": own.per_class,
        "real_weight": own.train.real_weight,
        "finish_on_real": own.train.finish_on_real,
        "nearness": own.train.nearness,
    }
    if row.trains:
        schedule = params.schedule(recipe)
        values |= {"epoch": row.epoch or 1.0, "lr": schedule.lr, "epochs": schedule.epochs}
    return values


def row_values(params: Params, recipe: str, space: Space) -> dict[str, Any] | None:
    """Return the values of the searched knobs in the recipe's row, with which the trials are compared.

    They may lie beyond the ends of a range. They are None where no trial can have one of them: a scheduler that is not
    among the choices, or an epoch whose weights are not kept.
    """
    values = {knob: value for knob, value in current(params, recipe).items() if knob in space}
    for knob, value in values.items():
        allowed = space[knob]
        if value is None or not (value in allowed if isinstance(allowed, tuple) else allowed.is_scored(value)):
            return None
    return {knob: values[knob] for knob in space}


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """Return the values of a trial, by knob; those of the recipe's row may lie beyond the ends of a range."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Fixed parameter .* is out of range")
        return rounded({knob: _suggest(trial, knob, allowed) for knob, allowed in space.items()})


def _suggest(trial: optuna.Trial, knob: str, allowed: Range | tuple[str, ...]) -> Any:
    if isinstance(allowed, tuple):
        return trial.suggest_categorical(knob, allowed)
    if knob not in _WHOLE:
        return trial.suggest_float(knob, allowed.low, allowed.high, step=allowed.step, log=allowed.log)
    # Optuna allows no step on a logarithmic scale; the rules ask for none beside one.
    step = 1 if allowed.log else int(allowed.step or 1)
    return trial.suggest_int(knob, int(allowed.low), int(allowed.high), step=step, log=allowed.log)


def rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with a rounded ``epoch``: Optuna adds up its steps, to 0.30000000000000004."""
    return {knob: round(value, 3) if knob == "epoch" else value for knob, value in values.items()}


def as_json(space: Mapping[str, Range | tuple[str, ...]]) -> dict[str, Any]:
    """Return a space as plain lists and mappings, for JSON and YAML."""
    return {
        knob: list(allowed)
        if isinstance(allowed, tuple)
        else {"low": allowed.low, "high": allowed.high, "step": allowed.step, "log": allowed.log}
        for knob, allowed in space.items()
    }

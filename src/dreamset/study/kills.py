"""Which lost workers count against a trial.

A worker that is killed, or whose machine goes away, seldom dies of the trial that it runs. So a trial is suspected only
where its workers die at the same step of its own work, one after the other: a trial that kills its workers does so at
the same step each time. A worker that dies before that work has begun, such as while it reads the base, tells nothing.
Between two deaths at one step nothing was gained, since the next worker passes what was finished before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.trial import Trial

STEP: Final = "step"  # user attribute of a trial: the step of its own work that has begun; None before the first
_TIMES: Final = "killed"  # how many workers in a row were lost at one step
_AT: Final = "killed_at"  # that step


def begin(trial: Trial, step: str) -> None:
    """Record that a step of a trial's own work begins; steps that gain something have different names."""
    if trial.user_attrs.get(STEP) != step:
        trial.set_user_attr(STEP, step)


def count(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a trial with the loss of its worker counted: the loss at another step begins anew.

    Args:
        attributes: the user attributes that the lost worker left.
    """
    step, times, before = attributes.get(STEP), int(attributes.get(_TIMES, 0)), attributes.get(_AT)
    if step is None:
        return {_TIMES: times, _AT: before}
    return {_TIMES: times + 1 if step == before else 1, _AT: step}


def exceeds(counted: Mapping[str, Any], retries: int) -> str | None:
    """Return why a trial is given up, if it lost more workers in a row at one step than ``retries``; None if not."""
    times, step = counted[_TIMES], counted[_AT]
    if times <= retries:
        return None
    return f"{times} workers in a row were lost at its step {step}" if times > 1 else f"its worker was lost at {step}"

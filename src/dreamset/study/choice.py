"""The choice of a study: the best trial, unless the images that scored it cannot tell it from the recipe's own values.

The best of many trials on few images is the luckiest one. So the one-standard-error rule of ``classifiers.selection``
holds here too. All trials were scored on the same images. So the standard error is that of the paired difference: only
images that one of two trials gets right and the other wrong tell them apart.

That is still the luck of one noise. So before others than the recipe's own values are taken, the finalists and the own
values are scored again, several times, from fresh noise and in fresh folds. These scores alone decide then.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from dreamset.metrics.crossed import crossed_error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Trial = Mapping[str, Any]

# Two trials of equal steps took up to 5 % more or less for an image, so a time that is shorter by less is luck too.
QUICK: Final = 1.1
_EQUAL: Final = 1e-9  # differences below it are of rounding
FINALISTS: Final = 2  # trials that are scored again beside the recipe's own values


class Comparison(NamedTuple):
    """One trial over another: images that it alone gets right and wrong, its gain, and the gain's standard error."""

    gained: int
    lost: int
    gain: float
    standard_error: float

    @property
    def is_told(self) -> bool:
        """Whether the gain is above one standard error."""
        return self.gain > self.standard_error + _EQUAL


def compare(one: str, other: str) -> Comparison:
    """Compare two trials by the images that each gets right.

    The standard error counts half an image more in each of the four cells (Agresti and Min 2005), so that it is above
    zero where two trials agree. For each trial this is one image more right and one more wrong, as in
    ``classifiers.selection.standard_error``.

    Args:
        one: a 1 for each image that is right and a 0 for each that is wrong.
        other: the same of the other trial, for the same images.
    """
    pairs = list(zip(one, other, strict=True))
    gained, lost = (sum(pair == kind for pair in pairs) for kind in (("1", "0"), ("0", "1")))
    images = len(pairs) + 2
    variance = (gained + lost + 1) / images - ((gained - lost) / images) ** 2
    return Comparison(gained, lost, (gained - lost) / len(pairs), math.sqrt(variance / images))


def is_usable(trial: Trial) -> bool:
    """Return whether a trial competes: it was scored on the most images, and is within the limits."""
    return trial["state"] == "COMPLETE" and bool(trial["feasible"])


def choose(trials: Sequence[Trial], row_values: Mapping[str, Any] | None, objectives: str) -> dict[str, Any] | None:
    """Choose a trial by the one-standard-error rule.

    Trials that the best one does not beat by more than one standard error are as good as the best. If the recipe's own
    values are among these, they are kept; otherwise the best is chosen, the first of equal ones. With the seconds as a
    second objective, the fastest of those as good as the best stands in its place: the recipe's own values are kept if
    they are as good as the best, and as quick as the fastest of these within a tenth.

    Args:
        trials: of a record; finished ones have ``right``.
        row_values: the values in the recipe's row; None where no trial can have them.
        objectives: of ``tune.objectives``.

    Returns:
        ``chosen``, ``highest`` and ``own`` (numbers of trials; ``own`` is None if the recipe's own values do not
        compete); the comparison of ``highest`` with ``own``, None without both; and ``reason``. None where no trial is
        usable.
    """
    usable = [trial for trial in trials if is_usable(trial)]
    if not usable:
        return None
    highest = max(usable, key=lambda trial: float(trial["values"][0]))
    own = next((trial for trial in usable if trial["params"] == row_values), None)
    good = [trial for trial in usable if not compare(highest["right"], trial["right"]).is_told]
    if objectives == "cas_and_seconds":
        least = min(trial["values"][1] for trial in good)
        good = [trial for trial in good if trial["values"][1] <= QUICK * least]
    best = max(good, key=lambda trial: (trial["values"][0], *(-seconds for seconds in trial["values"][1:])))
    chosen = own if own is not None and any(trial is own for trial in good) else best
    against = None if own is None or own is highest else compare(highest["right"], own["right"])
    return {
        "chosen": chosen["number"],
        "highest": highest["number"],
        "own": None if own is None else own["number"],
        **(dict.fromkeys(Comparison._fields) if against is None else _rounded(against)),
        "reason": _reason(chosen, highest, own, against, row_values, trials),
    }


def finalists(trials: Sequence[Trial], choice: Mapping[str, Any], objectives: str) -> list[int]:
    """Return the numbers of the trials that are to be scored again, the own values first; empty where these are kept.

    Of CAS alone these are the highest of those that beat the own values by more than one standard error. With the
    seconds as a second objective it is the chosen one, for the seconds need no other look. Where the own values do not
    compete, the highest are compared among themselves.

    Args:
        trials: of a record.
        choice: as ``choose`` returned it.
        objectives: of ``tune.objectives``.
    """
    own, by_number = choice["own"], {trial["number"]: trial for trial in trials}
    if choice["chosen"] == own:
        return []
    if objectives == "cas_and_seconds":
        return [] if own is None else [own, choice["chosen"]]
    usable = [trial for trial in trials if is_usable(trial) and trial["number"] != own]
    if own is not None:
        usable = [trial for trial in usable if compare(trial["right"], by_number[own]["right"]).is_told]
    best = sorted(usable, key=lambda trial: (-trial["values"][0], trial["number"]))[:FINALISTS]
    numbers = ([] if own is None else [own]) + [trial["number"] for trial in best]
    return numbers if len(numbers) > 1 else []


def confirm(
    choice: Mapping[str, Any], again: Mapping[int, Sequence[str]], seconds: Mapping[int, float] | None = None
) -> dict[str, Any]:
    """Choose among the finalists by their scores from fresh noise alone.

    The standard error of the mean paired difference is over images and repetitions, which cross. A trial replaces the
    recipe's own values where it is better by more than one standard error; one that takes less time by a tenth, where
    it is not worse by more than one. Where the own values do not compete, the highest mean wins.

    Args:
        choice: as ``choose`` returned it.
        again: by number of the trial, the own values' among them: for each repetition a 1 for each image that is right
            and a 0 for each that is wrong, the images in the same order everywhere.
        seconds: by number, seconds per image, where these are the second objective; None: they do not count.

    Returns:
        ``choice`` with the trial that is ``chosen`` now, and the ``reason``. ``again`` says of each finalist its mean
        ``cas``, its ``gain`` over the own values and the ``standard_error`` of that; None where these do not compete.
    """
    own = choice["own"]
    rights = {number: np.array([[bit == "1" for bit in one] for one in rows], float) for number, rows in again.items()}
    means = {number: float(right.mean()) for number, right in rights.items()}
    over = {} if own is None else {n: _difference(right - rights[own]) for n, right in rights.items() if n != own}
    best = max((number for number in again if number != own), key=lambda number: (means[number], -number))
    times = len(again[best])
    repeated = f"{times} repetition{'' if times == 1 else 's'} from fresh noise"
    kept = False
    if own is None:
        reason = f"{choice['reason'].partition(',')[0]}; it is the best of the finalists in {repeated}"
    else:
        gain, error = over[best]
        gained = f"{repeated} ({100 * gain:+.1f} ± {100 * error:.1f} points)"
        if seconds is not None and QUICK * seconds[best] < seconds[own]:
            kept = not gain >= -error - _EQUAL
            worse = f"trial {best} is quicker, and worse than the recipe’s own values in {gained}, which are kept"
            told = (
                "more than one standard error better"
                if gain > error + _EQUAL
                else "no more than one standard error worse"
            )
            quick = f"trial {best} is quicker, and {told} than the recipe’s own values in {gained}"
            reason = worse if kept else quick
        else:
            kept = not gain > error + _EQUAL
            lucky = f"trial {best} is no more than one standard error better in {gained}"
            better = f"{choice['reason']}, also in {gained}"
            if seconds is not None:
                better = f"trial {best} is more than one standard error better than the recipe’s own values in {gained}"
            reason = f"{lucky}, so the recipe’s own values are kept" if kept else better
    rows = [
        {
            "number": number,
            "cas": round(means[number], 4),
            "gain": round(over[number][0], 4) if number in over else None,
            "standard_error": round(over[number][1], 4) if number in over else None,
        }
        for number in again
    ]
    return dict(choice) | {"chosen": own if kept else best, "reason": reason, "again": rows}


def _difference(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean of (repetitions, images) differences and its standard error."""
    if not (differences != differences[0, 0]).any():
        return float(differences.mean()), 0.0
    if differences.shape[1] == 1:
        return float(differences.mean()), float("inf")  # one image says nothing of others
    if len(differences) == 1:
        return float(differences.mean()), float(differences.std(ddof=1) / differences.shape[1] ** 0.5)
    return float(differences.mean()), crossed_error(differences)[0]


def _rounded(of: Comparison) -> dict[str, Any]:
    return of._asdict() | {"gain": round(of.gain, 4), "standard_error": round(of.standard_error, 4)}


def _reason(
    chosen: Trial,
    highest: Trial,
    own: Trial | None,
    against: Comparison | None,
    row_values: Mapping[str, Any] | None,
    trials: Sequence[Trial],
) -> str:
    """Return why a trial was chosen, as a clause."""
    if own is None:
        return f"{_why_not(row_values, trials)}, so no trial could be compared with them, and this may be luck"
    if chosen is own:
        if own is highest:
            return "no trial is better than the recipe’s own values, which are kept"
        quick = "" if len(own["values"]) == 1 else ", and no trial as good is quicker by a tenth"
        return (
            f"trial {highest['number']} is within one standard error of the recipe’s own values, which are kept{quick}"
        )
    if against is not None and against.is_told:
        if chosen is highest:
            return "it is better than the recipe’s own values by more than one standard error"
        return f"it is within one standard error of trial {highest['number']}, the best, and quicker"
    return "no trial is more than one standard error better than the recipe’s own values, and this one is quicker"


def _why_not(row_values: Mapping[str, Any] | None, trials: Sequence[Trial]) -> str:
    """Return why the recipe's own values do not compete."""
    if row_values is None:
        return "No trial can have the recipe’s own values"
    tried = [trial for trial in trials if trial["params"] == row_values]
    if any(trial["state"] == "FAIL" for trial in tried):
        return "The trial of the recipe’s own values failed"
    return "The recipe’s own values are beyond a limit" if tried else "The recipe’s own values were not tried"

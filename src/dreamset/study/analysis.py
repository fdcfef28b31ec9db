"""The analysis of a study: the savings of pruning, the agreement of rungs, and the front.

Everything is read from the study's record, ``results/tune/<recipe>.json``. Nothing here opens a storage, so a study
can be analysed after its storage is gone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from dreamset.study.choice import is_usable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RANKED: Final = 5  # trials that a tau needs; three agree by chance in one case of six


def summarise(record: Mapping[str, Any]) -> dict[str, Any]:
    """Analyse a record: return ``saved``, ``rank_agreement``, ``importance`` and ``front``.

    Args:
        record: of a study, with ``trials``, ``space`` (knob: distribution as Optuna writes it), ``resource``, ``best``,
            ``best_trial``, ``choice``, ``default``, ``selection`` and ``limits``.
    """
    from dreamset.study.importance import importance

    return {
        "saved": saved(record["trials"], record["resource"]),
        "rank_agreement": rank_agreement(record["trials"], record["resource"]),
        "importance": importance(record["trials"], record["space"]),
        "front": front(record["trials"]),
    }


def ending(trial: Mapping[str, Any]) -> str:
    """Return how a trial ended: its state, or ``SLOW`` where a limit stopped it and not the pruner.

    The limit of seconds per image is the only one that stops trials. The others are known at the end of a trial.
    """
    return "SLOW" if trial["state"] == "PRUNED" and not trial["feasible"] else str(trial["state"])


def reached(trial: Mapping[str, Any]) -> int:
    """Return the last rung that a trial was scored at; 0 for none."""
    return max(map(int, trial["rungs"]), default=0)


def searches_images(record: Mapping[str, Any]) -> bool:
    """Return whether the study chooses the number of images: its rungs are shares of each trial's own number then."""
    return "per_class" in record["searched"]


def images(trial: Mapping[str, Any], resource: Sequence[int]) -> dict[int, int]:
    """Return the images per class of a trial at each rung: the rung itself, or a share of a number that it searched."""
    own: Sequence[int] | None = trial.get("images_per_class")
    if own is None and "per_class" in trial["params"]:
        # A record of an earlier version, which knew the share alone.
        own = [max(1, round(rung * trial["params"]["per_class"] / resource[-1])) for rung in resource]
    return dict(zip(resource, own or resource, strict=True))


def score(trial: Mapping[str, Any]) -> float | None:
    """Return the CAS of a trial: at the full resource if it finished, otherwise at its last rung; None without one."""
    if trial["state"] == "COMPLETE":
        return float(trial["values"][0])
    at = reached(trial)
    return float(trial["rungs"][str(at)]) if at else None


def saved(trials: Sequence[Mapping[str, Any]], resource: Sequence[int]) -> dict[str, Any]:
    """Return what pruning saved over the trials that did not fail and kept the limit of seconds per image.

    Args:
        trials: of a record.
        resource: the rungs, rising.

    Returns:
        ``resource_used`` and ``seconds_used`` are shares of what the same trials would have taken without pruning;
        None without such trials. A trial stopped at 3 of 27 images per class would have drawn and trained nine times
        as long, and adapted as long as it did. Failed trials and those that a limit stopped are counted apart.
    """
    full = resource[-1]
    ran = [trial for trial in trials if ending(trial) in ("COMPLETE", "PRUNED") and reached(trial)]
    failed, slow = ([trial for trial in trials if ending(trial) == end] for end in ("FAIL", "SLOW"))
    spent = sum(trial["seconds"] for trial in ran)
    counts = [images(trial, resource) for trial in ran]
    drawn = [count[reached(trial)] for trial, count in zip(ran, counts, strict=True)]
    whole = [count[full] for count in counts]
    # Drawing and training the classifier take time in proportion to the images.
    unpruned = sum(trial["seconds"] + _seconds(trial) * (full / reached(trial) - 1) for trial in ran)
    return {
        "trials": len(ran),
        "full": full,
        "resource_used": round(sum(drawn) / sum(whole), 4) if ran else None,
        "seconds": round(spent, 1),
        "seconds_unpruned": round(unpruned, 1),
        "seconds_used": round(spent / unpruned, 4) if unpruned else None,
        "failed": len(failed),
        "seconds_failed": round(sum(trial["seconds"] or 0 for trial in failed), 1),
        "slow": len(slow),
        "seconds_slow": round(sum(trial["seconds"] for trial in slow), 1),
    }


def _seconds(trial: Mapping[str, Any]) -> float:
    """Return the seconds of a trial that grow with its images."""
    return float((trial["seconds_generate"] or 0) + (trial["seconds_train"] or 0))


def rank_agreement(trials: Sequence[Mapping[str, Any]], resource: Sequence[int]) -> list[dict[str, Any]]:
    """Return Kendall's tau-b between CAS at each lower rung and at the last, over the trials scored at both.

    Returns:
        A row per lower rung: ``rung`` and the last one, ``full``; ``n`` trials, and ``tau``. It is None for
        fewer than ``RANKED`` trials, and if all CAS at one of the two rungs are equal.
    """
    from scipy.stats import kendalltau

    full = str(resource[-1])
    rows = []
    for rung in resource[:-1]:
        both = [trial["rungs"] for trial in trials if {str(rung), full} <= trial["rungs"].keys()]
        tau = math.nan
        if len(both) >= RANKED:
            tau = float(kendalltau(*([rungs[at] for rungs in both] for at in (str(rung), full)), variant="b").statistic)
        rows.append({"rung": rung, "full": resource[-1], "n": len(both), "tau": _finite(tau)})
    return rows


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def front(trials: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the numbers of the trials that no other beats in both CAS and seconds per image, the fastest first.

    Only finished, feasible trials with two values count. The list is empty for a study of CAS alone.
    """
    usable = [trial for trial in trials if is_usable(trial) and len(trial["values"]) == 2]
    usable.sort(key=lambda trial: (trial["values"][1], -trial["values"][0], trial["number"]))
    numbers, highest = [], -math.inf
    for trial in usable:
        if trial["values"][0] > highest:
            highest = trial["values"][0]
            numbers.append(trial["number"])
    return numbers

"""The analysis of a study: the savings of pruning, the agreement of rungs, the front, and sentences about them.

Everything is read from the study's record, ``results/tune/<recipe>.json``. Nothing here opens a storage, so a study
can be analysed after its storage is gone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.files import write_csv
from dreamset.metrics.verdict import points
from dreamset.study.choice import is_usable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

# What a trial is scored by: the accuracy of a classifier that learns from its images, alone or beside the shots.
SCORES: Final = {"cas": "CAS", "gain": "gain score", "cas_and_seconds": "CAS"}
LOW_TAU: Final = 0.5  # a quarter of the pairs of trials change order, so pruning on that rung depends on luck
RANKED: Final = 5  # trials that a tau needs; three agree by chance in one case of six
_FEWEST: Final = 3  # trials that a surface needs
GRID: Final = 16
_REACH: Final = math.exp(-2)  # least weight of all trials at a place of the surface: one trial two bandwidths away


def summarise(record: Mapping[str, Any]) -> dict[str, Any]:
    """Analyse a record: return ``saved``, ``rank_agreement``, ``importance``, ``front`` and ``sentences``.

    Args:
        record: of a study, with ``trials``, ``space`` (knob: distribution as Optuna writes it), ``resource``, ``best``,
            ``best_trial``, ``choice``, ``default``, ``selection`` and ``limits``.
    """
    from dreamset.study.importance import importance

    figures: dict[str, Any] = {
        "saved": saved(record["trials"], record["resource"]),
        "rank_agreement": rank_agreement(record["trials"], record["resource"]),
        "importance": importance(record["trials"], record["space"]),
        "front": front(record["trials"]),
    }
    return figures | {"sentences": sentences({**record, **figures})}


def ending(trial: Mapping[str, Any]) -> str:
    """Return how a trial ended: its state, or ``SLOW`` where a limit stopped it and not the pruner.

    The limit of seconds per image is the only one that stops trials. The others are known at the end of a trial.
    """
    return "SLOW" if trial["state"] == "PRUNED" and not trial["feasible"] else str(trial["state"])


def reached(trial: Mapping[str, Any]) -> int:
    """Return the last rung that a trial was scored at, in images per class; 0 for none."""
    return max(map(int, trial["rungs"]), default=0)


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
        resource: images per class at each rung, rising.

    Returns:
        ``resource_used`` and ``seconds_used`` are shares of what the same trials would have taken without pruning;
        None without such trials. A trial stopped at 3 of 27 images per class would have drawn and trained nine times
        as long, and adapted as long as it did. Failed trials and those that a limit stopped are counted apart.
    """
    full = resource[-1]
    ran = [trial for trial in trials if ending(trial) in ("COMPLETE", "PRUNED") and reached(trial)]
    failed, slow = ([trial for trial in trials if ending(trial) == end] for end in ("FAIL", "SLOW"))
    spent = sum(trial["seconds"] for trial in ran)
    # Drawing and training the classifier take time in proportion to the images.
    unpruned = sum(trial["seconds"] + _seconds(trial) * (full / reached(trial) - 1) for trial in ran)
    return {
        "trials": len(ran),
        "full": full,
        "resource_used": round(sum(map(reached, ran)) / (full * len(ran)), 4) if ran else None,
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
        A row per lower rung: ``rung`` and ``full`` in images per class, ``n`` trials, and ``tau``. It is None for
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


def _state(record: Mapping[str, Any], trial: Mapping[str, Any]) -> str:
    """Return the state of a trial for a plot: ``chosen``, or how it ended."""
    return "chosen" if trial["number"] == record["best_trial"] else str(trial["state"]).lower()


def history(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per trial: number, state, CAS if it was scored, and the best CAS of a finished trial so far."""
    rows, best = [], None
    for trial in sorted(record["trials"], key=lambda trial: trial["number"]):
        if is_usable(trial):
            best = max(score(trial) or 0.0, best or 0.0)
        rows.append({"trial": trial["number"], "cas": score(trial), "best": best, "state": _state(record, trial)})
    return rows


def rung_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per trial and rung: images per class, and CAS."""
    return [
        {"images_per_class": int(rung), "cas": cas, "trial": trial["number"], "state": _state(record, trial)}
        for trial in record["trials"]
        for rung, cas in sorted(trial["rungs"].items(), key=lambda item: int(item[0]))
    ]


def timeline(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per trial that ended: its worker, start and end, in seconds since the first start."""
    timed = [trial for trial in record["trials"] if trial["started"] is not None and trial["ended"] is not None]
    first = min((trial["started"] for trial in timed), default=0.0)
    return [
        {
            "started": round(trial["started"] - first, 1),
            "ended": round(trial["ended"] - first, 1),
            "trial": trial["number"],
            "worker": trial["worker"],
            "state": _state(record, trial),
        }
        for trial in timed
    ]


def front_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per finished trial of two objectives: seconds per image, CAS, and whether it is on the front."""
    on = set(record["front"])
    return [
        {"seconds_per_image": trial["values"][1], "cas": trial["values"][0], "trial": trial["number"]}
        | {"front": trial["number"] in on, "feasible": trial["feasible"]}
        for trial in record["trials"]
        if trial["state"] == "COMPLETE" and len(trial["values"]) == 2
    ]


def importance_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per knob and per pair of knobs: the share of the variance of CAS; no rows for too few trials."""
    shares = record["importance"]
    rows = [{"share": share, "of": knob} for knob, share in shares.get("main", {}).items()]
    return rows + [{"share": pair["share"], "of": " × ".join(pair["knobs"])} for pair in shares.get("pairs", ())]


def axes(record: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the two numeric knobs of the contour, guidance and steps first; None without two."""
    numeric = [knob for knob, span in record["space"].items() if "choices" not in span["attributes"]]
    first = [knob for knob in ("guidance", "steps") if knob in numeric]
    ordered = [*first, *(knob for knob in numeric if knob not in first)]
    return (ordered[0], ordered[1]) if len(ordered) > 1 else None


def contour_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per scored trial: its values of the contour's two knobs, CAS and state."""
    names = axes(record)
    return [
        {knob: trial["params"][knob] for knob in names}
        | {"cas": score(trial), "trial": trial["number"], "state": _state(record, trial)}
        for trial in record["trials"]
        if names and reached(trial) and set(names) <= trial["params"].keys()
    ] if names else []  # fmt: skip


def surface(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return CAS over the contour's two knobs, as a kernel-weighted mean of the finished trials (Nadaraya and Watson).

    Trials stopped early were scored on fewer images and do not count. Places without a trial nearby are left out.

    Returns:
        A row per place of a 16 × 16 grid: the values of the two knobs at its centre, and CAS. No rows for fewer than
        three trials.
    """
    import numpy as np

    names = axes(record)
    used = [row for row in contour_rows(record) if row["state"] in ("complete", "chosen")]
    if names is None or len(used) < _FEWEST:
        return []
    spans = [record["space"][knob]["attributes"] for knob in names]
    places = np.stack([_place(span, [row[knob] for row in used]) for span, knob in zip(spans, names, strict=True)], 1)
    cas = np.array([row["cas"] for row in used])
    centres = (np.arange(GRID) + 0.5) / GRID
    grid = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1).reshape(-1, 2)
    # Scott's rule for points that are uniform over the square.
    width = len(used) ** (-1 / 6) / math.sqrt(12)
    weights = np.exp(-((grid[:, None] - places[None]) ** 2).sum(-1) / (2 * width**2))
    values = [_value(span, grid[:, i]) for i, span in enumerate(spans)]
    return [
        {names[0]: round(x, 6), names[1]: round(y, 6), "cas": round(float(weight @ cas / weight.sum()), 4)}
        for x, y, weight in zip(*(column.tolist() for column in values), weights, strict=True)
        if weight.sum() >= _REACH
    ]


def _place(span: Mapping[str, Any], values: Sequence[float]) -> NDArray[np.float64]:
    """Return values of a knob as places in 0..1 of its range."""
    import numpy as np

    given, ends = np.array(values, np.float64), np.array([span["low"], span["high"]], np.float64)
    if span["log"]:
        given, ends = np.log(given), np.log(ends)
    low, high = ends.tolist()
    return np.asarray((given - low) / ((high - low) or 1.0))


def _value(span: Mapping[str, Any], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the values of a knob at places in 0..1 of its range."""
    import numpy as np

    if span["log"]:
        return np.exp(math.log(span["low"]) + places * math.log(span["high"] / span["low"]))
    return np.asarray(span["low"] + places * (span["high"] - span["low"]))


def write_plots(record: Mapping[str, Any], folder: Path) -> None:
    """Write the data of the plots of a summarised record as CSV.

    The files are history, rungs, importance and timeline. Contour and surface need two numeric knobs, and the front
    needs two objectives.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "history.csv", history(record), ("trial", "cas", "best", "state"))
    write_csv(folder / "rungs.csv", rung_rows(record), ("images_per_class", "cas", "trial", "state"))
    write_csv(folder / "importance.csv", importance_rows(record), ("share", "of"))
    write_csv(folder / "timeline.csv", timeline(record), ("started", "ended", "trial", "worker", "state"))
    names = axes(record)
    if names is not None:
        write_csv(folder / "contour.csv", contour_rows(record), (*names, "cas", "trial", "state"))
        write_csv(folder / "surface.csv", surface(record), (*names, "cas"))
    if any(front_rows(record)):
        columns = ("seconds_per_image", "cas", "trial", "front", "feasible")
        write_csv(folder / "front.csv", front_rows(record), columns)


def worded(record: Mapping[str, Any], text: str) -> str:
    """Return a text on CAS with the name of what the study scored in its place."""
    return text.replace("CAS", SCORES[record.get("objectives", "cas")])


def sentences(record: Mapping[str, Any]) -> list[str]:
    """Return sentences about a study for people, from a record with its figures: choice, front, pruning and so on."""
    texts = [_choice(record), _front(record), _savings(record), _agreement(record), _importance(record)]
    return [worded(record, text) for text in texts if text]


def values_text(values: Mapping[str, Any]) -> str:
    """Return knobs with their values for people: ``guidance 2.31, steps 20``."""
    return ", ".join(
        f"{knob} {value:.3g}" if isinstance(value, float) else f"{knob} {value}" for knob, value in values.items()
    )


def _choice(record: Mapping[str, Any]) -> str:
    """Say what was chosen and why, and what the images of the selection say of it."""
    finished = sum(trial["state"] == "COMPLETE" for trial in record["trials"])
    choice = record["choice"]
    if choice is None:
        return f"Nothing was chosen, because {_why_none(record, finished)}; the recipe keeps its own values."
    by_number = {trial["number"]: trial for trial in record["trials"]}
    chosen, highest = by_number[choice["chosen"]], by_number[choice["highest"]]
    reason = choice["reason"]
    text = (
        f"Chosen: {values_text(chosen['params'])} (trial {chosen['number']}), with a CAS of {_cas(chosen)} on the "
        f"{record['selection']['images']} images of the selection. {reason[0].upper()}{reason[1:]}."
    )
    if highest is not chosen:
        text += f" Trial {highest['number']} ({values_text(highest['params'])}) has the highest CAS, {_cas(highest)}."
    if choice["gain"] is not None:
        text += (
            f" Beside the recipe’s own values, with {_cas(by_number[choice['own']])}, trial {highest['number']} gets "
            f"{choice['gained']} images more right and {choice['lost']} more wrong: {points(choice['gain'])} "
            f"percentage points, with a standard error of {100 * choice['standard_error']:.1f}."
        )
    if choice["chosen"] == choice["own"]:
        return text
    return (
        f"{text} The choice is one of {finished} finished trials on the images that chose it, so its CAS is too "
        "favourable; only other images can tell what it is worth."
    )


def _cas(trial: Mapping[str, Any]) -> str:
    return f"{100 * trial['values'][0]:.1f}%"


def _why_none(record: Mapping[str, Any], finished: int) -> str:
    trials, limits = record["trials"], record["limits"]
    slow = sum(ending(trial) == "SLOW" for trial in trials)
    reasons = []
    if slow:
        many = f"{slow} of {len(trials)} trials" if len(trials) > 1 else "the only trial"
        reasons.append(f"{many} took longer for an image than {_SECONDS} ({limits['max_seconds_per_image']:g}) allows")
    if finished:
        given = [f"tune.{name} ({limits[name]:g})" for name in _LIMITS if limits[name] is not None]
        reasons.append(f"none of the {finished} finished trials is within {' and '.join(given)}")
    elif slow < len(trials):
        reasons.append("no other finished" if slow else "no trial finished")
    return ", and ".join(reasons)


def _front(record: Mapping[str, Any]) -> str:
    """Name the ends of the front, if there is one."""
    on = {trial["number"]: trial["values"] for trial in record["trials"] if trial["number"] in record["front"]}
    if not on:
        return ""
    ends = [
        f"{100 * on[number][0]:.1f}% at {1000 * on[number][1]:.3g} ms"
        for number in dict.fromkeys((record["front"][0], record["front"][-1]))
    ]
    many = f"{len(on)} trials" if len(on) > 1 else "1 trial"
    return f"No other trial beats {many} in both CAS and the time per image: {' to '.join(ends)}."


def _savings(record: Mapping[str, Any]) -> str:
    """Count the trials by their ends, and say what pruning saved."""
    figures = record["saved"]
    counts = [(sum(ending(trial) == end for trial in record["trials"]), word) for end, word in _WORDS.items()]
    text = f"Of {len(record['trials'])} trials {', '.join(f'{count} {word}' for count, word in counts if count)}."
    if figures["resource_used"] is None:
        return text
    if all(ending(trial) != "PRUNED" for trial in record["trials"]):
        return f"{text} The pruner stopped none, so nothing was saved."
    images, seconds = 100 * figures["resource_used"], 100 * figures["seconds_used"]
    return (
        f"{text} Those that finished or were stopped early took {images:.0f}% of the images and {seconds:.0f}% of the "
        f"seconds that they would have taken without pruning, so pruning saved {100 - images:.0f}% and "
        f"{100 - seconds:.0f}%."
    )


_LIMITS: Final = ("max_seconds_per_image", "max_fid")
_SECONDS: Final = "tune.max_seconds_per_image"
_WORDS: Final = {
    "COMPLETE": "finished",
    "PRUNED": "were stopped early",
    "SLOW": f"took longer for an image than {_SECONDS} allows",
    "FAIL": "failed",
}


def _agreement(record: Mapping[str, Any]) -> str:
    """Say whether few images per class rank trials as many do."""
    rows = record["rank_agreement"]
    known = [row for row in rows if row["tau"] is not None]
    if not rows:
        return ""
    if not known:
        n = max(row["n"] for row in rows)
        why = f"all {n} trials that were scored at both had the same CAS at one of them"
        if n < RANKED:
            why = f"trials scored at both: {n}, needed: {RANKED}"
        return f"Whether few images per class rank trials as many do is unknown ({why})."
    each = ", ".join(f"{row['tau']:.2f} from {row['rung']} images per class" for row in known).replace("-", "−")
    text = (
        f"Kendall’s tau with the ranking at {known[0]['full']}: {each}, over "
        f"{' and '.join(dict.fromkeys(str(row['n']) for row in known))} trials"
    )
    if any(ending(trial) == "PRUNED" for trial in record["trials"]):
        text += "; trials stopped early are missing, so this is the agreement among the better trials"
    text += "."
    if min(row["tau"] for row in known) < LOW_TAU:
        text += (
            " That is low: pruning is partly luck, and few images favour high guidance, whose images vary less. To "
            "avoid this, set tune.pruner: none, or more images at the first rung."
        )
    return text


def _importance(record: Mapping[str, Any]) -> str:
    """Say which knobs explain the variance of CAS, and why their interactions are absent where they are."""
    from dreamset.study.importance import ENOUGH_FOR_PAIRS

    shares = record["importance"]
    if "too_few" in shares:
        return (
            f"Which knob matters is unknown yet: it takes {shares['enough']} finished trials within the searched "
            f"ranges, and there are {shares['too_few']}."
        )
    alone = ", ".join(f"{knob} {100 * share:.0f}%" for knob, share in shares["main"].items())
    text = f"Shares of the variance of CAS over the searched ranges, by fANOVA over {shares['trials']} trials: {alone}"
    if shares["pairs"]:
        top = shares["pairs"][0]
        text += f"; the strongest interaction, {' × '.join(top['knobs'])}, {100 * top['share']:.0f}%"
    if shares["r2"] <= 0:
        text += ". The forest predicts left-out trials no better than their mean does, so these shares may be noise"
    text += "."
    if len(shares["main"]) > 1 and shares["trials"] < ENOUGH_FOR_PAIRS:
        text += f" Interactions of knobs are not shown: it takes {ENOUGH_FOR_PAIRS} finished trials to see them."
    return text

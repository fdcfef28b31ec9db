"""What a study says in words, from its record: the choice, the front, what pruning saved, and which knob matters.

No number of a study, a shard or a table depends on this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dreamset.metrics.verdict import points
from dreamset.study.analysis import RANKED, ending, searches_images

if TYPE_CHECKING:
    from collections.abc import Mapping

# What a trial is scored by: the accuracy of a classifier that learns from its images, alone or beside the shots.
SCORES: Final = {"cas": "CAS", "gain": "gain score", "cas_and_seconds": "CAS"}
LOW_TAU: Final = 0.5  # a quarter of the pairs of trials change order, so pruning on that rung depends on luck
_LIMITS: Final = ("max_seconds_per_image", "max_fid")
_SECONDS: Final = "tune.max_seconds_per_image"
_WORDS: Final = {
    "COMPLETE": "finished",
    "PRUNED": "were stopped early",
    "SLOW": f"took longer for an image than {_SECONDS} allows",
    "FAIL": "failed",
}


def worded(record: Mapping[str, Any], text: str) -> str:
    """Return a text on CAS with the name of what the study scored in its place."""
    return text.replace("CAS", SCORES[record.get("objectives", "cas")])


def of(record: Mapping[str, Any]) -> list[str]:
    """Return sentences about a study for people, from a record with its figures: choice, front, pruning and so on."""
    texts = [_choice(record), _front(record), _savings(record), _agreement(record), _importance(record)]
    return [worded(record, text) for text in texts if text]


def share(record: Mapping[str, Any], rung: int) -> str:
    """Return a rung of a searched number in per cent."""
    value = 100 * rung / record["resource"][-1]
    return f"{value:.0f}%" if value >= 1 else f"{value:.2g}%"


def rung_words(record: Mapping[str, Any], rung: int) -> str:
    """Return what a rung is for all trials."""
    if searches_images(record):
        return f"{share(record, rung)} of a trial’s images"
    return f"{rung} images per class"


def rungs_text(record: Mapping[str, Any]) -> str:
    """Return what all rungs of a study are: ``3, 9, 27 images per class``."""
    if not searches_images(record):
        return f"{', '.join(map(str, record['resource']))} images per class"
    return f"{', '.join(share(record, rung) for rung in record['resource'])} of a trial’s images"


def _last(record: Mapping[str, Any]) -> str:
    return "all images" if searches_images(record) else str(record["resource"][-1])


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
    each = ", ".join(f"{row['tau']:.2f} from {rung_words(record, row['rung'])}" for row in known).replace("-", "−")
    text = (
        f"Kendall’s tau with the ranking at {_last(record)}: {each}, over "
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

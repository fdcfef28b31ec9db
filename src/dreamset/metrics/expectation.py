"""What the measurements of ``dreamset expect`` say: a word, sentences with their numbers, and the recipe to take."""

from __future__ import annotations

from typing import Any, Final

from dreamset.core.images import CHANGES

LEVEL: Final = 0.05  # of the permutation test, and of all tries of a change together
_KNOWN: Final = 0.5  # share of the shots that CLIP names, from which on the base knows the classes (docs/recipes.md)


def judgement(record: dict[str, Any]) -> tuple[str, list[str]]:
    """Return the expectation in a word, and in sentences with the numbers that it rests on.

    The word is ``no help`` where the base cannot know the classes, and ``unlikely`` where nothing shows that it knows
    them. Else it is ``adapt`` where its pictures differ from the shots, and ``base`` where no difference shows.

    Args:
        record: the measurements that ``run`` writes.
    """
    zero_shot, read, seen, words = (record[key] for key in ("zero_shot", "read_as_prompted", "look", "spelled"))
    if len(words) > record["classes"] / 2:
        return "no help", [
            f"This base cannot know these classes: {len(words)} of {record['classes']} names, such as {words[0]!r}, "
            "are no words of its vocabulary, so that it spells them letter by letter. Expect no help from its images.",
            _look(seen),
            *_ways_out(record),
        ]
    ends = f"{100 * zero_shot['low']:.0f} to {100 * zero_shot['high']:.0f}"
    known = (
        f"zero-shot accuracy {_percent(zero_shot['share'])} on {zero_shot['of']} shots, interval {ends}, chance "
        f"{_percent(zero_shot['chance'])}"
    )
    if zero_shot["low"] <= zero_shot["chance"]:
        return "unlikely", [
            f"Nothing shows that the CLIP beside this base knows these classes ({known}). Expect little or no help: "
            "what an image of each class looks like has to be learned from the shots alone.",
            _look(seen),
            *_ways_out(record),
        ]
    drawing = f"{_percent(read['share'])} of its pictures are read as the class that was asked for"
    if read["low"] <= read["chance"]:
        return "unlikely", [
            f"CLIP knows these classes ({known}), but this base does not draw them: only {drawing}. Expect little.",
            _look(seen),
            *_ways_out(record),
        ]
    differs = seen["p"] < LEVEL
    sentences = [f"The base knows these classes ({known}; {drawing}).", _look(seen)]
    return "adapt" if differs else "base", [
        *sentences,
        *_precedent(record, differs),
        *_better(record),
        *_costs(record),
    ]


def _ways_out(record: dict[str, Any]) -> list[str]:
    """Return sentences on what may help instead, the likeliest first."""
    return [
        *_better(record),
        "What may help instead: a base that knows such pictures (docs/gpu.md; docs/photographs.md without a GPU); more "
        f"unlabelled pictures of this kind for the recipe retrieved (models.{record['model']}.retrieval="
        "imagefolder:PATH); an adapter at full strength (datadream_dset); or more labelled images.",
        *_costs(record),
    ]


def _costs(record: dict[str, Any]) -> list[str]:
    """Return a sentence on the smallest gain that can be shown, and on the time that drawing takes."""
    reach = record["reach"]
    images, smallest, likely = reach["images"], reach["smallest_gain"], reach["detectable_gain"]
    if smallest is None:
        shown = f"{images} scored images can show no gain at all"
    else:
        shown = f"{images} scored images can show no gain below {100 * smallest:.1f} points"
        if likely is not None:
            shown += f", and find one of {100 * likely:.1f} four times in five"
    return [f"{shown}; drawing a recipe's images takes about {_duration(record['drawing_s'])} on this machine."]


def _duration(seconds: float) -> str:
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(1, round(seconds))} seconds"


def _better(record: dict[str, Any]) -> list[str]:
    """Return a sentence on the change of the shots that CLIP knows them better by, if there is one."""
    change = record["change"]
    if change is None:
        return []
    done = [CHANGES[name] if value else "not inverted" for name, value in change["prepare"].items()]
    words = " and ".join(filter(None, (", ".join(done[:-1]), done[-1])))
    before, after = (_percent(change[key] / change["of"]) for key in ("before", "after"))
    values = " ".join(f"prepare.{name}={str(value).lower()}" for name, value in change["prepare"].items())
    return [
        f"{words[0].upper()}{words[1:]}, {after} of {change['of']} shots are named rightly, and {before} as they are "
        f"(best of {change['tries']} tries, which the test of the difference allows for): `dreamset set {values}`."
    ]


def strength(zero_shot: dict[str, Any]) -> dict[str, Any]:
    """Return which recipe ``primary: auto`` takes, by the shots alone: the first active one of ``order``.

    A base that knows the names gives more than the shots hold as long as its adapter is weak. One that does not has to
    learn the classes at full strength.

    Args:
        zero_shot: the share of the shots that CLIP names, as ``share`` returns it, with ``chance``.

    Returns:
        ``known``, ``order`` and, in a sentence, ``reason``.
    """
    known = zero_shot["low"] > zero_shot["chance"] and zero_shot["share"] >= _KNOWN
    order = ["datadream_light", "datadream_dset"] if known else ["datadream_dset", "datadream_light"]
    names = f"the base's CLIP names {_percent(zero_shot['share'])} of the shots"
    why = "so it knows the classes, and a weak adapter keeps that" if known else "so a full adapter has to teach them"
    return {"known": known, "order": order, "reason": f"{names}, {why}."}


def _look(seen: dict[str, Any]) -> str:
    numbers = (
        f"KID {seen['kid']:.2f}, {seen['kid_exchanged']:.2f} where shots and pictures are exchanged at random, "
        f"p = {seen['p']:.2g}; {_percent(seen['near'])} of the pictures as near to a shot as shots are to one another"
    )
    if seen.get("stand_in"):
        numbers += f"; {seen['stand_in']}"
    if seen["p"] >= LEVEL:
        return f"Its pictures do not measurably differ from the shots ({numbers})."
    how = "are far from" if seen["near"] < 0.5 else "do not quite have"
    return f"Its pictures {how} the look of the shots ({numbers})."


def _precedent(record: dict[str, Any], differs: bool) -> list[str]:
    """Return sentences on what the table over seeds measured at the nearest number of shots."""
    table, shots = record["table"], record["shots"]
    labelled = f"{shots[0]}" if shots[0] == shots[1] else f"{shots[0]} to {shots[1]}"
    if table is None:
        return [
            f"How much its images help with {labelled} labelled images per class is not known beforehand: there is no "
            "table over seeds (`dreamset table` makes one)."
        ]
    where = (
        f"the table over seeds ({table['source']}, base {table['model']}, {table['shots']} per class, "
        f"{table['seeds']} seeds)"
    )
    same = (table["source"], table["model"]) == (record["source"], record["model"])
    sentences = []
    if differs and table["lift"]:
        low, high = (f"{100 * value:+.0f}" for value in table["lift"])
        sentences.append(
            f"Adaptation {'is likely to' if same else 'may'} raise the accuracy on synthetic images alone: by {low} to "
            f"{high} points in {where}{'' if same else ', which are other images or another base than yours'}."
        )
    if table["added"]:
        gains = [f"{gain['of']} {100 * gain['difference']:+.1f} points" for gain in table["gains"]]
        count = f"{len(gains)} of {table['added']} additions of synthetic images gained measurably over real ones alone"
        which = f" ({', '.join(gains)})" if gains else ""
        start = f"With {labelled} labelled images per class expect "
        amount = "little" if len(gains) < table["added"] / 2 else "some gain"
        at = "there" if sentences else f"in {where}"
        sentences.append(f"{start}{amount} on top of the real ones: {at} {count}{which}.")
    return sentences


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"

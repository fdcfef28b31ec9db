"""The verdict in words: what the page opens with, on the most that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreamset.metrics import claims
from dreamset.metrics import verdict as rule
from dreamset.metrics.statistics import indicative
from dreamset.metrics.verdict import points
from dreamset.report.markup import percent, point_interval

if TYPE_CHECKING:
    from dreamset.metrics.verdict import Gain
    from dreamset.report.evidence import Evidence


@dataclass(frozen=True)
class Verdict:
    """The declared choice, and what is said of it. ``also`` are further sentences, the weightier first.

    ``seeds`` are those of the table that it rests on; 0 where it rests on this seed alone.
    """

    recipe: str
    plain: str | None
    classifier: str
    seeds: int
    outcome: rule.Outcome | None
    title: str
    lede: str
    also: list[str]
    caveat: list[str]


def verdict(evidence: Evidence) -> Verdict:
    """The verdict over the seeds of the table where there is one of this setting, else of this seed."""
    params = evidence.params
    recipe, classifier = params.primary_recipe, params.primary_classifier
    plain = next((name for name in evidence.plain if params.recipes[name].draws), None)
    plain = plain if recipe in evidence.adapted else None
    confidence = float(evidence.evaluation["confidence"])
    basis = rule.basis(evidence.evaluation)
    enough = rule.can_show(evidence.evaluation)
    here = rule.judge(params, evidence.gains.values(), confidence, basis, enough=enough)
    pooled = claims.pooled(params, evidence.sweep, evidence.split.shots, evidence.evaluation)
    found = pooled.verdict if pooled else here
    if found is None:
        title = "What was measured"
        lede = "No classifier was trained on real and synthetic images together."
    else:
        title = rule.TITLES[found.outcome]
        lede = _sentence(found.reason)
    gains = pooled.gains if pooled else evidence.gains
    also = _adaptation(gains, recipe, plain, classifier)
    if pooled and here:
        also.append(f"Seed {params.seed}, which the rest of this page is about: {here.reason}")
    alone = _alone(evidence, recipe, plain, classifier)
    return Verdict(
        recipe=recipe,
        plain=plain,
        classifier=classifier,
        seeds=pooled.seeds if pooled else 0,
        outcome=found.outcome if found else None,
        title=title,
        lede=lede,
        also=[*also, *([alone] if alone else [])],
        caveat=_caveat(evidence, pooled.seeds if pooled else 0),
    )


def seeds(evidence: Evidence) -> str:
    """How far one seed carries, in a sentence."""
    sweep = evidence.sweep
    if sweep is None or sweep.seeds < 2:
        return "Indicative, one seed: other shots, noise and initial weights would give other numbers."
    if indicative(sweep.seeds):
        return f"Indicative, one seed; the table over {sweep.seeds} seeds below says how much it varies."
    return f"This page is one seed and indicative; the table over {sweep.seeds} seeds below carries the claims."


def _adaptation(gains: dict[tuple[str, str], Gain], recipe: str, plain: str | None, classifier: str) -> list[str]:
    """What adapting the generator does, apart from what having synthetic images does."""
    told = []
    for kinds, where in ((rule.TOGETHER, "beside the real images"), (("synthetic",), "on synthetic images alone")):
        pairs = [(f"{recipe}/{kind}/{classifier}", f"{plain}/{kind}/{classifier}") for kind in kinds]
        gain = next((gains[pair] for pair in pairs if pair in gains), None)
        if gain:
            told.append(f"{points(gain.difference)} points {where} ({point_interval(gain.low, gain.high)})")
    return [f"Adapting the generator, against {plain} as it is: {' and '.join(told)}."] if told else []


def _alone(evidence: Evidence, recipe: str, plain: str | None, classifier: str) -> str:
    mine = evidence.score(recipe, "synthetic", classifier)
    theirs = evidence.score(plain, "synthetic", classifier) if plain else None
    if mine is None:
        return ""
    against = f", against {percent(theirs.accuracy)} with {plain}" if theirs else ""
    return f"On synthetic images alone {classifier} reaches {percent(mine.accuracy)}{against}."


def _caveat(evidence: Evidence, seeds_of_title: int) -> list[str]:
    """How far it carries, and by which rule; all of it fixed before a test image was seen."""
    params = evidence.params
    interval = f"{100 * float(evidence.evaluation['confidence']):g}% interval"
    told = []
    if not seeds_of_title:
        told.append(f"{seeds(evidence)} Its intervals resample the images alone.")
    level = f"{100 * (1 - float(evidence.evaluation['confidence'])):.3g}%"
    least = points(params.evaluate.smallest_gain)
    told.append(
        f"The rule: it helps where the whole {interval} lies above zero and McNemar’s exact test, or over six seeds or "
        f"more the sign-flip test, rejects equality at {level}; it does not where the interval ends below {least} "
        "points and so many images can show a difference at all; and else these images cannot tell. It was fixed "
        "before these images were seen, and so were recipe and classifier: `primary` and `deliver` in `params.yaml`."
    )
    if len(evidence.real_kinds) > 1:
        told.append(
            f"What has to be beaten is the best of {len(evidence.real_kinds)} ways of training on the real images "
            "alone; choosing it on these images favours the real ones."
        )
    reach = evidence.evaluation.get("reach") or {}
    if reach.get("words"):
        told.append(str(reach["words"]))
    return told


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]

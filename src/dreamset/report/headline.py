"""The headline of the page: the verdict in words, as ``metrics.verdict`` decides it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreamset.data.cards import untested_words
from dreamset.data.runs import SYNTHETIC, Run
from dreamset.metrics import claims
from dreamset.metrics import verdict as rule
from dreamset.metrics.gains import TOGETHER
from dreamset.metrics.statistics import indicative
from dreamset.metrics.verdict import points
from dreamset.report.figures import percent, point_interval

if TYPE_CHECKING:
    from dreamset.metrics.claims import Settled
    from dreamset.metrics.gains import Gain
    from dreamset.report.evidence import Evidence


@dataclass(frozen=True)
class Headline:
    """The primary recipe and classifier, and the words on them; ``also`` holds further sentences, weightier first.

    ``seeds`` is the number of the table's seeds that the verdict rests on; 0 where it rests on this seed alone.
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


def headline(evidence: Evidence) -> Headline:
    """Return the verdict that counts, in words: over the seeds of the table, or of this seed."""
    params = evidence.params
    recipe, classifier = params.primary_recipe, params.primary_classifier
    plain = next((name for name in evidence.plain if params.recipes[name].draws), None)
    plain = plain if recipe in evidence.adapted else None
    settled = claims.settle(params, evidence.table, evidence.split, evidence.evaluation)
    title, lede = "What was measured", "No classifier was trained on real and synthetic images together."
    if settled.verdict is not None:
        title, lede = rule.title(settled.verdict), _sentence(settled.verdict["reason"])
    also = _adaptation(settled.gains or evidence.gains, recipe, plain, classifier)
    if settled.gains and settled.here:
        also.append(f"Seed {params.seed}, which the rest of this page is about: {settled.here['reason']}")
    alone = _alone(evidence, recipe, plain, classifier)
    pooled = settled.seeds if settled.gains else 0
    return Headline(
        recipe=recipe,
        plain=plain,
        classifier=classifier,
        seeds=pooled,
        outcome=settled.verdict["outcome"] if settled.verdict else None,
        title=title,
        lede=lede,
        also=[*also, *([alone] if alone else [])],
        caveat=_caveat(evidence, settled),
    )


def seeds(evidence: Evidence) -> str:
    """Return a sentence on how far the results of one seed hold."""
    sweep = evidence.table.sweep
    if sweep is None or sweep.seeds < 2:
        return "Indicative, one seed: other shots, noise and initial weights would give other numbers."
    if indicative(sweep.seeds):
        return f"Indicative, one seed; the table over {sweep.seeds} seeds below says how much it varies."
    return f"This page is one seed and indicative; the table over {sweep.seeds} seeds below carries the claims."


def _adaptation(gains: dict[tuple[Run, Run], Gain], recipe: str, plain: str | None, classifier: str) -> list[str]:
    """Return a sentence on the gain of adapting the generator over synthetic images of the plain one, or none."""
    if plain is None:
        return []
    parts = []
    for kinds, where in ((TOGETHER, "beside the real images"), ((SYNTHETIC,), "on synthetic images alone")):
        pairs = [(Run(recipe, kind, classifier), Run(plain, kind, classifier)) for kind in kinds]
        gain = next((gains[pair] for pair in pairs if pair in gains), None)
        if gain:
            parts.append(f"{points(gain.difference)} points {where} ({point_interval(gain)})")
    return [f"Adapting the generator, against {plain} as it is: {' and '.join(parts)}."] if parts else []


def _alone(evidence: Evidence, recipe: str, plain: str | None, classifier: str) -> str:
    """Return a sentence on the accuracy from synthetic images alone, or an empty one."""
    score = evidence.scores.get(Run(recipe, SYNTHETIC, classifier))
    other = evidence.scores.get(Run(plain, SYNTHETIC, classifier)) if plain else None
    if score is None:
        return ""
    against = f", against {percent(other.accuracy)} with {plain}" if other else ""
    return f"On synthetic images alone {classifier} reaches {percent(score.accuracy)}{against}."


def _caveat(evidence: Evidence, settled: Settled) -> list[str]:
    """Return sentences on how far the verdict holds, on its rule, and on what is known of when that was fixed."""
    params, evaluation = evidence.params, evidence.evaluation
    interval = f"{100 * float(evaluation['confidence']):g}% interval"
    sentences = [words] if (words := untested_words(rule.untested(evaluation))) else []
    if evidence.table.warning:
        sentences.append(evidence.table.warning)
    if not settled.gains:
        groups = evaluation.get("groups")
        over = f"over {groups} groups of images" if groups else "over the images"
        sentences.append(f"{seeds(evidence)} Its intervals are {over} alone.")
    level = f"{100 * (1 - float(evaluation['confidence'])):.3g}%"
    least = points(params.evaluate.smallest_gain)
    sentences.append(
        f"The rule: it helps where the whole {interval} lies above zero and a test rejects equality at {level}. The "
        "test is McNemar’s exact one or, over six seeds or more, that of sign flips, adjusted for the family of "
        f"primary claims where it is one of them. It does not help where the interval ends below {least} points and "
        "so many images can show a difference at all. Otherwise these images cannot tell."
    )
    sentences.append(_fixed(evidence, settled))
    if len(evidence.real_kinds) > 1:
        sentences.append(
            f"Synthetic images have to beat the best of {len(evidence.real_kinds)} ways of training on the real images "
            "alone. It is chosen on these images, which favours the real ones."
        )
    return [*sentences, *filter(None, (_reach(evidence, settled), evidence.machines))]


def _fixed(evidence: Evidence, settled: Settled) -> str:
    """Return a sentence on what the records show of when recipe and classifier of the verdict were chosen."""
    where = "Recipe and classifier of the verdict stand in `params.yaml` (`primary`, `deliver`)"
    if not settled.gains or evidence.table.sweep is None:
        return f"{where}; nothing records whether they were chosen before these images were first scored."
    recipe, cost = evidence.params.primary, evidence.table.sweep.cost
    known, cells = cost.get("primary", {}).get(recipe, 0), cost.get("cells", 0)
    if known == cells and cells:
        return f"{where}; each of the table’s {cells} cells records that `primary` was {recipe} whenever it was scored."
    return (
        f"{where}; {known} of the table’s {cells} cells record that `primary` was {recipe} whenever they were scored, "
        "and nothing records that it was chosen before the others were."
    )


def _reach(evidence: Evidence, settled: Settled) -> str | None:
    """Return a sentence on the smallest gain that the verdict could have shown, by what decides it."""
    words: str | None = (evidence.evaluation.get("reach") or {}).get("words")
    found = settled.verdict
    if found is None or not (settled.gains or evidence.evaluation.get("groups")):
        return words  # McNemar's test decides, beside an interval over the same single images
    side = points(found["difference"] - found["low"]).lstrip("+")
    return (
        f"The interval that decides reaches {side} points below the difference, so that a gain below {side} points "
        "would not have shown here."
    )


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]

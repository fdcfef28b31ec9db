"""The headline of the page: the verdict in words, as ``metrics.verdict`` decides it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreamset.data.classifier_card import untested_words
from dreamset.data.runs import REAL, SYNTHETIC, Kind, Run
from dreamset.metrics import best, claims
from dreamset.metrics import verdict as rule
from dreamset.metrics.gains import TOGETHER
from dreamset.metrics.statistics import indicative
from dreamset.metrics.verdict import points
from dreamset.report.figures import number, p_value, percent, point_interval

if TYPE_CHECKING:
    from dreamset.metrics.claims import Settled
    from dreamset.metrics.gains import Gain
    from dreamset.report.evidence import Evidence


@dataclass(frozen=True)
class Headline:
    """The primary recipe and classifier, and the words on them.

    Attributes:
        recipe: the primary one.
        plain: the recipe that adaptation is measured against; None without one.
        classifier: the primary one.
        seeds: the number of the table's seeds that the verdict rests on; 0 where it rests on this seed alone.
        outcome: of the verdict; None where nothing was trained on real and synthetic images together.
        title: the finding in a few words.
        gain: the gain with its interval, in points; empty without a verdict.
        lede: the finding in plain words, with the two accuracies.
        use: sentences on which classifier to take, and which recipe by the table over seeds.
        done: what was done, for readers who know nothing of it.
        reason: of the verdict.
        also: further sentences, weightier first.
        caveat: how far the verdict holds, its rule and its test.
    """

    recipe: str
    plain: str | None
    classifier: str
    seeds: int
    outcome: rule.Outcome | None
    title: str
    gain: str
    lede: str
    use: list[str]
    done: str
    reason: str
    also: list[str]
    caveat: list[str]


def headline(evidence: Evidence) -> Headline:
    """Return the verdict that counts, in words: over the seeds of the table, or of this seed."""
    params = evidence.params
    recipe, classifier = params.primary_recipe, params.primary_classifier
    plain = next((name for name in evidence.plain if params.recipes[name].draws), None)
    plain = plain if recipe in evidence.adapted else None
    settled = claims.settle(params, evidence.table, evidence.split, evidence.evaluation)
    title, gain, reason = "What was measured", "", "No classifier was trained on real and synthetic images together."
    lede, use = reason, []
    if settled.verdict is not None:
        title, _, gain = rule.finding(settled.verdict).partition(": ")
        lede, reason = _plain_words(evidence, settled), _sentence(settled.verdict["reason"])
        arm = settled.verdict["recipe"] if settled.verdict["outcome"] == "helps" else REAL
        use = [rule.advice(evidence.delivered.get("arm", arm))]
        if (compared := best.sentence(evidence.delivered)) is not None:
            use.append(compared)
    sweep = evidence.table.sweep
    advised = sweep.advised(evidence.split.shots, _taken(evidence, settled)) if sweep else []
    use += advised[:1]
    also = _adaptation(settled.gains or evidence.gains, recipe, plain, classifier, evidence.level)
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
        gain=gain,
        lede=lede,
        use=use,
        done=_done(evidence, recipe),
        reason=reason,
        also=[*advised[1:], *also, *([alone] if alone else [])],
        caveat=_caveat(evidence, settled),
    )


def _taken(evidence: Evidence, settled: Settled) -> Run | None:
    """Return the classifier that the page says to take: what is delivered, or what the verdict says without that."""
    if delivered := evidence.delivered:
        return Run(delivered["arm"], Kind.parse(delivered["train_on"]), delivered["classifier"])
    if settled.verdict is None:
        return None
    return Run.parse(settled.verdict["of" if settled.verdict["outcome"] == "helps" else "minus"])


def _plain_words(evidence: Evidence, settled: Settled) -> str:
    """Return the verdict for readers who know no statistics: two accuracies, their difference, and what it means."""
    found, params = settled.verdict, evidence.params
    assert found is not None
    of, minus = (_accuracy(evidence, settled, Run.parse(found[side])) for side in ("of", "minus"))
    mean = f" in the mean of {settled.seeds} seeds" if settled.gains else ""
    beside = f"{of or 'some'} of {_images(evidence)} rightly{mean}"
    without = f", and {minus} without them" if minus else ""
    meaning = {
        "helps": "The whole interval lies above zero.",
        "does_not_help": f"A gain of {points(params.evaluate.smallest_gain)} points or more is unlikely.",
        "cannot_tell": "A gain and none are both possible: it takes more real images to tell.",
    }[found["outcome"]]
    return (
        f"The classifier ({found['classifier']}) names {beside} when it also learns from the synthetic images of "
        f"{found['recipe']}{without}. The {evidence.confidence} interval of the difference is "
        f"{points(found['low'])} to {points(found['high'])} points. {meaning}"
    )


def _accuracy(evidence: Evidence, settled: Settled, run: Run) -> str:
    """Return the accuracy of a run that the verdict compares; an empty text where it is not known."""
    sweep = evidence.table.sweep
    if settled.gains and sweep is not None:
        if run in settled.accuracies:
            return percent(settled.accuracies[run])
        mean = sweep.means_at(evidence.split.shots).get(run)
        # A mean over other seeds would not fit to the difference beside it.
        return percent(mean.accuracy) if mean and mean.seeds == settled.seeds else ""
    score = evidence.scores.get(run)
    return percent(score.accuracy) if score else ""


def _done(evidence: Evidence, recipe: str) -> str:
    """Return sentences on what was done, for readers who know nothing of it."""
    split, row = evidence.split, evidence.params.recipes[recipe]
    made = "A text-to-image model drew synthetic ones"
    if row.trains:
        made = "A text-to-image model was adapted to them and drew synthetic ones"
    if not row.draws:
        made = "Images that resemble them were looked for in a large collection"
    scored = f"{_images(evidence)}, which nothing had learned from, scored them."
    if evidence.evaluation.get("protocol") == "cv":
        scored = "Each real image was held out once, and scored classifiers that had not learned from it."
    return (
        f"There are {number(len(split.train))} labelled images of {len(split.classes)} classes. {made}. Classifiers "
        f"learned from the real images, from the synthetic ones, and from both. {scored}"
    )


def _images(evidence: Evidence) -> str:
    return f"{number(evidence.evaluation['test_images'])} {rule.scored_images(evidence.evaluation)}"


def seeds(evidence: Evidence) -> str:
    """Return a sentence on how far the results of one seed hold."""
    sweep = evidence.table.sweep
    if sweep is None or sweep.seeds < 2:
        return "Indicative, one seed: other shots, noise and initial weights would give other numbers."
    if indicative(sweep.seeds):
        return f"Indicative, one seed; the table over {sweep.spoken_seeds} seeds below says how much it varies."
    return f"This page is one seed and indicative; the table over {sweep.spoken_seeds} seeds below carries the claims."


def _adaptation(
    gains: dict[tuple[Run, Run], Gain], recipe: str, plain: str | None, classifier: str, level: float
) -> list[str]:
    """Return a sentence on the gain of adapting the generator over synthetic images of the plain one, or none."""
    if plain is None:
        return []
    parts = []
    for kinds, where in ((TOGETHER, "beside the real images"), ((SYNTHETIC,), "on synthetic images alone")):
        pairs = [(Run(recipe, kind, classifier), Run(plain, kind, classifier)) for kind in kinds]
        gain = next((gains[pair] for pair in pairs if pair in gains), None)
        if gain:
            # The interval of a difference says for itself where it holds zero.
            chance = gain.shown(level) != gain.outcome
            test = f"; not told from chance, p = {p_value(gain.p)}" if chance else ""
            parts.append(f"{points(gain.difference)} points {where} ({point_interval(gain)}{test})")
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
        f"The rule: synthetic images helped where the whole {interval} lies above zero and a test rejects equality at "
        f"{level}. The test is McNemar’s exact one or, over six seeds or more, that of sign flips, adjusted for its "
        "family: the claims that were fixed with it, or all differences of the table. No gain is found where the "
        f"interval ends below {least} points and so many images can show a difference at all. Otherwise these images "
        "cannot tell."
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
    if chosen := evidence.evaluation.get("primary"):
        return f"`primary: auto` took the recipe of the verdict by the shots alone: {chosen['reason']}"
    where = "Recipe and classifier of the verdict stand in `params.yaml` (`primary`, `deliver`)"
    if settled.fixed is not None:
        return f"{where}. {settled.fixed}"
    return f"{where}; nothing records whether they were chosen before these images were first scored."


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

"""The verdict in words: of the recipe and the classifier that were declared before any test image was seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dreamset.report.evidence import ENOUGH_SEEDS, REAL
from dreamset.report.markup import percent, point_interval, points

if TYPE_CHECKING:
    from dreamset.report.evidence import Claim, Evidence, Gain, Score

# What the synthetic images do beside the real ones, and what adaptation adds to that.
_TITLES: Final = {
    ("helps", "helps"): "Synthetic images helped, and adapting the generator helped further.",
    ("helps", "unclear"): "Synthetic images helped; that adapting the generator added to it is not shown.",
    ("helps", "hurts"): "Synthetic images helped, but less than those of the generator as it was.",
    ("helps", None): "Synthetic images helped.",
    ("unclear", "helps"): "Adapting the generator helped, but a gain over the real images alone is not shown.",
    ("unclear", "unclear"): "No gain from synthetic images is shown.",
    ("unclear", "hurts"): "No gain from synthetic images is shown, and adapting the generator cost accuracy.",
    ("unclear", None): "No gain from synthetic images is shown.",
    ("hurts", "helps"): "Synthetic images cost accuracy, though less than those of the generator as it was.",
    ("hurts", "unclear"): "Synthetic images cost accuracy.",
    ("hurts", "hurts"): "Synthetic images cost accuracy, and adapting the generator cost more.",
    ("hurts", None): "Synthetic images cost accuracy.",
}


@dataclass(frozen=True)
class Verdict:
    """The declared choice, and what is said of it."""

    recipe: str
    plain: str | None
    classifier: str
    title: str
    sentence: str
    alone: str
    over_seeds: str
    caveat: str


def verdict(evidence: Evidence) -> Verdict:
    """State the gain for the first adapted recipe of ``active`` and the first of ``train.classifiers``."""
    recipe = (evidence.adapted or evidence.plain)[0]
    plain = evidence.plain[0] if evidence.adapted and evidence.plain else None
    classifier = evidence.classifiers[0]
    both = evidence.score(recipe, "both", classifier)
    over_real = evidence.gain((recipe, "both"), (REAL, "real"), classifier)
    over_plain = evidence.gain((recipe, "both"), (plain, "both"), classifier) if plain else None
    title = "What was measured"
    if over_real:
        # Several seeds say more than this one, where a table has them.
        claims = _claims(evidence)
        told = [
            claims[gain.of, gain.minus].gain if (gain.of, gain.minus) in claims else gain
            for gain in (over_real, over_plain)
            if gain
        ]
        title = _TITLES[told[0].outcome, told[1].outcome if over_plain else None]
    return Verdict(
        recipe=recipe,
        plain=plain,
        classifier=classifier,
        title=title,
        sentence=_beside_real(evidence, both, over_real, over_plain, plain),
        alone=_alone(evidence, recipe, plain, classifier),
        over_seeds=_over_seeds(evidence, recipe, plain, classifier),
        caveat=_caveat(evidence, recipe, classifier),
    )


def seeds(evidence: Evidence) -> str:
    """How far one seed carries, in a sentence."""
    sweep = evidence.sweep
    if sweep is None or sweep.seeds < 2:
        return "Indicative, one seed: other shots, noise and initial weights would give other numbers."
    if sweep.seeds < ENOUGH_SEEDS:
        return f"Indicative, one seed; the table over {sweep.seeds} seeds below says how much it varies."
    return f"This page is one seed and indicative; the table over {sweep.seeds} seeds below carries the claims."


def _beside_real(
    evidence: Evidence, both: Score | None, over_real: Gain | None, over_plain: Gain | None, plain: str | None
) -> str:
    if both is None or over_real is None:
        return "No classifier was trained on real and synthetic images together."
    tested = evidence.evaluation["test_images"]
    seed = f"Seed {evidence.params.seed}: trained" if _claims(evidence) else "Trained"
    sentence = (
        f"{seed} on the {len(evidence.split.train)} real shots and the images of {both.arm}, {both.classifier} gets "
        f"{percent(both.accuracy)} of {tested} test images right: {_change(over_real, evidence)} over the real shots "
        "alone"
    )
    if over_plain is None:
        return f"{sentence}."
    return f"{sentence}, and {_change(over_plain, evidence, short=True)} over the real shots with {plain}’s images."


def _alone(evidence: Evidence, recipe: str, plain: str | None, classifier: str) -> str:
    mine = evidence.score(recipe, "synthetic", classifier)
    if mine is None:
        return ""
    start = f"On synthetic images alone it reaches {percent(mine.accuracy)}"
    theirs = evidence.score(plain, "synthetic", classifier) if plain else None
    gain = evidence.gain((recipe, "synthetic"), (plain, "synthetic"), classifier) if plain else None
    if theirs is None or gain is None:
        return f"{start}."
    return f"{start}, against {percent(theirs.accuracy)} with {plain}: {_change(gain, evidence, short=True)}."


def _over_seeds(evidence: Evidence, recipe: str, plain: str | None, classifier: str) -> str:
    """The headline's differences in the table over seeds, at the same number of shots."""
    found = _claims(evidence)
    over = {
        "over the real shots alone": (f"{recipe}/both/{classifier}", f"{REAL}/real/{classifier}"),
        f"over the real shots with {plain}’s images": (f"{recipe}/both/{classifier}", f"{plain}/both/{classifier}"),
        f"on synthetic images alone over {plain}’s": (
            f"{recipe}/synthetic/{classifier}",
            f"{plain}/synthetic/{classifier}",
        ),
    }
    told = [f"{_change(found[pair].gain, evidence, short=True)} {what}" for what, pair in over.items() if pair in found]
    if not told:
        return ""
    count = min(found[pair].seeds for pair in over.values() if pair in found)
    return f"Over {count} seeds, {recipe} with {classifier}: {'; '.join(told)}."


def _claims(evidence: Evidence) -> dict[tuple[str, str], Claim]:
    """The claims of the table over seeds at this number of shots, by what is compared."""
    return {
        (claim.gain.of, claim.gain.minus): claim
        for claim in (evidence.sweep.claims if evidence.sweep else ())
        if claim.shots == evidence.split.shots
    }


def _change(gain: Gain, evidence: Evidence, short: bool = False) -> str:
    ends = point_interval(gain.low, gain.high)
    return f"{points(gain.difference)} {'' if short else 'percentage '}points ({_of(evidence, short)}{ends})"


def _of(evidence: Evidence, short: bool) -> str:
    return "" if short else f"{evidence.confidence} interval "


def _caveat(evidence: Evidence, recipe: str, classifier: str) -> str:
    chosen = "first adapted recipe" if evidence.adapted else "first recipe"
    return (
        f"{seeds(evidence)} The intervals resample the test images only. The headline was not picked by its result: "
        f"{recipe} is the {chosen} of `active`, {classifier} the first of `train.classifiers`."
    )

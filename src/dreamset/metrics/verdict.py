"""The verdict: do the primary recipe's images help the primary classifier?

Recipe and classifier stand in ``params.yaml``, and no result moves them. Real and synthetic images together are
strongly augmented, as the real ones alone are in the strongest of their runs. The synthetic images have to beat the run
on real images alone that is best on the test images. Choosing it there favours the real images, so the verdict errs on
their side.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from dreamset.data.runs import BOTH_STRONG, REAL, REAL_MORE, REAL_ONLY, REAL_STRONG, Run
from dreamset.metrics.gains import Gain, over_real

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dreamset.params import Params

Outcome = Literal["helps", "does_not_help", "cannot_tell"]

_TITLES: Final[dict[Outcome, str]] = {
    "helps": "Synthetic images helped",
    "does_not_help": "No gain found",
    "cannot_tell": "These images cannot tell",
}
_HARM: Final = "Synthetic images did harm"  # the whole interval lies below zero
_ALONE: Final = {
    REAL_ONLY: "the real ones alone",
    REAL_STRONG: "the real ones alone with strong augmentation",
    REAL_MORE: "the real ones alone, those for selection among them",
}


@dataclass(frozen=True)
class Verdict:
    """The verdict with its numbers: the gain of the run ``of`` over ``minus``, the best run on real images alone."""

    outcome: Outcome
    recipe: str
    classifier: str
    of: Run
    minus: Run
    difference: float
    low: float
    high: float
    reason: str

    @property
    def sentence(self) -> str:
        """The finding and its reason."""
        return f"{finding(asdict(self))} {self.reason[:1].upper()}{self.reason[1:]}"

    @property
    def record(self) -> dict[str, Any]:
        """The fields and the sentence as JSON holds them, runs as text."""
        return asdict(self) | {"of": str(self.of), "minus": str(self.minus), "sentence": self.sentence}


def title(verdict: Mapping[str, Any]) -> str:
    """Return the outcome of a verdict's record in a few words."""
    outcome: Outcome = verdict["outcome"]
    return _HARM if outcome == "does_not_help" and verdict["high"] < 0 else _TITLES[outcome]


def finding(verdict: Mapping[str, Any]) -> str:
    """Return the sentence that opens wherever a verdict is told: the outcome, the gain in points and its interval.

    Args:
        verdict: its record: ``outcome``, ``difference``, ``low`` and ``high``.
    """
    low, high = points(verdict["low"]), points(verdict["high"])
    return f"{title(verdict)}: {points(verdict['difference'])} points ({low} to {high})."


def advice(arm: str, folder: str = "models/classifier") -> str:
    """Return the sentence on which classifier to take: of which arm, and the folder that ``deliver`` writes it to."""
    return f"Use the classifier of {'your real' if arm == REAL else 'real and synthetic'} images: {folder}."


def decide(low: float, high: float, smallest_gain: float, *, significant: bool = True, enough: bool = True) -> Outcome:
    """Return the outcome that the rule gives for an interval of real + synthetic minus real only.

    Args:
        low: the lower end, as a share of the test images.
        high: the upper end, likewise.
        smallest_gain: a gain below this is as good as none; 0 or more.
        significant: whether the test beside the interval rejects equality; True without a test.
        enough: whether so many images can show any difference at all.
    """
    # An interval without width tells that little was seen, not that the gain is sure.
    if low == high or not enough:
        return "cannot_tell"
    if low > 0:
        return "helps" if significant else "cannot_tell"
    return "does_not_help" if high < smallest_gain else "cannot_tell"


def judge(
    params: Params,
    gains: Iterable[Gain],
    confidence: float,
    basis: str,
    *,
    enough: bool = True,
    test: str = "McNemar\N{RIGHT SINGLE QUOTATION MARK}s exact test",
) -> Verdict | None:
    """Return the verdict on paired differences; None where nothing was trained on real and synthetic images together.

    Args:
        params: gives the primary recipe and classifier, and the smallest gain of interest.
        gains: differences of any runs, those over the real arm among them.
        confidence: of their intervals, 0..1.
        basis: the images that they were measured on, such as "640 test images".
        enough: whether so many images can show any difference at all; see ``can_show``.
        test: the test that gave the gains' ``p``.
    """
    recipe, classifier, smallest = params.primary_recipe, params.primary_classifier, params.evaluate.smallest_gain
    gain = over_real(gains, recipe, classifier)
    if gain is None:
        return None
    # At the level itself the test rejects, as `mcnemar.fewest_discordant` counts.
    significant = gain.p is None or gain.p <= 1 - confidence
    outcome = decide(gain.low, gain.high, smallest, significant=significant, enough=enough)
    alone = _ALONE.get(gain.minus.kind, f"the real ones alone ({gain.minus.kind})")
    compared = f"{_compared(gain.difference, basis)} on {alone}"
    interval = f"{100 * confidence:g}% interval"
    ends = f"({points(gain.low)} to {points(gain.high)})"
    because = {
        "helps": f"the whole {interval} {ends} lies above zero",
        "does_not_help": f"the {interval} {ends} ends below {points(smallest)}, the smallest gain of interest",
        "cannot_tell": f"the {interval} {ends} holds both no gain and one of {points(smallest)} or more",
    }[outcome]
    if outcome == "cannot_tell" and not enough:
        because = "so few images can show no difference"
    elif outcome == "cannot_tell" and gain.low == gain.high:
        because = "that on every image and seed alike, so that nothing says how far it holds"
    elif outcome == "cannot_tell" and gain.low > 0:
        because = f"{test} does not tell it from chance (p = {gain.p:.2g})"
    strongly = " with strong augmentation" if gain.of.kind == BOTH_STRONG else ""
    trained = f"trained on the real images and those of {recipe}{strongly}"
    reason = f"{trained}, {classifier} gets {compared}, and {because}."
    return Verdict(outcome, recipe, classifier, gain.of, gain.minus, gain.difference, gain.low, gain.high, reason)


def of_evaluation(params: Params, evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """Return the record of an evaluation's verdict, as ``evaluate`` stores it; None where there is none."""
    gains = [Gain.read(row, row.get("mcnemar_p")) for row in evaluation["differences"]]
    verdict = judge(params, gains, evaluation["confidence"], basis(evaluation), enough=can_show(evaluation))
    return None if verdict is None else verdict.record


def basis(evaluation: dict[str, Any]) -> str:
    """Return a phrase for the images that an evaluation's accuracies are shares of."""
    count = f"{evaluation['test_images']:,}".replace(",", "\u202f")
    if evaluation.get("protocol") == "cv":
        return f"{count} labelled images, each held out once,"
    return f"{count} test images"


def scored_images(evaluation: dict[str, Any]) -> str:
    """Return the name of an evaluation's images: under cross-validation there are no test images."""
    return "images held out" if evaluation.get("protocol") == "cv" else "test images"


def untested(evaluation: dict[str, Any]) -> list[str]:
    """Return the classes that none of an evaluation's images is of: its figures say nothing of them."""
    run: dict[str, Any] = next(iter(evaluation.get("runs", ())), {})
    return [name for name, accuracy in run.get("per_class", {}).items() if accuracy is None]


def can_show(evaluation: dict[str, Any]) -> bool:
    """Whether an evaluation's images can show any difference; True where it does not record its reach."""
    return evaluation.get("reach", {}).get("smallest_gain", 0.0) is not None


def points(value: float) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "\N{MINUS SIGN}")


def _compared(difference: float, basis: str) -> str:
    number = f"{abs(100 * difference):.1f}"
    if number == "0.0":
        return f"as many of {basis} right as"
    return f"{number} percentage points {'more' if difference > 0 else 'fewer'} of {basis} right than"

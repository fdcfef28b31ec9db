"""The verdict: do the primary recipe's images help the primary classifier? By a rule that no result can move.

Recipe, classifier and rule stand in ``params.yaml`` before any test image is seen. Real and synthetic images together
are strongly augmented, as the strongest of the ways of training on the real images alone is. Which of these is the best
on the test images is what has to be beaten: choosing that one there favours the real images, so that the verdict errs
on their side.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dreamset.params import Params

Outcome = Literal["helps", "does_not_help", "cannot_tell"]

TITLES: Final[dict[Outcome, str]] = {
    "helps": "It helps",
    "does_not_help": "It does not help",
    "cannot_tell": "These images cannot tell",
}
# Trained on real and synthetic images together: what the verdict is about first, and what stands in for it.
TOGETHER: Final = ("both_strong", "both")
_ALONE: Final = {
    "real": "the real ones alone",
    "real_strong": "the real ones alone with strong augmentation",
    "real_more": "the real ones alone, those for selection among them",
}


@dataclass(frozen=True)
class Gain:
    """A paired difference of two accuracies on the same test images, with its interval; runs are named by their key.

    ``p`` is that of McNemar's exact test, or over several seeds that of the sign-flip test; None where none was made.
    """

    of: str
    minus: str
    difference: float
    low: float
    high: float
    p: float | None = None

    @property
    def outcome(self) -> Literal["helps", "hurts", "unclear"]:
        """Which side of zero the interval lies on, if it lies on one."""
        return "helps" if self.low > 0 else "hurts" if self.high < 0 else "unclear"


@dataclass(frozen=True)
class Verdict:
    """What is said, and the numbers that it is said from: ``of`` a run, over the best one on real images alone."""

    outcome: Outcome
    recipe: str
    classifier: str
    of: str
    minus: str
    difference: float
    low: float
    high: float
    reason: str

    @property
    def sentence(self) -> str:
        """The whole of it."""
        return f"{TITLES[self.outcome]}: {self.reason}"


def decide(low: float, high: float, smallest_gain: float, *, significant: bool = True, enough: bool = True) -> Outcome:
    """The rule, from the ends of the interval of real + synthetic minus real only.

    Args:
        low: lower end, as a share of the test images.
        high: upper end.
        smallest_gain: below this a gain is as good as none; 0 or more.
        significant: whether the test beside the interval rejects equality; True where none is made.
        enough: whether so many images can show any difference at all.
    """
    # An interval without width says how little was seen, not how sure the gain is.
    if low == high or not enough:
        return "cannot_tell"
    if low > 0:
        return "helps" if significant else "cannot_tell"
    return "does_not_help" if high < smallest_gain else "cannot_tell"


def over_real(gains: Iterable[Gain], recipe: str, classifier: str, kinds: Sequence[str] = TOGETHER) -> Gain | None:
    """The gain of ``recipe``'s images beside the real ones over the best way of training on these alone.

    Args:
        gains: any differences.
        recipe: whose images.
        classifier: that was trained on both.
        kinds: how; the first of them that was measured counts.
    """
    over = [gain for gain in gains if gain.minus.startswith("real/") and gain.minus.endswith(f"/{classifier}")]
    for kind in kinds:
        found = [gain for gain in over if gain.of == f"{recipe}/{kind}/{classifier}"]
        if found:
            # All are of the same accuracy, so the least gain is over the highest one.
            return min(found, key=lambda gain: gain.difference)
    return None


def judge(
    params: Params,
    gains: Iterable[Gain],
    confidence: float,
    basis: str,
    *,
    enough: bool = True,
    test: str = "McNemar\N{RIGHT SINGLE QUOTATION MARK}s exact test",
) -> Verdict | None:
    """The verdict on paired differences; None where nothing was trained on real and synthetic images together.

    Args:
        params: for the primary recipe and classifier, and the smallest gain of interest.
        gains: any differences, those over real arms among them.
        confidence: of their intervals, 0..1.
        basis: what they were measured on, such as "640 test images".
        enough: whether so many images can show any difference at all; see ``can_show``.
        test: what the gains' ``p`` is of.
    """
    recipe, classifier, smallest = params.primary_recipe, params.primary_classifier, params.evaluate.smallest_gain
    gain = over_real(gains, recipe, classifier)
    if gain is None:
        return None
    # As `mcnemar.fewest_discordant` counts: at the level itself the test rejects.
    significant = gain.p is None or gain.p <= 1 - confidence
    outcome = decide(gain.low, gain.high, smallest, significant=significant, enough=enough)
    kind = gain.minus.split("/")[1]
    alone = _ALONE.get(kind, f"the real ones alone ({kind})")
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
    strongly = " with strong augmentation" if "/both_strong/" in gain.of else ""
    trained = f"trained on the real images and those of {recipe}{strongly}"
    reason = f"{trained}, {classifier} gets {compared}, and {because}."
    return Verdict(outcome, recipe, classifier, gain.of, gain.minus, gain.difference, gain.low, gain.high, reason)


def of_evaluation(params: Params, evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """What ``evaluate`` stores: the fields of ``Verdict`` and its ``sentence``."""
    names = ("of", "minus", "difference", "low", "high")
    gains = [Gain(**{name: row[name] for name in names}, p=row.get("mcnemar_p")) for row in evaluation["differences"]]
    found = judge(params, gains, evaluation["confidence"], basis(evaluation), enough=can_show(evaluation))
    return None if found is None else asdict(found) | {"sentence": found.sentence}


def basis(evaluation: dict[str, Any]) -> str:
    """The images that an evaluation's accuracies are shares of."""
    count = f"{evaluation['test_images']:,}".replace(",", "\u202f")
    if evaluation.get("protocol") == "cv":
        return f"{count} labelled images, each held out once,"
    return f"{count} test images"


def scored_images(evaluation: dict[str, Any]) -> str:
    """What an evaluation's images are called: under cross-validation there are no test images."""
    return "images held out" if evaluation.get("protocol") == "cv" else "test images"


def can_show(evaluation: dict[str, Any]) -> bool:
    """Whether so many images can show any difference; an evaluation that says nothing of its reach is taken for one."""
    return evaluation.get("reach", {}).get("smallest_gain", 0.0) is not None


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    shown = f"{100 * value:+.1f}"
    return "0.0" if shown in ("+0.0", "-0.0") else shown.replace("-", "\N{MINUS SIGN}")


def _compared(difference: float, basis: str) -> str:
    shown = f"{abs(100 * difference):.1f}"
    if shown == "0.0":
        return f"as many of {basis} right as"
    return f"{shown} percentage points {'more' if difference > 0 else 'fewer'} of {basis} right than"

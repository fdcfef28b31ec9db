"""Paired differences between runs, and the one that a verdict is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from dreamset.data.runs import BOTH, BOTH_STRONG, REAL, Kind, Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# Real and synthetic images together: the kind that the verdict is about, and the one that stands in for it.
TOGETHER: Final = (BOTH_STRONG, BOTH)


@dataclass(frozen=True)
class Gain:
    """The paired difference between the accuracies of two runs on the same images, with its interval.

    ``difference``, ``low`` and ``high`` are shares of the images. ``p`` is of McNemar's exact test, or over several
    seeds of the sign-flip test; it is None where no test was made.
    """

    of: Run
    minus: Run
    difference: float
    low: float
    high: float
    p: float | None = None

    @classmethod
    def read(cls, row: Mapping[str, Any], p: float | None = None) -> Gain:
        """Return the difference that a row of a JSON record or of a CSV holds.

        Raises:
            KeyError: the row lacks a field.
            ValueError: a field is not a run, or not a number.
        """
        difference, low, high = (float(row[name]) for name in ("difference", "low", "high"))
        return cls(Run.parse(row["of"]), Run.parse(row["minus"]), difference, low, high, p)

    @property
    def outcome(self) -> Literal["helps", "hurts", "unclear"]:
        """The side of zero that the interval lies on; ``unclear`` where it holds zero."""
        return "helps" if self.low > 0 else "hurts" if self.high < 0 else "unclear"

    def shown(self, level: float) -> Literal["helps", "hurts", "unclear"]:
        """Return the side of zero that the interval lies on, where a test was made only if it rejects at ``level``."""
        return "unclear" if self.p is not None and self.p > level else self.outcome


def over_real(gains: Iterable[Gain], recipe: str, classifier: str, kinds: Sequence[Kind] = TOGETHER) -> Gain | None:
    """Return the gain of ``recipe``'s images beside the real ones over the best run on the real ones alone.

    Args:
        gains: differences of any runs.
        recipe: the arm of the synthetic images.
        classifier: the classifier of both runs.
        kinds: the first of these that was measured counts.
    """
    over = [gain for gain in gains if (gain.minus.arm, gain.minus.classifier) == (REAL, classifier)]
    for kind in kinds:
        same = [gain for gain in over if gain.of == Run(recipe, kind, classifier)]
        if same:
            # All are of the same accuracy, so the least gain is over the highest one.
            return min(same, key=lambda gain: gain.difference)
    return None

"""Selection with the selection images: among random configurations, and among the steps of each.

Every classifier of every arm tries the same configurations, so that no arm is tuned harder than another. Few images
choose badly: the best of many candidates is then the luckiest one. The one-standard-error rule (Breiman et al. 1984)
guards against that. A candidate counts as good as the best if its score is lower by at most one standard error. Among
those, the rule keeps the configuration of the row and the last step. Without it, with 40 selection images, the best of
five steps was often one in the middle of the schedule, which no larger sample confirms.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from dreamset.core.seeds import seed_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dreamset.data.splits import Split
    from dreamset.params.model import Augmentation, Optimizer

# Random configurations are drawn from these; the first three are factors on the row's value, log-uniform.
LR: Final = (1 / 4, 4.0)
WEIGHT_DECAY: Final = (1 / 10, 10.0)
STEPS: Final = (1 / 2, 2.0)
MIXUP: Final = (0.0, 0.2, 0.4, 1.0)  # alpha of the Beta distribution; 0: none
REAL_WEIGHT: Final = (0.5, 0.95)  # uniform


def labels_per_class(rule: str, split: Split) -> float:
    """Return how many labels of a class are used to choose: those set apart, or with ``cv`` those of all shots."""
    return len(split.train if rule == "cv" else split.selection) / len(split.classes)


class Row(Protocol):
    """The settings of training that every classifier has; a configuration changes most."""

    @property
    def lr(self) -> float: ...  # noqa: D102
    @property
    def weight_decay(self) -> float: ...  # noqa: D102
    @property
    def warmup(self) -> int: ...  # noqa: D102
    @property
    def steps(self) -> int: ...  # noqa: D102
    @property
    def batch(self) -> int: ...  # noqa: D102
    @property
    def optimizer(self) -> Optimizer: ...  # noqa: D102
    @property
    def augmentation(self) -> Augmentation: ...  # noqa: D102
    @property
    def in_steps(self) -> bool: ...  # noqa: D102


AnyRow = TypeVar("AnyRow", bound=Row)


@dataclass(frozen=True)
class Configuration:
    """Settings of training.

    ``mixup`` is the alpha of MixUp. ``real_weight`` is lambda, where real and synthetic images are learned from.
    """

    lr: float
    weight_decay: float
    warmup: int
    steps: int
    mixup: float
    real_weight: float

    def of(self, row: AnyRow) -> AnyRow:
        """Return the row with the values of this configuration."""
        changed: dict[str, Any] = {name: getattr(self, name) for name in ("lr", "weight_decay", "warmup", "steps")}
        replaced: AnyRow = dataclasses.replace(row, **changed)  # type: ignore[type-var]
        return replaced


@dataclass(frozen=True)
class Choice:
    """A configuration and one of its steps; its accuracy on the selection images, the best one and the threshold."""

    configuration: int
    step: int
    accuracy: float
    best: float
    threshold: float


def configurations(row: Row, real_weight: float, count: int, seed: int) -> list[Configuration]:
    """Return the row's configuration, then ``count - 1`` random ones, drawn alike for all classifiers and arms."""
    import numpy as np

    drawn = [Configuration(row.lr, row.weight_decay, row.warmup, row.steps, 0.0, real_weight)]
    for index in range(1, count):
        rng = np.random.default_rng(seed_for("configuration", seed, index))
        lr, decay, steps = (
            math.exp(rng.uniform(math.log(low), math.log(high))) for low, high in (LR, WEIGHT_DECAY, STEPS)
        )
        drawn.append(
            Configuration(
                lr=row.lr * lr,
                weight_decay=min(1.0, row.weight_decay * decay),
                warmup=round(row.warmup * steps),
                steps=max(1, round(row.steps * steps)),
                mixup=MIXUP[rng.integers(len(MIXUP))],
                real_weight=round(float(rng.uniform(*REAL_WEIGHT)), 3),
            )
        )
    return drawn


def standard_error(accuracy: float, images: int) -> float:
    """Return the standard error of an accuracy on so many images.

    It counts one more image as right and one more as wrong, so that it is above zero where none is wrong.
    """
    share = (accuracy * images + 1) / (images + 2)
    return math.sqrt(share * (1 - share) / (images + 2))


def choose(scores: Sequence[Mapping[int, float]], images: int) -> Choice:
    """Return the configuration and step that the one-standard-error rule keeps.

    It is the first configuration if one of its steps is within one standard error of the best candidate, else that of
    the best candidate. The step is the last one of it within one standard error.

    Args:
        scores: for each configuration, accuracy on the selection images by step.
        images: how many selection images there are.
    """
    tops = [max(steps.values()) for steps in scores]
    best = max(tops)
    threshold = best - standard_error(best, images)
    # Equal counts of images must compare as equal, whatever rounding does.
    configuration = 0 if tops[0] >= threshold - 1e-9 else tops.index(best)
    step = max(step for step, accuracy in scores[configuration].items() if accuracy >= threshold - 1e-9)
    return Choice(configuration, step, scores[configuration][step], best, threshold)

"""The runs of a workspace: which classifier learns from which images of which arm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dreamset.params import Params

REAL: Final = "real"  # the arm of the shots alone; every other arm is a recipe
ZERO_SHOT: Final = "zero_shot"  # the arm of CLIP as it is


@dataclass(frozen=True)
class Kind:
    """The images that a classifier learns from, and how.

    Attributes:
        real: whether it learns from the shots.
        synthetic: whether it learns from the images of a recipe.
        strong: whether all of them are strongly augmented.
        more: whether it also learns from the images that ``selection`` sets apart. Nothing is left to select with, so
            training goes to the last step.
        scale: how many times as many synthetic images as shots are used, the first ones; None: all.
        few: whether only as many shots of each class are used as there are synthetic images: dataset distillation.
    """

    real: bool = False
    synthetic: bool = False
    strong: bool = False
    more: bool = False
    scale: int | None = None
    few: bool = False

    def __str__(self) -> str:
        images = {(1, 1): "both", (1, 0): "real", (0, 1): "synthetic", (0, 0): "none"}[self.real, self.synthetic]
        how = "_strong" * self.strong + "_more" * self.more + "_few" * self.few
        return f"{images}{how}" if self.scale is None else f"{images}{how}_x{self.scale}"

    @property
    def whole(self) -> bool:
        """Whether it learns from all images of its arm; others are points of a curve, or what that is compared with."""
        return self.scale is None and not self.few

    @classmethod
    def parse(cls, text: str) -> Kind:
        """Return the kind that ``str`` wrote.

        Raises:
            ValueError: the text names no kind.
        """
        images, *how = text.split("_")
        sizes = [int(part[1:]) for part in how if part[:1] == "x" and part[1:].isdigit()]
        said = {name: name in how for name in ("strong", "more", "few")}
        sources = images in ("real", "both"), images in ("synthetic", "both")
        kind = cls(*sources, scale=sizes[0] if sizes else None, **said)
        if str(kind) != text:
            raise ValueError(f"{text!r} is no kind of images")
        return kind


UNTRAINED: Final = Kind()
REAL_ONLY: Final = Kind(real=True)
REAL_STRONG: Final = Kind(real=True, strong=True)
REAL_MORE: Final = Kind(real=True, more=True)
REAL_FEW: Final = Kind(real=True, few=True)
SYNTHETIC: Final = Kind(synthetic=True)
BOTH: Final = Kind(real=True, synthetic=True)
BOTH_STRONG: Final = Kind(real=True, synthetic=True, strong=True)
KINDS: Final = (REAL_ONLY, REAL_STRONG, REAL_MORE, REAL_FEW, SYNTHETIC, BOTH, BOTH_STRONG)  # all without a scale


@dataclass(frozen=True)
class Run:
    """A classifier that is trained, or measured as it is: its arm, the images it learns from, and its name."""

    arm: str
    kind: Kind
    classifier: str

    def __str__(self) -> str:
        return f"{self.arm}/{self.kind}/{self.classifier}"

    @classmethod
    def parse(cls, text: str) -> Run:
        """Return the run that ``str`` wrote into a record.

        Raises:
            ValueError: the text names no run.
        """
        parts = text.split("/")
        if len(parts) != 3:
            raise ValueError(f"{text!r} is no run")
        arm, kind, classifier = parts
        return cls(arm, Kind.parse(kind), classifier)

    @property
    def folder(self) -> str:
        """The name of its folder among the classifiers of its arm."""
        return f"{self.kind}_{self.classifier}"


def beside(arm: str) -> str:
    """Return the name of a curve of an arm's images beside the shots."""
    return f"real + {arm}"


def arms(params: Params) -> tuple[str, ...]:
    """Return the arms that ``train`` knows: the real images alone, and each active recipe."""
    return (REAL, *params.active)


def kinds(params: Params, arm: str, classifier: str) -> tuple[Kind, ...]:
    """Return the kinds of images that a classifier of ``train.classifiers`` learns from in an arm."""
    if arm != REAL:
        # Only the verdict needs strong augmentation: it compares with strongly augmented real images.
        strong = (BOTH_STRONG,) if classifier == params.primary_classifier else ()
        return (SYNTHETIC, BOTH, *strong)
    return (REAL_ONLY, REAL_STRONG, REAL_MORE) if params.sets_apart else (REAL_ONLY, REAL_STRONG)


def runs(params: Params, arm: str) -> tuple[Run, ...]:
    """Return every run of an arm, ``train.baselines`` and the simple classifiers on the shots alone included.

    The runs of ``train.scales`` and ``train.distillation`` take as many optimizer steps as any other, however large
    their sets are.
    """
    every = [(kind, name) for name in params.train.classifiers for kind in kinds(params, arm, name)]
    if arm == REAL:
        every += [(REAL_ONLY, name) for name in (*params.train.baselines, *params.train.simple_classifiers)]
    sized: list[Kind] = []
    if params.scales:
        # The curve over scales, or its comparison: the same classifier on the real images alone.
        alone = [Kind(synthetic=True, scale=s) for s in params.scales if "synthetic" in params.train.scaled]
        beside = [Kind(True, True, strong=True, scale=s) for s in params.scales if "both" in params.train.scaled]
        sized = [REAL_ONLY, REAL_STRONG] if arm == REAL else [*alone, *beside]
    if params.train.distillation:
        sized += [REAL_ONLY, REAL_FEW] if arm == REAL else [SYNTHETIC]
    every += [(kind, params.base.tune.classifier) for kind in sized]
    return tuple(Run(arm, kind, name) for kind, name in dict.fromkeys(every))

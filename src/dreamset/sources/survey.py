"""What a source holds, and settings that suit it: a proposal for the parameters of a new project."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.errors import InputError
from dreamset.sources import doubts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreamset.data.source import Image, Source

_SMALL: Final = 64  # px of the shorter side up to which grey pictures are taken for glyphs
_MANY: Final = 100  # images per class above which fewer are proposed as shots
_NAMED: Final = 5  # classes that a sentence lists


@dataclass(frozen=True)
class Survey:
    """What a source holds.

    Attributes:
        classes: names of the classes.
        parts: the number of images of each class, by part; only parts that the source has.
        native: the median of the images' shorter sides; None where the source draws its images itself.
        sizes: the smallest and the largest width and height as text; empty as ``native``.
        grey: every image is grey.
        groups: the number of groups of several images, or 0 where every image is one.
        rejected: the number of files that cannot be used.
    """

    classes: tuple[str, ...]
    parts: dict[str, tuple[int, ...]]
    native: int | None
    sizes: str
    grey: bool
    groups: int
    rejected: int

    @property
    def glyphs(self) -> bool:
        """Whether the pictures are small and grey, as the pictures are that the bundled base knows."""
        return self.grey and (self.native or 0) <= _SMALL

    def lines(self) -> list[str]:
        """Return what the source holds, one line per topic, without an end."""
        colours = "grey" if self.grey else "colour"
        parts = ", ".join(f"{name} {_span(counts)} a class" for name, counts in self.parts.items())
        tested = "" if "test" in self.parts else "; no test/, so every shot is scored by cross-validation"
        named = ", ".join(self.classes[:_NAMED]) + (" ..." if len(self.classes) > _NAMED else "")
        groups = (
            f"{self.groups} groups of several images"
            if self.groups
            else "none known; a list can name them (docs/own-images.md)"
        )
        return [
            f"classes  {len(self.classes)}: {named}",
            f"images   {sum(map(sum, self.parts.values()))}, {colours}, {self.sizes}{self._lost()}",
            f"parts    {parts}{tested}",
            f"groups   {groups}",
        ]

    def _lost(self) -> str:
        return f"; files that cannot be used: {self.rejected}" if self.rejected else ""


def of(source: Source, where: str) -> Survey:
    """Return what a source holds.

    Args:
        source: the images.
        where: names the source in a sentence.

    Raises:
        InputError: a class has no usable image to learn from.
    """
    named = {"train": source.train, "selection": source.selection, "test": source.test}
    parts = {name: _counts(images, source) for name, images in named.items() if images is not None}
    empty = [name for name, count in zip(source.classes, parts["train"], strict=True) if not count]
    if empty:
        first = f" (first {source.rejected[0].file}: {source.rejected[0].reason})" if source.rejected else ""
        what = (
            "no class" if len(empty) == len(source.classes) else f"{len(empty)} classes, such as {empty[0]!r}, do not"
        )
        verb = "has" if len(empty) == len(source.classes) else "have"
        raise InputError(
            f"{where}: {what} {verb} a usable image to learn from{first}; add images, or take such folders away."
        )
    images = [*doubts.every(source)]
    sizes = [image.size for image in images if image.size is not None]
    groups = Counter(image.group for image in images)
    return Survey(
        classes=source.classes,
        parts=parts,
        native=round(statistics.median(map(min, sizes))) if sizes else None,
        sizes=_sizes(sizes),
        grey=all(image.grey for image in images),
        groups=sum(count > 1 for count in groups.values()),
        rejected=len(source.rejected),
    )


def proposal(survey: Survey, gpu_gb: float) -> list[tuple[str, Any, str]]:
    """Return keys of ``params.yaml`` with the values that suit a source, and why, in a few words.

    Args:
        survey: what the source holds.
        gpu_gb: memory of the GPU in GB, or 0 without one.
    """
    counts = survey.parts["train"]
    most = max(counts)
    shots: tuple[Any, str] = ("all", "every image is learned from")
    if most > _MANY:
        shots = (_MANY, f"of up to {most} a class, to be quick; all uses every one")
    model, why = _model(survey, gpu_gb)
    proposed: list[tuple[str, Any, str]] = [("model", model, why)]
    if model != "bundled":
        proposed.append(("train.real_weight", 0.8, "DataDream's for photographs; 0.5 was found for glyphs"))
    return [
        *proposed,
        ("shots", *shots),
        ("prepare.invariances", *_invariances(survey)),
        ("primary", "auto", "a weak adapter where the base knows the names, else a full one"),
    ]


_GPU_GB: Final = 15  # what a GPU sold as one of 16 GB has at least


def _model(survey: Survey, gpu_gb: float) -> tuple[str, str]:
    if survey.glyphs:
        return "bundled", "small and grey, as the glyphs are that it draws"
    if gpu_gb >= _GPU_GB:
        return "sd21_base", f"on a GPU of {gpu_gb:.0f} GB; first: dreamset fetch sd21_base"
    return "bundled", "knows no photographs, but here is no GPU of 16 GB: docs/photographs.md"


def _invariances(survey: Survey) -> tuple[list[str], str]:
    if survey.grey:
        return [], "a guess: mirrored signs are other signs; else [hflip]"
    return ["hflip"], "a guess: [] where a mirrored picture is of another class"


def _counts(images: Sequence[Image], source: Source) -> tuple[int, ...]:
    counts = Counter(image.label for image in images)
    return tuple(counts[label] for label in range(len(source.classes)))


def _span(counts: Sequence[int]) -> str:
    return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
    smallest, largest = min(sizes, key=_area), max(sizes, key=_area)
    return _by(smallest) if smallest == largest else f"{_by(smallest)} to {_by(largest)}"


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} px"

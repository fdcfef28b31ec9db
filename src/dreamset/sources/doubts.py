"""What a person should know of a source and of what was drawn from it: sentences for warnings."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dreamset.core.images import NO_OBJECT
from dreamset.data import folds
from dreamset.metrics import overlap
from dreamset.sources.layout import COPIES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dreamset.core.workspace import Workspace
    from dreamset.data.source import Image, Source
    from dreamset.data.splits import Split, TestSplit
    from dreamset.params import Params

_NAMED: Final = 5  # classes that a sentence lists
_MANY: Final = 0.1  # share of smaller copies above which thumbnails lie among the images


def every(source: Source) -> Iterator[Image]:
    """Return all usable images of a source, drawn or not."""
    return itertools.chain(source.train, source.selection or [], source.test or [])


def of_source(source: Source, workspace: Workspace) -> Iterator[str]:
    """Yield warnings of the files of a source.

    Args:
        source: before parts of it are left unused.
        workspace: where rejected files are listed, and what DVC watches.
    """
    yield from _lost(source, workspace)
    yield from _blank(source)
    if not source.published:
        yield from _copies(source)
        yield from _smaller(source)
        yield from _unwatched(source, workspace)


def of_split(
    split: Split, held_out: TestSplit, params: Params, unused: int, touched: int, workspace: Workspace
) -> Iterator[str]:
    """Yield warnings of what was drawn.

    Args:
        split: before ``selection: holdout`` takes its part.
        held_out: the test images.
        params: all parameters.
        unused: number of labelled images that are neither learned from nor scored.
        touched: number of test and selection images that are near-duplicates of images in an earlier part.
        workspace: where these are listed.
    """
    yield from _short(split)
    if split.protocol == "cv" and unused:
        yield (
            f"{unused} labelled images are more than shots ({split.shots_in_words}) asks for and are not used at all; "
            "shots: all uses every one"
        )
    if touched:
        yield (
            f"{touched} test or selection images are near-duplicates of images in an earlier part; "
            f"{_short_name(workspace.near_duplicates, workspace)} lists them"
        )
    if split.protocol == "test":
        yield from _untested(held_out)
    else:
        yield from _fewer(split, params.evaluate.folds, "evaluate.folds")
    if params.selection == "cv":
        yield from _fewer(split, folds.SELECTING, "the folds of selection: cv")


def contradicting(source: Source, pairs: Sequence[tuple[Image, Image]]) -> str | None:
    """Return a sentence on pictures that stand under two classes; None where there are none."""
    if not pairs:
        return None
    first = " and ".join(f"{image.path or image.name} as {source.classes[image.label]!r}" for image in pairs[0])
    return (
        f"pictures that stand under two classes: {len(pairs)} (first {first}); their labels contradict each other, so "
        "keep each picture under the class that it shows"
    )


def _short_name(path: Path, workspace: Workspace) -> str:
    """Return a path without the folders of this machine: warnings stand on the page, which others may read."""
    return path.relative_to(workspace.cell).as_posix()


def _lost(source: Source, workspace: Workspace) -> Iterator[str]:
    """Yield a warning of files that cannot be used, with their share by class: they may be all of one camera."""
    lost = Counter(file.label for file in source.rejected)
    if not lost:
        return
    have = Counter(image.label for image in every(source))
    shares = {label: count / (count + have[label]) for label, count in lost.items()}
    worst = sorted(shares, key=lambda label: (-shares[label], label))
    named = ", ".join(
        f"{source.classes[label]!r} {lost[label]} of {lost[label] + have[label]} ({100 * shares[label]:.0f} %)"
        for label in worst[:_NAMED]
    )
    first = source.rejected[0]
    yield (
        f"{lost.total()} of {lost.total() + have.total()} files cannot be used, by class: {named}"
        f"{' ...' if len(worst) > _NAMED else ''}; first {first.file}: {first.reason}; "
        f"{_short_name(workspace.rejected, workspace)} lists them"
    )


def _blank(source: Source) -> Iterator[str]:
    """Yield a warning of pictures in which prepare.crop found nothing to cut out."""
    blank = [image for image in every(source) if NO_OBJECT in (image.note or "")]
    if blank:
        yield (
            f"prepare.crop: {len(blank)} of {sum(1 for _ in every(source))} images show nothing of 4 px or more that "
            f"differs from their border, and stay whole (first {blank[0].path or blank[0].name})"
        )


def _copies(source: Source) -> Iterator[str]:
    """Yield a warning of photographs of which there are several augmented copies."""
    groups = Counter(image.group for image in every(source) if image.group.startswith(COPIES))
    several = {group: count for group, count in groups.items() if count > 1}
    if several:
        yield (
            f"{sum(several.values())} images are copies of {len(several)} photographs by their names (first "
            f"{next(iter(several)).removeprefix(COPIES)}); no part and no fold divides them, but each copy counts as a "
            "shot: better give the photographs as they were, for training augments them anyway"
        )


def _smaller(source: Source) -> Iterator[str]:
    """Yield a warning where many images are smaller copies of others."""
    pairs = overlap.smaller_copies(source.train)
    if len(pairs) > max(1, _MANY * len(source.train)):
        small, large = pairs[0]
        yield (
            f"{len(pairs)} of {len(source.train)} training images are smaller copies of others (first {small.name} of "
            f"{large.name}), as thumbnails are, and count as shots; move them away"
        )


def _unwatched(source: Source, workspace: Workspace) -> Iterator[str]:
    """Yield a warning of images whose changes DVC does not see: it watches ``data/raw``, and follows no link there."""
    raw = Path(os.path.realpath(workspace.raw))
    files = [image.path for image in every(source) if image.path is not None]
    seen = {folder: Path(os.path.realpath(folder)).is_relative_to(raw) for folder in {path.parent for path in files}}
    unseen = [path for path in files if not seen[path.parent]]
    if unseen:
        yield (
            f"DVC does not see changes of {len(unseen)} of {len(files)} images (first {unseen[0]}), for they lie "
            "outside data/raw or behind a link to a folder; after a change run `dvc repro -f prepare`, then "
            "`dvc repro`, or copy the folders themselves into data/raw"
        )


def _short(split: Split) -> Iterator[str]:
    """Yield a warning where classes have fewer images than ``shots`` asks for."""
    asked = split.shots
    if isinstance(asked, str):
        return
    wanted = [asked[name] if isinstance(asked, dict) else asked for name in split.classes]
    lack = [
        (have - want, name, have, want)
        for name, have, want in zip(split.classes, split.train_per_class, wanted, strict=True)
        if have < want
    ]
    if lack:
        _, name, have, want = min(lack)
        yield (
            f"{len(lack)} of {len(split.classes)} classes have fewer images than shots asks for, and all of theirs are "
            f"used ({name!r} lacks most: {have} of {want})"
        )


def _untested(held_out: TestSplit) -> Iterator[str]:
    """Yield a warning of classes without a test image."""
    tested = {sample.label for sample in held_out.test}
    missing = [name for label, name in enumerate(held_out.classes) if label not in tested]
    if missing:
        yield (
            f"{len(missing)} of {len(held_out.classes)} classes have no test image, so no figure says anything of them "
            f"({', '.join(map(repr, missing[:_NAMED]))}{' ...' if len(missing) > _NAMED else ''}); add test images of "
            "them, or give no test part, so that every shot is scored by cross-validation"
        )


def _fewer(split: Split, asked: int, key: str) -> Iterator[str]:
    """Yield a warning where a small class allows fewer folds than were asked for."""
    label, count = folds.fewest(split)
    if count < asked:
        what = "shots" if count == split.train_per_class[label] else "groups of shots"
        more = "" if split.shots == "all" else "raise shots, "
        yield (
            f"{key}: {asked} become {count}, because class {split.classes[label]!r} has only {count} {what}; each fold "
            f"learns from {100 * (1 - 1 / count):.0f} % of the shots and not from {100 * (1 - 1 / asked):.0f} %; "
            f"{more}add images of that class, or leave it out"
        )

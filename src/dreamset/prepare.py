"""``dreamset prepare``: a source of real images becomes few-shot split manifests.

Shots are nested: one seeded permutation per (class, seed), K shots are its first K. The test images do not depend
on the seed, and their manifest is a file of its own that only ``dreamset evaluate`` opens. Where the source has no
test part, nothing is held out: ``evaluate`` cross-validates over the shots.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from dreamset import sources
from dreamset.core.errors import InputError
from dreamset.core.files import digest, sha256, write_json
from dreamset.core.images import decode, png, shortest_side
from dreamset.core.seeds import seed_for
from dreamset.data import folds
from dreamset.data.splits import Sample, Split, TestSplit, write_split, write_test
from dreamset.metrics import overlap
from dreamset.sources import few_shot
from dreamset.weights import hub

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from dreamset.core.workspace import Workspace
    from dreamset.params import Params

_NAMED: Final = 10  # classes that a sentence lists


def run(params: Params, workspace: Workspace) -> dict[str, Any]:
    """Write the split manifests, and image files where the source has none.

    Raises:
        InputError: too few images or groups in a class, too many rejected files, or one picture in two splits.
    """
    source = sources.read(params.prepare)
    unusable = len(source.rejected)
    source, copies = overlap.pass_over(source)
    rejected = [{"file": file, "reason": reason} for file, reason in source.rejected]
    rejected += [{"file": image.name, "reason": reason} for image, reason in copies]
    write_json(workspace.rejected, rejected)
    if unusable > params.prepare.max_rejected:
        raise InputError(
            f"{unusable} files of {params.prepare.source} cannot be used (first: {rejected[0]['file']}: "
            f"{rejected[0]['reason']}); mend or remove those listed in {workspace.rejected}, or raise "
            "prepare.max_rejected."
        )
    protocol = params.evaluate.protocol or ("cv" if source.test is None else "test")
    if protocol == "cv":
        # A test part that is there stays unused: the shots are scored, each by what has not seen it.
        source = replace(source, test=[])
    train, selection, test = draw(source, params, [image for image, _ in copies])
    parts = {"train": train, "selection": selection, "test": test}
    overlap.check_overlap(parts)
    pairs = overlap.near_pairs(parts, hub.locate(workspace.root, params.base.judge, "judge"))
    write_json(workspace.near_duplicates, pairs)
    touched = len({(pair["part"], pair["image"]) for pair in pairs})
    # A published split cannot be mended, and results on a part of it compare with none.
    if touched > params.prepare.max_near_duplicates and not source.published:
        raise InputError(
            f"{touched} test or selection images of {params.prepare.source} are near-duplicates of images in an "
            f"earlier part (first: {pairs[0]['image']} and {pairs[0]['like']}), so that numbers on them are too good; "
            f"give those listed in {workspace.near_duplicates} one group in a csv list, remove them, or raise "
            "prepare.max_near_duplicates."
        )

    for folder in (workspace.real, workspace.real_test):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        # DVC warns of an empty folder at every stage.
        (folder / "README").write_text("Images that the source has as files stay where they are; the rest is here.\n")
    split = Split(
        source=params.prepare.source,
        classes=source.classes,
        template=params.prepare.template or source.template,
        invariances=source.invariances if params.prepare.invariances is None else params.prepare.invariances,
        shots=params.shots,
        seed=params.seed,
        train=_samples(_together(train), workspace.real, workspace.cell),
        selection=_samples(selection, workspace.real, workspace.cell),
        names=source.names,
        native=_native(train),
        channels=1 if all(image.grey for image in _every(source)) else 3,
        protocol=protocol,
    )
    held_out = TestSplit(source.classes, _samples(test, workspace.real_test, workspace.cell))
    written = {sample.sha256 for sample in (*split.train, *split.selection, *held_out.test)}
    files = {image.sha256 for image in (*train, *selection, *test) if image.sha256 is not None}
    split = replace(split, unseen=tuple(sorted(written | files)))
    try_folds(split, params, workspace)
    unused = len(source.train) - len(train) - len(selection) * (source.selection is None)
    warnings = [*_short(split), *_beyond(split, unused), *_alike(touched, workspace)]
    if params.selection == "holdout":
        split = folds.holdout(split)
    write_split(workspace.splits, split)
    write_test(workspace.test_split, held_out)
    summary = {
        "source": params.prepare.source,
        "protocol": protocol,
        "classes": len(source.classes),
        "shots": split.shots if isinstance(split.shots, int) else split.shots_told,
        "train": len(split.train),
        "train_per_class": dict(zip(split.classes, split.train_per_class, strict=True)),
        "selection": len(split.selection),
        "test": len(test),
        "rejected": unusable,
        "copies": len(copies),
        "near_duplicates": touched,
        "warnings": warnings,
    }
    write_json(workspace.result("prepare"), summary)
    return summary


def try_folds(split: Split, params: Params, workspace: Workspace) -> None:
    """Draw every fold that ``train`` and ``evaluate`` will, so that what cannot be divided is told now and not then.

    Args:
        split: before ``selection: holdout`` has taken its part.
        params: all parameters.
        workspace: what the paths of ``split`` are relative to.

    Raises:
        InputError: groups or numbers of images that leave some fold a class with nothing to learn from or to hold out.
    """
    if params.selection == "cv":
        folds.held_out(split, folds.SELECTING, "selection")
    if split.protocol != "cv":
        return
    for held in folds.held_out(split, params.evaluate.folds, "test"):
        own = folds.without(split, held, workspace)
        try:
            if params.selection == "holdout":
                folds.holdout(own)
            elif params.selection == "cv":
                folds.held_out(own, folds.SELECTING, "selection")
        except InputError as error:
            raise InputError(
                f"in a fold of evaluate.protocol: cv, which learns from the other folds, {error}"
            ) from error


def _every(source: sources.Source) -> Iterator[sources.Image]:
    """All usable images of a source, whatever is drawn of them."""
    return itertools.chain(source.train, source.selection or [], source.test or [])


def _short(split: Split) -> Iterator[str]:
    """What is said of classes that have fewer images than were asked for."""
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
            f"{len(lack)} of {len(split.classes)} classes have fewer images than shots asks for and are used whole "
            f"(most is lacking in {name!r}: {have} of {want})"
        )


def _beyond(split: Split, unused: int) -> Iterator[str]:
    """What is said of images that nothing learns from and nothing scores, as nothing does without a test part."""
    if split.protocol == "cv" and unused:
        yield (
            f"{unused} labelled images are more than shots ({split.shots_told}) asks for and are not used at all; "
            "shots: all uses every one"
        )


def _alike(touched: int, workspace: Workspace) -> Iterator[str]:
    if touched:
        yield (
            f"{touched} test or selection images are near-duplicates of images in an earlier part; "
            f"{workspace.near_duplicates} lists them"
        )


def draw(
    source: sources.Source, params: Params, copies: Sequence[sources.Image] = ()
) -> tuple[list[sources.Image], list[sources.Image], list[sources.Image]]:
    """Shots, selection and test images, by class; ``copies`` are the images that were passed over.

    The shots of K are the first K of one permutation per (class, seed), whatever else is drawn, or those of
    ``prepare.few_shot``; a class that has fewer is used whole. Selection images come from the source's own
    selection part, else from groups of their own, else, where every image is a group, from the end of that same
    permutation.
    """
    seed = params.seed
    _check_shots(params, source)
    share = params.prepare.test_share
    pool, part, test = source.train, source.selection, source.test
    if test is None:
        pool, test = _hold_out(source.classes, pool, share, "test", 0)
    wants = any(params.selection_of(name) for name in source.classes)
    grouped = part is None and wants and params.prepare.few_shot is None
    if grouped and len({image.group for image in pool}) < len(pool):
        # Shots come from all groups that they can: were none set apart, few or none would be left to select on.
        pool, part = _hold_out(source.classes, pool, share, "selection", seed)
    given: tuple[few_shot.ByLabel, few_shot.ByLabel] = ({}, {})
    if params.prepare.few_shot is not None:
        assert isinstance(params.shots, int)
        known = replace(source, train=pool, test=test)
        given = few_shot.read(params.prepare.few_shot, known, params.shots, seed, copies)
    orders = {
        label: _first(given[0].get(label, []), permuted(images, "shots", seed, source.classes[label]))
        for label, images in _by_class(pool, len(source.classes)).items()
    }
    shots = {}
    for label, order in orders.items():
        wanted = params.shots_of(source.classes[label])
        if wanted is None:
            # What selects comes out of the same images and has to be left.
            wanted = len(order) - (params.selection_of(source.classes[label]) if part is None else 0)
        shots[label] = max(0, min(wanted, len(order)))
    train = [image for label in sorted(orders) for image in orders[label][: shots[label]]]
    groups = {image.group for image in train} | {image.pixels_sha256 for image in train}
    own = _by_class(part or [], len(source.classes))
    selection: list[sources.Image] = []
    for label, order in sorted(orders.items()):
        name = source.classes[label]
        if part is None:
            # What belongs to the shots cannot judge what was learned from them.
            rest = reversed(order[shots[label] :])
            reserve = [i for i in rest if i.group not in groups and i.pixels_sha256 not in groups]
        else:
            reserve = permuted(own[label], "selection", seed, name)
        wanted = params.selection_of(name)
        chosen = _first(given[1].get(label, []), reserve)[:wanted]
        if not shots[label] or len(chosen) < wanted:
            raise InputError(
                f"class {name!r} has {len(order)} usable images to learn from and {len(reserve)} for selection beside "
                f"the shots, but shots: {params.shots_of(name) or 'all'} and {wanted} for selection are wanted; lower "
                "shots or the number in selection, or add images or groups."
            )
        selection += chosen
    return train, selection, sorted(test, key=lambda image: image.label)


def _check_shots(params: Params, source: sources.Source) -> None:
    """Shots by class name every class, and no other."""
    if not isinstance(params.shots, dict):
        return
    odd = [name for name in params.shots if name not in source.classes]
    if odd:
        raise InputError(
            f"shots: {odd[0]!r} is no class of {params.prepare.source}; its classes are "
            f"{', '.join(source.classes[:_NAMED])}{' ...' if len(source.classes) > _NAMED else ''}."
        )
    missing = [name for name in source.classes if name not in params.shots]
    if missing:
        raise InputError(f"shots: gives no number for class {missing[0]!r}; give one for each class, 1 or more.")


def _first(chosen: list[sources.Image], others: list[sources.Image]) -> list[sources.Image]:
    """``chosen``, then the others in their order."""
    names = {image.name for image in chosen}
    return chosen + [image for image in others if image.name not in names]


def permuted(images: Sequence[sources.Image], purpose: str, seed: int, class_name: str) -> list[sources.Image]:
    """A permutation that depends on the purpose, the seed, the class and the images' names alone."""
    import numpy as np

    order = np.random.default_rng(seed_for(purpose, seed, class_name)).permutation(len(images))
    return [images[i] for i in order]


def _hold_out(
    classes: Sequence[str], images: Sequence[sources.Image], share: float, purpose: str, seed: int
) -> tuple[list[sources.Image], list[sources.Image]]:
    """The rest, and a share of each class; groups, copies and near-duplicates of one picture stay together."""
    together = overlap.clusters(images)
    held: dict[str, bool] = {}
    for label, own in sorted(_by_class(images, len(classes)).items()):
        clusters: dict[str, int] = defaultdict(int)
        for image in permuted(own, purpose, seed, classes[label]):
            clusters[together[image.name]] += 1
        wanted = max(1, round(share * len(own))) - sum(n for name, n in clusters.items() if held.get(name))
        for name, count in clusters.items():
            if name not in held:
                held[name] = wanted > 0
                wanted -= count if held[name] else 0
    rest = [image for image in images if not held[together[image.name]]]
    return rest, [image for image in images if held[together[image.name]]]


def _together(images: list[sources.Image]) -> list[sources.Image]:
    """The images, copies of one picture in one group, so that no fold holds out what another copy of teaches."""
    groups = {image.name: image.group for image in images}
    return [
        replace(image, group=groups[first])
        for image, first in zip(images, overlap.clusters(images).values(), strict=True)
    ]


def _by_class(images: Sequence[sources.Image], classes: int = 0) -> dict[int, list[sources.Image]]:
    found: dict[int, list[sources.Image]] = {label: [] for label in range(classes)}
    for image in images:
        found.setdefault(image.label, []).append(image)
    return found


def _native(images: list[sources.Image]) -> int:
    """Median shortest side, pixels, of the images as the source has them, before anything is resized."""
    sides: list[int] = []
    for image in images:
        if image.path is None:
            assert image.pixels is not None
            sides.append(min(image.pixels.shape[:2]))
        else:
            sides.append(shortest_side(image.path))
    return statistics.median_high(sides)


def _samples(images: list[sources.Image], folder: Path, cell: Path) -> tuple[Sample, ...]:
    """Manifest rows; pictures without a file are written into ``folder``."""
    samples = []
    here = cell.resolve()
    for image in images:
        path, hashed = image.path, image.sha256
        if path is None or hashed is None or image.decoding:
            path, data = _written(image, folder)
            hashed = sha256(data)
            # Not flushed one by one: the manifest comes after them all, and holds their digests.
            path.write_bytes(data)
        path = path.resolve()
        shown = path.relative_to(here) if path.is_relative_to(here) else path
        samples.append(Sample(shown.as_posix(), image.label, image.group, hashed, image.note))
    return tuple(samples)


def _written(image: sources.Image, folder: Path) -> tuple[Path, bytes]:
    """Where to write a picture that later stages could not read from the source as it is meant, and its PNG file."""
    if image.path is None:
        assert image.pixels is not None
        return folder / f"{image.name}.png", png(image.pixels)
    import numpy as np

    assert image.decoding is not None and image.sha256 is not None
    decoded = decode(image.path.read_bytes(), image.decoding).image
    # By content and name: names of several folders could meet in one file, and so could copies in two classes.
    return folder / f"{digest([image.sha256, image.name])[:32]}.png", png(np.asarray(decoded.convert("L")))

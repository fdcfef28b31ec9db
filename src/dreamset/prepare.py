"""``dreamset prepare``: draw few-shot split manifests from a source of real images.

Shots are nested: there is one seeded permutation per (class, seed), and K shots are its first K. The test images do
not depend on the seed, and only ``dreamset evaluate`` opens the file of their manifest. Where the source has no test
part, nothing is held out: ``evaluate`` cross-validates over the shots.
"""

from __future__ import annotations

import shutil
import statistics
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from dreamset import sources
from dreamset.core.errors import InputError
from dreamset.core.files import digest, sha256, write_json
from dreamset.core.images import decode, png
from dreamset.core.seeds import seed_for
from dreamset.data import folds
from dreamset.data.splits import Sample, Split, TestSplit, write_split, write_test
from dreamset.metrics import overlap
from dreamset.sources import captions as reading
from dreamset.sources import doubts, few_shot
from dreamset.weights import hub, judging

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dreamset.core.workspace import Workspace
    from dreamset.params import Params

_NAMED: Final = 10  # classes that a sentence or the printed line lists


def run(params: Params, workspace: Workspace) -> dict[str, Any]:
    """Write the split manifests, and image files where the source has none.

    Returns:
        The content of ``results/prepare.json``.

    Raises:
        InputError: weights of the model are not whole, a class has too few images or groups, too many files are
            rejected, a picture is in two splits, or a text encoder reads the captions of two classes alike.
    """
    base = params.base
    # All other stages come after this one, and some after hours.
    hub.check(workspace.root, *base.pretrained)
    hub.check(workspace.root, base.clip, "clip")
    hub.check(workspace.root, base.judge, "judge")
    source = sources.read(params.prepare)
    unusable = len(source.rejected)
    stands_in = judging.stand_in(workspace.root, base)
    warnings = [*([stands_in] if stands_in else []), *source.warnings, *doubts.of_source(source, workspace)]
    source, copies = overlap.pass_over(source)
    rejected = [{"file": file.file, "reason": file.reason} for file in source.rejected]
    rejected += [{"file": image.name, "reason": reason} for image, reason in copies]
    write_json(workspace.rejected, rejected)
    if unusable > params.prepare.max_rejected:
        raise InputError(
            f"{unusable} files of {params.prepare.source} cannot be used (first: {rejected[0]['file']}: "
            f"{rejected[0]['reason']}); mend or remove those listed in {workspace.rejected}, or raise "
            "prepare.max_rejected."
        )
    protocol = params.evaluate.protocol or ("cv" if source.test is None else "test")
    if protocol == "test" and source.test == []:
        raise InputError(
            f"{params.prepare.source}: its test part has no usable image; add test images, or remove the part or set "
            "evaluate.protocol: cv, so that the shots are cross-validated."
        )
    if protocol == "cv":
        # A test part of the source stays unused: classifiers trained on other shots score each shot.
        if source.test:
            warnings.append(
                f"{len(source.test)} test images of the source are not used under evaluate.protocol: cv, which scores "
                "the shots themselves; evaluate.protocol: test uses them"
            )
        source = replace(source, test=[])
    train, selection, test = draw(source, params, [image for image, _ in copies])
    parts = {"train": train, "selection": selection, "test": test}
    warnings += _contradictions(source, parts)
    overlap.check_overlap(parts)
    pairs = overlap.near_pairs(parts, judging.find(workspace.root, base))
    write_json(workspace.near_duplicates, pairs)
    touched = len({(pair["part"], pair["image"]) for pair in pairs})
    # A published split cannot be mended, and results on a part of it compare with no others.
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
        train=_captioned(_samples(_together(train), workspace.real, workspace.cell), train),
        selection=_samples(selection, workspace.real, workspace.cell),
        names=source.names,
        clip_templates=params.prepare.clip_templates or source.clip_templates,
        native=_native(train),
        channels=1 if all(image.grey for image in doubts.every(source)) else 3,
        protocol=protocol,
        changes=params.prepare.decoding.changes or None,
    )
    held_out = TestSplit(source.classes, _samples(test, workspace.real_test, workspace.cell))
    written = {sample.sha256 for sample in (*split.train, *split.selection, *held_out.test)}
    files = {image.sha256 for image in (*train, *selection, *test) if image.sha256 is not None}
    split = replace(split, unseen=tuple(sorted(written | files)))
    captions = reading.check(split, params, workspace)
    try_folds(split, params, workspace)
    unused = len(source.train) - len(train) - len(selection) * (source.selection is None)
    warnings += [*doubts.of_split(split, held_out, params, unused, touched, workspace), *captions]
    if params.selection == "holdout":
        split = folds.holdout(split)
    write_split(workspace.splits, split)
    write_test(workspace.test_split, held_out)
    used = [*train, *selection, *test]
    summary = {
        "source": params.prepare.source,
        "protocol": protocol,
        "classes": len(source.classes),
        "class_names": f"({', '.join(source.classes[:_NAMED])}{' ...' if len(source.classes) > _NAMED else ''})",
        "shots": split.shots if isinstance(split.shots, int) else split.shots_in_words,
        # Median short side, pixels: a classifier whose size is native sees the shots at it, within its limits.
        "native": split.native,
        "train": len(split.train),
        "train_per_class": dict(zip(split.classes, split.train_per_class, strict=True)),
        "selection": len(split.selection),
        "test": len(test),
        # None where each image is a group of its own.
        "test_groups": groups if (groups := len({image.group for image in test})) < len(test) else None,
        "side": split.native,
        "channels": split.channels,
        "grey_images": f"{sum(image.grey for image in used)} of {len(used)}",
        "rejected": unusable,
        "copies": len(copies),
        "near_duplicates": touched,
        "warnings": warnings,
    }
    write_json(workspace.result("prepare"), summary)
    return summary


def _contradictions(source: sources.Source, parts: dict[str, list[sources.Image]]) -> list[str]:
    """Return a warning of pictures that stand under two classes, if there are any.

    Raises:
        InputError: two parts have such a picture in common.
    """
    pairs = overlap.contradictions(list(doubts.every(source)))
    sentence = doubts.contradicting(source, pairs)
    if sentence is None:
        return []
    contested = {image.pixels_sha256 for _, image in pairs}
    found = [contested & {image.pixels_sha256 for image in images} for images in parts.values()]
    if sum(map(len, found)) > len(set().union(*found)):
        # check_overlap would say that the picture must be in one part only, and its label would stay wrong.
        raise InputError(f"{sentence}.")
    return [sentence]


def try_folds(split: Split, params: Params, workspace: Workspace) -> None:
    """Draw every fold that ``train`` and ``evaluate`` will draw, so that impossible divisions fail now and not then.

    Args:
        split: the split before ``selection: holdout`` takes its part.
        params: all parameters.
        workspace: the paths of ``split`` are relative to its cell.

    Raises:
        InputError: the groups or numbers of images leave a class of some fold nothing to learn from or to hold out.
    """
    if params.selection == "cv":
        folds.held_out(split, folds.SELECTING, "selection")
    if split.protocol != "cv":
        return
    for left_out in folds.held_out(split, params.evaluate.folds, "test"):
        inner = folds.without(split, left_out, workspace)
        try:
            if params.selection == "holdout":
                folds.holdout(inner)
            elif params.selection == "cv":
                folds.held_out(inner, folds.SELECTING, "selection")
        except InputError as error:
            raise InputError(
                f"in a fold of evaluate.protocol: cv, which learns from the other folds, {error}"
            ) from error


def draw(
    source: sources.Source, params: Params, copies: Sequence[sources.Image] = ()
) -> tuple[list[sources.Image], list[sources.Image], list[sources.Image]]:
    """Return the shots, the selection images and the test images, each in the order of the classes.

    The K shots are the first K of one permutation per (class, seed), whatever else is drawn, or those of
    ``prepare.few_shot``. Of a class that has fewer, all images are shots. Selection images come from the source's
    selection part. Where it has none, they come from groups set apart; where every image is a group, they come from
    the end of the same permutation.

    Args:
        source: the images.
        params: all parameters.
        copies: the images that were passed over as copies of others.

    Raises:
        InputError: a class has too few images, or ``shots`` and the classes do not match.
    """
    seed = params.seed
    check_shots(params, source.classes)
    share = params.prepare.test_share
    pool, part, test = source.train, source.selection, source.test
    if test is None:
        pool, test = _hold_out(source.classes, pool, share, "test", 0)
    wants = any(params.selection_of(name) for name in source.classes)
    grouped = part is None and wants and params.prepare.few_shot is None
    if grouped and len({image.group for image in pool}) < len(pool):
        # Selection gets groups of its own first: shots drawn from all groups would leave few or none of them.
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
            # Selection images come out of the same images, so some must be left.
            wanted = len(order) - (params.selection_of(source.classes[label]) if part is None else 0)
        shots[label] = max(0, min(wanted, len(order)))
    train = [image for label in sorted(orders) for image in orders[label][: shots[label]]]
    groups = {image.group for image in train} | {image.pixels_sha256 for image in train}
    selecting = _by_class(part or [], len(source.classes))
    selection: list[sources.Image] = []
    for label, order in sorted(orders.items()):
        name = source.classes[label]
        if part is None:
            # Images of the shots' groups cannot judge what was learned from the shots.
            rest = reversed(order[shots[label] :])
            reserve = [i for i in rest if i.group not in groups and i.pixels_sha256 not in groups]
        else:
            reserve = permuted(selecting[label], "selection", seed, name)
        if not order:
            raise InputError(
                f"class {name!r} has 0 usable images to learn from{_elsewhere(label, part, test)}"
                f"{_lost(label, source)}; add images of it, or leave the class out."
            )
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


def _elsewhere(label: int, selection: Sequence[sources.Image] | None, test: Sequence[sources.Image]) -> str:
    """Return in words how many images of a class other parts have."""
    counts = [sum(image.label == label for image in images) for images in (selection or [], test)]
    return f" beside {counts[0]} for selection and {counts[1]} to test" if any(counts) else ""


def _lost(label: int, source: sources.Source) -> str:
    """Return in words how many files of a class cannot be used."""
    lost = [file for file in source.rejected if file.label == label]
    return f" ({len(lost)} of its files cannot be used, first {lost[0].file}: {lost[0].reason})" if lost else ""


def check_shots(params: Params, classes: Sequence[str]) -> None:
    """Refuse ``shots`` by class that do not name every class, or that name another.

    Raises:
        InputError: a class is missing or unknown.
    """
    if not isinstance(params.shots, dict):
        return
    odd = [name for name in params.shots if name not in classes]
    if odd:
        raise InputError(
            f"shots: {odd[0]!r} is no class of {params.prepare.source}; its classes are "
            f"{', '.join(classes[:_NAMED])}{' ...' if len(classes) > _NAMED else ''}."
        )
    missing = [name for name in classes if name not in params.shots]
    if missing:
        raise InputError(f"shots: gives no number for class {missing[0]!r}; give one for each class, 1 or more.")


def _first(chosen: list[sources.Image], others: list[sources.Image]) -> list[sources.Image]:
    """Return ``chosen``, then the others in their order."""
    names = {image.name for image in chosen}
    return chosen + [image for image in others if image.name not in names]


def permuted(images: Sequence[sources.Image], purpose: str, seed: int, class_name: str) -> list[sources.Image]:
    """Return the images in an order that depends on the purpose, the seed, the class and their number alone."""
    import numpy as np

    order = np.random.default_rng(seed_for(purpose, seed, class_name)).permutation(len(images))
    return [images[i] for i in order]


def _hold_out(
    classes: Sequence[str], images: Sequence[sources.Image], share: float, purpose: str, seed: int
) -> tuple[list[sources.Image], list[sources.Image]]:
    """Return the rest, and a share of each class; groups, copies and near-duplicates of a picture stay together."""
    cluster_of = overlap.clusters(images)
    held_out: dict[str, bool] = {}
    for label, members in sorted(_by_class(images, len(classes)).items()):
        sizes: dict[str, int] = defaultdict(int)
        for image in permuted(members, purpose, seed, classes[label]):
            sizes[cluster_of[image.name]] += 1
        wanted = max(1, round(share * len(members))) - sum(n for name, n in sizes.items() if held_out.get(name))
        for name, count in sizes.items():
            if name not in held_out:
                held_out[name] = wanted > 0
                wanted -= count if held_out[name] else 0
    rest = [image for image in images if not held_out[cluster_of[image.name]]]
    return rest, [image for image in images if held_out[cluster_of[image.name]]]


def _together(images: list[sources.Image]) -> list[sources.Image]:
    """Return the images with all copies of a picture in one group.

    Else a fold could hold out a picture of which it learns from another copy.
    """
    groups = {image.name: image.group for image in images}
    return [
        replace(image, group=groups[first])
        for image, first in zip(images, overlap.clusters(images).values(), strict=True)
    ]


def _by_class(images: Sequence[sources.Image], classes: int = 0) -> dict[int, list[sources.Image]]:
    by_class: dict[int, list[sources.Image]] = {label: [] for label in range(classes)}
    for image in images:
        by_class.setdefault(image.label, []).append(image)
    return by_class


def _native(images: list[sources.Image]) -> int:
    """Return the median shortest side of the images, pixels, as the source has them before anything is resized."""
    sides: list[int] = []
    for image in images:
        if image.path is None:
            assert image.pixels is not None
            sides.append(min(image.pixels.shape[:2]))
        else:
            assert image.size is not None
            sides.append(min(image.size))
    return statistics.median_high(sides)


def _samples(images: list[sources.Image], folder: Path, cell: Path) -> tuple[Sample, ...]:
    """Return the manifest's rows; pictures without a file are written into ``folder``."""
    samples = []
    here = cell.resolve()
    for image in images:
        path, hashed = image.path, image.sha256
        if path is None or hashed is None or image.decoding:
            path, data = _written(image, folder)
            hashed = sha256(data)
            # These need no flush each: the manifest is written after them all, and holds their digests.
            path.write_bytes(data)
        path = path.resolve()
        named = path.relative_to(here) if path.is_relative_to(here) else path
        samples.append(Sample(named.as_posix(), image.label, image.group, hashed, image.note))
    return tuple(samples)


def _captioned(samples: tuple[Sample, ...], images: list[sources.Image]) -> tuple[Sample, ...]:
    """Return the samples with the texts that stand beside their images as IMAGE.txt, in UTF-8 and not empty."""
    captioned = []
    for sample, image in zip(samples, images, strict=True):
        text = None
        if image.path is not None and (beside := image.path.with_suffix(".txt")).is_file():
            with suppress(UnicodeDecodeError):
                text = beside.read_text(encoding="utf-8").strip() or None
        captioned.append(replace(sample, caption=text))
    return tuple(captioned)


def _written(image: sources.Image, folder: Path) -> tuple[Path, bytes]:
    """Return the path and the PNG bytes of a picture that later stages cannot read correctly from the source."""
    if image.path is None:
        assert image.pixels is not None
        return folder / f"{image.name}.png", png(image.pixels)
    import numpy as np

    assert image.decoding is not None and image.sha256 is not None
    decoded = decode(image.path.read_bytes(), image.decoding).image
    # Named by content and name: equal names in two folders, or copies in two classes, would share one file.
    pixels = np.asarray(decoded.convert("L") if image.grey else decoded)
    return folder / f"{digest([image.sha256, image.name])[:32]}.png", png(pixels)

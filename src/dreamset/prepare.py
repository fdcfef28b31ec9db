"""``dreamset prepare``: a source of real images becomes few-shot split manifests.

Shots are nested: one seeded permutation per (class, seed), K shots are its first K. The test images do not depend
on the seed, and their manifest is a file of its own that only ``dreamset evaluate`` opens.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dreamset import folds, sources
from dreamset.errors import InputError
from dreamset.files import sha256, write_json
from dreamset.images import png
from dreamset.seeds import seed_for
from dreamset.sources import few_shot
from dreamset.splits import Sample, Split, TestSplit, write_split, write_test

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dreamset.params import Params
    from dreamset.workspace import Workspace


def run(params: Params, workspace: Workspace) -> dict[str, Any]:
    """Write the split manifests, and image files where the source has none.

    Raises:
        InputError: too few images in a class, too many rejected files, or one picture in two splits.
    """
    source = sources.read(params.prepare)
    unusable = len(source.rejected)
    source, copies = pass_over(source)
    rejected = [{"file": file, "reason": reason} for file, reason in source.rejected]
    rejected += [{"file": image.name, "reason": reason} for image, reason in copies]
    write_json(workspace.rejected, rejected)
    if unusable > params.prepare.max_rejected:
        raise InputError(
            f"{unusable} files of {params.prepare.source} cannot be used (first: {rejected[0]['file']}: "
            f"{rejected[0]['reason']}); mend or remove those listed in {workspace.rejected}, or raise "
            "prepare.max_rejected."
        )
    train, selection, test = draw(source, params, [image for image, _ in copies])
    check_overlap({"train": train, "selection": selection, "test": test})

    for folder in (workspace.real, workspace.real_test):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    split = Split(
        source=params.prepare.source,
        classes=source.classes,
        template=params.prepare.template or source.template,
        invariances=source.invariances if params.prepare.invariances is None else params.prepare.invariances,
        shots=params.shots,
        seed=params.seed,
        train=_samples(train, workspace.real, workspace.cell),
        selection=_samples(selection, workspace.real, workspace.cell),
        names=source.names,
    )
    if params.selection == "holdout":
        split = folds.holdout(split)
    write_split(workspace.splits, split)
    write_test(workspace.test_split, TestSplit(source.classes, _samples(test, workspace.real_test, workspace.cell)))
    summary = {
        "source": params.prepare.source,
        "classes": len(source.classes),
        "shots": params.shots,
        "train": len(split.train),
        "selection": len(split.selection),
        "test": len(test),
        "rejected": unusable,
        "copies": len(copies),
    }
    write_json(workspace.result("prepare"), summary)
    return summary


def pass_over(source: sources.Source) -> tuple[sources.Source, list[tuple[sources.Image, str]]]:
    """A published split without the training and selection images whose pixels stand in a later part, and their list.

    The literature's splits hold such copies and cannot be mended; other sources come back as they are, to be refused
    by ``check_overlap``.
    """
    if not source.published:
        return source, []
    seen: dict[str, str] = {}
    copies: list[tuple[sources.Image, str]] = []
    kept: dict[str, list[sources.Image]] = {}
    for part, images in (("test", source.test), ("selection", source.selection), ("training", source.train)):
        others = dict(seen)
        kept[part] = []
        for image in images or []:
            if image.pixels_sha256 in others:
                copies.append((image, f"passed over: the same pixels as {others[image.pixels_sha256]}"))
            else:
                kept[part].append(image)
                seen.setdefault(image.pixels_sha256, f"{part} image {image.name}")
    selection = None if source.selection is None else kept["selection"]
    return replace(source, train=kept["training"], selection=selection), copies


def draw(
    source: sources.Source, params: Params, copies: Sequence[sources.Image] = ()
) -> tuple[list[sources.Image], list[sources.Image], list[sources.Image]]:
    """Shots, selection and test images, by class; ``copies`` are the images that were passed over.

    The shots of K are the first K of one permutation per (class, seed), whatever else is drawn, or those of
    ``prepare.few_shot``; selection images come from the source's own selection part, else from groups of their own,
    else, where every image is a group, from the end of that same permutation.
    """
    shots, selection_per_class, seed = params.shots, params.selection_per_class, params.seed
    share = params.prepare.test_share
    pool, part, test = source.train, source.selection, source.test
    if test is None:
        pool, test = _hold_out(source.classes, pool, share, "test", 0)
    grouped = part is None and selection_per_class > 0 and params.prepare.few_shot is None
    if grouped and len({image.group for image in pool}) < len(pool):
        # Shots come from all groups that they can: were none set apart, few or none would be left to select on.
        pool, part = _hold_out(source.classes, pool, share, "selection", seed)
    given: tuple[few_shot.ByLabel, few_shot.ByLabel] = ({}, {})
    if params.prepare.few_shot is not None:
        given = few_shot.read(params.prepare.few_shot, replace(source, train=pool, test=test), shots, seed, copies)
    orders = {
        label: _first(given[0].get(label, []), permuted(images, "shots", seed, source.classes[label]))
        for label, images in _by_class(pool, len(source.classes)).items()
    }
    train = [image for label in sorted(orders) for image in orders[label][:shots]]
    groups = {image.group for image in train} | {image.pixels_sha256 for image in train}
    own = _by_class(part or [], len(source.classes))
    selection: list[sources.Image] = []
    for label, order in sorted(orders.items()):
        name = source.classes[label]
        if part is None:
            # What belongs to the shots cannot judge what was learned from them.
            reserve = [i for i in order[shots:][::-1] if i.group not in groups and i.pixels_sha256 not in groups]
        else:
            reserve = permuted(own[label], "selection", seed, name)
        chosen = _first(given[1].get(label, []), reserve)[:selection_per_class]
        if len(order) < shots or len(chosen) < selection_per_class:
            raise InputError(
                f"class {name!r} has {len(order)} usable images to learn from and {len(reserve)} for selection beside "
                f"the shots, but shots: {shots} and {selection_per_class} for selection are wanted; lower shots or the "
                "number in selection, or add images or groups."
            )
        selection += chosen
    return train, selection, sorted(test, key=lambda image: image.label)


def _first(chosen: list[sources.Image], others: list[sources.Image]) -> list[sources.Image]:
    """``chosen``, then the others in their order."""
    names = {image.name for image in chosen}
    return chosen + [image for image in others if image.name not in names]


def permuted(images: Sequence[sources.Image], purpose: str, seed: int, class_name: str) -> list[sources.Image]:
    """A permutation that depends on the purpose, the seed, the class and the images' names alone."""
    import numpy as np

    order = np.random.default_rng(seed_for(purpose, seed, class_name)).permutation(len(images))
    return [images[i] for i in order]


def check_overlap(parts: dict[str, list[sources.Image]]) -> None:
    """Fail when the same picture, or the same group, stands in two parts.

    Raises:
        InputError: naming both images.
    """
    pictures: dict[str, tuple[str, str]] = {}
    groups: dict[str, tuple[str, str]] = {}
    for part, images in parts.items():
        for image in images:
            for seen, key, what in ((pictures, image.pixels_sha256, "picture"), (groups, image.group, "group")):
                other = seen.setdefault(key, (part, image.name))
                if other[0] != part:
                    raise InputError(
                        f"{other[1]} ({other[0]}) and {image.name} ({part}) are the same {what}; "
                        "keep it in one split only."
                    )


def _hold_out(
    classes: Sequence[str], images: Sequence[sources.Image], share: float, purpose: str, seed: int
) -> tuple[list[sources.Image], list[sources.Image]]:
    """The rest, and a share of each class; groups and copies of one picture stay together."""
    together = _clusters(images)
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


def _clusters(images: Sequence[sources.Image]) -> dict[str, str]:
    """For each image's name, the name of one image that stands for all that belong together, by group or by pixels."""
    parent = {image.name: image.name for image in images}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    first: dict[tuple[str, ...], str] = {}
    for image in images:
        # The same picture in two classes is a wrong label, which check_overlap has to find.
        for key in (("group", image.group), ("pixels", str(image.label), image.pixels_sha256)):
            parent[root(image.name)] = root(first.setdefault(key, image.name))
    return {name: root(name) for name in parent}


def _by_class(images: Sequence[sources.Image], classes: int = 0) -> dict[int, list[sources.Image]]:
    found: dict[int, list[sources.Image]] = {label: [] for label in range(classes)}
    for image in images:
        found.setdefault(image.label, []).append(image)
    return found


def _samples(images: list[sources.Image], folder: Path, cell: Path) -> tuple[Sample, ...]:
    """Manifest rows; pictures without a file are written into ``folder``."""
    samples = []
    here = cell.resolve()
    for image in images:
        path, digest = image.path, image.sha256
        if path is None or digest is None:
            assert image.pixels is not None
            path, data = folder / f"{image.name}.png", png(image.pixels)
            digest = sha256(data)
            # Not flushed one by one: the manifest comes after them all, and holds their digests.
            path.write_bytes(data)
        path = path.resolve()
        shown = path.relative_to(here) if path.is_relative_to(here) else path
        samples.append(Sample(shown.as_posix(), image.label, image.group, digest, image.note))
    return tuple(samples)

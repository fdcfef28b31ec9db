"""``dreamset prepare``: a source of real images becomes few-shot split manifests.

Shots are nested: one seeded permutation per (class, seed), K shots are its first K. The test images do not depend
on the seed, and their manifest is a file of its own that only ``dreamset evaluate`` opens.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from dreamset import sources
from dreamset.errors import InputError
from dreamset.files import atomic_write, write_json
from dreamset.seeds import seed_for
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
    rejected = [{"file": file, "reason": reason} for file, reason in source.rejected]
    write_json(workspace.rejected, rejected)
    _check_rejected(params, workspace, rejected)
    train, selection, test = draw(source, params.shots, params.selection_per_class, params.seed, params)
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
    )
    write_split(workspace.splits, split)
    write_test(workspace.test_split, TestSplit(source.classes, _samples(test, workspace.real_test, workspace.cell)))
    summary = {
        "source": params.prepare.source,
        "classes": len(source.classes),
        "shots": params.shots,
        "train": len(train),
        "selection": len(selection),
        "test": len(test),
        "rejected": len(rejected),
    }
    write_json(workspace.result("prepare"), summary)
    return summary


def draw(
    source: sources.Source, shots: int, selection_per_class: int, seed: int, params: Params
) -> tuple[list[sources.Image], list[sources.Image], list[sources.Image]]:
    """Shots, selection and test images, by class.

    The shots of K are the first K of one permutation per (class, seed), whatever else is drawn; selection images
    come from the source's own selection part, else from the end of that same permutation.
    """
    pool, test = source.train, source.test
    if test is None:
        pool, test = _hold_out(source, params.prepare.test_share)
    train: list[sources.Image] = []
    selection: list[sources.Image] = []
    own = _by_class(source.selection or [], len(source.classes))
    for label, images in sorted(_by_class(pool, len(source.classes)).items()):
        name = source.classes[label]
        order = permuted(images, "shots", seed, name)
        # Selection images of a source that has a part for them come from other groups than the shots.
        reserve = order[shots:][::-1] if source.selection is None else permuted(own[label], "selection", seed, name)
        chosen = reserve[:selection_per_class]
        if len(order) < shots or len(chosen) < selection_per_class:
            raise InputError(
                f"class {name!r} has {len(order)} usable images to learn from, but shots: {shots} and "
                f"{selection_per_class} for selection need {shots + selection_per_class}; lower shots or "
                "prepare.selection_per_class, or add images."
            )
        train += order[:shots]
        selection += chosen
    return train, selection, sorted(test, key=lambda image: image.label)


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


def _hold_out(source: sources.Source, share: float) -> tuple[list[sources.Image], list[sources.Image]]:
    """A test part for a folder that has none: the same for every seed; copies of one picture stay together."""
    pool: list[sources.Image] = []
    test: list[sources.Image] = []
    for label, images in sorted(_by_class(source.train, len(source.classes)).items()):
        copies: dict[str, list[sources.Image]] = defaultdict(list)
        for image in permuted(images, "test", 0, source.classes[label]):
            copies[image.pixels_sha256].append(image)
        wanted = max(1, round(share * len(images)))
        for same in copies.values():
            (test if wanted > 0 else pool).extend(same)
            wanted -= len(same)
    return pool, test


def _by_class(images: Sequence[sources.Image], classes: int = 0) -> dict[int, list[sources.Image]]:
    found: dict[int, list[sources.Image]] = {label: [] for label in range(classes)}
    for image in images:
        found.setdefault(image.label, []).append(image)
    return found


def _samples(images: list[sources.Image], folder: Path, cell: Path) -> tuple[Sample, ...]:
    """Manifest rows; pictures without a file are written into ``folder``."""
    samples = []
    for image in images:
        path = image.path
        if path is None:
            assert image.data is not None
            path = folder / f"{image.name}.png"
            atomic_write(path, image.data)
        try:
            shown = path.resolve().relative_to(cell.resolve()).as_posix()
        except ValueError:
            shown = path.resolve().as_posix()
        samples.append(Sample(shown, image.label, image.group, image.sha256))
    return tuple(samples)


def _check_rejected(params: Params, workspace: Workspace, rejected: list[dict[str, str]]) -> None:
    if len(rejected) > params.prepare.max_rejected:
        first = rejected[0]
        raise InputError(
            f"{len(rejected)} files of {params.prepare.source} cannot be used (first: {first['file']}: "
            f"{first['reason']}); mend or remove those listed in {workspace.rejected}, or raise prepare.max_rejected."
        )

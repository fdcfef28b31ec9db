"""Folds of the shots: whole small experiments in which some labelled images are held out of everything.

A fold is a workspace of its own under ``.dreamset/folds``. It holds the same manifests as any other workspace, so
every stage runs in it unchanged: what is held out is neither adapted to nor trained on there.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

from dreamset.errors import InputError
from dreamset.files import digest
from dreamset.seeds import seed_for
from dreamset.workspace import Workspace

if TYPE_CHECKING:
    from dreamset.splits import Sample, Split

Purpose = Literal["test", "selection"]


def held_out(split: Split, folds: int, purpose: Purpose) -> list[tuple[Sample, ...]]:
    """What each fold holds out: every shot once, classes in equal shares, groups never divided.

    Args:
        split: whose ``train`` is divided.
        folds: how many; fewer where a class has fewer groups.
        purpose: folds that select are drawn apart from those that test.

    Returns:
        A tuple of samples per fold, in the order of ``split.train``.

    Raises:
        InputError: a class whose images are all of one group cannot be both learned and held out.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    count = possible(split, folds)
    labels = [sample.label for sample in split.train]
    groups = [sample.group for sample in split.train]
    state = seed_for("folds", purpose, split.seed) % 2**32
    divided = StratifiedGroupKFold(count, shuffle=True, random_state=state).split(labels, labels, groups)
    return [tuple(split.train[i] for i in held) for _, held in divided]


def possible(split: Split, folds: int) -> int:
    """How many of ``folds`` the shots allow: at most as many as any class has groups.

    Raises:
        InputError: a class whose images are all of one group cannot be both learned and held out.
    """
    by_class: dict[int, set[str]] = {}
    for sample in split.train:
        by_class.setdefault(sample.label, set()).add(sample.group)
    fewest = min(by_class, key=lambda label: len(by_class[label]))
    if len(by_class[fewest]) < 2:
        raise InputError(
            f"class {split.classes[fewest]!r} has shots of one group only, which cannot be both learned from and held "
            "out; raise shots, add images of another group, or choose selection: fixed and evaluate.protocol: test."
        )
    return min(folds, len(by_class[fewest]))


def without(split: Split, held: tuple[Sample, ...], workspace: Workspace) -> Split:
    """``split`` for a fold: the shots without ``held``, no selection images, paths that hold from any folder."""
    names = {sample.path for sample in held}
    rest = tuple(sample for sample in split.train if sample.path not in names)
    return dataclasses.replace(split, train=absolute(rest, workspace), selection=())


def absolute(samples: tuple[Sample, ...], workspace: Workspace) -> tuple[Sample, ...]:
    """Samples whose paths do not depend on the workspace that they are read in."""
    return tuple(
        dataclasses.replace(sample, path=(workspace.cell / sample.path).resolve().as_posix()) for sample in samples
    )


def at(workspace: Workspace, purpose: Purpose, index: int) -> Workspace:
    """The workspace of a fold: shards and pretrained weights are shared with ``workspace``."""
    own = digest([workspace.cell.resolve().as_posix()])[:12]
    return Workspace(workspace.root, workspace.root / ".dreamset/folds" / own / f"{purpose}{index}")

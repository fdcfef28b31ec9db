"""Labelled images that are held out: a part of the shots for good, or each fold of them in turn.

A fold is a whole small experiment, in a workspace of its own under ``.dreamset/folds``. It holds the same manifests as
any other workspace, so every stage runs in it unchanged: what is held out is neither adapted to nor trained on there.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from dreamset.core.errors import InputError
from dreamset.core.files import digest
from dreamset.core.joined import representatives
from dreamset.core.seeds import seed_for
from dreamset.core.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dreamset.data.runs import Run
    from dreamset.data.splits import Sample, Split
    from dreamset.params import Params

Purpose = Literal["test", "selection"]

SELECTING: Final = 4  # folds of `selection: cv`, and one in so many images is held out by `selection: holdout`
_TRIES: Final = 200  # draws of whole groups until every class has images on both sides


@dataclass(frozen=True)
class Fold:
    """A fold of cross-validation: what may be learned from in it, and what it scores, both with absolute paths."""

    index: int
    workspace: Workspace
    split: Split
    held_out: tuple[Sample, ...]


class Scored(NamedTuple):
    """What the classifiers of a fold predict: logits (images, classes) by run, and each classifier's temperature."""

    logits: dict[Run, NDArray[np.float32]]
    temperatures: dict[Run, float]


Scorer = Callable[[Fold, str], Scored]  # from a fold and an arm
# Does in every fold all that learns, and scores it there; ``dreamset.sweep.crossval.run`` is the one there is.
CrossValidate = Callable[["Params", list[Fold], Scorer], list[Scored]]


def held_out(split: Split, folds: int, purpose: Purpose) -> list[tuple[Sample, ...]]:
    """What each fold holds out: every shot once, classes in equal shares, groups never divided.

    Args:
        split: whose ``train`` is divided.
        folds: how many; fewer where a class has fewer groups.
        purpose: folds that select are drawn apart from those that test.

    Returns:
        A tuple of samples per fold, in the order of ``split.train``.

    Raises:
        InputError: a class whose images are all of one group cannot be both learned and held out, or groups lie so
            that some fold would leave a class none.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    count = possible(split, folds)
    labels = [sample.label for sample in split.train]
    groups = _together(split.train)
    for attempt in range(_TRIES):
        parts = (split.seed, attempt) if attempt else (split.seed,)
        state = seed_for("folds", purpose, *parts) % 2**32
        divided = StratifiedGroupKFold(count, shuffle=True, random_state=state).split(labels, labels, groups)
        folds_of = [(rest, held) for rest, held in divided]
        if all({labels[i] for i in rest} == set(labels) for rest, _ in folds_of):
            return [tuple(split.train[i] for i in held) for _, held in folds_of]
    raise InputError(
        f"the groups of the shots cannot be divided into {count} folds that leave images of every class to learn from; "
        "add images of other groups, or choose selection: fixed and evaluate.protocol: test."
    )


def scored_on(params: Params, split: Split) -> Split:
    """``split`` with every image that is scored as a shot: ``selection: holdout`` took its images from the shots.

    Images that only select (``extra:N``) are no shots: every fold keeps them for selecting.
    """
    if params.selection != "holdout":
        return split
    return dataclasses.replace(split, train=split.train + split.selection, selection=())


def outer(params: Params, workspace: Workspace, split: Split) -> list[Fold]:
    """The folds of cross-validation: each shot is held out of exactly one, and each fold selects for itself.

    Raises:
        InputError: a class whose shots are all of one group, or too few to select with inside a fold.
    """
    whole = scored_on(params, split)
    selection = absolute(whole.selection, workspace)
    folds = []
    for index, held in enumerate(held_out(whole, params.evaluate.folds, "test")):
        learned = dataclasses.replace(without(whole, held, workspace), selection=selection)
        if params.selection == "holdout":
            learned = holdout(learned)
        folds.append(Fold(index, at(workspace, "test", index), learned, absolute(held, workspace)))
    return folds


def holdout(split: Split) -> Split:
    """``split`` with one in ``SELECTING`` of each class's shots, at least one, moved to selection.

    Groups stay whole, so that where they are large the shares are as near as a few hundred draws come.

    Raises:
        InputError: a class that would have no image left on one side.
    """
    import numpy as np

    labels, groups = np.array([sample.label for sample in split.train]), np.array(_together(split.train))
    names, owner = np.unique(groups, return_inverse=True)
    classes = len(split.classes)
    # (groups, classes) counts.
    table = np.bincount(owner * classes + labels, minlength=len(names) * classes).reshape(-1, classes)
    total = table.sum(0)
    wanted = np.maximum(1, np.round(total / SELECTING)).astype(int)
    best: tuple[int, set[str]] | None = None
    for attempt in range(_TRIES):
        rng = np.random.default_rng(seed_for("holdout", split.seed, attempt))
        held: NDArray[np.int64] = np.zeros(classes, np.int64)
        chosen: set[str] = set()
        for index in rng.permutation(len(names)):
            more = held + table[index]
            if abs(more - wanted).sum() < abs(held - wanted).sum() and (more < total)[total > 0].all():
                held, chosen = more, chosen | {str(names[index])}
        off = int(abs(held - wanted).sum())
        if (held > 0)[total > 0].all() and (best is None or off < best[0]):
            best = off, chosen
        if best and not best[0]:
            break
    if best is None:
        found = Counter(sample.label for sample in split.train)
        least = min(found, key=lambda label: len({g for g, own in zip(groups, labels, strict=True) if own == label}))
        raise InputError(
            f"selection: holdout cannot take an image of every class from its shots and leave one to learn from (class "
            f"{split.classes[least]!r} has {found[least]}); raise shots, add images of other groups, or choose another "
            "selection."
        )
    held_out = {sample.path for sample, group in zip(split.train, groups, strict=True) if group in best[1]}
    return dataclasses.replace(
        split,
        train=tuple(sample for sample in split.train if sample.path not in held_out),
        selection=tuple(sample for sample in split.train if sample.path in held_out),
    )


def _together(samples: tuple[Sample, ...]) -> list[str]:
    """For each sample a name of what must not be divided: its group, and that of any copy of the same file."""
    joined = representatives((f"file {sample.sha256}", f"group {sample.group}") for sample in samples)
    return [joined[f"group {sample.group}"] for sample in samples]


def possible(split: Split, folds: int) -> int:
    """How many of ``folds`` the shots allow: at most as many as any class has groups.

    Raises:
        InputError: a class whose images are all of one group cannot be both learned and held out.
    """
    by_class: dict[int, set[str]] = {}
    for sample, group in zip(split.train, _together(split.train), strict=True):
        by_class.setdefault(sample.label, set()).add(group)
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

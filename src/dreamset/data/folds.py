"""Labelled images that are held out: a part of the shots for good, or each fold of the shots in turn.

A fold is a whole small experiment, in its own workspace under ``.dreamset/folds``. It holds the same manifests as any
other workspace, so every stage runs in it unchanged. There nothing adapts to or trains on the images held out.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from dreamset.core.errors import InputError
from dreamset.core.files import digest
from dreamset.core.groups import representatives
from dreamset.core.seeds import seed_for
from dreamset.core.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dreamset.data.runs import Run
    from dreamset.data.splits import Sample, Split
    from dreamset.params import Params

Purpose = Literal["test", "selection"]

SELECTING: Final = 4  # folds of `selection: cv`; `selection: holdout` holds out one in so many images
_TRIES: Final = 200  # draws of whole groups until every class has images on both sides


@dataclass(frozen=True)
class Fold:
    """A fold of cross-validation: the images it may learn from, and those it scores, both with absolute paths."""

    index: int
    workspace: Workspace
    split: Split
    held_out: tuple[Sample, ...]


class Predictions(NamedTuple):
    """Predictions of classifiers: logits (images, classes) float32 by run, and each classifier's temperature."""

    logits: dict[Run, NDArray[np.float32]]
    temperatures: dict[Run, float]


Scorer = Callable[[Fold, str], Predictions]  # from a fold and an arm
# Repeats all learning in every fold and scores it there. ``dreamset.sweep.crossval.run`` is the only such function.
CrossValidate = Callable[["Params", list[Fold], Scorer], list[Predictions]]


def held_out(split: Split, folds: int, purpose: Purpose, repetition: int = 0) -> list[tuple[Sample, ...]]:
    """Return the samples that each fold holds out: every shot once, classes in equal shares, groups undivided.

    Args:
        split: its ``train`` is divided.
        folds: number of folds; there are fewer where a class has fewer groups.
        purpose: folds for selection are drawn apart from folds for testing.
        repetition: another division for each number; 0: the usual one.

    Returns:
        A tuple of samples per fold, in the order of ``split.train``.

    Raises:
        InputError: all images of a class are of one group, so that they cannot be both learned from and held out; or
            every division leaves some fold without images of a class to learn from.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    count = possible(split, folds, purpose)
    labels = [sample.label for sample in split.train]
    groups = _together(split.train)
    for attempt in range(_TRIES):
        parts: tuple[str | int, ...] = (split.seed, attempt) if attempt else (split.seed,)
        parts += ("again", repetition) if repetition else ()
        state = seed_for("folds", purpose, *parts) % 2**32
        divided = StratifiedGroupKFold(count, shuffle=True, random_state=state).split(labels, labels, groups)
        sides = [(rest, left_out) for rest, left_out in divided]
        if all({labels[i] for i in rest} == set(labels) for rest, _ in sides):
            return [tuple(split.train[i] for i in left_out) for _, left_out in sides]
    raise InputError(
        f"the groups of the shots cannot be divided into {count} folds that leave images of every class to learn from; "
        "add images of other groups, or choose selection: fixed and evaluate.protocol: test."
    )


def scored_on(params: Params, split: Split) -> Split:
    """Return ``split`` with every image that is scored among its shots: ``selection: holdout`` took some of them away.

    Images that only select (``extra:N``) are no shots: every fold keeps them for selection.
    """
    if params.selection != "holdout":
        return split
    return dataclasses.replace(split, train=split.train + split.selection, selection=())


def test_folds(params: Params, workspace: Workspace, split: Split) -> list[Fold]:
    """Return the folds of cross-validation: each shot is held out of exactly one, and each fold selects by itself.

    Raises:
        InputError: all shots of a class are of one group, or too few are left inside a fold for selection.
    """
    whole = scored_on(params, split)
    selection = absolute(whole.selection, workspace)
    folds = []
    for index, left_out in enumerate(held_out(whole, params.evaluate.folds, "test")):
        learned = dataclasses.replace(without(whole, left_out, workspace), selection=selection)
        if params.selection == "holdout":
            learned = holdout(learned)
        folds.append(Fold(index, at(workspace, "test", index), learned, absolute(left_out, workspace)))
    return folds


def holdout(split: Split) -> Split:
    """Return ``split`` with one in ``SELECTING`` of each class's shots, at least one, moved to ``selection``.

    Groups stay whole. Where they are large, the shares are the nearest that some hundred draws give.

    Raises:
        InputError: a class would have no image left on one side.
    """
    import numpy as np

    labels, groups = np.array([sample.label for sample in split.train]), np.array(_together(split.train))
    names, owner = np.unique(groups, return_inverse=True)
    classes = len(split.classes)
    # Counts of images, (groups, classes).
    table = np.bincount(owner * classes + labels, minlength=len(names) * classes).reshape(-1, classes)
    total = table.sum(0)
    wanted = np.maximum(1, np.round(total / SELECTING)).astype(int)
    best: tuple[int, set[str]] | None = None
    for attempt in range(_TRIES):
        rng = np.random.default_rng(seed_for("holdout", split.seed, attempt))
        counts: NDArray[np.int64] = np.zeros(classes, np.int64)
        chosen: set[str] = set()
        for index in rng.permutation(len(names)):
            more = counts + table[index]
            if abs(more - wanted).sum() < abs(counts - wanted).sum() and (more < total)[total > 0].all():
                counts, chosen = more, chosen | {str(names[index])}
        off = int(abs(counts - wanted).sum())
        if (counts > 0)[total > 0].all() and (best is None or off < best[0]):
            best = off, chosen
        if best and not best[0]:
            break
    if best is None:
        shots = Counter(sample.label for sample in split.train)
        least = min(
            shots, key=lambda label: len({g for g, other in zip(groups, labels, strict=True) if other == label})
        )
        raise InputError(
            f"selection: holdout cannot take an image of every class from its shots and leave one to learn from (class "
            f"{split.classes[least]!r} has {shots[least]}); {_more(split, shots[least] == 1)}, choose another "
            "selection, or leave the class out."
        )
    taken = {sample.path for sample, group in zip(split.train, groups, strict=True) if group in best[1]}
    return dataclasses.replace(
        split,
        train=tuple(sample for sample in split.train if sample.path not in taken),
        selection=tuple(sample for sample in split.train if sample.path in taken),
    )


def _together(samples: tuple[Sample, ...]) -> list[str]:
    """Return for each sample the name of what must stay whole: its group, joined with those of copies of its file."""
    joined = representatives((f"file {sample.sha256}", f"group {sample.group}") for sample in samples)
    return [joined[f"group {sample.group}"] for sample in samples]


def fewest(split: Split) -> tuple[int, int]:
    """Return the class whose shots are of the fewest groups, and the number of these."""
    by_class: dict[int, set[str]] = {}
    for sample, group in zip(split.train, _together(split.train), strict=True):
        by_class.setdefault(sample.label, set()).add(group)
    label = min(by_class, key=lambda label: len(by_class[label]))
    return label, len(by_class[label])


def possible(split: Split, folds: int, purpose: Purpose) -> int:
    """Return how many of ``folds`` the shots allow: at most as many as the class with the fewest groups has.

    Raises:
        InputError: all images of a class are of one group, so that they cannot be both learned from and held out.
    """
    label, groups = fewest(split)
    if groups < 2:
        one = split.train_per_class[label] == 1
        raise InputError(
            f"class {split.classes[label]!r} has "
            f"{'one shot only' if one else 'shots of one group only (so listed, or alike)'}, which cannot be both "
            f"learned from and held out; {_more(split, one)}, "
            f"{'choose selection: fixed, ' if purpose == 'selection' else ''}or leave the class out."
        )
    return min(folds, groups)


def _more(split: Split, one: bool) -> str:
    """Return in words how a class gets more shots; where ``shots`` is all, only the source can give them."""
    add = "add images of it" if one else "add images of another group"
    return add if split.shots == "all" else f"raise shots if the source has more of it, {add}"


def without(split: Split, left_out: tuple[Sample, ...], workspace: Workspace) -> Split:
    """Return ``split`` for a fold: the shots without ``left_out``, no selection images, absolute paths."""
    names = {sample.path for sample in left_out}
    rest = tuple(sample for sample in split.train if sample.path not in names)
    return dataclasses.replace(split, train=absolute(rest, workspace), selection=())


def absolute(samples: tuple[Sample, ...], workspace: Workspace) -> tuple[Sample, ...]:
    """Return the samples with absolute paths, which any workspace can read."""
    return tuple(
        dataclasses.replace(sample, path=(workspace.cell / sample.path).resolve().as_posix()) for sample in samples
    )


def at(workspace: Workspace, purpose: Purpose, index: int) -> Workspace:
    """Return the workspace of a fold, which shares shards and pretrained weights with ``workspace``."""
    cell = digest([workspace.cell.resolve().as_posix()])[:12]
    return Workspace(workspace.root, workspace.root / ".dreamset/folds" / cell / f"{purpose}{index}")

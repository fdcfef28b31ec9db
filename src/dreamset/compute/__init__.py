"""Work in several processes or on several machines: ``run`` for shards, ``each`` for whole experiments.

Pieces of work (groups of adapters, blocks of images, classifiers, folds, cells of a table) are pure functions already,
and shards have keys. So there is nothing to plan here: each process goes through the same list and claims what nobody
has claimed (``shards.claimed``), or Ray places one piece after the other. No result depends on where a piece was made,
or on how many were made at once: a piece computes with as many threads everywhere.
"""

from __future__ import annotations

import functools
import shutil
import uuid
from typing import TYPE_CHECKING, TypeVar

from dreamset.compute import local
from dreamset.compute.call import Call, inline, is_inline, resident
from dreamset.core import device, remote, shards
from dreamset.core.progress import bar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from dreamset.params.sections import Compute

__all__ = ["each", "inline", "prepare", "resident", "run", "spreads", "workers"]

Unit = TypeVar("Unit")
Result = TypeVar("Result")


def prepare(compute: Compute, store: Path) -> None:
    """Let this process compute and keep its shards as the parameters say.

    Args:
        compute: the section of the parameters.
        store: the shards' folder.

    Raises:
        InputError: ``store`` of the section has a protocol that cannot be used.
    """
    if compute.threads is not None:
        device.use_threads(compute.threads)
    remote.use(store, compute.store)


def workers(compute: Compute) -> int:
    """Return how many processes work at once on this machine: one per GPU, or one on a CPU, unless a number is given.

    It is one inside a worker and inside ``inline``.
    """
    if is_inline():
        return 1
    if compute.workers is not None:
        return compute.workers
    return max(1, len(device.gpus()))


def spreads(compute: Compute) -> bool:
    """Return whether ``each`` would make several pieces at once.

    Without a folder that all machines share it does not: the pieces stay here, and their shards go to the others.
    """
    if is_inline() or compute.store is not None:
        return False
    return compute.executor == "ray" or workers(compute) > 1


def run(
    compute: Compute,
    root: Path,
    store: Path,
    make: Callable[[list[Unit]], Result],
    units: Sequence[Unit],
    keys: Callable[[Unit], Sequence[str]],
    *,
    what: str,
) -> list[Result]:
    """Make shards, here or in workers.

    Args:
        compute: the section of the parameters.
        root: the project's folder.
        store: the shards' folder.
        make: makes the shards of some units that are not finished, by ``shards.claimed``, for other processes have the
            same units. It is pickled, and so is what it returns.
        units: pieces of work that make shards.
        keys: the shards of a unit.
        what: names the work in sentences and on the bar.

    Returns:
        What ``make`` returned, once for each process or task.

    Raises:
        StoppedError: pieces kill their workers; those that are finished are kept.
    """

    def is_done(unit: Unit) -> bool:
        return all(shards.is_there(store, key) for key in keys(unit))

    if compute.store is not None and remote.used(store) is None:
        return [make(list(units))] if units else []  # it comes back from nowhere else
    made = _run(compute, root, make, units, is_done, what)
    if compute.store is not None:
        # Other machines may have made them.
        for unit in units:
            for key in keys(unit):
                shards.find(store, key)
    return made


def each(compute: Compute, root: Path, make: Callable[[Unit], None], units: Sequence[Unit], *, what: str) -> None:
    """Make pieces that are no shards, such as folds and cells, here or in workers.

    Args:
        compute: the section of the parameters.
        root: the project's folder; claims on pieces go below it.
        make: makes one piece; it is pickled.
        units: the pieces.
        what: names the work in sentences and on the bar.

    Raises:
        StoppedError: as ``run``.
    """
    place = root / f".dreamset/scratch/pieces-{uuid.uuid4().hex}"
    if len(units) <= 1 or not spreads(compute):
        for unit in bar(units, what=what, unit="piece"):
            make(unit)
        return
    try:
        _run(
            compute,
            root,
            functools.partial(_make_each, place, make),
            list(enumerate(units)),
            lambda unit: (place / str(unit[0])).is_file(),
            what,
        )
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _make_each(place: Path, make: Callable[[Unit], None], units: list[tuple[int, Unit]]) -> None:
    """Make the pieces that no other process makes or has made."""
    for (index, unit), claim in shards.claimed(
        place, units, lambda unit: [str(unit[0])], lambda unit: (place / str(unit[0])).is_file()
    ):
        with claim:
            make(unit)
            (place / str(index)).touch()


def _run(
    compute: Compute,
    root: Path,
    make: Callable[[list[Unit]], Result],
    units: Sequence[Unit],
    is_done: Callable[[Unit], bool],
    what: str,
) -> list[Result]:
    if not units:
        return []
    if compute.executor == "ray" and not is_inline():
        from dreamset.compute import on_ray

        return on_ray.run(compute, root, Call.here(make), list(units), what)
    count = min(workers(compute), len(units))
    return [make(list(units))] if count == 1 else local.run(count, Call.here(make), list(units), what, is_done)

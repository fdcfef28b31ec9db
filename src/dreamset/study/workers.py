"""Folders of workers under ``.dreamset/tune/<study>/<host>-<pid>/``: what their trials are working on.

A worker that lives holds the lock of the same name beside its folder.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from dreamset.core import locks

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.core.workspace import Workspace
    from dreamset.params import Params


def clear(study: Path) -> None:
    """Remove what the trials of a study worked on, but not that of a process that lives: it may hold one still."""
    for own in [path for path in study.glob("*") if path.is_dir()]:
        lock = locks.take(study / f"{own.name}{locks.SUFFIX}")
        if lock is not None:
            shutil.rmtree(own, ignore_errors=True)
            lock.release()
    if study.is_dir() and not any(study.iterdir()):
        study.rmdir()


def clear_abandoned(params: Params, workspace: Workspace) -> None:
    """Remove what studies left behind that no row of ``recipes`` asks for any more, and that nobody works on.

    A study that a row does ask for may be unfinished, and goes on with what it has.
    """
    searched = {name for name, row in params.recipes.items() if row.is_tuned}
    for study in sorted(workspace.trials.glob("*/")):
        # A study's name is that of its recipe and a digest; other folders are those of a moment.
        if study.name.rpartition("-")[0] not in searched:
            clear(study)

"""Folders of workers under ``.dreamset/tune/<study>/<host>-<pid>/``, with the unfinished work of their trials.

A live worker holds the lock of the same name beside its folder.
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
    """Remove the unfinished work of a study's trials, except that of live processes, whose trials may still run.

    Args:
        study: folder of the study.
    """
    for folder in [path for path in study.glob("*") if path.is_dir()]:
        lock = locks.take(study / f"{folder.name}{locks.SUFFIX}")
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            lock.release()
    if study.is_dir() and not any(study.iterdir()):
        study.rmdir()


def abandoned(params: Params, workspace: Workspace) -> list[Path]:
    """Return the folders of studies that no row of ``recipes`` asks for any more.

    A study that a row asks for may be unfinished, and goes on with its files.
    """
    searched = {name for name, row in params.recipes.items() if row.is_tuned}
    # The name of a study is its recipe and a digest; other folders are temporary.
    return [study for study in sorted(workspace.trials.glob("*/")) if study.name.rpartition("-")[0] not in searched]

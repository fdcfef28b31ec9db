"""Folders of workers under ``.dreamset/tune/<study>/<host>-<pid>/``: what their trials are working on."""

from __future__ import annotations

import os
import shutil
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.params import Params
    from dreamset.workspace import Workspace


def own() -> str:
    """The name of this process's folder within that of a study."""
    return f"{socket.gethostname()}-{os.getpid()}"


def clear(study: Path) -> None:
    """Remove the folders of a study's workers, but for those of other processes that live on this machine."""
    for folder in sorted(study.glob("*/")):
        if folder.name == own() or not _lives(folder.name):
            shutil.rmtree(folder, ignore_errors=True)
    if study.is_dir() and not any(study.iterdir()):
        study.rmdir()


def clear_abandoned(params: Params, workspace: Workspace) -> None:
    """Remove what studies left behind that no row of ``recipes`` asks for any more, and that nobody works on.

    A study that a row does ask for may be unfinished, and goes on with what it has.
    """
    searched = {name for name, row in params.recipes.items() if row.search is not None}
    for study in sorted(workspace.trials.glob("*/")):
        # A study's name is that of its recipe and a digest; other folders are those of a moment.
        if study.name.rpartition("-")[0] not in searched:
            clear(study)


def _lives(worker: str) -> bool:
    host, _, process = worker.rpartition("-")
    if host != socket.gethostname() or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True

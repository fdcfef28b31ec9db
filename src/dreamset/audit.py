"""The test images are closed: a process that may choose anything cannot open them, whatever its code says."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreamset.workspace import Workspace

OPENERS: Collection[str] = ("prepare", "evaluate")  # the stage that draws the test images, and the one that scores

_closed: list[str] = []


@contextmanager
def closed(workspace: Workspace) -> Iterator[None]:
    """Inside, nothing in this process opens the test manifest of ``workspace`` or the test images written beside it.

    Python tells its audit hooks of every file before it is opened (PEP 578), in all threads; a hook cannot be taken
    away again, so one is installed and looks at a list.

    Raises:
        RuntimeError: inside, on an attempt.
    """
    _install()
    mine = [_absolute(workspace.test_split), _absolute(workspace.real_test)]
    _closed.extend(mine)
    try:
        yield
    finally:
        for path in mine:
            _closed.remove(path)


@cache
def _install() -> None:
    sys.addaudithook(_hook)


def _absolute(path: str | bytes | os.PathLike[str]) -> str:
    # Not Path.resolve, which asks the file system about every part of every file that is opened.
    return os.path.abspath(os.fsdecode(path))  # noqa: PTH100


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not _closed or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    path = _absolute(arguments[0])
    for forbidden in _closed:
        if path == forbidden or path.startswith(forbidden + os.sep):
            raise RuntimeError(f"{path}: only evaluate opens the test images; nothing is chosen on them.")

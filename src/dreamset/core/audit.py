"""The test images are closed: a process that may choose anything cannot open them, whatever its code says."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.core.workspace import Workspace

OPENERS: Collection[str] = ("prepare", "evaluate")  # the stage that draws the test images, and the one that scores

_closed: Counter[str] = Counter()  # how often each path is closed


@contextmanager
def closed(workspace: Workspace, also: Iterable[Path] = ()) -> Iterator[None]:
    """Inside, nothing in this process opens the test manifest of ``workspace`` or the test images written beside it.

    Python tells its audit hooks of every file before it is opened (PEP 578), in all threads; a hook cannot be taken
    away again, so one is installed and looks at a list.

    Args:
        workspace: whose test images are closed.
        also: further files and folders that are, such as what a fold holds out.

    Raises:
        RuntimeError: inside, on an attempt.
    """
    _install()
    mine = [_absolute(workspace.test_split), _absolute(workspace.real_test), *map(_absolute, also)]
    _closed.update(mine)
    try:
        yield
    finally:
        _closed.subtract(mine)
        for path in mine:
            if not _closed[path]:
                del _closed[path]


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
    # By look-up and not one by one: thousands of files may be closed, and everything that is opened passes here.
    at = path
    while True:
        if at in _closed:
            raise RuntimeError(f"{path}: only evaluate opens the test images; nothing is chosen on them.")
        above = os.path.dirname(at)  # noqa: PTH120
        if above == at:
            return
        at = above

"""Close the test images: a process that chooses anything cannot open them, whatever its code says."""

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
    """Forbid this process to open the test manifest of ``workspace`` and the test images beside it.

    Python calls audit hooks before it opens any file, in every thread (PEP 578). A hook cannot be removed, so one
    hook is installed once and looks at a list of closed paths.

    Args:
        workspace: whose test images are closed.
        also: further files and folders to close, such as the images that a fold holds out.

    Raises:
        RuntimeError: code inside the block tries to open one of them.
    """
    _install()
    paths = [_absolute(workspace.test_split), _absolute(workspace.real_test), *map(_absolute, also)]
    _closed.update(paths)
    try:
        yield
    finally:
        _closed.subtract(paths)
        for path in paths:
            if not _closed[path]:
                del _closed[path]


def paths() -> tuple[str, ...]:
    """Return the absolute paths that are closed now."""
    return tuple(_closed)


def close(paths: Iterable[str]) -> None:
    """Close paths in this process, a worker, for good."""
    _install()
    _closed.update(path for path in paths if path not in _closed)


@cache
def _install() -> None:
    sys.addaudithook(_hook)


def _absolute(path: str | bytes | os.PathLike[str]) -> str:
    # Path.resolve would ask the file system about every part of every path that is opened.
    return os.path.abspath(os.fsdecode(path))  # noqa: PTH100


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not _closed or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    path = _absolute(arguments[0])
    # Look up the path and its parents: thousands of files may be closed, and every file that is opened passes here.
    at = path
    while True:
        if at in _closed:
            raise RuntimeError(f"{path}: only evaluate opens the test images; nothing may be chosen on them.")
        above = os.path.dirname(at)  # noqa: PTH120
        if above == at:
            return
        at = above

"""The files of the project that come with the package: parameters, stages, and the bundled base.

The repository holds each of them once, in its root. ``setup.py`` copies them into a built package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from dreamset.core.errors import InputError

_PACKAGE: Final = Path(__file__).parents[1]


def shipped(name: str, package: Path = _PACKAGE) -> Path:
    """Return the file or folder that came with the installed package.

    Args:
        name: its path in the repository, such as ``params.yaml`` or ``models/base``.
        package: the folder of the package.

    Raises:
        InputError: it is not there; the sentence says how to install the package whole.
    """
    built, repository = package / "shipped", package.parents[1]
    path = (built if built.is_dir() else repository) / name
    if not path.exists():
        raise InputError(f"{path}: is missing, so the installed dreamset is not whole; install it again.")
    return path

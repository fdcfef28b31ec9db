"""A source in a folder of class folders, or in ``train/``, ``val/`` and ``test/`` that each hold class folders.

``layout`` says which names of folders are parts.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from dreamset.core.errors import InputError
from dreamset.core.formats import left_behind
from dreamset.data.source import Image, Rejected, Source
from dreamset.sources import layout
from dreamset.sources.reading import Row, printable, read_files

if TYPE_CHECKING:
    from dreamset.core.images import Decoding

_DIGITS = re.compile(r"(\d+)")


def read(root: Path, decoding: Decoding) -> Source:
    """Read a folder; the name of a sub-folder is the class of all files under it.

    ``Source.rejected`` lists the files that cannot be used, with the reason. Hidden files are skipped.

    Raises:
        InputError: the folder is missing or cannot be read, or its parts hold different classes.
    """
    if not root.is_dir():
        raise InputError(f"prepare.source: {root} is no folder; give imagefolder:PATH of a folder of class folders.")
    rejected: list[Rejected] = []
    parts = layout.parts(root, folders(root))
    if len(parts) < 2:
        classes = _classes(root)
        return _source(classes, {"train": _scan(root, classes, decoding, rejected)}, rejected)
    classes = _classes(root / parts["train"])
    for name in parts.values():
        if classes != _classes(root / name):
            odd = sorted(set(classes) ^ set(_classes(root / name)))
            raise InputError(
                f"{root}: {parts['train']}/ and {name}/ hold different classes ({', '.join(odd[:5])}); make them "
                "equal: an empty folder stands for a class without images there."
            )
    images = {part: _scan(root / name, classes, decoding, rejected) for part, name in parts.items()}
    return _source(classes, images, rejected)


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key that puts 2.png before 10.png."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in _DIGITS.split(name)]


def folders(root: Path) -> list[str]:
    """The names of the folders in ``root``, sorted, without hidden and machines' own.

    Raises:
        InputError: ``root`` cannot be read, or a name is not UTF-8.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not left_behind(entry.name))
    except OSError as error:
        raise _unreadable(error, root) from error
    for name in names:
        if printable(name) != name:
            raise InputError(f"{root}: the folder name {printable(name)} is not UTF-8; rename it.")
    return names


def files(root: Path) -> list[str]:
    """The paths of all files under ``root``, relative to it, in natural order, without hidden and machines' own.

    Raises:
        InputError: a folder cannot be read, and its images would be missing silently.
    """

    def fail(error: OSError) -> None:
        raise _unreadable(error, root) from error

    paths = []
    for folder, inner, names in os.walk(root, onerror=fail):
        inner[:] = [name for name in inner if not left_behind(name)]
        under = Path(folder).relative_to(root)
        paths += [(under / name).as_posix() for name in names if not name.startswith(".")]
    return sorted(paths, key=natural)


def _unreadable(error: OSError, root: Path) -> InputError:
    where = printable(str(error.filename or root))
    return InputError(f"{where}: cannot be read ({error.strerror}); make the folder readable, or move it away.")


def _classes(root: Path) -> tuple[str, ...]:
    classes = tuple(folders(root))
    if len(classes) < 2:
        raise InputError(f"{root}: holds {len(classes)} class folders; a classifier needs at least two.")
    return classes


def _scan(root: Path, classes: tuple[str, ...], decoding: Decoding, rejected: list[Rejected]) -> list[Image]:
    rows = [
        # A class folder may be a link itself: folders of links to a data set are laid out that way.
        Row(root / name / file, root / name, f"{name}/{file}", label, (root / name / file).as_posix())
        for label, name in enumerate(classes)
        for file in files(root / name)
    ]
    return read_files(rows, decoding, rejected, f"reading {root.name}")


def _source(classes: tuple[str, ...], images: dict[str, list[Image]], rejected: list[Rejected]) -> Source:
    return Source(
        classes=classes,
        template="a photo of a {class}",
        invariances=(),
        train=images["train"],
        selection=images.get("selection"),
        test=images.get("test"),
        rejected=rejected,
    )

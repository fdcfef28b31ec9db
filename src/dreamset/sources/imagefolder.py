"""A folder of class folders, or of ``train/``, ``val/`` and ``test/`` that each hold class folders."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dreamset.core.errors import InputError
from dreamset.sources import Image, Source
from dreamset.sources.reading import Row, printable, read_files

if TYPE_CHECKING:
    from dreamset.core.images import Decoding

_DIGITS = re.compile(r"(\d+)")
_SELECTION: Final = ("val", "valid", "validation", "selection")


def read(root: Path, decoding: Decoding) -> Source:
    """Scan a folder; the class is the name of the sub-folder, sub-folders of it included.

    Files that cannot be used are listed with the reason in ``Source.rejected``; hidden files are skipped.

    Raises:
        InputError: no such folder, one that cannot be read, or parts with different classes.
    """
    if not root.is_dir():
        raise InputError(f"prepare.source: {root} is no folder; give imagefolder:PATH of a folder of class folders.")
    names = set(folders(root))
    selection = [name for name in _SELECTION if name in names]
    parts = ["train", *selection, *(["test"] if "test" in names else [])]
    rejected: list[tuple[str, str]] = []
    if "train" not in names or len(parts) == 1:
        classes = _classes(root)
        train = _scan(root, classes, decoding, rejected)
        return _source(classes, train, None, None, rejected)
    if len(selection) > 1 or names != set(parts):
        odd = sorted(names - {"train", "test", *selection[:1]})
        raise InputError(f"{root}: holds {', '.join(odd[:5])} beside train/; keep train/, val/ and test/ alone in it.")
    classes = _classes(root / "train")
    for part in parts[1:]:
        if classes != _classes(root / part):
            odd = sorted(set(classes) ^ set(_classes(root / part)))
            raise InputError(
                f"{root}: train/ and {part}/ hold different classes ({', '.join(odd[:5])}); make them equal."
            )
    found = {part: _scan(root / part, classes, decoding, rejected) for part in parts}
    return _source(classes, found["train"], found[selection[0]] if selection else None, found.get("test"), rejected)


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which 2.png stands before 10.png."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in _DIGITS.split(name)]


def folders(root: Path) -> list[str]:
    """Names of the folders in ``root``, sorted; hidden ones are left out.

    Raises:
        InputError: ``root`` cannot be read, or a name is not UTF-8.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise _unreadable(error, root) from error
    for name in names:
        if printable(name) != name:
            raise InputError(f"{root}: the folder name {printable(name)} is not UTF-8; rename it.")
    return names


def files(root: Path) -> list[str]:
    """Paths of all files under ``root``, relative to it, in natural order; hidden files and folders are left out.

    Raises:
        InputError: a folder cannot be read: its images would be missing without a word.
    """

    def fail(error: OSError) -> None:
        raise _unreadable(error, root) from error

    found = []
    for folder, inner, names in os.walk(root, onerror=fail):
        inner[:] = [name for name in inner if not name.startswith(".")]
        under = Path(folder).relative_to(root)
        found += [(under / name).as_posix() for name in names if not name.startswith(".")]
    return sorted(found, key=natural)


def _unreadable(error: OSError, root: Path) -> InputError:
    where = printable(str(error.filename or root))
    return InputError(f"{where}: cannot be read ({error.strerror}); make the folder readable, or move it away.")


def _classes(root: Path) -> tuple[str, ...]:
    classes = tuple(folders(root))
    if len(classes) < 2:
        raise InputError(f"{root}: holds {len(classes)} class folders; a classifier needs at least two.")
    return classes


def _scan(root: Path, classes: tuple[str, ...], decoding: Decoding, rejected: list[tuple[str, str]]) -> list[Image]:
    rows = [
        # A class folder may itself be a link: that is how folders of links to a data set are laid out.
        Row(root / name / file, root / name, f"{name}/{file}", label, (root / name / file).as_posix())
        for label, name in enumerate(classes)
        for file in files(root / name)
    ]
    return read_files(rows, decoding, rejected, f"reading {root.name}")


def _source(
    classes: tuple[str, ...],
    train: list[Image],
    selection: list[Image] | None,
    test: list[Image] | None,
    rejected: list[tuple[str, str]],
) -> Source:
    return Source(classes, "a photo of a {class}", (), train, selection, test, rejected)

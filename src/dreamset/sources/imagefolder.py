"""A source in a folder of class folders, or in ``train/``, ``val/`` and ``test/`` that each hold class folders."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dreamset.core.errors import InputError
from dreamset.data.source import Image, Source
from dreamset.sources.reading import Row, printable, read_files

if TYPE_CHECKING:
    from dreamset.core.images import Decoding

_DIGITS = re.compile(r"(\d+)")
_SELECTION: Final = ("val", "valid", "validation", "selection")


def read(root: Path, decoding: Decoding) -> Source:
    """Read a folder; the name of a sub-folder is the class of all files under it.

    ``Source.rejected`` lists the files that cannot be used, with the reason. Hidden files are skipped.

    Raises:
        InputError: the folder is missing or cannot be read, or its parts hold different classes.
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
        raise InputError(f"{root}: holds {', '.join(odd[:5])} beside train/; keep only train/, val/ and test/ in it.")
    classes = _classes(root / "train")
    for part in parts[1:]:
        if classes != _classes(root / part):
            odd = sorted(set(classes) ^ set(_classes(root / part)))
            raise InputError(
                f"{root}: train/ and {part}/ hold different classes ({', '.join(odd[:5])}); make them equal."
            )
    images = {part: _scan(root / part, classes, decoding, rejected) for part in parts}
    return _source(classes, images["train"], images[selection[0]] if selection else None, images.get("test"), rejected)


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key that puts 2.png before 10.png."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in _DIGITS.split(name)]


def folders(root: Path) -> list[str]:
    """The names of the folders in ``root``, sorted, without hidden ones.

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
    """The paths of all files under ``root``, relative to it, in natural order, without hidden files and folders.

    Raises:
        InputError: a folder cannot be read, and its images would be missing silently.
    """

    def fail(error: OSError) -> None:
        raise _unreadable(error, root) from error

    paths = []
    for folder, inner, names in os.walk(root, onerror=fail):
        inner[:] = [name for name in inner if not name.startswith(".")]
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


def _scan(root: Path, classes: tuple[str, ...], decoding: Decoding, rejected: list[tuple[str, str]]) -> list[Image]:
    rows = [
        # A class folder may be a link itself: folders of links to a data set are laid out that way.
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

"""A source in a folder of class folders, or in ``train/``, ``val/`` and ``test/`` that each hold class folders.

``layout`` says which names of folders are parts.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dreamset.core.errors import InputError
from dreamset.core.formats import SUFFIXES, left_behind
from dreamset.data.source import Image, Rejected, Source
from dreamset.sources import layout
from dreamset.sources.reading import Row, printable, read_files

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreamset.core.images import Decoding

_DIGITS = re.compile(r"(\d+)")
# Files that stand beside images and are none: labels and captions, notes of cameras and file managers.
_BESIDE: Final = frozenset(
    (
        *(".txt", ".caption", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".yaml", ".yml", ".md", ".html", ".npz"),
        *(".xmp", ".aae", ".db", ".ini", ".url", ".lnk"),
    )
)
_NAMED: Final = 5  # folders that a sentence lists
_BOXES: Final = ("labels", "annotations")  # what data sets for finding objects call their folder of texts


def read(root: Path, decoding: Decoding) -> Source:
    """Read a folder; the name of a sub-folder is the class of all files under it.

    ``Source.rejected`` lists the files that cannot be used, with the reason. Hidden files are skipped, and so are
    texts beside images and images beside class folders, with a warning. A folder that holds nothing but one folder
    stands for that.

    Raises:
        InputError: the folder is missing or cannot be read, or its parts hold different classes.
    """
    if not root.is_dir():
        what = f"is a link to {root.readlink()}, where there is" if root.is_symlink() else "is"
        raise InputError(
            f"prepare.source: {root} {what} no folder; give imagefolder:PATH of a folder of class folders."
        )
    asked, root = root, _unwrapped(root)
    warnings = [] if root == asked else [f"{root} was read, the only folder in {asked}"]
    _refuse_boxes(root)
    names = folders(root)
    parts = _parts(root, names)
    if len(parts) < 2:
        warnings += _too_high(root, names)
    warnings += _of_no_class(sorted({root, *(root / name for name in parts.values())}))
    for name in parts.values():
        _refuse_boxes(root / name)
    rejected: list[Rejected] = []
    beside: Counter[str] = Counter()
    classes_of = {part: _classes(root / name) for part, name in parts.items()}
    classes = classes_of["train"]
    for part, name in parts.items():
        if classes.keys() != classes_of[part].keys():
            odd = sorted(classes.keys() ^ classes_of[part].keys())
            raise InputError(
                f"{root}: {parts['train']}/ and {name}/ hold different classes ({', '.join(odd[:5])}); make them "
                "equal: an empty folder stands for a class without images there."
            )
    images = {part: _scan(root / name, classes_of[part], decoding, rejected, beside) for part, name in parts.items()}
    return Source(
        classes=tuple(classes),
        template="a photo of {a class}",
        invariances=(),
        train=images["train"],
        selection=images.get("selection"),
        test=images.get("test"),
        rejected=rejected,
        warnings=(*warnings, *_passed_over(beside)),
    )


def class_names(root: Path) -> tuple[str, ...]:
    """Return the names of the classes that ``read`` finds in a folder; no image is looked at.

    Raises:
        InputError: a folder cannot be read, or there are fewer than two classes.
    """
    root = _unwrapped(root)
    return tuple(_classes(root / _parts(root, folders(root))["train"]))


def _parts(root: Path, names: list[str]) -> dict[str, str]:
    """The folders of the parts by part; ``.`` holds all images where there are fewer than two."""
    parts = layout.parts(root, names)
    return parts if len(parts) > 1 else {"train": "."}


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

    Links to folders are not followed and stand among the files, so that whoever opens them says so.

    Raises:
        InputError: a folder cannot be read, and its images would be missing silently.
    """

    def fail(error: OSError) -> None:
        raise _unreadable(error, root) from error

    paths = []
    for folder, inner, names in os.walk(root, onerror=fail):
        inner[:] = [name for name in inner if not left_behind(name)]
        under = Path(folder).relative_to(root)
        links = [name for name in inner if os.path.islink(os.path.join(folder, name))]  # noqa: PTH114, PTH118 (fast)
        paths += [(under / name).as_posix() for name in (*names, *links) if not name.startswith(".")]
    return sorted(paths, key=natural)


def _unwrapped(root: Path) -> Path:
    """The folder of class folders in ``root``, where archives have put one folder around it; else ``root``."""
    inner = root
    while len(names := folders(inner)) == 1 and not _images_in(inner):
        inner /= names[0]
    return inner if len(names) > 1 and not _images_in(inner) else root


def _images_in(folder: Path) -> list[str]:
    """The names of the images that lie in a folder itself.

    Raises:
        InputError: the folder cannot be read.
    """
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except OSError as error:
        raise _unreadable(error, folder) from error
    return [name for name in names if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")]


def _of_no_class(roots: Sequence[Path]) -> list[str]:
    """A warning of images that lie beside class folders and not in one."""
    loose = [root / name for root in roots for name in sorted(_images_in(root))]
    if not loose:
        return []
    return [
        f"images beside the class folders: {len(loose)} (first {printable(loose[0].as_posix())}); they have no class "
        "and are not read, so put each into the folder of its class, or move them away"
    ]


def _too_high(root: Path, names: Sequence[str]) -> list[str]:
    """A warning where the folders that are taken for classes rather look as if they held the classes.

    One is named like a part, or all of them hold nothing but folders, of the same names.
    """
    doubtful = [name for name in names if layout.part_of(name) and not _images_in(root / name)]
    if not doubtful and not any(_images_in(root / name) for name in names):
        doubtful = [*names]
    shared = sorted(set.intersection(*(set(folders(root / name)) for name in doubtful))) if doubtful else []
    if len(shared) < 2:
        return []
    return [
        f"{_some(doubtful)} counted as {'a class' if len(doubtful) == 1 else 'classes'} of {root}, with no images but "
        f"in folders ({_some(shared)}); if these are the classes, put them into {root} itself or into train/, val/ and "
        "test/ there, and nothing beside"
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (" ..." if len(names) > _NAMED else "")


def _refuse_boxes(root: Path) -> None:
    """Refuse the layouts of data sets for finding objects, whose folders are no classes.

    Raises:
        InputError: a folder beside the images holds the texts of their boxes.
    """
    for name in folders(root):
        inside = files(root / name) if name.casefold() in _BOXES else []
        if inside and all(Path(file).suffix.lower() in _BESIDE for file in inside):
            raise InputError(
                f"{root}: {name}/ holds no images but texts, as in data sets for finding objects (YOLO, COCO, "
                "VOC); cut the objects out into one folder per class, or list images and labels for csv:FILE."
            )


def _unreadable(error: OSError, root: Path) -> InputError:
    where = printable(str(error.filename or root))
    return InputError(f"{where}: cannot be read ({error.strerror}); make the folder readable, or move it away.")


def _classes(root: Path) -> dict[str, str]:
    """The folder of each class, by the class's name in composed Unicode: file systems differ in how they write é."""
    names = folders(root)
    classes = dict(sorted((unicodedata.normalize("NFC", name), name) for name in names))
    if len(classes) < len(names):
        twice = next(
            name for name, count in Counter(unicodedata.normalize("NFC", n) for n in names).items() if count > 1
        )
        raise InputError(f"{root}: holds two folders {twice}, written in two forms of Unicode; put them together.")
    if len(classes) < 2:
        raise InputError(
            f"{root}: holds {len(classes)} class folders; a classifier needs at least two: make one folder per class, "
            "or list images and labels for csv:FILE."
        )
    return classes


def _scan(
    root: Path, classes: dict[str, str], decoding: Decoding, rejected: list[Rejected], beside: Counter[str]
) -> list[Image]:
    rows = []
    for label, name in enumerate(classes.values()):
        for file in files(root / name):
            suffix = Path(file).suffix.lower()
            if suffix in _BESIDE:
                beside[suffix] += 1
                continue
            # A class folder may be a link itself: folders of links to a data set are laid out that way.
            path = root / name / file
            rows.append(Row(path, root / name, f"{name}/{file}", label, path.as_posix()))
    return read_files(rows, decoding, rejected, f"reading {root.name}")


def _passed_over(beside: Counter[str]) -> list[str]:
    """A warning of the files that are no images."""
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(beside.items()))
    return [f"files that are no images were passed over: {kinds}"] if beside else []

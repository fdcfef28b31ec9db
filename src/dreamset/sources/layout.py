"""What the names of folders and files say: parts, and copies of one photograph."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from dreamset.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PARTS: Final = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "selection"), "selection"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Words that are no part by themselves here, for some mean by them selection and others test.
_ALIKE: Final = frozenset({*PARTS, "eval", "evaluation", "heldout", "holdout", "trn", "tst"})
_FILLERS: Final = frozenset({"data", "dataset", "folder", "images", "img", "imgs", "part", "set", "split"})
_WORDS: Final = re.compile(r"[^\W\d_]+|\d+")
_FUSED: Final = re.compile(r"(train|training|val|valid|validation|dev|test|testing)(set|data)")
_NAMED: Final = 5  # folders that an error message lists

# Exports of augmented copies. Roboflow: NAME_jpg.rf.HASH.jpg. Augmentor: CLASS_original_NAME.jpg_UUID.jpg.
_COPY: Final = re.compile(
    r"(?P<of>.*[^/])(?:\.rf\.[0-9A-Za-z]{16,64}|_[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.[^./]+"
)
COPIES: Final = "copies of "  # begins the name of a group that names of files tell


def parts(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the folders of ``train``, ``selection`` and ``test``, or nothing where the folders are classes.

    Args:
        root: names the place in a sentence.
        names: of the folders in it, of any case.

    Raises:
        InputError: some of them are parts, and others are not or are the same part once more.
    """
    names = sorted(names)
    likely = [name for name in names if part_of(name) or _looks_like_a_part(name)]
    if len(likely) < 2:
        return {}
    found: dict[str, str] = {}
    # The usual name first: valid beside val is the odd one.
    for name in sorted(names, key=lambda name: [*PARTS].index(name) if name in PARTS else len(PARTS)):
        if part := part_of(name):
            found.setdefault(part, name)
    odd = [name for name in names if name not in found.values()]
    if "train" not in found:
        raise InputError(
            f"{root}: {', '.join(likely[:_NAMED])} look like parts, and none of them is train/; name the folder of "
            "training images so, or, if these are classes, list the images for csv:FILE."
        )
    if odd:
        raise InputError(
            f"{root}: holds {', '.join(odd[:_NAMED])} beside {found['train']}/; keep only train/, val/ and test/ in "
            "it, under such names, or, if these are classes, list the images for csv:FILE."
        )
    return {part: found[part] for part in dict.fromkeys(PARTS.values()) if part in found}


def _words(name: str) -> list[str]:
    words = _WORDS.findall(_FUSED.sub(r"\1 \2", name.casefold()))
    return [word for word in words if word not in _FILLERS]


def part_of(name: str) -> str | None:
    """Return what a folder of this name is for; None where the name says nothing of that."""
    words = _words(name)
    return PARTS.get(words[0]) if len(words) == 1 else None


def _looks_like_a_part(name: str) -> bool:
    """Return whether a name is that of a part with numbers or single letters, such as test1 or train_2017."""
    words = _words(name)
    return sum(word in _ALIKE for word in words) == 1 and all(
        word in _ALIKE or word.isdecimal() or len(word) == 1 for word in words
    )


def copies_of(name: str) -> str | None:
    """Return the group of a file that its name calls one of several copies of a photograph; None of any other.

    Args:
        name: the file with its folders, for two folders may hold photographs of one name.
    """
    match = _COPY.fullmatch(name)
    return f"{COPIES}{match['of']}" if match else None

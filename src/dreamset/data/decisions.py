"""A person's decisions about synthetic pictures: ``data/review/<recipe>.json``, which the user commits.

A decision belongs to a class name, an index and the sha256 of the image file. So it never applies to another picture
that is drawn in the same place. Decisions about pictures that are gone are kept: the same parameters bring them back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from dreamset.data.synthetic import SyntheticImage

Decision = Literal["kept", "rejected"]
Picture = tuple[str, int, str]  # class name, index, sha256 of the file

_DECISIONS: Final[dict[str, Decision]] = {"kept": "kept", "rejected": "rejected"}
_SHA256: Final = 64  # hex digits


@dataclass(frozen=True)
class Looked:
    """Counts over drawn images: how many a person has looked at, and how many of these are rejected."""

    looked_at: int
    rejected: int


def picture(image: SyntheticImage) -> Picture:
    """Return the key that a decision about an image is filed under."""
    return image.class_name, image.index, image.sha256


def read(path: Path) -> dict[Picture, Decision]:
    """Return the decisions of a file; none where there is no file.

    Raises:
        InputError: the file is not one that ``write`` writes.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["decisions"]
        return {_picture(row): _decision(row) for row in rows}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: is not a file of `dreamset review` ({error}); mend it, or put the committed one back."
        ) from error


def write(path: Path, recipe: str, decisions: Mapping[Picture, Decision]) -> None:
    """Write the decisions, sorted and one a line, so that a commit shows what changed."""
    rows = [
        json.dumps(
            {"class_name": name, "index": index, "sha256": sha256, "decision": decisions[name, index, sha256]},
            ensure_ascii=False,
        )
        for name, index, sha256 in sorted(decisions)
    ]
    listed = "[\n  " + ",\n  ".join(rows) + "\n ]" if rows else "[]"
    atomic_write(path, f'{{\n "recipe": {json.dumps(recipe)},\n "decisions": {listed}\n}}\n')


def count(decisions: Mapping[Picture, Decision], images: Iterable[SyntheticImage]) -> Looked:
    """Return how many of ``images`` a person has looked at, and how many of these are rejected."""
    decided = [decisions[picture(image)] for image in images if picture(image) in decisions]
    return Looked(len(decided), decided.count("rejected"))


def checked(images: int, looked: Looked) -> str:
    """Say how many of a dataset's ``images`` a person has looked at and rejected."""
    if not looked.looked_at:
        return "nobody has checked them"
    unseen = images - (looked.looked_at - looked.rejected)
    rest = f"nobody has looked at {unseen} of the {images}" if unseen else f"all {images} have been looked at"
    return f"{looked.rejected} of {looked.looked_at} looked at rejected by a person and replaced; {rest}"


def reach(rejected: Iterable[int], wanted: int) -> int:
    """Return how many images of a class, from index 0 on, hold ``wanted`` that are not rejected.

    Args:
        rejected: indices of the rejected images of the class.
        wanted: number of images.
    """
    for index in sorted(rejected):
        if index >= wanted:
            break
        wanted += 1
    return wanted


def stale(decisions: Iterable[Picture], images: Iterable[SyntheticImage], classes: Iterable[str]) -> int:
    """Return how many decisions are about a picture that another one has replaced, or whose class is gone.

    Args:
        decisions: the pictures that were decided about.
        images: the images that are drawn now.
        classes: names of the classes that there are now.
    """
    now = {(image.class_name, image.index): image.sha256 for image in images}
    known = set(classes)
    return sum(name not in known or now.get((name, index), sha256) != sha256 for name, index, sha256 in decisions)


def _picture(row: dict[str, object]) -> Picture:
    name, index, sha256 = row["class_name"], row["index"], row["sha256"]
    if not isinstance(name, str) or type(index) is not int or not isinstance(sha256, str) or len(sha256) != _SHA256:
        raise ValueError(f"no picture in {row}")
    return name, index, sha256


def _decision(row: dict[str, object]) -> Decision:
    try:
        return _DECISIONS[str(row["decision"])]
    except KeyError:
        raise ValueError(f"neither kept nor rejected in {row}") from None

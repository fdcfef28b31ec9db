"""The split files of CoOp, ``split_zhou_*.json``, which the few-shot literature shares.

They hold ``{"train": [[path, label, class name], ...], "val": [...], "test": [...]}``. The paths are relative to a
folder of images beside the file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.errors import InputError
from dreamset.data.source import Rejected, Source
from dreamset.sources.reading import Row, inside, printable, read_files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dreamset.core.images import Decoding

Part = str

PARTS: Final = ("train", "val", "test")
_PICKLED: Final = (".pkl", ".pickle", ".p")


@dataclass(frozen=True)
class Listing:
    """A split file: the class names in label order, and the (path, label) pairs of each part."""

    classes: tuple[str, ...]
    parts: dict[Part, list[tuple[str, int]]]


def read(file: Path, decoding: Decoding, folders: Sequence[str]) -> Source:
    """Read a split file: shots come from train, selection images from val, test images from test.

    The images are searched in ``images/`` beside the file, then in ``folders``, then directly beside the file.

    Raises:
        InputError: a row is wrong; the sentence names the file, the row and the fault.
    """
    listing = parse(load(file), file)
    root = image_root(file.parent, listing, ("images", *folders, "."))
    rejected: list[Rejected] = []
    images = {part: read_files(rows(root, listed), decoding, rejected, part) for part, listed in listing.parts.items()}
    return Source(
        classes=listing.classes,
        template="a photo of a {class}",
        invariances=(),
        train=images["train"],
        selection=images["val"] if listing.parts["val"] else None,
        test=images["test"],
        rejected=rejected,
        published=True,
    )


def load(file: Path) -> Any:
    """Read a JSON file from outside the project.

    Raises:
        InputError: the file cannot be read, or is not JSON; a pickle is refused without being opened.
    """
    if file.suffix in _PICKLED:
        name = file.with_suffix(".json").name
        code = (
            "import json, pickle; "
            f"parts = pickle.load(open('{file.name}', 'rb')); "
            "row = lambda i: dict(impath=i.impath, label=i.label, classname=i.classname); "
            f"json.dump({{part: [row(i) for i in parts[part]] for part in parts}}, open('{name}', 'w'))"
        )
        raise InputError(
            f"{file}: is a pickle, which can run any code when it is opened, so it is not opened; if you trust it, "
            f'convert it where CoOp\'s own packages are, with `python -c "{code}"`, and give {name}.'
        )
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); give the path of the file.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: is not JSON in UTF-8 ({error}); get the file again.") from error


def parse(raw: object, file: Path) -> Listing:
    """Check the content of a split file row by row and return it as a listing.

    Raises:
        InputError: a part is missing, a row is malformed, or labels and class names do not agree.
    """
    if not isinstance(raw, dict) or not all(isinstance(raw.get(part, []), list) for part in PARTS):
        raise InputError(
            f"{file}: expected lists train, val and test of [path, label, class name]; get the file again."
        )
    for part in ("train", "test"):
        if not raw.get(part):
            raise InputError(f"{file}: lists no images in {part}; get the file again.")
    names: dict[int, str] = {}
    parts: dict[Part, list[tuple[str, int]]] = {}
    for part in PARTS:
        parts[part] = []
        for index, row in enumerate(raw.get(part, [])):
            where = f"{file}, {part}[{index}]"
            match row:
                case [str(path), int(label), str(name)] if not isinstance(label, bool) and label >= 0 and name.strip():
                    if names.setdefault(label, name) != name:
                        raise InputError(f"{where}: label {label} is {names[label]!r} and {name!r}; give it one name.")
                    if printable(name) != name:
                        raise InputError(f"{where}: the class name {printable(name)} is not UTF-8; correct it.")
                    parts[part].append((inside(path, where, file.parent), label))
                case _:
                    raise InputError(f"{where}: expected [path, label, class name], got {json.dumps(row)[:80]}.")
    if sorted(names) != list(range(len(names))):
        gap = next(label for label in range(len(names)) if label not in names)
        raise InputError(f"{file}: labels go up to {max(names)}, but {gap} is unused; number the classes 0, 1, 2 ...")
    return Listing(tuple(names[label] for label in range(len(names))), parts)


def image_root(folder: Path, listing: Listing, candidates: Sequence[str]) -> Path:
    """The first candidate folder that holds the first listed image, or else the first candidate that exists."""
    first = listing.parts["train"][0][0]
    for name in candidates:
        if (folder / name / first).is_file():
            return folder / name
    return next(folder / name for name in candidates if (folder / name).is_dir())


def rows(root: Path, listed: Sequence[tuple[str, int]]) -> list[Row]:
    """The files of a part to read; every image is a separate group."""
    return [Row(root / path, root, path, label, path) for path, label in listed]

"""Published shots: the index files ``shot_K-seed_S.json`` of the few-shot literature.

Two layouts are known: ``{"train": {"data": [row, ...], "indices": [...]}, "val": {...}}`` and ``{"train": [row, ...],
"val": [...]}``. A row is ``{"impath": ..., "label": ..., "classname": ...}`` or ``[path, label, class name]``.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from dreamset.core.errors import InputError
from dreamset.sources.coop import load

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from dreamset.data.source import Image, Source

ByLabel = dict[int, list["Image"]]


def read(name: str, source: Source, shots: int, seed: int, copies: Sequence[Image] = ()) -> tuple[ByLabel, ByLabel]:
    """Read the shots and selection images of an index file, by label and in the order of the file.

    Args:
        name: ``prepare.few_shot``: a path, in which ``{shots}`` and ``{seed}`` stand for their values.
        source: the source of the images; the ends of the paths in the file identify them.
        shots: number of shots of each class, which the file must hold.
        seed: the seed of the run.
        copies: copies of test images; the file may name them, but they are left out.

    Raises:
        InputError: the file holds another number of shots, or an image that is not in the source.
    """
    file = file_of(name, shots, seed)
    raw = load(file)
    if not isinstance(raw, dict) or "train" not in raw:
        raise InputError(f"{file}: expected an object with train and val; give prepare.few_shot a file of shots.")
    train = _images(file, raw, "train", source, [*source.train, *copies])
    val = _images(file, raw, "val", source, [*(source.selection or source.train), *copies])
    for label, class_name in enumerate(source.classes):
        count = sum(image.label == label for image in train)
        if count != shots:
            raise InputError(
                f"{file}: holds {count} images of class {class_name!r}, but shots: {shots}; set shots to the file's "
                "number, or give the file for that number."
            )
    left_out = {image.name for image in copies}
    return _by_label(train, left_out), _by_label(val, left_out)


def file_of(name: str, shots: object, seed: int) -> Path:
    """The path that ``prepare.few_shot`` gives for a number of shots and a seed."""
    return Path(name.replace("{shots}", str(shots)).replace("{seed}", str(seed)))


def _images(file: Path, raw: dict[str, Any], part: str, source: Source, pool: list[Image]) -> list[Image]:
    rows = raw.get(part) or []
    rows = rows.get("data") if isinstance(rows, dict) else rows
    if not isinstance(rows, list):
        raise InputError(
            f"{file}, {part}: expected a list of rows, or an object whose data is one; get the file again."
        )
    by_name = {image.name: image for image in pool}
    test = {image.name for image in source.test or []}
    labels: dict[int, int] = {}  # by the file's label, the source's
    images: dict[str, Image] = {}
    for index, row in enumerate(rows):
        where = f"{file}, {part}[{index}]"
        match row:
            case {"impath": str(path), "label": int(label)} | [str(path), int(label), *_]:
                pass
            case _:
                raise InputError(f"{where}: expected a row with impath and label, got {str(row)[:80]}.")
        name = next((end for end in _ends(path) if end in by_name), None)
        if name is None:
            what = "a test image" if any(end in test for end in _ends(path)) else f"no usable {part} image"
            raise InputError(f"{where}: {path[:200]} is {what} of the source; give the file that belongs to it.")
        image = by_name[name]
        if labels.setdefault(label, image.label) != image.label or len(set(labels.values())) < len(labels):
            raise InputError(
                f"{where}: {path[:200]} has label {label}, unlike its class {source.classes[image.label]!r}; give the "
                "file that belongs to the source."
            )
        if name in images:
            raise InputError(f"{where}: {path[:200]} is listed twice; remove one.")
        images[name] = image
    return list(images.values())


def _ends(path: str) -> Iterator[str]:
    """The path and its ends, the longest first: an index file may hold the absolute paths of another machine."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    return ("/".join(parts[start:]) for start in range(len(parts)))


def _by_label(images: Iterable[Image], left_out: Collection[str]) -> ByLabel:
    by_label: ByLabel = defaultdict(list)
    for image in images:
        if image.name not in left_out:
            by_label[image.label].append(image)
    return by_label

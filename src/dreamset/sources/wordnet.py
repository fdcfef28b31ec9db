"""Data sets whose folders are named by WordNet ids, beside ImageNet: Tiny-ImageNet and ImageNet-100.

Classes are ordered by their ids, as folders are. No label depends on the order of a list: names stand beside ids.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Final

from dreamset.core.errors import InputError
from dreamset.sources.coop import Listing
from dreamset.sources.imagefolder import files, folders
from dreamset.sources.reading import inside

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TINY: Final = "tiny-imagenet-200"  # the folder in the archive


def tiny_imagenet(name: str, root: Path, home: str) -> tuple[Path, Listing]:
    """Read the lists of Tiny-ImageNet as its archive has them; its validation images are the test images.

    Args:
        name: of the data set, for sentences.
        root: the unpacked archive, or the folder that holds it.
        home: the address that it comes from.

    Returns:
        The folder of the images, and their labels. The archive's own test images have none and are not read.

    Raises:
        InputError: a list is missing or damaged.
    """
    folder = root / TINY if (root / TINY).is_dir() else root
    wnids = sorted(_lines(folder / "wnids.txt", name, home))
    words = dict(line.split("\t", 1) for line in _lines(folder / "words.txt", name, home) if "\t" in line)
    names = _named(wnids, words, folder / "words.txt")
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    parts: dict[str, list[tuple[str, int]]] = {"train": [], "val": [], "test": []}
    for wnid, label in labels.items():
        here = folder / "train" / wnid / "images"
        if not here.is_dir():
            raise InputError(f"{here}: is missing; unpack {name} ({home}) again.")
        parts["train"] += [(f"train/{wnid}/images/{file}", label) for file in files(here)]
    listing = folder / "val/val_annotations.txt"
    for number, line in enumerate(_lines(listing, name, home), 1):
        # The image, its class, and the corners of a box.
        image, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in labels:
            raise InputError(f"{listing}, line {number}: {wnid!r} is not in wnids.txt; unpack the archive again.")
        parts["test"].append((f"val/images/{inside(image, f'{listing}, line {number}')}", labels[wnid]))
    return folder, Listing(names, parts)


def imagenet100(name: str, root: Path, home: str) -> tuple[Path, Listing]:
    """Read a hundred classes of ImageNet; their validation images are the test images.

    Training images lie in ``train/``, or in ``train.X1/``, ``train.X2/`` ..., and the others in ``val/`` or ``val.X/``,
    in folders named by WordNet ids. ``Labels.json`` has the names by id, or ``classnames.txt`` has an id and a name in
    each line; classes without a folder are passed over. The arguments are those of ``tiny_imagenet``.

    Raises:
        InputError: a list or a folder is missing or damaged.
    """
    parts: dict[str, list[tuple[str, int]]] = {"train": [], "val": [], "test": []}
    places = {
        part: [inner for inner in folders(root) if inner == stem or inner.startswith(f"{stem}.X")]
        for part, stem in (("train", "train"), ("test", "val"))
    }
    for part, stem in (("train", "train"), ("test", "val")):
        if not places[part]:
            raise InputError(f"{root}: holds neither {stem}/ nor {stem}.X...; put the images of {name} there ({home}).")
    wnids = sorted({wnid for inner in places["train"] for wnid in folders(root / inner)})
    names = _named(wnids, _words(root, name, home), root)
    for part, inners in places.items():
        for label, wnid in enumerate(wnids):
            here = [inner for inner in inners if (root / inner / wnid).is_dir()]
            if not here:
                raise InputError(f"{root / inners[0]}: holds no folder {wnid}, which train has; put it there ({home}).")
            parts[part] += [(f"{inner}/{wnid}/{file}", label) for inner in here for file in files(root / inner / wnid)]
    return root, Listing(names, parts)


def _words(root: Path, name: str, home: str) -> dict[str, str]:
    """Return the words of each WordNet id that a list beside the images gives."""
    file = root / "Labels.json"
    if not file.is_file():
        lines = _lines(root / "classnames.txt", name, home)
        return {wnid: words for wnid, _, words in (line.partition(" ") for line in lines) if words}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {str(wnid): str(words) for wnid, words in found.items()}
    except (ValueError, AttributeError) as error:
        raise InputError(f"{file}: is no JSON of names by WordNet id ({error}); get it again ({home}).") from error


def _named(wnids: list[str], words: Mapping[str, str], where: Path) -> tuple[str, ...]:
    """Return the name of each class: the first of its synonyms, or all of them where another class has that one too.

    Raises:
        InputError: an id has no words.
    """
    missing = [wnid for wnid in wnids if not words.get(wnid, "").strip()]
    if missing:
        raise InputError(f"{where}: has no name for {missing[0]} and {len(missing) - 1} others; get the list again.")
    first = {wnid: words[wnid].partition(",")[0].strip() for wnid in wnids}
    alike = Counter(name.casefold() for name in first.values())
    return tuple(first[wnid] if alike[first[wnid].casefold()] == 1 else words[wnid].strip() for wnid in wnids)


def _lines(file: Path, name: str, home: str) -> list[str]:
    try:
        return [line.rstrip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); get it with {name} ({home}).") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: is not UTF-8 text; get it again ({home}).") from error

"""What no two splits may have in common: groups, pictures, and pictures that are nearly the same.

Near-duplicates of which an earlier part and a later one hold one each are found in two ways, of which one is enough:

- by a perceptual hash and the correlation of thumbnails (``dreamset.metrics.near_duplicates``);
- by features: the image lies nearer than ``RATIO`` times as far from one of the earlier part, in the judge's
  features, as from the nearest image of its own part and another group. Lowe (2004, section 7.1) holds the nearest
  against the second nearest alike; a ratio needs no scale, so it serves any network.

``RATIO`` was measured with the bundled judge, which knows glyphs and no photographs. Of the 2,465 test photographs of
Caltech-101, 12 lie below it beside the 4,128 training ones, and are the same thing in the same pose to the eye (so are
those up to 0.45; unrelated pairs begin at 0.48); of 640 test digits beside 915 by other writers none does, and the
nearest lies at 0.24. Of 300 of Caltech's training photographs, changed and put among the test ones, the two ways
together find 299 saved as JPEG at quality 30, 300 halved, 235 made paler, 22 turned by 3 degrees, 18 cropped by 2.5 %
at each side and 2 mirrored; the hash alone 299, 299, 233, 1, 4 and 0. A judge that knows photographs should find more.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.errors import InputError
from dreamset.core.images import decode, read_rgb, resize_crop, thumbnail
from dreamset.core.progress import bar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image as Picture

    from dreamset import sources
    from dreamset.metrics.features import Judge

    _Found = Iterator[tuple[tuple[str, int, str, int], dict[str, Any]]]

RATIO: Final = 0.2
_BLOCK: Final = 256  # images in memory at once, as the judge sees them


def pass_over(source: sources.Source) -> tuple[sources.Source, list[tuple[sources.Image, str]]]:
    """A published split without the training and selection images whose pixels stand in a later part, and their list.

    The literature's splits hold such copies and cannot be mended; other sources come back as they are, to be refused
    by ``check_overlap``.
    """
    if not source.published:
        return source, []
    seen: dict[str, str] = {}
    copies: list[tuple[sources.Image, str]] = []
    kept: dict[str, list[sources.Image]] = {}
    for part, images in (("test", source.test), ("selection", source.selection), ("training", source.train)):
        others = dict(seen)
        kept[part] = []
        for image in images or []:
            if image.pixels_sha256 in others:
                copies.append((image, f"passed over: the same pixels as {others[image.pixels_sha256]}"))
            else:
                kept[part].append(image)
                seen.setdefault(image.pixels_sha256, f"{part} image {image.name}")
    selection = None if source.selection is None else kept["selection"]
    return replace(source, train=kept["training"], selection=selection), copies


def check_overlap(parts: dict[str, list[sources.Image]]) -> None:
    """Fail when the same picture, or the same group, stands in two parts.

    Raises:
        InputError: naming both images.
    """
    pictures: dict[str, tuple[str, str]] = {}
    groups: dict[str, tuple[str, str]] = {}
    for part, images in parts.items():
        for image in images:
            for seen, key, what in ((pictures, image.pixels_sha256, "picture"), (groups, image.group, "group")):
                other = seen.setdefault(key, (part, image.name))
                if other[0] != part:
                    raise InputError(
                        f"{other[1]} ({other[0]}) and {image.name} ({part}) are the same {what}; "
                        "keep it in one split only."
                    )


def near_pairs(parts: dict[str, list[sources.Image]], judge: Path) -> list[dict[str, Any]]:
    """Near-duplicates of which an earlier part and a later one hold one each: those by hash first, the nearest first.

    Args:
        parts: images by the part's name, in order.
        judge: folder of the network whose features are compared.

    Returns:
        For each pair the later ``part`` and its ``image``, the part and image that it is ``like``, and by what: by hash
        ``hamming`` (bits of 64 in which their hashes differ) and ``correlation`` (of their thumbnails), by features
        ``ratio`` (of their distance to that from the image to its own part); None where the way did not find it.
    """
    found: dict[tuple[str, int, str, int], dict[str, Any]] = {}
    for of, facts in itertools.chain(_by_hash(parts), _by_features(parts, judge)):
        later, second, earlier, first = of
        pair = {"part": later, "image": parts[later][second].name}
        pair |= {"like_part": earlier, "like": parts[earlier][first].name}
        found.setdefault(of, pair | dict.fromkeys(("hamming", "correlation", "ratio"))).update(facts)
    by_hash = [pair for pair in found.values() if pair["hamming"] is not None]
    alone = [pair for pair in found.values() if pair["hamming"] is None]
    by_hash.sort(key=lambda pair: (-pair["correlation"], pair["image"], pair["like"]))
    return by_hash + sorted(alone, key=lambda pair: (pair["ratio"], pair["image"]))


def _by_hash(parts: dict[str, list[sources.Image]]) -> _Found:
    """(later part, index, earlier part, index) of each pair, and what the hash and the thumbnails say."""
    from dreamset.metrics.near_duplicates import Thumbnails, across

    made = {part: Thumbnails([_thumbnail(image) for image in images]) for part, images in parts.items()}
    for earlier, later in itertools.combinations(parts, 2):
        for pair in across(made[earlier], made[later]):
            facts = {"hamming": pair.hamming, "correlation": round(pair.correlation, 4)}
            yield (later, pair.second, earlier, pair.first), facts


def _by_features(parts: dict[str, list[sources.Image]], judge: Path) -> _Found:
    """The same of the judge's features: of each image of a later part, the nearest one of each earlier part."""
    from dreamset.metrics.duplicates import apart, nearest
    from dreamset.metrics.features import Judge

    network = Judge(judge)
    features = {part: _features(images, network, part) for part, images in parts.items() if len(images) > 1}
    for earlier, later in itertools.combinations(features, 2):
        own = apart(features[later], [image.group for image in parts[later]])
        index, distance = nearest(features[later], features[earlier])
        for row in (distance < RATIO * own).nonzero()[0].tolist():
            yield (later, row, earlier, int(index[row])), {"ratio": round(float(distance[row] / own[row]), 4)}


def _features(images: Sequence[sources.Image], judge: Judge, part: str) -> NDArray[np.float32]:
    """(images, width)."""
    import numpy as np

    blocks = []
    with bar(total=len(images), what=f"near-duplicates, {part}", unit="image") as progress:
        for start in range(0, len(images), _BLOCK):
            block = images[start : start + _BLOCK]
            blocks.append(judge.features(np.stack([resize_crop(_picture(image), judge.size) for image in block])))
            progress.update(len(block))
    return np.concatenate(blocks)


def _picture(image: sources.Image) -> Picture:
    """RGB, as the source means it."""
    if image.path is not None and image.decoding is not None:
        return decode(image.path.read_bytes(), image.decoding).image
    if image.path is not None:
        return read_rgb(image.path)
    from PIL import Image

    assert image.pixels is not None
    return Image.fromarray(image.pixels).convert("RGB")


def _thumbnail(image: sources.Image) -> bytes:
    return image.thumbnail if image.thumbnail is not None else thumbnail(_picture(image))


def clusters(images: Sequence[sources.Image]) -> dict[str, str]:
    """For each image's name, the name of one image that stands for all that belong together: by group or by look.

    By look within a class alone: the same picture in two classes is a wrong label, which ``check_overlap`` has to find.
    """
    from dreamset.metrics.near_duplicates import Thumbnails, within

    parent = {image.name: image.name for image in images}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    first: dict[tuple[str, ...], str] = {}
    for image in images:
        for key in (("group", image.group), ("pixels", str(image.label), image.pixels_sha256)):
            parent[root(image.name)] = root(first.setdefault(key, image.name))
    classes: dict[int, list[sources.Image]] = {}
    for image in images:
        classes.setdefault(image.label, []).append(image)
    for own in classes.values():
        for pair in within(Thumbnails([_thumbnail(image) for image in own])):
            parent[root(own[pair.second].name)] = root(own[pair.first].name)
    return {name: root(name) for name in parent}

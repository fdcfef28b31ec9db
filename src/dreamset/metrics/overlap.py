"""Overlap between splits: groups, pictures, and near-duplicate pictures that two splits have in common.

A near-duplicate is an image of a later part that resembles an image of an earlier part. Either of two criteria is
enough:

- a perceptual hash and the correlation of thumbnails (``dreamset.metrics.perceptual_hash``);
- the judge's features: the distance to an image of the earlier part is less than ``RATIO`` times the distance to the
  nearest image of the same part and another group. Lowe (2004, section 7.1) compares the nearest with the second
  nearest in the same way. A ratio needs no scale, so it serves any network.

``RATIO`` was measured with the bundled judge, which knows glyphs and no photographs. Of the 2,465 test photographs of
Caltech-101, 12 have a ratio below it to the 4,128 training ones. They show the same thing in the same pose, and so do
those up to 0.45; unrelated pairs begin at 0.48. Of 640 test digits, none has such a ratio to the 915 digits of other
writers; the lowest is 0.24.

300 of Caltech's training photographs were changed and put among the test ones. Both criteria together detect 299 saved
as JPEG at quality 30, 300 halved, 235 made paler, 22 turned by 3 degrees, 18 cropped by 2.5 % at each side and 2
mirrored; the hash alone detects 299, 299, 233, 1, 4 and 0. A judge that knows photographs should detect more.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.errors import InputError
from dreamset.core.groups import representatives
from dreamset.core.images import decode, read_rgb, thumbnail
from dreamset.core.progress import bar
from dreamset.core.resizing import resize_crop

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image as Picture

    from dreamset.data.source import Image, Source
    from dreamset.metrics.features import Judge
    from dreamset.weights.pretrained import Pretrained

    # (later part, index, earlier part, index) of a pair, and its measures.
    _Pairs = Iterator[tuple[tuple[str, int, str, int], dict[str, Any]]]

RATIO: Final = 0.2
_BLOCK: Final = 256  # images in memory at once, at the judge's size


def pass_over(source: Source) -> tuple[Source, list[tuple[Image, str]]]:
    """Remove from a published split the training and selection images whose pixels are also in a later part.

    The literature's splits hold such copies and cannot be corrected. Other sources are returned unchanged, and
    ``check_overlap`` refuses them.

    Returns:
        The source without the copies, and the copies, each with the reason.
    """
    if not source.published:
        return source, []
    seen: dict[str, str] = {}
    copies: list[tuple[Image, str]] = []
    kept: dict[str, list[Image]] = {}
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


def check_overlap(parts: dict[str, list[Image]]) -> None:
    """Fail where two parts hold the same picture or the same group.

    Raises:
        InputError: two parts overlap; the sentence names both images.
    """
    pictures: dict[str, tuple[str, str]] = {}
    groups: dict[str, tuple[str, str]] = {}
    for part, images in parts.items():
        for image in images:
            for first, key, what in ((pictures, image.pixels_sha256, "picture"), (groups, image.group, "group")):
                other = first.setdefault(key, (part, image.name))
                if other[0] != part:
                    named = "" if what == "picture" else f" ({key})"
                    raise InputError(
                        f"{other[1]} ({other[0]}) and {image.name} ({part}) are the same {what}{named}; "
                        "keep it in one split only."
                    )


def contradictions(images: Iterable[Image]) -> list[tuple[Image, Image]]:
    """Return the images whose pixels are also those of an image of another class, each after the first such image."""
    first: dict[str, Image] = {}
    pairs = ((first.setdefault(image.pixels_sha256, image), image) for image in images)
    return [(one, other) for one, other in pairs if one.label != other.label]


def smaller_copies(images: Sequence[Image]) -> list[tuple[Image, Image]]:
    """Return the image files that are smaller copies of others of their class, by look, each before a larger one."""
    from dreamset.metrics.perceptual_hash import Thumbnails, within

    found: dict[str, tuple[Image, Image]] = {}
    for members in _classes([image for image in images if image.size is not None]):
        if len({image.size for image in members}) < 2:
            continue
        for pair in within(Thumbnails([_thumbnail(image) for image in members])):
            small, large = sorted((members[pair.first], members[pair.second]), key=_area)
            if _area(small) < _area(large):
                found.setdefault(small.name, (small, large))
    return list(found.values())


def _area(image: Image) -> int:
    assert image.size is not None
    return image.size[0] * image.size[1]


def _classes(images: Iterable[Image]) -> Iterable[list[Image]]:
    """Return the images of each class."""
    classes: dict[int, list[Image]] = {}
    for image in images:
        classes.setdefault(image.label, []).append(image)
    return classes.values()


def near_pairs(parts: dict[str, list[Image]], judge: Path | Pretrained) -> list[dict[str, Any]]:
    """The near-duplicates between an earlier and a later part: pairs by hash first, the nearest first.

    Args:
        parts: images by the part's name, in order.
        judge: the network whose features are compared: what ``weights.judging.find`` returns.

    Returns:
        For each pair the later ``part`` and its ``image``, and ``like_part`` and ``like``, the part and image that it
        resembles. By hash: ``hamming`` (of 64 bits, the number that differ) and ``correlation`` (of the thumbnails). By
        features: ``ratio`` (their distance over the image's distance to its part). None where the criterion fails.
    """
    pairs: dict[tuple[str, int, str, int], dict[str, Any]] = {}
    for indices, measures in itertools.chain(_by_hash(parts), _by_features(parts, judge)):
        later, second, earlier, first = indices
        pair = {"part": later, "image": parts[later][second].name}
        pair |= {"like_part": earlier, "like": parts[earlier][first].name}
        pairs.setdefault(indices, pair | dict.fromkeys(("hamming", "correlation", "ratio"))).update(measures)
    by_hash = [pair for pair in pairs.values() if pair["hamming"] is not None]
    by_features = [pair for pair in pairs.values() if pair["hamming"] is None]
    by_hash.sort(key=lambda pair: (-pair["correlation"], pair["image"], pair["like"]))
    return by_hash + sorted(by_features, key=lambda pair: (pair["ratio"], pair["image"]))


def _by_hash(parts: dict[str, list[Image]]) -> _Pairs:
    """Yield the pairs that agree in hash and thumbnail, with both measures."""
    from dreamset.metrics.perceptual_hash import Thumbnails, across

    thumbnails = {part: Thumbnails([_thumbnail(image) for image in images]) for part, images in parts.items()}
    for earlier, later in itertools.combinations(parts, 2):
        for pair in across(thumbnails[earlier], thumbnails[later]):
            measures = {"hamming": pair.hamming, "correlation": round(pair.correlation, 4)}
            yield (later, pair.second, earlier, pair.first), measures


def _by_features(parts: dict[str, list[Image]], judge: Path | Pretrained) -> _Pairs:
    """Yield the pairs of an image in a later part and its nearest in an earlier part, where the ratio is low."""
    from dreamset.metrics.duplicates import apart, nearest
    from dreamset.metrics.features import Judge

    network = Judge(judge)
    features = {part: _features(images, network, part) for part, images in parts.items() if len(images) > 1}
    for earlier, later in itertools.combinations(features, 2):
        in_part = apart(features[later], [image.group for image in parts[later]])
        index, distance = nearest(features[later], features[earlier])
        for row in (distance < RATIO * in_part).nonzero()[0].tolist():
            yield (later, row, earlier, int(index[row])), {"ratio": round(float(distance[row] / in_part[row]), 4)}


def _features(images: Sequence[Image], judge: Judge, part: str) -> NDArray[np.float32]:
    """The judge's features of a part's images: (images, width)."""
    import numpy as np

    blocks = []
    with bar(total=len(images), what=f"near-duplicates, {part}", unit="image") as progress:
        for start in range(0, len(images), _BLOCK):
            block = images[start : start + _BLOCK]
            blocks.append(judge.features(np.stack([resize_crop(_picture(image), judge.size) for image in block])))
            progress.update(len(block))
    return np.concatenate(blocks)


def _picture(image: Image) -> Picture:
    """The image as RGB, decoded as its source says."""
    if image.path is not None and image.decoding is not None:
        return decode(image.path.read_bytes(), image.decoding).image
    if image.path is not None:
        return read_rgb(image.path)
    from PIL import Image

    assert image.pixels is not None
    return Image.fromarray(image.pixels).convert("RGB")


def _thumbnail(image: Image) -> bytes:
    return image.thumbnail if image.thumbnail is not None else thumbnail(_picture(image))


def clusters(images: Sequence[Image]) -> dict[str, str]:
    """Cluster images by group and by look; return, by image name, the name of the cluster's representative.

    Images of two classes are clustered if their pixels are equal, so that no fold learns a label from a picture and
    scores another label on it. If they are merely alike, they are not.
    """
    from dreamset.metrics.perceptual_hash import Thumbnails, within

    def pairs() -> Iterator[tuple[str, str]]:
        first: dict[tuple[str, str], str] = {}
        for image in images:
            for key in (("group", image.group), ("pixels", image.pixels_sha256)):
                yield image.name, first.setdefault(key, image.name)
        for members in _classes(images):
            for pair in within(Thumbnails([_thumbnail(image) for image in members])):
                yield members[pair.second].name, members[pair.first].name

    return representatives(pairs())

"""Pools of images that retrieval searches: glyphs from the renderer of the bundled base's source, or a folder.

The renderer has no end, so each block of images is searched in its own stretch of glyphs. A folder is searched whole.
The features of a pool are a shard, which runs with other shots share. Nothing lists it, so ``dreamset gc`` drops it.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamset.core import shards
from dreamset.core.errors import InputError
from dreamset.core.files import read_json, sha256_file, write_json
from dreamset.core.formats import SUFFIXES, left_behind
from dreamset.core.images import BadImageError, decode
from dreamset.core.resizing import resize_crop
from dreamset.core.seeds import seed_for
from dreamset.weights import pretrained

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from dreamset.classifiers.clip import Clip
    from dreamset.core.workspace import Workspace
    from dreamset.data.work import Work
    from dreamset.params import Params

SEARCHED: Final = 20  # rendered glyphs that are searched for each one that is kept
BATCH: Final = 256  # images whose features are computed at once

_GLYPHS: Final = "glyphs"
_LOOK: Final = "models/base/params.yaml"  # how the bundled base's source varies its glyphs
_FEATURES, _NAMES, _IMAGES, _RECORD = "features.npy", "names.json", "images.npy", "record.json"


@dataclass(frozen=True)
class Pool:
    """Images to search: ``make`` fills the folder of the shard ``key`` with unit features, names and rendered images.

    Attributes:
        key: of the shard.
        size: number of images.
        make: writes the shard into a folder, with features of a CLIP.
    """

    key: str
    size: int
    make: Callable[[Path, Clip], None]


def endless(params: Params) -> bool:
    """Whether the source renders as many images as needed; otherwise it is a folder of images."""
    return params.base.retrieval == _GLYPHS


def searched(params: Params, workspace: Workspace) -> list[tuple[str, str]]:
    """Return the files that decide what retrieval searches, for keys of work that depends on them.

    Returns:
        (path, sha256) of every image file of the folder, by path relative to it, copies and labelled images included.
        For glyphs, that of the file that says how they look.

    Raises:
        InputError: the model's row names no source, or a folder that is missing.
    """
    if endless(params):
        return [(_LOOK, sha256_file(workspace.root / _LOOK))]
    root = _root(params, workspace)
    files = (path for path in sorted(root.rglob("*")) if path.suffix.lower() in SUFFIXES)
    return [
        (path.relative_to(root).as_posix(), _digest(path))
        for path in files
        if path.is_file() and not any(map(left_behind, path.relative_to(root).parts))
    ]


def find(work: Work, start: int, depth: int, wanted: int, known: dict[int, Pool]) -> Pool:
    """Return the pool of a block.

    Args:
        work: on the recipe.
        start: index of the block's first image.
        depth: images of each class in the block.
        wanted: images of each class that the pool must be able to give.
        known: cache of the pool of a folder, which all blocks share.

    Raises:
        InputError: the source is missing, or a folder has too few images.
    """
    if endless(work.params):
        return _glyphs(work, start, depth)
    if 0 not in known:
        known[0] = _folder(work, wanted)
    if known[0].size < wanted * len(work.split.classes):
        raise too_few(work, wanted, known[0].size)
    return known[0]


def too_few(work: Work, wanted: int, count: int) -> InputError:
    """Return the error for a pool whose ``count`` images cannot give ``wanted`` to each class."""
    classes = len(work.split.classes)
    return InputError(
        f"models.{work.params.model}.retrieval: {work.base.retrieval} has {count} usable images beside the labelled "
        f"ones, but {wanted} for each of {classes} classes are {wanted * classes}; lower generate.per_class or "
        "add images."
    )


def build(store: Path, pool: Pool, clip: Clip) -> Path:
    """Build the shard of a pool if it is missing, and return its folder."""
    missing = [] if shards.find(store, pool.key) else [pool.key]
    for key, claim in shards.claimed(store, missing, lambda key: [key]):
        with claim, shards.writing(store, key) as folder:
            started = time.perf_counter()
            pool.make(folder, clip)
            write_json(folder / _RECORD, {"images": pool.size, "seconds": time.perf_counter() - started})
    return store / pool.key


def features(folder: Path) -> NDArray[np.float32]:
    """Return the unit float32 features (n, d) of the images of a pool, from its shard."""
    import numpy as np

    unit: NDArray[np.float32] = np.load(folder / _FEATURES)
    return unit


def seconds(folder: Path) -> float:
    """Return the seconds that building a pool took."""
    return float(read_json(folder / _RECORD, "dreamset generate")["seconds"])


def reader(params: Params, workspace: Workspace, folder: Path) -> Callable[[int], tuple[str, NDArray[np.uint8]]]:
    """Return a function from the index of an image of a pool to its name and its pixels (h, h, 3) uint8.

    The side h is the base's resolution.
    """
    import numpy as np
    from PIL import Image

    names: list[str] = read_json(folder / _NAMES, "dreamset generate")
    if not endless(params):
        root = _root(params, workspace)
        return lambda item: (names[item], _pixels(root / names[item], params))
    rendered = np.load(folder / _IMAGES)
    side = params.base.resolution
    return lambda item: (names[item], resize_crop(Image.fromarray(rendered[item]).convert("RGB"), side))


def _weights(params: Params, workspace: Workspace) -> dict[str, Any]:
    """Return what the features of a pool depend on beside its images."""
    return {"clip": pretrained.identity(workspace.root, params.base.clip)["sha256"]}


def _glyphs(work: Work, start: int, depth: int) -> Pool:
    """Return a stretch of glyphs from the bundled base's training source: all characters, in the fonts it learned."""
    from dreamset.glyphs import look as base_params

    params, workspace, classes = work.params, work.workspace, len(work.split.classes)
    base = base_params.load(workspace.root / _LOOK)
    # The glyphs change with the seed like everything else: each cell of a table is an independent draw.
    seed = seed_for("pool", params.seed)
    first, count = SEARCHED * start * classes, SEARCHED * depth * classes
    place = {"first": first, "count": count, "seed": seed}
    look = {"look": dataclasses.asdict(base.look), "fonts": dataclasses.asdict(base.source)}
    key = shards.key_of({"glyphs": look | place} | _weights(params, workspace), __name__)

    def make(folder: Path, clip: Clip) -> None:
        import numpy as np

        from dreamset.classifiers.embedding import embed
        from dreamset.glyphs.fonts import CHARACTERS, usable_fonts
        from dreamset.glyphs.render import Glyphs, split_pairs

        source = Glyphs(base.look, seed, split_pairs(base.source.held_out_fonts, base.source.seed)[0])
        fonts = [font.name for font in usable_fonts()]
        features, images, names = [], [], []
        for at in range(first, first + count, BATCH):
            batch = source.batch(at, min(BATCH, first + count - at))
            pixels = ((batch.images[:, 0].numpy() + 1) * 127.5).round().astype(np.uint8)
            images.append(pixels)
            features.append(embed(clip, np.repeat(pixels[..., None], 3, -1)))
            names += [
                f"glyph {at + i}: {CHARACTERS[character]} in {fonts[font]}"
                for i, (character, font) in enumerate(zip(batch.characters, batch.fonts, strict=True))
            ]
        np.save(folder / _IMAGES, np.concatenate(images))
        np.save(folder / _FEATURES, np.concatenate(features))
        write_json(folder / _NAMES, names)

    return Pool(key, count, make)


def _folder(work: Work, wanted: int) -> Pool:
    """Return all images under a folder and its subfolders, without duplicates and copies of labelled images."""
    params, workspace, split = work.params, work.workspace, work.split
    root = _root(params, workspace)
    # The manifests of a fold lack its held-out images, and no manifest here has the test images. ``unseen`` has both.
    seen = {sample.sha256 for sample in (*split.train, *split.selection)}.union(split.unseen)
    files: list[tuple[str, str]] = []
    for name, digest in searched(params, workspace):
        if digest not in seen:
            seen.add(digest)
            files.append((name, digest))
    key = shards.key_of(
        {"files": files, "resolution": params.base.resolution, "max_pixels": params.prepare.max_pixels}
        | params.prepare.decoding.changes
        | _weights(params, workspace),
        __name__,
    )

    def usable() -> Iterator[tuple[str, NDArray[np.uint8]]]:
        for name, _ in files:
            try:
                yield name, _pixels(root / name, params)
            except BadImageError:
                continue  # a large collection has some broken files; the rest must suffice

    def make(folder: Path, clip: Clip) -> None:
        import numpy as np

        from dreamset.classifiers.embedding import embed

        features, names = [], []
        for batch in _batches(usable()):
            names += [name for name, _ in batch]
            features.append(embed(clip, np.stack([pixels for _, pixels in batch])))
        if not names:
            raise too_few(work, wanted, 0)
        np.save(folder / _FEATURES, np.concatenate(features))
        write_json(folder / _NAMES, names)

    return Pool(key, len(files), make)


def _root(params: Params, workspace: Workspace) -> Path:
    if params.base.retrieval is None:
        # The rules refuse this for an active recipe, but any recipe can be run by its name.
        raise InputError(
            f"models.{params.model}.retrieval: is null, so there is nothing to retrieve from; give imagefolder:PATH."
        )
    root = workspace.root / params.base.retrieval.partition(":")[2]
    if not root.is_dir():
        raise InputError(f"models.{params.model}.retrieval: {root} is no folder; give imagefolder:PATH of images.")
    return root


def _digest(path: Path) -> str:
    """Return the sha256 of a file; it is computed again only if size or time of the file has changed."""
    status = path.stat()
    return _cached_digest(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _cached_digest(path: Path, _size: int, _time: int) -> str:
    # Every block, fold and arm asks for it. Also, the folder may contain labelled images: with the cache a fold does
    # not open its held-out images again.
    return sha256_file(path)


def _pixels(path: Path, params: Params) -> NDArray[np.uint8]:
    """Return the pixels of an image file at the base's resolution."""
    # A window is for the source's own files; what else is done to the shots is done to what stands in for them.
    decoding = dataclasses.replace(params.prepare.decoding, window=None)
    return resize_crop(decode(path.read_bytes(), decoding).image, params.base.resolution)


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch

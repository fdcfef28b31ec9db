"""Images that are not drawn but found: those of the base's own training source that are nearest to each class.

A generator can teach a classifier no more than it was taught itself, so what it draws has to beat what it learned from
(Geng et al. 2024, "The Unmet Promise of Synthetic Training Images"). Such a recipe is one with ``origin: retrieval``;
``retrieval`` of the model's row says where from.

Nearness is the sum of two cosines in the features of the model's CLIP: to the mean of the class's shots, which know
how the target looks, and to the class's caption, which knows what the class is. (Geng et al. use the caption alone. Of
glyphs for digits, 4 shots, 95 % of what is found by the sum are of the right shape, 63 % by the shots alone and 98 %
by the caption alone.) Labels come from that alone: whatever the source knows of its images is not read.

Rendered glyphs have no end, so each block of images is found in a stretch of its own; a folder is searched whole. The
features of what is searched are a shard, which other shots share; nothing lists it, so ``dreamset gc`` drops it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamset import __version__, classifiers, locks, shards
from dreamset.cards import told
from dreamset.errors import InputError
from dreamset.files import read_json, sha256, sha256_file, write_json
from dreamset.generate import Block
from dreamset.images import SUFFIXES, BadImageError, Decoding, decode, png, resize_crop
from dreamset.progress import bar
from dreamset.seeds import seed_for
from dreamset.synthetic import SyntheticImage, write_metadata

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from dreamset.classifiers.clip import Clip
    from dreamset.params import Params
    from dreamset.splits import Split
    from dreamset.workspace import Workspace

GLYPHS: Final = "glyphs"
SEARCHED: Final = 20  # rendered glyphs that are searched for each that is kept

_LOOK: Final = "models/base/params.yaml"  # of the bundled base: how its glyphs are varied
_BATCH: Final = 256  # images whose features are computed at once
_FEATURES, _NAMES, _IMAGES, _RECORD = "features.npy", "names.json", "images.npy", "record.json"
_POOL_CODE: Final = (
    "dreamset.base.fonts",
    "dreamset.base.glyphs",
    "dreamset.classifiers.clip",
    "dreamset.images",
    "dreamset.retrieve",
    "dreamset.seeds",
)


@dataclass(frozen=True)
class Pool:
    """What is searched: ``make`` fills the folder of the shard ``key`` with unit features, names and perhaps images."""

    key: str
    size: int
    make: Callable[[Path, Clip], None]


def finish(params: Params, workspace: Workspace, split: Split, recipe: str, wanted: int) -> tuple[list[Block], int]:
    """Find what is not found yet of the first ``wanted`` images of every class.

    Returns:
        The blocks that hold them, all of them finished shards, and how many images were found here.

    Raises:
        InputError: see ``plan`` and ``fill``.
    """
    blocks = plan(params, workspace, split, recipe, wanted)
    missing = [block for block in blocks if shards.find(workspace.shards, block.key) is None]
    return blocks, fill(params, workspace, split, recipe, wanted, missing) if missing else 0


def plan(params: Params, workspace: Workspace, split: Split, recipe: str, wanted: int) -> list[Block]:
    """The blocks that hold the first ``wanted`` images of every class; growing ``wanted`` adds blocks.

    Raises:
        InputError: there is nothing to search or there are too few images, or the CLIP is not there.
    """
    labels = tuple(range(len(split.classes)))
    depth = max(1, params.base.generate.batch // len(labels))
    shared = {
        "shots": [[sample.sha256, sample.label] for sample in split.train],
        "captions": [[split.classes[label], _caption(params, split, recipe, label)] for label in labels],
        "resolution": params.base.resolution,
        "depth": depth,
        "seed": params.seed,
    }
    blocks = []
    pools: dict[int, Pool] = {}
    for start in range(0, wanted, depth):
        pool = _pool(params, workspace, split, start, depth, wanted, pools)
        key = shards.key_of(shared | {"pool": pool.key, "start": start}, _POOL_CODE)
        blocks.append(Block(key, None, labels, start, start + depth))
    return blocks


def fill(params: Params, workspace: Workspace, split: Split, recipe: str, wanted: int, missing: list[Block]) -> int:
    """Find the images of blocks, of which the first ``wanted`` of every class must be there.

    Returns:
        How many were found here: fewer than are missing where another process does the same blocks.

    Raises:
        InputError: too few of the images that are searched can be used.
    """
    import numpy as np

    clip = _clip(params, workspace, split, recipe)
    centres = _centres(params, workspace, split, clip)
    total = sum(len(block.labels) * (block.stop - block.start) for block in missing)
    pools: dict[int, Pool] = {}
    count = 0
    with bar(total=total, what=f"retrieving {recipe}", unit="img") as progress:
        for block, claim in shards.claimed(workspace.shards, missing, lambda block: [block.key]):
            with claim:
                locks.boundary()
                depth = block.stop - block.start
                pool = _pool(params, workspace, split, block.start, depth, wanted, pools)
                folder = _made(workspace.shards, pool, clip)
                started = time.perf_counter()
                scores = np.load(folder / _FEATURES) @ centres.T
                first, last = 0, depth
                if not _endless(params):
                    # The last block of a folder may be deeper than the folder.
                    first, last = block.start, min(block.stop, len(scores) // len(block.labels))
                    if last < min(block.stop, wanted):
                        raise _too_few(params, split, wanted, len(scores))
                picked = draft(scores, last)[first:]
                seconds = time.perf_counter() - started + read_json(folder / _RECORD, "dreamset generate")["seconds"]
                _write(params, workspace, split, recipe, block, folder, picked, scores, seconds)
            count += picked.size
            progress.update(picked.size)
    return count


def draft(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Which images each class gets, nearest first, no image twice.

    Classes choose in turn, one image a round: the nearest of those that are nearest to no other class, then, where
    these run out, of the rest. What is chosen in early rounds does not depend on ``count``.

    Args:
        scores: (n, classes), how near each image is to each class; n of at least ``count * classes``.
        count: images per class.

    Returns:
        (count, classes) indices of images.
    """
    import numpy as np

    n, classes = scores.shape
    owner = scores.argmax(1)
    orders = [np.lexsort((-scores[:, label], owner != label)) for label in range(classes)]
    heads, taken = [0] * classes, np.zeros(n, bool)
    picked = np.empty((count, classes), np.int64)
    for turn in range(count):
        for label, order in enumerate(orders):
            while taken[order[heads[label]]]:
                heads[label] += 1
            picked[turn, label] = order[heads[label]]
            taken[picked[turn, label]] = True
    return picked


def card(params: Params, split: Split, recipe: str, count: int, checked: str) -> str:
    """The dataset card, in the Hugging Face hub's layout; ``checked`` says who has checked the labels."""
    return "\n".join(_card(params, split, recipe, count, checked)) + "\n"


def _card(params: Params, split: Split, recipe: str, count: int, checked: str) -> Iterator[str]:
    glyphs, each = _endless(params), told(params.synthetic_per_class(split.train_per_class))
    yield "---"
    yield f"license: {params.base.licence if glyphs else 'other'}"
    yield "task_categories: [image-classification]"
    yield f"pretty_name: {json.dumps(f'{recipe} for {split.source}')}"
    yield "---"
    yield f"# Retrieved images: {recipe}"
    yield ""
    yield (
        f"{count} images of {len(split.classes)} classes ({each} per class), **none of them generated**: "
        f"the nearest ones of what the base was, or could have been, trained on. Labels are that nearness; {checked}."
    )
    yield ""
    if glyphs:
        yield f"- Source: glyphs rendered from the fonts that matplotlib ships, {SEARCHED} for each that was kept."
    else:
        yield "- Source: a folder of images; their licences are their owners', and hold for this dataset too."
    yield (
        f"- Nearness: cosines to the mean of {told(split.train_per_class)} shots per class of `{split.source}` and to "
        f"the caption, in the features of `{params.base.clip}`; seed {params.seed}."
    )
    yield f"- Caption of class 0: {json.dumps(_caption(params, split, recipe, 0), ensure_ascii=False)}."
    yield f"- Made by dreamset {__version__}; one row per image in `metadata.jsonl` (caption, source, sha256)."
    yield ""
    yield 'Opens with `torchvision.datasets.ImageFolder` and with `datasets.load_dataset("imagefolder")`.'


def _caption(params: Params, split: Split, recipe: str, label: int) -> str:
    return split.prompt(label, params.recipes[recipe].prompt)


def _endless(params: Params) -> bool:
    """Whether images are rendered, as many as one likes; else a folder holds them."""
    return params.base.retrieval == GLYPHS


def searched(params: Params, workspace: Workspace) -> list[tuple[str, str]]:
    """What a recipe with ``origin: retrieval`` searches, as far as it can change: work that rests on it records it.

    Returns:
        (path, sha256) of every image file of the folder, by path relative to it, copies and labelled images too; of
        glyphs what says how they look, and the code that renders and searches them.

    Raises:
        InputError: the model's row names nothing to search, or no folder.
    """
    if _endless(params):
        return [(_LOOK, sha256_file(workspace.root / _LOOK)), ("code", shards.code_digest(_POOL_CODE))]
    root = _root(params, workspace)
    files = (path for path in sorted(root.rglob("*")) if path.suffix.lower() in SUFFIXES)
    return [
        (path.relative_to(root).as_posix(), _digest(path))
        for path in files
        if path.is_file() and not path.name.startswith(".")
    ]


def _pool(
    params: Params, workspace: Workspace, split: Split, start: int, depth: int, wanted: int, known: dict[int, Pool]
) -> Pool:
    """What the block at ``start`` is searched in; ``known`` keeps a folder's, which is the same for all blocks."""
    if _endless(params):
        return _glyphs(params, workspace, start, depth, len(split.classes))
    if 0 not in known:
        known[0] = _folder(params, workspace, split, wanted)
    if known[0].size < wanted * len(split.classes):
        raise _too_few(params, split, wanted, known[0].size)
    return known[0]


def _too_few(params: Params, split: Split, wanted: int, count: int) -> InputError:
    total = wanted * len(split.classes)
    return InputError(
        f"models.{params.model}.retrieval: {params.base.retrieval} has {count} usable images beside the labelled ones, "
        f"but {wanted} for each of {len(split.classes)} classes are {total}; lower generate.per_class or "
        "add images."
    )


def _weights(params: Params, workspace: Workspace) -> dict[str, Any]:
    """What the features depend on."""
    versions = {name: importlib.metadata.version(name) for name in ("matplotlib", "open_clip_torch")}
    return {"clip": classifiers.identity(workspace.root, params.base.clip)["sha256"], "versions": versions}


def _glyphs(params: Params, workspace: Workspace, start: int, depth: int, classes: int) -> Pool:
    """A stretch of what the bundled base's training source renders: all its characters, in the fonts it learned."""
    from dreamset.base import params as base_params

    base = base_params.load(workspace.root / _LOOK)
    # The seed is redrawn with all the rest: cells of a table are compared on draws of their own.
    seed = seed_for("pool", params.seed)
    first, count = SEARCHED * start * classes, SEARCHED * depth * classes
    place = {"first": first, "count": count, "seed": seed}
    look = {"look": dataclasses.asdict(base.look), "fonts": dataclasses.asdict(base.source)}
    key = shards.key_of({"glyphs": look | place} | _weights(params, workspace), _POOL_CODE)

    def make(folder: Path, clip: Clip) -> None:
        import numpy as np

        from dreamset.base.fonts import CHARACTERS, usable_fonts
        from dreamset.base.glyphs import Glyphs, split_pairs

        source = Glyphs(base.look, seed, split_pairs(base.source.held_out_fonts, base.source.seed)[0])
        fonts = [font.name for font in usable_fonts()]
        features, images, names = [], [], []
        for at in range(first, first + count, _BATCH):
            batch = source.batch(at, min(_BATCH, first + count - at))
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


def _folder(params: Params, workspace: Workspace, split: Split, wanted: int) -> Pool:
    """All images under a folder, however it is divided, but for copies of one another and of the labelled ones."""
    root = _root(params, workspace)
    # A fold's own manifests do not hold what it holds out, nor any manifest here the test images: unseen does.
    seen = {sample.sha256 for sample in (*split.train, *split.selection)}.union(split.unseen)
    files: list[tuple[str, str]] = []
    for name, digest in searched(params, workspace):
        if digest not in seen:
            seen.add(digest)
            files.append((name, digest))
    key = shards.key_of(
        {"files": files, "resolution": params.base.resolution} | _weights(params, workspace), _POOL_CODE
    )

    def usable() -> Iterator[tuple[str, NDArray[np.uint8]]]:
        for name, _ in files:
            try:
                yield name, _pixels(root / name, params)
            except BadImageError:
                continue  # of a million pictures from anywhere some are broken; those that are left are counted

    def make(folder: Path, clip: Clip) -> None:
        import numpy as np

        features, names = [], []
        for batch in _batches(usable()):
            names += [name for name, _ in batch]
            features.append(embed(clip, np.stack([pixels for _, pixels in batch])))
        if not names:
            raise _too_few(params, split, wanted, 0)
        np.save(folder / _FEATURES, np.concatenate(features))
        write_json(folder / _NAMES, names)

    return Pool(key, len(files), make)


def _root(params: Params, workspace: Workspace) -> Path:
    if params.base.retrieval is None:
        # As where the recipe is active; but any recipe can be run by its name.
        raise InputError(
            f"models.{params.model}.retrieval: is null, so there is nothing to retrieve from; give imagefolder:PATH."
        )
    root = workspace.root / params.base.retrieval.partition(":")[2]
    if not root.is_dir():
        raise InputError(f"models.{params.model}.retrieval: {root} is no folder; give imagefolder:PATH of images.")
    return root


def _digest(path: Path) -> str:
    """sha256 of a file, computed again only when its size or its time has changed."""
    found = path.stat()
    return _hashed(path, found.st_size, found.st_mtime_ns)


@functools.cache
def _hashed(path: Path, _size: int, _time: int) -> str:
    # Every block, fold and arm asks; and where a folder holds labelled images, what a fold holds out is not opened
    # again once the fold has closed it.
    return sha256_file(path)


def _pixels(path: Path, params: Params) -> NDArray[np.uint8]:
    """A file of a folder, at the base's resolution."""
    return resize_crop(decode(path.read_bytes(), Decoding(params.prepare.max_pixels)).image, params.base.resolution)


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _made(store: Path, pool: Pool, clip: Clip) -> Path:
    """The shard of a pool, made if it is not there."""
    missing = [] if shards.find(store, pool.key) else [pool.key]
    for key, claim in shards.claimed(store, missing, lambda key: [key]):
        with claim, shards.writing(store, key) as folder:
            started = time.perf_counter()
            pool.make(folder, clip)
            write_json(folder / _RECORD, {"images": pool.size, "seconds": time.perf_counter() - started})
    return store / pool.key


def _clip(params: Params, workspace: Workspace, split: Split, recipe: str) -> Clip:
    from dreamset.classifiers import clip, pretrained
    from dreamset.device import pick

    captions = [_caption(params, split, recipe, label) for label in range(len(split.classes))]
    network = clip.read(pretrained.find(workspace.root, params.base.clip), captions)
    return network.to(pick()).eval()


def embed(clip: Clip, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Unit float32 features (n, d) of RGB images (n, h, h, 3)."""
    import torch
    import torch.nn.functional as F

    where = clip.shift.device
    with torch.inference_mode(), classifiers.autocast(where):
        pixels = classifiers.to_float(torch.from_numpy(images).to(where), clip)
        features = clip.model.encode_image((pixels - clip.shift) / clip.scale).float()
    normal: NDArray[np.float32] = F.normalize(features, dim=-1).cpu().numpy()
    return normal


def _centres(params: Params, workspace: Workspace, split: Split, clip: Clip) -> NDArray[np.float32]:
    """For each class (classes, d) the unit mean of its shots' features and its caption's unit feature, added."""
    import numpy as np
    import torch

    from dreamset.classifiers import arrays

    side = classifiers.seen(clip.size, params.base.resolution)
    shots = arrays.real(split.train, workspace.cell, side)
    parts = [embed(clip, shots.images[at : at + _BATCH]) for at in range(0, len(shots), _BATCH)]
    features = np.concatenate(parts)
    sums = np.zeros((len(split.classes), features.shape[1]), np.float32)
    np.add.at(sums, shots.labels, features)
    with torch.inference_mode():
        captions = clip.class_features().cpu().numpy()
    centres: NDArray[np.float32] = sums / np.linalg.norm(sums, axis=1, keepdims=True).clip(min=1e-12) + captions
    return centres


def _write(
    params: Params,
    workspace: Workspace,
    split: Split,
    recipe: str,
    block: Block,
    pool: Path,
    picked: NDArray[np.int64],
    scores: NDArray[np.float32],
    seconds: float,
) -> None:
    """Make a block a shard, in the layout of drawn ones."""
    import numpy as np
    from PIL import Image

    started = time.perf_counter()
    names = read_json(pool / _NAMES, "dreamset generate")
    rendered = np.load(pool / _IMAGES) if _endless(params) else None
    text = {"Software": f"dreamset {__version__}", "Origin": "retrieved, not generated"}
    if rendered is not None:
        text["DigitalSourceType"] = "algorithmicMedia"
    rows: list[SyntheticImage] = []
    with shards.writing(workspace.shards, block.key) as folder:
        for turn, images in enumerate(picked.tolist()):
            for label, item in zip(block.labels, images, strict=True):
                name = f"{split.folder(label)}/{block.start + turn:05d}.png"
                if rendered is None:
                    pixels = _pixels(_root(params, workspace) / names[item], params)
                else:
                    pixels = resize_crop(Image.fromarray(rendered[item]).convert("RGB"), params.base.resolution)
                data = png(pixels, text)
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(data)
                rows.append(
                    SyntheticImage(
                        file_name=name,
                        label=label,
                        class_name=split.classes[label],
                        index=block.start + turn,
                        prompt=_caption(params, split, recipe, label),
                        seed=params.seed,
                        redraws=0,
                        sampler={},
                        adapter=None,
                        sha256=sha256(data),
                        origin="retrieval",
                        source=names[item],
                        nearness=round(float(scores[item, label]), 4),
                    )
                )
        write_metadata(folder, rows)
        seconds += time.perf_counter() - started
        write_json(folder / "record.json", {"drawn": len(rows), "seconds": seconds})

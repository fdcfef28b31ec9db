"""Retrieval: the images of the base's training source that are nearest to each class, instead of drawn ones.

A generator knows no more than its training images. So its images have to beat the retrieved ones (Geng et al. 2024,
"The Unmet Promise of Synthetic Training Images"). A recipe with ``origin: retrieval`` retrieves; ``retrieval`` of the
model's row names the source.

Nearness is the sum of two cosines in the features of the model's CLIP. One is to the mean of the class's shots, which
show the look of the target; the other is to the class's caption, which says what the class is. Geng et al. use the
caption alone. Of glyphs retrieved for digits with 4 shots, 95 % have the right shape by the sum, 63 % by the shots
alone and 98 % by the caption alone. Nearness alone gives the labels: labels of the source are not read.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from dreamset import __version__, classifiers
from dreamset.core import locks, shards
from dreamset.core.files import sha256, write_json
from dreamset.core.images import png
from dreamset.core.progress import bar
from dreamset.data import cards
from dreamset.data.cards import span
from dreamset.data.synthetic import SyntheticImage, write_metadata
from dreamset.drawing import pools
from dreamset.drawing.blocks import Block
from dreamset.params.knob_words import post_augment_words

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from dreamset.classifiers.clip import Clip
    from dreamset.data.work import Work


def finish(work: Work, wanted: int) -> tuple[list[Block], int]:
    """Retrieve the missing ones of the first ``wanted`` images of every class.

    Returns:
        The blocks that hold them, all of them finished shards, and the number of images that this call retrieved.

    Raises:
        InputError: see ``plan`` and ``fill``.
    """
    blocks = plan(work, wanted)
    missing = [block for block in blocks if shards.find(work.workspace.shards, block.key) is None]
    return blocks, fill(work, wanted, missing) if missing else 0


def plan(work: Work, wanted: int) -> list[Block]:
    """Return the blocks that hold the first ``wanted`` images of every class; more images add blocks.

    Raises:
        InputError: the source is missing or has too few images, or the CLIP is missing.
    """
    split = work.split
    labels = tuple(range(len(split.classes)))
    depth = max(1, work.base.generate.batch // len(labels))
    shared = {
        "tool": f"dreamset {__version__}",
        "shots": [[sample.sha256, sample.label] for sample in split.train],
        "captions": [[split.classes[label], _caption(work, label)] for label in labels],
        "resolution": work.base.resolution,
        "depth": depth,
        "seed": work.params.seed,
    }
    blocks = []
    known: dict[int, pools.Pool] = {}
    for start in range(0, wanted, depth):
        pool = pools.find(work, start, depth, wanted, known)
        key = shards.key_of(shared | {"pool": pool.key, "start": start}, __name__)
        blocks.append(Block(key, None, labels, start, start + depth))
    return blocks


def fill(work: Work, wanted: int, missing: list[Block]) -> int:
    """Retrieve the images of blocks.

    Args:
        work: on the recipe.
        wanted: images of every class that the source must be able to give.
        missing: the blocks.

    Returns:
        The number of images that this call retrieved; fewer than are missing where another process does the same.

    Raises:
        InputError: the source has too few usable images.
    """
    store = work.workspace.shards
    clip = _clip(work)
    centres = _centres(work, clip)
    total = sum(len(block.labels) * (block.stop - block.start) for block in missing)
    known: dict[int, pools.Pool] = {}
    count = 0
    with bar(total=total, what=f"retrieving {work.recipe}", unit="img") as progress:
        for block, claim in shards.claimed(store, missing, lambda block: [block.key]):
            with claim:
                locks.boundary()
                depth = block.stop - block.start
                pool = pools.find(work, block.start, depth, wanted, known)
                folder = pools.build(store, pool, clip)
                started = time.perf_counter()
                scores = pools.features(folder) @ centres.T
                first, last = 0, depth
                if not pools.endless(work.params):
                    # The last block of a folder may be deeper than the folder.
                    first, last = block.start, min(block.stop, len(scores) // len(block.labels))
                    if last < min(block.stop, wanted):
                        raise pools.too_few(work, wanted, len(scores))
                picked = draft(scores, last)[first:]
                seconds = time.perf_counter() - started + pools.seconds(folder)
                _write(work, block, folder, picked, scores, seconds)
            count += picked.size
            progress.update(picked.size)
    return count


def draft(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return the images that each class gets, nearest first, no image twice.

    Classes choose in turn, one image a round. A class takes the nearest of the images that are nearest to no other
    class, and of all others once these run out. The choices of early rounds do not depend on ``count``.

    Args:
        scores: (n, classes), nearness of each image to each class; n is at least ``count * classes``.
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


def card(work: Work, count: int, copies: int, checked: str) -> str:
    """Return the dataset card in the layout of the Hugging Face hub.

    Args:
        work: on the recipe.
        count: the number of retrieved images.
        copies: the number of copies of these.
        checked: a phrase on who has checked the labels.
    """
    return "\n".join(_card(work, count, copies, checked)) + "\n"


def _card(work: Work, count: int, copies: int, checked: str) -> Iterator[str]:
    params, split, recipe = work.params, work.split, work.recipe
    glyphs, each = pools.endless(params), span(params.drawn_per_class(recipe, split.train_per_class))
    yield "---"
    yield f"license: {params.base.licence if glyphs else 'other'}"
    yield "task_categories: [image-classification]"
    yield f"pretty_name: {cards.quoted(f'{recipe} for {split.source}')}"
    tars = count + copies > params.generate.pack
    yield from cards.loading(split.classes, cards.every_column(("copy_of",) if copies else ()), tars=tars)
    yield "---"
    yield f"# Retrieved images: {recipe}"
    yield ""
    yield (
        f"{count} images of {len(split.classes)} classes ({each} per class), **none of them generated**: "
        "they are the nearest images of a source that the base was, or could have been, trained on. Nearness gives the "
        f"labels; {checked}."
    )
    yield ""
    if glyphs:
        yield f"- Source: glyphs rendered from the fonts of matplotlib, {pools.SEARCHED} for each that was kept."
    else:
        yield "- Source: a folder of images; the licences of these images hold for this dataset too."
    yield (
        f"- Nearness: cosines to the mean of {span(split.train_per_class)} shots per class of `{split.source}` and to "
        f"the caption, in the features of `{params.base.clip}`; seed {params.seed}."
    )
    yield f"- Caption of class 0: {json.dumps(_caption(work, 0), ensure_ascii=False)}."
    if copies:
        yield f"- {post_augment_words(work.row, split.invariances, count, copies)}"
    yield f"- Made by dreamset {__version__}; one row per image in `metadata.jsonl` (caption, source, sha256)."
    yield ""
    yield cards.opening(tars=tars)


def _caption(work: Work, label: int) -> str:
    return work.split.prompt(label, work.row.prompt)


def _clip(work: Work) -> Clip:
    from dreamset.classifiers import clip
    from dreamset.core.device import pick
    from dreamset.weights import pretrained

    captions = [_caption(work, label) for label in range(len(work.split.classes))]
    network = clip.read(pretrained.find(work.workspace.root, work.base.clip), captions)
    return network.to(pick()).eval()


def _centres(work: Work, clip: Clip) -> NDArray[np.float32]:
    """Return for each class the sum of its shots' unit mean feature and its caption's unit feature: (classes, d)."""
    import numpy as np
    import torch

    from dreamset.classifiers.embedding import embed
    from dreamset.data import arrays

    side = classifiers.seen(clip.size, work.base.resolution)
    shots = arrays.real(work.split.train, work.workspace.cell, side)
    features = embed(clip, shots.images)
    sums = np.zeros((len(work.split.classes), features.shape[1]), np.float32)
    np.add.at(sums, shots.labels, features)
    with torch.inference_mode():
        captions = clip.class_features().cpu().numpy()
    centres: NDArray[np.float32] = sums / np.linalg.norm(sums, axis=1, keepdims=True).clip(min=1e-12) + captions
    return centres


def _write(
    work: Work,
    block: Block,
    pool: Path,
    picked: NDArray[np.int64],
    scores: NDArray[np.float32],
    seconds: float,
) -> None:
    """Write a block as a shard, in the layout of drawn blocks."""
    started = time.perf_counter()
    params, workspace, split = work.params, work.workspace, work.split
    read = pools.reader(params, workspace, pool)
    text = {"Software": f"dreamset {__version__}", "Origin": "retrieved, not generated"}
    if pools.endless(params):
        text["DigitalSourceType"] = "algorithmicMedia"
    rows: list[SyntheticImage] = []
    with shards.writing(workspace.shards, block.key) as folder:
        for turn, images in enumerate(picked.tolist()):
            for label, item in zip(block.labels, images, strict=True):
                name = f"{split.folder(label)}/{block.start + turn:05d}.png"
                source, pixels = read(item)
                data = png(pixels, text)
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(data)
                rows.append(
                    SyntheticImage(
                        file_name=name,
                        label=label,
                        class_name=split.classes[label],
                        index=block.start + turn,
                        prompt=_caption(work, label),
                        seed=params.seed,
                        redraws=0,
                        sampler={},
                        adapter=None,
                        sha256=sha256(data),
                        origin="retrieval",
                        source=source,
                        nearness=round(float(scores[item, label]), 4),
                    )
                )
        write_metadata(folder, rows)
        seconds += time.perf_counter() - started
        write_json(folder / "record.json", {"drawn": len(rows), "seconds": seconds})

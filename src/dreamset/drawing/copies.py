"""Copies of drawn images: ``post_augment``, the post-augmentation of dataset distillation (arXiv 2408.08610).

The paper mirrors a picture both ways (each with probability 0.8), changes brightness and contrast (0.5), turns it by up
to 60 degrees (0.8) and changes its gamma (0.5), with edges reflected. Here a change is made only where the source says
that it keeps the label. A picture that must not be turned is tilted by up to 9 degrees, which a hand-held camera does,
too. The paper also crops at random to the same size, which moves nothing; here the picture is shifted first.

A copy is a function of its image and of (seed, class, k, copy). Copies are shards beside the block of their images. So
the drawn images are those of the same recipe without copies.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from PIL import Image

from dreamset import __version__
from dreamset.core import locks, shards
from dreamset.core.files import sha256, write_json
from dreamset.core.images import png
from dreamset.core.progress import bar
from dreamset.core.resizing import to_native
from dreamset.core.seeds import seed_for
from dreamset.data.synthetic import SyntheticImage, read_metadata, write_metadata

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    import numpy as np

    from dreamset.data.work import Work
    from dreamset.drawing.blocks import Block

_TURN: Final = 60.0  # degrees, where every turn keeps the label
_TILT: Final = 9.0  # degrees, elsewhere: as far as RandAugment's default (classifiers/augment.py)
_SHIFT: Final = 1 / 16  # of a side
_THREADS: Final = min(16, os.cpu_count() or 1)


@dataclass(frozen=True)
class Copies:
    """A shard: the copies of all images of a block.

    Attributes:
        key: of the shard.
        block: whose images are copied.
    """

    key: str
    block: Block


def plan(work: Work, blocks: Sequence[Block]) -> list[Copies]:
    """Return the shards with the copies of drawn blocks; none where the recipe makes no copies."""
    asked, split = work.row.post_augment, work.split
    if asked is None:
        return []
    shared = {
        "tool": f"dreamset {__version__}",
        "copies": asked.copies,
        "size": split.native if asked.at == "target" else None,
        "keep": sorted(split.invariances),
        "seed": work.params.seed,
    }
    return [Copies(shards.key_of(shared | {"block": block.key}, __name__), block) for block in blocks]


def make(work: Work, planned: Sequence[Copies]) -> None:
    """Make the copies that are missing; the blocks must be finished shards."""
    store = work.workspace.shards
    missing = [one for one in planned if shards.find(store, one.key) is None]
    if not missing:
        return
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        bar(total=sum(len(one.block) for one in missing), what=f"copying {work.recipe}", unit="img") as progress,
    ):
        for one, claim in shards.claimed(store, missing, lambda one: [one.key]):
            with claim:
                locks.boundary()
                _write(work, one, pool)
            progress.update(len(one.block))


def seconds(store: Path, planned: Sequence[Copies]) -> float:
    """Return the seconds that finished copies took."""
    import json

    records = [json.loads((store / one.key / "record.json").read_text(encoding="utf-8")) for one in planned]
    return float(sum(record["seconds"] for record in records))


def _write(work: Work, one: Copies, pool: ThreadPoolExecutor) -> None:
    started, store = time.perf_counter(), work.workspace.shards
    source = store / one.block.key
    images = read_metadata(source)
    made = [copy for copies in pool.map(lambda image: _copied(work, source, image), images) for copy in copies]
    with shards.writing(store, one.key, sum(len(data) for _, data in made)) as folder:
        for image, data in made:
            (folder / image.file_name).parent.mkdir(exist_ok=True)
            (folder / image.file_name).write_bytes(data)
        write_metadata(folder, (image for image, _ in made))
        # Nothing was drawn here: whoever adds up drawn images finds none.
        write_json(folder / "record.json", {"drawn": 0, "seconds": time.perf_counter() - started})


def _copied(work: Work, source: Path, image: SyntheticImage) -> list[tuple[SyntheticImage, bytes]]:
    """Return the copies of a drawn image in order, each with its file."""
    import numpy as np

    asked, split = work.row.post_augment, work.split
    assert asked is not None
    with Image.open(source / image.file_name) as file:
        text = {key: str(value) for key, value in getattr(file, "text", {}).items()}
        picture = file.convert("RGB")
    if asked.at == "target" and split.native:
        picture = to_native(picture, split.native)
    made, stem = [], image.file_name.removesuffix(".png")
    for copy in range(1, asked.copies + 1):
        rng = np.random.default_rng(seed_for("copy", work.params.seed, image.class_name, image.index, copy))
        pixels = np.asarray(changed(picture, split.invariances, rng))
        data = png(pixels, text | {"CopyOf": image.file_name})
        row = dataclasses.replace(image, file_name=f"{stem}_{copy}.png", sha256=sha256(data), copy_of=image.file_name)
        made.append((dataclasses.replace(row, tries=None, gave_up=None), data))
    return made


def changed(picture: Image.Image, keep: Collection[str], rng: np.random.Generator) -> Image.Image:
    """Return a randomly changed copy of a picture, of its size.

    Args:
        picture: RGB.
        keep: the changes that keep its label: some of hflip, vflip, rotation, colour.
        rng: every copy takes equally many numbers from it, whatever ``keep`` is.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as change

    chance, amount = rng.random(6), rng.uniform(-1, 1, 6)
    if "hflip" in keep and chance[0] < 0.8:
        picture = change.hflip(picture)
    if "vflip" in keep and chance[1] < 0.8:
        picture = change.vflip(picture)
    if "colour" in keep and chance[2] < 0.5:
        picture = change.adjust_brightness(picture, 1 + 0.2 * amount[0])
        picture = change.adjust_contrast(picture, 1 + 0.2 * amount[1])
    angle = (_TURN if "rotation" in keep else _TILT) * amount[2] if chance[3] < 0.8 else 0.0
    width, height = picture.size
    reach = max(1.0, _SHIFT * min(width, height))
    shift = [round(reach * float(amount[3])), round(reach * float(amount[4]))]
    # Wide enough that no corner of the reflected border comes into view.
    margin = math.ceil((math.hypot(width, height) - min(width, height)) / 2 + reach)
    picture = change.pad(picture, [margin], padding_mode="symmetric")
    picture = change.affine(picture, float(angle), shift, 1.0, [0.0], interpolation=InterpolationMode.BILINEAR)
    picture = picture.crop((margin, margin, margin + width, margin + height))
    if "colour" in keep and chance[4] < 0.5:
        picture = change.adjust_gamma(picture, 1 + 0.2 * amount[5])
    return picture

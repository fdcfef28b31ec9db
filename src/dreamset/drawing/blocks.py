"""Blocks of synthetic images. A block is drawn at once and kept as one shard, whose key covers all its inputs."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dreamset import __version__
from dreamset.core import shards
from dreamset.data import cards
from dreamset.data.synthetic import SyntheticImage, read_metadata
from dreamset.drawing import mixes, starts
from dreamset.drawing.candidates import GROUP
from dreamset.weights import hub

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from dreamset.core.workspace import Workspace
    from dreamset.data.adapters import Adapter
    from dreamset.data.splits import Sample
    from dreamset.data.work import Work
    from dreamset.drawing.mixes import Mix

_MAKER: Final = "dreamset.drawing.draw"  # the module that draws a block; it imports this one


@dataclass(frozen=True)
class Block:
    """A shard to draw: every ``stride``-th image from ``start`` to ``stop``, of each label.

    Attributes:
        key: of the shard.
        adapter: index of the adapter that all labels share; None for the base alone.
        labels: the classes.
        start: index of the first image.
        stop: index after the last image.
        stride: distance of two indices.
        scale: factor of the adapter.
        mixes: of each image, in the order of drawing, its LoRAs of shots; none where all images have one adapter.
        first: whether it is of the first round, which a filter learns from and leaves as it is.
    """

    key: str
    adapter: int | None
    labels: tuple[int, ...]
    start: int
    stop: int
    stride: int = 1
    scale: float = 1.0
    mixes: tuple[Mix, ...] = ()
    first: bool = False

    @property
    def indices(self) -> range:
        """The indices of the images of each label."""
        return range(self.start, self.stop, self.stride)

    def __len__(self) -> int:
        return len(self.labels) * len(self.indices)


@dataclass(frozen=True)
class Request:
    """One image of a block.

    ``shot`` is the real image that it starts from, None where it starts from noise; ``beside`` the one that this is
    mixed with, and ``share`` the share of ``shot`` in the mixture. ``avoid`` is the prompt of the unconditional half,
    and ``toward`` the real image that it is pulled toward. ``told`` is the sha256 of the shot that the prompt tells of,
    and ``attributes`` holds what CLIP read in that. ``mix`` is the LoRAs of shots that it is drawn with.
    """

    label: int
    index: int
    prompt: str
    shot: Sample | None = None
    avoid: str = ""
    toward: Sample | None = None
    beside: Sample | None = None
    share: float = 1.0
    told: str | None = None
    attributes: Mapping[str, str] | None = None
    mix: Mix = ()


def plan(work: Work, adapters: list[Adapter], needed: Mapping[int, int] | None = None) -> list[Block]:
    """Return the blocks that hold the first ``needed`` images of every label.

    No block crosses the number of images that the parameters ask for, so that no more than these are drawn. Beyond
    that number, where rejected images are replaced, blocks are always whole: one more rejection then changes none. They
    are always whole for a compiled U-Net too, which would be compiled anew for a smaller one, and for a filter that
    chooses among the images of a block. Classes that share a
    block may need unequal numbers: the surplus of a class is drawn and left out.

    Args:
        work: on the recipe.
        adapters: of the recipe; none for the base alone.
        needed: images by label; None: ``Params.drawn_per_class``.

    Raises:
        InputError: images start from shots, and ``strength`` leaves no step.
    """
    params, split, base, row = work.params, work.split, work.base, work.row
    if row.starts_from_shots:
        starts.check(params, work.recipe)
    asked = dict(enumerate(params.drawn_per_class(work.recipe, split.train_per_class)))
    batch = base.generate.batch
    weights = hub.identity(work.workspace.root, *base.pretrained)
    shared = {
        # Every picture names the program that drew it.
        "tool": f"dreamset {__version__}",
        # The name counts too: the metadata of every picture names the model that drew it.
        "base": [cards.public_name(weights["name"]), weights["sha256"]],
        "dtype": base.dtype,
        "resolution": base.resolution,
        "memory": base.memory,
        "sampler": dataclasses.asdict(work.sampler),
        "compile": base.generate.compile,
        "seed": params.seed,
        "redraws": params.generate.redraws,
    }
    student = hub.student(work.workspace.root, params, work.recipe)
    if student is not None:
        shared["student"] = [cards.public_name(student["name"]), student["sha256"]]
    if row.guide or row.guide_until:
        shared["guide"] = [row.guide, row.guide_until, row.pull_share]
    if work.filter_key and not row.first:
        shared["filter"] = work.filter_key
    everyone = tuple(range(len(split.classes)))
    scopes: list[tuple[int | None, tuple[int, ...], str | None]] = [(None, everyone, None)]
    mixed = row.has_adapter_per_shot
    if adapters and not mixed:
        scopes = [(i, adapter.labels, adapter.sha256) for i, adapter in enumerate(adapters)]
    stride, blocks, later = len(row.strengths), list[Block](), list[tuple[Block, dict[str, Any]]]()
    whole = base.generate.compile or row.filter == "k_of_n"
    for (adapter, labels, sha), (turn, scale) in itertools.product(scopes, enumerate(row.strengths)):
        depth = max(1, batch // (len(labels) * stride))
        if row.filter == "k_of_n":
            # A block holds whole groups, among which unlike images are chosen.
            unit = math.lcm(GROUP, stride) // stride
            depth = max(1, depth // unit) * unit
        for first in range(0, len(labels), batch):
            chunk = labels[first : first + batch]
            prompts = [[split.classes[label], work.lead(label)] for label in chunk]
            most, last = (max(counts[label] for label in chunk) for counts in (asked, needed or asked))
            runs = [*_runs(turn, 0, row.first, row.first, stride, depth)]
            runs += _runs(turn, row.first, 0 if whole else most, last, stride, depth)
            for indices in runs:
                # Scale 0 is the base, whatever the adapter. A recipe without an adapter shares this shard.
                place: dict[str, Any] = {"adapter": sha if scale else None, "scale": scale if sha else 0.0}
                place |= {"prompts": prompts, "labels": chunk, "indices": list(indices)}
                if not row.asks_alike:
                    place["asked"] = [dataclasses.astuple(one) for one in work.asked(places(chunk, indices))]
                if row.negative is not None:
                    place["negative"] = row.negative
                if row.starts_from_shots:
                    shots = starts.choose(split, params.seed, places(chunk, indices))
                    place["starts"] = [shot.sha256 for shot in shots]
                    if row.init_mix:
                        others = starts.beside(split, params.seed, row.init_mix, places(chunk, indices), shots)
                        place["init_mix"] = [row.init_mix, [other and (other[0].sha256, other[1]) for other in others]]
                if row.pulls:
                    place["modes"] = [shot.sha256 for shot in starts.choose(split, params.seed, places(chunk, indices))]
                if work.avoided:
                    place["avoided"] = [work.avoided[label] for label in chunk]
                drawn = mixes.choose(work, adapters, places(chunk, indices), scale) if mixed and scale else ()
                if drawn:
                    place["mixes"] = drawn
                first_round = indices.start < row.first
                key = shards.key_of(shared | place, _MAKER)
                own = adapter if scale else None
                block = Block(key, own, chunk, indices.start, indices.stop, stride, scale, drawn, first_round)
                if row.first and not first_round:
                    later.append((block, shared | place))
                else:
                    blocks.append(block)
    # What a filter has learned from the first round is all of its images.
    learned = {"filter": dict(work.filter_key) | {"first": [block.key for block in blocks]}}
    blocks += (dataclasses.replace(block, key=shards.key_of(place | learned, _MAKER)) for block, place in later)
    return blocks


def _runs(turn: int, low: int, most: int, last: int, stride: int, depth: int) -> Iterator[range]:
    """Yield the indices of the blocks of one turn from ``low`` on: up to ``most``, then whole ones beyond ``last``."""
    for start in range(_from(low, turn, stride), most, stride * depth):
        yield range(start, min(start + stride * depth, most), stride)
    for start in range(_from(max(low, most), turn, stride), last, stride * depth):
        yield range(start, start + stride * depth, stride)


def _from(low: int, turn: int, stride: int) -> int:
    """Return the first index from ``low`` on that is of a turn."""
    return low + (turn - low) % stride


def places(labels: Sequence[int], indices: Iterable[int]) -> list[tuple[int, int]]:
    """Return label and index of every image of a block, in the order of drawing."""
    return [(label, index) for index in indices for label in labels]


def requests(work: Work, block: Block) -> list[Request]:
    """Return the images of a block, in the order of drawing."""
    row, split, wanted = work.row, work.split, places(block.labels, block.indices)
    avoided = work.avoided or [row.negative or ""] * len(split.classes)
    plain = [
        Request(label, index, one.prompt, avoid=avoided[label], told=one.shot, attributes=one.attributes)
        for (label, index), one in zip(wanted, work.asked(wanted), strict=True)
    ]
    if block.mixes:
        plain = [dataclasses.replace(request, mix=mix) for request, mix in zip(plain, block.mixes, strict=True)]
    if not (row.starts_from_shots or row.pulls):
        return plain
    shots = starts.choose(split, work.params.seed, wanted)
    begun, pulled = row.starts_from_shots, row.pulls
    drawn = [
        dataclasses.replace(request, shot=shot if begun else None, toward=shot if pulled else None)
        for request, shot in zip(plain, shots, strict=True)
    ]
    if not row.init_mix:
        return drawn
    others = starts.beside(split, work.params.seed, row.init_mix, wanted, shots)
    return [
        request if other is None else dataclasses.replace(request, beside=other[0], share=other[1])
        for request, other in zip(drawn, others, strict=True)
    ]


def read_blocks(workspace: Workspace, blocks: list[Block]) -> Iterator[SyntheticImage]:
    """Yield every image of finished blocks, also those that no class needs."""
    for block in blocks:
        yield from read_metadata(workspace.shards / block.key)

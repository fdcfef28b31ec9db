"""Blocks of synthetic images: what is drawn at once, kept as one shard, and named by all that it depends on."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dreamset.core import shards
from dreamset.data import cards
from dreamset.data.synthetic import SyntheticImage, read_metadata
from dreamset.drawing import starts
from dreamset.weights import hub

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from dreamset.core.workspace import Workspace
    from dreamset.data.adapters import Adapter
    from dreamset.data.splits import Sample, Split
    from dreamset.params import Params

_MAKER: Final = "dreamset.drawing.draw"  # the module that draws a block; it imports this one


@dataclass(frozen=True)
class Block:
    """A shard to draw: every ``stride``-th image from ``start`` to ``stop`` of ``labels`` that share an adapter.

    ``scale`` is what the adapter is multiplied by.
    """

    key: str
    adapter: int | None
    labels: tuple[int, ...]
    start: int
    stop: int
    stride: int = 1
    scale: float = 1.0

    @property
    def indices(self) -> range:
        """Of each label."""
        return range(self.start, self.stop, self.stride)

    def __len__(self) -> int:
        return len(self.labels) * len(self.indices)


@dataclass(frozen=True)
class Request:
    """One image of a block; ``shot`` is the real one that it starts from, where it does."""

    label: int
    index: int
    prompt: str
    shot: Sample | None = None


def plan(
    params: Params,
    workspace: Workspace,
    split: Split,
    recipe: str,
    adapters: list[Adapter],
    needed: Mapping[int, int] | None = None,
) -> list[Block]:
    """The blocks that hold the first ``needed`` images of every label; None: as ``Params.synthetic_per_class`` says.

    A block is always drawn whole, so its images depend on its place alone: growing numbers add blocks, and so does a
    rejected image. Where classes that share a block want unequal numbers, what one of them does not want is drawn and
    left out.
    """
    if params.recipes[recipe].starts_from_shots:
        starts.check(params, recipe)
    counts = needed or dict(enumerate(params.synthetic_per_class(split.train_per_class)))
    base, row, batch = params.base, params.recipes[recipe], params.base.generate.batch
    weights = hub.identity(workspace.root, *base.pretrained)
    shared = {
        # By name too: every picture's metadata says which model drew it.
        "base": [cards.shown(weights["name"]), weights["sha256"]],
        "dtype": base.dtype,
        "resolution": base.resolution,
        "memory": base.memory,
        "sampler": dataclasses.asdict(params.sampler(recipe)),
        "compile": base.generate.compile,
        "seed": params.seed,
        "redraws": params.generate.redraws,
    }
    everyone = tuple(range(len(split.classes)))
    scopes: list[tuple[int | None, tuple[int, ...], str | None]] = [(None, everyone, None)]
    if adapters:
        scopes = [(i, adapter.labels, adapter.sha256) for i, adapter in enumerate(adapters)]
    stride, blocks = len(row.strengths), []
    for (adapter, labels, sha), (turn, scale) in itertools.product(scopes, enumerate(row.strengths)):
        depth = max(1, batch // (len(labels) * stride))
        for first in range(0, len(labels), batch):
            chunk = labels[first : first + batch]
            prompts = [[split.classes[label], split.prompt(label, row.prompt)] for label in chunk]
            for start in range(turn, max(counts[label] for label in chunk), stride * depth):
                stop = start + stride * depth
                indices = range(start, stop, stride)
                # At scale 0 it is the base, whatever the adapter, and as a recipe without one draws it.
                place: dict[str, Any] = {"adapter": sha if scale else None, "scale": scale if sha else 0.0}
                place |= {"prompts": prompts, "labels": chunk, "indices": list(indices)}
                if row.starts_from_shots:
                    wanted = places(chunk, indices)
                    place["starts"] = [shot.sha256 for shot in starts.choose(split, params.seed, wanted)]
                own = adapter if scale else None
                blocks.append(Block(shards.key_of(shared | place, _MAKER), own, chunk, start, stop, stride, scale))
    return blocks


def places(labels: Sequence[int], indices: Iterable[int]) -> list[tuple[int, int]]:
    """Label and index of every image of a block, in the order in which they are drawn."""
    return [(label, index) for index in indices for label in labels]


def requests(params: Params, split: Split, recipe: str, block: Block) -> list[Request]:
    """What a block draws, in that order."""
    row, wanted = params.recipes[recipe], places(block.labels, block.indices)
    found = [Request(label, index, split.prompt(label, row.prompt)) for label, index in wanted]
    if not row.starts_from_shots:
        return found
    shots = starts.choose(split, params.seed, wanted)
    return [dataclasses.replace(request, shot=shot) for request, shot in zip(found, shots, strict=True)]


def read_blocks(workspace: Workspace, blocks: list[Block]) -> Iterator[SyntheticImage]:
    """Every image of finished blocks, those beyond what is needed included."""
    for block in blocks:
        yield from read_metadata(workspace.shards / block.key)

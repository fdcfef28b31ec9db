"""All images of a recipe, drawn or retrieved until every class has what it needs."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

from dreamset import compute
from dreamset.core import shards
from dreamset.data import decisions
from dreamset.drawing import draw, filters, guides
from dreamset.drawing.blocks import Block, plan, read_blocks
from dreamset.generator import asking

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dreamset.data.adapters import Adapter
    from dreamset.data.decisions import Decision, Picture
    from dreamset.data.work import Work
    from dreamset.generator.base_model import BaseModel


def settled(work: Work) -> Work:
    """Return the work with what it asks with, its guide avoids and its filter depends on, which keys of images hold.

    Raises:
        InputError: there is one class alone, a file of prompts or a network is missing, or CLIP cannot read attributes.
    """
    return dataclasses.replace(guides.applied(asking.applied(work)), filter_key=filters.key(work))


def _draw(work: Work, adapters: list[Adapter], blocks: list[Block], load: Callable[[], BaseModel] | None) -> int:
    """Draw the blocks that are missing, those of a first round before a filter learns from it; return the images."""
    first, rest = [block for block in blocks if block.first], [block for block in blocks if not block.first]
    root, store, count, what = work.workspace.root, work.workspace.shards, 0, f"drawing {work.recipe}"
    for part, filtered in ((first, False), (rest, work.row.filters)):
        missing = [block for block in part if shards.find(store, block.key) is None]
        make = functools.partial(_draw_missing, work, adapters, first if filtered else None, load)
        # A caller that has a base has it in this process.
        with compute.inline(load is not None):
            made = compute.run(work.params.compute, root, store, make, missing, lambda block: [block.key], what=what)
        count += sum(made)
    return count


def _draw_missing(
    work: Work,
    adapters: list[Adapter],
    first: list[Block] | None,
    load: Callable[[], BaseModel] | None,
    missing: list[Block],
) -> int:
    """Draw blocks, through the filter where ``first`` gives the blocks that it may learn from."""
    for block in first or ():
        shards.find(work.workspace.shards, block.key)  # another machine may have made it
    return draw.draw_all(work, adapters, missing, load, None if first is None else filters.Filter(work, first))


def finish(
    work: Work,
    adapters: list[Adapter] | None,
    reviewed: Mapping[Picture, Decision],
    load: Callable[[], BaseModel] | None = None,
) -> tuple[list[Block], dict[int, int], int]:
    """Draw images until every class has all that it needs, without those that a person rejected.

    Args:
        work: on the recipe.
        adapters: None where the recipe retrieves its images.
        reviewed: decisions of people about images.
        load: returns the base; called if images are missing. None: ``draw.load_base``.

    Returns:
        The blocks, all of them finished shards; for each label the number of images from index 0 that includes all
        wanted ones; and the number of images that this call drew.
    """
    work, workspace = settled(work), work.workspace
    wanted = dict(enumerate(work.params.drawn_per_class(work.recipe, work.split.train_per_class)))
    needed = wanted
    drawn_now = 0
    while True:
        if adapters is None:
            from dreamset.drawing import retrieve

            blocks, new = retrieve.finish(work, max(needed.values()))
        else:
            blocks = plan(work, adapters, needed)
            new = _draw(work, adapters, blocks, load)
        drawn_now += new
        # An image must be drawn before its sha256 shows whether it was rejected. A replacement may be rejected too.
        rejected: dict[int, list[int]] = {label: [] for label in needed}
        for image in read_blocks(workspace, blocks) if reviewed else ():
            if reviewed.get(decisions.picture(image)) == "rejected":
                rejected[image.label].append(image.index)
        reached = {label: decisions.reach(rejected[label], count) for label, count in wanted.items()}
        if reached == needed:
            return blocks, needed, drawn_now
        needed = reached

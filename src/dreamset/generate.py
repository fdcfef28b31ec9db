"""``dreamset generate RECIPE``: a labelled synthetic dataset, drawn (or retrieved) in shards that survive a kill.

Output ``data/synthetic/<recipe>/``: class folders of PNG files, ``metadata.jsonl``, and a dataset card.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from dreamset.core import shards
from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write, write_json
from dreamset.data import cards, decisions, licences, splits, tuned
from dreamset.data.adapters import Adapter, read_adapters
from dreamset.data.synthetic import SyntheticImage, read_metadata, write_metadata
from dreamset.drawing import draw
from dreamset.drawing.blocks import Block, plan, read_blocks
from dreamset.weights import hub

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dreamset.core.workspace import Workspace
    from dreamset.data.decisions import Decision, Looked, Picture
    from dreamset.data.splits import Split
    from dreamset.generator.base_model import BaseModel
    from dreamset.params import Params


def run(
    params: Params, workspace: Workspace, recipe: str, load: Callable[[], BaseModel] | None = None
) -> dict[str, Any]:
    """Draw what is not drawn yet, and assemble ``data/synthetic/<recipe>/``.

    Args:
        params: all parameters.
        workspace: where the split and the adapters are.
        recipe: a row's name.
        load: called for the base when there is something to draw; None: ``draw.load_base``.

    Raises:
        InputError: the adapters or what was chosen by a study are missing or damaged, too many images came out
            degenerate, or the base is for non-commercial use and ``accept_licence`` is false.
    """
    licences.check(params)
    started = time.time()
    params = tuned.applied(params, workspace, recipe)
    split = splits.read_split(workspace.splits)
    draws = params.recipes[recipe].draws
    adapters = _adapters(params, workspace, recipe) if draws else None
    reviewed = decisions.read(workspace.review(recipe))
    blocks, needed, drawn_now = finish(params, workspace, split, recipe, adapters, reviewed, load)
    images, looked = _assemble(params, workspace, split, recipe, blocks, needed, reviewed)
    records = [_record(workspace, block) for block in blocks]
    drawn, seconds = sum(record["drawn"] for record in records), sum(record["seconds"] for record in records)
    redrawn = sum(image.redraws > 0 for image in images)
    if redrawn > params.generate.max_redrawn_share * len(images):
        raise InputError(
            f"{recipe}: {redrawn} of {len(images)} images came out constant, black or NaN and were redrawn, more than "
            f"generate.max_redrawn_share = {params.generate.max_redrawn_share:g}; look at its sample grids, then "
            "lower the adapter's learning rate or the guidance."
        )
    summary = {
        "recipe": recipe,
        "images": len(images),
        "per_class": cards.told(params.synthetic_per_class(split.train_per_class)),
        "drawn": drawn,
        "redrawn": redrawn,
        "looked_at": looked.looked_at,
        "rejected": looked.rejected,
        "seconds": round(seconds, 2),
        "images_per_s": round(drawn / seconds, 2),
        "sampler": dataclasses.asdict(params.sampler(recipe)) if draws else None,
        "machines": shards.machines(workspace.shards, [block.key for block in blocks]),
    }
    write_json(workspace.result("generate", recipe), summary)
    return summary | {"drawn_now": drawn_now, "elapsed": time.time() - started}


def _adapters(params: Params, workspace: Workspace, recipe: str) -> list[Adapter]:
    folder = tuned.adapters(params, workspace, recipe)
    return read_adapters(folder, "adapt" if folder == workspace.adapter(recipe) else "tune")


def finish(
    params: Params,
    workspace: Workspace,
    split: Split,
    recipe: str,
    adapters: list[Adapter] | None,
    reviewed: Mapping[Picture, Decision],
    load: Callable[[], BaseModel] | None = None,
) -> tuple[list[Block], dict[int, int], int]:
    """Draw what is not drawn yet until every class has all its images, none of them rejected by anybody.

    ``adapters`` are None where the images are not drawn but found; ``load`` is as ``run`` has it.

    Returns:
        The blocks, all of them finished shards; how many images of each label, from index 0, hold those that are
        wanted; and how many images were drawn here.
    """
    wanted = dict(enumerate(params.synthetic_per_class(split.train_per_class)))
    needed = wanted
    drawn_now = 0
    while True:
        if adapters is None:
            from dreamset.drawing import retrieve

            blocks, new = retrieve.finish(params, workspace, split, recipe, max(needed.values()))
        else:
            blocks = plan(params, workspace, split, recipe, adapters, needed)
            missing = [block for block in blocks if shards.find(workspace.shards, block.key) is None]
            new = draw.draw_all(params, workspace, split, recipe, adapters, missing, load) if missing else 0
        drawn_now += new
        # Only what is drawn tells its sha256, and so whether it was rejected; a replacement may have been, too.
        rejected: dict[int, list[int]] = {label: [] for label in needed}
        for image in read_blocks(workspace, blocks) if reviewed else ():
            if reviewed.get(decisions.picture(image)) == "rejected":
                rejected[image.label].append(image.index)
        reached = {label: decisions.reach(rejected[label], count) for label, count in wanted.items()}
        if reached == needed:
            return blocks, needed, drawn_now
        needed = reached


def _record(workspace: Workspace, block: Block) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((workspace.shards / block.key / "record.json").read_text())
    return record


def _assemble(
    params: Params,
    workspace: Workspace,
    split: Split,
    recipe: str,
    blocks: list[Block],
    needed: Mapping[int, int],
    reviewed: Mapping[Picture, Decision],
) -> tuple[list[SyntheticImage], Looked]:
    """The dataset's folder out of finished shards, by label and index, without what a person has rejected."""
    found = [
        (image, workspace.shards / block.key / image.file_name)
        for block in blocks
        for image in read_metadata(workspace.shards / block.key)
        if image.index < needed[image.label]
    ]
    found.sort(key=lambda pair: (pair[0].label, pair[0].index))
    every = [image for image, _ in found]
    if reviewed:
        _tell_stale(workspace, recipe, decisions.stale(reviewed, every, split.classes))
    found = [pair for pair in found if reviewed.get(decisions.picture(pair[0])) != "rejected"]
    images, looked = [image for image, _ in found], decisions.count(reviewed, every)
    with shards.assembling(workspace.synthetic(recipe)) as folder:
        for image, source in found:
            shards.link(source, folder / image.file_name)
        write_metadata(folder, images)
        write_json(folder / "shards.json", [block.key for block in blocks])
        atomic_write(folder / "README.md", _card(params, workspace, split, recipe, images, looked))
    return images, looked


def _card(
    params: Params, workspace: Workspace, split: Split, recipe: str, images: list[SyntheticImage], looked: Looked
) -> str:
    checked = decisions.checked(len(images), looked)
    if not params.recipes[recipe].draws:
        from dreamset.drawing import retrieve

        return retrieve.card(params, split, recipe, len(images), checked)
    base = hub.identity(workspace.root, *params.base.pretrained)
    return cards.dataset(params, split, recipe, [image.label for image in images], base, checked=checked)


def _tell_stale(workspace: Workspace, recipe: str, count: int) -> None:
    if count:
        print(
            f"dreamset: {workspace.review(recipe)}: {count} of its decisions are about pictures of another dataset of "
            f"{recipe} and are ignored; look at the new ones with `dreamset review {recipe}`.",
            file=sys.stderr,
            flush=True,
        )

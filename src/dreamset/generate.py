"""``dreamset generate RECIPE``: draw or retrieve a labelled synthetic dataset, in shards that survive a kill.

The output ``data/synthetic/<recipe>/`` holds class folders of PNG files, ``metadata.jsonl``, and a dataset card.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from dreamset.core import shards
from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write, read_json, write_json
from dreamset.data import cards, decisions, licences, tuned
from dreamset.data.adapters import Adapter, read_adapters
from dreamset.data.synthetic import SyntheticImage, read_metadata, write_metadata
from dreamset.data.work import Work
from dreamset.drawing.finish import finish
from dreamset.weights import hub

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dreamset.core.workspace import Workspace
    from dreamset.data.decisions import Decision, Looked, Picture
    from dreamset.drawing.blocks import Block
    from dreamset.generator.base_model import BaseModel
    from dreamset.params import Params


def run(
    params: Params, workspace: Workspace, recipe: str, load: Callable[[], BaseModel] | None = None
) -> dict[str, Any]:
    """Draw the images that are missing, and assemble ``data/synthetic/<recipe>/``.

    Args:
        params: all parameters.
        workspace: where the split and the adapters are.
        recipe: a row's name.
        load: returns the base; called if images are missing. None: ``draw.load_base``.

    Returns:
        The summary that is written to ``results/generate/<recipe>.json``, ``drawn_now`` images, ``elapsed`` seconds and
        ``warnings``.

    Raises:
        InputError: the adapters or the study's choice are missing or damaged, too many images came out degenerate,
            or the base is for non-commercial use and ``accept_licence`` is false.
    """
    licences.check(params)
    started = time.time()
    params = tuned.applied(params, workspace, recipe)
    work = Work.read(params, workspace, recipe)
    draws = work.row.draws
    adapters = _adapters(params, workspace, recipe) if draws else None
    reviewed = decisions.read(workspace.review(recipe))
    blocks, needed, drawn_now = finish(work, adapters, reviewed, load)
    images, looked = _assemble(work, blocks, needed, reviewed)
    records = [_record(workspace, block) for block in blocks]
    drawn, seconds = sum(record["drawn"] for record in records), sum(record["seconds"] for record in records)
    redrawn = sum(image.redraws > 0 for image in images)
    if redrawn > params.generate.max_redrawn_share * len(images):
        raise InputError(
            f"{recipe}: {redrawn} of {len(images)} images came out constant, black or NaN and were redrawn, more than "
            f"generate.max_redrawn_share = {params.generate.max_redrawn_share:g}; look at its sample grids, then "
            "lower the adapter's learning rate or the guidance."
        )
    chosen = _filtered(work, images)
    summary = {
        "recipe": recipe,
        "images": len(images),
        "per_class": cards.span(params.synthetic_per_class(work.split.train_per_class)),
        "drawn": drawn,
        "redrawn": redrawn,
        "looked_at": looked.looked_at,
        "rejected": looked.rejected,
        "seconds": round(seconds, 2),
        "images_per_s": round(drawn / seconds, 2),
        "sampler": dataclasses.asdict(work.sampler) if draws else None,
        "machines": shards.machines(workspace.shards, [block.key for block in blocks]),
    } | ({"filter": chosen} if chosen else {})
    write_json(workspace.result("generate", recipe), summary)
    warnings = _warnings(work, images, drawn_now)
    return summary | {"drawn_now": drawn_now, "elapsed": time.time() - started, "warnings": warnings}


def _filtered(work: Work, images: list[SyntheticImage]) -> dict[str, Any]:
    """Return what the filter did, by class: candidates it looked at, and images where it accepted none.

    Raises:
        InputError: it accepted no image of a class.
    """
    if not work.row.filters:
        return {}
    candidates, gave_up = Counter[str](), Counter[str]()
    count = Counter(image.class_name for image in images)
    for image in images:
        candidates[image.class_name] += image.tries or 0
        gave_up[image.class_name] += bool(image.gave_up)
    for name, number in count.items():
        if gave_up[name] == number:
            raise InputError(
                f"recipes.{work.recipe}.filter: {work.row.filter} accepted none of {candidates[name]} candidates of "
                f"class {name!r}; take another filter, raise filter_tries, or set filter: none. Drawn images are kept."
            )
    return {"kind": work.row.filter, "candidates": dict(candidates), "gave_up": dict(gave_up)}


def _warnings(work: Work, images: list[SyntheticImage], drawn_now: int) -> list[str]:
    """Return what to say of new pictures that a generator drew: of their prompts, and of their start from noise."""
    if not (drawn_now and work.row.draws):
        return []
    from dreamset.generator import asking
    from dreamset.generator.sampler import late_start_words

    cut = asking.too_long(work, [(image.class_name, image.prompt) for image in images])
    if work.row.starts_from_shots:
        return cut
    folder = hub.locate(work.workspace.root, *work.base.pretrained)
    schedule = read_json(folder / "scheduler/scheduler_config.json", "dreamset fetch")
    return [*cut, *(words for words in [late_start_words(schedule, work.sampler, work.steps_key)] if words)]


def _adapters(params: Params, workspace: Workspace, recipe: str) -> list[Adapter]:
    folder = tuned.adapters(params, workspace, recipe)
    return read_adapters(folder, "adapt" if folder == workspace.adapter(recipe) else "tune")


def _record(workspace: Workspace, block: Block) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((workspace.shards / block.key / "record.json").read_text())
    return record


def _assemble(
    work: Work, blocks: list[Block], needed: Mapping[int, int], reviewed: Mapping[Picture, Decision]
) -> tuple[list[SyntheticImage], Looked]:
    """Assemble the dataset's folder from finished shards, without rejected images.

    Returns:
        The images by label and index, and how many of them people looked at.
    """
    workspace = work.workspace
    files = [
        (image, workspace.shards / block.key / image.file_name)
        for block in blocks
        for image in read_metadata(workspace.shards / block.key)
        if image.index < needed[image.label]
    ]
    files.sort(key=lambda pair: (pair[0].label, pair[0].index))
    every = [image for image, _ in files]
    if reviewed:
        _warn_of_stale(workspace, work.recipe, decisions.stale(reviewed, every, work.split.classes))
    files = [pair for pair in files if reviewed.get(decisions.picture(pair[0])) != "rejected"]
    images, looked = [image for image, _ in files], decisions.count(reviewed, every)
    with shards.assembling(workspace.synthetic(work.recipe)) as folder:
        for image, source in files:
            shards.link(source, folder / image.file_name)
        write_metadata(folder, images)
        write_json(folder / "shards.json", [block.key for block in blocks])
        atomic_write(folder / "README.md", _card(work, images, looked))
    return images, looked


def _card(work: Work, images: list[SyntheticImage], looked: Looked) -> str:
    checked = decisions.checked(len(images), looked)
    if not work.row.draws:
        from dreamset.drawing import retrieve

        return retrieve.card(work, len(images), checked)
    base = hub.identity(work.workspace.root, *work.base.pretrained)
    return cards.dataset(work.params, work.split, work.recipe, [image.label for image in images], base, checked=checked)


def _warn_of_stale(workspace: Workspace, recipe: str, count: int) -> None:
    if count:
        print(
            f"dreamset: {workspace.review(recipe)}: {count} of its decisions are about pictures of another dataset of "
            f"{recipe} and are ignored; look at the new ones with `dreamset review {recipe}`.",
            file=sys.stderr,
            flush=True,
        )

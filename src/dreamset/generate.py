"""``dreamset generate RECIPE``: draw or retrieve a labelled synthetic dataset, in shards that survive a kill.

The output ``data/synthetic/<recipe>/`` holds class folders of PNG files or, above ``generate.pack`` images, tars of
them; ``metadata.jsonl``; and a dataset card.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from dreamset.core import shards
from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write, write_json
from dreamset.data import cards, current, decisions, licences, packed, tuned
from dreamset.data.adapters import Adapter, read_adapters
from dreamset.data.synthetic import SyntheticImage, read_metadata, write_metadata
from dreamset.data.work import Work
from dreamset.drawing import budget, copies, draw
from dreamset.drawing.finish import finish
from dreamset.weights import hub

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from dreamset.core.workspace import Workspace
    from dreamset.data.decisions import Decision, Looked, Picture
    from dreamset.drawing.blocks import Block
    from dreamset.drawing.copies import Copies
    from dreamset.generator.base_model import BaseModel
    from dreamset.params import Params

_TELLING: Final = 10  # candidates of a class from which on a filter that accepts none of them is no accident


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
    licences.check(params, recipe)
    started = time.time()
    made_for = current.of_images(params, workspace, recipe)
    params = tuned.applied(params, workspace, recipe)
    work = Work.read(params, workspace, recipe)
    draws = work.row.draws
    adapters = _adapters(params, workspace, recipe) if draws else None
    reviewed = decisions.read(workspace.review(recipe))
    work, spent = budget.fitted(work, adapters, load)
    params = work.params
    blocks, needed, drawn_now = finish(work, adapters, reviewed, load)
    copied = copies.plan(work, blocks)
    copies.make(work, copied)
    files, looked = _gathered(work, blocks, copied, needed, reviewed)
    images = [image for image, _ in files]
    records = [_record(workspace, block) for block in blocks]
    drawn, seconds = sum(record["drawn"] for record in records), sum(record["seconds"] for record in records)
    copying, own = copies.seconds(workspace.shards, copied), [image for image in images if image.copy_of is None]
    redrawn = sum(image.redraws > 0 for image in own)
    if redrawn > params.generate.max_redrawn_share * len(own):
        raise InputError(
            f"{recipe}: {redrawn} of {len(own)} images came out constant, black or NaN and were redrawn, more than "
            f"generate.max_redrawn_share = {params.generate.max_redrawn_share:g}; look at its sample grids, then "
            "lower the adapter's learning rate or the guidance."
        )
    chosen = _filtered(work, own)
    # Whatever is refused above leaves the images that stood there before.
    _assemble(work, files, _keys(blocks, copied), looked)
    summary = {
        "recipe": recipe,
        "images": len(images),
        "per_class": cards.span(params.synthetic_per_class(work.split.train_per_class)),
        "drawn": drawn,
        "redrawn": redrawn,
        "looked_at": looked.looked_at,
        "rejected": looked.rejected,
        "seconds": round(seconds + copying, 2),
        "images_per_s": round(drawn / seconds, 2),
        "sampler": dataclasses.asdict(work.sampler) if draws else None,
        "machines": shards.machines(workspace.shards, _keys(blocks, copied)),
        "made_for": made_for,
    } | ({"filter": chosen} if chosen else {})
    if copied:
        summary["copies"] = {"images": len(images) - len(own), "seconds": round(copying, 2)}
    if spent is not None:
        summary["budget"] = {"budget_s": spent.budget, "seconds": round(spent.seconds, 2), "per_class": spent.per_class}
        drawn_now += spent.drawn_now
    write_json(workspace.result("generate", recipe), summary)
    return (
        summary
        | {"drawn_now": drawn_now, "elapsed": time.time() - started, "warnings": _warnings(work, images, drawn_now)}
        | ({"sentences": [spent.sentence]} if spent is not None else {})
    )


def _filtered(work: Work, images: list[SyntheticImage]) -> dict[str, Any]:
    """Return what the filter did, by class: candidates it looked at, and images where it accepted none.

    Raises:
        InputError: it accepted no image of a class.
    """
    if not work.row.filters:
        return {}
    candidates, gave_up, count = Counter[str](), Counter[str](), Counter[str]()
    for image in images:
        if image.tries is None:
            continue  # of a first round, which the filter leaves as it is
        count[image.class_name] += 1
        candidates[image.class_name] += image.tries
        gave_up[image.class_name] += bool(image.gave_up)
    for name, number in count.items():
        # Of fewer candidates, as in the small sets of a study, that none was accepted says little.
        if gave_up[name] == number and candidates[name] >= _TELLING:
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
    schedule = draw.schedule(work)
    return [*cut, *(words for words in [late_start_words(schedule, work.sampler, work.steps_key)] if words)]


def _adapters(params: Params, workspace: Workspace, recipe: str) -> list[Adapter]:
    folder = tuned.adapters(params, workspace, recipe)
    return read_adapters(folder, "adapt" if folder == workspace.adapter(recipe) else "tune")


def _keys(blocks: list[Block], copied: list[Copies]) -> list[str]:
    """Return the keys of all shards that a dataset consists of."""
    return [*(block.key for block in blocks), *(one.key for one in copied)]


def _record(workspace: Workspace, block: Block) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((workspace.shards / block.key / "record.json").read_text())
    return record


def _gathered(
    work: Work,
    blocks: list[Block],
    copied: list[Copies],
    needed: Mapping[int, int],
    reviewed: Mapping[Picture, Decision],
) -> tuple[list[tuple[SyntheticImage, Path]], Looked]:
    """Return the images of finished shards with their folders, without rejected ones and their copies.

    Returns:
        The images by label and index, each before its copies, and how many of the drawn ones people looked at.
    """
    workspace = work.workspace
    # With the shard that each lies in; the paths of 100,000 files would take more memory than all else.
    folders, shared = (workspace.shards / block.key for block in blocks), dict[str, Any]()
    files = [
        (image, folder)
        for folder in folders
        for image in read_metadata(folder, shared)
        if image.index < needed[image.label]
    ]
    files.sort(key=lambda pair: (pair[0].label, pair[0].index))
    every = [image for image, _ in files]
    if reviewed:
        _warn_of_stale(workspace, work.recipe, decisions.stale(reviewed, every, work.split.classes))
    files = [pair for pair in files if reviewed.get(decisions.picture(pair[0])) != "rejected"]
    return _with_copies(work, files, copied), decisions.count(reviewed, every)


def _assemble(work: Work, files: list[tuple[SyntheticImage, Path]], keys: list[str], looked: Looked) -> None:
    """Assemble the dataset's folder from images and the folders that their files lie in."""
    images = [image for image, _ in files]
    with shards.assembling(work.workspace.synthetic(work.recipe)) as folder:
        if len(images) > work.params.generate.pack:
            width = len(work.split.classes) * (1 + work.row.copies)
            packed.write(folder, images, lambda at: (files[at][1] / images[at].file_name).read_bytes(), width)
        else:
            for image, source in files:
                shards.link(source / image.file_name, folder / image.file_name)
        write_metadata(folder, images)
        write_json(folder / "shards.json", keys)
        atomic_write(folder / "README.md", _card(work, images, looked))


def _with_copies(
    work: Work, files: list[tuple[SyntheticImage, Path]], copied: list[Copies]
) -> list[tuple[SyntheticImage, Path]]:
    """Return drawn images, each followed by its copies, of each class as many as are wanted of both together.

    Each image comes with the folder that its file lies in.
    """
    if not copied:
        return files
    store = work.workspace.shards
    by_image: dict[str, list[tuple[SyntheticImage, Path]]] = {}
    for one in copied:
        for image in read_metadata(store / one.key):
            assert image.copy_of is not None
            by_image.setdefault(image.copy_of, []).append((image, store / one.key))
    left = dict(enumerate(work.params.synthetic_per_class(work.split.train_per_class)))
    kept = []
    for image, folder in files:
        here = [(image, folder), *by_image[image.file_name]][: left[image.label]]
        left[image.label] -= len(here)
        kept += here
    return kept


def _card(work: Work, images: list[SyntheticImage], looked: Looked) -> str:
    drawn = sum(image.copy_of is None for image in images)
    checked = decisions.checked(drawn, looked)
    if not work.row.draws:
        from dreamset.drawing import retrieve

        return retrieve.card(work, drawn, len(images) - drawn, checked)
    base = hub.identity(work.workspace.root, *work.base.pretrained)
    labels, student = [image.label for image in images], hub.student(work.workspace.root, work.params, work.recipe)
    return cards.dataset(
        work.params, work.split, work.recipe, labels, base, student=student, copies=len(images) - drawn, checked=checked
    )


def _warn_of_stale(workspace: Workspace, recipe: str, count: int) -> None:
    if count:
        print(
            f"dreamset: {workspace.review(recipe)}: {count} of its decisions are about pictures of another dataset of "
            f"{recipe} and are ignored; look at the new ones with `dreamset review {recipe}`.",
            file=sys.stderr,
            flush=True,
        )

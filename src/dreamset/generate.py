"""``dreamset generate RECIPE``: a labelled synthetic dataset, drawn (or retrieved) in shards that survive a kill.

Output ``data/synthetic/<recipe>/``: class folders of PNG files, ``metadata.jsonl``, and a dataset card.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dreamset import __version__, cards, hub, licences, locks, shards, splits, starts, tuned, xmp
from dreamset.adapters import Adapter, read_adapters
from dreamset.device import out_of_memory, pick
from dreamset.errors import InputError, StoppedError
from dreamset.files import atomic_write, sha256, write_json
from dreamset.progress import bar
from dreamset.review import decisions
from dreamset.seeds import image_seed
from dreamset.synthetic import SyntheticImage, read_metadata, write_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dreamset.generator.base_model import BaseModel, Condition
    from dreamset.params import Params
    from dreamset.review.decisions import Decision, Looked, Picture
    from dreamset.splits import Sample, Split
    from dreamset.workspace import Workspace

CODE: Final = (
    "dreamset.generate",
    "dreamset.generator.base_model",
    "dreamset.generator.class_encoder",
    "dreamset.generator.lora",
    "dreamset.generator.sampler",
    "dreamset.generator.trained",
    "dreamset.generator.whole_unet",
    "dreamset.images",
    "dreamset.seeds",
    "dreamset.starts",
    "dreamset.xmp",
)


@dataclass(frozen=True)
class Block:
    """A shard to draw: images ``start`` to ``stop`` of each of ``labels``, which share an adapter."""

    key: str
    adapter: int | None
    labels: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Request:
    """One image of a block; ``shot`` is the real one that it starts from, where it does."""

    label: int
    index: int
    prompt: str
    shot: Sample | None = None


def run(
    params: Params, workspace: Workspace, recipe: str, load: Callable[[], BaseModel] | None = None
) -> dict[str, Any]:
    """Draw what is not drawn yet, and assemble ``data/synthetic/<recipe>/``.

    Args:
        params: all parameters.
        workspace: where the split and the adapters are.
        recipe: a row's name.
        load: called for the base when there is something to draw; None: ``load_base``.

    Raises:
        InputError: the adapters or what was chosen by a study are missing or damaged, too many images came out
            degenerate, or the base is for non-commercial use and ``accept_licence`` is false.
    """
    licences.check(params)
    started = time.time()
    params = tuned.applied(params, workspace, recipe)
    split = splits.read_split(workspace.splits)
    drawing = params.recipes[recipe].origin == "generator"
    adapters = _adapters(params, workspace, recipe) if drawing else None
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
        "sampler": dataclasses.asdict(params.sampler(recipe)) if drawing else None,
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
            from dreamset import retrieve

            blocks, new = retrieve.finish(params, workspace, split, recipe, max(needed.values()))
        else:
            blocks = plan(params, workspace, split, recipe, adapters, needed)
            missing = [block for block in blocks if shards.find(workspace.shards, block.key) is None]
            new = _draw_all(params, workspace, split, recipe, adapters, missing, load) if missing else 0
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
    if params.recipes[recipe].init == "image":
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
    blocks = []
    for adapter, labels, sha in scopes:
        depth = max(1, batch // len(labels))
        for first in range(0, len(labels), batch):
            chunk = labels[first : first + batch]
            prompts = [[split.classes[label], split.prompt(label, row.prompt)] for label in chunk]
            for start in range(0, max(counts[label] for label in chunk), depth):
                place: dict[str, Any] = {"adapter": sha, "prompts": prompts, "labels": chunk}
                place |= {"start": start, "depth": depth}
                if row.init == "image":
                    wanted = _places(chunk, start, start + depth)
                    place["starts"] = [shot.sha256 for shot in starts.choose(split, params.seed, wanted)]
                blocks.append(Block(shards.key_of(shared | place, CODE), adapter, chunk, start, start + depth))
    return blocks


def _places(labels: Sequence[int], start: int, stop: int) -> list[tuple[int, int]]:
    """Label and index of every image of a block, in the order in which they are drawn."""
    return [(label, index) for index in range(start, stop) for label in labels]


def load_base(params: Params, workspace: Workspace) -> BaseModel:
    """The base that the model's row names, on the device, compiled where the row says so."""
    from dreamset.generator import base_model

    base = base_model.load(hub.locate(workspace.root, *params.base.pretrained), params.base, pick())
    if params.base.generate.compile:
        base_model.compile_unet(base)
    return base


def _draw_all(
    params: Params,
    workspace: Workspace,
    split: Split,
    recipe: str,
    adapters: list[Adapter],
    missing: list[Block],
    load: Callable[[], BaseModel] | None = None,
) -> int:
    """Draw blocks, adapter by adapter; encoding and writing go on while the next block is drawn.

    Returns:
        How many images were drawn here: fewer than are missing where another process draws the same blocks.
    """
    from dreamset.generator import trained

    base = load_base(params, workspace) if load is None else load()
    total = sum(len(block.labels) * (block.stop - block.start) for block in missing)
    written: Future[None] | None = None
    count = 0
    current: int | None = -1  # no adapter's index, and not the base's None
    embeds: dict[str, Condition] = {}
    latents = starts.Latents(workspace.cell)
    with (
        ThreadPoolExecutor(max_workers=1) as writer,
        bar(total=total, what=f"drawing {recipe}", unit="img") as progress,
        ExitStack() as installed,
    ):
        for block, claim in shards.claimed(workspace.shards, missing, lambda block: [block.key]):
            with claim:
                locks.boundary()
                adapter = None if block.adapter is None else adapters[block.adapter]
                if block.adapter != current:
                    installed.close()
                    file = None if adapter is None else tuned.adapters(params, workspace, recipe) / adapter.file
                    installed.enter_context(trained.installed(base, file))
                    embeds, current = {}, block.adapter
                drawn = _draw(params, base, split, recipe, block, embeds, latents)
                if written:
                    written.result()
                sha = None if adapter is None else adapter.sha256
                # The shard stays claimed until it is written.
                kept = claim.pop_all()
                written = writer.submit(_write, params, workspace, split, recipe, block, sha, drawn, kept)
            count += len(drawn.requests)
            progress.update(len(drawn.requests))
        if written:
            written.result()
    return count


@dataclass(frozen=True)
class Drawn:
    """Images of a block: requests, pixels (n, h, w, 3) uint8, seeds and redraws of each, and the time taken."""

    requests: list[Request]
    pixels: NDArray[np.uint8]
    seeds: list[int]
    redraws: list[int]
    seconds: float


def _draw(
    params: Params,
    base: BaseModel,
    split: Split,
    recipe: str,
    block: Block,
    embeds: dict[str, Condition],
    latents: starts.Latents,
) -> Drawn:
    """Draw a block, and again what came out degenerate.

    ``embeds`` keeps the prompts of this adapter, and ``latents`` the shots that images start from.
    """
    import torch

    from dreamset.generator.base_model import cat
    from dreamset.generator.sampler import degenerate, draw_fitting, to_uint8

    started = time.perf_counter()
    requests = _requests(params, split, recipe, block)
    new = [prompt for prompt in dict.fromkeys(["", *(r.prompt for r in requests)]) if prompt not in embeds]
    if new:
        with torch.no_grad():
            embeds.update(zip(new, base.encode(new).split(), strict=True))
    redraws = [0] * len(requests)
    seeds = [image_seed(params.seed, split.classes[r.label], r.index) for r in requests]
    rows, images = list(range(len(requests))), torch.empty(0)
    for attempt in range(params.generate.redraws + 1):
        for row in rows:
            redraws[row] = attempt
            request = requests[row]
            seeds[row] = image_seed(params.seed, split.classes[request.label], request.index, attempt)
        wanted = cat([embeds[requests[row].prompt] for row in rows])
        empty = embeds[""].expand(len(rows))
        # Compiled for whole blocks alone: how many are drawn again is chance, and each size would be compiled.
        drawing = base if attempt == 0 else dataclasses.replace(base, compiled=None)
        shots = [shot for row in rows if (shot := requests[row].shot)]
        try:
            begun = latents.of(base, shots) if shots else None
            drawn = draw_fitting(drawing, params.sampler(recipe), wanted, empty, [seeds[row] for row in rows], begun)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise StoppedError(
                f"generate {recipe}: no memory to draw one image by itself; put attention_slicing, vae_slicing or "
                f"offload into models.{params.model}.memory in params.yaml. What is drawn is kept."
            ) from error
        images = drawn if attempt == 0 else images.index_copy(0, torch.tensor(rows, device=images.device), drawn)
        rows = [row for row, bad in zip(rows, degenerate(drawn).tolist(), strict=True) if bad]
        if not rows:
            return Drawn(requests, to_uint8(images).numpy(), seeds, redraws, time.perf_counter() - started)
    request = requests[rows[0]]
    raise InputError(
        f"{recipe}: image {request.index} of class {split.classes[request.label]!r} (and {len(rows) - 1} more) is "
        f"constant, black or NaN after {params.generate.redraws} redraws; lower the adapter's learning rate "
        "(models.*.adapt) or the guidance."
    )


def _requests(params: Params, split: Split, recipe: str, block: Block) -> list[Request]:
    row, places = params.recipes[recipe], _places(block.labels, block.start, block.stop)
    requests = [Request(label, index, split.prompt(label, row.prompt)) for label, index in places]
    if row.init == "noise":
        return requests
    shots = starts.choose(split, params.seed, places)
    return [dataclasses.replace(request, shot=shot) for request, shot in zip(requests, shots, strict=True)]


def _write(
    params: Params,
    workspace: Workspace,
    split: Split,
    recipe: str,
    block: Block,
    adapter: str | None,
    drawn: Drawn,
    claim: ExitStack,
) -> None:
    """Encode a block and make it a shard; then close its claim."""
    from dreamset.images import png

    files, images = [], []
    with claim:
        tool, base = f"dreamset {__version__}", hub.identity(workspace.root, *params.base.pretrained)
        for request, pixels, seed, redraws in zip(
            drawn.requests, drawn.pixels, drawn.seeds, drawn.redraws, strict=True
        ):
            name = f"{split.folder(request.label)}/{request.index:05d}.png"
            source = xmp.GENERATED if request.shot is None else xmp.EDITED
            text = {
                "Software": tool,
                "DigitalSourceType": source,
                "Seed": str(seed),
                "Prompt": request.prompt,
                xmp.CHUNK: xmp.packet(cards.shown(base["name"]), base["sha256"], request.prompt, seed, tool, source),
            }
            files.append((name, png(pixels, text)))
            images.append(
                SyntheticImage(
                    file_name=name,
                    label=request.label,
                    class_name=split.classes[request.label],
                    index=request.index,
                    prompt=request.prompt,
                    seed=seed,
                    redraws=redraws,
                    sampler=dataclasses.asdict(params.sampler(recipe)),
                    adapter=adapter,
                    sha256=sha256(files[-1][1]),
                    shot=None if request.shot is None else request.shot.sha256,
                )
            )
        with shards.writing(workspace.shards, block.key, sum(len(data) for _, data in files)) as folder:
            for name, data in files:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(data)
            write_metadata(folder, images)
            write_json(folder / "record.json", {"drawn": len(images), "seconds": drawn.seconds})


def _record(workspace: Workspace, block: Block) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((workspace.shards / block.key / "record.json").read_text())
    return record


def read_blocks(workspace: Workspace, blocks: list[Block]) -> Iterator[SyntheticImage]:
    """Every image of finished blocks, those beyond what is needed included."""
    for block in blocks:
        yield from read_metadata(workspace.shards / block.key)


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
    if params.recipes[recipe].origin == "retrieval":
        from dreamset import retrieve

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

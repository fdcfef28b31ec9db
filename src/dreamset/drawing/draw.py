"""Draw the images of blocks with the base and its adapters; write each block as a shard while the next is drawn."""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreamset import __version__
from dreamset.core import locks, shards, xmp
from dreamset.core.device import out_of_memory, pick
from dreamset.core.errors import InputError, StoppedError
from dreamset.core.files import sha256, write_json
from dreamset.core.progress import bar
from dreamset.core.seeds import image_seed
from dreamset.data import cards, tuned
from dreamset.data.synthetic import SyntheticImage, write_metadata
from dreamset.drawing import starts
from dreamset.drawing.blocks import requests
from dreamset.weights import hub

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from dreamset.core.workspace import Workspace
    from dreamset.data.adapters import Adapter
    from dreamset.data.work import Work
    from dreamset.drawing.blocks import Block, Request
    from dreamset.generator.base_model import BaseModel
    from dreamset.generator.conditions import Condition
    from dreamset.generator.sampler import Guide
    from dreamset.params import Params


def load_base(params: Params, workspace: Workspace) -> BaseModel:
    """Return the base that the model's row names, on the device, compiled if the row says so."""
    from dreamset.generator import base_model

    base = base_model.load(hub.locate(workspace.root, *params.base.pretrained), params.base, pick())
    if params.base.generate.compile:
        base_model.compile_unet(base)
    return base


def draw_all(
    work: Work,
    adapters: list[Adapter],
    missing: list[Block],
    load: Callable[[], BaseModel] | None = None,
) -> int:
    """Draw blocks, adapter by adapter; a second thread encodes and writes each while the next is drawn.

    Args:
        work: on the recipe.
        adapters: of the recipe.
        missing: the blocks.
        load: returns the base; None: ``load_base``.

    Returns:
        The number of images that this call drew; fewer than are missing where another process draws the same blocks.

    Raises:
        InputError: an image stays degenerate after all redraws, or the sampler begins with little noise.
        StoppedError: a single image does not fit into memory.
    """
    import torch

    from dreamset.generator import trained
    from dreamset.generator.sampler import Guide, check_first_step

    workspace = work.workspace
    base = load_base(work.params, workspace) if load is None else load()
    if not work.row.starts_from_shots:
        check_first_step(base.schedule, work.sampler, work.steps_key)
    total = sum(map(len, missing))
    written: Future[None] | None = None
    count = 0
    current: tuple[int | None, float] | None = None
    embeds: dict[str, Condition] = {}
    latents = starts.Latents(workspace.cell)
    guide, unguided = Guide(), None
    if work.row.guide_until is not None:
        guide = dataclasses.replace(guide, until=work.row.guide_until)
    if work.row.guide == "base":
        # Before any adapter is installed: the base's own U-Net, and its empty prompt.
        guide = dataclasses.replace(guide, network=base.twin())
        with torch.no_grad():
            unguided = base.encode([""])
    with (
        ThreadPoolExecutor(max_workers=1) as writer,
        bar(total=total, what=f"drawing {work.recipe}", unit="img") as progress,
        ExitStack() as installed,
    ):
        for block, claim in shards.claimed(workspace.shards, missing, lambda block: [block.key]):
            with claim:
                locks.boundary()
                adapter = None if block.adapter is None else adapters[block.adapter]
                if (block.adapter, block.scale) != current:
                    installed.close()
                    file = None
                    if adapter is not None:
                        file = tuned.adapters(work.params, workspace, work.recipe) / adapter.file
                    installed.enter_context(trained.installed(base, file, block.scale))
                    embeds, current = {}, (block.adapter, block.scale)
                drawn = draw(work, base, block, embeds, latents, guide, unguided)
                if written:
                    written.result()
                sha = None if adapter is None else adapter.sha256
                # The claim on the shard lasts until the writer has written it.
                written = writer.submit(write, work, block, sha, drawn, claim.pop_all())
            count += len(drawn.requests)
            progress.update(len(drawn.requests))
        if written:
            written.result()
    return count


@dataclass(frozen=True)
class Drawn:
    """The images of a block: requests, pixels (n, h, w, 3) uint8, seed and redraws of each, and the seconds taken."""

    requests: list[Request]
    pixels: NDArray[np.uint8]
    seeds: list[int]
    redraws: list[int]
    seconds: float


def draw(
    work: Work,
    base: BaseModel,
    block: Block,
    embeds: dict[str, Condition],
    latents: starts.Latents,
    guide: Guide,
    unguided: Condition | None = None,
) -> Drawn:
    """Draw a block, and draw its degenerate images again.

    Args:
        work: on the recipe.
        base: with the adapter installed.
        block: to draw.
        embeds: cache of the encoded prompts of this adapter.
        latents: cache of the encoded shots.
        guide: of the recipe, without the modes of the images.
        unguided: condition of the guiding network; None: that of the adapted one.

    Raises:
        InputError: an image stays degenerate after all redraws.
        StoppedError: a single image does not fit into memory.
    """
    import torch

    from dreamset.generator.conditions import cat
    from dreamset.generator.sampler import degenerate, draw_fitting, to_uint8

    params, split, recipe = work.params, work.split, work.recipe
    started = time.perf_counter()
    wanted = requests(work, block)
    new = [prompt for prompt in dict.fromkeys(p for r in wanted for p in (r.avoid, r.prompt)) if prompt not in embeds]
    if new:
        with torch.no_grad():
            embeds.update(zip(new, base.encode(new).split(), strict=True))
    redraws = [0] * len(wanted)
    seeds = [image_seed(params.seed, split.classes[r.label], r.index) for r in wanted]
    rows, images = list(range(len(wanted))), torch.empty(0)
    for attempt in range(params.generate.redraws + 1):
        for row in rows:
            redraws[row] = attempt
            request = wanted[row]
            seeds[row] = image_seed(params.seed, split.classes[request.label], request.index, attempt)
        conditions = cat([embeds[wanted[row].prompt] for row in rows])
        empty = unguided.expand(len(rows)) if unguided else cat([embeds[wanted[row].avoid] for row in rows])
        # Redraws are not compiled: their number is chance, and each number would be compiled anew.
        drawer = base if attempt == 0 else dataclasses.replace(base, compiled=None)
        shots = [shot for row in rows if (shot := wanted[row].shot)]
        modes = [shot for row in rows if (shot := wanted[row].toward)]
        try:
            begun = latents.of(base, shots) if shots else None
            if modes:
                guide = dataclasses.replace(guide, modes=latents.of(base, modes), pull=work.row.pull_share)
            drawn = draw_fitting(drawer, work.sampler, conditions, empty, [seeds[row] for row in rows], begun, guide)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise StoppedError(
                f"generate {recipe}: no memory to draw one image by itself; put attention_slicing, vae_slicing or "
                f"offload into models.{params.model}.memory in params.yaml. Finished images are kept."
            ) from error
        images = drawn if attempt == 0 else images.index_copy(0, torch.tensor(rows, device=images.device), drawn)
        rows = [row for row, bad in zip(rows, degenerate(drawn).tolist(), strict=True) if bad]
        if not rows:
            return Drawn(wanted, to_uint8(images).numpy(), seeds, redraws, time.perf_counter() - started)
    request = wanted[rows[0]]
    raise InputError(
        f"{recipe}: image {request.index} of class {split.classes[request.label]!r} (and {len(rows) - 1} more) is "
        f"constant, black or NaN after {params.generate.redraws} redraws; lower the adapter's learning rate "
        "(models.*.adapt) or the guidance."
    )


def write(work: Work, block: Block, adapter: str | None, drawn: Drawn, claim: ExitStack) -> None:
    """Encode a block and write it as a shard; then close its claim."""
    from dreamset.core.images import png

    workspace, split = work.workspace, work.split
    files, images = [], []
    scale = block.scale if adapter is not None and work.row.trains_lora else None
    with claim:
        tool, base = f"dreamset {__version__}", hub.identity(workspace.root, *work.base.pretrained)
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
                xmp.CHUNK: xmp.packet(
                    cards.public_name(base["name"]), base["sha256"], request.prompt, seed, tool, source
                ),
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
                    sampler=dataclasses.asdict(work.sampler),
                    adapter=adapter,
                    adapter_scale=scale,
                    sha256=sha256(files[-1][1]),
                    shot=None if request.shot is None else request.shot.sha256,
                    avoid=request.avoid or None,
                    toward=None if request.toward is None else request.toward.sha256,
                )
            )
        with shards.writing(workspace.shards, block.key, sum(len(data) for _, data in files)) as folder:
            for name, data in files:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(data)
            write_metadata(folder, images)
            write_json(folder / "record.json", {"drawn": len(images), "seconds": drawn.seconds})

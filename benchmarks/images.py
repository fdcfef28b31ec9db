"""Images drawn: a stock ``StableDiffusionPipeline`` with un-fused LoRA against ``dreamset.generate``."""

from __future__ import annotations

import dataclasses
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging

from benchmarks import arithmetic
from benchmarks.setting import CLASS, DATASET, adapters
from benchmarks.timing import Ladder, Rung, clock
from dreamset.core.seeds import image_seed
from dreamset.data.adapters import Adapter, read_adapters
from dreamset.data.work import Work
from dreamset.drawing import draw, starts
from dreamset.drawing.blocks import plan
from dreamset.generator import base_model, lora
from dreamset.generator.sampler import scheduler

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.setting import Setting
    from dreamset.generator.conditions import Condition

PLAIN_BATCH = 10  # DataDream's


@dataclass(frozen=True)
class Drawn:
    """Images drawn, in how many seconds, and the seconds per image that reading the models takes in a whole run."""

    count: int
    seconds: float
    reading: float


def plain(
    setting: Setting,
    recipe: str,
    used: list[Adapter],
    out: Path,
    *,
    resident: bool = False,
    fused: bool = False,
    mixed: bool = False,
) -> Drawn:
    """Draw as the reference scripts do, into class folders; starting noise is dreamset's.

    Args:
        setting: parameters and data.
        recipe: which adapters.
        used: those of them that are drawn with.
        out: an empty folder.
        resident: lever: one pipeline, into which adapters are loaded in turn.
        fused: lever: LoRA added to the weights.
        mixed: lever: batches of the model's row, over all classes that share the adapter.
    """
    params, split = setting.params, setting.split
    kind = params.sampler(recipe)
    batch = params.base.generate.batch if mixed else PLAIN_BATCH
    count, pipeline, loaded, reading = 0, None, False, 0.0
    start = clock()
    for adapter in used:
        groups = [adapter.labels] if mixed else [(label,) for label in adapter.labels]
        if pipeline is None or not resident:
            began = clock()
            pipeline = None  # before the next one takes its memory
            pipeline = _pipeline(setting, kind.scheduler)
            reading += clock() - began
        elif loaded:
            if fused:
                pipeline.unfuse_lora()
            pipeline.unload_lora_weights()
        pipeline.load_lora_weights(setting.workspace.adapter(recipe) / adapter.file)
        loaded = True
        if fused:
            pipeline.fuse_lora()
        for labels in groups:
            depth = params.per_class
            if not mixed and depth > PLAIN_BATCH:
                depth -= depth % PLAIN_BATCH  # a broken batch would be held against it
            wanted = [(index, label) for index in range(depth) for label in labels]
            for first in range(0, len(wanted), batch):
                part = wanted[first : first + batch]
                seeds = [image_seed(params.seed, split.classes[label], index) for index, label in part]
                images = pipeline(
                    [split.prompt(label, params.recipes[recipe].prompt) for _, label in part],
                    height=params.base.resolution,
                    width=params.base.resolution,
                    num_inference_steps=kind.steps,
                    guidance_scale=kind.guidance,
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                ).images
                for (index, label), image in zip(part, images, strict=True):
                    path = out / split.folder(label) / f"{index:05d}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    image.save(path)
                count += len(part)
    # A pipeline serves all the images of its classes, of which only a few are drawn here.
    served = len(used[0].labels) * len(used) if not resident else len(split.classes)
    return Drawn(count, clock() - start - reading, reading / (served * params.base.generate.per_class))


def ours(
    setting: Setting,
    recipe: str,
    used: list[Adapter],
    *,
    apart: bool = True,
    compiled: bool = False,
) -> Drawn:
    """Draw as ``dreamset generate`` does.

    Args:
        setting: parameters and data.
        recipe: which adapters.
        used: those of them that are drawn with.
        apart: lever: shards are written while the next is drawn.
        compiled: lever: the parameter ``compile``.
    """
    params, workspace, split = setting.params, setting.workspace, setting.split
    work = Work(params, workspace, split, recipe)
    everyone = read_adapters(workspace.adapter(recipe))
    blocks = [block for block in plan(work, everyone) if block.adapter is not None and everyone[block.adapter] in used]
    latents = starts.Latents(workspace.cell)
    start = clock()
    base = base_model.load(setting.generator, params.base, setting.device)
    if compiled:
        base_model.compile_unet(base)
        row = params.recipes[recipe]
        brief = dataclasses.replace(row, sampler=dataclasses.replace(row.sampler, steps=1))
        short = dataclasses.replace(work, params=dataclasses.replace(params, recipes=params.recipes | {recipe: brief}))
        for block in {len(block.labels): block for block in blocks}.values():
            draw.draw(short, base, block, {}, latents)
    reading = clock() - start
    start = clock()
    if apart:
        with mock.patch.object(base_model, "load", return_value=base):
            draw.draw_all(work, everyone, blocks)
    else:
        for index, scale in sorted({(block.adapter, block.scale) for block in blocks}):
            embeds: dict[str, Condition] = {}
            with lora.fused(base, workspace.adapter(recipe) / everyone[index].file, scale):
                for block in (block for block in blocks if (block.adapter, block.scale) == (index, scale)):
                    drawn = draw.draw(work, base, block, embeds, latents)
                    sha = everyone[index].sha256
                    draw.write(work, block, sha, drawn, ExitStack())
    count = sum(map(len, blocks))
    whole = len(split.classes) * params.base.generate.per_class
    return Drawn(count, clock() - start, reading / whole)


def used(setting: Setting, recipe: str) -> list[Adapter]:
    """The adapters that are drawn with: the data set's, or those of the first classes."""
    if not (setting.workspace.adapter(recipe) / "adapters.json").is_file():
        adapters(setting, recipe)
    found = read_adapters(setting.workspace.adapter(recipe))
    return found[: setting.amount.classes] if recipe == CLASS else found


def ladders(setting: Setting) -> list[Ladder]:
    """With one adapter for all classes, and with one per class.

    Reading the models, and compiling, is spread over the images of the model's row that it serves.
    """
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    out = setting.workspace.cell / "plain"
    for recipe in (DATASET, CLASS):
        used(setting, recipe)  # trained now, so that no rung is charged with their memory

    def timed(draw: Any, recipe: str, *more: Any, **levers: bool) -> float:
        mine = used(setting, recipe)
        for folder in (out, setting.workspace.shards):
            shutil.rmtree(folder, ignore_errors=True)
        drawn = draw(setting, recipe, mine, *more, **levers)
        return drawn.seconds / drawn.count + drawn.reading

    def stock(recipe: str, **levers: bool) -> float:
        return timed(plain, recipe, out, **levers)

    def own(recipe: str) -> list[Rung]:
        cuda = setting.device.type == "cuda"
        rungs = [Rung("+ own loop, prompts encoded once", lambda: timed(ours, recipe, apart=False))]
        rungs += [Rung("dreamset (+ written while the next are drawn)", lambda: timed(ours, recipe))]
        if cuda:
            rungs += [Rung("dreamset with compile: true", lambda: timed(ours, recipe, compiled=True))]
        return rungs

    def counted(recipe: str, rungs: list[Rung]) -> list[Rung]:
        operations = arithmetic.drawing(setting, recipe)
        return [dataclasses.replace(rung, operations=operations) for rung in rungs]

    kind, batch = setting.params.sampler(DATASET), setting.params.base.generate.batch
    how = f"{kind.scheduler}, {kind.steps} steps, guidance {kind.guidance:g}"
    dataset = [
        Rung(f"plain pipeline, batches of {PLAIN_BATCH} of one class", lambda: stock(DATASET)),
        Rung("+ LoRA fused", lambda: stock(DATASET, fused=True)),
        Rung(f"+ batches of {batch} over all classes", lambda: stock(DATASET, fused=True, mixed=True)),
    ]
    per_class = [
        Rung(f"plain pipeline, batches of {PLAIN_BATCH}, read again for each class", lambda: stock(CLASS)),
        Rung("+ one pipeline for all classes", lambda: stock(CLASS, resident=True)),
        Rung("+ LoRA fused", lambda: stock(CLASS, resident=True, fused=True)),
        Rung(f"+ batches of {batch}", lambda: stock(CLASS, resident=True, fused=True, mixed=True)),
    ]
    return [
        Ladder(
            f"Images, one adapter for {len(setting.split.classes)} classes: {how}",
            "images",
            counted(DATASET, dataset + own(DATASET)),
        ),
        Ladder(f"Images, an adapter per class: {how}", "images", counted(CLASS, per_class + own(CLASS))),
    ]


def _pipeline(setting: Setting, name: str) -> Any:
    pipeline = StableDiffusionPipeline.from_pretrained(
        setting.generator,
        dtype=getattr(torch, setting.params.base.dtype),
        use_safetensors=True,
        safety_checker=None,
        requires_safety_checker=False,
    ).to(setting.device)
    pipeline.scheduler = scheduler(name, pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline

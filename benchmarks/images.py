"""Images drawn: a stock ``StableDiffusionPipeline`` with un-fused LoRA against ``dreamset.generate``."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging

from benchmarks.setting import CLASS, DATASET, adapters
from benchmarks.timing import Ladder, Rung, clock
from dreamset import generate
from dreamset.adapters import Adapter, read_adapters
from dreamset.generator import base_model, lora
from dreamset.generator.sampler import scheduler
from dreamset.seeds import image_seed

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.setting import Setting
    from dreamset.generator.base_model import Condition

PLAIN_BATCH = 10  # DataDream's


def plain(
    setting: Setting,
    recipe: str,
    used: list[Adapter],
    out: Path,
    *,
    resident: bool = False,
    fused: bool = False,
    mixed: bool = False,
) -> int:
    """Draw as the reference scripts do, into class folders; starting noise is dreamset's.

    Args:
        setting: parameters and data.
        recipe: which adapters.
        used: those of them that are drawn with.
        out: an empty folder.
        resident: lever: one pipeline, into which adapters are loaded in turn.
        fused: lever: LoRA added to the weights.
        mixed: lever: batches of the model's row, over all classes that share the adapter.

    Returns:
        The number of images.
    """
    params, split = setting.params, setting.split
    kind = params.sampler(recipe)
    batch = params.base.generate.batch if mixed else PLAIN_BATCH
    count, pipeline, loaded = 0, None, False
    for adapter in used:
        groups = [adapter.labels] if mixed else [(label,) for label in adapter.labels]
        if pipeline is None or not resident:
            pipeline = _pipeline(setting, kind.scheduler)
        elif loaded:
            if fused:
                pipeline.unfuse_lora()
            pipeline.unload_lora_weights()
        pipeline.load_lora_weights(setting.workspace.adapter(recipe) / adapter.file)
        loaded = True
        if fused:
            pipeline.fuse_lora()
        for labels in groups:
            wanted = [(index, label) for index in range(_per_class(setting, adapter)) for label in labels]
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
    return count


def ours(setting: Setting, recipe: str, used: list[Adapter], *, apart: bool = True) -> int:
    """Draw as ``dreamset generate`` does; without the lever ``apart`` shards are written before the next is drawn."""
    params, workspace, split = setting.params, setting.workspace, setting.split
    everyone = read_adapters(workspace.adapter(recipe))
    blocks = [
        block
        for block in generate.plan(params, workspace, split, recipe, everyone)
        if block.adapter is not None and everyone[block.adapter] in used
    ]
    if apart:
        generate._draw_all(params, workspace, split, recipe, everyone, blocks)
    else:
        base = base_model.load(setting.generator, params.base, setting.device)
        for index in sorted({block.adapter for block in blocks}):
            embeds: dict[str, Condition] = {}
            with lora.fused(base, workspace.adapter(recipe) / everyone[index].file):
                for block in (block for block in blocks if block.adapter == index):
                    drawn = generate._draw(params, base, split, recipe, block, embeds)
                    sha = everyone[index].sha256
                    generate._write(workspace, split, params.sampler(recipe), block, sha, drawn)
    return sum(len(block.labels) * (block.stop - block.start) for block in blocks)


def used(setting: Setting, recipe: str) -> list[Adapter]:
    """The adapters that are drawn with: the data set's, or those of the first classes."""
    if not (setting.workspace.adapter(recipe) / "adapters.json").is_file():
        adapters(setting, recipe)
    found = read_adapters(setting.workspace.adapter(recipe))
    return found[: setting.amount.classes] if recipe == CLASS else found


def ladders(setting: Setting) -> list[Ladder]:
    """With one adapter for all classes, and with one per class. Reading the models counts on every side."""
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    out = setting.workspace.cell / "plain"

    def timed(draw: Any, recipe: str, *more: Any, **levers: bool) -> float:
        mine = used(setting, recipe)
        for folder in (out, setting.workspace.shards):
            shutil.rmtree(folder, ignore_errors=True)
        start = clock()
        count = draw(setting, recipe, mine, *more, **levers)
        return (clock() - start) / count

    def stock(recipe: str, **levers: bool) -> float:
        return timed(plain, recipe, out, **levers)

    kind, batch = setting.params.sampler(DATASET), setting.params.base.generate.batch
    how = f"{kind.scheduler}, {kind.steps} steps, guidance {kind.guidance:g}"
    return [
        Ladder(
            f"Images, one adapter for {len(setting.split.classes)} classes: {how}",
            "images",
            [
                Rung(f"plain pipeline, batches of {PLAIN_BATCH} of one class", lambda: stock(DATASET)),
                Rung("+ LoRA fused", lambda: stock(DATASET, fused=True)),
                Rung(f"+ batches of {batch} over all classes", lambda: stock(DATASET, fused=True, mixed=True)),
                Rung("+ own loop, prompts encoded once", lambda: timed(ours, DATASET, apart=False)),
                Rung("dreamset (+ written while the next are drawn)", lambda: timed(ours, DATASET)),
            ],
        ),
        Ladder(
            f"Images, an adapter per class: {how}",
            "images",
            [
                Rung(f"plain pipeline, batches of {PLAIN_BATCH}, read again for each class", lambda: stock(CLASS)),
                Rung("+ one pipeline for all classes", lambda: stock(CLASS, resident=True)),
                Rung("+ LoRA fused", lambda: stock(CLASS, resident=True, fused=True)),
                Rung(f"+ batches of {batch}", lambda: stock(CLASS, resident=True, fused=True, mixed=True)),
                Rung("+ own loop, prompts encoded once", lambda: timed(ours, CLASS, apart=False)),
                Rung("dreamset (+ written while the next are drawn)", lambda: timed(ours, CLASS)),
            ],
        ),
    ]


def _per_class(setting: Setting, adapter: Adapter) -> int:
    """Whole shards, which dreamset draws, on every side."""
    depth = max(1, setting.params.base.generate.batch // len(adapter.labels))
    return -(-setting.params.per_class // depth) * depth


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

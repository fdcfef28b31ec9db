"""``dreamset adapt RECIPE``: shots become adapters of the base, one for the data set or one per class.

Output ``models/adapters/<recipe>/``: ``adapters.json``, and for each adapter a LoRA file in diffusers' layout.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING, Any, Final

from dreamset import __version__, cards, hub, licences, shards, splits
from dreamset.adapters import Adapter
from dreamset.device import out_of_memory
from dreamset.errors import StoppedError
from dreamset.files import atomic_write, read_json, sha256_file, write_csv, write_json
from dreamset.seeds import seed_for

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from dreamset.generator.training import Job, Settings
    from dreamset.params import Params
    from dreamset.splits import Split
    from dreamset.workspace import Workspace

CODE: Final = (
    "dreamset.generator.base_model",
    "dreamset.generator.lora",
    "dreamset.generator.sampler",
    "dreamset.generator.training",
    "dreamset.images",
    "dreamset.seeds",
)
SHOWN: Final = 10  # classes on a sample grid


def run(params: Params, workspace: Workspace, recipe: str) -> dict[str, Any]:
    """Train what is not trained yet, and assemble ``models/adapters/<recipe>/``.

    Raises:
        InputError: the base is for non-commercial use, and ``accept_licence`` is false.
    """
    licences.check(params)
    started = time.time()
    if params.recipes[recipe].adapter == "none":
        return _nothing(workspace, recipe)
    split = splits.read_split(workspace.splits)
    plan = scopes(params, split, recipe)
    jobs, settings = _jobs(params, workspace, split, recipe, plan)
    seconds = _train(params, workspace, recipe, jobs, settings)
    summary = _assemble(params, workspace, split, recipe, plan, [job.key for job in jobs])
    summary["seconds"] = round(sum(seconds.values()), 2)
    write_json(workspace.result("adapt", recipe), summary)
    return summary | {"elapsed": time.time() - started}


def scopes(params: Params, split: Split, recipe: str) -> list[tuple[int, ...]]:
    """The labels that each adapter of a recipe serves."""
    labels = tuple(range(len(split.classes)))
    return [labels] if params.recipes[recipe].scope == "dataset" else [(label,) for label in labels]


def _nothing(workspace: Workspace, recipe: str) -> dict[str, Any]:
    summary = {"recipe": recipe, "adapters": 0, "parameters": 0, "steps": 0, "seconds": 0.0}
    with shards.assembling(workspace.adapter(recipe)) as folder:
        write_json(folder / "adapters.json", {"recipe": recipe, "adapter": "none", "adapters": []})
    write_json(workspace.result("adapt", recipe), summary)
    with shards.assembling(workspace.plots("adapt", recipe)) as plots:
        write_csv(plots / "loss.csv", [], ("adapter", "step", "loss"))
    return summary


def _jobs(
    params: Params, workspace: Workspace, split: Split, recipe: str, plan: list[tuple[int, ...]]
) -> tuple[list[Job], Settings]:
    """One job per adapter, and what they share."""
    from dreamset.generator.training import Job, Settings

    row, base, scope = params.recipes[recipe], params.base, params.recipes[recipe].scope
    assert scope is not None
    schedule = params.schedule(recipe)
    most = max(sum(sample.label in labels for sample in split.train) for labels in plan)
    settings = Settings(
        lora=row.lora(),
        schedule=schedule,
        steps=schedule.steps(most),
        weight_decay=params.adapt.weight_decay,
        max_grad_norm=params.adapt.max_grad_norm,
        caption_dropout=base.adapt.caption_dropout,
        ema=base.adapt.ema,
        checkpoint_every=params.adapt.checkpoint_every,
        sample_every=base.adapt.sample_every,
        sample_images=params.adapt.sample_images,
        # Of the sample grids: their own, so that a sampler can be tuned without training the adapters again.
        sampler=dataclasses.replace(
            params.sampler(recipe),
            scheduler="dpmsolver++",
            steps=params.adapt.sample_steps,
            guidance=2.0,
            strength=None,
        ),
        seed=params.seed,
    )
    # What a kill leaves behind does not change the adapter.
    shared = dataclasses.asdict(settings) | {"checkpoint_every": None}
    weights = hub.identity(workspace.root, *base.pretrained)["sha256"]
    shared |= {"base": weights, "dtype": base.dtype, "resolution": base.resolution, "memory": base.memory}
    jobs = []
    for index, labels in enumerate(plan):
        samples = [sample for sample in split.train if sample.label in labels]
        name = "dataset" if scope == "dataset" else split.classes[labels[0]]
        seed = seed_for("adapter", params.seed, name)
        prompts = tuple(split.prompt(sample.label, row.prompt) for sample in samples)
        shown = tuple((split.classes[label], split.prompt(label, row.prompt)) for label in labels[:SHOWN])
        inputs = shared | {"images": [s.sha256 for s in samples], "prompts": prompts, "shown": shown, "adapter": seed}
        images = [_shot(workspace, sample.path, base.resolution) for sample in samples]
        jobs.append(Job(shards.key_of(inputs, CODE), f"adapter_{index}", seed, images, prompts, shown))
    return jobs, settings


def _shot(workspace: Workspace, path: str, size: int) -> NDArray[np.uint8]:
    """A real image with its shortest side at ``size``: (h, w, 3) uint8."""
    import numpy as np

    from dreamset.images import read_rgb, resize

    return np.asarray(resize(read_rgb(workspace.cell / path), size))


def _train(params: Params, workspace: Workspace, recipe: str, jobs: list[Job], settings: Settings) -> dict[str, float]:
    """Train the jobs that have no shard, some at once over one frozen base; seconds by key, of all."""
    from dreamset.device import pick
    from dreamset.generator import base_model
    from dreamset.generator.training import Together

    at_once = params.base.adapt.together
    # The same groups whatever is finished: an adapter's last bits depend on its company, and so does its checkpoint.
    groups = [jobs[first : first + at_once] for first in range(0, len(jobs), at_once)]
    missing = [group for group in groups if not all(shards.find(workspace.shards, job.key) for job in group)]
    base = None
    if missing:
        base = base_model.load(hub.locate(workspace.root, *params.base.pretrained), params.base, pick())
    for group, claim in shards.claimed(workspace.shards, missing, lambda group: [job.key for job in group]):
        assert base is not None
        with claim:
            started = time.time()
            folder = workspace.unfinished / shards.key_of({"jobs": [job.key for job in group]}, ())
            folder.mkdir(parents=True, exist_ok=True)
            try:
                together = Together(base, group, settings, folder)
                together.run()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                raise _no_memory(params, recipe, len(group)) from error
            seconds = (time.time() - started) / len(group)
            for index, job in enumerate(group):
                if shards.find(workspace.shards, job.key) is None:
                    with shards.writing(workspace.shards, job.key) as shard:
                        together.save(index, shard)
                        losses = together.losses[index]
                        record = {"steps": settings.steps, "images": len(job.images), "losses": losses}
                        write_json(shard / "adapter.json", record | {"seconds": seconds})
            together.close()
            shards.remove(folder)
    return {
        job.key: read_json(workspace.shards / job.key / "adapter.json", "dreamset adapt")["seconds"] for job in jobs
    }


def _no_memory(params: Params, recipe: str, together: int) -> StoppedError:
    """What to lower, by name, when a step does not fit."""
    row, scope = f"models.{params.model}", params.recipes[recipe].scope
    assert scope is not None
    batch = params.schedule(recipe).batch
    return StoppedError(
        f"adapt {recipe}: no memory for a step of {together} adapters with {batch} images each; put "
        f"gradient_checkpointing into {row}.memory, or lower {row}.adapt.together ({params.base.adapt.together}) or "
        f"{row}.adapt.{scope}.batch ({batch}) in params.yaml. The last checkpoint is kept: with another "
        "memory the same command goes on from it; another batch or together starts afresh."
    )


def _assemble(
    params: Params, workspace: Workspace, split: Split, recipe: str, plan: list[tuple[int, ...]], keys: list[str]
) -> dict[str, Any]:
    """The recipe's folder out of finished shards; loss curves and sample grids beside it."""
    from safetensors import safe_open

    from dreamset.generator.lora import WEIGHTS

    scope = params.recipes[recipe].scope
    rows, curves, first, last, parameters = [], [], [], [], 0
    with shards.assembling(workspace.adapter(recipe)) as folder:
        for labels, key in zip(plan, keys, strict=True):
            shard = workspace.shards / key
            name = "dataset" if scope == "dataset" else split.folder(labels[0])
            file = WEIGHTS if scope == "dataset" else f"{_hundred(labels[0], len(plan))}{name}/{WEIGHTS}"
            shards.link(shard / WEIGHTS, folder / file)
            rows.append(dataclasses.asdict(Adapter(labels, file, sha256_file(folder / file), key)))
            losses = read_json(shard / "adapter.json", f"dreamset adapt {recipe}")["losses"]
            curves += _smoothed(name, losses)
            first.append(losses[0])
            last.append(curves[-1]["loss"])
            with safe_open(folder / file, "pt") as opened:
                shapes = [opened.get_slice(tensor).get_shape() for tensor in opened.keys()]  # noqa: SIM118
                parameters += sum(math.prod(shape) for shape in shapes)
        record = _card(params, workspace, split, recipe) | {"adapters": rows}
        write_json(folder / "adapters.json", record)
        atomic_write(folder / "README.md", cards.adapters(params, split, recipe, record["base"]))
    with shards.assembling(workspace.plots("adapt", recipe)) as plots:
        write_csv(plots / "loss.csv", curves, ("adapter", "step", "loss"))
        _grids([workspace.shards / key for key in keys[:SHOWN]], plots)
    return {
        "recipe": recipe,
        "adapters": len(rows),
        "parameters": parameters,
        "steps": len(rows) * len(losses),
        "loss_first": round(sum(first) / len(first), 5),
        "loss_last": round(sum(last) / len(last), 5),
    }


def _hundred(label: int, classes: int) -> str:
    """The folder of a hundred adapters that an adapter stands in, where there are more: thousands are slow to list."""
    return f"{label // 100:03d}xx/" if classes > 100 else ""


def _card(params: Params, workspace: Workspace, split: Split, recipe: str) -> dict[str, Any]:
    """What a reader of the adapters must know: base, licence, recipe, what they were trained on."""
    base = params.base
    return {
        "recipe": recipe,
        "adapter": "lora",
        "made_by": f"dreamset {__version__}",
        "base": hub.identity(workspace.root, *base.pretrained),
        "base_licence": base.licence,
        "settings": dataclasses.asdict(params.recipes[recipe]),
        "training": dataclasses.asdict(base.adapt),
        "seed": params.seed,
        "shots": split.shots,
        "classes": split.classes,
        "trained_on": [sample.sha256 for sample in split.train],
    }


def _smoothed(name: str, losses: list[float], points: int = 50) -> list[dict[str, Any]]:
    """A loss curve of at most ``points`` means, so that plots stay small."""
    width = max(1, len(losses) // points)
    blocks = [losses[i : i + width] for i in range(0, len(losses), width)]
    return [
        {"adapter": name, "step": min(len(losses), (i + 1) * width), "loss": round(sum(block) / len(block), 5)}
        for i, block in enumerate(blocks)
    ]


def _grids(folders: list[Path], plots: Path) -> None:
    """One PNG per moment of training: the strips of all adapters below one another."""
    import numpy as np

    from dreamset.images import png, read_rgb

    for path in sorted(folders[0].glob("samples_*.png")):
        strips = [np.asarray(read_rgb(folder / path.name)) for folder in folders]
        (plots / path.name).write_bytes(png(np.concatenate(strips)))

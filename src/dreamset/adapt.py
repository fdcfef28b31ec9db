"""``dreamset adapt RECIPE``: shots become adapters of the base, one for the data set or one per class.

Output ``models/adapters/<recipe>/``: ``adapters.json``, and for each adapter its weights: a LoRA file in diffusers'
layout, a class encoder, or what was added to the U-Net. Where the epoch is searched, weights are also kept at even
places of the training, each as a shard of its own: a recipe with an ``epoch`` is assembled from one of those.
"""

from __future__ import annotations

import dataclasses
import math
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from dreamset import __version__
from dreamset.core import shards
from dreamset.core.device import out_of_memory
from dreamset.core.errors import StoppedError
from dreamset.core.files import atomic_write, digest, read_json, sha256_file, write_csv, write_json
from dreamset.core.seeds import seed_for
from dreamset.data import cards, licences, splits, tuned
from dreamset.data.adapters import Adapter
from dreamset.weights import hub

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from dreamset.core.workspace import Workspace
    from dreamset.data.splits import Split
    from dreamset.generator.training import Job, Settings, Together
    from dreamset.params import Params

SHOWN: Final = 10  # classes on a sample grid
_CLOCK: Final = "clock.json"  # beside a checkpoint: what runs before this one took


def run(params: Params, workspace: Workspace, recipe: str) -> dict[str, Any]:
    """Train what is not trained yet, and assemble ``models/adapters/<recipe>/``.

    Raises:
        InputError: the base is for non-commercial use, and ``accept_licence`` is false; or the recipe starts from
            another one that is not tuned yet.
    """
    licences.check(params)
    started = time.time()
    if not params.recipes[recipe].trains:
        return _nothing(workspace, recipe)
    split = splits.read_split(workspace.splits)
    training = _trained(params, workspace, split, recipe)
    summary = _assemble(params, workspace, split, recipe, training)
    write_json(workspace.result("adapt", recipe), summary)
    return summary | {"elapsed": time.time() - started}


def inherited(params: Params, workspace: Workspace, place: Workspace, recipe: str) -> float:
    """Adapt what ``recipe`` starts from to the shots of ``place``, with the values that studies of ``workspace`` chose.

    A fold that only selects runs no study of its own: that would choose by a quarter of the shots, and the next fold
    takes away another quarter. The study of all the shots has chosen.

    Returns:
        Seconds of the training.
    """
    return sum(_inherited(params, workspace, place, name) for name in params.lineage(recipe)[:-1])


def inherited_whole(params: Params, workspace: Workspace, place: Workspace, recipe: str) -> float:
    """The same for ``recipe`` itself, too, so that its images can be drawn in ``place``."""
    return inherited(params, workspace, place, recipe) + _inherited(params, workspace, place, recipe)


def _inherited(params: Params, workspace: Workspace, place: Workspace, recipe: str) -> float:
    if params.recipes[recipe].is_tuned:
        record = tuned.chosen(params, workspace, recipe)
        # The shots are fewer here, on purpose.
        write_json(place.result("tune", recipe), record | {"made_for": tuned.made_for(params, place, recipe)})
        # The adapters below are trained with the chosen values: there is no second set of them.
        write_json(place.tuned(recipe) / "adapters.json", {"recipe": recipe, "tuned": False, "adapters": []})
    return float(run(tuned.applied(params, place, recipe), place, recipe)["seconds"])


def kept(params: Params, workspace: Workspace, split: Split, recipe: str) -> dict[str, list[str]]:
    """The shards of what is kept of a recipe's trainings on the way, by the shard of the training's end.

    What the recipe starts from has to be trained on ``split``, or is.
    """
    training = _training(params, workspace, split, recipe)
    return {job.key: [keys[index] for keys in training.kept.values()] for index, job in enumerate(training.jobs)}


def used(params: Params, workspace: Workspace, split: Split, recipe: str) -> list[str]:
    """The shards that the adapters of a recipe are assembled from, finished or not; see ``kept``."""
    return _training(params, workspace, split, recipe).used


@dataclasses.dataclass(frozen=True)
class Training:
    """What a recipe trains.

    ``scopes`` are the labels of each job, ``files`` its images' by its key, relative to the cell; ``start`` is the file
    that conditions the U-Net, of the recipe that it starts from, or None; ``kept`` the shards of each job by the number
    of steps taken, without the end of the training, whose weights are the jobs' own; ``stop`` the steps of the weights
    to use, or None for the end.
    """

    scopes: list[tuple[int, ...]]
    jobs: list[Job]
    files: dict[str, list[str]]
    settings: Settings
    start: Path | None
    kept: dict[int, list[str]]
    stop: int | None

    @property
    def used(self) -> list[str]:
        """The shard that holds the wanted weights of each job."""
        return [job.key for job in self.jobs] if self.stop is None else self.kept[self.stop]


def _trained(params: Params, workspace: Workspace, split: Split, recipe: str) -> Training:
    """Train what is not trained yet, of the recipe that it starts from too."""
    training = _training(params, workspace, split, recipe)
    _train(params, workspace, recipe, training)
    return training


def _training(params: Params, workspace: Workspace, split: Split, recipe: str) -> Training:
    plan = scopes(params, split, recipe)
    start = _start(params, workspace, split, recipe)
    jobs, settings = _jobs(params, workspace, split, recipe, plan, start)
    rows, epoch, total = params.base.adapt, params.recipes[recipe].epoch, settings.steps
    # Where steps are few some places fall together.
    steps = {place: max(1, round(total * place / rows.kept)) for place in range(1, rows.kept + 1)}
    early = sorted({*steps.values()} - {total})
    found = {step: [shards.key_of({"training": job.key, "step": step}, __name__) for job in jobs] for step in early}
    stop = total if epoch is None else steps[rows.place(epoch)]
    files = {
        job.key: [sample.path for sample in split.train if sample.label in labels]
        for job, labels in zip(jobs, plan, strict=True)
    }
    return Training(plan, jobs, files, settings, start, found, None if stop == total else stop)


def _counts(split: Split, plan: list[tuple[int, ...]]) -> list[int]:
    """How many images each adapter learns from."""
    return [sum(split.train_per_class[label] for label in labels) for labels in plan]


def _start(params: Params, workspace: Workspace, split: Split, recipe: str) -> Path | None:
    """The class encoder that a recipe's U-Net is conditioned by: that of the recipe it starts from, as tuned.

    From its shard and not from its folder, so that a fold has one that never met the held-out images, and none has to
    be there.
    """
    row = params.recipes[recipe]
    if not row.needs_vectors_of_another:
        return None
    from dreamset.generator.trained import FILES

    parent = params.after[recipe]
    training = _trained(tuned.applied(params, workspace, parent), workspace, split, parent)
    (key,) = training.used
    return workspace.shards / key / FILES[params.recipes[parent].adapter]


def scopes(params: Params, split: Split, recipe: str) -> list[tuple[int, ...]]:
    """The labels that each adapter of a recipe serves."""
    labels = tuple(range(len(split.classes)))
    return [(label,) for label in labels] if params.recipes[recipe].has_adapter_per_class else [labels]


def _nothing(workspace: Workspace, recipe: str) -> dict[str, Any]:
    summary = {"recipe": recipe, "adapters": 0, "parameters": 0, "steps": 0, "seconds": 0.0}
    with shards.assembling(workspace.adapter(recipe)) as folder:
        write_json(folder / "adapters.json", {"recipe": recipe, "adapter": "none", "adapters": []})
    write_json(workspace.result("adapt", recipe), summary)
    with shards.assembling(workspace.plots("adapt", recipe)) as plots:
        write_csv(plots / "loss.csv", [], ("adapter", "step", "loss"))
    return summary


def _dropout(params: Params, recipe: str) -> float:
    """Share of images that are trained without their condition, so that guidance has something to move away from."""
    row = params.recipes[recipe]
    if not row.asks_by_vectors:
        return params.base.adapt.caption_dropout
    if row.trains_unet:
        return _dropout(params, params.after[recipe])
    return row.class_dropout or 0.0


def _jobs(
    params: Params,
    workspace: Workspace,
    split: Split,
    recipe: str,
    plan: list[tuple[int, ...]],
    start: Path | None,
) -> tuple[list[Job], Settings]:
    """One job per adapter, its images not read yet, and what they share."""
    from dreamset.generator.trained import kind_of
    from dreamset.generator.training import Job, Settings

    row, base = params.recipes[recipe], params.base
    schedule = params.schedule(recipe)
    settings = Settings(
        kind=kind_of(row, len(split.classes), None if start is None else sha256_file(start)),
        schedule=schedule,
        steps=schedule.steps(max(_counts(split, plan))),
        weight_decay=params.adapt.weight_decay if schedule.weight_decay is None else schedule.weight_decay,
        max_grad_norm=schedule.max_grad_norm or params.adapt.max_grad_norm,
        caption_dropout=_dropout(params, recipe),
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
        name = split.classes[labels[0]] if row.has_adapter_per_class else "dataset"
        seed = seed_for("adapter", params.seed, name)
        prompts = tuple(split.prompt(sample.label, row.prompt) for sample in samples)
        shown = tuple((split.classes[label], split.prompt(label, row.prompt)) for label in labels[:SHOWN])
        inputs = shared | {"images": [s.sha256 for s in samples], "prompts": prompts, "shown": shown, "adapter": seed}
        jobs.append(Job(shards.key_of(inputs, __name__), f"adapter_{index}", seed, [], prompts, shown))
    return jobs, settings


def with_images(workspace: Workspace, job: Job, files: Sequence[str], size: int) -> Job:
    """A job with its images, decoded from files that are named relative to the cell."""
    return dataclasses.replace(job, images=[_shot(workspace, path, size) for path in files])


def _shot(workspace: Workspace, path: str, size: int) -> NDArray[np.uint8]:
    """A real image with its shortest side at ``size``: (h, w, 3) uint8."""
    import numpy as np

    from dreamset.core.images import read_rgb, resize

    return np.asarray(resize(read_rgb(workspace.cell / path), size))


def _train(params: Params, workspace: Workspace, recipe: str, training: Training) -> None:
    """Train the jobs that lack a shard, some at once over one frozen base."""
    from dreamset.core.device import pick
    from dreamset.generator import base_model, trained
    from dreamset.generator.training import Together

    at_once, row, size = params.base.adapt.together, params.recipes[recipe], params.base.resolution
    keeping = row.epoch is not None or row.searches("epoch")
    # The same groups whatever is finished: an adapter's last bits depend on its company, and so does its checkpoint.
    groups = [training.jobs[first : first + at_once] for first in range(0, len(training.jobs), at_once)]
    # The last weights are made with any others, and as a part of the claim they keep others from training meanwhile.
    keys = {
        job.key: [job.key] if job.key == used else [job.key, used]
        for job, used in zip(training.jobs, training.used, strict=True)
    }

    def wanted(group: list[Job]) -> list[str]:
        return [key for job in group for key in keys[job.key]]

    missing = [group for group in groups if not all(shards.find(workspace.shards, key) for key in wanted(group))]
    if not missing:
        return
    base = base_model.load(hub.locate(workspace.root, *params.base.pretrained), params.base, pick())
    with ExitStack() as conditioned:
        conditioned.enter_context(trained.installed(base, training.start))
        for group, claim in shards.claimed(workspace.shards, missing, wanted):
            with claim:
                started = time.time()
                # A checkpoint of a run that kept nothing on the way is past what this one is to keep.
                place = {"jobs": [job.key for job in group], "keeping": [*training.kept] if keeping else []}
                folder = workspace.unfinished / digest(place)
                folder.mkdir(parents=True, exist_ok=True)
                spent = _spent(folder)
                try:
                    learned = [with_images(workspace, job, training.files[job.key], size) for job in group]
                    together = Together(base, learned, training.settings, folder)
                    together.run(*_keeping(workspace, training, together) if keeping else ())
                except (RuntimeError, MemoryError) as error:
                    if not out_of_memory(error):
                        raise
                    raise _no_memory(params, recipe, len(group)) from error
                seconds = (spent + time.time() - started) / len(group)
                for index, job in enumerate(learned):
                    if shards.find(workspace.shards, job.key) is None:
                        with shards.writing(workspace.shards, job.key) as shard:
                            together.save(index, shard)
                            losses = together.losses[index]
                            record = {"steps": together.step, "images": len(job.images), "losses": losses}
                            write_json(shard / "adapter.json", record | {"seconds": seconds})
                together.close()
                shards.remove(folder)


def _spent(folder: Path) -> float:
    """Seconds that stopped runs put into the work of ``folder``, to the last file that they left; this one begins."""
    clock, before = folder / _CLOCK, 0.0
    if clock.is_file():
        found = read_json(clock, "dreamset adapt")
        last = max(path.stat().st_mtime for path in folder.iterdir())
        before = found["before"] + max(0.0, last - found["started"])
    write_json(clock, {"before": before, "started": time.time()})
    return float(before)


def _keeping(
    workspace: Workspace, training: Training, together: Together
) -> tuple[Callable[[int], None], frozenset[int]]:
    """What ``Together.run`` calls to keep weights on the way, and after which steps."""
    key_of = {
        step: dict(zip([job.key for job in training.jobs], keys, strict=True)) for step, keys in training.kept.items()
    }

    def keep(step: int) -> None:
        for index, job in enumerate(together.jobs):
            key = key_of[step][job.key]
            if shards.find(workspace.shards, key) is None:
                with shards.writing(workspace.shards, key) as shard:
                    together.save_weights(index, shard)

    return keep, frozenset(training.kept)


def _no_memory(params: Params, recipe: str, together: int) -> StoppedError:
    """What to lower, by name, when a step does not fit."""
    row, schedule = f"models.{params.model}", params.recipes[recipe].schedule
    batch = params.schedule(recipe).batch
    return StoppedError(
        f"adapt {recipe}: no memory for a step of {together} adapters with {batch} images each; put "
        f"gradient_checkpointing into {row}.memory, or lower {row}.adapt.together ({params.base.adapt.together}) or "
        f"{row}.adapt.{schedule}.batch ({batch}) in params.yaml. The last checkpoint is kept: with another "
        "memory the same command goes on from it; another batch or together starts afresh."
    )


def _assemble(params: Params, workspace: Workspace, split: Split, recipe: str, training: Training) -> dict[str, Any]:
    """The recipe's folder out of finished shards; loss curves and sample grids beside it."""
    from safetensors import safe_open

    from dreamset.generator.trained import FILES

    found = params.recipes[recipe]
    weights, each = FILES[found.adapter], found.has_adapter_per_class
    stop = training.stop
    rows, curves, first, last, parameters, seconds = [], [], [], [], 0, 0.0
    with shards.assembling(workspace.adapter(recipe)) as folder:
        for labels, job, used in zip(training.scopes, training.jobs, training.used, strict=True):
            name = split.folder(labels[0]) if each else "dataset"
            file = f"{_hundred(labels[0], len(training.jobs))}{name}/{weights}" if each else weights
            shards.link(workspace.shards / used / weights, folder / file)
            rows.append(dataclasses.asdict(Adapter(labels, file, sha256_file(folder / file), used)))
            record = read_json(workspace.shards / job.key / "adapter.json", f"dreamset adapt {recipe}")
            losses = record["losses"][:stop]
            curves += _smoothed(name, losses)
            first.append(losses[0])
            last.append(curves[-1]["loss"])
            seconds += record["seconds"] * len(losses) / len(record["losses"])
            with safe_open(folder / file, "pt") as opened:
                shapes = [opened.get_slice(tensor).get_shape() for tensor in opened.keys()]  # noqa: SIM118
                parameters += sum(math.prod(shape) for shape in shapes)
        card = _card(params, workspace, split, recipe) | {"adapters": rows}
        if params.recipes[recipe].searches("epoch"):
            # Wanted by the study's later trials, though nothing is assembled from them yet.
            card["kept"] = [key for keys in training.kept.values() for key in keys]
        write_json(folder / "adapters.json", card)
        atomic_write(folder / "README.md", cards.adapters(params, split, recipe, card["base"]))
    with shards.assembling(workspace.plots("adapt", recipe)) as plots:
        write_csv(plots / "loss.csv", curves, ("adapter", "step", "loss"))
        _grids([workspace.shards / job.key for job in training.jobs[:SHOWN]], plots, stop)
    return {
        "recipe": recipe,
        "adapters": len(rows),
        "parameters": parameters,
        "steps": len(rows) * len(losses),
        "loss_first": round(sum(first) / len(first), 5),
        "loss_last": round(sum(last) / len(last), 5),
        "seconds": round(seconds, 2),
        "machines": shards.machines(workspace.shards, training.used),
    }


def _hundred(label: int, classes: int) -> str:
    """The folder of a hundred adapters that an adapter stands in, where there are more: thousands are slow to list."""
    return f"{label // 100:03d}xx/" if classes > 100 else ""


def _card(params: Params, workspace: Workspace, split: Split, recipe: str) -> dict[str, Any]:
    """What a reader of the adapters must know: base, licence, recipe, what they were trained on."""
    base = params.base
    return {
        "recipe": recipe,
        "adapter": params.recipes[recipe].adapter,
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


def _grids(folders: list[Path], plots: Path, stop: int | None) -> None:
    """One PNG per moment of training, up to the step ``stop``: the strips of all adapters below one another."""
    import numpy as np

    from dreamset.core.images import png, read_rgb

    for path in sorted(folders[0].glob("samples_*.png")):
        if stop is not None and int(path.stem.removeprefix("samples_")) > stop:
            continue
        strips = [np.asarray(read_rgb(folder / path.name)) for folder in folders]
        (plots / path.name).write_bytes(png(np.concatenate(strips)))

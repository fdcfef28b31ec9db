"""``dreamset adapt RECIPE``: train adapters of the base on the shots, one for the data set, per class or per shot.

The output ``models/adapters/<recipe>/`` holds ``adapters.json`` and the weights of each adapter: a LoRA file in
diffusers' layout, a class encoder, or the changes to the U-Net. Where a study searches the epoch, the training also
keeps its weights at even intervals, each as a shard. A recipe with an ``epoch`` is assembled from one of those shards.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from dreamset import compute
from dreamset.core import shards
from dreamset.core.device import out_of_memory
from dreamset.core.errors import StoppedError
from dreamset.core.files import digest, read_json, sha256_file, write_json
from dreamset.core.seeds import seed_for
from dreamset.data import licences, tuned
from dreamset.data.adapters import set_aside
from dreamset.data.asking import learned
from dreamset.data.work import Work
from dreamset.generator import assembly
from dreamset.generator.trainings import GRID_CLASSES, Training, images_of, scopes
from dreamset.weights import hub

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from dreamset.core.workspace import Workspace
    from dreamset.generator.training import Job, Settings, Together
    from dreamset.params import Params

# The settings that change no weight: those of checkpoints and of sample grids.
_NO_WEIGHT: Final = ("checkpoint_every", "sample_every", "sample_images", "sampler")
_CLOCK: Final = "clock.json"  # beside a checkpoint: the seconds that earlier runs took


def run(params: Params, workspace: Workspace, recipe: str) -> dict[str, Any]:
    """Train the adapters that are missing, and assemble ``models/adapters/<recipe>/``.

    Returns:
        The summary that is written to ``results/adapt/<recipe>.json``, and the ``elapsed`` seconds.

    Raises:
        InputError: the base is for non-commercial use and ``accept_licence`` is false, the recipe starts from another
            one that is not tuned yet, or its sampler begins with little noise.
    """
    licences.check(params, recipe)
    started = time.time()
    _set_aside(workspace, recipe)
    if not params.recipes[recipe].trains:
        return assembly.empty(workspace, recipe)
    work = Work.read(params, workspace, recipe)
    training = _trained(work)
    summary = assembly.assemble(work, training, _sharing(work, training.used))
    write_json(workspace.result("adapt", recipe), summary)
    return summary | {"elapsed": time.time() - started}


def _set_aside(workspace: Workspace, recipe: str) -> None:
    """Keep what a person put into the recipe's folder, and say where it is; before training, which may take hours."""
    for place in set_aside(workspace.adapter(recipe), workspace.own(recipe)):
        print(
            f"adapt: warning: {place} now holds what stood in {workspace.adapter(recipe)} and is not what dreamset "
            "wrote there: this stage trains the adapter. To draw with a LoRA of your own, see docs/recipes.md.",
            file=sys.stderr,
            flush=True,
        )


def run_parents(params: Params, workspace: Workspace, place: Workspace, recipe: str) -> float:
    """Adapt the recipes that ``recipe`` starts from to the shots of ``place``.

    The studies of ``workspace``, which saw all the shots, have chosen the values. A fold that only selects runs no
    study of its own: each fold would choose by another part of the shots.

    Returns:
        Seconds of the training.
    """
    return sum(_run_as_chosen(params, workspace, place, name) for name in params.lineage(recipe)[:-1])


def run_lineage(params: Params, workspace: Workspace, place: Workspace, recipe: str) -> float:
    """Adapt ``recipe`` too, beside the recipes of ``run_parents``, so that its images can be drawn in ``place``.

    Returns:
        Seconds of the training.
    """
    return run_parents(params, workspace, place, recipe) + _run_as_chosen(params, workspace, place, recipe)


def _run_as_chosen(params: Params, workspace: Workspace, place: Workspace, recipe: str) -> float:
    if params.recipes[recipe].is_tuned:
        record = tuned.chosen(params, workspace, recipe)
        # The record of all shots holds for the fewer shots of this place, on purpose.
        write_json(place.result("tune", recipe), record | {"made_for": tuned.made_for(params, place, recipe)})
        # The adapters below are trained with the chosen values, so no second set of them exists.
        write_json(place.tuned(recipe) / "adapters.json", {"recipe": recipe, "tuned": False, "adapters": []})
    return float(run(tuned.applied(params, place, recipe), place, recipe)["seconds"])


def kept_shards(work: Work) -> dict[str, list[str]]:
    """Return the shards of the weights that trainings keep on the way, by the shard of the training's end.

    The call trains the class encoder that the recipe starts from, if it is missing.
    """
    training = _training(work)
    return {job.key: [*kept.values()] for job, kept in zip(training.jobs, training.kept, strict=True)}


def used_shards(work: Work) -> list[str]:
    """Return the shards that the adapters of a recipe are assembled from, finished or not; see ``kept_shards``."""
    return _training(work).used


def _trained(work: Work) -> Training:
    """Train the missing adapters of a recipe, and of the recipe that it starts from."""
    training = _training(work)
    _train(work, training)
    return training


def _training(work: Work) -> Training:
    work = _asking(work)
    plan, start = scopes(work), _start(work)
    jobs, settings = _jobs(work, plan, start)
    rows, epoch = work.base.adapt, work.row.epoch
    kept: list[dict[int, str]] = []
    stops: list[int | None] = []
    for job, own in zip(jobs, settings, strict=True):
        # Where a training has few steps, some places fall on the same step.
        steps = {place: max(1, round(own.steps * place / rows.kept)) for place in range(1, rows.kept + 1)}
        early = sorted({*steps.values()} - {own.steps})
        kept.append({step: shards.key_of({"training": job.key, "step": step}, __name__) for step in early})
        stop = own.steps if epoch is None else steps[rows.place(epoch)]
        stops.append(None if stop == own.steps else stop)
    images = images_of(work, plan)
    files = {job.key: [sample.path for sample in own] for job, own in zip(jobs, images, strict=True)}
    return Training(plan, jobs, files, settings, start, kept, stops)


def _asking(work: Work) -> Work:
    """Return the work with what its recipe asks with; of shots, what is seen in them is learned with them."""
    if not (work.row.tells_shots or work.row.descriptions):
        return work
    from dreamset.generator import asking

    return asking.applied(work)


def _start(work: Work) -> Path | None:
    """Return the class encoder that conditions a recipe's U-Net: that of the recipe it starts from, as tuned.

    The file is that of the shard and not of the adapter's folder. So a fold uses an encoder that never saw the
    held-out images, and no folder has to be there.
    """
    if not work.row.needs_vectors_of_another:
        return None
    from dreamset.generator.trained import FILES

    name = work.params.after[work.recipe]
    parent = dataclasses.replace(work, params=tuned.applied(work.params, work.workspace, name), recipe=name)
    (key,) = _trained(parent).used
    return work.workspace.shards / key / FILES[parent.row.adapter]


def _dropout(params: Params, recipe: str) -> float:
    """Return the share of images that are trained without their condition; guidance moves away from these."""
    row = params.recipes[recipe]
    if not row.asks_by_vectors:
        return params.base.adapt.caption_dropout if row.caption_dropout is None else row.caption_dropout
    if row.trains_unet:
        return _dropout(params, params.after[recipe])
    return row.class_dropout or 0.0


def _jobs(work: Work, plan: list[tuple[int, ...]], start: Path | None) -> tuple[list[Job], list[Settings]]:
    """Return one job per adapter, its images not read yet, and the settings of each: epochs of its own images."""
    from dreamset.generator.trained import kind_of
    from dreamset.generator.training import Job, Settings

    params, split, row, base = work.params, work.split, work.row, work.base
    schedule = params.schedule(work.recipe)
    settings = Settings(
        kind=kind_of(row, len(split.classes), None if start is None else sha256_file(start)),
        schedule=schedule,
        steps=0,
        weight_decay=params.adapt.weight_decay if schedule.weight_decay is None else schedule.weight_decay,
        max_grad_norm=schedule.max_grad_norm or params.adapt.max_grad_norm,
        caption_dropout=_dropout(params, work.recipe),
        ema=base.adapt.ema,
        preserve=row.preserve or 0.0,
        diversity=row.diversity or 0.0,
        checkpoint_every=params.adapt.checkpoint_every,
        sample_every=base.adapt.sample_every,
        sample_images=params.adapt.sample_images,
        # Sample grids have a fixed sampler, so that tuning the recipe's sampler does not train the adapters again.
        sampler=dataclasses.replace(
            work.sampler,
            scheduler="dpmsolver++",
            student=False,
            steps=params.adapt.sample_steps,
            guidance=2.0,
            strength=None,
        ),
        seed=params.seed,
    )
    images = images_of(work, plan)
    each = [dataclasses.replace(settings, steps=schedule.steps(len(own))) for own in images]
    weights = hub.identity(work.workspace.root, *base.pretrained)["sha256"]
    shared = {"base": weights, "dtype": base.dtype, "resolution": base.resolution, "memory": base.memory}
    jobs: list[Job] = []
    seen = Counter[tuple[int, str]]()
    for index, (labels, samples, own) in enumerate(zip(plan, images, each, strict=True)):
        name = "dataset" if row.has_one_adapter else split.classes[labels[0]]
        seed = seed_for("adapter", params.seed, name)
        if row.trains_each_shot:
            # By content and not by number: folds that leave out other shots of the class share the adapter.
            shot = (labels[0], samples[0].sha256)
            seed = seed_for("adapter", params.seed, name, *shot[1:], *[seen[shot]] * (seen[shot] > 0))
            seen[shot] += 1
        prompts = tuple(learned(split, row, work.told, samples))
        grid = tuple((split.classes[label], work.lead(label)) for label in labels[:GRID_CLASSES])
        if row.has_adapter_per_shot and (labels[0] >= GRID_CLASSES or (index and plan[index - 1] == labels)):
            grid = ()  # of the shots of a class, the first is shown
        inputs = shared | {"images": [s.sha256 for s in samples], "prompts": prompts, "adapter": seed}
        inputs |= {name: value for name, value in dataclasses.asdict(own).items() if name not in _NO_WEIGHT}
        if not row.shares_down:
            inputs["kind"] = {name: value for name, value in inputs["kind"].items() if name != "shared"}
        kinds = tuple(work.lead(sample.label) for sample in samples)
        if row.diversity and not row.asks_alike:
            inputs["kinds"] = kinds
        if row.preserve:
            inputs["classless"] = split.classless
        key = shards.key_of(inputs, __name__)
        jobs.append(Job(key, f"adapter_{index}", seed, [], prompts, grid, split.classless, kinds))
    return jobs, each


def with_images(workspace: Workspace, job: Job, files: Sequence[str], size: int) -> Job:
    """Return a job with its images, decoded from ``files`` at a shortest side of ``size``.

    Args:
        workspace: whose cell the files are relative to.
        job: without images.
        files: paths of images.
        size: pixels.
    """
    return dataclasses.replace(job, images=[_shot(workspace, path, size) for path in files])


def _shot(workspace: Workspace, path: str, size: int) -> NDArray[np.uint8]:
    """Return a real image with its shortest side at ``size``: (h, w, 3) uint8."""
    import numpy as np

    from dreamset.core.images import read_rgb
    from dreamset.core.resizing import resize

    return np.asarray(resize(read_rgb(workspace.cell / path), size))


def _train(work: Work, training: Training) -> None:
    """Train the jobs that lack a shard, several at once over one frozen base, in as many processes as are wanted."""
    store, at_once = work.workspace.shards, work.params.together(work.recipe)
    # The groups do not depend on what is finished: the last bits of an adapter depend on the others of its group.
    equal: dict[int, list[int]] = {}
    for index, settings in enumerate(training.settings):
        equal.setdefault(settings.steps, []).append(index)
    # Classes of unequal numbers of images take unequal numbers of steps, and so stand in groups of their own.
    groups = [
        [*indices[first : first + at_once]] for indices in equal.values() for first in range(0, len(indices), at_once)
    ]
    missing = [group for group in groups if not all(shards.find(store, key) for key in training.keys_of(group))]
    if not missing:
        return
    _warn_of_cuts(work, training)
    make = functools.partial(_train_groups, work, training)
    root, what = work.workspace.root, f"adapting {work.recipe}"
    compute.run(work.params.compute, root, store, make, missing, training.keys_of, what=what)


def _train_groups(work: Work, training: Training, groups: list[list[int]]) -> None:
    """Train groups of jobs, without those that another process trains."""
    from dreamset.core.device import pick
    from dreamset.generator import base_model, trained
    from dreamset.generator.sampler import check_first_step
    from dreamset.generator.training import Together

    workspace = work.workspace
    keeping = work.row.epoch is not None or work.row.searches("epoch")
    base = compute.resident(
        f"to adapt: {work.base}",
        lambda: base_model.load(hub.locate(workspace.root, *work.base.pretrained), work.base, pick()),
    )
    if training.start is not None:
        shards.find(workspace.shards, training.start.parent.name)  # another machine may have made it
    searched = work.row.searches("steps") or work.row.searches("scheduler")
    if not (work.sampler.student or work.row.starts_from_shots or searched):
        # Before the long work, though only `generate` draws so.
        check_first_step(base.schedule, work.sampler, work.steps_key)
    with ExitStack() as conditioned:
        conditioned.enter_context(trained.installed(base, training.start))
        for group, claim in shards.claimed(workspace.shards, groups, training.keys_of):
            with claim:
                started = time.time()
                # Runs that keep early weights have their own checkpoints: others may be past the steps to keep.
                bare, settings = [training.jobs[index] for index in group], training.settings[group[0]]
                place = {"jobs": [job.key for job in bare], "keeping": [*training.kept[group[0]]] if keeping else []}
                folder = workspace.unfinished / digest(place)
                folder.mkdir(parents=True, exist_ok=True)
                spent = _spent(folder)
                try:
                    size = work.base.resolution
                    jobs = [with_images(workspace, job, training.files[job.key], size) for job in bare]
                    together = Together(base, jobs, settings, folder)
                    kept = [training.kept[index] for index in group]
                    together.run(*_keeping(workspace, kept, together) if keeping else ())
                except (RuntimeError, MemoryError) as error:
                    if not out_of_memory(error):
                        raise
                    raise _no_memory(work.params, work.recipe, len(group)) from error
                seconds = (spent + time.time() - started) / len(group)
                for index, job in enumerate(jobs):
                    if shards.find(workspace.shards, job.key) is None:
                        with shards.writing(workspace.shards, job.key) as shard:
                            together.save(index, shard)
                            losses = together.losses[index]
                            record = {"steps": together.step, "images": len(job.images), "losses": losses}
                            write_json(shard / "adapter.json", record | {"seconds": seconds})
                together.close()
                shards.remove(folder)


def _warn_of_cuts(work: Work, training: Training) -> None:
    """Say which prompts that adapters learn with are longer than the text encoder's window."""
    from dreamset.generator import asking

    prompts = [
        (work.split.classes[sample.label], prompt)
        for samples, job in zip(images_of(work, training.scopes), training.jobs, strict=True)
        for sample, prompt in zip(samples, job.prompts, strict=True)
    ]
    for sentence in asking.too_long(work, prompts):
        print(f"adapt: warning: {sentence}.", file=sys.stderr, flush=True)


def _spent(folder: Path) -> float:
    """Start the clock of ``folder``, and return the seconds of earlier runs, up to the last file that they wrote."""
    clock, before = folder / _CLOCK, 0.0
    if clock.is_file():
        record = read_json(clock, "dreamset adapt")
        last = max(path.stat().st_mtime for path in folder.iterdir())
        before = record["before"] + max(0.0, last - record["started"])
    write_json(clock, {"before": before, "started": time.time()})
    return float(before)


def _keeping(
    workspace: Workspace, kept: list[dict[int, str]], together: Together
) -> tuple[Callable[[int], None], frozenset[int]]:
    """Return the function that ``Together.run`` calls to keep early weights, and after which steps it does.

    Args:
        workspace: where the shards are.
        kept: the shards of each job by the number of steps taken, which is the same for all of them.
        together: the training.
    """

    def keep(step: int) -> None:
        for index, keys in enumerate(kept):
            if shards.find(workspace.shards, keys[step]) is None:
                with shards.writing(workspace.shards, keys[step]) as shard:
                    together.save_weights(index, shard)

    return keep, frozenset(kept[0])


def _no_memory(params: Params, recipe: str, together: int) -> StoppedError:
    """Return the error for a step that does not fit into memory; it names what to lower."""
    model, schedule = f"models.{params.model}", params.recipes[recipe].schedule
    batch = params.schedule(recipe).batch
    return StoppedError(
        f"adapt {recipe}: no memory for a step of {together} adapters with {batch} images each; put "
        f"gradient_checkpointing into {model}.memory, or lower {model}.adapt.together ({params.base.adapt.together}) "
        f"or {model}.adapt.{schedule}.batch ({batch}) in params.yaml. With other values the adapters are trained "
        "from their start; with these the same command goes on from the last checkpoint."
    )


def _sharing(work: Work, used: list[str]) -> list[str]:
    """Return the other recipes of the run that draw with the same LoRAs."""
    params = work.params
    others = [
        name for name in (*params.active, *params.after) if name != work.recipe and params.recipes[name].trains_lora
    ]
    return [name for name in others if used_shards(dataclasses.replace(work, recipe=name)) == used]

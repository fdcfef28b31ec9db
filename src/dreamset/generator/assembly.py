"""The folder of a recipe's adapters, its loss curves and its sample grids, put together from finished trainings."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from dreamset import __version__
from dreamset.core import shards
from dreamset.core.arithmetic import thinned
from dreamset.core.files import atomic_write, read_json, sha256_file, write_csv, write_json
from dreamset.data import cards, current
from dreamset.data.adapters import Adapter, shot_file
from dreamset.generator.trainings import GRID_CLASSES, images_of
from dreamset.weights import hub

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dreamset.core.workspace import Workspace
    from dreamset.data.work import Work
    from dreamset.generator.trainings import Training

_POINTS: Final = 50  # means in a loss curve; up to twice as many if the steps are no multiple


def empty(workspace: Workspace, recipe: str) -> dict[str, Any]:
    """Write the outputs of a recipe without an adapter, and return its summary."""
    summary = {"recipe": recipe, "adapters": 0, "parameters": 0, "steps": 0, "seconds": 0.0}
    with shards.assembling(workspace.adapter(recipe)) as folder:
        write_json(folder / "adapters.json", {"recipe": recipe, "adapter": "none", "adapters": []})
    write_json(workspace.result("adapt", recipe), summary)
    with shards.assembling(workspace.plots("adapt", recipe)) as plots:
        write_csv(plots / "loss.csv", [], ("adapter", "step", "loss"))
    return summary


def assemble(work: Work, training: Training, sharing: Sequence[str]) -> dict[str, Any]:
    """Assemble the recipe's folder, loss curves and sample grids from finished shards.

    Args:
        work: on the recipe.
        training: its trainings, all finished.
        sharing: other recipes that draw with the same weights.

    Returns:
        The summary, without the seconds that this took.
    """
    from safetensors import safe_open

    from dreamset.generator.trained import FILES

    workspace, split, recipe, row = work.workspace, work.split, work.recipe, work.row
    weights, learned = FILES[row.adapter], images_of(work, training.scopes)
    each = row.has_adapter_per_class or row.has_adapter_per_shot
    number = Counter[int]()  # of the shots of each class so far
    rows, curves, first, last, parameters, steps, seconds = [], [], [], [], 0, 0, 0.0
    with shards.assembling(workspace.adapter(recipe)) as folder:
        for labels, samples, job, used, stop in zip(
            training.scopes, learned, training.jobs, training.used, training.stops, strict=True
        ):
            name = split.folder(labels[0]) if each else "dataset"
            inside = f"{hundred(labels[0], len(split.classes))}{name}/" if each else ""
            # The files of a training, with their shots where each has one.
            made: list[tuple[str, str, str | None]] = [(weights, f"{inside}{weights}", None)]
            if row.has_adapter_per_shot:
                names = [shot_file(number[labels[0]] + index) for index in range(len(samples))]
                number[labels[0]] += len(samples)
                made = [
                    (own if row.shares_down else weights, f"{inside}{own}", sample.sha256)
                    for own, sample in zip(names, samples, strict=True)
                ]
                name = f"{name}/{made[0][1].rpartition('/')[2].partition('.')[0]}" if row.trains_each_shot else name
            for source, file, shot in made:
                shards.link(workspace.shards / used / source, folder / file)
                rows.append(Adapter(labels, file, sha256_file(folder / file), used, shot).row())
            record = read_json(workspace.shards / job.key / "adapter.json", f"dreamset adapt {recipe}")
            losses = record["losses"][:stop]
            thinner = thinned(losses, max(1, len(losses) // _POINTS))
            curves += [{"adapter": name} | row for row in thinner]
            first.append(losses[0])
            last.append(thinner[-1]["loss"])
            steps += len(losses)
            seconds += record["seconds"] * len(losses) / len(record["losses"])
            for place, (_, file, _) in enumerate(made):
                with safe_open(folder / file, "pt") as opened:
                    # Files of one training share their A.
                    names = [tensor for tensor in opened.keys() if not (place and ".lora_A." in tensor)]  # noqa: SIM118
                    parameters += sum(math.prod(opened.get_slice(tensor).get_shape()) for tensor in names)
        card = _card(work) | {"adapters": rows}
        if work.row.searches("epoch"):
            # Later trials of the study want these shards, though no adapter is assembled from them yet.
            card["kept"] = [key for kept in training.kept for key in kept.values()]
        write_json(folder / "adapters.json", card)
        atomic_write(folder / "README.md", cards.adapters(work.params, split, recipe, card["base"], sharing))
    with shards.assembling(workspace.plots("adapt", recipe)) as plots:
        write_csv(plots / "loss.csv", curves, ("adapter", "step", "loss"))
        shown = [(job, stop) for job, stop in zip(training.jobs, training.stops, strict=True) if job.sampled]
        shown = shown[:GRID_CLASSES]
        _grids([workspace.shards / job.key for job, _ in shown], [stop for _, stop in shown], plots)
    return {
        "recipe": recipe,
        "adapters": len(rows),
        "parameters": parameters,
        "steps": steps,
        "loss_first": round(sum(first) / len(first), 5),
        "loss_last": round(sum(last) / len(last), 5),
        "seconds": round(seconds, 2),
        "machines": shards.machines(workspace.shards, training.used),
    } | ({} if len(rows) == len(training.jobs) else {"trainings": len(training.jobs)})


def hundred(label: int, classes: int) -> str:
    """Return the subfolder of an adapter: one per hundred adapters if there are more, since long folders are slow."""
    return f"{label // 100:03d}xx/" if classes > 100 else ""


def _card(work: Work) -> dict[str, Any]:
    """Return what a reader of the adapters must know: base, licence, recipe, and the images of the training."""
    base, split = work.base, work.split
    return {
        "recipe": work.recipe,
        "adapter": work.row.adapter,
        "made_by": f"dreamset {__version__}",
        "base": hub.identity(work.workspace.root, *base.pretrained),
        "base_licence": base.licence,
        "settings": dataclasses.asdict(work.row),
        "training": dataclasses.asdict(base.adapt),
        "seed": work.params.seed,
        "shots": split.shots,
        "classes": split.classes,
        "trained_on": [sample.sha256 for sample in split.train],
        "made_for": current.of_adapters(work.params, work.workspace, work.recipe),
    }


def _grids(folders: Sequence[Path], stops: Sequence[int | None], plots: Path) -> None:
    """Write one PNG per sampled step: the strips of all adapters, one below the other.

    An adapter whose training, or whose use, ends earlier than that of others keeps its last strip. Strips of unequal
    numbers of images, from trainings with other ``sample_images``, are filled up with black.

    Args:
        folders: the shards of the trainings.
        stops: steps of each after which its weights are used; None for the end.
        plots: the folder to write to.
    """
    import numpy as np

    from dreamset.core.images import png, read_rgb

    found = []
    for folder, stop in zip(folders, stops, strict=True):
        strips = {int(path.stem.removeprefix("samples_")): path for path in folder.glob("samples_*.png")}
        found.append({step: path for step, path in strips.items() if stop is None or step <= stop})
    # Of the LoRAs of a class one is shown. Among the shots of a fold that may be one that was trained unshown.
    found = [strips for strips in found if strips]
    for step in sorted({step for strips in found for step in strips}):
        rows = [np.asarray(read_rgb(strips[max(s for s in strips if s <= step)])) for strips in found]
        width = max(row.shape[1] for row in rows)
        rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
        (plots / f"samples_{step:05d}.png").write_bytes(png(np.concatenate(rows)))

"""How much work a stage does, as far as the present manifests tell: what dry runs print and estimates multiply."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dreamset.core.errors import InputError
from dreamset.core.files import read_json
from dreamset.data import splits, tuned
from dreamset.data.work import Work

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dreamset.core.workspace import Workspace
    from dreamset.params import Params
    from dreamset.params.recipe import Recipe


def of(params: Params, workspace: Workspace, stage: str, item: str | None) -> dict[str, int]:
    """Return the counts of a stage's work, as far as the present manifests tell."""
    if stage not in ("adapt", "tune", "generate", "train") or not workspace.splits.is_file():
        return {}
    split = splits.read_split(workspace.splits)
    if stage == "tune":
        return tuning(params, workspace, split, item or "")
    if stage == "train":
        return training(params, split, item or "")
    if stage == "generate":
        return generating(applied(params, workspace, item or ""), split, item or "")
    adapters, steps = adapting(params, item or "", split.train_per_class)
    return {"adapters": adapters, "steps": steps}


def generating(params: Params, split: splits.Split, recipe: str) -> dict[str, int]:
    """Return the images of a dataset, how many of them are drawn where others are copies, and the cost of one.

    Under a budget without a number of images, these are the model's row's; how many fit is known afterwards.
    """
    row, shots = params.recipes[recipe], split.train_per_class
    found = {"images": sum(params.of(recipe).synthetic_per_class(shots))}
    if row.copies:
        found["images drawn"] = sum(params.drawn_per_class(recipe, shots))
    if row.filters:
        name = "candidates" if row.draws_all_tries else "candidates at most"
        found[name] = sum(_most(row, number) for number in params.drawn_per_class(recipe, shots))
    if row.draws:
        sampler = params.sampler(recipe)
        steps = sampler.last_steps
        guided = 0 if sampler.guidance == 1 else math.ceil((row.guide_until or 1) * steps - 1e-6)
        found["U-Net calls per image"] = steps + guided
    return found


def drawn(work: Mapping[str, int]) -> int:
    """Return the number of images that have to be drawn, of what ``generating`` returned."""
    return work.get("images drawn", work.get("images", 0))


def _most(row: Recipe, images: int) -> int:
    """Return the most candidates that are drawn for some images of a class; those of a first round have one each."""
    return min(images, row.first) + max(0, images - row.first) * row.tries


def candidates(params: Params, workspace: Workspace, recipe: str, images: int, most: int) -> float:
    """Return the candidates that are to be expected.

    A filter that looks at all of them has all drawn. Of one that takes the first that it accepts, the last drawing of
    the recipe says how many an image took; before there was one, it is taken to accept the first.

    Args:
        params: all parameters.
        workspace: has the record of the last drawing.
        recipe: a row of ``recipes``.
        images: that are drawn.
        most: candidates of these images, at most.
    """
    row, path = params.recipes[recipe], workspace.result("generate", recipe)
    if not row.filters or row.draws_all_tries:
        return most
    record = read_json(path, f"dreamset generate {recipe}") if path.is_file() else {}
    chosen, copied = record.get("filter", {}), record.get("copies", {}).get("images", 0)
    if chosen.get("kind") != row.filter:
        return images
    return min(most, float(images * sum(chosen["candidates"].values()) / (record["images"] - copied)))


def expected(params: Params, workspace: Workspace, recipe: str) -> float:
    """Return the candidates that drawing a recipe's dataset is to be expected to take; images where nothing filters."""
    work = of(params, workspace, "generate", recipe)
    most = work.get("candidates", work.get("candidates at most", drawn(work)))
    return candidates(params, workspace, recipe, drawn(work), most)


def has_budget(params: Params, recipe: str) -> bool:
    """Return whether seconds, and not a number of images, say when drawing ends."""
    return params.generate.budget_s is not None and params.recipes[recipe].draws


def adapting(params: Params, recipe: str, images: Sequence[int]) -> tuple[int, int]:
    """Return the number of a recipe's adapters, and of all their optimizer steps, for ``images`` of each class."""
    row = params.recipes[recipe]
    if not row.trains:
        return 0, 0
    schedule = params.schedule(recipe)
    if row.trains_each_shot:
        return sum(images), sum(images) * schedule.steps(1)
    if row.shares_down:
        return sum(images), sum(map(schedule.steps, images))
    if not row.has_adapter_per_class:
        return 1, schedule.steps(sum(images))
    return len(images), sum(map(schedule.steps, images))


def is_tuned(params: Params, workspace: Workspace, recipe: str) -> bool:
    """Return whether every study before the images of ``recipe`` has chosen, for these shots and rows."""
    studied = [name for name in params.lineage(recipe) if params.recipes[name].is_tuned]
    if not all(workspace.result("tune", name).is_file() for name in studied):
        return False
    return not studied or (workspace.splits.is_file() and all(tuned.is_current(params, workspace, n) for n in studied))


def applied(params: Params, workspace: Workspace, recipe: str) -> Params:
    """Return the parameters with what studies chose for ``recipe``, as far as they have."""
    return tuned.applied(params, workspace, recipe) if is_tuned(params, workspace, recipe) else params


def images(params: Params, workspace: Workspace, learned: Sequence[Sequence[int]]) -> int:
    """Return the images that all active recipes draw, each time beside so many shots of each class."""
    rows = [(name, applied(params, workspace, name)) for name in params.active]
    return sum(sum(own.drawn_per_class(name, shots)) for name, own in rows for shots in learned)


def tuning(params: Params, workspace: Workspace, split: splits.Split, recipe: str) -> dict[str, int]:
    """Return the most that a study can do: nothing is pruned, and no two trials share their adapters."""
    from dreamset.study import objective

    row, tune = params.recipes[recipe], params.base.tune
    search = row.search
    if search is None:
        return {"trials": 0}
    holdouts, trials = objective.holdouts(Work(params, workspace, split, recipe)), params.tune.trials
    batch, most = params.base.train.rows[tune.classifier].batch, row.drawn(tune.per_class[-1])
    if search.per_class is not None:
        most = row.drawn(max(int(search.per_class.high or most), params.of(recipe).per_class))
    steps = sum(tune.steps_at(rung, len(split.classes), batch) for rung in tune.per_class)
    counts = {
        "trials": trials,
        "rungs": len(tune.per_class),
        "images at most": trials * len(holdouts) * len(split.classes) * most,
        "classifier steps at most": trials * len(holdouts) * steps,
    }
    if row.filters:
        counts["candidates at most"] = trials * len(holdouts) * len(split.classes) * _most(row, most)
    # The recipes that it starts from have adapters in each holdout too, but the same ones in all trials.
    trained = sum(
        adapting(params, name, part.split.train_per_class)[1]
        * (trials if name == recipe and (search.lr or search.epochs) else 1)
        for part in holdouts
        for name in params.lineage(recipe)
    )
    if trained:
        counts["adapter steps at most"] = trained
    return counts


def selecting(split: splits.Split) -> int:
    """Return the number of folds of the shots that choose; 0 where a class has too few for any."""
    from dreamset.data import folds

    try:
        return folds.possible(split, folds.SELECTING, "selection")
    except InputError:
        return 0


def training(params: Params, split: splits.Split, arm: str) -> dict[str, int]:
    """Return the optimizer steps by classifier, all that is tried included, without what the folds adapt and draw."""
    from dreamset.classifiers import selection
    from dreamset.classifiers.parts import learned
    from dreamset.data.runs import REAL, runs

    counts: dict[str, int] = {}
    for run in runs(params, arm):
        name = run.classifier
        if name in params.train.simple_classifiers:
            continue  # fitted in seconds, without steps
        row = params.base.train.rows[name].course(learned(params, split))
        count = 1 if run.kind.more else params.train.configurations
        tried = selection.configurations(row, params.train.real_weight, count, params.seed)
        steps = sum(configuration.steps for configuration in tried)
        if params.selection == "cv":
            # Then one more, on all the shots, of at most as many steps as the longest.
            steps = selecting(split) * steps + max(configuration.steps for configuration in tried)
        counts[f"steps of {name}"] = counts.get(f"steps of {name}", 0) + steps
    if params.selection == "cv":
        counts["folds, each adapted and drawn again" if arm != REAL else "folds"] = selecting(split)
    return counts

"""Trials of a study: a plain objective, which shares nothing and gives nothing up, against ``dreamset.tune``."""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.setting import DATASET, PHOTOGRAPHS
from benchmarks.timing import Ladder, Rung, clock
from dreamset import adapt, classifiers, generate, prepare
from dreamset.classifiers import Predictor, fit, seen, stored
from dreamset.core.seeds import seed_for
from dreamset.core.workspace import Workspace
from dreamset.data import arrays, splits
from dreamset.params.knobs import Search, Span

if TYPE_CHECKING:
    from benchmarks.setting import Setting
    from dreamset.params import Params

PLAIN = 2  # trials of the plain objective that are timed: all cost the same
# Whatever the guidance is, a trial takes the same time.
SEARCH = Search(guidance=Span(1.5, 5.0))


def project(setting: Setting, **tune: Any) -> tuple[Params, Workspace]:
    """Parameters of a study of the guidance, and an empty project with shots and selection images."""
    given = setting.params
    row = dataclasses.replace(given.recipes[DATASET], search=SEARCH)
    chosen = {"trials": setting.amount.trials, "objectives": "cas", "max_fid": None, "max_seconds_per_image": None}
    own = dataclasses.replace(
        given,
        selection="extra:4",
        recipes=given.recipes | {DATASET: row},
        adapt=dataclasses.replace(given.adapt, sample_images=1),
        tune=dataclasses.replace(given.tune, **chosen, storage="sqlite:///studies.db", **tune),
    )
    folder = setting.workspace.root / "study"
    shutil.rmtree(folder, ignore_errors=True)
    workspace = Workspace.at(folder)
    prepare.run(own, workspace)
    return own, workspace


def plain(given: Params, workspace: Workspace, guidance: list[float], *, adapters: bool = False) -> list[float]:
    """The score of each trial, adapted, drawn at the full resource, trained and scored by itself.

    Args:
        given: parameters with the recipe's search.
        workspace: with splits.
        guidance: of each trial.
        adapters: lever: the adapters of the first trial serve all.
    """
    base, split = given.base, splits.read_split(workspace.splits)
    full, name = base.tune.per_class[-1], base.tune.classifier
    scores = []
    for index, value in enumerate(guidance):
        alone = dataclasses.replace(given.recipes[DATASET], search=None)
        own = dataclasses.replace(
            given,
            recipes=given.recipes | {DATASET: alone},
            generate=dataclasses.replace(given.generate, per_class=full),
        ).with_values(DATASET, {"guidance": value})
        if not adapters:
            shutil.rmtree(workspace.shards, ignore_errors=True)
        if index == 0 or not adapters:
            adapt.run(own, workspace, DATASET)
        generate.run(own, workspace, DATASET)
        torch.manual_seed(seed_for("benchmark", given.seed))
        classifier = classifiers.build(name, base, split, workspace.root)
        size: int = classifier.size
        data = arrays.synthetic(workspace.synthetic(DATASET), split, stored(size, base.resolution))
        held = arrays.real(split.selection, workspace.cell, seen(size, base.resolution))
        none = dataclasses.replace(held, images=held.images[:0], labels=held.labels[:0], names=())
        row = base.train.rows[name]
        steps = base.tune.steps_at(base.tune.per_class[-1], len(split.classes), row.batch)
        course = row.course(len(data))
        fit.fit(
            classifier,
            [fit.Source("synthetic", data, 1.0, 1.0)],
            none,
            dataclasses.replace(course, steps=steps, warmup=round(course.warmup * steps / course.steps)),
            selections=1,
            invariances=split.invariances,
            crop=base.train.crop,
            seed=("benchmark", given.seed),
        )
        logits = Predictor(classifier, split.classes).logits(held.images)
        scores.append(float((logits.argmax(1) == held.labels).mean()))
    return scores


def study(given: Params, workspace: Workspace) -> dict[str, Any]:
    """The same by ``dreamset tune``, its plots and records included."""
    from dreamset import tune

    adapt.run(given, workspace, DATASET)
    return tune.run(given, workspace, DATASET)


def ladders(setting: Setting) -> list[Ladder]:
    """Seconds per trial of a study of one adapter's guidance; of the bundled base alone, for it takes many images."""
    if setting.params.base.resolution > PHOTOGRAPHS:
        return []
    trials, rungs = setting.amount.trials, setting.params.base.tune.per_class

    def looped(*, adapters: bool) -> float:
        own, workspace = project(setting)
        # What is shared is paid once in a study, not once in what is timed of it.
        count = trials if adapters else min(PLAIN, trials)
        low, high = SEARCH.guidance.low, SEARCH.guidance.high
        values = [low + (high - low) * index / trials for index in range(count)]
        start = clock()
        plain(own, workspace, values, adapters=adapters)
        return (clock() - start) / count

    def ours(pruner: str) -> float:
        own, workspace = project(setting, pruner=pruner)
        start = clock()
        study(own, workspace)
        return (clock() - start) / trials

    return [
        Ladder(
            f"Trials of a study of {trials}, {' to '.join(map(str, (rungs[0], rungs[-1])))} images per class",
            "trials",
            [
                Rung("plain objective: adapts and draws for every trial", lambda: looped(adapters=False)),
                Rung("+ one adapter for all trials", lambda: looped(adapters=True)),
                Rung("dreamset, nothing pruned", lambda: ours("none")),
                Rung("dreamset, Hyperband", lambda: ours("hyperband")),
                Rung("dreamset, successive halving", lambda: ours("successive_halving")),
            ],
        )
    ]

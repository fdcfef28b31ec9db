"""``dreamset tune RECIPE``: a study chooses values of a recipe by what its images teach a classifier.

Outputs ``results/tune/<recipe>.json``, which later stages take the values from, ``results/plots/tune/<recipe>/`` and,
where the study chose weights, ``models/tuned/<recipe>/``. A recipe without a ``search`` gets records that say so.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from dreamset import adapt
from dreamset.core import locks, shards
from dreamset.core.addresses import without_password
from dreamset.core.code import code_digest
from dreamset.core.files import digest, read_json, write_csv, write_json
from dreamset.core.workspace import Workspace
from dreamset.data import folds, licences, tuned
from dreamset.data.splits import read_split, write_split
from dreamset.study import workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import optuna

    from dreamset.data.splits import Split
    from dreamset.params import Params
    from dreamset.study.objective import Objective


def run(params: Params, workspace: Workspace, recipe: str) -> dict[str, Any]:
    """Run the trials that are not there yet, and write what the study says.

    Raises:
        InputError: every trial failed, a range is empty, what the recipe starts from is missing, or the base is for
            non-commercial use and ``accept_licence`` is false.
    """
    licences.check(params)
    if not params.recipes[recipe].is_tuned:
        nothing: dict[str, Any] = {"recipe": recipe, "searched": [], "best": None}
        _write(params, workspace, nothing | _made_of(params, workspace, recipe))
        return {"recipe": recipe, "trials": 0}
    started = time.time()
    objective, study = _studied(params, workspace, recipe)
    with _trials_kept(objective):
        record = _record(params, objective, study)
        _write(params, workspace, record)
    # Adapters that were not chosen are shards without a user from here on, and images of trials are.
    workers.clear(objective.folder)
    _forget_epochs(params, workspace, objective, record)
    return _summary(record) | {"elapsed": time.time() - started}


def work(params: Params, workspace: Workspace, recipe: str) -> dict[str, Any]:
    """Run trials of the same study beside other processes, and write nothing but these.

    Raises:
        InputError: as ``run``.
    """
    licences.check(params)
    if not params.recipes[recipe].is_tuned:
        return {"recipe": recipe, "trials": 0}
    objective, study = _studied(params, workspace, recipe)
    written = workspace.result("tune", recipe)
    # All trials have ended; who wrote the results has left this process its folder, since it was still alive.
    shutil.rmtree(objective.folder / locks.process(), ignore_errors=True)
    if written.is_file() and read_json(written, f"dreamset tune {recipe}").get("study") == objective.name:
        workers.clear(objective.folder)
    return {"recipe": recipe, "study": objective.name, "trials": len(_counted(params, study))}


def adapt_and_tune(params: Params, workspace: Workspace, recipe: str) -> None:
    """Everything that comes before the images of ``recipe``: what it starts from included, each with its study."""
    for name in params.lineage(recipe):
        adapt.run(params, workspace, name)
        if params.recipes[name].is_tuned:
            run(params, workspace, name)


def _studied(params: Params, workspace: Workspace, recipe: str) -> tuple[Objective, optuna.Study]:
    """The study of a recipe with all its trials."""
    from dreamset.study import artifacts

    split = read_split(workspace.splits)

    def drawn(trial: optuna.Trial, folder: Path) -> None:
        artifacts.keep_samples(trial, folder, split.classes, workspace)

    scored = objective(params, workspace, recipe, split, drawn)
    with _at_work(scored.folder):
        return scored, _run_trials(params, workspace, scored)


def objective(
    params: Params,
    workspace: Workspace,
    recipe: str,
    split: Split,
    drawn: Callable[[optuna.Trial, Path], None] | None = None,
) -> Objective:
    """The score of a trial of ``recipe``, whose adapters and images the stages make; arguments as ``Objective`` has."""
    from dreamset import generate
    from dreamset.study.objective import Objective

    def make_adapters(chosen: Params, place: Workspace) -> None:
        adapt.inherited(params, workspace, place, recipe)
        adapt.run(chosen, place, recipe)

    return Objective(params, workspace, recipe, split, make_adapters, generate.run, drawn)


def _run_trials(params: Params, workspace: Workspace, objective: Objective) -> optuna.Study:
    from dreamset.study import artifacts, loop

    tune, recipe = params.tune, objective.recipe
    study = loop.open_study(tune, objective.name, _directions(params), workspace.root, _code())
    artifacts.explain(study, params, recipe)
    rungs = params.base.tune.per_class
    own = [] if objective.own is None else [objective.own]
    loop.optimise(study, objective, tune, params.seed, rungs[-1], rungs[0], own)
    return study


def _code() -> str:
    """Hash of the code that a trial's score comes from."""
    return code_digest("dreamset.adapt", "dreamset.generate", "dreamset.study.objective")


@contextmanager
def _at_work(folder: Path) -> Iterator[None]:
    """Inside, a lock of this process says that it lives: what it works on in ``folder`` is not removed."""
    lock = locks.wait(folder / f"{locks.process()}{locks.SUFFIX}")
    try:
        yield
    finally:
        lock.release()


def _directions(params: Params) -> list[Literal["maximize", "minimize"]]:
    return ["maximize"] if params.tune.objectives == "cas" else ["maximize", "minimize"]


@contextmanager
def _trials_kept(objective: Objective) -> Iterator[None]:
    """Whatever goes wrong inside, the trials are in the store, and what they say can be had again."""
    try:
        yield
    except BaseException:
        print(
            f"dreamset: tune: the trials of {objective.name} are kept; when what follows is mended, run `dreamset tune "
            f"{objective.recipe}` again, which repeats none of them.",
            file=sys.stderr,
            flush=True,
        )
        raise


def _counted(params: Params, study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The first ``tune.trials`` trials that ended, without those that were tried again.

    The store may hold more, of a run that was asked for more: what is chosen depends on the parameters alone.
    """
    from dreamset.study import loop

    return sorted(loop.ended(study.trials), key=lambda trial: trial.number)[: params.tune.trials]


def _made_of(params: Params, workspace: Workspace, recipe: str) -> dict[str, Any]:
    """What a record must change with, since a recipe that starts from this one depends on no record but this."""
    return {"inherited": tuned.inherited(params, workspace, recipe), "made_of": params.making(recipe)}


def _record(params: Params, objective: Objective, study: optuna.Study) -> dict[str, Any]:
    """``results/tune/<recipe>.json``."""
    from optuna.distributions import distribution_to_json

    from dreamset.study import analysis

    tune, model = params.tune, params.base.tune
    counted = _counted(params, study)
    trials = [_trial(trial) for trial in counted]
    spans = {knob: span for trial in counted for knob, span in trial.distributions.items()}
    best = _best(trials, objective.images, tune.objectives)
    rule = params.selection if params.sets_apart else "cv"
    record = {
        "recipe": objective.recipe,
        "searched": list(objective.space),
        "space": {knob: json.loads(distribution_to_json(spans[knob])) for knob in objective.space},
        "best": None if best is None else best["params"],
        "best_trial": None if best is None else best["number"],
        "default": _default(trials, objective.own),
        "study": objective.name,
        "storage": without_password(tune.storage),
        "sampler": tune.sampler,
        "pruner": tune.pruner if tune.prunes else "none",
        "objectives": tune.objectives,
        "directions": _directions(params),
        "resource": list(model.per_class),
        "classifier": model.classifier,
        "steps": model.steps,
        "selection": {
            "rule": rule,
            "folds": len(objective.holdouts),
            "images": objective.images,
            "labels_per_class": objective.images / len(objective.holdouts[0].split.classes),
        },
        "limits": {
            "max_seconds_per_image": tune.max_seconds_per_image,
            "max_fid": tune.max_fid,
            "fid_images": objective.fid_images,
        },
        "trials": trials,
        "counts": {
            name: sum(analysis.ending(trial) == end for trial in trials)
            for name, end in (("complete", "COMPLETE"), ("pruned", "PRUNED"), ("slow", "SLOW"), ("failed", "FAIL"))
        },
        "seconds": round(sum(trial["seconds"] for trial in trials), 2),
    }
    record |= _made_of(params, objective.workspace, objective.recipe)
    record |= {"made_for": tuned.made_for(params, objective.workspace, objective.recipe)}
    return record | analysis.summarise(record)


def _trial(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    """A trial as JSON has it, times in seconds since the epoch."""
    from dreamset.study import loop, space

    facts, state = trial.user_attrs, trial.state.name
    # Of the worker that ended it: another may have begun it before.
    started = facts.get("started", trial.datetime_start.timestamp() if trial.datetime_start else None)
    ended = trial.datetime_complete.timestamp() if trial.datetime_complete else None
    return {
        "number": trial.number,
        "state": state,
        "params": space.rounded(trial.params),
        # Optuna gives a pruned trial its last report as its value.
        "values": list(trial.values) if state == "COMPLETE" else None,
        "rungs": facts.get("rungs", {}),
        "seconds": 0.0 if started is None or ended is None else round(ended - started, 3),
        **{name: facts.get(name) for name in ("seconds_generate", "seconds_train", "seconds_per_image")},
        "images": facts.get("images", 0),
        "fid": facts.get("fid"),
        "feasible": all(value <= 0 for value in trial.constraints.values()),
        "started": started,
        "ended": ended,
        **{name: facts.get(name) for name in ("worker", "retried_from", "samples")},
        "reason": loop.reason(trial),
    }


def _best(trials: list[dict[str, Any]], images: int, objectives: str) -> dict[str, Any] | None:
    """The trial whose values are used: of the highest score, the first of equal ones; None where none is feasible.

    With the seconds as a second objective, the fastest of the front that is within one standard error of the highest
    score: on so many images no better one can be told from it.
    """
    from dreamset.classifiers.selection import standard_error
    from dreamset.study import analysis

    usable = [trial for trial in trials if trial["state"] == "COMPLETE" and trial["feasible"]]
    if not usable:
        return None
    highest = max(usable, key=lambda trial: float(trial["values"][0]))
    if objectives == "cas":
        return highest
    score = highest["values"][0]
    enough = score - standard_error(score, images) - 1e-9
    by_number = {trial["number"]: trial for trial in usable}
    return next(by_number[number] for number in analysis.front(trials) if by_number[number]["values"][0] >= enough)


def _default(trials: list[dict[str, Any]], own: dict[str, Any] | None) -> dict[str, Any] | None:
    """The trial of the recipe's own values, and its score where it has one at the full resource."""
    found = [trial for trial in trials if trial["params"] == own]
    if own is None or not found:
        return None
    trial = next((trial for trial in found if trial["values"]), found[0])
    return {"values": own, "trial": trial["number"], "cas": trial["values"][0] if trial["values"] else None}


def _write(params: Params, workspace: Workspace, record: dict[str, Any]) -> None:
    """Every output of the stage; the record, which other stages go by, last."""
    recipe, best = record["recipe"], record["best"] or {}
    with shards.assembling(workspace.plots("tune", recipe)) as plots:
        if record["searched"]:
            from dreamset.study import analysis

            analysis.write_plots(record, plots)
        else:
            write_csv(plots / "history.csv", [], ("trial", "cas", "best", "state"))
    with shards.assembling(workspace.tuned(recipe)) as folder:
        if any(knob in best for knob in tuned.OF_ADAPTERS):
            _chosen_adapters(params, workspace, recipe, best, folder)
        else:
            write_json(folder / "adapters.json", {"recipe": recipe, "tuned": False, "adapters": []})
    write_json(workspace.result("tune", recipe), record)


def _chosen_adapters(params: Params, workspace: Workspace, recipe: str, best: dict[str, Any], folder: Path) -> None:
    """Adapters of all the shots with the values that were chosen; trials in folds have made those of fewer only."""
    with _aside(workspace, recipe) as place:
        write_split(place.splits, _shots(workspace))
        adapt.inherited(params, workspace, place, recipe)
        adapt.run(params.with_values(recipe, best), place, recipe)
        made = place.adapter(recipe)
        for path in sorted(path for path in made.rglob("*") if path.is_file()):
            shards.link(path, folder / path.relative_to(made))
        card = dict(read_json(made / "adapters.json", "dreamset tune"))
        card.pop("kept", None)  # the choice is made
        write_json(folder / "adapters.json", card | {"tuned": True})


def _forget_epochs(params: Params, workspace: Workspace, objective: Objective, record: dict[str, Any]) -> int:
    """Remove what was kept on the way of every training of the study and was not chosen: of a U-Net, gigabytes.

    Of all the shots and of the folds. What another active row wants of the same trainings stays.

    Returns:
        How many shards went.
    """
    recipe, gone = objective.recipe, 0
    if "epoch" not in objective.space:
        return gone
    tried = [
        {knob: trial["params"][knob] for knob in ("lr", "epochs") if knob in trial["params"]}
        for trial in record["trials"]
    ]
    # The same values of many trials are one training.
    trainings = list({digest(values): values for values in tried}.values())
    chosen = params.with_values(recipe, record["best"] or {})
    others = [name for name in params.active if name != recipe and _same_training(params, recipe, name)]
    with _aside(workspace, recipe) as place:
        for split in (_shots(workspace), *(held.split for held in objective.holdouts)):
            write_split(place.splits, split)
            # What it starts from says which training this is.
            adapt.inherited(params, workspace, place, recipe)
            wanted = {*adapt.used(chosen, place, split, recipe)}
            for name in others:
                wanted |= _wanted(params, workspace, place, split, name)
            for values in trainings:
                found = adapt.kept(params.with_values(recipe, values), place, split, recipe)
                for end, keys in found.items():
                    gone += shards.forget(workspace.shards, [key for key in keys if key not in wanted], [end])
    return gone


def _same_training(params: Params, one: str, other: str) -> bool:
    """Whether two rows train the same thing, but for the length and the rate of it."""
    first, second = params.recipes[one].training(), params.recipes[other].training()
    return first == second and (not first.asks_by_vectors or params.after.get(one) == params.after.get(other))


def _wanted(params: Params, workspace: Workspace, place: Workspace, split: Split, recipe: str) -> set[str]:
    """Shards that another row is made of, or chooses among while its own study is not done."""
    search = params.recipes[recipe].search
    done = search is None or workspace.result("tune", recipe).is_file()
    own = params
    if search is not None and done:
        best = read_json(workspace.result("tune", recipe), f"dreamset tune {recipe}")["best"]
        own = params.with_values(recipe, best or {})
    wanted = {*adapt.used(own, place, split, recipe)}
    if search is not None and search.epoch is not None and not done:
        wanted |= {key for keys in adapt.kept(own, place, split, recipe).values() for key in keys}
    return wanted


def _shots(workspace: Workspace) -> Split:
    """What adapters learn from, with paths that hold in any workspace."""
    split = read_split(workspace.splits)
    return dataclasses.replace(split, train=folds.absolute(split.train, workspace), selection=())


@contextmanager
def _aside(workspace: Workspace, recipe: str) -> Iterator[Workspace]:
    """A workspace of a moment, beside those of the trials."""
    own = digest([workspace.cell.resolve().as_posix()])[:12]
    place = Workspace(workspace.root, workspace.trials / "chosen" / own / recipe)
    try:
        yield place
    finally:
        shutil.rmtree(place.cell, ignore_errors=True)


def _summary(record: dict[str, Any]) -> dict[str, Any]:
    """What the command line prints, and is tracked."""
    best = next((trial for trial in record["trials"] if trial["number"] == record["best_trial"]), None)
    summary: dict[str, Any] = {key: record[key] for key in ("recipe", "study", "seconds", "sentences")}
    summary |= {"trials": len(record["trials"]), **record["counts"]}
    if best is None:
        return summary | {
            "warnings": [
                f"none of the {summary['trials']} trials of {record['recipe']} is complete and within "
                "tune.max_seconds_per_image and tune.max_fid, so its own values are used; raise the limit or "
                "tune.trials."
            ]
        }
    summary |= {"best_trial": best["number"], "cas": round(best["values"][0], 4)}
    default = record["default"]
    return summary | ({"cas_default": round(default["cas"], 4)} if default and default["cas"] is not None else {})

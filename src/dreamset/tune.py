"""``dreamset tune RECIPE``: a study chooses values of a recipe by the accuracy that its images give a classifier.

Later stages read the values from ``results/tune/<recipe>.json``. The other outputs are ``results/plots/tune/<recipe>/``
and, where the study chose weights, ``models/tuned/<recipe>/``. A recipe without a ``search`` gets records that say so.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from dreamset import adapt, compute
from dreamset.core import locks, shards
from dreamset.core.code import code_digest
from dreamset.core.errors import InputError
from dreamset.core.files import digest, read_json, write_csv, write_json
from dreamset.core.progress import bar
from dreamset.core.workspace import Workspace
from dreamset.data import folds, licences, tuned
from dreamset.data.splits import read_split, write_split
from dreamset.data.work import Work
from dreamset.study import recording, workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import optuna

    from dreamset.data.splits import Split
    from dreamset.params import Params
    from dreamset.study.objective import Objective

_FAILED: Final = "failed: "  # what a study keeps, before the reason, of a finalist that could not be scored again


def run(params: Params, workspace: Workspace, recipe: str) -> dict[str, Any]:
    """Run the trials that are missing, and write the results of the study.

    Returns:
        What the command prints, and the ``elapsed`` seconds.

    Raises:
        InputError: every trial failed, a range is empty, the recipe's parent is not adapted or tuned, or the base is
            for non-commercial use and ``accept_licence`` is false.
    """
    licences.check(params, recipe)
    if not params.recipes[recipe].is_tuned:
        empty: dict[str, Any] = {"recipe": recipe, "searched": [], "best": None}
        _write(params, workspace, empty | recording.origin(params, workspace, recipe))
        return {"recipe": recipe, "trials": 0}
    started = time.time()
    _run_in_workers(params, workspace, recipe)
    objective, study = _finished_study(params, workspace, recipe)
    with _explaining_kept_trials(objective):
        record = recording.of_study(params, objective, study, _choice(params, objective, study))
        _write(params, workspace, record)
    # Nothing uses the images of trials from here on, nor the adapters that were not chosen.
    workers.clear(objective.folder)
    _forget_epochs(params, workspace, objective, record)
    return _summary(record) | {"elapsed": time.time() - started}


def join(params: Params, workspace: Workspace, recipe: str) -> dict[str, Any]:
    """Run trials of a study beside other processes, and write no results.

    Raises:
        InputError: as ``run``.
    """
    licences.check(params, recipe)
    if not params.recipes[recipe].is_tuned:
        return {"recipe": recipe, "trials": 0}
    objective, study = _finished_study(params, workspace, recipe)
    result = workspace.result("tune", recipe)
    # All trials have ended. The process that wrote the results left this folder, since this process was alive.
    shutil.rmtree(objective.folder / locks.process(), ignore_errors=True)
    if result.is_file() and read_json(result, f"dreamset tune {recipe}").get("study") == objective.name:
        workers.clear(objective.folder)
    return {"recipe": recipe, "study": study.study_name, "trials": len(recording.counted(params, study))}


def adapt_and_tune(params: Params, workspace: Workspace, recipe: str) -> None:
    """Run the stages before the images of ``recipe``: adapt and tune it, and before it the recipes it starts from."""
    for name in params.lineage(recipe):
        adapt.run(params, workspace, name)
        if params.recipes[name].is_tuned:
            run(params, workspace, name)


def _run_in_workers(params: Params, workspace: Workspace, recipe: str) -> None:
    """Run the trials in the workers of ``compute``, if their storage is PostgreSQL; what is left is for the caller.

    In SQLite a study has one worker, and comes out the same each time. Several see each other's trials as these end.
    """
    count = compute.workers(params.compute)
    if count > 1 and compute.spreads(params.compute) and params.tune.storage.startswith("postgresql"):
        make = functools.partial(_run_as_worker, params, workspace, recipe)
        compute.each(params.compute, workspace.root, make, range(count), what=f"the study of {recipe}")


def _run_as_worker(params: Params, workspace: Workspace, recipe: str, _: int) -> None:
    """Be one of the workers of ``_run_in_workers``."""
    join(params, workspace, recipe)


def _finished_study(params: Params, workspace: Workspace, recipe: str) -> tuple[Objective, optuna.Study]:
    """Run the missing trials of a recipe's study; return its objective and the study."""
    from dreamset.study import artifacts

    work = Work.read(params, workspace, recipe)

    def keep_samples(trial: optuna.Trial, folder: Path) -> None:
        artifacts.keep_samples(trial, folder, work.split.classes, workspace)

    score = objective(work, keep_samples)
    # A worker holds its base, and tries its trials by itself.
    with _alive(score.folder), compute.inline():
        return score, _run_trials(params, workspace, score)


def objective(work: Work, on_images: Callable[[optuna.Trial, Path], None] | None = None) -> Objective:
    """Return the objective of a recipe's study, with ``adapt`` and ``generate`` to make adapters and images.

    Args:
        work: on a recipe with a ``search``.
        on_images: as for ``Objective``.
    """
    from dreamset import generate
    from dreamset.study.objective import Objective

    def make_adapters(chosen: Params, place: Workspace) -> None:
        adapt.run_parents(work.params, work.workspace, place, work.recipe)
        adapt.run(chosen, place, work.recipe)

    return Objective(work, make_adapters, generate.run, on_images)


def _run_trials(params: Params, workspace: Workspace, objective: Objective) -> optuna.Study:
    from dreamset.study import artifacts, loop

    tune, recipe = params.tune, objective.recipe
    study = loop.open_study(tune, objective.name, recording.directions(params), workspace.root, _code())
    artifacts.explain(study, params, recipe)
    rungs = params.base.tune.per_class
    first = [] if objective.row_values is None else [objective.row_values]
    loop.optimise(study, objective, tune, params.seed, rungs[-1], rungs[0], first)
    return study


def _code() -> str:
    """Return the hash of the code that computes a trial's score."""
    return code_digest("dreamset.adapt", "dreamset.generate", "dreamset.study.objective")


@contextmanager
def _alive(folder: Path) -> Iterator[None]:
    """Hold a lock that shows that this process is alive, so that nobody removes its files in ``folder``."""
    lock = locks.wait(folder / f"{locks.process()}{locks.SUFFIX}")
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _explaining_kept_trials(objective: Objective) -> Iterator[None]:
    """Print, if something inside goes wrong, that the store keeps the trials and how to go on with them."""
    try:
        yield
    except BaseException:
        print(
            f"dreamset: tune: the trials of {objective.name} are kept; when the error below is fixed, run `dreamset "
            f"tune {objective.recipe}` again, which repeats none of them.",
            file=sys.stderr,
            flush=True,
        )
        raise


def _choice(params: Params, objective: Objective, study: optuna.Study) -> dict[str, Any] | None:
    """Return the choice among the trials, confirmed by scores from fresh noise where others than the own values won.

    The study keeps these scores, so that a stopped process goes on with the next one.
    """
    from dreamset.study.choice import choose, confirm, finalists

    trials = [recording.of_trial(trial) for trial in recording.counted(params, study)]
    choice = choose(trials, objective.row_values, params.tune.objectives)
    numbers = finalists(trials, choice, params.tune.objectives) if choice is not None else []
    if choice is None or not numbers or not params.tune.rescored:
        return choice
    values = {trial["number"]: trial["params"] for trial in trials}
    again: dict[int, list[str]] = {number: [] for number in numbers}
    failed: dict[int, str] = {}
    with (
        _alive(objective.folder),
        compute.inline(),
        bar(total=len(numbers) * params.tune.rescored, what="finalists", unit="scoring") as progress,
    ):
        for repetition in range(1, params.tune.rescored + 1):
            fresh: Objective | None = None
            for number in (number for number in numbers if number not in failed):
                key = f"again {repetition} {number}"
                if key not in study.user_attrs:
                    fresh = fresh or objective.repeated(repetition)
                    try:
                        study.set_user_attr(key, fresh.again(values[number]))
                    except InputError as error:
                        # As in a trial: its images are degenerate, or a filter accepts none. Others may do better.
                        study.set_user_attr(key, f"{_FAILED}{error}")
                scored = study.user_attrs[key]
                if scored.startswith(_FAILED):
                    failed[number] = scored.removeprefix(_FAILED)
                again[number].append(scored)
                progress.update()
    by_number = {trial["number"]: trial for trial in trials}
    own, left = choice["own"], {number: each for number, each in again.items() if number not in failed}
    if not left:
        raise InputError(f"tune: no finalist can be scored from fresh noise: {failed[numbers[0]]}")
    if own is not None and (own in failed or len(left) == 1):
        whose = "the recipe’s own values" if own in failed else "any other finalist"
        why = f"no images of {whose} could be scored from fresh noise, so the own values are kept"
        return choice | {"chosen": own, "reason": why}
    return confirm(choice, left, {n: by_number[n]["values"][1] for n in left} if params.tune.two else None)


def _write(params: Params, workspace: Workspace, record: dict[str, Any]) -> None:
    """Write every output of the stage, the record last: other stages go by it."""
    recipe, best = record["recipe"], record["best"] or {}
    with shards.assembling(workspace.plots("tune", recipe)) as plots:
        if record["searched"]:
            from dreamset.study.plots import write_plots

            write_plots(record, plots)
        else:
            write_csv(plots / "history.csv", [], ("trial", "cas", "best", "state"))
    with shards.assembling(workspace.tuned(recipe)) as folder:
        if any(knob in best for knob in tuned.OF_ADAPTERS):
            _write_chosen_adapters(params, workspace, recipe, best, folder)
        else:
            write_json(folder / "adapters.json", {"recipe": recipe, "tuned": False, "adapters": []})
    write_json(workspace.result("tune", recipe), record)


def _write_chosen_adapters(
    params: Params, workspace: Workspace, recipe: str, best: dict[str, Any], folder: Path
) -> None:
    """Train adapters of all the shots with the chosen values; the trials in folds saw only a part of the shots."""
    with _temporary_workspace(workspace, recipe) as place:
        write_split(place.splits, _shots(workspace))
        adapt.run_parents(params, workspace, place, recipe)
        adapt.run(params.with_values(recipe, best), place, recipe)
        source = place.adapter(recipe)
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            shards.link(path, folder / path.relative_to(source))
        card = dict(read_json(source / "adapters.json", "dreamset tune"))
        card.pop("kept", None)  # the study has ended, so nothing wants these shards
        write_json(folder / "adapters.json", card | {"tuned": True})


def _forget_epochs(params: Params, workspace: Workspace, objective: Objective, record: dict[str, Any]) -> int:
    """Remove the weights that the trainings of the study kept on the way and that were not chosen.

    Those of a U-Net take gigabytes. The trainings are those on all the shots and on the folds. Shards that another
    active row wants of the same trainings stay.

    Returns:
        The number of removed shards.
    """
    recipe, removed = objective.recipe, 0
    if "epoch" not in objective.space:
        return removed
    tried = [
        {knob: trial["params"][knob] for knob in ("lr", "epochs") if knob in trial["params"]}
        for trial in record["trials"]
    ]
    # Trials with the same values share one training.
    trainings = list({digest(values): values for values in tried}.values())
    chosen = params.with_values(recipe, record["best"] or {})
    others = [name for name in params.active if name != recipe and _same_training(params, recipe, name)]
    with _temporary_workspace(workspace, recipe) as place:
        for split in (_shots(workspace), *(holdout.split for holdout in objective.holdouts)):
            write_split(place.splits, split)
            work = Work(chosen, place, split, recipe)
            # The keys of the trainings depend on the recipes that this one starts from.
            adapt.run_parents(params, workspace, place, recipe)
            wanted = {*adapt.used_shards(work)}
            for name in others:
                wanted |= _wanted(Work(params, place, split, name), workspace)
            for values in trainings:
                training = dataclasses.replace(work, params=params.with_values(recipe, values))
                for end, keys in adapt.kept_shards(training).items():
                    removed += shards.forget(workspace.shards, [key for key in keys if key not in wanted], [end])
    return removed


def _same_training(params: Params, one: str, other: str) -> bool:
    """Whether two rows have the same training, apart from its length and learning rate."""
    rows = [params.recipes[name].training() for name in (one, other)]
    return rows[0] == rows[1] and (not rows[0].asks_by_vectors or params.after.get(one) == params.after.get(other))


def _wanted(work: Work, workspace: Workspace) -> set[str]:
    """Return the shards that another row is assembled from, or that its unfinished study chooses among.

    Args:
        work: on that row, in the workspace of a fold.
        workspace: where its study has written its result.
    """
    recipe, search = work.recipe, work.row.search
    done = search is None or workspace.result("tune", recipe).is_file()
    if search is not None and done:
        best = read_json(workspace.result("tune", recipe), f"dreamset tune {recipe}")["best"]
        work = dataclasses.replace(work, params=work.params.with_values(recipe, best or {}))
    wanted = {*adapt.used_shards(work)}
    if search is not None and search.epoch is not None and not done:
        wanted |= {key for keys in adapt.kept_shards(work).values() for key in keys}
    return wanted


def _shots(workspace: Workspace) -> Split:
    """Return the split that adapters learn from, with paths that hold in any workspace."""
    split = read_split(workspace.splits)
    return dataclasses.replace(split, train=folds.absolute(split.train, workspace), selection=())


@contextmanager
def _temporary_workspace(workspace: Workspace, recipe: str) -> Iterator[Workspace]:
    """Return a workspace beside those of the trials; it is removed at the end."""
    cell = digest([workspace.cell.resolve().as_posix()])[:12]
    place = Workspace(workspace.root, workspace.trials / "chosen" / cell / recipe)
    try:
        yield place
    finally:
        shutil.rmtree(place.cell, ignore_errors=True)


def _summary(record: dict[str, Any]) -> dict[str, Any]:
    """Return what the command prints and what is tracked."""
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

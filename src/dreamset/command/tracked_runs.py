"""The runs that MLflow is told of: of a recipe, of a classifier, of a fold; each with its files.

A classifier's run is of one (recipe, images that it learned from, classifier). All of them have the same figures by the
same names, so that MLflow compares them. Everything is read from the project's result files.
"""

from __future__ import annotations

import csv
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamset import track
from dreamset.core.files import digest, read_json, sha256, sha256_file
from dreamset.data.runs import REAL, ZERO_SHOT, Kind, Run
from dreamset.data.splits import read_split
from dreamset.evaluate import output
from dreamset.params import to_dict
from dreamset.track import spool

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from dreamset.core.workspace import Workspace
    from dreamset.metrics.gains import Gain
    from dreamset.params import Params

PIPELINE: Final = "pipeline"  # the key of a pipeline's own run

Curves = dict[str, list[tuple[int, float, float]]]
Told = tuple[spool.Run, dict[str, Path]]  # a run, and its files by name

# Figures of a row of evaluate.csv, by the names that MLflow shows.
_FIGURES: Final = {
    "accuracy": "accuracy",
    "accuracy_low": "low",
    "accuracy_high": "high",
    **{name: name for name in ("balanced_accuracy", "macro_f1", "ece", "fid", "kid", "coverage", "near_duplicates")},
}
_SECONDS: Final = ("seconds_adapt", "seconds_tune", "seconds_generate", "seconds_train")


def recipes(
    params: Params,
    workspace: Workspace,
    recipes: Iterable[str],
    stages: Collection[str],
    evaluation: Mapping[str, Any] | None = None,
) -> list[Told]:
    """Return a run per recipe with what these stages have left, its pictures among it; none where that is nothing."""
    told = []
    for recipe in recipes:
        if recipe not in params.recipes:
            continue
        metrics: dict[str, float | None] = {}
        curves: Curves = {}
        files: list[Path] = []
        images: list[spool.Dataset] = []
        times: list[float] = []
        for name in ("adapt", "generate"):
            path = workspace.result(name, recipe)
            if name not in stages or not path.is_file():
                continue
            record, ended = read_json(path, f"dreamset {name} {recipe}"), path.stat().st_mtime
            if name == "adapt" and not record.get("steps"):
                continue
            started = ended - (record.get("seconds") or 0)
            times += [started, ended]
            metrics[f"seconds_{name}"] = record.get("seconds")
            metrics |= {key: record[key] for key in ("loss_last", "images", "images_per_s") if key in record}
            files += artifacts(workspace, name, recipe, private=False)
            curves |= _curves(workspace.plots(name, recipe) / "loss.csv", started, ended)
        if "generate" in stages:
            images += _synthetic(workspace, recipe)
        if evaluation:
            ended = written(workspace.result("evaluate"))
            times.append(ended)
            metrics |= numbers({n: v for n, v in evaluation["sets"][recipe].items() if n in output.SET_MEASURES})
            metrics["near_duplicates"] = evaluation["sets"][recipe]["near_duplicates"]["count"]
            metrics["seconds_tune"] = evaluation["costs"].get(recipe, {}).get("seconds_tune")
        if times:
            run = spool.Run(
                key=f"recipe/{recipe}",
                name=recipe,
                kind="recipe",
                started=min(times),
                ended=max(times),
                above=PIPELINE,
                params=common(params)
                | (_drawn_with(workspace, recipe) if "generate" in stages else {})
                | of_recipe(params, recipe),
                metrics={name: float(value) for name, value in metrics.items() if value is not None},
                curves=curves,
                datasets=images,
            )
            told.append((run, spool.named(files)))
    return told


def trained(params: Params, workspace: Workspace, arm: str, stage: str) -> list[Told]:
    """Return a run per classifier of an arm that ``train`` has made and nothing has measured yet."""
    path = workspace.result("train", arm)
    if stage != "train" or not path.is_file():
        return []
    every = read_json(path, f"dreamset train {arm}")["runs"]
    runs = [Run(arm, Kind.parse(record["train_on"]), record["classifier"]) for record in every]
    return [classifier(params, workspace, run) for run in runs]


def classifier(
    params: Params,
    workspace: Workspace,
    run: Run,
    row: Mapping[str, Any] | None = None,
    gain: Gain | None = None,
    model: spool.Model | None = None,
) -> Told:
    """Return the run of a classifier, whole: what it was made with, how it learned, and what was measured.

    Args:
        params: all parameters.
        workspace: where its training and its evaluation are.
        run: the classifier.
        row: of ``evaluate.csv``; None before it is measured.
        gain: over the best run on real images alone, of a run on both.
        model: what is delivered, where it is this classifier.
    """
    metrics: dict[str, float] = {}
    curves: Curves = {}
    images: list[spool.Dataset] = []
    files: dict[str, Path] = {}
    times: list[float] = []
    settings: dict[str, str] = {}
    path = workspace.result("train", run.arm)
    if path.is_file():
        record = read_json(path, f"dreamset train {run.arm}")
        wanted = (str(run.kind), run.classifier)
        for trained in record["runs"]:
            if (trained["train_on"], trained["classifier"]) == wanted:
                ended = path.stat().st_mtime
                times += [ended - trained["seconds"], ended]
                metrics["seconds_train"] = float(trained["seconds"])
                settings = track.flat({"train": trained.get("configuration") or {}})
                curves = _curves(workspace.plots("train", run.arm) / "loss.csv", times[0], ended, run.folder)
    if run.kind.real and not run.kind.few and workspace.splits.is_file():
        shots = read_split(workspace.splits).train
        name = sha256(json.dumps([sample.sha256 for sample in shots]).encode())[:16]
        place = workspace.splits.relative_to(workspace.cell).as_posix()
        images.append(spool.Dataset("shots", name, place, len(shots), "training"))
    if run.kind.synthetic:
        images += _synthetic(workspace, run.arm)
    if row:
        ended = written(workspace.result("evaluate"))
        times.append(ended)
        metrics |= measured(params, row)
        if gain:
            metrics |= {"gain": gain.difference, "gain_low": gain.low, "gain_high": gain.high}
        images += _tested(workspace)
        confusion = workspace.plots("evaluate") / "confusion" / f"{run.arm}_{run.folder}.csv"
        files = {"confusion.csv": confusion} if confusion.is_file() else {}
    if model:
        files[spool.MODEL] = workspace.classifier
    known = run.arm in params.recipes
    knobs = of_recipe(params, run.arm) | _drawn_with(workspace, run.arm) if known else {}
    told = spool.Run(
        key=str(run),
        name=str(run),
        kind="classifier",
        started=min(times, default=time.time()),
        ended=max(times, default=time.time()),
        above=PIPELINE,
        params=common(params) | named(params, run) | knobs | settings,
        metrics=metrics,
        curves=curves,
        datasets=images,
        model=model,
    )
    return told, files


def measured(params: Params, row: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a classifier by the names that all runs share; what was not measured is left out.

    Args:
        params: say which classifiers start from nothing.
        row: of ``evaluate.csv`` or of a table's ``cells.csv``, numbers or their text.
    """
    kind = Kind.parse(row["train_on"])
    figures = {name: _number(row.get(column)) for name, column in _FIGURES.items()}
    if kind.synthetic and not kind.real and row["classifier"] in params.base.train.from_scratch:
        figures["cas"] = figures["accuracy"]
    seconds = [value for name in _SECONDS if (value := _number(row.get(name))) is not None]
    figures["seconds"] = round(sum(seconds), 2) if seconds else None
    return {name: value for name, value in figures.items() if value is not None}


def over_folds(
    params: Params, workspace: Workspace, evaluation: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]
) -> list[Told]:
    """Return a run per classifier and fold of cross-validation, nested in the classifier's; none under other rules."""
    if evaluation.get("protocol") != "cv":
        return []
    import numpy as np

    from dreamset.data import folds

    split = read_split(workspace.splits)
    scored = folds.absolute(folds.scored_on(params, split).train, workspace)
    place = {sample.path: index for index, sample in enumerate(scored)}
    guesses = read_json(workspace.plots("evaluate") / "predictions.json", "dreamset evaluate")
    labels, ended = np.array(guesses["labels"]), written(workspace.result("evaluate"))
    told: list[Told] = []
    for fold in folds.test_folds(params, workspace, split):
        held = [place[sample.path] for sample in fold.held_out]
        for row in rows:
            run = Run(row["recipe"], Kind.parse(row["train_on"]), row["classifier"])
            right = np.array(guesses["predicted"][str(run)])[held] == labels[held]
            only = {"recipe": row["recipe"], "train_on": row["train_on"], "classifier": row["classifier"]}
            number = str(fold.index + 1)
            one = spool.Run(
                key=f"{run}/fold{number}",
                name=f"{run}, fold {number}",
                kind="fold",
                started=ended,
                ended=ended,
                above=str(run),
                params=common(params) | named(params, run) | {"fold": number},
                metrics=measured(params, only | {"accuracy": round(float(right.mean()), 4)}),
            )
            told.append((one, {}))
    return told


def common(params: Params) -> dict[str, str]:
    """Return the parameters that every run has."""
    return track.flat({"model": params.model, "shots": params.shots, "seed": params.seed})


def named(params: Params, run: Run) -> dict[str, str]:
    """Return what tells a classifier's run from the others."""
    recipe = run.arm if run.arm not in (REAL, ZERO_SHOT) else "none"
    named = {"arm": run.arm, "recipe": recipe, "train_on": str(run.kind), "classifier": run.classifier}
    return named | {"selection": params.selection}


def _drawn_with(workspace: Workspace, recipe: str) -> dict[str, str]:
    """Return the sampler that a recipe's images were drawn with, tuned or not.

    Only after ``generate``: until then its record is of an earlier run.
    """
    path = workspace.result("generate", recipe)
    drawn = (read_json(path, f"dreamset generate {recipe}").get("sampler") or {}) if path.is_file() else {}
    return track.flat({"sampler": {name: value for name, value in drawn.items() if value is not None}})


def of_recipe(params: Params, recipe: str) -> dict[str, str]:
    """Return a recipe's name and knobs."""
    row = {name: value for name, value in to_dict(params.recipes[recipe]).items() if value is not None}
    return {"recipe": recipe} | track.flat({"recipe": row})


def _synthetic(workspace: Workspace, recipe: str) -> list[spool.Dataset]:
    """Return the dataset of a recipe, by the hash of its metadata."""
    path = workspace.synthetic(recipe) / "metadata.jsonl"
    if not path.is_file():
        return []
    place = path.parent.relative_to(workspace.cell).as_posix()
    with path.open("rb") as file:
        rows = sum(1 for _ in file)
    return [spool.Dataset(recipe, sha256_file(path)[:16], place, rows, "training")]


def _tested(workspace: Workspace) -> list[spool.Dataset]:
    """Return the images that everything was measured on, by the hash of their labels."""
    path = workspace.plots("evaluate") / "predictions.json"
    if not path.is_file():
        return []
    labels = read_json(path, "dreamset evaluate")["labels"]
    return [spool.Dataset("measured on", digest(labels)[:16], "results/evaluate.json", len(labels), "testing")]


def _curves(path: Path, started: float, ended: float, run: str | None = None) -> Curves:
    """Return the loss by step, ``loss``: of one classifier ``run``, or the mean over the adapters of a recipe."""
    if not path.is_file():
        return {}
    by_step: dict[int, list[float]] = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if run is None or row.get("run") == run:
                by_step[int(row["step"])].append(float(row["loss"]))
    points = [(step, statistics.fmean(values)) for step, values in sorted(by_step.items())]
    return {"loss": spool.spread(points, started, ended)} if points else {}


def artifacts(workspace: Workspace, stage: str, item: str | None, private: bool) -> list[Path]:
    """Return the files of a stage that people look at; none shows or names a shot if the shots are ``private``."""
    # The evaluation's record names the files of shots that synthetic images resemble.
    files = [] if private and stage == "evaluate" else [workspace.result(stage, item)]
    plots = workspace.plots(stage, item)
    files += sorted(plots.glob("*")) if plots.is_dir() else []
    if stage == "report":
        files += [workspace.results / "report.html", workspace.results / "contact_sheet.png"]
    return [path for path in files if path.is_file()]


def written(path: Path) -> float:
    """Return when a result was written, in seconds since the epoch; now, where it is missing."""
    return path.stat().st_mtime if path.is_file() else time.time()


def _number(value: object) -> float | None:
    return None if value in (None, "") else float(str(value))


def numbers(tree: Mapping[str, Any], above: str = "") -> dict[str, float]:
    """Return the numbers of a tree, flat. Names are joined by ``_``, for MLflow makes a heading of each ``/``."""
    flat: dict[str, float] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= numbers(value, f"{above}{key}_")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[above + key] = float(value)
    return flat

"""``dreamset evaluate``: everything that is said about the test images, and the only stage that opens them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from dreamset.errors import InputError
from dreamset.files import atomic_write, read_json, write_csv, write_json
from dreamset.seeds import seed_for
from dreamset.splits import read_split, read_test
from dreamset.train import REAL, arms, train_on

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dreamset.classifiers import Predictor
    from dreamset.classifiers.arrays import Labelled
    from dreamset.params import Params
    from dreamset.splits import Split
    from dreamset.workspace import Workspace

ZERO_SHOT: Final = "zero_shot"

ROW_COLUMNS: Final = (
    "recipe",
    "train_on",
    "classifier",
    "shots",
    "seed",
    "accuracy",
    "low",
    "high",
    "top5",
    "fid",
    "kid",
    "near_duplicates",
    "labels_train_per_class",
    "labels_selection_per_class",
    "steps",
    "seconds_adapt",
    "seconds_generate",
    "seconds_train",
    "images",
)


def run(params: Params, workspace: Workspace) -> dict[str, Any]:
    """Score every classifier and every synthetic dataset on the test images.

    Raises:
        InputError: a classifier, a dataset or a manifest is missing or of other classes.
    """
    from dreamset.classifiers import arrays

    split, test_split = read_split(workspace.splits), read_test(workspace.test_split)
    if split.classes != test_split.classes:
        raise InputError(f"{workspace.test_split}: has other classes than the shots; run `dreamset prepare` again.")
    test = arrays.real(test_split.test, workspace.cell, params.base.resolution)
    logits = _all_logits(params, workspace, split, test)
    right = {key: (scores.argmax(1) == test.labels).astype(float) for key, scores in logits.items()}
    trained = {arm: read_json(workspace.result("train", arm), f"dreamset train {arm}") for arm in arms(params)}
    evaluation = {
        "model": params.model,
        "shots": split.shots,
        "seed": split.seed,
        "classes": split.classes,
        "test_images": len(test),
        "confidence": params.evaluate.confidence,
        "bootstrap": params.evaluate.bootstrap,
        "labels_train_per_class": len(split.train) / len(split.classes),
        "labels_selection_per_class": len(split.selection) / len(split.classes),
        "runs": [_run_record(params, key, logits[key], right[key], test, split, trained) for key in logits],
        "differences": _differences(params, right),
        "sets": _sets(params, workspace, split, test),
        "costs": {recipe: _costs(workspace, recipe, trained[recipe]) for recipe in params.active},
    }
    _write(workspace, evaluation, {key: scores.argmax(1) for key, scores in logits.items()}, test)
    return evaluation


def key_of(arm: str, kind: str, classifier: str) -> str:
    """The name of a run: ``arm/train_on/classifier``."""
    return f"{arm}/{kind}/{classifier}"


def _all_logits(params: Params, workspace: Workspace, split: Split, test: Labelled) -> dict[str, NDArray[np.float32]]:
    """Logits of every classifier on the test images, by the name of its run."""
    from dreamset import classifiers

    zero_shot = classifiers.build("clip_zeroshot", params.base, split, workspace.root)
    runs: dict[str, Predictor] = {
        key_of(ZERO_SHOT, "none", "clip_zeroshot"): classifiers.Predictor(zero_shot, split.classes)
    }
    for arm in arms(params):
        for name in params.train.classifiers:
            for kind in train_on(arm):
                folder = workspace.classifiers(arm) / f"{kind}_{name}"
                predictor = classifiers.load(folder)
                if predictor.classes != split.classes:
                    raise InputError(f"{folder}: was trained on other classes; run `dreamset train {arm}` again.")
                runs[key_of(arm, kind, name)] = predictor
    return {key: predictor.logits(test.images) for key, predictor in runs.items()}


def _run_record(
    params: Params,
    key: str,
    logits: NDArray[np.float32],
    right: NDArray[np.float64],
    test: Labelled,
    split: Split,
    trained: dict[str, Any],
) -> dict[str, Any]:
    """Everything about one classifier's predictions, and how it was trained."""
    from dreamset.metrics import accuracy

    arm, kind, name = key.split("/")
    interval = _bootstrap(params, right)
    matrix = accuracy.confusion(logits.argmax(1), test.labels, len(split.classes))
    wrong = [(int(n), a, p) for a, row in enumerate(matrix) for p, n in enumerate(row) if n and a != p]
    by_class = accuracy.per_class(matrix)
    record = {
        "arm": arm,
        "train_on": kind,
        "classifier": name,
        "measure": _measure(kind, name),
        "accuracy": round(interval.estimate, 4),
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
        # With five classes or fewer it says nothing.
        "top5": round(accuracy.top_k(logits, test.labels, 5), 4) if len(split.classes) > 5 else None,
        "per_class": {
            c: None if value is None else round(value, 4) for c, value in zip(split.classes, by_class, strict=True)
        },
        "most_confused": [
            {"actual": split.classes[a], "predicted": split.classes[p], "count": n}
            for n, a, p in sorted(wrong, key=lambda pair: (-pair[0], pair[1:]))[:3]
        ],
    }
    runs = trained[arm]["runs"] if arm in trained else []
    history = next((run for run in runs if (run["train_on"], run["classifier"]) == (kind, name)), None)
    for fact in ("steps", "chosen_step", "seconds"):
        record[fact] = history[fact] if history else 0
    return record


def _measure(kind: str, classifier: str) -> str:
    """CAS is a network trained from scratch on synthetic images alone; the rest have other names."""
    if kind != "synthetic":
        return "accuracy"
    return "CAS" if classifier == "resnet20" else "synthetic-only accuracy"


def _bootstrap(params: Params, values: NDArray[np.float64]) -> Any:
    from dreamset.metrics.accuracy import bootstrap

    # One seed for all: the same images are resampled for every run and every difference.
    return bootstrap(values, params.evaluate.bootstrap, params.evaluate.confidence, seed_for("bootstrap"))


def _differences(params: Params, right: dict[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    """Paired differences of accuracy over the same test images, with intervals.

    What adaptation gains is kept apart from what having synthetic images gains: every adapted recipe against
    every un-adapted one, on synthetic images alone and with the real ones, and every recipe with the real ones
    against the real ones alone.
    """
    plain = [recipe for recipe in params.active if params.recipes[recipe].adapter == "none"]
    adapted = [recipe for recipe in params.active if recipe not in plain]
    pairs = [((recipe, kind), (base, kind)) for recipe in adapted for base in plain for kind in train_on(recipe)]
    pairs += [((recipe, "both"), (REAL, "real")) for recipe in params.active]
    differences = []
    for classifier in params.train.classifiers:
        for first, second in pairs:
            of, minus = key_of(*first, classifier), key_of(*second, classifier)
            interval = _bootstrap(params, right[of] - right[minus])
            differences.append(
                {
                    "classifier": classifier,
                    "of": of,
                    "minus": minus,
                    "difference": round(interval.estimate, 4),
                    "low": round(interval.low, 4),
                    "high": round(interval.high, 4),
                }
            )
    return differences


def _sets(params: Params, workspace: Workspace, split: Split, test: Labelled) -> dict[str, Any]:
    """Distance to the test images, and copies of the shots, of every synthetic dataset."""
    from dreamset.classifiers import arrays
    from dreamset.metrics.compare import Reference

    size = params.base.resolution
    shots = arrays.real(split.train, workspace.cell, size)
    reference = Reference(params, workspace.base(params.base.judge), split, shots, test)
    return {
        recipe: reference.compare(arrays.synthetic(workspace.synthetic(recipe), split, size))
        for recipe in params.active
    }


def _costs(workspace: Workspace, recipe: str, trained: dict[str, Any]) -> dict[str, Any]:
    """Seconds and images of a recipe, as its stages recorded them; None where a stage left no record."""
    records = {}
    for stage in ("adapt", "generate"):
        path = workspace.result(stage, recipe)
        records[stage] = read_json(path, f"dreamset {stage} {recipe}") if path.is_file() else {}
    return {
        "seconds_adapt": records["adapt"].get("seconds"),
        "seconds_generate": records["generate"].get("seconds"),
        "images": records["generate"].get("images"),
        "seconds_train": round(sum(run["seconds"] for run in trained["runs"]), 2),
    }


def rows(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per (recipe, train_on, classifier, shots, seed) of what ``run`` returned, with ``ROW_COLUMNS``."""
    table = []
    for record in evaluation["runs"]:
        sets = evaluation["sets"].get(record["arm"], {})
        costs = evaluation["costs"].get(record["arm"], {})
        row = {
            "recipe": record["arm"],
            "shots": evaluation["shots"],
            "seed": evaluation["seed"],
            "near_duplicates": sets.get("near_duplicates", {}).get("count"),
            "seconds_train": record["seconds"],
            "labels_train_per_class": evaluation["labels_train_per_class"],
            "labels_selection_per_class": evaluation["labels_selection_per_class"],
        }
        if record["arm"] == ZERO_SHOT:
            row |= {"labels_train_per_class": 0, "labels_selection_per_class": 0}
        row |= {name: record[name] for name in ("train_on", "classifier", "accuracy", "low", "high", "top5", "steps")}
        row |= {name: sets.get(name) for name in ("fid", "kid")}
        row |= {name: costs.get(name) for name in ("seconds_adapt", "seconds_generate", "images")}
        table.append({name: row[name] for name in ROW_COLUMNS})
    return table


def summary(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The few numbers that ``dvc metrics show`` prints, by recipe."""
    compact: dict[str, Any] = {}
    for record in evaluation["runs"]:
        arm = compact.setdefault(record["arm"], {})
        if record["arm"] in (REAL, ZERO_SHOT):
            arm[record["classifier"]] = record["accuracy"]
        else:
            arm.setdefault(record["classifier"], {})[record["train_on"]] = record["accuracy"]
    for recipe, sets in evaluation["sets"].items():
        compact[recipe] |= {name: sets[name] for name in ("fid", "kid")}
        compact[recipe]["near_duplicates"] = sets["near_duplicates"]["count"]
    return compact


def _write(
    workspace: Workspace, evaluation: dict[str, Any], predicted: dict[str, NDArray[np.int64]], test: Labelled
) -> None:
    """Every output of the stage."""
    write_json(workspace.result("evaluate"), evaluation)
    write_json(workspace.result("metrics"), summary(evaluation))
    write_csv(workspace.results / "evaluate.csv", rows(evaluation), ROW_COLUMNS)
    plots, classes = workspace.plots("evaluate"), evaluation["classes"]
    guesses = {
        "classes": classes,
        "labels": test.labels.tolist(),
        "predicted": {key: labels.tolist() for key, labels in predicted.items()},
    }
    atomic_write(plots / "predictions.json", json.dumps(guesses, ensure_ascii=False, separators=(",", ":")) + "\n")
    bars = [{"run": key_of(r["arm"], r["train_on"], r["classifier"]), **r} for r in evaluation["runs"]]
    columns = ("run", "arm", "train_on", "classifier", "accuracy", "low", "high")
    write_csv(plots / "accuracy.csv", ({name: row[name] for name in columns} for row in bars), columns)
    for key, labels in predicted.items():
        pairs = [{"actual": classes[a], "predicted": classes[p]} for a, p in zip(test.labels, labels, strict=True)]
        write_csv(plots / "confusion" / f"{key.replace('/', '_')}.csv", pairs, ("actual", "predicted"))

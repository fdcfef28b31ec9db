"""``dreamset evaluate``: everything that is said about images that nothing has learned from.

Under ``protocol: test`` these are the test images, which no other stage opens. Under ``cv`` they are the shots, each
held out of a fold in which all that learns is done again (``dreamset.sweep.crossval``); everything is then said of the
predictions of all folds together, image by image.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any, Final

from dreamset.classifiers import selection
from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write, read_json, write_csv, write_json
from dreamset.core.images import png
from dreamset.core.seeds import seed_for
from dreamset.core.sums import total
from dreamset.data.runs import REAL, ZERO_SHOT, Run, arms, kinds
from dreamset.data.splits import read_split, read_test
from dreamset.evaluate import scoring
from dreamset.metrics import verdict
from dreamset.weights import hub, pretrained

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from dreamset.core.workspace import Workspace
    from dreamset.data.folds import CrossValidate
    from dreamset.data.splits import Split
    from dreamset.metrics.accuracy import Interval
    from dreamset.params import Params

_MOST_CLASSES: Final = 100  # of a confusion matrix that is written whole
_TOP_PAIRS: Final = 50
_ACCURACY_OF: Final = {
    "test": "the delivered classifiers, on test images",
    "cv": "classifiers of the folds, which estimate the delivered ones: those learn from all shots but those that "
    "selection takes",
}

# Of a synthetic dataset as a whole, in the judge's features.
SET_MEASURES: Final = ("fid", "kid", "precision", "recall", "density", "coverage", "vendi")
ROW_COLUMNS: Final = (
    "recipe",
    "train_on",
    "classifier",
    "scale",
    "shots",
    "seed",
    "accuracy",
    "low",
    "high",
    "top5",
    *SET_MEASURES,
    "balanced_accuracy",
    "macro_f1",
    "auroc",
    "majority",
    "near_duplicates",
    "near_duplicates_test",
    "touched",
    "accuracy_untouched",
    "labels_train_per_class",
    "labels_selection_per_class",
    "selection",
    "nll",
    "ece",
    "temperature",
    "nll_scaled",
    "ece_scaled",
    "steps",
    "labels_tune_per_class",
    "tune_trials",
    "seconds_adapt",
    "seconds_tune",
    "seconds_generate",
    "seconds_train",
    "images",
)


_SCALE_COLUMNS: Final = ("run", "classifier", "scale", "accuracy", "low", "high")


def run(params: Params, workspace: Workspace, cross_validate: CrossValidate) -> dict[str, Any]:
    """Score every classifier and every synthetic dataset on images that they were not made from.

    Args:
        params: all parameters.
        workspace: where the classifiers, the datasets and the manifests are.
        cross_validate: called under ``protocol: cv`` alone: does in each fold all that learns, and scores it there.

    Raises:
        InputError: a classifier, a dataset or a manifest is missing or of other classes, or cross-validation is to be
            done over a class whose shots are all of one group.
    """
    from dreamset.metrics import accuracy, mcnemar

    split, test_split = read_split(workspace.splits), read_test(workspace.test_split)
    if split.classes != test_split.classes:
        raise InputError(f"{workspace.test_split}: has other classes than the shots; run `dreamset prepare` again.")
    if params.evaluate.protocol not in (None, split.protocol):
        raise InputError(
            f"{workspace.splits}: was drawn for evaluate.protocol: {split.protocol}; run `dreamset prepare` again."
        )
    trained = {arm: read_json(workspace.result("train", arm), f"dreamset train {arm}") for arm in arms(params)}
    if split.protocol == "cv":
        scored = scoring.over_folds(params, workspace, split, cross_validate)
    elif test_split.test:
        scored = scoring.on_test_images(params, workspace, split, test_split)
    else:
        raise InputError(f"{workspace.test_split}: holds no images; run `dreamset prepare` again.")
    logits, labels, touched = scored.logits, scored.labels, scored.touched
    groups = accuracy.grouped([sample.group for sample in scored.samples])
    right = {run: (scores.argmax(1) == labels).astype(float) for run, scores in logits.items()}
    evaluation: dict[str, Any] = {
        "model": params.model,
        # A number wherever each class was asked for the same, for that is what runs are grouped by.
        "shots": split.shots if isinstance(split.shots, int) else split.shots_in_words,
        "train_per_class": dict(zip(split.classes, split.train_per_class, strict=True)),
        "seed": split.seed,
        "classes": split.classes,
        "protocol": split.protocol,
        "folds": scored.folds,
        "accuracy_of": _ACCURACY_OF[split.protocol],
        "test_images": len(labels),
        "groups": None if groups is None else int(groups.max()) + 1,
        "reach": mcnemar.reach(len(labels), params.evaluate.confidence),
        "confidence": params.evaluate.confidence,
        "bootstrap": params.evaluate.bootstrap,
        "selection": params.selection,
        "labels_train_per_class": len(split.train) / len(split.classes),
        "labels_selection_per_class": selection.labels_per_class(params.selection, split),
        "runs": [
            _run_record(params, run, logits[run], scored.scaled[run], right[run], labels, groups, split, trained)
            | _untouched(right[run], touched.get(run.arm))
            for run in logits
        ],
        "differences": _differences(params, right, groups),
        "clip": pretrained.identity(workspace.root, params.base.clip),
        "judge": hub.identity(workspace.root, params.base.judge, "judge"),
        "sets": scored.sets,
        "near_duplicates_real": scored.copies,
        "costs": {recipe: _costs(params, workspace, recipe, trained[recipe]) for recipe in params.active},
    }
    evaluation["scales"] = _scales(evaluation["runs"])
    evaluation["verdict"] = verdict.of_evaluation(params, evaluation)
    guesses = {run: scores.argmax(1) for run, scores in logits.items()}
    _write(workspace, evaluation, guesses, labels, {recipe: rows.tolist() for recipe, rows in touched.items()})
    _show(workspace, scored.near)
    return evaluation


def _show(workspace: Workspace, near: dict[str, list[NDArray[np.uint8]]]) -> None:
    """Each recipe's nearest pairs of synthetic image and test image, side by side: no later stage opens the latter."""
    import numpy as np

    shutil.rmtree(workspace.near_test, ignore_errors=True)
    # DVC warns of an empty folder at every stage.
    atomic_write(workspace.near_test / "README", "Synthetic images, each above the test image that it is near to.\n")
    for recipe, pairs in near.items():
        if pairs:
            # A pair to a column, the synthetic image above.
            sheet = np.concatenate([np.concatenate(list(pair)) for pair in pairs], axis=1)
            atomic_write(workspace.near_test / f"{recipe}.png", png(sheet))


def _run_record(
    params: Params,
    run: Run,
    logits: NDArray[np.float32],
    scaled: NDArray[np.float32],
    right: NDArray[np.float64],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64] | None,
    split: Split,
    trained: dict[str, Any],
) -> dict[str, Any]:
    """Everything about one classifier's predictions, and how it was trained."""
    import numpy as np

    from dreamset.classifiers import calibration
    from dreamset.metrics import accuracy

    interval = _interval(params, right, groups)
    matrix = accuracy.confusion(logits.argmax(1), labels, len(split.classes))
    by_class = accuracy.per_class(matrix)
    area = accuracy.auroc(logits, labels)
    learned = np.array([sample.label for sample in split.train], np.int64)
    record = {
        "arm": run.arm,
        "train_on": str(run.kind),
        "classifier": run.classifier,
        "scale": run.kind.scale,
        "measure": _measure(params, run),
        "accuracy": round(interval.estimate, 4),
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
        # With five classes or fewer it says nothing.
        "top5": round(accuracy.top_k(logits, labels, 5), 4) if len(split.classes) > 5 else None,
        "balanced_accuracy": round(accuracy.balanced_accuracy(matrix), 4),
        "macro_f1": round(accuracy.macro_f1(matrix), 4),
        "auroc": None if area is None else round(area, 4),
        "majority": round(accuracy.majority(learned, labels), 4),
        "per_class": {
            c: None if value is None else round(value, 4) for c, value in zip(split.classes, by_class, strict=True)
        },
        "most_confused": [
            {"actual": split.classes[a], "predicted": split.classes[p], "count": n}
            for a, p, n in accuracy.most_confused(matrix, 3)
        ],
    }
    untrained: dict[str, Any] = {"selection": "fixed", "temperature": 1.0, "steps": 0, "chosen_step": 0, "seconds": 0}
    untrained |= {"labels_train_per_class": 0, "labels_selection_per_class": 0}
    known = trained[run.arm]["runs"] if run.arm in trained else []
    wanted = (str(run.kind), run.classifier)
    history = next((entry for entry in known if (entry["train_on"], entry["classifier"]) == wanted), untrained)
    record |= {fact: history[fact] for fact in untrained}
    for suffix, said in (("", logits), ("_scaled", scaled)):
        record[f"nll{suffix}"] = round(calibration.nll(said, labels), 4)
        record[f"ece{suffix}"] = round(calibration.ece(said, labels), 4)
    return record


def _measure(params: Params, run: Run) -> str:
    """CAS is the accuracy of a network trained from scratch on synthetic images alone; the rest have other names."""
    if run.kind.real or not run.kind.synthetic:
        return "accuracy"
    return "CAS" if run.classifier in params.base.train.from_scratch else "synthetic-only accuracy"


def _interval(
    params: Params, values: NDArray[np.float64], groups: NDArray[np.int64] | None, *, paired: bool = False
) -> Interval:
    from dreamset.metrics.accuracy import interval

    asked, seed = params.evaluate, seed_for("bootstrap")
    # One seed for all: the same images are resampled for every run and every difference.
    return interval(values, asked.bootstrap, asked.confidence, seed, groups, paired=paired)


def _differences(
    params: Params, right: dict[Run, NDArray[np.float64]], groups: NDArray[np.int64] | None
) -> list[dict[str, Any]]:
    """Paired differences of accuracy over the same images, with intervals, and McNemar's exact test beside them.

    What adaptation and tuning gain is kept apart from what having synthetic images gains: every adapted recipe against
    every baseline, every tuned one against its row before the study, every one of several strengths against its row at
    full strength, and every one against what it starts from, on synthetic images alone and with the real ones; and
    every recipe with the real ones against the real ones alone, both as they are and strongly augmented. The test
    takes images as independent; the interval is over groups where there are any.
    """
    from dreamset.metrics.mcnemar import mcnemar

    baselines = [recipe for recipe in params.active if params.recipes[recipe].is_baseline]
    adapted = [recipe for recipe in params.active if params.recipes[recipe].trains]
    over = [(recipe, base) for recipe in adapted for base in baselines]
    over += [(recipe, before) for recipe in params.active for before in params.steps_back(recipe)]
    differences = []
    for classifier in params.train.classifiers:
        trained_on = kinds(params, params.active[0], classifier)
        # What a recipe starts from may be a baseline.
        pairs = [((recipe, kind), (other, kind)) for recipe, other in dict.fromkeys(over) for kind in trained_on]
        pairs += [
            ((recipe, kind), (REAL, alone))
            for kind in trained_on
            if kind.real
            for alone in kinds(params, REAL, classifier)
            for recipe in params.active
        ]
        for first, second in pairs:
            of, minus = Run(*first, classifier), Run(*second, classifier)
            difference = right[of] - right[minus]
            interval, paired = _interval(params, difference, groups, paired=True), mcnemar(difference)
            differences.append(
                {
                    "classifier": classifier,
                    "of": str(of),
                    "minus": str(minus),
                    "difference": round(interval.estimate, 4),
                    "low": round(interval.low, 4),
                    "high": round(interval.high, 4),
                    "gained": paired.gained,
                    "lost": paired.lost,
                    "mcnemar_p": float(f"{paired.p:.4g}"),
                }
            )
    return differences


def _untouched(right: NDArray[np.float64], touched: NDArray[np.int64] | None) -> dict[str, Any]:
    """Accuracy without the test images that a recipe's images are near-duplicates of; all, where no recipe's are used.

    None where no test image is left.
    """
    import numpy as np

    rest = right if touched is None else np.delete(right, touched)
    accuracy = round(float(rest.mean()), 4) if len(rest) else None
    return {"touched": len(right) - len(rest), "accuracy_untouched": accuracy}


def _costs(params: Params, workspace: Workspace, recipe: str, trained: dict[str, Any]) -> dict[str, Any]:
    """Effort of a recipe, as its stages recorded it, that of adapting and tuning what it starts from included.

    None where a stage left no record, or no study chose anything.
    """
    lineage = params.lineage(recipe)
    # Labels that selected, and configurations that were tried, are effort as well.
    studies = [record for record in _records(workspace, "tune", lineage) if record.get("searched")]
    (drawn,) = _records(workspace, "generate", (recipe,))
    return {
        "seconds_adapt": _seconds(record.get("seconds") for record in _records(workspace, "adapt", lineage)),
        "seconds_tune": _seconds(study["seconds"] for study in studies),
        "tune_trials": total(len(study["trials"]) for study in studies),
        "labels_tune_per_class": max((study["selection"]["labels_per_class"] for study in studies), default=None),
        "seconds_generate": drawn.get("seconds"),
        "images": drawn.get("images"),
        "seconds_train": round(sum(run["seconds"] for run in trained["runs"]), 2),
    }


def _records(workspace: Workspace, stage: str, recipes: Iterable[str]) -> list[dict[str, Any]]:
    """What a stage left for each recipe; empty where it left nothing."""
    paths = [(recipe, workspace.result(stage, recipe)) for recipe in recipes]
    return [read_json(path, f"dreamset {stage} {recipe}") if path.is_file() else {} for recipe, path in paths]


def _seconds(parts: Iterable[float | None]) -> float | None:
    seconds = total(parts)
    return None if seconds is None else round(seconds, 2)


_COSTS: Final = (
    *("labels_tune_per_class", "tune_trials"),
    *("seconds_adapt", "seconds_tune", "seconds_generate", "images"),
)


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
            "near_duplicates_test": sets.get("near_duplicates_test", {}).get("count"),
            "touched": record.get("touched"),
            "accuracy_untouched": record.get("accuracy_untouched"),
            "seconds_train": record["seconds"],
        }
        row |= {name: record[name] for name in ROW_COLUMNS if name in record}
        row |= {name: sets.get(name) for name in SET_MEASURES}
        row |= {name: costs.get(name) for name in _COSTS}
        table.append({name: row.get(name) for name in ROW_COLUMNS})
    return table


def summary(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The few numbers that ``dvc metrics show`` prints, by recipe."""
    compact: dict[str, Any] = {}
    for record in evaluation["runs"]:
        if record["arm"] in (REAL, ZERO_SHOT):
            name = record["train_on"] if record["arm"] == REAL else ZERO_SHOT
            compact.setdefault(name, {})[record["classifier"]] = record["accuracy"]
        else:
            arm = compact.setdefault(record["arm"], {})
            arm.setdefault(record["classifier"], {})[record["train_on"]] = record["accuracy"]
    for recipe, sets in evaluation["sets"].items():
        compact[recipe] |= {name: sets[name] for name in SET_MEASURES}
        compact[recipe]["near_duplicates"] = sets["near_duplicates"]["count"]
    return compact


def _scales(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """CAS by the size of the synthetic set, and beside it what the same classifier makes of the real images alone.

    One row per run and scale, with ``_SCALE_COLUMNS``; the real runs, which have no scale, stand at each of them.
    """
    sized = [run for run in runs if run["scale"] is not None]
    found = [{**run, "run": run["arm"]} for run in sized]
    for scale, classifier in dict.fromkeys((run["scale"], run["classifier"]) for run in sized):
        found += [
            {**run, "run": run["train_on"], "scale": scale}
            for run in runs
            if (run["arm"], run["classifier"]) == (REAL, classifier) and run["train_on"] in ("real", "real_strong")
        ]
    return [{name: row[name] for name in _SCALE_COLUMNS} for row in found]


def _write(
    workspace: Workspace,
    evaluation: dict[str, Any],
    predicted: dict[Run, NDArray[np.int64]],
    labels: NDArray[np.int64],
    touched: dict[str, list[int]],
) -> None:
    """Every output of the stage."""
    write_json(workspace.result("evaluate"), evaluation)
    write_json(workspace.result("metrics"), summary(evaluation))
    write_csv(workspace.results / "evaluate.csv", rows(evaluation), ROW_COLUMNS)
    plots, classes = workspace.plots("evaluate"), evaluation["classes"]
    guesses = {
        "classes": classes,
        "labels": labels.tolist(),
        "predicted": {str(run): guess.tolist() for run, guess in predicted.items()},
        "touched": touched,
    }
    atomic_write(plots / "predictions.json", json.dumps(guesses, ensure_ascii=False, separators=(",", ":")) + "\n")
    bars = [{"run": f"{r['arm']}/{r['train_on']}/{r['classifier']}", **r} for r in evaluation["runs"]]
    columns = ("run", "arm", "train_on", "classifier", "accuracy", "low", "high")
    write_csv(plots / "accuracy.csv", ({name: row[name] for name in columns} for row in bars), columns)
    write_csv(plots / "scales.csv", evaluation["scales"], _SCALE_COLUMNS)
    for run, guess in predicted.items():
        pairs = [{"actual": classes[a], "predicted": classes[p]} for a, p in _pairs(labels, guess, len(classes))]
        write_csv(plots / "confusion" / f"{run.arm}_{run.folder}.csv", pairs, ("actual", "predicted"))


def _pairs(labels: NDArray[np.int64], guess: NDArray[np.int64], classes: int) -> Iterable[tuple[int, int]]:
    """Class and prediction of each test image for DVC's confusion plot, which draws all pairs of the classes it meets.

    Beyond ``_MOST_CLASSES`` classes only the images of the ``_TOP_PAIRS`` most confused pairs: nobody can read more,
    and the plot has the square of its classes as cells.
    """
    from dreamset.metrics import accuracy

    every = zip(labels.tolist(), guess.tolist(), strict=True)
    if classes <= _MOST_CLASSES:
        return every
    top = {(a, p) for a, p, _ in accuracy.most_confused(accuracy.confusion(guess, labels, classes), _TOP_PAIRS)}
    return (pair for pair in every if pair in top)

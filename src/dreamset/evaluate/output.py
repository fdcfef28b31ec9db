"""The files that ``dreamset evaluate`` writes."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.files import atomic_write, write_csv, write_json
from dreamset.core.images import png, read_rgb
from dreamset.core.resizing import resize_crop
from dreamset.data.runs import REAL, SYNTHETIC, ZERO_SHOT, Kind
from dreamset.evaluate import records
from dreamset.evaluate.records import SCALE_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dreamset.core.workspace import Workspace
    from dreamset.data.runs import Run
    from dreamset.data.splits import Sample
    from dreamset.params import Params

_MOST_CLASSES: Final = 100  # of a confusion matrix that is written whole
_TOP_PAIRS: Final = 50  # of a larger one
_MOST_MISTAKES: Final = 24  # of a classifier that are kept as pictures
_THUMBNAIL: Final = 96  # px, their side at most

# Measures of a synthetic dataset as a whole, in the judge's features.
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
    *records.BY_FOLDS,
)
_COSTS: Final = (
    *("labels_tune_per_class", "tune_trials"),
    *("seconds_adapt", "seconds_tune", "seconds_generate", "images"),
)


def write(
    params: Params,
    workspace: Workspace,
    evaluation: dict[str, Any],
    predicted: dict[Run, NDArray[np.int64]],
    labels: NDArray[np.int64],
    touched: dict[str, list[int]],
    groups: NDArray[np.int64] | None,
) -> None:
    """Write the stage's results and plots.

    Args:
        params: all parameters.
        workspace: where they go.
        evaluation: what ``evaluate.run`` returns.
        predicted: labels (images,) by run.
        labels: the true ones, (images,).
        touched: by recipe the rows of the images that synthetic ones are near-duplicates of.
        groups: (images,), numbers of the images' groups; None where each image is a group.
    """
    write_json(workspace.result("evaluate"), evaluation)
    table = rows(evaluation)
    write_json(workspace.result("metrics"), summary(params, table, evaluation["verdict"]))
    write_csv(workspace.results / "evaluate.csv", table, ROW_COLUMNS)
    plots, classes = workspace.plots("evaluate"), evaluation["classes"]
    guesses = {
        "classes": classes,
        "labels": labels.tolist(),
        "groups": None if groups is None else groups.tolist(),
        "predicted": {str(run): guess.tolist() for run, guess in predicted.items()},
        "touched": touched,
    }
    atomic_write(plots / "predictions.json", json.dumps(guesses, ensure_ascii=False, separators=(",", ":")) + "\n")
    bars = [{"run": str(run), **record} for run, record in zip(predicted, evaluation["runs"], strict=True)]
    columns = ("run", "arm", "train_on", "classifier", "accuracy", "low", "high")
    write_csv(plots / "accuracy.csv", ({name: row[name] for name in columns} for row in bars), columns)
    write_csv(plots / "scales.csv", evaluation["scales"], SCALE_COLUMNS)
    for run, guess in predicted.items():
        pairs = [{"actual": classes[a], "predicted": classes[p]} for a, p in confused(labels, guess, len(classes))]
        write_csv(plots / "confusion" / f"{run.arm}_{run.folder}.csv", pairs, ("actual", "predicted"))


def rows(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row per (recipe, train_on, classifier, shots, seed), with ``ROW_COLUMNS``.

    Args:
        evaluation: what ``evaluate.run`` returned.
    """
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
        # Numbers by CLIP in place of the judge stand in evaluate.json and on the page: here they would be compared.
        by_judge = "stands_in_for" not in evaluation.get("judge", {})
        row |= {name: sets.get(name) if by_judge else None for name in SET_MEASURES}
        row |= {name: costs.get(name) for name in _COSTS}
        table.append({name: row.get(name) for name in ROW_COLUMNS})
    return table


def summary(
    params: Params, rows: Iterable[Mapping[str, Any]], verdict: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the dozen figures that one run of the pipeline is compared with another by; ``evaluate.csv`` has the rest.

    They are those of the primary recipe and classifier. What was not measured is left out.

    Args:
        params: gives the primary recipe and classifier.
        rows: of one run, as ``rows`` returns them.
        verdict: its record, as ``evaluate`` writes it.
    """
    recipe, classifier = params.primary_recipe, params.primary_classifier
    compact: dict[str, Any] = {"recipe": recipe, "classifier": classifier}
    if verdict:
        names = {"outcome": "outcome", "gain": "difference", "low": "low", "high": "high"}
        compact["verdict"] = {name: verdict[key] for name, key in names.items()}
    accuracy: dict[str, float] = {}
    seconds, least = 0.0, float("inf")
    for row in rows:
        kind = Kind.parse(row["train_on"])
        if row["recipe"] == ZERO_SHOT:
            accuracy[ZERO_SHOT] = row["accuracy"]
        elif row["classifier"] == classifier and row["recipe"] in (REAL, recipe) and kind.real and kind.whole:
            accuracy[str(kind)] = row["accuracy"]
        # The best simple classifier by its loss in folds of the shots, not by the figure that stands here.
        loss = row.get("nll_folds")
        if row["classifier"] in params.train.simple_classifiers and loss is not None and loss < least:
            least, accuracy["simple"] = loss, row["accuracy"]
            compact["simple"] = row["classifier"]
        if row["recipe"] != recipe:
            continue
        if kind == SYNTHETIC and row["classifier"] in params.base.train.from_scratch:
            compact.setdefault("cas", row["accuracy"])
        compact |= {name: row[name] for name in ("fid", "near_duplicates") if row[name] is not None}
        # Every classifier takes its own time. The images are made once.
        seconds += row["seconds_train"]
        made = sum(row[name] or 0 for name in ("seconds_adapt", "seconds_tune", "seconds_generate"))
        compact["seconds"] = round(made + seconds, 2)
    return compact | {"accuracy": accuracy}


def confused(labels: NDArray[np.int64], guess: NDArray[np.int64], classes: int) -> Iterable[tuple[int, int]]:
    """Return class and prediction of the images for DVC's confusion plot, which has a cell for each pair of classes.

    With more than ``_MOST_CLASSES`` classes only the images of the ``_TOP_PAIRS`` most confused pairs are returned,
    for nobody can read more.

    Args:
        labels: the true classes, (images,).
        guess: the predicted ones, (images,).
        classes: how many there are.
    """
    from dreamset.metrics import accuracy

    every = zip(labels.tolist(), guess.tolist(), strict=True)
    if classes <= _MOST_CLASSES:
        return every
    top = {(a, p) for a, p, _ in accuracy.most_confused(accuracy.confusion(guess, labels, classes), _TOP_PAIRS)}
    return (pair for pair in every if pair in top)


def write_nearest(workspace: Workspace, near: dict[str, list[NDArray[np.uint8]]]) -> None:
    """Write each recipe's nearest pairs of synthetic and test image as one PNG; no later stage opens test images."""
    import numpy as np

    shutil.rmtree(workspace.near_test, ignore_errors=True)
    # DVC warns of an empty folder at every stage.
    atomic_write(workspace.near_test / "README", "Synthetic images, each above the test image that it is near to.\n")
    for recipe, pairs in near.items():
        if pairs:
            # Each column is a pair, with the synthetic image above.
            sheet = np.concatenate([np.concatenate(list(pair)) for pair in pairs], axis=1)
            atomic_write(workspace.near_test / f"{recipe}.png", png(sheet))


def write_mistakes(
    workspace: Workspace,
    logits: Mapping[Run, NDArray[np.float32]],
    labels: NDArray[np.int64],
    samples: Sequence[Sample],
    resolution: int,
) -> None:
    """Write the images that classifiers take for another class, for the page; no later stage opens test images.

    ``data/mistakes/mistakes.json`` has the number of mistakes of each run, and class and logits of those of which it
    was surest. Their pictures stand side by side in one PNG per run, in the same order.

    Args:
        workspace: where the images are, and the files go.
        logits: (images, classes) by run.
        labels: the true classes, (images,).
        samples: the images.
        resolution: of the squares that networks see, pixels; larger ones become thumbnails.
    """
    import numpy as np

    from dreamset.classifiers.calibration import log_softmax

    shutil.rmtree(workspace.mistakes, ignore_errors=True)
    side, record = min(resolution, _THUMBNAIL), {}
    for run, values in logits.items():
        guesses, sureness = values.argmax(1), log_softmax(values.astype(np.float64)).max(1)
        wrong = np.flatnonzero(guesses != labels)
        surest = wrong[np.argsort(-sureness[wrong], kind="stable")][:_MOST_MISTAKES]
        rows = [
            {"actual": int(labels[row]), "logits": [round(float(value), 3) for value in values[row]]} for row in surest
        ]
        record[str(run)] = {"count": len(wrong), "of": len(labels), "mistakes": rows}
        if rows:
            squares = [resize_crop(read_rgb(workspace.cell / samples[row].path), side) for row in surest]
            atomic_write(workspace.mistakes / f"{run.arm}_{run.folder}.png", png(np.concatenate(squares, axis=1)))
    text = json.dumps({"runs": record}, separators=(",", ":"))
    atomic_write(workspace.mistakes / "mistakes.json", f"{text}\n")

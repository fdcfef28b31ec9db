"""``dreamset evaluate``: everything that is said about the test images, and the only stage that opens them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from dreamset import hub
from dreamset.errors import InputError
from dreamset.files import atomic_write, read_json, write_csv, write_json
from dreamset.seeds import seed_for
from dreamset.splits import read_split, read_test
from dreamset.train import REAL, arms, runs, train_on

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from dreamset.classifiers.arrays import Labelled
    from dreamset.params import Params
    from dreamset.splits import Sample, Split, TestSplit
    from dreamset.workspace import Workspace

ZERO_SHOT: Final = "zero_shot"
_MOST_CLASSES: Final = 100  # of a confusion matrix that is written whole
_TOP_PAIRS: Final = 50

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
    "selection",
    "nll",
    "ece",
    "temperature",
    "nll_scaled",
    "ece_scaled",
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
    from dreamset import classifiers

    split, test_split = read_split(workspace.splits), read_test(workspace.test_split)
    if split.classes != test_split.classes:
        raise InputError(f"{workspace.test_split}: has other classes than the shots; run `dreamset prepare` again.")
    images = _Images(params, workspace, split, test_split)
    logits = _all_logits(params, workspace, split, images)
    labels = images.labels
    right = {key: (scores.argmax(1) == labels).astype(float) for key, scores in logits.items()}
    trained = {arm: read_json(workspace.result("train", arm), f"dreamset train {arm}") for arm in arms(params)}
    evaluation = {
        "model": params.model,
        "shots": split.shots,
        "seed": split.seed,
        "classes": split.classes,
        "test_images": len(labels),
        "confidence": params.evaluate.confidence,
        "bootstrap": params.evaluate.bootstrap,
        "selection": params.selection,
        "labels_train_per_class": len(split.train) / len(split.classes),
        "labels_selection_per_class": len(split.selection) / len(split.classes),
        "runs": [_run_record(params, key, logits[key], right[key], labels, split, trained) for key in logits],
        "differences": _differences(params, right),
        "clip": classifiers.identity(workspace.root, params.base.clip),
        "judge": hub.identity(workspace.root, params.base.judge, "judge"),
        "sets": _sets(params, workspace, images),
        "costs": {recipe: _costs(workspace, recipe, trained[recipe]) for recipe in params.active},
    }
    _write(workspace, evaluation, {key: scores.argmax(1) for key, scores in logits.items()}, labels)
    return evaluation


def key_of(arm: str, kind: str, classifier: str) -> str:
    """The name of a run: ``arm/train_on/classifier``."""
    return f"{arm}/{kind}/{classifier}"


class _Images:
    """The images that are scored, decoded at the sides that networks see."""

    def __init__(self, params: Params, workspace: Workspace, split: Split, test: TestSplit) -> None:
        import numpy as np

        self.workspace, self.split, self.resolution = workspace, split, params.base.resolution
        self.samples = test.test
        self.labels: NDArray[np.int64] = np.array([sample.label for sample in test.test], np.int64)
        self.decoded: dict[int, Labelled] = {}

    def test(self, size: int) -> Labelled:
        """Test images for a network of ``size`` pixels; those of the last two sides are kept."""
        side = self._side(size)
        if side not in self.decoded:
            # One side for each classifier and one for the judge are common; more would only take room.
            while len(self.decoded) > 1:
                del self.decoded[next(iter(self.decoded))]
            self.decoded[side] = self._real(self.samples, side)
        return self.decoded[side]

    def shots(self, size: int) -> Labelled:
        """What the generators learned from."""
        return self._real(self.split.train, self._side(size))

    def synthetic(self, recipe: str, size: int) -> Labelled:
        """The synthetic dataset of a recipe."""
        from dreamset.classifiers import arrays

        folder = self.workspace.synthetic(recipe)
        return arrays.synthetic(folder, self.split, self._side(size), self.workspace.scratch)

    def _real(self, samples: tuple[Sample, ...], side: int) -> Labelled:
        from dreamset.classifiers import arrays

        return arrays.real(samples, self.workspace.cell, side, self.workspace.scratch)

    def _side(self, size: int) -> int:
        from dreamset.classifiers import seen

        return seen(size, self.resolution)


def _all_logits(params: Params, workspace: Workspace, split: Split, images: _Images) -> dict[str, NDArray[np.float32]]:
    """Logits of every classifier on the test images, by the name of its run; one classifier in memory at a time."""
    from dreamset import classifiers

    folders = {
        key_of(arm, kind, name): workspace.classifiers(arm) / f"{kind}_{name}"
        for arm in arms(params)
        for kind, name in runs(params, arm)
    }
    # Before any work: all are there, and of these classes.
    for key, folder in folders.items():
        if classifiers.classes(folder) != split.classes:
            arm = key.split("/")[0]
            raise InputError(f"{folder}: was trained on other classes; run `dreamset train {arm}` again.")
    zero_shot = classifiers.build("clip_zeroshot", params.base, split, workspace.root)
    predictor = classifiers.Predictor(zero_shot, split.classes)
    logits = {key_of(ZERO_SHOT, "none", "clip_zeroshot"): predictor.logits(images.test(predictor.size).images)}
    del zero_shot
    for key, folder in folders.items():
        predictor = classifiers.load(folder)
        logits[key] = predictor.logits(images.test(predictor.size).images)
    return logits


def _run_record(
    params: Params,
    key: str,
    logits: NDArray[np.float32],
    right: NDArray[np.float64],
    labels: NDArray[np.int64],
    split: Split,
    trained: dict[str, Any],
) -> dict[str, Any]:
    """Everything about one classifier's predictions, and how it was trained."""
    from dreamset.metrics import accuracy, calibration

    arm, kind, name = key.split("/")
    interval = _bootstrap(params, right)
    matrix = accuracy.confusion(logits.argmax(1), labels, len(split.classes))
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
        "top5": round(accuracy.top_k(logits, labels, 5), 4) if len(split.classes) > 5 else None,
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
    known = trained[arm]["runs"] if arm in trained else []
    history = next((run for run in known if (run["train_on"], run["classifier"]) == (kind, name)), untrained)
    record |= {fact: history[fact] for fact in untrained}
    for suffix, scaled in (("", logits), ("_scaled", logits / history["temperature"])):
        record[f"nll{suffix}"] = round(calibration.nll(scaled, labels), 4)
        record[f"ece{suffix}"] = round(calibration.ece(scaled, labels), 4)
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
    against the real ones alone, as they are and strongly augmented.
    """
    plain = [recipe for recipe in params.active if params.recipes[recipe].adapter == "none"]
    adapted = [recipe for recipe in params.active if recipe not in plain]
    pairs = [
        ((recipe, kind), (base, kind)) for recipe in adapted for base in plain for kind in train_on(params, recipe)
    ]
    pairs += [((recipe, "both"), (REAL, kind)) for kind in train_on(params, REAL) for recipe in params.active]
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


def _sets(params: Params, workspace: Workspace, images: _Images) -> dict[str, Any]:
    """Distance to the test images, and copies of the shots, of every synthetic dataset."""
    from dreamset.metrics.compare import Reference
    from dreamset.metrics.features import Judge

    judge = Judge(hub.locate(workspace.root, params.base.judge, "judge"))
    reference = Reference(params, judge, images.split, images.shots(judge.size), images.test(judge.size))
    return {recipe: reference.compare(images.synthetic(recipe, judge.size)) for recipe in params.active}


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
        }
        row |= {name: record[name] for name in ROW_COLUMNS if name in record}
        row |= {name: sets.get(name) for name in ("fid", "kid")}
        row |= {name: costs.get(name) for name in ("seconds_adapt", "seconds_generate", "images")}
        table.append({name: row[name] for name in ROW_COLUMNS})
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
        compact[recipe] |= {name: sets[name] for name in ("fid", "kid")}
        compact[recipe]["near_duplicates"] = sets["near_duplicates"]["count"]
    return compact


def _write(
    workspace: Workspace,
    evaluation: dict[str, Any],
    predicted: dict[str, NDArray[np.int64]],
    labels: NDArray[np.int64],
) -> None:
    """Every output of the stage."""
    write_json(workspace.result("evaluate"), evaluation)
    write_json(workspace.result("metrics"), summary(evaluation))
    write_csv(workspace.results / "evaluate.csv", rows(evaluation), ROW_COLUMNS)
    plots, classes = workspace.plots("evaluate"), evaluation["classes"]
    guesses = {
        "classes": classes,
        "labels": labels.tolist(),
        "predicted": {key: guess.tolist() for key, guess in predicted.items()},
    }
    atomic_write(plots / "predictions.json", json.dumps(guesses, ensure_ascii=False, separators=(",", ":")) + "\n")
    bars = [{"run": key_of(r["arm"], r["train_on"], r["classifier"]), **r} for r in evaluation["runs"]]
    columns = ("run", "arm", "train_on", "classifier", "accuracy", "low", "high")
    write_csv(plots / "accuracy.csv", ({name: row[name] for name in columns} for row in bars), columns)
    for key, guess in predicted.items():
        pairs = [{"actual": classes[a], "predicted": classes[p]} for a, p in _pairs(labels, guess, len(classes))]
        write_csv(plots / "confusion" / f"{key.replace('/', '_')}.csv", pairs, ("actual", "predicted"))


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

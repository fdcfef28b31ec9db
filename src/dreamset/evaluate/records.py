"""Records of a classifier's predictions, of the differences between classifiers, and of costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dreamset.core.arithmetic import total
from dreamset.core.files import read_json
from dreamset.core.seeds import seed_for
from dreamset.data.runs import BOTH_STRONG, REAL, REAL_FEW, REAL_ONLY, SYNTHETIC, Kind, Run, beside, kinds

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from dreamset.core.workspace import Workspace
    from dreamset.data.splits import Split
    from dreamset.metrics.accuracy import Interval
    from dreamset.params import Params

BY_FOLDS: Final = ("accuracy_folds", "nll_folds")  # of a simple classifier: on shots that each fold holds out
SCALE_COLUMNS: Final = ("run", "classifier", "scale", "accuracy", "low", "high")  # of what `scales` returns


def of_run(
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
    """Return the measures of one classifier's predictions, and how it was trained.

    Args:
        params: all parameters.
        run: the classifier.
        logits: (images, classes).
        scaled: the logits over the classifier's temperature.
        right: (images,), 1 where the prediction is right, else 0.
        labels: (images,).
        groups: (images,), numbers of the images' groups; None where each image is a group.
        split: the classes and the shots.
        trained: the record of ``dreamset train`` by arm.
    """
    import numpy as np

    from dreamset.classifiers import calibration
    from dreamset.metrics import accuracy

    interval = interval_of(params, right, groups)
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
        # With five classes or fewer it is always 1.
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
    untrained |= dict.fromkeys(BY_FOLDS)
    known = trained[run.arm]["runs"] if run.arm in trained else []
    wanted = (str(run.kind), run.classifier)
    history = next((entry for entry in known if (entry["train_on"], entry["classifier"]) == wanted), untrained)
    # Only the simple classifiers have predictions of shots that they did not learn from.
    record |= {fact: history[fact] for fact in untrained if fact not in BY_FOLDS or fact in history}
    for suffix, scores in (("", logits), ("_scaled", scaled)):
        record[f"nll{suffix}"] = round(calibration.nll(scores, labels), 4)
        record[f"ece{suffix}"] = round(calibration.ece(scores, labels), 4)
    return record


def untouched(right: NDArray[np.float64], touched: NDArray[np.int64] | None) -> dict[str, Any]:
    """Return the accuracy without the test images that the recipe's images are near-duplicates of.

    It is None where no test image is left.

    Args:
        right: (images,), 1 where the prediction is right, else 0.
        touched: rows of those test images; None: the run uses no recipe's images.
    """
    import numpy as np

    rest = right if touched is None else np.delete(right, touched)
    accuracy = round(float(rest.mean()), 4) if len(rest) else None
    return {"touched": len(right) - len(rest), "accuracy_untouched": accuracy}


def _measure(params: Params, run: Run) -> str:
    """Return the name of a run's accuracy: "CAS" of a network trained from scratch on synthetic images alone."""
    if run.kind.real or not run.kind.synthetic:
        return "accuracy"
    return "CAS" if run.classifier in params.base.train.from_scratch else "synthetic-only accuracy"


def interval_of(
    params: Params, values: NDArray[np.float64], groups: NDArray[np.int64] | None, *, paired: bool = False
) -> Interval:
    """Return the mean of values of single images with its interval over images or groups; ``paired``: -1, 0 or 1."""
    from dreamset.metrics.accuracy import interval

    section, seed = params.evaluate, seed_for("bootstrap")
    # There is one seed, so that the same images are resampled for every run and every difference.
    return interval(values, section.bootstrap, section.confidence, seed, groups, paired=paired)


def differences(
    params: Params, right: dict[Run, NDArray[np.float64]], groups: NDArray[np.int64] | None
) -> list[dict[str, Any]]:
    """Return paired differences of accuracy over the same images, with intervals and McNemar's exact test.

    The gain of adapting and tuning is kept apart from the gain of having synthetic images:

    - Adapting and tuning, on synthetic images alone and with the real ones: every adapted recipe is compared with every
      baseline, every tuned one with its row before the study, every one of several strengths with its row at full
      strength, and every one with the recipe it starts from.
    - Synthetic images: every recipe with the real images is compared with the real images alone, both as they are and
      strongly augmented.

    The test takes images as independent. The interval is over groups where there are any.
    """
    baselines = [recipe for recipe in params.active if params.recipes[recipe].is_baseline]
    adapted = [recipe for recipe in params.active if params.recipes[recipe].trains]
    over = [(recipe, base) for recipe in adapted for base in baselines]
    over += [(recipe, before) for recipe in params.active for before in params.steps_back(recipe)]
    differences = []
    for classifier in params.train.classifiers:
        trained_on = kinds(params, params.active[0], classifier)
        # The recipe that one starts from may be a baseline, so that a pair occurs twice.
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
            differences.append({"classifier": classifier} | difference(params, right, groups, of, minus))
    return differences


def over_simple(
    params: Params,
    right: dict[Run, NDArray[np.float64]],
    groups: NDArray[np.int64] | None,
    trained: dict[str, Any],
) -> dict[str, Any] | None:
    """Return the difference of the verdict's run with synthetic images and the best simple classifier.

    That is the one with the least loss by folds of the shots, as ``deliver`` chooses, and not on the images that score.
    None where there is none.

    Args:
        params: gives the primary recipe and classifier.
        right: (images,), 1 where a run's prediction is right, else 0.
        groups: (images,), numbers of the images' groups; None where each image is a group.
        trained: the record of ``dreamset train`` by arm.
    """
    names = params.train.simple_classifiers
    simple = [row for row in trained[REAL]["runs"] if row["classifier"] in names and row["nll_folds"] is not None]
    of = Run(params.primary_recipe, BOTH_STRONG, params.primary_classifier)
    if not simple or of not in right:
        return None
    best = min(simple, key=lambda row: float(row["nll_folds"]))
    return difference(params, right, groups, of, Run(REAL, REAL_ONLY, best["classifier"]))


def difference(
    params: Params, right: dict[Run, NDArray[np.float64]], groups: NDArray[np.int64] | None, of: Run, minus: Run
) -> dict[str, Any]:
    """Return the paired difference of two runs with its interval and McNemar's test."""
    from dreamset.metrics.mcnemar import mcnemar

    difference = right[of] - right[minus]
    interval, paired = interval_of(params, difference, groups, paired=True), mcnemar(difference)
    return {
        "of": str(of),
        "minus": str(minus),
        "difference": round(interval.estimate, 4),
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
        "gained": paired.gained,
        "lost": paired.lost,
        "mcnemar_p": float(f"{paired.p:.4g}"),
    }


def distillation(
    params: Params,
    right: dict[Run, NDArray[np.float64]],
    groups: NDArray[np.int64] | None,
    trained: dict[str, Any],
) -> list[dict[str, Any]]:
    """Return how an arm's images stand for the larger set of shots, by the scores of dataset distillation.

    Hard-label recovery is the accuracy that all shots teach minus that of the synthetic images, so less is better.
    Improvement over random is the accuracy of the synthetic images minus that of as many shots. Both networks learn
    from hard labels, in equal steps. Label-robust score: half of the second minus half of the first (DD-Ranking, arXiv
    2505.13300, with equal weights and without its rescaling).

    Returns:
        A row per arm with as many images as the shots of ``real_few``: ``hlr`` and ``ior`` with intervals, and ``lrs``.
    """
    if not params.train.distillation:
        return []
    name, rows = params.base.tune.classifier, []
    full, few = (Run(REAL, kind, name) for kind in (REAL_ONLY, REAL_FEW))

    def images(run: Run, key: str) -> int:
        records = trained[run.arm]["runs"]
        return next(int(one[key]) for one in records if (one["train_on"], one["classifier"]) == (str(run.kind), name))

    for arm in params.active:
        own = Run(arm, SYNTHETIC, name)
        if images(own, "synthetic_images") != images(few, "real_images"):
            continue  # it has a number of its own, or one that a study chose
        hlr, ior = (difference(params, right, groups, *pair) for pair in ((full, own), (own, few)))
        row: dict[str, Any] = {"arm": arm, "classifier": name}
        for key, found in (("hlr", hlr), ("ior", ior)):
            row[key] = [found["difference"], found["low"], found["high"]]
        rows.append(row | {"lrs": round((ior["difference"] - hlr["difference"]) / 2, 4)})
    return rows


def scales(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return CAS by the size of the synthetic set, and beside it the accuracy of the same classifier on real images.

    There is one row per run and scale, with ``SCALE_COLUMNS``. The real runs, which have no scale, stand at each scale.

    Args:
        runs: what ``of_run`` returned.
    """
    sized = [run for run in runs if run["scale"] is not None]
    rows = [{**run, "run": beside(run["arm"]) if Kind.parse(run["train_on"]).real else run["arm"]} for run in sized]
    for scale, classifier in dict.fromkeys((run["scale"], run["classifier"]) for run in sized):
        rows += [
            {**run, "run": run["train_on"], "scale": scale}
            for run in runs
            if (run["arm"], run["classifier"]) == (REAL, classifier) and run["train_on"] in ("real", "real_strong")
        ]
    return [{name: row[name] for name in SCALE_COLUMNS} for row in rows]


def costs(params: Params, workspace: Workspace, recipe: str, trained: dict[str, Any]) -> dict[str, Any]:
    """Return the effort of a recipe as its stages recorded it, with adapting and tuning the recipe it starts from.

    A value is None where a stage left no record, or where no study chose anything.
    """
    lineage = params.lineage(recipe)
    # Labels used for selection, and configurations that were tried, are effort as well.
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
    """Return the record of a stage for each recipe; an empty one where there is none."""
    paths = [(recipe, workspace.result(stage, recipe)) for recipe in recipes]
    return [read_json(path, f"dreamset {stage} {recipe}") if path.is_file() else {} for recipe, path in paths]


def _seconds(parts: Iterable[float | None]) -> float | None:
    """Return the sum, rounded to 0.01 s; None of nothing, and where a part is not known."""
    seconds = total(parts)
    return None if seconds is None else round(seconds, 2)

"""``dreamset deliver``: the classifier to take away, in ``models/classifier/``.

It is the best by folds of the shots, among the verdict's, those trained on the real images alone, the baselines and the
simple ones. The verdict's is the classifier trained with the synthetic images if it says that they help, otherwise
the one trained on the real images alone. Beside its weights stand ``classifier.json`` (classes, preprocessing,
temperature, threshold) and a card.
"""

from __future__ import annotations

import math
import shutil
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dreamset.core import locks, shards
from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write, read_json, write_json
from dreamset.data import cards, classifier_card, primary
from dreamset.data import folds as dividing
from dreamset.data.runs import REAL, REAL_ONLY, REAL_STRONG, Run
from dreamset.data.splits import read_split
from dreamset.metrics import best, claims
from dreamset.metrics.verdict import advice, finding, untested

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from dreamset.classifiers import Predictor
    from dreamset.core.workspace import Workspace
    from dreamset.data.folds import CrossValidate
    from dreamset.data.splits import Split
    from dreamset.params import Params

# The kind that is delivered where synthetic images do not help. It is always the same and not picked on the test
# images: on selection images of digits, strong augmentation got more right than plain (docs/selection.md).
_ALONE: Final = REAL_STRONG
_AGAIN: Final = "run `dreamset evaluate` again"

# Code around the `program` of each classifier. The card prints it, and a test runs it from there.
_READ: Final = '''
import json

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops, ImageOps
from safetensors.torch import load_file

record = json.load(open("classifier.json", encoding="utf-8"))
side, size = record["preprocessing"]["side"], record["preprocessing"]["size"]


def changed(image):
    """An RGB image, changed as those that the classifier learned from."""
    wanted = record["preprocessing"].get("changes", {})
    if wanted.get("invert"):
        image = ImageOps.invert(image)
    if wanted.get("crop") == "object":
        width, height = image.size
        sides = [(0, 0, width, 1), (0, height - 1, width, height), (0, 0, 1, height), (width - 1, 0, width, height)]
        edges = np.concatenate([np.asarray(image.crop(edge)).reshape(-1, 3) for edge in sides])
        ground = tuple(np.median(edges, axis=0).astype(int).tolist())
        difference = np.asarray(ImageChops.difference(image, Image.new("RGB", image.size, ground))).max(-1)
        shown = difference > max(16, int(difference.max()) / 4)
        spans = []
        for reached in (shown.sum(0).cumsum(), shown.sum(1).cumsum()):
            few = int(0.005 * reached[-1])
            spans.append((int((reached > few).argmax()), int((reached >= reached[-1] - few).argmax()) + 1))
        longest = max(end - start for start, end in spans)
        if shown.any() and longest >= 4:  # else there is no object, and the picture stays whole
            length = round(longest * 1.25)
            left, top = ((start + end - length) // 2 for start, end in spans)
            square = Image.new("RGB", (length, length), ground)
            square.paste(image, (-left, -top))
            image = square
    if wanted.get("autocontrast"):
        low, high = image.convert("L").getextrema()
        if high - low > 16:
            image = ImageOps.autocontrast(image, cutoff=0.5, preserve_tone=True)
    return image


def read(file):
    """(1, 3, size, size) float RGB in 0..1."""
    image = Image.open(file)
    white_is_zero = getattr(image, "tag_v2", {}).get(262) == 0  # of TIFF
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # grey of more than 8 bits
        if record["preprocessing"]["window"] is None:
            raise ValueError(f"{file}: has more than 8 bits per channel; save it with 8")
        low, high = record["preprocessing"]["window"]
        values = (np.nan_to_num(np.asarray(image, np.float64), nan=low) - low) / (high - low)
        values = values.clip(0, 1) * 255
        image = Image.fromarray(np.round(255 - values if white_is_zero else values).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = changed(image.convert("RGB"))
    scale = side / min(image.size)
    image = image.resize([max(side, round(length * scale)) for length in image.size], Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    if side < size:
        pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    return pixels

'''
_ANSWER: Final = """

with torch.inference_mode():
    probabilities = (logits(read("photo.png")) / record["temperature"]).softmax(-1)[0]
best = int(probabilities.argmax())
print(record["classes"][best], float(probabilities[best]))
"""


class HeldOut(NamedTuple):
    """What images that chose a threshold are called, and why they make it look better than it is."""

    name: str
    caution: str


_SELECTED: Final = HeldOut("selection images", "They chose the epoch too")
_FOLDED: Final = HeldOut("shots, each held out of a fold,", "They chose the threshold itself")


class Compared(NamedTuple):
    """Predictions of the candidates for the same shots, each held out of a fold.

    Attributes:
        best: the candidate that is delivered.
        scores: ``accuracy_folds`` and ``nll_folds`` of each candidate.
        logits: (n, classes) by candidate.
        labels: (n,) of the shots.
    """

    best: Run
    scores: dict[Run, dict[str, float]]
    logits: dict[Run, NDArray[np.float32]]
    labels: NDArray[np.int64]


class Choice(NamedTuple):
    """A threshold of the top probability, 0..1, and a sentence with its reason."""

    threshold: float
    reason: str


def run(params: Params, workspace: Workspace, cross_validate: CrossValidate) -> dict[str, Any]:
    """Write ``models/classifier/`` and ``results/deliver.json``, as the verdict and the folds of the shots decide.

    This is the verdict of the report. It rests on the seeds of ``results/table`` if the table holds six or more of this
    setting, else on ``results/evaluate.json``. Without ``deliver.calibrate`` it decides alone.

    Args:
        params: all parameters.
        workspace: where the results and classifiers are.
        cross_validate: gives the predictions of every arm in every fold; see ``dreamset.data.folds``.

    Raises:
        InputError: the evaluation holds no verdict; or the classifier is missing or has no temperature.
    """
    from dreamset import classifiers

    params = primary.settle(params, workspace)
    path = workspace.result("evaluate")
    evaluation = read_json(path, "dreamset evaluate")
    split = read_split(workspace.splits)
    table = claims.read(params, workspace, {REAL, *params.active})
    try:
        settled = claims.settle(params, table, split, evaluation)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is not what `dreamset evaluate` writes ({error}); {_AGAIN}.") from error
    if settled.verdict is None:
        raise InputError(f"{path}: holds no verdict; {_AGAIN}.")
    decision = settled.verdict | {"seeds": settled.seeds, "basis": settled.basis}
    helps = decision["outcome"] == "helps"
    # Where they help, the very run that the verdict compares.
    pick = Run.parse(decision["of"]) if helps else Run(REAL, _ALONE, decision["classifier"])
    if pick.classifier not in params.base.train.delivered:
        others = ", ".join(params.base.train.delivered)
        raise InputError(
            f"{path}: its verdict names {pick.classifier}, which cannot be delivered; name one of {others}."
        )
    compared: Compared | None = None
    undivided = ""
    if params.deliver.calibrate:
        folds = cross_validate if evaluation.get("protocol") == "cv" else None
        try:
            dividing.held_out(split, dividing.SELECTING, "selection")
        except InputError as error:
            undivided = f"the shots cannot be divided into folds: {error}"
        else:
            compared = _compare(params, workspace, split, pick, folds)
    run = compared.best if compared else pick
    source, command = workspace.classifiers(run.arm) / run.folder, f"dreamset train {run.arm}"
    record = read_json(source / classifiers.RECORD, command)
    if "temperature" not in record:
        raise InputError(f"{source / classifiers.RECORD}: holds no temperature; run `{command}` again.")
    program = classifiers.program(run.classifier, record)
    assert program is not None
    locks.boundary()
    predictor = classifiers.load(source)
    side = classifiers.seen(predictor.size, classifiers.finest(split.native, params.base.resolution))
    # Where images are set apart for it, they give a trained classifier its temperature and threshold.
    apart = record.get("temperature_images") != 0 and not best.is_simple(run.classifier)
    if compared and not apart:
        calibrated = _calibrate(params, compared)
        record |= calibrated.record
        choice = calibrated.choice
    elif undivided and not apart:
        choice = Choice(0.0, f"Threshold 0: it never abstains, for {undivided}")
    else:
        choice = _threshold(params, workspace, split, predictor, side)
    among = {"learned": len(split.train), "chosen": helps and run == pick}
    among |= {"candidates": len(compared.scores)} if compared else {}
    record |= {
        "base": record["base"] and cards.public_name(record["base"]),
        "preprocessing": _preprocessing(params, record["transform"], side),
        "threshold": choice.threshold,
        "threshold_reason": choice.reason,
        "verdict": decision,
        "chosen": _chosen(evaluation, path, pick, compared, undivided),
        "origin": params.recipes[run.arm].origin if run.arm != REAL else None,
        "accuracy": _accuracy(evaluation, path, run) | among,
        "labels_per_class": {
            "train": evaluation["labels_train_per_class"],
            "selection": evaluation["labels_selection_per_class"],
        },
        "generator": cards.public_name(params.base.generator),
        "licence": params.drawn_licence(run.arm) if run.arm in params.recipes else params.base.licence,
    }
    with shards.assembling(workspace.classifier) as folder:
        for file in sorted(source.iterdir()):
            shutil.copyfile(file, folder / file.name)
        write_json(folder / classifiers.RECORD, record)
        classifiers.save_more(run.classifier, predictor.classifier, folder)
        atomic_write(folder / "README.md", classifier_card.card(record, _READ + program + _ANSWER))
    accuracy = record["accuracy"]
    summary: dict[str, Any] = {
        "finding": finding(decision),
        "advice": advice(run.arm),
        "outcome": decision["outcome"],
        "seeds": decision["seeds"],
        "arm": run.arm,
        "train_on": str(run.kind),
        "classifier": run.classifier,
        "accuracy": accuracy["estimate"],
        "low": accuracy["low"],
        "high": accuracy["high"],
        "protocol": accuracy["protocol"],
        "temperature": record["temperature"],
        "threshold": choice.threshold,
        "threshold_reason": choice.reason,
    } | record["chosen"]
    if table.sweep is not None and (advised := table.sweep.advised(split.shots, run)):
        summary["recommended"] = advised[0]
    write_json(workspace.result("deliver"), summary)
    said = [best.sentence(summary), summary.get("recommended")]
    return summary | {"warnings": [table.warning] if table.warning else [], "sentences": [*filter(None, said)]}


class Calibration(NamedTuple):
    """What goes into the classifier's record, and the threshold."""

    record: dict[str, Any]
    choice: Choice


def _compare(
    params: Params, workspace: Workspace, split: Split, pick: Run, cross_validate: CrossValidate | None
) -> Compared:
    """Return the candidates' predictions of the shots by folds, and the best one.

    Each fold repeats the whole method without the shots that it holds out. Cross-validation has done so already, and
    its predictions are found again.
    """
    import numpy as np

    from dreamset import train
    from dreamset.evaluate import scoring

    alone = [Run(REAL, _ALONE, name) for name in params.delivered_alone]
    names = (*params.train.baselines, *params.train.simple_classifiers)
    candidates = list(dict.fromkeys([pick, *alone, *(Run(REAL, REAL_ONLY, name) for name in names)]))
    if cross_validate is not None:
        folds = dividing.test_folds(params, workspace, split)
        _, by_fold = scoring.predicted(params, folds, cross_validate)
        logits = {run: np.concatenate([predictions.logits[run] for predictions in by_fold]) for run in candidates}
        labels = np.array([sample.label for fold in folds for sample in fold.held_out], np.int64)
    else:
        logits = train.held_out(params, workspace, candidates)
        labels = np.array([sample.label for sample in split.train], np.int64)
    chosen, scores = choose(logits, labels)
    return Compared(chosen, scores, logits, labels)


def choose(
    logits: Mapping[Run, NDArray[np.float32]], labels: NDArray[np.int64]
) -> tuple[Run, dict[Run, dict[str, float]]]:
    """Return the best run by ``best.RULE``, and for each run ``accuracy_folds`` and ``nll_folds``.

    The loss at the best temperature tells more than the share of right answers, which few shots make coarse. It picked
    better classifiers on images that are no test images (``benchmarks.simple``).

    Args:
        logits: (n, classes) of the same n shots by run; of equals the first one is the best.
        labels: (n,).
    """
    from dreamset.classifiers import calibration

    scores = {}
    for run, values in logits.items():
        loss = calibration.nll(values / calibration.fit_temperature(values, labels), labels)
        scores[run] = {
            "accuracy_folds": round(float((values.argmax(1) == labels).mean()), 4),
            "nll_folds": round(loss, 4),
        }
    return min(scores, key=lambda run: scores[run]["nll_folds"]), scores


def _chosen(
    evaluation: dict[str, Any], path: Path, pick: Run, compared: Compared | None, undivided: str
) -> dict[str, Any]:
    """Return what chose the classifier: the rule, and all candidates with their figures.

    The accuracies on the images that score are reported beside those by folds, and have no part in the choice.

    Raises:
        InputError: the evaluation did not measure a candidate.
    """
    if compared is None:
        why = f", for {undivided}" if undivided else ""
        return {"chosen_by": f"The verdict alone{why}", "candidates": []}
    rows = {(row["arm"], row["train_on"], row["classifier"]): row for row in evaluation["runs"]}
    candidates = []
    for run, scores in compared.scores.items():
        measured = _accuracy(evaluation, path, run)
        facts = {"run": str(run), "verdict": run == pick, "delivered": run == compared.best, **scores}
        facts |= {"accuracy": measured["estimate"], "low": measured["low"], "high": measured["high"]}
        candidates.append(facts | {"seconds": rows[run.arm, str(run.kind), run.classifier].get("seconds", 0.0)})
    return {
        "chosen_by": best.RULE,
        "shots": len(compared.labels),
        "images": evaluation["test_images"],
        "candidates": candidates,
    }


def _calibrate(params: Params, compared: Compared) -> Calibration:
    """Return temperature and threshold of the best classifier, by the same predictions of the shots."""
    import numpy as np

    from dreamset.classifiers.calibration import fit_temperature, log_softmax

    logits, labels = compared.logits[compared.best], compared.labels
    temperature = round(fit_temperature(logits, labels), 4)
    choice = choose_threshold(np.exp(log_softmax(logits / temperature)), labels, params.deliver.precision, _FOLDED)
    return Calibration({"temperature": temperature, "temperature_images": len(labels)}, choice)


def choose_threshold(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64], precision: float, held_out: HeldOut = _SELECTED
) -> Choice:
    """Return the lowest threshold, in steps of 0.01, above which predictions are right often enough; 0 if none is.

    At least 1 / (1 - precision) images must be kept. Of fewer, a single error already misses the precision, so that
    reaching it would say little.

    Args:
        probabilities: (n, classes), of images that the classifier was not trained on.
        labels: (n,) of these images.
        precision: the share of the kept images that must be right, above 0 and below 1.
        held_out: what these images are, in words.
    """
    fewest, images = math.ceil(round(1 / (1 - precision), 6)), len(labels)
    never = "Threshold 0: it never abstains, for"
    if not images:
        return Choice(0.0, f"{never} no labels were set apart to choose one by.")
    if images < fewest:
        return Choice(0.0, f"{never} {images} {held_out.name} are too few to choose one by; {fewest} are needed.")
    top, right = probabilities.max(1), probabilities.argmax(1) == labels
    for threshold in (step / 100 for step in range(100)):
        kept = top >= threshold
        if kept.sum() < fewest:
            break
        if right[kept].mean() >= precision:
            share = f"{int(right[kept].sum())} of the {int(kept.sum())} kept of {images} {held_out.name} were right"
            start = f"Threshold {threshold:g}: below it, it abstains;" if threshold else never
            return Choice(threshold, f"{start} {share} ({precision:.0%} wanted). {held_out.caution}: expect less.")
    return Choice(0.0, f"{never} on {images} {held_out.name} no threshold kept {fewest} with {precision:.0%} right.")


def _threshold(params: Params, workspace: Workspace, split: Split, predictor: Predictor, side: int) -> Choice:
    """Return the threshold by the selection images, which the classifier was not trained on."""
    from dreamset.data import arrays

    images = arrays.real(split.selection, workspace.cell, side, workspace.scratch)
    probabilities = predictor.probabilities(predictor.logits(images.images))
    return choose_threshold(probabilities, images.labels, params.deliver.precision)


def _preprocessing(params: Params, transform: dict[str, Any], side: int) -> dict[str, Any]:
    """Return the steps from an image file to the network's input, as every stage does them."""
    return {
        "channels": "RGB",
        "side": side,
        "crop": "centre",
        "resample": transform["resize"],
        "size": transform["size"],
        "mean": transform["mean"],
        "std": transform["std"],
        "max_pixels": params.prepare.max_pixels,
        "window": params.prepare.window,
        "changes": params.prepare.decoding.changes,
    }


def _accuracy(evaluation: dict[str, Any], path: Path, run: Run) -> dict[str, Any]:
    """Return the measured accuracy of the delivered classifier.

    Raises:
        InputError: the evaluation did not measure it.
    """
    key = (run.arm, str(run.kind), run.classifier)
    row = next((r for r in evaluation["runs"] if (r["arm"], r["train_on"], r["classifier"]) == key), None)
    if row is None:
        raise InputError(f"{path}: says nothing of {run}, which its verdict chooses; {_AGAIN}.")
    return {
        "estimate": row["accuracy"],
        "low": row["low"],
        "high": row["high"],
        "confidence": evaluation["confidence"],
        "protocol": evaluation.get("protocol", "test"),
        "images": evaluation["test_images"],
        **({"untested": classes} if (classes := untested(evaluation)) else {}),
    }

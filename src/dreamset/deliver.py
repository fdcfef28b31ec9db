"""``dreamset deliver``: the classifier to take away, in ``models/classifier/``.

If the verdict says that the synthetic images help, this is the classifier trained with them. Otherwise it is the one
trained on the real images alone. Beside its weights stand ``classifier.json`` (classes, preprocessing, temperature,
threshold) and a card.
"""

from __future__ import annotations

import math
import shutil
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dreamset.core import locks, shards
from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write, read_json, write_json
from dreamset.data import cards
from dreamset.data.runs import REAL, REAL_STRONG, Run
from dreamset.data.splits import read_split
from dreamset.metrics import claims
from dreamset.metrics.verdict import untested

if TYPE_CHECKING:
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


class Choice(NamedTuple):
    """A threshold of the top probability, 0..1, and a sentence with its reason."""

    threshold: float
    reason: str


def run(params: Params, workspace: Workspace, cross_validate: CrossValidate) -> dict[str, Any]:
    """Write ``models/classifier/`` and ``results/deliver.json``, as the verdict decides.

    This is the verdict of the report. It rests on the seeds of ``results/table`` if the table holds six or more of this
    setting, else on ``results/evaluate.json``.

    Args:
        params: all parameters.
        workspace: where the results and classifiers are.
        cross_validate: gives the predictions of every arm in every fold; see ``dreamset.data.folds``.

    Raises:
        InputError: the evaluation holds no verdict; or the classifier is missing or has no temperature.
    """
    from dreamset import classifiers

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
    run = Run.parse(decision["of"]) if helps else Run(REAL, _ALONE, decision["classifier"])
    rows = params.base.train.rows
    program = rows[run.classifier].program if run.classifier in rows else None
    if program is None:
        others = ", ".join(params.base.train.delivered)
        raise InputError(
            f"{path}: its verdict names {run.classifier}, which cannot be delivered; name one of {others}."
        )
    source, command = workspace.classifiers(run.arm) / run.folder, f"dreamset train {run.arm}"
    record = read_json(source / classifiers.RECORD, command)
    if "temperature" not in record:
        raise InputError(f"{source / classifiers.RECORD}: holds no temperature; run `{command}` again.")
    locks.boundary()
    predictor = classifiers.load(source)
    side = classifiers.seen(predictor.size, params.base.resolution)
    if params.deliver.calibrate and record.get("temperature_images") == 0:
        folds = cross_validate if evaluation.get("protocol") == "cv" else None
        calibrated = _calibrate(params, workspace, split, run, folds)
        record |= calibrated.record
        choice = calibrated.choice
    else:
        choice = _threshold(params, workspace, split, predictor, side)
    record |= {
        "base": record["base"] and cards.public_name(record["base"]),
        "preprocessing": _preprocessing(params, record["transform"], side),
        "threshold": choice.threshold,
        "threshold_reason": choice.reason,
        "verdict": decision,
        "origin": params.recipes[run.arm].origin if helps else None,
        "accuracy": _accuracy(evaluation, path, run) | {"learned": len(split.train), "chosen": helps},
        "labels_per_class": {
            "train": evaluation["labels_train_per_class"],
            "selection": evaluation["labels_selection_per_class"],
        },
        "generator": cards.public_name(params.base.generator),
        "licence": params.base.licence,
    }
    with shards.assembling(workspace.classifier) as folder:
        for file in sorted(source.iterdir()):
            shutil.copyfile(file, folder / file.name)
        write_json(folder / classifiers.RECORD, record)
        classifiers.save_more(run.classifier, predictor.classifier, folder)
        atomic_write(folder / "README.md", cards.classifier(record, _READ + program + _ANSWER))
    accuracy = record["accuracy"]
    summary = {
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
    }
    write_json(workspace.result("deliver"), summary)
    return summary | {"warnings": [table.warning] if table.warning else []}


class Calibration(NamedTuple):
    """What goes into the classifier's record, and the threshold."""

    record: dict[str, Any]
    choice: Choice


def _calibrate(
    params: Params, workspace: Workspace, split: Split, run: Run, cross_validate: CrossValidate | None
) -> Calibration:
    """Return temperature and threshold of a classifier that nothing was set apart for, by folds of the shots.

    Each fold repeats the whole method without the shots that it holds out. Cross-validation has done so already, and
    its predictions are found again.
    """
    import numpy as np

    from dreamset import train
    from dreamset.classifiers.calibration import fit_temperature, log_softmax
    from dreamset.data import folds as dividing
    from dreamset.evaluate import scoring

    if cross_validate is not None:
        folds = dividing.test_folds(params, workspace, split)
        _, by_fold = scoring.predicted(params, folds, cross_validate)
        logits = np.concatenate([predictions.logits[run] for predictions in by_fold])
        labels = np.array([sample.label for fold in folds for sample in fold.held_out], np.int64)
    else:
        try:
            dividing.held_out(split, dividing.SELECTING, "selection")
        except InputError as error:
            reason = f"Threshold 0: it never abstains, for the shots cannot be divided into folds: {error}"
            return Calibration({}, Choice(0.0, reason))
        logits, labels = train.held_out(params, workspace, run)
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

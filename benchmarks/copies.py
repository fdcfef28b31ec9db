"""What the rules for near-copies find, and what they take for copies: ``python -m benchmarks.copies``.

Changed copies of shots are planted among new real images. Nothing is drawn, and the new images are those of selection,
never test images. Photographs are those of Caltech-101 in CoOp's split, from ``--photographs``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from dreamset.core import device
from dreamset.core.files import write_json
from dreamset.core.groups import representatives
from dreamset.core.images import read_rgb, thumbnail
from dreamset.core.resizing import resize_crop
from dreamset.metrics.copies import RATIO, SAME, copies, correlations
from dreamset.metrics.duplicates import PERCENTILE, nearest
from dreamset.metrics.features import Judge
from dreamset.metrics.perceptual_hash import Thumbnails, across, within
from dreamset.sources import digits as writers

if TYPE_CHECKING:
    from collections.abc import Sequence

    # Shots (m, h, h, 3), the group of each, and new real images (n, h, h, 3).
    Known = tuple[NDArray[np.uint8], list[str], NDArray[np.uint8]]

ROOT = Path(__file__).parents[1]
FOLDER: Final = ROOT.parent / "shared/data/caltech101-64"
_SIDE: Final = 64  # px, of the photographs

Pixels = NDArray[np.uint8]
Change = Callable[[Pixels, np.random.Generator], Pixels]


def photographs(folder: Path, per_class: int, new: int) -> Known:
    """Shots of each class of Caltech-101, and new photographs from its selection part."""
    split = json.loads((folder / "split_zhou_Caltech101.json").read_text())
    rng = np.random.default_rng(0)

    def read(rows: Sequence[Any]) -> Pixels:
        return np.stack([resize_crop(read_rgb(folder / "images" / row[0]), _SIDE) for row in rows])

    classes: dict[int, list[Any]] = {}
    for place in rng.permutation(len(split["train"])):
        classes.setdefault(split["train"][place][1], []).append(split["train"][place])
    shots = [row for label in sorted(classes) for row in classes[label][:per_class]]
    others = [split["val"][place] for place in rng.permutation(len(split["val"]))[:new]]
    pixels = read(shots)
    return pixels, _groups(pixels), read(others)


def digits(per_class: int, new: int) -> Known:
    """Shots of each class of the digits at 16 px, and new ones from other writers."""
    rng = np.random.default_rng(0)

    def read(part: writers.Part) -> tuple[Pixels, NDArray[np.int64]]:
        images, labels, _ = writers.load([part])
        return np.stack([resize_crop(Image.fromarray(image).convert("RGB"), 16) for image in images]), labels

    images, labels = read("train")
    order = rng.permutation(len(images))
    pixels = images[np.concatenate([order[labels[order] == label][:per_class] for label in range(10)])]
    others = read("selection")[0]
    return pixels, _groups(pixels), others[rng.permutation(len(others))[:new]]


def _groups(shots: Pixels) -> list[str]:
    """A group for each shot, the same for near-duplicates by hash, as ``prepare`` gives them."""
    names = [str(number) for number in range(len(shots))]
    alike = [(names[pair.second], names[pair.first]) for pair in within(_thumbnails(shots))]
    found = representatives([*((name, name) for name in names), *alike])
    return [found[name] for name in names]


def _drawn(change: Callable[[Image.Image], Image.Image]) -> Change:
    return lambda pixels, rng: np.asarray(change(Image.fromarray(pixels)))


def _jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    return Image.open(file).convert("RGB")


def _noise(deviation: float) -> Change:
    return lambda pixels, rng: (pixels + rng.normal(0, deviation, pixels.shape)).round().clip(0, 255).astype(np.uint8)


def _levels(factor: float, around: float) -> Change:
    return lambda pixels, rng: ((pixels.astype(float) - around) * factor + around).round().clip(0, 255).astype(np.uint8)


def _blur(share: float) -> Change:
    return _drawn(lambda image: image.filter(ImageFilter.GaussianBlur(share * image.width)))


def _shift(share: float) -> Change:
    """Aslant, by a share of the side but at least a pixel; the edge is repeated."""

    def change(pixels: Pixels, rng: np.random.Generator) -> Pixels:
        by = max(1, round(share * len(pixels)))
        wide = np.pad(pixels, ((by, by), (by, by), (0, 0)), "edge")
        top, left = rng.integers(0, 2, 2) * 2 * by
        return wide[top : top + len(pixels), left : left + len(pixels)]

    return change


def _crop(share: float) -> Change:
    """At each side, by a share of it, and back to the old size."""

    def change(image: Image.Image) -> Image.Image:
        edge = share * image.width
        box = (edge, edge, image.width - edge, image.height - edge)
        return image.resize(image.size, Image.Resampling.BICUBIC, box=box)

    return _drawn(change)


def _mirror(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return pixels[:, ::-1]


def _turn(degrees: float) -> Change:
    """Around the middle; the edge is repeated."""

    def change(pixels: Pixels, rng: np.random.Generator) -> Pixels:
        margin = len(pixels) // 4
        wide = Image.fromarray(np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), "edge"))
        turned = np.asarray(wide.rotate(degrees, Image.Resampling.BICUBIC))
        return turned[margin:-margin, margin:-margin]

    return change


def _both(first: Change, second: Change) -> Change:
    return lambda pixels, rng: second(first(pixels, rng), rng)


# None of the amounts is one that the rule's windows are cut by.
CHANGES: Final[dict[str, Change]] = {
    "saved as JPEG at quality 30": _drawn(_jpeg),
    "noise of 10 grey levels": _noise(10),
    "noise of 25 grey levels": _noise(25),
    "blurred by 1.5 %": _blur(0.015),
    "contrast of 60 %": _levels(0.6, 128),
    "brighter by 30 %": _levels(1.3, 0),
    "shifted by a pixel": _shift(0),
    "shifted by 4 %": _shift(0.04),
    "cropped by 3 %": _crop(0.03),
    "cropped by 7 %": _crop(0.07),
    "mirrored": _mirror,
    "mirrored, cropped by 3 %": _both(_mirror, _crop(0.03)),
    "turned by 4 degrees": _turn(4),
}


def _thumbnails(images: Pixels) -> Thumbnails:
    return Thumbnails([thumbnail(Image.fromarray(image)) for image in images])


class Rules:
    """Each rule, as a function of images (n, h, h, 3) that says which of them it takes for copies of the shots."""

    def __init__(self, known: Known, judge: Judge) -> None:
        self.shots, self.groups, new = known
        self.judge = judge
        self.features = judge.features(self.shots)
        # As `evaluate` has it, with these new images in the place of the test images.
        self.threshold = float(np.percentile(nearest(judge.features(new), self.features)[1], PERCENTILE))

    def hash(self, images: Pixels) -> NDArray[np.bool_]:
        """The rule of ``prepare``, by hash and thumbnail."""
        found = np.zeros(len(images), bool)
        found[[pair.first for pair in across(_thumbnails(images), _thumbnails(self.shots))]] = True
        return found

    def by_features(self, images: Pixels) -> NDArray[np.bool_]:
        """The rule of ``evaluate``, in the judge's features."""
        near: NDArray[np.bool_] = nearest(self.judge.features(images), self.features)[1] <= self.threshold
        return near

    def pixels(self, images: Pixels) -> NDArray[np.bool_]:
        """The windows of ``metrics.copies``."""
        return copies(images, self.shots, self.groups)

    def all(self, images: Pixels) -> dict[str, NDArray[np.bool_]]:
        """The verdicts of all rules; that of ``export --public`` is the last one."""
        found = {"hash": self.hash(images), "features": self.by_features(images), "pixels": self.pixels(images)}
        return found | {"published": found["features"] | found["pixels"]}


def measure(known: Known, judge: Judge, planted: int) -> dict[str, Any]:
    """Recall of each rule by change, and its false alarms among the new images."""
    shots, _, new = known
    rules, rng = Rules(known, judge), np.random.default_rng(1)
    chosen = shots[rng.permutation(len(shots))[:planted]]

    def shares(images: Pixels) -> dict[str, float]:
        return {name: round(float(found.mean()), 4) for name, found in rules.all(images).items()}

    record: dict[str, Any] = {"shots": len(shots), "new": len(new), "planted": len(chosen)}
    record["false_alarms"] = shares(new)
    record["recall"] = {
        name: shares(np.stack([change(image, rng) for image in chosen])) for name, change in CHANGES.items()
    }
    return record


def alarms(known: Known) -> dict[str, float]:
    """False alarms of the windows among new images, by the ratio that is allowed."""
    shots, groups, new = known
    best, following = correlations(new, shots, groups)
    found = {ratio: (best >= SAME) | (1 - best < ratio * (1 - following)) for ratio in (0.2, 0.3, RATIO, 0.5)}
    return {f"{ratio:g}": round(float(taken.mean()), 4) for ratio, taken in found.items()}


def cost(known: Known, judge: Judge, repeat: int) -> dict[str, Any]:
    """Seconds for 1,000 images against all shots, the best of some runs: by hash, by features, and by windows."""
    rules = Rules(known, judge)
    images = np.resize(known[2], (1000, *known[2].shape[1:]))
    seconds: dict[str, float] = {}
    for name, rule in (("hash", rules.hash), ("features", rules.by_features), ("pixels", rules.pixels)):
        for _ in range(repeat):
            started = time.perf_counter()
            rule(images)
            seconds[name] = min(seconds.get(name, np.inf), time.perf_counter() - started)
    ratio = {"pixels_over_hash": round(seconds["pixels"] / seconds["hash"], 1)}
    return {"shots": len(known[0]), **{name: round(value, 2) for name, value in seconds.items()}, **ratio}


def markdown(record: dict[str, Any]) -> str:
    """A table of the rules, in per cent."""
    kinds, rules = [name for name in ("photographs", "digits") if name in record], ("hash", "features", "published")
    rows = [[f"{kind}: {rule}" for kind in kinds for rule in rules], ["---"] * len(kinds) * len(rules)]
    table = [f"| {' | '.join(['', *rows[0]])} |", f"| {' | '.join(['---', *rows[1]])} |"]
    for change in CHANGES:
        cells = [f"{100 * record[kind]['recall'][change][rule]:.0f}" for kind in kinds for rule in rules]
        table.append(f"| {' | '.join([change, *cells])} |")
    cells = [f"{100 * record[kind]['false_alarms'][rule]:.1f}" for kind in kinds for rule in rules]
    return "\n".join([*table, f"| {' | '.join(['new images', *cells])} |"])


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run from the command line; what was measured."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks.copies", description=__doc__)
    parser.add_argument(
        "--photographs", type=Path, default=FOLDER, help="folder of split_zhou_Caltech101.json, images/"
    )
    parser.add_argument("--judge", type=Path, default=ROOT / "models/base/judge", help="folder of the judge")
    parser.add_argument("--new", type=int, default=800, help="new photographs; default: 800")
    parser.add_argument("--planted", type=int, default=150, help="shots that are copied; default: 150")
    parser.add_argument("--repeat", type=int, default=3, help="runs of which the fastest counts; default: 3")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="folder of copies.json")
    options = parser.parse_args(arguments)
    judge = Judge(options.judge)
    # Where the photographs lie is no part of the record.
    shown = ["PATH" if name.startswith("/") else name for name in arguments]
    record: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.copies", *shown]),
        "device": device.name(judge.device),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {package: version(package) for package in ("numpy", "pillow", "torch")},
    }
    known = digits(4, 1000)
    record["digits"] = measure(known, judge, options.planted)
    record["digits"]["alarms_by_ratio"] = {f"{n} per class": alarms(digits(n, 1000)) for n in (1, 2, 4, 16)}
    if options.photographs.is_dir():
        known = photographs(options.photographs, 16, options.new)
        record["photographs"] = measure(known, judge, options.planted)
        record["photographs"]["alarms_by_ratio"] = {
            f"{n} per class": alarms(photographs(options.photographs, n, options.new)) for n in (1, 4, 16)
        }
    else:
        print(f"{options.photographs} is not here: digits alone are measured.\n")
    record["seconds_per_1000_images"] = cost(known, judge, options.repeat)
    write_json(options.output / "copies.json", record)
    print(markdown(record))
    return record


if __name__ == "__main__":
    main()

"""Sections of the page that are pictures: images by class, grids while adapting, copies of the shots."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from markupsafe import Markup
from PIL import Image

from dreamset.core.errors import InputError
from dreamset.core.images import read_rgb
from dreamset.core.sheet import Block
from dreamset.data import packed
from dreamset.data.runs import REAL, REAL_STRONG, Kind, Run
from dreamset.data.splits import spoken
from dreamset.metrics.claims import read_csv
from dreamset.metrics.verdict import scored_images
from dreamset.report import charts
from dreamset.report.figures import number
from dreamset.report.markup import fill
from dreamset.report.markup import picture as embedded
from dreamset.report.pictures import MOST_CLASSES, SMALL, further, picture, shots_reader, strip

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.report.evidence import Evidence
    from dreamset.report.headline import Headline

_ACROSS: Final = 4  # pictures beside each other in a strip
_MOMENTS: Final = 4
_DEEP: Final = 2  # pictures of each class in the page's first picture
_OPEN: Final = 12  # classes that are not folded away
_PICTURE_PX: Final = 40  # width of one small picture on the page
_GRID_PX: Final = 96


def by_class(evidence: Evidence, blocks: list[Block]) -> Markup:
    """Return shots and synthetic images of every class, side by side."""
    classes, params = evidence.split.classes, evidence.params
    names = [name_of(block.name) for block in blocks]
    rows = [
        (classes[label], [_strip(block, label, classes[label]) for block in blocks])
        for label in range(len(blocks[0].by_label))
    ]
    sheets = [
        (f"{start + 1} to {min(start + MOST_CLASSES, len(classes))}", path) for start, path in further(len(classes))
    ]
    return fill(
        "gallery.by_class",
        names=names,
        rows=rows[:_OPEN],
        more=rows[_OPEN:],
        classes=number(len(classes)),
        sheets=sheets,
        turns=" and ".join(name for name in params.active if params.recipes[name].adapter_scales),
    )


def opening(evidence: Evidence, blocks: list[Block], recipe: str) -> Markup | None:
    """Return the page's first picture: a column per class, its shots above and images of the recipe below."""
    rows = []
    for block in blocks:
        if block.name in (REAL, recipe):
            images = [
                images[place] for place in range(_DEEP) for images in block.by_label[:_OPEN] if len(images) > place
            ]
            across = sum(bool(images) for images in block.by_label[:_OPEN])
            beside = strip(images, across) if images else None
            if beside is not None:
                what = "real images" if block.name == REAL else "synthetic images"
                rows.append(
                    (embedded(beside, images[0].width <= SMALL, f"{what}, one column per class", across * 48), what)
                )
    return fill("gallery.opening", rows=rows, recipe=recipe) if rows else None


def mistakes(evidence: Evidence, verdict: Headline) -> Markup | None:
    """Return the held-out images that the delivered classifier takes for another class; None where none were kept."""
    runs, chosen = evidence.mistakes.get("runs", {}), evidence.delivered
    if chosen:
        run = Run(chosen["arm"], Kind.parse(chosen["train_on"]), chosen["classifier"])
    elif verdict.outcome == "helps":
        run = Run(verdict.recipe, evidence.together(verdict.classifier)[0], verdict.classifier)
    else:
        run = Run(REAL, REAL_STRONG, verdict.classifier)
    record = runs.get(str(run))
    if record is None:
        return None
    classes, shown = evidence.split.classes, evidence.params.report.show_real
    score = evidence.scores.get(run)
    temperature = chosen.get("temperature") or (score.record.get("temperature") if score else None) or 1.0
    answers = [_answer(row, temperature) for row in record["mistakes"]]
    path = evidence.workspace.mistakes / f"{run.arm}_{run.folder}.png"
    pictures = _squares(path, len(answers)) if shown and answers else []
    # Without a temperature of its own, `evaluate` has put them into an order that may differ a little.
    surest = sorted(zip(pictures, answers, strict=False), key=lambda pair: -pair[1][2])
    told = [
        (
            embedded(image, image.width <= SMALL, f"{classes[actual]}, taken for {classes[predicted]}", 72),
            classes[actual],
            classes[predicted],
            f"{100 * probability:.0f}%",
        )
        for image, (actual, predicted, probability) in surest
    ]
    return fill(
        "gallery.mistakes",
        classifier=run.classifier,
        count=number(record["count"]),
        of=number(record["of"]),
        scored=scored_images(evidence.evaluation),
        shown=shown,
        all=len(told) == record["count"],
        mistakes=told,
    )


def _answer(row: dict[str, Any], temperature: float) -> tuple[int, int, float]:
    """Return the true class of a mistake, the class that was read instead, and its probability."""
    top = max(row["logits"])
    total = sum(math.exp((value - top) / temperature) for value in row["logits"])
    return row["actual"], row["logits"].index(top), 1 / total


def _squares(path: Path, count: int) -> list[Image.Image]:
    """Return the pictures that `evaluate` has put side by side.

    Raises:
        InputError: the file is not whole.
    """
    try:
        row = read_rgb(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be shown; run `dreamset evaluate` again.") from error
    return [row.crop((i * row.height, 0, (i + 1) * row.height, row.height)) for i in range(count)]


def name_of(source: str) -> str:
    """Return the name of a source, for readers."""
    return "real shots" if source == "real" else source


def adaptation(evidence: Evidence, colours: dict[str, str]) -> Markup | None:
    """Return loss curves, and pictures drawn from the same noise while the generator learns."""
    recipes = []
    for recipe in evidence.adapted:
        folder = evidence.workspace.plots("adapt", recipe)
        losses = _losses(folder / "loss.csv")
        curve = charts.curves(losses[:MOST_CLASSES], "step", "loss", f"Loss of {recipe}", colours[recipe])
        grids = _grids(evidence, folder, recipe)
        if curve or grids:
            learned = _learned(evidence.record("adapt", recipe), len(losses))
            recipes.append((recipe, colours[recipe], learned, curve, grids))
    return fill("gallery.adaptation", recipes=recipes) if recipes else None


def _learned(record: dict[str, Any], curves: int) -> str:
    """Return a phrase on how long a recipe's adapters learned, and on their loss."""
    if not record.get("adapters"):
        return ""
    count, steps = int(record["adapters"]), int(record.get("steps", 0))
    many = "one adapter" if count == 1 else f"{count} adapters"
    # The adapters of a class may come from one training.
    words = f"{many}, {number(steps / record.get('trainings', count))} steps{'' if count == 1 else ' each'}"
    if "loss_first" in record and "loss_last" in record:
        words += f", mean loss {record['loss_first']:.3g} at the first step and {record['loss_last']:.3g} at the end"
    return words + (f"; the first {MOST_CLASSES} are drawn" if curves > MOST_CLASSES else "")


def duplicates(evidence: Evidence) -> Markup | None:
    """Return the nearest pairs of synthetic image and shot, which show where a generator copies."""
    sets = evidence.evaluation["sets"]
    recipes = []
    for recipe in evidence.params.active:
        near = sets.get(recipe, {}).get("near_duplicates", {})
        if near.get("pairs"):
            read = packed.reader(evidence.workspace.synthetic(recipe))
            pairs = [_pair(evidence, recipe, read, pair, near["threshold"]) for pair in near["pairs"]]
            recipes.append((recipe, number(near["count"]), number(sets[recipe].get("images")), pairs))
    if not recipes:
        return None
    share = next(iter(sets.values()))["near_duplicates"].get("share_of_test_images", 0.01)
    return fill(
        "gallery.duplicates",
        recipes=recipes,
        show_real=evidence.params.report.show_real,
        share=f"{100 * share:g}%",
        scored=scored_images(evidence.evaluation),
    )


def sheet(path: Path, across: int, alt: str) -> Markup:
    """Return pictures that another stage has put side by side, ``across`` of them in a row.

    Raises:
        InputError: the file is not whole.
    """
    try:
        pictures = read_rgb(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be shown; run `dreamset evaluate` again.") from error
    small = pictures.width // across <= SMALL
    if not small:
        size = (across * _GRID_PX, across * _GRID_PX * pictures.height // pictures.width)
        pictures = pictures.resize(size, Image.Resampling.LANCZOS)
    return embedded(pictures, small, alt, across * _PICTURE_PX)


def _strip(block: Block, label: int, name: str) -> Markup:
    pictures = block.by_label[label]
    image = strip(pictures, _ACROSS)
    if image is None:
        return Markup('<span class="none">none</span>')
    alt = f"{name}, {name_of(block.name)}: {len(pictures)} pictures"
    return embedded(image, pictures[0].width <= SMALL, alt, min(_ACROSS, len(pictures)) * _PICTURE_PX)


def _losses(path: Path) -> list[list[tuple[float, float]]]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in read_csv(path):
        try:
            lines.setdefault(row["adapter"], []).append((float(row["step"]), float(row["loss"])))
        except (KeyError, ValueError) as error:
            raise InputError(f"{path}: is not a loss curve ({error}); run `dreamset adapt` again.") from error
    return list(lines.values())


def _grids(evidence: Evidence, folder: Path, recipe: str) -> list[tuple[Markup, str]]:
    """Return a few sample grids from before, during and after adapting, each with its moment."""
    paths = sorted(folder.glob("samples_*.png"))
    if len(paths) > _MOMENTS:
        paths = [paths[round(i * (len(paths) - 1) / (_MOMENTS - 1))] for i in range(_MOMENTS)]
    size = evidence.params.base.resolution
    figures = []
    for path in paths:
        step = int(path.stem.rpartition("_")[2])
        try:
            grid = read_rgb(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be shown; run `dreamset adapt {recipe}` again.") from error
        across, down = max(1, grid.width // size), max(1, grid.height // size)
        if size > SMALL:
            grid = grid.resize((across * _GRID_PX, down * _GRID_PX), Image.Resampling.LANCZOS)
        when = "before" if step == 0 else f"after {number(step)} steps"
        width = across * min(_PICTURE_PX * 3 // 4, _GRID_PX)
        figures.append((embedded(grid, size <= SMALL, f"{recipe}, {when}", width), when))
    return figures


def _pair(
    evidence: Evidence, recipe: str, read: packed.Read, pair: dict[str, Any], threshold: float
) -> tuple[Markup, str, bool]:
    """Return a synthetic image beside its shot, their distance, and whether it makes them near-duplicates."""
    images = [picture(evidence, read, pair["image"], f"dreamset generate {recipe}")]
    if evidence.params.report.show_real:
        images.append(picture(evidence, shots_reader(evidence), pair["shot"]))
    shot = next((sample for sample in evidence.split.train if sample.path == pair["shot"]), None)
    name = spoken(evidence.split.classes[shot.label]) if shot else ""
    beside = strip(images, 2)
    assert beside is not None
    subject = "synthetic image and shot" if len(images) > 1 else "synthetic image near a shot"
    image = embedded(beside, images[0].width <= SMALL, f"{subject} of {name}", len(images) * 48)
    distance = f"{pair['distance']:.2f}" if math.isfinite(pair["distance"]) else "–"
    return image, distance, pair["distance"] < threshold

"""Sections of the page that are looked at: pictures by class, grids while adapting, copies of the shots."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

from dreamset.core.errors import InputError
from dreamset.core.images import read_rgb
from dreamset.core.sheet import Block
from dreamset.data.splits import spoken
from dreamset.metrics.claims import read_csv
from dreamset.metrics.verdict import scored_images
from dreamset.report import charts
from dreamset.report.markup import Html, data_uri, join, number, tag
from dreamset.report.pictures import MOST_CLASSES, SMALL, further, picture, strip

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.report.evidence import Evidence

_ACROSS: Final = 4  # pictures beside each other in a strip
_MOMENTS: Final = 4
_OPEN: Final = 12  # classes in sight
_SHOWN_PX: Final = 40  # of one small picture on the page
_GRID_PX: Final = 96


def by_class(evidence: Evidence, blocks: list[Block]) -> Html:
    """Shots and synthetic images of every class, side by side."""
    head = tag("div", tag("span"), [tag("span", name_of(block.name)) for block in blocks], class_="row head")
    rows = []
    for label in range(len(blocks[0].by_label)):
        name = evidence.split.classes[label]
        cells = [
            tag("figure", _strip(block, label, name), tag("figcaption", name_of(block.name)), class_=f"source-{index}")
            for index, block in enumerate(blocks)
        ]
        rows.append(tag("div", tag("h3", tag("bdi", name), title=name), cells, class_="row"))
    left_out = len(evidence.split.classes) - len(rows)
    note = (
        "The first images of every class, none chosen. In the same place of two recipes stand images of the same "
        "starting noise."
    )
    turns = [name for name in evidence.params.active if evidence.params.recipes[name].adapter_scales]
    if turns:
        note += f" Of {' and '.join(turns)} every further picture is drawn at the next strength of the adapter."
    return section(
        "pictures",
        "The pictures",
        tag("p", note),
        _pages(evidence) if left_out else None,
        tag("div", head, rows[:_OPEN], class_="gallery", style=f"--sources:{len(blocks)}"),
        _folded(rows[_OPEN:], len(blocks)),
    )


def _pages(evidence: Evidence) -> Html:
    """Where the pictures of further classes are."""
    classes = evidence.split.classes
    sheets = [
        join(", " if index else "", tag("a", f"{start + 1} to {min(start + MOST_CLASSES, len(classes))}", href=path))
        for index, (start, path) in enumerate(further(len(classes)))
    ]
    return tag(
        "p", f"Here are {MOST_CLASSES} of {number(len(classes))} classes; contact sheets of the others: ", sheets
    )


def _folded(rows: list[Html], sources: int) -> Html | None:
    """Rows of further classes, behind a click."""
    if not rows:
        return None
    more = tag("div", rows, class_="gallery", style=f"--sources:{sources}")
    return tag("details", tag("summary", f"{len(rows)} more classes"), more)


def name_of(source: str) -> str:
    """A source as a reader says it."""
    return "real shots" if source == "real" else source


def section(anchor: str, title: str, *content: object) -> Html:
    """A titled part of the page."""
    return tag("section", tag("h2", title), *content, id=anchor)


def adaptation(evidence: Evidence, colours: dict[str, str]) -> Html | None:
    """Loss curves, and what the generator draws from the same noise while it learns."""
    parts = []
    for recipe in evidence.adapted:
        folder = evidence.workspace.plots("adapt", recipe)
        record = evidence.record("adapt", recipe)
        losses = _losses(folder / "loss.csv")
        curve = charts.curves(losses[:MOST_CLASSES], "step", "loss", f"Loss of {recipe}", colours[recipe])
        grids = _grids(evidence, folder, recipe)
        if not curve and not grids:
            continue
        told = None
        if record.get("adapters"):
            count, steps = int(record["adapters"]), int(record.get("steps", 0))
            many = "one adapter" if count == 1 else f"{count} adapters"
            told = f"{many}, {number(steps / count)} steps{'' if count == 1 else ' each'}"
            if "loss_first" in record and "loss_last" in record:
                told += (
                    f", mean loss {record['loss_first']:.3g} at the first step and {record['loss_last']:.3g} at the end"
                )
            if len(losses) > MOST_CLASSES:
                told += f"; the first {MOST_CLASSES} are drawn"
        title = tag("h3", tag("i", class_=f"key {colours[recipe]}"), recipe)
        body = tag("div", tag("figure", curve) if curve else None, grids, class_="learning")
        parts.append(tag("article", title, tag("p", told) if told else None, body))
    if not parts:
        return None
    note = "How the generator learned the shots. Each grid repeats the same noise: a row is a class."
    return section("adaptation", "Adapting the generator", tag("p", note), parts)


def duplicates(evidence: Evidence) -> Html | None:
    """The nearest pairs of synthetic image and shot: where a generator copies, it shows here."""
    articles = []
    for recipe in evidence.params.active:
        found = evidence.evaluation["sets"].get(recipe, {}).get("near_duplicates", {})
        if not found.get("pairs"):
            continue
        pairs = [_pair(evidence, recipe, pair, found["threshold"]) for pair in found["pairs"]]
        images = evidence.evaluation["sets"][recipe].get("images")
        told = f"{number(found['count'])} of {number(images)} images are near-duplicates"
        articles.append(tag("article", tag("h3", recipe), tag("p", told), tag("div", pairs, class_="pairs")))
    if not articles:
        return None
    share = next(iter(evidence.evaluation["sets"].values()))["near_duplicates"].get("share_of_test_images", 0.01)
    beside = ", each at the left of the shot that it resembles" if evidence.params.report.show_real else ""
    scored = scored_images(evidence.evaluation)
    note = (
        f"The synthetic images nearest to a shot{beside}. A near-duplicate lies "
        f"nearer to one than the nearest {100 * share:g}% of real {scored} do (distance in the judge’s features); "
        "about that share would be counted of fresh real images too."
    )
    return section("copies", "Copies of the shots", tag("p", note), articles)


def sheet(path: Path, across: int, alt: str) -> Html:
    """Pictures that another stage has put side by side, ``across`` of them in a row.

    Raises:
        InputError: the file is not whole.
    """
    try:
        made = read_rgb(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be shown; run `dreamset evaluate` again.") from error
    small = made.width // across <= SMALL
    if not small:
        made = made.resize((across * _GRID_PX, across * _GRID_PX * made.height // made.width), Image.Resampling.LANCZOS)
    return _image(made, small, alt, across * _SHOWN_PX)


def _strip(block: Block, label: int, name: str) -> Html:
    pictures = block.by_label[label]
    made = strip(pictures, _ACROSS)
    if made is None:
        return tag("span", "none", class_="none")
    small = pictures[0].width <= SMALL
    across = min(_ACROSS, len(pictures))
    return _image(made, small, f"{name}, {name_of(block.name)}: {len(pictures)} pictures", across * _SHOWN_PX)


def _image(image: Image.Image, small: bool, alt: str, width: int) -> Html:
    return tag(
        "img",
        src=data_uri(image, small),
        alt=alt,
        width=width,
        height=round(width * image.height / image.width),
        class_="pixels" if small else None,
    )


def _losses(path: Path) -> list[list[tuple[float, float]]]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in read_csv(path):
        try:
            lines.setdefault(row["adapter"], []).append((float(row["step"]), float(row["loss"])))
        except (KeyError, ValueError) as error:
            raise InputError(f"{path}: is not a loss curve ({error}); run `dreamset adapt` again.") from error
    return list(lines.values())


def _grids(evidence: Evidence, folder: Path, recipe: str) -> list[Html]:
    """Sample grids before, while and after adapting; a few of them where there are many."""
    found = sorted(folder.glob("samples_*.png"))
    chosen = found
    if len(found) > _MOMENTS:
        chosen = [found[round(i * (len(found) - 1) / (_MOMENTS - 1))] for i in range(_MOMENTS)]
    size = evidence.params.base.resolution
    figures = []
    for path in chosen:
        step = int(path.stem.rpartition("_")[2])
        try:
            grid = read_rgb(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be shown; run `dreamset adapt {recipe}` again.") from error
        across, down = max(1, grid.width // size), max(1, grid.height // size)
        if size > SMALL:
            grid = grid.resize((across * _GRID_PX, down * _GRID_PX), Image.Resampling.LANCZOS)
        when = "before" if step == 0 else f"after {number(step)} steps"
        image = _image(grid, size <= SMALL, f"{recipe}, {when}", across * min(_SHOWN_PX * 3 // 4, _GRID_PX))
        figures.append(tag("figure", image, tag("figcaption", when)))
    return figures


def _pair(evidence: Evidence, recipe: str, pair: dict[str, Any], threshold: float) -> Html:
    workspace = evidence.workspace
    images = [picture(evidence, workspace.synthetic(recipe) / pair["image"], f"dreamset generate {recipe}")]
    if evidence.params.report.show_real:
        images.append(picture(evidence, workspace.cell / pair["shot"], "dreamset prepare"))
    shot = next((sample for sample in evidence.split.train if sample.path == pair["shot"]), None)
    name = spoken(evidence.split.classes[shot.label]) if shot else ""
    made = strip(images, 2)
    assert made is not None
    near = pair["distance"] < threshold
    what = "synthetic image and shot" if len(images) > 1 else "synthetic image near a shot"
    shown = _image(made, images[0].width <= SMALL, f"{what} of {name}", len(images) * 48)
    distance = f"{pair['distance']:.2f}" if math.isfinite(pair["distance"]) else "–"
    caption = join(distance, tag("em", " near-duplicate") if near else None)
    return tag("figure", shown, tag("figcaption", caption), class_="near" if near else None)

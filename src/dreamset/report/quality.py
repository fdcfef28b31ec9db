"""Sections of the page on the quality of synthetic datasets, and on how it relates to CAS."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from dreamset.data.runs import SYNTHETIC, Run
from dreamset.metrics.gains import Gain
from dreamset.metrics.verdict import points, scored_images
from dreamset.report.figures import MINUS, number, percent, point_interval
from dreamset.report.gallery import sheet
from dreamset.report.markup import Table, aside, counted, fill

if TYPE_CHECKING:
    from markupsafe import Markup

    from dreamset.report.evidence import Evidence

# Name, digits, and which way is better.
_MEASURES: Final = {
    "fid": ("FID", 1, "↓"),
    "kid": ("KID", 4, "↓"),
    "precision": ("precision", 3, "↑"),
    "recall": ("recall", 3, "↑"),
    "density": ("density", 3, "↑"),
    "coverage": ("coverage", 3, "↑"),
    "vendi": ("Vendi", 2, "↑"),
}
_WORST: Final = 3  # classes that a filter threw most out of
_COPIES: Final = ("near_duplicates", "near_duplicates_test")


def qualities(evidence: Evidence) -> Markup | None:
    """Return a table with a row per recipe; None where there is no more than FID and KID, which the big table has."""
    sets = {recipe: evidence.evaluation["sets"].get(recipe, {}) for recipe in evidence.params.active}
    given = [name for name in _MEASURES if any(measured.get(name) is not None for measured in sets.values())]
    copies = [name for name in _COPIES if any(measured.get(name) for measured in sets.values())]
    if not set(given) - {"fid", "kid"}:
        return None
    # A wrapped heading keeps the arrow with its name.
    head = ["Recipe", *("\N{NO-BREAK SPACE}".join((_MEASURES[name][0], _MEASURES[name][2])) for name in given)]
    head += [_copies_of(evidence)[name] for name in copies]
    rows = []
    for recipe, measured in sets.items():
        cells = [number(measured.get(name), _MEASURES[name][1]) for name in given]
        rows.append([recipe, *cells, *(counted(measured.get(name) or {}) for name in copies)])
    one: dict[str, Any] = next((measured for measured in sets.values() if measured), {})
    scored = scored_images(evidence.evaluation)
    reference = str(one.get("reference", "test images")).replace("test images", scored)
    note = [
        f"In the features of the {one.get('features')}, n = {number(one.get('n'))} on each side; reference: "
        f"{reference}.",
        f"The real images’ own Vendi score is {one['vendi_real']:.2f}." if one.get("vendi_real") else "",
        one.get("warning") or "",
    ]
    near = evidence.evaluation.get("near_duplicates_real") or {}
    return fill(
        "quality.qualities",
        table=Table(head, rows),
        note=" ".join(filter(None, note)),
        scored=scored,
        leaks=_test_copies(evidence, sets),
        near=f"{number(near['count'])} of the {scored} ({percent(near['share'])})" if near.get("count") else "",
        # The pair names shots, which `report.show_real` may keep off the page.
        nearest=near["pairs"][0] if near.get("count") and evidence.params.report.show_real else None,
    )


def filtered(evidence: Evidence) -> Markup | None:
    """Return a table of what each filter threw out, and CAS beside that of the same recipe without it; None without."""
    rows = []
    for recipe in evidence.params.active:
        chosen = evidence.record("generate", recipe).get("filter")
        if not chosen:
            continue
        looked, gave_up = Counter(chosen["candidates"]), Counter(chosen["gave_up"])
        share = {name: 1 - kept / looked[name] for name, kept in _kept(evidence, recipe, looked).items()}
        worst = sorted(share, key=lambda name: -share[name])[:_WORST]
        row = dataclasses.replace(evidence.params.recipes[recipe], filter=None, filter_tries=None, first_round=None)
        plain = next((name for name in evidence.params.active if evidence.params.recipes[name] == row), None)
        images = sum(_kept(evidence, recipe, looked).values())
        cells = [recipe, chosen["kind"], number(looked.total()), percent(1 - images / looked.total())]
        cells += [number(gave_up.total()), ", ".join(f"{name} {percent(share[name])}" for name in worst)]
        rows.append([*cells, _cas(evidence, recipe), _cas(evidence, plain) if plain else "–"])
    if not rows:
        return None
    head = ["Recipe", "filter", "candidates", "thrown out", "none accepted", "most thrown out of", "CAS", "without it"]
    return fill("quality.filtered", table=Table(head, rows, columns={"most thrown out of": "names"}))


def by_attribute(evidence: Evidence) -> Markup | None:
    """Return a table of the accuracy by word that CLIP reads in the scored images; None where none was named."""
    rows, found = evidence.evaluation.get("slices"), evidence.evaluation.get("verdict")
    if not rows:
        return None
    lines = []
    for row in rows:
        gain = Gain.read(row["gain"]) if row.get("gain") else None
        known = row["accuracy"] if found and row["accuracy"] else {}
        lines.append(
            [
                row["group"],
                row["word"],
                number(row["images"]),
                *(percent(known.get(found[name])) if found else "–" for name in ("minus", "of")),
                aside(points(gain.difference), point_interval(gain)) if gain else "–",
            ]
        )
    head = ["Attribute", "word", "images", "accuracy, real", "accuracy, real + synthetic", "gain, points"]
    return fill(
        "quality.by_attribute",
        table=Table(head, lines, columns={"word": "text"}),
        scored=scored_images(evidence.evaluation),
        recipe=Run.parse(found["of"]).arm if found else "",
        classifier=Run.parse(found["of"]).classifier if found else "",
        confidence=evidence.confidence,
        gaps=[_gap(row) for row in evidence.evaluation.get("gaps", ())],
    )


def _gap(row: dict[str, Any]) -> str:
    """Return a sentence on what synthetic images do to the gap between two words of a slice."""
    ends = row["change_low"], row["change_high"]
    known = None not in ends
    verb = "leave the gap as it is, as far as these images can tell"
    if known and ends[0] > 0:
        verb = "widen the gap"
    elif known and ends[1] < 0:
        verb = "narrow the gap"
    told = f" ({points(ends[0])} to {points(ends[1])})" if known else ""
    return (
        f"{row['group']}: between {row['high']} and {row['low']} the accuracy of real images alone differs by "
        f"{points(row['before'])} points. Synthetic images {verb}: by {points(row['change'])} points{told}."
    )


def _kept(evidence: Evidence, recipe: str, looked: Counter[str]) -> dict[str, int]:
    """Return the images of each class; candidates are counted for those that a person rejected, too."""
    wanted = evidence.params.drawn_per_class(recipe, evidence.split.train_per_class)
    if budget := evidence.record("generate", recipe).get("budget"):
        wanted = (evidence.params.recipes[recipe].drawn(budget["per_class"]),) * len(wanted)
    return {name: min(wanted[label], looked[name]) for label, name in enumerate(evidence.split.classes) if looked[name]}


def _cas(evidence: Evidence, recipe: str) -> str:
    """Return the accuracy of the first network that was trained from scratch on a recipe's images alone."""
    known = (Run(recipe, SYNTHETIC, name) for name in evidence.params.base.train.from_scratch)
    return next((percent(evidence.scores[run].accuracy) for run in known if run in evidence.scores), "–")


def _test_copies(evidence: Evidence, sets: dict[str, dict[str, Any]]) -> list[tuple[str, Markup | None, list[Any]]]:
    """Return near-duplicates of test images: the recipe, the picture that `evaluate` made of them, and the pairs.

    The page opens no test image. Under cross-validation these are shots, which `report.show_real` may keep off it.
    """
    private = not evidence.params.report.show_real
    if evidence.evaluation.get("protocol") == "cv" and private:
        return []
    leaks = []
    for recipe, measured in sets.items():
        near = measured.get("near_duplicates_test") or {}
        pairs = [pair for pair in near.get("pairs", ()) if pair["distance"] < near["threshold"]]
        path = evidence.workspace.near_test / f"{recipe}.png"
        visible = pairs and not private and path.is_file()
        picture = sheet(path, len(pairs), f"{recipe}, above test images") if visible else None
        if pairs:
            leaks.append((recipe, picture, pairs))
    return leaks


def correlations(evidence: Evidence) -> Markup | None:
    """Return Spearman's rho of each figure with CAS, over the cells of the table; None without a table."""
    lines = evidence.table.sweep.correlations if evidence.table.sweep else []
    if not lines:
        return None
    shots = list(dict.fromkeys(line["shots"] for line in lines))
    cells: dict[str, dict[str, str]] = {}
    for line in lines:
        ends = f"{_rho(line['low'])} to {_rho(line['high'])}"
        cells.setdefault(line["metric"], {})[line["shots"]] = aside(_rho(line["rho"]), ends)
    names = {name: title for name, (title, _, _) in _MEASURES.items()} | _copies_of(evidence)
    rows = [[names.get(metric, metric), *(row.get(k, "–") for k in shots)] for metric, row in cells.items()]
    heads = {"all": "all", "within": "within recipe and shots"}
    table = Table(["Figure", *(heads.get(k, f"{k} shots") for k in shots)], rows)
    return fill("quality.correlations", table=table, most=max(lines, key=lambda line: int(line["points"])))


def _copies_of(evidence: Evidence) -> dict[str, str]:
    """Return the headings of the counts of near-duplicates."""
    real = ("shots", scored_images(evidence.evaluation))
    return {name: f"near-duplicates of {images}" for name, images in zip(_COPIES, real, strict=True)}


def _rho(value: str) -> str:
    return f"{float(value):+.2f}".replace("-", MINUS)

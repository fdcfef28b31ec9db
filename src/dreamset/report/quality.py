"""Sections of the page on the synthetic images as a set: how good they are, and whether such figures tell anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dreamset.metrics.verdict import scored_images
from dreamset.report.gallery import section, sheet
from dreamset.report.markup import Html, join, number, percent, row, table, tag

if TYPE_CHECKING:
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
_COPIES: Final = ("near_duplicates", "near_duplicates_test")


def qualities(evidence: Evidence) -> Html | None:
    """A row per recipe; None where there is no more than the big table shows, FID and KID."""
    sets = {name: evidence.evaluation["sets"].get(name, {}) for name in evidence.params.active}
    given = [name for name in _MEASURES if any(found.get(name) is not None for found in sets.values())]
    copies = [name for name in _COPIES if any(found.get(name) for found in sets.values())]
    if not set(given) - {"fid", "kid"}:
        return None
    # The arrow stays with its name where a heading is wrapped.
    names = ["\N{NO-BREAK SPACE}".join((_MEASURES[name][0], _MEASURES[name][2])) for name in given]
    head = ["Recipe", *(tag("th", name, scope="col", class_="number") for name in names)]
    told = _copies_of(evidence)
    head += [tag("th", told[name], scope="col", class_="number") for name in copies]
    rows = []
    for recipe, found in sets.items():
        cells = [number(found.get(name), _MEASURES[name][1]) for name in given]
        cells += [_count(found.get(name) or {}) for name in copies]
        rows.append(row(recipe, *(tag("td", value, class_="number") for value in cells)))
    one: dict[str, Any] = next((found for found in sets.values() if found), {})
    scored = scored_images(evidence.evaluation)
    reference = str(one.get("reference", "test images")).replace("test images", scored)
    note = join(
        f"In the features of the {one.get('features')}, n = {number(one.get('n'))} on each side; reference: "
        f"{reference}. ",
        f"The real images’ own Vendi score is {one['vendi_real']:.2f}. " if one.get("vendi_real") else None,
        one.get("warning"),
    )
    return section(
        "quality",
        "How good the images are",
        table(head, rows, note),
        _test_copies(evidence, sets),
        _real_copies(evidence),
    )


def _test_copies(evidence: Evidence, sets: dict[str, dict[str, Any]]) -> Html | None:
    """Near-duplicates of test images, by their names and as `evaluate` has put them side by side.

    The page opens no test image. Under cross-validation these are shots, which `report.show_real` may keep off it.
    """
    private = not evidence.params.report.show_real
    if evidence.evaluation.get("protocol") == "cv" and private:
        return None
    parts: list[Html] = []
    for recipe, found in sets.items():
        near = found.get("near_duplicates_test") or {}
        lines = [
            tag("li", tag("bdi", pair["image"]), " and ", tag("bdi", pair["test"]), f", {pair['distance']:.2f}")
            for pair in near.get("pairs", ())
            if pair["distance"] < near["threshold"]
        ]
        path = evidence.workspace.near_test / f"{recipe}.png"
        if lines:
            parts.append(tag("h3", recipe))
            parts += [] if private or not path.is_file() else [sheet(path, len(lines), f"{recipe}, above test images")]
            parts.append(tag("ul", lines))
    if not parts:
        return None
    scored = scored_images(evidence.evaluation)
    title = f"The nearest pairs of synthetic images (above) and {scored}, with their distance"
    return tag("details", tag("summary", title), parts)


def _real_copies(evidence: Evidence) -> Html | None:
    """How many of the scored images are so near to a shot that they may be the same thing, photographed twice."""
    near = evidence.evaluation.get("near_duplicates_real") or {}
    if not near.get("count"):
        return None
    told = f"{number(near['count'])} of the {scored_images(evidence.evaluation)} ({percent(near['share'])})"
    nearest = near["pairs"][0]
    # Their names are the shots', which `report.show_real` may keep off the page.
    names = [", first ", tag("bdi", nearest["test"]), " and ", tag("bdi", nearest["shot"])]
    return tag(
        "p",
        f"{told} are nearer to a shot than 99% of them are to one of another group",
        *(names if evidence.params.report.show_real else ()),
        ". The same thing photographed twice makes every accuracy too good: the nearest pairs are in ",
        tag("code", "results/evaluate.json"),
        ".",
    )


def correlations(evidence: Evidence) -> Html | None:
    """Spearman's rho of each figure with CAS, over the cells of the table; None without a table."""
    lines = evidence.sweep.correlations if evidence.sweep else []
    if not lines:
        return None
    shots = list(dict.fromkeys(line["shots"] for line in lines))
    cells: dict[str, dict[str, Html]] = {}
    for line in lines:
        ends = f" {_rho(line['low'])} to {_rho(line['high'])}"
        cells.setdefault(line["metric"], {})[line["shots"]] = join(_rho(line["rho"]), tag("small", ends))
    head = ["Figure", *(tag("th", "all" if k == "all" else f"{k} shots", scope="col", class_="number") for k in shots)]
    names = {name: told for name, (told, _, _) in _MEASURES.items()} | _copies_of(evidence)
    rows = [
        row(names.get(metric, metric), *(tag("td", found.get(k, "–"), class_="number") for k in shots))
        for metric, found in cells.items()
    ]
    most = max(lines, key=lambda line: int(line["points"]))
    note = (
        "Do such figures tell which images teach best? Spearman’s rank correlation with the accuracy of a network "
        f"trained from scratch on the synthetic images alone (CAS), a point per recipe and cell: {most['points']} over "
        f"{most['seeds']} seeds. −1 or +1: they order the sets as CAS does; 0: they say nothing. Intervals resample "
        "seeds. Over all numbers of shots together, what more shots do to both is in it; within one it is not."
    )
    return section("correlations", "Does FID tell you anything?", tag("p", note), table(head, rows))


def _copies_of(evidence: Evidence) -> dict[str, str]:
    """What is counted, in words."""
    real = ("shots", scored_images(evidence.evaluation))
    return {name: f"near-duplicates of {what}" for name, what in zip(_COPIES, real, strict=True)}


def _count(found: dict[str, Any]) -> Html | str:
    if "count" not in found:
        return "–"
    return join(number(found["count"]), tag("small", f" {percent(found.get('share'))}"))


def _rho(value: str) -> str:
    return f"{float(value):+.2f}".replace("-", "−")

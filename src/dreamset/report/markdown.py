"""The table over seeds in Markdown, for whoever reads the folder, and to be quoted in a README."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dreamset.metrics.verdict import TOGETHER, points

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dreamset.params import Params

_NONE: Final = "\N{EN DASH}"


def over_seeds(params: Params, summary: Sequence[dict[str, Any]], claims: Sequence[dict[str, Any]]) -> str:
    """Mean accuracies and FID, and the differences of the verdict's classifier, by number of shots.

    Args:
        params: for the order of recipes and classifiers, and whose differences are wanted.
        summary: rows of ``summary.csv``.
        claims: rows of ``claims.csv``.
    """
    if not summary:
        return "# Over several seeds\n\nNo cell is finished.\n"
    seeds = sorted({row["seeds"] for row in summary})
    told = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    name = params.primary_classifier
    together = next((kind for kind in TOGETHER if any(f"/{kind}/{name}" in row["of"] for row in claims)), "both")
    augmented = "; real images are strongly augmented, alone or not" if together == "both_strong" else ""
    parts = [
        "# Over several seeds",
        f"Written by `dreamset table`: {told}; the other files of this folder have every number.",
        "## Accuracy",
        "Per cent, means over seeds. Under a recipe's name: classifiers of its images alone; with `real +`, strongly "
        "augmented where that was trained, and else plainly.",
        _means(params, summary),
        "## FID",
        "In the judge's features, means over seeds.",
        _fid(params, summary),
        f"## Differences, {name}",
        f"Points, paired by seed and test image, with {100 * params.evaluate.confidence:g} % BCa intervals over both"
        f"{augmented}. Bold where the interval leaves out zero.",
        _differences(name, together, claims),
    ]
    return "\n\n".join(parts) + "\n"


def _means(params: Params, summary: Sequence[dict[str, Any]]) -> str:
    recipes = _recipes(params, summary)
    wanted: list[tuple[str, tuple[str, ...]]] = [("real", ("real",)), ("real", ("real_strong",))]
    wanted += [(recipe, kinds) for kinds in (("synthetic",), TOGETHER) for recipe in recipes]
    lines = []
    for shots in _shots(summary):
        for name in params.train.classifiers:
            own = [row for row in summary if (row["shots"], row["classifier"]) == (shots, name)]
            found = {(row["recipe"], row["train_on"]): f"{100 * row['accuracy']:.1f}" for row in own}
            cells = [next((found[arm, kind] for kind in kinds if (arm, kind) in found), _NONE) for arm, kinds in wanted]
            lines.append([str(shots), name, *cells])
    head = [
        "shots",
        "classifier",
        "real",
        "real, strongly augmented",
        *recipes,
        *(f"real + {name}" for name in recipes),
    ]
    return _table(head, lines)


def _fid(params: Params, summary: Sequence[dict[str, Any]]) -> str:
    recipes = _recipes(params, summary)
    found = {(row["shots"], row["recipe"]): row["fid"] for row in summary if row["fid"] is not None}
    lines = [
        [str(shots), *(f"{found[shots, name]:.1f}" if (shots, name) in found else _NONE for name in recipes)]
        for shots in _shots(summary)
    ]
    return _table(["shots", *recipes], lines)


def _differences(classifier: str, together: str, claims: Sequence[dict[str, Any]]) -> str:
    """A row per comparison, a column per number of shots."""
    # Augmented as it is what they are compared with.
    alone = {"both": "real", "both_strong": "real_strong"}[together]
    rows: dict[str, dict[int, str]] = {}
    for kind in ("synthetic", together):
        for row in claims:
            (recipe, own, name), (other, theirs, _) = row["of"].split("/"), row["minus"].split("/")
            if (own, name) != (kind, classifier) or theirs not in (kind, alone):
                continue
            plus = "" if kind == "synthetic" else "real + "
            told = f"{plus}{recipe}, over {'real' if other == 'real' else plus + other}"
            shown = f"{points(row['difference'])} ({points(row['low'])} to {points(row['high'])})"
            clear = row["low"] > 0 or row["high"] < 0
            rows.setdefault(told, {})[row["shots"]] = f"**{shown}**" if clear else shown
    shots = _shots(claims)
    lines = [[told, *(own.get(count, _NONE) for count in shots)] for told, own in rows.items()]
    return _table(["", *(f"{count} shot{'' if count == 1 else 's'}" for count in shots)], lines)


def _recipes(params: Params, summary: Sequence[dict[str, Any]]) -> list[str]:
    there = {row["recipe"] for row in summary}
    return [name for name in params.recipes if name in there]


def _shots(rows: Sequence[dict[str, Any]]) -> list[int]:
    return sorted({row["shots"] for row in rows})


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)

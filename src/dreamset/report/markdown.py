"""The table over seeds in Markdown, for readers of its folder and for a README."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dreamset.data.runs import BOTH, BOTH_STRONG, REAL, REAL_ONLY, REAL_STRONG, SYNTHETIC, Kind
from dreamset.metrics import best
from dreamset.metrics.gains import TOGETHER
from dreamset.metrics.verdict import points

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dreamset.metrics.fixed import Round
    from dreamset.params import Params

_NONE: Final = "\N{EN DASH}"


def over_seeds(
    params: Params,
    summary: Sequence[dict[str, Any]],
    claims: Sequence[dict[str, Any]],
    rounds: Sequence[Round] = (),
    waiting: Mapping[str, str] | None = None,
) -> str:
    """Return mean accuracies and FID, and the differences of the verdict's classifier, by number of shots.

    Args:
        params: gives the order of recipes and classifiers, and the verdict's classifier.
        summary: rows of ``summary.csv``.
        claims: rows of ``claims.csv``, whose ``of`` and ``minus`` are runs.
        rounds: of fixed claims.
        waiting: by name, why the claims of a round are not primary, or what else is to be said of rounds.
    """
    if not summary:
        return "# Over several seeds\n\nNo cell is finished.\n"
    seeds = sorted({row["seeds"] for row in summary})
    number = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    name = params.primary_classifier
    measured = {(row["of"].kind, row["of"].classifier) for row in claims}
    together = next((kind for kind in TOGETHER if (kind, name) in measured), BOTH)
    augmented = "; real images are strongly augmented, alone or not" if together == BOTH_STRONG else ""
    parts = [
        "# Over several seeds",
        f"Written by `dreamset table`: {number}; the other files of this folder have every number.",
        "## Accuracy",
        "Per cent, means over seeds. A recipe's name alone: its images alone; with `real +` all are strongly "
        "augmented where that was trained, and else plainly.",
        *_means(params, summary),
        *_simple(summary),
        "## FID",
        "In the judge's features, means over seeds.",
        _fid(params, summary),
        *_fixed(claims, rounds, waiting or {}),
        f"## Differences, {name}",
        f"Points, paired by seed and test image, with {100 * params.evaluate.confidence:g} % intervals over seeds and "
        f"groups of test images{augmented}. Bold where the interval and the test, adjusted for "
        "all differences of the table, both show one; claims that were fixed have tests of their own.",
        _differences(name, together, [row for row in claims if not row["family"]], 1 - params.evaluate.confidence),
    ]
    return "\n\n".join(parts) + "\n"


def _fixed(claims: Sequence[dict[str, Any]], rounds: Sequence[Round], waiting: Mapping[str, str]) -> list[str]:
    """Return the paragraphs on claims that were fixed before their test scores existed."""
    if not rounds and not waiting:
        return []
    parts = ["## Claims that were fixed beforehand"]
    parts += [words for name, words in waiting.items() if name not in {one.name for one in rounds}]
    for one in rounds:
        if one.name in waiting:
            parts += [one.words, waiting[one.name]]
            continue
        own = [row for row in claims if row["family"] == one.name]
        lines = [
            [
                f"{row['of']}, over {row['minus']}",
                f"{row['shots']}{', no loss' if row['asked'] == 'no_loss' else ''}",
                f"{points(row['difference'])} ({points(row['low'])} to {points(row['high'])})",
                f"{row['p']:.2g}",
                f"{row['p_adjusted']:.2g}",
            ]
            for row in own
        ]
        parts += [one.words, _table(["claim", "shots", "points", "p", "Holm"], lines)]
    return parts


def _means(params: Params, summary: Sequence[dict[str, Any]]) -> list[str]:
    """Return a heading and a table for each classifier: a row per set of training images, a column per shots."""
    recipes, shots = _recipes(params, summary), _shots(summary)
    sets: list[tuple[str, str, tuple[Kind, ...]]] = [("real", REAL, (REAL_ONLY,))]
    sets += [("real, strongly augmented", REAL, (REAL_STRONG,))]
    sets += [(name, name, (SYNTHETIC,)) for name in recipes]
    sets += [(f"real + {name}", name, TOGETHER) for name in recipes]
    parts = []
    for classifier in params.train.classifiers:
        means = {
            (row["shots"], row["recipe"], Kind.parse(row["train_on"])): f"{100 * row['accuracy']:.1f}"
            for row in summary
            if row["classifier"] == classifier
        }
        lines = []
        for words, arm, kinds in sets:
            line = [next((means[k, arm, kind] for kind in kinds if (k, arm, kind) in means), _NONE) for k in shots]
            lines += [] if set(line) == {_NONE} else [[words, *line]]
        parts += [f"### {classifier}", _table(["images", *map(_headed, shots)], lines)] if lines else []
    return parts


def _headed(count: int) -> str:
    return f"{count} shot{'' if count == 1 else 's'}"


def _simple(summary: Sequence[dict[str, Any]]) -> list[str]:
    """Return the paragraphs on the simple classifiers; none where the cells have none."""
    rows = [row for row in summary if best.is_simple(row["classifier"])]
    if not rows:
        return []
    means = {(row["classifier"], row["shots"]): f"{100 * row['accuracy']:.1f}" for row in rows}
    shots, names = _shots(rows), dict.fromkeys(row["classifier"] for row in rows)
    lines = [[name, *(means.get((name, count), _NONE) for count in shots)] for name in names]
    head = ["", *map(_headed, shots)]
    return ["The simple classifiers, of the real images alone, in the same per cent.", _table(head, lines)]


def _fid(params: Params, summary: Sequence[dict[str, Any]]) -> str:
    shots = _shots(summary)
    means = {(row["recipe"], row["shots"]): f"{row['fid']:.1f}" for row in summary if row["fid"] is not None}
    lines = [[name, *(means.get((name, count), _NONE) for count in shots)] for name in _recipes(params, summary)]
    return _table(["images", *map(_headed, shots)], lines)


def _differences(classifier: str, together: Kind, claims: Sequence[dict[str, Any]], level: float) -> str:
    """Return a row per comparison, with a column per number of shots."""
    # Real images alone, augmented as both together are.
    alone = {BOTH: REAL_ONLY, BOTH_STRONG: REAL_STRONG}[together]
    rows: dict[str, dict[int, str]] = {}
    for kind in (SYNTHETIC, together):
        for row in claims:
            of, minus = row["of"], row["minus"]
            if (of.kind, of.classifier) != (kind, classifier) or minus.kind not in (kind, alone):
                continue
            plus = "" if kind == SYNTHETIC else "real + "
            comparison = f"{plus}{of.arm}, over {REAL if minus.arm == REAL else plus + minus.arm}"
            cell = f"{points(row['difference'])} ({points(row['low'])} to {points(row['high'])})"
            clear = (row["low"] > 0 or row["high"] < 0) and row["p_adjusted"] <= level
            rows.setdefault(comparison, {})[row["shots"]] = f"**{cell}**" if clear else cell
    shots = _shots(claims)
    lines = [[comparison, *(cells.get(count, _NONE) for count in shots)] for comparison, cells in rows.items()]
    return _table(["", *(f"{count} shot{'' if count == 1 else 's'}" for count in shots)], lines)


def _recipes(params: Params, summary: Sequence[dict[str, Any]]) -> list[str]:
    arms = {row["recipe"] for row in summary}
    return [name for name in params.recipes if name in arms]


def _shots(rows: Sequence[dict[str, Any]]) -> list[int]:
    return sorted({row["shots"] for row in rows})


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)

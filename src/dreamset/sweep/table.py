"""The table over all finished cells: ``results/table/``, written from a small record of every cell.

A record holds all that a table needs, down to which test images each classifier got right. So cells that ran at
different times or on different machines make one table when their records are in one folder.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.errors import InputError
from dreamset.core.files import digest, write_csv, write_json
from dreamset.data.runs import SYNTHETIC, Run
from dreamset.evaluate import output
from dreamset.metrics.machines import differing
from dreamset.metrics.scored import groups_of, right
from dreamset.metrics.statistics import crossed, holm, indicative, max_t, sign_flip, spearman

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence
    from pathlib import Path

    from dreamset.metrics.fixed import Round
    from dreamset.params import Params

SUMMARY: Final = ("shots", "recipe", "train_on", "classifier", "seeds", "accuracy", "sd", "fid", "kid")
CLAIMS: Final = (
    "shots",
    "classifier",
    "of",
    "minus",
    "seeds",
    "groups",
    "accuracy_of",
    "accuracy_minus",
    "difference",
    "low",
    "high",
    "p",
    "p_adjusted",
    "family",
    "asked",
    "indicative",
    "by_seed",
)
CORRELATIONS: Final = ("metric", "shots", "points", "seeds", "rho", "low", "high")

EXPLORATORY: Final = ""  # the family of all differences; those of fixed claims have the names of their rounds
_SHARES: Final = ("near_duplicates", "near_duplicates_test")
_OF_SHOTS: Final = "near_duplicates"  # a set has another share of these beside other shots
_CAS: Final = "resnet20"  # trained from scratch, so that it learns everything from the images


def record(evaluation: dict[str, Any], guesses: dict[str, Any]) -> dict[str, Any]:
    """Return all that a table needs of one cell.

    Args:
        evaluation: what ``evaluate.run`` returned.
        guesses: its ``predictions.json``: labels and, by run, predictions of the test images.
    """
    import numpy as np

    labels = np.array(guesses["labels"])
    return {
        "shots": evaluation["shots"],
        "seed": evaluation["seed"],
        "images": len(labels),
        # Under cross-validation the images are the shots of the seed.
        "labels": digest([guesses["labels"], evaluation["seed"] if evaluation.get("protocol") == "cv" else None]),
        # Numbers of the test images' groups; null where each image is a group.
        "groups": guesses.get("groups"),
        # A bit for each test image, in hexadecimal.
        "right": {run: np.packbits(labels == guess).tobytes().hex() for run, guess in guesses["predicted"].items()},
        "differences": [[row["of"], row["minus"]] for row in evaluation["differences"]],
        "quality": {recipe: _quality(measures) for recipe, measures in evaluation["sets"].items()},
        "rows": output.rows(evaluation),
    }


def only(record: dict[str, Any], recipes: Iterable[str]) -> dict[str, Any]:
    """Return a cell's record with no recipes but ``recipes``."""
    gone = record["recipes"].keys() - set(recipes)
    runs = {run: bits for run, bits in record["right"].items() if Run.parse(run).arm not in gone}
    return record | {
        "recipes": {name: row for name, row in record["recipes"].items() if name not in gone},
        "right": runs,
        "differences": [pair for pair in record["differences"] if runs.keys() >= set(pair)],
        "quality": {name: values for name, values in record["quality"].items() if name not in gone},
        "rows": [row for row in record["rows"] if row["recipe"] not in gone],
    }


def write(
    params: Params,
    folder: Path,
    records: Sequence[dict[str, Any]],
    made_with: dict[str, Any],
    rounds: Sequence[Round] = (),
    waiting: Mapping[str, str] | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Write the table's files but its page; return the rows of ``summary.csv`` and of ``claims.csv``, which hold runs.

    Args:
        params: all parameters.
        folder: where the files go.
        records: of the cells of one setting.
        made_with: hashes of all else that the cells have in common; they stand beside the parameters in
            ``setting.json``.
        rounds: fixed claims that every cell of theirs records.
        waiting: by name of the other rounds, why their claims are not primary.

    Raises:
        InputError: cells with the same number of shots were scored on different images.
    """
    ordered = sorted(records, key=lambda cell: (cell["shots"], cell["seed"]))
    rows = [row for cell in ordered for row in cell["rows"]]
    recipes = [name for name in params.recipes if any(name in cell["quality"] for cell in ordered)]
    means, compared = summarised(rows), claims(params, ordered, rounds)
    write_csv(folder / "cells.csv", rows, output.ROW_COLUMNS)
    write_csv(folder / "summary.csv", means, SUMMARY)
    write_csv(folder / "claims.csv", compared, CLAIMS)
    write_csv(folder / "correlations.csv", correlations(params, ordered), CORRELATIONS)
    write_json(folder / "setting.json", params.setting(recipes) | made_with)
    cost = {"cells": len(ordered), "seconds": round(sum(cell["seconds"] for cell in ordered), 1)}
    cost |= {"threads": sorted({cell["threads"] for cell in ordered}), "machines": machines(ordered)}
    cost["waiting"] = dict(waiting or {})
    write_json(folder / "cost.json", cost)
    return means, compared


def machines(records: Iterable[dict[str, Any]]) -> str | None:
    """Return a sentence on the processors that the cells ran on; None where all ran on the same."""
    return differing(
        (f"{cell['shots']} shots, seed {cell['seed']}", cell["device"], cell["threads"]) for cell in records
    )


def summarised(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and standard deviation over seeds of every run at every number of shots."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("shots", "recipe", "train_on", "classifier"))
        groups.setdefault(key, []).append(row)
    table = []
    for (shots, recipe, train_on, classifier), group in groups.items():
        scores = [row["accuracy"] for row in group]
        table.append(
            {
                "shots": shots,
                "recipe": recipe,
                "train_on": train_on,
                "classifier": classifier,
                "seeds": len(group),
                "accuracy": round(statistics.fmean(scores), 6),
                "sd": round(statistics.stdev(scores), 6) if len(scores) > 1 else None,
                "fid": _mean(row["fid"] for row in group),
                "kid": _mean(row["kid"] for row in group),
            }
        )
    return table


def claims(params: Params, records: Sequence[dict[str, Any]], rounds: Sequence[Round] = ()) -> list[dict[str, Any]]:
    """Return every difference that ``evaluate`` reports, paired by seed and test image, and the claims of rounds.

    ``low`` and ``high`` are the ends of the interval over seeds and groups of test images. ``p`` is that of the
    sign-flip test over seeds, and ``p_adjusted`` is ``p`` adjusted within its family. The differences that
    ``evaluate`` reports are one family, over all seeds that have them: they are exploratory, and adjusted by ``max_t``.
    Each round is a family of its own, over its seeds alone: these claims are primary, and adjusted by Holm.

    Args:
        params: all parameters.
        records: of the cells.
        rounds: fixed claims that every cell of theirs records.

    Raises:
        InputError: cells with the same number of shots were scored on different images.
    """
    import numpy as np

    table: list[dict[str, Any]] = []
    for shots, cells in _by_shots(records).items():
        pairs = dict.fromkeys((of, minus) for cell in cells for of, minus in cell["differences"])
        table += [_claim(params, shots, Run.parse(of), Run.parse(minus), cells) for of, minus in pairs]
    seeds = sorted({seed for row in table for seed in row["each"]})
    by_test = np.array([[row["each"].get(seed, 0.0) for seed in seeds] for row in table]).reshape(
        len(table), len(seeds)
    )
    for row, adjusted in zip(table, max_t(by_test), strict=True):
        # Above fourteen seeds the flips of the family are drawn, and those of a test alone are not.
        row |= {"p_adjusted": max(row["p"], adjusted), "family": EXPLORATORY}
    for one in rounds:
        family = []
        for shots, cells in _by_shots(records).items():
            own = [cell for cell in cells if cell["seed"] in one.seeds]
            for asked in one.asked(shots):
                least = -one.smallest_gain if asked == "no_loss" else 0.0
                family += [_claim(params, shots, of, minus, own, least) | {"asked": asked} for of, minus in one.pairs]
        for row, adjusted in zip(family, holm([row["p"] for row in family], one.tests), strict=True):
            row |= {"p_adjusted": adjusted, "family": one.name}
        table += family
    for row in table:
        del row["each"]
        row |= {name: float(f"{row[name]:.4g}") for name in ("p", "p_adjusted")}
        row["indicative"] = str(row["indicative"]).lower()
    return table


def _by_shots(records: Sequence[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """Return the cells by number of shots.

    Raises:
        InputError: those of one number were scored on different images: means and claims would be over different ones.
    """
    table = {
        shots: [cell for cell in records if cell["shots"] == shots]
        for shots in sorted({cell["shots"] for cell in records})
    }
    for shots, cells in table.items():
        if len({(cell["labels"], str(cell.get("groups"))) for cell in cells}) > 1:
            raise InputError(
                f"table: the seeds at {shots} shots were scored on different images, which cannot be paired; "
                "use a source with test images, or evaluate.protocol: test."
            )
    return table


def correlations(params: Params, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return Spearman's rho of each quality of a synthetic dataset with its CAS, over cells and recipes.

    A point is a recipe in a cell. There is a rho over all numbers of shots (``all``), and one at each. Both are mostly
    about which recipe it is. So there is also the rho of the deviations from the mean of the same recipe at the same
    number of shots (``within``). A set that does not depend on the shots is one point, however many cells hold it;
    of near-duplicates of the shots, it is one in each cell.
    """
    points = [
        (row["recipe"], cell["shots"], cell["seed"], cell["quality"][row["recipe"]], row["accuracy"])
        for cell in records
        for row in cell["rows"]
        if (row["train_on"], row["classifier"]) == (str(SYNTHETIC), _CAS) and row["recipe"] in cell["quality"]
    ]
    once: dict[str, tuple[Any, ...]] = {}
    for point in points:
        recipe, _, seed, quality, _ = point
        own = {name: value for name, value in quality.items() if name != _OF_SHOTS}
        once.setdefault(digest([recipe, seed, own]), point)
    table = []
    for metric in (*output.SET_MEASURES, *_SHARES):
        for shots in ("all", "within", *sorted({point[1] for point in points})):
            chosen = [
                (point[:2], point[2], point[3][metric], point[4])
                for point in (once.values() if isinstance(shots, str) and metric != _OF_SHOTS else points)
                if metric in point[3] and shots in ("all", "within", point[1])
            ]
            groups, seeds = [point[0] for point in chosen], [point[1] for point in chosen]
            x, y = [float(point[2]) for point in chosen], [float(point[3]) for point in chosen]
            if shots == "within":
                x, y = _centred(groups, x), _centred(groups, y)
            rho = spearman(x, y, seeds, params.evaluate.bootstrap, params.evaluate.confidence)
            if rho is None:
                continue
            ends = {"rho": rho.estimate, "low": rho.low, "high": rho.high}
            table.append(
                {"metric": metric, "shots": shots, "points": len(chosen), "seeds": len(set(seeds))}
                | {name: round(value, 3) for name, value in ends.items()}
            )
    return table


def _centred(groups: Sequence[Hashable], values: Sequence[float]) -> list[float]:
    """Return each value less the mean of its group, rounded so that equal ones stay equal."""
    members: dict[Hashable, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        members.setdefault(group, []).append(value)
    return [round(value - statistics.fmean(members[group]), 9) for group, value in zip(groups, values, strict=True)]


def _claim(
    params: Params, shots: int, of: Run, minus: Run, cells: Sequence[dict[str, Any]], least: float = 0.0
) -> dict[str, Any]:
    """Return a difference over the seeds that have both runs, with both mean accuracies over these seeds.

    ``p`` is of the test that it is no other than ``least``.

    ``each`` is the difference by seed.
    """
    import numpy as np

    both = [cell for cell in cells if {str(of), str(minus)} <= cell["right"].keys()]
    each = [np.stack([right(cell, run) for cell in both]) for run in (of, minus)]
    differences = each[0] - each[1]
    groups = groups_of(both[0])
    interval = crossed(differences, params.evaluate.bootstrap, params.evaluate.confidence, groups)
    by_seed = differences.mean(axis=1)
    return {
        "shots": shots,
        "classifier": of.classifier,
        "of": of,
        "minus": minus,
        "seeds": len(both),
        "groups": None if groups is None else int(groups.max()) + 1,
        # More digits than are shown: what is rounded twice may be rounded wrongly.
        "accuracy_of": round(float(each[0].mean()), 6),
        "accuracy_minus": round(float(each[1].mean()), 6),
        "difference": round(interval.estimate, 6),
        "low": round(interval.low, 6),
        "high": round(interval.high, 6),
        "p": sign_flip((by_seed - least).tolist()),
        "asked": "gain",
        "indicative": indicative(len(both)),
        "by_seed": " ".join(f"{value:+.4f}" for value in by_seed),
        "each": {cell["seed"]: float(value) for cell, value in zip(both, by_seed, strict=True)},
    }


def _quality(measures: dict[str, Any]) -> dict[str, float]:
    """Return the measures of quality among those that ``evaluate`` has of a synthetic dataset."""
    values = {name: measures.get(name) for name in output.SET_MEASURES}
    values |= {name: (measures.get(name) or {}).get("share") for name in _SHARES}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.fmean(known), 5) if known else None

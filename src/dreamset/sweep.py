"""``dreamset table``: every stage over shots and seeds, and what can be said over all of them.

Each (shots, seed) is a cell under ``.dreamset/table``: the same stage functions in another workspace, sharing
shards. A finished cell is not run again while its parameters and the code are the same.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import statistics
from typing import TYPE_CHECKING, Any, Final

from dreamset import adapt, evaluate, generate, locks, prepare, train
from dreamset.files import read_json, write_csv, write_json
from dreamset.fingerprint import fingerprint
from dreamset.params import Params, to_dict
from dreamset.progress import bar
from dreamset.seeds import seed_for
from dreamset.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

SUMMARY: Final = ("shots", "recipe", "train_on", "classifier", "seeds", "accuracy", "sd", "fid", "kid")
CLAIMS: Final = ("shots", "classifier", "of", "minus", "seeds", "difference", "low", "high", "by_seed")
_HEAVY: Final = ("report", "track")  # sections that change no number


@dataclasses.dataclass(frozen=True)
class Cell:
    """One (shots, seed) with its resolved parameters and its folder."""

    params: Params
    workspace: Workspace
    threads: int

    @property
    def done(self) -> str:
        """What a finished cell has recorded: its parameters, the base and the code."""
        settings = {name: value for name, value in to_dict(self.params).items() if name not in _HEAVY}
        return fingerprint(settings, self.workspace.root, self.params.base)


def run(params: Params, workspace: Workspace, shots: list[int], seeds: list[int], jobs: int) -> str:
    """Run what is not finished, then write ``results/table/``; returns a few lines of what came out."""
    cells = [_cell(params, workspace, k, seed, jobs) for k in shots for seed in seeds]
    todo = [cell for cell in cells if _recorded(cell) != cell.done]
    if jobs == 1:
        for cell in bar(todo, what="table", unit="cell"):
            run_cell(cell)
    else:
        # A fresh interpreter each: torch's threads do not survive a fork.
        with multiprocessing.get_context("spawn").Pool(jobs) as pool:
            for _ in bar(pool.imap_unordered(run_cell, todo), total=len(todo), what="table", unit="cell"):
                pass
    evaluations = [read_json(cell.workspace.result("evaluate"), "dreamset table") for cell in cells]
    folder = workspace.results / "table"
    rows = [row for evaluation in evaluations for row in evaluate.rows(evaluation)]
    write_csv(folder / "cells.csv", rows, evaluate.ROW_COLUMNS)
    write_csv(folder / "summary.csv", summarised(rows), SUMMARY)
    claims = [row for k in shots for row in _claims(params, [c for c in cells if c.params.shots == k])]
    write_csv(folder / "claims.csv", claims, CLAIMS)
    write_json(folder / "setting.json", params.setting(params.active))
    lines = [
        f"{row['shots']:>3} shots  {row['classifier']:9}  {row['of']} - {row['minus']}: "
        f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
        for row in claims
    ]
    return "\n".join([f"{len(todo)} of {len(cells)} cells run now; {folder}", *lines])


def run_cell(cell: Cell) -> None:
    """Every stage of one cell, in the order of the graph."""
    import torch

    torch.set_num_threads(cell.threads)
    params, workspace = cell.params, cell.workspace
    # Before the work: what changes while it goes on is not what it was made with.
    done = cell.done
    with locks.turn(workspace.locks, f"table_{workspace.cell.name}"):
        if _recorded(cell) == done:
            return  # by another run, while this one waited for it
        shutil.rmtree(workspace.results, ignore_errors=True)
        prepare.run(params, workspace)
        train.run(params, workspace, train.REAL)
        for recipe in params.active:
            adapt.run(params, workspace, recipe)
            generate.run(params, workspace, recipe)
            train.run(params, workspace, recipe)
        evaluate.run(params, workspace)
        write_json(workspace.cell / "cell.json", {"done": done})


def summarised(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of every run at every number of shots."""
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
                "accuracy": round(statistics.fmean(scores), 4),
                "sd": round(statistics.stdev(scores), 4) if len(scores) > 1 else None,
                "fid": _mean(row["fid"] for row in group),
                "kid": _mean(row["kid"] for row in group),
            }
        )
    return table


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.fmean(known), 5) if known else None


def paired(differences: NDArray[np.float64], resamples: int, confidence: float) -> tuple[float, float, float]:
    """Mean of (seeds, images) differences with a percentile interval that resamples both seeds and images.

    All seeds share the test images, so rows and columns are drawn independently and crossed.
    """
    import numpy as np

    rng = np.random.default_rng(seed_for("paired"))
    seeds, images = differences.shape
    means = np.empty(resamples)
    for i in range(resamples):
        columns = np.bincount(rng.integers(0, images, images), minlength=images) / images
        means[i] = (differences[rng.integers(0, seeds, seeds)] @ columns).mean()
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(differences.mean()), float(low), float(high)


def _claims(params: Params, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Every difference that ``evaluate`` reports, paired by seed and by test image."""
    import numpy as np

    guesses = [read_json(c.workspace.plots("evaluate") / "predictions.json", "dreamset table") for c in cells]
    right = [
        {key: np.equal(labels, guess["labels"]).astype(float) for key, labels in guess["predicted"].items()}
        for guess in guesses
    ]
    first = read_json(cells[0].workspace.result("evaluate"), "dreamset table")
    table = []
    for row in first["differences"]:
        differences = np.stack([of[row["of"]] - of[row["minus"]] for of in right])
        mean, low, high = paired(differences, params.evaluate.bootstrap, params.evaluate.confidence)
        table.append(
            {
                "shots": cells[0].params.shots,
                "classifier": row["classifier"],
                "of": row["of"],
                "minus": row["minus"],
                "seeds": len(cells),
                "difference": round(mean, 4),
                "low": round(low, 4),
                "high": round(high, 4),
                "by_seed": " ".join(f"{value:+.4f}" for value in differences.mean(axis=1)),
            }
        )
    return table


def _cell(params: Params, workspace: Workspace, shots: int, seed: int, jobs: int) -> Cell:
    own = dataclasses.replace(params, shots=shots, seed=seed)
    folder = workspace.root / ".dreamset/table" / f"shots{shots:03d}_seed{seed}"
    return Cell(own, Workspace(workspace.root, folder), max(1, (os.cpu_count() or 1) // jobs))


def _recorded(cell: Cell) -> str | None:
    path = cell.workspace.cell / "cell.json"
    return read_json(path, "dreamset table")["done"] if path.is_file() else None

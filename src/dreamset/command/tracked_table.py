"""The table over seeds as MLflow is told of it: a run for it, nested in it one per cell, in each one per row."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from dreamset import track
from dreamset.command import tracked_runs as runs
from dreamset.core.files import digest, read_json
from dreamset.data import primary
from dreamset.data.runs import REAL, Kind, Run
from dreamset.evaluate import output
from dreamset.metrics.claims import read_claims, read_csv
from dreamset.metrics.gains import over_real
from dreamset.sweep import cells
from dreamset.track import spool

if TYPE_CHECKING:
    from dreamset.core.workspace import Workspace
    from dreamset.params import Params


def record(params: Params, workspace: Workspace) -> None:
    """Spool the table over seeds: a run for it, nested in it one per cell, and in each cell one per classifier."""
    folder = workspace.results / "table"
    rows = read_csv(folder / "cells.csv")
    if params.track.uri is None or not rows:
        return
    setting = read_json(folder / "setting.json", "dreamset table")
    # The table goes on when it gets other recipes, or when its cells are measured again by other code.
    tree = digest(["table", {name: value for name, value in setting.items() if name not in ("recipes", "code")}])[:16]
    ended = runs.written(folder / "claims.csv")
    curves: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    sentences = []
    # Those of fixed rounds are over their seeds alone; these are over all.
    claims = [claim for claim in read_claims(folder / "claims.csv") if not claim.primary]
    choice = primary.settle(params, workspace)
    for shots in sorted({claim.shots for claim in claims}):
        here = {(claim.gain.of, claim.gain.minus): claim for claim in claims if claim.shots == shots}
        best = over_real([c.gain for c in here.values()], choice.primary_recipe, choice.primary_classifier)
        if best is None:
            continue
        for name, value in (("gain", best.difference), ("gain_low", best.low), ("gain_high", best.high)):
            curves[name].append((shots, value, ended))
        sentences.append(
            f"{shots} shots: {best.of} minus {best.minus} is {100 * best.difference:+.1f} points "
            f"({100 * best.low:+.1f} to {100 * best.high:+.1f}) over {here[best.of, best.minus].seeds} seeds."
        )
    files = [folder / name for name in ("README.md", "claims.csv", "summary.csv", "cells.csv", "cost.json")]
    cost = read_json(folder / "cost.json", "dreamset table")
    own = spool.Run(
        key="table",
        name=f"table {tree[:8]}",
        kind="table",
        started=ended - cost["seconds"],
        ended=ended,
        note="\n\n".join(sentences),
        params=runs.common(params)
        | {"shots": " ".join(dict.fromkeys(row["shots"] for row in rows)), "seed": "several"},
        metrics={"cells": float(cost["cells"]), "seconds": float(cost["seconds"])},
        curves=dict(curves),
    )
    told: list[runs.Told] = [(own, spool.named(path for path in files if path.is_file()))]
    by_cell: dict[tuple[int, int], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        by_cell[int(row["shots"]), int(row["seed"])].append(row)
    for (shots, seed), group in sorted(by_cell.items()):
        cell = cells.folder_of(workspace, shots, seed).name
        told += _cell(params, group, cell, runs.written(folder / "cells" / f"{cell}.json"))
    track.record(workspace, params, "table", tree, [run for run, _ in told], {run.key: files for run, files in told})
    track.flush(workspace, params)


def _cell(params: Params, rows: list[dict[str, str]], cell: str, ended: float) -> list[runs.Told]:
    """Return the run of a cell and those of its classifiers; a gain has no ends, for those are over the seeds."""
    shots, seed = rows[0]["shots"], rows[0]["seed"]
    which = {"shots": shots, "seed": seed}
    by_run = {Run(row["recipe"], Kind.parse(row["train_on"]), row["classifier"]): row for row in rows}
    alone: dict[str, float] = defaultdict(float)
    for run, row in by_run.items():
        if run.arm == REAL and run.kind.scale is None:
            alone[run.classifier] = max(alone[run.classifier], float(row["accuracy"]))
    known = [{name: _value(text) for name, text in row.items()} for row in rows]
    own = spool.Run(
        key=cell,
        name=f"{shots} shots, seed {seed}",
        kind="cell",
        started=ended,
        ended=ended,
        above="table",
        params=runs.common(params) | which,
        metrics=runs.numbers(output.summary(params, known)),
    )
    told: list[runs.Told] = [(own, {})]
    for run, row in by_run.items():
        metrics = runs.measured(params, row)
        if run.kind.real and run.kind.synthetic and run.classifier in alone:
            metrics["gain"] = round(metrics["accuracy"] - alone[run.classifier], 4)
        named = runs.common(params) | runs.named(params, run) | which
        one = spool.Run(
            key=f"{cell}/{run}",
            name=f"{run}, {shots} shots, seed {seed}",
            kind="seed",
            started=ended,
            ended=ended,
            above=cell,
            params=named | (runs.of_recipe(params, run.arm) if run.arm in params.recipes else {}),
            metrics=metrics,
        )
        told.append((one, {}))
    return told


def _value(text: str) -> Any:
    """Return a cell of a CSV as the row had it that was written."""
    try:
        return float(text) if text else None
    except ValueError:
        return text

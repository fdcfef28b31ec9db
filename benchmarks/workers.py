"""What several workers save: ``python -m benchmarks.workers``.

A table over seeds runs with one worker and with two, in turns, each in an empty project; a cell computes with one
thread. The time of eight nodes is simulated: recorded seconds of cells, in order, each on the node that is free first,
as the claims on pieces hand them out.
"""

from __future__ import annotations

import argparse
import copy
import heapq
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from dreamset import classifiers, params
from dreamset.core import device
from dreamset.core.files import read_json, write_json
from dreamset.core.workspace import Workspace
from dreamset.sweep import cells

ROOT = Path(__file__).parents[1]
SMALL = {"width": 4, "steps": 10}


def scheduled(seconds: Iterable[float], nodes: int) -> float:
    """Return when the last of some pieces ends; each goes, in order, to the node that is free first."""
    free = [0.0] * nodes
    for one in seconds:
        heapq.heapreplace(free, free[0] + one)
    return max(free)


def settings(recipes: list[str], *, small: bool) -> dict[str, Any]:
    """Return the parameters of the table: those of the project, or of a run of seconds."""
    raw: dict[str, Any] = copy.deepcopy(yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")))
    raw |= {"active": recipes, "after": {}, "primary": recipes[-1]}
    raw["track"]["uri"] = None
    if small:
        row = raw["models"]["bundled"]
        row["generate"] |= {"per_class": 5, "steps": 4}
        row["train"]["resnet20"] |= SMALL
        raw["train"] |= {"classifiers": ["resnet20"], "baselines": [], "simple": []}
        raw["evaluate"] |= {"bootstrap": 200}
    return raw


def table(raw: dict[str, Any], shots: int, seeds: list[int], workers: int) -> tuple[float, list[float]]:
    """Run a table in an empty project.

    Returns:
        Its seconds, and those that each cell recorded.
    """
    with tempfile.TemporaryDirectory(prefix="dreamset-workers-") as folder:
        workspace = Workspace.at(Path(folder))
        for name in ("models/base", "data/prompts"):
            (workspace.root / name).parent.mkdir(exist_ok=True)
            (workspace.root / name).symlink_to(ROOT / name)
        started = time.perf_counter()
        cells.run(params.parse(raw, classifiers.ROWS), workspace, [shots], seeds, workers)
        taken = time.perf_counter() - started
        records = sorted((workspace.results / "table/cells").glob("*.json"))
        return taken, [read_json(path, "dreamset table")["seconds"] for path in records]


def simulated(seconds: list[float], nodes: int) -> dict[str, Any]:
    """Return what ``nodes`` would save of the time that pieces took one after the other."""
    last = scheduled(seconds, nodes)
    return {
        "pieces": len(seconds),
        "nodes": nodes,
        "seconds_one_after_another": round(sum(seconds), 1),
        "seconds": round(last, 1),
        "times": round(sum(seconds) / last, 2),
    }


def main() -> None:
    """Run from the command line; print the ratios and keep them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description=__doc__)
    parser.add_argument("--seeds", type=int, default=4, help="cells of the table (default: %(default)s)")
    parser.add_argument("--shots", type=int, default=4, help="images per class (default: %(default)s)")
    parser.add_argument("--recipes", nargs="+", default=["stable_diffusion", "datadream_dset"])
    parser.add_argument(
        "--repeat", type=int, default=1, help="tables with one and with two workers, each; 0: simulate alone"
    )
    parser.add_argument("--nodes", type=int, default=8, help="of the simulation (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="cells of seconds, to try this out")
    parser.add_argument(
        "--recorded", type=Path, default=ROOT / "results/table/cells", help="cells whose seconds are simulated"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/workers.json", help="JSON file")
    options = parser.parse_args()
    raw, seeds = settings(options.recipes, small=options.small), [*range(options.seeds)]
    load = round(os.getloadavg()[0], 2)
    walls: dict[int, list[float]] = {1: [], 2: []}
    own: list[float] = []
    for _ in range(options.repeat):
        for workers, taken in walls.items():
            wall, each = table(raw, options.shots, seeds, workers)
            taken.append(round(wall, 1))
            own = each if workers == 1 else own
    recorded = [read_json(path, "dreamset table")["seconds"] for path in sorted(options.recorded.glob("*.json"))]
    ratio = round(statistics.median(walls[1]) / statistics.median(walls[2]), 2) if options.repeat else None
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.workers", *sys.argv[1:]]),
        "device": device.name(),
        "cores": os.cpu_count(),
        "load_before": load,
        "small": options.small,
        "cells": len(seeds),
        "seconds_one_worker": walls[1],
        "seconds_two_workers": walls[2],
        "two_workers_times_one": ratio,
        "seconds_of_cells": own,
        "simulated": {"recorded cells of the table": simulated(recorded, options.nodes)} if recorded else {},
    }
    print(yaml.safe_dump(report, sort_keys=False, width=120), end="")
    write_json(options.output, report)


if __name__ == "__main__":
    main()

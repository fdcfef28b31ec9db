"""How many images the entropy filter saves at equal CAS: ``python -m benchmarks.saved``.

The un-adapted base draws 200 images per class; ``deliberate_practice``, the same row with the filter, draws 48. A
ResNet-20 learns from the first 48, 72, 100, 148 and 200 images of a class of the one, and from the 48 of the other, in
equal steps. It is scored on images that ``selection: extra`` sets apart; none is a test image. The filter draws
candidates, so what it saves of images it spends on drawing; both are told.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml

from benchmarks import apart, paired
from dreamset import adapt, generate, prepare, train
from dreamset.command.parsing import span
from dreamset.core import audit, device
from dreamset.core.files import atomic_write, read_json, write_json
from dreamset.core.workspace import Workspace
from dreamset.data import runs

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[1]
PLAIN, FILTERED = "stable_diffusion", "deliberate_practice"
# Sizes in multiples of the shots, as ``train.scales`` has them.
SCALES = {PLAIN: (12, 18, 25, 37, 50), FILTERED: (12,)}
SHOTS = 4


def cell(raw: dict[str, Any], seed: int, arm: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the CAS of an arm by number of images per class, for one seed."""
    torch.set_num_threads(options.threads)
    own = apart.changed(raw, seed, SHOTS, options.labels, [arm])
    own["train"]["scales"] = list(SCALES[arm])
    own["generate"]["per_class"] = SHOTS * SCALES[arm][-1]
    params = apart.parsed(own, options.params)
    workspace = Workspace(options.params.resolve().parent, options.work / f"{arm}_seed{seed}")
    path = workspace.cell / "saved.json"
    if not path.is_file():
        prepare.run(params, workspace)
        with audit.closed(workspace):
            adapt.run(params, workspace, arm)
            made = generate.run(params, workspace, arm)
            trained = train.run(params, workspace, arm, ())["runs"]
        by_scale = {runs.Kind.parse(run["train_on"]).scale or 0: run["selection_curve"][-1] for run in trained}
        scores = {str(SHOTS * scale): scored["accuracy"] for scale, scored in by_scale.items()}
        seconds = {"generate": round(made["seconds"], 1), "train": round(trained[0]["seconds"], 1)}
        facts = {"seed": seed, "arm": arm, "cas": scores, "seconds": seconds, "device": device.name()}
        write_json(path, facts)
    return dict(read_json(path, "python -m benchmarks.saved"))


def summarise(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return mean CAS by arm and images per class, and how many plain images have the CAS of the filtered ones.

    ``equal`` is read off the straight lines between the means; None where no number of plain images reaches that CAS.
    """
    means: dict[str, dict[int, float]] = {}
    for arm in SCALES:
        own = [record["cas"] for record in records if record["arm"] == arm]
        sizes = sorted(int(size) for size in own[0])
        means[arm] = {size: round(statistics.fmean(cas[str(size)] for cas in own), 4) for size in sizes}
    filtered, wanted = next(iter(means[FILTERED].items()))
    sizes, values = [*means[PLAIN]], [*means[PLAIN].values()]
    equal = None
    for index, (size, value) in enumerate(zip(sizes, values, strict=True)):
        if value >= wanted:
            before = slice(max(0, index - 1), index + 1)
            rising = index > 0 and value > values[index - 1]
            equal = float(np.interp(wanted, values[before], sizes[before])) if rising else float(size)
            break
    gains = [
        record["cas"][str(filtered)] - other["cas"][str(filtered)]
        for record in records
        for other in records
        if record["arm"] == FILTERED and other["arm"] == PLAIN and record["seed"] == other["seed"]
    ]
    return {
        "seeds": len(gains),
        "cas": {arm: {str(size): value for size, value in by_size.items()} for arm, by_size in means.items()},
        "images_filtered": filtered,
        "equal": None if equal is None else round(equal),
        "difference": paired.interval(gains) if len(gains) > 1 else None,
        "seconds": {
            arm: statistics.median(r["seconds"]["generate"] for r in records if r["arm"] == arm) for arm in SCALES
        },
    }


def markdown(found: dict[str, Any]) -> str:
    """Return the means as a table, in per cent."""
    sizes = [*found["cas"][PLAIN]]
    rows = [
        [arm, *(f"{100 * by[size]:.1f}" if size in by else "" for size in sizes)] for arm, by in found["cas"].items()
    ]
    return paired.markdown(("CAS by images per class", *sizes), rows)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run from the command line, and return what was found."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    raw = yaml.safe_load(options.params.read_text(encoding="utf-8"))
    wanted = [(raw, seed, arm, options) for seed in options.seeds for arm in reversed(SCALES)]
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=1) as pool:
        records = pool.starmap(cell, wanted, chunksize=1)
    report: dict[str, Any] = {"command": shlex.join(["python", "-m", "benchmarks.saved", *arguments])}
    report |= {"cells": records} | summarise(records)
    write_json(options.output / "saved.json", report)
    atomic_write(options.output / "saved.md", markdown(report))
    print(json.dumps({name: report[name] for name in ("equal", "difference", "seconds")}), markdown(report), sep="\n")
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.saved", description=__doc__)
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml", help="parameter file")
    parser.add_argument("--seeds", type=span, default=range(3), metavar="A-B", help="default: 0-2")
    parser.add_argument("--labels", type=int, default=20, help="images per class that score; default: 20")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cells at once; default: one per core")
    parser.add_argument("--threads", type=int, default=1, help="of each job; default: 1")
    parser.add_argument("--work", type=Path, default=ROOT / ".dreamset/saved", help="folder of what is going on")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="folder of saved.json")
    return parser


if __name__ == "__main__":
    main()

"""What real + synthetic images would teach more by, without test images: ``python -m benchmarks.causes``.

One change of the parameters at a time, over seeds that no table uses. Each is scored on ``--labels`` images per class
that ``selection: extra`` sets apart beside the shots; a default may be chosen by that, and is then measured once on
test images, at other seeds, by ``dreamset table``.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import shlex
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml

from benchmarks import paired
from dreamset import adapt, classifiers, generate, prepare, train
from dreamset import params as parameters
from dreamset.command.parsing import span
from dreamset.core import audit, device
from dreamset.core.files import atomic_write, read_json, write_json
from dreamset.core.progress import bar
from dreamset.core.workspace import Workspace
from dreamset.data import arrays, decisions, runs, splits
from dreamset.data.synthetic import read_metadata
from dreamset.metrics.duplicates import PERCENTILE, nearest
from dreamset.metrics.features import Judge
from dreamset.weights import hub
from dreamset.weights.fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dreamset.params import Params

ROOT = Path(__file__).parents[1]
# The stages that a cell runs.
MAKERS = ("dreamset.prepare", "dreamset.adapt", "dreamset.generate", "dreamset.train")
QUARTER = ".dreamset/quarter"  # a base that has learned less; docs/statistics.md says how to make it
RECIPE, PLAIN = "datadream_dset", "stable_diffusion"
SCALES = f"recipes.{RECIPE}.adapter_scales"
# By name, what of the parameters differs from the default; a dot leads one level down.
CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "lambda 0.2": {"train.real_weight": 0.2},
    "lambda 0.5": {"train.real_weight": 0.5},
    "lambda 0.8": {"train.real_weight": 0.8},
    "lambda 0.95": {"train.real_weight": 0.95},
    "200 images per class": {"generate.per_class": 200},
    "the last fifth on real images": {"train.finish_on_real": 0.2},
    "the last fifth on real images, head alone": {"train.finish_on_real": 0.2, "train.finish_part": "head"},
    "half on synthetic images, then half on real ones": {"train.real_weight": 0.0, "train.finish_on_real": 0.5},
    "near images count more": {"train.nearness": 1.0},
    "far images count more": {"train.nearness": -1.0},
    "twice the steps": {"models.bundled.train.resnet20.steps": 400},
    "200 images per class, twice the steps": {
        "generate.per_class": 200,
        "models.bundled.train.resnet20.steps": 400,
    },
    "half the steps of the adapter": {"models.bundled.adapt.dataset.max_steps": 200},
    "a quarter of the steps of the adapter": {"models.bundled.adapt.dataset.max_steps": 100},
    "15 inference steps": {"models.bundled.generate.steps": 15},
    "30 images per class": {"generate.per_class": 30},
    "three quarters of all steps": {
        "models.bundled.adapt.dataset.max_steps": 300,
        "models.bundled.generate.steps": 15,
        "models.bundled.train.resnet20.steps": 160,
    },
    "guidance 1": {f"recipes.{RECIPE}.sampler.guidance": 1.0},
    "guidance 3": {f"recipes.{RECIPE}.sampler.guidance": 3.0},
    "100 images per class": {"generate.per_class": 100},
    "adapter at 1/4, 1/2": {SCALES: [0.25, 0.5]},
    "adapter at 0, 1": {SCALES: [0.0, 1.0]},
    "adapter at 0, 1/4, 1/2, 3/4, 1": {SCALES: [0.0, 0.25, 0.5, 0.75, 1.0]},
    "adapter at 1/4, 1/2, 100 images per class": {SCALES: [0.25, 0.5], "generate.per_class": 100},
    "near-duplicates rejected": {},
    "nearest tenth rejected": {},
    "base of a quarter of the steps": {"models.bundled.generator": f"{QUARTER}/sd"},
    "base of a quarter of the steps, adapter at 1/4, 1/2": {
        "models.bundled.generator": f"{QUARTER}/sd",
        SCALES: [0.25, 0.5],
    },
}
# In the place of RECIPE another row, by change.
ROWS = {f"the row of {name}": name for name in ("issynth", "loft", "chimera")}
CHANGES |= {change: {} for change in ROWS}
# Images that are nearer to a shot than this percentile of the selection images are, drawn anew as a person's rejects
# would be: by change, for the default rejects nothing.
REJECTED: dict[str, float] = {"near-duplicates rejected": PERCENTILE, "nearest tenth rejected": 10.0}
_ROUNDS = 5  # what is drawn in the place of a reject may have to be rejected, too
REAL = (runs.REAL_ONLY, runs.REAL_STRONG)


@dataclass(frozen=True)
class Cell:
    """One change at one number of shots and one seed; ``made`` is the hash of all that its scores rest on."""

    change: str
    shots: int
    seed: int
    params: Params
    workspace: Workspace
    made: str
    threads: int


def cells(raw: dict[str, Any], options: argparse.Namespace) -> list[Cell]:
    """Every change at every number of shots and seed, seed by seed."""
    root, found = options.params.resolve().parent, []
    for seed in options.seeds:
        for shots in options.shots:
            for change in options.changes:
                changed = _changed(raw, change, shots, seed, options.labels)
                params = parameters.parse(changed, classifiers.ROWS, str(options.params))
                setting = [params.setting(params.active), shots, seed, params.selection, REJECTED.get(change)]
                made = fingerprint(setting, root, params.base, *MAKERS)
                workspace = Workspace(root, options.work / made[:16])
                threads = max(1, (os.cpu_count() or 1) // options.jobs)
                found.append(Cell(change, shots, seed, params, workspace, made, threads))
    return found


def _changed(raw: dict[str, Any], change: str, shots: int, seed: int, labels: int) -> dict[str, Any]:
    own = copy.deepcopy(raw)
    own |= {"shots": shots, "seed": seed, "selection": f"extra:{labels}", "active": [PLAIN, RECIPE], "after": {}}
    own |= {"primary": RECIPE}
    # The last step is scored, and nothing chosen.
    own["train"] |= {"classifiers": ["resnet20"], "baselines": [], "selections": 1, "configurations": 1}
    own["models"][own["model"]]["retrieval"] = None
    own["track"]["uri"] = None
    if change in ROWS:
        own["recipes"][RECIPE] = copy.deepcopy(own["recipes"][ROWS[change]])
    for path, value in CHANGES[change].items():
        *levels, last = path.split(".")
        place = own
        for level in levels:
            place = place[level]
        place[last] = value
    return own


def run_cell(cell: Cell) -> dict[str, Any]:
    """The stages up to training: the record of a cell, with the accuracy of every run on the selection images."""
    torch.set_num_threads(cell.threads)
    params, workspace = cell.params, cell.workspace
    prepare.run(params, workspace)
    scores, rejected = {}, 0
    with audit.closed(workspace):
        for arm in (runs.REAL, *params.active):
            if arm != runs.REAL:
                adapt.run(params, workspace, arm)
                generate.run(params, workspace, arm)
            if arm == RECIPE and cell.change in REJECTED:
                rejected = reject(params, workspace, arm, REJECTED[cell.change])
            train.run(params, workspace, arm, (*REAL, runs.SYNTHETIC, runs.BOTH_STRONG))
            for row in read_json(workspace.result("train", arm), "python -m benchmarks.causes")["runs"]:
                if row["selection_curve"]:
                    scores[f"{arm}/{row['train_on']}"] = row["selection_curve"][-1]["accuracy"]
    return {
        "change": cell.change,
        "shots": cell.shots,
        "seed": cell.seed,
        "made": cell.made,
        "device": device.name(),
        "rejected": rejected,
        "scores": scores,
    }


def reject(params: Params, workspace: Workspace, recipe: str, percentile: float) -> int:
    """Draw anew the images that are nearer to a shot than ``percentile`` of the selection images are; how many."""
    judge = Judge(hub.locate(workspace.root, params.base.judge, "judge"))
    split = splits.read_split(workspace.splits)
    shots, fresh = (
        judge.features(arrays.real(part, workspace.cell, judge.size).images) for part in (split.train, split.selection)
    )
    limit = np.percentile(nearest(fresh, shots)[1], percentile)
    # Those of a run that was stopped are rejected already.
    rejects = decisions.read(workspace.review(recipe))
    for _ in range(_ROUNDS):
        images = {image.file_name: image for image in read_metadata(workspace.synthetic(recipe))}
        drawn = arrays.synthetic(workspace.synthetic(recipe), split, judge.size)
        near = nearest(judge.features(drawn.images), shots)[1] < limit
        if not near.any():
            break
        rejects |= {decisions.picture(images[drawn.names[i]]): "rejected" for i in near.nonzero()[0]}
        decisions.write(workspace.review(recipe), recipe, rejects)
        generate.run(params, workspace, recipe)
    return len(rejects)


def summarise(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for every number of shots and change: means, and gains paired by seed with their standard errors."""
    by_cell, by_rejected = {}, {}
    for record in records:
        key = record["shots"], record["change"], record["seed"]
        by_cell[key], by_rejected[key] = record["scores"], record.get("rejected", 0)
    rows = []
    for shots in sorted({key[0] for key in by_cell}):
        for change in CHANGES:
            seeds = sorted(seed for k, name, seed in by_cell if (k, name) == (shots, change))
            if not seeds:
                continue
            own = [by_cell[shots, change, seed] for seed in seeds]
            both = [scores[f"{RECIPE}/both_strong"] for scores in own]
            # The best of the ways of training on real images alone, as the verdict has it.
            real = max(([scores[f"real/{kind}"] for scores in own] for kind in REAL), key=statistics.fmean)
            row: dict[str, Any] = {"shots": shots, "change": change, "seeds": len(seeds)}
            row |= {"real": _mean(real), "both": _mean(both)}
            row |= {"synthetic": _mean([scores[f"{RECIPE}/synthetic"] for scores in own])}
            row |= {"both_unadapted": _mean([scores[f"{PLAIN}/both_strong"] for scores in own])}
            row |= {"over_real": _gain(both, real)}
            row |= {"rejected": _mean([by_rejected[shots, change, seed] for seed in seeds])}
            default = [by_cell.get((shots, "as it is", seed)) for seed in seeds]
            if change != "as it is" and all(default):
                row |= {"over_default": _gain(both, [found[f"{RECIPE}/both_strong"] for found in default if found])}
            rows.append(row)
    return rows


def _mean(scores: Sequence[float]) -> float:
    return round(statistics.fmean(scores), 4)


def _gain(of: Sequence[float], minus: Sequence[float]) -> dict[str, float | None]:
    each = [one - other for one, other in zip(of, minus, strict=True)]
    error = round(statistics.stdev(each) / len(each) ** 0.5, 4) if len(each) > 1 else None
    return {"mean": _mean(each), "standard_error": error}


def markdown(rows: Iterable[dict[str, Any]]) -> str:
    """The rows as a table, in per cent and points."""
    head = (
        "change",
        "shots",
        "seeds",
        "real",
        "synthetic",
        "real + base",
        f"real + {RECIPE}",
        "over real",
        "over as it is",
    )
    lines = []
    for row in rows:
        means = [f"{100 * row[name]:.1f}" for name in ("real", "synthetic", "both_unadapted", "both")]
        gains = [_told(row.get(name)) for name in ("over_real", "over_default")]
        lines.append([row["change"], str(row["shots"]), str(row["seeds"]), *means, *gains])
    return paired.markdown(head, lines)


def _told(gain: dict[str, float | None] | None) -> str:
    if gain is None or gain["mean"] is None:
        return "–"
    error = gain["standard_error"]
    spread = "" if error is None else f" ± {100 * error:.1f}"
    return f"{100 * gain['mean']:+.1f}{spread}".replace("-", "−")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run from the command line; what was found."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    target = options.output / "causes.json"
    every = cells(yaml.safe_load(options.params.read_text(encoding="utf-8")), options)
    known = json.loads(target.read_text(encoding="utf-8"))["cells"] if target.is_file() else []
    # What was the default then may be a change now.
    wanted = {cell.made: cell.change for cell in every}
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.causes", *arguments]),
        "labels_per_class": options.labels,
        "changes": [],
        "cells": [record | {"change": wanted[record["made"]]} for record in known if record["made"] in wanted],
    }
    done = {record["made"] for record in report["cells"]}
    todo = [cell for cell in every if cell.made not in done]

    def keep(*records: dict[str, Any]) -> None:
        report["cells"] += records
        report["changes"] = summarise(report["cells"])
        write_json(target, report)
        atomic_write(target.with_suffix(".md"), markdown(report["changes"]))

    # A fresh interpreter each: torch's threads do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(options.jobs, device.keep_memory) as pool:
        for record in bar(pool.imap_unordered(run_cell, todo), total=len(todo), what="causes", unit="cell"):
            keep(record)
    keep()  # where nothing was left to do, too
    print(markdown(report["changes"]))
    return report


def _parser() -> argparse.ArgumentParser:
    default = [name for name, change in CHANGES.items() if "models.bundled.generator" not in change]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.causes", description=__doc__)
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml", help="parameter file")
    parser.add_argument("--shots", type=int, nargs="+", default=[4, 16], help="per class; default: 4 16")
    parser.add_argument("--seeds", type=span, default=range(100, 105), metavar="A-B", help="default: 100-104")
    parser.add_argument("--changes", nargs="+", choices=CHANGES, default=default, help="default: all of one base")
    parser.add_argument("--labels", type=int, default=20, help="images per class that score; default: 20")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once; cores are shared. Default: 1")
    parser.add_argument("--work", type=Path, default=ROOT / ".dreamset/causes", help="folder of what is going on")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="folder of causes.json")
    return parser


if __name__ == "__main__":
    main()

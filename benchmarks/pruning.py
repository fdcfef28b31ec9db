"""What pruning a study saves, and what it costs: ``python -m benchmarks.pruning``.

For every seed, which redraws shots, noise and study alike, one study per arm: TPE with Hyperband, with successive
halving and unpruned, and random search. Each winner's images are drawn from the seeds of ``generate``, which no trial
has used, and what they teach is scored on the test images once, by the ordinary stages. ``untuned`` is the recipe
without a study. A finished cell is recorded at once; the same command goes on where it was stopped, in the middle of a
study too.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import shlex
import shutil
import sys
import time
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
from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write, digest, read_json, write_json
from dreamset.core.progress import bar
from dreamset.core.workspace import Workspace
from dreamset.data import splits
from dreamset.data.runs import SYNTHETIC, Run
from dreamset.evaluate import scoring
from dreamset.weights.fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dreamset.params import Params

ROOT = Path(__file__).parents[1]
RECIPE = "stable_diffusion_tuned"
# The stages that a cell runs, and the module that scores its classifier.
MAKERS = (
    "dreamset.prepare",
    "dreamset.adapt",
    "dreamset.tune",
    "dreamset.generate",
    "dreamset.train",
    "dreamset.evaluate.scoring",
)
RUN = Run(RECIPE, SYNTHETIC, "resnet20")
PLAIN = "none"  # what the other arms are compared with
ARMS: dict[str, dict[str, str] | None] = {
    PLAIN: {"sampler": "tpe", "pruner": "none"},
    "hyperband": {"sampler": "tpe", "pruner": "hyperband"},
    "successive_halving": {"sampler": "tpe", "pruner": "successive_halving"},
    "random": {"sampler": "random", "pruner": "none"},
    "untuned": None,
}


@dataclass(frozen=True)
class Cell:
    """A study to run; ``folder`` is a project of its own, ``made`` the hash of all that its result rests on."""

    arm: str
    seed: int
    params: Params
    folder: Path
    made: str
    threads: int


def cells(raw: dict[str, Any], options: argparse.Namespace, seeds: Iterable[int]) -> list[Cell]:
    """Every arm at every seed, seed by seed, so that arms can be compared before all is done."""
    root, found = options.params.resolve().parent, []
    for seed in sorted(seeds):
        for arm in ARMS:
            own = _changed(raw, arm, seed, options)
            given = parameters.parse(own, classifiers.ROWS, str(options.params))
            made = fingerprint([given.setting((RECIPE,)), given.shots, seed], root, given.base, *MAKERS)
            row = own["models"][own["model"]]
            for kind in ("generator", "clip", "judge"):
                # A project of its own, so that no arm finds images that another has drawn: what they take is measured.
                if not row[kind].startswith(("hub:", "open_clip:")):
                    row[kind] = str(root / row[kind])
            params = parameters.parse(own, classifiers.ROWS, str(options.params))
            folder = options.work / f"{made[:12]}_{arm}_seed{seed}"
            found.append(Cell(arm, seed, params, folder, made, max(1, (os.cpu_count() or 1) // options.jobs)))
    return found


def _changed(raw: dict[str, Any], arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    own = copy.deepcopy(raw)
    own |= {"shots": options.shots, "seed": seed, "active": [RECIPE], "after": {}, "primary": RECIPE}
    own["models"][own["model"]]["retrieval"] = None
    own["train"] |= {"classifiers": [RUN.classifier], "baselines": []}
    own["track"]["uri"] = None
    chosen = ARMS[arm]
    if chosen is None:
        del own["recipes"][RECIPE]["search"]
    else:
        own["tune"] |= chosen | {"trials": options.trials, "objectives": "cas", "storage": "sqlite:///studies.db"}
    return own


def run_cell(cell: Cell) -> dict[str, Any]:
    """A study, its winner's images, and what they teach: the record of a cell."""
    from dreamset import tune

    torch.set_num_threads(cell.threads)
    params, workspace = cell.params, Workspace.at(cell.folder)
    began = time.monotonic()
    prepare.run(params, workspace)
    with audit.closed(workspace):
        adapt.run(params, workspace, RECIPE)
        tune.run(params, workspace, RECIPE)
        generate.run(params, workspace, RECIPE)
        train.run(params, workspace, RECIPE, (RUN.kind,))
    right = _right(params, workspace)
    study = read_json(workspace.result("tune", RECIPE), "python -m benchmarks.pruning")
    trials = study.get("trials", [])
    shutil.rmtree(cell.folder)
    return {
        "arm": cell.arm,
        "seed": cell.seed,
        "made": cell.made,
        "trials": len(trials),
        "counts": study.get("counts"),
        "best": study["best"],
        "images_drawn": sum(trial["images"] for trial in trials),
        "seconds": round(sum(trial["seconds"] for trial in trials), 1),
        "seconds_all": round(time.monotonic() - began, 1),
        "device": device.name(),
        **right,
    }


def _right(params: Params, workspace: Workspace) -> dict[str, Any]:
    """Which test images the classifier gets right that has learned from the winner's images alone."""
    images = scoring.Images(
        params, workspace, splits.read_split(workspace.splits), splits.read_test(workspace.test_split)
    )
    predictor = classifiers.load(workspace.classifiers(RECIPE) / RUN.folder)
    right = predictor.logits(images.test(predictor.size).images).argmax(1) == images.labels
    return {
        "images": len(right),
        "labels": digest(images.labels.tolist()),
        "right": {str(RUN): np.packbits(right).tobytes().hex()},
    }


def summarise(params: Params, records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for every arm: its test CAS, its difference to the unpruned study, and shares of what that one took.

    Differences and shares are over the seeds at which both are finished.
    """
    by_arm: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in ARMS}
    for record in records:
        by_arm[record["arm"]][record["seed"]] = record
    rows = []
    for arm, own in by_arm.items():
        if not own:
            continue
        row = {"arm": arm} | paired.accuracy([own[seed] for seed in sorted(own)], str(RUN))
        row["pruned"] = sum((record["counts"] or {}).get("pruned", 0) for record in own.values())
        pairs = [(own[seed], by_arm[PLAIN][seed]) for seed in sorted(own.keys() & by_arm[PLAIN].keys())]
        if arm != PLAIN and pairs:
            row |= paired.difference(params, pairs, str(RUN), str(RUN))
            if ARMS[arm] is not None:
                for name, of in (("share_of_images", "images_drawn"), ("share_of_seconds", "seconds")):
                    row[name] = round(sum(one[of] for one, _ in pairs) / sum(other[of] for _, other in pairs), 3)
        rows.append(row)
    return rows


def markdown(rows: Iterable[dict[str, Any]]) -> str:
    """The rows as a table, differences in points and the rest in per cent."""
    head = ("arm", *paired.HEAD, "over unpruned TPE (95 % interval)", "of its images", "of its seconds", "pruned")
    lines = []
    for row in rows:
        spread = "–" if row["sd"] is None else f"{100 * row['sd']:.1f}"
        shares = [f"{row[name]:.0%}" if name in row else "–" for name in ("share_of_images", "share_of_seconds")]
        compared = paired.told(row if "difference" in row else None)
        lines.append(
            [row["arm"], str(row["seeds"]), f"{100 * row['cas']:.1f}", spread, compared, *shares, str(row["pruned"])]
        )
    return paired.markdown(head, lines)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run from the command line; what was found."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    options = parser.parse_args(arguments)
    target = options.output / "studies.json"
    known = json.loads(target.read_text(encoding="utf-8"))["cells"] if target.is_file() else []
    raw = yaml.safe_load(options.params.read_text(encoding="utf-8"))
    try:
        every = cells(raw, options, {*options.seeds, *(record["seed"] for record in known)})
    except InputError as error:
        parser.error(str(error))
    current = {(cell.arm, cell.seed, cell.made) for cell in every}
    done = {(record["arm"], record["seed"], record["made"]) for record in known}
    if foreign := done - current:
        parser.error(
            f"{target}: {len(foreign)} of its cells are of other parameters, weights or code; name another --output, "
            "or remove it."
        )
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.pruning", *arguments]),
        "trials": options.trials,
        "shots": options.shots,
        "arms": [],
        "cells": known,
    }
    wanted = [cell for cell in every if cell.seed in options.seeds and cell.arm in options.arms]
    todo = [cell for cell in wanted if (cell.arm, cell.seed, cell.made) not in done]
    params = every[0].params

    def keep(record: dict[str, Any]) -> None:
        report["cells"].append(record)
        report["arms"] = summarise(params, report["cells"])
        write_json(target, report)
        atomic_write(target.with_suffix(".md"), markdown(report["arms"]))

    if options.jobs == 1:
        for cell in bar(todo, what="studies", unit="study"):
            keep(run_cell(cell))
    else:
        # A fresh interpreter each: torch's threads do not survive a fork.
        with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=1) as pool:
            for record in bar(pool.imap_unordered(run_cell, todo), total=len(todo), what="studies", unit="study"):
                keep(record)
    report["arms"] = summarise(params, report["cells"])
    print(markdown(report["arms"]))
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pruning", description=__doc__)
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml", help="parameter file")
    parser.add_argument("--seeds", type=span, default=range(5), metavar="A-B", help="default: 0-4")
    parser.add_argument("--trials", type=int, default=40, help="of each study; default: 40")
    parser.add_argument("--shots", type=int, default=16, help="per class; default: 16")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: all")
    parser.add_argument("--jobs", type=int, default=1, help="studies at once; cores are shared. Default: 1")
    parser.add_argument("--work", type=Path, default=ROOT / ".dreamset/pruning", help="folder of what is going on")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="folder of studies.json")
    return parser


if __name__ == "__main__":
    main()

"""What each way of making images teaches, without test images: ``python -m benchmarks.ways``.

Every row of ``recipes`` that needs no study, at 4 and 16 shots of the digits. ``selection: extra`` sets further images
apart beside the shots, by writers of their own; they score, and nothing is chosen by them. Beside the accuracies stand
the candidates that a filter threw out, near-copies of shots, FID, KID and seconds. Finished rows are found again, and
what earlier commands found of other shots, seeds and rows stays in the file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from benchmarks import apart, paired
from dreamset import adapt, classifiers, generate, prepare, train
from dreamset import params as parameters
from dreamset.command.parsing import span
from dreamset.core import audit, device
from dreamset.core.files import atomic_write, read_json, write_json
from dreamset.core.progress import bar
from dreamset.core.workspace import Workspace
from dreamset.data import arrays, runs, splits
from dreamset.metrics.compare import Reference
from dreamset.metrics.features import Judge
from dreamset.weights import judging

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = Path(__file__).parents[1]
# By classifier, how it learns from the real images alone and with synthetic ones. Only networks that are trained from
# scratch have a strong augmentation of their own.
CLASSIFIERS = {"resnet20": (runs.REAL_STRONG, runs.BOTH_STRONG), "clip_lora": (runs.REAL_ONLY, runs.BOTH)}
PLAIN = "stable_diffusion"


def rows(raw: dict[str, Any]) -> list[str]:
    """Return the rows that run by themselves: no study, and no other recipe before them."""
    wanted = [name for name, row in raw["recipes"].items() if "search" not in row and row["adapter"] != "unet"]
    return sorted(wanted, key=lambda name: name != PLAIN)


def cell(raw: dict[str, Any], shots: int, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the records of all rows, the real images first, at one number of shots and one seed."""
    torch.set_num_threads(options.threads)
    own = apart.changed(raw, seed, shots, options.labels, options.rows, [*CLASSIFIERS])
    params = apart.parsed(own | {"primary": PLAIN}, options.params)
    workspace = Workspace(options.params.resolve().parent, options.work / f"{shots}_shots_seed{seed}")
    finished = {arm: workspace.cell / f"ways/{arm}.json" for arm in (runs.REAL, *params.active)}
    if not all(path.is_file() for path in finished.values()):
        prepare.run(params, workspace)
    with audit.closed(workspace):
        for arm, path in finished.items():
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, {"shots": shots, "seed": seed, "arm": arm} | one(params, workspace, arm))
    return [dict(read_json(path, "python -m benchmarks.ways")) for path in finished.values()]


def one(params: parameters.Params, workspace: Workspace, arm: str) -> dict[str, Any]:
    """Return what one arm teaches, and what it costs."""
    record: dict[str, Any] = {"device": device.name(), "seconds": {}}
    if arm != runs.REAL:
        for stage, run in (("adapt", adapt.run), ("generate", generate.run)):
            started = time.perf_counter()
            made = run(params, workspace, arm)
            record["seconds"][stage] = round(time.perf_counter() - started, 1)
        record |= {"images": made["images"], "candidates": made["drawn"], "filter": made.get("filter")}
        record |= _set(params, workspace, arm)
    started = time.perf_counter()
    record["scores"] = {}
    for name, kinds in CLASSIFIERS.items():
        alone = dataclasses.replace(params, train=dataclasses.replace(params.train, classifiers=(name,)))
        for row in train.run(alone, workspace, arm, (*kinds, runs.SYNTHETIC))["runs"]:
            record["scores"][f"{row['train_on']}/{row['classifier']}"] = row["selection_curve"][-1]["accuracy"]
    record["seconds"]["train"] = round(time.perf_counter() - started, 1)
    return record


def _set(params: parameters.Params, workspace: Workspace, recipe: str) -> dict[str, Any]:
    """Return FID, KID and near-copies of a recipe's images; the images that score are the reference."""
    judge, split = Judge(judging.find(workspace.root, params.base)), splits.read_split(workspace.splits)
    side = min(judge.size, classifiers.finest(split.native, params.base.resolution))
    shots = arrays.real(split.train, workspace.cell, side, workspace.scratch)
    scored = arrays.real(split.selection, workspace.cell, side, workspace.scratch)
    reference = Reference(params, judge, split, shots, scored, [sample.group for sample in split.selection])
    drawn = arrays.synthetic(workspace.synthetic(recipe), split, side)
    found = reference.compare(drawn).record
    return {"fid": found["fid"], "kid": found["kid"], "near_copies": found["near_duplicates"]["count"]}


def merged(earlier: Iterable[dict[str, Any]], found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return records in the order of shots and seeds: what was found, and what earlier commands found elsewhere."""
    kept = {(one["shots"], one["seed"], one["arm"]): one for records in (earlier, found) for one in records}
    return sorted(kept.values(), key=lambda one: (one["shots"], one["seed"]))


def summarise(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for every number of shots and arm: means over seeds, and gains over the real images, paired."""
    by_cell = {(one["shots"], one["seed"], one["arm"]): one for one in records}
    found = []
    for shots, arm in dict.fromkeys((shots, arm) for shots, _, arm in by_cell):
        own = {seed: one for (k, seed, name), one in by_cell.items() if (k, name) == (shots, arm)}
        row: dict[str, Any] = {"shots": shots, "arm": arm, "seeds": len(own)}
        row["scores"] = {
            run: round(statistics.fmean(one["scores"][run] for one in own.values()), 4)
            for run in next(iter(own.values()))["scores"]
        }
        for name, (real, both) in CLASSIFIERS.items() if arm != runs.REAL else ():
            gains = [
                one["scores"][f"{both}/{name}"] - by_cell[shots, seed, runs.REAL]["scores"][f"{real}/{name}"]
                for seed, one in own.items()
            ]
            error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else None
            row[f"gain_{name}"] = [round(statistics.fmean(gains), 4), None if error is None else round(error, 4)]
        for name in ("fid", "kid", "near_copies", "images", "candidates"):
            values = [one[name] for one in own.values() if one.get(name) is not None]
            if name == "candidates" and not all(one.get("filter") for one in own.values()):
                values = []  # there a number below that of the images is of those that copies were made of
            row[name] = round(statistics.fmean(values), 4) if values else None
        # The median: a machine that was busy at one seed says nothing of the row.
        row["seconds"] = round(statistics.median(sum(one["seconds"].values()) for one in own.values()), 1)
        found.append(row)
    return found


def markdown(found: Iterable[dict[str, Any]]) -> str:
    """Return the rows as a table, in per cent and points."""
    head = ("shots", "recipe", "CAS", "both", "gain", "CLIP: both", "CLIP: gain")
    head = (*head, "thrown out", "near-copies", "FID", "KID", "seconds")
    lines = []
    for row in found:
        scores, real = row["scores"], row["arm"] == runs.REAL
        alone = "" if real else f"{100 * scores[f'{runs.SYNTHETIC}/resnet20']:.1f}"
        cells = [str(row["shots"]), "(real images)" if real else row["arm"], alone]
        for name, kinds in CLASSIFIERS.items():
            cells += [f"{100 * scores[f'{kinds[not real]}/{name}']:.1f}", "" if real else _gain(row[f"gain_{name}"])]
        if real:
            lines.append([*cells, "", "", "", "", f"{row['seconds']:.0f}"])
            continue
        thrown = 1 - row["images"] / row["candidates"] if row["candidates"] else 0.0
        share = row["near_copies"] / row["images"]
        cells += [f"{100 * thrown:.0f} %" if thrown > 0 else "", f"{100 * share:.0f} %"]
        kid = f"{row['kid']:.3f}".replace("-", "−")
        lines.append([*cells, f"{row['fid']:.1f}", kid, f"{row['seconds']:.0f}"])
    return paired.markdown(head, lines)


def _gain(gain: Sequence[float | None]) -> str:
    mean, error = gain
    assert mean is not None
    spread = "" if error is None else f" ± {100 * error:.1f}"
    return f"{100 * mean:+.1f}{spread}".replace("-", "−")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run from the command line, and return what was found."""
    arguments = sys.argv[1:] if arguments is None else arguments
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    options = _parser(rows(raw)).parse_args(arguments)
    raw = yaml.safe_load(options.params.read_text(encoding="utf-8"))
    wanted = [(raw, shots, seed, options) for seed in options.seeds for shots in options.shots]
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.jobs, maxtasksperchild=1) as pool:
        each = [pool.apply_async(cell, one) for one in wanted]
        cells = [one.get() for one in bar(each, what="ways", unit="cell")]
    command, path = shlex.join(["python", "-m", "benchmarks.ways", *arguments]), options.output / "ways.json"
    found = [record for records in cells for record in records]
    earlier = dict(read_json(path, "python -m benchmarks.ways")) if path.is_file() else {"commands": [], "cells": []}
    report: dict[str, Any] = {"commands": [*dict.fromkeys([*earlier["commands"], command])]}
    report["cells"] = merged(earlier["cells"], found)
    report["rows"] = summarise(report["cells"])
    write_json(path, report)
    atomic_write(options.output / "ways.md", markdown(report["rows"]))
    print(json.dumps(report["rows"], indent=1), markdown(report["rows"]), sep="\n")
    return report


def _parser(names: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ways", description=__doc__)
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml", help="parameter file")
    parser.add_argument("--rows", nargs="+", choices=names, default=names, help="default: all that need no study")
    parser.add_argument("--shots", nargs="+", type=int, default=[4, 16], help="per class; default: 4 and 16")
    parser.add_argument("--seeds", type=span, default=range(3), metavar="A-B", help="default: 0-2")
    parser.add_argument("--labels", type=int, default=20, help="images per class that score; default: 20")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cells at once; default: one per core")
    parser.add_argument("--threads", type=int, default=1, help="of each job; default: 1")
    parser.add_argument("--work", type=Path, default=ROOT / ".dreamset/ways", help="folder of what is going on")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="folder of ways.json")
    return parser


if __name__ == "__main__":
    main()

"""Which rule picks the best classifier by folds of the shots, without test images: ``python -m benchmarks.simple``.

In each cell the shots are drawn, and beside them further labelled images (``selection: extra``) that only score. Every
candidate that needs no synthetic images predicts the shots out of their folds. Each rule picks one candidate by these
predictions alone. The table says how many of the further images the picked ones get right, in the mean over cells. It
also says so of the penalties of logistic regression.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
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
from dreamset import classifiers, prepare, train
from dreamset import params as parameters
from dreamset.classifiers import calibration, simple_fit
from dreamset.classifiers.parts import Part
from dreamset.command.parsing import span
from dreamset.core import device
from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write, write_json
from dreamset.core.progress import bar
from dreamset.core.workspace import Workspace
from dreamset.data import arrays, folds
from dreamset.data.runs import REAL, REAL_ONLY, REAL_STRONG, Run
from dreamset.data.splits import read_split
from dreamset.metrics import best
from dreamset.weights.fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dreamset.params import Params

ROOT = Path(__file__).parents[1]
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)
SETS: dict[str, dict[str, Any]] = {
    "digits": {"selection": "extra:20"},
    # Of the people who may be learned from, six in ten write the shots, the others the images that score.
    "letters": {
        "selection": "extra:4",
        "prepare.test_share": 0.4,
        "prepare.template": "a photo of the letter small {class}",
    },
}


@dataclass(frozen=True)
class Cell:
    """A set of images at one number of shots and one seed; ``made`` is the hash of all that its scores rest on."""

    name: str
    shots: int
    seed: int
    params: Params
    workspace: Workspace
    made: str


def cells(raw: dict[str, Any], options: argparse.Namespace) -> list[Cell]:
    """Every set at every number of shots and seed, seed by seed."""
    root, found = options.params.resolve().parent, []
    for seed in options.seeds:
        for name, shots in (("digits", 4), ("digits", 16), ("letters", 4)):
            if name == "letters" and options.letters is None:
                continue
            own = copy.deepcopy(raw) | {"shots": shots, "seed": seed, "active": ["stable_diffusion"], "after": {}}
            network = ["linear_probe"] if options.quick else ["resnet20"]
            own["train"] |= {"classifiers": network, "baselines": ["linear_probe"], "selections": 1}
            own["train"] |= {"configurations": 1, "scales": []}
            own["track"]["uri"] = None
            source = {} if name == "digits" else {"prepare.source": f"csv:{options.letters}"}
            for path, value in {**SETS[name], **source}.items():
                *levels, last = path.split(".")
                place = own
                for level in levels:
                    place = place[level]
                place[last] = value
            params = parameters.parse(own, classifiers.ROWS, str(options.params))
            setting = [name, params.setting(()), shots, seed, params.selection, params.train.simple, PENALTIES]
            made = fingerprint(setting, root, params.base, "dreamset.prepare", "dreamset.train")
            found.append(Cell(name, shots, seed, params, Workspace(root, options.work / made[:16]), made))
    return found


def run_cell(cell: Cell) -> dict[str, Any] | None:
    """Fit and train all candidates: what each got right, of the shots out of folds and of the further images.

    None where the people who wrote the shots cannot be divided into folds.
    """
    torch.set_num_threads(1)
    params, workspace = cell.params, cell.workspace
    prepare.run(params, workspace)
    try:
        folds.held_out(read_split(workspace.splits), folds.SELECTING, "selection")
    except InputError:
        return None
    network = params.train.classifiers[0] == "resnet20"
    train.run(params, workspace, REAL, (REAL_ONLY, *([REAL_STRONG] if network else ())))
    split = read_split(workspace.splits)
    labels = np.array([sample.label for sample in split.train], np.int64)
    wanted = [Run(REAL, REAL_STRONG, "resnet20")] if network else []
    wanted += [Run(REAL, REAL_ONLY, "linear_probe")]
    wanted += [Run(REAL, REAL_ONLY, name) for name in params.train.simple_classifiers]
    logits = train.held_out(params, workspace, wanted)
    candidates = {}
    for run in wanted:
        predictor = classifiers.load(workspace.classifiers(REAL) / run.folder)
        side = classifiers.side_of(predictor.classifier, params.base.resolution)
        further = arrays.real(split.selection, workspace.cell, side)
        scores = logits[run] / calibration.fit_temperature(logits[run], labels)
        candidates[str(run)] = {
            "right": np.packbits(logits[run].argmax(1) == labels).tobytes().hex(),
            "nll": round(calibration.nll(scores, labels), 4),
            "further": round(float((predictor.logits(further.images).argmax(1) == further.labels).mean()), 4),
        }
    facts = {"name": cell.name, "shots": cell.shots, "seed": cell.seed, "made": cell.made, "device": device.name()}
    facts |= {"images": len(labels), "further": len(split.selection), "folds": folds.SELECTING}
    return facts | {"candidates": candidates, "penalties": _penalties(cell, labels)}


def _penalties(cell: Cell, labels: np.ndarray) -> dict[str, dict[str, float]]:
    """By features and penalty, the share of the further images that logistic regression gets right."""
    part = Part(cell.params, cell.workspace, read_split(cell.workspace.splits), REAL, cell.workspace.shards)
    shots, found = simple_fit.Shots(part), {}
    for name in cell.params.train.simple:
        network, features = shots.features(name)
        side = classifiers.side_of(network, cell.params.base.resolution)
        further = arrays.real(part.split.selection, cell.workspace.cell, side)
        x = torch.from_numpy(simple_fit.features_of(network, further.images))
        found[name] = {}
        for c in PENALTIES:
            guess = simple_fit.fit("logistic", features[0], labels, c, 0)(x).argmax(1).numpy()
            found[name][f"{c:g}"] = round(float((guess == further.labels).mean()), 4)
    return found


def rules() -> dict[str, Callable[[dict[str, Any]], str]]:
    """By name, what picks a candidate of a cell."""

    def right(cell: dict[str, Any]) -> dict[str, np.ndarray]:
        bits = {run: found["right"] for run, found in cell["candidates"].items()}
        return {run: paired.unpacked({"right": bits, "images": cell["images"]}, run) for run in bits}

    def loss(cell: dict[str, Any], run: str) -> float:
        return float(cell["candidates"][run]["nll"])

    def by_accuracy(cell: dict[str, Any]) -> str:
        scores = right(cell)
        return max(scores, key=lambda run: scores[run].mean())

    def by_loss(cell: dict[str, Any]) -> str:
        return min(cell["candidates"], key=lambda run: loss(cell, run))

    def then_loss(cell: dict[str, Any]) -> str:
        scores = right(cell)
        return max(scores, key=lambda run: (scores[run].mean(), -loss(cell, run)))

    def near(cell: dict[str, Any]) -> list[str]:
        scores = right(cell)
        top = scores[then_loss(cell)]
        ordered = sorted(scores, key=lambda run: (-scores[run].mean(), loss(cell, run)))
        return [run for run in ordered if behind(top, scores[run]) <= 1]

    def preferred(wanted: Callable[[str], bool]) -> Callable[[dict[str, Any]], str]:
        return lambda cell: next(filter(wanted, near(cell)), then_loss(cell))

    network = f"{REAL}/{REAL_STRONG}/resnet20"
    return {
        "always the network trained from scratch": lambda cell: network,
        "most right": by_accuracy,
        "most right, then least loss": then_loss,
        "least loss": by_loss,
        "least loss within one standard error of the most right": lambda cell: min(
            near(cell), key=lambda run: loss(cell, run)
        ),
        "the network, where within one standard error": preferred(lambda run: run == network),
        "a simple one, where within one standard error": preferred(lambda run: best.is_simple(run.rpartition("/")[2])),
        "(no rule: the best by the further images)": lambda cell: max(
            cell["candidates"], key=lambda run: cell["candidates"][run]["further"]
        ),
    }


def behind(top: np.ndarray, other: np.ndarray) -> float:
    """By how many standard errors of the paired difference ``other`` (n,) lies behind ``top`` (n,), both 0 or 1."""
    difference = top - other
    # One pair more each way, so that the error is above zero.
    n = len(difference) + 2
    variance = (float((difference**2).sum()) + 2) / n - (float(difference.sum()) / n) ** 2
    return max(0.0, float(difference.mean())) / (variance / n) ** 0.5


def summarise(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By rule, candidate and penalty, the mean share of the further images that are right, by set and shots."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(f"{record['name']}, {record['shots']} shots", []).append(record)

    def means(value: Callable[[dict[str, Any]], float]) -> dict[str, float]:
        by_group = {name: round(statistics.fmean(map(value, group)), 4) for name, group in sorted(groups.items())}
        return by_group | {"all": round(statistics.fmean(by_group.values()), 4)}

    picks = rules()
    if f"{REAL}/{REAL_STRONG}/resnet20" not in records[0]["candidates"]:
        picks = {name: pick for name, pick in picks.items() if "network" not in name}
    names = list(dict.fromkeys(run for record in records for run in record["candidates"]))
    tried = [(features, c) for features in records[0]["penalties"] for c in records[0]["penalties"][features]]
    return {
        "seeds": {name: len(group) for name, group in sorted(groups.items())},
        "rules": {
            name: means(lambda cell, pick=pick: cell["candidates"][pick(cell)]["further"])
            for name, pick in picks.items()
        },
        "candidates": {run: means(lambda cell, run=run: cell["candidates"][run]["further"]) for run in names},
        "penalties": {
            f"{features}, C {c}": means(lambda cell, f=features, c=c: cell["penalties"][f][c]) for features, c in tried
        },
    }


def markdown(summary: dict[str, Any]) -> str:
    """The three tables, in per cent."""
    groups = [*summary["seeds"], "all"]
    parts = []
    for title in ("rules", "candidates", "penalties"):
        rows = [[name, *(f"{100 * found[group]:.1f}" for group in groups)] for name, found in summary[title].items()]
        parts.append(paired.markdown((title, *groups), rows))
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run from the command line; what was found."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    target = options.output / "simple.json"
    every = cells(yaml.safe_load(options.params.read_text(encoding="utf-8")), options)
    known = json.loads(target.read_text(encoding="utf-8"))["cells"] if target.is_file() else []
    wanted = {cell.made for cell in every}
    found = [record for record in known if record["made"] in wanted]
    done = {record["made"] for record in found}
    report: dict[str, Any] = {}

    def keep(records: Iterable[dict[str, Any] | None]) -> None:
        for record in records:
            if record is not None:
                found.append(record)
                write()

    def write() -> None:
        report.update({"command": shlex.join(["python", "-m", "benchmarks.simple", *arguments])})
        report.update({"summary": summarise(found), "cells": found})
        write_json(target, report)
        atomic_write(target.with_suffix(".md"), markdown(report["summary"]))

    todo = [cell for cell in every if cell.made not in done]
    with multiprocessing.get_context("spawn").Pool(options.jobs, device.keep_memory) as pool:
        keep(bar(pool.imap_unordered(run_cell, todo), total=len(todo), what="simple", unit="cell"))
    if found:
        write()
        print(markdown(report["summary"]))
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simple", description=__doc__)
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml", help="parameter file")
    parser.add_argument("--letters", type=Path, help="list of letters and their writers; default: none")
    parser.add_argument("--seeds", type=span, default=range(100, 105), metavar="A-B", help="default: 100-104")
    parser.add_argument("--quick", action="store_true", help="leave out the network that is trained from scratch")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once. Default: 1")
    parser.add_argument("--work", type=Path, default=ROOT / ".dreamset/simple", help="folder of what is going on")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="folder of simple.json")
    return parser


if __name__ == "__main__":
    main()

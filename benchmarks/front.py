"""What few-step drawing costs in CAS, without test images: ``python -m benchmarks.front``.

One adapter of ``datadream_dset`` for each data set and seed, then the same images per class drawn by each sampler: the
base in 20, 5 and 3 steps, and its student in 4, 2 and 1. CAS is the accuracy of a ResNet-20, trained on the drawn
images alone, on images that ``selection: extra`` sets apart beside the shots; of the letters these are by other people.
Beside it stand FID, coverage and recall on the same images. Finished arms are found again, and
what earlier commands found of other seeds and samplers stays in the file. Images per second are measured in turn, in
one run, beside those of an earlier commit (``--before``).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shlex
import shutil
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from benchmarks import apart, clones, paired
from benchmarks.strength import DATA
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
RECIPE = "datadream_dset"
# By name, what of the recipe's sampler differs from the model's row; the first is what the others are compared with.
SAMPLERS: dict[str, dict[str, Any]] = {
    "base, 20 steps": {"student": False, "steps": 20},
    "base, 5 steps": {"student": False, "steps": 5},
    "base, 3 steps": {"student": False, "steps": 3},
    "student, 4 steps": {"student": True, "steps": 4},
    "student, 2 steps": {"student": True, "steps": 2},
    "student, 1 step": {"student": True, "steps": 1},
}
FIRST = next(iter(SAMPLERS))
FEW = 50  # images per class of the shorter drawing


def cell(raw: dict[str, Any], data: str, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the record of each sampler, for one data set and seed."""
    torch.set_num_threads(options.threads)
    own = _own(raw, data, seed, options)
    params = parameters.parse(own, classifiers.ROWS, str(options.params))
    workspace = Workspace(options.params.resolve().parent, options.work / f"{data}_seed{seed}")
    paths = {name: workspace.cell / f"front/{arm}.json" for name, arm in _arms(options.samplers).items()}
    if not all(path.is_file() for path in paths.values()):
        prepare.run(params, workspace)
    with audit.closed(workspace):
        for name, path in paths.items():
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                record = one(params, workspace, _arms(options.samplers)[name])
                write_json(path, {"data": data, "seed": seed, "sampler": name} | record)
    return [dict(read_json(path, "python -m benchmarks.front")) for path in paths.values()]


def _arms(samplers: Iterable[str]) -> dict[str, str]:
    """Return the recipe of each sampler."""
    return {name: "front_" + name.replace(", ", "_").replace(" ", "_") for name in samplers}


def _own(raw: dict[str, Any], data: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the parameters of a cell."""
    labels, prepared = DATA[data]
    arms = _arms(options.samplers)
    own = apart.changed(raw, seed, options.shots, labels, [*arms.values()])
    own["recipes"] |= {arm: own["recipes"][RECIPE] | {"sampler": SAMPLERS[name]} for name, arm in arms.items()}
    if data != "digits":
        own["prepare"] |= prepared | {"source": f"csv:{(options.data / data / 'list.csv').resolve()}"}
    return own


def one(params: parameters.Params, workspace: Workspace, arm: str) -> dict[str, Any]:
    """Return the CAS of one arm, and how its images compare with those that score."""
    adapt.run(params, workspace, arm)
    made = generate.run(params, workspace, arm)
    trained = train.run(params, workspace, arm, (runs.SYNTHETIC,))["runs"]
    judge, split = Judge(judging.find(workspace.root, params.base)), splits.read_split(workspace.splits)
    side = min(judge.size, classifiers.finest(split.native, params.base.resolution))
    shots = arrays.real(split.train, workspace.cell, side, workspace.scratch)
    scored = arrays.real(split.selection, workspace.cell, side, workspace.scratch)
    reference = Reference(params, judge, split, shots, scored, [sample.group for sample in split.selection])
    found = reference.compare(arrays.synthetic(workspace.synthetic(arm), split, side)).record
    return {
        "cas": trained[0]["selection_curve"][-1]["accuracy"],
        "scored": len(split.selection),
        "images": made["images"],
        "device": device.name(),
    } | {name: found[name] for name in ("fid", "coverage", "recall")}


def speeds(raw: dict[str, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the images per second of every sampler, and of an earlier commit, several times in turn.

    Each is a project of its own, a clone of the last commit or of the earlier one, that runs the commands of a user.
    The seconds of a drawing of few images are taken from those of many: what is left is of the further images, with
    their encoding and writing.
    """
    arms, taken = _arms(options.samplers), dict[str, list[float]]()
    commits = {"now": "HEAD"} | ({"before": options.before} if options.before else {})
    for name, commit in commits.items():
        place = options.work / name
        if (place / "results/adapt").is_dir():
            continue
        shutil.rmtree(place, ignore_errors=True)
        cloned = clones.clone(place, commit)
        theirs = copy.deepcopy(raw) if name == "now" else cloned
        if name == "now":
            theirs["recipes"] |= {
                arm: theirs["recipes"][RECIPE] | {"sampler": SAMPLERS[at]} for at, arm in arms.items()
            }
        theirs |= {"active": [RECIPE, *(arms.values() if name == "now" else ())], "after": {}, "primary": RECIPE}
        theirs["track"]["uri"] = None
        clones.write(place, theirs)
        clones.command(place, options.threads, "prepare")
        for recipe in theirs["active"]:
            clones.command(place, options.threads, "adapt", recipe)
    for _ in range(options.turns):
        if options.before:
            taken.setdefault("before", []).append(_speed(options.work / "before", RECIPE, options))
        for sampler, arm in arms.items():
            taken.setdefault(sampler, []).append(_speed(options.work / "now", arm, options))
    first = statistics.median(taken["before" if options.before else FIRST])
    return [
        {
            "sampler": name,
            "images_per_s": round(statistics.median(values), 1),
            "each": [round(value, 1) for value in values],
            "times": round(statistics.median(values) / first, 2),
        }
        for name, values in taken.items()
    ]


def _speed(place: Path, recipe: str, options: argparse.Namespace) -> float:
    """Return the images per second of the further images of a recipe."""
    seconds, file = [], place / "params.yaml"
    for per_class in (FEW, FEW + options.drawn):
        # Nothing that was drawn before is found again; the adapters are.
        for part in ("images", "shards"):
            shutil.rmtree(place / ".dreamset" / part, ignore_errors=True)
        changed = yaml.safe_load(file.read_text(encoding="utf-8"))
        changed["generate"]["per_class"] = per_class
        clones.write(place, changed)
        seconds.append(clones.command(place, options.threads, "generate", recipe))
    classes = len(splits.read_split(Workspace(place, place).splits).classes)
    return classes * options.drawn / (seconds[1] - seconds[0])


def merged(earlier: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records of earlier commands and of this one, which replaces those of the same cell and sampler."""
    by_cell = {(one["data"], one["seed"], one["sampler"]): one for one in (*earlier, *found)}
    order = {name: index for index, name in enumerate(SAMPLERS)}
    return [by_cell[key] for key in sorted(by_cell, key=lambda key: (key[0], key[1], order[key[2]]))]


def summarise(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for every data set and sampler: means over seeds, and the paired difference to the first."""
    by_cell = {(one["data"], one["seed"], one["sampler"]): one for one in records}
    rows = []
    for data, sampler in dict.fromkeys((data, sampler) for data, _, sampler in by_cell):
        own = {seed: one for (kind, seed, name), one in by_cell.items() if (kind, name) == (data, sampler)}
        row: dict[str, Any] = {"data": data, "sampler": sampler, "seeds": len(own)}
        for name in ("cas", "fid", "coverage", "recall"):
            row[name] = round(statistics.fmean(one[name] for one in own.values()), 4)
        gains = [one["cas"] - by_cell[data, seed, FIRST]["cas"] for seed, one in own.items() if sampler != FIRST]
        row["difference"] = paired.interval(gains) if len(gains) > 1 else None
        rows.append(row)
    return rows


def markdown(rows: Iterable[dict[str, Any]], measured: Iterable[dict[str, Any]]) -> str:
    """Return the rows as a table, in per cent and points."""
    fast = {row["sampler"]: row for row in measured}
    head = ("data", "drawn by", "seeds", "CAS", "against the first", "FID", "coverage", "recall", "images/s", "times")
    lines = []
    for row in rows:
        told, speed = paired.told(row["difference"]), fast.get(row["sampler"])
        figures = [
            f"{100 * row['cas']:.1f}",
            told,
            f"{row['fid']:.1f}",
            f"{row['coverage']:.2f}",
            f"{row['recall']:.2f}",
        ]
        quick = ["", ""] if speed is None else [f"{speed['images_per_s']:.0f}", f"{speed['times']:.1f}"]
        lines.append([row["data"], row["sampler"], str(row["seeds"]), *figures, *quick])
    return paired.markdown(head, lines)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run from the command line, and return what was found."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    raw = yaml.safe_load(options.params.read_text(encoding="utf-8"))
    wanted = [(data, seed) for seed in options.seeds for data in options.sets]
    command, path = shlex.join(["python", "-m", "benchmarks.front", *arguments]), options.output / "front.json"
    earlier = dict(read_json(path, "python -m benchmarks.front")) if path.is_file() else {}
    found = [cell(raw, data, seed, options) for data, seed in bar(wanted, what="front", unit="cell")]
    report: dict[str, Any] = {"commands": [*dict.fromkeys([*earlier.get("commands", ()), command])]}
    report["cells"] = merged(earlier.get("cells", ()), [record for records in found for record in records])
    report["rows"] = summarise(report["cells"])
    report["speed"] = speeds(raw, options) if options.turns else earlier.get("speed", [])
    write_json(path, report)
    atomic_write(options.output / "front.md", markdown(report["rows"], report["speed"]))
    print(json.dumps(report["speed"], indent=1), markdown(report["rows"], report["speed"]), sep="\n")
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.front", description=__doc__)
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml", help="parameter file")
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data", help="folder of the sets of letters")
    parser.add_argument(
        "--sets", nargs="+", choices=DATA, default=["digits", "omniglot-latin-28"], help="default: both"
    )
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS), help="default: all")
    parser.add_argument("--shots", type=int, default=4, help="per class; default: 4")
    parser.add_argument("--seeds", type=span, default=range(300, 310), metavar="A-B", help="default: 300-309")
    parser.add_argument("--turns", type=int, default=3, help="of the measurement of speed; 0: none; default: 3")
    parser.add_argument("--drawn", type=int, default=150, help="further images per class of it; default: 150")
    parser.add_argument("--before", help="an earlier commit, whose speed is 1; default: the first sampler's is")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: all cores")
    parser.add_argument("--work", type=Path, default=ROOT / ".dreamset/front", help="folder of what is going on")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="folder of front.json")
    return parser


if __name__ == "__main__":
    main()

"""Do studies leave a recipe worse than its own values? ``python -m benchmarks.choices``.

Each study searches guidance, steps and scheduler of ``stable_diffusion_tuned`` on digits, and sees a part of the images
that ``selection: extra`` sets apart. The rest of these say afterwards what the values are worth: CAS from noise and
initial weights that neither the trials nor the finalists had, a mean of several repetitions. Three ways to choose are
compared on the same trials: the highest CAS, the first look (one standard error), and both looks. No test image has a
part. Finished studies are found again, and what earlier commands found of other seeds stays in the file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
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
from dreamset import adapt, prepare, tune
from dreamset.command.parsing import span
from dreamset.core import audit, device
from dreamset.core.files import atomic_write, read_json, write_json
from dreamset.core.progress import bar
from dreamset.core.workspace import Workspace
from dreamset.data import folds, splits
from dreamset.data.work import Work
from dreamset.study.choice import choose
from dreamset.study.objective import Holdout

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dreamset.data.splits import Sample, Split
    from dreamset.params import Params

ROOT = Path(__file__).parents[1]
RECIPE = "stable_diffusion_tuned"
# By way to choose: what it is called in the table.
WAYS = {"highest": "the highest CAS", "first": "one look", "both": "both looks"}
_APART = 1000  # repetitions from here on are neither the trials' nor the finalists'


def cell(raw: dict[str, Any], seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the record of one study: by way to choose, the values and what they are worth over the row's own."""
    torch.set_num_threads(options.threads)
    own = apart.changed(raw, seed, options.shots, options.seen + options.scored, [RECIPE])
    own["tune"] |= {"trials": options.trials, "objectives": "cas", "rescored": options.rescored}
    own["tune"]["storage"] = f"sqlite:///{(options.work / f'seed{seed}.db').resolve()}"
    params = apart.parsed(own, options.params)
    workspace = Workspace(options.params.resolve().parent, options.work / f"seed{seed}")
    path = workspace.cell / "choices.json"
    if not path.is_file():
        prepare.run(params, workspace)
        split = splits.read_split(workspace.splits)
        seen, others = divided(split, options.seen)
        splits.write_split(workspace.splits, dataclasses.replace(split, selection=seen))
        started = time.perf_counter()
        with audit.closed(workspace):
            adapt.run(params, workspace, RECIPE)
            tune.run(params, workspace, RECIPE)
            record = judged(params, workspace, others, options.repetitions)
        seconds = round(time.perf_counter() - started, 1)
        write_json(path, {"seed": seed, "device": device.name(), "seconds": seconds} | record)
    return dict(read_json(path, "python -m benchmarks.choices"))


def divided(split: Split, seen: int) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Return the first images of each class that were set apart, for the study, and the others."""
    counts: dict[int, int] = {}
    parts: tuple[list[Sample], list[Sample]] = [], []
    for sample in split.selection:
        counts[sample.label] = counts.get(sample.label, 0) + 1
        parts[counts[sample.label] > seen].append(sample)
    return tuple(parts[0]), tuple(parts[1])


def judged(params: Params, workspace: Workspace, others: tuple[Sample, ...], repetitions: int) -> dict[str, Any]:
    """Return what each way chooses, and the accuracy of these values on the images that the study has not seen."""
    record = read_json(workspace.result("tune", RECIPE), "python -m benchmarks.choices")
    by_number = {trial["number"]: trial["params"] for trial in record["trials"]}
    first = choose(record["trials"], record["default"]["values"], "cas")
    assert first is not None
    numbers = {"highest": first["highest"], "first": first["chosen"], "both": record["choice"]["chosen"]}
    objective = tune.objective(Work.read(params, workspace, RECIPE))
    scored = folds.absolute(others, workspace)
    worth: dict[int, list[float]] = {}
    for number in dict.fromkeys((first["own"], *numbers.values())):
        for repetition in range(_APART, _APART + repetitions):
            fresh = objective.repeated(repetition)
            fresh.holdouts = [Holdout(fresh.holdouts[0].split, scored)]
            right = fresh.again(by_number[number])
            worth.setdefault(number, []).append(right.count("1") / len(right))
    return {
        "own": first["own"],
        "chosen": numbers,
        "values": {str(number): by_number[number] for number in worth},
        "worth": {str(number): [round(each, 4) for each in shares] for number, shares in worth.items()},
        "scored": len(scored),
        "seen": record["selection"]["images"],
        "again": record["choice"].get("again"),
    }


def summarise(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for every way to choose: how often it left the own values, was worse by it, and the mean gain."""
    rows = []
    for way in WAYS:
        gains, left = [], 0
        for record in records:
            own, chosen = record["own"], record["chosen"][way]
            left += chosen != own
            gains.append(statistics.fmean(record["worth"][str(chosen)]) - statistics.fmean(record["worth"][str(own)]))
        row = {"way": way, "studies": len(records), "left": left, "worse": sum(gain < -1e-9 for gain in gains)}
        row |= {"gain": round(statistics.fmean(gains), 4), "worst": round(min(gains), 4)}
        rows.append(row | {"difference": paired.interval(gains) if len(gains) > 1 else None})
    return rows


def markdown(rows: Iterable[dict[str, Any]]) -> str:
    """Return the rows as a table, gains in points."""
    head = ("chosen by", "studies", "left the own values", "and were worse", "gain over them (95 % interval)", "worst")
    lines = [
        [
            WAYS[row["way"]],
            str(row["studies"]),
            str(row["left"]),
            str(row["worse"]),
            paired.told(row["difference"]) if row["difference"] else f"{100 * row['gain']:+.1f}",
            f"{100 * row['worst']:+.1f}".replace("-", "−"),
        ]
        for row in rows
    ]
    return paired.markdown(head, lines)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run from the command line, and return what was found."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    raw = yaml.safe_load(options.params.read_text(encoding="utf-8"))
    command, path = shlex.join(["python", "-m", "benchmarks.choices", *arguments]), options.output / "choices.json"
    found = [cell(raw, seed, options) for seed in bar(list(options.seeds), what="choices", unit="study")]
    earlier = dict(read_json(path, "python -m benchmarks.choices")) if path.is_file() else {}
    by_seed = {record["seed"]: record for record in (*earlier.get("studies", ()), *found)}
    report: dict[str, Any] = {"commands": [*dict.fromkeys([*earlier.get("commands", ()), command])]}
    report["studies"] = [by_seed[seed] for seed in sorted(by_seed)]
    report["rows"] = summarise(report["studies"])
    write_json(path, report)
    atomic_write(options.output / "choices.md", markdown(report["rows"]))
    print(json.dumps(report["rows"], indent=1), markdown(report["rows"]), sep="\n")
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.choices", description=__doc__)
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml", help="parameter file")
    parser.add_argument("--shots", type=int, default=4, help="per class; default: 4")
    parser.add_argument("--seen", type=int, default=8, help="images per class that score trials; default: 8")
    parser.add_argument(
        "--scored", type=int, default=12, help="images per class that say what it is worth; default: 12"
    )
    parser.add_argument("--trials", type=int, default=16, help="of a study; default: 16")
    parser.add_argument("--rescored", type=int, default=3, help="times that finalists are scored again; default: 3")
    parser.add_argument("--repetitions", type=int, default=4, help="of what values are worth; default: 4")
    parser.add_argument("--seeds", type=span, default=range(400, 410), metavar="A-B", help="default: 400-409")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: all cores")
    parser.add_argument("--work", type=Path, default=ROOT / ".dreamset/choices", help="folder of what is going on")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="folder of choices.json")
    return parser


if __name__ == "__main__":
    main()

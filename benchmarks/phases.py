"""Accuracy after each phase of the class-encoder method, over seeds: ``python -m benchmarks.phases``.

The phases are recipes (arXiv 2405.02698, section 4): the encoder trained, its sampler and epoch tuned, the U-Net
trained from there, tuned again. The cells are those of ``dreamset table``, which this runs, and goes on with, first.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks import paired
from dreamset import params as parameters
from dreamset import sources, sweep
from dreamset.cli import _span
from dreamset.files import atomic_write, write_json
from dreamset.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreamset.params import Params

ROOT = Path(__file__).parents[1]
FIRST, SECOND = ("class_encoder_untuned", "class_encoder"), ("class_encoder_ft_untuned", "class_encoder_ft")
PHASES = {
    "class_encoder_untuned": "encoder trained",
    "class_encoder": "tuned",
    "class_encoder_ft_untuned": "U-Net trained",
    "class_encoder_ft": "tuned again",
}
# What each phase is compared with, in the order of the table.
PAIRS = (
    ("class_encoder", "class_encoder_untuned"),
    ("class_encoder_ft_untuned", "class_encoder"),
    ("class_encoder_ft", "class_encoder_ft_untuned"),
    ("class_encoder_ft", "class_encoder_untuned"),
)
CLASSIFIER = "resnet20"  # trained from scratch


def with_phases(raw: dict[str, Any], file: str) -> Params:
    """Parameters whose active recipes are the phases, the later two starting from the tuned encoder."""
    changed = raw | {"active": list(FIRST), "after": dict.fromkeys(SECOND, FIRST[-1]), "primary": FIRST[-1]}
    return parameters.parse(changed, file)


def records(params: Params, workspace: Workspace, shots: int, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The records of finished cells that have every phase, by seed."""
    data = None if params.prepare.source == "digits" else sweep._digest(sources.read(params.prepare))
    paths = sorted((workspace.results / "table/cells").glob("*.json"))
    usable = [found for path in paths if (found := sweep._usable(params, workspace, path, data))]
    whole = [found for found in usable if all(run(name) in found["right"] for name in PHASES)]
    chosen = [found for found in whole if found["shots"] == shots and found["seed"] in seeds]
    return sorted(chosen, key=lambda found: int(found["seed"]))


def run(recipe: str) -> str:
    """The name of the run whose accuracy is CAS."""
    return f"{recipe}/synthetic/{CLASSIFIER}"


def summarise(params: Params, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """CAS after each phase, and the differences between phases."""
    return {
        "phases": [{"recipe": name} | paired.accuracy(found, run(name)) for name in PHASES],
        "differences": [
            {"of": of, "minus": minus}
            | paired.difference(params, [(record, record) for record in found], run(of), run(minus))
            for of, minus in PAIRS
        ],
    }


def markdown(summary: dict[str, Any]) -> str:
    """Both as tables, per cent and points."""
    phases = [
        [
            PHASES[row["recipe"]],
            f"`{row['recipe']}`",
            str(row["seeds"]),
            f"{100 * row['cas']:.1f}",
            "–" if row["sd"] is None else f"{100 * row['sd']:.1f}",
        ]
        for row in summary["phases"]
    ]
    differences = [[f"`{row['of']}` over `{row['minus']}`", paired.told(row)] for row in summary["differences"]]
    first = paired.markdown(("phase", "recipe", *paired.HEAD), phases)
    return first + "\n" + paired.markdown(("difference", "points (95 % interval)"), differences)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run from the command line; what was found."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    options = parser.parse_args(arguments)
    params = with_phases(yaml.safe_load(options.params.read_text(encoding="utf-8")), str(options.params))
    workspace = Workspace.at(options.params.resolve().parent)
    if not options.read:
        print(sweep.run(params, workspace, [options.shots], list(options.seeds), options.jobs), file=sys.stderr)
    found = records(params, workspace, options.shots, options.seeds)
    if not found:
        parser.error("no finished cell has all four phases; run this without --read.")
    report = {"command": shlex.join(["python", "-m", "benchmarks.phases", *arguments]), "shots": options.shots}
    report |= summarise(params, found)
    write_json(options.output / "phases.json", report)
    atomic_write(options.output / "phases.md", markdown(report))
    print(markdown(report))
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.phases", description=__doc__)
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml", help="parameter file of the project")
    parser.add_argument("--shots", type=int, default=16, help="per class; default: 16")
    parser.add_argument("--seeds", type=_span, default=range(5), metavar="A-B", help="default: 0-4")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once; cores are shared. Default: 1")
    parser.add_argument("--read", action="store_true", help="run nothing: read the cells that are finished")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="folder of phases.json")
    return parser


if __name__ == "__main__":
    main()

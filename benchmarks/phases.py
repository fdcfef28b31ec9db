"""Accuracy after each phase of the class-encoder method, over seeds: ``python -m benchmarks.phases``.

The phases are recipes (arXiv 2405.02698, section 4): the encoder trained, its sampler and epoch tuned, the U-Net
trained from there, tuned again. CAS is that of the largest set, ten times the shots, and of every phase by the size of
the set. Studies prune nothing here, so that importances rest on every trial, and go by images that are set apart beside
the shots, as the paper's go by a validation set. The cells are those of ``dreamset table``, in a project of their own,
which this runs, and goes on with, first.
"""

from __future__ import annotations

import argparse
import copy
import shlex
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks import paired
from dreamset import classifiers
from dreamset import params as parameters
from dreamset.command.parsing import span
from dreamset.core.files import atomic_write, read_json, write_json
from dreamset.core.workspace import Workspace
from dreamset.sweep import cells

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
LABELS = 20  # images per class that studies go by, beside the shots
SCALES = (1, 2, 5, 10)  # sizes of the set, in times the shots
REAL = ("real", "real_strong")


def with_phases(raw: dict[str, Any], file: str, shots: int, trials: int) -> Params:
    """Parameters whose active recipes are the phases, the later two starting from the tuned encoder.

    Args:
        raw: a params.yaml.
        file: its name, for errors.
        shots: per class.
        trials: of each study.
    """
    changed = copy.deepcopy(raw)
    changed |= {"active": list(FIRST), "after": dict.fromkeys(SECOND, FIRST[-1]), "primary": FIRST[-1]}
    changed |= {"selection": f"extra:{LABELS}"}
    # And nothing else does: the last step of a classifier is kept.
    changed["train"] |= {"selections": 1, "configurations": 1}
    changed["tune"] |= {"trials": trials, "pruner": "none"}
    changed["train"] |= {"classifiers": [CLASSIFIER], "baselines": [], "scales": list(SCALES)}
    changed["generate"] |= {"per_class": SCALES[-1] * shots}
    return parameters.parse(changed, classifiers.ROWS, file)


def records(params: Params, workspace: Workspace, shots: int, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The records of finished cells that have every phase, by seed."""
    _, data = cells.source_of(params)
    paths = sorted((workspace.results / "table/cells").glob("*.json"))
    usable = [found for path in paths if (found := cells.usable(params, workspace, path, data))]
    whole = [found for found in usable if all(run(name) in found["right"] for name in PHASES)]
    chosen = [found for found in whole if found["shots"] == shots and found["seed"] in seeds]
    return sorted(chosen, key=lambda found: int(found["seed"]))


def importances(workspace: Workspace, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What mattered in the studies and what they chose, over the seeds whose cells are still there.

    Returns:
        For each tuned phase the mean share of the variance of CAS of each knob alone, by fANOVA, of each pair beyond
        that, the number of studies, and what each of them chose.
    """
    rows = []
    for recipe in (FIRST[-1], SECOND[-1]):
        studies = {}
        for record in found:
            cell = Workspace(workspace.root, cells.folder_of(workspace, record["shots"], record["seed"]))
            if (path := cell.result("tune", recipe)).is_file():
                studies[record["seed"]] = read_json(path, "python -m benchmarks.phases")
        known = [own for study in studies.values() if "main" in (own := study["importance"])]
        shares: dict[str, list[float]] = {}
        for own in known:
            pairs = {" × ".join(pair["knobs"]): pair["share"] for pair in own["pairs"]}
            for name, share in (own["main"] | pairs).items():
                shares.setdefault(name, []).append(share)
        means = {name: round(statistics.fmean(of), 3) for name, of in shares.items()}
        chosen = [{"seed": seed, **study["best"]} for seed, study in studies.items() if study["best"]]
        rows.append({"recipe": recipe, "studies": len(known), "shares": means, "chosen": chosen})
    return rows


def run(arm: str, kind: str = "synthetic") -> str:
    """The name of a run, of that whose accuracy is CAS unless another is named."""
    return f"{arm}/{kind}/{CLASSIFIER}"


def summarise(params: Params, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """CAS after each phase, the differences between phases, and CAS by the size of the set beside real images."""
    names = [
        *((name, f"synthetic_x{scale}") for name in PHASES for scale in SCALES),
        *(("real", kind) for kind in REAL),
    ]
    return {
        "phases": [{"recipe": name} | paired.accuracy(found, run(name)) for name in PHASES],
        "differences": [
            {"of": of, "minus": minus}
            | paired.difference(params, [(record, record) for record in found], run(of), run(minus))
            for of, minus in PAIRS
        ],
        "scales": [
            {"arm": arm, "train_on": kind} | paired.accuracy(found, run(arm, kind))
            for arm, kind in names
            if all(run(arm, kind) in record["right"] for record in found)
        ],
    }


def markdown(summary: dict[str, Any]) -> str:
    """All of it as tables, per cent and points."""
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
    by_size = {(row["arm"], row["train_on"]): f"{100 * row['cas']:.1f}" for row in summary["scales"]}
    scales = [[PHASES[name], *(by_size.get((name, f"synthetic_x{scale}"), "–") for scale in SCALES)] for name in PHASES]
    # Of one size: the shots.
    scales += [
        [kind.replace("_", ", ") + "ly augmented" * (kind != "real"), by_size.get(("real", kind), "–")] for kind in REAL
    ]
    scales = [row + [""] * (len(SCALES) + 1 - len(row)) for row in scales]
    shares = [
        [
            f"`{row['recipe']}`",
            str(row["studies"]),
            ", ".join(f"{of} {share:.0%}" for of, share in row["shares"].items()),
        ]
        for row in summary["importances"]
        if row["studies"]
    ]
    return "\n".join(
        (
            paired.markdown(("phase", "recipe", *paired.HEAD), phases),
            paired.markdown(("difference", "points (95 % interval)"), differences),
            paired.markdown(("images, in times the shots", *(f"{scale}x" for scale in SCALES)), scales),
            paired.markdown(("study", "studies", "share of the variance of CAS"), shares),
        )
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run from the command line; what was found."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    options = parser.parse_args(arguments)
    raw = yaml.safe_load(options.params.read_text(encoding="utf-8"))
    params = with_phases(raw, str(options.params), options.shots, options.trials)
    root = options.params.resolve().parent
    # Apart from the cells of the project's own table, which have other parameters.
    workspace = Workspace(root, root / ".dreamset/phases")
    if not options.read:
        print(cells.run(params, workspace, [options.shots], list(options.seeds), options.jobs), file=sys.stderr)
    found = records(params, workspace, options.shots, options.seeds)
    if not found:
        parser.error("no finished cell has all four phases; run this without --read.")
    report = {
        "command": shlex.join(["python", "-m", "benchmarks.phases", *arguments]),
        "devices": sorted({record["device"] for record in found}),
        "shots": options.shots,
        "trials": options.trials,
    }
    report |= summarise(params, found) | {"importances": importances(workspace, found)}
    write_json(options.output / "phases.json", report)
    atomic_write(options.output / "phases.md", markdown(report))
    print(markdown(report))
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.phases", description=__doc__)
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml", help="parameter file of the project")
    parser.add_argument("--shots", type=int, default=16, help="per class; default: 16")
    parser.add_argument("--seeds", type=span, default=range(5), metavar="A-B", help="default: 0-4")
    parser.add_argument("--trials", type=int, default=24, help="of each study; default: 24")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once; cores are shared. Default: 1")
    parser.add_argument("--read", action="store_true", help="run nothing: read the cells that are finished")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="folder of phases.json")
    return parser


if __name__ == "__main__":
    main()

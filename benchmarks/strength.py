"""Which strength of the adapter pays where, without test images: ``python -m benchmarks.strength``.

Digits, whose names the base knows, and letters that it knows or does not, as their polarity and line allow. Every arm
is scored on images that ``selection: extra`` sets apart beside the shots; of the letters these are by other people.
What ``expect`` finds stands beside each cell, so that a rule on it (``primary: auto``) can be judged.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shlex
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from benchmarks import paired
from dreamset import adapt, classifiers, expect, generate, prepare, train
from dreamset import params as parameters
from dreamset.command.parsing import span
from dreamset.core import audit, device
from dreamset.core.files import atomic_write, read_json, write_json
from dreamset.core.progress import bar
from dreamset.core.workspace import Workspace
from dreamset.data import runs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = Path(__file__).parents[1]
PLAIN, LIGHT, FULL = "stable_diffusion", "datadream_light", "datadream_dset"
LETTERS = {"template": "a photo of the letter small {class}", "test_share": 0.5}
# By name: images per class that score, and what of `prepare` differs. Letters: half of the people to learn from score.
DATA: dict[str, tuple[int, dict[str, Any]]] = {
    "digits": (20, {}),
    "omniglot-latin-28": (5, LETTERS),
    "omniglot-latin": (5, LETTERS),
}
KINDS = (runs.REAL_ONLY, runs.REAL_STRONG, runs.SYNTHETIC, runs.BOTH_STRONG)


def cell(raw: dict[str, Any], data: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the record of one data set and seed: accuracies of every arm, and what ``expect`` found before."""
    labels, prepared = DATA[data]
    own = copy.deepcopy(raw)
    own |= {"seed": seed, "shots": options.shots, "selection": f"extra:{labels}", "active": [PLAIN, LIGHT, FULL]}
    own |= {"after": {}, "primary": LIGHT}
    own["train"] |= {"classifiers": ["resnet20"], "baselines": [], "selections": 1, "configurations": 1}
    own["track"]["uri"] = None
    # Another size trains on the same images, which are found again.
    own["models"][own["model"]]["train"]["resnet20"]["size"] = options.size
    if data != "digits":
        own["prepare"] |= prepared | {"source": f"csv:{(options.data / data / 'list.csv').resolve()}"}
    params = parameters.parse(own, classifiers.ROWS, str(options.params))
    workspace = Workspace(options.params.resolve().parent, options.work / f"{data}_seed{seed}")
    path = workspace.cell / f"strength_{options.size}.json"
    if path.is_file():
        return dict(read_json(path, "python -m benchmarks.strength"))
    torch.set_num_threads(options.threads)
    prepare.run(params, workspace)
    scores = {}
    with audit.closed(workspace):
        found = expect.run(params, workspace)
        for arm in (runs.REAL, *params.active):
            if arm != runs.REAL:
                adapt.run(params, workspace, arm)
                generate.run(params, workspace, arm)
            for row in train.run(params, workspace, arm, KINDS)["runs"]:
                if row["selection_curve"]:
                    scores[f"{arm}/{row['train_on']}"] = row["selection_curve"][-1]["accuracy"]
    keep = ("zero_shot", "read_as_prompted", "look", "expectation", "primary")
    facts = {"data": data, "seed": seed, "shots": options.shots, "images": 0, "device": device.name()}
    facts["size"] = options.size
    facts["images"] = len(read_json(workspace.splits, "dreamset prepare")["selection"])
    record = facts | {"scores": scores, "expect": {key: found[key] for key in keep if key in found}}
    write_json(path, record)
    return record


def summarise(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for every data set: means over seeds, and gains paired by seed with their standard errors."""
    rows = []
    for data in DATA:
        own = [record for record in records if record["data"] == data]
        if not own:
            continue
        by_arm = {arm: [record["scores"][arm] for record in own] for arm in own[0]["scores"]}
        row: dict[str, Any] = {"data": data, "seeds": len(own), "images": sum(record["images"] for record in own)}
        row |= {arm: round(statistics.fmean(scores), 4) for arm, scores in by_arm.items()}
        real, light, full = (by_arm[arm] for arm in ("real/real_strong", f"{LIGHT}/both_strong", f"{FULL}/both_strong"))
        row |= {"light_over_real": _gain(light, real), "full_over_real": _gain(full, real)}
        row |= {"full_over_light": _gain(full, light)}
        row["zero_shot"] = [record["expect"]["zero_shot"]["share"] for record in own]
        row["expectation"] = [record["expect"]["expectation"] for record in own]
        rows.append(row)
    return rows


def _gain(of: Sequence[float], minus: Sequence[float]) -> dict[str, float | None]:
    each = [one - other for one, other in zip(of, minus, strict=True)]
    error = round(statistics.stdev(each) / len(each) ** 0.5, 4) if len(each) > 1 else None
    return {"mean": round(statistics.fmean(each), 4), "standard_error": error}


def markdown(rows: Iterable[dict[str, Any]]) -> str:
    """Return the rows as a table, in per cent and points."""
    arms = ("real/real_strong", *(f"{r}/{kind}" for kind in ("synthetic", "both_strong") for r in (PLAIN, LIGHT, FULL)))
    head = ("data", "seeds", "images", "zero-shot", "real", "base alone", "light alone", "full alone")
    head = (*head, "real + base", "real + light", "real + full", "full over light")
    lines = []
    for row in rows:
        gain = row["full_over_light"]
        error = "" if gain["standard_error"] is None else f" ± {100 * gain['standard_error']:.1f}"
        shares = [f"{100 * value:.1f}" for value in (statistics.fmean(row["zero_shot"]), *(row[arm] for arm in arms))]
        told = f"{100 * gain['mean']:+.1f}{error}".replace("-", "−")
        lines.append([row["data"], str(row["seeds"]), str(row["images"]), *shares, told])
    return paired.markdown(head, lines)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run from the command line, and return what was found."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    raw = yaml.safe_load(options.params.read_text(encoding="utf-8"))
    wanted = [(data, seed) for seed in options.seeds for data in options.sets]
    report: dict[str, Any] = {"command": shlex.join(["python", "-m", "benchmarks.strength", *arguments])}
    report["cells"] = [cell(raw, data, seed, options) for data, seed in bar(wanted, what="strength", unit="cell")]
    report["sets"] = summarise(report["cells"])
    write_json(options.output / "strength.json", report)
    atomic_write(options.output / "strength.md", markdown(report["sets"]))
    print(json.dumps(report["sets"], indent=1), markdown(report["sets"]), sep="\n")
    return report


def _size(text: str) -> int | str:
    return text if text == "native" else int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strength", description=__doc__)
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml", help="parameter file")
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data", help="folder of the sets of letters")
    parser.add_argument("--sets", nargs="+", choices=DATA, default=list(DATA), help="default: all")
    parser.add_argument("--shots", type=int, default=4, help="per class; default: 4")
    parser.add_argument("--size", type=_size, default="native", help="that ResNet-20 sees, pixels; default: native")
    parser.add_argument("--seeds", type=span, default=range(200, 203), metavar="A-B", help="default: 200-202")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: all cores")
    parser.add_argument("--work", type=Path, default=ROOT / ".dreamset/strength", help="folder of what is going on")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="folder of strength.json")
    return parser


if __name__ == "__main__":
    main()

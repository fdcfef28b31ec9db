"""How long a trial of a study takes beside an earlier commit: ``python -m benchmarks.trials BEFORE``.

The same recipe gets the same number of trials three times in turn: by the earlier commit, by this one, and by this one
with the student of the base, which draws in one to four steps. Each is a clone that runs the commands of a user with
its own code; its adapter is trained before. A trial draws, trains a classifier and scores it on images that are set
apart. Hyperband ends some early: so the seconds of those that it let end stand beside the mean of all.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import clones
from benchmarks.scale import ROOT
from dreamset.core import device
from dreamset.core.files import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

RECIPE: Final = "datadream_dset"
BEFORE, NOW, STUDENT = "before", "now", "student"
_STEPS: Final = {BEFORE: (5, 20), NOW: (5, 20), STUDENT: (1, 4)}
_LABELS: Final = 20  # images per class that score


def project(folder: Path, commit: str, kind: str, trials: int) -> None:
    """Clone a commit of this repository, with a study of the recipe, and train its adapter."""
    raw = clones.clone(folder, commit)
    low, high = _STEPS[kind]
    row = {"search": {"guidance": {"low": 1.0, "high": 7.5}, "steps": {"low": low, "high": high}}}
    if kind == STUDENT:
        row["sampler"] = {"student": True}
    raw["recipes"][RECIPE] |= row
    raw |= {"active": [RECIPE], "after": {}, "primary": RECIPE, "selection": f"extra:{_LABELS}"}
    raw["tune"]["trials"] = trials
    clones.write(folder, raw)
    for words in (("prepare",), ("adapt", RECIPE)):
        clones.command(folder, 1, *words)


def study(folder: Path) -> dict[str, Any]:
    """Run the study of a project anew; return how many trials it had, and their seconds."""
    for path in (folder / "studies.db", folder / f"results/tune/{RECIPE}.json"):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / f"models/tuned/{RECIPE}", ignore_errors=True)
    # No image of an earlier turn is found again; the adapter is.
    for shard in (folder / ".dreamset/shards").iterdir():
        if not any(shard.glob("*.safetensors")):
            shutil.rmtree(shard)
    clones.command(folder, 1, "tune", RECIPE)
    trials = read_json(folder / f"results/tune/{RECIPE}.json", "dreamset tune")["trials"]
    # Hyperband ends no trial of its mildest level, so some are complete.
    ended = [trial for trial in trials if trial["state"] == "COMPLETE"]
    return {
        "trials": len(trials),
        "complete": len(ended),
        "seconds_per_trial": round(sum(trial["seconds"] for trial in trials) / len(trials), 2),
        "seconds_per_complete_trial": round(statistics.median(trial["seconds"] for trial in ended), 2),
        "of_them_training": round(statistics.median(trial["seconds_train"] for trial in ended), 2),
    }


def summary(turns: Sequence[dict[str, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Return, by kind of study, medians over turns and how many times as fast as before each is."""
    found: dict[str, dict[str, float]] = {}
    for name in ("seconds_per_trial", "seconds_per_complete_trial"):
        medians = {kind: statistics.median(turn[kind][name] for turn in turns) for kind in _STEPS}
        for kind, seconds in medians.items():
            found.setdefault(kind, {}).update({name: seconds, f"{name}_times": round(medians[BEFORE] / seconds, 2)})
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run from the command line, and return what was found."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trials", description=__doc__)
    parser.add_argument("before", help="a commit")
    parser.add_argument("--trials", type=int, default=12, help="of each study; default: 12")
    parser.add_argument("--turns", type=int, default=2, help="default: 2")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="folder of trials.json")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as aside:
        folders = {kind: Path(aside) / kind for kind in _STEPS}
        for kind, folder in folders.items():
            project(folder, options.before if kind == BEFORE else "HEAD", kind, options.trials)
        turns = [{kind: study(folder) for kind, folder in folders.items()} for _ in range(options.turns)]
    report = {
        "command": shlex.join(["python", "-m", "benchmarks.trials", *arguments]),
        "device": f"{device.name()}, one thread a process",
        "turns": turns,
        "medians": summary(turns),
    }
    write_json(options.output / "trials.json", report)
    print(json.dumps(report, indent=1))
    return report


if __name__ == "__main__":
    main()

"""The default run beside that of an earlier commit, at the same time: ``python -m benchmarks.default BEFORE``.

Each is a clone that runs ``dvc repro`` with its own code on a processor of its own, with one thread. What slows the
machine slows both, so that their ratio stands. In a second turn they change processors.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import clones
from benchmarks.scale import ROOT
from dreamset.core import device
from dreamset.core.files import write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

NOW: Final = "HEAD"


def begin(folder: Path, cpu: int) -> subprocess.Popen[bytes]:
    """Start the pipeline of a project on one processor, with the project's own code."""
    # The installed program starts by a module that other commits lack.
    shim = folder.parent / f"{folder.name}.bin" / "dreamset"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m dreamset "$@"\n', encoding="utf-8")
    shim.chmod(0o755)
    path = [str(shim.parent), str(Path(sys.executable).parent), os.environ["PATH"]]
    own = {"PATH": os.pathsep.join(path), "PYTHONPATH": str(folder / "src")}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    log = (folder.parent / f"{folder.name}.log").open("wb")
    command = ["taskset", "--cpu-list", str(cpu), "dvc", "repro"]
    return subprocess.Popen(command, cwd=folder, env=os.environ | own | threads, stdout=log, stderr=subprocess.STDOUT)


def together(folders: Sequence[Path], cpus: Sequence[int]) -> list[float]:
    """Run the pipelines of some projects at once; return the seconds of each.

    Raises:
        RuntimeError: one failed, with the end of its output.
    """
    started = time.perf_counter()
    running = {folder: begin(folder, cpu) for folder, cpu in zip(folders, cpus, strict=True)}
    seconds: dict[Path, float] = {}
    while len(seconds) < len(running):
        time.sleep(0.2)
        for folder, process in running.items():
            if folder not in seconds and process.poll() is not None:
                if process.returncode:
                    for other in running.values():
                        other.terminate()
                    told = folder.with_name(f"{folder.name}.log").read_text(encoding="utf-8")[-2000:]
                    raise RuntimeError(f"{folder}: dvc repro failed:\n{told}")
                seconds[folder] = round(time.perf_counter() - started, 1)
    return [seconds[folder] for folder in folders]


def accuracies(folder: Path) -> dict[str, float]:
    """Return the accuracy of every run of a finished project, by recipe, images and classifier."""
    with (folder / "results/evaluate.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        "/".join(row[name] for name in ("recipe", "train_on", "classifier")): float(row["accuracy"]) for row in rows
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run from the command line, and return what was found."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks.default", description=__doc__)
    parser.add_argument("before", help="a commit")
    parser.add_argument("--turns", type=int, default=2, help="default: 2")
    parser.add_argument("--cpus", nargs=2, type=int, default=[0, 1], help="default: 0 1")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="folder of default.json")
    options = parser.parse_args(arguments)
    turns: list[dict[str, Any]] = []
    for turn in range(options.turns):
        with tempfile.TemporaryDirectory() as aside:
            folders = [Path(aside) / name for name in ("before", "now")]
            for folder, commit in zip(folders, (options.before, NOW), strict=True):
                clones.write(folder, clones.clone(folder, commit))
            seconds = together(folders, options.cpus[:: -1 if turn % 2 else 1])
            before, now = map(accuracies, folders)
            turns.append(
                {
                    "before_s": seconds[0],
                    "now_s": seconds[1],
                    "ratio": round(seconds[1] / seconds[0], 3),
                    "runs": {"before": len(before), "now": len(now), "shared": len(before.keys() & now.keys())},
                    "accuracies": {run: [before[run], now[run]] for run in sorted(before.keys() & now.keys())},
                }
            )
    report = {
        "command": shlex.join(["python", "-m", "benchmarks.default", *arguments]),
        "device": f"{device.name()}, one processor each",
        "turns": turns,
        "ratio": round(statistics.median(turn["ratio"] for turn in turns), 3),
    }
    write_json(options.output / "default.json", report)
    print(json.dumps(report, indent=1))
    return report


if __name__ == "__main__":
    main()

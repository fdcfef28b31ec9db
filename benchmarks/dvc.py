"""``python -m benchmarks.dvc BEFORE AFTER``: what `dvc repro` costs where little is to do, in two checkouts in turn.

Both are copies of the project whose pipeline has run to its end (`dvc repro`); their parameters and results change.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from dreamset.core.files import write_json

# What is changed before a run; the stage that reads it takes about a second.
WORK: Final = {"nothing": None, "report": "images_per_class"}


def main() -> None:
    """Run from the command line; print the medians and keep them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dvc", description=__doc__)
    parser.add_argument("before", type=Path, metavar="BEFORE")
    parser.add_argument("after", type=Path, metavar="AFTER")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/dvc.json", help="JSON file")
    options = parser.parse_args()
    checkouts = {"before": options.before.resolve(), "after": options.after.resolve()}
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.dvc", "BEFORE", "AFTER", "--repeat", str(options.repeat)]),
        "commits": {name: _said(["git", "rev-parse", "HEAD"], folder) for name, folder in checkouts.items()},
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
    }
    for what, key in WORK.items():
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in checkouts}
        for number in range(-1, options.repeat):
            for name, folder in checkouts.items():
                if key:
                    _change(folder / "params.yaml", key, 4 + number % 2)
                seconds = _repro(folder)
                if number >= 0:  # the first one fills caches
                    taken[name].append(seconds)
        row: dict[str, Any] = {
            name: {
                kind: round(statistics.median(column), 2)
                for kind, column in zip(("wall_s", "cpu_s"), zip(*runs, strict=True), strict=True)
            }
            for name, runs in taken.items()
        }
        for kind in ("wall", "cpu"):
            row[f"ratio_{kind}"] = round(row["before"][f"{kind}_s"] / row["after"][f"{kind}_s"], 2)
        report[what] = row
        print(what, row, flush=True)
    write_json(options.output, report)


def _change(path: Path, key: str, value: int) -> None:
    text, found = re.subn(rf"(?m)^(  {key}:) \d+", rf"\1 {value}", path.read_text(encoding="utf-8"))
    assert found == 1
    path.write_text(text, encoding="utf-8")


def _repro(folder: Path) -> tuple[float, float]:
    """The seconds of a `dvc repro`, and those of the processors."""
    with tempfile.TemporaryDirectory() as hidden:
        paths = [str(folder / "src")]
        if "ruamel.yaml.clib" not in (folder / "pyproject.toml").read_text(encoding="utf-8"):
            # The environment may be that of the other checkout.
            (Path(hidden) / "_ruamel_yaml.py").write_text("raise ModuleNotFoundError('hidden')\n", encoding="utf-8")
            paths.append(hidden)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        started, before = time.perf_counter(), _processors()
        done = subprocess.run(
            ["dvc", "repro"], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return time.perf_counter() - started, _processors() - before


def _processors() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _processor() -> str:
    names = re.findall(r"(?m)^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return str(names[0]) if names else "unknown"


def _said(command: list[str], folder: Path) -> str:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()

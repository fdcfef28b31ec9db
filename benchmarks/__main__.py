"""``python -m benchmarks``: time everything, print tables, keep the numbers."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import setting, timing
from dreamset.files import write_json
from dreamset.params import to_dict

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[1]
TASKS = ("adapters", "images", "classifiers")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run from the command line; what was measured."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    changes = {"model": options.model} if options.model else {}
    amount = setting.QUICK if options.quick else setting.FULL
    repeat = options.repeat or (1 if options.quick else 5)
    with tempfile.TemporaryDirectory(prefix="dreamset-bench-") as folder:
        here = setting.make(options.params, Path(folder), amount, **changes)
        name = timing.device_name(here.device)
        report = {
            "device": name,
            "threads": torch.get_num_threads(),
            "dtype": here.params.base.dtype,
            "model": here.params.model,
            "command": shlex.join(["python", "-m", "benchmarks", *arguments]),
            "versions": {package: version(package) for package in ("torch", "diffusers", "peft", "open_clip_torch")},
            "amount": to_dict(amount),
            "load_before": round(os.getloadavg()[0], 2),
            "tasks": [],
        }
        print(f"## {name}, {here.params.model}, {here.params.base.dtype}: `{report['command']}`\n")
        if here.device.type == "cpu" and report["load_before"] > 1:
            print(f"Other work is running (load {report['load_before']}): these ratios mean little.\n")
        print("Every row has one lever more than the row above it.\n", flush=True)
        for task in options.only:
            for ladder in importlib.import_module(f"benchmarks.{task}").ladders(here):
                report["tasks"].append(timing.climb(ladder, repeat))
                print(timing.markdown(report["tasks"][-1]), flush=True)
    slug = re.sub(r"[^a-z0-9]+", "-", f"{name} {here.params.model}".lower()).strip("-")
    target = options.output / f"{slug}.json"
    write_json(target, report)
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml", help="parameter file")
    parser.add_argument("--model", help="row of models in the parameter file; default: the one it names")
    parser.add_argument("--threads", type=int, help="CPU threads of one operation; default: PyTorch's")
    parser.add_argument("--repeat", type=int, help="repetitions of every row; default: 5")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=TASKS, help="default: all")
    parser.add_argument("--quick", action="store_true", help="next to no work: shows that everything runs")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="folder of the JSON file")
    return parser


if __name__ == "__main__":
    main()

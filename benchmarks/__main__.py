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

from benchmarks import arithmetic, setting, timing
from dreamset.core import device
from dreamset.core.files import write_json
from dreamset.params import to_dict

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[1]
TASKS = ("adapters", "images", "classifiers", "studies")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run from the command line; what was measured."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    changes = {"model": options.model} if options.model else {}
    little = options.quick or options.reduced
    repeat = options.repeat or (1 if little or options.random_weights else 5)
    with tempfile.TemporaryDirectory(prefix="dreamset-bench-") as folder:
        here = setting.make(
            options.params,
            Path(folder),
            setting.QUICK if options.quick else None,
            random_weights=options.random_weights or options.reduced,
            reduced=options.reduced,
            **changes,
        )
        name = device.name(here.device)
        matmul = arithmetic.matmul_rate(here.device, getattr(torch, here.params.base.dtype))
        report = {
            "device": name,
            "threads": torch.get_num_threads(),
            "dtype": here.params.base.dtype,
            "model": here.params.model,
            "weights": "random" if options.random_weights or options.reduced else "pretrained",
            "reduced": options.reduced,
            "matmul_tflops": round(matmul / 1e12, 3),
            "command": shlex.join(["python", "-m", "benchmarks", *arguments]),
            "versions": {package: version(package) for package in ("torch", "diffusers", "peft", "open_clip_torch")},
            "amount": to_dict(here.amount),
            "load_before": round(os.getloadavg()[0], 2),
            "tasks": [],
        }
        print(f"## {name}, {here.params.model}, {here.params.base.dtype}: `{report['command']}`\n")
        if here.device.type == "cpu" and report["load_before"] > 1:
            print(f"Other work is running (load {report['load_before']}): these ratios mean little.\n")
        if options.reduced:
            print("Narrow stand-ins of the models, little work: this shows that everything runs, not how fast.\n")
        elif options.random_weights:
            print("Random weights in published configurations: the speed is real, the images are not.\n")
        print(f"A matrix product runs at {matmul / 1e12:.3g} TFLOP/s in {here.params.base.dtype}.\n")
        print("Every row has one lever more than the row above it.\n", flush=True)
        target = options.output / f"{_slug(name, options, here.params.model)}.json"
        for task in options.only:
            for ladder in importlib.import_module(f"benchmarks.{task}").ladders(here):
                report["tasks"].append(timing.climb(ladder, repeat, matmul))
                print(timing.markdown(report["tasks"][-1]), flush=True)
                write_json(target, report)
    return report


def _slug(device: str, options: argparse.Namespace, model: str) -> str:
    """Name of the results: what was timed on which device."""
    kind = "reduced" if options.reduced else "random" if options.random_weights else ""
    tasks = "" if set(options.only) == set(TASKS) else " ".join(options.only)
    return re.sub(r"[^a-z0-9]+", "-", f"{device} {model} {kind} {tasks}".lower()).strip("-")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml", help="parameter file")
    parser.add_argument("--model", help="row of models in the parameter file; default: the one it names")
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="models of Stable Diffusion 2.1-base and of CLIP ViT-B/16 with random weights, instead of the row's",
    )
    parser.add_argument(
        "--reduced", action="store_true", help="those models narrow, at 64 px and with next to no work: for a CPU"
    )
    parser.add_argument("--threads", type=int, help="CPU threads of one operation; default: PyTorch's")
    parser.add_argument("--repeat", type=int, help="repetitions of every row; default: 5, and 1 with random weights")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=TASKS, help="default: all")
    parser.add_argument("--quick", action="store_true", help="next to no work: shows that everything runs")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="folder of the JSON file")
    return parser


if __name__ == "__main__":
    main()

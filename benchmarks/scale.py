"""What data sets of 1,000 to 100,000 images cost, stage by stage: ``python -m benchmarks.scale``.

Of the digits, and of 1,000 classes of two made-up pictures each. Images are drawn in one step, as fast as the bundled
base can, so that whatever does not draw weighs as much as it ever will. Every stage runs in a process of its own, whose
seconds and peak memory are kept. Sizes that are finished are found again.

Drawing is timed after imports, reading the base and a first small set, which cost the same at any size; the other
stages with all of that.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from benchmarks import pictures
from dreamset.core import device
from dreamset.core.files import read_json, write_json
from dreamset.core.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT: Final = Path(__file__).parents[1]
RECIPE: Final = "stable_diffusion"
DIGITS: Final = 10  # classes of the digits
_STEADY: Final = 5000  # images that are drawn in all, so that a small set is timed several times
_MB: Final = 1e6


def project(folder: Path, classes: int, images: int, pack: int | None) -> None:
    """Lay out a project of so many classes and images, if it is not there yet."""
    if (folder / "params.yaml").is_file():
        return
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    row = raw["models"][raw["model"]]
    for kind in ("generator", "clip", "judge"):
        row[kind] = str(ROOT / row[kind])
    raw |= {"shots": 2, "active": [RECIPE], "primary": RECIPE, "selection": "fixed"}
    raw["generate"] |= {"per_class": images // classes} | ({} if pack is None else {"pack": pack})
    row["generate"] |= {"steps": 1, "guidance": 1.0}
    raw["train"] |= {"classifiers": ["resnet20"], "baselines": [], "simple": []}
    row["train"]["resnet20"] |= {"steps": 50, "warmup": 5}
    raw["evaluate"] |= {"protocol": "test", "bootstrap": 100}
    raw["expect"] |= {"on_no_help": "go"}
    raw["deliver"]["calibrate"] = False
    raw["prepare"]["max_near_duplicates"] = 10**6
    raw["track"]["uri"] = None
    if classes != DIGITS:
        pictures.write(folder / "data/raw", classes, {"train": 2, "test": 1}, row["resolution"])
        raw["prepare"]["source"] = "imagefolder:data/raw"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / ".dvcignore", folder)  # else DVC would walk through the finished shards
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")


def drawn(folder: Path) -> dict[str, Any]:
    """Draw the data set of a project in this process, and return what it took."""
    from dreamset import classifiers, generate, params
    from dreamset.drawing import draw

    given = params.load(folder / "params.yaml", classifiers.ROWS)
    workspace = Workspace.at(folder)
    base = draw.load_base(given, workspace, RECIPE)
    count = given.per_class * len(json.loads(workspace.splits.read_text(encoding="utf-8"))["classes"])
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        warm = Workspace.at(Path(aside))
        for name in ("data/splits", "data/real", "models/adapters"):
            shutil.copytree(folder / name, warm.cell / name)
        few = dataclasses.replace(given, generate=dataclasses.replace(given.generate, per_class=1))
        generate.run(few, warm, RECIPE, lambda: base)
    before, walls, cpus = _peak(), [], []
    for _ in range(max(1, _STEADY // count)):
        shutil.rmtree(workspace.shards, ignore_errors=True)
        started, used = time.perf_counter(), time.process_time()
        done = generate.run(given, workspace, RECIPE, lambda: base)
        walls.append(time.perf_counter() - started)
        cpus.append(time.process_time() - used)
        assert done["drawn_now"] == done["images"] == count
    peak, started = _peak(), time.perf_counter()
    generate.run(given, workspace, RECIPE, lambda: base)
    return {
        "images": count,
        "ms_per_image": round(1000 * statistics.median(walls) / count, 4),
        "cpu_ms_per_image": round(1000 * statistics.median(cpus) / count, 4),
        "peak_mb": round(peak / _MB, 1),
        "peak_mb_before": round(before / _MB, 1),
        "again_s": round(time.perf_counter() - started, 2),
        "files": sum(path.is_file() for path in workspace.synthetic(RECIPE).rglob("*")),
        "threads": _threads(),
    }


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _peak() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def timed(command: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run a command in a project; return its seconds and its peak memory.

    Raises:
        SystemExit: it failed; with its last lines.
    """
    with tempfile.TemporaryFile("w+") as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=_environment())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        if process.returncode:
            output.seek(0)
            sys.exit(f"{shlex.join(command)} in {folder}:\n{output.read()[-3000:]}")
    return {
        "s": round(seconds, 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(1024 * usage.ru_maxrss / _MB, 1),
    }


def _environment() -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    return os.environ | {"PYTHONPATH": paths, "TQDM_DISABLE": "1", "DVC_NO_ANALYTICS": "1"}


def cell(folder: Path, classes: int, images: int, pack: int | None) -> dict[str, Any]:
    """Return what every stage took at one size; steps that were timed before are not run again."""
    project(folder, classes, images, pack)
    record: dict[str, Any] = {"classes": classes, "images": images, "pack": pack}
    kept = folder / "scale.json"
    if kept.is_file():
        record = read_json(kept, "python -m benchmarks.scale")
    own, dvc = [sys.executable, "-m", "dreamset"], [sys.executable, "-m", "dvc"]
    steps: dict[str, list[str]] = {
        "prepare": [*own, "prepare"],
        "adapt": [*own, "adapt", RECIPE],
        "generate": [sys.executable, "-m", "benchmarks.scale", "--drawn", str(folder)],
        "train_real": [*own, "train", "real"],
        "train": [*own, "train", RECIPE],
        "evaluate": [*own, "evaluate"],
        "deliver": [*own, "deliver"],
        "report": [*own, "report"],
        "gc": [*own, "gc"],
        "dvc_init": [*dvc, "init", "--no-scm", "-q"],
        "dvc_add": [*dvc, "add", "-q", f"data/synthetic/{RECIPE}"],
        "dvc_status": [*dvc, "status"],
    }
    for name, command in steps.items():
        if name not in record:
            taken = timed(command, folder)
            if name == "generate":
                taken |= read_json(folder / "drawn.json", shlex.join(command))
            record[name] = taken
            write_json(kept, record)
            print(classes, images, name, taken, flush=True)
    return record


def ratios(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each size above the smallest of its classes, what an image costs beside one of the smallest.

    Of the other stages: the seconds and the memory that a thousand further images take.
    """
    found = []
    for classes in dict.fromkeys(one["classes"] for one in cells):
        first, *others = sorted((one for one in cells if one["classes"] == classes), key=lambda one: one["images"])
        for one in others:
            row: dict[str, Any] = {"classes": classes, "images": one["images"], "against": first["images"]}
            for key in ("ms_per_image", "cpu_ms_per_image", "peak_mb"):
                row[key] = round(one["generate"][key] / first["generate"][key], 3)
            thousands = (one["images"] - first["images"]) / 1000
            for name in ("train", "evaluate", "deliver", "report", "gc", "dvc_add", "dvc_status"):
                row[f"{name}_s_per_1000"] = round((one[name]["s"] - first[name]["s"]) / thousands, 3)
                row[f"{name}_mb_per_1000"] = round((one[name]["peak_mb"] - first[name]["peak_mb"]) / thousands, 2)
            found.append(row)
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run from the command line, and return what was found."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    if options.drawn is not None:
        taken = drawn(options.drawn)
        write_json(options.drawn / "drawn.json", taken)
        return taken
    cells = [
        cell(options.work.resolve() / f"{classes}_classes_{images}", classes, images, options.pack)
        for classes in options.classes
        for images in options.images
    ]
    report = {
        "command": shlex.join(["python", "-m", "benchmarks.scale", *arguments]),
        "device": device.name(),
        "load": round(os.getloadavg()[0], 2),
        "cells": cells,
        "ratios": ratios(cells),
    }
    write_json(options.output / "scale.json", report)
    print(json.dumps(report["ratios"], indent=1))
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument(
        "--classes", nargs="+", type=int, default=[DIGITS, 1000], help="10 are the digits; others are made up"
    )
    parser.add_argument("--images", nargs="+", type=int, default=[1000, 10000, 100000], help="multiples of the classes")
    parser.add_argument("--pack", type=int, help="generate.pack; default: that of params.yaml")
    parser.add_argument("--work", type=Path, default=ROOT / ".dreamset/scale", help="folder of what is going on")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="folder of scale.json")
    parser.add_argument("--drawn", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()

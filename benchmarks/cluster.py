"""The default pipeline on a Ray cluster that loses a node, against one process: ``python -m benchmarks.cluster``.

Two clones of this repository run ``dvc repro`` with one thread a process: one without Ray, the other on two nodes of
this machine with a core each. When the second has drawn its first images, one of its nodes is killed, and the other
goes on alone. Pictures, their metadata, weights and scores must be the same byte for byte. It needs the extra ``ray``,
and ``dreamset`` and ``dvc`` beside this Python.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.scale import ROOT
from dreamset.core import device
from dreamset.core.files import sha256, sha256_file, write_json
from dreamset.core.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FOLDERS: Final = ("data/synthetic", "models/adapters", "models/tuned", "models/classifiers", "models/classifier")
SUFFIXES: Final = (".png", ".jsonl", ".safetensors", ".onnx")  # records beside them hold seconds and machines
NUMBERS: Final = "results/evaluate.csv"
TIMED: Final = "seconds_"  # columns of that file whose names begin so are no scores


def made(folder: Path) -> dict[str, str]:
    """Return the sha256 of pictures, metadata, weights and scores of a finished project, by path."""
    files = [path for name in FOLDERS for path in (folder / name).rglob("*") if path.suffix in SUFFIXES]
    found = {path.relative_to(folder).as_posix(): sha256_file(path) for path in sorted(files)}
    with (folder / NUMBERS).open(encoding="utf-8", newline="") as file:
        rows = [{key: row[key] for key in row if not key.startswith(TIMED)} for row in csv.DictReader(file)]
    return found | {NUMBERS: sha256(json.dumps(rows).encode())}


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Return the paths that one of two projects lacks, or that differ."""
    return sorted(path for path in one.keys() | other.keys() if one.get(path) != other.get(path))


def project(folder: Path, settings: Sequence[str]) -> None:
    """Clone this repository, and set some keys of its parameters."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    subprocess.run(["dreamset", "set", *settings], cwd=folder, check=True, env=_environment())


def reproduce(folder: Path) -> float:
    """Run the pipeline of a project; return its seconds."""
    started = time.perf_counter()
    subprocess.run(["dvc", "repro", "--quiet"], cwd=folder, check=True, env=_environment())
    return round(time.perf_counter() - started, 1)


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Start two nodes with a core each; yield their address, and a list that the fault is noted in.

    Args:
        folder: of the project; when it has its first block of images, the second node dies.
    """
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    doomed, faults, over, started = nodes.add_node(num_cpus=1), list[dict[str, Any]](), threading.Event(), time.time()

    def kill() -> None:
        shards = Workspace.at(folder).shards
        while not any(shards.glob("*/metadata.jsonl")):
            if over.wait(0.5):
                return
        nodes.remove_node(doomed, allow_graceful=False)
        faults.append({"node_killed_after_s": round(time.time() - started, 1)})

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield nodes.address, faults
    finally:
        over.set()
        killer.join()
        nodes.shutdown()


def _environment() -> dict[str, str]:
    beside = str(Path(sys.executable).parent)
    return os.environ | {"PATH": os.pathsep.join([beside, os.environ["PATH"]]), "RAY_USAGE_STATS_ENABLED": "0"}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run from the command line, and return what was found."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of both; default: params.yaml")
    parser.add_argument("--work", type=Path, help="folder of both projects; default: a temporary one")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="folder of cluster.json")
    options = parser.parse_args(arguments)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory() as aside:
        work: Path = options.work or Path(aside)
        alone, spread = work / "alone", work / "cluster"
        shared = ["compute.threads=1", "track.uri=null", *options.set]
        if not (alone / NUMBERS).is_file():
            project(alone, [*shared, "compute.workers=1"])
            seconds = {"one_process": reproduce(alone)}
            write_json(alone / "seconds.json", seconds)
        seconds = json.loads((alone / "seconds.json").read_text(encoding="utf-8"))
        with cluster(spread) as (address, faults):
            project(spread, [*shared, "compute.executor=ray", f"compute.ray_address={address}"])
            seconds["cluster"] = reproduce(spread)
        one, other = made(alone), made(spread)
        report = {
            "command": shlex.join(["python", "-m", "benchmarks.cluster", *arguments]),
            "device": device.name(),
            "files": len(one),
            "differing": differing(one, other),
            "faults": faults,
            "seconds": seconds,
        }
    write_json(options.output / "cluster.json", report)
    print(json.dumps(report, indent=1))
    return report


if __name__ == "__main__":
    main()

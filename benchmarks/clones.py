"""Clones of this repository at a commit, each with its own code, for what is timed beside an earlier commit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks.scale import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def clone(folder: Path, commit: str) -> dict[str, Any]:
    """Clone a commit, and return its parameters with nothing tracked; ``write`` puts them there."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    subprocess.run(["git", "-C", str(folder), "checkout", "--quiet", commit], check=True)
    raw: dict[str, Any] = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    raw["track"]["uri"] = None
    return raw


def write(folder: Path, raw: dict[str, Any]) -> None:
    """Write the parameters of a clone."""
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")


def command(folder: Path, threads: int, *words: str) -> float:
    """Run a command of dreamset in a clone with the clone's own code, and return its seconds.

    Args:
        folder: the clone.
        threads: that it computes with.
        words: the command and its arguments.
    """
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    own = counts | {"PYTHONPATH": str((folder / "src").resolve())}
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "dreamset", *words], cwd=folder, env=os.environ | own, check=True, capture_output=True
    )
    return time.perf_counter() - started

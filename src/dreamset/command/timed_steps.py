"""Timed steps: what an estimate multiplies where no record stands for a stage, and the file that keeps both.

A step is timed in a process of its own (``probe``), once for a machine and the settings that its seconds depend on.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamset.core import device
from dreamset.core.files import digest, write_json
from dreamset.data import splits
from dreamset.data.runs import REAL, runs

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from dreamset.core.workspace import Workspace
    from dreamset.params import Params

_FORMAT: Final = 1  # of the file; what another version has written is measured again
_PATIENCE: Final = 300  # seconds for all timed steps of one call


@dataclass(frozen=True)
class Timed:
    """A timed step.

    Attributes:
        seconds: of the step; of an image where images are drawn or looked at, and there of one sampler step.
        fixed: seconds of an image beside its sampler steps.
        bytes: on disk, of the adapter or classifier.
    """

    seconds: float
    fixed: float = 0.0
    bytes: int = 0


def machine() -> dict[str, Any]:
    """Return what tells this machine, and the part of it that a stage may use, from others; without torch."""
    gpus = [path.read_text(encoding="utf-8") for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    names = [line.partition(":")[2].strip() for text in gpus for line in text.splitlines() if line.startswith("Model")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    asked = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
    return {"host": platform.node(), "cpu": device._cpu(), "cores": cores, "gpus": names, **asked}


def needed(params: Params, stage: str, item: str | None, *, cv: bool = False) -> list[str]:
    """Return the names of the timed steps of which a stage consists; ``cv``: under cross-validation."""
    row = params.recipes.get(item or "")
    recipes = params.active if stage == "evaluate" else (item,) if item in params.recipes else ()
    adapters = [f"adapt {trained_as(params, name)}" for name in recipes if name and params.recipes[name].trains]
    fitted = {run.classifier for arm in (REAL, *recipes) for run in runs(params, arm)} if stage != "tune" else set()
    fitted |= {params.base.tune.classifier} if stage == "tune" else set()
    # What has no row is fitted in seconds.
    classifiers = [f"classifier {name}" for name in sorted(fitted & params.base.train.rows.keys())]
    again = params.selection == "cv"
    by_stage = {
        "expect": ["draw"],
        "adapt": [*adapters, *(["draw"] if adapters else [])],
        "tune": [*adapters, "draw", *classifiers] if row and row.is_tuned else [],
        "generate": ["draw"] if row and row.draws else [],
        "train": [*classifiers, *([*adapters, "draw"] if again else [])],
        "evaluate": [*classifiers, "judge", *([*adapters, "draw"] if cv or again else [])],
        "deliver": _by_folds(params) if params.deliver.calibrate and not (cv or again) else [],
    }
    return ["start", *by_stage.get(stage, [])]


def _by_folds(params: Params) -> list[str]:
    """Return the timed steps of the folds in which candidates for delivery are compared; none of retrieved images."""
    if not params.recipes[params.primary_recipe].draws:
        return []
    adapted = [name for name in params.lineage(params.primary_recipe) if params.recipes[name].trains]
    fitted = dict.fromkeys([*params.delivered_alone, *params.train.baselines])
    return [*(f"classifier {name}" for name in fitted), *(f"adapt {name}" for name in adapted), "draw"]


def timed(
    params: Params, workspace: Workspace, file: Path, names: Collection[str]
) -> tuple[dict[str, Timed], dict[str, str]]:
    """Return the timed steps of ``names``, and why others could not be timed; those that are not kept are timed now.

    Args:
        params: all parameters.
        workspace: of the project.
        file: the parameters' file.
        names: what ``wanted`` returned.
    """
    keys, kept = _keys(params, workspace, names), read(workspace)
    # Recipes with the same adapters have the same step.
    missing = [*{key: name for name, key in keys.items() if key not in kept["steps"]}.values()]
    failed: dict[str, str] = {}
    # The start alone is not worth a process.
    if {*missing} - {"start"}:
        found = _probe(workspace.root, file, missing)
        kept = read(workspace)
        for name in missing:
            facts = found.get(name, {"failed": "it took too long"})
            if "failed" in facts:
                failed |= {one: facts["failed"] for one in keys if keys[one] == keys[name]}
            else:
                kept["steps"][keys[name]] = {"name": name} | facts
        write(workspace, kept)
    return _found(kept, keys), failed


def kept(params: Params, workspace: Workspace, names: Collection[str]) -> dict[str, Timed]:
    """Return those of the timed steps that were timed before."""
    return _found(read(workspace), _keys(params, workspace, names))


def _keys(params: Params, workspace: Workspace, names: Collection[str]) -> dict[str, str]:
    """Return what each timed step is kept under: the machine, and the settings that its seconds depend on."""
    return {name: digest([machine(), *_measured(params, workspace, name)])[:16] for name in dict.fromkeys(names)}


def _found(kept: dict[str, dict[str, Any]], keys: Mapping[str, str]) -> dict[str, Timed]:
    known = {name: kept["steps"][key] for name, key in keys.items() if key in kept["steps"]}
    return {
        name: Timed(facts["seconds"], facts.get("fixed", 0.0), facts.get("bytes", 0)) for name, facts in known.items()
    }


def _probe(root: Path, file: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Run the timed steps in a process of their own, and return what it measured by then."""
    command = [sys.executable, "-m", "dreamset.command.probe", str(file), repr(time.time()), *names]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=_PATIENCE, check=False, stdin=subprocess.DEVNULL
        )
        printed = done.stdout
    except subprocess.TimeoutExpired as error:
        printed = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
    return dict(json.loads(line) for line in printed.splitlines() if line.startswith("["))


def _measured(params: Params, workspace: Workspace, name: str) -> list[Any]:
    """Return the settings that the seconds of a timed step depend on."""
    kind, _, item = name.partition(" ")
    base = params.base
    generator = [base.generator, base.variant, base.resolution, base.dtype, list(base.memory)]
    if kind == "draw":
        return [kind, generator, base.generate.batch, base.generate.guidance == 1]
    if kind == "adapt":
        classes = len(splits.read_split(workspace.splits).classes) if workspace.splits.is_file() else 2
        row = dataclasses.asdict(params.recipes[item].training())
        return [kind, generator, row, params.schedule(item).batch, params.together(item), classes]
    if kind == "classifier":
        return [kind, base.clip, base.resolution, base.train.crop, dataclasses.asdict(base.train.rows[item])]
    return [kind, base.judge if kind == "judge" else ""]


def trained_as(params: Params, recipe: str) -> str:
    """Return the first active recipe that is trained as ``recipe`` is: the same adapters serve both."""
    row = params.recipes[recipe]
    schedule, before = params.schedule(recipe) if row.trains else None, params.after.get(recipe)
    for name in params.active:
        other = params.recipes[name]
        same = other.training() == row.training() and params.after.get(name) == before
        if other.trains and same and params.schedule(name) == schedule:
            return name
    return recipe


def _path(workspace: Workspace) -> Path:
    return workspace.root / ".dreamset/times.json"


def read(workspace: Workspace) -> dict[str, dict[str, Any]]:
    """Return what is kept; nothing where the file is missing, not whole or of another format: it is measured again."""
    try:
        kept = json.loads(_path(workspace).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = {}
    known = isinstance(kept, dict) and kept.get("format") == _FORMAT
    return {part: kept.get(part, {}) if known else {} for part in ("runs", "steps")}


def write(workspace: Workspace, kept: dict[str, dict[str, Any]]) -> None:
    """Keep records and timed steps."""
    write_json(_path(workspace), {"format": _FORMAT} | kept)

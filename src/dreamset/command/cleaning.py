"""``dreamset clean``: what can be made again, and its removal.

dvc.yaml lists what stages write. Beside that go finished and unfinished work under ``.dreamset``. What a person made or
decided stays, and so do studies and MLflow's runs, which took long and say what was tried.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.errors import InputError
from dreamset.core.strict import read_yaml
from dreamset.data.adapters import set_aside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dreamset.core.workspace import Workspace

KEPT: Final = (
    "data/raw, data/review, data/prompts, params.yaml, models/base, results/table, studies, MLflow's runs and DVC's "
    "cache"
)
_KEPT: Final = ("data/raw", "data/review", "data/prompts", "results/table", "models/base")
_WORK: Final = ("captions", "folds", "scratch", "shards", "table", "tune", "unfinished")  # folders of .dreamset
_ITEM: Final = re.compile(r"\$\{[^}]*\}")


@dataclass(frozen=True)
class Found:
    """A file or folder that can be made again; ``size`` is in bytes, without what is counted elsewhere by a link."""

    path: Path
    files: int
    size: int


def find(workspace: Workspace) -> tuple[list[Found], list[Path]]:
    """Return what can be made again, by place, and the links that stand there: these and what they lead to stay.

    Raises:
        InputError: dvc.yaml is missing, or lists outputs in another way.
    """
    seen: set[tuple[int, int]] = set()
    found, links = [], []
    for path in dict.fromkeys(_places(workspace.root)):
        if link := _link(workspace.root, path):
            links.append(link)
        else:
            found.append(Found(path, *_measure(path, seen)))
    return found, [*dict.fromkeys(links)]


def remove(workspace: Workspace, found: list[Found]) -> list[str]:
    """Remove what ``find`` found, and return where that is now which a person had put among the adapters."""
    moved: list[str] = []
    for path in (place.path for place in found):
        if path.parent == workspace.adapter("any").parent and path.is_dir():
            moved += set_aside(path, workspace.own(path.name))
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return moved


def _places(root: Path) -> Iterator[Path]:
    """Yield what is there of all that can be made again."""
    kept = [root / name for name in _KEPT]
    for pattern in _outputs(root / "dvc.yaml"):
        for path in sorted(root.glob(pattern)):
            if path.name != ".gitignore" and not any(path.is_relative_to(k) or k.is_relative_to(path) for k in kept):
                yield path
    for name in _WORK:
        path = root / ".dreamset" / name
        if path.is_symlink() or path.is_dir():
            yield path


def _outputs(file: Path) -> Iterator[str]:
    """Yield the outputs of every stage of dvc.yaml as patterns, in which ``*`` stands for the item."""
    try:
        for stage in read_yaml(file)["stages"].values():
            entry = stage.get("do", stage)
            listed: list[str | dict[str, Any]] = [*entry.get("outs", ()), *entry.get("metrics", ())]
            for out in listed:
                yield _ITEM.sub("*", out if isinstance(out, str) else next(iter(out)))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: lists no stages with outputs; `git checkout dvc.yaml` has them.") from error


def _link(root: Path, path: Path) -> Path | None:
    """Return the first link on the way from the project's folder to a place in it, itself included; None without."""
    parts = path.relative_to(root).parts
    ways = [root.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)]
    return next((way for way in ways if way.is_symlink()), None)


def _measure(path: Path, seen: set[tuple[int, int]]) -> tuple[int, int]:
    """Count the files and bytes of a place, without following links; a file of several names counts once."""
    files = [path]
    if path.is_dir():
        files = [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
    size = 0
    for file in files:
        facts = file.lstat()
        if (facts.st_dev, facts.st_ino) not in seen:
            seen.add((facts.st_dev, facts.st_ino))
            size += facts.st_size
    return len(files), size

"""Records on disk that wait for the server, one folder each; a visible folder is always whole."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, Literal

from dreamset.core.files import atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

BROKEN: Final = "broken"
_ABANDONED_S: Final = 3600.0


@dataclass(frozen=True)
class Run:
    """One record: ``record.json`` beside the folder ``artifacts``. Times are seconds since the epoch."""

    id: str
    stage: str
    item: str | None
    started: float
    ended: float
    commit: str
    pipeline: str
    pipeline_params: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    curves: dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class Trial:
    """A trial of a study; ``status`` is MLflow's word for how it ended."""

    number: int
    name: str
    status: Literal["FINISHED", "KILLED", "FAILED"]
    started: float
    ended: float
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    curves: dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class Study:
    """One record of a study and all its trials, whose pictures are beside it in ``trials/NUMBER``.

    ``study`` identifies the study: all its records share it. MLflow shows ``note`` at the top of the run.
    """

    id: str
    stage: str
    name: str
    study: str
    started: float
    ended: float
    note: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    curves: dict[str, list[tuple[int, float]]]
    trials: list[Trial]


def write(
    spool: Path, run: Run | Study, artifacts: Iterable[Path], pictures: Mapping[int, Path] | None = None
) -> list[Path]:
    """Spool a record with copies of its files and of a picture per trial; return the files that are missing."""
    name = f"{int(run.started * 1000):014d}-{run.stage}-{run.id}"
    aside, missing = spool / f".{name}", []
    try:
        for path in artifacts:
            if path.exists():
                _copy(path, aside / "artifacts")
            else:
                missing.append(path)
        for number, path in (pictures or {}).items():
            if path.is_file():
                _copy(path, aside / "trials" / str(number), "samples.png")
        # NaN is allowed: people want to see a loss that diverged.
        atomic_write(aside / "record.json", json.dumps(asdict(run), ensure_ascii=False))
        aside.rename(spool / name)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return missing


def records(spool: Path) -> list[Path]:
    """Return the spooled records, the earliest first; half-written ones are hidden."""
    if not spool.is_dir():
        return []
    return sorted(path for path in spool.iterdir() if path.name[0].isdigit())


def read(folder: Path) -> Run | Study:
    """Read a record; raises OSError, ValueError or TypeError where it is not whole."""
    fields = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    if "trials" not in fields:
        return Run(**fields)
    return Study(**fields | {"trials": [Trial(**trial) for trial in fields["trials"]]})


def remove(folder: Path) -> None:
    """Remove a record; no half of it is ever visible."""
    hidden = folder.with_name(f".sent-{folder.name}")
    folder.rename(hidden)
    shutil.rmtree(hidden)


def put_aside(folder: Path, error: Exception) -> None:
    """Move an unusable record to ``broken/``, with the reason beside it."""
    target = folder.parent / BROKEN / folder.name
    target.parent.mkdir(exist_ok=True)
    folder.rename(target)
    if target.is_dir():
        (target / "reason.txt").write_text(f"{type(error).__name__}: {error}\n", encoding="utf-8")


def sweep(spool: Path) -> None:
    """Remove what killed processes left behind: half-written records, and half-removed ones that were sent."""
    for path in spool.glob(".*/"):
        if path.name.startswith(".sent-") or path.stat().st_mtime < time.time() - _ABANDONED_S:
            shutil.rmtree(path)


def _copy(path: Path, folder: Path, name: str | None = None) -> None:
    """Copy a file or folder into ``folder``; where its name is taken, its parent's name is put before it."""
    target = folder / (name or path.name)
    if target.exists():
        target = folder / f"{path.parent.name}_{path.name}"
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(path, target)

"""Records on disk that wait for the server, one folder each; a visible folder is always whole."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from dreamset.core.files import atomic_write, sha256

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

BROKEN: Final = "broken"
MODEL: Final = "model"
_ABANDONED_S: Final = 3600.0
_FILES: Final = "files"


@dataclass(frozen=True)
class Dataset:
    """A set of images that a run learned from or was measured on; ``source`` is its place within the project."""

    name: str
    digest: str
    source: str
    images: int
    use: Literal["training", "testing"]


@dataclass(frozen=True)
class Model:
    """A classifier that others load through MLflow; its folder lies among the run's files.

    Attributes:
        name: what MLflow calls it.
        digest: of its weights: the same classifier is logged once per run.
        loader: the module whose ``_load_pyfunc`` reads the folder.
        inputs: types of what it takes, by name.
        outputs: types of what it returns, by name.
    """

    name: str
    digest: str
    loader: str
    inputs: dict[str, str]
    outputs: dict[str, str]


@dataclass(frozen=True)
class Run:
    """A run as MLflow shows it. Times are seconds since the epoch.

    Attributes:
        key: what it is called within its tree: the same key is the same run, whoever sends it.
        name: what people read.
        kind: what it is a run of. A tag of this name is what people filter by.
        started: seconds since the epoch.
        ended: the same.
        above: the key of the run that it is nested in.
        status: MLflow's word for how it ended.
        note: MLflow shows it at the top of the run.
        tags: further tags.
        params: by name.
        metrics: final figures by name.
        curves: points by name, each a step, a value and its time; see ``spread``.
        datasets: what it learned from and was measured on.
        model: what it delivered.
    """

    key: str
    name: str
    kind: str
    started: float
    ended: float
    above: str | None = None
    status: Literal["FINISHED", "KILLED", "FAILED"] = "FINISHED"
    note: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float, float]]] = field(default_factory=dict)
    datasets: list[Dataset] = field(default_factory=list)
    model: Model | None = None

    @property
    def content(self) -> str:
        """Digest of all that it says, its times aside: what is made again from the same files is not sent again."""
        said = {name: value for name, value in asdict(self).items() if name not in ("started", "ended")}
        return sha256(json.dumps(said, sort_keys=True).encode())[:16]


@dataclass(frozen=True)
class Record:
    """What is sent at once: runs of one tree, each after the one that it is nested in.

    ``record.json`` holds it. The files of the run number N lie beside it in ``files/N``.
    """

    id: str
    stage: str
    tree: str
    started: float
    runs: list[Run]


def spread(points: Iterable[tuple[int, float]], started: float, ended: float) -> list[tuple[int, float, float]]:
    """Return (step, value) pairs with a time each, for the steps of a curve take equally long."""
    every = list(points)
    last = max((step for step, _ in every), default=0) or 1
    return [(step, value, started + (ended - started) * step / last) for step, value in every]


def write(spool: Path, record: Record, files: Mapping[str, Mapping[str, Path]]) -> list[Path]:
    """Spool a record with copies of its files; return the files that are missing.

    DVC may delete a stage's outputs before the record is sent, so they are copied.

    Args:
        spool: the folder of all records.
        record: what is sent.
        files: by key of a run, files and folders by the names that MLflow gives them.
    """
    name = f"{int(record.started * 1000):014d}-{record.stage}-{record.id}"
    aside, missing = spool / f".{name}", []
    try:
        for number, run in enumerate(record.runs):
            for called, path in files.get(run.key, {}).items():
                if path.exists():
                    _copy(path, files_of(aside, number) / called)
                else:
                    missing.append(path)
        # NaN is allowed: people want to see a loss that diverged.
        atomic_write(aside / "record.json", json.dumps(asdict(record), ensure_ascii=False))
        aside.rename(spool / name)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return missing


def files_of(folder: Path, number: int) -> Path:
    """Return the folder of the files of a record's run; it need not exist."""
    return folder / _FILES / str(number)


def named(paths: Iterable[Path]) -> dict[str, Path]:
    """Return files by their names; where a name is taken, that of the folder is put before it."""
    names: dict[str, Path] = {}
    for path in paths:
        names[f"{path.parent.name}_{path.name}" if path.name in names else path.name] = path
    return names


def records(spool: Path) -> list[Path]:
    """Return the spooled records, the earliest first; half-written ones are hidden."""
    if not spool.is_dir():
        return []
    return sorted(path for path in spool.iterdir() if path.name[0].isdigit())


def read(folder: Path) -> Record:
    """Read a record; raises OSError, ValueError or TypeError where it is not whole."""
    fields = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    return Record(**fields | {"runs": [_run(run) for run in fields.get("runs", ())]})


def _run(fields: dict[str, Any]) -> Run:
    sets = [Dataset(**row) for row in fields["datasets"]]
    return Run(**fields | {"datasets": sets, "model": Model(**fields["model"]) if fields["model"] else None})


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


def size(folder: Path) -> tuple[int, int]:
    """Return the number of runs and of bytes of a record, about; both are 0 where it cannot be read."""
    try:
        runs = len(read(folder).runs)
        return runs, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    except (OSError, ValueError, TypeError, KeyError):
        return 0, 0


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(path, target)

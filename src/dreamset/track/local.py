"""A store in a file of this machine, ``sqlite:///mlflow.db``: it and its artifacts move with the project."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from dreamset.core.addresses import without_password

FOLDER: Final = "mlartifacts"
SAYS: Final = "says "  # begins a line of the sender that is meant for people
_SQLITE: Final = "sqlite:///"
# Tables of MLflow with the place of somebody's artifacts.
_PLACES: Final = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
)


def file_of(uri: str) -> Path | None:
    """Return the file of a store; None where it is no file."""
    return Path(uri.removeprefix(_SQLITE)).absolute() if uri.startswith(_SQLITE) else None


def artifacts(store: Path) -> str:
    """Return where the artifacts of a store belong: beside it, and by a relative path within the project.

    The project is the current folder.
    """
    inside = store.parent.is_relative_to(Path.cwd())
    return FOLDER if inside else (store.parent / FOLDER).as_posix()


def follow(store: Path, experiment: str, place: str) -> str | None:
    """Let all artifacts of an experiment be looked for in ``place``; return a sentence if they were elsewhere.

    MLflow stores absolute paths, which a copied or moved project would go on writing to. A place that is no
    ``mlartifacts`` of this program is somebody's choice, and stays.
    """
    with closing(sqlite3.connect(store, timeout=30)) as database, database:
        found = "SELECT artifact_location FROM experiments WHERE experiment_id = ?"
        (old,) = database.execute(found, (experiment,)).fetchone()
        parts = urlsplit(old)
        if old == place or parts.scheme not in ("", "file") or Path(parts.path).name != FOLDER:
            return None
        for table, column in _PLACES:
            # An older store may lack the models.
            if database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE experiment_id = ? AND substr({column}, 1, ?) = ?",
                    (place, len(old) + 1, experiment, len(old), old),
                )
    before = Path(unquote(parts.path))
    if before.resolve() == Path(place).resolve():
        return None
    copy = f"; copy them from {before}" if before.is_dir() and not Path(place).is_dir() else ""
    return f"the project has moved, so MLflow's files of earlier runs are now looked for in {place}{copy}."


def of_another_version(uri: str, message: str) -> str | None:
    """Return what to do about a database of another version of MLflow; None if ``message`` says something else."""
    if "out-of-date database schema" not in message:
        return None
    import mlflow

    found = message.partition("found version ")[2].partition(",")[0]
    steps = Path(mlflow.__file__).parent / "store/db_migrations/versions"
    name = without_password(uri)
    if any(steps.glob(f"{found}_*.py")):
        return (
            f"it is of an older MLflow than the installed {mlflow.__version__}: copy it, then run "
            f"`mlflow db upgrade {name}`"
        )
    return (
        f"it is of a newer MLflow than the installed {mlflow.__version__}: install the newer one with "
        "`pip install --upgrade mlflow`, or give another track.uri"
    )

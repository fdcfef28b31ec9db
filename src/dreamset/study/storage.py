"""The storage of studies: a SQLite file, or PostgreSQL for workers on several machines.

Optuna's own storage lacks three things. Several workers that open an empty store all create its tables at once. Two
workers that ask for the last trial both get one. And nobody notices a dead worker before the grace is over. So one
worker at a time opens a store or takes a trial (``exclusive``). And beside a SQLite file each running trial has a lock
of the kernel, which ends with its process (``hold``).
"""

from __future__ import annotations

import hashlib
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamset.core import locks
from dreamset.core.addresses import without_password
from dreamset.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    import optuna
    import sqlalchemy

    from dreamset.params.sections import Tune

MEMORY: Final = "memory://"  # a store for tests that keeps nothing
_PATIENCE: Final = 60  # seconds that SQLite waits for the write of another process
_CONNECT: Final = 10  # seconds to wait for the answer of a server
_KEY: Final = int.from_bytes(hashlib.sha256(b"dreamset studies").digest()[:8], "big") >> 1  # of the PostgreSQL lock


def connect(tune: Tune, root: Path, stale: Callable[[optuna.Study, optuna.trial.FrozenTrial], None]) -> Any:
    """Return the storage of ``tune.storage`` with its tables; create it if it is missing.

    Args:
        tune: the section of the parameters.
        root: the folder that a relative path of SQLite starts from.
        stale: called with a trial that failed because its worker fell silent.

    Raises:
        InputError: the kind of store is unknown, the server does not answer or refuses, or another version of Optuna
            made the store.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    name = without_password(tune.storage)
    if tune.storage == MEMORY:
        return optuna.storages.InMemoryStorage()
    url, options = engine_of(tune.storage, root)
    try:
        # Optuna reads braces as fields, for the version of its schema.
        text = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            with _one_at_a_time(url, options):
                return optuna.storages.RDBStorage(
                    text,
                    options,
                    heartbeat_interval=tune.heartbeat_s,
                    grace_period=tune.grace_s,
                    heartbeat_stale_trial_callback=stale,
                )
    except ImportError as error:
        raise InputError(
            f"tune.storage: {name} needs a driver that is not installed; run `pip install -e '.[postgresql]'`, and "
            "begin the URL with postgresql+psycopg://."
        ) from error
    except RuntimeError as error:  # Optuna's word for another schema
        raise InputError(
            f"tune.storage: {name} was made by another version of Optuna than {optuna.__version__}; run `optuna "
            "storage upgrade --storage URL`, or name another store."
        ) from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, OSError) as error:
        raise InputError(
            f"tune.storage: {name} cannot be opened ({cause(error)}); start it, or correct tune.storage."
        ) from error


def cause(error: BaseException) -> str:
    """Return the first line of a database's message, which two layers of exceptions wrap."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(getattr(error, "orig", None) or error).strip()
    return (text.splitlines() or [type(error).__name__])[0].rstrip(" .:")


def backend(study: optuna.Study) -> optuna.storages.RDBStorage | None:
    """Return the database of a study; None for a study in memory."""
    import optuna

    # Optuna wraps the storage and has no public way back to it.
    inner = getattr(study._storage, "_backend", None)
    return inner if isinstance(inner, optuna.storages.RDBStorage) else None


def exclusive(study: optuna.Study) -> AbstractContextManager[None]:
    """Return a lock under which no other worker takes a trial from the same store; it ends with the process."""
    database = backend(study)
    return nullcontext() if database is None else _exclusive(database.engine)


def hold(study: optuna.Study, trial_id: int, *, taken_over: bool = False) -> locks.Lock | None:
    """Take the lock of a trial that this process runs.

    Args:
        study: with the trial in its store.
        trial_id: of the trial in the store, over all studies.
        taken_over: only if an earlier process left the file of its lock behind, as a killed process does.

    Returns:
        The lock; None if another process has it, or if the store has no locks.
    """
    database = backend(study)
    if database is None or database.engine.dialect.name != "sqlite":
        return None
    path = _locks(database.engine.url) / f"trial_{trial_id}{locks.SUFFIX}"
    if taken_over and not path.is_file():
        return None
    lock = locks.take(path)
    if lock is None or lock.exclusive:
        return lock
    lock.release()  # without flock a lock does not show whether a process is dead; heartbeats do
    return None


def engine_of(storage: str, root: Path) -> tuple[sqlalchemy.URL, dict[str, Any]]:
    """Return the full URL, and the options of SQLAlchemy's engine.

    Raises:
        InputError: it is no URL, or of a kind of database in which no studies are kept.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(storage)
    except (ArgumentError, ValueError) as error:  # ValueError: the port is no number
        raise InputError(
            f"tune.storage: {without_password(storage)} is no URL; write sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME."
        ) from error
    kind = url.get_backend_name()
    if kind == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise InputError("tune.storage: names no file; write sqlite:///FILE.")
        return url.set(database=str(root / url.database)), {"connect_args": {"timeout": _PATIENCE}}
    if kind == "postgresql":
        # Trials are long, and networks often cut an idle connection.
        options = {"pool_pre_ping": True, "connect_args": {"connect_timeout": _CONNECT}}
        # SQLAlchemy's default driver is psycopg 2, which is no longer developed.
        return (url.set(drivername="postgresql+psycopg") if "+" not in url.drivername else url), options
    raise InputError(
        f"tune.storage: studies are kept in sqlite or postgresql, not in {kind}; write sqlite:///FILE or "
        "postgresql+psycopg://USER@HOST/NAME."
    )


@contextmanager
def _one_at_a_time(url: sqlalchemy.URL, options: dict[str, Any]) -> Iterator[None]:
    """Hold ``_exclusive`` for a store that has no tables yet."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=options["connect_args"])
    with _exclusive(engine):
        yield


@contextmanager
def _exclusive(engine: sqlalchemy.Engine) -> Iterator[None]:
    """Keep other workers from opening the store or taking a trial."""
    import sqlalchemy

    if engine.dialect.name == "sqlite":
        lock = locks.wait(_locks(engine.url) / f"store{locks.SUFFIX}")
        try:
            yield
        finally:
            lock.release()
    else:
        # The lock ends with the transaction, and this with the connection. So a killed worker does not block others.
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _KEY})
            yield


def _locks(url: sqlalchemy.URL) -> Path:
    """Return the folder of locks beside a SQLite file."""
    assert url.database
    return Path(f"{url.database}.locks")

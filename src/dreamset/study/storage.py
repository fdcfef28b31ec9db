"""Where studies are kept: in a SQLite file, or in PostgreSQL for workers on several machines.

Three things are missing from Optuna's own storage. Workers that meet an empty store all create its tables at once; two
that ask for the last trial both get one; and a worker that dies is noticed after its grace alone. So one worker at a
time opens a store or takes a trial (``exclusive``), and beside a SQLite file each running trial has a lock of the
kernel's, which ends with its process (``hold``).
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

MEMORY: Final = "memory://"  # nothing is kept, for tests
_PATIENCE: Final = 60  # seconds that SQLite waits for another's write
_CONNECT: Final = 10  # seconds until a server that does not answer is given up
_KEY: Final = int.from_bytes(hashlib.sha256(b"dreamset studies").digest()[:8], "big") >> 1  # of PostgreSQL's lock


def connect(tune: Tune, root: Path, stale: Callable[[optuna.Study, optuna.trial.FrozenTrial], None]) -> Any:
    """The storage of ``tune.storage``, with its tables; made where it is missing.

    Args:
        tune: the section of the parameters.
        root: the folder that a relative path of SQLite starts from.
        stale: what is done with a trial whose worker has fallen silent, after it has been failed.

    Raises:
        InputError: no such kind of store, no server, no right to it, or one of another Optuna's.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    name = without_password(tune.storage)
    if tune.storage == MEMORY:
        return optuna.storages.InMemoryStorage()
    url, options = _engine_of(tune.storage, root)
    try:
        # Braces are fields to Optuna, which fills in the version of its schema.
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
            f"tune.storage: {name} needs a driver that is not installed; pip install -e '.[postgresql]', and begin "
            "it with postgresql+psycopg://."
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
    """The first line of what a database has said; a driver's own words stand behind two layers."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = str(getattr(error, "orig", None) or error).strip()
    return (said.splitlines() or [type(error).__name__])[0].rstrip(" .:")


def backend(study: optuna.Study) -> optuna.storages.RDBStorage | None:
    """The database of a study; None for one in memory."""
    import optuna

    # Optuna wraps the storage that it is given, and offers no way back to it.
    inner = getattr(study._storage, "_backend", None)
    return inner if isinstance(inner, optuna.storages.RDBStorage) else None


def exclusive(study: optuna.Study) -> AbstractContextManager[None]:
    """Inside, no other worker takes a trial from the same store; its death ends it."""
    database = backend(study)
    return nullcontext() if database is None else _exclusive(database.engine)


def hold(study: optuna.Study, trial_id: int, *, taken_over: bool = False) -> locks.Lock | None:
    """The lock of a trial that this process runs; None where there are none, and while another process has it.

    Args:
        study: whose store the trial is in.
        trial_id: of the trial in the store, over all studies.
        taken_over: only where an earlier holder has left the file of its lock behind, which is what a kill does.
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
    lock.release()  # without flock nobody can be told dead: heartbeats do that
    return None


def is_alive(study: optuna.Study, trial_id: int) -> bool:
    """Whether the worker of a running trial still works on it, as far as its lock or its heartbeat can tell."""
    database = backend(study)
    if database is None:
        return False
    if database.engine.dialect.name == "sqlite":
        lock = locks.take(_locks(database.engine.url) / f"trial_{trial_id}{locks.SUFFIX}")
        if lock is None:
            return True
        lock.release()
        if lock.exclusive:
            return False
    return trial_id not in database._get_stale_trial_ids(study._study_id)


def _engine_of(storage: str, root: Path) -> tuple[sqlalchemy.URL, dict[str, Any]]:
    """The URL in full, and the options of SQLAlchemy's engine."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(storage)
    except (ArgumentError, ValueError) as error:  # the latter of a port that is no number
        raise InputError(
            f"tune.storage: {without_password(storage)} is no URL; write sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME."
        ) from error
    kind = url.get_backend_name()
    if kind == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise InputError("tune.storage: names no file; write sqlite:///FILE.")
        return url.set(database=str(root / url.database)), {"connect_args": {"timeout": _PATIENCE}}
    if kind == "postgresql":
        # Trials are long, and a connection that has idled is often cut on the way.
        options = {"pool_pre_ping": True, "connect_args": {"connect_timeout": _CONNECT}}
        # Without a driver SQLAlchemy means psycopg 2, which is no longer developed.
        return (url.set(drivername="postgresql+psycopg") if "+" not in url.drivername else url), options
    raise InputError(
        f"tune.storage: studies are kept in sqlite or postgresql, not in {kind}; write sqlite:///FILE or "
        "postgresql+psycopg://USER@HOST/NAME."
    )


@contextmanager
def _one_at_a_time(url: sqlalchemy.URL, options: dict[str, Any]) -> Iterator[None]:
    """``_exclusive`` of a store that has no tables yet."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=options["connect_args"])
    with _exclusive(engine):
        yield


@contextmanager
def _exclusive(engine: sqlalchemy.Engine) -> Iterator[None]:
    import sqlalchemy

    if engine.dialect.name == "sqlite":
        lock = locks.wait(_locks(engine.url) / f"store{locks.SUFFIX}")
        try:
            yield
        finally:
            lock.release()
    else:
        # Of the transaction, which ends with the connection: a killed worker leaves it to the others.
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _KEY})
            yield


def _locks(url: sqlalchemy.URL) -> Path:
    assert url.database
    return Path(f"{url.database}.locks")

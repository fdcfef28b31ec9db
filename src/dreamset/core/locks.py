"""Locks: one process runs a stage, and one process makes a shard, at a time.

The locks are the kernel's (flock), so a killed process leaves none behind. When only the `dvc` parent of a stage is
killed, the stage goes on as an orphan. The next run of the same stage writes its own token and waits. The older run
reads the token between two shards or two steps, and leaves there.

On a file system without flock there is a warning and no lock: shards are still whole or absent, but may be made twice.

filelock would replace only ``take``, and worse: it leaves the files of its locks behind, drops a lock with its Python
object, and calls a lock busy whose file was removed while it was being taken.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.errors import StoppedError
from dreamset.core.files import atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

SUFFIX: Final = ".lock"
_POLL: Final = 0.1  # seconds between two tries for a lock
_WITHOUT_FLOCK: Final = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


@dataclass(frozen=True)
class Lock:
    """A lock that this process has until ``release`` or its death; any thread may release it.

    Attributes:
        exclusive: False on a file system without flock, where another process gets the same lock.
    """

    path: Path
    handle: int
    exclusive: bool = True

    def release(self) -> None:
        """Release the lock and remove its file."""
        self.path.unlink(missing_ok=True)
        os.close(self.handle)


def take(path: Path) -> Lock | None:
    """Return the lock of a file, which is created where it is missing; None while another process has the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError as error:
            if error.errno not in _WITHOUT_FLOCK:
                os.close(handle)
                raise
            _warn_once(path.parent)
            return Lock(path, handle, exclusive=False)
        if _is_named(path, handle):
            return Lock(path, handle)
        # The previous process removed the file between our open and our flock, so we have locked a file without a name.
        os.close(handle)


def _is_named(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def wait(path: Path) -> Lock:
    """Wait for the lock of a file and return it.

    Raises:
        StoppedError: a newer run of this process's stage waits to take over.
    """
    while (lock := take(path)) is None:
        boundary()
        time.sleep(_POLL)
    return lock


def busy(folder: Path) -> list[str]:
    """Return the names of the locks in a folder that some process has now."""
    names = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        lock = take(path)
        if lock is None:
            names.append(path.name.removeprefix(".").removesuffix(SUFFIX))
        else:
            lock.release()
    return names


def process() -> str:
    """Return a file name that belongs to this process alone, even where several machines share a folder."""
    return f"{socket.gethostname()}-{os.getpid()}"


@dataclass(frozen=True)
class _Turn:
    name: str
    path: Path
    token: str

    def check(self) -> None:
        """Raise StoppedError when a newer run has replaced this one's token."""
        now = _read(self.path)
        if now is not None and now != self.token:
            raise StoppedError(
                f"{self.name}: a newer run ({_who(now)}) has taken over; the work that this one finished is kept."
            )


_turns: list[_Turn] = []  # of this process: one in the command line, none elsewhere


@contextmanager
def turn(folder: Path, name: str) -> Iterator[None]:
    """Run the block as the only run of ``name`` (a stage and its item); an older run is asked to leave first.

    Args:
        folder: folder of locks and tokens, the same for every run in one workspace.
        name: the stage and its item, as a file name.

    Raises:
        StoppedError: a newer run came while this one waited.
    """
    path = folder / f"{name}.token"
    previous = _read(path)
    this = _Turn(name, path, f"{os.getpid()} {socket.gethostname()} {uuid.uuid4().hex}\n")
    atomic_write(path, this.token)
    lock = take(folder / f"{name}{SUFFIX}")
    if lock is None:
        older = f" ({_who(previous)})" if previous else ""
        print(
            f"dreamset: {name}: another run{older} is going on and leaves at its next shard or step, or at its end; "
            "waiting for it.",
            file=sys.stderr,
            flush=True,
        )
        while lock is None:
            this.check()
            time.sleep(_POLL)
            lock = take(folder / f"{name}{SUFFIX}")
    _turns.append(this)
    try:
        this.check()
        yield
    finally:
        _turns.remove(this)
        if _read(path) == this.token:
            path.unlink(missing_ok=True)
        lock.release()


def turns() -> tuple[Any, ...]:
    """Return the turns that this process has now, for a worker to take with ``taking_turns``."""
    return tuple(_turns)


@contextmanager
def taking_turns(given: Iterable[Any]) -> Iterator[None]:
    """Let ``boundary`` leave for whoever takes over from another process, whose ``turns`` are given."""
    mine = [turn for turn in given if turn not in _turns]
    _turns.extend(mine)
    try:
        yield
    finally:
        for turn in mine:
            _turns.remove(turn)


def boundary() -> None:
    """Leave between two pieces of work if a newer run of the same stage waits.

    Raises:
        StoppedError: a newer run takes over; the sentence names its process.
    """
    for this in _turns:
        this.check()


def superseded() -> bool:
    """Return whether ``boundary`` would raise, for callers that must save something first."""
    try:
        boundary()
    except StoppedError:
        return True
    return False


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _who(token: str) -> str:
    process, host, _ = token.split()
    return f"process {process} on {host}"


_warned: set[Path] = set()


def _warn_once(folder: Path) -> None:
    if folder not in _warned:
        _warned.add(folder)
        print(
            f"dreamset: {folder}: no flock on this file system; run one process at a time here, or work is done twice.",
            file=sys.stderr,
            flush=True,
        )

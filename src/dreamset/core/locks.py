"""One run of a stage at a time, and one maker of a shard at a time.

Locks are the kernel's (flock), so a killed holder leaves none behind. When only the `dvc` parent of a stage is
killed, the stage goes on as an orphan; the next run of the same stage asks it to leave by writing its own token, and
waits. The older run reads the token at its boundaries, between two shards or two steps, and leaves there.

A file system without flock gets a warning and no locks: shards are still whole or not there, but may be made twice.
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
from typing import TYPE_CHECKING, Final

from dreamset.core.errors import StoppedError
from dreamset.core.files import atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SUFFIX: Final = ".lock"
_POLL: Final = 0.1  # seconds between two tries for a lock
_WITHOUT_FLOCK: Final = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


@dataclass(frozen=True)
class Lock:
    """A lock that this process holds until ``release`` or its death; any thread may release it.

    Attributes:
        kept: False on a file system without flock, where another process gets the same lock.
    """

    path: Path
    handle: int
    kept: bool = True

    def release(self) -> None:
        """Give the lock back and remove its file."""
        self.path.unlink(missing_ok=True)
        os.close(self.handle)


def take(path: Path) -> Lock | None:
    """The lock of a file, made where it is missing; None while another holds it."""
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
            return Lock(path, handle, kept=False)
        if _is_still(path, handle):
            return Lock(path, handle)
        # The holder before removed the file between our open and our flock: what we hold has no name any more.
        os.close(handle)


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def wait(path: Path) -> Lock:
    """The lock of a file, when it is free.

    Raises:
        StoppedError: a newer run of this process's stage wants to go on instead.
    """
    while (lock := take(path)) is None:
        boundary()
        time.sleep(_POLL)
    return lock


def held(folder: Path) -> list[str]:
    """Names of the locks in a folder that some process holds now."""
    names = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        lock = take(path)
        if lock is None:
            names.append(path.name.removeprefix(".").removesuffix(SUFFIX))
        else:
            lock.release()
    return names


def process() -> str:
    """A file name for what is this process's own, of all machines that share a folder."""
    return f"{socket.gethostname()}-{os.getpid()}"


@dataclass(frozen=True)
class _Turn:
    name: str
    token: Path
    mine: str

    def check(self) -> None:
        """Leave when a newer run has written its token over this one's."""
        now = _read(self.token)
        if now is not None and now != self.mine:
            raise StoppedError(
                f"{self.name}: a newer run ({_who(now)}) has taken over; what this one finished is kept."
            )


_turns: list[_Turn] = []  # of this process: one, or none outside the command line


@contextmanager
def turn(folder: Path, name: str) -> Iterator[None]:
    """The only run of ``name`` (a stage and its item) while it lasts; an older one is asked to leave first.

    Args:
        folder: where locks and tokens stand, the same for every run in one workspace.
        name: what is run, a file name.

    Raises:
        StoppedError: a still newer run came while this one waited.
    """
    token = folder / f"{name}.token"
    before = _read(token)
    mine = _Turn(name, token, f"{os.getpid()} {socket.gethostname()} {uuid.uuid4().hex}\n")
    atomic_write(token, mine.mine)
    lock = take(folder / f"{name}{SUFFIX}")
    if lock is None:
        older = f" ({_who(before)})" if before else ""
        print(
            f"dreamset: {name}: another run{older} is going on; it leaves at its next shard or step, or when it is "
            "done; waiting for it.",
            file=sys.stderr,
            flush=True,
        )
        while lock is None:
            mine.check()
            time.sleep(_POLL)
            lock = take(folder / f"{name}{SUFFIX}")
    _turns.append(mine)
    try:
        mine.check()
        yield
    finally:
        _turns.remove(mine)
        if _read(token) == mine.mine:
            token.unlink(missing_ok=True)
        lock.release()


def boundary() -> None:
    """Between two pieces of work: leave if a newer run of the same stage waits.

    Raises:
        StoppedError: naming the process that takes over.
    """
    for mine in _turns:
        mine.check()


def superseded() -> bool:
    """Whether ``boundary`` would raise, for those who have something to put away first."""
    try:
        boundary()
    except StoppedError:
        return True
    return False


def _read(token: Path) -> str | None:
    try:
        return token.read_text(encoding="utf-8")
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

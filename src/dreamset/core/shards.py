"""Finished pieces of work under keys, so that a stage goes on where it stopped.

DVC deletes a stage's outputs before it runs, so work in progress has to live elsewhere. A shard is a folder
``.dreamset/shards/<key>/`` that is a pure function of its inputs. Its key is the hash of everything that changes its
bytes, the code that makes it included. It is written aside, flushed, and renamed. The marker ``done.json`` comes last:
it lists every file with its sha256, and names the processor and the number of threads that made them. A stage assembles
its output from finished shards.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from dreamset.core import device, interrupts, locks, remote
from dreamset.core.code import code_digest
from dreamset.core.files import digest, filling, sha256_file, sync_folder, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

MARKER: Final = "done.json"

Unit = TypeVar("Unit")


def key_of(inputs: dict[str, Any], maker: str) -> str:
    """The key of a shard: the hash of its inputs and of all the code that the module ``maker`` runs to make it."""
    return digest({"inputs": inputs, "code": code_digest(maker)})


def find(store: Path, key: str) -> Path | None:
    """The folder of a finished, undamaged shard, or None; a damaged one is removed.

    What is not in the folder is loaded from the object storage beside it, where there is one.

    Raises:
        StoppedError: the storage cannot be used.
    """
    folder = store / key
    if folder.is_dir():
        remote.push_unsent(store, key)
    else:
        remote.pull(store, key)
    if not folder.is_dir():
        return None
    try:
        listed = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
        whole = all(sha256_file(folder / name) == expected for name, expected in listed.items())
    except (FileNotFoundError, ValueError, KeyError):  # removed by half, or a marker that is no longer JSON
        whole = False
    if whole:
        return folder
    # Not an error when it is gone: another process has seen the damage too.
    shutil.rmtree(folder, ignore_errors=True)
    return None


def machines(store: Path, keys: Iterable[str]) -> list[dict[str, Any]]:
    """The processors and numbers of threads that finished shards were made with, each once, as ``device.machine``."""
    markers = [json.loads((store / key / MARKER).read_text(encoding="utf-8")) for key in keys]
    machines = [marker["machine"] for marker in markers if "machine" in marker]  # an older marker names none
    return [dict(pairs) for pairs in dict.fromkeys(tuple(sorted(machine.items())) for machine in machines)]


def claimed(
    store: Path,
    units: Sequence[Unit],
    keys: Callable[[Unit], Sequence[str]],
    finished: Callable[[Unit], bool] | None = None,
) -> Iterator[tuple[Unit, ExitStack]]:
    """The units of work that are not finished, one after the other, for this process alone to make.

    What another process is making comes last, so that two processes with the same work share it. Nothing is held
    while one waits for the other, beyond what is still being written.

    Args:
        store: the shards' folder.
        units: pieces of work.
        keys: the shards that a unit makes, or other names that nothing else there has.
        finished: says whether a unit is; None: whether all its shards are there.

    Yields:
        A unit, and its claim, to be closed when the shards are written. A unit whose shards were finished by
        another process meanwhile is left out.
    """

    def is_finished(unit: Unit) -> bool:
        return all(find(store, key) for key in keys(unit)) if finished is None else finished(unit)

    busy = []
    for unit in units:
        claim = _claim(store, keys(unit), wait=False)
        if claim is None:
            busy.append(unit)
        elif is_finished(unit):
            claim.close()
        else:
            yield unit, claim
    for unit in busy:
        claim = _claim(store, keys(unit), wait=True)
        assert claim is not None
        if is_finished(unit):
            claim.close()
        else:
            yield unit, claim


def _claim(store: Path, keys: Sequence[str], wait: bool) -> ExitStack | None:
    """Locks of all the shards, or None where one is taken and ``wait`` is not asked for."""
    with ExitStack() as stack:
        # In one order everywhere: two who wait for each other's would wait for ever.
        for key in sorted(keys):
            path = store / f".{key}{locks.SUFFIX}"
            lock = locks.wait(path) if wait else locks.take(path)
            if lock is None:
                return None
            stack.callback(lock.release)
        return stack.pop_all()


def is_there(store: Path, key: str) -> bool:
    """Return whether a shard was finished, without a look at its content; see ``find``."""
    return (store / key / MARKER).is_file()


@contextmanager
def writing(store: Path, key: str, size: int | None = None) -> Iterator[Path]:
    """A folder to write a shard into; on leaving without an error it becomes the shard ``key``.

    Without a claim two processes may make the same shard: the first to finish wins, the other's copy is dropped.

    Args:
        store: the shards' folder.
        key: of the shard.
        size: bytes that will be written, as far as they are known beforehand.

    Raises:
        DiskFullError: there is no space; no part of the shard is left.
    """
    store.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{key[:16]}-", dir=store))
    try:
        # Within the try: what is free is told while what was written is still there.
        with filling(store, size):
            yield aside
            _finish(aside, key)
            if find(store, key) is None:
                try:
                    aside.rename(store / key)
                except OSError:
                    if find(store, key) is None:
                        raise
                sync_folder(store)
                remote.push(store, key)
    finally:
        # A worker whose own disk is full is ended because of another's, in the middle of this.
        with interrupts.held(quiet=True):
            shutil.rmtree(aside, ignore_errors=True)


def _finish(aside: Path, key: str) -> None:
    """Flush a shard's files and write its marker."""
    files = sorted(path for path in aside.rglob("*") if path.is_file())
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    listed = {path.relative_to(aside).as_posix(): sha256_file(path) for path in files}
    # Nothing that is keyed is made without torch, which tells the number of threads.
    write_json(aside / MARKER, {"key": key, "files": listed, "machine": device.machine()})
    sync_folder(aside)
    aside.chmod(0o755)


def link(source: Path, target: Path) -> None:
    """A second name for a file where the file system allows it, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def assembling(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` that takes its place, whole, on leaving without an error.

    For one process at a time: the folders beside it have fixed names, so that what a killed run left there goes.

    Raises:
        DiskFullError: there is no space; ``target`` is as it was.
    """
    aside, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    try:
        with filling(target):
            for leftover in (aside, old):
                shutil.rmtree(leftover, ignore_errors=True)
            aside.mkdir(parents=True)
            yield aside
            if target.exists():
                target.rename(old)
            try:
                aside.rename(target)
            except OSError:
                if old.exists():
                    old.rename(target)
                raise
    finally:
        for leftover in (aside, old):
            shutil.rmtree(leftover, ignore_errors=True)


def forget(store: Path, keys: Sequence[str], guarded: Sequence[str] = ()) -> int:
    """Remove shards that nothing wants any more, unless another process is making one of them.

    Args:
        store: the shards' folder.
        keys: of what goes.
        guarded: of what stays, but whose makers make those of ``keys`` as well.

    Returns:
        How many shards went.
    """
    there = [key for key in keys if (store / key).is_dir()]
    claim = _claim(store, [*{*keys, *guarded}], wait=False) if there else None
    if claim is None:
        return 0
    with claim:
        for key in there:
            shutil.rmtree(store / key, ignore_errors=True)
    return len(there)


def remove(folder: Path) -> None:
    """Drop work in progress whose shards are finished."""
    shutil.rmtree(folder)


def collect_garbage(store: Path, used: set[str], *, dry_run: bool = False) -> tuple[int, int]:
    """Remove every shard whose key is not in ``used``, and leftovers of killed runs.

    Only while no run is going on, whose shards nothing lists yet: see ``locks.busy``.

    Returns:
        How many folders went, and how many bytes; with ``dry_run``, how many would go.
    """
    folders = [path for path in store.iterdir() if path.is_dir() and path.name not in used] if store.is_dir() else []
    size = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    for folder in [] if dry_run else folders:
        shutil.rmtree(folder)
    return len(folders), size

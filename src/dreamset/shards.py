"""Finished pieces of work under keys: what makes a stage resumable.

DVC deletes a stage's outputs before it runs, so work in progress has to live elsewhere. A shard is a folder
``.dreamset/shards/<key>/`` that is a pure function of its inputs; its key is the hash of everything that changes
its bytes, the code that makes it included. It is written aside, flushed, and renamed; the marker ``done.json``,
written last, lists every file with its sha256. A stage assembles its output from finished shards.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamset.files import digest, read_json, sha256_file, sync_folder, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

MARKER: Final = "done.json"


def key_of(inputs: dict[str, Any], code: tuple[str, ...]) -> str:
    """Key of a shard: its inputs, the source of the modules ``code`` that make it, and the libraries' versions."""
    return digest({"inputs": inputs, "code": code_digest(code)})


@functools.cache
def code_digest(modules: tuple[str, ...]) -> str:
    """Hash of the source files of modules, and of the versions of the libraries whose arithmetic they use."""
    sources = {}
    for name in modules:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(name)
        sources[name] = sha256_file(Path(spec.origin))
    versions = {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers", "peft")}
    return digest([sources, versions])


def find(store: Path, key: str) -> Path | None:
    """The folder of a finished, undamaged shard, or None; a damaged one is removed."""
    folder = store / key
    if not (folder / MARKER).is_file():
        return None
    listed = read_json(folder / MARKER, "dreamset gc")["files"]
    for name, expected in listed.items():
        if not (folder / name).is_file() or sha256_file(folder / name) != expected:
            shutil.rmtree(folder)
            return None
    return folder


@contextmanager
def writing(store: Path, key: str) -> Iterator[Path]:
    """A folder to write a shard into; on leaving without an error it becomes the shard ``key``.

    Two processes may make the same shard: the first to finish wins, the other's copy is dropped.
    """
    store.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{key[:16]}-", dir=store))
    try:
        yield aside
        files = sorted(path for path in aside.rglob("*") if path.is_file())
        for path in files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        listed = {path.relative_to(aside).as_posix(): sha256_file(path) for path in files}
        write_json(aside / MARKER, {"key": key, "files": listed})
        sync_folder(aside)
        aside.chmod(0o755)
        if find(store, key) is None:
            try:
                aside.rename(store / key)
            except OSError:
                if find(store, key) is None:
                    raise
            sync_folder(store)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def link(source: Path, target: Path) -> None:
    """A second name for a file where the file system allows it, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def assembling(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` that takes its place, whole, on leaving without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield aside
        aside.chmod(0o755)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
            target.rename(old / target.name)
            aside.rename(target)
            shutil.rmtree(old)
        else:
            aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove(folder: Path) -> None:
    """Drop work in progress whose shards are finished."""
    shutil.rmtree(folder)


def collect_garbage(store: Path, used: set[str]) -> tuple[int, int]:
    """Remove every shard whose key is not in ``used``, and leftovers of killed runs.

    Returns:
        How many folders went, and how many bytes.
    """
    folders = [path for path in store.iterdir() if path.is_dir() and path.name not in used] if store.is_dir() else []
    size = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    for folder in folders:
        shutil.rmtree(folder)
    return len(folders), size

"""Writing and hashing files; a kill at any moment leaves the old file or the new one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import unicodedata
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.errors import DiskFullError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_NOT_SAFE = re.compile(r"[^a-z0-9]+")
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RUST = re.compile(r"\(os error (\d+)\)")  # safetensors reports a failed write only in words


def atomic_write(path: Path, data: bytes | str | Iterable[bytes]) -> None:
    """Write a file atomically: write aside, flush to disk, rename into place; missing parent folders are created.

    Args:
        path: the file.
        data: its content; of pieces, only one at a time is in memory.

    Raises:
        DiskFullError: there is no space; ``path`` is unchanged.
    """
    pieces = [data.encode()] if isinstance(data, str) else [data] if isinstance(data, bytes) else data
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with filling(path.parent, len(pieces[0]) if isinstance(pieces, list) else None):
            path.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def check_target(path: Path, option: str, *, folder: bool = False) -> None:
    """Fail on a target that cannot be written, before the work whose result goes there.

    Args:
        path: the file or folder to write; missing parents will be created.
        option: what names it, the option of the command line or a stage.
        folder: it is to be a folder, whose content is the caller's concern.

    Raises:
        InputError: something else is there, a parent is a file, or the place cannot be written.
    """
    where = f"{option} {path}"
    try:
        # A result is written beside its target first.
        path.with_name(f".{path.name}.{os.getpid()}.tmp").lstat()
    except FileNotFoundError:
        pass  # as it should be
    except NotADirectoryError as error:
        raise InputError(f"{where}: lies below a file; name another place, or move that file away.") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it names no file"
        raise InputError(f"{where}: cannot be written ({reason}); name another place.") from error
    if not folder and path.is_dir():
        raise InputError(f"{where}: is a folder; name a file in it.")
    if not folder and path.exists() and not path.is_file():
        raise InputError(f"{where}: is no ordinary file; name another.")
    parent = next(place for place in path.absolute().parents if place.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{where}: cannot be written, since {parent} does not allow it; name another place.")


@contextmanager
def filling(folder: Path, needed: int | None = None) -> Iterator[None]:
    """Report a lack of space inside the block as one of ``folder``, not of a temporary folder beside it.

    Args:
        folder: the folder whose name a person knows.
        needed: bytes that the block writes in all, where known.

    Raises:
        DiskFullError: there is no space.
    """
    try:
        yield
    except Exception as error:
        full = disk_full(error, folder, needed)
        if full is None:
            raise
        raise full from error


def refused(error: Exception) -> str | None:
    """Return the sentence for a file or folder that the system did not let the program use; None for other errors."""
    match = _RUST.search(str(error))
    if isinstance(error, OSError) and isinstance(error.filename, str | os.PathLike):
        what = f"{os.fspath(error.filename)}: {error.strerror}"
    elif match is not None and not isinstance(error, OSError):
        what = f"weights cannot be written or read: {os.strerror(int(match[1]))}"
    else:
        return None
    return f"{what}; make it usable for this program, or move it away, and run the same command again."


def disk_full(error: Exception, folder: Path, needed: int | None = None) -> DiskFullError | None:
    """Return the error to raise for a lack of space in ``folder``, or None where ``error`` is something else."""
    match = _RUST.search(str(error))
    number = error.errno if isinstance(error, OSError) else int(match[1]) if match else None
    if number not in _FULL:
        return None
    full = DiskFullError(number, os.strerror(number), str(folder))
    if isinstance(error, DiskFullError):
        full.needed, full.free = error.needed if needed is None else needed, error.free
    else:
        existing = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
        full.needed, full.free = needed, shutil.disk_usage(existing).free
    return full


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` atomically as indented JSON with a final newline; NaN is refused."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Iterable[Mapping[str, object]], columns: Iterable[str]) -> None:
    """Write rows atomically as CSV with a header; a missing or None value becomes an empty field."""
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n", extrasaction="raise")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, text.getvalue())


def read_json(path: Path, made_by: str) -> Any:
    """Return the value in a JSON file.

    Raises:
        InputError: the file is missing or broken; the sentence names it and the command ``made_by``.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: is missing; run `{made_by}` first.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not whole JSON ({error}); run `{made_by}` again.") from error


def sha256(data: bytes) -> str:
    """Return the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Return the SHA-256 of a value that JSON can hold; the order of keys does not matter."""
    return sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False).encode())


def class_folder(label: int, name: str, classes: int = 1000) -> str:
    """Return a folder name for one of so many classes: it sorts by label and is safe on every file system.

    The label makes it unique, so the slug may lose any part of the class's name.
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    slug = _NOT_SAFE.sub("_", plain).strip("_")[:40].strip("_")
    return f"{label:0{max(3, len(str(classes - 1)))}d}_{slug or 'class'}"


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename survives a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Writing so that a kill at any moment leaves the old file or the new one, and hashing."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamset.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_NOT_SAFE = re.compile(r"[^a-z0-9]+")


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write ``data`` aside, flush it to disk, rename it into place; makes the parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON with a final newline, atomically; NaN is refused."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Iterable[Mapping[str, object]], columns: Iterable[str]) -> None:
    """Rows as CSV with a header, atomically; a missing or None value is an empty field."""
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n", extrasaction="raise")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, text.getvalue())


def read_json(path: Path, made_by: str) -> Any:
    """A JSON file; ``made_by`` is the command named when it is missing or broken.

    Raises:
        InputError: naming the file and the command that makes it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: is missing; run `{made_by}` first.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not whole JSON ({error}); run `{made_by}` again.") from error


def sha256(data: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Hex digest of a JSON-able value, the same for equal values whatever the order of keys."""
    return sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False).encode())


def tree_digest(folder: Path) -> str:
    """Hex digest of the names and contents of every file under ``folder``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest([[path.relative_to(folder).as_posix(), sha256_file(path)] for path in files])


def class_folder(label: int, name: str, classes: int = 1000) -> str:
    """A folder name for one of so many classes: sorts by label, safe on every file system whatever the class is called.

    The label makes it unique, so the slug may lose as much of the name as it must.
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    slug = _NOT_SAFE.sub("_", plain).strip("_")[:40].strip("_")
    return f"{label:0{max(3, len(str(classes - 1)))}d}_{slug or 'class'}"


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""The record ``adapters.json``: which adapters a recipe has, and which labels each of them serves."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.errors import InputError
from dreamset.core.files import read_json, sha256_file

if TYPE_CHECKING:
    from pathlib import Path


_OURS: Final = ("README.md", "adapters.json")


@dataclass(frozen=True)
class Adapter:
    """An adapter: the labels it serves, its file in the recipe's folder, and the shard it comes from.

    ``shot`` is the sha256 of the only image that it, or its B, was trained on; None where it was trained on more.
    """

    labels: tuple[int, ...]
    file: str
    sha256: str
    shard: str
    shot: str | None = None

    def row(self) -> dict[str, Any]:
        """Return the adapter as ``adapters.json`` holds it."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "shot" or value is not None}


def shot_file(index: int) -> str:
    """Return the name of the LoRA file of a shot, by its number among those of its class."""
    return f"{index:03d}.safetensors"


def set_aside(folder: Path, target: Path) -> list[str]:
    """Move what dreamset did not write out of a recipe's folder, which is about to be replaced.

    These are the files that the folder's record does not name, or not with this content. Hidden files are no one's
    work, and stay.

    Args:
        folder: the recipe's folder; it need not exist.
        target: the folder that the files go to; a file of one name there keeps its place, and the newer gets a number.

    Returns:
        The new places of the files that were moved.
    """
    record, listed = folder / "adapters.json", {}
    if record.is_file():
        try:
            listed = {row["file"]: row["sha256"] for row in json.loads(record.read_text(encoding="utf-8"))["adapters"]}
        except (ValueError, KeyError, TypeError):  # another's file, or torn: then no file is known to be ours
            listed = {}
    moved = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if name.as_posix() in _OURS or any(part.startswith(".") for part in name.parts):
            continue
        if listed.get(name.as_posix()) == sha256_file(path):
            continue
        place, number = target / name, 1
        while place.exists():
            number += 1
            place = (target / name).with_stem(f"{name.stem}_{number}")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, place)
        moved.append(str(place))
    return moved


def read_adapters(folder: Path, stage: str = "adapt") -> list[Adapter]:
    """Return the adapters of a recipe; none for a recipe that adapts nothing.

    Args:
        folder: the recipe's folder.
        stage: the stage that writes the folder; the error message names it.

    Raises:
        InputError: a file is missing, differs from the one that was trained, or is of a kind that could run code.
    """
    again = f"dreamset {stage} {folder.name}"
    record = folder / "adapters.json"
    try:
        rows = read_json(record, again)["adapters"]
        adapters = [
            Adapter(tuple(row["labels"]), str(row["file"]), row["sha256"], row["shard"], row.get("shot"))
            for row in rows
        ]
    except (KeyError, TypeError) as error:
        raise InputError(f"{record}: is not a record of adapters ({error}); run `{again}` again.") from error
    for adapter in adapters:
        name, path = PurePosixPath(adapter.file), folder / adapter.file
        if name.is_absolute() or ".." in name.parts:
            raise InputError(f"{record}: {adapter.file} lies outside {folder}; run `{again}` again.")
        if name.suffix != ".safetensors":
            # A pickle runs whatever code its author put in, and a hash beside it does not tell who wrote it.
            raise InputError(
                f"{path}: is no .safetensors file, and pickled adapters are not opened; convert it, or run `{again}`."
            )
        if not path.is_file() or sha256_file(path) != adapter.sha256:
            raise InputError(f"{path}: is not the adapter that was trained (missing or changed); run `{again}` again.")
    return adapters

"""``adapters.json``: which adapters a recipe has, and which labels each of them serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreamset.errors import InputError
from dreamset.files import read_json, sha256_file

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Adapter:
    """One adapter: the labels it serves, its file in the recipe's folder, and the shard it came from."""

    labels: tuple[int, ...]
    file: str
    sha256: str
    shard: str


def read_adapters(folder: Path) -> list[Adapter]:
    """The adapters of a recipe; none for a recipe that adapts nothing.

    Raises:
        InputError: a file is missing, or is not the one that was trained.
    """
    again = f"dreamset adapt {folder.name}"
    rows = read_json(folder / "adapters.json", again)["adapters"]
    adapters = [Adapter(tuple(row["labels"]), row["file"], row["sha256"], row["shard"]) for row in rows]
    for adapter in adapters:
        path = folder / adapter.file
        if not path.is_file() or sha256_file(path) != adapter.sha256:
            raise InputError(f"{path}: is not the adapter that was trained (missing or changed); run `{again}` again.")
    return adapters

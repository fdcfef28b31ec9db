"""A synthetic dataset on disk: class folders of PNG files and one ``metadata.jsonl``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@dataclass(frozen=True)
class SyntheticImage:
    """One row of ``metadata.jsonl``.

    ``file_name`` is relative to the dataset's folder; ``label`` indexes the split's classes, whose name is
    ``class_name``; ``seed`` drew the starting noise, after ``redraws`` degenerate tries; ``adapter`` is the
    sha256 of the adapter's file, or None, and ``adapter_scale`` what a LoRA was multiplied by; ``sha256`` is of the
    image file. Where ``origin`` is ``retrieval``, nothing was drawn: ``source`` names the image that was found,
    ``nearness`` says how near it is, ``prompt`` is the caption that it was searched by, and ``seed`` the run's.
    ``shot`` is the sha256 of the real image that drawing started from.
    """

    file_name: str
    label: int
    class_name: str
    index: int
    prompt: str
    seed: int
    redraws: int
    sampler: dict[str, Any]
    adapter: str | None
    sha256: str
    origin: str = "generator"
    source: str | None = None
    nearness: float | None = None
    shot: str | None = None
    adapter_scale: float | None = None


def write_metadata(folder: Path, images: Iterable[SyntheticImage]) -> None:
    """Write ``metadata.jsonl``, one row per image."""
    rows = (json.dumps(asdict(image), ensure_ascii=False) + "\n" for image in images)
    atomic_write(folder / "metadata.jsonl", "".join(rows))


def read_metadata(folder: Path) -> list[SyntheticImage]:
    """Every image of a synthetic dataset, in the order of the file: by label, then by index.

    Raises:
        InputError: the file is missing, or a line of it is not whole, the last one included.
    """
    path = folder / "metadata.jsonl"
    try:
        # In bytes: a line may be torn inside a character, and str has more line breaks than JSON lines do.
        *lines, rest = path.read_bytes().split(b"\n")
    except FileNotFoundError as error:
        raise InputError(f"{path}: is missing; run `dreamset generate {folder.name}` first.") from error
    images = []
    try:
        for line in lines:
            images.append(SyntheticImage(**json.loads(line)))
        if rest:
            raise ValueError("the file ends inside it")  # noqa: TRY301
    except (ValueError, TypeError) as error:
        where = f"{path}, line {len(images) + 1}"
        raise InputError(
            f"{where}: is not a whole row ({error}); run `dreamset generate {folder.name}` again."
        ) from error
    return images

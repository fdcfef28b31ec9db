"""``dreamset run --images DIR``: a folder of one's own in place of the source that ``params.yaml`` names.

DVC watches ``data/raw`` and no other place, so that name becomes a link to the folder (docs/own-images.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write
from dreamset.params.edit import get_value, set_value

if TYPE_CHECKING:
    from pathlib import Path

SOURCE: Final = "imagefolder:data/raw"
_OURS: Final = {"README.md", ".gitignore", ".gitkeep"}  # what a project puts into an empty data/raw


def use(root: Path, images: Path) -> list[str]:
    """Let the project learn from a folder of class folders, and return what was changed, in sentences.

    Args:
        root: the project's folder.
        images: the folder.

    Raises:
        InputError: there is no such folder, it holds no folders, or ``data/raw`` holds other images.
    """
    from dreamset.sources import imagefolder

    if not images.is_dir():
        raise InputError(f"--images {images}: is no folder; give the folder that holds a folder per class.")
    if not imagefolder.folders(images):
        raise InputError(f"--images {images}: holds no folder; put one folder of images per class into it.")
    raw, told = root / "data/raw", []
    if not (raw.exists() and raw.samefile(images)):
        if raw.is_symlink():
            raw.unlink()
        elif raw.is_dir():
            if {path.name for path in raw.iterdir()} - _OURS:
                raise InputError(
                    f"--images {images}: {raw} holds images already; move them away, or leave --images out."
                )
            for path in raw.iterdir():
                path.unlink()
            raw.rmdir()
        raw.parent.mkdir(exist_ok=True)
        raw.symlink_to(images.resolve(), target_is_directory=True)
        told.append(f"data/raw is now a link to {images.resolve()}.")
    file = root / "params.yaml"
    text = file.read_text(encoding="utf-8")
    changed = text
    if get_value(text, "prepare.source") != SOURCE:
        # All of one's own images, unless this project has been told how many before.
        for key, value in (("prepare.source", SOURCE), ("shots", "all")):
            changed = set_value(changed, key, value)
            told.append(f"params.yaml: {key} is now {value}.")
    if changed != text:
        atomic_write(file, changed)
    return told

"""The rows of a synthetic dataset: its ``metadata.jsonl``. ``dreamset.data.packed`` has the files of the images."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)  # slots: there may be 100,000
class SyntheticImage:
    """One row of ``metadata.jsonl``.

    Where ``origin`` is ``retrieval``, the image was retrieved and not drawn.

    Attributes:
        file_name: relative to the dataset's folder.
        label: an index into the split's classes.
        class_name: the name of that class.
        index: the number of the image in its class.
        prompt: the caption that the image was drawn from, or searched by.
        seed: the seed of the starting noise; of a retrieved image, that of the run.
        redraws: how many degenerate tries came before it.
        sampler: the sampler's settings.
        adapter: sha256 of the adapter's file; None: no adapter, or those of ``adapters``.
        sha256: the digest of the image file.
        origin: ``generator`` or ``retrieval``.
        source: the image that was retrieved.
        nearness: how near a retrieved image is.
        shot: sha256 of the real image that drawing started from.
        adapter_scale: the factor of a LoRA.
        tries: the number of candidates that were drawn for it; None: there was no filter.
        gave_up: whether the filter accepted none of them.
        avoid: the prompt that guidance led away from, of another class or a negative one.
        toward: sha256 of the real image that drawing was pulled toward.
        beside: sha256 of the real image that ``shot`` was mixed with.
        share: the share of ``shot`` in the mixture.
        told: sha256 of the real image whose caption or attributes the prompt tells.
        attributes: the word of each group that zero-shot CLIP read in that image, "none" included.
        adapters: sha256 of the files of the LoRAs of shots that it was drawn with.
        adapter_weights: the weight of each, as ``set_adapters`` takes it; ``adapter_scale`` is in it.
        copy_of: ``file_name`` of the drawn image that it is a copy of; the index is that of the drawn image, too.
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
    tries: int | None = None
    gave_up: bool | None = None
    avoid: str | None = None
    toward: str | None = None
    beside: str | None = None
    share: float | None = None
    told: str | None = None
    attributes: dict[str, str] | None = None
    adapters: list[str] | None = None
    adapter_weights: list[float] | None = None
    copy_of: str | None = None


# Columns that only few recipes use.
LATER: Final = (
    *("tries", "gave_up", "avoid", "toward", "beside", "share", "told", "attributes"),
    *("adapters", "adapter_weights", "copy_of"),
)


_EVERY: Final = tuple(field.name for field in fields(SyntheticImage))
_OWN: Final = frozenset({"file_name", "index", "seed", "sha256"})  # columns in which hardly two images are alike


def columns_of(images: Sequence[SyntheticImage]) -> tuple[str, ...]:
    """Return the columns of a dataset's rows: all but those of ``LATER`` that no image uses."""
    unused = {name for name in LATER if all(getattr(image, name) is None for image in images)}
    return tuple(name for name in _EVERY if name not in unused)


def line(image: SyntheticImage, columns: Sequence[str]) -> str:
    """Return some columns of an image as a line of ``metadata.jsonl``."""
    return json.dumps({name: getattr(image, name) for name in columns}, ensure_ascii=False) + "\n"


def write_metadata(folder: Path, images: Iterable[SyntheticImage], columns: Sequence[str] | None = None) -> None:
    """Write ``metadata.jsonl``, one row per image, with some columns; None: ``columns_of``."""
    images = list(images)
    columns = columns or columns_of(images)
    atomic_write(folder / "metadata.jsonl", (line(image, columns).encode() for image in images))


def read_metadata(folder: Path, shared: dict[str, Any] | None = None) -> list[SyntheticImage]:
    """Return every image of a synthetic dataset, in the order of the file: by label, then by index.

    Args:
        folder: the dataset, or a shard of one.
        shared: prompts, samplers and so on that other rows have, too; those of this file come into it. Of 100,000 rows
            each then needs memory once.

    Raises:
        InputError: the file is missing, or one of its lines is incomplete, be it the last.
    """
    path, images = folder / "metadata.jsonl", list[SyntheticImage]()
    shared = {} if shared is None else shared
    try:
        # Split as bytes: a line may end inside a character, and str knows more line breaks than JSON lines have.
        with path.open("rb") as file:
            for text in file:
                if not text.endswith(b"\n"):
                    raise ValueError("the file ends inside it")  # noqa: TRY301
                row = json.loads(text)
                for name in row.keys() - _OWN:
                    value = row[name]
                    if isinstance(value, str):
                        row[name] = shared.setdefault(value, value)
                    elif isinstance(value, dict | list):
                        row[name] = shared.setdefault(repr(value), value)
                images.append(SyntheticImage(**row))
    except FileNotFoundError as error:
        raise InputError(f"{path}: is missing; run `dreamset generate {folder.name}` first.") from error
    except (ValueError, TypeError, AttributeError) as error:
        where = f"{path}, line {len(images) + 1}"
        raise InputError(
            f"{where}: is not a whole row ({error}); run `dreamset generate {folder.name}` again."
        ) from error
    return images

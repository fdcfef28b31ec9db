"""A source in a CSV file that lists images with labels and, optionally, parts and groups."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Final

from dreamset.core.errors import InputError
from dreamset.data.source import Rejected, Source
from dreamset.sources.reading import Row, inside, printable, read_files

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.core.images import Decoding

_REQUIRED: Final = ("path", "label")
_COLUMNS: Final = (*_REQUIRED, "split", "group")
_PARTS: Final = {"train": "train", "selection": "selection", "val": "selection", "test": "test"}


def read(file: Path, decoding: Decoding) -> Source:
    """Read a CSV file with the columns path, label and, optionally, split and group; classes are sorted by name.

    Without the column split, or without rows for a part, ``prepare`` draws that part from the training images. Images
    of one group stay in one part.

    Raises:
        InputError: a line is wrong; the sentence names the file, the line and the fault.
    """
    rows: dict[str, list[tuple[str, str, str]]] = {part: [] for part in _PARTS.values()}
    line_of: dict[str, int] = {}
    for line, fields in _lines(file):
        where = f"{file}, line {line}"
        path = inside(fields["path"], where)
        if line_of.setdefault(path, line) != line:
            raise InputError(f"{where}: {path} is already in line {line_of[path]}; list each image once.")
        if not fields["label"].strip():
            raise InputError(f"{where}: has no label; give one.")
        part = fields.get("split", "train").strip().lower()
        if part not in _PARTS:
            raise InputError(f"{where}: split must be train, selection (or val) or test, got {fields['split']!r}.")
        group = fields.get("group", "").strip()
        rows[_PARTS[part]].append((path, fields["label"].strip(), f"group {group}" if group else path))
    if not rows["train"]:
        raise InputError(f"{file}: lists no training images; add rows, or give some the split train.")
    classes = tuple(sorted({label for part in rows.values() for _, label, _ in part}))
    labels = {name: label for label, name in enumerate(classes)}
    rejected: list[Rejected] = []
    images = {
        part: read_files(
            [Row(file.parent / path, file.parent, path, labels[label], group) for path, label, group in listed],
            decoding,
            rejected,
            f"reading {part}",
        )
        for part, listed in rows.items()
    }
    return Source(
        classes=classes,
        template="a photo of a {class}",
        invariances=(),
        train=images["train"],
        selection=images["selection"] if rows["selection"] else None,
        test=images["test"] if rows["test"] else None,
        rejected=rejected,
    )


def _lines(file: Path) -> list[tuple[int, dict[str, str]]]:
    """The line number and the fields of each row."""
    try:
        # Spreadsheets write a byte order mark first.
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text, strict=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            if (
                not set(_REQUIRED) <= set(columns)
                or not set(columns) <= set(_COLUMNS)
                or len(set(columns)) < len(columns)
            ):
                raise InputError(
                    f"{file}: its first line must name the columns path,label and may name split and group, "
                    f"got {printable(','.join(columns))[:80]!r}."
                )
            reader.fieldnames = columns
            lines = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: cannot be read as CSV in UTF-8 ({error}); give csv:FILE of such a file.") from error
    for line, row in lines:
        if None in row or None in row.values():
            raise InputError(
                f"{file}, line {line}: does not have {len(columns)} fields like the first line; correct it."
            )
    return lines

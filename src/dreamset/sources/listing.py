"""A source in a CSV file that lists images with labels and, optionally, parts and groups."""

from __future__ import annotations

import csv
import difflib
import io
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from dreamset.core.errors import InputError
from dreamset.data.source import Rejected, Source
from dreamset.sources.layout import PARTS
from dreamset.sources.reading import Row, Shelf, inside, printable, read_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dreamset.core.images import Decoding

_REQUIRED: Final = ("path", "label")
_COLUMNS: Final = (*_REQUIRED, "split", "group")
_SEPARATORS: Final = (",", ";", "\t")
_SHOWN: Final = 5  # names of columns in a sentence


class Line(NamedTuple):
    """A row of the file: its number, its image relative to the folder, its label, its part and its group or None."""

    number: int
    path: str
    label: str
    part: str
    group: str | None


def read(file: Path, decoding: Decoding) -> Source:
    """Read a CSV file with the columns path, label and, optionally, split and group; classes are sorted by name.

    Commas, semicolons or tabs separate the fields. Empty rows are skipped. Other columns are not read, and a warning
    says so. Without the column split, or without rows for a part, ``prepare`` draws that part from the training images.
    Images of one group stay in one part.

    Raises:
        InputError: a line is wrong; the sentence names the file, the line and the fault.
    """
    listed, warnings = lines(file)
    rows: dict[str, list[Line]] = {part: [] for part in PARTS.values()}
    for line in listed:
        rows[line.part].append(line)
    if not rows["train"]:
        raise InputError(f"{file}: lists no training images; add rows, or give some the split train.")
    if not any((file.parent / line.path).exists() for line in listed):
        raise InputError(
            f"{file}: none of its {len(listed)} images is there (first: {printable(listed[0].path)}); paths start from "
            f"the list's folder {file.parent}, so move the list, or write them as images/{Path(listed[0].path).name}."
        )
    classes = tuple(sorted({line.label for line in listed}))
    labels = {name: label for label, name in enumerate(classes)}
    rejected: list[Rejected] = []
    images = {
        part: read_files(
            [
                Row(file.parent / line.path, file.parent, line.path, labels[line.label], line.group or line.path)
                for line in lines
            ],
            decoding,
            rejected,
            f"reading {part}",
        )
        for part, lines in rows.items()
    }
    return Source(
        classes=classes,
        template="a photo of {a class}",
        invariances=(),
        train=images["train"],
        selection=images["selection"] if rows["selection"] else None,
        test=images["test"] if rows["test"] else None,
        rejected=rejected,
        warnings=warnings,
    )


def lines(file: Path) -> tuple[list[Line], tuple[str, ...]]:
    """Return the checked rows of a file, whose images are not opened, and warnings.

    Raises:
        InputError: a line is wrong; the sentence names the file, the line and the fault.
    """
    rows = _rows(file)
    columns = next((fields for _, fields in rows), [])
    place, warnings = _columns(file, columns)
    shelf = Shelf(file.parent)
    found: list[Line] = []
    line_of: dict[str, int] = {}
    for number, fields in rows:
        where = f"{file}, line {number}"
        if len(fields) < len(columns) or any(field.strip() for field in fields[len(columns) :]):
            raise InputError(f"{where}: does not have {len(columns)} fields like the first line; correct it.")
        values = {name: fields[index].strip() for name, index in place.items()}
        path = shelf.find(inside(fields[place["path"]].strip(), where, file.parent), where)
        if line_of.setdefault(path, number) != number:
            raise InputError(f"{where}: {path} is already in line {line_of[path]}; list each image once.")
        # One name in two Unicode forms looks the same, and would be two classes.
        label, group = unicodedata.normalize("NFC", values["label"]), values.get("group")
        if not label:
            raise InputError(f"{where}: has no label; give one.")
        part = PARTS.get(values.get("split", "train").casefold())
        if part is None:
            raise InputError(
                f"{where}: split must be train, selection (or val) or test, got {values['split']!r}; correct it."
            )
        found.append(Line(number, path, label, part, f"group {group}" if group else None))
    return found, warnings


def _columns(file: Path, columns: list[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """The places of the columns that are read, by name, and a warning where there are others.

    Raises:
        InputError: a column is missing, is there twice, or looks like a mistyped one.
    """
    named = [column.strip().casefold() for column in columns]
    place: dict[str, int] = {name: named.index(name) for name in _COLUMNS if name in named}
    absent = [name for name in _COLUMNS if name not in place]
    others = [column.strip() for column, name in zip(columns, named, strict=True) if name not in _COLUMNS]
    for column in others:
        # A column split that is not read would let test images into training.
        if close := difflib.get_close_matches(column.casefold(), absent, 1, 0.75):
            raise InputError(
                f"{file}: its first line must name the columns path,label and may name split and group; it names "
                f"{printable(column)!r}: write {close[0]}, or give the column a name that is less like it."
            )
    if not set(_REQUIRED) <= set(place) or any(named.count(name) > 1 for name in place):
        raise InputError(
            f"{file}: its first line must name the columns path,label once and may name split and group, got "
            f"{printable(','.join(columns))[:80]!r}; rename the columns."
        )
    if not others:
        return place, ()
    shown = ", ".join(map(printable, others[:_SHOWN])) + (" ..." if len(others) > _SHOWN else "")
    mend = " or ".join(
        f"{name}, if it says {what}"
        for name, what in (("group", "which images belong together"), ("split", "train or test"))
        if name in absent
    )
    warning = f"{file}: of its columns, {shown} {'is' if len(others) == 1 else 'are'} not read"
    return place, (warning + (f"; name one {mend}" if mend else ""),)


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a file that hold anything, with their line numbers; the first is the header.

    Raises:
        InputError: it cannot be read as CSV.
    """
    try:
        # Spreadsheets write a byte order mark first.
        text = file.read_text(encoding="utf-8-sig")
        first = text.split("\n", 1)[0].strip()
        # Excel takes the separator from such a line.
        told = first[4] if first.casefold().startswith("sep=") and len(first) == 5 else None
        reader = csv.reader(
            io.StringIO(text, newline=""), delimiter=told or _separator(first), strict=True, skipinitialspace=True
        )
        rows = [(reader.line_num, row) for row in reader if any(field.strip() for field in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{file}: cannot be read as CSV in UTF-8 ({error}); give csv:FILE of such a file, and save it as UTF-8."
        ) from error
    rows = rows[1:] if told else rows
    if rows:
        # Spreadsheets end rows in empty fields.
        number, header = rows[0]
        while header and not header[-1].strip():
            header.pop()
        rows[0] = number, header
    return iter(rows)


def _separator(first: str) -> str:
    """The separator that a header is written with."""
    for separator in _SEPARATORS:
        if set(_REQUIRED) <= {field.strip(' "').casefold() for field in first.split(separator)}:
            return separator
    return max(_SEPARATORS, key=first.count)

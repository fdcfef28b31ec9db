"""The page's markup: templates that escape all plain text, and the small elements between them."""

from __future__ import annotations

import base64
import functools
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dreamset.metrics.verdict import points
from dreamset.report.figures import number, percent, point_interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from PIL import Image


@dataclass(frozen=True)
class Table:
    """Rows of cells under a head; the first cell of a row is its heading.

    Columns hold numbers, unless ``columns`` gives them another class of the style sheet. ``chosen`` is the index of
    the highlighted row.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    columns: Mapping[str, str] = field(default_factory=dict)
    chosen: int | None = None


def fill(part: str, /, **data: object) -> Markup:
    """Return a part of the page, filled in.

    Args:
        part: ``file.macro`` of the templates.
        data: the macro's arguments.
    """
    file, macro = part.split(".")
    return Markup(getattr(_templates().get_template(f"{file}.html").module, macro)(**data))


@functools.cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("dreamset.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    templates.filters |= {"code": code, "points": points, "point_interval": point_interval}
    return templates


def code(sentence: str) -> Markup:
    """Return text whose `code` in backquotes has become elements."""
    parts = enumerate(sentence.split("`"))
    return joined("", [Markup("<code>{}</code>").format(part) if index % 2 else part for index, part in parts])


def aside(value: str, less: str) -> Markup:
    """Return a value, followed by ``less`` in small print."""
    return Markup("{} <small>{}</small>").format(value, less) if less else Markup.escape(value)


def name(value: str) -> Markup:
    """Return the name of a class or a file, isolated so that its direction of writing stays within it."""
    return Markup("<bdi>{}</bdi>").format(value)


def joined(separator: str, parts: Iterable[str]) -> Markup:
    """Return the parts with a separator between them; plain text is escaped."""
    return Markup.escape(separator).join(parts)


def picture(image: Image.Image, small: bool, alt: str, width: int) -> Markup:
    """Return an image inside the page, ``width`` px wide: PNG with visible pixels for ``small`` ones, else WebP."""
    buffer = io.BytesIO()
    if small:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "WEBP", quality=85, method=4)
    kind = "png" if small else "webp"
    source = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    height = round(width * image.height / image.width)
    return Markup('<img src="{}" alt="{}" width="{}" height="{}" class="{}">').format(
        source, alt, width, height, "pixels" if small else ""
    )


def counted(near: Mapping[str, float]) -> str:
    """Return the number of near-duplicates with its share; a dash where they were not counted."""
    return aside(number(near["count"]), percent(near.get("share"))) if "count" in near else "–"

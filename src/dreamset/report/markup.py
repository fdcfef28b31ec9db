"""HTML built so that text cannot become markup: whatever is not ``Html`` is escaped."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING, Final

from dreamset.metrics.verdict import points

if TYPE_CHECKING:
    from collections.abc import Iterable

    from PIL import Image

MINUS: Final = "\N{MINUS SIGN}"
_VOID: Final = frozenset({"br", "img", "meta"})


class Html(str):
    """Markup that is safe as it stands."""

    __slots__ = ()


def text(value: object) -> Html:
    """A value as escaped text; what UTF-8 cannot hold (names of damaged files) becomes ``?``."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(str(value).encode("utf-8", "replace").decode(), quote=True))


def join(*parts: object) -> Html:
    """Parts one after another; None is nothing, and lists and generators are taken apart."""
    flat = []
    for part in parts:
        if part is None:
            continue
        if isinstance(part, str) or not hasattr(part, "__iter__"):
            flat.append(text(part))
        else:
            flat.append(join(*part))
    return Html("".join(flat))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element. ``class_`` is ``class``, ``_`` is ``-``; attributes that are None are left out."""
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{pairs}>")
    return Html(f"<{name}{pairs}>{join(*children)}</{name}>")


def table(head: Iterable[object], rows: Iterable[Html], caption: object = None, class_: str | None = None) -> Html:
    """A table that scrolls sideways on a narrow screen; ``rows`` are ``tr`` or ``tbody`` elements."""
    top = tag("thead", tag("tr", [cell if isinstance(cell, Html) else tag("th", cell, scope="col") for cell in head]))
    title = None if caption is None else tag("caption", caption)
    return tag("div", tag("table", title, top, list(rows), class_=class_), class_="scroll")


def row(*cells: object) -> Html:
    """A table row; the first cell is its heading, and cells that are not elements yet are numbers or text."""
    first, *others = [cell if _is_cell(cell) else None for cell in cells]
    made = [first or tag("th", cells[0], scope="row")]
    made += [cell or tag("td", value) for cell, value in zip(others, cells[1:], strict=True)]
    return tag("tr", made)


def _is_cell(value: object) -> bool:
    return isinstance(value, Html) and value.startswith(("<td", "<th"))


def data_uri(image: Image.Image, small: bool) -> str:
    """An image inside the page: PNG for pictures of a few pixels, WebP for larger ones."""
    buffer = io.BytesIO()
    if small:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "WEBP", quality=85, method=4)
    kind = "png" if small else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return "–" if value is None else f"{100 * value:.1f}%"


def number(value: float | None, digits: int = 0) -> str:
    """A number with thin spaces between thousands; a dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}".replace(",", "\u202f").replace("-", MINUS)


def p_value(value: float | None) -> str:
    """A p-value to two digits that count."""
    if value is None:
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def interval(low: float, high: float) -> str:
    """The ends of an interval of shares."""
    return f"{100 * low:.1f} to {100 * high:.1f}"


def point_interval(low: float, high: float) -> str:
    """The ends of an interval of differences."""
    return f"{points(low)} to {points(high)}"

"""Class names as captions say them, where folders and lists write them as programs do."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Final

from dreamset.data.splits import spoken

if TYPE_CHECKING:
    from dreamset.data.source import Source

# "10_sks dog": a trainer's repeats; "001.Albatross": an order. A number and a space may be a year.
_NUMBER: Final = re.compile(r"\d+[_.-](?=[^\W\d_])")
_CAMEL: Final = re.compile(r"(?:[A-Z][a-z]+)+")
_HUMP: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")


def said(source: Source) -> Source:
    """Return a source whose captions say names as people do, with a warning where they differ from the names.

    A number in front is left out where every class has one and the rest is unique. Words written together, such as
    ApplyEyeMakeup, are separated where every class is written so. ``classes`` stay as they are.
    """
    names = [spoken(name) for name in source.classes]
    if all(map(_NUMBER.match, source.classes)):
        bare = [spoken(_NUMBER.sub("", name, count=1)) for name in source.classes]
        names = bare if len(set(bare)) == len(bare) else names
    if all(map(_CAMEL.fullmatch, names)):
        names = [_HUMP.sub(" ", name) for name in names]
    if names == [spoken(name) for name in source.classes]:
        return source
    first = next(index for index, name in enumerate(names) if name != spoken(source.classes[index]))
    warning = (
        f"captions say class {source.classes[first]!r} as {names[first]!r}, and the others likewise; if that is wrong, "
        "rename the classes"
    )
    return dataclasses.replace(source, names=tuple(names), warnings=(*source.warnings, warning))

"""Groups of names, from pairs of names that belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def representatives(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return for each name the representative of its group; pairs join names directly or through others.

    Where a pair joins two groups, the representative of the second name's group becomes that of both.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    for name, other in pairs:
        parent[root(name)] = root(other)
    return {name: root(name) for name in parent}

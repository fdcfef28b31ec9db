"""What belongs together, from pairs that do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def representatives(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return for each name one that stands for all that pairs join with it, directly or through others.

    Where a pair joins two groups, the one that stands for the second name's group stands for both from then on.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    for name, other in pairs:
        parent[root(name)] = root(other)
    return {name: root(name) for name in parent}

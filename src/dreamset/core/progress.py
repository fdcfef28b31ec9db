"""Progress bars with an estimate of the time left, on a terminal only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tqdm import tqdm


def bar(items: Iterable[Any] | None = None, *, total: int | None = None, what: str, unit: str = "it") -> tqdm[Any]:
    """Return a tqdm bar over ``items``, or without them one to update by hand; it is erased at its end."""
    from tqdm import tqdm

    return tqdm(items, total=total, desc=what, unit=unit, disable=None, leave=False, dynamic_ncols=True)

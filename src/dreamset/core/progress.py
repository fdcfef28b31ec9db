"""Progress bars with an ETA: on a terminal only, silent elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tqdm import tqdm


def bar(items: Iterable[Any] | None = None, *, total: int | None = None, what: str, unit: str = "it") -> tqdm[Any]:
    """A tqdm bar over ``items``, or one that is updated by hand; erased when done."""
    from tqdm import tqdm

    return tqdm(items, total=total, desc=what, unit=unit, disable=None, leave=False, dynamic_ncols=True)

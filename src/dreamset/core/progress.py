"""Progress bars with an estimate of the time left, on a terminal only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

_hidden = False

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tqdm import tqdm


def hide() -> None:
    """Show no bars in this process, which is one of several that work on the same."""
    global _hidden  # noqa: PLW0603
    _hidden = True


def bar(items: Iterable[Any] | None = None, *, total: int | None = None, what: str, unit: str = "it") -> tqdm[Any]:
    """Return a tqdm bar over ``items``, or without them one to update by hand; it is erased at its end."""
    from tqdm import tqdm

    return tqdm(items, total=total, desc=what, unit=unit, disable=_hidden or None, leave=False, dynamic_ncols=True)

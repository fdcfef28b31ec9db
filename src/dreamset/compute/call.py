"""A call that another process makes in place of this one, with what surrounds it here."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dreamset.core import audit, device, locks, progress, remote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Unit = TypeVar("Unit")
Result = TypeVar("Result")

_inline = 0  # how many blocks, or workers, this process is in
_kept: dict[str, Any] | None = None  # in a worker that gets piece after piece: what it loaded last


def is_inline() -> bool:
    """Return whether this process is a worker or in a block of ``inline``: it makes everything itself."""
    return _inline > 0


@contextmanager
def inline(when: bool = True) -> Iterator[None]:
    """Make everything inside the block in this process; ``when`` False: as otherwise."""
    global _inline  # noqa: PLW0603
    _inline += when
    try:
        yield
    finally:
        _inline -= when


def keep() -> None:
    """Let ``resident`` keep the last thing in this process."""
    global _kept  # noqa: PLW0603
    _kept = {} if _kept is None else _kept


def resident(name: str, load: Callable[[], Result]) -> Result:
    """Return what ``load`` loads; a worker that gets piece after piece keeps it, by a name for all it depends on."""
    if _kept is None:
        return load()
    if name not in _kept:
        _kept.clear()
        _kept[name] = load()
    found: Result = _kept[name]
    return found


@dataclass(frozen=True)
class Call(Generic[Unit, Result]):
    """A function, and what holds around its call.

    Attributes:
        make: the function.
        turns: of the stage, so that a worker leaves for a newer run, as its driver does.
        closed: files that nothing may open.
        threads: that it computes with on a CPU: of torch, and of BLAS.
        urls: of object storage, by folder of shards.
    """

    make: Callable[[list[Unit]], Result]
    turns: tuple[Any, ...]
    closed: tuple[str, ...]
    threads: tuple[int, int]
    urls: tuple[tuple[Path, str], ...]

    @classmethod
    def here(cls, make: Callable[[list[Unit]], Result]) -> Call[Unit, Result]:
        """Return the call with what surrounds it in this process."""
        return cls(make, locks.turns(), audit.paths(), device.threads(), remote.urls())

    def __call__(self, units: list[Unit]) -> Result:
        """Call the function in a worker."""
        device.use_threads(*self.threads)
        progress.hide()
        for store, url in self.urls:
            remote.use(store, url)
        audit.close(self.closed)
        with locks.taking_turns(self.turns), inline():
            return self.make(units)

"""Whether numbers that are compared come from the same kind of machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_NAMED: Final = 3  # parts of a machine that the sentence names


def differing(parts: Iterable[tuple[str, str, int]]) -> str | None:
    """Return a sentence that says which part was computed where; None where all were computed on the same.

    Args:
        parts: of each its name, its device and its number of threads.
    """
    machines: dict[tuple[str, int], list[str]] = {}
    for name, device, threads in parts:
        names = machines.setdefault((device, threads), [])
        if name not in names:
            names.append(name)
    if len(machines) < 2:
        return None
    where = "; ".join(f"{_words(*machine)}: {_listed(names)}" for machine, names in machines.items())
    return (
        "Not everything was computed on the same processor with the same number of threads, which can change "
        f"accuracies a little ({where})."
    )


def _words(device: str, threads: int) -> str:
    count = f"{threads} thread{'' if threads == 1 else 's'}"
    # A processor's name may end with its threads already.
    return f"{device.removesuffix(f', {threads} threads')}, {count}"


def _listed(names: list[str]) -> str:
    rest = len(names) - _NAMED
    return f"{', '.join(names[:_NAMED])} and {rest} more" if rest > 0 else ", ".join(names)

"""Ctrl-C and SIGTERM between two pieces of work instead of inside one."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PARENT_DEATH: Final = 1  # PR_SET_PDEATHSIG of prctl, from Linux's prctl.h


@contextmanager
def held(*, quiet: bool = False) -> Iterator[Callable[[], bool]]:
    """Run the block to its end before a first Ctrl-C or SIGTERM takes effect; a second one takes effect at once.

    Args:
        quiet: say nothing of it, for the block takes a moment.

    Yields:
        A function that says whether one has come, so that the block can save its work.
    """
    came: list[tuple[int, Any]] = []
    before: dict[signal.Signals, Any] = {}

    def hold(number: int, frame: Any) -> None:
        came.append((number, frame))
        if len(came) > 1:
            before[signal.Signals(number)](number, frame)
        elif not quiet:
            print("dreamset: stopping after this step; a second signal stops at once.", file=sys.stderr, flush=True)

    # Python hands signals to its main thread alone. What is ignored, or ends the process outright, stays so.
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        before.update({number: handler for number, handler in handlers.items() if callable(handler)})
    try:
        for each in before:
            signal.signal(each, hold)
        yield lambda: bool(came)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if came:
        number, frame = came[0]
        before[signal.Signals(number)](number, frame)


def end_with(parent: int) -> None:
    """Let the system send this process a SIGTERM when its parent, the process ``parent``, dies; only Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGTERM)
        if os.getppid() != parent:  # it died before that
            os.kill(os.getpid(), signal.SIGTERM)

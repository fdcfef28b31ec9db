"""Running something in a process of its own that can be killed, forked from a server that has the libraries loaded."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess
    from pathlib import Path

_context = multiprocessing.get_context("forkserver")
# All that adapting and drawing import, some of it only as they run.
_context.set_forkserver_preload(
    [
        "diffusers.guiders",
        "diffusers.pipelines.onnx_utils",
        "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
        "dreamset.adapt",
        "dreamset.command.cli",
        "dreamset.command.timed_steps",
        "dreamset.command.tracked",
        "dreamset.command.tracked_runs",
        "dreamset.generate",
        "dreamset.generator.base_model",
        "dreamset.generator.mixture",
        "dreamset.generator.student",
        "dreamset.generator.training",
        "scipy.stats",
    ]
)


def start(folder: Path, target: Callable[..., None], *args: Any) -> BaseProcess:
    """Run ``target(*args)`` in ``folder``, as the leader of a process group."""
    process = _context.Process(target=_main, args=(folder, target, args))
    process.start()
    return process


def finish(process: BaseProcess, folder: Path) -> tuple[int, str]:
    """Exit status (minus the signal of a killed one), and what was said on stderr."""
    process.join(60)
    assert process.exitcode is not None, "still running after a minute"
    return process.exitcode, (folder / f"stderr_{process.pid}").read_text()


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def _main(folder: Path, target: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.setsid()
    os.chdir(folder)
    sys.stderr = (folder / f"stderr_{os.getpid()}").open("w", buffering=1)
    # Python ignores it where the tests themselves run in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    target(*args)

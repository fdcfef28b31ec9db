"""``dvc repro`` underneath ``dreamset run``: what its stages say, without what DVC says around it.

DVC's lines and those of a stage come through one pipe. From ``Running stage`` to the next line that DVC alone writes,
everything is the stage's and is handed on. Of what DVC says by itself, only what went wrong is.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from dreamset.core.errors import StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

DVC: Final = (sys.executable, "-m", "dvc", "repro")
Kind = Literal["start", "end", "skip", "line", "fail"]

_RUNNING: Final = re.compile(r"Running stage '(.+)':$")
_SKIPPED: Final = re.compile(r"(?:Stage )?'(.+)' didn't change, skipping$")
_CACHED: Final = re.compile(r"Stage '(.+)' is cached - skipping run")
# It says so where a stage has changed the lock file; else what it says of the next stage ends the one before.
_LOCKED: Final = re.compile(r"(?:Updating|Generating) lock file '")
_FROZEN: Final = re.compile(r"WARNING: stage: .* is frozen\. Its dependencies")
_FAILED: Final = re.compile(r"ERROR: failed to reproduce '(.+?)': (.*)$")
_EXITED: Final = re.compile(r"failed to run: .*, exited with (-?\d+)$")
_BUSY: Final = ("Unable to acquire lock", "is busy, it is being blocked by")
# What a stage says when it is interrupted, in place of which ``dreamset run`` says how to go on.
_INTERRUPTED: Final = re.compile(r"dreamset: (?:interrupted|terminated); run the same command to go on\.$")


@dataclass(frozen=True)
class Event:
    """Something that happened in a run of DVC.

    Attributes:
        kind: a stage starts, ends, or is up to date already (``skip``); a ``line`` of a stage, or of DVC where it warns
            or fails by itself; or a stage fails.
        text: the stage's name, or the line.
        status: of a failed stage, its exit status; None where DVC failed before or after it.
    """

    kind: Kind
    text: str
    status: int | None = None


def follow(lines: Iterable[str]) -> Iterator[Event]:
    """Yield what the lines of ``dvc repro`` tell, in their order.

    Args:
        lines: of its output and its errors in one, without their ends.
    """
    stage, command, failing = "", False, False
    for line in lines:
        if match := _RUNNING.match(line):
            yield from [Event("end", stage)] if stage else []
            stage, command = match[1], True
            yield Event("start", stage)
        elif command and line.startswith("> "):
            continue  # a command of several lines is printed line by line, each before it runs
        elif match := _FAILED.match(line):
            exited = _EXITED.search(match[2])
            if exited is None:
                yield Event("line", f"dreamset: DVC could not run {match[1]}: {match[2]}")
            yield Event("fail", match[1], int(exited[1]) if exited else None)
            stage, failing = "", exited is None
        elif _LOCKED.match(line) or _FROZEN.match(line):
            yield from [Event("end", stage)] if stage else []
            stage = ""
        elif match := _SKIPPED.match(line) or _CACHED.match(line):
            yield from [Event("end", stage)] if stage else []
            stage = ""
            yield Event("skip", match[1])
        elif stage:
            command = False
            if line and not _INTERRUPTED.match(line):
                yield Event("line", line)
        elif line.startswith("ERROR: "):
            failing = True
            yield Event("line", f"dreamset: DVC: {line.removeprefix('ERROR: ')}")
        elif line.startswith("WARNING: "):
            yield Event("line", f"dreamset: DVC warns: {line.removeprefix('WARNING: ')}")
        elif failing and line.startswith(("  ", "\t")):
            yield Event("line", line)  # the rest of what DVC says of an error
    if stage:
        yield Event("end", stage)


def reproduce(
    root: Path,
    targets: list[str],
    handle: Callable[[Event], None],
    tick: Callable[[], None],
    variables: Mapping[str, str],
) -> None:
    """Run ``dvc repro``, and hand on what happens.

    DVC and its stages are a group of processes of their own, so that an interrupt reaches the stage, which saves its
    work, once and by this function alone.

    Args:
        root: the project's folder.
        targets: stages; empty: all.
        handle: is called with each event.
        tick: is called about once a second.
        variables: of the environment, for the stages.

    Raises:
        KeyboardInterrupt: the run was interrupted, and its stage has ended.
        StoppedError: another run of DVC goes on here.
        SystemExit: a stage failed, and has said why; with its status.
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | dict(variables)
    # So that stages find `dreamset` where its environment is not activated.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    before = signal.getsignal(signal.SIGINT)
    # A shell starts what it puts into the background deaf to interrupts, and children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [*DVC, *targets],
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    events: list[Event] = []
    failed: list[Event] = []
    some = threading.Condition()

    def read() -> None:
        assert process.stdout is not None
        for event in follow(line.rstrip("\n") for line in process.stdout):
            with some:
                events.append(event)
                some.notify()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()

    def drain(seconds: float) -> None:
        with some:
            some.wait_for(lambda: bool(events), seconds)
            taken, events[:] = [*events], []
        for event in taken:
            failed.extend([event] if event.kind == "fail" or _busy(event) else [])
            if not _busy(event):
                handle(event)

    try:
        while reader.is_alive():
            drain(1.0)
            tick()
        process.wait()
        drain(0)
    except BaseException:
        _interrupt(process, reader)
        drain(0)
        raise
    if any(map(_busy, failed)):
        raise StoppedError("another run of DVC is going on here; wait for it, or stop it, and run this again.")
    if process.returncode:
        raise SystemExit(next((event.status for event in failed if event.status), 1))


def _busy(event: Event) -> bool:
    return event.kind == "line" and any(words in event.text for words in _BUSY)


def _interrupt(process: subprocess.Popen[Any], reader: threading.Thread) -> None:
    """Interrupt DVC and its stage, and wait until both have ended; a second interrupt waits no longer."""
    try:
        os.killpg(process.pid, signal.SIGINT)
        # The stage may outlive DVC, and has the pipe open until it ends.
        while reader.is_alive():
            reader.join(0.2)
        process.wait()
    except ProcessLookupError:
        pass
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def busy(root: Path) -> None:
    """Refuse to start beside another run.

    Raises:
        StoppedError: naming the stage that is running.
    """
    from dreamset.core import locks
    from dreamset.core.workspace import Workspace

    running = locks.busy(Workspace.at(root).locks)
    if running:
        what = "`dreamset run`" if running[0] == "run" else running[0]
        raise StoppedError(f"{what} is running here already; wait for it, or stop it, and run this again.")

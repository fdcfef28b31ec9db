"""Workers on this machine: processes that go through one list of pieces, one per GPU or as many as wanted on a CPU.

Each process keeps its base for the whole list. The claims on pieces are the kernel's locks. So a worker that is killed
gives back its piece, and another one makes it. Workers end with their driver.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from typing import TYPE_CHECKING, Any, Final, TypeVar

from dreamset.core import device, interrupts, locks
from dreamset.core.errors import DiskFullError, InputError, StoppedError
from dreamset.core.progress import bar

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from dreamset.compute.call import Call

Unit = TypeVar("Unit")
Result = TypeVar("Result")

_LOOK: Final = 0.5  # seconds between two looks for a newer run, and at what is finished
_TRIES: Final = 3  # rounds of workers that are all killed without finishing anything


def run(
    count: int, call: Call[Unit, Result], units: list[Unit], what: str, is_done: Callable[[Unit], bool]
) -> list[Result]:
    """Make pieces with ``count`` processes; see ``dreamset.compute.run``."""
    results: list[Result] = []
    left, vain = units, 0
    with bar(total=len(units), what=what, unit="piece") as progress:
        while left:

            def look(left: list[Unit] = left) -> list[Unit]:
                still = [unit for unit in left if not is_done(unit)]
                progress.update(len(units) - len(still) - progress.n)
                return still

            made, killed = _round(min(count, len(left)), call, left, look)
            results += made
            if not killed:
                break
            before, left = len(left), look()
            vain = vain + 1 if len(left) == before else 0
            if left and vain == _TRIES:
                raise StoppedError(
                    f"{what}: {_TRIES} times a worker was killed ({', '.join(killed)}) before a piece was finished, "
                    "perhaps by the system for lack of memory; lower compute.workers, or what one piece takes "
                    "(models.*.memory, batch). Finished pieces are kept."
                )
    return results


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    answers: Connection


def _round(
    count: int, call: Call[Unit, Result], units: list[Unit], look: Callable[[], list[Unit]]
) -> tuple[list[Result], list[str]]:
    """Start workers and wait for their end.

    Returns:
        The results of those that ended by themselves, and the signals or statuses of those that did not.
    """
    context, gpus = multiprocessing.get_context("spawn"), device.gpus()
    workers: list[_Worker] = []
    waiting: dict[Any, _Worker] = {}
    results: list[Result] = []
    killed: list[str] = []
    try:
        for index in range(count):
            answers, sender = context.Pipe(duplex=False)
            gpu = gpus[index % len(gpus)] if gpus else None
            process = context.Process(
                target=_serve, args=(os.getpid(), sender, gpu, call, units), name=f"worker {index}"
            )
            process.start()
            # With the worker's end alone open, its death closes the pipe.
            sender.close()
            workers.append(_Worker(process, answers))
            waiting[answers] = workers[-1]
        while waiting:
            locks.boundary()
            for ready in connection.wait([*waiting], timeout=_LOOK):
                worker = next(worker for answers, worker in waiting.items() if answers is ready)
                del waiting[worker.answers]
                try:
                    error, result = worker.answers.recv()
                except EOFError:
                    worker.process.join()
                    killed.append(_cause(worker.process.exitcode))
                    continue
                if error is not None:
                    raise error
                results.append(result)
            look()
    finally:
        _end(workers, [*waiting.values()])
    return results, killed


def _end(workers: list[_Worker], working: list[_Worker]) -> None:
    """End the workers that still work, as SIGTERM ends a stage, and wait; a second signal ends them at once."""
    for worker in working:
        worker.process.terminate()
    try:
        for worker in workers:
            worker.process.join()
    except KeyboardInterrupt:
        for worker in working:
            worker.process.terminate()
        raise
    finally:
        for worker in workers:
            worker.answers.close()


def _cause(status: int | None) -> str:
    return signal.Signals(-status).name if status is not None and status < 0 else f"exit status {status}"


def _serve(driver: int, answers: Connection, gpu: str | None, call: Call[Any, Any], units: list[Any]) -> None:
    """Make pieces in a process of its own, and send what came of it."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA looks
    # Ctrl-C on a terminal reaches all processes of a run; the driver passes it on, as SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(KeyboardInterrupt):  # from the driver, at any time, which asks for no answer any more
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        interrupts.end_with(driver)
        device.keep_memory()
        answers.send(_answer(call, units))


def _answer(call: Call[Any, Any], units: list[Any]) -> tuple[Exception | None, Any]:
    """Return the error that ended the call, or None, and the result."""
    try:
        return None, call(units)
    except (InputError, StoppedError, DiskFullError) as error:
        return error, None
    except Exception as error:
        # A traceback does not travel.
        error.add_note("".join(traceback.format_exception(error)))
        return error, None

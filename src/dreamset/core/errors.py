"""The exceptions that end a run with one sentence, and their exit statuses."""

from __future__ import annotations


class InputError(Exception):
    """Something the user gave is wrong: one clear sentence that names the file or key, and the remedy.

    The command line prints the sentence and exits with status 2.
    """


class StoppedError(Exception):
    """The run could not go on although the input is right: one clear sentence, and how to go on.

    The command line prints the sentence and exits with status 1. Finished work is kept.
    """


class DiskFullError(OSError):
    """The folder ``filename`` has no space left; a quota or a limit on file sizes counts as well.

    The command line prints the sentence and exits with status 1. Finished work is kept.

    Attributes:
        needed: bytes that were to be written, where known.
        free: bytes free at the failure.
    """

    needed: int | None = None
    free: int = 0

    def __str__(self) -> str:
        wanted = "" if self.needed is None else f"{self.needed} bytes needed, "
        return (
            f"{self.filename}: {self.strerror}: {wanted}{self.free} bytes free; make room and run the same command "
            "again; it goes on from the finished work."
        )

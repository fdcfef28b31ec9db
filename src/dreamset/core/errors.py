"""The exceptions that end a run with one sentence, and what the command line makes of them."""

from __future__ import annotations


class InputError(Exception):
    """Something the user gave is wrong: one clear sentence naming the file or key, and the mend.

    The command line prints the sentence and exits with status 2.
    """


class StoppedError(Exception):
    """The machine could not go on, with nothing wrong in the input: one clear sentence, and how to go on.

    The command line prints the sentence and exits with status 1. What was finished is kept.
    """


class DiskFullError(OSError):
    """No space in the folder ``filename``; a quota or a limit on file sizes is a lack of space too.

    The command line prints the sentence and exits with status 1. What was finished is kept.

    Attributes:
        needed: bytes of what was being written, where that is known.
        free: bytes free when it failed.
    """

    needed: int | None = None
    free: int = 0

    def __str__(self) -> str:
        wanted = "" if self.needed is None else f"{self.needed} bytes needed, "
        return (
            f"{self.filename}: {self.strerror}: {wanted}{self.free} bytes free; make room and run the same command "
            "again, which goes on from what is finished."
        )

"""The one exception that stands for bad input, and what the command line makes of it."""

from __future__ import annotations


class InputError(Exception):
    """Something the user gave is wrong: one clear sentence naming the file or key, and the mend.

    The command line prints the sentence and exits with status 2.
    """

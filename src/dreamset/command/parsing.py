"""What the parsers of the verbs have in common."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

_MOST: Final = 10_000  # numbers of a span; more are a slip of the finger
FORMAT: Final = argparse.RawDescriptionHelpFormatter  # keeps the line breaks of a text


def verb(commands: Any, name: str, *, help: str, description: str, examples: str) -> argparse.ArgumentParser:
    """Add a verb, and return its parser; the help keeps the line breaks of the text."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=FORMAT,
    )
    return parser


def common(to: argparse.ArgumentParser) -> None:
    """Add the option that nearly every verb has."""
    to.add_argument("--params", type=Path, default=None, metavar="FILE", help="parameters (default: params.yaml)")


def span(text: str) -> range:
    """Return the numbers from A to B, both included, that ``A-B`` or ``A`` on a command line means."""
    first, _, last = text.partition("-")
    try:
        numbers = range(int(first), int(last or first) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected A-B or A, got {text!r}") from None
    if numbers.stop > 2**31 or numbers.stop - numbers.start > _MOST:
        raise argparse.ArgumentTypeError(f"expected at most {_MOST} numbers below 2^31, got {text!r}")
    return numbers

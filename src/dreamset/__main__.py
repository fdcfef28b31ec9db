"""``python -m dreamset``: the command line."""

from dreamset.command.cli import main

main()

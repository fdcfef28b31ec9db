"""``python -m dreamset``: the command line."""

from dreamset.cli import main

main()

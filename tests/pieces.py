"""Pieces of work that are no more than files, for workers that need not load torch."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from dreamset import compute
from dreamset.core import device, locks, shards
from dreamset.core.errors import InputError, StoppedError
from dreamset.params.sections import Compute

TWO = {"executor": "local", "workers": 2, "threads": None, "ray_address": None, "store": None}


def write(store: Path, keys: list[str]) -> int:
    """Make shards that are their names; a few of them are special."""
    # In a worker: torch would tell the threads.
    with mock.patch.object(device, "machine", dict):
        return sum(_made(store, claim, key) for key, claim in shards.claimed(store, keys, lambda key: [key]))


def _made(store: Path, claim: ExitStack, key: str) -> int:
    with claim, shards.writing(store, key) as folder:
        with (store.parent / "log").open("a") as log:
            log.write(f"{key} {os.getpid()}\n")
        if key.startswith("slow"):
            time.sleep(0.3)
        if key.startswith("deadly") or (key.startswith("once") and not (store.parent / "died").exists()):
            (store.parent / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if key.startswith("full"):
            Path("/dev/full").write_text("No disk takes this.")
        if key.startswith("wrong"):
            raise InputError("wrong: this piece cannot be made.")
        (folder / "a").write_text(key)
    return 1


def spread(store: Path, keys: list[str], **changes: Any) -> list[int]:
    """Make toys with two workers; ``changes`` are of the section ``compute``."""
    wanted, make = Compute(**TWO | changes), partial(write, store)
    return compute.run(wanted, store.parent, store, make, keys, lambda key: [key], what="toys")


def log(store: Path) -> list[list[str]]:
    return [line.split() for line in (store.parent / "log").read_text().splitlines()]


def drive(store: Path, keys: list[str], changes: dict[str, Any]) -> None:
    try:
        with locks.turn(store.parent / "locks", "toys"):
            spread(store, keys, **changes)
    except StoppedError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None


def place(folder: Path, unit: str) -> None:
    (folder / f"{unit}-{os.getpid()}").touch()

"""A worker of a toy study, as a process of its own that a test kills, stops and wakes.

`python toy_worker.py URL TRIALS SECONDS [key=value ...]`: trials of three rungs, SECONDS each in all. What it does is
in the file `log_PID` of the current folder.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

import toy_study
from dreamset.errors import InputError
from dreamset.study import loop

if TYPE_CHECKING:
    from optuna.trial import Trial


def main() -> None:
    url, trials, seconds, *settings = sys.argv[1:]
    options: dict[str, Any] = {key: int(value) for key, _, value in (text.partition("=") for text in settings)}
    tune = toy_study.tune(storage=url, trials=int(trials), heartbeat_s=1, grace_s=3, **options)
    log = Path(f"log_{os.getpid()}").open("w", buffering=1)  # noqa: SIM115

    def objective(trial: Trial) -> float:
        def pause(rung: int) -> None:
            log.write(f"trial {trial.number} rung {rung}\n")
            time.sleep(float(seconds) / 3)

        return toy_study.objective(trial, pause)

    try:
        study = loop.open_study(tune, "toy", ["maximize"])
        toy_study.optimise(study, tune, objective)
    except InputError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    log.write("done\n")


if __name__ == "__main__":
    # Python ignores it where the tests themselves run in the background.
    import signal

    signal.signal(signal.SIGINT, signal.default_int_handler)
    optuna.logging.disable_default_handler()
    main()

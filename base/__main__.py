"""``python -m base STAGE``, run in the project's root: train one part of the bundled base into ``models/base``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from dreamset.core.errors import InputError
from dreamset.glyphs.look import Params, load

# One step leaves its unfinished networks here for the next, so that a finished folder is replaced as a whole.
UNFINISHED = ".dreamset"


def _clip(params: Params, folder: Path) -> None:
    from base.clip import train

    train(params, folder / UNFINISHED / "clip")


def _polish(params: Params, folder: Path) -> None:
    from base.clip import polish

    polish(params, folder / UNFINISHED / "clip", folder / "clip")


def _judge(params: Params, folder: Path) -> None:
    from base.judging import train

    train(params, folder / "judge")


def _vae(params: Params, folder: Path) -> None:
    from base.diffusion import train_vae

    train_vae(params, folder / UNFINISHED / "vae")


def _unet(params: Params, folder: Path) -> None:
    from base.diffusion import train_unet

    train_unet(params, folder / "clip", folder / UNFINISHED / "vae", folder / "sd")


def _student(params: Params, folder: Path) -> None:
    from base.student import train_student

    train_student(params, folder / "sd", folder / "student")


def _score(params: Params, folder: Path) -> None:
    from base.score import score

    score(params, folder)


STAGES: dict[str, Callable[[Params, Path], None]] = {
    "clip": _clip,
    "polish": _polish,
    "judge": _judge,
    "vae": _vae,
    "unet": _unet,
    "student": _student,
    "score": _score,
}


def main() -> int:
    """Parse the command line and run one stage; return the exit status, 2 for a wrong parameter."""
    parser = argparse.ArgumentParser(prog="python -m base", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("models/base"),
        help="folder with params.yaml, which receives the result (default: %(default)s)",
    )
    arguments = parser.parse_args()
    try:
        params = load(arguments.folder / "params.yaml")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    STAGES[arguments.stage](params, arguments.folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

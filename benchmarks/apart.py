"""Parameters of an experiment that is scored on images set apart beside the shots, and on no test image."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from dreamset import classifiers
from dreamset import params as parameters

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def changed(
    raw: dict[str, Any],
    seed: int,
    shots: int,
    labels: int,
    active: Sequence[str],
    trained: Sequence[str] = ("resnet20",),
) -> dict[str, Any]:
    """Return the content of a parameter file in which nothing is chosen, tracked or trained beside.

    Args:
        raw: the content of a parameter file.
        seed: of shots, images and classifiers.
        shots: labelled images per class.
        labels: further ones per class, set apart.
        active: recipes; the first is the primary one.
        trained: classifiers.
    """
    own = copy.deepcopy(raw)
    own |= {"seed": seed, "shots": shots, "selection": f"extra:{labels}", "active": [*active], "after": {}}
    own |= {"primary": active[0]}
    own["train"] |= {"classifiers": [*trained], "baselines": [], "simple": [], "selections": 1, "configurations": 1}
    own["track"]["uri"] = None
    return own


def parsed(own: dict[str, Any], file: Path) -> parameters.Params:
    """Return the checked parameters; ``file`` names them in sentences."""
    return parameters.parse(own, classifiers.ROWS, str(file))

"""A real study made small, on the toy world: its parameters, what it leaves, and scores of a known landscape."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np

import toy
from dreamset import generate
from dreamset.study import artifacts
from dreamset.study.objective import Objective

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest
    from numpy.typing import NDArray

    from dreamset.core.workspace import Workspace
    from dreamset.params import Params

PLAIN, LORA = "stable_diffusion_tuned", "datadream_dset"
RUNGS = [1, 2, 4]
BASE = "models__bundled__"


def parameters(generator: Path) -> Callable[..., Params]:
    """What makes parameters of a study of seconds on the generator of a folder.

    Changes are dotted keys as ``toy.params`` takes them.
    """

    def made(**changes: Any) -> Params:
        settings: dict[str, Any] = {
            "active": [PLAIN],
            f"{BASE}generator": str(generator),
            f"{BASE}judge": str(toy.ROOT / "models/base/judge"),
            f"{BASE}tune": {"classifier": "resnet20", "steps": 4, "per_class": RUNGS},
            f"{BASE}generate__steps": 2,
            f"{BASE}generate__per_class": 2,
            f"{BASE}adapt__dataset__max_steps": 2,
            f"{BASE}adapt__dataset__warmup": 1,
            f"{BASE}adapt__dataset__batch": 4,
            f"{BASE}adapt__sample_every": 10,
            "adapt__sample_images": 1,
            "adapt__sample_steps": 1,
            "tune__trials": 3,
            "tune__rescored": 0,
            f"recipes__{PLAIN}__search": {"guidance": {"low": 1.0, "high": 7.5}, "steps": {"low": 1, "high": 3}},
        }
        return toy.params(**(settings | changes))

    return made


def record(workspace: Workspace, recipe: str = PLAIN) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(workspace.result("tune", recipe).read_text())
    return found


def scored_by(monkeypatch: pytest.MonkeyPatch, score: Callable[[dict[str, Any], int], float]) -> list[int]:
    """Scores of a known landscape in place of drawing and training; what rungs were asked for."""
    asked: list[int] = []

    def drawn(params: Params, workspace: Workspace, recipe: str, load: Any = None) -> dict[str, Any]:
        return {}

    def scored(self: Objective, params: Params, places: list[Workspace], rung: int) -> tuple[float, NDArray[np.bool_]]:
        asked.append(rung)
        cas = score(dataclasses.asdict(params.sampler(self.recipe)), rung)
        # Of a thousand images, so that trials of different scores can be told apart.
        return cas, np.arange(1000) < 1000 * cas

    monkeypatch.setattr(generate, "run", drawn)
    monkeypatch.setattr(artifacts, "keep_samples", lambda *_: "")
    monkeypatch.setattr(Objective, "_score", scored)
    monkeypatch.setattr(Objective, "_spent", lambda self, places: (3 * asked[-1], 3 * asked[-1], 1.0))
    return asked

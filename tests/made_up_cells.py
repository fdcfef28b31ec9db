"""Cells of a table that cost nothing: stages that only say that they ran, and made-up evaluations."""

import csv
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import toy
from dreamset import adapt, evaluate, generate, prepare, train
from dreamset.core.files import write_json
from dreamset.core.workspace import Workspace
from dreamset.params import Params
from toy import ROOT

ARMS = ("real", "real_strong")
RATES = {"real": 0.8, "stable_diffusion": 0.6, "datadream_dset": 0.75, "datadream_cls": 0.7}


def made_up(params: Params, images: int = 60) -> tuple[dict[str, Any], dict[str, Any]]:
    """An evaluation and its predictions: the accuracy of a run depends on its recipe, shots and seed."""
    rng = np.random.default_rng(1000 * params.shots + params.seed)
    labels = np.arange(images) % 3
    runs, predicted, right = [], {}, {}
    arms = [("real", kind) for kind in ARMS]
    arms += [(recipe, kind) for recipe in params.active for kind in ("synthetic", "both", "both_strong")]
    for arm, kind in arms:
        key = f"{arm}/{kind}/resnet20"
        rate = min(0.97, RATES[arm] + 0.1 * (kind in ("both", "both_strong", "real_strong")) + 0.01 * params.shots)
        right[key] = rng.random(images) < rate
        predicted[key] = np.where(right[key], labels, (labels + 1) % 3).tolist()
        run = {"arm": arm, "train_on": kind, "classifier": "resnet20", "accuracy": float(right[key].mean())}
        runs.append(run | {"low": 0.0, "high": 1.0, "top5": 1.0, "steps": 1, "seconds": 1.0})
    pairs = [
        (f"{recipe}/{kind}/resnet20", f"real/{alone}/resnet20")
        for recipe in params.active
        for kind in ("both", "both_strong")
        for alone in ARMS
    ]
    pairs += [
        (f"{recipe}/{kind}/resnet20", f"stable_diffusion/{kind}/resnet20")
        for recipe in params.active
        for kind in ("synthetic", "both", "both_strong")
        if recipe != "stable_diffusion" and "stable_diffusion" in params.active
    ]
    evaluation = {
        "shots": params.shots,
        "seed": params.seed,
        "runs": runs,
        "differences": [{"of": of, "minus": minus} for of, minus in pairs],
        "costs": {},
        "sets": {
            recipe: {"fid": 100 * (1 - right[f"{recipe}/synthetic/resnet20"].mean()), "kid": 0.5, "n": 60, "vendi": {}}
            | {"near_duplicates": {"share": 0.1 * params.seed, "count": 3}}
            for recipe in params.active
        },
        "labels_train_per_class": params.shots,
        "labels_selection_per_class": 0,
    }
    return evaluation, {"labels": labels.tolist(), "predicted": predicted}


def stub_stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages that say that they ran and leave what the table is made of."""
    ran: list[str] = []

    def stub(name: str) -> Callable[..., None]:
        def run(params: Params, workspace: Workspace, *item: str) -> None:
            ran.append(" ".join((name, *item, f"{params.shots}/{params.seed}")))

        return run

    def run_evaluate(params: Params, workspace: Workspace, _: Any) -> dict[str, Any]:
        ran.append(f"evaluate {params.shots}/{params.seed}")
        evaluation, guesses = made_up(params)
        write_json(workspace.plots("evaluate") / "predictions.json", guesses)
        return evaluation

    for module, name in ((prepare, "prepare"), (adapt, "adapt"), (generate, "generate"), (train, "train")):
        monkeypatch.setattr(module, "run", stub(name))
    monkeypatch.setattr(evaluate, "run", run_evaluate)
    return ran


def small_table(raw: dict[str, Any]) -> Params:
    """Parameters of a table of two recipes, on the bundled base."""
    raw["models"]["bundled"] |= {
        name: str(ROOT / raw["models"]["bundled"][name]) for name in ("generator", "clip", "judge")
    }
    raw["active"] = ["stable_diffusion", "datadream_dset"]
    raw["evaluate"]["bootstrap"] = 100
    return toy.parse(raw)


def rows(workspace: Workspace, name: str) -> list[dict[str, str]]:
    with (workspace.results / f"table/{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def recorded(workspace: Workspace) -> list[tuple[int, int]]:
    return sorted({(int(row["shots"]), int(row["seed"])) for row in rows(workspace, "cells")})

"""The table: cells that are finished stay finished, and differences are paired."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from dreamset import params as parameters
from dreamset import sweep
from dreamset.files import write_json
from dreamset.workspace import Workspace
from toy import ROOT


def test_pairing_finds_a_small_gain_that_every_seed_has() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random((1, 500))
    base = (rng.random((5, 500)) > 0.2 + 0.3 * hard).astype(float)
    better = np.where(rng.random((5, 500)) < 0.08, 1.0, base)
    mean, low, high = sweep.paired(better - base, 2000, 0.95)
    assert 0 < low < mean < high
    assert mean == pytest.approx((better - base).mean())


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Seeds and images both vary; a true difference of zero lies outside a 90 % interval about one time in ten."""
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(200):
        differences = rng.normal(0, 0.05, (12, 1)) + rng.normal(0, 0.5, (1, 60)) + rng.normal(0, 0.5, (12, 60))
        _, low, high = sweep.paired(differences, 200, 0.9)
        missed += not low <= 0 <= high
    assert 5 <= missed <= 40


def test_differences_between_seeds_widen_the_interval() -> None:
    same = np.tile([[1.0] * 10 + [0.0] * 90], (5, 1))
    varied = np.stack([np.roll([1.0] * n + [0.0] * (100 - n), n) for n in (0, 2, 8, 15, 25)])
    widths = [high - low for _, low, high in (sweep.paired(d, 1000, 0.95) for d in (same, varied))]
    assert widths[1] > widths[0]


def test_summaries_are_means_over_seeds() -> None:
    shared = {"shots": 4, "recipe": "a", "train_on": "both", "classifier": "resnet20", "kid": None}
    rows = [shared | {"accuracy": 0.8, "fid": 10.0}, shared | {"accuracy": 0.9, "fid": 20.0}]
    (row,) = sweep.summarised(rows)
    assert (row["seeds"], row["accuracy"], row["sd"], row["fid"], row["kid"]) == (2, 0.85, 0.0707, 15.0, None)


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Cells that record that they ran and leave the files that the table is made of."""
    ran: list[tuple[int, int]] = []

    def run_cell(cell: sweep.Cell) -> None:
        shots, seed = cell.params.shots, cell.params.seed
        ran.append((shots, seed))
        run: dict[str, Any] = {"arm": "real", "train_on": "real", "classifier": "resnet20", "accuracy": 0.5 + seed / 10}
        run |= {"low": 0.0, "high": 1.0, "top5": 1.0, "steps": 1, "seconds": 1.0, "selection": "fixed"}
        run |= {"labels_train_per_class": shots, "labels_selection_per_class": 0, "temperature": 1.0}
        run |= dict.fromkeys(("nll", "ece", "nll_scaled", "ece_scaled"), 0.1)
        evaluation = {"shots": shots, "seed": seed, "runs": [run], "sets": {}, "costs": {}}
        evaluation["differences"] = [{"classifier": "resnet20", "of": "a/both/resnet20", "minus": "real/real/resnet20"}]
        write_json(cell.workspace.result("evaluate"), evaluation)
        predicted = {"a/both/resnet20": [0, 1, 1, 0], "real/real/resnet20": [0, 1, 0, 0]}
        guesses = {"labels": [0, 1, 1, 1], "predicted": predicted}
        write_json(cell.workspace.plots("evaluate") / "predictions.json", guesses)
        write_json(cell.workspace.cell / "cell.json", {"done": cell.done})

    monkeypatch.setattr(sweep, "run_cell", run_cell)
    return ran


def test_a_table_goes_on_where_it_stopped(
    raw: dict[str, Any], workspace: Workspace, cells: list[tuple[int, int]]
) -> None:
    raw["models"]["bundled"] |= {
        name: str(ROOT / raw["models"]["bundled"][name]) for name in ("generator", "clip", "judge")
    }
    params = parameters.parse(raw)
    sweep.run(params, workspace, [4], [0, 1], 1)
    sweep.run(params, workspace, [4, 8], [0, 1], 1)
    assert cells == [(4, 0), (4, 1), (8, 0), (8, 1)]
    claims = (workspace.results / "table/claims.csv").read_text().splitlines()
    assert len(claims) == 3
    assert claims[1].startswith("4,resnet20,a/both/resnet20,real/real/resnet20,2,0.25,")
    # The report's own settings change no number; the classifiers' do.
    sweep.run(dataclasses.replace(params, report=parameters.Report(3)), workspace, [4], [0, 1], 1)
    assert len(cells) == 4
    slower = dataclasses.replace(params, train=dataclasses.replace(params.train, selections=1))
    sweep.run(slower, workspace, [4], [0], 1)
    assert cells[4:] == [(4, 0)]
    assert json.loads((workspace.root / ".dreamset/table/shots004_seed0/cell.json").read_text())["done"]

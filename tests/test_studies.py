"""Experiments with studies: cells of their own, recorded one by one, and differences that are paired."""

import argparse
import copy
import dataclasses
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from benchmarks import causes, paired, phases, pruning, setting, strength, studies

import dreamset
import toy
from dreamset.core.files import write_json
from dreamset.core.workspace import Workspace
from dreamset.data.synthetic import read_metadata
from dreamset.params import Params

# As many jobs as cores leave each one thread: with more, tests side by side wait for each other.
JOBS = os.cpu_count() or 1
ARGUMENTS = {"shots": 2, "trials": 3, "jobs": JOBS}


def bits(*right: int) -> str:
    return np.packbits(right).tobytes().hex()


def record(seed: int, right: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"seed": seed, "images": 4, "labels": "same", "right": right, **more}


@pytest.fixture
def file(small: dict[str, Any], tmp_path: Path) -> Path:
    row = small["models"]["bundled"]
    toy.write_clip(tmp_path / "clip")
    toy.write_judge(tmp_path / "judge")
    row |= {"clip": "clip", "judge": "judge"}
    row["train"]["resnet20"] |= {"width": 4, "steps": 4, "batch": 8, "warmup": 1}
    row["tune"] |= {"steps": 4, "per_class": [1, 2]}
    small["evaluate"] |= {"bootstrap": 200}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(small), encoding="utf-8")
    return path


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A ``dreamset.tune`` that says what a study would; the arms that asked for one."""
    asked = []

    def run(params: Params, workspace: Workspace, recipe: str) -> dict[str, Any]:
        asked.append(params.tune.pruner)
        assert not workspace.result("tune", recipe).exists()
        found: dict[str, Any] = {"recipe": recipe, "searched": [], "best": None}
        if params.recipes[recipe].is_tuned:
            trial = {"images": 20, "seconds": 1.5}
            found |= {
                "best": {"guidance": 3.0, "steps": 2},
                "trials": [trial] * params.tune.trials,
                "counts": {"complete": params.tune.trials, "pruned": 0, "failed": 0},
            }
        toy.write_study(params, workspace, recipe, **found)
        write_json(workspace.tuned(recipe) / "adapters.json", {"recipe": recipe, "tuned": False, "adapters": []})
        return found

    module = types.ModuleType("dreamset.tune")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dreamset.tune", module)
    monkeypatch.setattr(dreamset, "tune", module, raising=False)
    return asked


def test_differences_are_paired_by_seed_and_image() -> None:
    params = toy.params()
    ones = [record(seed, {"a": bits(1, 1, 1, 0)}) for seed in (0, 1)]
    others = [record(0, {"b": bits(1, 0, 1, 0)}), record(1, {"b": bits(1, 1, 0, 1)})]
    assert paired.unpacked(ones[0], "a").tolist() == [1, 1, 1, 0]
    assert paired.accuracy(others, "b") == {"seeds": 2, "cas": 0.625, "sd": 0.1768, "by_seed": [0.5, 0.75]}
    assert paired.accuracy(others[:1], "b")["sd"] is None
    found = paired.difference(params, list(zip(ones, others, strict=True)), "a", "b")
    assert found["difference"] == 0.125 and found["by_seed"] == [0.25, 0.0] and found["indicative"]
    assert found["low"] <= 0.125 <= found["high"]
    assert paired.told({"difference": 0.012, "low": -0.003, "high": 0.02}) == "+1.2 (−0.3 to +2.0)"
    others[1]["labels"] = "other"
    with pytest.raises(ValueError, match="different images"):
        paired.difference(params, list(zip(ones, others, strict=True)), "a", "b")


def test_every_cell_is_a_project_of_its_own(file: Path, tmp_path: Path) -> None:
    options = argparse.Namespace(params=file, work=tmp_path / "work", **ARGUMENTS)
    raw = yaml.safe_load(file.read_text())
    found = pruning.cells(raw, options, [1, 0])
    assert [(cell.seed, cell.arm) for cell in found] == [(seed, arm) for seed in (0, 1) for arm in pruning.ARMS]
    assert len({cell.folder for cell in found}) == len({cell.made for cell in found}) == 10
    by_arm = {cell.arm: cell.params for cell in found[:5]}
    assert {arm: (own.tune.sampler, own.tune.pruner) for arm, own in by_arm.items() if arm != "untuned"} == {
        "none": ("tpe", "none"),
        "hyperband": ("tpe", "hyperband"),
        "successive_halving": ("tpe", "successive_halving"),
        "random": ("random", "none"),
    }
    assert [arm for arm, own in by_arm.items() if own.recipes[pruning.RECIPE].search is None] == ["untuned"]
    assert {(own.shots, own.seed, own.tune.trials) for arm, own in by_arm.items() if arm != "untuned"} == {(2, 0, 3)}
    # More trials are another experiment; a path or the tracking server is none.
    options.trials = 4
    assert not {cell.made for cell in pruning.cells(raw, options, [0])} & {cell.made for cell in found[:4]}
    options.trials, raw["track"]["uri"] = 3, "http://elsewhere"
    assert [cell.made for cell in pruning.cells(raw, options, [0])] == [cell.made for cell in found[:5]]


def test_a_cell_is_scored_once_by_the_ordinary_stages(file: Path, tmp_path: Path, tune: list[str]) -> None:
    options = argparse.Namespace(params=file, work=tmp_path / "work", **ARGUMENTS)
    cell = pruning.cells(yaml.safe_load(file.read_text()), options, [0])[1]
    found = json.loads(json.dumps(pruning.run_cell(cell)))
    assert tune == ["hyperband"]
    assert (found["arm"], found["seed"], found["trials"], found["images_drawn"], found["seconds"]) == (
        "hyperband",
        0,
        3,
        60,
        4.5,
    )
    assert found["images"] == 640 and len(found["right"][str(pruning.RUN)]) == 160
    assert 0 < paired.accuracy([found], str(pruning.RUN))["cas"] < 0.6
    assert not cell.folder.exists()


def made(cell: pruning.Cell) -> dict[str, Any]:
    """A record that needs no work: the more pruning, the less is right."""
    right = {"none": (1, 1, 1, 1), "untuned": (0, 0, 0, 1)}.get(cell.arm, (1, 1, 1, cell.seed % 2))
    facts = {"arm": cell.arm, "made": cell.made, "trials": 3, "counts": {"pruned": 2}, "best": {}, "seconds_all": 1.0}
    drawn = {"hyperband": 50, "successive_halving": 35}.get(cell.arm, 100)
    return record(cell.seed, {str(pruning.RUN): bits(*right)}, images_drawn=drawn, seconds=drawn / 2, **facts)


def test_what_was_killed_goes_on_where_it_was(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[tuple[int, str]] = []

    def run(cell: pruning.Cell) -> dict[str, Any]:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append((cell.seed, cell.arm))
        return made(cell)

    arguments = ["--params", str(file), "--output", str(tmp_path / "out"), "--seeds", "0-1", "--trials", "3"]
    monkeypatch.setattr(pruning, "run_cell", run)
    with pytest.raises(KeyboardInterrupt):
        pruning.main(arguments)
    assert len(json.loads((tmp_path / "out/studies.json").read_text())["cells"]) == 3
    rest: list[tuple[int, str]] = []
    monkeypatch.setattr(pruning, "run_cell", lambda cell: rest.append((cell.seed, cell.arm)) or made(cell))
    report = pruning.main(arguments)
    assert done + rest == [(seed, arm) for seed in (0, 1) for arm in pruning.ARMS]
    assert json.loads((tmp_path / "out/studies.json").read_text())["arms"] == report["arms"]
    rows = {row["arm"]: row for row in report["arms"]}
    assert rows["hyperband"]["share_of_images"] == rows["hyperband"]["share_of_seconds"] == 0.5
    assert rows["successive_halving"]["share_of_images"] == 0.35
    assert rows["hyperband"]["difference"] == -0.125
    assert rows["untuned"]["difference"] == -0.75 and "share_of_images" not in rows["untuned"]
    assert "difference" not in rows["none"]
    table = (tmp_path / "out/studies.md").read_text()
    assert "| hyperband | 2 | 87.5 | 17.7 | −12.5 (" in table and "| 50% | 50% | 4 |" in table
    # Another number of trials would be put beside these.
    with pytest.raises(SystemExit, match="2"):
        pruning.main([*arguments[:-1], "4"])
    # But for the two without a study.
    assert "8 of its cells are of other parameters" in capsys.readouterr().err


def test_the_phases_are_recipes_in_their_order(raw: dict[str, Any]) -> None:
    params = phases.with_phases(raw, "params.yaml", 16, 20)
    assert params.active == tuple(phases.PHASES)
    assert params.after == dict.fromkeys(phases.SECOND, "class_encoder")
    assert (params.tune.trials, params.scales, params.generate.per_class) == (20, (1, 2, 5, 10), 160)
    right = {phases.run(name): bits(*(int(i <= place) for i in range(4))) for place, name in enumerate(phases.PHASES)}
    summary = phases.summarise(params, [record(seed, right) for seed in (0, 1, 2)])
    assert [row["cas"] for row in summary["phases"]] == [0.25, 0.5, 0.75, 1.0]
    assert [row["difference"] for row in summary["differences"]] == [0.25, 0.25, 0.25, 0.75]
    assert summary["scales"] == []
    shares = {"guidance": 0.6, "steps": 0.1, "guidance × steps": 0.05}
    studied = [{"recipe": "class_encoder", "studies": 3, "shares": shares}]
    table = phases.markdown(summary | {"importances": studied})
    assert "| `class_encoder` | 3 | guidance 60%, steps 10%, guidance × steps 5% |" in table
    assert "| tuned again | `class_encoder_ft` | 3 | 100.0 | 0.0 |" in table
    assert "| `class_encoder_ft` over `class_encoder_untuned` | +75.0 (" in table


def test_only_cells_with_every_phase_are_read(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params, right = (
        phases.with_phases(raw, "params.yaml", 16, 20),
        {phases.run(name): bits(1, 0, 0, 0) for name in phases.PHASES},
    )
    partial = {key: value for key, value in right.items() if "_ft/" not in key}
    place = Workspace(tmp_path, tmp_path / ".dreamset/phases")
    cells = place.results / "table/cells"
    for seed, own in ((0, right), (1, partial), (2, right), (7, right)):
        write_json(cells / f"shots016_seed{seed}.json", record(seed, own, shots=16, recipes={}, device="a CPU"))
    write_json(cells / "shots004_seed0.json", record(0, right, shots=4, recipes={}))
    monkeypatch.setattr(phases.cells, "usable", lambda _p, _w, path, _d: json.loads(path.read_text()))
    found = phases.records(params, place, 16, range(5))
    assert [own["seed"] for own in found] == [0, 2]
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(raw))
    with pytest.raises(SystemExit, match="2"):
        phases.main(["--params", str(file), "--read", "--shots", "8"])
    assert "no finished cell has all four phases" in capsys.readouterr().err
    study = Workspace(place.root, phases.cells.folder_of(place, 16, 2)).result("tune", "class_encoder")
    write_json(study, {"importance": {"main": {"guidance": 0.7}, "pairs": []}, "best": {"guidance": 2.5}})
    report = phases.main(["--params", str(file), "--read", "--output", str(tmp_path / "out")])
    assert [row["seeds"] for row in report["phases"]] == [2] * 4
    assert report["devices"] == ["a CPU"] and report["importances"][0] == {
        "recipe": "class_encoder",
        "studies": 1,
        "shares": {"guidance": 0.7},
        "chosen": [{"seed": 2, "guidance": 2.5}],
    }
    assert json.loads((tmp_path / "out/phases.json").read_text()) == report


def test_causes_are_scored_on_images_that_are_set_apart(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = argparse.Namespace(
        params=file,
        work=tmp_path / "work",
        seeds=[3],
        shots=[2],
        changes=["as it is", "lambda 0.8", "nearest tenth rejected"],
        labels=2,
        jobs=JOBS,
    )
    plain, changed, rejecting = causes.cells(yaml.safe_load(file.read_text()), options)
    assert [cell.params.train.real_weight for cell in (plain, changed)] == [0.5, 0.8]
    assert plain.made != changed.made and plain.params.selection == "extra:2"
    found = causes.run_cell(changed)
    arms = {"real": ("real", "real_strong")} | dict.fromkeys(
        (causes.PLAIN, causes.RECIPE), ("synthetic", "both_strong")
    )
    assert set(found["scores"]) == {f"{arm}/{kind}" for arm, kinds in arms.items() for kind in kinds}
    # Of twenty images.
    assert all(round(20 * score, 6) in range(21) for score in found["scores"].values())
    assert not changed.workspace.result("evaluate").exists()
    assert found["rejected"] == 0 and rejecting.made != plain.made
    # Were the first image always the nearest to a shot, what is drawn in its place would be rejected, too.
    monkeypatch.setattr(causes, "nearest", lambda features, _: (None, np.arange(len(features), dtype=float)))
    recipe, before = causes.RECIPE, read_metadata(changed.workspace.synthetic(causes.RECIPE))
    assert causes.reject(changed.params, changed.workspace, recipe, 1.0) == 5
    after = read_metadata(changed.workspace.synthetic(recipe))
    assert len(after) == len(before)
    assert len({image.sha256 for image in after} & {image.sha256 for image in before}) == len(before) - 4


def test_gains_of_a_change_are_paired_by_seed() -> None:
    def cell(change: str, seed: int, strong: float, both: float) -> dict[str, Any]:
        scores = {"real/real": 0.5, "real/real_strong": strong, f"{causes.PLAIN}/both_strong": 0.6}
        scores |= {f"{causes.RECIPE}/both_strong": both, f"{causes.RECIPE}/synthetic": 0.4}
        return {"shots": 4, "change": change, "seed": seed, "scores": scores}

    rows = causes.summarise(
        [cell("as it is", 0, 0.7, 0.7), cell("as it is", 1, 0.9, 0.8), cell("lambda 0.5", 0, 0.7, 0.8)]
    )
    assert [row["over_real"] for row in rows] == [
        {"mean": -0.05, "standard_error": 0.05},
        {"mean": 0.1, "standard_error": None},
    ]
    assert "over_default" not in rows[0]
    assert rows[1]["over_default"] == {"mean": 0.1, "standard_error": None}
    assert "| lambda 0.5 | 4 | 1 | 70.0 | 40.0 | 60.0 | 80.0 | +10.0 | +10.0 |" in causes.markdown(rows)


def test_sharing_adapters_changes_no_score(file: Path, tmp_path: Path) -> None:
    here = setting.make(file, tmp_path / "cell", setting.QUICK)
    scores = []
    for adapters in (False, True):
        own, workspace = studies.project(here)
        scores.append(studies.plain(own, workspace, [2.0, 4.0], adapters=adapters))
        if adapters:
            assert len(list(workspace.shards.glob("*/adapter.json"))) == 1
    assert scores[0] == scores[1] and all(0 < score < 1 for score in scores[0])


def test_both_sides_of_a_study_are_timed(file: Path, tmp_path: Path, tune: list[str]) -> None:
    here = setting.make(file, tmp_path / "cell", setting.QUICK)
    (ladder,) = studies.ladders(here)
    assert [rung.seconds() > 0 for rung in ladder.rungs[2:]] == [True] * 3
    assert tune == ["none", "hyperband", "successive_halving"]
    base = copy.copy(here.params.base)
    large = dataclasses.replace(here.params, models={here.params.model: dataclasses.replace(base, resolution=512)})
    assert studies.ladders(dataclasses.replace(here, params=large)) == []


def test_the_strengths_are_means_over_seeds_and_gains_paired_by_seed() -> None:
    def cell(seed: int, light: float, full: float) -> dict[str, Any]:
        both = {f"{arm}/both_strong": 0.5 for arm in (strength.PLAIN, strength.LIGHT, strength.FULL)}
        alone = {f"{arm}/synthetic": 0.25 for arm in (strength.PLAIN, strength.LIGHT, strength.FULL)}
        both |= {f"{strength.LIGHT}/both_strong": light, f"{strength.FULL}/both_strong": full}
        found = {"zero_shot": {"share": 0.9}, "expectation": "adapt"}
        scores = {"real/real_strong": 0.5, **alone, **both}
        return {"data": "digits", "seed": seed, "images": 200, "scores": scores, "expect": found}

    (row,) = strength.summarise([cell(0, 0.75, 0.5), cell(1, 0.5, 0.5)])
    assert (row["seeds"], row["images"]) == (2, 400)
    assert row["full_over_light"] == {"mean": -0.125, "standard_error": 0.125}
    assert row["light_over_real"]["mean"] == 0.125
    head, _, line, *_ = strength.markdown([row]).splitlines()
    assert line.count("|") == head.count("|")
    assert "| 90.0 | 50.0 | 25.0 |" in line
    assert "−12.5 ± 12.5" in line

"""The cells of a table: what is finished stays finished, and what has changed is done again."""

import contextlib
import dataclasses
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dreamset import generate
from dreamset.command import cli, tracked_table
from dreamset.core.errors import InputError, StoppedError
from dreamset.core.images import png
from dreamset.core.workspace import Workspace
from dreamset.drawing import pools
from dreamset.params import Params
from dreamset.params.sections import Report
from dreamset.sweep import cells
from made_up_cells import RATES, recorded, rows, small_table, stub_stages
from toy import ROOT


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return stub_stages(monkeypatch)


@pytest.fixture
def params(raw: dict[str, Any]) -> Params:
    return small_table(raw)


def test_a_table_goes_on_where_it_stopped(params: Params, workspace: Workspace, stages: list[str]) -> None:
    told = cells.run(params, workspace, [4], [0, 1], 1)
    assert told.startswith("2 of 2 cells run now, in ")
    assert len(stages) == 2 * 9
    assert stages[:3] == ["prepare 4/0", "train real 4/0", "adapt stable_diffusion 4/0"]
    # Parts make one table, whichever was asked for last.
    cells.run(params, workspace, [8], [0], 1)
    assert len(stages) == 3 * 9
    assert recorded(workspace) == [(4, 0), (4, 1), (8, 0)]
    # What changes no number of a cell runs nothing.
    for same in (
        dataclasses.replace(params, report=Report(3, False)),
        dataclasses.replace(params, primary="datadream_cls"),
        dataclasses.replace(params, evaluate=dataclasses.replace(params.evaluate, smallest_gain=0.02)),
        dataclasses.replace(params, models={"bundled": params.base}),
    ):
        cells.run(same, workspace, [4, 8], [0], 1)
    assert len(stages) == 3 * 9
    slower = dataclasses.replace(params, train=dataclasses.replace(params.train, selections=1))
    told = cells.run(slower, workspace, [4], [0], 1)
    assert len(stages) == 4 * 9
    assert recorded(workspace) == [(4, 0)]
    assert "1 cells in the table" in told
    assert "2 of another setting or code left out" in told
    assert json.loads((workspace.results / "table/cost.json").read_text())["cells"] == 1


def test_a_cell_without_the_runs_that_are_asked_for_runs_again(
    params: Params, workspace: Workspace, stages: list[str]
) -> None:
    cells.run(params, workspace, [4], [0], 1)
    once = len(stages)
    for change in ({"distillation": True}, {"scales": (1,)}, {"scales": (1,), "scaled": ("both",)}):
        before = len(stages)
        more = dataclasses.replace(params, train=dataclasses.replace(params.train, **change))
        cells.run(more, workspace, [4], [0], 1)
        assert len(stages) - before == once, change
        cells.run(more, workspace, [4], [0], 1)
        assert len(stages) - before == once


def test_records_alone_make_the_table(params: Params, workspace: Workspace, stages: list[str]) -> None:
    cells.run(params, workspace, [4, 8], [0, 1], 1)
    before = {path.name: path.read_bytes() for path in (workspace.results / "table").glob("*.*")}
    assert set(before) >= {"cells.csv", "summary.csv", "claims.csv", "correlations.csv", "setting.json", "cost.json"}
    # As on another machine, with the records of this one.
    shutil.rmtree(workspace.root / ".dreamset/table")
    for name in before:
        (workspace.results / "table" / name).unlink()
    cells.run(params, workspace, [8], [0], 1)
    assert len(stages) == 4 * 9
    assert {path.name: path.read_bytes() for path in (workspace.results / "table").glob("*.*")} == before


def test_cells_of_several_processors_are_told(params: Params, workspace: Workspace, stages: list[str]) -> None:
    here = cells.run(params, workspace, [4], [0, 1], 1)
    path, folder = workspace.results / "table/cells/shots004_seed1.json", workspace.results / "table"
    assert "same processor" not in here
    assert json.loads((folder / "cost.json").read_text())["machines"] is None
    path.write_text(json.dumps(json.loads(path.read_text()) | {"device": "Another", "threads": 1}))
    told = cells.run(params, workspace, [4], [0, 1], 1).splitlines()
    (sentence,) = [line for line in told if "same processor" in line]
    assert "4 shots, seed 0; Another, 1 thread: 4 shots, seed 1)" in sentence
    assert json.loads((folder / "cost.json").read_text())["machines"] == sentence


def test_a_cell_that_lacks_a_recipe_runs_that_one_alone(
    params: Params, workspace: Workspace, stages: list[str]
) -> None:
    cells.run(params, workspace, [4], [0], 1)
    del stages[:]
    more = dataclasses.replace(params, active=("datadream_cls",))
    cells.run(more, workspace, [4], [0], 1)
    assert stages == [*(f"{stage} datadream_cls 4/0" for stage in ("adapt", "generate", "train")), "evaluate 4/0"]
    recipes = {row["recipe"] for row in rows(workspace, "cells")}
    assert recipes == {"real", "stable_diffusion", "datadream_dset", "datadream_cls"}
    # The smaller table asks for nothing that is not there, and loses nothing.
    cells.run(params, workspace, [4], [0], 1)
    assert len(stages) == 4
    # A recipe that became another one leaves the table; the rest of its cells stay.
    changed = params.recipes | {"datadream_cls": dataclasses.replace(params.recipes["datadream_cls"], rank=2)}
    cells.run(dataclasses.replace(params, recipes=changed), workspace, [4], [0], 1)
    assert len(stages) == 4
    assert {row["recipe"] for row in rows(workspace, "cells")} == recipes - {"datadream_cls"}
    assert not any("datadream_cls" in row["of"] for row in rows(workspace, "claims"))


def test_a_killed_cell_goes_on_with_the_next_arm(
    params: Params, workspace: Workspace, stages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = generate.run

    def killed(params: Params, workspace: Workspace, recipe: str) -> None:
        ran(params, workspace, recipe)
        if recipe == "datadream_dset":
            raise KeyboardInterrupt

    monkeypatch.setattr(generate, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        cells.run(params, workspace, [4], [0], 1)
    assert not (workspace.results / "table/cells").exists()
    monkeypatch.setattr(generate, "run", ran)
    del stages[:]
    cells.run(params, workspace, [4], [0], 1)
    assert stages == [*(f"{stage} datadream_dset 4/0" for stage in ("adapt", "generate", "train")), "evaluate 4/0"]


def test_other_code_is_believed_when_a_cell_comes_out_the_same(
    params: Params, workspace: Workspace, stages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells.run(params, workspace, [4, 8], [0, 1, 2], 1)
    del stages[:]
    monkeypatch.setattr(cells, "code_digest", lambda *_: "refactored")
    told = cells.run(params, workspace, [4, 8], [0, 1, 2], 1, recheck=True)
    assert [ran for ran in stages if ran.startswith("evaluate")] == ["evaluate 4/0", "evaluate 8/0"]
    assert told.startswith("4 cells of other code taken over, for 2 gave the same results")
    assert recorded(workspace) == [(shots, seed) for shots in (4, 8) for seed in (0, 1, 2)]
    record = json.loads((workspace.results / "table/cells/shots008_seed2.json").read_text())
    assert (record["code"], record["rechecked"]["by"]) == ("refactored", "shots008_seed0")
    del stages[:]
    assert cells.run(params, workspace, [4, 8], [0, 1, 2], 1, recheck=True).startswith("0 cells")
    assert stages == []
    # Other settings are not taken over.
    slower = dataclasses.replace(params, train=dataclasses.replace(params.train, selections=1))
    monkeypatch.setattr(cells, "code_digest", lambda *_: "again")
    cells.run(slower, workspace, [4], [0, 1], 1, recheck=True)
    assert [ran for ran in stages if ran.startswith("evaluate")] == ["evaluate 4/0", "evaluate 4/1"]
    # A recipe whose row is another one since is not judged; a cell that was taken over gains one by itself.
    rank = params.recipes | {"datadream_dset": dataclasses.replace(params.recipes["datadream_dset"], rank=2)}
    fewer = dataclasses.replace(params, recipes=rank, active=("stable_diffusion", "datadream_cls"))
    monkeypatch.setattr(cells, "code_digest", lambda *_: "refactored once more")
    del stages[:]
    plain = dataclasses.replace(fewer, active=("stable_diffusion",))
    told = cells.run(plain, workspace, [8], [0, 1, 2], 1, recheck=True)
    assert "; without datadream_dset, whose rows or searched images have changed" in told
    assert [ran for ran in stages if ran.startswith("train")] == ["train real 8/0", "train stable_diffusion 8/0"]
    del stages[:]
    cells.run(fewer, workspace, [8], [1], 1)
    assert [ran for ran in stages if ran.startswith("train")] == ["train datadream_cls 8/1"]
    # Other results are reported, and nothing is taken over.
    monkeypatch.setattr(cells, "code_digest", lambda *_: "again")
    monkeypatch.setitem(RATES, "stable_diffusion", 0.3)
    with pytest.raises(StoppedError, match="this code gives other results for shots008_seed0"):
        cells.run(params, workspace, [8], [0, 1, 2], 1, recheck=True)
    record = json.loads((workspace.results / "table/cells/shots008_seed2.json").read_text())
    assert record["code"] == "refactored once more"


def test_a_recheck_that_was_stopped_judges_what_it_ran(
    params: Params, workspace: Workspace, stages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells.run(params, workspace, [4, 8], [0, 1], 1)
    monkeypatch.setattr(cells, "code_digest", lambda *_: "refactored")
    run_cell = cells.run_cell

    def stopped(cell: cells.Cell) -> None:
        if cell.params.shots == 8:
            raise KeyboardInterrupt
        run_cell(cell)

    monkeypatch.setattr(cells, "run_cell", stopped)
    with pytest.raises(KeyboardInterrupt):
        cells.run(params, workspace, [4, 8], [0, 1], 1, recheck=True)
    monkeypatch.setattr(cells, "run_cell", run_cell)
    del stages[:]
    told = cells.run(params, workspace, [4, 8], [1, 0], 1, recheck=True)
    assert told.startswith("2 cells of other code taken over, for 2 gave the same results")
    assert [ran for ran in stages if ran.startswith("evaluate")] == ["evaluate 8/0"]
    records = [json.loads(path.read_text()) for path in (workspace.results / "table/cells").glob("*.json")]
    # What its scores were first of decides whether claims stay primary.
    assert {(one["code"], one["first_code"]) for one in records} == {("refactored", "refactored")}
    assert not list(workspace.cell.rglob("before.json"))


def test_what_another_run_made_of_a_cell_stays_in_its_record(
    params: Params, workspace: Workspace, stages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = cells.locks.turn

    @contextlib.contextmanager
    def waits(folder: Path, name: str) -> Iterator[None]:
        monkeypatch.setattr(cells.locks, "turn", turn)
        cells.run(params, workspace, [4], [0], 1)
        with turn(folder, name):
            yield

    monkeypatch.setattr(cells.locks, "turn", waits)
    cells.run(dataclasses.replace(params, active=("datadream_cls",)), workspace, [4], [0], 1)
    record = json.loads((workspace.results / "table/cells/shots004_seed0.json").read_text())
    assert set(record["recipes"]) == {"stable_diffusion", "datadream_dset", "datadream_cls"}


def test_a_recipe_brings_the_one_that_it_starts_from(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parents = {"class_encoder_ft_untuned": "class_encoder_untuned"}
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump(raw | {"active": ["stable_diffusion", "class_encoder_untuned"], "after": parents})
    )
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(cells, "run", lambda params, *_, **__: asked.append(params.active))
    monkeypatch.setattr(tracked_table, "record", lambda *_: None)
    cli.main(["table", "--shots", "4", "--seeds", "0", "--recipes", "class_encoder_ft_untuned", "stable_diffusion"])
    assert asked == [("class_encoder_untuned", "class_encoder_ft_untuned", "stable_diffusion")]


def test_an_unknown_recipe_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["table", "--shots", "4", "--seeds", "0", "--recipes", "nothing"])
    assert "no row 'nothing' in recipes" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["table", "--shots", "4", "--seeds", "0", "--jobs", "0"])
    assert "shots and jobs are 1 or more" in capsys.readouterr().err


def write_folders(root: Path, parts: tuple[str, ...]) -> None:
    rng = np.random.default_rng(3)
    for part, name, index in itertools.product(parts, ("cat", "dog"), range(6)):
        path = root / part / name / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(rng.integers(0, 256, (12, 12, 3)).astype(np.uint8)))


def from_folder(params: Params, folder: Path, **changes: Any) -> Params:
    own = dataclasses.replace(params.prepare, source=f"imagefolder:{folder}", **changes)
    return dataclasses.replace(params, prepare=own)


def test_other_images_under_the_same_path_are_another_cell(
    params: Params, workspace: Workspace, stages: list[str], tmp_path: Path
) -> None:
    write_folders(tmp_path / "mine", ("train", "test"))
    mine = from_folder(params, tmp_path / "mine")
    cells.run(mine, workspace, [2], [0, 1], 1)
    before = json.loads((workspace.results / "table/setting.json").read_text())
    assert cells.run(mine, workspace, [2], [0, 1], 1).startswith("0 of 2 cells run now")
    # One file has other pixels; its name and the number of files are as they were.
    (tmp_path / "mine/test/cat/0.png").write_bytes(png(np.full((12, 12, 3), 9, np.uint8)))
    assert cells.run(mine, workspace, [2], [0], 1).startswith("1 of 1 cells run now")
    assert recorded(workspace) == [(2, 0)]
    after = json.loads((workspace.results / "table/setting.json").read_text())
    assert before["data"] != after["data"]
    assert {**before, "data": None} == {**after, "data": None}


def test_another_file_of_shots_is_another_cell(
    params: Params, workspace: Workspace, stages: list[str], tmp_path: Path
) -> None:
    write_folders(tmp_path / "mine", ("train", "test"))
    file = tmp_path / "shot_2-seed_0.json"
    file.write_text("{}")
    mine = from_folder(params, tmp_path / "mine", few_shot=str(tmp_path / "shot_{shots}-seed_{seed}.json"))
    cells.run(mine, workspace, [2], [0], 1)
    assert cells.run(mine, workspace, [2], [0], 1).startswith("0 of 1 cells run now")
    file.write_text('{"train": []}')
    assert cells.run(mine, workspace, [2], [0], 1).startswith("1 of 1 cells run now")


@pytest.mark.parametrize("protocol", [None, "cv"])
def test_seeds_that_would_be_cross_validated_are_refused_before_any_work(
    params: Params, workspace: Workspace, stages: list[str], tmp_path: Path, protocol: Any
) -> None:
    # Of the source's own: with cv asked for, its test part is of no use.
    write_folders(tmp_path / "mine", ("train", "test") if protocol else ("",))
    mine = from_folder(params, tmp_path / "mine")
    mine = dataclasses.replace(mine, evaluate=dataclasses.replace(mine.evaluate, protocol=protocol))
    with pytest.raises(InputError, match="2 seeds at 1 shots would be cross-validated"):
        cells.run(mine, workspace, [1, 2], [0, 1], 1)
    assert stages == []
    cells.run(mine, workspace, [1, 2], [0], 1)
    ran = len(stages)
    assert ran == 2 * 9
    # A seed that was run before counts.
    with pytest.raises(InputError, match="2 seeds at 2 shots would be cross-validated"):
        cells.run(mine, workspace, [2], [1], 1)
    assert len(stages) == ran
    held = dataclasses.replace(mine, evaluate=dataclasses.replace(mine.evaluate, protocol="test"))
    cells.run(held, workspace, [2], [0, 1], 1)
    assert recorded(workspace) == [(2, 0), (2, 1)]


def test_what_is_searched_is_part_of_a_recipe_that_finds_its_images(
    params: Params, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [("a.png", "0" * 64)]
    monkeypatch.setattr(pools, "searched", lambda *_: list(found), raising=False)
    before = cells.rows_hashes(params, workspace, ["retrieved", "datadream_dset"])
    found.append(("b.png", "1" * 64))
    after = cells.rows_hashes(params, workspace, ["retrieved", "datadream_dset"])
    assert before["retrieved"] != after["retrieved"]
    assert before["datadream_dset"] == after["datadream_dset"]


def test_a_table_with_a_recipe_that_has_nothing_to_search_is_refused(
    raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw["models"]["bundled"]["retrieval"] = None
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.chdir(tmp_path)
    for words in (["table", "--shots", "4", "--seeds", "0", "--recipes", "retrieved"], ["generate", "retrieved"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(words)
        told = capsys.readouterr().err
        assert "models.bundled.retrieval: is null, so recipe retrieved has nothing to retrieve from" in told
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]

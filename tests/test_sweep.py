"""The table: finished work stays finished, parts make one table, and differences are paired."""

import csv
import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import toy
from dreamset import adapt, evaluate, generate, prepare, train
from dreamset.command import cli
from dreamset.core.errors import InputError, StoppedError
from dreamset.core.files import write_json
from dreamset.core.images import png
from dreamset.core.workspace import Workspace
from dreamset.data.runs import Kind, Run
from dreamset.drawing import pools
from dreamset.metrics.verdict import Gain
from dreamset.params import Params
from dreamset.params.sections import Report
from dreamset.sweep import cells, table
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


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
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


@pytest.fixture
def params(raw: dict[str, Any]) -> Params:
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
    cells.run(dataclasses.replace(fewer, active=("stable_diffusion",)), workspace, [8], [0, 1, 2], 1, recheck=True)
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


def test_primary_claims_are_a_family_of_their_own(params: Params, workspace: Workspace, stages: list[str]) -> None:
    cells.run(params, workspace, [2, 4, 16], [0, 1, 2, 3, 4, 5], 1)
    found = rows(workspace, "claims")
    primary = [row for row in found if row["primary"] == "true"]
    assert [(row["shots"], row["of"].split("/")[1]) for row in primary].count(("4", "both_strong")) == 2
    assert {row["shots"] for row in primary} == {"4", "16"}
    assert len(primary) == table.PRIMARY_TESTS
    assert {row["of"].split("/")[0] for row in primary} == {"datadream_dset"}
    for shots in ("4", "16"):
        over_real = [row for row in found if row["shots"] == shots and row["minus"].startswith("real/")]
        own = [row for row in over_real if row["of"] == "datadream_dset/both_strong/resnet20"]
        assert len(own) == 2
        best = min(own, key=lambda row: float(row["difference"]))
        assert [row["primary"] for row in own if row is not best] == ["false"]
        assert best["primary"] == "true"
    assert all(float(row["p"]) <= float(row["p_holm"]) for row in found)
    least = min(primary, key=lambda row: float(row["p"]))
    assert float(least["p"]) == 2 / 2**6
    assert float(least["p_holm"]) == pytest.approx(6 * 2 / 2**6, abs=1e-3)
    assert {row["indicative"] for row in found} == {"false"}
    differences = [float(value) for value in least["by_seed"].split()]
    assert np.mean(differences) == pytest.approx(float(least["difference"]), abs=1e-3)
    assert float(least["low"]) < float(least["difference"]) < float(least["high"])


def test_a_part_without_the_primary_recipe_leaves_its_claims_primary(
    params: Params, workspace: Workspace, stages: list[str]
) -> None:
    params = dataclasses.replace(params, primary="datadream_dset")
    cells.run(params, workspace, [4], [0, 1], 1)
    cells.run(dataclasses.replace(params, active=("stable_diffusion", "datadream_cls")), workspace, [4], [0, 1], 1)
    found = rows(workspace, "claims")
    assert {row["of"].split("/")[0] for row in found if row["primary"] == "true"} == {"datadream_dset"}
    assert any(row["of"].startswith("datadream_cls/") for row in found)


def test_part_of_the_family_is_adjusted_for_all_of_it(params: Params, workspace: Workspace, stages: list[str]) -> None:
    cells.run(params, workspace, [4], [0, 1, 2], 1)
    primary = [row for row in rows(workspace, "claims") if row["primary"] == "true"]
    assert len(primary) == 3
    assert all(float(row["p_holm"]) == 1 and row["indicative"] == "true" for row in primary)


def test_quality_is_correlated_with_what_a_network_from_scratch_learns(
    params: Params, workspace: Workspace, stages: list[str]
) -> None:
    cells.run(params, workspace, [4, 8], [0, 1, 2, 3], 1)
    found = {(row["metric"], row["shots"]): row for row in rows(workspace, "correlations")}
    # A made-up FID that is the share of errors itself; a KID that never varies and a Vendi score of another shape.
    for shots, points in (("all", "16"), ("4", "8"), ("8", "8")):
        row = found["fid", shots]
        assert (row["points"], row["seeds"], float(row["rho"])) == (points, "4", -1.0)
    assert -1 < float(found["near_duplicates", "all"]["rho"]) < 1
    assert {metric for metric, _ in found} == {"fid", "near_duplicates"}


def test_seeds_that_were_scored_on_different_images_are_refused(params: Params) -> None:
    records = []
    for seed, images in ((0, 60), (1, 30)):
        evaluation, guesses = made_up(dataclasses.replace(params, seed=seed), images)
        records.append(table.record(evaluation, guesses))
    with pytest.raises(InputError, match="the seeds at 4 shots were scored on different images"):
        table.claims(params, records)
    # Under cross-validation each seed is scored on its own shots, though their labels are the same.
    records = []
    for seed in (0, 1):
        evaluation, guesses = made_up(dataclasses.replace(params, seed=seed))
        records.append(table.record(evaluation | {"protocol": "cv"}, guesses))
    with pytest.raises(InputError, match="different images"):
        table.claims(params, records)


def test_the_primary_claims_are_over_the_generator_and_not_over_found_images(params: Params) -> None:
    recipes = {"retrieved": params.recipes["retrieved"], **params.recipes}
    found = table._primary(dataclasses.replace(params, recipes=recipes), "datadream_dset", 4, [])
    assert {minus.arm for _, minus in found} == {"stable_diffusion"}


def test_a_record_holds_what_was_right(params: Params) -> None:
    evaluation, guesses = made_up(params, images=61)
    record = json.loads(json.dumps(table.record(evaluation, guesses)))
    for key, predicted in guesses["predicted"].items():
        assert (table._right(record, Run.parse(key)) == np.equal(predicted, guesses["labels"])).all()
    (claim, *_) = table.claims(params, [record])
    gain = Gain(**{name: claim[name] for name in ("of", "minus", "difference", "low", "high")})
    accuracies = {
        Run(run["arm"], Kind.parse(run["train_on"]), run["classifier"]): run["accuracy"] for run in evaluation["runs"]
    }
    assert gain.difference == pytest.approx(accuracies[gain.of] - accuracies[gain.minus], abs=1e-4)


def test_summaries_are_means_over_seeds() -> None:
    shared = {"shots": 4, "recipe": "a", "train_on": "both", "classifier": "resnet20", "kid": None}
    made = [shared | {"accuracy": 0.8, "fid": 10.0}, shared | {"accuracy": 0.9, "fid": 20.0}]
    (row,) = table.summarised(made)
    assert (row["seeds"], row["accuracy"], row["sd"], row["fid"], row["kid"]) == (2, 0.85, 0.0707, 15.0, None)


def test_the_table_is_told_in_markdown(params: Params, workspace: Workspace, stages: list[str]) -> None:
    cells.run(params, workspace, [4, 8], [0, 1], 1)
    lines = (workspace.results / "table/README.md").read_text(encoding="utf-8").splitlines()
    mean = {(row["recipe"], row["train_on"]): 100 * float(row["accuracy"]) for row in rows(workspace, "summary")[-9:]}
    told = next(line for line in lines if line.startswith("| 8 | resnet20 |")).strip("| ").split(" | ")[2:]
    kinds = [("real", "real"), ("real", "real_strong")]
    kinds += [(name, kind) for kind in ("synthetic", "both_strong") for name in ("stable_diffusion", "datadream_dset")]
    assert told == [f"{mean[kind]:.1f}" for kind in kinds]
    claim = next(
        row
        for row in rows(workspace, "claims")
        if (row["shots"], row["of"], row["minus"])
        == ("8", "datadream_dset/both_strong/resnet20", "real/real_strong/resnet20")
    )
    line = next(line for line in lines if line.startswith("| real + datadream_dset, over real |"))
    assert line.split(" | ")[2].strip("*| ").startswith(f"{100 * float(claim['difference']):+.1f} (".replace("-", "−"))
    bold = float(claim["low"]) > 0 or float(claim["high"]) < 0
    assert line.split(" | ")[2].startswith("**") == bold


def test_the_readme_quotes_the_table_that_is_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Does it help?")[2].partition("\n## ")[0]
    quoted = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    table = (ROOT / "results/table/README.md").read_text(encoding="utf-8").partition("## Accuracy")[2].splitlines()
    head, _, *lines = (line.strip("| ").split(" | ") for line in table if line.startswith("|"))
    measured = {
        (line[0], name): value
        for line in lines
        if line[1] == "resnet20"
        for name, value in zip(head, line, strict=True)
    }
    columns = {"real images": "real", "real images, strongly augmented": "real, strongly augmented"}
    shots = [cell.split()[0] for cell in quoted[0][1:]]
    assert len(quoted) == 10
    for label, *values in quoted[2:]:
        column = columns.get(label, label.removeprefix("images of ").replace("`", ""))
        assert values == [measured[count, column] for count in shots], label


def test_an_unknown_recipe_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["table", "--shots", "4", "--seeds", "0", "--recipes", "nothing"])
    assert "no row 'nothing' in recipes" in capsys.readouterr().err


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
    before = cells._rows(params, workspace, ["retrieved", "datadream_dset"])
    found.append(("b.png", "1" * 64))
    after = cells._rows(params, workspace, ["retrieved", "datadream_dset"])
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

"""Claims that are fixed beforehand: which cells they may be about, and where they become primary."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import made_up_cells
from dreamset.command import cli
from dreamset.core.errors import InputError
from dreamset.core.files import write_json
from dreamset.core.workspace import Workspace
from dreamset.metrics import claims, fixed
from dreamset.metrics.gains import over_real
from dreamset.params import Params
from dreamset.sweep import cells, fixing
from made_up_cells import rows, small_table, stub_stages
from toy import ROOT

SEEDS = list(range(8))


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return stub_stages(monkeypatch)


@pytest.fixture
def params(raw: dict[str, Any]) -> Params:
    return small_table(raw | {"primary": "datadream_dset"})


def primary(workspace: Workspace) -> list[dict[str, str]]:
    return [row for row in rows(workspace, "claims") if row["family"]]


def test_claims_of_a_round_are_primary_once_all_of_its_cells_are_scored(
    params: Params, workspace: Workspace, stages: list[str]
) -> None:
    cells.run(params, workspace, [4], [20, 21], 1)
    one, path = fixing.fix(params, workspace, None, SEEDS, [4], [16], None)
    assert path == workspace.results / "table/fixed/round-1.json"
    # The verdict goes by the best way to train on the real images, so each is to be beaten.
    assert [str(minus) for _, minus in one.pairs] == [
        "real/real/resnet20",
        "real/real_strong/resnet20",
        "stable_diffusion/both_strong/resnet20",
    ]
    assert fixed.read(workspace.results / "table") == [one]
    told = cells.run(params, workspace, [4], SEEDS, 1)
    waits = "round-1: 8 of its 16 cells, such as 16 shots, seed 0, are unfinished, or were scored before it"
    assert waits in told and waits in (workspace.results / "table/README.md").read_text()
    assert not primary(workspace)
    told = cells.run(params, workspace, [16], SEEDS, 1)
    assert "unfinished" not in told
    found = primary(workspace)
    assert [(row["shots"], row["asked"], row["seeds"]) for row in found] == [
        *[("4", "gain", "8")] * 3,
        *[("16", "no_loss", "8")] * 3,
    ]
    # Seeds 20 and 21 are in the exploratory figures alone.
    explored = [row for row in rows(workspace, "claims") if row["shots"] == "4" and not row["family"]]
    assert {row["seeds"] for row in explored} == {"10"}
    # Holm over the six.
    for row in found:
        assert float(row["p"]) <= float(row["p_adjusted"]) <= min(1.0, 6.01 * float(row["p"]))
    # No loss is tested against a loss of the smallest gain.
    by_seed = [np.array([float(value) for value in row["by_seed"].split()]) for row in found]
    for row, each in zip(found, by_seed, strict=True):
        moved = each + (one.smallest_gain if row["asked"] == "no_loss" else 0.0)
        assert (float(row["p"]) == float(f"{2 / 2**8:.4g}")) == bool((moved > 0).all() or (moved < 0).all())
    readme = (workspace.results / "table/README.md").read_text()
    assert "## Claims that were fixed beforehand" in readme and one.words in readme and waits not in readme
    assert f"fixed on {one.time[:10]} at {one.time[11:16]} UTC" in one.words


def test_scored_seeds_cannot_be_claimed_on(params: Params, workspace: Workspace, stages: list[str]) -> None:
    cells.run(params, workspace, [4], [0], 1)
    with pytest.raises(InputError, match=r"shots004_seed0\.json: holds test scores of these seeds"):
        fixing.fix(params, workspace, None, SEEDS, [4], [], None)
    assert not fixed.read(workspace.results / "table")
    # At other numbers of shots nothing is known of them.
    fixing.fix(params, workspace, None, SEEDS, [16], [], None)
    # Of these cells no other round may claim anything: that would be a further test on the same scores.
    with pytest.raises(InputError, match=r"round-1 has claims about seed 3 at 16 shots already"):
        fixing.fix(params, workspace, None, [3, *range(20, 29)], [8, 16], [], ["real"])
    # Nor may the project's own run have shown them, or a cell that was stopped after its scores.
    later = list(range(10, 18))
    write_json(workspace.result("evaluate"), {"shots": 4, "seed": 12})
    with pytest.raises(InputError, match=r"evaluate\.json: holds test scores"):
        fixing.fix(params, workspace, None, later, [4], [], None)
    write_json(workspace.result("evaluate"), [])
    with pytest.raises(InputError, match=r"evaluate\.json and 7 more files: holds test scores"):
        fixing.fix(params, workspace, None, later, [4], [], None)
    write_json(workspace.result("evaluate"), {"shots": 4, "seed": 2})
    fixing.fix(params, workspace, None, later, [4], [], None)


def test_a_cell_that_was_scored_before_does_not_record_a_round(
    params: Params, workspace: Workspace, stages: list[str]
) -> None:
    cells.run(params, workspace, [4], [0], 1)
    record = workspace.results / "table/cells/shots004_seed0.json"
    away = record.read_bytes()
    record.unlink()
    one, _ = fixing.fix(params, workspace, "first", SEEDS, [4], [], ["real"])
    record.write_bytes(away)
    # It is scored again, with one recipe more.
    more = dataclasses.replace(params, active=(*params.active, "datadream_cls"))
    told = cells.run(more, workspace, [4], SEEDS, 1)
    assert "first: 1 of its 8 cells, such as 4 shots, seed 0, are unfinished, or were scored before it" in told
    assert not primary(workspace)
    known = [json.loads(path.read_text())["claims"] for path in sorted(record.parent.glob("*.json"))]
    assert known == [[], *[[one.key]] * 7]


def test_claims_fixed_for_other_rows_or_settings_are_not_primary(
    params: Params, workspace: Workspace, stages: list[str]
) -> None:
    fixing.fix(params, workspace, None, SEEDS, [4], [], ["real"])
    recipes = params.recipes | {"datadream_dset": dataclasses.replace(params.recipes["datadream_dset"], rank=2)}
    changed = dataclasses.replace(params, recipes=recipes)
    assert "the rows of its recipes have changed since" in cells.run(changed, workspace, [4], SEEDS, 1)
    assert not primary(workspace)
    weight = dataclasses.replace(params, train=dataclasses.replace(params.train, real_weight=0.3))
    assert "are of other settings, images or weights" in cells.run(weight, workspace, [4], SEEDS, 1)
    assert not primary(workspace)


def test_scores_by_other_code_after_a_look_are_not_primary(
    params: Params, workspace: Workspace, stages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fixing.fix(params, workspace, None, SEEDS, [4], [], ["real"])
    cells.run(params, workspace, [4], SEEDS, 1)
    assert primary(workspace)
    # Code that gives the same results changes nothing; cells that are scored anew by other code have been seen before.
    monkeypatch.setattr(cells, "code_digest", lambda *_: "refactored")
    cells.run(params, workspace, [4], SEEDS, 1, recheck=True)
    assert primary(workspace)
    monkeypatch.setattr(cells, "code_digest", lambda *_: "changed")
    assert "8 of its 8 cells, such as 4 shots, seed 0, were scored again by other code" in cells.run(
        params, workspace, [4], SEEDS, 1
    )
    assert not primary(workspace)


def test_a_changed_round_is_another_one_and_a_removed_one_is_missed(
    params: Params, workspace: Workspace, stages: list[str]
) -> None:
    _, path = fixing.fix(params, workspace, None, SEEDS, [4], [], ["real"])
    cells.run(params, workspace, [4], SEEDS, 1)
    assert primary(workspace)
    whole = path.read_text()
    path.write_text(whole.replace('"smallest_gain": 0.01', '"smallest_gain": 0.02'))
    told = cells.run(params, workspace, [4], SEEDS, 1)
    assert "were scored before it" in told and "Cells record 1 of the rounds of fixed claims that are no more" in told
    assert not primary(workspace)
    path.unlink()
    assert "no more, or not the same, in results/table/fixed" in cells.run(params, workspace, [4], SEEDS, 1)
    changes = (('"seeds', '"x'), ('"time": "', '"time": "x'), ('"name": "round-1"', '"name": "other"'))
    words = r"round-1\.json: (is no round of claims|has another name).* from git again"
    for text in ('{"name": "round-1"}', "{", "[]", *(whole.replace(*change) for change in changes)):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            cells.run(params, workspace, [4], SEEDS, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": SEEDS[:6]}, "6 seeds can show nothing, for with 3 claims no .* reaches 5 %; give 7 or more"),
        ({"seeds": SEEDS[:7], "no_loss": [16]}, "with 6 claims no .* give 8 or more"),
        ({"over": ["nothing"]}, "--over nothing: is neither real nor another recipe"),
        ({"over": ["datadream_dset"]}, "--over datadream_dset: is neither"),
        ({"gain": []}, "say at which numbers of shots"),
        ({"name": "../evil"}, "is no name for a round"),
    ],
)
def test_what_cannot_be_claimed(changes: dict[str, Any], words: str, params: Params, workspace: Workspace) -> None:
    asked: dict[str, Any] = {"name": None, "seeds": SEEDS, "gain": [4], "no_loss": [], "over": None} | changes
    with pytest.raises(InputError, match=words):
        fixing.fix(params, workspace, **asked)
    assert not list((workspace.results / "table").rglob("*.json"))


def test_seeds_that_cannot_be_paired_cannot_be_claimed_on(params: Params, workspace: Workspace) -> None:
    folds = dataclasses.replace(params, evaluate=dataclasses.replace(params.evaluate, protocol="cv"))
    with pytest.raises(InputError, match="8 seeds at 4 shots would be cross-validated"):
        fixing.fix(folds, workspace, None, SEEDS, [4], [], None)


def test_fixed_claims_do_not_change(params: Params, workspace: Workspace) -> None:
    fixing.fix(params, workspace, "mine", SEEDS, [4], [], None)
    with pytest.raises(InputError, match=r"mine\.json: is there already"):
        fixing.fix(params, workspace, "mine", list(range(10, 18)), [4], [], None)


def test_a_fixed_claim_does_not_spare_the_best_way_to_train_on_real_images(
    params: Params, workspace: Workspace, stages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Plainly trained, real images do better than all else here; strongly augmented, they do worse.
    monkeypatch.setattr(made_up_cells, "ARMS", ("real", "real_strong"))
    rates = {"real/real": 0.95, "real/real_strong": 0.5, "datadream_dset/both_strong": 0.8}
    plain = made_up_cells.made_up

    def made(given: Params, images: int = 60) -> Any:
        evaluation, guesses = plain(given, images)
        rng = np.random.default_rng(given.seed)
        for run in guesses["predicted"]:
            rate = rates.get(run.rpartition("/")[0])
            if rate is not None:
                labels = np.array(guesses["labels"])
                guesses["predicted"][run] = np.where(rng.random(images) < rate, labels, (labels + 1) % 3).tolist()
        return evaluation, guesses

    monkeypatch.setattr(made_up_cells, "made_up", made)
    fixing.fix(params, workspace, None, SEEDS, [4], [], ["real"])
    cells.run(params, workspace, [4], SEEDS, 1)
    found = claims.read(params, workspace, {"real", *params.active})
    assert found.sweep is not None
    best = over_real((c.gain for c in found.sweep.deciding(params, 4).values()), "datadream_dset", "resnet20")
    assert best is not None and str(best.minus) == "real/real/resnet20" and best.high < 0


def test_the_verdict_rests_on_the_last_finished_round(params: Params, workspace: Workspace, stages: list[str]) -> None:
    one, _ = fixing.fix(params, workspace, None, SEEDS, [4], [], None)
    cells.run(params, workspace, [4], [*SEEDS, 20, 21], 1)
    (workspace.root / "models").mkdir(exist_ok=True)
    found = claims.read(params, workspace, {"real", *params.active})
    assert found.sweep is not None and found.sweep.rounds == [one]
    deciding = found.sweep.deciding(params, 4)
    assert {claim.family for claim in deciding.values()} == {"round-1"}
    assert {claim.seeds for claim in deciding.values()} == {8}
    # At other numbers of shots, and for another recipe, nothing was fixed.
    assert not found.sweep.deciding(params, 16)
    other = dataclasses.replace(params, primary="stable_diffusion")
    assert {claim.family for claim in found.sweep.deciding(other, 4).values()} == {""}
    held = next(iter(deciding.values()))
    sure = dataclasses.replace(held, p_adjusted=0.03, gain=dataclasses.replace(held.gain, low=0.001))
    assert sure.holds(0.01) and not dataclasses.replace(sure, p_adjusted=0.06).holds(0.01)
    below = dataclasses.replace(sure, gain=dataclasses.replace(held.gain, low=-0.005))
    assert not below.holds(0.01) and dataclasses.replace(below, asked="no_loss").holds(0.01)


def test_the_command_says_what_is_fixed_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (tmp_path / "models").mkdir()
    (tmp_path / "models/base").symlink_to(ROOT / "models/base")
    cli.main(["claims", "show"])
    assert "none is fixed" in capsys.readouterr().out
    cli.main(["claims", "fix", "--shots", "1", "4", "--no-loss-at", "16", "--seeds", "20-29"])
    told = capsys.readouterr().out
    assert "a gain at 1 and 4 shots and no loss of 1.0 points at 16 shots, over seeds 20 to 29" in told
    assert "dreamset table --shots 1 4 16 --seeds 20-29\n" in told
    # `retrieved` is not active, and the table runs what is named.
    cli.main(["claims", "fix", "second", "--shots", "4", "--seeds", "30-39", "--over", "real", "retrieved"])
    assert "--shots 4 --seeds 30-39 --recipes datadream_light retrieved\n" in capsys.readouterr().out
    cli.main(["claims", "show"])
    assert capsys.readouterr().out.startswith("round-1, fixed on 20")
    cli.main(["claims", "show", "second"])
    assert capsys.readouterr().out.startswith("second, fixed on 20")
    for arguments, words in (
        (["show", "third"], "claims show third: no round has that name; there are round-1, second."),
        (["fix", "--shots", "4", "--seeds", "1000-999999999"], "expected at most 10000 numbers below 2^31"),
        (["fix", "--shots", "4", "--seeds", "2147483645-2147483655"], "expected at most 10000 numbers below 2^31"),
    ):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["claims", *arguments])
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["claims", "fix", "--shots", "4"])
    assert "give --seeds, a span such as 20-29" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["claims", "fix", "--shots", "0", "--seeds", "30-39"])

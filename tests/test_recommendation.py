"""What a table says of which images and which classifier to take."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamset.command import cli
from dreamset.core.errors import InputError
from dreamset.core.files import write_json
from dreamset.core.workspace import Workspace
from dreamset.data.runs import Run
from dreamset.metrics import claims
from dreamset.metrics.recommendation import as_well, recommend, sentences
from dreamset.params import Params
from dreamset.sweep import cells, recommending
from made_up_cells import rows, small_table, stub_stages
from toy import ROOT, load

SECONDS = {"real": 5.0, "cheap": 20.0, "good": 200.0, "retrieved": 200.0}


def cell(seed: int, images: int = 400, **worth: float) -> dict[str, Any]:
    """A cell whose runs get a share right, by arm; all share which images are hard."""
    hard = np.random.default_rng(0).random(images)
    noise = np.random.default_rng(seed + 1)
    right, table = {}, []
    for arm, share in worth.items():
        kind = "real" if arm == "real" else "both"
        bits = hard + noise.normal(0, 0.05, images) < share
        right[f"{arm}/{kind}/resnet20"] = np.packbits(bits).tobytes().hex()
        row = {"recipe": arm, "train_on": kind, "classifier": "resnet20", "accuracy": float(bits.mean())}
        row |= {"seconds_generate": None if arm == "real" else SECONDS[arm] - 5, "seconds_train": 5.0}
        table.append(row | {"images": None if arm == "real" else 500})
    return {"seed": seed, "shots": 4, "images": images, "groups": None, "right": right, "rows": table}


def found(budget: float | None = None, seeds: int = 10, **worth: float) -> Any:
    return recommend([cell(seed, **worth) for seed in range(seeds)], 0.95, 500, budget)


def test_what_helps_in_every_seed_is_taken_and_what_does_not_is_left() -> None:
    taken = found(real=0.7, cheap=0.71, good=0.8)
    assert (taken.answer, taken.best.run.arm, taken.chosen) == ("take", "good", 10)
    assert taken.low > 0.05 and taken.gain == pytest.approx(0.1, abs=0.03)
    assert taken.best.seconds == 200 and taken.best.images == 500
    left = found(real=0.8, cheap=0.75, good=0.7)
    assert (left.answer, left.best.run.arm, left.gain) == ("leave", "real", 0.0)
    # The front is of what no cheaper run equals.
    assert [option.run.arm for option in taken.front] == ["real", "cheap", "good"]
    assert [option.run.arm for option in left.front] == ["real"]


def test_a_budget_leaves_out_what_costs_more_and_never_the_real_images() -> None:
    within = found(budget=30, real=0.7, cheap=0.75, good=0.8)
    assert (within.best.run.arm, within.answer) == ("cheap", "take")
    assert found(budget=1, real=0.7, cheap=0.75, good=0.8).answer == "leave"
    # What the budget leaves out is not said to be no better.
    left = found(budget=30, real=0.7, cheap=0.69, good=0.95)
    told = sentences(left, 4, None, 0.95)[0]
    assert "nothing with synthetic images within 30 s is shown to be better (resnet20 of real images and cheap" in told


def test_luck_is_not_sold_as_a_gain() -> None:
    # Ten recipes of equal worth: the best of them is the luckiest, and the seed left out does not know it.
    names = [f"r{index}" for index in range(10)]
    SECONDS.update(dict.fromkeys(names, 20.0))
    shown = []
    for trial in range(40):
        few = [cell(100 * trial + seed, images=60, real=0.7, **dict.fromkeys(names, 0.7)) for seed in range(6)]
        answer = recommend(few, 0.95, 200)
        shown.append(answer)
    assert sum(one.answer == "take" for one in shown) <= 5 and sum(one.answer == "leave" for one in shown) >= 20
    # What the table itself shows of the best is too favourable, and what is reported is not.
    best = [max(option.accuracy for option in one.options if option.synthetic) for one in shown]
    seeming = np.mean([accuracy - one.real.accuracy for accuracy, one in zip(best, shown, strict=True)])
    assert seeming > 0.01 and abs(np.mean([one.gain for one in shown])) < seeming / 2


def test_few_seeds_take_nothing() -> None:
    assert found(seeds=5, real=0.7, good=0.8).answer == "perhaps"
    with pytest.raises(InputError, match="2 seeds are too few"):
        found(seeds=2, real=0.7, good=0.8)
    with pytest.raises(InputError, match="no runs with and without synthetic images"):
        found(real=0.7)


def test_the_answer_in_words() -> None:
    told = sentences(found(real=0.7, good=0.8), 4, "an adapter for each class", 0.95)
    assert told[0].startswith("Take synthetic images, at 4 images per class: resnet20 of real images and good gets 7")
    assert told[0].endswith("(an adapter for each class, 500 images).")
    assert "interval), so these seeds show it; in 10 of 10 seeds the other seeds choose resnet20 of real i" in told[1]
    assert told[2] == "It takes 200 s, and 5 s without synthetic images."
    left = sentences(found(real=0.8, good=0.7), 1, None, 0.95)
    assert left[1] == "In 10 of 10 seeds the other seeds choose resnet20 of real images alone."
    assert left[0].startswith(
        "Leave synthetic images, at 1 image per class: of all classifiers, resnet20 of real images alone gets 7"
    )


def test_what_is_kept_rounds_as_what_is_said() -> None:
    left = found(real=0.8, good=0.7)
    # To four digits this would be 95.0 %.
    exact = dataclasses.replace(left, best=dataclasses.replace(left.best, accuracy=0.950501))
    kept = json.loads(json.dumps(exact.record))
    assert " gets 95.1%, and nothing" in sentences(exact, 4, None, 0.95)[0]
    assert " gets 95.1%, and nothing" in as_well(kept, 4, 10)


def test_what_all_other_seeds_choose_is_left_where_one_writer_alone_gains() -> None:
    one_writer = (np.random.default_rng(0).random(400) > 0.7).astype(int).tolist()
    left = recommend([cell(seed, real=0.7, good=0.8) | {"groups": one_writer} for seed in range(10)], 0.95, 500)
    assert (left.answer, left.best.run.arm, left.chosen) == ("leave", "real", 0)
    strong = dataclasses.replace(left, best=dataclasses.replace(left.best, run=Run.parse("real/real_strong/resnet20")))
    assert "choose resnet20 of real images alone, strongly augmented. What" in sentences(strong, 4, None, 0.95)[1]
    told = sentences(left, 4, None, 0.95)
    assert "nothing with synthetic images is shown to be better (resnet20 of real images and good gets 7" in told[0]
    assert told[1].startswith("In 0 of 10 seeds the other seeds choose resnet20 of real images alone. What they choose")
    assert "gains +1" in told[1]


def test_a_table_writes_its_recommendations_and_the_command_reads_them(
    raw: dict[str, Any],
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stub_stages(monkeypatch)
    params: Params = small_table(raw)
    with pytest.raises(InputError, match="there is no table over seeds; run `dreamset table --shots 4"):
        recommending.run(params, workspace, cells.records(params, workspace), 4, None)
    few = cells.run(params, workspace, [4], [0, 1], 1)
    assert "No recommendation at 4 shots. results/table: 2 seeds are too few to say what is best" in few
    told = cells.run(params, workspace, [4, 16], [0, 1, 2, 3, 4, 5], 1)
    record = json.loads((workspace.results / "table" / claims.RECOMMENDATIONS).read_text())
    assert set(record) == {"4", "16"} and rows(workspace, "claims")
    assert record["4"]["sentences"][0] in told
    said = recommending.run(params, workspace, cells.records(params, workspace), 5, None)
    assert said[0] == "The table has no seeds at 5 shots; those at 4 are the nearest."
    assert said[1] == record["4"]["sentences"][0] and said[-1] == recommending.CAUTION
    # The study of the recommended recipe is told of.
    best = record["4"]["best"]["run"].split("/")[0]
    write_json(workspace.result("tune", best), {"best": {"steps": 3}, "sentences": ["Chosen: steps 3."]})
    assert "Its study: Chosen: steps 3." in recommending.run(
        params, workspace, cells.records(params, workspace), 4, None
    )


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (tmp_path / "models").mkdir()
    (tmp_path / "models/base").symlink_to(ROOT / "models/base")
    params, here = load(tmp_path / "params.yaml"), Workspace.at(tmp_path)
    for one in cells.plan(params, here, [4], list(range(6))):
        worth = cell(one.params.seed, real=0.7, retrieved=0.8)
        write_json(one.record, worth | one.made | {"recipes": one.recipes, "differences": [], "quality": {}})
    cli.main(["recommend", "--budget", "1000"])
    out = capsys.readouterr().out
    assert (
        out.startswith("Take synthetic images, at 4 images per class")
        and "Runs with synthetic images that take more than 1000 s" in out
    )
    with pytest.raises(SystemExit, match="2"):
        cli.main(["recommend", "--budget", "nan"])
    assert "recommend: give a --budget above 0 seconds." in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["recommend", "--shots", "0"])
    assert "recommend: give --shots, 1 or more images per class." in capsys.readouterr().err
    text = (tmp_path / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("\nshots: 4 ", "\nshots: all "))
    with pytest.raises(SystemExit, match="2"):
        cli.main(["recommend"])
    assert "recommend: shots is no one number of images per class here; give --shots K." in capsys.readouterr().err
    (tmp_path / "params.yaml").write_text(text)
    write_json(tmp_path / "results/table/cells/shots004_seed0.json", {})
    with pytest.raises(SystemExit, match="2"):
        cli.main(["recommend"])
    assert "shots004_seed0.json: is no record of a cell" in capsys.readouterr().err


def test_cells_of_another_setting_take_no_part(
    raw: dict[str, Any], workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_stages(monkeypatch)
    params = small_table(raw)
    cells.run(params, workspace, [4], list(range(8)), 1)
    changed = dataclasses.replace(params, train=dataclasses.replace(params.train, real_weight=0.7))
    cells.run(changed, workspace, [4], list(range(5)), 1)
    assert sorted(cell["seed"] for cell in cells.records(changed, workspace)) == list(range(5))
    assert sorted(cell["seed"] for cell in cells.records(params, workspace)) == [5, 6, 7]
    # Where none is of the present settings, no seeds of several settings stand in for them.
    other = dataclasses.replace(params, train=dataclasses.replace(params.train, real_weight=0.3))
    with pytest.raises(InputError, match="its cells are of other settings, images or weights than this project has"):
        cells.records(other, workspace)
    # Those by other code do, where the settings are the same; the table's warning is told, and a changed row left out.
    monkeypatch.setattr(cells, "code_digest", lambda *_: "other")
    monkeypatch.setattr(claims, "code_digest", lambda *_: "other")
    changed = params.recipes | {"datadream_dset": dataclasses.replace(params.recipes["datadream_dset"], rank=2)}
    later = dataclasses.replace(params, recipes=changed)
    by_others = cells.records(later, workspace)
    assert {name for cell in by_others for name in cell["recipes"]} == {"stable_diffusion"}
    assert "was made with other" in recommending.run(later, workspace, by_others, 4, None)[0]


def test_what_cannot_be_compared_is_named() -> None:
    full = [cell(seed, real=0.7, cheap=0.75, good=0.8) for seed in range(6)]
    for one in full[:2]:
        del one["right"]["good/both/resnet20"]
    lacking = recommend(full, 0.95, 200)
    assert lacking.best.run.arm == "cheap" and [run.arm for run in lacking.left_out] == ["good"]
    told = sentences(lacking, 4, None, 0.95)
    assert told[-1].endswith(
        "Not compared, for some seeds lack them or their seconds: resnet20 of real images and good."
    )
    free = [cell(seed, real=0.7, good=0.8, cheap=0.75) for seed in range(6)]
    for one in free:
        for row in one["rows"]:
            if row["recipe"] == "good":
                row.update(dict.fromkeys(("seconds_generate", "seconds_train")))
    assert [run.arm for run in recommend(free, 0.95, 200).left_out] == ["good"]
    other = [*full[2:], full[0] | {"labels": "others"}]
    # One seed that has only other runs is named, and not the whole table.
    stray = cell(9, real=0.7, cheap=0.75)
    stray["right"] = {}
    with pytest.raises(InputError, match="in the same seeds; seed 9 has the fewest runs: run `dreamset table` for it"):
        recommend([*full, stray], 0.95, 200)
    with pytest.raises(InputError, match="were scored on different images"):
        recommend(other, 0.95, 200)
    # One group is no groups: nothing says how groups differ.
    alone = [one | {"groups": [0] * 400} for one in free]
    assert np.isfinite(recommend(alone, 0.95, 200).low)

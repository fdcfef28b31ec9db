"""The page beside a table over seeds: its figures where they count, and a sentence where they do not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import reported
import toy
from dreamset import report
from dreamset.core.errors import InputError
from dreamset.core.files import write_csv, write_json
from dreamset.core.workspace import Workspace
from dreamset.data.runs import Run
from dreamset.metrics import claims, fixed
from dreamset.metrics.machines import differing
from reported import RECIPES, read

if TYPE_CHECKING:
    from dreamset.params import Params


@pytest.fixture
def params() -> Params:
    return reported.parameters()


@pytest.fixture
def workspace(tmp_path: Path, params: Params) -> Workspace:
    return reported.write(tmp_path, params)


SUMMARY = {"shots": 16, "recipe": "real", "train_on": "real", "classifier": "resnet20", "seeds": 6}
SUMMARY |= {"accuracy": 0.9713, "sd": 0.0042}


def claim(shots: int, kind: str, minus: str, **changes: Any) -> dict[str, Any]:
    """A row of ``claims.csv``."""
    row = {"shots": shots, "classifier": "resnet20", "of": f"datadream_dset/{kind}/resnet20", "minus": minus}
    low, high = 0.0123 * shots - 0.06, 0.0123 * shots + 0.01
    return row | {"seeds": 6, "difference": 0.0123 * shots, "low": low, "high": high} | changes


def write_table(params: Params, workspace: Workspace, rows: list[dict[str, Any]], **setting: Any) -> None:
    """A table over seeds of these claims, by this code; ``setting`` is what of its setting is otherwise."""
    folder = workspace.results / "table"
    write_csv(folder / "claims.csv", rows, rows[0])
    here = SUMMARY | {"shots": 4, "recipe": "datadream_dset", "train_on": "both", "accuracy": 0.8181}
    write_csv(folder / "summary.csv", [SUMMARY, here], SUMMARY)
    write_csv(folder / "cells.csv", [{"shots": k, "seed": s} for k in (4, 16) for s in range(6)], ("shots", "seed"))
    if not (workspace.root / "models/base").is_symlink():
        (workspace.root / "models").mkdir(exist_ok=True)
        (workspace.root / "models/base").symlink_to(toy.ROOT / "models/base")
    made = {"data": None} | claims.hashes(params, workspace.root)
    write_json(folder / "setting.json", params.setting([*RECIPES, "datadream_cls"]) | made | setting)


OVER_SEEDS = [
    claim(4, "both", "real/real/resnet20"),
    claim(4, "synthetic", "stable_diffusion/synthetic/resnet20"),
    claim(16, "both", "real/real/resnet20"),
]


def test_the_table_over_seeds_is_told_beside_the_one_seed(params: Params, workspace: Workspace) -> None:
    write_table(params, workspace, [*OVER_SEEDS, claim(4, "both", "real/real/resnet20", of="taken_out/both/resnet20")])
    report.run(params, workspace)
    source, page = read(workspace)
    assert "taken_out" not in source
    section = page.sections["seeds"]
    charts = dict(zip(section.texts("summary"), section.all("details"), strict=True))
    ends = {title: chart.texts("span", "value")[:-1] for title, chart in charts.items() if "per class" in title}
    assert ends == {
        "4 shots per class": ["+4.9 −1.1 to +5.9"] * 2,
        "16 shots per class": ["+19.7 +13.7 to +20.7"],
    }
    means = charts["Mean accuracies over the seeds"]
    assert means.rows[0] == ["Run", "4 shots", "16 shots"]
    assert means.row("real · real · resnet20") == ["–", "97.1% ± 0.4"]
    assert "over 6 seeds" in section.one("p").text
    assert "Holm" not in section.text  # of a table without tests
    # This seed alone would say that they helped.
    assert page.hero.one("h1").text == "These images cannot tell: +4.9 points (−1.1 to +5.9)."
    assert "rightly in the mean of 6 seeds when it also learns" in page.lede
    assert "4.9 percentage points more of 877 test images, in the mean of 6 seeds, right" in page.reason
    assert "the 95% interval (−1.1 to +5.9) holds both no gain and one of +1.0 or more" in page.reason
    assert [told for told in page.hero.texts("p") if told.startswith("Seed 0, which the rest of this page is about: ")]
    assert page.cards["real + datadream_dset"] == ("81.8%", "± 0.4 over 6 seeds")
    # The table lacks it, and one seed is no mean over seeds.
    assert page.cards["real + stable_diffusion"] == ("–", "not in the table over seeds; 90.0% with seed 0")
    assert page.sections["gains"].one("h2").text == "Did it help? Seed 0 alone"

    # Five seeds are shown, and decide nothing.
    write_table(params, workspace, [row | {"seeds": 5} for row in OVER_SEEDS])
    report.run(params, workspace)
    page = read(workspace)[1]
    assert "in the mean of" not in page.reason
    assert "4 shots per class" in page.sections["seeds"].texts("summary")


def test_fixed_claims_and_explored_ones_stand_apart(params: Params, workspace: Workspace) -> None:
    tests = {"p": 0.0004, "p_adjusted": 0.5, "family": "", "asked": "gain", "indicative": "false"}
    rows = [row | tests for row in OVER_SEEDS]
    write_table(params, workspace, rows)
    folder = workspace.results / "table"
    rho = {"metric": "fid", "shots": "all", "points": 60, "seeds": 6, "rho": -0.512, "low": -0.9, "high": 0.1}
    write_csv(folder / "correlations.csv", [rho, rho | {"shots": 4, "rho": 0.25}], rho)
    write_json(folder / "cost.json", {"cells": 12, "seconds": 9000.0, "threads": [1], "machines": "On two machines."})
    report.run(params, workspace)
    page = read(workspace)[1]
    assert not [told for told in page.caveat if "Indicative" in told]
    assert any(
        "nothing records whether they were chosen before these images were first scored" in t for t in page.caveat
    )
    section = page.sections["seeds"]
    assert section.texts("p")[0].endswith("12 cells took 2.5 hours, one after another.")
    assert section.texts("p")[1] == "On two machines."
    assert section.texts("p")[2].startswith("No claim was fixed before its test scores existed")
    *_, explored = section.all("table")
    ends = ["+4.9", "−1.1 to +5.9"]
    assert [row[1:] for row in explored.rows[1:3]] == [["4", *ends, "<0.001", "0.50", "not shown"]] * 2
    assert "Where no gain over the real images is shown: 2 of 2" in section.texts("summary")
    assert "Accuracy of resnet20 by number of shots" in section.texts("title")
    correlations = page.sections["correlations"]
    assert correlations.rows == [["Figure", "all", "4 shots"], ["FID", "−0.51 −0.90 to +0.10", "+0.25 −0.90 to +0.10"]]
    assert "60 over 6 seeds" in correlations.one("p").text

    # What the table recommends stands above, with cost against accuracy of the recipes on the page.
    options = [("real/real/resnet20", 0.9, 5.0), ("datadream_dset/both/resnet20", 0.95, 60.0)]
    options += [("gone/both/resnet20", 0.99, 1.0)]
    listed = [dict(zip(("run", "accuracy", "seconds"), option, strict=True)) for option in options]
    advice = {
        "options": listed,
        "best": listed[1],
        "real": listed[0],
        "front": [one["run"] for one in listed],
        "sentences": ["Take it."],
        "answer": "take",
    }
    write_json(folder / claims.RECOMMENDATIONS, {"4": advice, "16": advice | {"sentences": ["Leave it."]}})
    report.run(params, workspace)
    # The first screen says it, too, and why stands behind it.
    page = read(workspace)[1]
    # The verdict cannot tell and takes the real images, so the page says why the table may say otherwise.
    otherwise = "Synthetic images may do better. Over 6 seeds: take it."
    assert otherwise in page.hero.texts("p")
    section = page.sections["seeds"]
    assert "Take it." in section.texts("p") and "Leave it." not in section.texts("p")
    # Of recipes that are not on the page it says nothing, for their rows may have changed since.
    others = {shots: one | {"best": listed[2]} for shots, one in (("4", advice), ("16", advice))}
    write_json(folder / claims.RECOMMENDATIONS, others)
    report.run(params, workspace)
    assert not [told for told in read(workspace)[1].hero.texts("p") if "ake it" in told]
    # One that is not active, and still the row of the table, may be the better choice. It says so.
    setting = json.loads((folder / "setting.json").read_text())
    setting["recipes"] |= json.loads(json.dumps(params.setting(["retrieved"])["recipes"]))
    for row, told in ((setting["recipes"]["retrieved"], True), ({"adapter": "other"}, False)):
        setting["recipes"]["retrieved"] = row
        write_json(folder / "setting.json", setting)
        idle = advice | {"best": listed[1] | {"run": "retrieved/both/resnet20"}}
        write_json(folder / claims.RECOMMENDATIONS, {"4": idle})
        report.run(params, workspace)
        words = f"{otherwise} `retrieved` is not active here: add it to `active`."
        assert (words in read(workspace)[1].hero.texts("p")) == told
    write_json(folder / claims.RECOMMENDATIONS, {"4": advice, "16": advice | {"sentences": ["Leave it."]}})
    report.run(params, workspace)
    section = read(workspace)[1].sections["seeds"]
    marks = [told for told in section.texts("title") if told.endswith(" s")]
    assert marks == ["real · real · resnet20: 90.0%, 5 s", "datadream_dset · both · resnet20: 95.0%, 60 s"]

    # A round with a claim that holds, one that does not, and one of no loss.
    one = fixed_round("round-1", range(10, 16))
    fixed.write(folder, one, [])
    own = {"p": 0.0312, "p_adjusted": 0.0401, "family": "round-1", "indicative": "false"}
    held = claim(4, "both", "real/real/resnet20", low=0.004, high=0.03, difference=0.02) | own | {"asked": "gain"}
    lost = claim(16, "both", "real/real/resnet20", low=-0.02, high=0.0, difference=-0.01) | own | {"asked": "no_loss"}
    # Of a recipe that is not active here, too: the claims of a round were adjusted together.
    idle = claim(4, "both", "retrieved/both/resnet20", low=-0.01, high=0.02, difference=0.005) | own | {"asked": "gain"}
    write_table(params, workspace, [*rows, held, idle, lost])
    report.run(params, workspace)
    page = read(workspace)[1]
    section = page.sections["seeds"]
    first = section.all("table")[0]
    assert first.one("caption").text.startswith(f"{one.words} 1 of 3 hold: ")
    assert [row[1:] for row in first.rows[1:]] == [
        ["4", "+2.0", "+0.4 to +3.0", "0.031", "0.040", "holds"],
        ["4", "+0.5", "−1.0 to +2.0", "0.031", "0.040", "not shown"],
        ["16, no loss", "−1.0", "−2.0 to 0.0", "0.031", "0.040", "not shown"],
    ]
    # The verdict rests on what was fixed, and not on the same difference over all seeds.
    assert page.hero.one("h1").text == "Synthetic images helped: +2.0 points (+0.4 to +3.0)."
    assert any(one.words in told for told in page.caveat)
    another = replace(params, primary="stable_diffusion")
    report.run(another, workspace)
    assert not any(one.words in told for told in read(workspace)[1].caveat)

    (folder / "claims.csv").write_text("shots,of\n4,x\n")
    with pytest.raises(InputError, match="dreamset table"):
        report.run(params, workspace)


def fixed_round(name: str, seeds: range) -> fixed.Round:
    """A round about what the images of ``datadream_dset`` add: a gain at 4 shots, and no loss at 16."""
    return fixed.Round(
        name=name,
        time="2026-03-04T05:06:07+00:00",
        recipe="datadream_dset",
        classifier="resnet20",
        pairs=((Run.parse("datadream_dset/both/resnet20"), Run.parse("real/real/resnet20")),),
        gain=(4,),
        no_loss=(16,),
        seeds=tuple(seeds),
        smallest_gain=0.01,
        settings={},
        rows={},
    )


def bars(workspace: Workspace, shots: int) -> list[tuple[str, str]]:
    """The rows of the chart of differences at a number of shots: the runs, and the side that they are shown on."""
    parts = read(workspace)[1].sections["seeds"].all("details")
    (chart,) = (part for part in parts if part.texts("summary") == [f"{shots} shots per class"])
    *rows, _ = chart.all("div", "bar")  # then the axis
    return [(row.text.partition(", over")[0], row.attributes["class"].split()[-1]) for row in rows]


def test_charts_mark_a_difference_as_it_was_fixed_or_by_its_adjusted_test(params: Params, workspace: Workspace) -> None:
    def row(
        shots: int, side: int, p: float | str, family: str = "", asked: str = "gain", seeds: int = 6
    ) -> dict[str, Any]:
        low, high = sorted((0.01 * side, 0.05 * side))
        tests = {"p": p, "p_adjusted": p, "family": family, "asked": asked, "indicative": "false", "seeds": seeds}
        return claim(shots, "both", "real/real/resnet20", low=low, high=high, difference=0.03 * side) | tests

    def marks(*rows: dict[str, Any]) -> list[str]:
        write_table(params, workspace, list(rows))
        report.run(params, workspace)
        return [side for shots in sorted({row["shots"] for row in rows}) for _, side in bars(workspace, shots)]

    def told() -> str:
        return read(workspace)[1].sections["seeds"].texts("p")[0]

    # An interval above or below zero by itself shows nothing where a test was made.
    assert marks(row(4, 1, 0.5), row(16, -1, 0.5)) == ["unclear", "unclear"]
    assert marks(row(4, 1, 0.03), row(16, -1, 0.03)) == ["helps", "hurts"]
    assert "does not tell it from chance" in told() and "of its round" not in told()
    assert marks(row(4, 1, ""), row(16, -1, "")) == ["helps", "hurts"] and "from chance" not in told()
    # What was fixed stands in the place of what was explored, the last round first; a claim of no loss does not.
    (workspace.results / "table/fixed").mkdir()
    for name, seeds in (("round-1", range(10, 18)), ("round-2", range(20, 28))):
        fixed.write(workspace.results / "table", fixed_round(name, seeds), [])
    explored = [row(4, 1, 0.5), row(16, -1, 0.03)]
    first, last = row(4, 1, 0.03, "round-1", seeds=8), row(4, -1, 0.03, "round-2", seeds=8)
    assert marks(*explored, row(16, 1, 0.03, "round-1", "no_loss"), first) == ["helps", "hurts"]
    assert "over 6 seeds (of what was fixed: over the seeds of its round)" in told()
    section = read(workspace)[1].sections["seeds"]
    assert "Where no gain over the real images is shown: 1 of 2" in section.texts("summary")
    assert marks(*explored, first, last) == marks(*explored, last, first) == ["hurts", "hurts"]


@pytest.mark.parametrize(
    ("taken", "recommended", "opening"),
    [
        (
            "datadream_dset/both/resnet20",
            "real/real/clip_lora",
            "It may do as well without synthetic images: over 6 seeds at 4 ",
        ),
        (
            "datadream_dset/both/resnet20",
            "zero_shot/none/clip_zeroshot",
            "It may do as well without synthetic images: o",
        ),
        ("real/real/resnet20", "datadream_dset/both/clip_lora", "Synthetic images may do better. Over 6 seeds: leave"),
        ("real/real/resnet20", "zero_shot/none/clip_zeroshot", "Over 6 seeds: leave it."),
        ("datadream_dset/both/resnet20", "stable_diffusion/both/resnet20", "Over 6 seeds: leave it."),
        (None, "real/real/resnet20", "Over 6 seeds: leave it."),
    ],
)
def test_two_answers_of_a_page_are_told_together(taken: str | None, recommended: str, opening: str) -> None:
    runs = [recommended, "datadream_dset/both_strong/resnet20", "stable_diffusion/synthetic/resnet20"]
    options = [{"run": run, "accuracy": 0.95 - place / 100} for place, run in enumerate(runs)]
    found = {"seeds": 6, "best": options[0], "options": options, "sentences": ["Leave it.", "It takes 9 s."]}
    sweep = claims.Sweep([], [], [], {}, recommendations={"4": found})
    first, *others = sweep.advised(4, Run.parse(taken) if taken else None)
    assert first.startswith(opening) and others == ["It takes 9 s."]
    # It tells both figures, and not to leave what the reader was told to take.
    if opening.startswith("It"):
        best = "clip_lora of real images alone" if "lora" in recommended else "clip_zeroshot without any training"
        assert first.partition(", of all classifiers, ")[2] == (
            f"{best} gets 95.0%, and nothing with synthetic images is shown to be better (resnet20 of real images and "
            "datadream_dset, strongly augmented, gets 94.0%)."
        )
    else:
        assert first.endswith("leave it.")
    assert sweep.advised(16) == []


AGAIN = "dreamset table --shots 4 16 --seeds 0-5"


@pytest.mark.parametrize(
    ("setting", "words", "command", "remedy"),
    [
        ({"code": "0" * 64}, "with other code, so", f"{AGAIN} --recheck", "takes it over where"),
        ({"weights": "0" * 64}, "with other weights, so", AGAIN, "makes it current"),
        ({"selection": "holdout"}, "with other settings (selection), so", AGAIN, "makes it current"),
        # By an older program.
        ({"code": None, "made": "0" * 64}, "with other code, so", f"{AGAIN} --recheck", "takes it over where"),
    ],
)
def test_a_table_that_does_not_count_is_named(
    setting: dict[str, str], words: str, command: str, remedy: str, params: Params, workspace: Workspace
) -> None:
    write_table(params, workspace, OVER_SEEDS, **setting)
    (warning,) = report.run(params, workspace)["warnings"]
    assert words in warning and f"`{command}` {remedy}" in warning
    page = read(workspace)[1]
    assert page.hero.one("h1").text.startswith("Synthetic images helped: ")  # by this seed
    assert page.caveat[0] == warning.replace("`", "")
    assert page.caveat[1].startswith("Indicative, one seed")
    assert page.hero.one("div", "caveat").texts("code")[:2] == ["results/table", command]
    assert "seeds" not in page.sections


def test_a_table_of_nobody_knows_what_does_not_count(params: Params, workspace: Workspace) -> None:
    assert claims.read(params, workspace, {"real", *RECIPES}) == claims.Table()
    write_table(params, workspace, OVER_SEEDS)
    table = claims.read(params, workspace, {"real", *RECIPES})
    assert table.sweep and table.other is None and table.warning is None
    (workspace.results / "table/setting.json").unlink()
    (warning,) = report.run(params, workspace)["warnings"]
    assert "with other settings, so" in warning


def test_no_command_asks_for_cells_that_were_never_there(params: Params, workspace: Workspace) -> None:
    write_table(params, workspace, OVER_SEEDS, code="0" * 64)
    at = [(4, seed) for seed in (*range(6), *range(30, 33))] + [(16, seed) for seed in range(6)]
    write_csv(workspace.results / "table/cells.csv", [{"shots": k, "seed": s} for k, s in at], ("shots", "seed"))
    (warning,) = report.run(params, workspace)["warnings"]
    assert f"`{AGAIN} --recheck && dreamset table --shots 4 --seeds 30-32 --recheck` takes it over" in warning


def test_the_first_screen_tells_accuracies_of_the_seeds_that_decide(params: Params, workspace: Workspace) -> None:
    own = {"accuracy_of": 0.9541, "accuracy_minus": 0.905}
    write_table(params, workspace, [OVER_SEEDS[0] | own, OVER_SEEDS[2] | {"seeds": 3}])
    report.run(params, workspace)
    page = read(workspace)[1]
    assert "names 95.4% of 877 test images rightly in the mean of 6 seeds" in page.lede
    assert "and 90.5% without them" in page.lede
    words = page.sections["seeds"].texts("p")[0]
    assert "Mean differences over 3 to 6 seeds in percentage points" in words
    assert words.endswith("What is of fewer than 6 seeds is indicative.")
    # Without them, a mean over other seeds than the claim's does not stand in.
    write_table(params, workspace, [OVER_SEEDS[0] | {"seeds": 7}])
    report.run(params, workspace)
    assert "names some of 877 test images rightly in the mean of 7 seeds" in read(workspace)[1].lede


@pytest.mark.parametrize(("known", "told"), [(True, True), (False, False)])
def test_no_advice_names_a_recipe_that_is_another_one_now(
    known: bool, told: bool, params: Params, workspace: Workspace
) -> None:
    write_table(params, workspace, OVER_SEEDS)
    listed = {"real/real/resnet20": 0.95, "datadream_dset/both/resnet20": 0.9, "gone/both/resnet20": 0.93}
    options = [
        {"run": run, "accuracy": accuracy, "seconds": 9.0}
        for run, accuracy in listed.items()
        if not (known and run.startswith("gone"))
    ]
    advice = {"answer": "leave", "best": options[0], "real": options[0], "options": options, "front": []}
    folder = workspace.results / "table"
    write_json(folder / claims.RECOMMENDATIONS, {"4": advice | {"sentences": ["Leave them.", "It takes 9 s."]}})
    table = claims.read(params, workspace, {"real", *RECIPES})
    assert table.sweep and bool(table.sweep.recommendations) == told


def test_work_of_several_processors_is_told(params: Params, workspace: Workspace) -> None:
    paths = {arm: workspace.result("train", arm) for arm in ("real", *RECIPES)}
    for path in paths.values():
        write_json(path, json.loads(path.read_text()) | {"machines": [{"device": "AMD EPYC", "threads": 2}]})
    report.run(params, workspace)
    assert not [told for told in read(workspace)[1].caveat if "AMD" in told]
    record = json.loads(paths["real"].read_text())
    del record["machines"]
    record["runs"][0]["machines"] = [{"device": "Intel Xeon", "threads": 1}]
    write_json(paths["real"], record)
    report.run(params, workspace)
    told = read(workspace)[1].caveat[-1]
    assert (
        "(Intel Xeon, 1 thread: train real; AMD EPYC, 2 threads: train stable_diffusion, train datadream_dset)" in told
    )


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([], None),
        ([("a", "AMD", 1), ("b", "AMD", 1)], None),
        ([("a", "AMD", 1), ("b", "AMD", 2)], "(AMD, 1 thread: a; AMD, 2 threads: b)"),
        # A name may end with its threads.
        ([("a", "AMD, 2 threads", 2), ("b", "H200", 2)], "(AMD, 2 threads: a; H200, 2 threads: b)"),
        ([(name, "AMD", 1) for name in "abcdea"] + [("x", "Xeon", 1)], "(AMD, 1 thread: a, b, c and 2 more; Xeon"),
    ],
)
def test_processors_that_differ_are_named(parts: list[tuple[str, str, int]], words: str | None) -> None:
    told = differing(parts)
    assert told is None if words is None else words in str(told)

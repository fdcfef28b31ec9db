"""Studies on the page: what was tried, what was chosen, and charts of every kind of study."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import reported
import studied
import toy
from dreamset import report
from dreamset.core.errors import InputError
from dreamset.core.files import write_json
from dreamset.core.workspace import Workspace
from reported import HOSTILE, read

if TYPE_CHECKING:
    from dreamset.params import Params


@pytest.fixture
def params() -> Params:
    return reported.parameters()


@pytest.fixture
def workspace(tmp_path: Path, params: Params) -> Workspace:
    return reported.write(tmp_path, params)


def captions(workspace: Workspace) -> list[str]:
    """Titles of the charts of the studies."""
    return read(workspace)[1].sections["studies"].texts("figcaption")


def test_a_study_is_shown_with_all_that_it_tried(workspace: Workspace) -> None:
    search = {"guidance": {"low": 1.0, "high": 7.5}, "steps": {"low": 5, "high": 30}}
    params = toy.params(recipes__stable_diffusion__search=search)
    record = studied.record(26)
    record["trials"][11]["reason"] = HOSTILE[0]
    toy.write_study(params, workspace, "stable_diffusion", **record)
    write_json(workspace.result("tune", "datadream_dset"), {"recipe": "datadream_dset", "searched": [], "best": None})
    write_json(workspace.result("tune", "taken_out"), record | {"sentences": ["Not of this page."]})
    report.run(params, workspace)
    source, page = read(workspace)
    (study,) = page.sections["studies"].all("article")
    *sentences, cost, _ = study.texts("p")
    assert sentences == [re.sub(r"\s+", " ", told) for told in record["sentences"]]
    assert cost.startswith("26 trials, 5 070 images, ")
    assert study.one("h3").text == "stable_diffusion"
    assert "script" not in page.tags and "&lt;script&gt;" in source
    assert captions(workspace)[:2] == ["CAS by trial", "CAS by images per class"]
    assert [name.partition(",")[0] for name in captions(workspace)[2:]] == ["CAS by guidance and steps", "When"]
    folded = study.one("details")
    assert "open" not in folded.attributes  # of 26 it is folded away
    best = record["best_trial"]
    (chosen,) = folded.all("tr", "chosen")
    assert chosen.one("th").text == str(best) and chosen.one("i").fits("i", "best")
    rows = folded.rows[1:]
    assert [cells[0] for cells in rows] == [str(number) for number in range(26)]
    ends = [cells[-1].split("; ")[0] for cells in rows]
    assert ends.count("chosen") == 1 and ends[best] == "chosen"
    states = {"complete": "finished", "pruned": "stopped early", "fail": "failed"}
    for state, words in states.items():
        count = sum(trial["state"].lower().startswith(state) for trial in record["trials"])
        assert ends.count(words) == count - (state == "complete")
    # A dot per scored trial in the history, and a cross for the one that failed.
    history = study.all("figure")[0]
    assert len(history.all("circle")) == 25
    assert len(history.all("path")) == 1
    # What was chosen is what was run.
    guidance = record["best"]["guidance"]
    terms = page.sections["setup"].terms()
    chosen_by = f"{record['best']['steps']} steps, guidance {guidance:.3g} (guidance, steps chosen by"
    assert chosen_by in terms["stable_diffusion"]
    # And what it took is a part of the cost.
    costs = page.sections["costs"]
    row = dict(zip(costs.rows[0][1:], costs.row("stable_diffusion"), strict=True))
    assert (row["trials"], row["tune, s"]) == ("26", f"{record['seconds']:.1f}")


def test_studies_of_other_kinds_are_drawn_too(params: Params, workspace: Workspace) -> None:
    write_json(workspace.result("tune", "stable_diffusion"), studied.record(24, two=True, workers=1))
    report.run(params, workspace)
    found = captions(workspace)
    assert "Which knob matters" in found and "CAS against the time an image takes" in found
    rows = read(workspace)[1].sections["studies"].rows
    assert [cells for cells in rows if cells[-1].endswith("on the front")]

    # One number on a log scale and a list of schedulers, nothing feasible, in a record without the recipe's own values.
    lr = {"name": "FloatDistribution", "attributes": {"step": None, "low": 1e-4, "high": 1e-2, "log": True}}
    choices = {"name": "CategoricalDistribution", "attributes": {"choices": ["ddim", "pndm"]}}
    record = studied.record(6) | {"space": {"lr": lr, "scheduler": choices}, "searched": ["lr", "scheduler"]}
    record |= {"best": None, "best_trial": None, "default": None}
    for trial in record["trials"]:
        trial |= {"params": {"lr": 3e-4, "scheduler": "pndm"}, "feasible": False}
    write_json(workspace.result("tune", "stable_diffusion"), record)
    report.run(params, workspace)
    page = read(workspace)[1]
    assert captions(workspace) == ["CAS by trial", "CAS by images per class", "When, and by which worker"]
    assert {cells[-1].partition("; ")[2] for cells in page.sections["studies"].rows[1:]} == {"not feasible"}
    steps = {"name": "IntDistribution", "attributes": {"log": False, "step": 1, "low": 5, "high": 30}}
    for number, trial in enumerate(record["trials"]):
        trial |= {"params": {"lr": 10 ** (-4 + number / 3), "steps": 5 + 5 * number}}
    write_json(workspace.result("tune", "stable_diffusion"), record | {"space": {"lr": lr, "steps": steps}})
    report.run(params, workspace)
    assert any(name.startswith("CAS by steps and lr") for name in captions(workspace))

    # Nothing came of any trial.
    record |= {"trials": [studied.failed(number, started=None, ended=None) for number in range(3)]}
    write_json(workspace.result("tune", "stable_diffusion"), record)
    report.run(params, workspace)
    assert captions(workspace) == []
    rows = read(workspace)[1].sections["studies"].rows[1:]
    assert all(cells[-1].endswith("too many images had to be redrawn.") for cells in rows)


def test_a_broken_study_is_named(params: Params, workspace: Workspace) -> None:
    write_json(workspace.result("tune", "stable_diffusion"), {"searched": ["guidance"], "best": None})
    with pytest.raises(InputError, match=r"stable_diffusion\.json: has no .*trials.*dreamset tune stable_diffusion"):
        report.run(params, workspace)


def test_where_images_are_searched_the_page_tells_a_trials_own(params: Params, workspace: Workspace) -> None:
    record = studied.record(6) | studied.OWN_IMAGES | {"default": None}
    for number, trial in enumerate(record["trials"]):
        trial.update(studied.own_images(2, 4, 10 + 10 * number))
    write_json(workspace.result("tune", "stable_diffusion"), record)
    report.run(params, workspace)
    study = read(workspace)[1].sections["studies"]
    assert "CAS by share of a trial’s images" in captions(workspace)
    assert "11%, 33%, 100% of a trial’s images; CAS by" in study.text
    column = study.rows[0].index("images per class")
    full = {trial["number"] for trial in record["trials"] if trial["state"] == "COMPLETE"}
    told = {int(cells[0]): cells[column] for cells in study.rows[1:]}
    assert full and {told[number] for number in full} == {str(10 + 10 * number) for number in full}

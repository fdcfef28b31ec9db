"""What the cells of a table say together: paired differences, families of claims, and the written tables."""

import dataclasses
import itertools
import json
from typing import Any

import numpy as np
import pytest

from dreamset.core.errors import InputError
from dreamset.core.workspace import Workspace
from dreamset.data.runs import Kind, Run
from dreamset.metrics import scored
from dreamset.metrics.gains import Gain
from dreamset.params import Params
from dreamset.report import markdown
from dreamset.sweep import cells, table
from made_up_cells import made_up, rows, small_table, stub_stages
from toy import ROOT


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return stub_stages(monkeypatch)


@pytest.fixture
def params(raw: dict[str, Any]) -> Params:
    return small_table(raw)


def test_differences_are_one_exploratory_family(params: Params, workspace: Workspace, stages: list[str]) -> None:
    cells.run(params, workspace, [2, 4, 16], [0, 1, 2, 3, 4, 5], 1)
    found = rows(workspace, "claims")
    assert {row["family"] for row in found} == {""} and {row["asked"] for row in found} == {"gain"}
    assert all(float(row["p"]) <= float(row["p_adjusted"]) for row in found)
    least = min(found, key=lambda row: float(row["p"]))
    assert float(least["p"]) == 2 / 2**6
    # So many tests would never pass with Holm, whose least p is the number of tests times the least one.
    assert 2 / 2**6 <= float(least["p_adjusted"]) < 1
    assert {row["indicative"] for row in found} == {"false"}
    differences = [float(value) for value in least["by_seed"].split()]
    assert np.mean(differences) == pytest.approx(float(least["difference"]), abs=1e-3)
    assert float(least["low"]) < float(least["difference"]) < float(least["high"])


def test_a_part_of_the_table_keeps_the_claims_of_other_recipes(
    params: Params, workspace: Workspace, stages: list[str]
) -> None:
    cells.run(params, workspace, [4], [0, 1], 1)
    cells.run(dataclasses.replace(params, active=("stable_diffusion", "datadream_cls")), workspace, [4], [0, 1], 1)
    found = rows(workspace, "claims")
    assert {row["of"].split("/")[0] for row in found} == {"stable_diffusion", "datadream_dset", "datadream_cls"}
    assert {row["indicative"] for row in found} == {"true"}


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


def test_quality_within_a_recipe_is_told_apart_from_quality_between_recipes(params: Params) -> None:
    # Between the recipes, FID and CAS order alike; within each, the set of lower FID teaches worse.
    records = []
    for seed in range(6):
        evaluation, guesses = made_up(dataclasses.replace(params, seed=seed))
        record = table.record(evaluation, guesses)
        for place, recipe in enumerate(("stable_diffusion", "datadream_dset")):
            record["quality"][recipe] = {"fid": 50.0 - 30 * place + seed, "near_duplicates": 0.01 * seed}
            (row,) = (r for r in record["rows"] if (r["recipe"], r["train_on"]) == (recipe, "synthetic"))
            row["accuracy"] = 0.5 + 0.3 * place + 0.01 * seed
        # The same set has other near-copies of other shots.
        other = {name: values | {"near_duplicates": 0.2 - 0.01 * seed} for name, values in record["quality"].items()}
        records += [record, record | {"shots": 8, "quality": other}]
    correlations = {(row["metric"], row["shots"]): row for row in table.correlations(params, records)}
    found = {shots: row for (metric, shots), row in correlations.items() if metric == "fid"}
    assert found["all"]["rho"] < 0 < found["within"]["rho"] == 1
    # What the same set says at another number of shots is no second point.
    assert (found["all"]["points"], found["within"]["points"], found[8]["points"]) == (12, 12, 12)
    assert correlations["near_duplicates", "all"]["points"] == 24


def test_groups_of_test_images_widen_the_interval(params: Params) -> None:
    records = []
    for seed in range(6):
        evaluation, guesses = made_up(dataclasses.replace(params, seed=seed))
        labels, predicted = np.array(guesses["labels"]), guesses["predicted"]
        # One recipe fails on two of four writers.
        key = "datadream_dset/both_strong/resnet20"
        predicted[key] = np.where(np.arange(60) < 30, labels, (labels + 1) % 3).tolist()
        records.append(table.record(evaluation, guesses | {"groups": (np.arange(60) // 15).tolist()}))
    alone = [record | {"groups": None} for record in records]
    grouped, single = (
        next(row for row in table.claims(params, given) if str(row["of"]) == key) for given in (records, alone)
    )
    assert (grouped["groups"], single["groups"]) == (4, None)
    assert grouped["high"] - grouped["low"] > 1.5 * (single["high"] - single["low"])
    with pytest.raises(InputError, match="scored on different images"):
        table.claims(params, [records[0], alone[1]])


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


def test_a_record_holds_what_was_right(params: Params) -> None:
    evaluation, guesses = made_up(params, images=61)
    record = json.loads(json.dumps(table.record(evaluation, guesses)))
    for key, predicted in guesses["predicted"].items():
        assert (scored.right(record, Run.parse(key)) == np.equal(predicted, guesses["labels"])).all()
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
    assert (row["seeds"], row["accuracy"], row["sd"], row["fid"], row["kid"]) == (2, 0.85, 0.070711, 15.0, None)


def test_the_table_is_told_in_markdown(params: Params, workspace: Workspace, stages: list[str]) -> None:
    cells.run(params, workspace, [4, 8], [0, 1], 1)
    lines = (workspace.results / "table/README.md").read_text(encoding="utf-8").splitlines()
    mean = {(row["recipe"], row["train_on"]): 100 * float(row["accuracy"]) for row in rows(workspace, "summary")[-9:]}
    start = lines.index("### resnet20")
    assert lines[start + 2] == "| images | 4 shots | 8 shots |"
    told = [line.strip("| ").split(" | ") for line in lines[start + 4 : start + 10]]
    sets = {"real": ("real", "real"), "real, strongly augmented": ("real", "real_strong")}
    for kind, before in (("synthetic", ""), ("both_strong", "real + ")):
        sets |= {f"{before}{name}": (name, kind) for name in ("stable_diffusion", "datadream_dset")}
    assert [(name, last) for name, _, last in told] == [(name, f"{mean[kind]:.1f}") for name, kind in sets.items()]
    assert lines[lines.index("## FID") + 4] == "| images | 4 shots | 8 shots |"
    claim = next(
        row
        for row in rows(workspace, "claims")
        if (row["shots"], row["of"], row["minus"])
        == ("8", "datadream_dset/both_strong/resnet20", "real/real_strong/resnet20")
    )
    line = next(line for line in lines if line.startswith("| real + datadream_dset, over real |"))
    assert line.split(" | ")[2].strip("*| ").startswith(f"{100 * float(claim['difference']):+.1f} (".replace("-", "−"))
    # Two seeds show nothing, whatever the interval.
    assert "**" not in line


def test_bold_is_what_interval_and_adjusted_test_show(params: Params) -> None:
    summary = table.summarised(table.record(*made_up(params))["rows"])
    run, real = Run.parse("datadream_dset/both_strong/resnet20"), Run.parse("real/real_strong/resnet20")
    claim = {"shots": 4, "of": run, "minus": real, "difference": 0.02, "low": 0.01, "high": 0.03, "family": ""}
    for more, bold in (
        ({"p_adjusted": 0.04}, True),
        ({"p_adjusted": 0.06}, False),
        ({"p_adjusted": 0.04, "low": -0.01}, False),
    ):
        text = markdown.over_seeds(params, summary, [claim | more])
        line = next(line for line in text.splitlines() if line.startswith("| real + datadream_dset, over real |"))
        assert ("**+2.0 (" in line) == bold


def test_the_docs_quote_the_table_that_is_there() -> None:
    text = (
        (ROOT / "docs/statistics.md").read_text(encoding="utf-8").partition("### Accuracies")[2].partition("\n###")[0]
    )
    quoted = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    table = (ROOT / "results/table/README.md").read_text(encoding="utf-8").partition("## Accuracy")[2].splitlines()
    start = table.index("### resnet20") + 2
    head, _, *lines = (line.strip("| ").split(" | ") for line in itertools.takewhile(bool, table[start:]))
    measured = {line[0]: line[1:] for line in lines}
    names = {"real images": "real", "real images, strongly augmented": "real, strongly augmented"}
    assert len(quoted) == 10 and quoted[0][1:] == head[1:]
    for label, *values in quoted[2:]:
        assert values == measured[names.get(label, label.removeprefix("images of ").replace("`", ""))], label

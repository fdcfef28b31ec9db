"""Accuracy by the word of an attribute or by group, and the gap between two words."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

import toy
from asked import found_from_anywhere, with_row
from dreamset import adapt, evaluate, generate, train
from dreamset.core.errors import InputError
from dreamset.core.workspace import Workspace
from dreamset.data.runs import BOTH, REAL_ONLY, Run
from dreamset.data.splits import Sample, read_split
from dreamset.evaluate import slices
from dreamset.sweep import crossval

__all__ = ["found_from_anywhere"]  # a fixture that every test here uses


def test_accuracy_by_attribute(small: dict[str, Any], workspace: Workspace) -> None:
    small["models"]["bundled"]["train"]["resnet20"] |= {"width": 4, "steps": 2, "batch": 8, "warmup": 1}
    small["train"] |= {"classifiers": ["resnet20"], "baselines": [], "selections": 1}
    small["evaluate"] |= {"slices": ["slant"], "bootstrap": 100}
    params = with_row(small)
    params = dataclasses.replace(params, active=("stable_diffusion",))
    toy.prepare(params, workspace)
    for stage in (adapt.run, generate.run):
        stage(params, workspace, "stable_diffusion")
    for arm in ("real", "stable_diffusion"):
        train.run(params, workspace, arm)
    evaluation = evaluate.run(params, workspace, crossval.run)
    rows = evaluation["slices"]
    assert [(row["group"], row["word"]) for row in rows] == [("slant", "none"), ("slant", "slanted")]
    assert sum(row["images"] for row in rows) == evaluation["test_images"]
    for run in evaluation["runs"]:
        name = next(name for name in rows[0]["accuracy"] if name.endswith(f"{run['train_on']}/{run['classifier']}"))
        whole = sum(row["images"] * row["accuracy"][name] for row in rows) / evaluation["test_images"]
        assert abs(whole - run["accuracy"]) < 1e-3
    written = json.loads(workspace.result("evaluate").read_text())
    assert written["slices"] == rows and written["gaps"] == evaluation["gaps"]
    found = evaluation["verdict"]
    for row in rows:
        gain, accuracy = row["gain"], row["accuracy"]
        assert (gain["of"], gain["minus"]) == (found["of"], found["minus"])
        assert gain["difference"] == pytest.approx(accuracy[found["of"]] - accuracy[found["minus"]], abs=2e-4)
        assert gain["low"] <= gain["difference"] <= gain["high"]
    whole = sum(row["images"] * row["gain"]["difference"] for row in rows) / evaluation["test_images"]
    assert whole == pytest.approx(found["difference"], abs=2e-4)


def test_a_word_of_one_group_of_images_has_no_interval() -> None:
    params = toy.params()
    of, minus = Run("a", BOTH, "resnet20"), Run("real", REAL_ONLY, "resnet20")
    right = {of: np.array([1.0, 1.0, 0.0, 1.0]), minus: np.array([0.0, 1.0, 0.0, 0.0])}
    found, groups = {"of": str(of), "minus": str(minus)}, np.array([0, 0, 3, 5])

    def gain(*here: int, by: Any = groups) -> dict[str, Any] | None:
        return slices._gain(params, right, by, np.isin(np.arange(4), here), found)

    assert gain(0, 1) is None and gain(2, by=None) is None
    pair = gain(0, 1, by=None)
    assert pair is not None and pair["difference"] == 0.5
    three = gain(1, 2, 3)  # groups are numbered anew
    assert three is not None and three["difference"] == round(1 / 3, 4) and three["low"] < 0 < three["high"]
    assert slices._gain(params, right, groups, np.ones(4, bool), None) is None


def test_a_gap_between_words_is_told_with_what_synthetic_images_do_to_it() -> None:
    rng, n = np.random.default_rng(0), 2000
    bold = np.arange(n) % 2 == 0
    words = {"bold": bold, "thin": ~bold, "few": np.arange(n) < slices.FEWEST - 1}
    hard = rng.random(n)
    minus = (hard < np.where(bold, 0.9, 0.7)).astype(float)
    of = (hard < np.where(bold, 0.92, 0.8)).astype(float)
    found = slices.gap(toy.params(), of, minus, words, None)
    assert found is not None and (found["high"], found["low"]) == ("bold", "thin")
    assert found["before"] == pytest.approx(0.2, abs=0.03) and found["change"] == pytest.approx(-0.08, abs=0.02)
    assert found["change_low"] < found["change"] < found["change_high"] < 0
    assert found["after"] == pytest.approx(found["before"] + found["change"], abs=2e-4)
    # The interval is that of the difference of two independent means.
    gain = of - minus
    error = np.sqrt(gain[bold].var() / bold.sum() + gain[~bold].var() / (~bold).sum())
    assert (found["change_high"] - found["change_low"]) / 2 == pytest.approx(1.96 * error, rel=0.1)
    # Few images that change nothing do not show that nothing changes: the interval keeps its floor.
    few = np.arange(40) % 2 == 0
    still = slices.gap(toy.params(), few.astype(float), few.astype(float), {"a": few, "b": ~few}, None)
    assert still is not None and still["change_low"] < -0.1 and still["change_high"] > 0.1
    # Images of one writer are no more than one look at that writer.
    writers = np.arange(n) // 100
    shifted = np.where((rng.random(20)[writers] < 0.5) & ~bold, 1.0, of)
    alone, grouped = (slices.gap(toy.params(), shifted, minus, words, by) for by in (None, writers))
    assert alone is not None and grouped is not None
    assert grouped["change_high"] - grouped["change_low"] > alone["change_high"] - alone["change_low"]
    assert slices.gap(toy.params(), of, np.ones(n), words, None) is None
    assert slices.gap(toy.params(), of, minus, {"bold": bold}, None) is None


def test_the_groups_of_a_list_are_a_slice(small: dict[str, Any], workspace: Workspace) -> None:
    small["evaluate"] |= {"slices": ["group"], "bootstrap": 100}
    params = with_row(small)
    samples = [Sample(f"{i}.png", 0, "ab"[i % 2], "0" * 64) for i in range(40)]
    of, minus = Run("a", BOTH, "resnet20"), Run("real", REAL_ONLY, "resnet20")
    right = {of: np.ones(40), minus: (np.arange(40) % 4 != 1).astype(float)}
    found = {"of": str(of), "minus": str(minus)}
    groups = np.arange(40) % 2
    told = slices.of(params, workspace, toy.write_splits(workspace), samples, right, groups, found)
    assert [(row["group"], row["word"], row["images"]) for row in told["slices"]] == [
        ("group", "a", 20),
        ("group", "b", 20),
    ]
    assert [row["accuracy"][str(minus)] for row in told["slices"]] == [1.0, 0.5]
    assert told["slices"][1]["gain"]["difference"] == 0.5
    (between,) = told["gaps"]
    assert (between["group"], between["high"], between["low"], between["change"]) == ("group", "a", "b", -0.5)
    with pytest.raises(InputError, match=r"evaluate\.slices: group: the scored images are of one group or of none"):
        slices.of(params, workspace, read_split(workspace.splits), samples[::2], right, None, found)
    # Where nothing groups the images, each is one of its own, and no slice of a single image is told.
    alone = [dataclasses.replace(sample, group=sample.path) for sample in samples]
    with pytest.raises(InputError, match="the scored images are of one group or of none"):
        slices.of(params, workspace, read_split(workspace.splits), alone, right, None, found)

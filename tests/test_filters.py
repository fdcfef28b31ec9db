"""Filters: which candidates become images, whatever is drawn beside them; and what is said of the rest."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toy
from dreamset import adapt, generate
from dreamset.core.errors import InputError
from dreamset.core.images import read_rgb
from dreamset.core.seeds import image_seed
from dreamset.core.workspace import Workspace
from dreamset.data import arrays
from dreamset.data.synthetic import SyntheticImage, read_metadata
from dreamset.data.work import Work
from dreamset.drawing import filters
from dreamset.drawing.blocks import plan
from dreamset.drawing.candidates import GROUP, Rated
from dreamset.drawing.filters import Filter
from dreamset.drawing.finish import settled
from dreamset.params import Params
from dreamset.params.rules import check_row

RECIPE = "stable_diffusion"
KINDS = ("argmax", "threshold", "real_features", "k_of_n", "influence")


@pytest.fixture(autouse=True)
def _found_from_anywhere(small: dict[str, Any]) -> None:
    row = small["models"]["bundled"]
    row["clip"] = str(toy.ROOT / "models/base/clip")
    row["generate"] |= {"per_class": 5, "batch": 50}


def made(small: dict[str, Any], workspace: Workspace, **knobs: Any) -> tuple[Work, list[SyntheticImage]]:
    small["recipes"][RECIPE] |= knobs
    params = toy.parse(small)
    adapt.run(params, workspace, RECIPE)
    generate.run(params, workspace, RECIPE)
    return Work.read(params, workspace, RECIPE), read_metadata(workspace.synthetic(RECIPE))


@pytest.fixture
def some(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter that accepts by the pixels alone, about a third of all images."""

    def rate(self: Filter, images: np.ndarray, labels: np.ndarray) -> Rated:
        sums = images.reshape(len(images), -1).astype(np.int64).sum(1)
        rng = [np.random.default_rng(int(value)) for value in sums]
        return Rated(sums % 3 == 0, (sums % 101).astype(np.float32), np.stack([r.normal(size=4) for r in rng]))

    monkeypatch.setattr(Filter, "rate", rate)


@pytest.fixture
def no_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter that accepts every image but those of class three."""

    def rate(self: Filter, images: np.ndarray, labels: np.ndarray) -> Rated:
        return Rated(labels != 3, np.ones(len(labels), np.float32), np.zeros((len(labels), 2), np.float32))

    monkeypatch.setattr(Filter, "rate", rate)


@pytest.mark.parametrize("kind", KINDS)
def test_each_filter_looks_at_drawn_images(
    prepared: tuple[Params, Workspace], small: dict[str, Any], kind: str
) -> None:
    small["recipes"][RECIPE] |= {"filter": kind, "filter_tries": 3}
    work = Work.read(toy.parse(small), prepared[1], RECIPE)
    chooser = Filter(work)
    real = arrays.real(work.split.train, work.workspace.cell, chooser.side)
    rated = chooser.rate(real.images, real.labels)
    wrong = chooser.rate(real.images, (real.labels + 1) % len(work.split.classes))
    # The shots are of their classes, and of no others.
    assert rated.accepted.mean() > 0.6 > 0.5 > wrong.accepted.mean()
    assert (rated.score > wrong.score).mean() > 0.8
    assert np.allclose(np.linalg.norm(rated.features, axis=1), 1, atol=1e-5)


@pytest.mark.usefixtures("some")
def test_the_first_accepted_candidate_is_the_image(prepared: tuple[Params, Workspace], small: dict[str, Any]) -> None:
    work, images = made(small, prepared[1], filter="argmax", filter_tries=4)
    assert Counter(image.label for image in images) == dict.fromkeys(range(len(work.split.classes)), 5)
    attempts = 1 + work.params.generate.redraws
    for image in images:
        turns = [image_seed(work.params.seed, image.class_name, image.index, turn * attempts) for turn in range(4)]
        if image.gave_up:
            assert image.tries == 4
        elif not image.redraws:
            # Each candidate before it was refused.
            assert turns.index(image.seed) == image.tries - 1
    assert any(image.gave_up for image in images) and any(image.tries == 2 for image in images)
    record = json.loads(work.workspace.result("generate", RECIPE).read_text())
    assert record["drawn"] == sum(image.tries for image in images) == sum(record["filter"]["candidates"].values())
    assert sum(record["filter"]["gave_up"].values()) == sum(bool(image.gave_up) for image in images)
    card = (work.workspace.synthetic(RECIPE) / "README.md").read_text()
    assert (
        "Filter: of at most 4 candidates an image, it takes the first that zero-shot CLIP reads as its class." in card
    )
    assert "name: tries" in card


@pytest.mark.usefixtures("some")
@pytest.mark.parametrize("kind", ["argmax", "k_of_n"])
def test_more_images_and_other_batches_change_none(
    prepared: tuple[Params, Workspace], small: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    _, workspace = prepared
    _, few = made(small, workspace, filter=kind, filter_tries=3)
    small["models"]["bundled"]["generate"] |= {"per_class": 11, "batch": 80}
    _, more = made(small, workspace, filter=kind, filter_tries=3)
    known = {(image.label, image.index): image.sha256 for image in more}
    assert len(more) == 110
    assert all(known[image.label, image.index] == image.sha256 for image in few)


def rated(accepted: list[bool], score: list[float], features: list[list[float]]) -> Rated:
    return Rated(np.array(accepted), np.array(score, np.float32), np.array(features, np.float32))


def test_unlike_images_are_chosen_among_those_that_are_accepted(
    prepared: tuple[Params, Workspace], small: dict[str, Any]
) -> None:
    small["recipes"][RECIPE] |= {"filter": "k_of_n", "filter_tries": 2}
    chooser = Filter(Work.read(toy.parse(small), prepared[1], RECIPE))
    first = rated([True, True, False, True], [0.9, 0.9, 0.3, 0.9], [[1, 0], [1, 0], [0, 1], [1, 0]])
    second = rated([True, True, False, False], [0.8, 0.8, 0.4, 0.9], [[0, 1], [0, 1], [0, 1], [0, -1]])
    turns, accepted = chooser.choose([first, second])
    # The best first; then the unlike one; of two that are refused the better one; the accepted one, though it is alike.
    assert turns.tolist() == [0, 1, 1, 0]
    assert accepted.tolist() == [True, True, False, True]
    assert GROUP == 8


@pytest.mark.usefixtures("no_three")
def test_a_filter_that_accepts_none_of_a_class_says_so(
    prepared: tuple[Params, Workspace], small: dict[str, Any]
) -> None:
    words = r"filter: threshold accepted none of 10 candidates of class 'three'; take another filter, raise"
    with pytest.raises(InputError, match=words):
        made(small, prepared[1], filter="threshold", filter_tries=2)
    assert list(prepared[1].shards.glob("*/done.json"))  # nothing that was drawn is lost


@pytest.mark.usefixtures("no_three")
def test_a_first_round_does_not_hide_that_nothing_is_accepted(
    prepared: tuple[Params, Workspace], small: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="filter: entropy accepted none of 12 candidates of class 'three'"):
        made(small, prepared[1], filter="entropy", filter_tries=4, first_round=2)


def test_the_gradients_of_the_shots_are_means_by_class() -> None:
    rng = np.random.default_rng(0)
    labels = np.array([0, 1, 2, 0, 1, 0, 1, 0])
    features = rng.normal(size=(8, 5)).astype(np.float32)
    for half, (probe, means) in enumerate(filters._directions(features, labels, 4)):
        place = np.array([int((labels[:i] == label).sum()) for i, label in enumerate(labels)])
        for label in range(4):
            held = (labels == label) & ((place % 2 == half) | (label == 2))
            error = probe.error(features[held], labels[held])
            each = error[:, :, None] * features[held][:, None, :]
            expected = each.mean(0) if held.any() else np.zeros((4, 5))
            np.testing.assert_allclose(means[label], expected, atol=1e-5)


def test_what_a_filter_looks_at_is_in_the_keys(prepared: tuple[Params, Workspace], small: dict[str, Any]) -> None:
    _, workspace = prepared
    keys = {}
    for kind in ("none", *KINDS):
        small["recipes"][RECIPE] |= {"filter": kind}
        keys[kind] = filters.key(Work.read(toy.parse(small), workspace, RECIPE))
    assert keys["none"] == {}
    assert all({"filter", "tries", "clip", "code"} <= keys[kind].keys() for kind in KINDS)
    assert {kind for kind in KINDS if "shots" in keys[kind]} == {"real_features", "k_of_n", "influence"}
    assert {kind for kind in KINDS if "captions" in keys[kind]} == {"argmax", "threshold"}


@pytest.mark.parametrize(
    ("recipe", "knobs", "words"),
    [
        (RECIPE, {"filter_tries": 3}, r"recipes\.stable_diffusion\.filter_tries: belongs to a filter"),
        (RECIPE, {"filter": "best"}, r"recipes\.stable_diffusion\.filter"),
        (RECIPE, {"filter": "argmax", "filter_tries": 1}, r"filter_tries"),
        ("retrieved", {"filter": "argmax"}, r"retrieval draws no candidates"),
    ],
)
def test_a_filter_without_a_part_is_refused(
    raw: dict[str, Any], recipe: str, knobs: dict[str, Any], words: str
) -> None:
    raw["recipes"][recipe] |= knobs
    raw["active"] = [RECIPE, *([recipe] if recipe != RECIPE else [])]
    with pytest.raises(InputError, match=words):
        toy.parse(raw)


def test_what_a_probe_on_the_first_round_is_least_sure_of_is_drawn(
    prepared: tuple[Params, Workspace], small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, workspace = prepared
    monkeypatch.setattr(generate, "_TELLING", 1000)  # the random generator draws nothing that CLIP could name
    knobs = {"filter": "entropy", "filter_tries": 3, "first_round": 2}
    _, images = made(small, workspace, **knobs)
    first = [image for image in images if image.index < 2]
    assert all(image.tries is None and image.gave_up is None for image in first)
    assert all(image.tries == 3 for image in images if image.index >= 2)
    record = json.loads(workspace.result("generate", RECIPE).read_text())
    # The images of the first round are no candidates of the filter.
    assert record["drawn"] == 10 * (2 + 3 * 3) and sum(record["filter"]["candidates"].values()) == 10 * 3 * 3
    card = (workspace.synthetic(RECIPE) / "README.md").read_text()
    assert "Filter: of at most 3 candidates an image after 2 images of each class without it, it takes" in card
    # The first round is that of the row without the filter.
    _, plain = made(small, workspace, filter="none", filter_tries=None, first_round=None)
    known = {(image.label, image.index): image.sha256 for image in plain}
    assert all(known[image.label, image.index] == image.sha256 for image in first)
    assert any(known[image.label, image.index] != image.sha256 for image in images)
    # More images and other blocks change none of either round.
    small["models"]["bundled"]["generate"] |= {"per_class": 7, "batch": 30}
    _, more = made(small, workspace, **knobs)
    known = {(image.label, image.index): image.sha256 for image in more}
    assert all(known[image.label, image.index] == image.sha256 for image in images)


def test_the_least_sure_of_those_that_are_read_rightly_is_chosen(
    prepared: tuple[Params, Workspace], small: dict[str, Any]
) -> None:
    work, images = made(small, prepared[1], filter="entropy", filter_tries=2, first_round=2)
    blocks = [block for block in plan(settled(work), []) if block.first]
    chooser = Filter(work, blocks)
    turns, accepted = chooser.choose(
        [
            rated([True, True, False], [0.1, 0.9, 0.3], [[1, 0]] * 3),
            rated([True, False, False], [0.8, 1.5, 0.4], [[1, 0]] * 3),
        ]
    )
    assert turns.tolist() == [1, 0, 1] and accepted.tolist() == [True, True, False]
    # A probe is surest of what it has learned: halves of two digits are told from neither.
    names = [image.file_name for image in images if image.index < 2]
    pixels = np.stack([read_rgb(prepared[1].synthetic(RECIPE) / name) for name in names])
    labels = np.array([image.label for image in images if image.index < 2])
    halves = np.concatenate([pixels[:, :8], np.roll(pixels, 2, 0)[:, 8:]], 1)
    assert chooser.rate(halves, labels).score.mean() > chooser.rate(pixels, labels).score.mean()


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"filter": "argmax", "first_round": 3}, r"first_round: belongs to filter: entropy; remove it"),
        ({"filter": "entropy", "first_round": 5}, r"first_round: the first 5 images of a class teach the filter"),
    ],
)
def test_a_first_round_without_a_second_is_refused(small: dict[str, Any], knobs: dict[str, Any], sentence: str) -> None:
    small["recipes"][RECIPE] |= knobs
    with pytest.raises(InputError, match=sentence):
        toy.parse(small)


def test_rounds_need_a_number_of_images(small: dict[str, Any]) -> None:
    small["recipes"][RECIPE] |= {"filter": "entropy", "first_round": 2}
    small["generate"]["budget_s"] = 60
    with pytest.raises(InputError, match=r"generate\.budget_s: recipes\.stable_diffusion\.filter: entropy needs a"):
        toy.parse(small)
    small["active"] = ["datadream_dset"]
    params = toy.parse(small)
    # A verb may name the row nevertheless.
    with pytest.raises(
        InputError, match=r"set generate\.budget_s to null, or another recipes\.stable_diffusion\.filter"
    ):
        check_row(params, RECIPE)

"""As many images of each class as fit into so many seconds: balanced, resumable, and the same by their number."""

import copy
import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import toy
from dreamset import adapt, generate
from dreamset.command import costs, counts, times
from dreamset.command.costs import Planned
from dreamset.command.plan import describe
from dreamset.command.times import Timed
from dreamset.core.errors import InputError
from dreamset.core.workspace import Workspace
from dreamset.data.synthetic import read_metadata
from dreamset.drawing import draw
from dreamset.drawing.blocks import Block
from dreamset.drawing.candidates import Rated
from dreamset.drawing.filters import Filter
from dreamset.params import Params

RECIPE = "stable_diffusion"


class Killed(BaseException):
    """What ends a test's run in its middle."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Make each image take a second of drawing, or what ``each`` says of a block; ``blocks`` has those drawn.

    Where ``dies`` is a number, the run ends before the block of that number.
    """
    state: dict[str, Any] = {"each": lambda block: 1.0, "blocks": [], "dies": None}
    own = draw.Drawer.draw

    def timed(self: draw.Drawer, block: Block) -> draw.Drawn:
        if len(state["blocks"]) == state["dies"]:
            raise Killed
        state["blocks"].append(block)
        return dataclasses.replace(own(self, block), seconds=len(block) * state["each"](block))

    monkeypatch.setattr(draw.Drawer, "draw", timed)
    return state


def asked(small: dict[str, Any], budget: float | None, recipe: str = RECIPE, **row: Any) -> Params:
    raw = copy.deepcopy(small)
    raw["generate"] |= {"budget_s": budget}
    raw["active"] = [recipe]
    raw["recipes"][recipe] |= row
    return toy.parse(raw)


def files(workspace: Workspace, recipe: str = RECIPE) -> dict[str, bytes]:
    folder = workspace.synthetic(recipe)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def balance(workspace: Workspace, recipe: str = RECIPE) -> set[int]:
    """The numbers of images that classes have."""
    return set(Counter(row.label for row in read_metadata(workspace.synthetic(recipe))).values())


# The small run has ten classes and blocks of twenty images: two of each class, one of an adapter of each class.
@pytest.mark.parametrize(("budget", "each"), [(10.5, 1), (23, 1), (31.6, 2), (80, 6), (100, 8)])
def test_so_many_images_as_fit(
    prepared: tuple[Params, Workspace], small: dict[str, Any], clock: dict[str, Any], budget: float, each: int
) -> None:
    _, workspace = prepared
    params = asked(small, budget)
    adapt.run(params, workspace, RECIPE)
    summary = generate.run(params, workspace, RECIPE)
    assert balance(workspace) == {each} == {summary["per_class"]}
    assert summary["drawn_now"] == sum(map(len, clock["blocks"])) <= budget
    record = json.loads(workspace.result("generate", RECIPE).read_text())
    assert record["budget"]["budget_s"] == budget and record["budget"]["per_class"] == each
    assert record["budget"]["seconds"] == pytest.approx(summary["drawn_now"], abs=0.5)
    assert summary["sentences"][0].startswith(f"{each} images per class fit into {budget:g} seconds")
    # The same number without a budget finds all that was drawn, and is the same set.
    by_budget = files(workspace)
    small["generate"]["per_class"] = each
    assert generate.run(asked(small, None), workspace, RECIPE)["drawn_now"] == 0
    assert files(workspace) == by_budget
    fresh = Workspace.at(workspace.root / "fresh")
    toy.prepare(params, fresh)
    adapt.run(params, fresh, RECIPE)
    generate.run(asked(small, None), fresh, RECIPE)
    assert files(fresh) == by_budget


def test_classes_with_adapters_of_their_own_stay_equal(
    prepared: tuple[Params, Workspace], small: dict[str, Any], clock: dict[str, Any]
) -> None:
    _, workspace = prepared
    small["models"]["bundled"]["generate"]["batch"] = 3
    small["generate"]["per_class"] = None
    params = asked(small, 85, "datadream_cls")
    adapt.run(params, workspace, "datadream_cls")
    summary = generate.run(params, workspace, "datadream_cls")
    assert balance(workspace, "datadream_cls") == {summary["per_class"]} == {7}
    # Round by round: no class is further than one block before another.
    ahead: Counter[int] = Counter()
    for block in clock["blocks"][10:]:
        ahead[block.labels[0]] += 1
        assert max(ahead.values()) - min(ahead[label] for label in range(10)) <= 1


def test_where_images_turn_out_slower_it_stops_before_the_end(
    prepared: tuple[Params, Workspace], small: dict[str, Any], clock: dict[str, Any]
) -> None:
    _, workspace = prepared
    small["models"]["bundled"]["generate"]["batch"] = 2
    # Without adapters, blocks hold two classes each. From the third image of a class on, each takes four times as long.
    clock["each"] = lambda block: 4.0 if block.start >= 2 else 1.0
    small["generate"]["per_class"] = None
    params = asked(small, 100)
    adapt.run(params, workspace, RECIPE)
    summary = generate.run(params, workspace, RECIPE)
    assert balance(workspace) == {summary["per_class"]} == {4}
    assert summary["budget"]["seconds"] <= 104
    spent = sum(len(block) * clock["each"](block) for block in clock["blocks"])
    assert spent == pytest.approx(summary["budget"]["seconds"], abs=0.5)


@pytest.mark.parametrize("dies", [1, 2, 3])
def test_a_killed_run_draws_only_into_what_is_left(
    prepared: tuple[Params, Workspace], small: dict[str, Any], clock: dict[str, Any], dies: int, tmp_path: Path
) -> None:
    _, workspace = prepared
    small["generate"]["per_class"] = None
    params = asked(small, 75)
    adapt.run(params, workspace, RECIPE)
    clock["dies"] = dies
    with pytest.raises(Killed):
        generate.run(params, workspace, RECIPE)
    clock["dies"] = None
    before = sum(map(len, clock["blocks"]))
    summary = generate.run(params, workspace, RECIPE)
    assert summary["drawn_now"] + before == sum(map(len, clock["blocks"])) <= 75
    unbroken = Workspace.at(tmp_path / "unbroken")
    toy.prepare(params, unbroken)
    adapt.run(params, unbroken, RECIPE)
    expected = generate.run(params, unbroken, RECIPE)
    assert (summary["per_class"], summary["budget"]["seconds"]) == (
        expected["per_class"],
        pytest.approx(expected["budget"]["seconds"], abs=0.5),
    )
    assert files(workspace) == files(unbroken)
    # And once more: nothing is left to draw.
    assert generate.run(params, workspace, RECIPE)["drawn_now"] == 0


def test_a_number_of_images_is_the_most(
    prepared: tuple[Params, Workspace], small: dict[str, Any], clock: dict[str, Any]
) -> None:
    _, workspace = prepared
    small["generate"]["per_class"] = 3
    params = asked(small, 1000, post_augment={"copies": 1})
    adapt.run(params, workspace, RECIPE)
    summary = generate.run(params, workspace, RECIPE)
    assert balance(workspace) == {3} == {summary["per_class"]}
    assert summary["images"] == 30 and summary["copies"]["images"] == 10


def test_a_row_s_own_number_bounds_a_budget_as_the_number_of_all_does(
    prepared: tuple[Params, Workspace], small: dict[str, Any], clock: dict[str, Any]
) -> None:
    _, workspace = prepared
    found = []
    for name, number, row in (("all", 8, {}), ("own", None, {"per_class": 8})):
        small["generate"]["per_class"] = number
        place, params = Workspace.at(workspace.root / name), asked(small, 31.6, **row)
        toy.prepare(params, place)
        adapt.run(params, place, RECIPE)
        summary = generate.run(params, place, RECIPE)
        found.append((summary["per_class"], summary["budget"]["per_class"], balance(place)))
    assert found[0] == found[1] and 0 < found[0][1] <= 8


def test_copies_are_drawn_for_and_take_time_too(
    prepared: tuple[Params, Workspace], small: dict[str, Any], clock: dict[str, Any]
) -> None:
    _, workspace = prepared
    small["generate"]["per_class"] = None
    params = asked(small, 45, post_augment={"copies": 2})
    adapt.run(params, workspace, RECIPE)
    summary = generate.run(params, workspace, RECIPE)
    drawn = summary["per_class"] // 3
    assert balance(workspace) == {summary["per_class"]} and summary["per_class"] == 3 * drawn == 9
    assert summary["budget"]["seconds"] > sum(map(len, clock["blocks"]))


def test_a_budget_for_less_than_an_image_of_each_class_is_one_sentence(
    prepared: tuple[Params, Workspace], small: dict[str, Any], clock: dict[str, Any]
) -> None:
    _, workspace = prepared
    small["models"]["bundled"]["generate"]["batch"] = 4
    small["generate"]["per_class"] = None
    params = asked(small, 7)
    adapt.run(params, workspace, RECIPE)
    words = r"budget_s: 7 seconds are too few for an image of each class, which take about 10; raise it\. What was"
    for _ in range(2):
        with pytest.raises(InputError, match=words):
            generate.run(params, workspace, RECIPE)
        # Eight of ten classes, and no more when it is tried again.
        assert sum(map(len, clock["blocks"])) == 8
    assert len(list(workspace.shards.glob("*/done.json"))) == 2
    assert not workspace.synthetic(RECIPE).exists()
    # Nothing is lost: with more time it goes on there.
    assert generate.run(asked(small, 10.5), workspace, RECIPE)["drawn_now"] == 2
    assert balance(workspace) == {1}


def test_strengths_have_equal_shares_whenever_it_ends(
    prepared: tuple[Params, Workspace], small: dict[str, Any], clock: dict[str, Any]
) -> None:
    _, workspace = prepared
    small["generate"]["per_class"] = None
    params = asked(small, 65, "datadream_light")
    adapt.run(params, workspace, "datadream_light")
    summary = generate.run(params, workspace, "datadream_light")
    rows = read_metadata(workspace.synthetic("datadream_light"))
    assert summary["per_class"] == 6
    assert Counter((row.label, row.adapter_scale) for row in rows) == {
        (label, scale): 3 for label in range(10) for scale in (0.25, 0.5)
    }


def test_blocks_that_are_always_whole_stay_whole(
    prepared: tuple[Params, Workspace],
    small: dict[str, Any],
    clock: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def rate(self: Filter, images: np.ndarray, labels: np.ndarray) -> Rated:
        return Rated(
            np.ones(len(labels), bool), np.ones(len(labels), np.float32), np.ones((len(labels), 2), np.float32)
        )

    monkeypatch.setattr(Filter, "rate", rate)
    _, workspace = prepared
    small["models"]["bundled"]["clip"] = str(toy.ROOT / "models/base/clip")
    small["generate"]["per_class"] = None
    clock["each"] = lambda block: 0.1
    params = asked(small, 20, filter="k_of_n", filter_tries=2)
    adapt.run(params, workspace, RECIPE)
    summary = generate.run(params, workspace, RECIPE)
    # Groups of eight unlike images: 8 s each for ten classes.
    assert summary["per_class"] == 16
    assert {len(block.indices) for block in clock["blocks"]} == {8}


def test_what_is_said_before_counts_the_seconds(prepared: tuple[Params, Workspace], small: dict[str, Any]) -> None:
    _, workspace = prepared
    small["generate"]["per_class"] = None
    params = asked(small, 600, post_augment={"copies": 4})
    timed = {"draw": Timed(0.01, fixed=0.06), "start": Timed(3.0)}
    told = yaml.safe_load(describe(params, workspace, "generate", RECIPE, steps=timed))
    assert told["makes"] == (
        f"as many images of each class as fit into 600 s, with 4 copies of each drawn one, in data/synthetic/{RECIPE}"
    )
    assert told["takes"] == "10 min, from generate.budget_s"
    # Two steps of 0.01 s and 0.06 s an image: 7,500 images, and four copies of each.
    assert times.images(params, workspace, RECIPE, timed) == 37_500
    todo = [Planned("generate@a", "generate", RECIPE), Planned("generate@b", "generate", "retrieved")]
    assert costs.disk(params, workspace, timed, todo[:1]) == pytest.approx(3 * 37_500 * 3012)
    said = costs._work(params, workspace, "generate", todo)
    assert said == "as many images as fit into 600 s by 1 recipe, and 40 images by 1"
    most = asked(small | {"generate": small["generate"] | {"per_class": 20}}, 600)
    assert times.estimate(most, workspace, "generate", RECIPE, timed).seconds == pytest.approx(3 + 200 * 0.08)
    assert counts.generating(most, generate.Work.read(most, workspace, RECIPE).split, RECIPE)["images"] == 200


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (("generate", "budget_s"), 0, r"generate\.budget_s: expected a number above 0"),
        (("generate", "per_class"), "balance", r"generate\.budget_s: draws equally many images of each class"),
        (("train", "scales"), [1, 4], r"train\.scales: 1, 4 times the shots may be more images than fit into"),
    ],
)
def test_what_a_budget_cannot_promise_is_refused(
    raw: dict[str, Any], key: tuple[str, str], value: object, words: str
) -> None:
    raw["generate"]["budget_s"] = 60
    raw[key[0]][key[1]] = value
    with pytest.raises(InputError, match=words):
        toy.parse(raw)


def test_classifiers_learn_from_all_that_fits(raw: dict[str, Any]) -> None:
    raw["generate"]["budget_s"] = 60
    params = toy.parse(raw)
    assert params.taken_per_class([4, 4]) is None
    # Steps that follow the images go by the model's row, so that all arms take equally many.
    assert params.training_per_class([4, 4]) == (50, 50)
    assert "budget_s" in params.setting(["stable_diffusion"])["generate"]
    raw["generate"]["budget_s"] = None
    plain = toy.parse(raw)
    assert plain.taken_per_class([4, 4]) == (50, 50)
    # Tables that were made before there were budgets go on.
    assert "budget_s" not in plain.setting(["stable_diffusion"])["generate"]

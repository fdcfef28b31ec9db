"""A person's decisions: kept for one picture each, and replaced by further images."""

import json
from pathlib import Path

import pytest

from dreamset import adapt, generate
from dreamset.core.errors import InputError
from dreamset.core.seeds import image_seed
from dreamset.core.workspace import Workspace
from dreamset.data import decisions
from dreamset.data.synthetic import SyntheticImage, read_metadata
from dreamset.params import Params

RECIPE = "stable_diffusion"


def read(workspace: Workspace) -> dict[decisions.Picture, decisions.Decision]:
    return decisions.read(workspace.review(RECIPE))


def reject(workspace: Workspace, *places: tuple[int, int]) -> None:
    """Reject images by label and index, beside what is decided already."""
    images = {(image.label, image.index): image for image in read_metadata(workspace.synthetic(RECIPE))}
    chosen = {decisions.picture(images[place]): "rejected" for place in places}
    decisions.write(workspace.review(RECIPE), RECIPE, read(workspace) | chosen)  # type: ignore[arg-type]


def places(images: list[SyntheticImage], label: int) -> list[int]:
    return [image.index for image in images if image.label == label]


def test_decisions_come_back_and_a_line_holds_one(workspace: Workspace) -> None:
    path = workspace.review(RECIPE)
    assert decisions.read(path) == {}
    made: dict[decisions.Picture, decisions.Decision] = {
        ("b", 10, "1" * 64): "kept",
        ("b", 9, "2" * 64): "rejected",
        ("ä\u2028", 0, "3" * 64): "kept",
    }
    decisions.write(path, RECIPE, made)
    assert decisions.read(path) == made
    assert path.read_text(encoding="utf-8").count("\n") == 5 + len(made)
    decisions.write(path, RECIPE, {})
    assert decisions.read(path) == {}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"decisions": [3]}',
        '{"decisions": [{"class_name": "a", "index": 0, "sha256": "short", "decision": "kept"}]}',
        json.dumps({"decisions": [{"class_name": "a", "index": True, "sha256": "1" * 64, "decision": "kept"}]}),
        json.dumps({"decisions": [{"class_name": "a", "index": 1, "sha256": "1" * 64, "decision": "maybe"}]}),
    ],
)
def test_a_broken_file_is_named(workspace: Workspace, text: str) -> None:
    path = workspace.review(RECIPE)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(InputError, match=r"stable_diffusion\.json: is not a file of `dreamset review`"):
        decisions.read(path)


@pytest.mark.parametrize(
    ("rejected", "wanted", "reached"),
    [([], 4, 4), ([0], 4, 5), ([3, 4, 5], 4, 7), ([5], 4, 4), ([4], 4, 4), ([0, 5, 4], 4, 7), ([0, 5], 4, 5)],
)
def test_reach_counts_past_what_is_rejected(rejected: list[int], wanted: int, reached: int) -> None:
    assert decisions.reach(rejected, wanted) == reached
    assert len(set(range(reached)) - set(rejected)) == wanted


def test_rejects_are_replaced_by_further_images(prepared: tuple[Params, Workspace]) -> None:
    params, workspace = prepared
    adapt.run(params, workspace, RECIPE)
    first = generate.run(params, workspace, RECIPE)
    before = {image.file_name: image for image in read_metadata(workspace.synthetic(RECIPE))}
    assert (first["looked_at"], first["rejected"]) == (0, 0)
    assert "nobody has checked them." in (workspace.synthetic(RECIPE) / "README.md").read_text()

    # Blocks hold two images of each of ten classes: 4 of class 3 is in a block that is not drawn yet.
    reject(workspace, (3, 1))
    second = generate.run(params, workspace, RECIPE)
    images = read_metadata(workspace.synthetic(RECIPE))
    assert second["drawn_now"] == 20
    assert (second["images"], second["looked_at"], second["rejected"]) == (40, 1, 1)
    assert places(images, 3) == [0, 2, 3, 4]
    assert all(places(images, label) == [0, 1, 2, 3] for label in range(10) if label != 3)
    assert not (workspace.synthetic(RECIPE) / "003_three/00001.png").exists()
    new = next(image for image in images if image.file_name not in before)
    assert new.seed == image_seed(params.seed, "three", 4)
    assert all(image == before[image.file_name] for image in images if image is not new)
    card = (workspace.synthetic(RECIPE) / "README.md").read_text()
    assert "1 of 1 looked at rejected by a person and replaced; nobody has looked at 40 of the 40." in card

    # A replacement can be rejected too; its own stands in the block that is there already, and so nothing is drawn.
    reject(workspace, (3, 4), (7, 0))
    third = generate.run(params, workspace, RECIPE)
    images = read_metadata(workspace.synthetic(RECIPE))
    assert (third["drawn_now"], third["rejected"]) == (0, 3)
    assert (places(images, 3), places(images, 7)) == ([0, 2, 3, 5], [1, 2, 3, 4])
    assert generate.run(params, workspace, RECIPE)["drawn_now"] == 0


def test_the_same_decisions_give_the_same_dataset_from_nothing(
    prepared: tuple[Params, Workspace], tmp_path: Path
) -> None:
    params, workspace = prepared
    adapt.run(params, workspace, RECIPE)
    generate.run(params, workspace, RECIPE)
    reject(workspace, (0, 0))
    generate.run(params, workspace, RECIPE)
    reject(workspace, (0, 4))
    generate.run(params, workspace, RECIPE)
    whole = {path.name: path.read_bytes() for path in workspace.synthetic(RECIPE).glob("000_zero/*")}
    assert sorted(whole) == ["00001.png", "00002.png", "00003.png", "00005.png"]
    workspace.shards.rename(tmp_path / "elsewhere")
    assert generate.run(params, workspace, RECIPE)["drawn_now"] == 60
    assert {path.name: path.read_bytes() for path in workspace.synthetic(RECIPE).glob("000_zero/*")} == whole


def test_a_decision_hits_no_other_picture(
    prepared: tuple[Params, Workspace], capsys: pytest.CaptureFixture[str]
) -> None:
    params, workspace = prepared
    adapt.run(params, workspace, RECIPE)
    generate.run(params, workspace, RECIPE)
    stale: dict[decisions.Picture, decisions.Decision] = {
        ("three", 1, "0" * 64): "rejected",  # of an older dataset
        ("gone", 0, "0" * 64): "rejected",  # of an older class
        ("three", 99, "0" * 64): "rejected",  # of a larger dataset: not another picture's place
    }
    decisions.write(workspace.review(RECIPE), RECIPE, stale)
    capsys.readouterr()
    summary = generate.run(params, workspace, RECIPE)
    assert (summary["images"], summary["looked_at"], summary["rejected"]) == (40, 0, 0)
    assert places(read_metadata(workspace.synthetic(RECIPE)), 3) == [0, 1, 2, 3]
    told = capsys.readouterr().err
    assert "stable_diffusion.json: 2 of its decisions are about pictures of another dataset" in told
    # They stay in the file: the parameters of then bring their pictures back.
    assert read(workspace) == stale

"""Copies of drawn images: changed only as labels allow, a function of their place, counted, and never taken for new."""

import copy
import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import toy
from dreamset import adapt, generate
from dreamset.command import lines
from dreamset.command.plan import describe
from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write, sha256, write_json
from dreamset.core.images import png, read_rgb
from dreamset.core.workspace import Workspace
from dreamset.data import arrays, decisions
from dreamset.data.splits import read_split, write_split
from dreamset.data.synthetic import SyntheticImage, read_metadata, write_metadata
from dreamset.drawing.copies import changed
from dreamset.params import Params
from dreamset.params.knobs import PostAugment
from dreamset.params.model import Sampler
from dreamset.review.server import Review
from dreamset.study.rungs import params_at
from dreamset.use import export

RECIPE = "stable_diffusion"


def made(
    small: dict[str, Any], workspace: Workspace, recipe: str = RECIPE, **asked: Any
) -> tuple[Params, list[SyntheticImage]]:
    """A dataset of the recipe with copies."""
    raw = copy.deepcopy(small)
    if asked:
        raw["recipes"][recipe]["post_augment"] = asked
    params = toy.parse(raw)
    adapt.run(params, workspace, recipe)
    generate.run(params, workspace, recipe)
    return params, read_metadata(workspace.synthetic(recipe))


def marked() -> Image.Image:
    """A grey picture with one bright corner, above on the left."""
    pixels = np.full((32, 32, 3), 90, np.uint8)
    pixels[2:12, 2:12] = 200
    return Image.fromarray(pixels)


def seen(keep: tuple[str, ...], tries: int = 300) -> tuple[Counter[str], set[int], int]:
    """Where the bright corner is in many copies, all values that stand in these, and how many equal the picture."""
    corners: Counter[str] = Counter()
    values: set[int] = set()
    equal = 0
    for seed in range(tries):
        copied = changed(marked(), keep, np.random.default_rng(seed))
        pixels = np.asarray(copied)[..., 0]
        assert copied.size == (32, 32)
        y, x = np.argwhere(pixels > (int(pixels.min()) + int(pixels.max())) / 2).mean(0) > 15.5
        corners[f"{'below' if y else 'above'} {'right' if x else 'left'}"] += 1
        values |= {int(pixels.min()), int(pixels.max())}
        equal += np.array_equal(np.asarray(copied), np.asarray(marked()))
    return corners, values, equal


@pytest.mark.parametrize(
    ("keep", "where"),
    [
        ((), {"above left"}),
        (("hflip",), {"above left", "above right"}),
        (("vflip",), {"above left", "below left"}),
        (("hflip", "vflip"), {"above left", "above right", "below left", "below right"}),
        (("colour",), {"above left"}),
    ],
)
def test_a_change_that_does_not_keep_the_label_is_never_made(keep: tuple[str, ...], where: set[str]) -> None:
    corners, values, equal = seen(keep)
    assert corners.keys() == where
    if "hflip" in keep and len(keep) == 1:
        # With probability 0.8, as in the paper.
        assert 0.7 < corners["above right"] / corners.total() < 0.9
    # Without colour, no value leaves the range of the picture's own.
    assert (min(values) < 90 and max(values) > 200) if "colour" in keep else (values == {90, 200})
    assert equal < 10


def test_turns_are_wide_only_where_they_keep_the_label() -> None:
    """A picture of one white half: the share of the other half that turns white grows with the angle."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, :16] = 255
    most = {}
    for keep in ((), ("rotation",)):
        halves = [
            np.asarray(changed(Image.fromarray(pixels), keep, np.random.default_rng(seed)))[:, 19:, 0].mean() / 255
            for seed in range(200)
        ]
        most[keep] = max(halves)
    assert most[()] < 0.08 < 0.25 < most["rotation",]


def test_copies_are_stored_beside_what_was_drawn(prepared: tuple[Params, Workspace], small: dict[str, Any]) -> None:
    _, workspace = prepared
    small["generate"]["per_class"] = 5
    params, rows = made(small, workspace, copies=2)
    # Five of a class: an image with two copies, and one with one.
    assert [(row.index, row.copy_of) for row in rows[:5]] == [
        (0, None),
        (0, "000_zero/00000.png"),
        (0, "000_zero/00000.png"),
        (1, None),
        (1, "000_zero/00001.png"),
    ]
    assert Counter(row.label for row in rows) == dict.fromkeys(range(10), 5)
    assert [row.file_name for row in rows] == sorted(row.file_name for row in rows)
    folder = workspace.synthetic(RECIPE)
    by_name = {row.file_name: row for row in rows}
    for row in rows:
        with Image.open(folder / row.file_name) as image:
            assert image.text["DigitalSourceType"] == "trainedAlgorithmicMedia"  # type: ignore[attr-defined]
            assert image.text.get("CopyOf") == row.copy_of  # type: ignore[attr-defined]
        if row.copy_of:
            origin = by_name[row.copy_of]
            assert (origin.label, origin.prompt, origin.seed) == (row.label, row.prompt, row.seed)
            assert row.sha256 != origin.sha256
    summary = json.loads(workspace.result("generate", RECIPE).read_text())
    assert (summary["images"], summary["drawn"], summary["per_class"]) == (50, 20, 5)
    assert summary["copies"]["images"] == 30
    line = lines.line("generate", RECIPE, summary | {"drawn_now": 20, "elapsed": 1.0})
    assert "50 images (30 of them copies), 5 per class" in line
    card = (folder / "README.md").read_text()
    assert "Copies: 20 images were drawn, and 30 are copies of these, up to 2 of each (shifted, tilted" in card
    assert "mirrored" not in card and "name: copy_of" in card
    told = yaml.safe_load(describe(params, workspace, "generate", RECIPE))
    assert told["makes"] == f"50 images, 20 of them drawn and the others copies, in data/synthetic/{RECIPE}"
    assert (told["counts"]["images"], told["counts"]["images drawn"]) == (50, 20)


def test_the_drawn_images_are_those_of_the_row_without_copies(
    prepared: tuple[Params, Workspace], small: dict[str, Any]
) -> None:
    _, workspace = prepared
    small["generate"]["per_class"] = 2
    _, plain = made(small, workspace)
    small["generate"]["per_class"] = 6
    raw = copy.deepcopy(small)
    raw["recipes"][RECIPE]["post_augment"] = {"copies": 2}
    summary = generate.run(toy.parse(raw), workspace, RECIPE)
    assert summary["drawn_now"] == 0
    drawn = [row for row in read_metadata(workspace.synthetic(RECIPE)) if row.copy_of is None]
    assert drawn == plain


def test_a_copy_depends_on_seed_class_index_and_copy_alone(
    prepared: tuple[Params, Workspace], small: dict[str, Any]
) -> None:
    _, workspace = prepared
    small["generate"]["per_class"] = 4
    _, few = made(small, workspace, copies=1)
    small["generate"]["per_class"] = 9
    small["models"]["bundled"]["generate"]["batch"] = 30  # other blocks
    _, more = made(small, workspace, copies=2)
    known = {row.file_name: row for row in more}
    copied = [row for row in few if row.copy_of]
    assert len(copied) == 20 and all(known[row.file_name].sha256 == row.sha256 for row in copied)
    assert len({row.sha256 for row in more}) == len(more)


@pytest.mark.parametrize(("at", "native", "size"), [("drawn", 8, 16), ("target", 8, 8), ("target", None, 16)])
def test_copies_are_made_before_or_after_lowering(
    prepared: tuple[Params, Workspace], small: dict[str, Any], at: str, native: int | None, size: int
) -> None:
    _, workspace = prepared
    split = dataclasses.replace(read_split(workspace.splits), native=native)
    write_split(workspace.splits, split)
    small["generate"]["per_class"] = 2
    _, rows = made(small, workspace, copies=1, at=at)
    folder = workspace.synthetic(RECIPE)
    assert {read_rgb(folder / row.file_name).size for row in rows if row.copy_of} == {(size, size)}
    assert {read_rgb(folder / row.file_name).size for row in rows if not row.copy_of} == {(16, 16)}
    # Whoever learns from them sees all at one size.
    assert arrays.synthetic(folder, split, 12).images.shape == (20, 12, 12, 3)


def test_copies_are_no_new_images_for_what_is_measured(
    prepared: tuple[Params, Workspace], small: dict[str, Any]
) -> None:
    _, workspace = prepared
    small["generate"]["per_class"] = 6
    _, rows = made(small, workspace, copies=2)
    split, folder = read_split(workspace.splits), workspace.synthetic(RECIPE)
    learned, judged = (arrays.listed(folder, split, [4] * 10, copies=copies) for copies in (True, False))
    # Of the first four of a class: two that were drawn, one of them with both copies.
    assert Counter(label for _, label, _ in learned) == dict.fromkeys(range(10), 4)
    assert Counter(label for _, label, _ in judged) == dict.fromkeys(range(10), 2)
    drawn = {row.file_name for row in rows if row.copy_of is None}
    assert {name for name, _, _ in judged} == drawn
    assert {image.file_name for image in Review(workspace, RECIPE).images} == drawn


def test_a_rejected_image_takes_its_copies_with_it(prepared: tuple[Params, Workspace], small: dict[str, Any]) -> None:
    _, workspace = prepared
    small["generate"]["per_class"] = 4
    _, before = made(small, workspace, copies=1)
    gone = next(row for row in before if row.label == 3 and row.index == 0 and row.copy_of is None)
    decisions.write(workspace.review(RECIPE), RECIPE, {decisions.picture(gone): "rejected"})
    _, after = made(small, workspace, copies=1)
    assert Counter(row.label for row in after) == dict.fromkeys(range(10), 4)
    assert [(row.index, bool(row.copy_of)) for row in after if row.label == 3] == [
        (1, False),
        (1, True),
        (2, False),
        (2, True),
    ]
    card = (workspace.synthetic(RECIPE) / "README.md").read_text()
    assert "1 of 1 looked at rejected by a person and replaced; nobody has looked at 20 of the 20" in card


def test_retrieved_images_have_copies_too(prepared: tuple[Params, Workspace], small: dict[str, Any]) -> None:
    _, workspace = prepared
    for name in ("models/base/clip", "models/base/params.yaml"):
        (workspace.root / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace.root / name).symlink_to(toy.ROOT / name)
    small["generate"]["per_class"] = 2
    small["models"]["bundled"]["generate"]["batch"] = 10
    small["active"] = ["retrieved"]
    _, rows = made(small, workspace, "retrieved", copies=1)
    assert Counter((row.origin, bool(row.copy_of)) for row in rows) == {
        ("retrieval", False): 10,
        ("retrieval", True): 10,
    }
    assert "10 are copies of these" in (workspace.synthetic("retrieved") / "README.md").read_text()


def test_what_is_published_has_no_copy_of_a_copy_of_a_shot(workspace: Workspace, tmp_path: Path) -> None:
    """Turned by 60 degrees, a near-duplicate of a shot would not be recognised."""
    split = toy.write_splits(workspace)
    toy.write_judge(workspace.root / "judge")
    (workspace.root / "sd").mkdir()
    folder, rng, rows = workspace.synthetic(RECIPE), np.random.default_rng(7), []
    for row in toy.write_synthetic(workspace, RECIPE, per_class=3):
        shot = next(sample for sample in split.train if sample.label == row.label)
        new = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((4, 4, 1))).astype(np.uint8)
        drawn = np.asarray(read_rgb(workspace.cell / shot.path)) if row.index == 1 else new
        turned = png(np.ascontiguousarray(np.rot90(drawn)))
        name = f"{row.file_name.removesuffix('.png')}_1.png"
        for file, data in ((row.file_name, png(drawn)), (name, turned)):
            atomic_write(folder / file, data)
        rows.append(dataclasses.replace(row, sha256=sha256(png(drawn))))
        rows.append(dataclasses.replace(row, file_name=name, sha256=sha256(turned), copy_of=row.file_name))
    write_metadata(folder, rows)
    write_json(workspace.result("evaluate"), {"sets": {RECIPE: {"near_duplicates": {"threshold": 0.0001}}}})
    write_json(workspace.result("generate", RECIPE), {"rejected": 0})
    asked = {f"recipes__{RECIPE}__post_augment": {"copies": 1}}
    params = toy.params(models__bundled__judge="judge", models__bundled__generator=str(workspace.root / "sd"), **asked)
    done = export.public(params, workspace, RECIPE, tmp_path / "public")
    assert done["images"] == 12 and done["removed"]["near-duplicates of shots"] == 6
    published = [json.loads(line) for line in (tmp_path / "public/metadata.jsonl").read_text().splitlines()]
    assert not [row["file_name"] for row in published if "00001" in row["file_name"]]
    assert [row["copy_of"] for row in published[:2]] == [None, "000_bar/00000.png"]
    assert "name: copy_of" in (tmp_path / "public/README.md").read_text()


def test_a_study_draws_so_many_fewer_images() -> None:
    params = toy.params(
        recipes__stable_diffusion__post_augment={"copies": 4},
        generate__budget_s=60,
        models__bundled__tune__per_class=[5, 20],
    )
    at = params_at(params, RECIPE, 20, 10)
    assert at.drawn_per_class(RECIPE, [4] * 10) == (4,) * 10
    assert at.synthetic_per_class([4] * 10) == (20,) * 10
    assert at.generate.budget_s is None


def test_a_row_with_copies_is_measured_against_the_same_without() -> None:
    params = toy.params(
        active=["stable_diffusion", "turbo_distill", "plain_turbo"],
        recipes__plain_turbo={
            "adapter": "none",
            "prompt": "label",
            "sampler": {"student": True, "steps": 1, "guidance": 1.0},
        },
    )
    row = params.recipes["turbo_distill"]
    assert row.post_augment == PostAugment(4, "target") and not row.is_baseline
    assert params.steps_back("turbo_distill") == ("plain_turbo",)
    # The paper's guidance 0 is the prompt alone. Its generator draws in one step; of the bundled one the student does.
    full = dataclasses.replace(params, model="sdxl_turbo").sampler("turbo_distill")
    assert (full.scheduler, full.steps, full.guidance) == ("euler_ancestral", 1, 1)
    assert params.sampler("turbo_distill") == Sampler("lcm", 1, 1.0, student=True)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"copies": 0}, r"recipes\.stable_diffusion\.post_augment\.copies: expected an integer of at least 1"),
        ({"copies": 4, "at": "stored"}, r"recipes\.stable_diffusion\.post_augment\.at: expected one of drawn, target"),
        ({"at": "drawn"}, r"recipes\.stable_diffusion\.post_augment\.copies: is missing"),
        ({"copies": 1, "flips": True}, r"recipes\.stable_diffusion\.post_augment\.flips: unknown key"),
    ],
)
def test_a_wrong_number_of_copies_is_one_sentence(raw: dict[str, Any], asked: dict[str, Any], words: str) -> None:
    raw["recipes"][RECIPE]["post_augment"] = asked
    with pytest.raises(InputError, match=words):
        toy.parse(raw)


def test_so_few_drawn_images_cannot_take_turns_at_two_strengths(raw: dict[str, Any]) -> None:
    raw["recipes"]["datadream_light"]["post_augment"] = {"copies": 4}
    raw["generate"]["per_class"] = 5
    with pytest.raises(InputError, match=r"adapter_scales: 2 scales need as many images; raise generate\.per_class"):
        toy.parse(raw)

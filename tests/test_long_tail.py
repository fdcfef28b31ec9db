"""Unequal classes from the shots to the classifier, images of one channel, and thousands of classes."""

import copy
import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import toy
from dreamset import adapt, evaluate, generate, prepare, report, sources, train
from dreamset.classifiers.augment import Augment
from dreamset.core.files import atomic_write, sha256
from dreamset.core.images import png
from dreamset.core.sheet import contact_sheet
from dreamset.core.strict import read_yaml
from dreamset.core.workspace import Workspace
from dreamset.data import adapters, arrays, splits
from dreamset.data.runs import REAL
from dreamset.data.splits import Split
from dreamset.data.synthetic import SyntheticImage, read_metadata, write_metadata
from dreamset.data.work import Work
from dreamset.drawing.blocks import plan
from dreamset.evaluate import output
from dreamset.generator import assembly
from dreamset.params import Params
from dreamset.report import gallery, pictures
from dreamset.report.page import _shots
from dreamset.sources import digits
from dreamset.sweep import crossval

TAIL = dict(zip(digits.CLASS_NAMES, (6, 5, 3, 3, 2, 2, 2, 2, 1, 1), strict=True))


def tail(small: dict[str, Any], per_class: int, **generates: Any) -> Params:
    mine = copy.deepcopy(small)
    mine["shots"] = TAIL
    mine["models"]["bundled"]["generate"]["per_class"] = per_class
    mine["generate"] |= {"per_class": "balance", **generates}
    return toy.parse(mine)


def counts(folder: Path) -> list[int]:
    labels = [image.label for image in read_metadata(folder)]
    return [labels.count(label) for label in range(10)]


# Unequal classes


def test_balance_fills_small_classes_up(small: dict[str, Any], workspace: Workspace) -> None:
    first, recipe = tail(small, 2), "stable_diffusion"
    prepare.run(first, workspace)
    adapt.run(first, workspace, recipe)
    summary = generate.run(first, workspace, recipe)
    made = counts(workspace.synthetic(recipe))
    assert made == [2, 3, 5, 5, 6, 6, 6, 6, 7, 7]
    assert {real + synthetic for real, synthetic in zip(TAIL.values(), made, strict=True)} == {8}
    assert (summary["images"], summary["per_class"]) == (53, "2 to 7")
    before = {image.file_name: image.sha256 for image in read_metadata(workspace.synthetic(recipe))}
    # Larger numbers add blocks: what is there stays, to the byte, and is not drawn again.
    drawn = generate.run(tail(small, 3), workspace, recipe)["drawn_now"]
    after = {image.file_name: image.sha256 for image in read_metadata(workspace.synthetic(recipe))}
    assert before.items() <= after.items()
    assert len(after) == 63
    assert drawn <= 20


def test_adapters_of_classes_draw_no_more_than_their_class_wants(small: dict[str, Any], workspace: Workspace) -> None:
    small["models"]["bundled"]["generate"]["batch"] = 2
    small["active"] = ["datadream_cls"]
    mine = tail(small, 2)
    prepare.run(mine, workspace)
    split = splits.read_split(workspace.splits)
    of_classes = [adapters.Adapter((label,), f"{label}", f"{label}", "s") for label in range(10)]
    blocks = plan(Work(mine, workspace, split, "datadream_cls"), of_classes)
    drawn = [sum(len(block.indices) for block in blocks if block.labels == (label,)) for label in range(10)]
    assert drawn == [2, 3, 5, 5, 6, 6, 6, 6, 7, 7]
    # A block is known by its place alone: a whole one of a class which wants less is the same shard.
    fewer = plan(Work(tail(small, 1), workspace, split, "datadream_cls"), of_classes)
    assert {block.key for block in fewer if len(block) == 2} < {block.key for block in blocks}


def test_classifiers_learn_from_unequal_classes(workspace: Workspace) -> None:
    settings = toy.params(train__classifiers=["resnet20"], active=["stable_diffusion"])
    toy.write_clip(workspace.root / "models/base/clip")
    toy.write_judge(workspace.root / "models/base/judge")
    split = toy.write_splits(workspace, shots=6)
    kept = tuple(s for s in split.train if int(Path(s.path).stem) < (6, 3, 1)[s.label])
    uneven = Split(**{**vars(split), "train": kept, "shots": {"bar": 6, "plank": 3, "spot": 1}})
    splits.write_split(workspace.splits, uneven)
    assert splits.read_split(workspace.splits) == uneven
    assert uneven.train_per_class == (6, 3, 1)
    toy.write_synthetic(workspace, "stable_diffusion", per_class=5)
    result = train.run(settings, workspace, "stable_diffusion")
    both = next(run for run in result["runs"] if run["train_on"] == "both")
    assert (both["real_images"], both["synthetic_images"], both["steps"]) == (10, 15, 12)
    assert all(np.isfinite(point["loss"]) for point in both["loss"])
    train.run(settings, workspace, REAL)
    evaluation = evaluate.run(settings, workspace, crossval.run)
    assert evaluation["train_per_class"] == {"bar": 6, "plank": 3, "spot": 1}
    assert {row["shots"] for row in output.rows(evaluation)} == {"1 to 6"}
    report.run(settings, workspace)
    document = (workspace.results / "report.html").read_text()
    assert "1 to 6 images per class" in document


def test_a_stream_of_unequal_classes_shows_each_image_once_before_any_again() -> None:
    from dreamset.classifiers.fit import Stream

    labels = np.repeat([0, 1, 2], (12, 3, 1))
    stream = Stream(16, torch.Generator().manual_seed(0))
    taken = torch.cat([stream.take(5) for _ in range(32)]).numpy()
    assert np.bincount(taken, minlength=16).tolist() == [10] * 16
    assert np.bincount(labels[taken]).tolist() == [120, 30, 10]


# One channel


@pytest.mark.parametrize("colour", [False, True])
def test_a_source_of_greys_says_so(raw: dict[str, Any], tmp_path: Path, colour: bool) -> None:
    rng = np.random.default_rng(0)
    for name, i in itertools.product(("cat", "dog"), range(8)):
        grey = rng.integers(0, 255, (12, 12), dtype=np.uint8)
        path = tmp_path / "raw" / name / f"{i}.png"
        # Greys as one channel or as three equal ones mean the same.
        atomic_write(path, png(grey if i % 2 else np.repeat(grey[..., None], 3, -1)))
    if colour:
        atomic_write(tmp_path / "raw/dog/8.png", png(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)))
    raw["prepare"] |= {"source": f"imagefolder:{tmp_path / 'raw'}"}
    raw["shots"] = 2
    workspace = Workspace.at(tmp_path / "w")
    prepare.run(toy.parse(raw), workspace)
    assert splits.read_split(workspace.splits).channels == (3 if colour else 1)


def test_synthetic_images_of_a_grey_source_count_as_luminance(workspace: Workspace) -> None:
    split = toy.write_splits(workspace)
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    data = png(pixels)
    atomic_write(workspace.synthetic("r") / "000_bar/00000.png", data)
    row = SyntheticImage("000_bar/00000.png", 0, "bar", 0, "a bar", 0, 0, {}, None, sha256(data))
    write_metadata(workspace.synthetic("r"), [row])
    of_colours = arrays.synthetic(workspace.synthetic("r"), split, 16).images[0]
    assert np.array_equal(of_colours, pixels)
    grey = Split(**{**vars(split), "channels": 1})
    of_grey = arrays.synthetic(workspace.synthetic("r"), grey, 16).images[0]
    assert np.array_equal(of_grey, np.repeat(np.asarray(Image.fromarray(pixels).convert("L"))[..., None], 3, -1))


@pytest.mark.parametrize("allowed", [(), ("colour",), ("hflip", "vflip", "rotation", "colour")])
def test_grey_images_stay_grey_whatever_changes_them(allowed: tuple[str, ...]) -> None:
    grey = torch.rand(256, 1, 16, 16, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1)
    changed = Augment(allowed, 0.7, 0)(grey)
    assert (changed - changed[:, :1]).abs().max() < 1e-4
    assert (changed - grey).abs().max() > 0.1


def test_nothing_keeps_a_label_unless_it_is_stated(raw: dict[str, Any], tmp_path: Path) -> None:
    for i in range(4):
        atomic_write(tmp_path / f"raw/{'ab'[i % 2]}/{i}.png", png(np.full((4, 4, 3), 60 * i, np.uint8)))
    (tmp_path / "list.csv").write_text("path,label\nraw/a/0.png,a\nraw/b/1.png,b\n")
    (tmp_path / "split.json").write_text(
        json.dumps({"train": [["raw/a/0.png", 0, "a"], ["raw/b/1.png", 1, "b"]], "test": [["raw/a/2.png", 0, "a"]]})
    )
    for source in (f"imagefolder:{tmp_path / 'raw'}", f"csv:{tmp_path / 'list.csv'}", f"coop:{tmp_path}/split.json"):
        raw["prepare"]["source"] = source
        assert sources.read(toy.parse(raw).prepare).invariances == ()


# Thousands of classes


def test_adapters_of_many_classes_stand_in_folders_of_a_hundred(tmp_path: Path) -> None:
    found = []
    for label in range(2000):
        name = f"{assembly.hundred(label, 2000)}{label:04d}_class"
        path = tmp_path / "r" / name / "pytorch_lora_weights.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"%d" % label)
        found.append({"labels": [label], "file": f"{name}/{path.name}", "sha256": sha256(b"%d" % label), "shard": "s"})
    (tmp_path / "r/adapters.json").write_text(json.dumps({"adapters": found}))
    folders = list((tmp_path / "r").glob("*/"))
    assert len(folders) == 20
    assert {len(list(folder.iterdir())) for folder in folders} == {100}
    assert [adapter.labels for adapter in adapters.read_adapters(tmp_path / "r")] == [(label,) for label in range(2000)]
    # A hundred classes and fewer stand side by side.
    assert assembly.hundred(99, 100) == ""


def test_pictures_of_many_classes_are_paged(workspace: Workspace) -> None:
    classes = tuple(f"class {label}" for label in range(2000))
    data = png(np.zeros((16, 16, 3), np.uint8))
    atomic_write(workspace.cell / "shot.png", data)
    atomic_write(workspace.synthetic("stable_diffusion") / "one.png", data)
    samples = tuple(splits.Sample("shot.png", label, f"{label}", "") for label in range(2000) for _ in range(2))
    split = Split("toy", classes, "a {class}", (), 2, 0, samples, ())
    rows = [
        SyntheticImage("one.png", label, name, 0, "", 0, 0, {}, None, "")
        for label, name in enumerate(classes)
        for _ in range(9)
    ]
    write_metadata(workspace.synthetic("stable_diffusion"), rows)
    settings = toy.params(active=["stable_diffusion"])
    evidence: Any = SimpleNamespace(params=settings, split=split, workspace=workspace)
    sources = pictures.sources_of(evidence)
    assert [[len(own) for own in source.by_label] for source in sources] == [[2] * 2000, [8] * 2000]
    first = pictures.blocks(evidence, sources)
    section = str(gallery.by_class(evidence, first))
    assert section.count("<h3") == 60
    assert len(section) < 200_000
    sheets = pictures.further(2000)
    assert [start for start, _ in sheets] == list(range(60, 2000, 60))
    assert all(f'href="{path}"' in section for _, path in sheets)
    assert "1981 to 2000</a>" in section
    last = pictures.blocks(evidence, sources, sheets[-1][0])
    assert [len(block.by_label) for block in last] == [20, 20]
    tall = [contact_sheet(made, ["name"] * 2000).height for made in (first, last)]
    assert tall[1] < tall[0] / 2 < 2000


def test_confusion_of_many_classes_is_the_most_confused_pairs() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2000, 20_000)
    guess = np.where(rng.random(20_000) < 0.5, labels, rng.integers(0, 2000, 20_000))
    # One class is taken for another, again and again.
    labels[:300], guess[:300] = 7, 1234
    pairs = list(output.confused(labels, guess, 2000))
    assert len(set(pairs)) == 50
    assert pairs.count((7, 1234)) == 300


@pytest.mark.parametrize(
    ("shots", "said"),
    [
        (4, "shots=4"),
        ("all", "shots=all"),
        ({"two words": 3, "b-7": 4}, "'shots={two words:3,b-7:4}'"),
        ({"yes": 4, "no": 3}, "'shots={yes:4,no:3}'"),
        ({"Δ": 3, "b": 4}, "shots={as in params.yaml}"),
        ({"null": 3, "b": 4}, "shots={as in params.yaml}"),
        ({"True": 3, "b": 4}, "shots={as in params.yaml}"),
        ({"7": 3, "b": 4}, "shots={as in params.yaml}"),
    ],
)
def test_the_page_says_how_to_set_shots_again(tmp_path: Path, shots: Any, said: str) -> None:
    from dvc.utils.hydra import apply_overrides

    assert _shots(shots) == said
    if "as in" not in said:
        file = tmp_path / "params.yaml"
        file.write_text("shots: 4\n")
        apply_overrides(file, [said.strip("'")])
        assert read_yaml(file) == {"shots": shots}


def test_a_path_in_quotes_of_both_kinds_is_taken_as_it_is(tmp_path: Path) -> None:
    from dvc.utils.hydra import apply_overrides

    docs = (Path(__file__).parents[1] / "docs/own-images.md").read_text()
    said = re.search(r"""-S "(prepare\.source='(imagefolder:/data/Pr.*)')" """, docs)
    assert said
    file = tmp_path / "params.yaml"
    file.write_text("prepare: {source: digits}\n")
    apply_overrides(file, [said[1]])
    assert read_yaml(file) == {"prepare": {"source": said[2]}}
    # Without them the grammar ends at the first such letter.
    with pytest.raises(Exception, match="Invalid `--set-param` value"):
        apply_overrides(file, [said[1].replace("'", "")])

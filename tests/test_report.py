"""The page and the contact sheet: what a finished run shows of itself."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import reported
import toy
from dreamset import report
from dreamset.command import verbs
from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write, write_csv, write_json
from dreamset.core.images import png
from dreamset.core.sheet import _GAP, _HEADER, _MARGIN
from dreamset.core.workspace import Workspace
from dreamset.data.splits import read_split, write_split
from dreamset.data.synthetic import read_metadata, write_metadata
from dreamset.metrics import claims
from reported import HOSTILE, RECIPES, accuracies, read

if TYPE_CHECKING:
    from dreamset.params import Params


@pytest.fixture
def params() -> Params:
    return reported.parameters()


@pytest.fixture
def workspace(tmp_path: Path, params: Params) -> Workspace:
    return reported.write(tmp_path, params)


def change(workspace: Workspace, edit: Any) -> None:
    path = workspace.result("evaluate")
    record = json.loads(path.read_text())
    edit(record)
    write_json(path, record)


def test_the_page_stands_alone_and_says_what_was_measured(params: Params, workspace: Workspace) -> None:
    summary = report.run(params, workspace)
    source, page = read(workspace)
    assert summary["bytes"] == len(source.encode())
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert not re.search(r"https?:|url\(|@import|[\"'(]//", source)
    assert all(value.startswith("data:image/") for name, value in page.attributes if name in ("src", "href"))
    assert "prefers-color-scheme: dark" in source
    assert "width=device-width" in source

    hero = page.text("hero")
    assert "toy · 4 shots per class · seed 0" in hero
    assert summary["verdict"] == "It helps"
    assert "It helps." in hero
    assert (
        "Trained on the real images and those of datadream_dset, resnet20 gets 4.5 percentage points more of 877 test "
        "images right than on the real ones alone, and the whole 95% interval (+3.4 to +5.7) lies above zero." in hero
    )
    assert "+0.6 points beside the real images (−0.5 to +1.8)" in hero
    assert "+23.7 points on synthetic images alone (+22.6 to +24.9)" in hero
    assert "resnet20 reaches 88.3%, against 64.6% with stable_diffusion." in hero
    assert "Indicative, one seed" in hero
    assert "the interval ends below +1.0 points" in hero
    assert not {"expected", "quality", "correlations", "seeds"} & set(page.sections)

    table = page.text("accuracy")
    for score in accuracies(params).values():
        assert f"{100 * score:.1f}% {100 * (score - 0.021):.1f} to {100 * (score + 0.019):.1f}" in table
    for number in ("79.6", "29.6", "0.1432", "± 0.0021", "n = 18", "Where it does not help: 2 of 8"):
        assert number in table
    for number in ("41.3", "12.3", "3.8", "57.3"):
        assert number in page.text("costs")
    assert "0.75 near-duplicate" in page.text("copies")
    assert "5 of 18 images" in page.text("copies")
    assert "one adapter, 190 steps, mean loss 1 at the first step and 0.0526 at the end" in page.text("adaptation")
    assert "before" in page.text("adaptation")
    assert "after 200 steps" in page.text("adaptation")
    assert "LoRA of rank 16" in page.text("setup")
    assert "licence apache-2.0" in page.text("setup")
    assert "dvc repro" in page.text("again")
    # 3 maps of 3 classes: 18 of 20 right in each row, 2 taken for the next class.
    assert page.text("confusion").count("18") == 9


def test_the_same_results_give_the_same_bytes(params: Params, workspace: Workspace) -> None:
    outputs = [workspace.results / "report.html", workspace.results / "contact_sheet.png"]
    report.run(params, workspace)
    first = [path.read_bytes() for path in outputs]
    report.run(params, workspace)
    assert [path.read_bytes() for path in outputs] == first


def test_class_names_cannot_become_markup_or_break_the_sheet(params: Params, workspace: Workspace) -> None:
    split = replace(read_split(workspace.splits), classes=HOSTILE)
    write_split(workspace.splits, split)
    change(workspace, lambda record: record["runs"][0]["most_confused"][0].update(actual=HOSTILE[0]))
    report.run(params, workspace)
    source, page = read(workspace)
    assert "script" not in page.tags
    assert HOSTILE[0] not in source
    assert "&lt;script&gt;" in source
    assert HOSTILE[0] in page.text("pictures")
    assert "a" * 300 in page.text("pictures")
    sheet = Image.open(workspace.results / "contact_sheet.png")
    assert sheet.width < 1000


def test_the_contact_sheet_holds_every_class_and_source_magnified_by_whole_factors(
    params: Params, workspace: Workspace
) -> None:
    report.run(params, workspace)
    sheet = Image.open(workspace.results / "contact_sheet.png")
    tile, gap = 48, _GAP
    assert sheet.height == 2 * _MARGIN + _HEADER + 3 * (tile + gap) - gap
    pixels = sheet.load()
    shot = Image.open(workspace.cell / read_split(workspace.splits).train[0].path).convert("RGB")
    top = _MARGIN + _HEADER
    large = shot.resize((tile, tile), Image.Resampling.NEAREST)
    found = [
        x for x in range(sheet.width - tile) if pixels[x, top] == large.getpixel((0, 0)) and _at(sheet, large, x, top)
    ]
    assert len(found) == 1, "the first shot of the first class stands once in the first row"


def _at(sheet: Image.Image, tile: Image.Image, x: int, y: int) -> bool:
    return sheet.crop((x, y, x + tile.width, y + tile.height)).tobytes() == tile.tobytes()


def test_pictures_in_the_page_are_the_files(params: Params, workspace: Workspace) -> None:
    report.run(params, workspace)
    source, _ = read(workspace)
    first = re.search(r'<img src="data:image/png;base64,([^"]+)"', source[source.index('id="pictures"') :])
    assert first is not None
    strip = Image.open(io.BytesIO(base64.b64decode(first[1]))).convert("RGB")
    shots = [shot.path for shot in read_split(workspace.splits).train if shot.label == 0]
    assert strip.size == (3 * 17 - 1, 16)
    for index, path in enumerate(shots[:3]):
        real = Image.open(workspace.cell / path).convert("RGB")
        assert _at(strip, real, index * 17, 0)


def test_larger_images_become_thumbnails(workspace: Workspace) -> None:
    params = toy.params(models__bundled__resolution=64, report__images_per_class=2)
    report.run(params, workspace)
    source, _ = read(workspace)
    assert "data:image/webp" in source
    assert Image.open(workspace.results / "contact_sheet.png").height > 3 * 96


def test_a_recipe_taken_out_leaves_the_page(params: Params, workspace: Workspace) -> None:
    report.run(replace(params, active=("stable_diffusion",)), workspace)
    source, page = read(workspace)
    assert "datadream_dset" not in source
    assert "adaptation" not in page.sections
    assert "real + stable_diffusion" in page.text("hero")
    assert "3.9 percentage points more" in page.text("hero")


@pytest.mark.parametrize(
    ("over_real", "title"),
    [((0.01, 0.03), "It helps"), ((-0.01, 0.01), "These images cannot tell"), ((-0.03, 0.009), "It does not help")],
)
def test_the_page_opens_with_the_verdict(
    over_real: tuple[float, float], title: str, params: Params, workspace: Workspace
) -> None:
    def edit(record: dict[str, Any]) -> None:
        for row in record["differences"]:
            if (row["of"], row["minus"]) == ("datadream_dset/both/resnet20", "real/real/resnet20"):
                row["low"], row["high"] = over_real

    change(workspace, edit)
    assert report.run(params, workspace)["verdict"] == title
    assert f"{title}." in read(workspace)[1].text("hero")


def test_images_that_were_found_are_not_the_generator_as_it_is(params: Params, workspace: Workspace) -> None:
    recipes = {"retrieved": params.recipes["retrieved"], **params.recipes}
    active = ("retrieved", *RECIPES)
    toy.write_synthetic(workspace, "retrieved")

    def edit(record: dict[str, Any]) -> None:
        runs = [run | {"arm": "retrieved"} for run in record["runs"] if run["arm"] == "stable_diffusion"]
        record["runs"] += runs

    change(workspace, edit)
    report.run(replace(params, recipes=recipes, active=active), workspace)
    hero = read(workspace)[1].text("hero")
    assert "Adapting the generator, against stable_diffusion as it is" in hero
    assert "with stable_diffusion" in hero


def test_strengths_of_an_adapter_are_told(params: Params, workspace: Workspace) -> None:
    report.run(params, workspace)
    assert "strength" not in read(workspace)[1].text("pictures")
    row = replace(params.recipes["datadream_dset"], adapter_scales=(0.25, 0.5))
    report.run(replace(params, recipes=params.recipes | {"datadream_dset": row}), workspace)
    source, page = read(workspace)
    assert "Of datadream_dset every further picture is drawn at the next strength of the adapter." in page.text(
        "pictures"
    )
    assert "at 0.25, 0.5 times its strength in turn" in source


def test_the_best_real_arm_is_what_counts(params: Params, workspace: Workspace) -> None:
    def edit(record: dict[str, Any]) -> None:
        for row in [run for run in record["runs"] if run["arm"] == "real"]:
            record["runs"].append(row | {"train_on": "real_strong", "accuracy": row["accuracy"] + 0.05})
        record["runs"].append(record["runs"][1] | {"classifier": "linear_probe", "accuracy": 0.7123})
        for row in [row for row in record["differences"] if row["minus"].startswith("real/")]:
            less = {name: row[name] - 0.05 for name in ("difference", "low", "high")}
            record["differences"].append(row | {"minus": row["minus"].replace("/real/", "/real_strong/")} | less)

    change(workspace, edit)
    assert report.run(params, workspace)["verdict"] == "It does not help"
    page = read(workspace)[1]
    assert "0.5 percentage points fewer" in page.text("hero")
    assert "than on the real ones alone with strong augmentation" in page.text("hero")
    assert "the best of 2 ways of training on the real images alone" in page.text("hero")
    table = page.text("accuracy")
    assert "real shots alone, strongly augmented91.1%" in table
    assert "real shots alone: linear_probe71.2%" in table
    # What gains over the plain real arm does not over the better one.
    assert "▲" not in table.partition("Trained on")[2]


def test_what_other_parts_measured_is_shown(params: Params, workspace: Workspace) -> None:
    def edit(record: dict[str, Any]) -> None:
        record |= {"protocol": "cv", "folds": 5, "groups": 40, "selection": "extra:3"}
        record["reach"] = {"words": "On 60 images nothing below ten points can be shown.", "warning": None}
        for run in record["runs"]:
            run |= {"balanced_accuracy": 0.6611, "macro_f1": 0.6722, "auroc": 0.9333, "majority": 0.3456}
            run |= {"nll": 0.4321, "ece": 0.0987, "temperature": 1.2345, "accuracy_untouched": 0.6588}
        for row in record["differences"]:
            row |= {"gained": 17, "lost": 4, "mcnemar_p": 0.0072}
        for found in record["sets"].values():
            found |= {"precision": 0.7111, "recall": 0.1222, "density": 1.3, "coverage": 0.4, "vendi": 3.456}
            found |= {"vendi_real": 4.56, "warning": "FID of 18 images is biased upwards."}
            pair = {"image": "000_bar/00001.png", "test": "a/secret.png", "distance": 0.1234}
            far = {"image": "000_bar/00002.png", "test": "a/other.png", "distance": 0.9}
            found["near_duplicates_test"] = {"count": 6, "share": 0.3333, "threshold": 0.5, "pairs": [pair, far]}
        pair = {"test": "bar/twice.png", "shot": "bar/hidden.png", "distance": 0.2}
        record["near_duplicates_real"] = {"count": 5, "share": 0.0057, "threshold": 0.5, "pairs": [pair]}

    change(workspace, edit)
    write_json(workspace.result("expect"), {"expectation": "little", "sentences": ["Expect <little> of these."]})
    beside = np.random.default_rng(0).integers(0, 256, (32, 16, 3), np.uint8)
    atomic_write(workspace.near_test / f"{params.active[0]}.png", png(beside))
    report.run(params, workspace)
    source, page = read(workspace)
    assert [image for image in embedded(source) if image.shape == beside.shape and (image == beside).all()]
    hero, facts, numbers, quality = (page.text(name) for name in ("hero", "setup", "again", "quality"))
    assert "877 labelled images, each held out once, right" in hero
    assert "On 60 images nothing below ten points can be shown." in hero
    assert "no test images: 5 folds of the 877 labelled ones, of 40 groups" in facts
    assert "extra:3: labels beyond the shots; 3 labels per class select, 4 train" in facts
    assert "the commonest class always34.6%" in page.text("accuracy")
    for part in (
        "balanced",
        "66.1%",
        "67.2%",
        "93.3%",
        "NLL",
        "0.432",
        "0.099",
        "1.234",
        "65.9%",
        "McNemar p",
        "0.007",
    ):
        assert part in numbers
    for part in (
        "precision ↑",
        "0.711",
        "0.122",
        "3.46",
        "own Vendi score is 4.56",
        "6 33.3%",
        "biased upwards",
        "secret",
        "5 of the images held out (0.6%) are nearer to a shot than 99% of them",
        "bar/twice.png and bar/hidden.png",
    ):
        assert part in quality
    assert "a/other.png" not in quality
    assert "near-duplicates of images held out" in quality and "test images" not in quality
    assert "FID and KID against the images held out" in page.text("accuracy")
    assert "Images held out, as resnet20 reads them" in page.text("confusion")
    assert "of real images held out do" in page.text("copies")
    # Under cross-validation what they are near to are shots, by their names.
    report.run(replace(params, report=replace(params.report, show_real=False)), workspace)
    hidden, page = read(workspace)
    assert not any((image == beside).all() for image in embedded(hidden) if image.shape == beside.shape)
    assert not any(name in hidden for name in ("secret", "bar/twice", "bar/hidden"))
    assert "5 of the images held out" in page.text("quality")
    assert "Expect <little> of these." in page.text("expected")
    assert "<little>" not in source


def embedded(source: str) -> list[np.ndarray]:
    """The pictures of a page, RGB."""
    found = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", source)]
    return [np.asarray(image.convert("RGB")) for image in found]


def test_the_shots_can_be_kept_out(params: Params, workspace: Workspace) -> None:
    def pixels() -> set[bytes]:
        found = embedded((workspace.results / "report.html").read_text())
        tiles = [image[y : y + 16, x : x + 16] for image in found for x in range(image.shape[1] - 15) for y in (0, 17)]
        return {tile.tobytes() for tile in tiles}

    shots = {Image.open(workspace.cell / s.path).convert("RGB").tobytes() for s in read_split(workspace.splits).train}
    report.run(params, workspace)
    width = Image.open(workspace.results / "contact_sheet.png").width
    assert shots & pixels()
    report.run(replace(params, report=replace(params.report, show_real=False)), workspace)
    assert not shots & pixels()
    assert Image.open(workspace.results / "contact_sheet.png").width < width
    assert "real shots" not in read(workspace)[1].text("pictures")
    assert "0.75 near-duplicate" in read(workspace)[1].text("copies")
    # MLflow gets no file that names them.
    assert workspace.result("evaluate") in verbs._artifacts(workspace, "evaluate", None, False)
    kept = verbs._artifacts(workspace, "evaluate", None, True)
    names = {s.path for s in read_split(workspace.splits).train}
    assert not any(name in path.read_text() for path in kept for name in names)


def test_the_table_over_seeds_is_told_beside_the_one_seed(params: Params, workspace: Workspace) -> None:
    of, minus = "datadream_dset/{}/resnet20", "{}/{}/resnet20"
    kinds = [
        (4, "both", "real", "real"),
        (4, "synthetic", "stable_diffusion", "synthetic"),
        (16, "both", "real", "real"),
    ]
    rows = [
        {"shots": k, "classifier": "resnet20", "of": of.format(kind), "minus": minus.format(other, its), "seeds": 6}
        | {"difference": 0.0123 * k, "low": 0.0123 * k - 0.06, "high": 0.0123 * k + 0.01}
        for k, kind, other, its in kinds
    ]
    rows.append(rows[0] | {"of": "taken_out/both/resnet20"})
    write_csv(workspace.results / "table/claims.csv", rows, rows[0])
    summary = {"shots": 16, "recipe": "real", "train_on": "real", "classifier": "resnet20", "seeds": 6}
    summary |= {"accuracy": 0.9713, "sd": 0.0042}
    here = summary | {"shots": 4, "recipe": "datadream_dset", "train_on": "both", "accuracy": 0.8181}
    write_csv(workspace.results / "table/summary.csv", [summary, here], summary)
    report.run(params, workspace)
    assert "mean of 6 seeds" not in read(workspace)[1].text("hero")  # of nobody knows what
    (workspace.root / "models").mkdir(exist_ok=True)
    (workspace.root / "models/base").symlink_to(toy.ROOT / "models/base")
    made = {"data": None, "made": claims.made(params, workspace.root)}
    setting = params.setting([*RECIPES, "datadream_cls"])
    write_json(workspace.results / "table/setting.json", setting | made | {"made": "0" * 64})
    report.run(params, workspace)
    assert "mean of 6 seeds" not in read(workspace)[1].text("hero")  # of other code or weights
    write_json(workspace.results / "table/setting.json", setting | made)
    other = replace(params, prepare=replace(params.prepare, source="imagefolder:elsewhere"))
    report.run(other, workspace)
    assert "mean of 6 seeds" not in read(workspace)[1].text("hero")
    report.run(params, workspace)
    source, page = read(workspace)
    assert "taken_out" not in source
    shown = page.text("seeds")
    for part in ("4 shots per class", "+4.9 −1.1 to +5.9", "+19.7 +13.7 to +20.7", "97.1% ± 0.4", "over 6 seeds"):
        assert part in shown
    assert "Holm" not in shown  # of a table without tests
    hero = page.text("hero")
    # This seed alone would say that they helped.
    assert "These images cannot tell." in hero
    assert "4.9 percentage points more of 877 test images, in the mean of 6 seeds, right" in hero
    assert "the 95% interval (−1.1 to +5.9) holds both no gain and one of +1.0 or more" in hero
    assert "Seed 0, which the rest of this page is about: trained on" in hero
    assert "81.8%± 0.4 over the seeds" in hero
    assert "Seed 0 alone" in page.text("gains")

    # Five seeds are shown, and decide nothing.
    write_csv(workspace.results / "table/claims.csv", [row | {"seeds": 5} for row in rows], rows[0])
    report.run(params, workspace)
    page = read(workspace)[1]
    assert "in the mean of" not in page.text("hero") and "4 shots per class" in page.text("seeds")

    tests = {"p": 0.0312, "p_holm": 0.1875, "primary": "true", "indicative": "false"}
    others = {"p": 0.0004, "p_holm": 0.5, "primary": "false", "indicative": "false"}
    rows = [row | (tests if row["shots"] == 4 else others) for row in rows]
    write_csv(workspace.results / "table/claims.csv", rows, rows[0])
    rho = {"metric": "fid", "shots": "all", "points": 60, "seeds": 6, "rho": -0.512, "low": -0.9, "high": 0.1}
    write_csv(workspace.results / "table/correlations.csv", [rho, rho | {"shots": 4, "rho": 0.25}], rho)
    write_json(workspace.results / "table/cost.json", {"cells": 12, "seconds": 9000.0, "threads": [1]})
    report.run(params, workspace)
    page = read(workspace)[1]
    assert "Indicative" not in page.text("hero")
    shown = page.text("seeds")
    for part in ("Fixed before they were measured", "0.031", "0.19", "<0.001", "12 cells took 2.5 hours"):
        assert part in shown
    assert "Where it does not help over the real images: 1 of 2 cells" in shown
    assert "Accuracy of resnet20 by number of shots" in shown
    for part in ("FID", "−0.51 −0.90 to +0.10", "+0.25", "60 over 6 seeds"):
        assert part in page.text("correlations")

    # A claim that rests on fewer seeds is not the verdict's, and another recipe's claims are not this page's.
    lone = rows[0] | {"of": "stable_diffusion/both/resnet20", "minus": "real/real/resnet20", "seeds": 1}
    write_csv(workspace.results / "table/claims.csv", [*rows, lone | tests], rows[0])
    report.run(params, workspace)
    page = read(workspace)[1]
    assert "in the mean of 6 seeds" in page.text("hero")
    other = replace(params, primary="stable_diffusion")
    report.run(other, workspace)
    assert "Fixed before they were measured" in read(workspace)[1].text("seeds")
    write_csv(workspace.results / "table/claims.csv", rows, rows[0])
    report.run(other, workspace)
    assert "Fixed before they were measured" not in read(workspace)[1].text("seeds")

    (workspace.results / "table/claims.csv").write_text("shots,of\n4,x\n")
    with pytest.raises(InputError, match="dreamset table"):
        report.run(params, workspace)


def test_what_is_missing_is_left_out_or_named(params: Params, workspace: Workspace) -> None:
    for recipe in RECIPES:
        workspace.result("adapt", recipe).unlink()
        (workspace.plots("adapt", recipe) / "loss.csv").unlink()
    (workspace.plots("evaluate") / "predictions.json").unlink()
    change(workspace, lambda record: record["sets"].clear())
    report.run(params, workspace)
    _, page = read(workspace)
    assert "confusion" not in page.sections
    assert "copies" not in page.sections
    assert "before" in page.text("adaptation")

    images = read_metadata(workspace.synthetic("datadream_dset"))
    (workspace.synthetic("datadream_dset") / images[0].file_name).write_bytes(b"not a picture")
    with pytest.raises(InputError, match="dreamset generate datadream_dset"):
        report.run(params, workspace)
    write_metadata(workspace.synthetic("datadream_dset"), images[1:])
    report.run(params, workspace)

    with pytest.raises(InputError, match=r"says nothing of datadream_cls.*dreamset evaluate"):
        report.run(replace(params, active=(*RECIPES, "datadream_cls")), workspace)
    change(workspace, lambda record: record.pop("runs"))
    with pytest.raises(InputError, match="is not an evaluation"):
        report.run(params, workspace)
    workspace.result("evaluate").unlink()
    with pytest.raises(InputError, match="dreamset evaluate"):
        report.run(params, workspace)


def test_it_needs_no_heavy_library() -> None:
    heavy = ("torch", "mlflow", "matplotlib", "sklearn", "pandas")
    code = f"import sys, dreamset.report; sys.exit(any(name.split('.')[0] in {heavy} for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

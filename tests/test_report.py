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
import yaml
from PIL import Image

import reported
import toy
from dreamset import report
from dreamset.command import tracked_runs
from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write, read_json, write_json
from dreamset.core.images import png
from dreamset.core.sheet import _GAP, _HEADER, _MARGIN, Block, contact_sheet
from dreamset.core.workspace import Workspace
from dreamset.data.splits import read_split, write_split
from dreamset.data.synthetic import read_metadata, write_metadata
from dreamset.report import glossary
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

    assert page.hero.one("p", "kicker").text == "toy · 3 classes · 4 labelled images per class"
    assert summary["verdict"] == "Synthetic images helped"
    assert summary["warnings"] == []
    assert page.hero.one("h1").text == "Synthetic images helped: +4.5 points (+3.4 to +5.7)."
    assert page.hero.one("h1").fits("h1", "helps")
    assert page.lede == (
        "The classifier (resnet20) names 90.7% of 877 test images rightly when it also learns from the synthetic "
        "images of datadream_dset, and 86.1% without them. The 95% interval of the difference is +3.4 to +5.7 points. "
        "The whole interval lies above zero."
    )
    assert page.hero.texts("p", "use") == ["Use the classifier of real and synthetic images: models/classifier."]
    assert page.hero.one("p", "done").text == (
        "There are 12 labelled images of 3 classes. A text-to-image model was adapted to them and drew synthetic ones. "
        "Classifiers learned from the real images, from the synthetic ones, and from both. 877 test images, which "
        "nothing had learned from, scored them."
    )
    assert [strip.text for strip in page.hero.all("div", "strip")] == ["real images", "synthetic images"]
    assert page.reason == (
        "Trained on the real images and those of datadream_dset, resnet20 gets 4.5 percentage points more of 877 test "
        "images right than on the real ones alone, and the whole 95% interval (+3.4 to +5.7) lies above zero."
    )
    assert page.cards == {
        "real images alone": ("86.1%", "84.0 to 88.0"),
        "real + stable_diffusion": ("90.0%", "87.9 to 92.0 64.6% on synthetic alone"),
        "real + datadream_dset": ("90.7%", "88.6 to 92.6 88.3% on synthetic alone"),
    }
    adapting, alone = page.also
    assert "+0.6 points beside the real images (−0.5 to +1.8)" in adapting
    assert "+23.7 points on synthetic images alone (+22.6 to +24.9)" in adapting
    assert alone == "On synthetic images alone resnet20 reaches 88.3%, against 64.6% with stable_diffusion."
    one_seed, rule, fixed = page.caveat
    assert one_seed.startswith("Indicative, one seed: ")
    assert "the interval ends below +1.0 points" in rule
    assert "nothing records whether they were chosen before these images were first scored" in fixed
    assert not {"expected", "quality", "correlations", "seeds"} & set(page.sections)

    section = page.sections["accuracy"]
    scores = {
        key: f"{100 * score:.1f}% {100 * (score - 0.021):.1f} to {100 * (score + 0.019):.1f}"
        for key, score in accuracies(params).items()
    }
    first, second = params.train.classifiers
    assert section.rows[0] == ["Trained on", first, second, "FID", "KID", "near-duplicates"]
    assert section.row("nothing: zero-shot CLIP")[0] == scores["zero_shot/none/clip_zeroshot"]
    assert section.row("real shots alone")[:2] == [scores[f"real/real/{name}"] for name in (first, second)]
    groups = {group.rows[0][0]: {name: cells for name, *cells in group.rows[1:]} for group in section.all("tbody")[1:]}
    assert list(groups) == list(RECIPES)
    for recipe, rows in groups.items():
        assert rows["synthetic only"][:2] == [scores[f"{recipe}/synthetic/{name}"] for name in (first, second)]
        both = [scores[f"{recipe}/both/{name}"] for name in (first, second)]
        assert [cell.partition(" ")[2] for cell in rows["real + synthetic"]] == both
        assert {cell[0] for cell in rows["real + synthetic"]} == {"▲"}
    distances = [rows["synthetic only"][2:] for rows in groups.values()]
    assert distances == [["79.6", "0.1432 ± 0.0021", "4 2.1%"], ["29.6", "0.1432 ± 0.0021", "5 2.1%"]]
    assert "n = 18 images on each side" in section.one("caption").text
    assert section.one("h3").text == "Where no gain is shown: 2 of 8 comparisons"
    assert len(section.all("li")) == 2

    costs = page.sections["costs"]
    assert dict(zip(costs.rows[0][1:], costs.row("datadream_dset"), strict=True)) == {
        **{"adapters": "1", "steps": "190", "adapt, s": "41.3", "trials": "–", "tune, s": "–", "images": "18"},
        **{"redrawn": "2", "generate, s": "12.3", "images/s": "1.5", "train, s": "3.8", "total, s": "57.3"},
    }
    assert costs.row("real shots only")[-2:] == ["3.8", "3.8"]
    copies = page.sections["copies"]
    assert copies.texts("h3") == list(RECIPES)
    assert copies.texts("figcaption") == ["0.75 near-duplicate"] * 2
    assert copies.texts("p")[1:] == [f"{count} of 18 images are near-duplicates" for count in (4, 5)]
    (learned,) = page.sections["adaptation"].all("article")
    assert learned.one("p").text == "one adapter, 190 steps, mean loss 1 at the first step and 0.0526 at the end"
    assert learned.texts("figcaption") == ["before", "after 100 steps", "after 200 steps"]
    terms = page.sections["setup"].terms()
    assert "LoRA of rank 16" in terms["datadream_dset"]
    assert "licence apache-2.0" in terms["Generator"]
    assert "dvc repro" in page.sections["again"].one("pre").text
    # 3 maps of 3 classes: 18 of 20 right in each row, 2 taken for the next class.
    maps = page.sections["confusion"].all("table")
    assert len(maps) == 3
    for map_of in maps:
        assert [row[1:] for row in map_of.rows[1:]] == [["18", "2", ""], ["", "18", "2"], ["2", "", "18"]]


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
    workspace.result("expect").write_text(r'{"sentences": ["Of a damaged file \ud800."]}')
    report.run(params, workspace)
    source, page = read(workspace)
    assert "script" not in page.tags
    assert HOSTILE[0] not in source
    assert "&lt;script&gt;" in source
    names = page.sections["pictures"].all("h3")
    assert names[0].text == HOSTILE[0] and names[1].text == "a" * 300
    assert names[0].attributes["title"] == HOSTILE[0]
    assert page.sections["expected"].texts("p") == ["Of a damaged file ?."]
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
    assert "real + stable_diffusion" in page.cards
    assert "3.9 percentage points more" in page.reason


@pytest.mark.parametrize(
    ("over_real", "title"),
    [
        ((0.01, 0.03), "Synthetic images helped"),
        ((-0.01, 0.01), "These images cannot tell"),
        ((-0.03, 0.009), "No gain found"),
    ],
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
    assert read(workspace)[1].hero.one("h1").text.startswith(f"{title}: +4.5 points (")


MISTAKES = [{"actual": 0, "logits": [1.0, 4.0, 0.0]}, {"actual": 2, "logits": [3.0, 1.0, 1.0]}]


def write_mistakes(workspace: Workspace, *runs: str, side: int = 16) -> None:
    """Mistakes of some runs, those of each in a colour of its own, as ``evaluate`` leaves them."""
    record = {run: {"count": 5, "of": 877, "mistakes": MISTAKES} for run in runs}
    write_json(workspace.mistakes / "mistakes.json", {"runs": record})
    for place, run in enumerate(runs):
        arm, kind, classifier = run.split("/")
        file = workspace.mistakes / f"{arm}_{kind}_{classifier}.png"
        Image.new("RGB", (2 * side, side), (200 + place, 10, 20)).save(file)


def test_mistakes_of_the_delivered_classifier_are_shown_where_real_images_may_be(
    params: Params, workspace: Workspace
) -> None:
    report.run(params, workspace)
    assert "mistakes" not in read(workspace)[1].sections  # of an evaluation before there were any
    write_mistakes(workspace, "real/real_strong/resnet20", "datadream_dset/both/resnet20", "real/real/linear_probe")
    report.run(params, workspace)
    source, page = read(workspace)
    section = page.sections["mistakes"]
    assert section.one("p").text == (
        "resnet20, the classifier to take, reads 5 of 877 test images as another class. Below are the 2 of which it "
        "was surest, with the probability of its answer."
    )
    assert section.texts("figcaption") == ["barread as plank, 94%", "spotread as bar, 79%"]
    assert [image.attributes["alt"] for image in section.all("img")] == ["bar, taken for plank", "spot, taken for bar"]
    colours = {tuple(image[0, 0]) for image in embedded(source) if image.shape == (16, 16, 3)}
    assert (201, 10, 20) in colours and not colours & {(200, 10, 20), (202, 10, 20)}

    # What `deliver` says is what counts: another classifier, with the temperature that it answers with.
    chosen = {"arm": "real", "train_on": "real", "classifier": "linear_probe", "temperature": 3.0}
    write_json(workspace.result("deliver"), chosen)
    report.run(params, workspace)
    page = read(workspace)[1]
    assert page.hero.texts("p", "use") == ["Use the classifier of your real images: models/classifier."]
    assert page.sections["mistakes"].texts("figcaption") == ["barread as plank, 61%", "spotread as bar, 49%"]

    report.run(replace(params, report=replace(params.report, show_real=False)), workspace)
    section = read(workspace)[1].sections["mistakes"]
    assert section.one("p").text.endswith("They are not shown, because report.show_real is false.")
    assert not section.all("img") and not section.all("figcaption")
    (workspace.mistakes / "real_real_linear_probe.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"real_real_linear_probe.png: cannot be shown; run `dreamset evaluate` again"):
        report.run(params, workspace)


def test_a_term_has_its_definition_where_it_first_stands(params: Params, workspace: Workspace) -> None:
    assert max(len(meaning.split()) for meaning in glossary.TERMS.values()) <= 12
    known = (toy.ROOT / "docs/glossary.md").read_text(encoding="utf-8").lower()
    assert [
        term
        for term in ("shot", "recipe", "adapter", "seed", "fold", "cas", "near-duplicate", "guidance")
        if f"**{term}" not in known
    ] == []
    report.run(params, workspace)
    source, page = read(workspace)
    told = [element.text for element in page.root.all("dfn")]
    assert len(told) == len(set(told)) and {"test images", "95% interval", "points", "FID"} <= set(told)
    assert all(element.attributes["title"] in glossary.TERMS.values() for element in page.root.all("dfn"))
    assert not any(element.all("dfn") for tag in ("h1", "h2", "svg", "code", "pre") for element in page.root.all(tag))
    bare = re.sub(r"</?dfn[^>]*>", "", source)
    assert glossary.defined(bare) == source
    made = glossary.defined("<h2>shots</h2><p>A pot-shot, two <code>shots</code> &lt;shots&gt; and shots</p>")
    assert made == (
        '<h2>shots</h2><p>A pot-shot, two <code>shots</code> &lt;<dfn title="a real labelled image that a run learns '
        'from">shots</dfn>&gt; and shots</p>'
    )


def test_of_many_sources_the_contact_sheet_shows_fewer_images_of_each() -> None:
    tile = Image.new("RGB", (16, 16))
    few, many = ([Block(str(i), [[tile] * 8]) for i in range(count)] for count in (2, 6))
    assert contact_sheet(few, ["one"]).width > 2 * 8 * 48
    assert 6 * 3 * 48 < contact_sheet(many, ["one"]).width < 1700


def test_images_that_were_found_are_not_the_generator_as_it_is(params: Params, workspace: Workspace) -> None:
    recipes = {"retrieved": params.recipes["retrieved"], **params.recipes}
    active = ("retrieved", *RECIPES)
    toy.write_synthetic(workspace, "retrieved")

    def edit(record: dict[str, Any]) -> None:
        runs = [run | {"arm": "retrieved"} for run in record["runs"] if run["arm"] == "stable_diffusion"]
        record["runs"] += runs

    change(workspace, edit)
    report.run(replace(params, recipes=recipes, active=active), workspace)
    adapting, alone = read(workspace)[1].also
    assert adapting.startswith("Adapting the generator, against stable_diffusion as it is: ")
    assert alone.endswith(" with stable_diffusion.")

    # A gain whose interval lies above zero, and whose test does not show it.
    def doubtful(record: dict[str, Any]) -> None:
        for row in record["differences"]:
            row |= {"difference": 0.02, "low": 0.01, "high": 0.03, "mcnemar_p": 0.12}

    change(workspace, doubtful)
    report.run(replace(params, recipes=recipes, active=active), workspace)
    page = read(workspace)[1]
    assert "+2.0 points beside the real images (+1.0 to +3.0; not told from chance, p = 0.12)" in page.also[0]
    assert page.sections["accuracy"].one("h3").text.startswith("Where no gain is shown: ")


def test_strengths_of_an_adapter_are_told(params: Params, workspace: Workspace) -> None:
    report.run(params, workspace)
    assert "strength" not in read(workspace)[1].sections["pictures"].text
    row = replace(params.recipes["datadream_dset"], adapter_scales=(0.25, 0.5))
    report.run(replace(params, recipes=params.recipes | {"datadream_dset": row}), workspace)
    page = read(workspace)[1]
    note = page.sections["pictures"].one("p").text
    assert note.endswith("Of datadream_dset every further picture is drawn at the next strength of the adapter.")
    assert "at 0.25, 0.5 times its strength in turn" in page.sections["setup"].terms()["datadream_dset"]


def test_the_best_real_arm_is_what_counts(params: Params, workspace: Workspace) -> None:
    def edit(record: dict[str, Any]) -> None:
        for row in [run for run in record["runs"] if run["arm"] == "real"]:
            record["runs"].append(row | {"train_on": "real_strong", "accuracy": row["accuracy"] + 0.05})
        record["runs"].append(record["runs"][1] | {"classifier": "linear_probe", "accuracy": 0.7123})
        for row in [row for row in record["differences"] if row["minus"].startswith("real/")]:
            less = {name: row[name] - 0.05 for name in ("difference", "low", "high")}
            record["differences"].append(row | {"minus": row["minus"].replace("/real/", "/real_strong/")} | less)

    change(workspace, edit)
    assert report.run(params, workspace)["verdict"] == "No gain found"
    page = read(workspace)[1]
    assert "0.5 percentage points fewer" in page.reason
    assert "than on the real ones alone with strong augmentation" in page.reason
    assert "the best of 2 ways of training on the real images alone" in page.caveat[-1]
    section = page.sections["accuracy"]
    assert section.row("real shots alone, strongly augmented")[0].startswith("91.1%")
    assert section.row("real shots alone: linear_probe")[0].startswith("71.2%")
    # What gains over the plain real arm does not over the better one.
    marks = [mark for group in section.all("tbody") for mark in group.texts("b", "mark")]
    assert marks and "▲" not in marks


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
    assert "877 labelled images, each held out once, right" in page.reason
    # With groups the interval over them decides, and not McNemar's test.
    assert page.caveat[-1] == (
        "The interval that decides reaches 1.1 points below the difference, so that a gain below 1.1 points would not "
        "have shown here."
    )
    terms = page.sections["setup"].terms()
    assert terms["Test"].startswith("no test images: 5 folds of the 877 labelled ones, of 40 groups")
    assert terms["Selection"] == "extra:3: labels beyond the shots; 3 labels per class select, 4 train"
    assert page.sections["accuracy"].row("nothing: the commonest class always")[0] == "34.6%"
    runs, differences = page.sections["again"].all("table")
    run = dict(zip(runs.rows[0][1:], runs.row("real · real · resnet20"), strict=True))
    expected = {"balanced": "66.1%", "macro F1": "67.2%", "AUROC": "93.3%", "NLL": "0.432", "ECE": "0.099"}
    assert run.items() >= {**expected, "temperature": "1.234", "without images touched": "65.9%"}.items()
    assert differences.rows[0][-3:] == ["only first right", "only second right", "McNemar p"]
    assert all(cells[-3:] == ["17", "4", "0.007"] for cells in differences.rows[1:])

    quality, scored = page.sections["quality"], "images held out"
    row = dict(zip(quality.rows[0][1:], quality.row(RECIPES[0]), strict=True))
    expected = {"precision\u00a0↑": "0.711", "recall\u00a0↑": "0.122", "Vendi\u00a0↑": "3.46"}
    assert {name.replace(" ", "\u00a0", 1): value for name, value in row.items()}.items() >= expected.items()
    assert row[f"near-duplicates of {scored}"] == "6 33.3%"
    note = quality.one("caption").text
    assert "own Vendi score is 4.56" in note and note.endswith("FID of 18 images is biased upwards.")
    assert quality.texts("li") == ["000_bar/00001.png and a/secret.png, 0.12"] * 2
    same = quality.texts("p")[-1]
    assert same.startswith(
        f"5 of the {scored} (0.6%) are nearer to a shot than 99% of them are to one of another group"
    )
    assert "bar/twice.png and bar/hidden.png" in same
    assert "test images" not in quality.text
    assert f"FID and KID against the {scored}" in page.sections["accuracy"].one("caption").text
    assert page.sections["confusion"].one("p").text.startswith("Images held out, as resnet20 reads them")
    assert f"of real {scored} do" in page.sections["copies"].one("p").text
    # Under cross-validation what they are near to are shots, by their names.
    report.run(replace(params, report=replace(params.report, show_real=False)), workspace)
    hidden, page = read(workspace)
    assert not any((image == beside).all() for image in embedded(hidden) if image.shape == beside.shape)
    assert not any(name in hidden for name in ("secret", "bar/twice", "bar/hidden"))
    assert page.sections["quality"].texts("p")[-1].startswith(f"5 of the {scored}")
    assert page.sections["expected"].texts("p") == ["Expect <little> of these."]
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
    page = read(workspace)[1]
    assert page.sections["pictures"].one("div", "head").texts("span") == ["", *RECIPES]
    assert page.sections["copies"].texts("figcaption") == ["0.75 near-duplicate"] * 2
    # MLflow gets no file that names them.
    assert workspace.result("evaluate") in tracked_runs.artifacts(workspace, "evaluate", None, False)
    kept = tracked_runs.artifacts(workspace, "evaluate", None, True)
    names = {s.path for s in read_split(workspace.splits).train}
    assert not any(name in path.read_text() for path in kept for name in names)


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
    assert "before" in page.sections["adaptation"].texts("figcaption")

    images = read_metadata(workspace.synthetic("datadream_dset"))
    (workspace.synthetic("datadream_dset") / images[0].file_name).write_bytes(b"not a picture")
    with pytest.raises(InputError, match="dreamset generate datadream_dset"):
        report.run(params, workspace)
    write_metadata(workspace.synthetic("datadream_dset"), images[1:])
    report.run(params, workspace)

    with pytest.raises(InputError, match=r"says nothing of datadream_cls.*dreamset evaluate"):
        report.run(replace(params, active=(*RECIPES, "datadream_cls")), workspace)
    change(workspace, lambda record: record["differences"][0].update(of="datadream_dset/all/resnet20"))
    with pytest.raises(InputError, match=r"is not an evaluation .'all' is no kind of images"):
        report.run(params, workspace)
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


def test_what_prepare_warned_of_and_classes_without_test_images_are_on_the_page(
    params: Params, workspace: Workspace
) -> None:
    report.run(params, workspace)
    assert "warned" not in read(workspace)[1].sections
    write_json(workspace.result("prepare"), {"warnings": ["9 of 24 files cannot be used: photos/anna.heic"]})

    def untest(record: dict[str, Any]) -> None:
        for run in record["runs"]:
            run["per_class"] = {"one": 1.0, "two <b>": None}

    change(workspace, untest)
    report.run(params, workspace)
    page = read(workspace)[1]
    assert page.sections["warned"].texts("li") == ["9 of 24 files cannot be used: photos/anna.heic"]
    assert page.caveat[0] == (
        'Not tested, for no test image is of them: "two <b>". No figure says anything of these classes.'
    )
    private = replace(params, report=replace(params.report, show_real=False))
    report.run(private, workspace)
    assert page.sections["warned"].one("li") and "anna" not in read(workspace)[0]


def test_what_a_filter_threw_out_stands_on_the_page_with_what_it_did_to_cas(tmp_path: Path) -> None:
    plain, adapted = reported.RECIPES
    row = yaml.safe_load((toy.ROOT / "params.yaml").read_text())["recipes"][plain]
    params = toy.params(report__images_per_class=3, **{f"recipes__{adapted}": row | {"filter": "argmax"}})
    workspace = reported.write(tmp_path, params)
    report.run(params, workspace)
    assert "filters" not in reported.read(workspace)[1].sections
    path = workspace.result("generate", adapted)
    first, second, third = read_split(workspace.splits).classes
    images = params.synthetic_per_class((4, 4, 4))[0]
    chosen = {first: 4 * images, second: images, third: images}
    gave_up = {first: 2, second: 0, third: 0}
    write_json(
        path, json.loads(path.read_text()) | {"filter": {"kind": "argmax", "candidates": chosen, "gave_up": gave_up}}
    )
    report.run(params, workspace)
    section = reported.read(workspace)[1].sections["filters"]
    cells = dict(zip(section.rows[0][1:], section.row(adapted), strict=True))
    assert cells["candidates"] == f"{6 * images}" and cells["thrown out"] == "50.0%" and cells["none accepted"] == "2"
    assert cells["most thrown out of"].startswith(f"{first} 75.0%, ")
    assert (cells["CAS"], cells["without it"]) == ("88.3%", "64.6%")


def test_accuracy_by_attribute_stands_where_it_was_measured(tmp_path: Path) -> None:
    params = reported.parameters()
    workspace = reported.write(tmp_path, params)
    report.run(params, workspace)
    assert "slices" not in reported.read(workspace)[1].sections
    path = workspace.result("evaluate")
    record = read_json(path, "")
    of, minus = "datadream_dset/both/resnet20", "real/real/resnet20"
    gain = {"of": of, "minus": minus, "difference": 0.125, "low": -0.02, "high": 0.2501}
    there = {"group": "slant", "word": "<b>slanted", "images": 1200, "accuracy": {of: 0.875, minus: 0.75}, "gain": gain}
    absent = {"group": "slant", "word": "none", "images": 0, "accuracy": None, "gain": None}
    write_json(path, record | {"slices": [there, absent], "verdict": {"of": of, "minus": minus}})
    report.run(params, workspace)
    section = reported.read(workspace)[1].sections["slices"]
    assert section.rows == [
        ["Attribute", "word", "images", "accuracy, real", "accuracy, real + synthetic", "gain, points"],
        ["slant", "<b>slanted", "1 200", "75.0%", "87.5%", "+12.5 \N{MINUS SIGN}2.0 to +25.0"],
        ["slant", "none", "0", "–", "–", "–"],
    ]
    assert "resnet20 without and with datadream_dset; gains with 95% intervals" in section.one("caption").text
    ends = {"change": -0.08, "change_low": -0.11, "change_high": -0.05}
    wide = {"group": "slant", "high": "none", "low": "<b>slanted", "before": 0.2, "after": 0.12} | ends
    for low, high, words in (
        (-0.11, -0.05, "narrow"),
        (-0.1, 0.1, "leave"),
        (0.01, 0.1, "widen"),
        (None, None, "leave"),
    ):
        gaps = [wide | {"change_low": low, "change_high": high}]
        write_json(path, record | {"slices": [there], "gaps": gaps, "verdict": {"of": of, "minus": minus}})
        report.run(params, workspace)
        (told,) = reported.read(workspace)[1].sections["slices"].texts("p")
        assert told.startswith("slant: between none and <b>slanted the accuracy of real images alone differs by +20.0")
        assert f"Synthetic images {words} the gap" in told
    # Without a verdict nothing is compared.
    write_json(path, record | {"slices": [there | {"gain": None}], "verdict": None})
    report.run(params, workspace)
    assert reported.read(workspace)[1].sections["slices"].rows[1][3:] == ["–", "–", "–"]

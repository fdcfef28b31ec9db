"""A finished run's results, made up, and the page that was made of them, read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

from PIL import Image

import toy
from dreamset.core.files import write_csv, write_json
from dreamset.core.workspace import Workspace

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.params import Params

RECIPES = ("stable_diffusion", "datadream_dset")
HOSTILE = ("<script>alert(1)</script>", "a" * 300, "Δ/../数字\n\u202e\x07")


@dataclass
class Element:
    """An element of a page, with the elements and texts in it."""

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text in it, but for that of the style sheet; every run of white space is one space."""
        parts = [child if isinstance(child, str) else child.raw for child in self.children]
        return re.sub(r"\s+", " ", "".join(parts)).strip()

    @property
    def raw(self) -> str:
        return "".join(child if isinstance(child, str) else child.raw for child in self.children)

    def all(self, tag: str = "", kind: str = "") -> list[Element]:
        """Every element in it of this name and with this class."""
        inside = [child for child in self.children if isinstance(child, Element)]
        return [
            element
            for child in inside
            for element in (child, *child.all(tag, kind))
            if element is not child or child.fits(tag, kind)
        ]

    def fits(self, tag: str, kind: str) -> bool:
        return tag in ("", self.tag) and (not kind or kind in self.attributes.get("class", "").split())

    def one(self, tag: str = "", kind: str = "") -> Element:
        """The first of these."""
        return self.all(tag, kind)[0]

    def texts(self, tag: str = "", kind: str = "") -> list[str]:
        return [element.text for element in self.all(tag, kind)]

    @property
    def rows(self) -> list[list[str]]:
        """The texts of the cells of every row, heads included."""
        return [[cell.text for cell in row.children if isinstance(cell, Element)] for row in self.all("tr")]

    def row(self, heading: str) -> list[str]:
        """The cells of the only row with this heading, without it."""
        (cells,) = [cells[1:] for cells in self.rows if cells[0] == heading]
        return cells

    def terms(self) -> dict[str, str]:
        """A list of terms."""
        return dict(zip(self.texts("dt"), self.texts("dd"), strict=True))


class Page(HTMLParser):
    """A page as a tree of elements; every element is closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.root = Element("")
        self.open = [self.root]
        self.feed(source)
        self.close()
        assert self.open == [self.root]
        self.elements = self.root.all()
        self.tags = [element.tag for element in self.elements]
        self.attributes = [pair for element in self.elements for pair in element.attributes.items()]
        self.sections = {element.attributes["id"]: element for element in self.elements if element.tag == "section"}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in ("meta", "img", "br"):
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1].tag != "style":
            self.open[-1].children.append(data)

    @property
    def hero(self) -> Element:
        return self.root.one("header")

    @property
    def lede(self) -> str:
        """The sentences under the title."""
        return self.hero.one("p", "lede").text

    @property
    def reason(self) -> str:
        """The verdict's reason, behind a fold."""
        return self.hero.one("p", "reason").text

    @property
    def also(self) -> list[str]:
        """The sentences between the reason and the rule."""
        return [p.text for p in self.hero.one("details").children if isinstance(p, Element) and p.tag == "p"][1:]

    @property
    def caveat(self) -> list[str]:
        return self.hero.one("div", "caveat").texts("p")

    @property
    def cards(self) -> dict[str, tuple[str, str]]:
        """The headline's accuracies, and what stands below them, by what was trained on."""
        cards = [card.texts() for card in self.hero.one("ol").all("li")]
        return {name: (accuracy, spread) for name, _, accuracy, spread in cards}


def evaluation(params: Params, classes: tuple[str, ...], accuracies: dict[str, float]) -> dict[str, Any]:
    """What ``evaluate`` writes, for made-up accuracies by run."""
    runs = [
        {
            **dict(zip(("arm", "train_on", "classifier"), key.split("/"), strict=True)),
            "accuracy": value,
            "low": round(value - 0.021, 4),
            "high": round(value + 0.019, 4),
            "top5": None,
            "most_confused": [{"actual": classes[0], "predicted": classes[1], "count": 5}],
            "steps": 12,
            "chosen_step": 8,
            "seconds": 3.5,
        }
        for key, value in accuracies.items()
    ]
    plain, adapted = RECIPES
    pairs = [((adapted, kind), (plain, kind)) for kind in ("synthetic", "both")]
    pairs += [((recipe, "both"), ("real", "real")) for recipe in RECIPES]
    differences = []
    for classifier in params.train.classifiers:
        for first, second in pairs:
            of, minus = "/".join((*first, classifier)), "/".join((*second, classifier))
            gain = round(accuracies[of] - accuracies[minus], 4)
            differences.append(
                {"classifier": classifier, "of": of, "minus": minus}
                | {"difference": gain, "low": round(gain - 0.0113, 4), "high": round(gain + 0.0117, 4)}
            )
    return {
        "classes": classes,
        "test_images": 877,
        "confidence": 0.95,
        "bootstrap": 2000,
        "runs": runs,
        "differences": differences,
        "sets": {},
        "costs": {},
    }


def accuracies(params: Params) -> dict[str, float]:
    made = {"zero_shot/none/clip_zeroshot": 0.5432}
    for place, classifier in enumerate(params.train.classifiers):
        values = (0.8611, 0.6462, 0.9005, 0.8833, 0.9066)
        keys = ("real/real", *(f"{recipe}/{kind}" for recipe in RECIPES for kind in ("synthetic", "both")))
        made |= {f"{key}/{classifier}": value - place / 10 for key, value in zip(keys, values, strict=True)}
    return made


def parameters() -> Params:
    """Those of the run."""
    return toy.params(report__images_per_class=3)


def write(folder: Path, params: Params) -> Workspace:
    """A workspace with every result that a finished run leaves, but no test manifest."""
    workspace = Workspace.at(folder)
    split = toy.write_splits(workspace, selection=3)
    workspace.test_split.unlink()
    scores = accuracies(params)
    record = evaluation(params, split.classes, scores)
    for place, recipe in enumerate(RECIPES):
        images = toy.write_synthetic(workspace, recipe, seed=place + 5)
        pair = {"image": images[7].file_name, "shot": split.train[5].path, "distance": 0.7531}
        record["sets"][recipe] = {
            "images": len(images),
            "features": "judge, 64 wide",
            "n": 18,
            "fid": 79.64 - 50 * place,
            "kid": 0.14321,
            "kid_sd": 0.00213,
            "kid_subset": 18,
            "near_duplicates": {"threshold": 0.8, "count": 4 + place, "share": 0.0213, "pairs": [pair]},
        }
        loss = [{"adapter": "dataset", "step": 10 * i, "loss": 1 / i} for i in range(1, 20)] if place else []
        folder = workspace.plots("adapt", recipe)
        write_csv(folder / "loss.csv", loss, ("adapter", "step", "loss"))
        for step in (0, 100, 200) if place else ():
            Image.new("RGB", (4 * 16, 3 * 16), (step, 0, 0)).save(folder / f"samples_{step:05d}.png")
        adapt = {"recipe": recipe, "adapters": place, "steps": 190 * place, "seconds": 41.26 * place}
        adapt |= {"loss_first": 1.0, "loss_last": 0.0526} if place else {}
        write_json(workspace.result("adapt", recipe), adapt)
        drawn = {"recipe": recipe, "images": 18, "redrawn": 2, "seconds": 12.34, "images_per_s": 1.46}
        write_json(workspace.result("generate", recipe), drawn)
    for arm in ("real", *RECIPES):
        write_json(workspace.result("train", arm), {"arm": arm, "runs": [{"seconds": 1.5}, {"seconds": 2.25}]})
    write_json(workspace.result("evaluate"), record)
    labels = [i % 3 for i in range(60)]
    guesses = {key: [(label + (i % 10 == 0)) % 3 for i, label in enumerate(labels)] for key in scores}
    predictions = {"classes": split.classes, "labels": labels, "predicted": guesses}
    write_json(workspace.plots("evaluate") / "predictions.json", predictions)
    return workspace


def read(workspace: Workspace) -> tuple[str, Page]:
    source = (workspace.results / "report.html").read_text(encoding="utf-8")
    return source, Page(source)

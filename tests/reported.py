"""A finished run's results, made up, and the page that was made of them, read."""

from __future__ import annotations

import re
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


class Page(HTMLParser):
    """Checks that every element is closed in order, and gathers texts, attributes and pictures."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.sections: dict[str, list[str]] = {}
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "section":
            self.sections[dict(attrs)["id"] or ""] = self.words = []
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.sections.setdefault("hero", self.words)
            self.words.append(data)

    def text(self, section: str) -> str:
        return re.sub(r"\s+", " ", "".join(self.sections[section]))


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


def part(source: str, anchor: str) -> str:
    """The markup of a section."""
    start = source.index(f'<section id="{anchor}"')
    return source[start : source.index("</section>", start)]

"""What a stage says at its end: words with the numbers that matter, on lines that a terminal shows whole."""

from typing import Any

import pytest

from dreamset import adapt, generate
from dreamset.command import lines
from dreamset.core.files import read_json
from dreamset.core.workspace import Workspace
from dreamset.params import Params

PREPARED = {
    "protocol": "test",
    "classes": 10,
    "train_per_class": {"one": 4, "two": 4},
    "selection": 0,
    "test": 640,
    "test_groups": 5,
    "side": 8,
    "channels": 1,
    "rejected": 0,
    "copies": 0,
}
ADAPTED = {"adapters": 1, "steps": 400, "loss_first": 0.1234, "loss_last": 0.0567, "seconds": 66.08, "elapsed": 66.2}
STUDIED = {"trials": 8, "complete": 4, "pruned": 3, "slow": 0, "failed": 1, "seconds": 178.0, "elapsed": 180.0}
DRAWN = {
    "images": 500,
    "per_class": 50,
    "drawn_now": 500,
    "redrawn": 0,
    "rejected": 0,
    "images_per_s": 38.59,
    "sampler": {},
}
TRAINED = {"selection": "fixed", "runs": [{"steps": 80, "seconds": 20.2}, {"steps": 1200, "seconds": 20.9}]}
EVALUATED = {
    "protocol": "test",
    "folds": None,
    "test_images": 640,
    "verdict": {
        "outcome": "helps",
        "recipe": "datadream_light",
        "of": "datadream_light/both_strong/resnet20",
        "minus": "real/real_strong/resnet20",
        "difference": 0.0172,
        "low": 0.0019,
        "high": 0.0331,
    },
    "runs": [
        {"arm": "real", "train_on": "real_strong", "classifier": "resnet20", "accuracy": 0.9516},
        {"arm": "datadream_light", "train_on": "both_strong", "classifier": "resnet20", "accuracy": 0.9688},
    ],
}
DELIVERED = {
    "finding": "No gain found: −0.3 points (−2.3 to +0.9).",
    "advice": "Use the classifier of your real images: models/classifier.",
    "classifier": "resnet20",
    "accuracy": 0.9516,
    "low": 0.9078,
    "high": 0.9953,
}


@pytest.mark.parametrize(
    ("stage", "item", "summary", "changes", "said"),
    [
        ("prepare", None, PREPARED, {}, "10 classes, 4 images of each; 640 test images (5 groups); 8 px, grey"),
        (
            "prepare",
            None,
            PREPARED,
            {"protocol": "cv", "classes": 2, "train_per_class": {"a": 1, "b": 12}, "channels": 3, "rejected": 1},
            "2 classes, 1 to 12 images of each; each is held out once; 8 px, colour; 1 file left out",
        ),
        (
            "prepare",
            None,
            PREPARED,
            {"classes": 1, "train_per_class": {"a": 1}, "selection": 1, "test": 1, "test_groups": None},
            "1 class, 1 image of each; 1 more to select by; 1 test image; 8 px, grey",
        ),
        ("expect", None, {"expectation": "unlikely"}, {}, "synthetic images are unlikely to help"),
        ("adapt", "datadream_dset", ADAPTED, {}, "400 steps in 66 s, loss 0.123 at first, 0.057 at the end"),
        (
            "adapt",
            "datadream_cls",
            ADAPTED,
            {"adapters": 10, "steps": 2000, "elapsed": 0.31},
            "10 adapters, 2,000 steps in 66 s (0.3 s of it now), loss 0.123 at first, 0.057 at the end",
        ),
        ("adapt", "stable_diffusion", {"adapters": 0, "steps": 0, "seconds": 0.0}, {}, "no adapter to train"),
        ("tune", "tuned", STUDIED, {}, "8 trials in 3 min: 4 finished, 3 stopped early, 1 failed"),
        ("tune", "tuned", {"trials": 1}, {}, "1 trial ended, those of all processes"),
        ("tune", "tuned", {"trials": 0}, {}, "no values to search"),
        ("generate", "datadream_dset", DRAWN, {}, "500 images, 50 per class, 38.6 images/s"),
        (
            "generate",
            "datadream_dset",
            DRAWN,
            {"drawn_now": 1, "redrawn": 3, "rejected": 2, "images_per_s": 0.125},
            "500 images, 50 per class, 1 of them drawn now, 0.125 images/s, 3 drawn again, 2 rejected by you",
        ),
        (
            "generate",
            "retrieved",
            DRAWN,
            {"images": 1, "per_class": 1, "drawn_now": 0, "sampler": None},
            "1 image, 1 per class, all found before",
        ),
        ("train", "datadream_dset", TRAINED, {}, "2 classifiers, 80 to 1,200 steps each, 41 s"),
        (
            "train",
            "real",
            {"selection": "cv", "runs": [{"steps": 1, "seconds": 0.04}]},
            {},
            "1 classifier, 1 step, 0.0 s; folds chose the step",
        ),
        (
            "evaluate",
            None,
            EVALUATED,
            {},
            "640 test images: 96.9 % right with datadream_light, 95.2 % without\n"
            "  Synthetic images helped: +1.7 points (+0.2 to +3.3).",
        ),
        (
            "evaluate",
            None,
            EVALUATED,
            {"protocol": "cv", "folds": 5, "test_images": 48, "verdict": None},
            "48 images, held out in 5 folds; nothing was trained on real and synthetic images together",
        ),
        (
            "deliver",
            None,
            DELIVERED,
            {},
            "No gain found: −0.3 points (−2.3 to +0.9).\n"
            "  Use the classifier of your real images: models/classifier.\n"
            "  resnet20, 95.2 % (90.8 % to 99.5 %) of held-out images right",
        ),
        ("report", None, {"recipes": 4, "bytes": 1_234_567}, {}, "results/report.html, 4 recipes, 1.2 MB"),
    ],
)
def test_each_stage_says_what_matters(
    stage: str, item: str | None, summary: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    told = lines.line(stage, item, summary | changes)
    assert told == f"{stage}{f' {item}' if item else ''}: {said}"
    usual = not changes and len(summary) > 1
    assert max(map(len, told.splitlines())) <= (80 if usual else 120)


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (119.6, "2 min"), (7199, "120 min"), (9000, "2.5 h")],
)
def test_times_have_the_unit_that_reads_best(value: float, said: str) -> None:
    assert lines.seconds(value) == said


def test_the_summaries_of_stages_hold_what_their_lines_need(prepared: tuple[Params, Workspace]) -> None:
    params, workspace = prepared
    split = read_json(workspace.result("prepare"), "dreamset prepare")
    assert lines.prepare(split) == "10 classes, 2 images of each; 640 test images (5 groups); 8 px, grey"
    adapted = lines.adapt(adapt.run(params, workspace, "datadream_dset"))
    assert adapted.startswith("2 steps in ") and ", loss " in adapted
    assert lines.generate(generate.run(params, workspace, "datadream_dset")).startswith("40 images, 4 per class, ")
    assert lines.generate(generate.run(params, workspace, "datadream_dset")).startswith("40 images, 4 per class, all")
    assert lines.adapt(adapt.run(params, workspace, "stable_diffusion")) == "no adapter to train"

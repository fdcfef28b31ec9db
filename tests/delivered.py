"""A trained and delivered toy classifier, made once for the tests that use it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import toy
from dreamset import classifiers, deliver
from dreamset.core.files import write_json
from dreamset.core.workspace import Workspace
from dreamset.sweep import crossval

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.data.splits import Split
    from dreamset.metrics.verdict import Outcome

TEMPERATURE = 1.7


def evaluation(outcome: Outcome = "cannot_tell", classifier: str = "resnet20") -> dict[str, Any]:
    """What ``deliver`` reads of an evaluation."""
    return {
        "classes": toy.CLASSES,
        "test_images": 24,
        "confidence": 0.95,
        "labels_train_per_class": 4.0,
        "labels_selection_per_class": 3.0,
        "runs": [
            {"arm": arm, "train_on": kind, "classifier": name, "accuracy": accuracy, "low": 0.5, "high": 0.9}
            for arm, kind, accuracy in (("real", "real_strong", 0.75), ("datadream_dset", "both_strong", 0.875))
            for name in dict.fromkeys(("resnet20", "resnet50", "clip_lora", classifier))
        ],
        "differences": [
            {
                "of": f"datadream_dset/both_strong/{classifier}",
                "minus": f"real/real_strong/{classifier}",
                "difference": 0.125,
                "low": {"helps": 0.02, "cannot_tell": -0.1, "does_not_help": -0.3}[outcome],
                "high": 0.0 if outcome == "does_not_help" else 0.3,
                "mcnemar_p": 0.04,
            }
        ],
    }


def train(workspace: Workspace, split: Split, arm: str, kind: str, name: str, **row: Any) -> Path:
    """A classifier of a few random weights, saved as ``train`` saves it."""
    torch.manual_seed(len(arm))
    params = toy.params(models__bundled__clip="clip", **row)
    classifier = classifiers.build(name, params.base, split, workspace.root)
    with torch.no_grad():
        for parameter in classifier.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
        for buffer in classifier.buffers():
            if name == "resnet20" and buffer.dtype == torch.float32:
                buffer.add_(0.1 * torch.rand_like(buffer))
    if name == "resnet50":
        # The statistics of a batch, for with those that it starts with its values grow from block to block.
        for module in classifier.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            classifier.train()(torch.rand(4, 3, classifier.size, classifier.size))
            # And logits of a few units, as training leaves them: rounding is relative.
            classifier.network.fc.weight.mul_(0.05)
    record = {
        "classifier": name,
        "arm": arm,
        "train_on": kind,
        "classes": split.classes,
        "prompts": [split.prompt(label) for label in range(len(split.classes))],
        "temperature": TEMPERATURE,
    }
    folder = workspace.classifiers(arm) / f"{kind}_{name}"
    classifiers.save(classifier, folder, record)
    return folder


def world(root: Path, classifier: str, outcome: Outcome = "cannot_tell", **row: Any) -> Workspace:
    """A workspace with splits, classifiers and an evaluation, and what ``deliver`` makes of them."""
    workspace = Workspace.at(root)
    split = toy.write_splits(workspace, selection=3)
    if not classifiers.ROWS[classifier].from_scratch:
        toy.write_clip(root / "clip")
    for arm, kind in (("real", "real_strong"), ("datadream_dset", "both_strong")):
        train(workspace, split, arm, kind, classifier, **row)
    write_json(workspace.result("evaluate"), evaluation(outcome, classifier))
    chosen = {"train__classifiers": [classifier], "models__bundled__train__deliver": classifier}
    deliver.run(toy.params(**chosen, **row), workspace, crossval.run)
    return workspace


def snippet_of(folder: Path) -> str:
    """The code on the card of a delivered classifier."""
    found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert found is not None and "dreamset" not in found[1]
    return found[1]


def wide(root: Path, count: int) -> list[Path]:
    """Photographs that are not square, larger than what a classifier sees, of three forms of file."""
    from PIL import Image

    rng = np.random.default_rng(5)
    files = []
    for index in range(count):
        pixels = rng.integers(0, 256, (8, 9 + index % 3, 3)).astype(np.uint8)
        image = Image.fromarray(pixels).resize((61 + 13 * (index % 4), 47), Image.Resampling.BICUBIC)
        files.append(root / f"{index}.{('png', 'jpg', 'webp')[index % 3]}")
        root.mkdir(parents=True, exist_ok=True)
        image.save(files[-1])
    return files


# Every trained classifier that has a program, with the pixels that it sees. At 24 it sees more than the model's
# resolution has, so that its program and its graph enlarge, too.
PROGRAMS = [
    ("resnet20", 24),
    ("resnet50", 64),
    ("clip_lora", 16),
    ("classifier_tuning", 16),
    ("prompt_tuning", 16),
    ("vpt", 16),
    ("convnet_d3", 24),
]

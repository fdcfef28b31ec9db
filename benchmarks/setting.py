"""What all benchmarks share: parameters, a prepared workspace, and how much work is timed."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks import pictures, published
from dreamset import adapt, classifiers, params, prepare
from dreamset.core import device
from dreamset.core.workspace import Workspace
from dreamset.data import splits
from dreamset.weights import hub

if TYPE_CHECKING:
    import torch

    from dreamset.data.splits import Sample, Split
    from dreamset.params import Params

DATASET, CLASS = "datadream_dset", "datadream_cls"


@dataclass(frozen=True)
class Amount:
    """How much of everything is timed, once: optimizer steps, images."""

    shots: int
    steps: int  # of an adapter, after warm-up
    warmup: int
    per_class: int  # images, one adapter for all classes
    classes: int  # that have adapters of their own; each draws one shard
    classifier_steps: int
    evaluated: int  # images
    trials: int  # of a study


BUNDLED = Amount(shots=16, steps=20, warmup=2, per_class=10, classes=2, classifier_steps=10, evaluated=512, trials=12)
# At 512 pixels: whole shards of 32, whole batches of 10.
FULL = Amount(shots=16, steps=10, warmup=3, per_class=12, classes=2, classifier_steps=4, evaluated=512, trials=2)
QUICK = Amount(shots=2, steps=1, warmup=1, per_class=1, classes=1, classifier_steps=2, evaluated=16, trials=2)


PHOTOGRAPHS = 32  # pixels above which real images are photographs
CLASSES, CAPTIONS = 8, (10, 100, 397)  # a shard of 32 has all classes; 397 are SUN397's
REDUCED_CLASSES, REDUCED_CAPTIONS = 2, (10, 40)


@dataclass(frozen=True)
class Setting:
    """Parameters and data of a run; everything it writes stands under a folder that is thrown away."""

    params: Params
    workspace: Workspace
    split: Split
    amount: Amount
    device: torch.device
    captions: tuple[int, ...]  # numbers of classes that a CLIP is trained and evaluated with

    @property
    def generator(self) -> Path:
        """The base's diffusers folder."""
        return hub.locate(self.workspace.root, *self.params.base.pretrained)

    def files(self, labels: tuple[int, ...]) -> list[Path]:
        """The real images of some classes."""
        return [self.path(sample) for sample in self.split.train if sample.label in labels]

    def path(self, sample: Sample) -> Path:
        """The file of a real image."""
        return self.workspace.cell / sample.path


def make(
    file: Path,
    folder: Path,
    amount: Amount | None = None,
    *,
    random_weights: bool = False,
    reduced: bool = False,
    **changes: Any,
) -> Setting:
    """Read parameters and prepare the real images in ``folder``.

    Args:
        file: a params.yaml; relative paths of its models start from its folder.
        folder: an empty one.
        amount: how much is timed; None: what is right for the size.
        random_weights: write models of published configurations and use them in the place of the row's.
        reduced: those models narrow, and little work.
        changes: of the parameters' first level, ``model`` say.
    """
    raw = yaml.safe_load(file.read_text(encoding="utf-8")) | changes
    row = copy.deepcopy(raw["models"][raw["model"]])
    raw["models"][raw["model"]] = row
    chosen, captions = device.pick(), ()
    for kind in ("generator", "clip", "judge"):
        if not row[kind].startswith(("hub:", "open_clip:")):
            row[kind] = str(file.resolve().parent / row[kind])
    if random_weights:
        row["generator"] = str(published.write_generator(folder / "generator", chosen, reduced=reduced))
        row["clip"] = str(published.write_clip(folder / "clip", reduced=reduced))
        # It times nothing; `prepare` looks for near-duplicates with it.
        row["judge"] = str(Path(__file__).parents[1] / "models/base/judge")
    if reduced:
        _reduce(row)
    # Digits of eight pixels are no stand-in for photographs.
    photographs = row["resolution"] > PHOTOGRAPHS
    if amount is None:
        amount = FULL if photographs and not reduced else QUICK if reduced else BUNDLED
    if photographs:
        classes = REDUCED_CLASSES if reduced else CLASSES
        captions = REDUCED_CAPTIONS if reduced else CAPTIONS
        per_class = {"train": amount.shots + min(amount.shots, 4), "test": 1}
        pictures.write(folder / "pictures", classes, per_class, row["resolution"])
        raw["prepare"] |= {"source": f"imagefolder:{folder / 'pictures'}"}
    raw |= {"shots": amount.shots, "active": [DATASET, CLASS]}
    raw["generate"] |= {"per_class": amount.per_class}
    parsed = params.parse(raw, classifiers.ROWS, str(file))
    workspace = Workspace.at(folder)
    prepare.run(parsed, workspace)
    split = splits.read_split(workspace.splits)
    return Setting(parsed, workspace, split, amount, chosen, captions or (len(split.classes),))


def of_classes(setting: Setting, count: int) -> Setting:
    """The same images with captions of ``count`` classes, most of them without an image."""
    have = setting.split.classes
    more = tuple(f"object {label:03d}" for label in range(len(have), count))
    return replace(setting, split=replace(setting.split, classes=have + more))


def _reduce(row: dict[str, Any]) -> None:
    """Change a model's row for the narrow models, and for next to no work."""
    row |= {"resolution": published.REDUCED_RESOLUTION, "dtype": "float32"}
    row["adapt"] |= {"together": 2}
    for scope in ("dataset", "class"):
        row["adapt"][scope] |= {"batch": 2}
    row["generate"] |= {"per_class": 4, "batch": 4, "steps": 5}
    row["train"]["clip_lora"] |= {"batch": 8}
    row["train"]["resnet20"] |= {"batch": 8, "width": 8}


_SCOPES = ("dataset", "class_", "image", "shared")


def adapters(setting: Setting, recipe: str) -> None:
    """Adapters of a few steps, which cost as much to draw with as good ones."""
    given, row = setting.params, setting.params.base
    brief = {name: replace(getattr(row.adapt, name), max_steps=3, warmup=1) for name in _SCOPES}
    short = replace(
        given,
        adapt=replace(given.adapt, sample_images=1),
        models=given.models | {given.model: replace(row, adapt=replace(row.adapt, **brief))},
    )
    adapt.run(short, setting.workspace, recipe)

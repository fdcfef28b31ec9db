"""What all benchmarks share: parameters, a prepared workspace, and how much work is timed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dreamset import adapt, device, params, prepare, splits
from dreamset.workspace import Workspace

if TYPE_CHECKING:
    import torch

    from dreamset.params import Params
    from dreamset.splits import Sample, Split

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


FULL = Amount(shots=16, steps=20, warmup=2, per_class=10, classes=2, classifier_steps=10, evaluated=512)
QUICK = Amount(shots=2, steps=1, warmup=1, per_class=1, classes=1, classifier_steps=2, evaluated=16)


@dataclass(frozen=True)
class Setting:
    """Parameters and data of a run; everything it writes stands under a folder that is thrown away."""

    params: Params
    workspace: Workspace
    split: Split
    amount: Amount
    device: torch.device

    @property
    def generator(self) -> Path:
        """The base's diffusers folder."""
        return self.workspace.base(self.params.base.generator)

    def files(self, labels: tuple[int, ...]) -> list[Path]:
        """The real images of some classes."""
        return [self.path(sample) for sample in self.split.train if sample.label in labels]

    def path(self, sample: Sample) -> Path:
        """The file of a real image."""
        return self.workspace.cell / sample.path


def make(file: Path, folder: Path, amount: Amount, **changes: Any) -> Setting:
    """Read parameters and prepare the real images in ``folder``.

    Args:
        file: a params.yaml; relative paths of its models start from its folder.
        folder: an empty one.
        amount: how much is timed.
        changes: of the parameters' first level, ``model`` say.
    """
    raw = yaml.safe_load(file.read_text(encoding="utf-8")) | changes
    raw |= {"shots": amount.shots, "active": [DATASET, CLASS]}
    raw["generate"] |= {"per_class": amount.per_class}
    row = raw["models"][raw["model"]]
    for kind in ("generator", "clip", "judge"):
        row[kind] = str(file.resolve().parent / row[kind])
    parsed = params.parse(raw, str(file))
    workspace = Workspace.at(folder)
    prepare.run(parsed, workspace)
    return Setting(parsed, workspace, splits.read_split(workspace.splits), amount, device.pick())


def adapters(setting: Setting, recipe: str) -> None:
    """Adapters of a few steps, which cost as much to draw with as good ones."""
    given, row = setting.params, setting.params.base
    brief = {name: replace(getattr(row.adapt, name), max_steps=3, warmup=1) for name in ("dataset", "class_")}
    short = replace(
        given,
        adapt=replace(given.adapt, sample_images=1),
        models=given.models | {given.model: replace(row, adapt=replace(row.adapt, **brief))},
    )
    adapt.run(short, setting.workspace, recipe)

"""A linear probe: logistic regression on the unit features of CLIP's frozen image tower (Radford et al. 2021).

It uses no captions: its weights start from zero. Like the other classifiers, it is trained on augmented images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dreamset.classifiers.linear_head import PROGRAM, load, network, save
from dreamset.params.model import ClipRow

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.classifiers.clip import Clip
    from dreamset.data.splits import Split
    from dreamset.params.model import Model

__all__ = ["Row", "build", "load", "save"]


@dataclass(frozen=True)
class Row(ClipRow):
    """``train.linear_probe`` of a model's row."""

    program: ClassVar[str | None] = PROGRAM
    has_head: ClassVar[bool] = True
    later: ClassVar[bool] = False


def build(row: Row, model: Model, split: Split, root: Path) -> Clip:
    """Return the CLIP that a model's row names, with a linear head of zeros."""
    from dreamset.weights import pretrained

    prompts = [split.prompt(label) for label in range(len(split.classes))]
    return network(pretrained.find(root, model.clip), prompts, label_smoothing=row.label_smoothing)

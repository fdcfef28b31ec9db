"""Classifier tuning: a linear head on CLIP's frozen image tower that starts from the zero-shot weights.

He et al. 2023, "Is synthetic data from generative models ready for image recognition?" (arXiv 2210.07574). Beside the
labels it may learn from the zero-shot CLIP's probabilities of the same, augmented image. The paper trains on images as
they are; here they are augmented like any other classifier's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dreamset.classifiers.linear_head import PROGRAM, load, network, save
from dreamset.params.model import ClipRow
from dreamset.params.values import Positive, Share

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.classifiers.clip import Clip
    from dreamset.data.splits import Split
    from dreamset.params.model import Model

__all__ = ["Row", "build", "load", "save"]


@dataclass(frozen=True)
class Row(ClipRow):
    """``train.classifier_tuning`` of a model's row.

    Attributes:
        soft: share of the loss that soft labels have; 0: hard labels alone.
        temperature: by which the logits of teacher and student are divided for the soft labels.
    """

    program: ClassVar[str | None] = PROGRAM
    has_head: ClassVar[bool] = True

    soft: Share
    temperature: Positive


def build(row: Row, model: Model, split: Split, root: Path) -> Clip:
    """Return the CLIP that a model's row names, with a linear head that answers as it."""
    from dreamset.weights import pretrained

    prompts = [split.prompt(label) for label in range(len(split.classes))]
    return network(
        pretrained.find(root, model.clip),
        prompts,
        zero_shot=True,
        soft_labels=(row.soft, row.temperature) if row.soft else None,
        label_smoothing=row.label_smoothing,
    )

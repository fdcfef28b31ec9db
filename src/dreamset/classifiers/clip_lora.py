"""CLIP adapted by LoRA on the query and value projections of both towers, like DataDream's classifier."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from dreamset.classifiers.clip_head import HEAD, PROGRAM, save_more
from dreamset.core.strict import Range
from dreamset.params.model import LATER, ClipRow
from dreamset.params.values import Positive

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.classifiers.clip import Clip
    from dreamset.data.splits import Split
    from dreamset.params.model import Model

__all__ = ["HEAD", "Row", "build", "load", "save", "save_more"]


@dataclass(frozen=True)
class Row(ClipRow):
    """``train.clip_lora`` of a model's row; ``towers``: which get LoRAs."""

    program: ClassVar[str | None] = PROGRAM
    later: ClassVar[bool] = False

    rank: Annotated[int, Range(low=1, high=1024)]
    alpha: Positive
    dropout: Annotated[float, Range(low=0, high=0.9)]
    towers: Literal["both", "image", "text"] = field(default="both", metadata=LATER)


def build(row: Row, model: Model, split: Split, root: Path) -> Clip:
    """Return the pretrained CLIP with fresh LoRAs; it starts as the zero-shot classifier."""
    from dreamset.classifiers import clip, lora_attention

    classifier = clip.build(root, model.clip, split)
    classifier.label_smoothing = row.label_smoothing
    lora_attention.adapt(classifier.model, row.rank, row.alpha, row.dropout, row.towers)
    classifier.captions_learn = row.towers != "image"
    # With more than some 300 classes the captions need more memory than the images.
    if "gradient_checkpointing" in model.memory:
        lora_attention.checkpoint_text(classifier.model)
    return classifier


def save(classifier: Clip, folder: Path) -> dict[str, Any]:
    """Merge the LoRAs, write a stock open_clip folder, and return the facts that ``load`` needs."""
    from dreamset.classifiers import clip, lora_attention

    lora_attention.merge(classifier.model)
    return clip.save(classifier, folder)


def load(folder: Path, record: dict[str, Any]) -> Clip:
    """Return the classifier that ``save`` wrote, with its LoRAs merged."""
    from dreamset.classifiers import clip

    return clip.load(folder, record)

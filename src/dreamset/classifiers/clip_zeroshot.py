"""CLIP without any training: the baseline that needs no labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.classifiers.clip import Clip
    from dreamset.data.splits import Split
    from dreamset.params.model import Model


def build(row: None, model: Model, split: Split, root: Path) -> Clip:
    """Return the pretrained CLIP with the captions of ``split``."""
    from dreamset.classifiers import clip

    return clip.build(root, model.clip, split)


def save(classifier: Clip, folder: Path) -> dict[str, Any]:
    """Write a stock open_clip folder, and return the facts that ``load`` needs."""
    from dreamset.classifiers import clip

    return clip.save(classifier, folder)


def load(folder: Path, record: dict[str, Any]) -> Clip:
    """Return the classifier that ``save`` wrote."""
    from dreamset.classifiers import clip

    return clip.load(folder, record)

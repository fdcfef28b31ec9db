"""CLIP without any training: the baseline that costs no label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.classifiers.clip import Clip
    from dreamset.data.splits import Split
    from dreamset.params.model import Model


def build(row: None, model: Model, split: Split, root: Path) -> Clip:
    """The pretrained CLIP with the captions of ``split``."""
    from dreamset.classifiers import clip

    return clip.build(root, model.clip, split)


def save(classifier: Clip, folder: Path) -> dict[str, Any]:
    """A stock open_clip folder."""
    from dreamset.classifiers import clip

    return clip.save(classifier, folder)


def load(folder: Path, record: dict[str, Any]) -> Clip:
    """A classifier as ``save`` wrote it."""
    from dreamset.classifiers import clip

    return clip.load(folder, record)

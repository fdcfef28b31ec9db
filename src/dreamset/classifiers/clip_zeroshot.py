"""CLIP without any training: the baseline that costs no label."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamset.classifiers import clip
from dreamset.classifiers.clip import load, save

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.data.splits import Split
    from dreamset.params.model import Model

__all__ = ["build", "load", "save"]


def build(model: Model, split: Split, root: Path) -> clip.Clip:
    """The pretrained CLIP with the captions of ``split``."""
    return clip.build(root, model.clip, split)

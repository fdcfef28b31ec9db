"""CLIP without any training: the baseline that needs no labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.classifiers.clip import Clip
    from dreamset.data.splits import Split
    from dreamset.params.model import Model


def build(row: None, model: Model, split: Split, root: Path) -> Clip:
    """Return the pretrained CLIP with the captions that ``split`` has for it: its own, or those of the generator."""
    from dreamset.classifiers import clip
    from dreamset.weights import pretrained

    captions = split.clip_prompts()
    return clip.read(pretrained.find(root, model.clip), [c for each in captions for c in each], len(captions))


def save(classifier: Clip, folder: Path) -> dict[str, Any]:
    """Write a stock open_clip folder, and return the facts that ``load`` needs."""
    from dreamset.classifiers import clip

    return clip.save(classifier, folder)


def load(folder: Path, record: dict[str, Any]) -> Clip:
    """Return the classifier that ``save`` wrote; ``prompts`` of its record are those of all classes by template."""
    from dreamset.classifiers import clip
    from dreamset.weights import pretrained

    base = pretrained.in_folder(folder, record["base"], record.get("base_commit"), record["base_sha256"])
    return clip.read(base, record["prompts"], len(record["prompts"]) // len(record["classes"]))

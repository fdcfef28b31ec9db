"""The prompts that stand for the empty one in guidance: those of other classes."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import TYPE_CHECKING

from dreamset.core.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.data.work import Work


def applied(work: Work) -> Work:
    """Return the work with the prompts that guidance leads away from, where the recipe names some.

    A class is led away from the other class whose caption is nearest in the model's CLIP, as in DIPSY (arXiv
    2509.22635). The caller hands them to the module that draws, so that no drawn image depends on CLIP's code.

    Raises:
        InputError: there is one class alone, or the CLIP is missing.
    """
    split = work.split
    check(work)
    if work.row.guide != "other_class":
        return work
    prompts = tuple(split.prompt(label) for label in range(len(split.classes)))
    nearest = _nearest(work.workspace.root, work.base.clip, prompts)
    return dataclasses.replace(work, avoided=tuple(work.lead(other) for other in nearest))


def check(work: Work) -> None:
    """Refuse to lead away from another class where there is none.

    Raises:
        InputError: naming the key.
    """
    if work.row.guide == "other_class" and len(work.split.classes) < 2:
        raise InputError(f"recipes.{work.recipe}.guide: other_class needs a second class; remove it.")


@lru_cache(maxsize=4)
def _nearest(root: Path, name: str, prompts: tuple[str, ...]) -> tuple[int, ...]:
    import torch

    from dreamset.classifiers import clip
    from dreamset.weights import pretrained

    network = clip.read(pretrained.find(root, name), prompts).eval()
    with torch.inference_mode():
        features = network.class_features()
        near = (features @ features.T).fill_diagonal_(-torch.inf)
    return tuple(int(label) for label in near.argmax(1))

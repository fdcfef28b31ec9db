"""Accuracy by attribute: of the images whose word of a group is the same, as zero-shot CLIP reads them.

The attributes of test images are read here alone, after every choice, and nothing goes by them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dreamset.core.workspace import Workspace
    from dreamset.data.runs import Run
    from dreamset.data.splits import Sample, Split
    from dreamset.params import Params


def of(
    params: Params,
    workspace: Workspace,
    split: Split,
    samples: Sequence[Sample],
    right: Mapping[Run, NDArray[np.float64]],
) -> list[dict[str, Any]]:
    """Return the accuracy of every run on the images of each word of ``evaluate.slices``; empty where none is named.

    Args:
        params: names the groups, and the words of each in the model's row.
        workspace: the paths of ``samples`` are relative to its cell.
        split: gives the captions that words are put behind.
        samples: the n images that are scored.
        right: (n,), 1 where a run's prediction is right, else 0.

    Returns:
        A row per word, with ``group``, ``word``, ``images``, ``probability`` (the mean of what CLIP gives to the word
        on these images) and ``accuracy`` by run; the latter two are None of a word that no image has.

    Raises:
        InputError: the CLIP is missing.
    """
    if not params.evaluate.slices:
        return []
    from dreamset.data import arrays
    from dreamset.generator import attributes

    groups = {group: (params.base.attributes or {})[group] for group in params.evaluate.slices}
    reader = attributes.reader(workspace.root, params.base.clip, split, groups)
    images = arrays.real(samples, workspace.cell, reader.size, workspace.scratch).images
    rows = []
    for group, likely in reader.read(images).items():
        best = likely.argmax(1)
        for place, word in enumerate(groups[group]):
            here = best == place
            measured: dict[str, Any] = {"probability": None, "accuracy": None}
            if here.any():
                measured["probability"] = round(float(likely[here, place].mean()), 4)
                measured["accuracy"] = {str(run): round(float(hits[here].mean()), 4) for run, hits in right.items()}
            rows.append({"group": group, "word": word, "images": int(here.sum())} | measured)
    return rows

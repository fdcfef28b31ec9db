"""Accuracy by attribute: of the images whose word of a group is the same, as zero-shot CLIP reads them.

The attributes of test images are read here alone, after every choice, and nothing goes by them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreamset.data.runs import Run
from dreamset.evaluate import records

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dreamset.core.workspace import Workspace
    from dreamset.data.splits import Sample, Split
    from dreamset.params import Params


def of(
    params: Params,
    workspace: Workspace,
    split: Split,
    samples: Sequence[Sample],
    right: dict[Run, NDArray[np.float64]],
    groups: NDArray[np.int64] | None,
    found: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    """Return the accuracy of every run on the images of each word of ``evaluate.slices``; empty where none is named.

    Args:
        params: names the groups, and the words of each in the model's row.
        workspace: the paths of ``samples`` are relative to its cell.
        split: gives the captions that words are put behind.
        samples: the n images that are scored.
        right: (n,), 1 where a run's prediction is right, else 0.
        groups: (n,), numbers of the images' groups; None where each image is a group.
        found: the verdict, whose two runs are compared on each word; None: nothing is compared.

    Returns:
        A row per word, with ``group``, ``word``, ``images``, ``probability`` (the mean of what CLIP gives to the word
        on these images), ``accuracy`` by run, and ``gain``, the paired difference of the verdict's runs with its
        interval, as ``records.difference`` returns it. Of a word that no image has the last three are None; the gain is
        None of fewer than two groups of images, too.

    Raises:
        InputError: the CLIP is missing.
    """
    if not params.evaluate.slices:
        return []
    from dreamset.data import arrays
    from dreamset.generator import attributes

    words = {group: (params.base.attributes or {})[group] for group in params.evaluate.slices}
    reader = attributes.reader(workspace.root, params.base.clip, split, words)
    images = arrays.real(samples, workspace.cell, reader.size, workspace.scratch).images
    rows = []
    for group, likely in reader.read(images).items():
        best = likely.argmax(1)
        for place, word in enumerate(words[group]):
            here = best == place
            measured: dict[str, Any] = {"probability": None, "accuracy": None, "gain": None}
            if here.any():
                measured["probability"] = round(float(likely[here, place].mean()), 4)
                measured["accuracy"] = {str(run): round(float(hits[here].mean()), 4) for run, hits in right.items()}
                measured["gain"] = _gain(params, right, groups, here, found)
            rows.append({"group": group, "word": word, "images": int(here.sum())} | measured)
    return rows


def _gain(
    params: Params,
    right: dict[Run, NDArray[np.float64]],
    groups: NDArray[np.int64] | None,
    here: NDArray[np.bool_],
    found: Mapping[str, Any] | None,
) -> dict[str, Any] | None:
    """Return the difference of the verdict's runs on some of the images; None without two groups of them to resample.

    Args:
        params: gives the interval's confidence.
        right: (n,), 1 where a run's prediction is right, else 0.
        groups: (n,), numbers of the images' groups; None where each image is a group.
        here: (n,), the images.
        found: the verdict.
    """
    import numpy as np

    units = None if groups is None else np.unique(groups[here], return_inverse=True)[1]
    if found is None or (here.sum() if units is None else units.max() + 1) < 2:
        return None
    of, minus = (Run.parse(found[name]) for name in ("of", "minus"))
    return records.difference(params, {run: right[run][here] for run in (of, minus)}, units, of, minus)

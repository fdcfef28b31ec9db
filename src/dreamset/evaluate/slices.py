"""Accuracy by attribute: of the images whose word of a group is the same, as zero-shot CLIP reads them.

``group`` is the slice by the groups of a list of images, such as their writers.

The attributes of test images are read here alone, after every choice, and nothing goes by them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.errors import InputError
from dreamset.data.runs import Run
from dreamset.evaluate import records
from dreamset.params.sections import GROUP

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dreamset.core.workspace import Workspace
    from dreamset.data.splits import Sample, Split
    from dreamset.params import Params

FEWEST: Final = 20  # images of a word that may be an end of a gap


def of(
    params: Params,
    workspace: Workspace,
    split: Split,
    samples: Sequence[Sample],
    right: dict[Run, NDArray[np.float64]],
    groups: NDArray[np.int64] | None,
    found: Mapping[str, Any] | None,
) -> dict[str, list[dict[str, Any]]]:
    """Return the accuracy of every run on the images of each word of ``evaluate.slices``, and gaps between words.

    Args:
        params: names the groups, and the words of each in the model's row.
        workspace: the paths of ``samples`` are relative to its cell.
        split: gives the captions that words are put behind.
        samples: the n images that are scored.
        right: (n,), 1 where a run's prediction is right, else 0.
        groups: (n,), numbers of the images' groups; None where each image is a group.
        found: the verdict, whose two runs are compared on each word; None: nothing is compared.

    Returns:
        ``slices`` and ``gaps``; empty where no slice is named. ``slices`` has a row per word, with ``group``, ``word``,
        ``images``, ``probability`` (the mean of what CLIP gives to the word on these images; None for ``group``),
        ``accuracy`` by run, and ``gain``, the paired difference of the verdict's runs with its interval, as
        ``records.difference`` returns it. Of a word that no image has the last three are None; the gain is None of
        fewer than two groups of images, too. ``gaps`` is what ``gap`` returns of each slice that has one.

    Raises:
        InputError: the images have no groups, or the CLIP is missing.
    """
    if not params.evaluate.slices:
        return {}
    rows, gaps = [], []
    for slice_, parts in _parts(params, workspace, split, samples).items():
        # Inside a group of images there are no groups left to resample.
        units = None if slice_ == GROUP else groups
        for word, (here, probability) in parts.items():
            measured: dict[str, Any] = {"probability": None, "accuracy": None, "gain": None}
            if here.any():
                measured["probability"] = probability
                measured["accuracy"] = {str(run): round(float(hits[here].mean()), 4) for run, hits in right.items()}
                measured["gain"] = _gain(params, right, units, here, found)
            rows.append({"group": slice_, "word": word, "images": int(here.sum())} | measured)
        if found is not None:
            of, minus = (right[Run.parse(found[name])] for name in ("of", "minus"))
            between = gap(params, of, minus, {word: here for word, (here, _) in parts.items()}, units)
            gaps += [] if between is None else [{"group": slice_} | between]
    return {"slices": rows, "gaps": gaps}


def _parts(
    params: Params, workspace: Workspace, split: Split, samples: Sequence[Sample]
) -> dict[str, dict[str, tuple[NDArray[np.bool_], float | None]]]:
    """Return by slice and word which images (n,) it holds, and CLIP's mean probability of the word; None: as listed.

    Raises:
        InputError: the images have no groups, or the CLIP is missing.
    """
    import numpy as np

    parts: dict[str, dict[str, tuple[NDArray[np.bool_], float | None]]] = {}
    if GROUP in params.evaluate.slices:
        check_groups(len({sample.group for sample in samples}), len(samples))
        names = np.array([sample.group for sample in samples])
        parts[GROUP] = {str(name): (names == name, None) for name in sorted(set(names))}
    words = {name: (params.base.attributes or {})[name] for name in params.evaluate.slices if name != GROUP}
    if not words:
        return parts
    from dreamset.data import arrays
    from dreamset.generator import attributes

    reader = attributes.reader(workspace.root, params.base.clip, split, words)
    images = arrays.real(samples, workspace.cell, reader.size, workspace.scratch).images
    for name, likely in reader.read(images).items():
        best = likely.argmax(1)
        parts[name] = {}
        for place, word in enumerate(words[name]):
            here = best == place
            parts[name][word] = here, round(float(likely[here, place].mean()), 4) if here.any() else None
    return parts


def check_groups(groups: int, images: int) -> None:
    """Refuse images that have no groups to slice by.

    Raises:
        InputError: all are of one group, or each is one of its own.
    """
    if groups in (1, images):
        raise InputError(
            "evaluate.slices: group: the scored images are of one group or of none; give the list of images a column "
            "`group`, or take group out."
        )


def gap(
    params: Params,
    of: NDArray[np.float64],
    minus: NDArray[np.float64],
    words: Mapping[str, NDArray[np.bool_]],
    groups: NDArray[np.int64] | None,
) -> dict[str, Any] | None:
    """Return whether synthetic images widen the gap between the words of the highest and the lowest accuracy.

    These are chosen by the accuracy without synthetic images, among words of ``FEWEST`` images or more. So the gap
    shrinks a little by itself, as extremes do. The interval of the change is made of those of the two gains, as for any
    difference of two independent parts (MOVER; Zou and Donner 2008), so it keeps their floor.

    Args:
        params: gives the confidence and the resamples.
        of: (n,), 1 where the run with synthetic images is right, else 0.
        minus: (n,), the same without them.
        words: which images (n,) each holds.
        groups: (n,), numbers of the images' groups; None where each image is a group.

    Returns:
        ``high`` and ``low`` (the words), ``before`` and ``after`` (the gap without and with synthetic images), and
        ``change`` with the ends ``change_low`` and ``change_high`` of its interval. None where fewer than two words
        have images and groups enough, or all words have one accuracy.
    """
    masks = {word: here for word, here in words.items() if here.sum() >= FEWEST and _units(groups, here) != 1}
    means = {word: float(minus[here].mean()) for word, here in masks.items()}
    if len({*means.values()}) < 2:
        return None
    high, low = max(means, key=lambda word: means[word]), min(means, key=lambda word: means[word])
    one, other = (
        records.interval_of(params, (of - minus)[masks[word]], _inside(groups, masks[word]), paired=True)
        for word in (high, low)
    )
    change = one.estimate - other.estimate
    return {
        "high": high,
        "low": low,
        "before": round(means[high] - means[low], 4),
        "after": round(means[high] - means[low] + change, 4),
        "change": round(change, 4),
        "change_low": round(change - math.hypot(one.estimate - one.low, other.high - other.estimate), 4),
        "change_high": round(change + math.hypot(one.high - one.estimate, other.estimate - other.low), 4),
    }


def _inside(groups: NDArray[np.int64] | None, here: NDArray[np.bool_]) -> NDArray[np.int64] | None:
    """Return the group numbers of some of the images, from 0 on."""
    import numpy as np

    return None if groups is None else np.unique(groups[here], return_inverse=True)[1]


def _units(groups: NDArray[np.int64] | None, here: NDArray[np.bool_]) -> int:
    """Return the number of groups among some of the images."""
    units = _inside(groups, here)
    return int(here.sum()) if units is None else int(units.max(initial=-1)) + 1


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
    if found is None or _units(groups, here) < 2:
        return None
    of, minus = (Run.parse(found[name]) for name in ("of", "minus"))
    return records.difference(params, {run: right[run][here] for run in (of, minus)}, _inside(groups, here), of, minus)

"""The LoRAs of shots that each image is drawn with: a pair (LoFT) or all of its class (ChimeraLoRA)."""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import TYPE_CHECKING

from dreamset.core.seeds import seed_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dreamset.data.adapters import Adapter
    from dreamset.data.work import Work

    Mix = tuple[tuple[str, float], ...]  # sha256 and weight of each LoRA


def choose(work: Work, adapters: Sequence[Adapter], wanted: Iterable[tuple[int, int]], scale: float) -> tuple[Mix, ...]:
    """Return the LoRAs of each image, which depend on the seed, its class and its index alone.

    The indices of a class go round all pairs of its LoRAs, each round in another order. The only LoRA of a class is
    used by itself.

    Args:
        work: on the recipe.
        adapters: of the recipe, those of a class in the order of its shots.
        wanted: label and index of each image.
        scale: a factor of all weights.
    """
    by_label: dict[int, list[Adapter]] = {}
    for adapter in adapters:
        by_label.setdefault(adapter.labels[0], []).append(adapter)
    chosen = []
    for label, index in wanted:
        own, name = by_label[label], work.split.classes[label]
        if len(own) == 1:
            mix = [(0, 1.0)]
        elif work.row.mixes_by == "pair":
            mix = [(one, 0.5) for one in _pair(work.params.seed, name, index, len(own))]
        else:
            mix = [*enumerate(_weights(work.params.seed, name, index, len(own), work.row.concentration_of))]
        chosen.append(tuple((own[number].sha256, round(scale * weight, 6)) for number, weight in mix))
    return tuple(chosen)


def _pair(seed: int, class_name: str, index: int, count: int) -> tuple[int, int]:
    turn, place = divmod(index, count * (count - 1) // 2)
    return _pairs(seed, class_name, turn, count)[place]


@lru_cache(maxsize=256)
def _pairs(seed: int, class_name: str, turn: int, count: int) -> tuple[tuple[int, int], ...]:
    """Return all pairs of ``count`` numbers, in the order of a turn."""
    pairs = itertools.combinations(range(count), 2)
    return tuple(sorted(pairs, key=lambda pair: seed_for("pair", seed, class_name, turn, *pair)))


def _weights(seed: int, class_name: str, index: int, count: int, concentration: float) -> list[float]:
    """Return weights that sum up to 1, from a symmetric Dirichlet distribution."""
    import numpy as np

    random = np.random.default_rng(seed_for("weights", seed, class_name, index))
    weights: list[float] = random.dirichlet([concentration] * count).tolist()
    return weights

"""The rungs of a study: how many images a trial draws at each, and the parameters that draw exactly these."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from dreamset.core.seeds import seed_for
from dreamset.params.knobs import SamplerOverrides

if TYPE_CHECKING:
    from dreamset.params import Params


def images_at(params: Params, recipe: str, rung: int) -> int:
    """Return the images per class at a rung: so many, or a share of the number that a study searches.

    Such a share has equally many images of each strength of the adapter.
    """
    row, last = params.recipes[recipe], params.base.tune.per_class[-1]
    if row.search is None or row.search.per_class is None:
        return rung
    return max(1, round(rung * params.of(recipe).per_class / last / row.unit)) * row.unit


def params_at(params: Params, recipe: str, rung: int, classes: int, repetition: int = 0) -> Params:
    """Return parameters that draw exactly the images of a rung, from the noise of trials.

    All trials of all studies of a run start from the same noise, which ``generate`` never uses. So no values win by
    their luck with the noise of the final images. A ``repetition`` has noise of its own.
    """
    row, base = params.recipes[recipe], params.base
    # A block has equally many images of each class of an adapter and of each of its scales. The depth of blocks divides
    # every rung, so that the blocks of a rung are the first blocks of the next.
    together = (1 if row.has_adapter_per_class else classes) * len(row.strengths)
    counts = [images_at(params, recipe, each) for each in base.tune.per_class]
    common = max(1, math.gcd(*map(row.drawn, counts)) // len(row.strengths))
    room = base.generate.batch
    fitting = [depth for depth in range(1, common + 1) if common % depth == 0 and depth * together <= room]
    batch = together * max(fitting) if fitting else room
    sampler = params.sampler(recipe)
    # The row holds the sampler's values itself, since these take precedence over what any study has chosen.
    fixed = dataclasses.replace(
        row, sampler=SamplerOverrides(**dataclasses.asdict(sampler)), search=None, per_class=None
    )
    model = dataclasses.replace(base, generate=dataclasses.replace(base.generate, batch=batch))
    return dataclasses.replace(
        params,
        seed=seed_for("tune", params.seed, *(("again", repetition) if repetition else ())) % 2**31,
        generate=dataclasses.replace(params.generate, per_class=images_at(params, recipe, rung), budget_s=None),
        # ``scales`` would ask for more images than a rung has.
        train=dataclasses.replace(params.train, scales=()),
        recipes=params.recipes | {recipe: fixed},
        models=params.models | {params.model: model},
    )

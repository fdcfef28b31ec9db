"""Learning rates over a training."""

from __future__ import annotations

import math


def warm_up_cosine(step: int, steps: int, warmup: int, peak: float, *, lead: int = 0) -> float:
    """Return the learning rate of a step: it rises linearly to ``peak``, then falls to 0 as half a cosine.

    Args:
        step: from 0 on.
        steps: of the whole training.
        warmup: steps that the rise takes.
        peak: the highest rate.
        lead: steps of the rise that lie before step 0. With 0 the first step has the rate 0.
    """
    if step < warmup:
        return peak * (step + lead) / (warmup + lead)
    done = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

"""The importance of knobs: functional ANOVA of CAS over the searched ranges (Hutter, Hoos and Leyton-Brown 2014).

Main effects come from Optuna's fANOVA. It gives no interactions, so these come from a random forest of this module.
"""

from __future__ import annotations

import itertools
import json
import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

ENOUGH: Final = 20  # finished trials; from fewer, importances are noise
# Finished trials from which the share of a pair is right within 0.1 (benchmarks.shares). From 20 the forest sees hardly
# any interaction, whatever the true share is.
ENOUGH_FOR_PAIRS: Final = 160
_SEED: Final = 0
_TREES: Final = 64
_MOST_LEAVES: Final = 64  # of a tree; the time for the shares grows with the square of the leaves
_BLOCK: Final = 512  # leaves that are compared with all others at once


def importance(trials: Sequence[Mapping[str, Any]], space: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the shares of the variance of CAS that knobs explain, alone and in pairs, from the finished trials.

    Args:
        trials: all trials of a study's record; the first value of a trial is CAS.
        space: knob: its distribution, as ``optuna.distributions.distribution_to_json`` writes it.

    Returns:
        ``trials``, the number used; ``main`` (knob: share); ``pairs`` (each share is beyond those of the two knobs
        alone, the largest first; empty for fewer than 160 trials); and ``r2``, the forest's out-of-bag coefficient of
        determination. At 0 or below the forest has learned nothing. With fewer than 20 trials:
        ``{"too_few": n, "enough": 20}``.
    """
    from optuna.distributions import json_to_distribution

    spans = {knob: json_to_distribution(json.dumps(span)) for knob, span in space.items()}
    # The values of the recipe's row may lie outside of the ranges, and the shares are those within the ranges.
    used = [
        trial for trial in trials if trial["state"] == "COMPLETE"
        and all(knob in trial["params"] and _within(spans[knob], trial["params"][knob]) for knob in spans)
    ]  # fmt: skip
    if len(used) < ENOUGH:
        return {"too_few": len(used), "enough": ENOUGH}
    names = list(spans)
    cas = np.array([trial["values"][0] for trial in used], np.float64)
    if not np.ptp(cas):
        # Without variance there are no shares, and Optuna raises an error.
        none = [{"knobs": list(pair), "share": 0.0} for pair in itertools.combinations(names, 2)]
        none = none if len(used) >= ENOUGH_FOR_PAIRS else []
        return {"trials": len(used), "main": dict.fromkeys(names, 0.0), "pairs": none, "r2": 0.0}
    columns = [unit(space[knob], [trial["params"][knob] for trial in used]) for knob in spans]
    _, pairs, r2 = forest_shares(np.stack(columns, 1), cas)
    return {
        "trials": len(used),
        "main": {knob: round(share, 4) for knob, share in _main(used, spans).items()},
        "pairs": [
            {"knobs": [names[i], names[j]], "share": round(share, 4)}
            for (i, j), share in sorted(pairs.items(), key=lambda item: -item[1])
            if len(used) >= ENOUGH_FOR_PAIRS
        ],
        "r2": round(r2, 4),
    }


def _within(span: Any, value: Any) -> bool:
    """Whether a distribution contains a value."""
    choices = getattr(span, "choices", None)
    return value in choices if choices is not None else bool(span.low <= value <= span.high)


def _main(trials: Sequence[Mapping[str, Any]], spans: Mapping[str, Any]) -> dict[str, float]:
    """Return the shares of the variance by Optuna's fANOVA, the largest first; Optuna's default is another measure."""
    import optuna
    from optuna.importance import FanovaImportanceEvaluator

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize")
        for trial in trials:
            study.add_trial(
                optuna.create_trial(
                    params={knob: trial["params"][knob] for knob in spans},
                    distributions=dict(spans),
                    value=trial["values"][0],
                )
            )
        shares = FanovaImportanceEvaluator(seed=_SEED).evaluate(study)
    finally:
        optuna.logging.set_verbosity(level)
    # The shares of values that do not vary are not finite.
    return {knob: float(share) if math.isfinite(share) else 0.0 for knob, share in shares.items()}


def unit(span: Mapping[str, Any], values: Sequence[Any]) -> NDArray[np.float64]:
    """Return values of a knob as places (n,) in 0..1 of its range, uniform over the values that may be drawn.

    A whole number fills its step, and choices stand side by side. So a tree isolates each by two cuts.

    Args:
        span: a distribution as JSON: ``name`` and ``attributes``.
        values: of the knob, within the range.
    """
    about = span["attributes"]
    if "choices" in about:
        choices = list(about["choices"])
        places = np.array([choices.index(value) for value in values], np.float64)
        low, high = -0.5, len(choices) - 0.5
    else:
        places = np.array(values, np.float64)
        half = about["step"] / 2 if about.get("step") else 0.0
        low, high = about["low"] - half, about["high"] + half
        if about["log"]:
            places, low, high = np.log(places), math.log(low), math.log(high)
    if high <= low:
        return np.full(len(values), 0.5)
    return (places - low) / (high - low)


def forest_shares(
    x: NDArray[np.float64], y: NDArray[np.float64], seed: int = _SEED
) -> tuple[dict[int, float], dict[tuple[int, int], float], float]:
    """Return the shares of a random forest's variance over the unit cube that columns explain, alone and in pairs.

    This is functional ANOVA. The forest is piecewise constant on boxes, so the integrals are exact sums. The analysis
    decomposes the mean of the trees and not each tree, since a single tree takes noise for interaction.

    Args:
        x: (n, d) in 0..1.
        y: (n,).
        seed: of the forest.

    Returns:
        The share of each column; the share of each pair of columns, beyond the two alone; and the out-of-bag R².
    """
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(_TREES, max_leaf_nodes=_MOST_LEAVES, oob_score=True, random_state=seed, n_jobs=1)
    forest.fit(x, y)
    boxes = [_leaves(tree.tree_, x.shape[1]) for tree in forest.estimators_]
    low, high = (np.concatenate([box[side] for box in boxes]) for side in (0, 1))
    value = np.concatenate([box[2] for box in boxes]) / len(boxes)
    # The boxes of each tree fill the cube, so that each tree has an equal part in the mean.
    value -= (value * (high - low).prod(1)).sum() / len(boxes)

    columns = range(x.shape[1])
    total = _variance(low, high, value, list(columns))
    if total <= 1e-12:
        return dict.fromkeys(columns, 0.0), dict.fromkeys(itertools.combinations(columns, 2), 0.0), 0.0
    main = {i: _variance(low, high, value, [i]) for i in columns}
    pairs = {
        (i, j): max(0.0, _variance(low, high, value, [i, j]) - main[i] - main[j]) / total
        for i, j in itertools.combinations(columns, 2)
    }
    return {i: share / total for i, share in main.items()}, pairs, float(forest.oob_score_)


def _leaves(tree: Any, columns: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return lower and upper corners (leaves, columns) of a tree's boxes in the unit cube, and their values."""
    low, high, values = [], [], []
    waiting = [(0, np.zeros(columns), np.ones(columns))]
    while waiting:
        node, bottom, top = waiting.pop()
        left, right = tree.children_left[node], tree.children_right[node]
        if left == right:
            low.append(bottom)
            high.append(top)
            values.append(tree.value[node].item())
            continue
        column, cut = tree.feature[node], tree.threshold[node]
        below, above = top.copy(), bottom.copy()
        below[column] = above[column] = cut
        waiting += [(left, bottom, below), (right, above, top)]
    return np.stack(low), np.stack(high), np.array(values)


def _variance(
    low: NDArray[np.float64], high: NDArray[np.float64], value: NDArray[np.float64], kept: list[int]
) -> float:
    """Return the variance of the sum of boxes, of mean 0, over the columns ``kept``, with the others integrated out."""
    others = [column for column in range(low.shape[1]) if column not in kept]
    weight = value * (high - low)[:, others].prod(1)
    total = 0.0
    for start in range(0, len(weight), _BLOCK):
        block = slice(start, start + _BLOCK)
        common = np.ones((len(weight[block]), len(weight)))
        for column in kept:
            top = np.minimum(high[block, None, column], high[None, :, column])
            common *= np.maximum(top - np.maximum(low[block, None, column], low[None, :, column]), 0)
        total += float(weight[block] @ common @ weight)
    return total

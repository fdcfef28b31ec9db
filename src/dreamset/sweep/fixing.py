"""``dreamset claims fix``: write down what is claimed before any test score of it exists."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dreamset.core.errors import InputError
from dreamset.core.files import read_json
from dreamset.core.strict import listed, meant
from dreamset.data import primary
from dreamset.data.runs import BOTH_STRONG, REAL, Run, kinds
from dreamset.metrics import fixed
from dreamset.metrics.fixed import Round
from dreamset.sweep import cells

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.core.workspace import Workspace
    from dreamset.params import Params


def fix(
    params: Params,
    workspace: Workspace,
    name: str | None,
    seeds: list[int],
    gain: list[int],
    no_loss: list[int],
    over: list[str] | None,
) -> tuple[Round, Path]:
    """Fix claims on the primary recipe and classifier, before any test score of their cells exists.

    Each claim is that real + synthetic images of the recipe, strongly augmented, are better than those of ``over``.
    Over real images alone there is a claim for every way to train on them, for the verdict goes by the best of these.

    Args:
        params: all parameters.
        workspace: the project's workspace.
        name: of the round; None: the next number.
        seeds: that the claims are over.
        gain: numbers of shots at which a gain is claimed.
        no_loss: numbers of shots at which no loss of ``evaluate.smallest_gain`` or more is claimed.
        over: what the recipe is to beat: ``real``, or other recipes, active or not, whose images stand beside the real
            ones; None: ``real``, and every active recipe without adapters.

    Returns:
        The round, and its file.

    Raises:
        InputError: a cell has been scored, a name is unknown or taken, or so few seeds could show nothing.
    """
    params = primary.settle(params, workspace)
    folder, recipe, classifier = workspace.results / "table", params.primary_recipe, params.primary_classifier
    rounds = fixed.read(folder)
    others = over or [REAL, *(n for n in params.active if params.recipes[n].is_baseline and n != recipe)]
    for other in others:
        if other != REAL and (other not in params.recipes or other == recipe):
            near = meant(other, (REAL, *params.recipes))
            raise InputError(
                f"--over {other}: is neither real nor another recipe than {recipe}{near}; recipes are "
                f"{listed(params.recipes)}."
            )
    if not gain and not no_loss:
        raise InputError("claims fix: say at which numbers of shots, by --shots, --no-loss-at or both.")
    scored = [path for shots in sorted({*gain, *no_loss}) for seed in seeds for path in _scored(workspace, shots, seed)]
    own = Run(recipe, BOTH_STRONG, classifier)
    pairs = [
        (own, Run(arm, kind, classifier))
        for arm in dict.fromkeys(others)
        for kind in (kinds(params, REAL, classifier) if arm == REAL else (BOTH_STRONG,))
    ]
    tests = len(pairs) * (len(set(gain)) + len(set(no_loss)))
    # The least p of n seeds is 2 / 2^n, and Holm multiplies the smallest by the number of tests.
    level = 1 - params.evaluate.confidence
    enough = math.ceil(math.log2(2 * tests / level) - 1e-9)
    if len(seeds) < enough:
        raise InputError(
            f"--seeds: {len(seeds)} seeds can show nothing, for with {tests} claim{'' if tests == 1 else 's'} no "
            f"sign-flip test of them reaches {100 * level:.3g} %; give {enough} or more, or claim less."
        )
    planned = cells.plan(params, workspace, sorted({*gain, *no_loss}), seeds)
    one = Round(
        name=name or f"round-{len(rounds) + 1}",
        time=fixed.now(),
        recipe=recipe,
        classifier=classifier,
        pairs=tuple(pairs),
        gain=tuple(sorted(set(gain))),
        no_loss=tuple(sorted(set(no_loss))),
        seeds=tuple(seeds),
        smallest_gain=params.evaluate.smallest_gain,
        settings={f"{cell.params.shots}/{cell.params.seed}": cell.made["settings"] for cell in planned},
        rows=cells.rows_hashes(params, workspace, [n for n in (recipe, *others) if n != REAL]),
    )
    return one, fixed.write(folder, one, scored)


def _scored(workspace: Workspace, shots: int, seed: int) -> list[Path]:
    """Return the files with test scores of a cell: its record, those of a cell half done, and the project's own run."""
    folder = cells.folder_of(workspace, shots, seed)
    found = [workspace.results / "table/cells" / f"{folder.name}.json", folder / "results/evaluate.json"]
    own = workspace.result("evaluate")
    if own.is_file():
        last = read_json(own, "dreamset evaluate")
        known = isinstance(last, dict) and {"shots", "seed"} <= last.keys()
        # A file that does not say of what it is may hold the scores of any seed.
        found += [own] if not known or (last["shots"], last["seed"]) == (shots, seed) else []
    return [path for path in found if path.is_file()]

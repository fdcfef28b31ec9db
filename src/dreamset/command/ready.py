"""What stands against the work of one stage: a verb refuses it before the work, and ``--dry-run`` says the same.

What only drawing itself would find out, after it has loaded the base, is looked for by a dry run as well.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from dreamset.command import counts, weights
from dreamset.core.errors import InputError
from dreamset.data import current, licences, tuned
from dreamset.data.work import Work
from dreamset.weights import hub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dreamset.core.workspace import Workspace
    from dreamset.params import Params

_ON_SHOTS = ("adapt", "tune", "generate", "train", "evaluate", "deliver")


def refuse(params: Params, workspace: Workspace, stage: str, item: str | None, *, dry: bool = False) -> None:
    """Refuse a stage that has no chance, before anything is loaded, removed or written.

    Args:
        params: all parameters.
        workspace: of the project; what other stages have yet to write there is left to the stage.
        stage: the stage.
        item: its recipe or arm.
        dry: whether to look for what drawing would find out, too.

    Raises:
        InputError: the only problem in a sentence, or all of them line by line.
    """
    checks = [*_checks(params, workspace, stage, item)]
    if dry and stage in ("adapt", "generate") and item and workspace.splits.is_file():
        checks.append(functools.partial(_drawing, params, workspace, stage, item))
    found = [*dict.fromkeys(weights.refusals(*checks))]
    if found:
        raise InputError(found[0] if len(found) == 1 else "\n- ".join([f"{len(found)} problems:", *found]))


def _checks(params: Params, workspace: Workspace, stage: str, item: str | None) -> Iterator[Callable[[], object]]:
    row, there = params.recipes.get(item or ""), workspace.splits.is_file()
    if there and stage in _ON_SHOTS:
        yield lambda: current.check_split(params, workspace)
    if stage in ("expect", "evaluate"):
        yield lambda: weights.clip(params, workspace)
        yield lambda: weights.judge(params, workspace)
    if there and stage in ("train", "evaluate"):
        for name in params.active if stage == "evaluate" else [item] if row and item else []:
            yield functools.partial(_if_tuned, current.check_images, params, workspace, name)
    works = {"adapt": row and row.trains, "tune": row and row.is_tuned, "generate": row is not None}.get(stage)
    if not (works and row and item) and stage != "expect":
        return
    yield lambda: licences.check(params, item)
    if row is None or row.draws:
        yield lambda: weights.generator(params, workspace)
    if row is None or item is None:
        return
    if stage != "adapt" and row.draws and params.sampler(item).student:
        yield lambda: weights.student(params, workspace)
    if not row.draws:
        yield lambda: weights.searched(params, workspace, item)
    if current.sees_through_clip(row):
        yield lambda: weights.clip(params, workspace)
    if row.captioner is not None:
        yield lambda: weights.captioner(params, workspace, item)
    if stage == "tune" and params.tune.max_fid is not None:
        yield lambda: weights.judge(params, workspace)
    if there:
        yield functools.partial(_asking, params, workspace, item)
    if there and stage == "generate":
        yield functools.partial(_if_tuned, current.check_adapters, params, workspace, item)


def _if_tuned(
    check: Callable[[Params, Workspace, str], None], params: Params, workspace: Workspace, recipe: str
) -> None:
    """Check what depends on a study's choice; where there is none, the stage says that the study comes first."""
    if counts.is_tuned(params, workspace, recipe):
        check(params, workspace, recipe)


def _asking(params: Params, workspace: Workspace, recipe: str) -> None:
    from dreamset.drawing import filters, guides
    from dreamset.generator import asking

    work = Work.read(params, workspace, recipe)
    guides.check(work)
    filters.check(work)
    asking.from_files(work)


def _drawing(params: Params, workspace: Workspace, stage: str, recipe: str) -> None:
    """Refuse a sampler that drawing refuses; what a study has yet to choose is left to it."""
    row = params.recipes[recipe]
    if not row.draws or (stage == "adapt" and not row.trains):
        return
    if counts.is_tuned(params, workspace, recipe):
        params = tuned.applied(params, workspace, recipe)
    elif any(row.searches(knob) for knob in ("steps", "scheduler", "strength")):
        return
    if row.starts_from_shots:
        from dreamset.drawing import starts

        starts.check(params, recipe)
        return
    from dreamset.drawing import draw
    from dreamset.generator.sampler import check_first_step

    file = hub.locate(workspace.root, *params.base.pretrained) / "scheduler/scheduler_config.json"
    if file.is_file():  # else its absence stands among the other problems
        work = Work.read(params, workspace, recipe)
        check_first_step(draw.schedule(work), work.sampler, work.steps_key)

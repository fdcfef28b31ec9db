"""What a run costs: the table of stages with their times, the disk that it takes, and the smallest gain it can show."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dreamset.command import counts, plan, times
from dreamset.command.screen import width, wrapped
from dreamset.command.times import Estimate, duration
from dreamset.core.errors import StoppedError
from dreamset.core.workspace import Workspace
from dreamset.data import folds, splits
from dreamset.data.runs import arms, runs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dreamset.command.timed_steps import Timed
    from dreamset.params import Params

QUICK: Final = ("raw", "version")  # stages of a second, which the table leaves out
STAGES: Final = ("prepare", "expect", "adapt", "tune", "generate", "train", "evaluate", "deliver", "report")
# On disk: among the finished shards, in DVC's cache, and in the workspace; one where the file system shares blocks.
_COPIES: Final = 3
_PICTURE: Final = 2500  # bytes of a picture beside its pixels: what it says of its making
_PIXEL: Final = 2.0  # bytes per pixel of a PNG of a photograph


@dataclass(frozen=True)
class Planned:
    """A stage that is out of date, or comes after one that is.

    Attributes:
        name: as DVC calls it.
        stage: the verb of its command; empty where it is none of ours.
        item: its recipe or arm.
    """

    name: str
    stage: str
    item: str | None


def table(
    params: Params,
    workspace: Workspace,
    todo: Sequence[Planned],
    estimates: Mapping[str, Estimate],
    steps: Mapping[str, Timed],
) -> list[str]:
    """Return the lines that say what will run, how long it takes, the disk, the download, and what it can show."""
    lines = [f"{'What will run':<{width() - 12}}{'how long':>12}"]
    for stage in STAGES:
        here = [one for one in todo if one.stage == stage]
        if here:
            known = [seconds for one in here if (seconds := estimates[one.name].seconds) is not None]
            time = f"{duration(sum(known))}{' +' if len(known) < len(here) else ''}" if known else "?"
            lines += _row(f"  {stage:<10} ", _work(params, workspace, stage, here), time)
    others = [one.name for one in todo if not one.stage and one.name not in QUICK]
    lines += _row("  others     ", ", ".join(others), "?") if others else []
    every = [estimates[one.name] for one in todo if one.stage]
    seconds = sum(estimate.seconds or 0.0 for estimate in every)
    unknown = any(estimate.seconds is None for estimate in every)
    lines += _row("  in all     ", "", f"{'more than' if unknown else 'about'} {duration(seconds)}")
    needed = disk(params, workspace, steps, todo)
    free = shutil.disk_usage(workspace.root).free
    lines += ["", *_fact("disk", f"about {_size(needed)}; {_size(free)} are free")]
    lines += _fact("download", "nothing, all weights are here")
    lines += _fact("can show", _reach(params, workspace))
    lines += _fact("times", _sources(every))
    return lines


def _row(head: str, what: str, time: str) -> list[str]:
    """Return the lines of a row: what is done on the left, the time on the right of its first line."""
    import textwrap

    room = width() - len(head) - len(time) - 2
    parts = textwrap.wrap(what, max(20, room), break_long_words=False, break_on_hyphens=False) or [""]
    first = f"{head}{parts[0]}"
    return [
        f"{first}{time:>{max(len(time) + 1, width() - len(first))}}",
        *(" " * len(head) + part for part in parts[1:]),
    ]


def _fact(name: str, what: str) -> list[str]:
    return wrapped(what, f"  {name:<10} ", " " * 13).splitlines()


def _work(params: Params, workspace: Workspace, stage: str, here: Sequence[Planned]) -> str:
    """Return in words what a stage does in all of its items."""
    if len(here) == 1:
        return plan.makes(params, workspace, stage, here[0].item).partition(", in ")[0].partition(" in ")[0]
    total: dict[str, int] = {}
    for one in here:
        for what, count in counts.of(params, workspace, stage, one.item).items():
            total[what] = total.get(what, 0) + count
    named = [one.item or "" for one in here]
    if stage == "adapt":
        trained = [name for name in named if params.recipes[name].trains]
        words = f"{total['steps']} steps of training for {', '.join(trained)}"
        return words if trained else "nothing: no recipe trains an adapter"
    if stage == "tune":
        studied = [name for name in named if params.recipes[name].is_tuned]
        return f"{total.get('trials', 0)} trials for {', '.join(studied)}" if studied else "nothing to search"
    if stage == "generate":
        timed = sum(counts.has_budget(params, name) for name in named)
        if timed:
            rest = sum(
                counts.of(params, workspace, stage, name)["images"]
                for name in named
                if not counts.has_budget(params, name)
            )
            each = f"each by {timed} recipes" if timed > 1 else "by 1 recipe"
            fit = f"as many images as fit into {params.generate.budget_s:g} s {each}"
            return f"{fit}, and {rest} images by {len(named) - timed}" if timed < len(named) else fit
        own = sum(counts.drawn(counts.of(params, workspace, stage, name)) for name in named)
        copied = f" ({own} drawn, the others copies)" if own < total["images"] else ""
        looked = sum(counts.expected(params, workspace, name) for name in named if params.recipes[name].filters)
        filtered = f", for which filters look at about {looked:.0f} candidates" if looked else ""
        return f"{total['images']} images by {len(named)} recipes{copied}{filtered}"
    return f"{sum(len(runs(params, name)) for name in named)} classifiers, on {len(named)} sets of images"


def _sources(estimates: Sequence[Estimate]) -> str:
    """Return where the times are from."""
    known = [estimate.source for estimate in estimates if estimate.seconds is not None]
    measured = sorted({source for source in known if source.startswith("measured")})
    parts = [f"as {measured[-1]}"] if measured else []
    parts += [f"from {times.STEPS} here"] if times.STEPS in known else []
    missing = sorted({estimate.source for estimate in estimates if estimate.seconds is None})
    parts += [f"? where {missing[0]}"] if missing else []
    return "; ".join(parts)


def _reach(params: Params, workspace: Workspace) -> str:
    """Return the smallest gain that the images can show."""
    from dreamset.metrics import power

    split = splits.read_split(workspace.splits)
    if split.protocol == "cv":
        images, what = len(folds.scored_on(params, split).train), "shots, each held out once"
    else:
        images, what = times.tested(workspace), "test images"
    return power.words(images, params.evaluate.confidence, what)


def disk(params: Params, workspace: Workspace, steps: Mapping[str, Timed], todo: Sequence[Planned]) -> int:
    """Return the bytes that a run writes at most: pictures, adapters and classifiers."""
    if not workspace.splits.is_file():
        return 0
    side, total = params.base.resolution, 0.0
    for one in todo:
        work = counts.of(params, workspace, one.stage, one.item) if one.stage else {}
        if one.stage == "generate":
            total += times.images(params, workspace, one.item or "", steps) * (_PICTURE + side * side * _PIXEL)
        elif one.stage == "adapt" and work.get("adapters"):
            total += work["adapters"] * max(
                (timed.bytes for name, timed in steps.items() if name.startswith("adapt")), default=0
            )
        elif one.stage == "train" and one.item in arms(params):
            fitted = [steps.get(f"classifier {run.classifier}") for run in runs(params, one.item)]
            total += sum(timed.bytes for timed in fitted if timed)
    return round(_COPIES * total)


def check_room(params: Params, workspace: Workspace, steps: Mapping[str, Timed], todo: Sequence[Planned]) -> None:
    """Refuse a run that does not fit on the disk.

    Raises:
        StoppedError: with the bytes needed and free.
    """
    needed, free = disk(params, workspace, steps, todo), shutil.disk_usage(workspace.root).free
    if needed > free:
        raise StoppedError(
            f"{workspace.root}: the run writes about {_size(needed)} and {_size(free)} are free; make room (`dreamset "
            "gc` removes what nothing uses), or lower generate.per_class. Nothing was changed."
        )


def _size(count: float) -> str:
    """Return bytes in words."""
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if count >= 10 else f"{count:.1f} {unit}"
    raise AssertionError

"""``dreamset run``: check, say what it costs and what it can show, ask, run ``dvc repro``, and say what came out."""

from __future__ import annotations

import json
import logging
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn

from dreamset.command import check, own, timed_steps, times
from dreamset.command.costs import QUICK, STAGES, Planned, check_room, table
from dreamset.command.reproduce import busy, reproduce
from dreamset.command.screen import Screen, wrapped
from dreamset.command.times import Estimate
from dreamset.core import locks
from dreamset.core.errors import InputError, StoppedError
from dreamset.core.workspace import Workspace
from dreamset.data import primary
from dreamset.data.runs import REAL
from dreamset.expect import ASKS
from dreamset.metrics import best
from dreamset.params import Params, load

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from dreamset.command.timed_steps import Timed

FIRST: Final = "expect"  # the last stage of the first minute, after which the run asks
_ALWAYS: Final = ["always changed"]  # DVC's words for a stage that runs each time
_NO_HELP: Final = ("no help", "unlikely")  # expectations where no answer means no
_UNKNOWN: Final = 20.0  # seconds that the bar gives a stage whose time is not known


def run(root: Path, images: Path | None, *, yes: bool) -> None:
    """Run everything that is out of date in a project.

    Args:
        root: the project's folder.
        images: a folder of class folders to learn from; None: what ``params.yaml`` names.
        yes: whether to go on without asking.

    Raises:
        InputError: something stands against the run, or there is no terminal to ask on.
        StoppedError: another run goes on here, or the disk is too small.
        SystemExit: a stage failed, with its status.
    """
    check.project(root)
    busy(root)
    workspace, file = Workspace.at(root), root / "params.yaml"
    lock = locks.take(workspace.locks / f"run{locks.SUFFIX}")
    if lock is None:
        raise StoppedError("`dreamset run` is running here already; wait for it, or stop it, and run this again.")
    try:
        with _hung_up():
            for sentence in own.use(root, images) if images is not None else ():
                print(wrapped(sentence, further=""))
            params = check.refuse(root, file)
            check_room(params, workspace, {}, _all(params))
            _first(root, asks=_watched() and not yes)
            if workspace.splits.is_file():
                _rest(params, workspace, file, yes=yes)
    finally:
        lock.release()


@contextmanager
def _hung_up() -> Iterator[None]:
    """End the block like an interrupt where its terminal is closed, so that the stage saves its work."""

    def leave(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGHUP)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _watched() -> bool:
    """Return whether there is a terminal to ask on."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _first(root: Path, *, asks: bool) -> None:
    """Run the stages up to the one that says what to expect; ``asks``: whether a question follows."""
    print("First a look at the images, and at what the base makes of them: about a minute.", flush=True)
    # Where a question follows anyway, the stage need not stop because it cannot ask one.
    if FIRST not in _reproduce(root, [FIRST], {}, {ASKS: "1"} if asks else {}):
        # It had nothing to do and said nothing, but who runs it today may not have read it.
        for sentence in _json(Workspace.at(root).result(FIRST)).get("sentences", ()):
            print(wrapped(sentence))
    print()


def _reproduce(
    root: Path, targets: list[str], expected: Mapping[str, float], more: Mapping[str, str] | None = None
) -> Collection[str]:
    """Run ``dvc repro`` under a bar, and return the stages that ran."""
    screen = Screen(expected)
    try:
        reproduce(root, targets, screen.handle, screen.tick, more or {})
    except KeyboardInterrupt:
        screen.interrupted()
        raise
    finally:
        screen.close()
    return screen.progress.done.keys()


def _rest(params: Params, workspace: Workspace, file: Path, *, yes: bool) -> None:
    """Say what the other stages cost, ask, and run them."""
    root = workspace.root
    check.prepared(params, workspace)
    todo = planned(root)
    if not todo:
        print("Everything is up to date; nothing has to run.\n")
        print("\n".join(ending(params, workspace)))
        return
    steps, failed = _timed(params, workspace, file, todo)
    estimates = {one.name: _estimate(params, workspace, one, steps) for one in todo}
    print("\n".join(table(params, workspace, todo, estimates, steps)), flush=True)
    for name, reason in failed.items():
        print(wrapped(f"{name} could not be timed: {reason}."), flush=True)
    check_room(params, workspace, steps, todo)
    if not yes:
        _ask(workspace)
    print()
    unknown = {one.name: 1.0 if one.name in QUICK else _UNKNOWN for one in todo}
    _reproduce(root, [], {name: estimate.seconds or unknown[name] for name, estimate in estimates.items()})
    print()
    print("\n".join(ending(load(file, _rows()), workspace)))


def _rows() -> Any:
    from dreamset import classifiers

    return classifiers.ROWS


def _timed(
    params: Params, workspace: Workspace, file: Path, todo: Sequence[Planned]
) -> tuple[dict[str, Timed], dict[str, str]]:
    """Return the timed steps of some stages, and why others could not be timed."""
    ours = [(one.stage, one.item) for one in todo if one.stage]
    wanted = [name for one in ours for name in times.wanted(params, workspace, *one)]
    steps, failed = timed_steps.timed(params, workspace, file, wanted)
    # Where a record stands for the seconds, what was timed once still says how large things are.
    needed = [name for one in ours for name in timed_steps.needed(params, *one)]
    return timed_steps.kept(params, workspace, needed) | steps, failed


def _estimate(params: Params, workspace: Workspace, one: Planned, steps: Mapping[str, Timed]) -> Estimate:
    if not one.stage:
        return Estimate(None, "it is none of dreamset's stages")
    return times.estimate(params, workspace, one.stage, one.item, steps)


def _ask(workspace: Workspace) -> None:
    """Return if the person at the terminal agrees.

    Raises:
        InputError: there is no terminal.
        SystemExit: they do not.
    """
    if not _watched():
        raise InputError("run: there is no terminal to ask on; `dreamset run --yes` runs all that stands above.")
    try:
        usual = "n" if _json(workspace.result(FIRST)).get("expectation") in _NO_HELP else "y"
        answer = input(f"\nGo on? {'[Y/n]' if usual == 'y' else '[y/N]'} ").strip().lower() or usual
    except EOFError:
        answer = "n"
    if answer not in ("y", "yes"):
        print("Nothing more was run; `dreamset run` asks again.")
        raise SystemExit(0)


def planned(root: Path) -> list[Planned]:
    """Return the stages that ``dvc repro`` would run at most, in their order.

    A stage whose inputs come out as they were is skipped then, although it stands here.

    Raises:
        StoppedError: another DVC is at work here.
        InputError: DVC cannot read the project.
    """
    with _quiet():
        from dvc.exceptions import DvcException  # type: ignore[import-untyped]
        from dvc.repo import Repo  # type: ignore[import-untyped]

        try:
            with Repo(str(root)) as repo:
                changed, graph = repo.status(), repo.index.graph
                order, stale = _ordered(graph), set[Any]()
                for stage in order:
                    # The graph's edges go from a stage to those that it depends on. What a stage has written that
                    # runs each time says whether others have to.
                    if changed.get(stage.addressing, _ALWAYS) != _ALWAYS or stale.intersection(graph.successors(stage)):
                        stale.add(stage)
                mine = [stage for stage in order if stage in stale and not stage.frozen]
                return [Planned(stage.addressing, *_parsed(str(stage.cmd))) for stage in mine]
        except DvcException as error:
            reason = " ".join(str(error).split())
            if "lock" in reason:
                raise StoppedError("another run of DVC is going on here; wait for it, and run this again.") from error
            raise InputError(f"dvc.yaml: DVC cannot tell what has changed ({reason}).") from error


def _ordered(graph: Any) -> list[Any]:
    """Return the stages of DVC's graph, each after those that it depends on."""
    order: dict[Any, None] = {}

    def visit(stage: Any) -> None:
        if stage not in order:
            for other in graph.successors(stage):
                visit(other)
            order[stage] = None

    for stage in graph:
        visit(stage)
    return [*order]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep DVC from saying which stages are frozen, and from drawing bars."""
    before, logger = logging.root.manager.disable, logging.getLogger("dvc")
    logging.disable(logging.CRITICAL)
    # Its bars go by the level of its logger.
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        logging.disable(before)


def _parsed(command: str) -> tuple[str, str | None]:
    """Return the stage and the item that a command of dvc.yaml runs."""
    words = command.split()
    if len(words) in (2, 3) and words[0] == "dreamset" and words[1] in STAGES:
        return words[1], words[2] if len(words) == 3 else None
    return "", None


def _all(params: Params) -> list[Planned]:
    """Return the stages that need most of the disk, as if nothing were finished."""
    drawn = [Planned(name, stage, name) for name in params.active for stage in ("adapt", "generate", "train")]
    return [*drawn, Planned("train_real", "train", REAL)]


def ending(params: Params, workspace: Workspace) -> list[str]:
    """Return the last lines of a run: the verdict, the delivered classifier, where things are, and one next step."""
    params = primary.settle(params, workspace)
    delivered, evaluation = _json(workspace.result("deliver")), _json(workspace.result("evaluate"))
    said = [delivered.get("finding"), best.sentence(delivered) or delivered.get("advice")]
    lines = [wrapped(" ".join(filter(None, said)), further=""), ""] if any(said) else []
    if delivered.get("accuracy") is not None:
        count, cv = evaluation.get("test_images", "the"), delivered.get("protocol") == "cv"
        images = f"{count} images, each held out once" if cv else f"{count} test images"
        of = "the real images alone" if delivered["arm"] == REAL else f"real images and those of {delivered['arm']}"
        ends = " to ".join(f"{100 * delivered[end]:.1f}" for end in ("low", "high"))
        lines.append(
            wrapped(
                f"The classifier to take away: {delivered['classifier']}, trained on {of}, gets "
                f"{100 * delivered['accuracy']:.1f} % of {images} right ({ends}).",
                further="",
            )
        )
    if (recommended := delivered.get("recommended")) is not None:
        lines += ["", wrapped(recommended, further="")]
    places = {
        "the page": workspace.results / "report.html",
        "classifier": workspace.classifier,
        "images": workspace.synthetic(params.primary_recipe),
    }
    lines += [
        "",
        *(f"  {name:<10}  {path.relative_to(workspace.root)}" for name, path in places.items() if path.exists()),
    ]
    lines += ["", wrapped(f"Next: {_next(params, delivered.get('outcome'))}")]
    return lines


def _next(params: Params, outcome: str | None) -> str:
    """Return what to do next."""
    if outcome == "cannot_tell" and params.prepare.source == "digits":
        return f"`dreamset table --shots {params.shots} --seeds 0-5` measures over six draws of the shots."
    if outcome == "cannot_tell":
        return "add labelled images and run `dreamset run` again; so few leave the question open."
    return "`dreamset predict FOLDER --out predictions.csv` labels new images."


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found

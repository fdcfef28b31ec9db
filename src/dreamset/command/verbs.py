"""The verbs of the command line, one function each; it takes the arguments that ``cli`` has parsed."""

from __future__ import annotations

import functools
import json
import shutil
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamset import classifiers, compute
from dreamset.command import lines, ready
from dreamset.core.errors import InputError, StoppedError
from dreamset.core.strict import listed, meant
from dreamset.core.workspace import Workspace
from dreamset.params import Params, load
from dreamset.params.rules import check_row

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from dreamset.params.values import Part


def stage(arguments: argparse.Namespace) -> None:
    """Run one stage, print its results, and track them; or print what it would do."""
    params, workspace = opened(arguments)
    name, item = arguments.stage, arguments.item
    check_item(params, name, item)
    if arguments.dry_run:
        from dreamset.command import timed_steps, times
        from dreamset.command.plan import describe

        wanted = times.wanted(params, workspace, name, item)
        steps, _ = timed_steps.timed(params, workspace, arguments.params or Path("params.yaml"), wanted)
        print(describe(params, workspace, name, item, steps=steps, verbose=arguments.verbose), flush=True)
        ready.refuse(params, workspace, name, item, dry=True)
        return
    ready.refuse(params, workspace, name, item)
    if arguments.worker:
        _work(params, workspace, item)
        return
    from dreamset import track
    from dreamset.command import times, tracked
    from dreamset.core import audit, locks
    from dreamset.core.files import check_target

    # The record is written last, maybe after hours.
    check_target(workspace.result(name, item), f"{name}:")
    started = time.time()
    shut = nullcontext() if name in audit.OPENERS else audit.closed(workspace)
    with track.sender(workspace, params, name) as sender:
        with locks.turn(workspace.locks, f"{name}_{item}" if item else name), shut:
            summary = stage_function(name)(params, workspace, *([item] if item else []))
        times.remember(params, workspace, name, item, summary, time.time() - started)
        _print(name, item, summary)
        for sentence in summary.get("sentences", ()):
            print(sentence, flush=True)
        if name == "evaluate":
            from dreamset.command import comparing

            comparing.keep(workspace, arguments.params or workspace.root / "params.yaml")
        tracked.stage(params, workspace, name, item, summary, started, sender)
    if name == "expect":
        from dreamset import expect

        expect.decide(params, workspace)


def init(arguments: argparse.Namespace) -> None:
    """Make a project for images of one's own."""
    from dreamset.command import init

    images = None if arguments.digits else arguments.images
    print("\n".join(init.run(arguments.target, images, arguments.stages, share=arguments.share)))


def version(arguments: argparse.Namespace) -> None:
    """Write what a project's stages depend on of the installed package."""
    from dreamset.command import version

    if not (Path.cwd() / "dvc.yaml").is_file():
        raise InputError("version: there is no dvc.yaml here; run this in the project's folder.")
    for sentence in version.run(Path.cwd(), arguments.stages):
        print(sentence, flush=True)


def _work(params: Params, workspace: Workspace, recipe: str) -> None:
    """Run trials of a study without a lock, for the study's storage knows which trials other processes run."""
    from dreamset import tune
    from dreamset.core import audit

    with audit.closed(workspace):
        _print("tune", recipe, tune.join(params, workspace, recipe))


def stage_function(stage: str) -> Callable[..., dict[str, Any]]:
    """Return ``run`` of a stage's module; importing it loads only what that stage needs."""
    import importlib

    function: Callable[..., dict[str, Any]] = importlib.import_module(f"dreamset.{stage}").run
    if stage in ("evaluate", "deliver"):
        from dreamset.sweep import crossval

        return functools.partial(function, cross_validate=crossval.run)
    return function


def check_item(params: Params, stage: str, item: str | None) -> None:
    """Refuse a recipe or an arm that a stage cannot run on.

    Raises:
        InputError: it is no row of ``recipes``, or its row contradicts other parameters.
    """
    if stage in ("adapt", "tune", "generate", "review") and item not in params.recipes:
        raise InputError(
            f"params.yaml: no row {item!r} in recipes{meant(item, params.recipes)}; there are {listed(params.recipes)}."
        )
    if stage == "train" and item != "real" and item not in params.recipes:
        near = meant(item, ("real", *params.recipes))
        raise InputError(f"params.yaml: no row {item!r} in recipes{near}; there are real, {listed(params.recipes)}.")
    # A row that is not active may be named, too, and loading params.yaml checks active rows alone.
    if stage in ("adapt", "tune", "generate", "train") and item in params.recipes:
        check_row(params, item)


def _print(stage: str, item: str | None, summary: dict[str, Any]) -> None:
    """Print what a stage has done, and its warnings."""
    print(lines.line(stage, item, summary), flush=True)
    for warning in summary.get("warnings", ()):
        print(f"{stage}: warning: {warning}", file=sys.stderr, flush=True)


def predict(arguments: argparse.Namespace) -> None:
    """Label image files with the delivered classifier."""
    from dreamset.use.predict import delivered, run
    from dreamset.use.score import Score

    score = Score(delivered(arguments.classifier)["classes"]) if arguments.score else None
    counts = run(arguments.paths, arguments.classifier, arguments.out, arguments.threshold, score)
    results = f"{counts.labelled} labelled, {counts.abstained} abstained, {counts.unusable} unusable"
    # Printed on stderr, for standard output may be the CSV.
    print(f"predict: {counts.files} files: {results}", file=sys.stderr)
    for line in score.lines() if score is not None else ():
        print(f"predict: {line}", file=sys.stderr)


def export(arguments: argparse.Namespace) -> None:
    """Write the delivered classifier as ONNX, a dataset for publication or as tensors, or LoRAs in kohya's layout."""
    for option in ("size", "normalise"):
        if getattr(arguments, option) is not None and not arguments.tensors:
            raise InputError(f"export --{option}: belongs to --tensors; leave it out.")
    if arguments.onnx:
        from dreamset.use.export import onnx

        onnx(arguments.classifier, arguments.onnx)
        print(f"export: {arguments.onnx}")
        return
    option = "--public" if arguments.public else "--tensors" if arguments.tensors else "--kohya"
    if not arguments.recipe:
        raise InputError(f"export {option}: needs --recipe; name the recipe whose {_WHAT[option]} written.")
    params, workspace = opened(arguments)
    check_item(params, "generate", arguments.recipe)
    if arguments.kohya:
        from dreamset.use.kohya import kohya

        written = kohya(params, workspace, arguments.recipe, arguments.kohya)
        print(f"export: {written['files']} LoRAs of {written['pairs']} layers in {arguments.kohya}")
        return
    if arguments.tensors:
        from dreamset.use.tensors import tensors

        done = tensors(params, workspace, arguments.recipe, arguments.tensors, arguments.size, arguments.normalise)
        shape = " x ".join(map(str, done["shape"]))
        print(f"export: {shape} {done['dtype']} in {arguments.tensors}; near-duplicates of shots are among them")
        return
    _publish(params, workspace, arguments.recipe, arguments.public)


_WHAT: Final = {"--public": "dataset is", "--tensors": "dataset is", "--kohya": "LoRAs are"}


def _publish(params: Params, workspace: Workspace, recipe: str, target: Path) -> None:
    from dreamset.params.knob_words import DERIVED
    from dreamset.use.export import public

    done = public(params, workspace, recipe, target)
    if params.recipes[recipe].starts_from_shots:
        print(f"dreamset: {recipe}: {DERIVED}", file=sys.stderr)
    left_out = ", ".join(f"{count} {reason}" for reason, count in done["removed"].items())
    print(f"export: {done['images']} images in {target}; left out: {left_out}")


def review(arguments: argparse.Namespace) -> None:
    """Serve the page on which a person looks at a dataset."""
    from dreamset.review import server

    params, workspace = opened(arguments)
    check_item(params, "review", arguments.item)
    if not 0 <= arguments.port < 2**16:
        raise InputError(f"--port {arguments.port}: is no port; give one of 1024 to 65535, or leave it out.")
    print(server.serve(workspace, arguments.item, arguments.port, browser=not arguments.no_browser))


def fetch(arguments: argparse.Namespace) -> None:
    """Download pretrained weights."""
    from dreamset.weights import hub
    from dreamset.weights.pretrained import hub_name

    params, workspace = opened(arguments)
    wanted: dict[tuple[str, Part, str | None], str] = {}  # the row that wants it first
    for name in arguments.models or [params.model]:
        if name not in params.models:
            near = meant(name, params.models)
            raise InputError(f"params.yaml: no row {name!r} in models{near}; there are {listed(params.models)}.")
        row = params.models[name]
        clip = hub_name(row.clip) or row.clip
        parts: list[tuple[str, Part, str | None]] = [
            (row.generator, "generator", row.variant),
            (clip, "clip", None),
            (row.judge, "judge", None),
        ]
        if row.few_steps and params.draws_by_student(row):
            parts.append((*row.few_steps.pretrained, None))
        for each in parts:
            wanted.setdefault(each, name)
    for name in params.active:
        if (captioner := params.recipes[name].captioner) is not None:
            wanted.setdefault((captioner, "captioner", None), name)
    sizes = {each: hub.to_load(*each) for each in wanted if hub.repository(each[0]) is not None}
    _check_room(sizes)
    for (weights, part, variant), name in wanted.items():
        if hub.repository(weights) is None:
            print(f"{name} {part}: {weights} is on this machine already")
            continue
        record = hub.fetch(workspace.root, weights, part, variant)
        pin = "" if record["pinned"] else f"; pin it: {weights.partition('@')[0]}@{record['commit']}"
        print(f"{name} {part}: {weights} at {record['commit']}, {record['bytes'] / 1e9:.2f} GB{pin}", flush=True)


def _check_room(sizes: dict[tuple[str, Part, str | None], int]) -> None:
    """Print how much is to be loaded and how much room there is, before anything is loaded.

    Raises:
        StoppedError: there is too little room.
    """
    if not sizes:
        return
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(place for place in (cache, *cache.absolute().parents) if place.is_dir())).free
    total = sum(sizes.values())
    each = ", ".join(f"{part} {size / 1e9:.2f}" for (_, part, _), size in sizes.items() if size)
    print(
        f"to load: {total / 1e9:.2f} GB{f' ({each})' if each else ''}; {free / 1e9:.1f} GB are free in {cache}",
        flush=True,
    )
    if total > free:
        raise StoppedError(
            f"fetch: {total / 1e9:.2f} GB do not fit into {cache}, where {free / 1e9:.2f} GB are free; make room, or "
            "set HF_HOME to a folder of another disk. Nothing was loaded."
        )


def change(arguments: argparse.Namespace) -> None:
    """Change single values of params.yaml."""
    from dreamset.command import setting

    for line in setting.run(arguments.params or Path("params.yaml"), arguments.changes):
        print(line)


def check(arguments: argparse.Namespace) -> None:
    """Say what stands against a run, before anything is changed."""
    from dreamset.command import check as checking

    root = Path.cwd()
    checking.project(root)
    checking.refuse(root, arguments.params or root / "params.yaml")
    print("check: all is well; `dreamset run` starts.")


def run(arguments: argparse.Namespace) -> None:
    """Run the pipeline: say what it costs, ask, and end with what came out."""
    from dreamset.command import run as running

    running.run(Path.cwd(), arguments.images, yes=arguments.yes)


def gc(arguments: argparse.Namespace) -> None:
    """Remove finished pieces of work that nothing uses any more."""
    from dreamset.core import shards
    from dreamset.study import workers

    params, workspace = opened(arguments)
    if running := _running(workspace):
        raise StoppedError(f"gc: {running[0]} is running, and no list names its work yet; run gc when it is done.")
    beside = workspace.root / ".dreamset"
    cells = [workspace.cell, *sorted(beside.glob("table/*/")), *sorted(beside.glob("folds/*/*/"))]
    gone = workers.abandoned(params, workspace)
    for study in [] if arguments.dry_run else gone:
        workers.clear(study)
    # The folders of finished studies are gone: their values are known, and their images are needed no more.
    cells += [place for place in sorted(workspace.trials.glob("*/*/*/*/")) if place.parents[2] not in gone]
    used: set[str] = set()
    for cell in cells:
        for path in (*cell.glob("models/adapters/*/adapters.json"), *cell.glob("models/tuned/*/adapters.json")):
            record = json.loads(path.read_text(encoding="utf-8"))
            used |= {row["shard"] for row in record["adapters"]} | {*record.get("kept", ())}
        for path in (*cell.glob("data/synthetic/*/shards.json"), *cell.glob("models/classifiers/*/shards.json")):
            used |= set(json.loads(path.read_text(encoding="utf-8")))
    folders, size = shards.collect_garbage(workspace.shards, used, dry_run=arguments.dry_run)
    print(f"{'would remove' if arguments.dry_run else 'removed'} {folders} shards, {size / 1e6:.1f} MB")


def compare(arguments: argparse.Namespace) -> None:
    """Print runs beside each other."""
    from dreamset.command import comparing

    if arguments.last < 1:
        raise InputError(f"--last {arguments.last}: give a number of runs of at least 1.")
    workspace = Workspace.at(Path.cwd())
    runs = comparing.find(workspace, arguments.params or workspace.root / "params.yaml")
    shown = comparing.chosen(runs, arguments.runs, arguments.last)
    for line in comparing.table(shown):
        print(line)
    if not arguments.runs and len(runs) > len(shown):
        print(f"{len(runs) - len(shown)} older runs: --last {len(runs)}")


def _running(workspace: Workspace) -> list[str]:
    """Return the names of the stages, shards and studies that some process works on now."""
    from dreamset.core import locks

    running = locks.busy(workspace.locks) + locks.busy(workspace.shards)
    return running + [
        f"study {study.name} ({name})" for study in workspace.trials.glob("*/") for name in locks.busy(study)
    ]


def clean(arguments: argparse.Namespace) -> None:
    """Remove what can be made again."""
    from dreamset.command import cleaning

    workspace = Workspace.at(Path.cwd())
    found, links = cleaning.find(workspace)
    for place in found:
        print(f"{place.size / 1e6:10.1f} MB  {place.files:7} files  {place.path.relative_to(workspace.root)}")
    for link in links:
        print(f"left as it is, for it is a link: {link.relative_to(workspace.root)}")
    if not found:
        print("nothing here that can be made again")
        return
    print(f"{sum(place.size for place in found) / 1e6:10.1f} MB in all. Kept: {cleaning.KEPT}.", flush=True)
    if arguments.dry_run:
        return
    if running := _running(workspace):
        raise StoppedError(f"clean: {running[0]} is running; run clean when it is done.")
    if not arguments.yes:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise InputError("clean: nobody can be asked here; say --yes to remove this, or --dry-run to only look.")
        if input("Remove it? [y/N] ").strip().lower() not in ("y", "yes"):
            print("Nothing was removed.")
            return
    for moved in cleaning.remove(workspace, found):
        print(f"{moved} now holds what was not written by dreamset")
    print("Removed. `dvc repro` makes it again, from DVC's cache where it can; `dvc gc -w` empties that.")


def track(arguments: argparse.Namespace) -> None:
    """Send the records that no tracking server has received yet."""
    from dreamset.track import flush

    params, workspace = opened(arguments)
    print(flush(workspace, params))


def opened(arguments: argparse.Namespace) -> tuple[Params, Workspace]:
    """Return the parameters and the workspace of the project in the present folder."""
    workspace = Workspace.at(Path.cwd())
    params = load(arguments.params or workspace.root / "params.yaml", classifiers.ROWS)
    compute.prepare(params.compute, workspace.shards)
    return params, workspace

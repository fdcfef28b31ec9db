"""``dreamset check``: everything that can be told before a run, and before DVC removes the outputs of a stage.

DVC deletes what a stage wrote before it starts the stage. A wrong key or a missing weight would then cost the finished
splits, although the stage refuses in its first second.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamset import classifiers, prepare
from dreamset.command import weights
from dreamset.command.weights import refusals
from dreamset.core import remote, strict
from dreamset.core.errors import InputError
from dreamset.core.files import check_target, read_json
from dreamset.core.workspace import Workspace
from dreamset.data import asking, licences
from dreamset.data.splits import read_split
from dreamset.drawing import starts
from dreamset.params import Params, checked_model, parse, rules
from dreamset.params.sections import GROUP

if TYPE_CHECKING:
    from collections.abc import Iterator

_FILES: Final = ("csv", "coop", "medmnist")  # kinds of source whose argument is a file


def project(root: Path) -> None:
    """Refuse a folder in which no run is possible.

    Raises:
        InputError: it is no project, it is inside of one, or DVC is not initialised there.
    """
    missing = [name for name in ("dvc.yaml", "params.yaml") if not (root / name).is_file()]
    if missing:
        above = next((place for place in root.parents if (place / "dvc.yaml").is_file()), None)
        mend = f"go to {above}, which is one" if above else "go into one, or make one with `dreamset init FOLDER`"
        raise InputError(f"{root}: is no project of dreamset, for it has no {' and no '.join(missing)}; {mend}.")
    if not (root / ".dvc").is_dir():
        git = "" if any((place / ".git").exists() for place in (root, *root.parents)) else " --no-scm"
        raise InputError(f"{root}: DVC is not initialised here; run `dvc init{git}`.")
    if shutil.which("git") is None and (root / ".git").exists():
        raise InputError("git is not installed, and DVC needs it here; install git.")


def problems(root: Path, file: Path) -> tuple[Params | None, list[str]]:
    """Return the parameters of ``file``, and a sentence with its mend for everything that would stop a run.

    Nothing is changed, nothing is loaded, and no image is decoded.

    Args:
        root: the project's folder.
        file: its parameters.

    Returns:
        None in place of parameters where they are wrong in themselves; an empty list where all is well.
    """
    params, found = _parameters(file, file.name if file.parent == root else str(file))
    workspace = Workspace.at(root)
    for part in (_source, _weights, _asking, _licence, _stores, _targets):
        # The other parts say what they can even where some parameters are wrong.
        found += [] if params is None else part(params, workspace)
    return params, list(dict.fromkeys(found))


def prepared(params: Params, workspace: Workspace) -> None:
    """Refuse what the images that ``prepare`` drew do not allow.

    Raises:
        InputError: ``evaluate.slices`` asks for groups, and the images to score have none.
    """
    if GROUP in params.evaluate.slices:
        from dreamset.evaluate import slices

        split = read_split(workspace.splits)
        groups, images = len({sample.group for sample in split.train}), len(split.train)
        if split.protocol == "test":
            # The test manifest is for `evaluate` alone. The record has no number where each image is its own group.
            record = read_json(workspace.result("prepare"), "dreamset prepare")
            images = record["test"]
            groups = record["test_groups"] or images
        slices.check_groups(groups, images)


def refuse(root: Path, file: Path) -> Params:
    """Return the parameters of a project in which nothing stands against a run.

    Raises:
        InputError: the only problem in a sentence, or all of them line by line.
    """
    params, found = problems(root, file)
    if len(found) == 1:
        raise InputError(found[0])
    if found or params is None:
        raise InputError("\n- ".join([f"{len(found)} problems, and nothing was changed:", *found]))
    return params


def _parameters(file: Path, name: str) -> tuple[Params | None, list[str]]:
    """Return parameters whose types are right, and what is wrong with them; None where a type is wrong."""
    try:
        raw = strict.read_yaml(file)
        return parse(raw, classifiers.ROWS, name), []
    except InputError as error:
        first = str(error)
    try:
        raw = strict.read_yaml(file)
    except InputError:
        return None, [first]
    found = [f"{name}: {sentence}" for sentence in strict.problems(Params, raw)]
    if found:
        return None, found
    params, models = strict.build(Params, raw), dict[str, Any]()
    for row in params.models:
        try:
            models[row] = checked_model(params, row, classifiers.ROWS)
        except InputError as error:
            found.append(f"{name}: {error}")
    if found:
        return None, found
    params = dataclasses.replace(params, models=models, active=(*params.active, *params.after))
    return params, [f"{name}: {sentence}" for sentence in rules.problems(params)] or [first]


def _source(params: Params, workspace: Workspace) -> Iterator[str]:
    """Yield what stands against the source of images, from its folders and files alone."""
    yield from refusals(lambda: _outline(params, workspace))
    few = params.prepare.few_shot
    if few and "{" not in few and not (workspace.root / few).is_file():
        yield f"prepare.few_shot: {few} is missing; name the JSON file of the shots, or set it to null."


def _outline(params: Params, workspace: Workspace) -> None:
    from dreamset import sources
    from dreamset.sources import imagefolder, listing, presets

    kind, _, argument = params.prepare.source.partition(":")
    known = {"imagefolder", "cifar10", "cifar100", "stl10", *_FILES, *presets.PRESETS}
    if kind not in known or not argument or argument.startswith("~"):
        if (kind, argument) != ("digits", ""):
            sources.read(params.prepare)  # which refuses it
        return
    path = workspace.root / argument
    if kind in _FILES:
        if not path.is_file():
            raise InputError(f"prepare.source: {argument} is no file; write {kind}:FILE with the file's path.")
        check_readable(path)
        if kind == "csv":
            found, _ = listing.lines(path)
            prepare.check_shots(params, sorted({line.label for line in found}))
        return
    if not path.is_dir():
        what = f"is a link to {path.readlink()}, where there is" if path.is_symlink() else "is"
        raise InputError(f"prepare.source: {argument} {what} no folder; write {kind}:PATH of the folder of images.")
    if kind == "imagefolder" and not imagefolder.folders(path):
        raise InputError(
            f"prepare.source: {argument} holds no folder; put one folder of images per class into it, or run "
            "`dreamset run --images DIR` (docs/own-images.md)."
        )
    if kind == "imagefolder":
        prepare.check_shots(params, imagefolder.class_names(path))


def check_readable(path: Path) -> None:
    """Refuse a file that cannot be opened.

    Raises:
        InputError: naming it and the reason.
    """
    try:
        path.open("rb").close()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); make it readable, or name another.") from error


def _weights(params: Params, workspace: Workspace) -> Iterator[str]:
    """Yield what is missing or damaged of the weights that the model's row and the active recipes name."""
    if params.model not in params.models:
        return
    known = [name for name in params.active if name in params.recipes]
    retrieving = [name for name in known if not params.recipes[name].draws]
    captioned = [name for name in known if params.recipes[name].captioner is not None]
    quick = [name for name in known if params.recipes[name].draws and params.sampler(name).student]
    yield from refusals(
        *(functools.partial(part, params, workspace) for part in (weights.generator, weights.clip, weights.judge)),
        *(functools.partial(weights.student, params, workspace) for name in quick[:1]),
        *(functools.partial(weights.searched, params, workspace, name) for name in retrieving[:1]),
        *(functools.partial(weights.captioner, params, workspace, name) for name in captioned),
    )


def _asking(params: Params, workspace: Workspace) -> Iterator[str]:
    """Yield what is missing of the files that the active recipes ask with, and strengths that leave no step."""
    for name in params.active if params.model in params.models else ():
        row = params.recipes.get(name)
        for knob, file in (("descriptions", row.descriptions), ("captions", row.captions_file)) if row else ():
            if file is not None:
                key = f"recipes.{name}.{knob}"
                yield from refusals(functools.partial(asking.check_there, workspace.root / file, key))
        if row is not None and row.starts_from_shots and not (row.searches("steps") or row.searches("strength")):
            yield from refusals(functools.partial(starts.check, params, name))


def _licence(params: Params, workspace: Workspace) -> Iterator[str]:
    if params.model in params.models:
        yield from refusals(lambda: licences.check(params))


def _stores(params: Params, workspace: Workspace) -> Iterator[str]:
    """Yield what stands against the places that keep studies and finished work."""
    if (url := params.compute.store) is not None:
        yield from refusals(lambda: remote.check(url))
    if any(params.recipes[name].search for name in params.active if name in params.recipes):
        from dreamset.study import storage

        yield from refusals(lambda: storage.engine_of(params.tune.storage, workspace.root))


def _targets(params: Params, workspace: Workspace) -> Iterator[str]:
    """Yield the places that a run writes to and cannot."""
    items = dict.fromkeys(("adapt", "tune", "generate"), params.active) | {"train": ("real", *params.active)}
    files = [workspace.result(stage) for stage in ("prepare", "expect", "evaluate", "deliver")]
    files += [workspace.result(stage, item) for stage, names in items.items() for item in names]
    files += [workspace.splits, workspace.root / "dvc.lock"]
    folders = [workspace.real, workspace.classifier, workspace.shards, workspace.locks, workspace.plots("evaluate")]
    folders += [place(item) for item in params.active for place in (workspace.adapter, workspace.synthetic)]
    seen: set[str] = set()
    for sentence in refusals(
        *(functools.partial(check_target, path, "check:") for path in files),
        *(functools.partial(check_target, path, "check:", folder=True) for path in folders),
    ):
        # Of many files of one folder that cannot be written, the first says it.
        reason = sentence.partition("cannot be written")[2] or sentence
        if reason not in seen:
            seen.add(reason)
            yield sentence

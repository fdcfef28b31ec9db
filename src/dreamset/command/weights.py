"""Pretrained weights that a run needs: whether they are on this machine and whole, before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreamset.core.errors import InputError
from dreamset.weights import hub, judging, pretrained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dreamset.core.workspace import Workspace
    from dreamset.params import Params


def refusals(*checks: Callable[[], object]) -> Iterator[str]:
    """Yield the sentence of each check that refuses."""
    for check in checks:
        try:
            check()
        except InputError as error:
            yield str(error)


def generator(params: Params, workspace: Workspace) -> None:
    """Refuse a generator that is missing, not whole, or pickled.

    Raises:
        InputError: naming the key of the model's row.
    """
    base = params.base
    key = f"models.{params.model}.generator"
    hub.refuse_pickles(_located(workspace.root, base.generator, "generator", base.variant, key), base.variant)


def student(params: Params, workspace: Workspace) -> None:
    """Refuse a few-step student that is missing, not whole, or pickled; see ``generator``. The row names one."""
    named = params.base.few_steps
    if named is not None:
        folder = _located(workspace.root, *named.pretrained, None, f"models.{params.model}.student.weights")
        hub.refuse_pickles(folder)


def clip(params: Params, workspace: Workspace) -> None:
    """Refuse a CLIP that is missing or not whole; see ``generator``."""
    name = pretrained.hub_name(params.base.clip) or params.base.clip
    if name.startswith("open_clip:"):
        pretrained.find(workspace.root, name)
    else:
        folder = _located(workspace.root, name, "clip", None, f"models.{params.model}.clip")
        pretrained.in_folder(folder, name, None, "")


def judge(params: Params, workspace: Workspace) -> None:
    """Refuse a judge that is missing or not whole; where it has not been fetched, CLIP stands in for it."""
    if not isinstance(judging.find(workspace.root, params.base), pretrained.Pretrained):
        _located(workspace.root, params.base.judge, "judge", None, f"models.{params.model}.judge")


def searched(params: Params, workspace: Workspace, recipe: str) -> None:
    """Refuse a folder to retrieve from that is missing."""
    kind, _, folder = (params.base.retrieval or "").partition(":")
    if kind == "imagefolder" and not (workspace.root / folder).is_dir():
        raise InputError(
            f"models.{params.model}.retrieval: {folder} is no folder; name one, or take {recipe} out of active."
        )


def captioner(params: Params, workspace: Workspace, recipe: str) -> None:
    """Refuse a model that writes captions and is missing or not whole."""
    name = params.recipes[recipe].captioner
    assert name is not None
    _located(workspace.root, name, "captioner", None, f"recipes.{recipe}.captions")


def _located(root: Path, name: str, part: Any, variant: str | None, key: str) -> Path:
    """Return the folder of weights that are there and whole.

    Raises:
        InputError: they are not.
    """
    folder = hub.locate(root, name, part, variant)
    if not folder.is_dir():
        raise InputError(f"{key}: {name} is no folder here; copy it there, or name weights of the hub (docs/gpu.md).")
    # An absolute name, so that files in the hub's cache are looked at, too.
    hub.check(root, str(folder.absolute()), part, variant)
    return folder

"""What a study is: the hash of all that its trials' scores and its search space depend on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreamset.core.files import digest
from dreamset.data import tuned
from dreamset.data.asking import files_digest
from dreamset.params import to_dict
from dreamset.study import space
from dreamset.weights import hub, pretrained

if TYPE_CHECKING:
    from dreamset.core.workspace import Workspace
    from dreamset.data.splits import Sample, Split
    from dreamset.data.work import Work
    from dreamset.params import Params


def key_of(work: Work, ranges: space.Space) -> str:
    """Return the hash of all parameters and data that change a study's scores or its search space.

    Left out are the numbers of trials and of repetitions, so that more of them go on with the same study, and all
    paths, so that workers on several machines share a study. Code is left out too, since Hyperband draws the bracket of
    a trial from the study's name. ``loop.open_study`` keeps the trials of other code apart.
    """
    params, workspace, split, recipe = work.params, work.workspace, work.split, work.recipe
    base, studied = to_dict(params.base), params.studying(recipe)
    tune = studied["tune"]
    del tune["trials"], tune["rescored"]
    for name in ("clip", "judge", "retrieval", "licence", "train", "generator", "variant", "attributes"):
        del base[name]
    # The other fields of the section are about sample grids and checkpoints.
    adapting = {"weight_decay": params.adapt.weight_decay, "max_grad_norm": params.adapt.max_grad_norm}
    del base["adapt"]["sample_every"], base["generate"]["per_class"]
    judge = hub.identity(workspace.root, params.base.judge, "judge")["sha256"] if params.tune.max_fid else None
    return digest(
        {
            "rows": [
                tuned.applied(params, workspace, name).recipes[name].recorded() for name in params.lineage(recipe)[:-1]
            ],
            "row": with_inherited(params, workspace, recipe).of(recipe).recipes[recipe].recorded(),
            "space": space.as_json(ranges),
            "tune": tune,
            "base": base,
            "classifier": [to_dict(params.base.train.rows[base["tune"]["classifier"]]), params.base.train.crop],
            "weights": hub.identity(workspace.root, *params.base.pretrained)["sha256"],
            "judge": judge,
            "adapt": adapting,
            "redraws": [params.generate.redraws, params.generate.max_redrawn_share],
            "shots": [_facts(split.train), _facts(split.selection)],
            "captions": [[split.prompt(label, kind) for kind in ("template", "label")] for label in _labels(split)],
            "seen": [split.classes, split.invariances, split.native, split.channels],
            "selection": params.selection,
            "seeds": [params.seed, split.seed],
        }
        | _told(work)
        | {name: studied[name] for name in ("real_weight", "finish_on_real", "per_class") if name in studied}
        | _weighing(work)
        | _seeing(work)
        | ({"student": student["sha256"]} if (student := hub.student(workspace.root, params, recipe)) else {})
    )


def _told(work: Work) -> dict[str, Any]:
    """Return what a recipe and its parents ask with beside the names of the classes; empty where there is nothing."""
    params, root = work.params, work.workspace.root
    rows = [params.recipes[name] for name in params.lineage(work.recipe)]
    if not any(row.tells_shots or row.descriptions for row in rows):
        return {}
    told: dict[str, Any] = {"files": files_digest(params, root, work.recipe)}
    told["beside"] = [sample.caption for sample in work.split.train]
    if any(row.reads_attributes for row in rows):
        told |= {"clip": pretrained.identity(root, params.base.clip)["sha256"], "groups": params.base.attributes}
    return {"told": told}


def _labels(split: Split) -> range:
    return range(len(split.classes))


def _facts(samples: tuple[Sample, ...]) -> list[list[Any]]:
    return [[sample.sha256, sample.label, sample.group] for sample in samples]


def with_inherited(params: Params, workspace: Workspace, recipe: str) -> Params:
    """Return ``params`` with the inherited values of ``recipe`` in its row."""
    return params.with_values(recipe, tuned.inherited(params, workspace, recipe))


def _seeing(work: Work) -> dict[str, Any]:
    """Return the CLIP and its captions, where they choose or guide images of trials."""
    if not tuned.through_clip(work.params, work.recipe):
        return {}
    clip = pretrained.identity(work.workspace.root, work.base.clip)["sha256"]
    return {"filtering": [clip, work.split.clip_prompts()]}


def _weighing(work: Work) -> dict[str, Any]:
    """Return what weighs the images, where a study's trials may weigh them."""
    own = work.params.of(work.recipe).train.nearness
    if not own and not work.row.searches("nearness"):
        return {}
    return {"nearness": own, "clip": pretrained.identity(work.workspace.root, work.base.clip)["sha256"]}

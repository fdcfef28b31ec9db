"""``dreamset train``: classifiers on real images, synthetic ones, or both, in equal optimizer steps."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Final, Literal

from dreamset import locks
from dreamset.errors import InputError
from dreamset.files import sync_folder, write_csv, write_json
from dreamset.splits import read_split

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import nn

    from dreamset.classifiers.arrays import Labelled
    from dreamset.classifiers.fit import History, Source
    from dreamset.params import Params
    from dreamset.splits import Split
    from dreamset.workspace import Workspace

TrainOn = Literal["real", "synthetic", "both"]

REAL: Final = "real"
_POINTS: Final = 50  # of a loss curve: each is the mean over its share of the steps


def arms(params: Params) -> tuple[str, ...]:
    """What ``run`` can train: the real images alone, and each active recipe."""
    return (REAL, *params.active)


def train_on(arm: str) -> tuple[TrainOn, ...]:
    """Which images the classifiers of an arm learn from."""
    return ("real",) if arm == REAL else ("synthetic", "both")


def run(params: Params, workspace: Workspace, arm: str) -> dict[str, Any]:
    """Train every classifier of ``arm`` and write it, its curves and the record of how it was trained.

    Args:
        params: all parameters.
        workspace: where the splits and synthetic images are, and the classifiers go.
        arm: ``real`` or an active recipe.

    Raises:
        InputError: an unknown arm, or images that are missing or changed.
    """
    if arm not in arms(params):
        raise InputError(f"{arm}: is neither 'real' nor an active recipe; there are {', '.join(arms(params))}.")
    if "clip_lora" in params.train.classifiers:
        from dreamset import classifiers

        # Weights that are missing are told now, and not after the hours that another classifier takes.
        classifiers.identity(workspace.root, params.base.clip)
    split = read_split(workspace.splits)
    images = _Images(params, workspace, split, arm)
    final = workspace.classifiers(arm)
    # One name, so that what a killed run left goes: evaluate depends on the folder that it stands in.
    aside = final.with_name(f".{arm}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    runs = []
    try:
        for name in params.train.classifiers:
            for kind in train_on(arm):
                locks.boundary()
                runs.append(_train(params, workspace, split, arm, kind, name, images, aside))
        shutil.rmtree(final, ignore_errors=True)
        aside.replace(final)
        sync_folder(final.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    result = {
        "arm": arm,
        "shots": split.shots,
        "seed": split.seed,
        "labels_train_per_class": len(split.train) / len(split.classes),
        "labels_selection_per_class": len(split.selection) / len(split.classes),
        "runs": runs,
    }
    write_json(workspace.result("train", arm), result)
    _write_plots(workspace.plots("train", arm), runs)
    return result


class _Images:
    """The images of an arm, decoded at the sides that its classifiers want."""

    def __init__(self, params: Params, workspace: Workspace, split: Split, arm: str) -> None:
        self.params, self.workspace, self.split, self.arm = params, workspace, split, arm
        self.size: int | None = None
        self.decoded: tuple[dict[str, Labelled], Labelled]

    def of(self, classifier: nn.Module) -> tuple[dict[str, Labelled], Labelled]:
        """Training images by source, and selection images; the last side is kept, for classifiers in a row share it.

        Raises:
            InputError: images that are missing or changed.
        """
        from dreamset.classifiers import arrays, seen, stored

        size: int = classifier.size  # type: ignore[assignment]
        if size != self.size:
            cell, scratch, resolution = self.workspace.cell, self.workspace.scratch, self.params.base.resolution
            side = stored(size, resolution)
            data = {"real": arrays.real(self.split.train, cell, side, scratch)}
            if self.arm != REAL:
                data["synthetic"] = arrays.synthetic(self.workspace.synthetic(self.arm), self.split, side, scratch)
            self.decoded = data, arrays.real(self.split.selection, cell, seen(size, resolution), scratch)
            self.size = size
        return self.decoded


def _train(
    params: Params,
    workspace: Workspace,
    split: Split,
    arm: str,
    kind: TrainOn,
    name: str,
    images: _Images,
    folder: Path,
) -> dict[str, Any]:
    """One classifier, trained and saved under ``folder``; its record."""
    import torch

    from dreamset import classifiers
    from dreamset.classifiers.fit import fit
    from dreamset.seeds import seed_for

    row = getattr(params.base.train, name)
    # No recipe in the seeds: recipes are compared from the same start and in the same order of batches.
    torch.manual_seed(seed_for("train", params.seed, name, "start"))
    classifier = classifiers.build(name, params.base, split, workspace.root)
    data, selection = images.of(classifier)
    used = _sources(kind, data, params.train.real_weight)
    history = fit(
        classifier,
        used,
        selection,
        row,
        selections=params.train.selections,
        invariances=split.invariances,
        crop=params.base.train.crop,
        seed=("train", params.seed, kind, name),
        what=f"train {arm} {kind} {name}",
    )
    record = {
        "classifier": name,
        "arm": arm,
        "train_on": kind,
        "classes": split.classes,
        "template": split.template,
        "prompts": [split.prompt(label) for label in range(len(split.classes))],
        "shots": split.shots,
        "seed": split.seed,
        "steps": row.steps,
        "chosen_step": history.chosen_step,
    }
    classifiers.save(classifier, folder / f"{kind}_{name}", record)
    return _record(kind, name, history, used, row.batch)


def _sources(kind: TrainOn, data: dict[str, Labelled], real_weight: float) -> list[Source]:
    """The images of a run; of both, half of every batch each, with the real rows' loss weighted by lambda."""
    from dreamset.classifiers.fit import Source

    if kind != "both":
        return [Source(kind, data[kind], 1.0, 1.0)]
    return [
        Source("real", data["real"], 0.5, real_weight),
        Source("synthetic", data["synthetic"], 0.5, 1.0 - real_weight),
    ]


def _record(kind: TrainOn, name: str, history: History, used: Iterable[Source], batch: int) -> dict[str, Any]:
    steps = len(history.losses)
    counts = {source.name: len(source.data) for source in used}
    return {
        "train_on": kind,
        "classifier": name,
        "steps": steps,
        "chosen_step": history.chosen_step,
        "seconds": round(history.seconds, 2),
        "images_per_second": round(steps * batch / history.seconds, 1),
        "real_images": counts.get("real", 0),
        "synthetic_images": counts.get("synthetic", 0),
        "selection": [{"step": step, "accuracy": round(score, 4)} for step, score in history.selection],
        "loss": _thinned(history.losses),
    }


def _thinned(losses: list[float]) -> list[dict[str, float]]:
    """At most ``_POINTS`` means over consecutive steps, each at its last step."""
    stride = -(-len(losses) // _POINTS)
    parts = [losses[start : start + stride] for start in range(0, len(losses), stride)]
    ends = [min(start + stride, len(losses)) for start in range(0, len(losses), stride)]
    return [{"step": end, "loss": round(sum(part) / len(part), 5)} for end, part in zip(ends, parts, strict=True)]


def _write_plots(folder: Path, runs: list[dict[str, Any]]) -> None:
    """``loss.csv`` and ``selection.csv`` for DVC's linear plots, all runs of an arm in each."""
    for file, curve, value in (("loss.csv", "loss", "loss"), ("selection.csv", "selection", "accuracy")):
        rows = [{"run": f"{run['train_on']}_{run['classifier']}", **point} for run in runs for point in run[curve]]
        write_csv(folder / file, rows, ("run", "step", value))

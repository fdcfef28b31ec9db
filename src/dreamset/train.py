"""``dreamset train``: classifiers on real images, synthetic ones, or both, in equal optimizer steps and equal effort.

What ``selection`` says chooses the step and, among ``train.configurations``, the configuration of each; nothing else
does. With ``cv`` the whole of the method is repeated in each fold: what is held out there is adapted to by nobody.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dreamset import folds, locks, selection
from dreamset.classifiers import FROM_SCRATCH
from dreamset.errors import InputError
from dreamset.files import sync_folder, write_csv, write_json
from dreamset.splits import read_split, write_split

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from dreamset.classifiers.arrays import Labelled
    from dreamset.classifiers.fit import History, Source
    from dreamset.params import Params
    from dreamset.selection import Choice, Configuration
    from dreamset.splits import Split
    from dreamset.workspace import Workspace

# Of the arm `real`: the shots; the shots strongly augmented; and what `selection` sets apart trained on as well, to the
# last step, for that is what else its labels are good for. Of a recipe: its images alone, with the shots, and with the
# shots all strongly augmented; and, as `synthetic_x2`, the first twice as many of its images as there are shots.
KINDS: Final = ("real", "real_strong", "real_more", "synthetic", "both", "both_strong")
_SCALED: Final = "synthetic_x"

REAL: Final = "real"
_POINTS: Final = 50  # of a loss curve: each is the mean over its share of the steps


def arms(params: Params) -> tuple[str, ...]:
    """What ``run`` can train: the real images alone, and each active recipe."""
    return (REAL, *params.active)


def train_on(params: Params, arm: str, name: str) -> tuple[str, ...]:
    """Which images the classifier ``name`` of ``train.classifiers`` learns from in an arm."""
    if arm != REAL:
        # Strongly augmented for the verdict alone, where it stands against the real images strongly augmented.
        return ("synthetic", "both", "both_strong") if name == params.primary_classifier else ("synthetic", "both")
    return ("real", "real_strong", "real_more") if params.sets_apart else ("real", "real_strong")


def runs(params: Params, arm: str) -> tuple[tuple[str, str], ...]:
    """Everything that is trained in an arm: (train_on, classifier), with ``train.baselines`` on the shots alone.

    The runs of ``train.scales`` take as many optimizer steps as any other, whatever the size of their sets.
    """
    found = [(kind, name) for name in params.train.classifiers for kind in train_on(params, arm, name)]
    if arm == REAL:
        found += [("real", name) for name in params.train.baselines]
    if params.scales:
        # The curve and what it is compared with, the same classifier on the real images alone.
        kinds = ("real", "real_strong") if arm == REAL else (f"{_SCALED}{scale}" for scale in params.scales)
        found += [(kind, params.base.tune.classifier) for kind in kinds]
    return tuple(dict.fromkeys(found))


def scale_of(kind: str) -> int | None:
    """How many times the number of shots the synthetic images of a run are; None of all but the runs of ``scales``."""
    return int(kind.removeprefix(_SCALED)) if kind.startswith(_SCALED) else None


def run(params: Params, workspace: Workspace, arm: str, kinds: Collection[str] = KINDS) -> dict[str, Any]:
    """Train every classifier of ``arm`` and write it, its curves and the record of how it was trained.

    Args:
        params: all parameters.
        workspace: where the splits and synthetic images are, and the classifiers go.
        arm: ``real`` or an active recipe.
        kinds: of the runs of ``KINDS``, which are trained; an experiment may want few.

    Raises:
        InputError: an unknown arm, images that are missing or changed, or a split that was drawn for another selection.
    """
    if arm not in arms(params):
        raise InputError(f"{arm}: is neither 'real' nor an active recipe; there are {', '.join(arms(params))}.")
    if any(name not in FROM_SCRATCH for _, name in runs(params, arm)):
        from dreamset import classifiers

        # Weights that are missing are told now, and not after the hours that another classifier takes.
        classifiers.identity(workspace.root, params.base.clip)
    split = read_split(workspace.splits)
    if params.sets_apart != bool(split.selection):
        raise InputError(
            f"{workspace.splits}: has {'some' if split.selection else 'no'} selection images, unlike selection: "
            f"{params.selection}; run `dreamset prepare` again."
        )
    held_out, seconds = _over_folds(params, workspace, split, arm) if params.selection == "cv" else ({}, 0.0)
    part = _Part(params, workspace, split, arm)
    final = workspace.classifiers(arm)
    # One name, so that what a killed run left goes: evaluate depends on the folder that it stands in.
    aside = final.with_name(f".{arm}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    records = []
    try:
        for kind, name in runs(params, arm):
            if kind in KINDS and kind not in kinds:
                continue
            locks.boundary()
            records.append(_train(part, kind, name, aside, held_out.get((kind, name), [])))
        shutil.rmtree(final, ignore_errors=True)
        aside.replace(final)
        sync_folder(final.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    result = {
        "arm": arm,
        "shots": split.shots,
        "seed": split.seed,
        "selection": params.selection,
        "labels_train_per_class": len(split.train) / len(split.classes),
        "labels_selection_per_class": len(split.selection) / len(split.classes),
        # What the folds of selection: cv adapted and drew, once for all runs; what they trained is in each run's.
        "seconds_folds": round(seconds, 2),
        "runs": records,
    }
    write_json(workspace.result("train", arm), result)
    _write_plots(workspace.plots("train", arm), records)
    return result


class _Part:
    """Where an arm's classifiers learn and are scored: the workspace, or one fold of it; images decoded once."""

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
                data["synthetic"] = self._synthetic(side, self.params.training_per_class(self.split.train_per_class))
            elif self.params.sets_apart:
                data["more"] = arrays.real((*self.split.train, *self.split.selection), cell, side, scratch)
            self.decoded = data, arrays.real(self.split.selection, cell, seen(size, resolution), scratch)
            self.size = size
        return self.decoded

    def scaled(self, scale: int, classifier: nn.Module) -> Labelled:
        """The first images of each class, ``scale`` times as many as its shots, for a classifier.

        Raises:
            InputError: there are fewer.
        """
        from dreamset.classifiers import stored

        wanted = [scale * shots for shots in self.split.train_per_class]
        size: int = classifier.size  # type: ignore[assignment]
        found = self._synthetic(stored(size, self.params.base.resolution), wanted)
        if len(found) < sum(wanted):
            raise InputError(
                f"{self.workspace.synthetic(self.arm)}: holds too few images for train.scales: {scale}; run `dreamset "
                f"generate {self.arm}` again."
            )
        return found

    def _synthetic(self, side: int, most: Sequence[int]) -> Labelled:
        from dreamset.classifiers import arrays

        folder, scratch = self.workspace.synthetic(self.arm), self.workspace.scratch
        return arrays.synthetic(folder, self.split, side, scratch, most)


@dataclass(frozen=True)
class _Scored:
    """The selection images' logits (n, classes) of a configuration by step, their labels (n,), and the time it took.

    ``curve`` is their accuracy by step, of more steps than can be chosen where the learning rate goes by it; empty
    where it is that of the logits.
    """

    logits: dict[int, NDArray[np.float32]]
    labels: NDArray[np.int64]
    seconds: float
    curve: dict[int, float] = dataclasses.field(default_factory=dict)

    def accuracies(self) -> dict[int, float]:
        """By step."""
        return {step: float((logits.argmax(1) == self.labels).mean()) for step, logits in self.logits.items()}


def _over_folds(
    params: Params, workspace: Workspace, split: Split, arm: str
) -> tuple[dict[tuple[str, str], list[_Scored]], float]:
    """Every run and configuration of an arm, scored on each shot by what was made without it.

    The adapters and images of the folds are shards like any others, so that a run that was killed goes on from them.
    With it goes how many seconds it took to make those.
    """
    from dreamset import generate, inherit

    found: dict[tuple[str, str], list[list[_Scored]]] = {}
    seconds = 0.0
    for index, held in enumerate(folds.held_out(split, folds.SELECTING, "selection")):
        place = folds.at(workspace, "selection", index)
        own = dataclasses.replace(folds.without(split, held, workspace), selection=folds.absolute(held, workspace))
        write_split(place.splits, own)
        if arm != REAL:
            # With what the workspace's study chose: it has seen the shots that are held out here, and a study in each
            # of these folds would choose by a few images. What evaluate scores is held out of the study, too.
            seconds += inherit.adapted(params, workspace, place, arm) + generate.run(params, place, arm)["seconds"]
        part = _Part(params, place, own, arm)
        for kind, name in runs(params, arm):
            scored = []
            for configuration in _configurations(params, name):
                locks.boundary()
                _, history, _ = _fit(part, kind, name, configuration, what=f"fold {index + 1}")
                scored.append(_Scored(history.logits, part.decoded[1].labels, history.seconds))
            found.setdefault((kind, name), []).append(scored)
    return {run: [_pooled(own) for own in zip(*scored, strict=True)] for run, scored in found.items()}, seconds


def _pooled(parts: Sequence[_Scored]) -> _Scored:
    """One configuration over all folds."""
    import numpy as np

    steps = parts[0].logits
    logits = {step: np.concatenate([part.logits[step] for part in parts]) for step in steps}
    return _Scored(logits, np.concatenate([part.labels for part in parts]), sum(part.seconds for part in parts))


def _configurations(params: Params, name: str) -> list[Configuration]:
    row = getattr(params.base.train, name)
    return selection.configurations(row, params.train.real_weight, params.train.configurations, params.seed)


def _fit(
    part: _Part,
    kind: str,
    name: str,
    configuration: Configuration,
    *,
    stop: int | None = None,
    scored: bool = True,
    what: str = "train",
) -> tuple[nn.Module, History, list[Source]]:
    """A classifier trained in one configuration to the step ``stop``; what happened, and the images it learned from."""
    import torch

    from dreamset import classifiers
    from dreamset.classifiers.fit import fit
    from dreamset.seeds import seed_for

    params, split = part.params, part.split
    # No recipe in the seeds: recipes are compared from the same start and in the same order of batches.
    torch.manual_seed(seed_for("train", params.seed, name, "start"))
    classifier = classifiers.build(name, params.base, split, part.workspace.root)
    row = getattr(params.base.train, name)
    data, held = part.of(classifier)
    scale = scale_of(kind)
    if scale is not None:
        data = {"synthetic": part.scaled(scale, classifier)}
    if not scored:
        held = dataclasses.replace(held, images=held.images[:0], labels=held.labels[:0], names=())
    used = _sources(kind, data, configuration.real_weight)
    history = fit(
        classifier,
        used,
        held,
        configuration.of(row),
        selections=params.train.selections,
        invariances=split.invariances,
        crop=params.base.train.crop,
        seed=("train", params.seed, kind, name),
        stop=stop,
        mixup=configuration.mixup,
        # Without images to go by, as for `real_more`, it is the cosine.
        plateau=scored and getattr(row, "schedule", "cosine") == "plateau",
        strong=kind.endswith("_strong"),
        what=f"{what} {part.arm} {kind} {name}",
    )
    return classifier, history, used


def _train(part: _Part, kind: str, name: str, folder: Path, held_out: list[_Scored]) -> dict[str, Any]:
    """One classifier, chosen by the rule, trained and saved under ``folder``; its record.

    Args:
        part: all images.
        kind: which of them it learns from.
        name: of the classifier.
        folder: where classifiers are saved.
        held_out: with ``cv``, what each configuration has scored over the folds.
    """
    from dreamset import classifiers
    from dreamset.classifiers.fit import restore
    from dreamset.metrics.calibration import fit_temperature

    params, split = part.params, part.split
    rule = "fixed" if kind == "real_more" else params.selection
    tried = _configurations(params, name) if rule != "fixed" else _configurations(params, name)[:1]
    scored, chosen = held_out, None
    if rule == "fixed":
        classifier, history, used = _fit(part, kind, name, tried[0], scored=False)
    elif rule == "cv":
        chosen = _choose(scored)
        # On all the shots, and so with nothing held out, as the folds' classifiers were trained on theirs.
        classifier, history, used = _fit(part, kind, name, tried[chosen.configuration], stop=chosen.step)
    else:
        kept: dict[int, tuple[nn.Module, History, list[Source]]] = {}
        for index, configuration in enumerate(tried):
            kept[index] = _fit(part, kind, name, configuration)
            history = kept[index][1]
            scored = [*scored, _Scored(history.logits, part.decoded[1].labels, history.seconds, history.curve)]
            chosen = _choose(scored)
            # The rule can come back to the first or to the best so far alone.
            kept = {i: fitted for i, fitted in kept.items() if i in (0, chosen.configuration)}
        assert chosen is not None
        classifier, history, used = kept[chosen.configuration]
        restore(classifier, history.states[chosen.step])
    temperature, images = 1.0, 0
    if chosen is not None:
        best = scored[chosen.configuration]
        temperature, images = fit_temperature(best.logits[chosen.step], best.labels), len(best.labels)
    configuration = tried[chosen.configuration if chosen else 0]
    facts = {
        "steps": configuration.steps,
        "chosen_step": chosen.step if chosen else configuration.steps,
        "configuration": _used(configuration, kind),
        "selection": rule,
        # Of no selection images there is none to fit; the logits are taken as they are.
        "temperature": round(temperature, 4),
        "temperature_images": images,
    }
    record = {
        "classifier": name,
        "arm": part.arm,
        "train_on": kind,
        "classes": split.classes,
        "template": split.template,
        "prompts": [split.prompt(label) for label in range(len(split.classes))],
        "shots": split.shots,
        "seed": split.seed,
    }
    classifiers.save(classifier, folder / f"{kind}_{name}", record | facts)
    return _record(part, kind, name, used, history, facts, tried, scored, chosen)


def _used(configuration: Configuration, kind: str) -> dict[str, Any]:
    """A configuration as it was trained with: strong augmentation mixes where the configuration itself does not."""
    from dreamset.classifiers.fit import mixing

    mixup, cutmix = mixing(configuration.mixup, strong=kind.endswith("_strong"))
    return dataclasses.asdict(configuration) | {"mixup": mixup, "cutmix": cutmix}


def _choose(scored: Sequence[_Scored]) -> Choice:
    return selection.choose([own.accuracies() for own in scored], len(scored[0].labels))


def _sources(kind: str, data: dict[str, Labelled], real_weight: float) -> list[Source]:
    """The images of a run; of both, half of every batch each, with the real rows' loss weighted by lambda."""
    from dreamset.classifiers.fit import Source

    if kind in ("both", "both_strong"):
        return [
            Source("real", data["real"], 0.5, real_weight),
            Source("synthetic", data["synthetic"], 0.5, 1.0 - real_weight),
        ]
    if kind == "synthetic" or scale_of(kind) is not None:
        return [Source("synthetic", data["synthetic"], 1.0, 1.0)]
    return [Source("real", data["more" if kind == "real_more" else "real"], 1.0, 1.0)]


def _record(
    part: _Part,
    kind: str,
    name: str,
    used: Iterable[Source],
    history: History,
    facts: dict[str, Any],
    tried: Sequence[Configuration],
    scored: Sequence[_Scored],
    chosen: Choice | None,
) -> dict[str, Any]:
    """What ``results/train`` says of a run: how it went, what was tried and why this was kept, and whose labels."""
    split, classes = part.split, len(part.split.classes)
    counts = {source.name: len(source.data) for source in used}
    more = kind == "real_more"
    curves = [
        [{"step": step, "accuracy": round(value, 4)} for step, value in (own.curve or own.accuracies()).items()]
        for own in scored
    ]
    done, batch = len(history.losses), getattr(part.params.base.train, name).batch
    # A choice is paid for by all that was tried; where images are held out for good, what is kept is one of those.
    effort = sum(own.seconds for own in scored) + (0.0 if part.params.sets_apart and not more else history.seconds)
    return facts | {
        "train_on": kind,
        "classifier": name,
        "labels_train_per_class": (len(split.train) + more * len(split.selection)) / classes,
        "labels_selection_per_class": 0.0 if more else len(split.selection) / classes,
        "seconds": round(effort, 2),
        "images_per_second": round(done * batch / history.seconds, 1),
        "real_images": counts.get("real", 0),
        "synthetic_images": counts.get("synthetic", 0),
        "selection_curve": curves[chosen.configuration] if chosen else [],
        "tried": [
            {"configuration": _used(configuration, kind), "scores": curve}
            for configuration, curve in zip(tried, curves or [[]], strict=True)
        ],
        "choice": {key: round(value, 4) for key, value in dataclasses.asdict(chosen).items()} if chosen else None,
        "loss": _thinned(history.losses),
    }


def _thinned(losses: list[float]) -> list[dict[str, float]]:
    """At most ``_POINTS`` means over consecutive steps, each at its last step."""
    stride = -(-len(losses) // _POINTS)
    parts = [losses[start : start + stride] for start in range(0, len(losses), stride)]
    ends = [min(start + stride, len(losses)) for start in range(0, len(losses), stride)]
    return [{"step": end, "loss": round(sum(part) / len(part), 5)} for end, part in zip(ends, parts, strict=True)]


def _write_plots(folder: Path, records: list[dict[str, Any]]) -> None:
    """``loss.csv`` and ``selection.csv`` for DVC's linear plots, all runs of an arm in each."""
    for file, curve, value in (("loss.csv", "loss", "loss"), ("selection.csv", "selection_curve", "accuracy")):
        rows = [{"run": f"{run['train_on']}_{run['classifier']}", **point} for run in records for point in run[curve]]
        write_csv(folder / file, rows, ("run", "step", value))

"""Fitting classifiers: what ``train`` does for each of an arm, and with ``selection: cv`` in each fold.

Both are finished as shards, so that a run that was killed goes on with the next classifier, and what two recipes would
learn from the same images is learned once. A key holds the images' hashes and everything that is done with them.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dreamset.classifiers import selection
from dreamset.classifiers.parts import prompts, sources
from dreamset.core import locks, shards
from dreamset.core.curves import thinned
from dreamset.core.files import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from dreamset.classifiers.fit import History, Source
    from dreamset.classifiers.parts import Part
    from dreamset.classifiers.selection import Choice, Configuration
    from dreamset.data.runs import Kind, Run
    from dreamset.params import Params

RECORD: Final = "fitted.json"  # of a shard: what `results/train` says of it
_LIBRARIES: Final = ("numpy", "open_clip_torch", "pillow", "torchvision")  # beside those of every shard
_LOGITS: Final = "logits.safetensors"
_POINTS: Final = 50  # of a loss curve, at most


@dataclass(frozen=True)
class Scored:
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


@dataclass(frozen=True)
class Trial:
    """A configuration tried in a fold of ``selection: cv``: its shard holds the logits of what the fold holds out."""

    part: Part
    run: Run
    configuration: Configuration
    fold: int

    @functools.cached_property
    def key(self) -> str:
        """Of the shard."""
        tried = {"configuration": dataclasses.asdict(self.configuration), "selections": _selections(self.part)}
        return _key(self.part, self.run, tried)

    def make(self, folder: Path) -> None:
        """Train and score it."""
        from safetensors.numpy import save

        _, history, _ = _fit(self.part, self.run, self.configuration, what=f"fold {self.fold + 1}")
        (folder / _LOGITS).write_bytes(save({str(step): logits for step, logits in history.logits.items()}))
        write_json(folder / RECORD, {"seconds": history.seconds})

    def read(self) -> Scored:
        """What it scored, once it is finished."""
        from safetensors.numpy import load

        shard = self.part.store / self.key
        found = load((shard / _LOGITS).read_bytes())
        seconds = read_json(shard / RECORD, f"dreamset train {self.part.arm}")["seconds"]
        return Scored({int(step): found[step] for step in sorted(found, key=int)}, self.part.held, seconds)


def pooled(trials: Sequence[Trial]) -> Scored:
    """One configuration over all folds."""
    import numpy as np

    parts = [trial.read() for trial in trials]
    logits = {step: np.concatenate([part.logits[step] for part in parts]) for step in parts[0].logits}
    return Scored(logits, np.concatenate([part.labels for part in parts]), sum(part.seconds for part in parts))


@dataclass(frozen=True)
class Fitted:
    """A classifier that was chosen by the rule and trained: its shard holds it as ``classifiers.save`` writes it.

    Attributes:
        part: all images.
        run: which of them it learns from, and its name.
        trials: with ``cv``, those of each configuration over the folds.
    """

    part: Part
    run: Run
    trials: tuple[tuple[Trial, ...], ...] = ()

    @property
    def rule(self) -> str:
        """Who chooses: nobody, where all labels are learned from."""
        return "fixed" if self.run.kind.more else self.part.params.selection

    @property
    def tried(self) -> list[Configuration]:
        """What is chosen among."""
        found = configurations(self.part.params, self.run.classifier)
        return found if self.rule != "fixed" else found[:1]

    @functools.cached_property
    def key(self) -> str:
        """Of the shard."""
        chosen_by = {
            "rule": self.rule,
            "configurations": [dataclasses.asdict(own) for own in self.tried],
            "trials": [[trial.key for trial in own] for own in self.trials],
            "selections": None if self.rule == "fixed" else _selections(self.part),
        }
        return _key(self.part, self.run, chosen_by)

    def make(self, folder: Path) -> None:
        """Choose, train and save it, with the record of how it went."""
        from dreamset import classifiers
        from dreamset.classifiers.calibration import fit_temperature
        from dreamset.classifiers.fit import restore

        part, run, tried = self.part, self.run, self.tried
        scored: list[Scored] = []
        chosen: Choice | None = None
        if self.rule == "fixed":
            classifier, history, used = _fit(part, run, tried[0], scored=False)
        elif self.rule == "cv":
            scored = [pooled(trials) for trials in self.trials]
            chosen = _choose(scored)
            # On all the shots, and so with nothing held out, as the folds' classifiers were trained on theirs.
            classifier, history, used = _fit(part, run, tried[chosen.configuration], stop=chosen.step)
        else:
            kept: dict[int, tuple[nn.Module, History, list[Source]]] = {}
            for index, configuration in enumerate(tried):
                kept[index] = _fit(part, run, configuration)
                history = kept[index][1]
                scored.append(Scored(history.logits, part.held, history.seconds, history.curve))
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
            "configuration": _used(configuration, run.kind),
            "selection": self.rule,
            # Of no selection images there is none to fit; the logits are taken as they are.
            "temperature": round(temperature, 4),
            "temperature_images": images,
        }
        classifiers.save(classifier, folder, {"classifier": run.classifier, "train_on": str(run.kind)} | facts)
        write_json(folder / RECORD, facts | self._record(used, history, scored, chosen))

    def _record(
        self, used: Iterable[Source], history: History, scored: Sequence[Scored], chosen: Choice | None
    ) -> dict[str, Any]:
        """What ``results/train`` says of a run: how it went, what was tried and why this was kept."""
        counts = {source.name: len(source.data) for source in used}
        curves = [
            [{"step": step, "accuracy": round(value, 4)} for step, value in (own.curve or own.accuracies()).items()]
            for own in scored
        ]
        done, batch = len(history.losses), self.part.params.base.train.rows[self.run.classifier].batch
        # A choice is paid for by all that was tried; where images are held out for good, what is kept is one of those.
        effort = sum(own.seconds for own in scored)
        effort += 0.0 if self.part.params.sets_apart and not self.run.kind.more else history.seconds
        return {
            "train_on": str(self.run.kind),
            "classifier": self.run.classifier,
            "seconds": round(effort, 2),
            "images_per_second": round(done * batch / history.seconds, 1),
            "real_images": counts.get("real", 0),
            "synthetic_images": counts.get("synthetic", 0),
            "selection_curve": curves[chosen.configuration] if chosen else [],
            "tried": [
                {"configuration": _used(configuration, self.run.kind), "scores": curve}
                for configuration, curve in zip(self.tried, curves or [[]], strict=True)
            ],
            "choice": {key: round(value, 4) for key, value in dataclasses.asdict(chosen).items()} if chosen else None,
            "loss": thinned(history.losses, -(-len(history.losses) // _POINTS)),
        }

    def assemble(self, folder: Path) -> dict[str, Any]:
        """The classifier's files in ``folder``, with what it was made of; its record. It is finished."""
        from dreamset import classifiers

        split, arm = self.part.split, self.part.arm
        shard, command = self.part.store / self.key, f"dreamset train {arm}"
        for path in sorted(path for path in shard.rglob("*") if path.is_file()):
            name = path.relative_to(shard)
            if name.as_posix() not in (classifiers.RECORD, RECORD, shards.MARKER):
                shards.link(path, folder / name)
        about = {
            "classifier": self.run.classifier,
            "arm": arm,
            "train_on": str(self.run.kind),
            "classes": split.classes,
            "template": split.template,
            "prompts": prompts(split),
            "shots": split.shots,
            "seed": split.seed,
        }
        write_json(folder / classifiers.RECORD, about | read_json(shard / classifiers.RECORD, command))
        # Of the splits and not of the shard: whoever learns from synthetic images alone has shots beside them, too.
        more, classes = self.run.kind.more, len(split.classes)
        rule = self.part.params.selection
        labels = {
            "labels_train_per_class": (len(split.train) + more * len(split.selection)) / classes,
            "labels_selection_per_class": 0.0 if more else selection.labels_per_class(rule, split),
        }
        record: dict[str, Any] = read_json(shard / RECORD, command)
        return labels | record | {"machines": shards.machines(self.part.store, [self.key])}


def finish(store: Path, units: Sequence[Trial | Fitted]) -> None:
    """Make the shards that are not made yet, in order; those that another process is making are waited for at last."""
    for unit, claim in shards.claimed(store, units, lambda unit: [unit.key]):
        with claim:
            locks.boundary()
            with shards.writing(store, unit.key) as folder:
                unit.make(folder)


def configurations(params: Params, name: str) -> list[Configuration]:
    """What the rule chooses among for a classifier: as many for each."""
    row = params.base.train.rows[name]
    return selection.configurations(row, params.train.real_weight, params.train.configurations, params.seed)


def _selections(part: Part) -> int:
    return part.params.train.selections


def _key(part: Part, run: Run, chosen_by: dict[str, Any]) -> str:
    params, base, name = part.params, part.params.base, run.classifier
    inputs = {
        "classifier": name,
        # Not the recipe, nor how many images it has beyond these.
        "train_on": str(run.kind),
        "row": dataclasses.asdict(base.train.rows[name]),
        "clip": None if base.train.rows[name].from_scratch else part.clip,
        "crop": base.train.crop,
        "seed": params.seed,
        "libraries": {library: importlib.metadata.version(library) for library in _LIBRARIES},
    }
    return shards.key_of(inputs | part.identity(run.kind) | chosen_by, __name__)


def _fit(
    part: Part,
    run: Run,
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
    from dreamset.core.seeds import seed_for

    params, split, kind, name = part.params, part.split, run.kind, run.classifier
    # No recipe in the seeds: recipes are compared from the same start and in the same order of batches.
    torch.manual_seed(seed_for("train", params.seed, name, "start"))
    classifier = classifiers.build(name, params.base, split, part.workspace.root)
    row = params.base.train.rows[name]
    data, held = part.of(classifier)
    if kind.scale is not None:
        data = {"synthetic": part.scaled(kind.scale, classifier)}
    if not scored:
        held = dataclasses.replace(held, images=held.images[:0], labels=held.labels[:0], names=())
    used = sources(kind, data, configuration.real_weight)
    history = fit(
        classifier,
        used,
        held,
        configuration.of(row),
        selections=params.train.selections,
        invariances=split.invariances,
        crop=params.base.train.crop,
        seed=("train", params.seed, str(kind), name),
        stop=stop,
        mixup=configuration.mixup,
        # Without images to go by, as for `real_more`, it is the cosine.
        plateau=scored and getattr(row, "schedule", "cosine") == "plateau",
        strong=kind.strong,
        what=f"{what} {run.arm} {kind} {name}",
    )
    return classifier, history, used


def _used(configuration: Configuration, kind: Kind) -> dict[str, Any]:
    """A configuration as it was trained with: strong augmentation mixes where the configuration itself does not."""
    from dreamset.classifiers.fit import mixing

    mixup, cutmix = mixing(configuration.mixup, strong=kind.strong)
    return dataclasses.asdict(configuration) | {"mixup": mixup, "cutmix": cutmix}


def _choose(scored: Sequence[Scored]) -> Choice:
    return selection.choose([own.accuracies() for own in scored], len(scored[0].labels))

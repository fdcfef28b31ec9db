"""Fitting of the classifiers of an arm and, with ``selection: cv``, of their trials in each fold.

Both are finished as shards. So a run that was killed goes on with the next classifier, and a classifier that two
recipes would learn from the same images is learned once. A key covers the images' hashes and all that is done to them.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dreamset import compute
from dreamset.classifiers import selection
from dreamset.classifiers.parts import prompts, sources
from dreamset.core import locks, shards
from dreamset.core.arithmetic import thinned
from dreamset.core.errors import InputError
from dreamset.core.files import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from dreamset.classifiers.fit import Finish, History, Source
    from dreamset.classifiers.parts import Part
    from dreamset.classifiers.selection import Choice, Configuration
    from dreamset.data.runs import Kind, Run

RECORD: Final = "fitted.json"  # in a shard: its facts for `results/train`
FOLDS: Final = "folds.safetensors"  # beside a simple classifier: its logits of the shots, each held out of a fold
_LOGITS: Final = "logits.safetensors"
_POINTS: Final = 50  # of a loss curve, at most


@dataclass(frozen=True)
class Scored:
    """The scores of a configuration on the selection images.

    Attributes:
        logits: (n, classes) float32 by step.
        labels: (n,).
        seconds: the time it took.
        curve: the accuracy by step. Where the learning rate follows it, it has more steps than can be chosen; it is
            empty where it equals the accuracy of the logits.
    """

    logits: dict[int, NDArray[np.float32]]
    labels: NDArray[np.int64]
    seconds: float
    curve: dict[int, float] = dataclasses.field(default_factory=dict)

    def accuracies(self) -> dict[int, float]:
        """Return the accuracy by step."""
        return {step: float((logits.argmax(1) == self.labels).mean()) for step, logits in self.logits.items()}


@dataclass(frozen=True)
class Trial:
    """A configuration tried in a fold of ``selection: cv``; its shard holds the logits of the shots held out there."""

    part: Part
    run: Run
    configuration: Configuration
    fold: int

    @functools.cached_property
    def key(self) -> str:
        """Return the key of the shard."""
        tried = {"configuration": dataclasses.asdict(self.configuration), "selections": _selections(self.part)}
        return _key(self.part, self.run, tried)

    def make(self, folder: Path) -> None:
        """Train and score the configuration, and write its logits into ``folder``."""
        from safetensors.numpy import save

        # The images that are held out score it, so they may not steer its rate or its end.
        _, history, _ = _fit(self.part, self.run, self.configuration, steered=False, what=f"fold {self.fold + 1}")
        (folder / _LOGITS).write_bytes(save({str(step): logits for step, logits in history.logits.items()}))
        write_json(folder / RECORD, {"seconds": history.seconds})

    def read(self) -> Scored:
        """Return the scores of the finished trial."""
        from safetensors.numpy import load

        shards.find(self.part.store, self.key)  # another machine may have made it
        shard = self.part.store / self.key
        logits = load((shard / _LOGITS).read_bytes())
        seconds = read_json(shard / RECORD, f"dreamset train {self.part.arm}")["seconds"]
        by_step = {int(step): logits[step] for step in sorted(logits, key=int)}
        return Scored(by_step, self.part.selection_labels, seconds)


def pooled(trials: Sequence[Trial]) -> Scored:
    """Return the scores of one configuration over all folds together."""
    import numpy as np

    parts = [trial.read() for trial in trials]
    logits = {step: np.concatenate([part.logits[step] for part in parts]) for step in parts[0].logits}
    return Scored(logits, np.concatenate([part.labels for part in parts]), sum(part.seconds for part in parts))


@dataclass(frozen=True)
class Fitted:
    """A classifier that the rule chose and that was trained; its shard holds it as ``classifiers.save`` writes it.

    Attributes:
        part: all images.
        run: which of them it learns from, and its name.
        trials: with ``cv``, the trials of each configuration over the folds.
    """

    part: Part
    run: Run
    trials: tuple[tuple[Trial, ...], ...] = ()

    @property
    def rule(self) -> str:
        """Return the rule of selection; it is ``fixed`` where the classifier learns from all labels."""
        return "fixed" if self.run.kind.more else self.part.params.selection

    @property
    def tried(self) -> list[Configuration]:
        """Return the configurations that the rule chooses among."""
        candidates = configurations(self.part, self.run.classifier)
        return candidates if self.rule != "fixed" else candidates[:1]

    @functools.cached_property
    def key(self) -> str:
        """Return the key of the shard."""
        chosen_by = {
            "rule": self.rule,
            "configurations": [dataclasses.asdict(configuration) for configuration in self.tried],
            "trials": [[trial.key for trial in trials] for trials in self.trials],
            "selections": None if self.rule == "fixed" else _selections(self.part),
        }
        return _key(self.part, self.run, chosen_by)

    def make(self, folder: Path) -> None:
        """Choose and train the classifier, and save it with its record in ``folder``."""
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
            # It learns from all the shots, and nothing is held out. The folds' classifiers did the same with theirs.
            classifier, history, used = _fit(part, run, tried[chosen.configuration], stop=chosen.step)
        else:
            kept: dict[int, tuple[nn.Module, History, list[Source]]] = {}
            for index, configuration in enumerate(tried):
                kept[index] = _fit(part, run, configuration)
                history = kept[index][1]
                scored.append(Scored(history.logits, part.selection_labels, history.seconds, history.curve))
                chosen = _choose(scored)
                # Later the rule can come back only to the first or to the best so far; the others need no memory.
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
            # Without selection images no temperature can be fitted, and the logits are used as they are.
            "temperature": round(temperature, 4),
            "temperature_images": images,
        }
        finish = _finish_of(part, run.kind)
        facts |= {"finish_on_real": finish.share, "finish_part": finish.part} if finish else {}
        facts |= {"nearness": part.params.train.nearness} if run.kind.synthetic and part.params.train.nearness else {}
        classifiers.save(classifier, folder, {"classifier": run.classifier, "train_on": str(run.kind)} | facts)
        write_json(folder / RECORD, facts | {"size": classifier.size} | self._record(used, history, scored, chosen))

    def _record(
        self, used: Iterable[Source], history: History, scored: Sequence[Scored], chosen: Choice | None
    ) -> dict[str, Any]:
        """Return the run's entry of ``results/train``: its course, what was tried and why this was chosen."""
        counts = {source.name: len(source.data) for source in used}
        curves = [
            [
                {"step": step, "accuracy": round(value, 4)}
                for step, value in (scores.curve or scores.accuracies()).items()
            ]
            for scores in scored
        ]
        done, batch = len(history.losses), self.part.params.base.train.rows[self.run.classifier].batch
        # The effort of a choice is that of all that was tried. Where images are held out for good, the classifier
        # itself is among these.
        effort = sum(scores.seconds for scores in scored)
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
        """Link the finished classifier's files into ``folder``, write what it was made of, and return its record."""
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
        # Counted in the splits and not in the shard: one that learns from synthetic images alone has shots, too.
        more, classes = self.run.kind.more, len(split.classes)
        rule = self.part.params.selection
        learned = self.part.few if self.run.kind.few else split.train
        labels = {
            "labels_train_per_class": (len(learned) + more * len(split.selection)) / classes,
            "labels_selection_per_class": 0.0 if more else selection.labels_per_class(rule, split),
        }
        record: dict[str, Any] = read_json(shard / RECORD, command)
        return labels | record | {"machines": shards.machines(self.part.store, [self.key])}


def by_folds(folder: Path) -> NDArray[np.float32]:
    """Return the logits (n, classes) of a saved simple classifier on the n shots, each held out of a fold.

    Raises:
        InputError: it has none.
    """
    from safetensors.numpy import load

    path = folder / FOLDS
    if not path.is_file():
        raise InputError(f"{path}: is missing; run `dreamset train real` again.")
    return load(path.read_bytes())["logits"]


def finish(store: Path, units: Sequence[Trial | Fitted]) -> None:
    """Make the missing shards in order, in as many processes as are wanted; see ``dreamset.compute``."""
    missing = [unit for unit in units if shards.find(store, unit.key) is None]
    if missing:
        part, make = missing[0].part, functools.partial(_finish, store)
        root, what = part.workspace.root, f"training {part.arm}"
        compute.run(part.params.compute, root, store, make, missing, lambda unit: [unit.key], what=what)


def _finish(store: Path, units: Sequence[Trial | Fitted]) -> None:
    """Make the missing shards; at last wait for those that another process is making."""
    for unit, claim in shards.claimed(store, units, lambda unit: [unit.key]):
        with claim:
            locks.boundary()
            with shards.writing(store, unit.key) as folder:
                unit.make(folder)


def configurations(part: Part, name: str) -> list[Configuration]:
    """Return the configurations of a classifier that the rule chooses among; each classifier has as many."""
    params = part.params
    course = params.base.train.rows[name].course(part.images)
    return selection.configurations(course, params.train.real_weight, params.train.configurations, params.seed)


def _selections(part: Part) -> int:
    return part.params.train.selections


def _key(part: Part, run: Run, chosen_by: dict[str, Any]) -> str:
    params, base, name = part.params, part.params.base, run.classifier
    inputs: dict[str, Any] = {
        "classifier": name,
        # Neither the recipe nor the number of its further images is part of the key.
        "train_on": str(run.kind),
        "row": base.train.rows[name].recorded(),
        "clip": None if base.train.rows[name].from_scratch else part.clip,
        "crop": base.train.crop,
        "seed": params.seed,
    }
    finish = _finish_of(part, run.kind)
    inputs |= {"finish": dataclasses.asdict(finish)} if finish else {}
    if run.kind.synthetic and params.train.nearness:
        shots = [(sample.sha256, sample.label) for sample in part.split.train]
        inputs["nearness"] = [params.train.nearness, part.clip, shots]
    return shards.key_of(inputs | part.identity(run.kind) | chosen_by, __name__)


def _finish_of(part: Part, kind: Kind) -> Finish | None:
    """Return how the training of a run ends on real images alone; None where it does not."""
    from dreamset.classifiers.fit import Finish

    train = part.params.train
    ends = train.finish_on_real > 0 and kind.real and kind.synthetic
    return Finish(train.finish_on_real, train.finish_part) if ends else None


def _fit(
    part: Part,
    run: Run,
    configuration: Configuration,
    *,
    stop: int | None = None,
    scored: bool = True,
    steered: bool = True,
    what: str = "train",
) -> tuple[nn.Module, History, list[Source]]:
    """Train a classifier in one configuration to the step ``stop``.

    Args:
        part: all images.
        run: which of them it learns from, and its name.
        configuration: of the training.
        stop: the last step; None: that of the configuration.
        scored: whether the images of ``selection`` are scored on the way.
        steered: whether they may lower the rate and end the training, where the row's schedule is ``plateau``.
        what: name of the bar.

    Returns:
        The classifier, the course of its training, and the images it learned from.
    """
    import torch

    from dreamset import classifiers
    from dreamset.classifiers.fit import fit
    from dreamset.core.seeds import seed_for

    params, split, kind, name = part.params, part.split, run.kind, run.classifier
    # The seeds do not hold the recipe, so that recipes start from the same weights and have the same order of batches.
    torch.manual_seed(seed_for("train", params.seed, name, "start"))
    classifier = classifiers.build(name, params.base, split, part.workspace.root)
    row = params.base.train.rows[name]
    data, selecting = part.of(classifier)
    if kind.scale is not None:
        data = data | {"synthetic": part.scaled(kind.scale, classifier)}
    if kind.few:
        data = {"real": part.fewer(classifier)}
    if not scored:
        selecting = dataclasses.replace(selecting, images=selecting.images[:0], labels=selecting.labels[:0], names=())
    used = sources(kind, data, configuration.real_weight)
    history = fit(
        classifier,
        used,
        selecting,
        configuration.of(row.course(part.images)),
        selections=params.train.selections,
        invariances=split.invariances,
        crop=params.base.train.crop,
        seed=("train", params.seed, str(kind), name),
        stop=stop,
        mixup=configuration.mixup,
        # Where nothing is selected, as for `real_more`, the schedule is the cosine.
        plateau=scored and steered and params.selection != "fixed" and getattr(row, "schedule", "cosine") == "plateau",
        strong=kind.strong,
        finish=_finish_of(part, kind),
        what=f"{what} {run.arm} {kind} {name}",
    )
    return classifier, history, used


def _used(configuration: Configuration, kind: Kind) -> dict[str, Any]:
    """Return a configuration as training used it: strong augmentation mixes where the configuration does not."""
    from dreamset.classifiers.fit import mixing

    mixup, cutmix = mixing(configuration.mixup, strong=kind.strong)
    return dataclasses.asdict(configuration) | {"mixup": mixup, "cutmix": cutmix}


def _choose(scored: Sequence[Scored]) -> Choice:
    return selection.choose([scores.accuracies() for scores in scored], len(scored[0].labels))

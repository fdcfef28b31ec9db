"""The score of a trial: the accuracy on real images of a classifier trained from scratch on the trial's images.

It learns from these alone (CAS), or with ``tune.objectives: gain`` from the shots as well, as the verdict has it.

The resource is images per class. At each rung a trial draws more images, trains and is scored, so that pruning it
early saves drawing and training. The real images are those of ``selection``. Without these they are the shots, each
scored with adapters that did not learn from it. Test images are out of reach.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dreamset.classifiers.parts import learned, sources
from dreamset.core import locks
from dreamset.core.errors import InputError
from dreamset.core.files import digest, read_json
from dreamset.core.seeds import seed_for
from dreamset.core.workspace import Workspace
from dreamset.data import folds, tuned
from dreamset.data.runs import BOTH_STRONG, SYNTHETIC
from dreamset.data.splits import write_split
from dreamset.data.synthetic import read_metadata
from dreamset.drawing.draw import load_base
from dreamset.study import kills, space
from dreamset.study.identity import key_of, with_inherited
from dreamset.study.rungs import params_at
from dreamset.weights import hub

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    import optuna
    from numpy.typing import NDArray

    from dreamset.classifiers.nearness import Looking
    from dreamset.data.arrays import Labelled
    from dreamset.data.splits import Sample, Split
    from dreamset.data.work import Work
    from dreamset.generator.base_model import BaseModel
    from dreamset.metrics.features import Judge
    from dreamset.params import Params

SECONDS: Final = "seconds_per_image"  # name of a constraint, as is the next, and of a fact of a trial
FID: Final = "fid"
_STOPPED: Final = "stopped"  # user attribute of a trial: the rung at which it ends early


class Holdout(NamedTuple):
    """A division of the labelled images, with absolute paths.

    Attributes:
        split: what adapters and images are made from.
        scored: the real images that score.
    """

    split: Split
    scored: tuple[Sample, ...]


def holdouts(work: Work, repetition: int = 0) -> list[Holdout]:
    """Return the real images that score a trial, with the images to learn from beside them.

    If ``selection`` sets images apart, these score, in one holdout. Otherwise the shots score: all in one holdout if
    neither the recipe nor the classifier learns from them and no image is weighed by them, in folds otherwise. A
    ``repetition`` has folds of its own.

    Raises:
        InputError: the shots of a class are too few or of too few groups for folds.
    """
    split, workspace, row = work.split, work.workspace, work.row
    shots = dataclasses.replace(split, train=folds.absolute(split.train, workspace), selection=())
    if split.selection:
        return [Holdout(shots, folds.absolute(split.selection, workspace))]
    weighs = work.params.of(work.recipe).train.nearness or row.searches("nearness")
    if not (row.learns_from_shots or work.params.tune.gains or weighs):
        return [Holdout(shots, shots.train)]
    try:
        divided = folds.held_out(split, folds.SELECTING, "selection", repetition)
    except InputError as error:
        raise InputError(
            f"recipes.{work.recipe}.search: with selection: {work.params.selection} a study scores folds of the shots, "
            "which cannot be made of so few images or groups; raise shots, or set selection to extra:N."
        ) from error
    return [Holdout(folds.without(split, fold, workspace), folds.absolute(fold, workspace)) for fold in divided]


class Objective:
    """The objective of a study: a function of a trial that reports every rung and returns the last score.

    Args:
        work: on a recipe with a ``search``, with the shots and the images of ``selection``.
        make_adapters: trains the recipe's adapters with the values of a trial, in the workspace of a holdout.
        make_images: draws the recipe's images there; its last argument returns the base.
        on_images: called with a trial and the folder of its images when those of the first rung are complete.

    Attributes:
        repetition: 0 for the trials; see ``repeated``.
        space: the searched ranges.
        key: see ``identity.key_of``.
        row_values: the values of the searched knobs in the recipe's row; None where no trial can have one of them.
        images: number of real images that score a trial.
    """

    def __init__(
        self,
        work: Work,
        make_adapters: Callable[[Params, Workspace], None],
        make_images: Callable[[Params, Workspace, str, Callable[[], BaseModel]], object],
        on_images: Callable[[optuna.Trial, Path], None] | None = None,
    ) -> None:
        self._make_adapters, self._make_images = make_adapters, make_images
        self.recipe, self.workspace, self.on_images = work.recipe, work.workspace, on_images
        self._work, self.repetition = work, 0
        self.holdouts = holdouts(work)
        self.space = space.ranges(work.params, work.workspace, work.recipe)
        self.key = key_of(work, self.space)
        self.params = with_inherited(work.params, work.workspace, work.recipe)
        self.row_values = space.row_values(self.params, work.recipe, self.space)
        self.rungs = work.base.tune.per_class
        self.images = sum(len(holdout.scored) for holdout in self.holdouts)
        self._decoded: dict[tuple[int, int], Labelled] = {}
        self._adapted: set[Path] = set()
        self._looking: dict[int, Looking] = {}
        self._judge: Judge | None = None
        self._loaded: BaseModel | None = None

    @property
    def name(self) -> str:
        """The name of the study."""
        return f"{self.recipe}-{self.key[:8]}"

    @property
    def folder(self) -> Path:
        """The folder with the unfinished work of this study's trials on this machine."""
        return self.workspace.trials / self.name

    def __call__(self, trial: optuna.Trial) -> float | tuple[float, float]:
        """Return the score of a trial, with the seconds per image if these are the second objective.

        Raises:
            InputError: the trial's values give no usable images, or training on them fails.
            optuna.TrialPruned: the pruner stops the trial, or an image takes too long.
        """
        import optuna

        tune = self.params.tune
        values = space.suggest(trial, self.space)
        chosen = self.params.with_values(self.recipe, values)
        places = [self._place(chosen, index) for index in range(len(self.holdouts))]
        # The rungs that an earlier worker of this trial has passed.
        scores: dict[str, float] = dict(trial.user_attrs.get("rungs", {}))
        if tune.max_fid is not None:
            scores.pop(str(self.rungs[-1]), None)  # the FID needs its images in a folder of this process
        for rung in self.rungs:
            locks.boundary()
            if str(rung) not in scores:
                score = self._climb(trial, chosen, places, rung)
                if not tune.two:
                    trial.report(score, step=rung)
                slow = tune.max_seconds_per_image is not None and self._over(
                    trial, SECONDS, trial.user_attrs[SECONDS] - tune.max_seconds_per_image
                )
                # The last rung is never pruned: its cost is already paid. Nor are the recipe's own values, with which
                # the others are compared. The pruner still hears of these, since it compares the others with them.
                if rung != self.rungs[-1] and _STOPPED not in trial.user_attrs:
                    worse = tune.prunes and not slow and trial.should_prune() and values != self.row_values
                    if slow or worse:
                        trial.set_user_attr(_STOPPED, rung)
                # This comes last: a worker that goes on with the trial passes the rungs that stand here.
                scores = scores | {str(rung): score}
                trial.set_user_attr("rungs", scores)
            if trial.user_attrs.get(_STOPPED) == rung:
                raise optuna.TrialPruned
        if tune.max_fid is not None:
            distance, count = self._fid(places)
            trial.set_user_attr("fid", distance)
            trial.set_user_attr("fid_images", count)
            self._over(trial, FID, distance - tune.max_fid)
        score = scores[str(self.rungs[-1])]
        return (score, trial.user_attrs[SECONDS]) if tune.two else score

    def repeated(self, repetition: int) -> Objective:
        """Return an objective with noise, folds and initial weights of its own; it shares the base that was read."""
        other = copy.copy(self)
        other.repetition, other.holdouts = repetition, holdouts(self._work, repetition)
        other._decoded, other._adapted, other._looking, other._loaded = {}, set(), {}, self._base()
        return other

    def again(self, values: dict[str, Any]) -> str:
        """Return which real images are right with some values, a 1 or a 0 each, in the order of the files' names."""
        chosen = self.params.with_values(self.recipe, values)
        places = [self._place(chosen, index) for index in range(len(self.holdouts))]
        full = self.rungs[-1]
        params = params_at(chosen, self.recipe, full, len(self.holdouts[0].split.classes), self.repetition)
        for place in places:
            locks.boundary()
            self._make_images(params, place, self.recipe, self._base)
        _, right = self._score(params, places, full)
        names = [sample.path for holdout in self.holdouts for sample in holdout.scored]
        return "".join("1" if each else "0" for _, each in sorted(zip(names, right.tolist(), strict=True)))

    def _climb(self, trial: optuna.Trial, chosen: Params, places: list[Workspace], rung: int) -> float:
        """Draw the images of a rung, train on them and score; keep what that took and return the score.

        Args:
            trial: with the facts of the rungs before.
            chosen: parameters with the trial's values.
            places: the workspaces of the holdouts.
            rung: images per class.
        """
        params = params_at(chosen, self.recipe, rung, len(self.holdouts[0].split.classes))

        def base() -> BaseModel:
            loaded = self._base()
            # Shards that were finished count as a gain, so that many kills during a long rung are not held against it.
            made = sum(1 for _ in self.workspace.shards.glob("[!.]*"))
            kills.begin(trial, f"drawing {rung} per class, {made} shards before")
            return loaded

        for place in places:
            self._make_images(params, place, self.recipe, base)
        if rung == self.rungs[0] and self.on_images is not None:
            self.on_images(trial, places[0].synthetic(self.recipe))
        kills.begin(trial, f"training on {rung} per class")
        started = time.perf_counter()
        score, right = self._score(params, places, rung)
        training = trial.user_attrs.get("seconds_train", 0.0) + time.perf_counter() - started
        images, kept, seconds = self._spent(places)
        for name, value in (
            ("seconds_generate", seconds),
            ("seconds_train", training),
            ("images", images),
            (SECONDS, seconds / kept),
        ):
            trial.set_user_attr(name, value)
        if rung == self.rungs[-1]:
            trial.set_user_attr("right", "".join("1" if each else "0" for each in right))
        return score

    def _base(self) -> BaseModel:
        """Return the base, read and compiled once for all trials: that can take longer than a first rung."""
        if self._loaded is None:
            self._loaded = load_base(self.params, self.workspace, self.recipe)
        return self._loaded

    def _over(self, trial: optuna.Trial, name: str, excess: float) -> bool:
        """Whether a limit is exceeded. The first value that a trial sets for a constraint stays."""
        if name not in trial.constraints:
            trial.set_constraint(name, excess)
        return trial.constraints[name] > 0

    def _place(self, chosen: Params, index: int) -> Workspace:
        """Return the workspace of a holdout with a trial's adapters; trials with the same adapters share it."""
        knobs = {knob: value for knob, value in space.current(chosen, self.recipe).items() if knob in tuned.OF_ADAPTERS}
        name = f"{digest(knobs)[:8]}{f'_again{self.repetition}' if self.repetition else ''}"
        place = Workspace(self.workspace.root, self.folder / locks.process() / name / f"part{index}")
        if place.cell not in self._adapted:
            write_split(place.splits, self.holdouts[index].split)
            self._make_adapters(chosen, place)
            self._adapted.add(place.cell)
        return place

    def _spent(self, places: list[Workspace]) -> tuple[int, int, float]:
        """Return the numbers of images that were drawn for a trial and kept, and the seconds, whichever trial did it.

        A filter looks at several images for each that it keeps.
        """
        images, kept, seconds = 0, 0, 0.0
        for place in places:
            for key in read_json(place.synthetic(self.recipe) / "shards.json", "dreamset tune"):
                record = read_json(place.shards / key / "record.json", "dreamset tune")
                images, seconds = images + record["drawn"], seconds + record["seconds"]
                kept += sum(image.copy_of is None for image in read_metadata(place.shards / key))
        return images, kept, seconds

    def _score(self, params: Params, places: list[Workspace], rung: int) -> tuple[float, NDArray[np.bool_]]:
        """Return the accuracy over the real images of all holdouts together, and which of them (n,) are right."""
        import numpy as np

        right = np.concatenate([self._right(params, place, index, rung) for index, place in enumerate(places)])
        return float(right.mean()), right

    def _right(self, params: Params, place: Workspace, index: int, rung: int) -> NDArray[np.bool_]:
        """Train a classifier on a trial's images; return which real images of a holdout it gets right."""
        import numpy as np
        import torch

        from dreamset import classifiers
        from dreamset.classifiers import finest, stored
        from dreamset.classifiers.fit import Finish, fit
        from dreamset.data import arrays

        split, base, name = self.holdouts[index].split, params.base, params.base.tune.classifier
        row = base.train.rows[name]
        steps, course = base.tune.steps_at(rung, len(split.classes), row.batch), row.course(learned(params, split))
        course = dataclasses.replace(course, steps=steps, warmup=round(course.warmup * steps / course.steps))
        own = params.of(self.recipe).train
        # Neither trial nor rung is in the seeds, so that all classifiers start from the same weights.
        seed = ("tune", self.params.seed, name, *(("again", self.repetition) if self.repetition else ()))
        torch.manual_seed(seed_for(*seed, "start"))
        classifier = classifiers.build(name, base, split, place.root)
        size: int = classifier.size  # type: ignore[assignment]
        limit = finest(split.native, base.resolution)
        real, side = self._real(index, size, limit), stored(size, limit)
        data = arrays.synthetic(place.synthetic(self.recipe), split, side, place.scratch)
        if own.nearness:
            data = self._weighed(params, place, index, data)
        learned_from = {"synthetic": data}
        if gains := params.tune.gains:
            learned_from["real"] = arrays.real(split.train, self.workspace.cell, side, self.workspace.scratch)
        fit(
            classifier,
            sources(BOTH_STRONG if gains else SYNTHETIC, learned_from, own.real_weight),
            # The training has no images to select a step by: the last step is scored.
            dataclasses.replace(real, images=real.images[:0], labels=real.labels[:0], names=()),
            course,
            selections=1,
            invariances=split.invariances,
            crop=base.train.crop,
            seed=seed,
            strong=gains,
            finish=Finish(own.finish_on_real, own.finish_part) if gains and own.finish_on_real else None,
            what=f"tune {self.recipe}, {rung} per class",
        )
        logits = classifiers.Predictor(classifier, split.classes).logits(real.images)
        return np.asarray(logits.argmax(1) == real.labels)

    def _weighed(self, params: Params, place: Workspace, index: int, data: Labelled) -> Labelled:
        """Return a trial's images with their weights by distance to the shots of a holdout."""
        from dreamset.classifiers.nearness import Looking
        from dreamset.data import arrays

        split = self.holdouts[index].split
        if index not in self._looking:
            self._looking[index] = Looking(params, self.workspace, split)
        looking = self._looking[index]
        seen = arrays.synthetic(place.synthetic(self.recipe), split, looking.side, place.scratch)
        return looking.weigh(data, seen, params.of(self.recipe).train.nearness)

    def _real(self, index: int, size: int, limit: int) -> Labelled:
        """Return the real images of a holdout as ``classifiers.seen`` has them; they are decoded once."""
        from dreamset.classifiers import seen
        from dreamset.data import arrays

        side, scratch = seen(size, limit), self.workspace.scratch
        if (index, side) not in self._decoded:
            self._decoded[index, side] = arrays.real(self.holdouts[index].scored, self.workspace.cell, side, scratch)
        return self._decoded[index, side]

    def _fid(self, places: list[Workspace]) -> tuple[float, int]:
        """Return the FID to the real images that score, as a mean over the holdouts.

        It uses the judge's features, and equal numbers of real and synthetic images of each class.

        Raises:
            InputError: fewer than two real images can be compared.
        """
        from dreamset.classifiers import seen
        from dreamset.data import arrays
        from dreamset.metrics.distribution import fid, matched
        from dreamset.metrics.features import Judge

        params = self.params
        judge = self._judge = self._judge or Judge(hub.locate(self.workspace.root, params.base.judge, "judge"))
        # Compared at the base's resolution: detail that its images cannot have would be all that the judge sees.
        resolution, distances, counts = params.base.resolution, [], []
        side = seen(judge.size, resolution)
        for index, place in enumerate(places):
            split, real = self.holdouts[index].split, self._real(index, judge.size, resolution)
            drawn = arrays.synthetic(place.synthetic(self.recipe), split, side, place.scratch, copies=False)
            # The seed is fixed, so that every trial is compared with the same real images.
            real_rows, drawn_rows = matched(real.labels, drawn.labels, len(split.classes), seed_for("matched"))
            if len(real_rows) < 2:
                raise InputError(
                    f"tune.max_fid: {len(real_rows)} real images are too few for a distance; raise shots, or set it "
                    "to null."
                )
            distances.append(fid(_features(judge, real, real_rows), _features(judge, drawn, drawn_rows)))
            counts.append(len(real_rows))
        return sum(distances) / len(distances), round(sum(counts) / len(counts))


def _features(judge: Judge, images: Labelled, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    return judge.features(images.images[rows])

"""What a trial scores: the accuracy on real images of a classifier trained from scratch on the trial's images alone.

The resource is images per class: a trial draws a few, trains and is scored, then draws more to the same ones, so that
giving it up early saves drawing as well as training. The real images are those of ``selection``, or the shots, each
scored by what was adapted without it. Test images are out of reach.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dreamset.core import locks
from dreamset.core.errors import InputError
from dreamset.core.files import digest, read_json
from dreamset.core.seeds import seed_for
from dreamset.core.workspace import Workspace
from dreamset.data import folds, tuned
from dreamset.data.splits import write_split
from dreamset.drawing.draw import load_base
from dreamset.params import to_dict
from dreamset.params.recipe import SamplerOverrides
from dreamset.study import space
from dreamset.weights import hub

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    import optuna
    from numpy.typing import NDArray

    from dreamset.data.arrays import Labelled
    from dreamset.data.splits import Sample, Split
    from dreamset.generator.base_model import BaseModel
    from dreamset.metrics.features import Judge
    from dreamset.params import Params
    from dreamset.params.model import ModelTune

SECONDS: Final = "seconds_per_image"  # names of constraints
FID: Final = "fid"


class Holdout(NamedTuple):
    """``split`` is what adapters and images are made from, ``scored`` the real images; both with absolute paths."""

    split: Split
    scored: tuple[Sample, ...]


def holdouts(params: Params, workspace: Workspace, split: Split, recipe: str) -> list[Holdout]:
    """The real images that score a trial, with what may be learned from beside them.

    Where ``selection`` sets images apart these, in one holdout. Else the shots: all in one where a recipe learns
    nothing from them, and in folds where it does.

    Raises:
        InputError: the shots of some class cannot be both learned from and scored.
    """
    shots = dataclasses.replace(split, train=folds.absolute(split.train, workspace), selection=())
    if split.selection:
        return [Holdout(shots, folds.absolute(split.selection, workspace))]
    row = params.recipes[recipe]
    if not (row.trains or row.starts_from_shots):
        return [Holdout(shots, shots.train)]
    try:
        divided = folds.held_out(split, folds.SELECTING, "selection")
    except InputError as error:
        raise InputError(
            f"recipes.{recipe}.search: with selection: {params.selection} a study scores folds of the shots, which "
            "cannot be made of so few images or groups; raise shots, or set selection to extra:N."
        ) from error
    return [Holdout(folds.without(split, held, workspace), folds.absolute(held, workspace)) for held in divided]


def steps_at(tune: ModelTune, rung: int) -> int:
    """Optimizer steps of the classifier at a rung: in proportion to the images."""
    return max(1, round(tune.steps * rung / tune.per_class[-1]))


def key_of(params: Params, workspace: Workspace, split: Split, recipe: str, ranges: space.Space) -> str:
    """Hash of all that changes a value of the study's objective, or what the values are chosen from.

    The number of trials is not in it, so that more of them go on with the same study; nor is any path, so that workers
    on several machines share one; nor any code, since Hyperband draws a trial's bracket from the study's name
    (``loop.open_study`` keeps the trials of other code apart).
    """
    base, tune = to_dict(params.base), params.making(recipe)["tune"]
    del tune["trials"]
    for name in ("clip", "judge", "retrieval", "licence", "train", "generator", "variant"):
        del base[name]
    # Of sample grids, and of what a kill leaves behind.
    adapting = {"weight_decay": params.adapt.weight_decay, "max_grad_norm": params.adapt.max_grad_norm}
    del base["adapt"]["sample_every"], base["generate"]["per_class"]
    judge = hub.identity(workspace.root, params.base.judge, "judge")["sha256"] if params.tune.max_fid else None
    return digest(
        {
            "rows": [
                tuned.applied(params, workspace, name).recipes[name].recorded() for name in params.lineage(recipe)[:-1]
            ],
            "row": _started(params, workspace, recipe).recipes[recipe].recorded(),
            "space": space.told(ranges),
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
    )


def _labels(split: Split) -> range:
    return range(len(split.classes))


def _facts(samples: tuple[Sample, ...]) -> list[list[Any]]:
    return [[sample.sha256, sample.label, sample.group] for sample in samples]


def _started(params: Params, workspace: Workspace, recipe: str) -> Params:
    """``params`` with the values that ``recipe`` starts from in its row."""
    return params.with_values(recipe, tuned.inherited(params, workspace, recipe))


class Objective:
    """A function of a trial; it reports every rung, and returns what it scores at the last one.

    Args:
        params: all parameters.
        workspace: where the shots are, and what the recipe starts from.
        recipe: a row with a ``search``.
        split: the shots, and the images of ``selection``.
        make_adapters: trains the recipe's adapters, with a trial's values, in the workspace of a holdout.
        make_images: draws the recipe's images there, with the base that the function it is given reads.
        drawn: told of a trial and of the folder of its images when those of the first rung are there.

    Attributes:
        space: what is searched.
        key: see ``key_of``.
        own: the recipe's own values; None where they lie outside of what is searched.
        images: how many real images score a trial.
        fid_images: at how many images of each side FID is measured, in the mean over the holdouts; None before it is.
    """

    def __init__(
        self,
        params: Params,
        workspace: Workspace,
        recipe: str,
        split: Split,
        make_adapters: Callable[[Params, Workspace], None],
        make_images: Callable[[Params, Workspace, str, Callable[[], BaseModel]], object],
        drawn: Callable[[optuna.Trial, Path], None] | None = None,
    ) -> None:
        self._make_adapters, self._make_images = make_adapters, make_images
        self.recipe, self.workspace, self.drawn = recipe, workspace, drawn
        self.holdouts = holdouts(params, workspace, split, recipe)
        self.space = space.ranges(params, workspace, recipe)
        self.key = key_of(params, workspace, split, recipe, self.space)
        self.params = _started(params, workspace, recipe)
        self.own = space.own(self.params, recipe, self.space)
        self.rungs = params.base.tune.per_class
        self.images = sum(len(held.scored) for held in self.holdouts)
        self.fid_images: int | None = None
        self._real: dict[tuple[int, int], Labelled] = {}
        self._adapted: set[Path] = set()
        self._judge: Judge | None = None
        self._loaded: BaseModel | None = None

    @property
    def name(self) -> str:
        """Of the study."""
        return f"{self.recipe}-{self.key[:8]}"

    @property
    def folder(self) -> Path:
        """Where the trials of this study, on this machine, keep what they are working on."""
        return self.workspace.trials / self.name

    def __call__(self, trial: optuna.Trial) -> float | tuple[float, float]:
        """The score, and the seconds per image where these are to be low as well.

        Raises:
            InputError: these values draw no usable images, or training on them fails.
            optuna.TrialPruned: the trial is given up, or takes too long.
        """
        import optuna

        tune = self.params.tune
        values = space.suggest(trial, self.space)
        chosen = self.params.with_values(self.recipe, values)
        places = [self._place(chosen, index) for index in range(len(self.holdouts))]
        scores: dict[str, float] = {}
        training, score, each = 0.0, 0.0, 0.0
        for rung in self.rungs:
            locks.boundary()
            own = drawing(chosen, self.recipe, rung, len(self.holdouts[0].split.classes))
            for place in places:
                self._make_images(own, place, self.recipe, self._base)
            if rung == self.rungs[0] and self.drawn is not None:
                self.drawn(trial, places[0].synthetic(self.recipe))
            started = time.perf_counter()
            score = self._score(own, places, rung)
            training += time.perf_counter() - started
            images, seconds = self._spent(places)
            each, scores[str(rung)] = seconds / images, score
            for name, value in (
                ("rungs", scores),
                ("seconds_generate", seconds),
                ("seconds_train", training),
                ("images", images),
                ("seconds_per_image", each),
            ):
                trial.set_user_attr(name, value)
            if tune.objectives == "cas":
                trial.report(score, step=rung)
            slow = tune.max_seconds_per_image is not None and self._over(
                trial, SECONDS, each - tune.max_seconds_per_image
            )
            last = rung == self.rungs[-1]
            # Never at the last rung: what is paid for is kept.
            if not last and (slow or (tune.prunes and trial.should_prune())):
                raise optuna.TrialPruned
        if tune.max_fid is not None:
            distance = self._fid(places)
            trial.set_user_attr("fid", distance)
            self._over(trial, FID, distance - tune.max_fid)
        return score if tune.objectives == "cas" else (score, each)

    def _base(self) -> BaseModel:
        """The base, read and compiled once for all trials: at full size that takes longer than a first rung."""
        if self._loaded is None:
            self._loaded = load_base(self.params, self.workspace)
        return self._loaded

    def _over(self, trial: optuna.Trial, name: str, excess: float) -> bool:
        """Whether a limit is exceeded, as it was when the trial first said so: a constraint is set once."""
        if name not in trial.constraints:
            trial.set_constraint(name, excess)
        return trial.constraints[name] > 0

    def _place(self, chosen: Params, index: int) -> Workspace:
        """A holdout's own workspace with the adapters of a trial in it; trials with the same adapters share it."""
        knobs = {knob: value for knob, value in space.current(chosen, self.recipe).items() if knob in tuned.OF_ADAPTERS}
        place = Workspace(self.workspace.root, self.folder / locks.process() / digest(knobs)[:8] / f"part{index}")
        if place.cell not in self._adapted:
            write_split(place.splits, self.holdouts[index].split)
            self._make_adapters(chosen, place)
            self._adapted.add(place.cell)
        return place

    def _spent(self, places: list[Workspace]) -> tuple[int, float]:
        """Images that a trial has drawn, and the seconds that each took when it was drawn, by whichever trial."""
        images, seconds = 0, 0.0
        for place in places:
            for key in read_json(place.synthetic(self.recipe) / "shards.json", "dreamset tune"):
                record = read_json(place.shards / key / "record.json", "dreamset tune")
                images, seconds = images + record["drawn"], seconds + record["seconds"]
        return images, seconds

    def _score(self, params: Params, places: list[Workspace], rung: int) -> float:
        """Accuracy over the real images of all holdouts together."""
        right = sum(self._right(params, place, index, rung) for index, place in enumerate(places))
        return right / self.images

    def _right(self, params: Params, place: Workspace, index: int, rung: int) -> int:
        """How many real images of a holdout a classifier gets right that has seen the trial's images alone."""
        import torch

        from dreamset import classifiers
        from dreamset.classifiers import stored
        from dreamset.classifiers.fit import Source, fit
        from dreamset.data import arrays

        split, base, name = self.holdouts[index].split, params.base, params.base.tune.classifier
        steps, row = steps_at(base.tune, rung), base.train.rows[name]
        row = dataclasses.replace(row, steps=steps, warmup=round(row.warmup * steps / row.steps))
        # Neither the trial nor the rung in the seeds: trials are compared from the same start.
        torch.manual_seed(seed_for("tune", self.params.seed, name, "start"))
        classifier = classifiers.build(name, base, split, place.root)
        size: int = classifier.size  # type: ignore[assignment]
        held = self._held(index, size)
        side = stored(size, base.resolution)
        data = arrays.synthetic(place.synthetic(self.recipe), split, side, place.scratch)
        fit(
            classifier,
            [Source("synthetic", data, 1.0, 1.0)],
            # Nothing of the training is chosen: the last step is scored.
            dataclasses.replace(held, images=held.images[:0], labels=held.labels[:0], names=()),
            row,
            selections=1,
            invariances=split.invariances,
            crop=base.train.crop,
            seed=("tune", self.params.seed, name),
            what=f"tune {self.recipe}, {rung} per class",
        )
        logits = classifiers.Predictor(classifier, split.classes).logits(held.images)
        return int((logits.argmax(1) == held.labels).sum())

    def _held(self, index: int, size: int) -> Labelled:
        """The real images of a holdout for a network of ``size`` pixels, decoded once."""
        from dreamset.classifiers import seen
        from dreamset.data import arrays

        if (index, size) not in self._real:
            side, scratch = seen(size, self.params.base.resolution), self.workspace.scratch
            self._real[index, size] = arrays.real(self.holdouts[index].scored, self.workspace.cell, side, scratch)
        return self._real[index, size]

    def _fid(self, places: list[Workspace]) -> float:
        """FID to the real images that score, in the judge's features, at equal n per class; the mean over the holdouts.

        Raises:
            InputError: there are too few real images for any distance.
        """
        from dreamset.classifiers import seen
        from dreamset.data import arrays
        from dreamset.metrics.distribution import fid, matched
        from dreamset.metrics.features import Judge

        params = self.params
        judge = self._judge = self._judge or Judge(hub.locate(self.workspace.root, params.base.judge, "judge"))
        side, distances, counts = seen(judge.size, params.base.resolution), [], []
        for index, place in enumerate(places):
            split, real = self.holdouts[index].split, self._held(index, judge.size)
            drawn = arrays.synthetic(place.synthetic(self.recipe), split, side, place.scratch)
            # The same real images for every trial.
            ours, theirs = matched(real.labels, drawn.labels, len(split.classes), seed_for("matched"))
            if len(ours) < 2:
                raise InputError(
                    f"tune.max_fid: {len(ours)} real images are too few for a distance; raise shots, or set it to null."
                )
            distances.append(fid(_features(judge, real, ours), _features(judge, drawn, theirs)))
            counts.append(len(ours))
        self.fid_images = round(sum(counts) / len(counts))
        return sum(distances) / len(distances)


def _features(judge: Judge, images: Labelled, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    return judge.features(images.images[rows])


def drawing(params: Params, recipe: str, rung: int, classes: int) -> Params:
    """Parameters that draw a rung: so many images per class and none beyond, from noise that is the trials' own.

    Every trial of every study of a run starts from the same noise, which ``generate`` never uses: what is chosen is
    not chosen for the luck of the images that are kept.
    """
    row, base = params.recipes[recipe], params.base
    # The classes of one adapter are drawn together, so many images of each at once, and of each strength of it as many;
    # every rung is a whole number of such blocks, and so the first blocks of the next rung.
    together = (1 if row.has_adapter_per_class else classes) * len(row.strengths)
    common = math.gcd(*base.tune.per_class) // len(row.strengths)
    room = base.generate.batch
    fitting = [depth for depth in range(1, common + 1) if common % depth == 0 and depth * together <= room]
    batch = together * max(fitting) if fitting else room
    sampler = params.sampler(recipe)
    # Said in the row itself, which comes before what any study has chosen.
    own = dataclasses.replace(row, sampler=SamplerOverrides(**dataclasses.asdict(sampler)), search=None)
    model = dataclasses.replace(base, generate=dataclasses.replace(base.generate, batch=batch))
    return dataclasses.replace(
        params,
        seed=seed_for("tune", params.seed) % 2**31,
        generate=dataclasses.replace(params.generate, per_class=rung),
        # CAS by scale asks for more images than a rung has.
        train=dataclasses.replace(params.train, scales=()),
        recipes=params.recipes | {recipe: own},
        models=params.models | {params.model: model},
    )

"""Training of any classifier: a fixed number of steps, with fixed shares of real and synthetic rows in every batch."""

from __future__ import annotations

import math
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamset.classifiers import Predictor, autocast, stored, to_float
from dreamset.classifiers.augment import Augment, Mix
from dreamset.classifiers.siamese import Siamese
from dreamset.core import device as devices
from dreamset.core.arithmetic import warm_up_cosine
from dreamset.core.errors import InputError
from dreamset.core.progress import bar
from dreamset.core.seeds import seed_for
from dreamset.data.runs import REAL

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dreamset.classifiers.selection import Row
    from dreamset.data.arrays import Labelled


MOMENTUM: Final = 0.9  # of stochastic gradient descent
STRONG: Final = 3  # operations of strong augmentation, which also mixes images
CUTMIX: Final = 1.0  # alpha of strong augmentation's CutMix
MIXUP: Final = 0.2  # alpha of strong augmentation's MixUp, where the configuration has none
# The plateau schedule, as in arXiv 2405.02698. Scorings are a hundredth of the steps apart, whatever is trained on: an
# epoch of few shots is too short to learn anything.
SCORINGS: Final = 100
PATIENCE: Final = 10  # scorings without a better score, after which the learning rate falls
FACTOR: Final = 0.1  # by which it falls, here and in the middle of the steps
FLOOR: Final = 1e-5  # below which it does not fall
STOP: Final = 25  # scorings without a better score, after which training ends
_RESIDENT: Final = 2**30  # bytes of images that are kept on the device; more come from the host, a batch ahead


@dataclass(frozen=True)
class Source:
    """One kind of training images, with its share of every batch and its weight in the loss."""

    name: str
    data: Labelled
    share: float
    weight: float


@dataclass(frozen=True)
class Finish:
    """The end of a training on real and synthetic images: steps that learn from the real ones alone.

    Attributes:
        share: of all steps, 0..1; the others come first.
        part: what these steps change: ``whole``, or ``head``, the last linear layer.
    """

    share: float
    part: str


@dataclass(frozen=True)
class History:
    """The course of a training.

    Without selection images ``logits``, ``states`` and ``curve`` are empty.

    Attributes:
        logits: (n, classes) float32 of the selection images by step; with the plateau schedule, of the best step alone.
        states: the classifier's weights at the same steps.
        curve: the accuracy on the selection images by step, at every scoring.
        losses: the loss of every step.
        seconds: the time it took.
    """

    logits: dict[int, NDArray[np.float32]]
    states: dict[int, dict[str, Tensor]]
    curve: dict[int, float]
    losses: list[float]
    seconds: float


class Stream:
    """An endless stream of indices of n images: each comes once, in a new order, before any comes again."""

    def __init__(self, n: int, generator: torch.Generator) -> None:
        self.n, self.generator = n, generator
        self.queue = torch.empty(0, dtype=torch.int64)

    def take(self, count: int) -> Tensor:
        """Return the next ``count`` indices, int64."""
        while len(self.queue) < count:
            self.queue = torch.cat([self.queue, torch.randperm(self.n, generator=self.generator)])
        taken, self.queue = self.queue[:count], self.queue[count:]
        return taken


def shares(batch: int, sources: Sequence[Source]) -> list[int]:
    """Return the number of rows of each source in a batch, which is the same in every batch."""
    counts = [max(1, round(batch * source.share)) for source in sources[1:]]
    return [batch - sum(counts), *counts]


def learning_rate(step: int, schedule: Row) -> float:
    """Return the learning rate of a step, counted from 0: linear warm-up, then cosine to zero, or a fall in the middle.

    In steps it falls to a tenth after half of them, as dataset distillation has it (Zhao et al. 2021).
    """
    if schedule.in_steps and step >= schedule.warmup:
        return schedule.lr * (FACTOR if 2 * step >= schedule.steps else 1.0)
    return warm_up_cosine(step, schedule.steps, schedule.warmup, schedule.lr, lead=1)


class Plateau:
    """The plateau schedule: the learning rate falls and training ends when the score rises no more."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        # torch lowers the rate when more scorings than its patience are no better, hence one less.
        self.rates = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, "max", FACTOR, PATIENCE - 1, threshold=0.0, min_lr=FLOOR
        )
        self.best, self.since = -math.inf, 0

    def over(self, score: float) -> bool:
        """Take the next score, and return whether training ends with it."""
        self.rates.step(score)
        self.since = 0 if score > self.best else self.since + 1
        self.best = max(self.best, score)
        return self.since >= STOP


def mixing(mixup: float, *, strong: bool) -> tuple[float, float]:
    """Return the alphas of MixUp and of CutMix that ``fit`` uses; 0: none."""
    return mixup or (MIXUP if strong else 0.0), CUTMIX if strong else 0.0


def fit(
    classifier: nn.Module,
    sources: Sequence[Source],
    selection: Labelled,
    schedule: Row,
    *,
    selections: int,
    invariances: Collection[str],
    crop: float,
    seed: Sequence[str | int],
    stop: int | None = None,
    mixup: float = 0.0,
    plateau: bool = False,
    strong: bool = False,
    finish: Finish | None = None,
    what: str = "train",
) -> History:
    """Train ``classifier`` in place, and score it on ``selection`` on the way.

    Args:
        classifier: see ``dreamset.classifiers``.
        sources: real images, synthetic ones, or both.
        selection: the images that choose among ``selections`` evenly spaced steps; may be none.
        schedule: learning rate and its fall, weight decay, warm-up, steps, batch, optimizer and augmentation.
        selections: how often the selection images are scored, the last step included.
        invariances: changes that keep a label.
        crop: smallest share of the area that a random crop keeps, except with siamese augmentation.
        seed: parts of the seed of batches, augmentation and dropout.
        stop: the step after which training ends, with the schedule unchanged; None: the schedule's last step.
        mixup: alpha of MixUp, 0: none. Images are mixed within their source.
        plateau: whether the learning rate follows the score on ``selection``, which then must have images, instead of
            the cosine. Training may end early, and the best step is kept in place of ``selections``.
        strong: whether augmentation is strong: more operations, where it has a number of them, and MixUp or CutMix of
            every batch.
        finish: how the training ends on the real images alone, in the same number of steps; None: it does not.
        what: title of the progress bar.

    Returns:
        The losses, and the logits and weights at the steps that can be chosen.

    Raises:
        InputError: the loss is no longer finite.
    """
    where = devices.pick()
    classifier.to(where)
    drawn = seed_for(*seed, "augment")
    augment: Augment | Siamese = Augment(invariances, crop, drawn, STRONG if strong else 2)
    if schedule.augmentation == "siamese":
        augment = Siamese(invariances, drawn)
    mix = Mix(*mixing(mixup, strong=strong), seed_for(*seed, "mix"))
    end = schedule.steps if stop is None else stop
    weights = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    # Fused, because the layers are small: unfused, calling each operation costs the CPU more than the update itself.
    shared: dict[str, Any] = {"lr": schedule.lr, "weight_decay": schedule.weight_decay, "fused": True}
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(weights, momentum=MOMENTUM, **shared)
        if schedule.optimizer == "sgd"
        else torch.optim.AdamW(weights, **shared)
    )
    torch.manual_seed(seed_for(*seed, "dropout"))
    parts = SCORINGS if plateau else selections
    stops = {max(1, round(schedule.steps * part / parts)) for part in range(1, parts + 1)}
    watch = Plateau(optimizer) if plateau else None
    logits: dict[int, NDArray[np.float32]] = {}
    states: dict[int, dict[str, Tensor]] = {}
    curve: dict[int, float] = {}
    losses: list[Tensor] = []
    start = time.perf_counter()
    turn = schedule.steps - (round(finish.share * schedule.steps) if finish else 0)
    real = [Source(source.name, source.data, 1.0, 1.0) for source in sources if source.name == REAL]
    frozen = _all_but_head(classifier) if finish and finish.part == "head" else []
    with ExitStack() as stack:
        loader = stack.enter_context(closing(_Loader(classifier, sources, schedule.batch, augment, seed, mix)))
        progress = stack.enter_context(bar(total=end, what=what, unit="step"))
        for step in range(1, end + 1):
            if step == turn + 1:
                last = _Loader(classifier, real, schedule.batch, augment, (*seed, "finish"), mix)
                loader = stack.enter_context(closing(last))
            # Where the head alone learns, the rest stays as it is, running statistics included.
            classifier.train(step <= turn or not frozen)
            for group in optimizer.param_groups if watch is None or step <= schedule.warmup + 1 else ():
                group["lr"] = learning_rate(step - 1, schedule)
            optimizer.zero_grad(set_to_none=True)
            loss = loader.loss()
            loss.backward()
            for parameter in frozen if step > turn else ():
                parameter.grad = None
            optimizer.step()
            losses.append(loss.detach())
            progress.update()
            if step in stops and len(selection):
                scores = Predictor(classifier, ()).logits(selection.images)
                score = float((scores.argmax(1) == selection.labels).mean())
                if watch is None:
                    logits[step], states[step] = scores, _state(classifier)
                elif score > max(curve.values(), default=-1.0):
                    logits, states = {step: scores}, {step: _state(classifier)}
                curve[step] = score
                # During the warm-up a score does not depend on the peak rate alone, so it does not count.
                if watch is not None and step > schedule.warmup and watch.over(score):
                    break
    history = torch.stack(losses).tolist()
    if not all(map(math.isfinite, history)):
        raise InputError(f"{what}: the loss is no longer finite; lower lr in the classifier's row of params.yaml.")
    classifier.eval()
    return History(logits, states, curve, history, time.perf_counter() - start)


def _all_but_head(classifier: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that learn, without those of the last linear layer.

    Raises:
        InputError: no linear layer learns.
    """
    learned = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    layers = [
        module for module in classifier.modules() if isinstance(module, nn.Linear) and module.weight.requires_grad
    ]
    if not layers:
        raise InputError("train.finish_part: this classifier has no last layer that learns; set it to whole.")
    head = set(layers[-1].parameters())
    return [parameter for parameter in learned if parameter not in head]


# Of the next rows of each source: the stored images, the labels, and the weights where images have some.
_Drawn = tuple[list[Tensor], list[Tensor], list[Tensor | None]]


class _Loader:
    """Batches on the device, and their loss."""

    def __init__(
        self,
        classifier: nn.Module,
        sources: Sequence[Source],
        batch: int,
        augment: Augment | Siamese,
        seed: Sequence[str | int],
        mix: Mix | None = None,
    ) -> None:
        self.classifier: Any = classifier
        self.sources, self.augment = sources, augment
        self.mix = mix or Mix(0.0, 0.0, 0)
        self.where = next(classifier.parameters()).device
        self.size: int = classifier.size  # type: ignore[assignment]
        self.counts = shares(batch, sources)
        self.images = [torch.from_numpy(source.data.images) for source in sources]
        self.labels = [torch.from_numpy(source.data.labels) for source in sources]
        given = [source.data.weights for source in sources]
        self.weights = [None if each is None else torch.from_numpy(each) for each in given]
        self.ahead: ThreadPoolExecutor | None = None
        self.next: Future[_Drawn] | None = None
        if sum(source.data.images.nbytes for source in sources) > _RESIDENT:
            self.ahead = ThreadPoolExecutor(1)
        else:
            self.images = [images.to(self.where) for images in self.images]
        generators = [torch.Generator().manual_seed(seed_for(*seed, "order", source.name)) for source in sources]
        self.streams = [Stream(len(source.data), random) for source, random in zip(sources, generators, strict=True)]

    def close(self) -> None:
        """Drop the batch that was drawn ahead."""
        if self.ahead is not None:
            self.ahead.shutdown(cancel_futures=True)

    def batch(self) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
        """Return (n, 3, size, size) augmented images in 0..1, the rows of each source together; labels; weights."""
        if self.ahead is None:
            drawn, labels, weights = self._draw()
        else:
            drawn, labels, weights = (self.next or self.ahead.submit(self._draw)).result()
            self.next = self.ahead.submit(self._draw)
        largest = stored(self.size, sys.maxsize)
        pixels = [to_float(part.to(self.where, non_blocking=True), self.classifier, largest) for part in drawn]
        weighed = [None if part is None else part.to(self.where) for part in weights]
        return self.augment(torch.cat(pixels), self.size), [part.to(self.where) for part in labels], weighed

    def _draw(self) -> _Drawn:
        """Return the next rows of each source, on the device that keeps them."""
        rows = [stream.take(count) for stream, count in zip(self.streams, self.counts, strict=True)]
        images = [part[row.to(part.device)] for part, row in zip(self.images, rows, strict=True)]
        if self.ahead is not None and self.where.type == "cuda":
            images = [part.pin_memory() for part in images]
        weights = [None if part is None else part[row] for part, row in zip(self.weights, rows, strict=True)]
        return images, [labels[row] for labels, row in zip(self.labels, rows, strict=True)], weights

    def loss(self) -> Tensor:
        """Return the weighted sum of the sources' cross-entropies over one batch."""
        images, labels, weights = self.batch()
        smoothing: float = self.classifier.label_smoothing
        # Images are mixed within their source, so that both have the same weight in the loss.
        mixed = [self.mix(part) for part in images.split(self.counts)]
        images = torch.cat([part for part, _, _ in mixed])
        soft: tuple[float, float] | None = getattr(self.classifier, "soft_labels", None)
        with autocast(self.where):
            logits, taught = self.classifier.with_teacher(images) if soft else (self.classifier(images),) * 2
        logits, taught = logits.float(), taught.float()
        total: Tensor = logits.new_zeros(())
        each = (logits.split(self.counts), taught.split(self.counts), labels, weights, mixed)
        for source, part, teacher, truth, weight, (_, other, share) in zip(self.sources, *each, strict=True):
            loss = _entropy(part, truth, smoothing, weight)
            if share < 1:
                blended = None if weight is None else weight[other]
                loss = share * loss + (1 - share) * _entropy(part, truth[other], smoothing, blended)
            if soft:
                loss = (1 - soft[0]) * loss + soft[0] * distillation(part, teacher, soft[1], weight)
            total = total + source.weight * loss
        return total


def _entropy(logits: Tensor, truth: Tensor, smoothing: float, weights: Tensor | None) -> Tensor:
    """Return the mean cross-entropy of logits (n, classes) with labels (n,) or probabilities; rows may have weights."""
    if weights is None:
        return F.cross_entropy(logits, truth, label_smoothing=smoothing)
    return (weights * F.cross_entropy(logits, truth, label_smoothing=smoothing, reduction="none")).mean()


def distillation(logits: Tensor, teacher: Tensor, temperature: float, weights: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of logits (n, classes) with a teacher's probabilities (Hinton et al. 2015).

    Both are divided by the temperature. Its square keeps the size of the gradients. Each row counts ``weights`` (n,).
    """
    return temperature**2 * _entropy(logits / temperature, (teacher / temperature).softmax(-1), 0.0, weights)


def restore(classifier: nn.Module, state: dict[str, Tensor]) -> None:
    """Give a classifier the weights that it had at a step of its training."""
    classifier.load_state_dict(state, strict=False)
    classifier.eval()


def _state(classifier: nn.Module) -> dict[str, Tensor]:
    """Return copies of what training changes: trainable parameters and saved buffers."""
    frozen = {name for name, parameter in classifier.named_parameters() if not parameter.requires_grad}
    return {name: value.clone() for name, value in classifier.state_dict().items() if name not in frozen}

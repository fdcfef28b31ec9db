"""Training any classifier: a fixed number of steps, real and synthetic rows in fixed shares of every batch."""

from __future__ import annotations

import math
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamset import device as devices
from dreamset.classifiers import autocast, stored, to_float
from dreamset.classifiers.augment import Augment
from dreamset.errors import InputError
from dreamset.progress import bar
from dreamset.seeds import seed_for

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from dreamset.classifiers.arrays import Labelled


_RESIDENT: Final = 2**30  # bytes of images that are kept on the device; more are drawn from the host, a batch ahead


class Schedule(Protocol):
    """What every classifier's row of ``params.yaml`` says of its training."""

    @property
    def lr(self) -> float: ...  # noqa: D102
    @property
    def weight_decay(self) -> float: ...  # noqa: D102
    @property
    def warmup(self) -> int: ...  # noqa: D102
    @property
    def steps(self) -> int: ...  # noqa: D102
    @property
    def batch(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class Source:
    """One kind of training images: ``share`` of every batch, ``weight`` of the loss."""

    name: str
    data: Labelled
    share: float
    weight: float


@dataclass(frozen=True)
class History:
    """What happened: accuracy on the selection images by step, the step kept, the loss of every step."""

    selection: list[tuple[int, float]]
    chosen_step: int
    losses: list[float]
    seconds: float


class Stream:
    """Endless indices of n images: every one once, in a new order, before any comes again."""

    def __init__(self, n: int, generator: torch.Generator) -> None:
        self.n, self.generator = n, generator
        self.queue = torch.empty(0, dtype=torch.int64)

    def take(self, count: int) -> Tensor:
        """The next ``count`` indices."""
        while len(self.queue) < count:
            self.queue = torch.cat([self.queue, torch.randperm(self.n, generator=self.generator)])
        taken, self.queue = self.queue[:count], self.queue[count:]
        return taken


def shares(batch: int, sources: Sequence[Source]) -> list[int]:
    """How many rows of a batch each source has; the same in every batch."""
    counts = [max(1, round(batch * source.share)) for source in sources[1:]]
    return [batch - sum(counts), *counts]


def learning_rate(step: int, schedule: Schedule) -> float:
    """Linear warm-up, then cosine to zero; ``step`` counts from 0."""
    if step < schedule.warmup:
        return schedule.lr * (step + 1) / (schedule.warmup + 1)
    done = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    return schedule.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def fit(
    classifier: nn.Module,
    sources: Sequence[Source],
    selection: Labelled,
    schedule: Schedule,
    *,
    selections: int,
    invariances: Collection[str],
    crop: float,
    seed: Sequence[str | int],
    what: str = "train",
) -> History:
    """Train ``classifier`` in place and leave it with the weights that did best on ``selection``.

    Args:
        classifier: see ``dreamset.classifiers``.
        sources: real images, synthetic ones, or both.
        selection: the images that choose among ``selections`` evenly spaced steps; the later of equals, and the last
            step where there are none.
        schedule: AdamW's learning rate, weight decay, warm-up, steps and batch.
        selections: how often the selection images are scored.
        invariances: changes that keep a label.
        crop: smallest share of the area that a random crop keeps.
        seed: parts of the seed of batches, augmentation and dropout.
        what: title of the progress bar.

    Raises:
        InputError: the loss is no longer finite.
    """
    where = devices.pick()
    classifier.to(where)
    augment = Augment(invariances, crop, seed_for(*seed, "augment"))
    weights = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=schedule.lr, weight_decay=schedule.weight_decay)
    torch.manual_seed(seed_for(*seed, "dropout"))
    stops = {max(1, round(schedule.steps * part / selections)) for part in range(1, selections + 1)}
    best, kept, chosen = -1.0, {}, schedule.steps
    scores: list[tuple[int, float]] = []
    losses: list[Tensor] = []
    start = time.perf_counter()
    with (
        closing(_Loader(classifier, sources, schedule.batch, augment, seed)) as loader,
        bar(total=schedule.steps, what=what, unit="step") as progress,
    ):
        for step in range(1, schedule.steps + 1):
            classifier.train()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step - 1, schedule)
            optimizer.zero_grad(set_to_none=True)
            loss = loader.loss()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            if step in stops and len(selection):
                scores.append((step, accuracy(classifier, selection)))
                if scores[-1][1] >= best:
                    best, chosen, kept = scores[-1][1], step, _state(classifier)
            progress.update()
    history = torch.stack(losses).tolist()
    if not all(map(math.isfinite, history)):
        raise InputError(f"{what}: the loss is no longer finite; lower lr in the classifier's row of params.yaml.")
    classifier.load_state_dict(kept, strict=False)
    classifier.eval()
    return History(scores, chosen, history, time.perf_counter() - start)


class _Loader:
    """Batches on the device, and their loss."""

    def __init__(
        self, classifier: nn.Module, sources: Sequence[Source], batch: int, augment: Augment, seed: Sequence[str | int]
    ) -> None:
        self.classifier, self.sources, self.augment = classifier, sources, augment
        self.where = next(classifier.parameters()).device
        self.size: int = classifier.size  # type: ignore[assignment]
        self.counts = shares(batch, sources)
        self.images = [torch.from_numpy(source.data.images) for source in sources]
        self.labels = [torch.from_numpy(source.data.labels) for source in sources]
        self.ahead: ThreadPoolExecutor | None = None
        self.next: Future[tuple[list[Tensor], list[Tensor]]] | None = None
        if sum(source.data.images.nbytes for source in sources) > _RESIDENT:
            self.ahead = ThreadPoolExecutor(1)
        else:
            self.images = [images.to(self.where) for images in self.images]
        generators = [torch.Generator().manual_seed(seed_for(*seed, "order", source.name)) for source in sources]
        self.streams = [Stream(len(source.data), own) for source, own in zip(sources, generators, strict=True)]

    def close(self) -> None:
        """Give up the batch that was drawn ahead."""
        if self.ahead is not None:
            self.ahead.shutdown(cancel_futures=True)

    def batch(self) -> tuple[Tensor, list[Tensor]]:
        """Augmented (n, 3, size, size) images in 0..1, the rows of each source together, and its labels."""
        if self.ahead is None:
            drawn, labels = self._draw()
        else:
            drawn, labels = (self.next or self.ahead.submit(self._draw)).result()
            self.next = self.ahead.submit(self._draw)
        largest = stored(self.size, sys.maxsize)
        pixels = [to_float(part.to(self.where, non_blocking=True), self.classifier, largest) for part in drawn]
        return self.augment(torch.cat(pixels), self.size), [part.to(self.where) for part in labels]

    def _draw(self) -> tuple[list[Tensor], list[Tensor]]:
        """Stored images and labels of the next rows of each source, where they are kept."""
        rows = [stream.take(count) for stream, count in zip(self.streams, self.counts, strict=True)]
        images = [part[row.to(part.device)] for part, row in zip(self.images, rows, strict=True)]
        if self.ahead is not None and self.where.type == "cuda":
            images = [part.pin_memory() for part in images]
        return images, [labels[row] for labels, row in zip(self.labels, rows, strict=True)]

    def loss(self) -> Tensor:
        """The weighted sum of the sources' cross-entropies over one batch."""
        images, labels = self.batch()
        smoothing: float = self.classifier.label_smoothing  # type: ignore[assignment]
        with autocast(self.where):
            logits = self.classifier(images).float()
        total: Tensor = logits.new_zeros(())
        for source, part, truth in zip(self.sources, logits.split(self.counts), labels, strict=True):
            total = total + source.weight * F.cross_entropy(part, truth, label_smoothing=smoothing)
        return total


@torch.inference_mode()
def accuracy(classifier: nn.Module, data: Labelled, batch: int = 256) -> float:
    """Share of images classified right, in evaluation mode."""
    classifier.eval()
    where = next(classifier.parameters()).device
    right = 0
    for start in range(0, len(data), batch):
        pixels = to_float(torch.from_numpy(data.images[start : start + batch]).to(where), classifier)
        truth = torch.from_numpy(data.labels[start : start + batch]).to(where)
        with autocast(where):
            right += int((classifier(pixels).argmax(1) == truth).sum())
    return right / len(data)


def _state(classifier: nn.Module) -> dict[str, Tensor]:
    """Copies of what training changes: trainable parameters and saved buffers."""
    frozen = {name for name, parameter in classifier.named_parameters() if not parameter.requires_grad}
    return {name: value.clone() for name, value in classifier.state_dict().items() if name not in frozen}

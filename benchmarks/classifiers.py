"""Classifier images: per-image PIL augmentation and a text tower per batch against ``dreamset.classifiers``."""

from __future__ import annotations

import dataclasses
import random
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from benchmarks.setting import of_classes
from benchmarks.timing import Ladder, Rung, clock
from dreamset import classifiers
from dreamset.classifiers import lora_attention, to_float
from dreamset.classifiers.augment import Augment
from dreamset.classifiers.clip import Clip, encode_captions
from dreamset.classifiers.fit import Source, fit
from dreamset.data import arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from benchmarks.setting import Setting
    from dreamset.data.arrays import Labelled

# Everything that a photograph's label survives, so that both sides do the whole of DataDream's list.
INVARIANCES = ("hflip", "colour")
PLAIN_EVAL_BATCH = 8  # DataDream's
WORKERS = 8
RESNET_PIXELS = 64
BICUBIC = transforms.InterpolationMode.BICUBIC


class Files(Dataset[Any]):
    """Image files with labels, opened and transformed one at a time; ``kept``: decoded once, in memory."""

    def __init__(self, setting: Setting, transform: Callable[[Image.Image], Tensor], *, kept: bool = False) -> None:
        self.rows = [(setting.path(sample), sample.label) for sample in setting.split.train]
        self.transform = transform
        self.kept = [self._read(index) for index in range(len(self.rows))] if kept else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.kept[index] if self.kept else self._read(index)
        return self.transform(image), self.rows[index][1]

    def _read(self, index: int) -> Image.Image:
        with Image.open(self.rows[index][0]) as image:
            return image.convert("RGB")


def augmentation(size: int, crop: float, mean: tuple[float, ...], std: tuple[float, ...]) -> transforms.Compose:
    """DataDream's training transform, for one PIL image."""

    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))

    return transforms.Compose(
        [
            transforms.RandAugment(),
            transforms.RandomResizedCrop(size, scale=(crop, 1.0), interpolation=BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([blur], p=0.2),
            transforms.RandomSolarize(128, p=0.2),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )


def whole(size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> transforms.Compose:
    """The transform of evaluation, for one PIL image."""
    return transforms.Compose(
        [
            transforms.Resize(size, BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )


def plain_logits(classifier: nn.Module, images: Tensor, features: Tensor | None = None, *, cut: bool = False) -> Tensor:
    """Logits of normalised images; of a CLIP, with all captions through the text tower unless given.

    ``cut``: lever: captions are computed up to their end only.
    """
    if not isinstance(classifier, Clip):
        return classifier(images * 0.5 + 0.5)
    if features is None and cut:
        features = encode_captions(classifier.model, classifier.tokens)
    if features is None:
        features = classifier.model.encode_text(classifier.tokens, normalize=True)
    seen = classifier.model.encode_image(images, normalize=True)
    return classifier.model.logit_scale.exp() * seen @ features.T


def plain_fit(
    setting: Setting,
    classifier: nn.Module,
    row: Any,
    steps: int,
    *,
    half: bool = False,
    workers: int = 0,
    kept: bool = False,
    batched: bool = False,
    checkpointed: bool = True,
) -> float:
    """Train as the reference scripts do; seconds per image, decoding included as often as it happens.

    Args:
        setting: parameters and data.
        classifier: see ``dreamset.classifiers``.
        row: its row of the parameters.
        steps: optimizer steps.
        half: lever: bfloat16 where autocast allows it; the reference scripts take float16.
        workers: lever: processes that read and augment.
        kept: lever: images are decoded once.
        batched: lever: whole batches are augmented.
        checkpointed: the text tower's activations are computed again in the backward pass.
    """
    mean, std = getattr(classifier, "mean", (0.5,) * 3), getattr(classifier, "std", (0.5,) * 3)
    crop = setting.params.base.train.crop
    classifier.to(setting.device).train()
    if isinstance(classifier, Clip):
        getattr(classifier.model, "text", classifier.model).transformer.grad_checkpointing = checkpointed
    start = clock()
    if batched:
        batches = _batched(setting, classifier, row.batch, Augment(INVARIANCES, crop, 0), mean, std)
    else:
        files = Files(setting, augmentation(classifier.size, crop, mean, std), kept=kept)
        # Full batches, also of few files: one permutation after the other.
        order = RandomSampler(files, num_samples=row.batch * (steps + setting.amount.warmup))
        batches = iter(DataLoader(files, row.batch, sampler=order, num_workers=workers))
    setup = clock() - start
    weights = [weight for weight in classifier.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=row.lr, weight_decay=row.weight_decay)
    taken, images_seen = 0.0, 0
    for step in range(-setting.amount.warmup, steps):
        start = clock()
        images, labels = next(batches)
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=half):
            logits = plain_logits(classifier, images.to(setting.device))
        loss = F.cross_entropy(logits.float(), labels.to(setting.device), label_smoothing=classifier.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        if step >= 0:
            taken += clock() - start
            images_seen += len(images)
    return taken / images_seen + setup / (row.steps * row.batch)


def our_fit(setting: Setting, classifier: nn.Module, row: Any, steps: int) -> float:
    """Train as ``dreamset train`` does; seconds per image, decoding spread over a whole training."""
    start = clock()
    data = decoded(setting, classifier)
    setup = clock() - start
    taken = 0.0
    for count in (setting.amount.warmup, steps):
        history = fit(
            classifier,
            [Source("real", data, 1.0, 1.0)],
            _head(data, 0),
            dataclasses.replace(row, steps=count),
            selections=1,
            invariances=INVARIANCES,
            crop=setting.params.base.train.crop,
            seed=("benchmark",),
        )
        taken = history.seconds
    return taken / (steps * row.batch) + setup / (row.steps * row.batch)


@torch.no_grad()
def plain_evaluate(
    setting: Setting,
    classifier: nn.Module,
    *,
    batch: int = PLAIN_EVAL_BATCH,
    cut: bool = False,
    once: bool = False,
    out: list[Tensor] | None = None,
) -> float:
    """Score images as the reference scripts do; seconds per image.

    Args:
        setting: parameters and data.
        classifier: a CLIP with merged LoRA.
        batch: lever: images at a time.
        cut: lever: captions are computed up to their end only.
        once: lever: captions go through the text tower once.
        out: takes the logits.
    """
    classifier.eval()
    count, features = 0, None
    start = clock()
    files = Files(setting, whole(classifier.size, classifier.mean, classifier.std))
    while count < setting.amount.evaluated:
        for images, labels in DataLoader(files, batch):
            if once and features is None:
                features = encode_captions(classifier.model, classifier.tokens)
            logits = plain_logits(classifier, images.to(setting.device), features, cut=cut)
            (logits.argmax(1).cpu() == labels).sum().item()
            count += len(labels)
            if out is not None:
                out.append(logits)
    return (clock() - start) / count


def our_evaluate(setting: Setting, classifier: nn.Module, *, half: bool = False) -> float:
    """Score images as dreamset does; seconds per image, decoding spread over the selections of a training.

    ``half``: bfloat16 where autocast allows it, which dreamset does not do: a logit would be rounded.
    """
    start = clock()
    data = decoded(setting, classifier)
    setup = (clock() - start) / len(data) / setting.params.train.selections
    repeats = -(-setting.amount.evaluated // len(data))
    images = torch.from_numpy(data.images).repeat(repeats, 1, 1, 1).numpy()
    predictor = classifiers.Predictor(classifier, setting.split.classes)
    start = clock()
    with torch.autocast(setting.device.type, torch.bfloat16, enabled=half):
        predictor.logits(images).argmax(1)
    return (clock() - start) / len(images) + setup


def decoded(setting: Setting, classifier: nn.Module) -> Labelled:
    """The real images in memory."""
    return arrays.real(setting.split.train, setting.workspace.cell, classifier.size)


def build(setting: Setting, name: str) -> nn.Module:
    """A classifier as it starts, the same each time."""
    torch.manual_seed(0)
    return classifiers.build(name, setting.params.base, setting.split, setting.workspace.root).to(setting.device)


def merged(setting: Setting) -> Clip:
    """A CLIP as it is evaluated: a stock open_clip model."""
    classifier = build(setting, "clip_lora")
    lora_attention.merge(classifier.model)
    return classifier


def ladders(setting: Setting) -> list[Ladder]:
    """Training and evaluation of CLIP for some numbers of classes, and training of ResNet-20."""
    found = []
    for count in setting.captions:
        found += _clip(of_classes(setting, count))
    # Its row is made for small images.
    return found if setting.params.base.resolution > RESNET_PIXELS else [*found, _resnet20(setting)]


def _clip(setting: Setting) -> list[Ladder]:
    row = setting.params.base.train.rows["clip_lora"].course(len(setting.split.train))
    steps, count = setting.amount.classifier_steps, len(setting.split.classes)
    cuda = setting.device.type == "cuda"

    def plain(**levers: Any) -> float:
        return plain_fit(setting, build(setting, "clip_lora"), row, steps, half=levers.pop("half", cuda), **levers)

    def evaluate(**levers: Any) -> float:
        return plain_evaluate(setting, merged(setting), **levers)

    training = [
        Rung("plain loop: files, PIL, text tower with checkpoints, per batch", lambda: plain(half=False)),
        Rung("+ decoded once", lambda: plain(kept=True)),
        Rung("+ batches augmented as one", lambda: plain(batched=True)),
        Rung("+ no activation checkpoints", lambda: plain(batched=True, checkpointed=False)),
        Rung(
            "dreamset (+ captions cut after their end)",
            lambda: our_fit(setting, build(setting, "clip_lora"), row, steps),
        ),
    ]
    evaluation = [
        Rung(f"plain loop: files, batches of {PLAIN_EVAL_BATCH}, text tower per batch", evaluate),
        Rung("+ captions cut after their end", lambda: evaluate(cut=True)),
        Rung("+ captions encoded once", lambda: evaluate(once=True)),
        Rung("+ batches of 256", lambda: evaluate(once=True, batch=256)),
        Rung("dreamset (+ decoded once)", lambda: our_evaluate(setting, merged(setting))),
    ]
    if cuda:
        training[1:1] = [
            Rung("+ bfloat16", plain),
            Rung(f"+ {WORKERS} reading processes", lambda: plain(workers=WORKERS)),
        ]
        half = Rung("+ bfloat16 (dreamset does not)", lambda: our_evaluate(setting, merged(setting), half=True))
        evaluation.append(half)
    return [
        Ladder(f"Training CLIP with LoRA, batch {row.batch}, {count} classes", "images", training),
        Ladder(f"Evaluating CLIP, {count} classes", "images", evaluation),
    ]


def _resnet20(setting: Setting) -> Ladder:
    own, steps = setting.params.base.train.rows["resnet20"], setting.amount.classifier_steps
    row = own.course(len(setting.split.train))

    def plain(**levers: Any) -> float:
        levers["half"] = setting.device.type == "cuda"
        return plain_fit(setting, build(setting, "resnet20"), row, steps, **levers)

    return Ladder(
        f"Training ResNet-20, width {own.width}, batch {row.batch}",
        "images",
        [
            Rung("plain loop: files and PIL per image", plain),
            Rung("+ decoded once", lambda: plain(kept=True)),
            Rung(
                "dreamset (+ batches augmented as one)",
                lambda: our_fit(setting, build(setting, "resnet20"), row, steps),
            ),
        ],
    )


def _batched(
    setting: Setting,
    classifier: nn.Module,
    batch: int,
    augment: Augment,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Iterator[tuple[Tensor, Tensor]]:
    data = decoded(setting, classifier)
    pixels, labels = torch.from_numpy(data.images).to(setting.device), torch.from_numpy(data.labels)
    shift, scale = (torch.tensor(part, device=setting.device)[:, None, None] for part in (mean, std))
    while True:
        rows = torch.randperm(len(labels))[:batch]
        images = augment(to_float(pixels[rows.to(setting.device)], classifier))
        yield (images - shift) / scale, labels[rows]


def _head(data: Labelled, count: int) -> Labelled:
    return dataclasses.replace(data, images=data.images[:count], labels=data.labels[:count], names=data.names[:count])

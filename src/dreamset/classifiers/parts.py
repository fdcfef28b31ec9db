"""The images that the classifiers of an arm learn from and are chosen by: of the workspace, or of one of its folds."""

from __future__ import annotations

import functools
import random
from typing import TYPE_CHECKING, Any

from dreamset.core.errors import InputError
from dreamset.core.files import digest
from dreamset.core.seeds import seed_for
from dreamset.data.runs import REAL

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from dreamset.classifiers.fit import Source
    from dreamset.classifiers.nearness import Looking
    from dreamset.core.workspace import Workspace
    from dreamset.data.arrays import Labelled
    from dreamset.data.runs import Kind
    from dreamset.data.splits import Sample, Split
    from dreamset.params import Params


class Part:
    """The images of an arm in a workspace or in one of its folds, decoded once.

    Args:
        params: all parameters.
        workspace: where the images are.
        split: the shots and the selection images.
        arm: ``real``, or the recipe whose images are learned from as well.
        store: folder of finished shards, by key.
        images: in a fold, what ``learned(params, split)`` is of the whole; None: of ``split``.
    """

    def __init__(
        self, params: Params, workspace: Workspace, split: Split, arm: str, store: Path, images: int | None = None
    ) -> None:
        self.params, self.workspace, self.split, self.arm = params, workspace, split, arm
        self.store = store
        self.images = learned(params, split) if images is None else images
        self._size: int | None = None
        self._looking: Looking | None = None
        self._decoded: tuple[dict[str, Labelled], Labelled]
        self._lists: dict[tuple[int, ...] | None, list[tuple[str, int, str]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs, which decodes the images anew."""
        kept = {name: value for name, value in self.__dict__.items() if name != "_decoded"}
        return kept | {"_size": None, "_looking": None}

    def of(self, classifier: nn.Module) -> tuple[dict[str, Labelled], Labelled]:
        """Return the training images by source, and the selection images, at the size that a classifier needs.

        The images of the last size are kept, for successive classifiers often share it.

        Raises:
            InputError: images are missing or changed.
        """
        from dreamset.classifiers import seen, stored
        from dreamset.data import arrays

        size: int = classifier.size  # type: ignore[assignment]
        if size != self._size:
            cell, scratch, limit = self.workspace.cell, self.workspace.scratch, self._finest
            side = stored(size, limit)
            data = {"real": arrays.real(self.split.train, cell, side, scratch)}
            if self.arm != REAL:
                data["synthetic"] = self._weighed(self._drawn(side, self._usual), self._usual)
            elif self.params.sets_apart:
                data["more"] = arrays.real((*self.split.train, *self.split.selection), cell, side, scratch)
            self._decoded = data, arrays.real(self.split.selection, cell, seen(size, limit), scratch)
            self._size = size
        return self._decoded

    def _weighed(self, data: Labelled, most: tuple[int, ...] | None) -> Labelled:
        """Return synthetic images with their weights, where ``train.nearness`` gives them some; see ``nearness``."""
        nearness = self.params.train.nearness
        if not nearness:
            return data
        from dreamset.classifiers.nearness import Looking

        if self._looking is None:
            self._looking = Looking(self.params, self.workspace, self.split)
        return self._looking.weigh(data, self._drawn(self._looking.side, most), nearness)

    def forget(self) -> None:
        """Release the decoded images, and the CLIP that weighed them."""
        self._looking = None
        if self._size is not None:
            del self._decoded
            self._size = None

    def scaled(self, scale: int, classifier: nn.Module) -> Labelled:
        """Return the first synthetic images of each class, ``scale`` times as many as its shots, for a classifier.

        Raises:
            InputError: there are fewer.
        """
        from dreamset.classifiers import stored

        wanted = tuple(scale * shots for shots in self.split.train_per_class)
        size: int = classifier.size  # type: ignore[assignment]
        images = self._drawn(stored(size, self._finest), wanted)
        if len(images) < sum(wanted):
            raise InputError(
                f"{self.workspace.synthetic(self.arm)}: holds too few images for train.scales: {scale}; run `dreamset "
                f"generate {self.arm}` again."
            )
        return self._weighed(images, wanted)

    def fewer(self, classifier: nn.Module) -> Labelled:
        """Return as many shots of each class as there are synthetic images, drawn by the seed, for a classifier.

        Raises:
            InputError: a class has no more shots than that.
        """
        from dreamset.classifiers import stored
        from dreamset.data import arrays

        size: int = classifier.size  # type: ignore[assignment]
        return arrays.real(self.few, self.workspace.cell, stored(size, self._finest), self.workspace.scratch)

    @functools.cached_property
    def few(self) -> list[Sample]:
        """Return these shots, in the order of the split; see ``fewer``."""
        split = self.split
        wanted, chosen = self.params.training_per_class(split.train_per_class), set[str]()
        for label, (count, shots) in enumerate(zip(wanted, split.train_per_class, strict=True)):
            if count >= shots:
                raise InputError(
                    f"train.distillation: compares fewer synthetic images with all shots, and class "
                    f"{split.classes[label]!r} has {shots} shots for {count} (fewer in a fold than in all); lower "
                    "generate.per_class, or set it to false."
                )
            own = [sample.path for sample in split.train if sample.label == label]
            rng = random.Random(seed_for("few", self.params.seed, label))
            chosen |= {*rng.sample(own, count)}
        return [sample for sample in split.train if sample.path in chosen]

    @property
    def selection_labels(self) -> NDArray[np.int64]:
        """Return the labels (n,) of the selection images."""
        import numpy as np

        return np.array([sample.label for sample in self.split.selection], np.int64)

    def identity(self, kind: Kind) -> dict[str, Any]:
        """Return hashes of the images that a run learns from and is chosen by, and how they are read."""
        split, scale = self.split, kind.scale
        images: dict[str, Any] = {"selection": [(sample.sha256, sample.label) for sample in split.selection]}
        if kind.few:
            images["real"] = [(sample.sha256, sample.label) for sample in self.few]
        elif kind.real:
            images["real"] = [(sample.sha256, sample.label) for sample in split.train]
        if kind.synthetic:
            most = self._usual if scale is None else tuple(scale * shots for shots in split.train_per_class)
            images["synthetic"] = [(sha256, label) for _, label, sha256 in self._listed(most)]
            images["look"] = [split.native, split.channels]
        return {
            "images": digest(images),
            "classes": split.classes,
            "invariances": split.invariances,
            "resolution": self.params.base.resolution,
            "native": split.native,
        }

    @functools.cached_property
    def clip(self) -> dict[str, Any]:
        """Return what a classifier on the pretrained CLIP depends on beyond its row."""
        from dreamset.weights import pretrained

        base = self.params.base
        # Savings of memory change how it is built.
        settings = {"memory": base.memory, "prompts": prompts(self.split)}
        return pretrained.identity(self.workspace.root, base.clip) | settings

    @property
    def _finest(self) -> int:
        from dreamset.classifiers import finest

        return finest(self.split.native, self.params.base.resolution)

    @property
    def _usual(self) -> tuple[int, ...] | None:
        return self.params.taken_per_class(self.split.train_per_class)

    def _listed(self, most: tuple[int, ...] | None) -> list[tuple[str, int, str]]:
        from dreamset.data import arrays

        if most not in self._lists:
            self._lists[most] = arrays.listed(self.workspace.synthetic(self.arm), self.split, most)
        return self._lists[most]

    def _drawn(self, side: int, most: tuple[int, ...] | None) -> Labelled:
        from dreamset.data import arrays

        folder, scratch = self.workspace.synthetic(self.arm), self.workspace.scratch
        return arrays.drawn(self._listed(most), folder, self.split, side, f"dreamset generate {self.arm}", scratch)


def learned(params: Params, split: Split) -> int:
    """Return the number of images that steps follow, the same for every arm: of shots or synthetic ones, the more."""
    return max(len(split.train), sum(params.training_per_class(split.train_per_class)))


def prompts(split: Split) -> list[str]:
    """Return the captions that CLIP compares an image with, by label."""
    return [split.prompt(label) for label in range(len(split.classes))]


def sources(kind: Kind, data: dict[str, Labelled], real_weight: float) -> list[Source]:
    """Return the training images of a run.

    Of real and synthetic images each is half of every batch; their losses have the weights ``real_weight`` (lambda) and
    1 - ``real_weight``.
    """
    from dreamset.classifiers.fit import Source

    if kind.real and kind.synthetic:
        return [
            Source("real", data["real"], 0.5, real_weight),
            Source("synthetic", data["synthetic"], 0.5, 1.0 - real_weight),
        ]
    if kind.synthetic:
        return [Source("synthetic", data["synthetic"], 1.0, 1.0)]
    return [Source("real", data["more" if kind.more else "real"], 1.0, 1.0)]

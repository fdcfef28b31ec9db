"""The shots that images of a recipe with ``init: image`` start from: SDEdit (Meng et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dreamset.core.errors import InputError
from dreamset.core.files import sha256_file
from dreamset.core.images import read_rgb
from dreamset.core.resizing import resize_crop
from dreamset.core.seeds import order, seed_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from torch import Tensor

    from dreamset.data.splits import Sample, Split
    from dreamset.generator.base_model import BaseModel
    from dreamset.params import Params


def check(params: Params, recipe: str) -> None:
    """Refuse a strength so small that no step is left, since it would return the shots themselves.

    Raises:
        InputError: the strength leaves no step.
    """
    sampler = params.sampler(recipe)
    if sampler.last_steps < 1:
        raise InputError(
            f"recipes.{recipe}.sampler.strength: {sampler.strength:g} of {sampler.steps} steps is less than one, so "
            "that shots would come out as they are; raise strength or steps."
        )


def choose(split: Split, seed: int, wanted: Iterable[tuple[int, int]]) -> list[Sample]:
    """Return the shot that each image starts from, which depends on the seed, its class and its index alone.

    The indices of a class go round all its shots, each round in another order. So the uses of two shots differ by one
    at most, whatever the number of images.

    Args:
        split: with the shots; those of a fold are the ones that it does not hold out.
        seed: of the run.
        wanted: label and index of each image.
    """
    by_label: dict[int, list[Sample]] = {}
    for sample in split.train:
        by_label.setdefault(sample.label, []).append(sample)
    chosen = []
    for label, index in wanted:
        shots = by_label[label]
        turn, place = divmod(index, len(shots))
        chosen.append(shots[order("start", seed, split.classes[label], turn, len(shots))[place]])
    return chosen


def beside(
    split: Split, seed: int, mix: str, wanted: Iterable[tuple[int, int]], chosen: Iterable[Sample]
) -> list[tuple[Sample, float] | None]:
    """Return, for each image, the shot that its own is mixed with and the share of its own; None in a class of one.

    Both depend on the seed, the class and the index alone. The share is drawn from Beta(0.2, 0.2) for pixels, as in
    DISEF (arXiv 2312.03046), where it mostly lies near 0 or 1, and evenly from 0 to 1 for slerp.

    Args:
        split: with the shots.
        seed: of the run.
        mix: ``pixels`` or ``slerp``.
        wanted: label and index of each image.
        chosen: the shot of each image, as ``choose`` returns it.
    """
    import numpy as np

    found: list[tuple[Sample, float] | None] = []
    for (label, index), own in zip(wanted, chosen, strict=True):
        others = [sample for sample in split.train if sample.label == label and sample.sha256 != own.sha256]
        if not others:
            found.append(None)
            continue
        rng = np.random.default_rng(seed_for("mix", seed, split.classes[label], index))
        other = others[int(rng.integers(len(others)))]
        found.append((other, round(float(rng.beta(0.2, 0.2) if mix == "pixels" else rng.uniform()), 6)))
    return found


@dataclass(frozen=True)
class Latents:
    """A cache of the latents of shots, each encoded once; paths of samples are relative to ``cell``."""

    cell: Path
    _known: dict[str, Tensor] = field(default_factory=dict)

    def of(self, base: BaseModel, samples: Sequence[Sample]) -> Tensor:
        """Return the posterior means of the scaled latents of shots: (n, channels, height, width) float32 on the CPU.

        The mean takes no random numbers. So the noise of an image is the same as without a shot.

        Raises:
            InputError: a shot's file is gone, or is not the one that was split.
        """
        import torch

        for sample in samples:
            if sample.sha256 not in self._known:
                # Each shot is encoded by itself, since a batch would change its last bits.
                with torch.inference_mode():
                    self._known[sample.sha256] = base.moments(self._pixels(sample, base.resolution))[0][0].cpu()
        return torch.stack([self._known[sample.sha256] for sample in samples])

    def mixed(self, base: BaseModel, pairs: Sequence[tuple[Sample, Sample | None, float]]) -> Tensor:
        """Return the posterior means of mixtures of two shots' pixels, as ``of`` does; a second of None mixes nothing.

        Args:
            base: encodes them.
            pairs: for each image its shot, the other one, and the share of the first.
        """
        import torch

        encoded = []
        for first, second, share in pairs:
            if second is None:
                encoded.append(self.of(base, [first])[0])
                continue
            one, two = self._pixels(first, base.resolution), self._pixels(second, base.resolution)
            with torch.inference_mode():
                encoded.append(base.moments(share * one + (1 - share) * two)[0][0].cpu())
        return torch.stack(encoded)

    def _pixels(self, sample: Sample, size: int) -> Tensor:
        """Return the pixels of a shot for the base: (1, 3, size, size) float32 in [-1, 1]."""
        import torch

        path = self.cell / sample.path
        if not path.is_file() or sha256_file(path) != sample.sha256:
            raise InputError(f"{path}: is missing or was changed; run `dreamset prepare` again.")
        pixels = torch.from_numpy(resize_crop(read_rgb(path), size).copy()).permute(2, 0, 1)
        return pixels[None].float() / 127.5 - 1

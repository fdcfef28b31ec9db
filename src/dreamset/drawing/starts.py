"""Where images start that do not start from noise alone: ``init: image``, SDEdit (Meng et al. 2022) from the shots."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from dreamset.core.errors import InputError
from dreamset.core.files import sha256_file
from dreamset.core.images import read_rgb, resize_crop
from dreamset.core.seeds import seed_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from torch import Tensor

    from dreamset.data.splits import Sample, Split
    from dreamset.generator.base_model import BaseModel
    from dreamset.params import Params


def check(params: Params, recipe: str) -> None:
    """Fail on a strength so small that no step is left, which would hand out the shots themselves.

    Raises:
        InputError: naming the key of the row.
    """
    sampler = params.sampler(recipe)
    if sampler.last_steps < 1:
        raise InputError(
            f"recipes.{recipe}.sampler.strength: {sampler.strength:g} of {sampler.steps} steps is less than one, so "
            "that shots would come out as they are; raise strength or steps."
        )


def choose(split: Split, seed: int, wanted: Iterable[tuple[int, int]]) -> list[Sample]:
    """The shot that each image starts from, a function of the seed, its class and its index alone.

    The indices of a class go round all its shots, each round in an order of its own: whatever their number, no shot is
    used more than once more often than another.

    Args:
        split: whose shots; a fold's are those that it does not hold out.
        seed: of the run.
        wanted: label and index of each image.
    """
    by_label: dict[int, list[Sample]] = {}
    for sample in split.train:
        by_label.setdefault(sample.label, []).append(sample)
    found = []
    for label, index in wanted:
        mine = by_label[label]
        turn, place = divmod(index, len(mine))
        found.append(mine[_order(seed, split.classes[label], turn, len(mine))[place]])
    return found


@lru_cache(maxsize=4096)
def _order(seed: int, class_name: str, turn: int, count: int) -> tuple[int, ...]:
    return tuple(sorted(range(count), key=lambda shot: seed_for("start", seed, class_name, turn, shot)))


@dataclass(frozen=True)
class Latents:
    """Latents of shots, each encoded once; paths of samples are relative to ``cell``."""

    cell: Path
    _known: dict[str, Tensor] = field(default_factory=dict)

    def of(self, base: BaseModel, samples: Sequence[Sample]) -> Tensor:
        """The posterior means of the scaled latents of shots, (n, channels, height, width) float32 on the CPU.

        A mean and no sample: the noise of an image is then the same as without a shot, and a shot is one latent.

        Raises:
            InputError: a shot's file is gone, or is not the one that was split.
        """
        import torch

        for sample in samples:
            if sample.sha256 not in self._known:
                # By itself: what else was encoded with it would change its last bits.
                with torch.inference_mode():
                    self._known[sample.sha256] = base.moments(self._pixels(sample, base.resolution))[0][0].cpu()
        return torch.stack([self._known[sample.sha256] for sample in samples])

    def _pixels(self, sample: Sample, size: int) -> Tensor:
        """A shot as it is seen by the base: (1, 3, size, size) in [-1, 1]."""
        import torch

        path = self.cell / sample.path
        if not path.is_file() or sha256_file(path) != sample.sha256:
            raise InputError(f"{path}: is missing or was changed; run `dreamset prepare` again.")
        pixels = torch.from_numpy(resize_crop(read_rgb(path), size).copy()).permute(2, 0, 1)
        return pixels[None].float() / 127.5 - 1

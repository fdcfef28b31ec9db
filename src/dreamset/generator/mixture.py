"""LoRAs of which each image of a batch is drawn with some, at weights of its own: the pairs of LoFT (arXiv 2505.11703).

Fusing LoRAs into the weights gives all images of a batch the same ones. Here they stay beside the weights, as batched
low-rank products: an image costs what its own matrices cost, however many LoRAs the batch has in all.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F
from torch import nn

from dreamset.core.errors import InputError
from dreamset.core.files import sha256
from dreamset.generator import lora

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from dreamset.generator.base_model import BaseModel

    Mix = Sequence[tuple[str, float]]  # LoRAs of an image, by the sha256 of their files, with their weights

_HELD: Final = 256  # files that stay in memory; those of the shots of one class are used again and again


class _Mixed(nn.Module):
    """A frozen linear layer with the LoRAs of each image of the batch beside it.

    In float32 the low-rank products are added. In half precision one product sums up both and rounds once, as for a
    single LoRA: a second sum would lose what is below the last bit of the first. There every row has the columns of
    all images, those of others at 0. The tensors are buffers, so that a compiled U-Net takes the next batch as it is.
    """

    down: torch.Tensor
    up: torch.Tensor
    own: torch.Tensor

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        for name in ("down", "up", "own"):
            self.register_buffer(name, layer.weight.new_empty(0), persistent=False)

    def use(self, down: torch.Tensor, up: torch.Tensor) -> None:
        """Take the matrices of the next batch: (images, rank, in) and (images, out, rank), weights and alpha in up."""
        weight = self.layer.weight
        if weight.dtype == torch.float32:
            self.down, self.up = down.to(weight), up.to(weight)
            return
        images, rank, _ = down.shape
        self.down = down.flatten(0, 1).to(weight)  # (images * rank, in)
        self.up = torch.cat([weight, up.permute(1, 0, 2).flatten(1).to(weight)], dim=1)  # (out, in + images * rank)
        self.own = torch.eye(images).repeat_interleave(rank, dim=1)[:, None].to(weight)  # (images, 1, images * rank)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map activations (images * n, ..., in) to (images * n, ..., out); the n rows of an image are neighbours."""
        if self.layer.weight.dtype == torch.float32:
            out: torch.Tensor = self.layer(x)
            parts = x.reshape(len(self.down), -1, x.shape[-1])
            return out + torch.bmm(torch.bmm(parts, self.down.mT), self.up.mT).view(out.shape)
        low = F.linear(x, self.down).reshape(len(self.own), -1, len(self.down)) * self.own
        low = low.view(*x.shape[:-1], len(self.down))
        return F.linear(torch.cat([x, low], dim=-1), self.up, self.layer.bias)


@dataclass(frozen=True)
class _File:
    """The matrices of a LoRA by layer; ``same_down`` is equal for files that have the same A."""

    down: list[torch.Tensor]
    up: list[torch.Tensor]
    same_down: str


@dataclass
class Mixture:
    """A base with LoRAs beside its weights. A context manager: leaving it restores the base.

    Attributes:
        base: without attached adapters.
        files: LoRA files in diffusers' layout, by their sha256; all adapt the same layers.
    """

    base: BaseModel
    files: Mapping[str, Path]
    _layers: dict[tuple[str, str], _Mixed] = field(default_factory=dict)
    _read: OrderedDict[str, _File] = field(default_factory=OrderedDict)

    def __enter__(self) -> Mixture:
        first = next(iter(self.files.values()))
        for at in _sorted(lora.adapted(self.base, first)):
            self._layers[at.name, at.path] = mixed = _Mixed(at.layer)
            at.replace(mixed)
        return self

    def __exit__(self, *_: object) -> None:
        for (name, path), mixed in self._layers.items():
            lora.put(self.base.parts[name], path, mixed.layer)
        self._layers.clear()
        self._read.clear()

    @property
    def changes_conditions(self) -> bool:
        """Whether the text encoder is adapted too, so that a prompt has another condition with other LoRAs."""
        return any(name != "unet" for name, _ in self._layers)

    def use(self, mixes: Sequence[Mix]) -> None:
        """Draw the next batch with these LoRAs, one mix per image.

        Where all LoRAs of each image have the same A, their weighted B are summed up first: the sum is one LoRA.

        Args:
            mixes: sha256 and weight of each LoRA of an image; weights are factors of the strength of the training.

        Raises:
            InputError: a file holds anything but finite LoRA weights for the layers that all files adapt.
        """
        files = {sha: self._file(sha) for sha in dict.fromkeys(sha for mix in mixes for sha, _ in mix)}
        numbers = {sha: number for number, sha in enumerate(files)}
        summed = all(len({files[sha].same_down for sha, _ in mix}) == 1 for mix in mixes)
        most = max(map(len, mixes))
        # Images with fewer LoRAs than others have their first one again, at weight 0.
        chosen = torch.tensor([[numbers[sha] for sha, _ in _filled(mix, most)] for mix in mixes])
        weights = torch.tensor([[weight for _, weight in _filled(mix, most)] for mix in mixes])
        for number, layer in enumerate(self._layers.values()):
            down = torch.stack([file.down[number] for file in files.values()])
            up = torch.stack([file.up[number] for file in files.values()])
            if summed:
                shares = torch.zeros(len(mixes), len(files)).scatter_add_(1, chosen, weights)
                up = (shares @ up.flatten(1)).view(-1, *up.shape[1:])
                layer.use(down[chosen[:, 0]], up)
            else:
                own = weights[:, :, None, None] * up[chosen]  # (images, loras, out, rank)
                layer.use(down[chosen].flatten(1, 2), own.permute(0, 2, 1, 3).flatten(2))

    def _file(self, sha: str) -> _File:
        if sha not in self._read:
            found = _sorted(lora.adapted(self.base, self.files[sha]))
            if [(at.name, at.path) for at in found] != [*self._layers]:
                raise InputError(f"{self.files[sha]}: adapts other layers than the rest; run `dreamset adapt` again.")
            down = [at.pair.down.float() for at in found]
            up = [at.pair.alpha / at.pair.down.shape[0] * at.pair.up.float() for at in found]
            same = sha256(b"".join(matrix.numpy().tobytes() for matrix in down))
            self._read[sha] = _File(down, up, same)
        self._read.move_to_end(sha)
        file = self._read[sha]
        while len(self._read) > _HELD:
            self._read.popitem(last=False)
        return file


@dataclass(frozen=True)
class Mixes:
    """The LoRAs of the images of a batch."""

    mixture: Mixture
    each: Sequence[Mix]

    def rows(self, index: Iterable[int]) -> Mixes:
        """Return those of some images of the batch."""
        return Mixes(self.mixture, [self.each[row] for row in index])

    def use(self) -> None:
        """Draw the next batch with them."""
        self.mixture.use(self.each)


def _sorted(layers: list[lora.Adapted]) -> list[lora.Adapted]:
    return sorted(layers, key=lambda at: (at.name, at.path))


def _filled(mix: Mix, most: int) -> list[tuple[str, float]]:
    return [*mix, *[(mix[0][0], 0.0)] * (most - len(mix))]

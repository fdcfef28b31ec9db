"""The kinds of weights that are trained on the shots, behind one interface: LoRA, a class encoder, a whole U-Net."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, Protocol

from dreamset.generator import class_encoder, lora, whole_unet
from dreamset.generator.class_encoder import ClassVectors
from dreamset.generator.whole_unet import WholeUnet
from dreamset.params.recipe import Lora

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from dreamset.generator.base_model import BaseModel
    from dreamset.params.recipe import Recipe

    Kind = Lora | ClassVectors | WholeUnet

FILES: Final = {"lora": lora.WEIGHTS, "class_encoder": class_encoder.WEIGHTS, "unet": whole_unet.WEIGHTS}


class Trained(Protocol):
    """Adapters under training, attached to a base."""

    @property
    def learns_conditions(self) -> bool:
        """Whether what the U-Net is told changes with what is trained."""
        ...

    def parameters(self, name: str) -> dict[str, torch.Tensor]:
        """Trainable tensors of an adapter by name."""
        ...

    def save(self, name: str, folder: Path) -> None:
        """Write an adapter into ``folder``, under the name that ``FILES`` has for its kind."""
        ...

    def detach(self) -> None:
        """Leave the base as it was."""
        ...


def kind_of(row: Recipe, classes: int, encoder: str | None = None) -> Kind:
    """Return the kind of weights that a recipe trains.

    Args:
        row: the recipe; its adapter is not ``none``.
        classes: the number of classes.
        encoder: the sha256 of the class encoder that conditions a U-Net, or None for text.
    """
    if row.adapter == "lora":
        return row.lora()
    if row.adapter == "unet":
        return WholeUnet(encoder)
    assert row.context_length
    assert row.unconditional
    return ClassVectors(classes, row.context_length, row.unconditional)


def attach(base: BaseModel, kind: Kind, seeds: Mapping[str, int]) -> Trained:
    """Fresh weights of a kind on a base.

    Args:
        base: the frozen model.
        kind: what is trained.
        seeds: by adapter name, the seed of its initial weights; several at once are LoRAs.

    Raises:
        InputError: the base does not take this kind.
    """
    if isinstance(kind, Lora):
        return lora.attach(base, kind, seeds)
    assert len(seeds) == 1
    if isinstance(kind, ClassVectors):
        return class_encoder.attach(base, kind, seeds)
    return whole_unet.attach(base)


def installed(base: BaseModel, file: Path | None, scale: float = 1.0) -> contextlib.AbstractContextManager[None]:
    """The base with an adapter's file in force, for drawing; as it was afterwards.

    Args:
        base: a base without attached adapters.
        file: a file of any of ``FILES``' names, a LoRA of any name, or None for the base as it is.
        scale: of a LoRA; 1: as it was trained.

    Raises:
        InputError: on entering, where the file is damaged or does not fit the base.
    """
    if file is None:
        return contextlib.nullcontext()
    openers = {class_encoder.WEIGHTS: class_encoder.installed, whole_unet.WEIGHTS: whole_unet.installed}
    # A LoRA made elsewhere may have any name.
    return openers[file.name](base, file) if file.name in openers else lora.fused(base, file, scale)

"""One interface for the kinds of weights that are trained on the shots: LoRA, a class encoder, a whole U-Net."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, Protocol

from dreamset.generator import class_encoder, lora, whole_unet
from dreamset.generator.class_encoder import ClassVectors
from dreamset.generator.whole_unet import WholeUnet
from dreamset.params.knobs import Lora

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

    from dreamset.generator.base_model import BaseModel
    from dreamset.params.recipe import Recipe

    Kind = Lora | ClassVectors | WholeUnet

FILES: Final = {"lora": lora.WEIGHTS, "class_encoder": class_encoder.WEIGHTS, "unet": whole_unet.WEIGHTS}


class Trained(Protocol):
    """Adapters in training, attached to a base."""

    @property
    def learns_conditions(self) -> bool:
        """Whether training changes the U-Net's conditions."""
        ...

    @property
    def tells_images_apart(self) -> bool:
        """Whether the condition of a caption depends on the image that it belongs to."""
        ...

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All trainable tensors."""
        ...

    def select(self, images: Sequence[Sequence[int]], jobs: Sequence[int] | None = None) -> None:
        """Say which images of each adapter the rows of the next batch show; ``jobs`` None: of all adapters."""
        ...

    def clip(self, most: float) -> None:
        """Scale the gradients of each adapter to a norm of at most ``most``."""
        ...

    def save(self, name: str, folder: Path) -> None:
        """Write an adapter into ``folder``, under the file name that ``FILES`` gives its kind."""
        ...

    def detach(self) -> None:
        """Restore the base as it was before."""
        ...


def kind_of(row: Recipe, classes: int, encoder: str | None = None) -> Kind:
    """Return the kind of weights that a recipe trains.

    Args:
        row: the recipe; its adapter is not ``none``.
        classes: the number of classes.
        encoder: the sha256 of the class encoder that conditions a U-Net, or None for text.
    """
    if row.trains_lora:
        return row.lora()
    if row.trains_unet:
        return WholeUnet(encoder)
    assert row.context_length
    assert row.unconditional
    return ClassVectors(classes, row.context_length, row.unconditional)


def attach(base: BaseModel, kind: Kind, seeds: Mapping[str, int], images: Sequence[int] = ()) -> Trained:
    """Attach new weights of a kind to a base.

    Args:
        base: the frozen model.
        kind: the kind of weights to train.
        seeds: the seed of each adapter's initial weights, by name; only LoRAs may be several.
        images: of each adapter, the number of its images; only LoRAs that share an A need it.

    Raises:
        InputError: the base does not take this kind.
    """
    if isinstance(kind, Lora):
        return lora.attach(base, kind, seeds, images)
    assert len(seeds) == 1
    if isinstance(kind, ClassVectors):
        return class_encoder.attach(base, kind, seeds)
    return whole_unet.attach(base)


def installed(base: BaseModel, file: Path | None, scale: float = 1.0) -> contextlib.AbstractContextManager[None]:
    """Apply the adapter in a file to the base for drawing; restore the base afterwards.

    Args:
        base: a base without attached adapters.
        file: a file with one of the names in ``FILES``, a LoRA of any name, or None for the unchanged base.
        scale: the scale of a LoRA; 1 is the scale of its training.

    Raises:
        InputError: on entering, where the file is damaged or does not fit the base.
    """
    if file is None:
        return contextlib.nullcontext()
    openers = {class_encoder.WEIGHTS: class_encoder.installed, whole_unet.WEIGHTS: whole_unet.installed}
    # A LoRA from elsewhere may have any name.
    return openers[file.name](base, file) if file.name in openers else lora.fused(base, file, scale)

"""The training of a whole U-Net, saved as its difference to the base in half precision."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from safetensors.torch import load_file
from torch import nn

from dreamset.core.errors import InputError
from dreamset.generator import class_encoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from dreamset.generator.base_model import BaseModel

WEIGHTS: Final = "unet_difference.safetensors"


@dataclass(frozen=True)
class WholeUnet:
    """The settings of a U-Net to train.

    ``conditions`` is the sha256 of the class encoder that conditions it, or None where text does.
    """

    conditions: str | None


@dataclass
class Unet:
    """A U-Net in training, in float32; ``pristine`` holds its earlier weights by name, in the base's precision."""

    base: BaseModel
    pristine: dict[str, torch.Tensor]
    learns_conditions: bool = False
    tells_images_apart: bool = False

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The trainable tensors, float32."""
        return [*self.base.unet.parameters()]

    def select(self, images: Sequence[Sequence[int]], jobs: Sequence[int] | None = None) -> None:
        """Do nothing: the weights are the same for all images."""

    def clip(self, most: float) -> None:
        """Scale the gradients to a norm of at most ``most``."""
        nn.utils.clip_grad_norm_(self.tensors, most, foreach=True)

    @torch.no_grad()
    def save(self, name: str, folder: Path) -> None:
        """Write each weight's difference to the base, in float16, and the class contexts of the training.

        Half precision keeps three digits of the difference, however small it is beside the weight. Of the weight
        itself it would round away the small changes of a low learning rate. The file takes two bytes a weight: 2.2 MB
        for the bundled base, 1.7 GB for Stable Diffusion 2.1.
        """
        tensors = {
            f"unet.{key}": (value - self.pristine[key].float()).half()
            for key, value in self.base.unet.named_parameters()
        }
        contexts = self.base.class_contexts
        if contexts is not None:
            tensors["contexts"] = contexts.rows(torch.arange(contexts.classes + 1, device=self.base.device)).float()
        class_encoder.write(folder / WEIGHTS, tensors, None if contexts is None else contexts.classes)

    def detach(self) -> None:
        """Restore the base's original U-Net and freeze it."""
        self.base.unet.to(self.base.dtype)
        with torch.no_grad():
            for key, value in self.base.unet.named_parameters():
                value.copy_(self.pristine[key])
        self.base.unet.requires_grad_(False)
        self.base.mixed = False
        self.base.kept.discard("unet")


def attach(base: BaseModel) -> Unet:
    """Make every weight of the base's U-Net trainable, in float32, from its present value."""
    base.kept.add("unet")
    base.need()
    pristine = {key: value.detach().clone() for key, value in base.unet.named_parameters()}
    base.unet.float().requires_grad_(True)
    base.mixed = base.dtype != torch.float32
    return Unet(base, pristine)


@contextlib.contextmanager
def installed(base: BaseModel, file: Path) -> Iterator[None]:
    """Give the base the trained U-Net of ``file`` and the class vectors of its training; restore the base exactly.

    Raises:
        InputError: the file holds anything but finite differences that fit this base.
    """
    try:
        state = load_file(file)
    except Exception as error:  # safetensors raises bare Exception subclasses of its own
        raise InputError(f"{file}: is not a complete file of weights ({error}); run `dreamset adapt` again.") from error
    parameters = dict(base.unet.named_parameters())
    differences = {key.removeprefix("unet."): value for key, value in state.items() if key.startswith("unet.")}
    if {k: v.shape for k, v in differences.items()} != {k: v.shape for k, v in parameters.items()}:
        raise InputError(f"{file}: its weights do not fit the base's U-Net; run `dreamset adapt` again.")
    bad = next((key for key, value in differences.items() if not value.isfinite().all()), None)
    if bad is not None:
        raise InputError(f"{file}: {bad} holds NaN or infinite weights; adapt with a lower learning rate.")
    conditions = class_encoder.installed(base, file) if "contexts" in state else contextlib.nullcontext()
    pristine = {key: value.detach().clone() for key, value in parameters.items()}
    with conditions:
        try:
            with torch.no_grad():
                # The U-Net is drawn with in single precision, in which it was trained. A sum in half precision would be
                # the base's weight again wherever the difference is below its last bit.
                base.unet.float()
                for key, value in parameters.items():
                    value.add_(differences[key].to(value.device).float())
            yield
        finally:
            base.unet.to(base.dtype)
            with torch.no_grad():
                for key, value in parameters.items():
                    value.copy_(pristine[key])

"""Training all of a U-Net, and keeping what it became: a file of differences to the base, in half precision."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from safetensors.torch import load_file

from dreamset.core.errors import InputError
from dreamset.generator import class_encoder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dreamset.generator.base_model import BaseModel

WEIGHTS: Final = "unet_difference.safetensors"


@dataclass(frozen=True)
class WholeUnet:
    """A U-Net to train; ``conditions`` is the sha256 of the class encoder that conditions it, or None for text."""

    conditions: str | None


@dataclass
class Unet:
    """A U-Net under training in float32; ``pristine`` are its weights before, by name, in the base's precision."""

    base: BaseModel
    pristine: dict[str, torch.Tensor]
    learns_conditions: bool = False

    def parameters(self, name: str) -> dict[str, torch.Tensor]:
        """Trainable tensors by name; there is one U-Net, whatever ``name`` it is given."""
        return dict(self.base.unet.named_parameters())

    @torch.no_grad()
    def save(self, name: str, folder: Path) -> None:
        """Write what was added to each weight, in float16, and the class contexts that the U-Net was trained with.

        Of the difference half precision keeps three digits, however small it is beside the weight; of the weight
        itself it would round away what a low learning rate changes. Two bytes a weight: 2.2 MB of the bundled base,
        1.7 GB of Stable Diffusion 2.1.
        """
        tensors = {
            f"unet.{key}": (value - self.pristine[key].float()).half()
            for key, value in self.base.unet.named_parameters()
        }
        told = self.base.class_contexts
        if told is not None:
            tensors["contexts"] = told.rows(torch.arange(told.classes + 1, device=self.base.device)).float()
        class_encoder.write(folder / WEIGHTS, tensors, None if told is None else told.classes)

    def detach(self) -> None:
        """Give the base its own U-Net back, frozen."""
        self.base.unet.to(self.base.dtype)
        with torch.no_grad():
            for key, value in self.base.unet.named_parameters():
                value.copy_(self.pristine[key])
        self.base.unet.requires_grad_(False)
        self.base.mixed = False
        self.base.kept.discard("unet")


def attach(base: BaseModel) -> Unet:
    """Have every weight of the base's U-Net trained, in float32, from what it is."""
    base.kept.add("unet")
    base.need()
    pristine = {key: value.detach().clone() for key, value in base.unet.named_parameters()}
    base.unet.float().requires_grad_(True)
    base.mixed = base.dtype != torch.float32
    return Unet(base, pristine)


@contextlib.contextmanager
def installed(base: BaseModel, file: Path) -> Iterator[None]:
    """The base with a trained U-Net, told the class vectors that it was trained with; put back exactly afterwards.

    Raises:
        InputError: the file holds anything but finite differences that fit this base.
    """
    try:
        state = load_file(file)
    except Exception as error:  # safetensors raises bare Exception subclasses of its own
        raise InputError(f"{file}: is not a whole file of weights ({error}); run `dreamset adapt` again.") from error
    parameters = dict(base.unet.named_parameters())
    added = {key.removeprefix("unet."): value for key, value in state.items() if key.startswith("unet.")}
    if {k: v.shape for k, v in added.items()} != {k: v.shape for k, v in parameters.items()}:
        raise InputError(f"{file}: the weights in it do not fit the base's U-Net; run `dreamset adapt` again.")
    bad = next((key for key, value in added.items() if not value.isfinite().all()), None)
    if bad is not None:
        raise InputError(f"{file}: {bad} holds NaN or infinite weights; adapt with a lower learning rate.")
    told = class_encoder.installed(base, file) if "contexts" in state else contextlib.nullcontext()
    pristine = {key: value.detach().clone() for key, value in parameters.items()}
    with told:
        try:
            with torch.no_grad():
                for key, value in parameters.items():
                    value.copy_((value.float() + added[key].to(value.device).float()).to(value.dtype))
            yield
        finally:
            with torch.no_grad():
                for key, value in parameters.items():
                    value.copy_(pristine[key])

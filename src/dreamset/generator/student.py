"""A few-step student of a base: a U-Net, or a LoRA on the base's, that was distilled from it, with its noise schedule.

An adapter that was trained on the base is installed on the student as on the base: both have the same layers, and the
difference that an adapter makes carries over (LCM-LoRA, arXiv 2311.05556, combines the two in the same way).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin

from dreamset.core.errors import InputError
from dreamset.core.files import read_json
from dreamset.weights import hub, tensors

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.generator.base_model import BaseModel

LORA: Final = "pytorch_lora_weights.safetensors"
_SAME: Final = ("in_channels", "out_channels", "cross_attention_dim", "block_out_channels", "layers_per_block")
_MEND: Final = "correct models.*.student.weights"


def schedule(folder: Path) -> dict[str, Any] | None:
    """Return the configuration of a student's scheduler; None where it has none of its own and takes the base's."""
    file = folder / "scheduler/scheduler_config.json"
    return dict(read_json(file, "dreamset fetch")) if file.is_file() else None


def of(base: BaseModel, folder: Path) -> BaseModel:
    """Return the base with its student's U-Net in place of its own; the other parts are shared.

    Args:
        base: the frozen base, without adapters. With a LoRA its U-Net becomes the student's, in place.
        folder: a student: ``unet`` in diffusers' layout, as in a whole pipeline; or a LoRA on the base's U-Net, whose
            file is ``pytorch_lora_weights.safetensors``, in the layout of diffusers or of kohya.

    Raises:
        InputError: the folder holds neither, its weights are no numbers, or they do not fit the base.
    """
    if (folder / "unet/config.json").is_file():
        unet = _whole(base, folder)
    elif (folder / LORA).is_file():
        unet = _with_lora(base, folder)
    else:
        raise InputError(f"{folder}: holds neither unet/config.json nor {LORA}; {_MEND}.")
    tensors.finite(unet.state_dict(), folder, f"fetch or copy it again, or {_MEND}")
    unet.requires_grad_(False).eval()
    if not base.offload:
        unet.to(base.device)
    if base.layout == torch.channels_last:
        unet.to(memory_format=torch.channels_last)
    return dataclasses.replace(base, parts=base.parts | {"unet": unet}, schedule=schedule(folder) or base.schedule)


def _whole(base: BaseModel, folder: Path) -> Any:
    hub.refuse_pickles(folder)
    try:
        unet: Any = UNet2DConditionModel.from_pretrained(
            folder, subfolder="unet", dtype=base.dtype, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: cannot be loaded ({error}); safetensors weights are needed.") from error
    for key in _SAME:
        ours, its = base.unet.config[key], unet.config[key]
        if ours != its:
            raise InputError(
                f"{folder}: its {key} is {its} and the base's is {ours}, so it is no student of it; {_MEND}."
            )
    return unet


def _with_lora(base: BaseModel, folder: Path) -> Any:
    loader = StableDiffusionXLLoraLoaderMixin if len(base.encoders) > 1 else StableDiffusionLoraLoaderMixin
    unet, dtype = base.unet, base.unet.dtype
    try:
        # Only the metadata say a rank that alpha is not equal to.
        state, alphas, metadata = loader.lora_state_dict(
            str(folder),
            weight_name=LORA,
            use_safetensors=True,
            local_files_only=True,
            unet_config=unet.config,
            return_lora_metadata=True,
        )
        if any(key.startswith("text_encoder") for key in state):
            raise InputError(f"{folder / LORA}: changes the text encoder, which no student of ours does; {_MEND}.")
        # Summed in float32, the weights are rounded once.
        unet.float()
        loader.load_lora_into_unet(state, alphas, unet, metadata=metadata)
    except (KeyError, RuntimeError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{folder / LORA}: does not fit the base ({first}); {_MEND}.") from error
    unet.fuse_lora()
    unet.unload_lora()
    return unet.to(dtype)

"""A pretrained latent diffusion model in parts, resident once per process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from dreamset.errors import InputError
from dreamset.files import read_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dreamset.params import Model


@dataclass
class BaseModel:
    """A Stable Diffusion, frozen and in evaluation mode.

    ``schedule`` is the scheduler's configuration; a sampler is built from it each time, for samplers have state.
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: Any  # AutoencoderKL: mypy cannot follow diffusers' lazy modules
    unet: Any  # UNet2DConditionModel
    schedule: dict[str, Any]
    resolution: int
    device: torch.device
    dtype: torch.dtype

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one latent."""
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        side = self.resolution // factor
        return int(self.unet.config.in_channels), side, side

    def tokens(self, prompts: Sequence[str]) -> torch.Tensor:
        """Token ids (n, length), padded and cut to the text encoder's length, on the device."""
        encoded = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        ids: torch.Tensor = encoded.input_ids.to(self.device)
        return ids

    @property
    def length(self) -> int:
        """Tokens per prompt."""
        return min(int(self.tokenizer.model_max_length), int(self.text_encoder.config.max_position_embeddings))

    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        """Text embeddings (n, length, width): each distinct prompt goes through the encoder once."""
        distinct = list(dict.fromkeys(prompts))
        hidden: torch.Tensor = self.text_encoder(self.tokens(distinct))[0]
        if len(distinct) == len(prompts):
            return hidden
        return hidden[torch.tensor([distinct.index(prompt) for prompt in prompts], device=self.device)]

    def moments(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the scaled latents of images (n, 3, h, w) in [-1, 1]; float32."""
        posterior = self.vae.encode(images.to(self.device, self.dtype)).latent_dist
        scale = self.vae.config.scaling_factor
        return posterior.mean.float() * scale, posterior.std.float() * scale

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, h, w), nominally in [-1, 1], from scaled latents; float32."""
        images: torch.Tensor = self.vae.decode(latents.to(self.dtype) / self.vae.config.scaling_factor).sample
        return images.float()


def load(folder: Path, model: Model, device: torch.device) -> BaseModel:
    """Load a diffusers folder, safetensors only, frozen.

    Raises:
        InputError: the folder is missing, holds pickled weights only, or is of a kind that is not supported.
    """
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder}: is no diffusers folder (no model_index.json); mend models.*.generator.")
    schedule = read_json(folder / "scheduler/scheduler_config.json", "make base")
    prediction = schedule.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise InputError(f"{folder}: predicts {prediction}; dreamset trains epsilon and v_prediction models.")
    dtype: torch.dtype = getattr(torch, model.dtype)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        parts: list[Any] = [
            kind.from_pretrained(folder, subfolder=name, use_safetensors=True, torch_dtype=dtype)
            for kind, name in (
                (CLIPTextModel, "text_encoder"),
                (AutoencoderKL, "vae"),
                (UNet2DConditionModel, "unet"),
            )
        ]
        tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    except OSError as error:
        raise InputError(f"{folder}: cannot be loaded ({error}); safetensors weights are needed.") from error
    for part in parts:
        part.requires_grad_(False).eval().to(device)
    text_encoder, vae, unet = parts
    return BaseModel(tokenizer, text_encoder, vae, unet, schedule, model.resolution, device, dtype)

"""A pretrained Stable Diffusion (1, 2 or XL) as separate networks, loaded once per process."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import diffusers
import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from dreamset.core.errors import InputError
from dreamset.core.files import read_json
from dreamset.generator.conditions import Condition
from dreamset.weights import hub, tensors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from dreamset.generator.conditions import ClassContexts
    from dreamset.params.model import Model
    from dreamset.params.values import Saving

ENCODERS: Final = {
    "StableDiffusionPipeline": ("text_encoder",),
    "StableDiffusionXLPipeline": ("text_encoder", "text_encoder_2"),
}


@dataclass
class BaseModel:
    """A Stable Diffusion, frozen and in evaluation mode.

    Attributes:
        parts: the networks by their names in a pipeline: unet, vae, text_encoder and, in XL, text_encoder_2.
        tokenizers: one per text encoder, in the same order.
        schedule: the scheduler's configuration. Samplers have state, so each drawing builds a new one from it.
        resolution: side of an image, pixels.
        device: where the model computes.
        dtype: the precision of the computation.
        zero_empty: the empty prompt is a condition of zeros, as XL was trained.
        offload: a part is on the device only while it is used, unless ``kept`` names it.
        kept: names of parts that stay on the device.
        layout: memory layout of images and feature maps, the same as that of the convolutions' weights.
        compiled: the U-Net from ``torch.compile``, over the same weights; None where drawing does not use it.
        class_contexts: replaces the text encoders where class vectors condition the U-Net.
        mixed: the U-Net's weights are float32 during training, while its products are computed in ``dtype``.
    """

    parts: dict[str, Any]  # mypy cannot follow diffusers' lazy modules
    tokenizers: tuple[Any, ...]
    schedule: dict[str, Any]
    resolution: int
    device: torch.device
    dtype: torch.dtype
    zero_empty: bool = False
    offload: bool = False
    kept: set[str] = field(default_factory=set)
    layout: torch.memory_format = torch.contiguous_format
    compiled: Any = None
    class_contexts: ClassContexts | None = None
    mixed: bool = False
    _tokens: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def unet(self) -> Any:
        """The denoiser, a UNet2DConditionModel."""
        return self.parts["unet"]

    @property
    def vae(self) -> Any:
        """The autoencoder, an AutoencoderKL."""
        return self.parts["vae"]

    @property
    def encoders(self) -> dict[str, Any]:
        """The text encoders by name."""
        return {name: part for name, part in self.parts.items() if name.startswith("text_encoder")}

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one latent."""
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        side = self.resolution // factor
        return int(self.unet.config.in_channels), side, side

    def twin(self) -> BaseModel:
        """Return this base with a U-Net of its own, which later adapters do not change, and with its text encoders."""
        unet = copy.deepcopy(self.unet)
        compiled = None if self.compiled is None else torch.compile(unet, dynamic=False)
        return replace(self, parts=self.parts | {"unet": unet}, compiled=compiled, class_contexts=None, mixed=False)

    def need(self, *names: str) -> None:
        """Move the named parts to the device; with ``offload``, move all others off it, except those in ``kept``."""
        if not self.offload:
            return
        needed = {*names, *self.kept}
        # Parts leave before others come: both at once may not fit.
        for name in sorted(self.parts, key=lambda name: name in needed):
            self.parts[name].to(self.device if name in needed else "cpu")

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Conditions of prompts, (n, length, width); the encoders see each distinct prompt once."""
        distinct = list(dict.fromkeys(prompts))
        return self.encode_each(distinct).rows([distinct.index(prompt) for prompt in prompts])

    def encode_each(self, prompts: Sequence[str]) -> Condition:
        """Conditions as from ``encode``, but every prompt goes through the encoders, repeated ones too."""
        if self.class_contexts is not None:
            return Condition(self.class_contexts.encode(prompts, self.device).to(self.dtype))
        condition = self.embed(self._ids(prompts))
        if not (self.zero_empty and "" in prompts):
            return condition
        filled = torch.tensor([float(prompt != "") for prompt in prompts], device=self.device)
        return condition.each(lambda x: x * filled.to(x.dtype).view(-1, *[1] * (x.ndim - 1)))

    def embed(self, ids: torch.Tensor) -> Condition:
        """Conditions of token ids (n, encoders, length)."""
        self.need(*self.encoders)
        if len(self.encoders) == 1:
            return Condition(self.parts["text_encoder"](ids[:, 0])[0])
        outputs = [encoder(ids[:, i], output_hidden_states=True) for i, encoder in enumerate(self.encoders.values())]
        # XL uses the last layer but one of both encoders, and the pooled text of the second.
        return Condition(torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[-1].text_embeds)

    def _ids(self, prompts: Sequence[str]) -> torch.Tensor:
        """Token ids of prompts (n, encoders, length), padded and cut to the encoders' length, on the device."""
        for prompt in set(prompts) - self._tokens.keys():
            rows = [
                tokenizer(
                    prompt, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
                ).input_ids[0]
                for tokenizer in self.tokenizers
            ]
            self._tokens[prompt] = torch.stack(rows)
        return torch.stack([self._tokens[prompt] for prompt in prompts]).to(self.device)

    @property
    def length(self) -> int:
        """The number of tokens per prompt."""
        positions = min(encoder.config.max_position_embeddings for encoder in self.encoders.values())
        return min(int(positions), *(int(tokenizer.model_max_length) for tokenizer in self.tokenizers))

    def predict(self, latents: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The U-Net's prediction (noise or velocity) for noisy latents (n, c, h, w) at timesteps ``t``."""
        self.need("unet")
        # A trained U-Net is drawn with in float32, whatever the precision of the base.
        dtype = self.dtype if self.mixed else self.unet.dtype
        condition = condition.each(lambda x: x.to(dtype))
        added = None
        if condition.pooled is not None:
            # Original size, crop and target size of an image that was neither enlarged nor cropped.
            side = float(self.resolution)
            sizes = torch.tensor([side, side, 0, 0, side, side], device=latents.device, dtype=condition.hidden.dtype)
            added = {"text_embeds": condition.pooled, "time_ids": sizes.expand(len(latents), -1)}
        unet = self.unet if self.compiled is None else self.compiled
        with torch.autocast(self.device.type, self.dtype) if self.mixed else contextlib.nullcontext():
            predicted: torch.Tensor = unet(
                # A scheduler's step changes the strides, and other strides would cause a new compilation.
                latents.to(dtype).contiguous(memory_format=self.layout),
                t,
                encoder_hidden_states=condition.hidden,
                added_cond_kwargs=added,
                return_dict=False,
            )[0]
        return predicted

    def moments(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation, float32, of the scaled latents of images (n, 3, h, w) in [-1, 1]."""
        self.need("vae")
        posterior = self.vae.encode(images.to(self.device, self.vae.dtype)).latent_dist
        scale = self.vae.config.scaling_factor
        return posterior.mean.float() * scale, posterior.std.float() * scale

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, h, w), float32, nominally in [-1, 1], from scaled latents."""
        self.need("vae")
        images: torch.Tensor = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        return images.float()


def load(folder: Path, model: Model, device: torch.device) -> BaseModel:
    """Load a diffusers folder and freeze its networks; only safetensors are read.

    Args:
        folder: the folder that ``hub.locate`` gives for ``model.generator``.
        model: the model's row; this function reads variant, resolution, dtype and memory.
        device: where the model computes.

    Raises:
        InputError: the folder is missing, holds only pickled weights or weights that are no numbers, or holds an
            unsupported kind of model.
    """
    kind = _check(folder, model.variant)
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # No safety checker: the images that it blackens would enter the dataset as images of their class.
    no_checker: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}
    dtype: torch.dtype = getattr(torch, model.dtype)
    try:
        # The class by name: the automatic one of diffusers first imports the pipelines of every family.
        pipeline = getattr(diffusers, kind).from_pretrained(
            folder,
            variant=model.variant,
            use_safetensors=True,
            dtype=dtype,
            local_files_only=True,
            **(no_checker if kind == "StableDiffusionPipeline" else {"add_watermarker": False}),
            feature_extractor=None,
            image_encoder=None,
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: cannot be loaded ({error}); safetensors weights are needed.") from error
    parts = {name: getattr(pipeline, name) for name in ("unet", "vae", *ENCODERS[kind])}
    if dtype is torch.float16 and parts["vae"].config.force_upcast:
        # XL's autoencoder overflows in half precision.
        parts["vae"].float()
    base = BaseModel(
        parts=parts,
        tokenizers=tuple(getattr(pipeline, name.replace("text_encoder", "tokenizer")) for name in ENCODERS[kind]),
        schedule=dict(pipeline.scheduler.config),
        resolution=model.resolution,
        device=device,
        dtype=dtype,
        zero_empty=bool(pipeline.config.get("force_zeros_for_empty_prompt", False)),
        offload="offload" in model.memory and device.type != "cpu",
    )
    for name, part in parts.items():
        tensors.finite(part.state_dict(), folder / name, "fetch or copy it again, or correct models.*.generator")
        part.requires_grad_(False).eval()
        if not base.offload:
            part.to(device)
    save_memory(base, model.memory)
    return base


def lay_out(base: BaseModel, layout: torch.memory_format) -> None:
    """Set the memory layout of the U-Net's and autoencoder's weights and maps: contiguous or channels last."""
    for part in (base.unet, base.vae):
        part.to(memory_format=layout)
    base.layout = layout


def compile_unet(base: BaseModel) -> None:
    """Compile the U-Net at its first call, once for every batch size; its weights may change in place afterwards.

    Raises:
        InputError: the CPU's code needs a C++ compiler, and there is none.
    """
    compiler = os.environ.get("CXX", "g++")
    if base.device.type == "cpu" and shutil.which(compiler) is None:
        raise InputError(
            f"models.*.generate.compile: needs the C++ compiler {compiler}, which is not installed; install it, or set "
            "compile to false."
        )
    if base.device.type == "cuda":
        # cuDNN convolves half precision in this layout. Compiled normalisations keep it. PyTorch's uncompiled ones
        # convert every map and back, which costs more than the layout saves.
        lay_out(base, torch.channels_last)
    # Compilations of earlier bases count against a limit, beyond which nothing is compiled any more.
    torch.compiler.reset()
    # With dynamic sizes, an image would depend on the batch sizes that came before.
    base.compiled = torch.compile(base.unet, dynamic=False)


def save_memory(base: BaseModel, memory: Sequence[Saving]) -> None:
    """Switch on the memory savings of a model's row, other than ``offload``."""
    if "gradient_checkpointing" in memory:
        base.unet.enable_gradient_checkpointing()
        for encoder in base.encoders.values():
            encoder.activation_checkpointing_enable()
            # transformers checkpoints only in training mode, which equals evaluation mode where dropout is 0.
            encoder.train(encoder.config.attention_dropout == 0)
    if "attention_slicing" in memory:
        base.unet.set_attention_slice("auto")
    if "vae_slicing" in memory:
        base.vae.enable_slicing()


def _check(folder: Path, variant: str | None) -> str:
    """Return the class of the pipeline in a folder; raise InputError where dreamset does not support it."""
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder}: is no diffusers folder (model_index.json is missing); correct models.*.generator.")
    kind: str = read_json(folder / "model_index.json", "dreamset fetch").get("_class_name", "")
    schedule = read_json(folder / "scheduler/scheduler_config.json", "dreamset fetch")
    scheduler, prediction = schedule.get("_class_name", ""), schedule.get("prediction_type", "epsilon")
    if "FlowMatch" in scheduler or prediction == "flow_prediction":
        raise InputError(
            f"{folder}: is a flow-matching model ({kind}), which is trained with another loss; name a Stable Diffusion "
            "1, 2 or XL in models.*.generator."
        )
    if kind not in ENCODERS:
        raise InputError(
            f"{folder}: is a {kind or 'model of unknown kind'}; dreamset draws with {' and '.join(ENCODERS)}, so name "
            "one of those in models.*.generator."
        )
    if prediction not in ("epsilon", "v_prediction"):
        raise InputError(f"{folder}: predicts {prediction}; dreamset trains epsilon and v_prediction models.")
    hub.refuse_pickles(folder, variant)
    for file in hub.files(folder, "generator", variant):
        if file.suffix == ".safetensors":
            tensors.check(file, "fetch or copy it again, or correct generator in its row")
    return kind


def parameters(part: nn.Module) -> int:
    """The number of parameters of a network."""
    return sum(parameter.numel() for parameter in part.parameters())

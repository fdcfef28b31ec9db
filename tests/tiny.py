"""A Stable Diffusion of a few thousand random weights, made with the same classes as the real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from base.tokenizer import make_tokenizer
from diffusers import (
    AutoencoderKL,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

if TYPE_CHECKING:
    from pathlib import Path

WIDTH = 32


def write_pipeline(folder: Path, *, width: int = WIDTH, linear: bool = False, **scheduler: Any) -> Path:
    """Save a random Stable Diffusion of 16 px images and 8x8x4 latents; any text has tokens.

    ``width`` is that of the text encoder: 768 in Stable Diffusion 1, 1024 in 2, whose projections are ``linear``.
    """
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    pipeline = StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text(tokenizer, width)),
        tokenizer=tokenizer,
        unet=_unet(width, use_linear_projection=linear),
        scheduler=_scheduler(**scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def write_xl_pipeline(folder: Path, *, variant: str | None = None) -> Path:
    """Save a random Stable Diffusion XL: two text encoders, pooled text and sizes added to the time embedding."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    first, second = _text(tokenizer, WIDTH), _text(tokenizer, 2 * WIDTH)
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(first),
        text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=_unet(
            3 * WIDTH,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=2 * WIDTH + 6 * 8,
        ),
        scheduler=_scheduler(),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder, variant=variant)
    return folder


def _text(tokenizer: Any, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=width,
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )


def _unet(context: int, **more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=context,
        attention_head_dim=8,
        norm_num_groups=8,
        **more,
    )


def _scheduler(**changes: Any) -> PNDMScheduler:
    return PNDMScheduler(
        **{
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "skip_prk_steps": True,
            "steps_offset": 1,
            "set_alpha_to_one": False,
            **changes,
        }
    )


# The pipelines that a base may be of, each written into a folder.
FAMILIES: dict[str, Any] = {
    "sd1": lambda folder: write_pipeline(folder, width=768),
    "sd2": lambda folder: write_pipeline(folder, width=1024, linear=True),
    "sd2_v": lambda folder: write_pipeline(folder, width=1024, linear=True, prediction_type="v_prediction"),
    "sdxl": write_xl_pipeline,
}

"""The small Stable Diffusion: an autoencoder, and a U-Net over its latents that the CLIP's text tower conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F

from base import clip
from base.captions import caption, mention
from base.tokenizer import make_tokenizer
from base.training import Average, begin, fit
from dreamset.core.shards import assembling
from dreamset.glyphs.fonts import CHARACTERS
from dreamset.glyphs.look import Params
from dreamset.glyphs.render import ATTRIBUTES, SIZE, Batch, Glyphs, split_pairs

LATENT: Final = SIZE // 2
CHANNELS: Final = (32, 64)
_GLYPHS_FOR_SCALE: Final = 2048


def make_vae() -> Any:
    """An untrained autoencoder between 16x16 pixels and 8x8 latents of four channels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(24, 48),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def make_unet() -> Any:
    """An untrained U-Net with attention at both levels, so that LoRA on attention layers has enough to change."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=4,
        out_channels=4,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=clip.WIDTH,
        attention_head_dim=(1, 2),  # diffusers' historical name: the number of heads
        norm_num_groups=8,
    )


def make_scheduler() -> Any:
    """Stable Diffusion's noise schedule; samplers are built from its configuration."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def text_encoder(network: Any, tokenizer: Any) -> Any:
    """An open_clip model's text tower as a transformers model, with the same hidden states."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=network.vocab_size,
        hidden_size=clip.WIDTH,
        intermediate_size=4 * clip.WIDTH,
        projection_dim=clip.WIDTH,
        num_hidden_layers=clip.LAYERS,
        num_attention_heads=clip.HEADS,
        max_position_embeddings=network.context_length,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = CLIPTextModel(config)
    model.load_state_dict(_renamed(network))
    return model.eval().requires_grad_(False)


def _renamed(network: Any) -> dict[str, torch.Tensor]:
    """open_clip's text weights under transformers' names; its one matrix of q, k and v becomes three."""
    state = network.state_dict()
    out = {
        "embeddings.token_embedding.weight": state["token_embedding.weight"],
        "embeddings.position_embedding.weight": state["positional_embedding"],
        "final_layer_norm.weight": state["ln_final.weight"],
        "final_layer_norm.bias": state["ln_final.bias"],
    }
    plain = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    plain["attn.out_proj"] = "self_attn.out_proj"
    for layer in range(clip.LAYERS):
        old, new = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            for open_clip_name, name in plain.items():
                out[f"{new}.{name}.{kind}"] = state[f"{old}.{open_clip_name}.{kind}"]
            parts = state[f"{old}.attn.in_proj_{kind}"].chunk(3)
            for name, part in zip("qkv", parts, strict=True):
                out[f"{new}.self_attn.{name}_proj.{kind}"] = part.clone()
    return out


def train_vae(params: Params, folder: Path) -> None:
    """Train the autoencoder and write it to ``folder``, with the scale that gives its latents unit variance."""
    plan = params.vae
    where = begin(plan)
    vae = make_vae().to(where, memory_format=torch.channels_last)
    source = glyphs_of(params, plan.seed)

    def loss_of(step: int) -> torch.Tensor:
        images = source.batch(step * plan.batch, plan.batch).images.to(where)
        posterior = vae.encode(images).latent_dist
        error = vae.decode(posterior.sample()).sample - images
        divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        loss: torch.Tensor = error.square().mean() + 0.1 * error.abs().mean() + plan.kl_weight * divergence
        return loss

    fit("vae", vae, plan, loss_of)
    with torch.no_grad():
        images = source.batch(plan.steps * plan.batch, _GLYPHS_FOR_SCALE).images
        latents = torch.cat([vae.encode(part.to(where)).latent_dist.mean for part in torch.split(images, 256)])
    vae.register_to_config(scaling_factor=round(1.0 / float(latents.std()), 5))
    with assembling(folder) as fresh:
        vae.cpu().save_pretrained(fresh)


def glyphs_of(params: Params, seed: int) -> Glyphs:
    """The glyphs that training draws."""
    return Glyphs(params.look, seed, split_pairs(params.source.held_out_fonts, params.source.seed)[0])


def _captions(batch: Batch, dropout: float, rng: np.random.Generator) -> list[str]:
    mentioned = mention(batch.attributes, rng)
    texts = []
    for character, row in zip(batch.characters, mentioned, strict=True):
        attributes = tuple(name for name, present in zip(ATTRIBUTES, row, strict=True) if present)
        texts.append("" if rng.random() < dropout else caption(CHARACTERS[character], attributes, rng))
    return texts


def train_unet(params: Params, clip_folder: Path, vae_folder: Path, folder: Path) -> None:
    """Train the U-Net on the latents of ``vae_folder`` and write the whole pipeline to ``folder``."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline

    plan = params.unet
    where = begin(plan)
    network, _ = clip.load(clip_folder)
    tokenizer = make_tokenizer()
    words = text_encoder(network, tokenizer).to(where)
    vae: Any = AutoencoderKL.from_pretrained(vae_folder)
    vae = vae.eval().requires_grad_(False).to(where)
    unet = make_unet().to(where, memory_format=torch.channels_last)
    average = Average(unet, plan.ema)
    noise = make_scheduler()
    source = glyphs_of(params, plan.seed)

    def loss_of(step: int) -> torch.Tensor:
        if step:
            average.update(step)
        rng = np.random.default_rng([plan.seed, step])
        batch = source.batch(step * plan.batch, plan.batch)
        with torch.no_grad():
            latents = vae.encode(batch.images.to(where)).latent_dist.sample() * vae.config.scaling_factor
            ids = clip.token_ids(tokenizer, _captions(batch, plan.caption_dropout, rng))
            states = words(ids.to(where)).last_hidden_state
        target = torch.randn_like(latents)
        times = torch.randint(0, noise.config.num_train_timesteps, (plan.batch,), device=where)
        guess = unet(noise.add_noise(latents, target, times), times, states).sample
        return F.mse_loss(guess, target)

    fit("unet", unet, plan, loss_of)
    average.update(plan.steps)
    average.apply()
    pipeline: Any = StableDiffusionPipeline(
        vae=vae.cpu(),
        text_encoder=words.cpu(),
        tokenizer=tokenizer,
        unet=unet.cpu().to(memory_format=torch.contiguous_format),
        scheduler=noise,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with assembling(folder) as fresh:
        pipeline.save_pretrained(fresh)

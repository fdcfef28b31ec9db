"""Models of published configurations with random weights, which compute as fast as trained ones."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pathlib import Path

# unet, text_encoder, vae and scheduler of Stable Diffusion 2.1-base, as its repository's config.json files have them.
SD21_UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
SD21_TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
    "projection_dim": 512,
}
SD21_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "sample_size": 768,
}
SD21_SCHEDULE: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
VIT_B_16 = "ViT-B-16-quickgelu"  # open_clip's name of what OpenAI trained
OPENAI = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}

# The same layouts, narrow: what runs on a CPU.
REDUCED_RESOLUTION = 64
_REDUCED_UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64, 128, 128),
    "cross_attention_dim": 64,
    "attention_head_dim": (1, 2, 4, 4),
}
_REDUCED_TEXT = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4}
_REDUCED_VAE = {"block_out_channels": (32, 32, 64, 64), "sample_size": 64}


def tokenizer() -> Any:
    """OpenAI's tokenizer, 77 tokens, from the vocabulary that open_clip carries; padded with ``!`` as SD 2's is."""
    from open_clip.tokenizer import SimpleTokenizer, default_bpe
    from transformers import CLIPTokenizer

    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {renamed.get(token, token): index for token, index in SimpleTokenizer().encoder.items()}
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    # The file holds more merges than the vocabulary does: two symbols per byte, and the two special tokens.
    merges = [tuple(line.split()) for line in lines[1 : len(vocab) - 2 * 256 - 2 + 1]]
    return CLIPTokenizer(
        vocab=vocab, merges=merges, pad_token="!", model_max_length=SD21_TEXT["max_position_embeddings"]
    )


def write_generator(folder: Path, device: torch.device, *, reduced: bool) -> Path:
    """Save a Stable Diffusion 2.1-base of random float32 weights as a diffusers folder, 5 GB.

    Args:
        folder: where; it may not exist yet.
        device: where the weights are drawn, for a GPU does so in no time.
        reduced: all layers, narrow, for images of ``REDUCED_RESOLUTION``.
    """
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    with torch.device(device):
        parts = {
            "unet": UNet2DConditionModel(**SD21_UNET | (_REDUCED_UNET if reduced else {})),
            "vae": AutoencoderKL(**SD21_VAE | (_REDUCED_VAE if reduced else {})),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**SD21_TEXT | (_REDUCED_TEXT if reduced else {}))),
        }
    pipeline = StableDiffusionPipeline(
        **parts,
        tokenizer=tokenizer(),
        scheduler=PNDMScheduler(**SD21_SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def write_clip(folder: Path, *, reduced: bool) -> Path:
    """Save a CLIP ViT-B/16 of random weights as an open_clip folder; ``reduced``: all layers, narrow."""
    import open_clip
    from safetensors.torch import save_file

    from dreamset.classifiers.clip import CONFIG, WEIGHTS

    config = open_clip.get_model_config(VIT_B_16)
    if reduced:
        config["embed_dim"] = 64
        config["vision_cfg"] |= {"width": 64, "head_width": 16, "image_size": REDUCED_RESOLUTION}
        config["text_cfg"] |= {"width": 64, "heads": 4}
    folder.mkdir(parents=True)
    preprocess = {**OPENAI, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}), encoding="utf-8")
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS)
    return folder

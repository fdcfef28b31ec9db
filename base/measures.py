"""The figures of the model card, each computed from the finished networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tqdm import tqdm

from base import clip
from base.captions import prompt
from dreamset.glyphs.fonts import CHARACTERS
from dreamset.glyphs.look import Params, Score
from dreamset.glyphs.render import SIZE, Glyphs, group_of, groups, split_pairs
from dreamset.weights.judge import Judge

_BATCH = 256


def handwritten() -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Handwritten digits that no test uses: images (n, 3, 16, 16), float in -1..1, and labels (n,), 0..9."""
    from dreamset.sources import digits

    small, labels, _ = digits.load(["train", "selection"])
    grey = torch.from_numpy(small).float()[:, None] / 127.5 - 1
    large = F.interpolate(grey, size=(SIZE, SIZE), mode="bicubic", antialias=True).clamp(-1, 1)
    return large.expand(-1, 3, -1, -1).contiguous(), labels


def held_out(params: Params) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Glyphs of the (character, font) pairs that training leaves out: images and merged classes."""
    pairs = split_pairs(params.source.held_out_fonts, params.source.seed)[1]
    source = Glyphs(params.look, params.score.seed, pairs)
    total = params.score.glyphs_per_pair * int(pairs.sum())
    batches = [source.batch(start, min(_BATCH, total - start)) for start in range(0, total, _BATCH)]
    return torch.cat([b.images for b in batches]), np.concatenate([b.groups for b in batches])


@torch.no_grad()
def clip_accuracy(
    network: Any, tokenizer: Any, images: torch.Tensor, labels: NDArray[np.int64], characters: str
) -> float:
    """Share of images whose plain prompt is the nearest; over all characters, classes of one shape are merged first."""
    texts = clip.class_texts(network, tokenizer, characters)
    right = 0
    for part, true in zip(torch.split(images, _BATCH), torch.split(torch.from_numpy(labels), _BATCH), strict=True):
        logits = network.logit_scale.exp() * network.encode_image(part, normalize=True) @ texts.T
        guess = (clip.merged(logits) if characters == CHARACTERS else logits).argmax(1)
        right += int((guess == true).sum())
    return right / len(labels)


@torch.no_grad()
def judge_features(judge: Judge, images: torch.Tensor) -> NDArray[np.float64]:
    """The judge's features of images: (n, 64) float64."""
    return torch.cat([judge.features(part) for part in torch.split(images, _BATCH)]).double().numpy()


@torch.no_grad()
def judge_reads(judge: Judge, images: torch.Tensor, only: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """The merged class that the judge gives each image, among all classes or among ``only``."""
    logits = torch.cat([judge.logits(part) for part in torch.split(images, _BATCH)])
    among = np.arange(logits.shape[1]) if only is None else only
    read: NDArray[np.int64] = among[logits[:, torch.from_numpy(among)].argmax(1).numpy()]
    return read


def frechet(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Frechet distance between Gaussians fitted to two sets of features."""
    from scipy.linalg import sqrtm

    a, b = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = sqrtm(a @ b)
    return float(((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(a + b - 2 * np.real(root)))


@torch.no_grad()
def reconstruction_error(vae: Any, images: torch.Tensor) -> float:
    """Mean squared error after encoding and decoding, for pixels in -1..1."""
    errors = [
        (vae.decode(vae.encode(part).latent_dist.mean).sample - part).square().mean((1, 2, 3))
        for part in torch.split(images, _BATCH)
    ]
    return float(torch.cat(errors).mean())


def open_pipeline(folder: Path) -> Any:
    """The stock pipeline of diffusers with the sampler of the figures."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(pipeline: Any, plan: Score, characters: str, each: int) -> torch.Tensor:
    """Draw ``each`` images of every character from its plain prompt: (characters * each, 3, 16, 16) in -1..1."""
    prompts = [prompt(c) for c in characters for _ in range(each)]
    random = torch.Generator().manual_seed(plan.seed)
    parts = []
    for start in tqdm(range(0, len(prompts), 100), desc="sample", disable=None):
        images = pipeline(
            prompts[start : start + 100],
            height=SIZE,
            width=SIZE,
            num_inference_steps=plan.steps,
            guidance_scale=plan.guidance,
            generator=random,
            output_type="pt",
        ).images
        parts.append(images * 2 - 1)
    return torch.cat(parts)


def true_groups(characters: str, each: int) -> NDArray[np.int64]:
    """The merged classes of the images that :func:`sample` draws."""
    return np.repeat(group_of()[[CHARACTERS.index(c) for c in characters]], each)


def confusions(true: NDArray[np.int64], read: NDArray[np.int64], most: int = 8) -> list[str]:
    """The most frequent mistakes, written as ``B read as 8: 12``."""
    pairs, counts = np.unique(np.stack([true, read])[:, true != read], axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return [f"{groups()[pairs[0, i]]} read as {groups()[pairs[1, i]]}: {counts[i]}" for i in order]

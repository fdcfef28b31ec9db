"""The drawing of images: each image depends on its own noise and not on the rest of its batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import diffusers
import torch

from dreamset.generator.conditions import interleave

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreamset.generator.base_model import BaseModel
    from dreamset.generator.conditions import Condition
    from dreamset.params.model import Sampler

SCHEDULERS: Final = {
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
}


def scheduler(name: str, schedule: dict[str, Any]) -> Any:
    """A new diffusers scheduler for the base's noise schedule."""
    return getattr(diffusers, SCHEDULERS[name]).from_config(schedule)


@torch.inference_mode()
def draw(
    base: BaseModel,
    sampler: Sampler,
    prompts: Condition,
    empty: Condition,
    generators: Sequence[torch.Generator],
    starts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draw one image per generator.

    Args:
        base: the model, with an adapter fused into it or attached to it.
        sampler: scheduler, steps and guidance scale g: eps_u + g (eps_c - eps_u); at g = 1 eps_u is not computed.
        prompts: n conditions, one per image.
        empty: n conditions of the empty prompt, each from the same adapter as its image's.
        generators: n CPU generators; each draws the starting noise of its image, then the sampler's further noise.
        starts: (n, c, h, w) scaled latents; the sampler's ``strength`` says how much noise is added to them. None:
            images start from noise alone.

    Returns:
        (n, 3, h, w) float32, nominally in [-1, 1], neither clipped nor checked.
    """
    noise = torch.stack([torch.randn(base.latent_shape, generator=generator) for generator in generators])
    noise = noise.to(base.device, base.dtype)
    if starts is None:
        steps = scheduler(sampler.scheduler, base.schedule)
        steps.set_timesteps(sampler.steps, device=base.device)
        latents, timesteps = noise * steps.init_noise_sigma, steps.timesteps
    else:
        steps, timesteps = _last_steps(base, sampler)
        latents = steps.add_noise(starts.to(noise), noise, timesteps[:1])
    guided = sampler.guidance != 1.0
    # The two rows of an image are neighbours, so that the batch stays ordered by adapter.
    context = interleave(empty, prompts) if guided else prompts
    extra = {"generator": list(generators)} if sampler.scheduler == "euler_ancestral" else {}
    for t in timesteps:
        inputs = steps.scale_model_input(latents, t)
        if guided:
            inputs = inputs.repeat_interleave(2, dim=0)
        predicted = base.predict(inputs, t, context)
        if guided:
            uncond, cond = predicted.unflatten(0, (-1, 2)).unbind(1)
            predicted = uncond + sampler.guidance * (cond - uncond)
        latents = steps.step(predicted, t, latents, return_dict=False, **extra)[0]
    return base.decode(latents)


def _last_steps(base: BaseModel, sampler: Sampler) -> tuple[Any, torch.Tensor]:
    """A scheduler that begins as late as the sampler's strength says, and its remaining timesteps."""
    # By default PNDM begins with Runge-Kutta steps, which exist only for the first timesteps.
    begin = {"skip_prk_steps": True} if sampler.scheduler == "pndm" else {}
    steps = scheduler(sampler.scheduler, base.schedule | begin)
    steps.set_timesteps(sampler.steps, device=base.device)
    skipped = sampler.steps - sampler.last_steps
    if sampler.scheduler == "pndm":
        # PNDM takes its first step in two, with the second timestep twice, wherever it begins.
        rest = steps.timesteps.unique_consecutive()[skipped:]
        return steps, torch.cat([rest[:2], rest[1:]])
    if hasattr(steps, "set_begin_index"):
        steps.set_begin_index(skipped)
    return steps, steps.timesteps[skipped:]


def draw_fitting(
    base: BaseModel,
    sampler: Sampler,
    prompts: Condition,
    empty: Condition,
    seeds: Sequence[int],
    starts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draw images as ``draw`` does, from seeds; where memory runs out, in half batches with the same noise."""
    try:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return draw(base, sampler, prompts, empty, generators, starts)
    except torch.OutOfMemoryError:
        if len(seeds) == 1:
            raise
    if base.device.type == "cuda":
        torch.cuda.empty_cache()
    half = len(seeds) // 2
    parts = [range(half), range(half, len(seeds))]
    return torch.cat(
        [
            draw_fitting(
                base,
                sampler,
                prompts.rows(p),
                empty.rows(p),
                [seeds[i] for i in p],
                None if starts is None else starts[p.start : p.stop],
            )
            for p in parts
        ]
    )


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Convert images (n, 3, h, w) in [-1, 1] to (n, h, w, 3) uint8 on the CPU; NaN becomes black."""
    pixels = (images.nan_to_num(-1.0).clamp(-1, 1) + 1) * 127.5
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


def degenerate(images: torch.Tensor) -> torch.Tensor:
    """Whether images (n, 3, h, w) in [-1, 1] are not finite, or flat to within two grey levels: (n,) bool.

    A black image is flat. A safety checker, an overflow in half precision or a collapsed adapter makes such images.
    """
    flat = images.clamp(-1, 1).flatten(1).std(dim=1) < 2 / 127.5
    return (~images.isfinite().flatten(1).all(dim=1) | flat).cpu()

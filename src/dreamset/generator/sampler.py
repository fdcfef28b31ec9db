"""The drawing of images: each image depends on its own noise and not on the rest of its batch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import diffusers
import torch

from dreamset.core.errors import InputError
from dreamset.generator.conditions import interleave

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreamset.generator.base_model import BaseModel
    from dreamset.generator.conditions import Condition
    from dreamset.generator.mixture import Mixes
    from dreamset.params.model import Sampler

SCHEDULERS: Final = {
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "lcm": "LCMScheduler",
}
# Those that add noise between their steps.
_NOISY: Final = ("euler_ancestral", "lcm")


# The shares of signal at the first timestep above which pure noise cannot stand for it, and stands for it badly.
_MOST_SIGNAL: Final = 0.5
_MUCH_SIGNAL: Final = 0.1


def scheduler(name: str, schedule: dict[str, Any]) -> Any:
    """A new diffusers scheduler for the base's noise schedule."""
    # PNDM's Runge-Kutta steps need four steps at least, and nine calls more than there are steps. Those who trained
    # Stable Diffusion skip them. As an argument it holds where the base's file does not name it; in ``schedule`` not.
    begin = {"skip_prk_steps": True} if name == "pndm" else {}
    return getattr(diffusers, SCHEDULERS[name]).from_config(schedule, **begin)


def first_step(schedule: dict[str, Any], sampler: Sampler) -> tuple[int, float]:
    """Return the timestep that a sampler begins at, and the share of signal in the variance there.

    With few steps, a schedule of ``leading`` timesteps leaves out its noisiest part: one step of DDIM begins at t = 1.

    Args:
        schedule: the configuration of the base's scheduler.
        sampler: scheduler and steps.
    """
    steps = scheduler(sampler.scheduler, schedule)
    steps.set_timesteps(sampler.steps)
    first = round(float(steps.timesteps[0]))
    return first, float(steps.alphas_cumprod[first])


def check_first_step(schedule: dict[str, Any], sampler: Sampler, key: str) -> None:
    """Refuse a sampler whose first timestep is little noise, since it would return noise with a label.

    Images that start from shots get the noise of their first timestep, so that this does not concern them.

    Args:
        schedule: the configuration of the base's scheduler.
        sampler: scheduler and steps.
        key: the key of the steps in ``params.yaml``.

    Raises:
        InputError: the first timestep is not mostly noise.
    """
    first, signal = first_step(schedule, sampler)
    if signal > _MOST_SIGNAL:
        raise InputError(
            f"{key}: {sampler.scheduler} with steps: {sampler.steps} begins at timestep {first} of this base, where "
            f"{100 * signal:.0f} % is image already, so that it would draw noise; raise steps."
        )


def late_start_words(schedule: dict[str, Any], sampler: Sampler, key: str) -> str:
    """Return a warning of a sampler that leaves out much of the noise; empty otherwise. See ``check_first_step``."""
    first, signal = first_step(schedule, sampler)
    if signal <= _MUCH_SIGNAL:
        return ""
    return (
        f"{key}: {sampler.scheduler} with steps: {sampler.steps} begins at timestep {first} of this base, where "
        f"{100 * signal:.0f} % is image already, so that pictures keep much noise; raise steps"
    )


@dataclass(frozen=True)
class Guide:
    """What guides the images of a batch, apart from their prompts.

    Attributes:
        until: the share of the steps, above 0 to 1, after which the prompt alone is left.
        network: predicts the unconditional half; None: the network that draws.
        modes: (n, c, h, w) scaled latents that images are pulled toward; None: nothing pulls.
        pull: the share of the way to its mode that the predicted image goes at each step.
    """

    until: float = 1.0
    network: BaseModel | None = None
    modes: torch.Tensor | None = None
    pull: float = 0.0

    def rows(self, index: range) -> Guide:
        """Return the guide of some images of the batch."""
        modes = None if self.modes is None else self.modes[index.start : index.stop]
        return dataclasses.replace(self, modes=modes)


@dataclass(frozen=True)
class Between:
    """The starts of images between two noised latents each.

    Attributes:
        first: (n, c, h, w) scaled latents.
        second: (n, c, h, w) scaled latents.
        share: (n,), the share of the first.
    """

    first: torch.Tensor
    second: torch.Tensor
    share: torch.Tensor

    def __getitem__(self, rows: slice) -> Between:
        """Return the starts of some images of the batch."""
        return Between(self.first[rows], self.second[rows], self.share[rows])


def slerp(first: torch.Tensor, second: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Return points on the arc from ``second`` to ``first``: sin(s w) / sin(w) first + sin((1 - s) w) / sin(w) second.

    A weighted sum of two noised latents would have too little noise; the arc keeps its length (Shoemake 1985).

    Args:
        first: (n, ...).
        second: (n, ...).
        share: (n,) s, 0 to 1.
    """
    one, two = first.flatten(1).float(), second.flatten(1).float()
    cosine = torch.cosine_similarity(one, two).clamp(-1, 1)
    angle = torch.arccos(cosine).clamp_min(1e-4)
    s = share.to(one)
    mixed = (one * torch.sin(s * angle)[:, None] + two * torch.sin((1 - s) * angle)[:, None]) / torch.sin(angle)[
        :, None
    ]
    return mixed.view_as(first).to(first.dtype)


@torch.inference_mode()
def draw(
    base: BaseModel,
    sampler: Sampler,
    prompts: Condition,
    empty: Condition,
    generators: Sequence[torch.Generator],
    starts: torch.Tensor | Between | None = None,
    guide: Guide | None = None,
    mixes: Mixes | None = None,
) -> torch.Tensor:
    """Draw one image per generator.

    Args:
        base: the model, with an adapter fused into it or attached to it.
        sampler: scheduler, steps and guidance scale g: eps_u + g (eps_c - eps_u); at g = 1 eps_u is not computed.
        prompts: n conditions, one per image.
        empty: n conditions of the unconditional half: of the empty prompt, or of another class.
        generators: n CPU generators; each draws the starting noise of its image, then the sampler's further noise.
        starts: (n, c, h, w) scaled latents; the sampler's ``strength`` says how much noise is added to them. Of
            two latents each has noise of its own. None: images start from noise alone.
        guide: what guides beside the prompts; None: the same network, to the end.
        mixes: the LoRAs of each image; None: all have those of the base.

    Returns:
        (n, 3, h, w) float32, nominally in [-1, 1], neither clipped nor checked.
    """
    if mixes is not None:
        mixes.use()
    noise = torch.stack([torch.randn(base.latent_shape, generator=generator) for generator in generators])
    noise = noise.to(base.device, base.dtype)
    if starts is None:
        steps = scheduler(sampler.scheduler, base.schedule)
        steps.set_timesteps(sampler.steps, device=base.device)
        latents, timesteps = noise * steps.init_noise_sigma, steps.timesteps
    elif isinstance(starts, Between):
        steps, timesteps = _last_steps(base, sampler)
        further = torch.stack([torch.randn(base.latent_shape, generator=generator) for generator in generators])
        one = steps.add_noise(starts.first.to(noise), noise, timesteps[:1])
        two = steps.add_noise(starts.second.to(noise), further.to(noise), timesteps[:1])
        latents = slerp(one, two, starts.share)
    else:
        steps, timesteps = _last_steps(base, sampler)
        latents = steps.add_noise(starts.to(noise), noise, timesteps[:1])
    guide = guide or Guide()
    # The two rows of an image are neighbours, so that the batch stays ordered by adapter.
    both = interleave(empty, prompts) if sampler.guidance != 1.0 and guide.network is None else None
    extra = {"generator": list(generators)} if sampler.scheduler in _NOISY else {}
    last = math.ceil(guide.until * len(timesteps) - 1e-6)
    for step, t in enumerate(timesteps):
        inputs = steps.scale_model_input(latents, t)
        if sampler.guidance == 1.0 or step >= last:
            predicted = base.predict(inputs, t, prompts)
        else:
            if both is None:
                assert guide.network is not None
                uncond, cond = guide.network.predict(inputs, t, empty), base.predict(inputs, t, prompts)
            else:
                predicted = base.predict(inputs.repeat_interleave(2, dim=0), t, both)
                uncond, cond = predicted.unflatten(0, (-1, 2)).unbind(1)
            predicted = uncond + sampler.guidance * (cond - uncond)
        if guide.modes is not None and step < last:
            predicted = _pulled(predicted, inputs, steps, t, guide.modes.to(inputs), guide.pull)
        latents = steps.step(predicted, t, latents, return_dict=False, **extra)[0]
    return base.decode(latents)


def _pulled(
    predicted: torch.Tensor, inputs: torch.Tensor, steps: Any, t: torch.Tensor, modes: torch.Tensor, pull: float
) -> torch.Tensor:
    """Return the prediction whose image lies nearer to its mode, by the share ``pull`` of the way.

    With x = a x0 + s e, the image x0 moves by d = pull (mode - x0) while x stays. So e moves by -a d / s, and
    v = a e - s x0 by -d / s. Mode guidance (arXiv 2505.18963) adds such a pull to each step until it stops.
    """
    signal: torch.Tensor = steps.alphas_cumprod[round(float(t))].to(inputs)
    a, s = signal.sqrt(), (1 - signal).sqrt()
    if steps.config.prediction_type == "v_prediction":
        return predicted - pull * (modes - (a * inputs - s * predicted)) / s
    return predicted - a / s * pull * (modes - (inputs - s * predicted) / a)


def _last_steps(base: BaseModel, sampler: Sampler) -> tuple[Any, torch.Tensor]:
    """A scheduler that begins as late as the sampler's strength says, and its remaining timesteps."""
    steps = scheduler(sampler.scheduler, base.schedule)
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
    starts: torch.Tensor | Between | None = None,
    guide: Guide | None = None,
    mixes: Mixes | None = None,
) -> torch.Tensor:
    """Draw images as ``draw`` does, from seeds; where memory runs out, in half batches with the same noise."""
    try:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return draw(base, sampler, prompts, empty, generators, starts, guide, mixes)
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
                None if guide is None else guide.rows(p),
                None if mixes is None else mixes.rows(p),
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

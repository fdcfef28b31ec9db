"""The few-step student of the bundled U-Net: from any place on the teacher's way to the end of that way in one step.

The teacher, with guidance, solves its probability flow from noise to an image. The student learns the image from every
place that the solver visited, without guidance. So it is a consistency model (Song et al. 2023, arXiv 2303.01469) whose
targets are the ends of whole ways, in place of its own guesses one step further on; at the first timestep alone this is
the distillation of Luhman and Luhman (2021, arXiv 2101.02388). It needs no images: noise and captions are enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from base import clip
from base.captions import caption, mention
from base.diffusion import glyphs_of, make_unet
from base.training import Average, begin, fit
from dreamset.core.shards import assembling
from dreamset.glyphs.fonts import CHARACTERS
from dreamset.glyphs.look import Distillation, Params
from dreamset.glyphs.render import ATTRIBUTES

_KNOWN: Final = 8192  # glyphs whose characters and attributes the captions have
_GRID: Final = 50  # timesteps that the student is asked at, evenly spaced, as diffusers' LCMScheduler has them
_WAYS: Final = 256  # that the teacher goes at once
_BEND: Final = 0.1  # error of a latent value from which the loss grows in proportion


@dataclass
class Ways:
    """Places on the teacher's ways.

    Attributes:
        places: (n, c, h, w) noisy latents.
        times: (n,) timesteps.
        states: (n, length, width) hidden states of the captions.
        ends: (n, c, h, w) latents that the ways end at.
    """

    places: torch.Tensor
    times: torch.Tensor
    states: torch.Tensor
    ends: torch.Tensor

    def rows(self, index: np.ndarray[Any, Any]) -> Ways:
        """Some of the places."""
        return Ways(self.places[index], self.times[index], self.states[index], self.ends[index])


@torch.no_grad()
def solve(
    unet: Any, schedule: Any, states: torch.Tensor, empty: torch.Tensor, plan: Distillation, rng: np.random.Generator
) -> Ways:
    """Follow the teacher's ways of captions with guidance, by DPM-Solver++ over a random part of the grid.

    Args:
        unet: the teacher.
        schedule: the configuration of its scheduler.
        states: (n, length, width) hidden states of the captions.
        empty: (1, length, width) those of the empty caption.
        plan: gives guidance and the number of steps.
        rng: chooses the timesteps, the first of the grid always among them.

    Returns:
        n places at each timestep, the first n at the first.
    """
    from diffusers import DPMSolverMultistepScheduler

    grid = np.arange(1, _GRID + 1) * (1000 // _GRID) - 1
    cuts = np.array_split(np.arange(_GRID - 1), plan.solver_steps - 1)
    chosen = [_GRID - 1, *sorted((int(rng.choice(cut)) for cut in cuts), reverse=True)]
    steps: Any = DPMSolverMultistepScheduler.from_config(schedule)
    steps.set_timesteps(timesteps=[int(grid[index]) for index in chosen])
    n, side = len(states), unet.config.sample_size
    latents = torch.randn(n, unet.config.in_channels, side, side, device=states.device)
    both = torch.cat([empty.expand(n, -1, -1), states])
    places = []
    for t in steps.timesteps:
        places.append(latents)
        uncond, cond = unet(torch.cat([latents, latents]), t, both, return_dict=False)[0].chunk(2)
        latents = steps.step(uncond + plan.guidance * (cond - uncond), t, latents, return_dict=False)[0]
    count = len(places)
    times = steps.timesteps.to(states.device).repeat_interleave(n)
    return Ways(torch.cat(places), times, states.repeat(count, 1, 1), latents.repeat(count, 1, 1, 1))


def guessed(unet: Any, signal: torch.Tensor, ways: Ways) -> torch.Tensor:
    """The student's guesses of the ends: (x - s e) / a.

    Args:
        unet: the student.
        signal: (timesteps,) a^2, the share of signal in the variance.
        ways: n places.
    """
    kept = signal.to(ways.places.device)[ways.times].view(-1, 1, 1, 1)
    noise = unet(ways.places, ways.times, ways.states, return_dict=False)[0]
    guess: torch.Tensor = (ways.places - (1 - kept).sqrt() * noise) / kept.sqrt()
    return guess


def _mixed(count: int, ways: int, share: float, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """The rows of ``count`` places in random order, of which the first timestep, whose rows come first, has a share.

    One step draws from there, and nowhere else is the way so long.
    """
    rest, first = rng.permutation(np.arange(ways, count)), int(share * count)
    rows = np.concatenate([np.tile(np.arange(ways), -(-first // ways))[:first], rest[: count - first]])
    return rng.permutation(rows)


def train_student(params: Params, folder: Path, out: Path) -> None:
    """Distil the pipeline in ``folder`` into a student, and write its U-Net and its scheduler to ``out``."""
    from diffusers import LCMScheduler, StableDiffusionPipeline

    plan = params.student
    student = make_unet()
    where = begin(plan)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    teacher = pipeline.unet.requires_grad_(False).eval().to(where, memory_format=torch.channels_last)
    words = pipeline.text_encoder.requires_grad_(False).eval().to(where)
    student.load_state_dict(teacher.state_dict())
    student = student.to(where, memory_format=torch.channels_last)
    rng = np.random.default_rng(plan.seed)
    known = glyphs_of(params, plan.seed).batch(0, _KNOWN)

    def states_of(texts: list[str]) -> torch.Tensor:
        with torch.no_grad():
            states: torch.Tensor = words(clip.token_ids(pipeline.tokenizer, texts).to(where)).last_hidden_state
        return states

    def captions() -> list[str]:
        rows = rng.integers(len(known.characters), size=_WAYS)
        told = mention(known.attributes[rows], rng)
        names = [tuple(name for name, present in zip(ATTRIBUTES, row, strict=True) if present) for row in told]
        return [caption(CHARACTERS[known.characters[row]], names, rng) for row, names in zip(rows, names, strict=True)]

    empty, waiting, average = states_of([""]), list[Ways](), Average(student, plan.ema)

    def loss_of(step: int) -> torch.Tensor:
        if step:
            average.update(step)
        if not waiting:
            ways = solve(teacher, pipeline.scheduler.config, states_of(captions()), empty, plan, rng)
            rows = _mixed(len(ways.times), _WAYS, plan.first_share, rng)
            waiting.extend(ways.rows(part) for part in np.array_split(rows, len(rows) // plan.batch))
        ways = waiting.pop()
        error = guessed(student, pipeline.scheduler.alphas_cumprod, ways) - ways.ends
        return (error.square() + _BEND**2).sqrt().mean() - _BEND

    fit("student", student, plan, loss_of)
    average.update(plan.steps)
    average.apply()
    with assembling(out) as fresh:
        student.cpu().to(memory_format=torch.contiguous_format).save_pretrained(fresh / "unet")
        LCMScheduler.from_config(pipeline.scheduler.config).save_pretrained(fresh / "scheduler")

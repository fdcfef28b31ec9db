"""The few-step student of the bundled U-Net: from any place on the teacher's way to the end of that way in one step.

The teacher, with guidance, solves its probability flow from noise to an image. The student learns the image from every
place that the solver visited, without guidance. So it is a consistency model (Song et al. 2023, arXiv 2303.01469,
section 4) whose targets are the ends of whole ways, in place of its own guesses one step further on; at the first
timestep alone this is the distillation of Luhman and Luhman (2021, arXiv 2101.02388). It needs no images.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from base import clip
from base.captions import caption, mention
from base.diffusion import _source
from base.training import Average, begin, fit
from dreamset.core.shards import assembling
from dreamset.glyphs.fonts import CHARACTERS
from dreamset.glyphs.look import Params
from dreamset.glyphs.render import ATTRIBUTES

_KNOWN: Final = 8192  # glyphs whose attributes captions mention
_GRID: Final = 50  # timesteps that the student is asked at, evenly spaced, as diffusers' LCMScheduler has them


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


@torch.no_grad()
def solve(unet: Any, schedule: Any, states: torch.Tensor, empty: torch.Tensor, plan: Any, rng: np.random.Generator) -> Ways:
    """Follow the teacher's ways of captions with guidance, by DPM-Solver++ over a random part of the grid."""
    from diffusers import DPMSolverMultistepScheduler

    grid = np.arange(1, _GRID + 1) * (1000 // _GRID) - 1
    cuts = np.array_split(np.arange(_GRID - 1), plan.solver_steps - 1)
    chosen = [_GRID - 1, *sorted((int(rng.choice(cut)) for cut in cuts), reverse=True)]
    steps: Any = DPMSolverMultistepScheduler.from_config(schedule)
    steps.set_timesteps(timesteps=[int(grid[i]) for i in chosen])
    n = len(states)
    latents = torch.randn(n, 4, unet.config.sample_size, unet.config.sample_size)
    both = torch.cat([empty.expand(n, -1, -1), states])
    places = []
    for t in steps.timesteps:
        places.append(latents)
        uncond, cond = unet(torch.cat([latents, latents]), t, both, return_dict=False)[0].chunk(2)
        latents = steps.step(uncond + plan.guidance * (cond - uncond), t, latents, return_dict=False)[0]
    count = len(places)
    return Ways(
        torch.cat(places),
        steps.timesteps.repeat_interleave(n),
        states.repeat(count, 1, 1),
        latents.repeat(count, 1, 1, 1),
    )


def guessed(unet: Any, schedule: torch.Tensor, ways: Ways) -> torch.Tensor:
    """The student's guesses of the ends, x0 = (x - s e) / a."""
    signal = schedule[ways.times].view(-1, 1, 1, 1)
    noise = unet(ways.places, ways.times, ways.states, return_dict=False)[0]
    return (ways.places - (1 - signal).sqrt() * noise) / signal.sqrt()

"""Losses beside that of the noise: the adapter stays with the base where no class is named; its images drive apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dreamset.generator.base_model import BaseModel

MEMORY: Final = 64  # latents of each kind that are remembered (Minimax, arXiv 2311.15529)
_PULL: Final = 0.25  # the pull's weight as a share of the push's: the paper's are 0.002 and 0.008


class Held:
    """The base as it was, asked by captions that name no class.

    The difference of the adapted network to it, on the same noisy latents, is what the adapter has forgotten.

    Args:
        base: without adapters; its U-Net is copied.
        captions: of the jobs that train together, one each.
    """

    def __init__(self, base: BaseModel, captions: Sequence[str]) -> None:
        self.base = base.twin()
        with torch.no_grad():
            self.condition = base.encode(list(captions))
        self.jobs = len(captions)

    @torch.no_grad()
    def predict(self, noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return the base's prediction, float32, for noisy latents (jobs * batch, c, h, w) at timesteps ``t``."""
        batch = len(noisy) // self.jobs
        rows = [job for job in range(self.jobs) for _ in range(batch)]
        return self.base.predict(noisy, t, self.condition.rows(rows)).float()


def clean(schedule: Any, noisy: torch.Tensor, t: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """Return the latents (n, c, h, w) without noise that a prediction of noise or velocity at ``t`` stands for."""
    signal = schedule.alphas_cumprod.to(noisy.device)[t].view(-1, 1, 1, 1)
    a, s = signal.sqrt(), (1 - signal).sqrt()
    by_velocity = schedule.config.prediction_type == "v_prediction"
    latents: torch.Tensor = a * noisy - s * predicted if by_velocity else (noisy - s * predicted) / a
    return latents


class Apart:
    """The minimax losses of one adapter (Minimax, arXiv 2311.15529), with the last ``MEMORY`` latents of both kinds.

    Each predicted latent is pulled to the remembered real one of its class that it is least like, so that all of them
    are covered, and pushed from the remembered predicted one that it is most like. Likeness is the cosine.

    Args:
        weight: of the push; the pull has a quarter of it.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.captions: list[str] = []
        self.real: torch.Tensor | None = None
        self.drawn: torch.Tensor | None = None

    def loss(self, captions: list[str], drawn: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Return the loss of a step, and remember its latents.

        Args:
            captions: of the n images, which tell their classes.
            drawn: (n, c, h, w) predicted latents, with their gradient.
            real: (n, c, h, w) latents of the images.
        """
        now, target = F.normalize(drawn.flatten(1), dim=1), F.normalize(real.flatten(1).float(), dim=1)
        total = now.new_zeros(())
        if self.real is not None and self.drawn is not None:
            same = torch.tensor([[one == other for other in self.captions] for one in captions], device=now.device)
            known = same.any(dim=1)
            least = (now @ self.real.T).masked_fill(~same, torch.inf).amin(dim=1)
            most = (now @ self.drawn.T).masked_fill(~same, -torch.inf).amax(dim=1)
            # An image of a class that nothing is remembered of counts for nothing.
            lost = torch.where(known, most, 0.0) - _PULL * torch.where(known, least, 0.0)
            total = self.weight * lost.mean()
        self.captions = (self.captions + captions)[-MEMORY:]
        self.real = _last(self.real, target)
        self.drawn = _last(self.drawn, now.detach())
        return total

    def state(self) -> dict[str, torch.Tensor]:
        """Return the memories, for a checkpoint; ``captions`` belong to them."""
        empty = torch.empty(0, 0)
        return {
            "real": empty if self.real is None else self.real,
            "drawn": empty if self.drawn is None else self.drawn,
        }

    def restore(self, captions: list[str], state: Mapping[str, torch.Tensor]) -> None:
        """Take up what ``state`` and ``captions`` were."""
        self.captions = list(captions)
        if captions:
            self.real, self.drawn = state["real"], state["drawn"]


def _last(before: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
    return (new if before is None else torch.cat([before, new]))[-MEMORY:]

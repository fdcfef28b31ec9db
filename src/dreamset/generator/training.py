"""The training of a recipe's adapters on a few images.

A recipe adapts LoRAs (DataDream, arXiv 2407.10910), several at once, a class encoder, or the whole U-Net (arXiv
2405.02698). Every random choice of a step is a function of (adapter's seed, step). So a checkpoint needs no random
state, and a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from dreamset.core import interrupts, locks
from dreamset.core.arithmetic import warm_up_cosine
from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write
from dreamset.core.images import png
from dreamset.core.progress import bar
from dreamset.core.seeds import generator, image_seed
from dreamset.generator import losses, trained
from dreamset.generator.lora import swapped
from dreamset.generator.sampler import draw, to_uint8

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from dreamset.generator.base_model import BaseModel
    from dreamset.generator.conditions import Condition
    from dreamset.generator.trained import Kind
    from dreamset.params.model import AdaptSchedule, Sampler


@dataclass(frozen=True)
class Job:
    """One adapter to train.

    ``images`` are (h, w, 3) uint8, with the shorter side at the base's resolution. ``prompts`` holds one caption per
    image. ``sampled`` holds the (class name, prompt) pairs of the sample grids. ``classless`` is a caption that names
    no class, which ``Settings.preserve`` needs.
    """

    key: str
    name: str
    seed: int
    images: list[NDArray[np.uint8]]
    prompts: tuple[str, ...]
    sampled: tuple[tuple[str, str], ...]
    classless: str = ""


@dataclass(frozen=True)
class Settings:
    """The settings that all adapters of a recipe share.

    ``preserve`` and ``diversity`` are weights of further losses, 0 for none (``generator.losses``).
    """

    kind: Kind
    schedule: AdaptSchedule
    steps: int
    weight_decay: float
    max_grad_norm: float
    caption_dropout: float
    ema: float
    checkpoint_every: int
    sample_every: int
    sample_images: int
    sampler: Sampler
    seed: int
    preserve: float = 0.0
    diversity: float = 0.0

    def lr(self, step: int) -> float:
        """The learning rate of a step: a linear warm-up from 0, then half a cosine to 0."""
        return warm_up_cosine(step, self.steps, self.schedule.warmup, self.schedule.lr)


@dataclass
class Together:
    """Several adapters in training over one frozen base: their state, steps and checkpoints.

    After ``run``, ``save`` writes the averaged weights of an adapter.
    """

    base: BaseModel
    jobs: list[Job]
    settings: Settings
    folder: Path
    step: int = 0
    losses: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Before any adapter is attached, so that it is the base as it was.
        self.held = losses.Held(self.base, [job.classless for job in self.jobs]) if self.settings.preserve else None
        self.apart = [losses.Apart(self.settings.diversity) for _ in self.jobs] if self.settings.diversity else []
        self.adapters = trained.attach(self.base, self.settings.kind, {job.name: job.seed for job in self.jobs})
        self.parameters = [list(self.adapters.parameters(job.name).values()) for job in self.jobs]
        self.flat = [parameter for parameters in self.parameters for parameter in parameters]
        self.averaged = [parameter.detach().clone() for parameter in self.flat]
        self.optimizer = torch.optim.AdamW(
            self.flat, lr=self.settings.schedule.lr, weight_decay=self.settings.weight_decay, fused=True
        )
        self.noise_schedule = DDPMScheduler.from_config(self.base.schedule)
        self.latents = [self._cached(job) for job in self.jobs]

    def run(self, keep: Callable[[int], None] | None = None, at: Collection[int] = ()) -> None:
        """Train to the end, starting from the last checkpoint where there is one.

        Args:
            keep: called with the number of steps taken, whenever that number is in ``at``.
            at: numbers of steps.
        """
        self._resume()
        total, every = self.settings.steps, self.settings.checkpoint_every
        names = self.jobs[0].name if len(self.jobs) == 1 else f"{len(self.jobs)} adapters"
        if self.step:
            print(f"adapt: going on from step {self.step} of {total}", file=sys.stderr, flush=True)
        with bar(total=total, what=f"adapting {names}", unit="step") as progress:
            progress.update(self.step)
            while True:
                if self.step % self.settings.sample_every == 0 or self.step == total:
                    self._draw_samples()
                if self.step == total:
                    return
                with interrupts.held() as interrupted:
                    self._train_step()
                    progress.update()
                    # Before the checkpoint: a run that is killed between the two passes here again.
                    if keep and self.step in at:
                        keep(self.step)
                    # Samples take long, so they are drawn of what is saved already.
                    drawn = self.step % self.settings.sample_every == 0 or self.step == total
                    if drawn or self.step % every == 0 or interrupted() or locks.superseded():
                        self._checkpoint()
                locks.boundary()

    def save(self, index: int, folder: Path) -> None:
        """Write the averaged adapter of job ``index`` and its sample grids into ``folder``."""
        self.save_weights(index, folder)
        for path in sorted(self.folder.glob(f"samples_*_{index}.png")):
            name = path.name.removesuffix(f"_{index}.png")
            atomic_write(folder / f"{name}.png", path.read_bytes())

    def save_weights(self, index: int, folder: Path) -> None:
        """Write the averaged adapter of job ``index`` into ``folder``."""
        with swapped(self.flat, self.averaged):
            self.adapters.save(self.jobs[index].name, folder)

    def close(self) -> None:
        """Remove the adapters from the base."""
        self.adapters.detach()

    def _train_step(self) -> None:
        settings, step = self.settings, self.step
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr(step)
        latents, noise, t, context = self._batch(step)
        noisy = self.noise_schedule.add_noise(latents, noise, t)
        target = noise
        if self.noise_schedule.config.prediction_type == "v_prediction":
            target = self.noise_schedule.get_velocity(latents, noise, t)
        predicted = self.base.predict(noisy, t, context)
        squares = F.mse_loss(predicted.float(), target, reduction="none")
        # A sum over adapters, so that each gets the same gradient as if trained alone.
        each = squares.reshape(len(self.jobs), -1).mean(dim=1)
        self._with_others(each, noisy, t, predicted, latents).sum().backward()
        for parameters in self.parameters:
            torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        # TensorFlow's warm-up of the decay: early on, the average must not cling to the initial weights.
        decay = min(settings.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averaged, [parameter.detach() for parameter in self.flat], 1 - decay)
        for history, loss in zip(self.losses, each.tolist(), strict=True):
            history.append(loss)
        if not all(math.isfinite(history[-1]) for history in self.losses):
            raise InputError(f"the loss is not finite at step {step}; lower models.*.adapt.*.lr in params.yaml.")
        self.step += 1

    def _with_others(
        self,
        each: torch.Tensor,
        noisy: torch.Tensor,
        t: torch.Tensor,
        predicted: torch.Tensor,
        latents: torch.Tensor,
    ) -> torch.Tensor:
        """Return the losses of the jobs, (jobs,), with those of ``preserve`` and ``diversity``."""
        settings, batch = self.settings, self.settings.schedule.batch
        if self.held is not None:
            context = self._context([[job.classless] * batch for job in self.jobs])
            drift = (self.base.predict(noisy, t, context).float() - self.held.predict(noisy, t)) ** 2
            each = each + settings.preserve * drift.reshape(len(self.jobs), -1).mean(dim=1)
        if self.apart:
            drawn = losses.clean(self.noise_schedule, noisy, t, predicted.float()).unflatten(0, (-1, batch))
            real = latents.unflatten(0, (-1, batch))
            further = [
                apart.loss([job.prompts[row] for row in _rows(job, self.step, batch)], drawn[index], real[index])
                for index, (apart, job) in enumerate(zip(self.apart, self.jobs, strict=True))
            ]
            each = each + torch.stack(further)
        return each

    def _batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Condition]:
        """The latents, noise, timesteps and conditions of a step, (jobs * batch, ...), ordered by job."""
        batch = self.settings.schedule.batch
        shape = (batch, *self.base.latent_shape)
        latents, noises, times, prompts = [], [], [], []
        for job, cached in zip(self.jobs, self.latents, strict=True):
            rows = _rows(job, step, batch)
            random = generator("adapt step", job.seed, step)
            posterior = torch.randn(shape, generator=random)
            noises.append(torch.randn(shape, generator=random))
            times.append(torch.randint(self.noise_schedule.config.num_train_timesteps, (batch,), generator=random))
            dropped = torch.rand(batch, generator=random) < self.settings.caption_dropout
            captions = [job.prompts[row] for row in rows]
            prompts.append(["" if d else caption for d, caption in zip(dropped.tolist(), captions, strict=True)])
            mean, std = (part[rows] for part in cached) if cached else self._encode_crops(job, rows, random)
            latents.append(mean + std * posterior.to(mean.device))
        device = self.base.device
        return torch.cat(latents), torch.cat(noises).to(device), torch.cat(times).to(device), self._context(prompts)

    def _context(self, prompts: list[list[str]]) -> Condition:
        """The conditions of each job's captions; each distinct caption of a job is encoded once."""
        distinct = [list(dict.fromkeys(captions)) for captions in prompts]
        width = max(len(captions) for captions in distinct)
        # The adapted layers need equal parts per job, so short lists repeat their first caption.
        padded = [captions + captions[:1] * (width - len(captions)) for captions in distinct]
        with torch.set_grad_enabled(self.adapters.learns_conditions and torch.is_grad_enabled()):
            encoded = self.base.encode_each([caption for captions in padded for caption in captions])
        index = [
            job * width + encoded_captions.index(caption)
            for job, (encoded_captions, captions) in enumerate(zip(padded, prompts, strict=True))
            for caption in captions
        ]
        return encoded.rows(index)

    @torch.no_grad()
    def _cached(self, job: Job) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The latent moments of all images, or None where an image is not square and each step crops it anew."""
        if any(image.shape[0] != image.shape[1] for image in job.images):
            return None
        # At 512 pixels a few images fill a gigabyte with the encoder's maps.
        at_once = max(1, 8 * 512**2 // self.base.resolution**2)
        starts = range(0, len(job.images), at_once)
        parts = [self.base.moments(_to_model(job.images[i : i + at_once])) for i in starts]
        mean, std = (torch.cat(part) for part in zip(*parts, strict=True))
        return mean, std

    @torch.no_grad()
    def _encode_crops(self, job: Job, rows: list[int], random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """The latent moments of one random crop of each image."""
        size = self.base.resolution
        crops = []
        for row in rows:
            height, width, _ = job.images[row].shape
            top, left = (int(torch.randint(side - size + 1, (), generator=random)) for side in (height, width))
            crops.append(job.images[row][top : top + size, left : left + size])
        return self.base.moments(_to_model(crops))

    def _draw_samples(self) -> None:
        """Write a picture per job with a strip of samples per class, from the same noise every time."""
        settings = self.settings
        paths = [self.folder / f"samples_{self.step:05d}_{index}.png" for index in range(len(self.jobs))]
        if all(path.is_file() for path in paths):
            return
        count = settings.sample_images
        sampled = [[pair for pair in job.sampled for _ in range(count)] for job in self.jobs]
        generators = [
            torch.Generator().manual_seed(image_seed(settings.seed, name, k % count))
            for pairs in sampled
            for k, (name, _) in enumerate(pairs)
        ]
        with swapped(self.flat, self.averaged), torch.no_grad():
            conditions = self._context([[prompt for _, prompt in pairs] for pairs in sampled])
            empty = self._context([[""] * len(pairs) for pairs in sampled])
            pixels = to_uint8(draw(self.base, settings.sampler, conditions, empty, generators)).numpy()
        size = self.base.resolution
        for path, part in zip(paths, pixels.reshape(len(self.jobs), -1, count, size, size, 3), strict=True):
            rows = part.transpose(0, 2, 1, 3, 4).reshape(-1, count * size, 3)
            atomic_write(path, png(rows))

    def _checkpoint(self) -> None:
        """Write everything that a run needs to continue to one file, which is replaced as a whole."""
        tensors: dict[str, torch.Tensor] = {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        for i, (parameter, average) in enumerate(zip(self.flat, self.averaged, strict=True)):
            state = self.optimizer.state[parameter]
            tensors |= {f"{i}.value": parameter.detach(), f"{i}.average": average}
            tensors |= {f"{i}.{moment}": state[moment] for moment in ("exp_avg", "exp_avg_sq")}
        for i, apart in enumerate(self.apart):
            tensors |= {f"apart.{i}.{name}": value for name, value in apart.state().items()}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        state = {"step": self.step, "apart": [apart.captions for apart in self.apart]}
        atomic_write(self.folder / "state.safetensors", save(tensors, {"state": json.dumps(state)}))

    def _resume(self) -> None:
        path = self.folder / "state.safetensors"
        self.losses = [[] for _ in self.jobs]
        if not path.is_file():
            return
        try:
            with safe_open(path, "pt") as opened:
                state = json.loads(opened.metadata()["state"])
            self.step = state["step"]
            tensors = load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path}: is not a complete checkpoint ({error}); remove it and run again.") from error
        self.losses = tensors["losses"].tolist()
        for i, apart in enumerate(self.apart):
            kept = {name: tensors[f"apart.{i}.{name}"].to(self.base.device) for name in apart.state()}
            apart.restore(state["apart"][i], kept)
        with torch.no_grad():
            for i, (parameter, average) in enumerate(zip(self.flat, self.averaged, strict=True)):
                parameter.copy_(tensors[f"{i}.value"])
                average.copy_(tensors[f"{i}.average"])
                moments: dict[str, Any] = {m: tensors[f"{i}.{m}"].to(parameter) for m in ("exp_avg", "exp_avg_sq")}
                # A fused optimizer counts its steps on the parameter's device.
                taken = torch.tensor(float(self.step), device=parameter.device)
                self.optimizer.state[parameter] = {"step": taken, **moments}


def _rows(job: Job, step: int, batch: int) -> list[int]:
    """The images of a step: permutations of the shots follow one another and are cut into full batches."""
    rows, n = [], len(job.images)
    order: dict[int, list[int]] = {}
    for position in range(step * batch, (step + 1) * batch):
        epoch, at = divmod(position, n)
        if epoch not in order:
            order[epoch] = torch.randperm(n, generator=generator("adapt order", job.seed, epoch)).tolist()
        rows.append(order[epoch][at])
    return rows


def _to_model(images: list[NDArray[np.uint8]]) -> torch.Tensor:
    """Convert images (h, w, 3) uint8 to one tensor (n, 3, h, w) float32 in [-1, 1]."""
    import numpy as np

    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1

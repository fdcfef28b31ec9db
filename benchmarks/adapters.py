"""Adapter steps: the loop of diffusers' DreamBooth-LoRA script against ``dreamset.generator.training``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from peft.tuners.lora import LoraLayer
from PIL import Image, ImageOps
from torch import nn
from torchvision import transforms

from benchmarks import arithmetic
from benchmarks.setting import CLASS, DATASET
from benchmarks.timing import Ladder, Rung, clock
from dreamset import adapt
from dreamset.core.seeds import generator, seed_for
from dreamset.data.work import Work
from dreamset.generator import base_model, lora, trainings
from dreamset.generator.training import Job, Settings, Together, _rows
from dreamset.params.knobs import Lora

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.setting import Setting
    from dreamset.generator.base_model import BaseModel


class Plain:
    """One adapter in training as the reference scripts do it.

    Every step opens, crops and normalises its images, encodes them with the VAE and every caption with the text
    encoder, and runs peft's own layers. It draws the same random numbers as ``Together``, so the losses agree.

    Args:
        base: the frozen model.
        job: the adapter.
        files: its images, in the order of the job's captions.
        settings: of the training.
        cached: lever: latent moments of all images are computed once.
        distinct: lever: each distinct caption of a batch is encoded once, and tokenized once for all steps.
    """

    def __init__(
        self,
        base: BaseModel,
        job: Job,
        files: list[Path],
        settings: Settings,
        *,
        cached: bool = False,
        distinct: bool = False,
    ) -> None:
        self.base, self.job, self.files, self.settings, self.distinct = base, job, files, settings, distinct
        assert isinstance(settings.kind, Lora)
        self.layers: list[tuple[nn.Module, str, LoraLayer]] = []
        for prefix, model in lora.models(base, settings.kind).items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_for("lora", prefix, job.seed))
                model.add_adapter(lora.config(base, prefix, settings.kind), adapter_name=job.name)
            self.layers += [(model, path, at) for path, at in model.named_modules() if isinstance(at, LoraLayer)]
        self.weights = [side[job.name].weight for _, _, at in self.layers for side in (at.lora_A, at.lora_B)]
        for weight in self.weights:
            weight.data = weight.data.float()
            weight.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.weights, lr=settings.schedule.lr, weight_decay=settings.weight_decay)
        self.noise_schedule = DDPMScheduler.from_config(base.schedule)
        self.transform = transforms.Compose(
            [
                transforms.Resize(base.resolution, transforms.InterpolationMode.BICUBIC),
                transforms.RandomCrop(base.resolution),
                transforms.ToTensor(),
                transforms.Normalize([0.5], [0.5]),
            ]
        )
        self.cache = self._moments(range(len(files))) if cached else None
        self.tokens: dict[str, torch.Tensor] = {}
        self.losses: list[float] = []

    def run(self, steps: int) -> None:
        """Some optimizer steps more."""
        for _ in range(steps):
            self._step(len(self.losses))

    def close(self) -> None:
        """Take the adapter off the base."""
        for model, path, at in self.layers:
            lora.put(model, path, at.base_layer)
            if hasattr(model, "peft_config"):
                del model.peft_config
            model._hf_peft_config_loaded = False

    def _step(self, step: int) -> None:
        batch, base = self.settings.schedule.batch, self.base
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr(step)
        random = generator("adapt step", self.job.seed, step)
        rows = _rows(self.job, step, batch)
        shape = (batch, *base.latent_shape)
        posterior = torch.randn(shape, generator=random).to(base.device)
        noise = torch.randn(shape, generator=random).to(base.device)
        t = torch.randint(self.noise_schedule.config.num_train_timesteps, (batch,), generator=random).to(base.device)
        dropped = torch.rand(batch, generator=random) < self.settings.caption_dropout
        captions = ["" if drop else self.job.prompts[row] for row, drop in zip(rows, dropped.tolist(), strict=True)]

        mean, std = [part[rows] for part in self.cache] if self.cache else self._moments(rows)
        latents = mean + std * posterior
        noisy = self.noise_schedule.add_noise(latents, noise, t)
        context = self._context(captions)
        predicted = base.unet(noisy.to(base.dtype), t, encoder_hidden_states=context, return_dict=False)[0]
        target = noise
        if self.noise_schedule.config.prediction_type == "v_prediction":
            target = self.noise_schedule.get_velocity(latents, noise, t)
        loss = F.mse_loss(predicted.float(), target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, self.settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())

    @torch.no_grad()
    def _moments(self, rows: list[int] | range) -> tuple[torch.Tensor, torch.Tensor]:
        images = []
        for row in rows:
            with Image.open(self.files[row]) as image:
                images.append(self.transform(ImageOps.exif_transpose(image).convert("RGB")))
        return self.base.moments(torch.stack(images))

    def _context(self, captions: list[str]) -> torch.Tensor:
        wanted = list(dict.fromkeys(captions)) if self.distinct else captions
        for caption in wanted:
            if not self.distinct or caption not in self.tokens:
                self.tokens[caption] = self._tokenized(caption)
        with torch.set_grad_enabled(self.settings.kind.text_encoder):
            encoder = self.base.parts["text_encoder"]
            hidden = encoder(torch.stack([self.tokens[caption] for caption in wanted]).to(self.base.device))[0]
        rows = torch.tensor([wanted.index(caption) for caption in captions], device=hidden.device)
        return hidden.index_select(0, rows) if self.distinct else hidden

    def _tokenized(self, caption: str) -> torch.Tensor:
        (tokenizer,) = self.base.tokenizers
        padded = {"padding": "max_length", "truncation": True, "max_length": tokenizer.model_max_length}
        return tokenizer(caption, return_tensors="pt", **padded).input_ids[0]


def jobs(setting: Setting, recipe: str) -> tuple[list[Job], list[list[Path]], Settings]:
    """The adapters of a recipe, the files of each, and their settings."""
    work = Work(setting.params, setting.workspace, setting.split, recipe)
    plan = trainings.scopes(work)
    bare, settings = adapt._jobs(work, plan, None)
    files = [[sample.path for sample in own] for own in adapt.images_of(work, plan)]
    found = [
        adapt.with_images(setting.workspace, job, own, setting.params.base.resolution)
        for job, own in zip(bare, files, strict=True)
    ]
    # All classes have the same number of shots, so all jobs have the same settings.
    return found, [[setting.workspace.cell / path for path in own] for own in files], settings[0]


def ladders(setting: Setting) -> list[Ladder]:
    """One adapter for the data set, and one per class. Set-up is spread over all the steps of a training.

    Every rung reads its own base, so that none takes memory from another; that is timed where a lever says so.
    """
    model, amount = setting.params.base, setting.amount

    def plain(recipe: str, dtype: str = "float32", *, reload: bool = False, **levers: bool) -> float:
        found, files, settings = jobs(setting, recipe)
        start = clock()
        base = read(setting, dtype)
        setup = clock() - start if reload else 0.0
        start = clock()
        loop = Plain(base, found[0], files[0], settings, **levers)
        setup += clock() - start
        loop.run(amount.warmup)
        start = clock()
        loop.run(amount.steps)
        taken = (clock() - start) / amount.steps
        loop.close()
        return taken + setup / settings.steps

    def ours(recipe: str, *, at_once: int = model.adapt.together) -> float:
        found, _, settings = jobs(setting, recipe)
        group = found[:at_once]
        base = read(setting, model.dtype)
        start = clock()
        together = Together(base, group, settings, setting.workspace.unfinished, losses=[[] for _ in group])
        setup = clock() - start
        for _ in range(amount.warmup):
            together._train_step()
        start = clock()
        for _ in range(amount.steps):
            together._train_step()
        taken = (clock() - start) / amount.steps
        together.close()
        return (taken + setup / settings.steps) / len(group)

    def rungs(recipe: str, batch: int, first: list[Rung], dtypes: list[str], together: list[Rung]) -> list[Rung]:
        """The rungs of a recipe, with the operations of its step."""
        operations = batch * arithmetic.step(setting, setting.params.recipes[recipe].lora())
        last = dtypes[-1]
        middle = [
            Rung("+ latent moments kept", lambda: plain(recipe, cached=True)),
            Rung("+ each distinct caption encoded once", lambda: plain(recipe, cached=True, distinct=True)),
            *[Rung(f"+ {last}", lambda: plain(recipe, last, cached=True, distinct=True))] * (len(dtypes) - 1),
        ]
        return [dataclasses.replace(rung, operations=operations) for rung in [*first, *middle, *together]]

    # The reference scripts compute in single precision.
    dtypes = ["float32"] if model.dtype == "float32" else ["float32", model.dtype]
    dataset = model.adapt.dataset.batch
    per_class, classes = model.adapt.class_.batch, min(model.adapt.together, len(setting.split.classes))
    return [
        Ladder(
            f"Adapter of the data set, batch {dataset}",
            "steps",
            rungs(
                DATASET,
                dataset,
                [Rung("plain loop", lambda: plain(DATASET))],
                dtypes,
                [Rung("dreamset (+ own LoRA layers, fused AdamW, moving average)", lambda: ours(DATASET))],
            ),
        ),
        Ladder(
            f"Adapters of {classes} classes, batch {per_class} each",
            "adapter steps",
            rungs(
                CLASS,
                per_class,
                [
                    Rung("plain loop, base read again for each adapter", lambda: plain(CLASS, reload=True)),
                    Rung("+ base read once", lambda: plain(CLASS)),
                ],
                dtypes,
                [
                    Rung("+ own LoRA layers, fused AdamW, moving average", lambda: ours(CLASS, at_once=1)),
                    Rung(f"dreamset (+ {classes} adapters at once)", lambda: ours(CLASS)),
                ],
            ),
        ),
    ]


def read(setting: Setting, dtype: str) -> BaseModel:
    """The base in a type of its own."""
    return base_model.load(setting.generator, dataclasses.replace(setting.params.base, dtype=dtype), setting.device)

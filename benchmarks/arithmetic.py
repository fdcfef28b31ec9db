"""What the U-Net's work is in floating-point operations, and how many of them the machine does in a second."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

from dreamset.core.files import read_json
from dreamset.generator import lora, memory
from dreamset.generator.sampler import scheduler

if TYPE_CHECKING:
    from benchmarks.setting import Setting
    from dreamset.params.knobs import Lora

SIDE = {"cuda": 8192, "cpu": 1024}  # of the matrices; large enough for the device to be at its best


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of one large matrix product: what the machine gives in practice; the best of ten."""
    side = SIDE.get(device.type, 2048)
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        _wait(device)
        start = time.perf_counter()
        for _ in range(4):
            one @ other
        _wait(device)
        best = min(best, (time.perf_counter() - start) / 4)
    return 2 * side**3 / best


def drawing(setting: Setting, recipe: str) -> float:
    """Operations of the U-Net for one image: its evaluations, twice with guidance."""
    kind = setting.params.sampler(recipe)
    steps = scheduler(
        kind.scheduler, read_json(setting.generator / "scheduler/scheduler_config.json", "dreamset fetch")
    )
    steps.set_timesteps(kind.steps)
    # PNDM looks at its second step twice.
    return _unet(setting, None) * len(steps.timesteps) * (1 if kind.guidance == 1 else 2)


def step(setting: Setting, row: Lora) -> float:
    """Operations of the U-Net for one image of an adapter's step, forward and backward."""
    return _unet(setting, row)


def _unet(setting: Setting, row: Lora | None) -> float:
    """One image, counted on tensors without content: forward, and backward through an adapter where one is given."""
    base = memory.on_meta(setting.generator, setting.params.base)
    with torch.no_grad():
        condition = memory._condition(base, 1)
    if row is not None:
        with torch.device("meta"):
            lora.attach(base, row, {"one": 0})
        condition.hidden.requires_grad_(row.text_encoder)
    with torch.set_grad_enabled(row is not None), FlopCounterMode(display=False) as counter:
        latents = torch.empty((1, *base.latent_shape), device="meta")
        predicted = base.predict(latents, torch.empty(1, device="meta"), condition)
        if row is not None:
            predicted.float().square().mean().backward()
    return float(counter.get_total_flops())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

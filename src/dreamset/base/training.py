"""What the training loops share: schedule, averaged weights, whole-folder replacement."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from dreamset.base.params import Training


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def begin(plan: Training) -> torch.device:
    """Seed torch, set the CPU threads and return the device to train on."""
    torch.set_num_threads(plan.threads)
    torch.manual_seed(plan.seed)
    return device()


def optimizer(network: nn.Module, plan: Training) -> torch.optim.AdamW:
    """AdamW that decays matrices and kernels but neither biases nor gains."""
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": plan.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.98))


def rate(step: int, plan: Training) -> float:
    """Learning rate of a step: linear warm-up over a twentieth of the training, then a half cosine to zero."""
    warm = max(1, plan.steps // 20)
    if step < warm:
        return plan.learning_rate * (step + 1) / warm
    return plan.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, plan.steps - warm)))


def fit(name: str, network: nn.Module, plan: Training, loss_of: Callable[[int], torch.Tensor]) -> None:
    """Minimise ``loss_of(step)`` over the trainable weights, with clipping and a progress bar."""
    steps = optimizer(network, plan)
    bar = tqdm(range(plan.steps), desc=name, disable=None)
    smooth = math.nan
    for step in bar:
        for group in steps.param_groups:
            group["lr"] = rate(step, plan)
        loss = loss_of(step)
        steps.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        steps.step()
        if step % 50 == 0:
            value = float(loss.detach())
            smooth = value if math.isnan(smooth) else 0.8 * smooth + 0.2 * value
            bar.set_postfix(loss=f"{smooth:.4f}")
        if bar.disable and step % max(1, plan.steps // 10) == 0:
            print(f"{name}: step {step} of {plan.steps}, loss {smooth:.4f}", flush=True)


class Average:
    """Exponential moving average of a network's weights, with the usual short memory at the start."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network = network
        self._decay = decay
        self._weights = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step``."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, value in self._network.state_dict().items():
            if value.is_floating_point():
                self._weights[name].lerp_(value, 1 - decay)

    def apply(self) -> None:
        """Put the averaged weights into the network."""
        self._network.load_state_dict(self._weights)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to fill beside ``folder``, put in its place only when everything in it is written."""
    fresh, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)

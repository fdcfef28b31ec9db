"""The parts that the training loops share: optimizers, schedule, averaged weights, replacement of a whole folder."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from dreamset.glyphs.look import Training


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def begin(plan: Training) -> torch.device:
    """Seed torch, set the CPU threads and return the device to train on."""
    torch.set_num_threads(plan.threads)
    torch.manual_seed(plan.seed)
    return device()


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024): momentum whose matrices are made nearly orthogonal before they are applied.

    For these small networks it needs a third of AdamW's steps. A convolution's kernel counts as a matrix of
    (out, the rest), and open_clip's packed q, k, v as three matrices. Steps are scaled to AdamW's size, so that
    learning rates carry over.
    """

    def __init__(self, weights: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Apply the gradients; ``closure`` is never called."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[tuple[nn.Parameter, torch.Tensor]]] = {}
            for weight in group["params"]:
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 0.05)
                update = weight.grad.lerp(momentum, 0.95).reshape(_matrices(weight))
                by_shape.setdefault(tuple(update.shape), []).append((weight, update))
            for shape, members in by_shape.items():
                stacked = _orthogonal(torch.cat([update for _, update in members]))
                scale = 0.2 * math.sqrt(max(shape[-2:])) * group["lr"]
                for (weight, _), update in zip(members, stacked.split(shape[0]), strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.sub_(update.reshape(weight.shape), alpha=scale)


def _matrices(weight: torch.Tensor) -> tuple[int, int, int]:
    """The shape of a weight seen as a stack of matrices."""
    rows, columns = weight.shape[0], weight[0].numel()
    packed = weight.ndim == 2 and rows == 3 * columns
    return (3, columns, columns) if packed else (1, rows, columns)


def _orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Approximately the nearest orthogonal matrices, by five Newton-Schulz steps: (n, rows, columns)."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: torch.Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    out: torch.Tensor = x.mT if tall else x
    return out


def optimizers(network: nn.Module, plan: Training) -> list[torch.optim.Optimizer]:
    """Muon for the inner matrices and kernels; AdamW at half the rate for embeddings, ends, gains and biases."""
    trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    inner = [p for name, p in trained if p.ndim > 1 and p.shape[0] > 8 and not _is_end(name)]
    chosen = {id(p) for p in inner}
    rest = [p for _, p in trained if id(p) not in chosen]
    return [
        Muon(inner, plan.learning_rate, plan.weight_decay),
        torch.optim.AdamW(rest, plan.learning_rate / 2, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _is_end(name: str) -> bool:
    """Whether a weight is an embedding, a first layer or an output projection, which Muon does not suit."""
    ends = ("embedding", "conv_in", "conv_out", "conv1.", "stem", "classify", "text_projection", "visual.proj")
    return any(end in name for end in ends)


def rate(step: int, steps: int) -> float:
    """Share of the peak rate: a linear warm-up over a twentieth of the training, then half a cosine to zero."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def fit(name: str, network: nn.Module, plan: Training, loss_of: Callable[[int], torch.Tensor]) -> None:
    """Minimise ``loss_of(step)`` over the trainable weights, with clipping and a progress bar."""
    updaters = optimizers(network, plan)
    groups = [group for updater in updaters for group in updater.param_groups]
    peaks = [group["lr"] for group in groups]
    bar = tqdm(range(plan.steps), desc=name, disable=None)
    smooth = math.nan
    for step in bar:
        share = rate(step, plan.steps)
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * share
        loss = loss_of(step)
        network.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for updater in updaters:
            updater.step()
        if step % 10 == 0:
            value = float(loss.detach())
            smooth = value if math.isnan(smooth) else 0.9 * smooth + 0.1 * value
            bar.set_postfix(loss=f"{smooth:.4f}")
        if bar.disable and step % max(1, plan.steps // 10) == 0:
            print(f"{name}: step {step} of {plan.steps}, loss {smooth:.4f}", flush=True)


class Average:
    """The exponential moving average of a network's weights; its memory is short at the start, as usual."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network = network
        self._decay = decay
        self._weights = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after ``step`` to the average."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, value in self._network.state_dict().items():
            if value.is_floating_point():
                self._weights[name].lerp_(value, 1 - decay)

    def apply(self) -> None:
        """Put the averaged weights into the network."""
        self._network.load_state_dict(self._weights)
